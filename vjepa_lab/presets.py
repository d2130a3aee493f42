"""Sizes of model, clip and training, as values. `PRESETS["base"]` is the paper's Table 1."""

import math
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real

from vjepa_lab.arguments import suggest
from vjepa_lab.masks import MULTIBLOCK, Blocks, MultiBlock
from vjepa_lab.values import read


def whole(least: int, **values) -> None:
    """Refuse, by name, what is no whole number from `least` on."""
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r}: expected a whole number, {least} or more")


def number(low: float, high: float, **values) -> None:
    """Refuse, by name, what is no finite number from `low` to `high`."""
    for name, value in values.items():
        if not isinstance(value, Real) or isinstance(value, bool) or not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"{name}={value!r}: expected a number, {low:g} or more" + (f", {high:g} at most" if high < math.inf else ""))


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One size. Lengths are in tokens or pixels as named; lr is AdamW's peak; `warmup` and `steps` count optimiser steps."""

    name: str
    # encoder and predictor
    dim: int
    depth: int
    heads: int
    patch: int
    tubelet: int = 2
    pred_dim: int
    pred_depth: int
    pred_heads: int
    # clip: `frames` frames `stride` apart, `size` pixels square
    frames: int
    size: int
    stride: int = 2
    # training
    batch: int
    steps: int
    warmup: int
    lr: float
    start_lr: float
    final_lr: float
    weight_decay: float = 0.04
    ema: float = 0.99925
    masks: MultiBlock | None = None  # stands in for V-JEPA's multiblock in recipes that use it; None: they keep it

    def __post_init__(self):
        lengths = {f.name: getattr(self, f.name) for f in fields(self) if f.type is int}
        for name, value in lengths.items():
            whole(0 if name in ("steps", "warmup") else 1, **{name: value})
            object.__setattr__(self, name, int(value))  # one of numpy's would be text in config.json; so would the floats below
        number(0, math.inf, lr=self.lr, start_lr=self.start_lr, final_lr=self.final_lr, weight_decay=self.weight_decay)
        number(0, 1, ema=self.ema)
        for name in (f.name for f in fields(self) if f.type is float):
            object.__setattr__(self, name, float(getattr(self, name)))

    def masks_of(self, wanted: MultiBlock) -> MultiBlock:
        """The masks to train with at this size where a recipe wants `wanted`: only V-JEPA's default ones are replaced."""
        plain = self.masks is not None and replace(wanted, where=MULTIBLOCK.where) == MULTIBLOCK
        return replace(self.masks, where=wanted.where) if plain else wanted

    def plain(self) -> dict:
        """The fields as JSON-like data; `read` takes them back."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"masks": self.masks and repr(self.masks)}

    @classmethod
    def read(cls, values: dict) -> "Preset":
        return cls(**values | {"masks": values.get("masks") and read(values["masks"])})

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.frames // self.tubelet, self.size // self.patch, self.size // self.patch


BASE = Preset(
    name="base", dim=768, depth=12, heads=12, patch=16, pred_dim=256, pred_depth=8, pred_heads=8, frames=16, size=224,
    batch=32, steps=30_000, warmup=300, lr=6e-4, start_lr=1e-4, final_lr=1e-6,
)  # fmt: skip
SMALL = replace(BASE, name="small", dim=384, heads=6)
TINY = replace(
    BASE, name="tiny", dim=192, heads=3, pred_dim=128, pred_depth=4, pred_heads=4, size=112, steps=5_000, warmup=100, lr=1e-3, ema=0.998
)
MICRO = replace(
    TINY, name="micro", depth=6, patch=8, pred_dim=96, pred_depth=3, pred_heads=3, frames=8, size=64,
    batch=16, steps=600, warmup=60, lr=5e-4, start_lr=1e-5, ema=0.998,
    # Full tubes leave so little of a small clip to see that in minutes a JEPA learns its colours and unlearns its motion. Here most of the
    # first half is seen and the second half foretold.
    masks=MultiBlock((Blocks(1, 0.15),), max_temporal_keep=0.5, full_complement=True),
)  # fmt: skip
SMOKE = replace(
    MICRO, name="smoke", masks=None, dim=48, depth=2, heads=2, pred_dim=24, pred_depth=1, pred_heads=1, size=32, batch=4, steps=4, warmup=1
)
PRESETS = {p.name: p for p in (SMOKE, MICRO, TINY, SMALL, BASE)}


def preset(name: "str | Preset") -> Preset:
    """A preset by name, or the preset itself; an unknown name is refused with the near ones."""
    if isinstance(name, Preset):
        return name
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: {suggest(str(name), PRESETS)}")
    return PRESETS[name]


def overridden(base: str | Preset, overrides: dict) -> Preset:
    """A preset with single fields replaced; raises ValueError for an unknown field, with the near ones."""
    size = preset(base)
    known = [f.name for f in fields(Preset)]
    for name in overrides:
        if name not in known:
            raise ValueError(f"unknown parameter {name!r}: {suggest(name, known)}")
    return replace(size, **overrides)
