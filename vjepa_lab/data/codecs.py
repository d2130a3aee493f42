"""Clips `[c f y x]` uint8 through a real encoder, a channel that may damage the stream, and the decoder; all in memory."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from . import isolated
from .encode import x264_options

SMALLEST = {"libx264": 16, "libx265": 128}
"""Pixels a side that a picture is continued to before it is encoded: x265 fails on pictures of one block."""


def jpeg(clip: Tensor, quality: int) -> Tensor:
    """Every frame by itself through JPEG."""
    from PIL import Image

    def through(frame):
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
        return torch.from_numpy(np.array(Image.open(buffer)))

    return torch.stack([through(frame) for frame in _pictures(clip)]).permute(3, 0, 1, 2).contiguous().to(clip.device)


def h264(clip: Tensor, channel: Callable[[list[bytes]], list[bytes]] | None = None, **options) -> Tensor:
    """Through H.264; `options` go to x264 (crf, b, slices, ...).

    channel  makes of the frames' packets what arrives of them. Where a picture does not arrive the last one stays, as a player does it.
    """
    options = {name: str(value) for name, value in options.items()} | x264_options()
    packets = encode(_continued(clip, "libx264"), "libx264", options)
    return _cut_to(clip, decode(channel(packets) if channel else packets, "h264", clip.shape[1]))


def h265(clip: Tensor, **options) -> Tensor:
    """Through H.265; `options` go to x265 (crf, bitrate in kbit/s, ...)."""
    fixed = {"bframes": 0, "log-level": "none", "pools": 1, "frame-threads": 1}
    settings = ":".join(f"{name}={value}" for name, value in (options | fixed).items())
    packets = encode(_continued(clip, "libx265"), "libx265", {"x265-params": settings})
    return _cut_to(clip, decode(packets, "hevc", clip.shape[1]))


def bit_rate(clip: Tensor, crf: int = 23) -> int:
    """Bits a second that a clip takes as H.264 at a constant quality."""
    packets = encode(_continued(clip, "libx264"), "libx264", {"crf": str(crf)} | x264_options())
    return 8 * isolated.FPS * sum(map(len, packets)) // len(packets)


def encode(clip: Tensor, encoder: str, options: dict[str, str]) -> list[bytes]:
    """A packet per frame; see `isolated.encode`."""
    return isolated.encode(_pictures(clip), encoder, options)


def decode(packets: list[bytes], decoder: str, frames: int) -> Tensor:
    """The pictures `[c f y x]` that a decoder makes of the packets, the last one held where there is none."""
    import av

    context = av.CodecContext.create(decoder, "r")
    context.thread_count = 1
    shown = {}
    for number, data in [*enumerate(packets), (None, b"")]:
        packet = av.Packet(data) if data else None
        if packet is not None:
            packet.pts = number
        elif number is not None:
            continue
        try:
            shown |= {frame.pts: frame for frame in context.decode(packet)}
        except av.error.FFmpegError:  # a damaged packet: the decoder goes on with the next
            continue
    if not shown:
        raise ValueError(f"the {decoder} decoder could show none of {frames} frames")
    pictures = {number: torch.from_numpy(frame.to_ndarray(format="rgb24")) for number, frame in sorted(shown.items())}
    last, held = pictures[min(pictures)], []
    for number in range(frames):
        last = pictures.get(number, last)
        held.append(last)
    return torch.stack(held).permute(3, 0, 1, 2)


# channels


def bit_errors(rng: np.random.Generator, per_frame: float) -> Callable[[list[bytes]], list[bytes]]:
    """A channel that flips single bits, `per_frame` on average and at least one; headers and the first of several pictures arrive whole."""

    def channel(packets: list[bytes]) -> list[bytes]:
        damaged = [bytearray(packet) for packet in packets]
        for _ in range(max(1, rng.poisson(per_frame * len(packets)))):
            packet = damaged[rng.integers(len(damaged) > 1, len(damaged))]
            slices = _slices(bytes(packet))
            first, end = slices[rng.integers(len(slices))]
            packet[rng.integers(min(first + 8, end - 1), end)] ^= 1 << int(rng.integers(8))  # past the slice's header
        return [bytes(packet) for packet in damaged]

    return channel


def losses(rng: np.random.Generator, share: float) -> Callable[[list[bytes]], list[bytes]]:
    """A channel that loses a `share` of all slices, at least one; the first picture arrives."""

    def channel(packets: list[bytes]) -> list[bytes]:
        places = [(number, span) for number, packet in enumerate(packets) if number for span in _slices(packet)]
        if not places:
            return packets
        lost = rng.random(len(places)) < share
        lost[rng.integers(len(places))] = True
        arrived = dict(enumerate(packets))
        for (number, (first, end)), gone in reversed(list(zip(places, lost, strict=True))):  # from the back: offsets stay true
            if gone:
                arrived[number] = arrived[number][:first] + arrived[number][end:]
        return list(arrived.values())

    return channel


def _slices(packet: bytes) -> list[tuple[int, int]]:
    """First and end byte of each H.264 unit that holds a part of a picture (types 1 and 5), start code included."""
    starts = [match.start() for match in re.finditer(b"\0\0\1", packet)]
    units = zip(starts, [*starts[1:], len(packet)], strict=True)
    return [(first, end) for first, end in units if packet[first + 3] & 31 in (1, 5)]


def _continued(clip: Tensor, encoder: str) -> Tensor:
    """Edges continued to even sizes that the encoder takes."""

    def places(side: int) -> Tensor:
        return torch.arange(max(SMALLEST[encoder], side + side % 2), device=clip.device).clamp(max=side - 1)

    return clip[..., places(clip.shape[-2])[:, None], places(clip.shape[-1])]


def _cut_to(clip: Tensor, decoded: Tensor) -> Tensor:
    height, width = clip.shape[-2:]
    return decoded[..., :height, :width].contiguous().to(clip.device)


def _pictures(clip: Tensor) -> np.ndarray:
    """`[f y x c]` in main memory."""
    return clip.permute(1, 2, 3, 0).contiguous().cpu().numpy()
