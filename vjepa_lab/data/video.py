"""Frames of a video file by number, through decord or PyAV, which give the same frames.

Random access is used only where it is known to be exact (H.264, H.265, VP8/9 and AV1 in MP4, MOV, MKV or WebM; by decord only if
the stream is plain: in open groups of pictures, x265's by default, it lands frames off). Every other stream is decoded from its start:
seeking in MPEG-4 streams with B-frames in AVI, UCF-101's kind, can land up to 58 frames off. `check_seek` tells for one file. Frames that
an edit list hides, as in files that were cut without being encoded anew, are not counted.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .core import ClipError, DataError

BACKENDS = ("decord", "pyav")
VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".webm", ".mkv", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp", ".ts"}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"}

_ANIMATED = {"GIF", "PNG", "WEBP"}  # not JPEG or TIFF, where further pictures are previews, depth, pages: cameras write them

_DECORD_CODECS = {"h264", "hevc", "vp8", "vp9"}
_SEEKABLE_CODECS = {"h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "libvpx", "libvpx-vp9"}
_SEEKABLE_CONTAINERS = {"mov", "mp4", "matroska", "webm"}


@dataclass(frozen=True)
class Stream:
    """What a file's header and packets say about its first video stream.

    `frames`: how many are shown, 0 if unknown; `plain`: none is hidden, and none shown before the key frame that it is stored after;
    `times`: of a variable rate, the seconds [frames + 1] at which each frame begins, and the last one ends, from the first one on.
    """

    container: str
    codec: str
    width: int
    height: int
    fps: float
    frames: int = 0
    plain: bool = True
    times: np.ndarray | None = field(default=None, compare=False)

    @property
    def seekable(self) -> bool:
        """Whether reading a frame by its number is exact for streams of this kind."""
        return self.codec in _SEEKABLE_CODECS and bool(_SEEKABLE_CONTAINERS & set(self.container.split(",")))

    @property
    def for_decord(self) -> bool:
        """Whether decord can read it, and by number exactly."""
        return self.seekable and self.plain and self.codec in _DECORD_CODECS


def probe(path: str) -> Stream:
    """Read a file's header and its packets' times, anew once the file has changed; raises ClipError if it has no video stream."""
    stat = require_file(path)
    return _probed(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1 << 16)
def _probed(path: str, mtime: int, size: int) -> Stream:
    import av

    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise ClipError(path, "has no video stream")
            stream = container.streams.video[0]
            context = stream.codec_context
            if context is None:
                raise ClipError(path, "its video stream is of no known codec")
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            return Stream(container.format.name, context.name, context.width, context.height, rate, *_order(container, rate))
    except ClipError:
        raise
    except Exception as error:  # damaged files make FFmpeg and PyAV raise almost anything
        raise ClipError(path, _reason(error)) from error


def _order(container, rate: float) -> tuple[int, bool, np.ndarray | None]:
    """`frames`, `plain` and `times` of a Stream."""
    frames, key, plain, times = 0, None, True, []
    try:
        for packet in container.demux(video=0):
            if packet.size > 0 and not packet.is_discard:
                frames += 1
                if packet.pts is not None:
                    times.append((packet.pts, packet.duration or 0))
            plain = plain and not packet.is_discard
            if packet.is_keyframe:
                key = packet.pts
            elif packet.pts is not None and key is not None and packet.pts < key:
                plain = False
    except Exception:  # a damaged file: its readers will say how
        return 0, plain, None
    unit = float(container.streams.video[0].time_base or 0)
    return frames, plain, _uneven(np.array(sorted(times)) * unit, rate) if frames == len(times) > 1 else None


LATE = 1.5
"""Frames that a frame may lie off its place by the average rate: containers round times, and the first or last frame may be held."""


def _uneven(shown: np.ndarray, rate: float) -> np.ndarray | None:
    """`times` of a Stream from the packets' times and durations [f 2] in seconds; None where the average rate tells them."""
    begins, held = shown[:, 0] - shown[0, 0], shown[-1, 1] or np.median(np.diff(shown[:, 0]))
    if rate <= 0 or np.abs(begins * rate - np.arange(len(begins))).max() <= LATE:
        return None
    return np.append(begins, begins[-1] + held)


def require_file(path) -> os.stat_result:
    """What the disk says of a file; raises ClipError for what is plainly no media file: missing, a folder, empty."""
    path = Path(path)
    try:
        if not path.is_file():
            raise ClipError(path, "is not a file" if path.exists() else "no such file")
        stat = path.stat()
        if stat.st_size == 0:
            raise ClipError(path, "the file is empty")
        return stat
    except OSError as error:  # a folder that may not be entered, a disk that is gone
        raise ClipError(path, error.strerror or error) from error


