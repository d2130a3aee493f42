"""Decoded frames kept on disk: a video is decoded once, then its frames are read from a memory map.

One pair of files per video: `<key>.npy` with its frames `[f c y x]` uint8, short side at most `side`, and `<key>.json` with its rate and
checksum, which is written last and so says that the frames are whole. Processes may share a folder; interrupted work is simply not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from tqdm.auto import tqdm

from .core import ClipError, DataError
from .video import Video, is_image, probe, require_file

VERSION = 1
WHOLE = 4 * 2**30
"""Bytes of the longest video that is decoded as a whole; longer ones are not kept."""


STALE = 3600
"""Seconds after which a half-written file is taken for that of a process that was killed."""
PART = re.compile(r"\.[0-9a-f]{32}\.\d+")
"""Name of a half-written file: the video's key and the process that decodes it."""


class Cache:
    """A folder of decoded videos, at most `limit` bytes of them; what does not fit is decoded from its file every time."""

    def __init__(self, folder, side: int = 128, limit: int = 50 * 2**30):
        self.folder, self.side, self.limit = Path(folder), side, limit
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"the cache folder {folder} cannot be made ({error.strerror}); name another place") from error
        self._checked: set[str] = set()
        self._bytes, self._measure_at = 0, 0.0

    def size(self) -> int:
        """Bytes of frames in the folder. Other processes write there too: it is measured each time, in large folders now and then."""
        begun = time.monotonic()
        if begun >= self._measure_at:
            self._bytes = self._measured()
            took = time.monotonic() - begun
            self._measure_at = begun + 20 * took * (took > 0.05)
        return self._bytes

    def _measured(self) -> int:
        total = 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                try:
                    stat = entry.stat()
                    if PART.fullmatch(entry.name) and entry.is_file(follow_symlinks=False) and time.time() - stat.st_mtime > STALE:
                        os.unlink(entry.path)
                except FileNotFoundError:  # another process was first
                    continue
                total += stat.st_size * entry.name.endswith(".npy")
        return total

    def key(self, path) -> str:
        """Changes with the file's place, size and date, and with the size of the frames kept."""
        require_file(path)
        stat = os.stat(path)
        text = f"{VERSION} {os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns} {self.side}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def open(self, path, backend: str | None = None) -> Video | Kept:
        """The video, from the cache where it is there or fits in now; same use as `Video`."""
        kept = self._find(path)
        if kept is not None:
            return kept
        video = Video(path, backend)
        whole = video.frames * video.stream.width * video.stream.height * 3
        shrunk = whole * min(1.0, self.side / min(video.stream.width, video.stream.height)) ** 2
        if self.size() + shrunk > self.limit or whole > WHOLE:
            return video
        with video:
            try:
                self._store(self.key(path), video)
            except OSError as error:
                warnings.warn(f"{self.folder} keeps no more videos, they are decoded every time: {error.strerror}", stacklevel=2)
                self.limit = 0
        return self._find(path) or Video(path, backend)

    def _find(self, path) -> Kept | None:
        key = self.key(path)
        facts, frames = self.folder / f"{key}.json", self.folder / f"{key}.npy"
        try:
            meta = json.loads(facts.read_text())
            array, fps, crc32 = np.load(frames, mmap_mode="r"), meta["fps"], meta["crc32"]
            times = meta["times"] if "times" in meta else probe(str(path)).times
        except (OSError, ValueError, EOFError, KeyError):
            return None
        if key not in self._checked:
            if zlib.crc32(array) != crc32:  # damaged on disk: forget it, it is decoded anew
                self._forget(key)
                return None
            self._checked.add(key)
        return Kept(array, fps, None if times is None else np.asarray(times)[: len(array) + 1])

    def _forget(self, key: str) -> None:
        (self.folder / f"{key}.json").unlink(missing_ok=True)
        (self.folder / f"{key}.npy").unlink(missing_ok=True)

    def _store(self, key: str, video: Video) -> None:
        frames = np.ascontiguousarray(_shrink(video.read(range(video.frames)), self.side).numpy())
        part = self.folder / f".{key}.{os.getpid()}"
        try:
            with part.open("wb") as file:
                np.save(file, frames)
            part.replace(self.folder / f"{key}.npy")
            times = None if video.times is None else video.times.tolist()
            part.write_text(json.dumps({"path": video.path, "fps": video.fps, "times": times, "crc32": zlib.crc32(frames)}))
            part.replace(self.folder / f"{key}.json")
        finally:
            part.unlink(missing_ok=True)
        self._bytes += frames.nbytes
        self._checked.add(key)
        if self.size() > self.limit:  # others filled it meanwhile
            self._forget(key)

    def fill(self, paths, backend: str | None = None, progress: bool = True) -> dict[str, str]:
        """Decode all videos of `paths` that are not in yet, until the limit; returns what could not be read, and why."""
        faults = {}
        for path in tqdm([path for path in paths if not is_image(path)], desc=f"decoding into {self.folder.name}", disable=not progress):
            try:
                self.open(path, backend)
            except ClipError as error:
                faults[error.fault.path] = error.fault.why
        return faults


class Kept:
    """A decoded video: `frames`, `fps`, `times`, `read(indices)`, as `Video` has them."""

    def __init__(self, array: np.ndarray, fps: float, times: np.ndarray | None = None):
        self.array, self.fps, self.times, self.frames = array, fps, times, len(array)

    def read(self, indices) -> Tensor:
        return torch.from_numpy(self.array[np.asarray(indices)])

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_) -> None:
        pass


def _shrink(frames: Tensor, side: int) -> Tensor:
    """Short side at most `side`, a few frames at a time."""
    height, width = frames.shape[-2:]
    if min(height, width) <= side:
        return frames
    scale = side / min(height, width)
    size = [round(height * scale), round(width * scale)]
    return torch.cat([F.resize(part, size, antialias=True) for part in frames.split(64)])
