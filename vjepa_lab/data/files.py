"""Clips decoded from the files of a listing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .cache import Cache, Kept
from .core import ClipError, DataError, Sample, Source
from .crops import random_crop, view_crop
from .listing import Clip, Listing
from .sampling import Sampling
from .video import Video, check_backend, is_image, read_image


class Files(Source):
    """The videos and images of a listing as clips `[c f y x]`.

    Training (`augment`, by default the train split): a random window in time, a random resized crop and a flip, the same for all frames,
    drawn from (seed, index, epoch); with `augment="device"` the readers only decode, and `batch.to(device)` cuts the crops out there.
    Evaluation: the centre in time and space, or `segments` x `views` clips a file, which follow one another and share its index.
    Frames are chosen as `Sampling` says. An image is repeated to fill the frames (`images="repeat"`, as the V-JEPA loaders do) or is a clip
    of one frame (`images="still"`).
    """

    def __init__(
        self,
        listing: Listing,
        *,
        frames: int = 8,
        size: int = 64,
        stride: int = 2,
        seed: int = 0,
        fps: float | None = None,
        whole: bool = False,
        segments: int = 1,
        views: int = 1,
        short: str = "repeat",
        augment: bool | str | None = None,
        scale: tuple[float, float] = (0.3, 1.0),
        ratio: tuple[float, float] = (0.75, 1.35),
        flips: float = 0.5,
        images: str = "repeat",
        backend: str | None = None,
        cache: Cache | None = None,
        bad: float = 0.05,
    ):
        self.listing, self.name, self.split, self.classes = listing, listing.name, listing.split, listing.classes
        self.sampling = Sampling(frames, stride, fps, whole, segments, short)
        self.augment = listing.split == "train" if augment is None else augment
        self.fixed = not self.augment
        self.size, self.seed, self.views, self.images, self.bad = size, seed, views, images, bad
        self.scale, self.ratio, self.flips = scale, ratio, flips
        check_backend(backend)
        self.backend, self.cache = backend, cache
        if images not in ("repeat", "still"):
            raise DataError(f"images={images!r} is unknown; use 'repeat' or 'still'")
        if views < 1 or size < 1:
            raise DataError(f"views and size must be at least 1; got views={views}, size={size}")
        if self.augment not in (True, False, "device"):
            raise DataError(f"augment={augment!r} is unknown; use True, False or 'device'")
        if self.augment and segments * views > 1:
            raise DataError("several segments or views are for evaluation; pass augment=False")

    @property
    def copies(self) -> int:
        """Clips read from each file."""
        return self.sampling.segments * self.views

    def __len__(self) -> int:
        return len(self.listing.clips) * self.copies

    def read(self, index: int, epoch: int = 0) -> Sample:
        place, copy = divmod(index, self.copies)
        segment, view = divmod(copy, self.views)
        clip = self.listing.clips[place]
        rng = np.random.default_rng((self.seed, epoch, index)) if self.augment else None
        frames = decode(clip, self.sampling, segment, rng, self.backend, self.images, self.cache)
        labels = {name: self._label(name, value) for name, value in clip.labels.items()}
        if rng is None:
            frames = view_crop(frames, self.size, view, self.views)
            return Sample(frames.movedim(1, 0).contiguous(), labels, place, is_image(clip.path))
        crop = random_crop(*frames.shape[-2:], rng, self.scale, self.ratio, self.flips)
        if crop.mirrored:
            labels = self.listing.mirror(labels)
        sample = Sample(frames.movedim(1, 0), labels, place, is_image(clip.path), (crop, self.size))
        return sample if self.augment == "device" else sample.cut()

    def clip_shape(self, index: int = 0) -> tuple[int, int, int]:
        """Frames, rows and columns of clip `index`; nothing is decoded for it."""
        still = self.images == "still" and is_image(self.listing.clips[index // self.copies].path)
        return 1 if still else self.sampling.frames, self.size, self.size

    @property
    def files(self) -> int:
        return len(self.listing.clips)

    @property
    def file_clips(self) -> list[Clip]:
        return self.listing.clips

    @property
    def recordings(self) -> list[str] | None:
        clips = self.listing.clips
        return [clip.group for clip in clips] if all(clip.group for clip in clips) else None

    def where(self, index: int) -> str:
        return self.listing.clips[index // self.copies].path

    @property
    def labels(self) -> dict[str, Tensor]:
        def every(name):
            return torch.stack([torch.as_tensor(self._label(name, clip.labels[name])) for clip in self.listing.clips])

        return {name: every(name).repeat_interleave(self.copies, 0) for name in self.classes}

    def _label(self, name: str, value):
        """A class number, or the 0/1 vector `[classes]` of a multi-label set."""
        if not self.listing.multi:
            return value
        hot = torch.zeros(len(self.classes[name]), dtype=torch.long)
        hot[list(value)] = 1
        return hot

    def __repr__(self) -> str:
        return "\n".join([super().__repr__(), *(f"  {note}" for note in self.listing.notes)])

    def subset(self, keep) -> Files:
        """The same source with only the files at the places `keep`."""
        twin = object.__new__(type(self))
        twin.__dict__ = {k: v for k, v in self.__dict__.items() if k not in ("_faults", "avoid")}  # those of other indices
        twin.listing, twin.options = replace(self.listing, clips=[self.listing.clips[i] for i in keep]), None
        return twin


def decode(
    clip: Clip,
    sampling: Sampling,
    segment: int = 0,
    rng: np.random.Generator | None = None,
    backend: str | None = None,
    images: str = "repeat",
    cache: Cache | None = None,
) -> Tensor:
    """The frames `[f c y x]` uint8 of one clip at the file's own size, cut to its box."""
    if is_image(clip.path):
        frames = read_image(clip.path)
        frames = frames.expand(sampling.frames if images == "repeat" else 1, -1, -1, -1)
    else:
        with cache.open(clip.path, backend) if cache else Video(clip.path, backend) as video:
            frames = video.read(_numbers(clip, video, sampling, segment, rng))
    return frames if clip.box is None else _cut(frames, clip.box)


