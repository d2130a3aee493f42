"""Sizes of model, clip and training, as values. `PRESETS["base"]` is the paper's Table 1."""

import difflib
from dataclasses import dataclass, replace


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
    batch=16, steps=1500, warmup=60, lr=5e-4, start_lr=1e-5, ema=0.998,
)  # fmt: skip
SMOKE = replace(MICRO, name="smoke", dim=48, depth=2, heads=2, pred_dim=24, pred_depth=1, pred_heads=1, size=32, batch=4, steps=4, warmup=1)
PRESETS = {p.name: p for p in (SMOKE, MICRO, TINY, SMALL, BASE)}


def preset(name: "str | Preset") -> Preset:
    """A preset by name, or the preset itself; an unknown name is refused with the near ones."""
    if isinstance(name, Preset):
        return name
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS) or list(PRESETS)
        raise ValueError(f"unknown preset {name!r}: did you mean {' or '.join(near)}?")
    return PRESETS[name]