def _reason(error: Exception) -> str:
    """The telling part of a decoder's message: no stack, no source location, no path (the fault names it)."""
    text = str(error).split("Stack trace")[0].strip()
    if "Check failed" in text:
        text = "cannot be decoded: " + text.split("Check failed: ", 1)[1]
    if isinstance(error, StopIteration | EOFError):
        text = text or "the stream ends before the frame that was asked for"
    return text.splitlines()[0][:200] if text else type(error).__name__


class Video:
    """An open video file: `frames`, `fps`, `read(indices)`. A context manager, opened for each clip: readers that are kept leak.

    Without a named `backend`, decord (where it is installed) reads the streams that it can seek in, PyAV the others, which it reads
    faster (`bench loader`); and what one fails on, the other is asked for (damaged files, but also sound ones of 16 or 48 pixels' width,
    with decord).
    """

    def __init__(self, path, backend: str | None = None):
        self.path, self.stream = str(path), probe(str(path))
        self._left = check_backend(backend, self.stream.for_decord)
        self._advance()
        if self.frames < 1:
            raise ClipError(self.path, "has no frames")

    def _advance(self) -> None:
        """Open the file with the next backend that can; raises ClipError with the first one's reason."""
        reason = None
        while self._left:
            try:
                self._reader = self._left.pop(0)(self.path)
                self.frames, self.fps = self._reader.frames, self._reader.fps
                if self.stream.frames:  # decord counts hidden frames too
                    self.frames = min(self.frames, self.stream.frames)
                return
            except Exception as error:
                reason = reason or _reason(error)
        raise ClipError(self.path, reason)

    def read(self, indices: Sequence[int], exact: bool | None = None) -> Tensor:
        """Frames `[f c y x]` uint8 by number; a number may repeat and come in any order. `exact` overrides the rule for seeking."""
        indices = np.asarray(indices)
        if indices.min() < 0 or indices.max() >= self.frames:
            raise IndexError(f"frames {indices.min()}..{indices.max()} of a video with {self.frames}: {self.path}")
        wanted, back = np.unique(indices, return_inverse=True)
        while True:
            try:
                seek = self._reader.seeks(self.stream) if exact is None else exact
                frames = self._reader.seek(wanted.tolist()) if seek else self._reader.scan(wanted.tolist())
                break
            except Exception as error:
                if not self._left:
                    raise ClipError(self.path, _reason(error)) from error
                self._reader.close()
                self._advance()
                wanted = np.minimum(wanted, self.frames - 1)
        if not len(frames):
            raise ClipError(self.path, "no frame can be decoded")
        back = np.minimum(back, len(frames) - 1)  # a stream that ends early holds its last frame
        return torch.from_numpy(frames)[torch.from_numpy(back)].permute(0, 3, 1, 2)

    @property
    def times(self) -> np.ndarray | None:
        """As a Stream's."""
        return None if self.stream.times is None else self.stream.times[: self.frames + 1]

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_) -> None:
        self._reader.close()


def backends() -> tuple[str, ...]:
    """Those of BACKENDS that are installed."""
    return BACKENDS if find_spec("decord") else ("pyav",)


def check_backend(name: str | None, for_decord: bool = True) -> list[type]:
    """The readers to try, in order; raises DataError for a name that is unknown or not installed."""
    if name is None:
        both = [_Decord, _PyAV] if for_decord else [_PyAV, _Decord]
        return both if "decord" in backends() else [_PyAV]
    if name not in BACKENDS:
        raise DataError(f"unknown video backend {name!r}; one of {', '.join(BACKENDS)}")
    if name not in backends():
        raise DataError("the video backend 'decord' is not installed (it has no wheel for every platform); use 'pyav'")
    return [_Decord if name == "decord" else _PyAV]


class _Decord:
    """decord, one thread: the fastest per clip, with workers beside it."""

    def __init__(self, path: str):
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        self.path, self.at_start = path, True
        self.reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
        self.frames, self.fps = len(self.reader), float(self.reader.get_avg_fps())

    @staticmethod
    def seeks(stream: Stream) -> bool:
        return stream.for_decord

    def seek(self, wanted: list[int]) -> np.ndarray:
        self.at_start = False
        return self.reader.get_batch(wanted).asnumpy()

    def scan(self, wanted: list[int]) -> np.ndarray:
        if not self.at_start:  # where seeking is in doubt, so is seeking to the start
            self.__init__(self.path)
        self.at_start, keep, found = False, set(wanted), []
        for number in range(wanted[-1] + 1):
            frame = self.reader.next()
            if number in keep:
                found.append(frame.asnumpy())
        if found[0].shape[-1] != 3:  # at widths of 16 and 48 decord hands out RGBA, and get_batch fails on it
            raise ValueError(f"decord gives {found[0].shape[-1]} channels")
        return np.stack(found)

    def close(self) -> None:
        self.reader = None