TICKS = 1000
"""Points of time in a second that frames of a variable rate are drawn by."""


def _numbers(clip: Clip, video: Video | Kept, sampling: Sampling, segment: int, rng: np.random.Generator | None) -> np.ndarray:
    """The numbers `[f]` of the frames that `sampling` takes of a clip, where `fps` asks for it in time also at a variable rate."""
    first, total = _span(clip, video)
    if video.times is None or sampling.fps is None or sampling.whole:
        return first + sampling.numbers(total, video.fps, segment, rng)
    times = video.times[first : first + total + 1]
    ticks = max(round((times[-1] - times[0]) * TICKS), 1)
    seconds = times[0] + sampling.numbers(ticks, TICKS, segment, rng) / TICKS
    return first + np.searchsorted((times[:-2] + times[1:-1]) / 2, seconds)  # the nearest frame


def _span(clip: Clip, video: Video | Kept) -> tuple[int, int]:
    """First frame and number of frames of the part that `clip` names."""
    if clip.start is None or video.fps <= 0:
        return 0, video.frames
    if video.times is not None:
        return _timed_span(clip, video.times)
    first = max(int(clip.start * video.fps + 1e-6), 0)  # 1.16 s at 25 a second is frame 29, in floats 28.999...
    if first >= video.frames:
        raise ClipError(clip.path, f"the clip begins at {clip.start:g} s, the video ends at {video.frames / video.fps:g} s")
    last = video.frames if clip.end is None else min(round(clip.end * video.fps), video.frames)
    return first, max(last - first, 1)


def _timed_span(clip: Clip, times: np.ndarray) -> tuple[int, int]:
    """As `_span`, by the seconds at which the frames begin."""
    if clip.start >= times[-1]:
        raise ClipError(clip.path, f"the clip begins at {clip.start:g} s, the video ends at {times[-1]:g} s")
    first = max(int(np.searchsorted(times, clip.start + 1e-6, "right")) - 1, 0)
    last = len(times) - 1 if clip.end is None else int(np.searchsorted(times[:-1], clip.end - 1e-6))
    return first, max(last - first, 1)


def _cut(frames: Tensor, box) -> Tensor:
    height, width = frames.shape[-2:]
    x1, y1, x2, y2 = box
    left, top = int(max(x1, 0) * width), int(max(y1, 0) * height)
    right, bottom = round(min(x2, 1) * width), round(min(y2, 1) * height)
    return frames[..., top : max(bottom, top + 1), left : max(right, left + 1)]
