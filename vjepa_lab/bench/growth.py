"""How a step's time grows with clip length, resolution, batch and width."""

import statistics
from dataclasses import replace

import numpy as np
import torch

from vjepa_lab import variants
from vjepa_lab.bench.steps import batch_of, in_turn, measured, random_clips, trainer
from vjepa_lab.bench.timing import interleaved, spread
from vjepa_lab.presets import Preset
from vjepa_lab.training.processes import device_of

AXES = ("frames", "size", "batch", "width")


def grown(size: Preset, batch: int, axis: str, factor: float) -> tuple[Preset, int, int]:
    """A preset and batch scaled along one axis, and the value there; width adds heads, of encoder and predictor alike."""
    if axis == "batch":
        return size, round(batch * factor), round(batch * factor)
    if axis == "width":
        wider = {name: round(getattr(size, name) * factor) for name in ("dim", "heads", "pred_dim", "pred_heads")}
        return replace(size, **wider), batch, wider["dim"]
    value = round(getattr(size, axis) * factor)
    return replace(size, **{axis: value}), batch, value


def scaling(
    name: str = "micro",
    dtype: str = "bf16",
    *,
    variant: str = "baseline",
    batch: int | None = None,
    repeats: int = 5,
    device: str = "auto",
    factors: tuple[float, ...] = (0.5, 1, 2),
) -> list[dict]:
    """Our step at a preset's size and at multiples of it, one axis at a time, interleaved in one run.

    A row per axis and value: tokens of a clip, median ms, GFLOP of a clip, and on an axis' last row the exponents: of the time (the median
    over rounds of the slope of log ms on log value) and of the counted operations.

    variant  the recipe whose step is timed
    factors  multiples of frames, size (resolution), batch; width takes those of 1 and more, and twice the largest
    """
    device, size, recipe = device_of(device), measured(name), variants.recipe(variant)
    batch, bf16 = batch or max(batch_of(name, device) // 4, 2), dtype == "bf16"
    cases = {(axis, f): grown(size, batch, axis, f) for axis in AXES for f in (factors if axis != "width" else wide(factors))}
    contenders = {}
    for preset, clips, _ in cases.values():
        if (preset, clips) not in contenders:  # the axes share their middle
            contenders[preset, clips] = in_turn(trainer(recipe, preset, device, bf16), random_clips(preset, clips, device))
    times = interleaved(contenders, repeats, device)
    rows = []
    for axis in AXES:
        mine = [(value, times[preset, clips], clips * recipe.cost(preset, clips).total, preset, clips)
                for (a, _), (preset, clips, value) in cases.items() if a == axis]  # fmt: skip
        for value, ms, gflop, preset, clips in mine:
            about = {"preset": name, "dtype": dtype, "threads": torch.get_num_threads(), "axis": axis, "value": value}
            rows.append(about | {"batch": clips, "tokens": int(np.prod(preset.grid)), **spread(ms), "gflop": gflop})
        log = np.log([value for value, *_ in mine])
        slopes = [np.polyfit(log, np.log(ms), 1)[0] for ms in zip(*(ms for _, ms, *_ in mine), strict=True)]
        by_operations = np.polyfit(log, np.log([gflop for _, _, gflop, *_ in mine]), 1)[0]
        rows[-1] |= {"exponent": float(statistics.median(slopes)), "by_operations": float(by_operations)}
    return rows


def wide(factors: tuple[float, ...]) -> tuple[float, ...]:
    """Width's multiples: whole ones, so that heads stay whole."""
    return (*(f for f in factors if f >= 1), 2 * max(factors))


COLUMNS = {
    "axis": "s", "value": "d", "batch": "d", "tokens": "d", "ms": ".1f", "q1": ".1f", "q3": ".1f", "gflop": ".1f", "exponent": ".2f",
    "by_operations": ".2f",
}  # fmt: skip