class _PyAV:
    """PyAV: every platform; the packets' timestamps are indexed at opening, as decord does."""

    def __init__(self, path: str):
        self.path = path
        self._open()
        packets = [packet for packet in self.container.demux(self.video) if packet.size]
        shown = [packet for packet in packets if not packet.is_discard]
        self.frames, self.fps = len(shown), float(self.video.average_rate or 0)
        self.times = sorted(packet.pts for packet in shown if packet.pts is not None)
        self.keys = sorted(packet.pts for packet in packets if packet.pts is not None and packet.is_keyframe)

    def _open(self) -> None:
        import av

        self.container = av.open(self.path)
        self.video = self.container.streams.video[0]
        self.video.codec_context.thread_count = 1

    @staticmethod
    def seeks(stream: Stream) -> bool:
        return stream.seekable

    def seek(self, wanted: list[int]) -> np.ndarray:
        if len(self.times) != self.frames:
            return self.scan(wanted)
        found, decoder, now = [], self.container.decode(self.video), None
        for time in (self.times[number] for number in wanted):
            key = self.keys[max(bisect_right(self.keys, time) - 1, 0)]
            if now is None or key > now.pts:  # a key frame lies between: jump there
                self.container.seek(key, stream=self.video)
                decoder = self.container.decode(self.video)
                now = next(decoder)
            while now.pts < time:
                now = next(decoder)
            found.append(_upright(now))
        return np.stack(found)

    def scan(self, wanted: list[int]) -> np.ndarray:
        self.close()
        self._open()
        keep, found = set(wanted), []
        for number, frame in enumerate(self.container.decode(self.video)):
            if number in keep:
                found.append(_upright(frame))
            if number >= wanted[-1]:
                break
        return np.stack(found) if found else np.empty((0,))

    def close(self) -> None:
        self.container.close()


def _upright(frame) -> np.ndarray:
    """RGB pixels, turned as the file's display matrix says."""
    picture = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


def check_seek(path, backend: str | None = None, most: int = 16) -> bool:
    """Whether random access gives the frames that reading from the start gives, tried on `most` frames in shuffled order."""
    with Video(path, backend) as video:
        numbers = np.unique(np.linspace(0, video.frames - 1, most).astype(int))
        truth = video.read(numbers, exact=False)
    for at in np.random.default_rng(0).permutation(len(numbers)):
        with Video(path, backend) as video:
            if not torch.equal(video.read(numbers[at : at + 1], exact=True)[0], truth[at]):
                return False
    return True


def read_image(path) -> Tensor:
    """An image file as one frame `[1 c y x]` uint8 RGB; raises ClipError for one that cannot be read, and for an animation."""
    from PIL import Image

    require_file(path)
    try:
        with Image.open(path) as image:
            if image.format in _ANIMATED and image.n_frames > 1:
                raise ClipError(path, f"an animation of {image.n_frames} frames, not a still image; convert it to a video (.mp4)")
            return torch.from_numpy(_rgb(path, image)).permute(2, 0, 1)[None]
    except ClipError:
        raise
    except Exception as error:
        raise ClipError(path, _reason(error)) from error


_DEEP = {"I", "I;16", "I;16B", "I;16L", "I;16N", "F"}
"""Pillow's modes of one channel that `convert` would clip at 255 instead of scaling."""


def _rgb(path, image) -> np.ndarray:
    """Pixels `[y x 3]` uint8; 16 bits become 8 by the share of their range, 65,535 / 257 = 255."""
    if image.mode not in _DEEP:
        return np.array(image.convert("RGB"))
    pixels = np.asarray(image)
    low, high = pixels.min(), pixels.max()
    if image.mode == "F" or low < 0 or high > 65535:
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise ClipError(
            path, f"{kind} pixels from {low:g} to {high:g}, whose black and white are not known; expected 8 or 16 bits: scale and save anew"
        )
    grey = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(grey[..., None], 3, -1)


def is_image(path) -> bool:
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def is_media(path) -> bool:
    return Path(path).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
