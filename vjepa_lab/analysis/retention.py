"""The factor-retention matrix: how much of everything that a clip is made of a frozen encoder still knows, for each objective."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vjepa_lab import data
from vjepa_lab.analysis.changes import factor_changes
from vjepa_lab.analysis.subjects import Run, clip_size, subjects
from vjepa_lab.data.synthetic import APPEARANCE, FactorMotion
from vjepa_lab.evaluation import probes
from vjepa_lab.evaluation.probes import ProbeResult
from vjepa_lab.evidence import results

PLACES = {"place x": 0, "place y": 1, "angle": 2, "size": 3}
"What is continuous: where the object is in the middle of the clip, by axis of the torus."


def retention(
    runs: Iterable[Run],
    world: str = "synthetic",
    clips: tuple[int, int] = (2000, 1000),
    *,
    encoders: Sequence[str] = ("student",),
    shape: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: bool = True,
    **how,
) -> pd.DataFrame:
    """How much of every generative factor of the factor world a linear probe reads from the mean-pooled features of each encoder.

    world     a synthetic data set with a scene behind every clip: "synthetic", "synthetic:plain", "synthetic:compositional", ...
    clips     of the training and of the test split
    how       goes to `features.extract`

    A row per encoder and factor, metric "retention": 0 what guessing reaches, 100 all there is to know. A class factor: accuracy (A - c) /
    (1 - c) with chance c = 1 / classes, its Wilson interval moved likewise. A continuous one (`PLACES`): R^2 of a ridge regression on the
    circle (cos, sin) of a position or angle, or on the log-size itself, the interval by the delta method. Columns beside the common ones:
    factor, kind ("appearance", "dynamics", "place"), chance.
    """
    found = subjects(runs, encoders)
    size = clip_size(found, shape)
    sources = [data.open(world, part, n=n, frames=size.frames, size=size.size) for part, n in zip(("train", "test"), clips, strict=True)]
    if not isinstance(sources[0], FactorMotion):
        raise ValueError(f"{world}: retention needs the factor world, whose scenes are known (synthetic, synthetic:plain, ...)")
    targets = [places(source) for source in sources]
    rows, how = [], how | {"progress": progress}
    for subject in tqdm(found, desc="factor retention", unit="encoder", disable=not progress):
        train, test = (subject.features(source, **how) for source in sources)
        for factor in (name for name in train.classes if name != "class"):
            rows.append(
                subject.about
                | class_row(probes.linear(train, test, factor, seed=seed, progress=progress), factor, len(train.classes[factor]))
            )
        for factor in PLACES:
            row = probes.ridge(train, test, tuple(part[factor] for part in targets), name=factor)
            measured = {key: 100 * row[key] for key in ("value", "lo", "hi")}
            rows.append(subject.about | measured | {"probe": "ridge", "n": row["n"], "factor": factor, "kind": "place", "chance": 0.0})
    table = pd.DataFrame(rows)
    return results.tidy(table.assign(benchmark=sources[0].name + "/" + table["factor"], metric="retention"))


def class_row(found: ProbeResult, factor: str, classes: int) -> dict:
    """A probe's accuracy on the scale of retention, with its interval."""
    top = next(row for row in found.rows if row["metric"] == "top1")
    corrected = {key: 100 * (top[key] - 100 / classes) / (100 - 100 / classes) for key in ("value", "lo", "hi")}
    kind = "appearance" if factor in APPEARANCE else "dynamics"
    return corrected | {"probe": top["probe"], "n": top["n"], "factor": factor, "kind": kind, "chance": 100 / classes}


def places(source: FactorMotion) -> dict[str, Tensor]:
    """Where each clip's object is at its middle: cos and sin of place and angle on their circles [n 2], the log-size in [0, 1) [n 1]."""
    middle = torch.from_numpy(np.stack([source.scene(i).path(source.frames)[source.frames // 2] for i in range(len(source))]))  # [n 4]
    turn = 2 * torch.pi * middle
    circle = torch.stack([turn.cos(), turn.sin()], dim=-1)  # [n 4 2]
    return {name: middle[:, [axis]] if name == "size" else circle[:, axis] for name, axis in PLACES.items()}


def verdict(rows: pd.DataFrame, against: str = "baseline") -> str:
    """What the matrix says of each objective against `against`, in one sentence, and what it leaves open in another."""
    table = factor_changes(rows, against)
    if table.empty:
        raise ValueError(f"only {against!r} was measured: there is no objective to compare with it")
    found = table[table["significant"]]
    parts = [
        f"{name}: " + ", ".join(f"{r.factor} {r.delta:+.0f}" for r in part.itertuples())
        for name, part in found.groupby("variant", sort=False)
    ]
    head = f"Of {len(table)} differences from {against} (in percent of what there is to know), {len(found)} stand after correction"
    said = head + (": " + "; ".join(parts) if parts else "") + "."
    widest = table.loc[~table["significant"], ["lo", "hi"]].abs().max(axis=1)
    left = (
        f"The other {len(widest)} are undecided; differences of up to {widest.median():.0f} points (median) are compatible with them."
        * bool(len(widest))
    )
    return caveats(rows, table) + said + " " + left


def caveats(rows: pd.DataFrame, table: pd.DataFrame) -> str:
    """What to read before the numbers: that they are no evidence, or that one seed stands behind them."""
    if rows["smoke"].any():
        return "Demonstration size, which decides nothing. "
    return "One seed: what another seed would change is not in the intervals. " if table["seeds"].max() < 2 else ""
