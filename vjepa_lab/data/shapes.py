"""The objects of the factor world: signed distances of shapes without rotational symmetry, and surface patterns painted on them.

Object coordinates u (right), v (down); every shape has area 1 at scale 1. float32 arrays `[f y x]`.
"""

from __future__ import annotations

import colorsys
from functools import lru_cache

import numpy as np


def _disc(u, v, at_u, at_v, radius):
    return np.hypot(u - np.float32(at_u), v - np.float32(at_v)) - np.float32(radius)


def _box(u, v, at_u, at_v, half_u, half_v):
    return np.maximum(abs(u - np.float32(at_u)) - np.float32(half_u), abs(v - np.float32(at_v)) - np.float32(half_v))


def _wedge(u, v, tip, base, half):
    """Isosceles triangle with its tip at (0, tip), pointing up, and its base at v = base."""
    slope = half / (base - tip)
    return np.maximum((abs(u) - np.float32(slope) * (v - np.float32(tip))) / np.float32(np.hypot(1, slope)), v - np.float32(base))


SHAPES = {
    "arrow": lambda u, v: np.minimum(_wedge(u, v, -1, 0, 0.8), _box(u, v, 0, 0.4, 0.26, 0.5)),
    "crescent": lambda u, v: np.maximum(_disc(u, v, 0, 0, 0.9), -_disc(u, v, 0.5, 0, 0.65)),
    "drop": lambda u, v: np.minimum(_disc(u, v, 0, 0.35, 0.6), _wedge(u, v, -1, 0.12, 0.54)),
    "ell": lambda u, v: np.minimum(_box(u, v, -0.4, 0, 0.28, 0.9), _box(u, v, 0.1, 0.62, 0.7, 0.28)),
    "key": lambda u, v: np.minimum(_disc(u, v, 0, -0.5, 0.48), _box(u, v, 0.12, 0.45, 0.3, 0.5)),
}

_PERIOD = np.float32(2 * np.pi / 0.36)  # of the patterns, in object units
TEXTURES = {
    "plain": None,
    "stripes": lambda u, v: np.sin(_PERIOD * v),
    "checks": lambda u, v: np.sin(_PERIOD * u) * np.sin(_PERIOD * v),
}


@lru_cache
def _raster(side: int = 512):
    """A grid over [-1.2, 1.2)^2, to measure a shape's area and centre on."""
    axis = ((np.arange(side) + 0.5) / side * 2.4 - 1.2).astype(np.float32)
    return np.broadcast_to(axis, (side, side)), np.broadcast_to(axis[:, None], (side, side))


@lru_cache
def unit(name: str) -> tuple[float, float, float]:
    """What makes a shape's area 1 and puts its centre of mass at the origin: (factor, centre u, centre v)."""
    u, v = _raster()
    inside = SHAPES[name](u, v) < 0
    area = inside.mean() * 2.4**2
    return float(np.sqrt(area)), float(u[inside].mean()), float(v[inside].mean())


def distance(name: str, u, v):
    """Signed distance to the outline, negative inside, in the units of u and v."""
    factor, centre_u, centre_v = (np.float32(x) for x in unit(name))
    return SHAPES[name](u * factor + centre_u, v * factor + centre_v) / factor


def pattern(name: str, u, v):
    """Brightness in [0, 1] of the surface, or None where it is uniform."""
    wave = TEXTURES[name]
    return None if wave is None else np.clip(np.float32(0.5) + 2 * wave(u, v), 0, 1)


def rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """`[c]` float32 in [0, 1]; hue in turns."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), dtype=np.float32)
