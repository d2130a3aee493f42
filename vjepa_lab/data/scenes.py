"""Scenes of the factor world, and how they are drawn: an object and its path, the ground, the camera."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .shapes import SHAPES, TEXTURES, distance, pattern

MOTIONS = {"right": (0, 1), "left": (0, -1), "down": (1, 1), "up": (1, -1), "cw": (2, 1), "ccw": (2, -1), "grow": (3, 1), "shrink": (3, -1)}
"""Motion -> (axis of the torus, direction); axes are x, y, angle, log-size."""
SPEEDS = {"slow": (0.20, 0.25), "medium": (0.32, 0.40), "fast": (0.50, 0.60)}
"""Speed -> range of the distance covered in a clip, as a share of the torus."""
HUES = {"red": 0.0, "green": 0.3, "blue": 0.6, "magenta": 0.85}
TINTS = {"warm": 0.08, "olive": 0.22, "teal": 0.47, "violet": 0.72}
SIZES = (0.17, 0.42)
"""Smallest and largest object: side of a square of the same area, as a share of the picture."""

MEAN = np.float32(90)
"""Mean brightness of the ground, of 255."""

CAMERAS = {"still": (0, 0), "pan_right": (-1, 0), "pan_left": (1, 0), "tilt_down": (0, -1), "tilt_up": (0, 1)}
"""Camera motion -> direction in which the whole picture then moves."""

FACTORS = {
    "shape": list(SHAPES),
    "hue": list(HUES),
    "texture": list(TEXTURES),
    "tint": list(TINTS),
    "motion": list(MOTIONS),
    "speed": list(SPEEDS),
    "then": list(MOTIONS),
    "order": ["forward", "backward"],
    "camera": list(CAMERAS),
}
"""Every factor's class names. `then` is the second of two events, `order` whether the two come in the order of this list."""


@dataclass(frozen=True)
class Scene:
    """What happens in one clip: class indices of the factors and the numbers behind them."""

    labels: dict[str, int]
    phase: np.ndarray  # [4] start on the torus: x, y, angle, log-size
    velocity: np.ndarray  # [4] torus lengths per clip
    colour: np.ndarray  # [c] of the object, 0 to 1
    tint: np.ndarray  # [c] of the ground
    seed: int  # of the ground
    then: np.ndarray | None = None  # [4] velocity in the second half
    camera: np.ndarray | tuple = (0.0, 0.0)  # [2] torus lengths per clip by which the picture moves
    clutter: tuple[Scene, ...] = ()  # objects that stand behind
    noise: float = 0.0  # standard deviation of the sensor's noise, of 255
    sizes: tuple[float, float] = SIZES
    ground: float = 1.0  # strength of the ground's pattern, 0: flat

    def path(self, frames: int) -> np.ndarray:
        """The object's torus coordinates in the picture `[f 4]`, in [0, 1)."""
        time = np.arange(frames)[:, None] / frames
        first, second = (time, 0) if self.then is None else (np.minimum(time, 0.5), np.maximum(time - 0.5, 0) * self.then)
        moved = self.velocity * first + second
        moved[:, :2] += np.multiply(self.camera, time)
        return (self.phase + moved) % 1


def render(scene: Scene, frames: int, size: int) -> np.ndarray:
    """The clip `[c f y x]` uint8: anti-aliased objects over a 1/f ground, all frames drawn at once."""
    shifts = np.multiply(scene.camera, np.arange(frames)[:, None] / frames) if np.any(scene.camera) else np.zeros((1, 2))
    ground = MEAN + np.float32(scene.ground) * (background(scene.seed, size, shifts) - MEAN)
    picture = ground[None] * scene.tint[:, None, None, None]  # [c f y x], f = 1 if nothing moves it
    for thing in (*scene.clutter, scene):
        cover, colour = _object(thing, frames, size)
        picture = picture + cover * (colour - picture)
    if scene.noise:
        draw = np.random.default_rng((scene.seed, 1)).standard_normal(picture.shape, dtype=np.float32)
        picture = np.clip(picture + np.float32(scene.noise) * draw, 0, 255)
    return picture.astype(np.uint8)


def _object(scene: Scene, frames: int, size: int):
    """How much of every pixel the object covers `[f y x]`, and its colour there `[c f y x]`, 0 to 255."""
    x, y, angle, log_size = scene.path(frames).T.astype(np.float32)
    small, large = scene.sizes
    scale = np.float32(small) * np.float32(large / small) ** log_size
    cos, sin = np.cos(2 * np.pi * angle) / scale, np.sin(2 * np.pi * angle) / scale
    axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / size
    dx, dy = _around(axis - x[:, None]), _around(axis - y[:, None])  # [f x], [f y]
    u = (cos[:, None] * dx)[:, None, :] + (sin[:, None] * dy)[:, :, None]  # [f y x]
    v = (cos[:, None] * dy)[:, :, None] - (sin[:, None] * dx)[:, None, :]
    shape, texture = (FACTORS[name][scene.labels[name]] for name in ("shape", "texture"))
    cover = np.clip(np.float32(0.5) - distance(shape, u, v) * (scale * size)[:, None, None], 0, 1)
    colour, paint = 255 * scene.colour.astype(np.float32)[:, None, None, None], pattern(texture, u, v)
    return cover, colour if paint is None else colour * (np.float32(0.3) + np.float32(0.7) * paint)


def _around(offset):
    """The shortest way on a torus of length 1, in [-0.5, 0.5)."""
    return (offset + np.float32(0.5)) % 1 - np.float32(0.5)


@lru_cache
def _falloff(side: int) -> np.ndarray:
    """1/f amplitudes on the half plane of a real FFT; no mean."""
    fy, fx = np.fft.fftfreq(side, 1 / side)[:, None], np.fft.rfftfreq(side, 1 / side)
    radius = np.hypot(fy, fx)
    return np.divide(1, radius, out=np.zeros_like(radius), where=radius > 0).astype(np.float32)


def background(seed: int, size: int, shifts: np.ndarray, side: int = 32) -> np.ndarray:
    """Scale-free brightness `[f y x]` in 0..255, periodic, moved by `shifts [f 2]` (x, y); one picture at every size (side / 2 waves)."""
    noise = np.random.default_rng(seed).standard_normal((side, side), dtype=np.float32)
    waves = np.fft.rfft2(noise) * _falloff(side)
    half = min(side, size) // 2
    kept = np.zeros((size, size // 2 + 1), dtype=np.complex64)
    kept[:half, :half] = waves[:half, :half]
    kept[-half:, :half] = waves[-half:, :half]
    if shifts.any():
        turns = np.fft.fftfreq(size, 1 / size)[:, None] * shifts[:, 1, None, None] + np.arange(size // 2 + 1) * shifts[:, 0, None, None]
        kept = kept * np.exp(-2j * np.pi * turns).astype(np.complex64)  # [f y x]
    field = np.fft.irfft2(kept.reshape(-1, size, size // 2 + 1), s=(size, size), axes=(1, 2))
    return np.clip(MEAN + np.float32(32) / (field[0].std() + np.float32(1e-12)) * field, 20, 170).astype(np.float32)
