"""Video files from frames, through PyAV's bundled FFmpeg."""

from __future__ import annotations

import platform
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def x264_options() -> dict[str, str]:
    """Options that keep libx264 deterministic; every use of it takes them.

    On processors with AVX-512 the x264 of PyAV 18.1's wheels gives other bytes on every run (and heap corruption was seen); with its AVX2
    code it does not. An x86 processor for which torch uses any vector code has AVX2.
    """
    vectors = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "NO AVX")
    return {"x264-params": "asm=avx2"} if vectors and platform.machine().lower() in ("x86_64", "amd64") else {}


ENCODERS = {
    "h264": ("libx264", {"crf": "18", "preset": "veryfast"}),
    "mpeg4": ("mpeg4", {"qscale": "3", "flags": "+qscale", "global_quality": "354"}),  # 3 * 118 (FF_QP2LAMBDA)
    "vp9": ("libvpx-vp9", {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "8"}),
}
"""Codec -> (FFmpeg's encoder, options): good quality, fast."""


def write_video(path, clip: Tensor, fps: float, codec: str = "h264", threads: int = 1, **options) -> Path:
    """Write frames `[c f y x]` uint8 to `path`; the suffix decides the container. Odd sizes lose their last row or column (4:2:0 colour).

    `options` go to the encoder as strings: crf, g (key frame distance), bf (B-frames), preset, ...

    Raises RuntimeError for VP9 where decord was imported before PyAV: each brings a libvpx, and PyAV's encoder then meets decord's.
    """
    import av

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder, defaults = ENCODERS[codec]
    height, width = (side - side % 2 for side in clip.shape[-2:])
    frames = np.ascontiguousarray(clip[:, :, :height, :width].permute(1, 2, 3, 0).numpy())
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = threads
        safe = x264_options() if encoder == "libx264" else {}
        stream.options = {**defaults, **safe, **{name: str(value) for name, value in options.items()}}
        try:
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        except av.error.ArgumentError as error:
            if encoder == "libvpx-vp9" and "decord" in sys.modules:
                raise RuntimeError(f"{path}: decord was imported before PyAV, whose VP9 then fails; `import av` first ({error})") from None
            raise
    return path
