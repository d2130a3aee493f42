"""Crops and flips on frames `[f c y x]` uint8, one draw for all frames of a clip. Resizing is bilinear and anti-aliased."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Crop:
    """A part of the picture, in pixels, and whether it is mirrored: one for all frames of a clip."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool = False

    def cut(self, frames: Tensor, size: int) -> Tensor:
        """Frames `[f c y x]` -> the part of them, `size` square."""
        part = _resized(frames, self.top, self.left, self.height, self.width, size)
        return flip(part) if self.mirrored else part


def random_crop(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.3, 1.0),
    ratio: tuple[float, float] = (0.75, 1.35),
    flips: float = 0.0,
) -> Crop:
    """A random part of a picture, at V-JEPA's share of the area and aspect ratio (log-uniform), mirrored with probability `flips`."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            break
    else:
        w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
        top, left = (height - h) // 2, (width - w) // 2
    return Crop(top, left, h, w, bool(rng.random() < flips))


def view_crop(frames: Tensor, size: int, view: int = 0, views: int = 1) -> Tensor:
    """The picture's centre at `size` square (its short side resized to 256/224 of that), or one of several views along its long side.

    Several views cover the whole short side: 3 views are left, centre, right (or top, centre, bottom).
    """
    height, width = frames.shape[-2:]
    side = min(height, width) if views > 1 else max(1, round(min(height, width) * 224 / 256))
    share = 0.5 if views == 1 else view / (views - 1)
    centre_y, centre_x = (height - side) // 2, (width - side) // 2
    top = round((height - side) * share) if height > width else centre_y
    left = round((width - side) * share) if width >= height else centre_x
    return _resized(frames, top, left, side, side, size)


def flip(frames: Tensor) -> Tensor:
    """Mirror left and right. Swaps labels such as "to the left": the caller knows which (`Listing.mirrored`)."""
    return frames.flip(-1)


def _resized(frames: Tensor, top: int, left: int, height: int, width: int, size: int) -> Tensor:
    from torchvision.transforms.v2 import functional as F  # takes two seconds, which the synthetic world need not spend

    return F.resized_crop(frames, top, left, height, width, [size, size], antialias=True)
