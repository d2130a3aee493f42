"""How many clips a second one processor core can supply, from every kind of source."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torchvision.transforms.v2 import functional as F
from tqdm.auto import tqdm

from .cache import Cache
from .encode import write_video
from .listing import Clip, Listing
from .memory import Memory
from .sampling import Sampling
from .synthetic import FactorMotion
from .video import BACKENDS, Video, backends

FILES = {
    "H.264 320x240, key frame every 250": ((240, 320), "h264", ".mp4", {"g": 250}),
    "H.264 340x256, key frame every 250": ((256, 340), "h264", ".mp4", {"g": 250}),
    "H.264 340x256, key frame every 30": ((256, 340), "h264", ".mp4", {"g": 30}),
    "MPEG-4 AVI 320x240 (read from the start)": ((240, 320), "mpeg4", ".avi", {}),
}
"""What is measured -> size (y, x), codec, suffix, encoder's options."""


def throughput(
    frames: int = 16, size: int = 224, stride: int = 2, seconds: float = 2.0, length: int = 250, progress: bool = True
) -> pd.DataFrame:
    """Clips a second of processor time, one row per source: files by both backends, the disk cache, the memory cache, the synthetic world.

    A clip is `frames` frames at `stride` from a random place in a video of `length` frames, random-resized-cropped to `size`. Videos are
    made for the purpose: a textured object over a textured ground (noisy, so harder to decode than most real clips). The rows of a
    backend that is not installed are left out, with a warning.
    """
    for name in set(BACKENDS) - set(backends()):
        warnings.warn(f"the video backend {name!r} is not installed: its rows are left out", stacklevel=2)
    rows, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            jobs = list(_jobs(Path(folder), frames, size, stride, length))
            for what, reader, read in tqdm(jobs, desc="reading", disable=not progress):
                ms = _cost(read, seconds)
                rows.append({"source": what, "reader": reader, "ms_per_clip": round(ms, 2), "clips_per_s_per_core": round(1000 / ms, 1)})
    finally:
        torch.set_num_threads(threads)
    return pd.DataFrame(rows)


def _jobs(folder: Path, frames: int, size: int, stride: int, length: int):
    """(source, reader, function of a counter that reads one clip)."""
    options = {"frames": frames, "size": size, "stride": stride}
    for name, ((height, width), codec, suffix, encoder) in FILES.items():
        path = write_video(folder / f"{len(list(folder.iterdir()))}{suffix}", _moving(length, height, width), 25, codec, **encoder)
        for backend in backends():
            yield name, f"{backend}, 1 thread", _file_reader(path, backend=backend, **options)
        if suffix == ".mp4" and "decord" in backends():
            yield name, "decord, 2 threads", _two_threads(path, **options)
    kept = Cache(folder / "cache", side=-(-size * 8 // 7))
    yield f"disk cache, short side {kept.side}", "memory map", _file_reader(path, cache=kept, **options)
    world = FactorMotion(frames=frames, size=size, n=64)
    yield "synthetic world", "drawn", lambda i: world.read(i % 64)
    memory = Memory(world, progress=False)
    yield "memory cache", "gathered", lambda i: memory.batch([(i % 64, 0)])


def _moving(length: int, height: int, width: int) -> torch.Tensor:
    """`[c f y x]`: a scene of the factor world at a film's length and size."""
    scene = FactorMotion(noise=3.0, camera=True, frames=length, size=128, n=1)[0].clip
    return F.resize(scene.movedim(1, 0), [height, width], antialias=True).movedim(1, 0)


def _file_reader(path: Path, backend: str | None = None, cache: Cache | None = None, **options) -> Callable[[int], object]:
    from .files import Files

    source = Files(Listing("one", "train", [Clip(str(path), {"class": 0})], {"class": ["x"]}), backend=backend, cache=cache, **options)
    return lambda i: source.read(0, i)


def _two_threads(path: Path, frames: int, size: int, stride: int) -> Callable[[int], object]:
    """The decoding alone with decord's own threads, for comparison; the crop is the same."""
    import decord

    from .crops import random_crop

    def read(i: int):
        rng = np.random.default_rng(i)
        reader = decord.VideoReader(str(path), num_threads=2)
        numbers = Sampling(frames, stride).numbers(len(reader), rng=rng)
        return random_crop(*reader[0].shape[:2], rng).cut(torch.from_numpy(reader.get_batch(numbers).asnumpy()).permute(0, 3, 1, 2), size)

    with Video(path, "decord"):  # quiet
        return read


def _cost(read: Callable[[int], object], seconds: float) -> float:
    """Milliseconds of processor time (of all threads) per call."""
    for i in range(2):
        read(i)
    calls, begun, clock = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - clock < seconds or calls < 3:
        read(calls + 2)
        calls += 1
    return 1000 * (time.process_time() - begun) / calls
