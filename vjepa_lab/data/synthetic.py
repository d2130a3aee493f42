"""A procedural world of known factors: one object, drawn from independent appearance factors, doing one of eight motions.

Torus rule: position, angle and log-size each live on a torus, start anywhere on it with equal chance, and only the motion's own axis
moves. Every single frame then looks alike under every motion: motion can be read from change alone, appearance from any frame.
A clip is fully determined by (seed, split, law, index), at any number of frames and any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from .core import DataError, Sample, Source, check_options
from .shapes import SHAPES, TEXTURES, distance, pattern, rgb

MOTIONS = {"right": (0, 1), "left": (0, -1), "down": (1, 1), "up": (1, -1), "cw": (2, 1), "ccw": (2, -1), "grow": (3, 1), "shrink": (3, -1)}
"""Motion -> (axis of the torus, direction); axes are x, y, angle, log-size."""
SPEEDS = {"slow": (0.20, 0.25), "medium": (0.32, 0.40), "fast": (0.50, 0.60)}
"""Speed -> range of the distance covered in a clip, as a share of the torus."""
HUES = {"red": 0.0, "green": 0.3, "blue": 0.6, "magenta": 0.85}
TINTS = {"warm": 0.08, "olive": 0.22, "teal": 0.47, "violet": 0.72}
SIZES = (0.17, 0.42)
"""Smallest and largest object: side of a square of the same area, as a share of the picture."""

FACTORS = {
    "shape": list(SHAPES),
    "hue": list(HUES),
    "texture": list(TEXTURES),
    "tint": list(TINTS),
    "motion": list(MOTIONS),
    "speed": list(SPEEDS),
}
APPEARANCE, DYNAMICS = ("shape", "hue", "texture", "tint"), ("motion", "speed")
CLIPS = {"train": 4000, "val": 500, "test": 1000}
LAWS = ("iid", "compositional", "spurious")


@dataclass(frozen=True)
class Scene:
    """What happens in one clip: class indices of the factors and the numbers behind them."""

    labels: dict[str, int]
    phase: np.ndarray  # [4] start on the torus: x, y, angle, log-size
    velocity: np.ndarray  # [4] torus lengths per clip
    colour: np.ndarray  # [c] of the object
    tint: np.ndarray  # [c] of the background
    seed: int  # of the background

    def path(self, frames: int) -> np.ndarray:
        """Torus coordinates `[f 4]` in [0, 1)."""
        return (self.phase + self.velocity * np.arange(frames)[:, None] / frames) % 1


class FactorMotion(Source):
    """The factor world: shape 5 x hue 4 x texture 3 x background tint 4, and motion 8 x speed 3, all independent.

    `law` says how shape and motion go together:
    `iid`            independent, in every split;
    `compositional`  a fifth of the shape x motion cells (a Latin square) occurs in the test split only, and nothing else does there;
    `spurious`       shape tells the motion in 90 % of the training and validation clips, and nothing about it in the test split.
    With one frame there is no motion, so an image has appearance labels only. "class" is the motion, or an image's shape.
    """

    fixed = True

    def __init__(
        self, split: str = "train", *, frames: int = 8, size: int = 64, seed: int = 0, n: int | None = None, law: str = "iid",
        factors: tuple[str, ...] = APPEARANCE + DYNAMICS,
    ):  # fmt: skip
        self.split, self.name = _known("split", split, CLIPS), "synthetic"
        self.law, self.frames, self.size, self.seed = _known("law", law, LAWS), frames, size, seed
        self.n = CLIPS[split] if n is None else n
        if frames < 1 or size < 8 or self.n < 1:
            raise DataError(f"synthetic clips need frames >= 1, size >= 8 and n >= 1; got frames={frames}, size={size}, n={self.n}")
        names = [name for name in factors if frames > 1 or name in APPEARANCE]
        if not names:
            raise DataError(f"{', '.join(factors)} cannot be seen in one frame; it needs frames >= 2")
        main = "motion" if frames > 1 else "shape"
        self.classes = {"class": FACTORS[main], **{name: FACTORS[name] for name in names}}
        self._main = main

    def __len__(self) -> int:
        return self.n

    def scene(self, index: int) -> Scene:
        """Draw the factors of clip `index`."""
        rng = np.random.default_rng((self.seed, list(CLIPS).index(self.split), LAWS.index(self.law), index))
        u = rng.random(20)
        labels = {name: int(x * len(values)) for (name, values), x in zip(FACTORS.items(), u, strict=False)}
        labels["shape"] = self._shape(labels["shape"], labels["motion"], u[6], u[7])
        axis, direction = MOTIONS[FACTORS["motion"][labels["motion"]]]
        low, high = SPEEDS[FACTORS["speed"][labels["speed"]]]
        velocity = np.zeros(4)
        velocity[axis] = direction * (low + (high - low) * u[8])
        hue = HUES[FACTORS["hue"][labels["hue"]]] + 0.06 * (u[9] - 0.5)
        tint = TINTS[FACTORS["tint"][labels["tint"]]] + 0.06 * (u[10] - 0.5)
        return Scene(
            labels,
            phase=u[11:15],
            velocity=velocity,
            colour=rgb(hue, 0.75 + 0.25 * u[15], 0.85 + 0.15 * u[16]),
            tint=rgb(tint, 0.3 + 0.2 * u[17], 1.0),
            seed=int(u[18] * 2**32),
        )

    def _shape(self, shape: int, motion: int, u: float, v: float) -> int:
        shapes = len(SHAPES)
        if self.law == "compositional":  # the held-out cells are the diagonal of the square
            return motion % shapes if self.split == "test" else (motion + 1 + int(u * (shapes - 1))) % shapes
        if self.law == "spurious" and self.split != "test":
            return motion % shapes if u < 0.9 else (motion + 1 + int(v * (shapes - 1))) % shapes
        return shape

    def _labels(self, scene: Scene) -> dict[str, int]:
        return {name: scene.labels[self._main if name == "class" else name] for name in self.classes}

    def read(self, index: int, epoch: int = 0) -> Sample:
        scene = self.scene(index)
        return Sample(torch.from_numpy(render(scene, self.frames, self.size)), self._labels(scene), index, self.frames == 1)

    @cached_property
    def labels(self) -> dict[str, Tensor]:
        rows = [self._labels(self.scene(index)) for index in range(self.n)]
        return {name: torch.tensor([row[name] for row in rows]) for name in self.classes}


def render(scene: Scene, frames: int, size: int) -> np.ndarray:
    """The clip `[c f y x]` uint8: an anti-aliased object over a still 1/f background, drawn in one go for all frames."""
    x, y, angle, log_size = scene.path(frames).T.astype(np.float32)
    scale = np.float32(SIZES[0]) * np.float32(SIZES[1] / SIZES[0]) ** log_size
    cos, sin = np.cos(2 * np.pi * angle) / scale, np.sin(2 * np.pi * angle) / scale
    axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / size
    dx, dy = _around(axis - x[:, None]), _around(axis - y[:, None])  # [f x], [f y]
    u = (cos[:, None] * dx)[:, None, :] + (sin[:, None] * dy)[:, :, None]  # [f y x]
    v = (cos[:, None] * dy)[:, :, None] - (sin[:, None] * dx)[:, None, :]
    shape, texture = (FACTORS[name][scene.labels[name]] for name in ("shape", "texture"))
    cover = np.clip(np.float32(0.5) - distance(shape, u, v) * (scale * size)[:, None, None], 0, 1)
    back = background(scene.seed, size) * scene.tint[:, None, None]  # [c y x]
    paint = pattern(texture, u, v)
    colour = 255 * scene.colour[:, None, None, None]
    if paint is not None:
        colour = colour * (np.float32(0.3) + np.float32(0.7) * paint)
    return (back[:, None] + cover * (colour - back[:, None])).astype(np.uint8)


def _around(offset):
    """The shortest way on a torus of length 1, in [-0.5, 0.5)."""
    return (offset + np.float32(0.5)) % 1 - np.float32(0.5)


@lru_cache
def _falloff(side: int) -> np.ndarray:
    """1/f amplitudes on the half plane of a real FFT; no mean."""
    fy, fx = np.fft.fftfreq(side, 1 / side)[:, None], np.fft.rfftfreq(side, 1 / side)
    radius = np.hypot(fy, fx)
    return np.divide(1, radius, out=np.zeros_like(radius), where=radius > 0).astype(np.float32)


def background(seed: int, size: int, side: int = 32) -> np.ndarray:
    """Scale-free brightness `[y x]` in 0..255, periodic; the same picture at every size (frequencies up to side / 2)."""
    noise = np.random.default_rng(seed).standard_normal((side, side), dtype=np.float32)
    waves = np.fft.rfft2(noise) * _falloff(side)
    half = min(side, size) // 2
    padded = np.zeros((size, size // 2 + 1), dtype=np.complex64)
    padded[:half, :half] = waves[:half, :half]
    padded[-half:, :half] = waves[-half:, :half]
    field = np.fft.irfft2(padded, s=(size, size))
    return np.clip(np.float32(90) + np.float32(32) / (field.std() + np.float32(1e-12)) * field, 20, 170).astype(np.float32)


DIRECTIONS = {"N": (0, -4), "NE": (3, -3), "E": (4, 0), "SE": (3, 3), "S": (0, 4), "SW": (-3, 3), "W": (-4, 0), "NW": (-3, -3)}
"""Compass direction -> (dx, dy) in pixels per frame at 160 x 160; diagonals are 6 % faster."""


class Dirs8(Source):
    """The synthetic task as the paper's authors released it: one disc drifting in one of eight compass directions.

    160 x 160 pixels, flat colour over grey noise, label = index % 8, first 80 % of `n` clips train and the rest test (or val); the disc
    stops at the border, so a late frame alone gives much of the answer away (the factor world has no such leak). At seed 0 the pixels equal
    those of `scripts/generate_eval_synth_videos.py` (santoshpremi/Factorized-Latent-Dynamics-...) before its H.264 step. `window` frames
    exist; the first `frames` are read, as the released probe does. Another `size` than 160 is resized (area).
    """

    fixed, side = True, 160

    def __init__(self, split: str = "train", *, frames: int = 8, size: int = 160, seed: int = 0, n: int = 200, window: int = 32):
        if not 1 <= frames <= window:
            raise DataError(f"synthetic:dirs8 has {window} frames; got frames={frames}")
        self.split, self.name = _known("split", split, CLIPS), "synthetic:dirs8"
        self.frames, self.size, self.seed, self.window = frames, size, seed, window
        cut = n * 4 // 5
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


def _known(what: str, value, allowed):
    if value not in allowed:
        raise DataError(f"unknown {what} {value!r}; one of {', '.join(allowed)}")
    return value


TASKS = {
    "": (FactorMotion, {}),
    "trs8": (FactorMotion, {"factors": ("motion",)}),
    "dirs8": (Dirs8, {}),
    "compositional": (FactorMotion, {"law": "compositional"}),
    "spurious": (FactorMotion, {"law": "spurious"}),
}
"""What "synthetic:NAME" opens: trs8 is the factor world with the motion (translation, rotation, scaling) as its only label."""


def world(task: str = "", split: str = "train", **options) -> Source:
    """The synthetic source that `synthetic:task` names."""
    make, preset = TASKS[_known("synthetic task", task, TASKS)]
    check_options(make, options, f"synthetic:{task}" if task else "synthetic")
    source = make(split, **preset, **options)
    source.name = f"synthetic:{task}" if task else "synthetic"
    return source


def export(folder, format: str = "folder", **options):
    """Write the world out as files in a real data set's layout; see `layouts.export`, which this calls."""
    from .layouts import export

    return export(folder, format, **options)
