"""Which frames of a video make a clip. Pure arithmetic on frame numbers: no file is touched here."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .core import DataError


@dataclass(frozen=True)
class Sampling:
    """How frames are drawn from a video of any length.

    `stride`    every stride-th frame, exactly (V-JEPA's loader takes linspace over the window, so 0, 2, .., 14, 17, 19 for stride 2);
    `fps`       frames that lie 1/fps seconds apart, the nearest ones, whatever the video's own rate; overrides the stride;
    `whole`     frames spread evenly over the whole video (the middles of equal parts, so neither the first nor the often black last frame).
    `segments`  the video is cut into that many equal parts, a clip comes from each; a clip longer than its part begins with it, or
                earlier where the video would else end before the clip.
    `short`     what follows when the video ends before the clip: "repeat" holds its last frame, "loop" starts it again.
    """

    frames: int
    stride: int = 2
    fps: float | None = None
    whole: bool = False
    segments: int = 1
    short: str = "repeat"

    def __post_init__(self):
        for name in ("frames", "stride", "segments"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.fps is not None and self.fps <= 0:
            raise DataError(f"fps is {self.fps}; it must be positive")
        if self.short not in ("repeat", "loop"):
            raise DataError(f"short={self.short!r} is unknown; use 'repeat' or 'loop'")

    def numbers(self, total: int, rate: float = 0.0, segment: int = 0, rng: np.random.Generator | None = None) -> np.ndarray:
        """Frame numbers `[f]` of one clip of a video with `total` frames at `rate` frames a second.

        With `rng` the clip lies anywhere in its segment, without it in its centre, where the segment has room for it.
        """
        first = segment * total // self.segments
        last = max((segment + 1) * total // self.segments, first + 1)
        if self.whole:
            shift = 0.5 if rng is None else rng.random(self.frames)
            return np.minimum(first + (np.arange(self.frames) + shift) * (last - first) / self.frames, total - 1).astype(int)
        offsets = np.arange(self.frames) * self._step(rate)
        room = math.floor(last - 1 - first - offsets[-1])  # how far the clip can move within its segment
        if room > 0:
            start = first + (room // 2 if rng is None else int(rng.random() * (room + 1)))
        else:
            start = min(first, max(0, math.floor(total - 1 - offsets[-1])))
        numbers = (start + offsets + 0.5).astype(int)
        return numbers % total if self.short == "loop" else np.minimum(numbers, total - 1)

    def _step(self, rate: float) -> float:
        if self.fps is None:
            return self.stride
        if rate <= 0:
            raise DataError("this video states no frame rate, so fps cannot be used; use stride instead")
        return rate / self.fps  # below 1 where the video is slower than asked: frames repeat, as time does
