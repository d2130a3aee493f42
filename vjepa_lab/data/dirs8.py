"""The eight-direction task that the paper's authors released."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .core import DataError, Sample, Source, known

DIRECTIONS = {"N": (0, -4), "NE": (3, -3), "E": (4, 0), "SE": (3, 3), "S": (0, 4), "SW": (-3, 3), "W": (-4, 0), "NW": (-3, -3)}
"""Compass direction -> (dx, dy) in pixels per frame at 160 x 160; diagonals are 6 % faster."""


class Dirs8(Source):
    """The synthetic task as the paper's authors released it: one disc drifting in one of eight compass directions.

    160 x 160 pixels, flat colour over grey noise, label = index % 8; the first `train` (80 %) of `n` clips train, the rest test (or val).
    The disc stops at the border, so a late one of the 32 frames gives much of the answer away (the factor world has no such leak); of the
    first eight, which are read, the last gives little. At seed 0 the
    pixels equal those of `scripts/generate_eval_synth_videos.py` (santoshpremi/Factorized-Latent-Dynamics-...) before its H.264 step.
    `window` frames exist; the first `frames` are read, as the released probe does. Another `size` than 160 is resized (area).
    """

    fixed, side = True, 160

    def __init__(
        self,
        split: str = "train",
        *,
        frames: int = 8,
        size: int = 160,
        seed: int = 0,
        n: int = 200,
        train: int | None = None,
        window: int = 32,
    ):
        if not 1 <= frames <= window:
            raise DataError(f"synthetic:dirs8 has {window} frames; got frames={frames}")
        self.split, self.name = known("split", split, ("train", "val", "test")), "synthetic:dirs8"
        self.frames, self.size, self.seed, self.window = frames, size, seed, window
        cut = n * 4 // 5 if train is None else train
        if not 0 < cut < n or size < 1:
            raise DataError(f"synthetic:dirs8 needs clips on both sides of its split, and size >= 1; got n={n}, train={cut}, size={size}")
        self.ids = range(cut) if split == "train" else range(cut, n)
        self.classes = {"class": list(DIRECTIONS), "motion": list(DIRECTIONS)}

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int, epoch: int = 0) -> Sample:
        clip, label = torch.from_numpy(self._draw(self.ids[index])), self.ids[index] % 8
        if self.size != self.side:
            from torchvision.transforms.v2 import functional as F

            clip = F.resize(clip.movedim(0, 1), [self.size, self.size], antialias=True).movedim(1, 0).contiguous()
        return Sample(clip, {"class": label, "motion": label}, index)

    def _draw(self, clip: int) -> np.ndarray:
        """`[c f y x]` uint8. The order of the draws is the released one, hence the noise of frames that are not used."""
        side, rng = self.side, np.random.default_rng(42 + clip + 1_000_000 * self.seed)
        ground = rng.integers(0, 80, size=3, dtype=np.uint8)
        noise = rng.integers(0, 30, size=(self.window, side, side)).astype(np.uint8)[: self.frames]
        colour = rng.integers(120, 256, size=3, dtype=np.uint8)
        radius = rng.integers(10, side // 4)
        start = rng.integers(radius, side - radius), rng.integers(radius, side - radius)
        step = np.arange(self.frames)[:, None] * DIRECTIONS[list(DIRECTIONS)[clip % 8]]
        centre = np.clip(start + step, radius, side - radius - 1)  # [f 2]
        x, y = np.arange(side)[None, None, :], np.arange(side)[None, :, None]
        disc = (x - centre[:, 0, None, None]) ** 2 + (y - centre[:, 1, None, None]) ** 2 <= radius**2  # [f y x]
        return np.where(disc, colour[:, None, None, None], ground[:, None, None, None] + noise).astype(np.uint8)

    @property
    def labels(self) -> dict[str, Tensor]:
        label = torch.tensor(self.ids) % 8
        return {"class": label, "motion": label}
