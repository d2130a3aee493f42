"""Does an auxiliary pull the encoder the way JEPA does, and does that foretell what it is worth?

    probe = ProbeSet.of(train, test, labels=("motion", "shape"))
    run = vl.pretrain("ld", ..., probe=Watch(probe))
    table = load([run])

Measured on one fixed set of clips and mask draws, so that steps, objectives and seeds compare. All gradients are on the student's weights:
what JEPA sees (the seen tokens) and what an auxiliary sees (the whole clip) meet nowhere else.

Where training has converged, the gradient of the total loss is zero, g_0 + sum_k b_k g_k = 0: there the auxiliaries together have cosine -1
with the main gradient and norm ratio 1, whatever they do. A cosine near -1 late in training tells of convergence, not of conflict.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vjepa_lab import data as video
from vjepa_lab.analysis import gradients as g
from vjepa_lab.evidence import ranks, results
from vjepa_lab.evidence.ranks import DIFFERENCE
from vjepa_lab.files import replacing
from vjepa_lab.masks import MultiBlock
from vjepa_lab.model import VJEPA
from vjepa_lab.objective import Loss
from vjepa_lab.training.runs import Run
from vjepa_lab.training.trainer import Trainer

TOGETHER, MAIN, FILE = "auxiliaries", "main", "alignment.csv"
"""All terms but the first, summed with the weights in force; the first; where a run keeps what was measured."""
LEAST_RATIO = 0.01
"""Norm of a gradient before the first step, in that of the first term's, below which it is rounding (bfloat16's is up to 0.004): of a loss
of what tells the student from its momentum teacher, which are equal then."""
PREDICTORS = ("cosine", "adam", "utility", "neutral utility", "norm ratio")
"""What might foretell an auxiliary's benefit. Pre-registered: the neutral utility does so better than the cosine; the theory fails where
the intervals of utility and neutral utility contain 0 while that of the norm ratio does not."""


# ------------------------------------------------------------------------------------------------------------------------- the probe


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """Fixed clips to measure gradients on, in micro-batches of `micro` clips; and labelled clips that a read-out is fitted to.

    clips, fit  uint8 [n c f y x];  labels, fit_labels  {name: long [n]}, none of them -1
    seed        of the masks: micro-batch m of every measurement has the same ones
    """

    clips: Tensor
    labels: dict[str, Tensor]
    fit: Tensor
    fit_labels: dict[str, Tensor]
    micro: int = 4
    seed: int = 0

    def __post_init__(self):
        if len(self.clips) < 6 * self.micro:
            raise ValueError(
                f"{len(self.clips)} clips make {len(self.clips) // self.micro} micro-batches of {self.micro}: at least 6 needed"
            )

    @classmethod
    def of(cls, train, test, labels: Sequence[str] = (), clips: int = 64, fit: int = 256, micro: int = 4, seed: int = 0) -> ProbeSet:
        """Clips of a test source, evenly spread, and of a train source for the read-outs.

        Raises ValueError for a label that the sources do not have, or clips without it.
        """
        (x, y), (x_fit, y_fit) = (_take(source, count, labels) for source, count in ((test, clips), (train, fit if labels else 0)))
        return cls(x, y, x_fit, y_fit, micro, seed)

    @property
    def micro_batches(self) -> int:
        return len(self.clips) // self.micro


def _take(source, count: int, labels: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """`count` clips of a source, evenly spread, with their labels."""
    if lacking := [name for name in labels if name not in source.classes]:
        raise ValueError(f"{source.name} has no label {lacking[0]!r}; it has {', '.join(source.classes)}")
    samples = [source[int(i)] for i in np.linspace(0, len(source) - 1, min(count, len(source))).round()]
    found = {name: torch.tensor([sample.labels[name] for sample in samples]) for name in labels}
    for name, values in found.items():
        if (values < 0).any():
            raise ValueError(f"{source.name} [{source.split}]: some clips have no label {name!r}; choose another label")
    return torch.stack([sample.clip for sample in samples]) if samples else torch.empty(0), found


# ----------------------------------------------------------------------------------------------------------------- one measurement


def measure(
    model: VJEPA, loss: Loss, probe: ProbeSet, masks: MultiBlock | None = None, *,
    optimizer: torch.optim.Optimizer | None = None, step: int = 0, progress: float = 0.0, bar: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """How the gradient of every auxiliary lies to that of the first term, per group of weights: one row per term, group and metric.

    Columns term, group, metric, value, lo, hi (95 %, over micro-batches), micro_batches, clips. Metrics:
      cosine            without sampling noise;  "plain cosine": with it (biased: both terms see the same clips). Of all auxiliaries
                        together it tends to -1 as training converges, whatever they do (above)
      adam              the cosine in the metric of the optimiser's step sizes: above 0, its step on the auxiliary lowers the main loss
      norm ratio        weighted gradient norm against the main one's; of all auxiliaries together it tends to 1 as training converges
      help, harm, neutral   shares of the gradient's energy (`gradients.split`)
      utility/LABEL     cosine with the gradient of a read-out of LABEL, a ridge regression on the current features: above 0, a step on the
                        auxiliary improves it;  "neutral utility/LABEL": of the part outside the main gradients' span. Both shrink
                        with the noise of the read-out's gradient, which few clips hardly tell (`gradients.shrunk_cosine`)
    The term "auxiliaries" is their weighted sum, "main" the first term itself (utilities only). `adam` needs an optimiser that has stepped.
    Terms that are not linear in the batch (SIGReg, Orthogonal, hard weights over a batch) are measured as they are on micro-batches.
    """
    device = next(model.student.parameters()).device
    readouts = {name: readout(model, probe, name) for name in probe.labels}
    full = "full" in loss.objective.views

    def losses(m: int) -> dict[str, Tensor]:
        rows = slice(m * probe.micro, (m + 1) * probe.micro)
        clip = video.normalize(probe.clips[rows].to(device))
        drawn = (masks or MultiBlock()).draw(len(clip), model.student.grid(clip), seed=probe.seed, step=m, clip=clip, device=device)
        latents = model.latents(clip, drawn, step=step, progress=progress, full=full)
        found = loss.parts(latents)
        shared = full and model.student.levels == 1  # then the terms' own pass serves
        pooled = (latents.z.flatten(1, 3) if shared else model.student(clip).float()).mean(1) if readouts else None
        return found | {f"{TARGET}{name}": read(pooled, probe.labels[name][rows].to(device)) for name, read in readouts.items()}

    show = partial(tqdm, desc="gradients", unit="micro-batch", leave=False) if bar else iter
    with torch.random.fork_rng(devices=[]), torch.enable_grad():  # a probe must leave the training's random numbers alone
        found = g.collect(g.weight_groups(model.student), losses, probe.micro_batches, show)
    metric = None if optimizer is None else step_sizes(optimizer, [p for group in g.weight_groups(model.student).values() for p in group])
    rows = _rows(found, loss, loss.weights(progress), metric, list(readouts))
    return pd.DataFrame(rows).assign(micro_batches=probe.micro_batches, clips=probe.micro_batches * probe.micro)


TARGET = "read-out "


def _rows(found: g.Gradients, loss: Loss, weights: list[float], metric: Tensor | None, labels: list[str]) -> list[dict]:
    """All metrics of all groups. Losses are stacked as: the terms, weighted; their auxiliaries' sum; the read-outs."""
    terms, count = loss.objective.names, len(found.names)
    stack = np.zeros((count + 1, count))
    stack[: len(terms), : len(terms)] = np.diag(weights)
    stack[len(terms), 1 : len(terms)] = weights[1:]
    stack[len(terms) + 1 :, len(terms) :] = np.eye(len(labels))
    others = {name: k for k, name in enumerate(terms) if k} | ({TOGETHER: len(terms)} if len(terms) > 1 else {})
    targets = {label: len(terms) + 1 + i for i, label in enumerate(labels)}
    silent = {name for name, b, (_, term) in zip(terms, weights, loss.objective, strict=True) if term.idle or not b}
    if silent >= set(terms[1:]):
        silent.add(TOGETHER)
    rows: list[dict] = []
    for group in found.groups:
        gram = g.combined(found.gram(group), stack)
        scaled = None if metric is None else g.combined(found.gram(group, metric), stack)
        for name, k in others.items():
            if name not in silent:
                rows += [{"term": name, "group": group} | row for row in _about(gram, scaled, k, targets)]
        for label, d in targets.items():
            rows.append({"term": MAIN, "group": group} | _row(f"utility/{label}", lambda x, d=d: g.shrunk_cosine(x, 0, d), gram))
    return rows


def _about(gram: g.Gramian, scaled: g.Gramian | None, k: int, targets: dict[str, int]) -> list[dict]:
    rows = [
        _row("cosine", lambda x: g.cosine(x, 0, k), gram),
        _row("plain cosine", lambda x: g.plain_cosine(x, 0, k), gram),
        _row("norm ratio", lambda x: g.ratio(x, 0, k), gram),
    ]
    if scaled is not None:
        rows.append(_row("adam", lambda x: g.cosine(x, 0, k), scaled))
    energy = g.jackknife(lambda x, halves: g.split(x, 0, k, halves), gram, halved=True)
    rows += [
        {"metric": name, "value": float(energy.value[i]), "lo": float(energy.lo[i]), "hi": float(energy.hi[i])}
        for i, name in enumerate(("help", "harm", "neutral"))
    ]
    for label, d in targets.items():
        rows.append(_row(f"utility/{label}", lambda x, d=d: g.shrunk_cosine(x, d, k), gram))
        rows.append(_row(f"neutral utility/{label}", lambda x, halves, d=d: g.neutral_cosine(x, 0, d, k, halves), gram, halved=True))
    return rows


def _row(metric: str, statistic, gram: g.Gramian, halved: bool = False) -> dict:
    found = g.jackknife(statistic, gram, halved=halved)
    return {"metric": metric, "value": float(found.value), "lo": float(found.lo), "hi": float(found.hi)}


def step_sizes(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter]) -> Tensor | None:
    """What Adam multiplies a momentum with, 1 / (sqrt(v / (1 - beta2^t)) + eps), flat [p]; None before its first step."""
    about = {p: group for group in optimizer.param_groups for p in group["params"]}
    sizes = []
    for p in parameters:
        state = optimizer.state.get(p)
        if not state or "exp_avg_sq" not in state:
            return None
        unbiased = state["exp_avg_sq"] / (1 - about[p]["betas"][1] ** float(state["step"]))
        sizes.append(1 / (unbiased.sqrt() + about[p]["eps"]).flatten())
    return torch.cat(sizes)


ALPHAS = np.logspace(-2, 5, 8)


def readout(model: VJEPA, probe: ProbeSet, label: str):
    """The loss of a linear read-out of a label on the current features, as a function of mean-pooled tokens [b d] and labels [b].

    Ridge regression of the centred one-hot label on standardised features of the probe's `fit` clips; its penalty minimises the error
    with one clip left out, in closed form. The fit is frozen: the gradient tells how features should move under this very read-out.
    """
    device = next(model.student.parameters()).device
    with torch.no_grad():
        x = torch.cat([model.student(video.normalize(part.to(device))).float().mean(1) for part in probe.fit.split(32)])
    x = x.cpu().double()
    classes = int(torch.cat([probe.fit_labels[label], probe.labels[label]]).max()) + 1
    y = torch.nn.functional.one_hot(probe.fit_labels[label], classes).double()
    spread, centre = torch.std_mean(x, 0)
    x, rate = (x - centre) / spread.clamp_min(1e-9), y.mean(0)
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    target = u.T @ (y - rate)

    def left_out(alpha: float) -> float:
        shrink = s**2 / (s**2 + alpha)
        leverage = (u**2 * shrink).sum(1, keepdim=True) + 1 / len(y)
        return float((((y - rate - u @ (shrink[:, None] * target)) / (1 - leverage).clamp_min(1e-9)) ** 2).mean())

    alpha = min(ALPHAS, key=left_out)
    map_ = vt.T @ ((s / (s**2 + alpha))[:, None] * target)
    map_, centre, spread, rate = (part.float().to(device) for part in (map_, centre, spread.clamp_min(1e-9), rate))

    def loss(pooled: Tensor, labels: Tensor) -> Tensor:
        guess = (pooled - centre) / spread @ map_ + rate
        return (guess - torch.nn.functional.one_hot(labels, classes)).square().sum(1).mean()

    return loss


# -------------------------------------------------------------------------------------------------------------- through training


@dataclass(eq=False)
class Watch:
    """A probe for `pretrain`: measures at these shares of the training into alignment.csv of the run's folder.

    A resumed run measures again what lies after its checkpoint; training itself is not changed in any bit.
    """

    probe: ProbeSet
    at: Sequence[float] = (0.0, 0.02, 0.1, 0.25, 0.5, 0.75, 1.0)

    def __call__(self, run: Run, trainer: Trainer, step: int) -> None:
        if step in {round(share * trainer.size.steps) for share in self.at}:
            rows = at(trainer, self.probe, step)
            path = run.path / FILE
            kept = pd.read_csv(path).query("step != @step") if path.exists() else None
            table = rows if kept is None else pd.concat([kept, rows], ignore_index=True).sort_values("step", kind="stable")
            with replacing(path) as part:
                table.to_csv(part, index=False)


def at(trainer: Trainer, probe: ProbeSet, step: int) -> pd.DataFrame:
    """One measurement of a training as it stands after `step` steps."""
    progress = step / max(trainer.size.steps, 1)
    found = measure(
        trainer.model,
        trainer.loss,
        probe,
        trainer.recipe.masks,
        optimizer=trainer.optimizer if step else None,
        step=step,
        progress=progress,
    )
    return found.assign(step=step, progress=progress)


def load(runs: Run | str | Path | Iterable[Run | str | Path]) -> pd.DataFrame:
    """What `Watch` measured in one run or several, with variant and seed; without auxiliaries there are utilities of the main term alone.

    Raises FileNotFoundError naming a run that was not watched.
    """
    tables = []
    for run in [runs] if isinstance(runs, Run | str | Path) else runs:
        path = Path(run.path if isinstance(run, Run) else run)
        if not (path / FILE).exists():
            raise FileNotFoundError(f"{path / FILE}: this run was not watched; pretrain it with probe=alignment.Watch(...)")
        about = results.config(path)
        facts = {key: about.get(key) for key in ("variant", "edition", "seed")} | {"pretrain": about.get("data")}
        smoke = about.get("preset", {}).get("steps", 0) < results.SMOKE_STEPS
        tables.append(pd.read_csv(path / FILE).assign(run=path.name, smoke=smoke, **facts))
    return pd.concat(tables, ignore_index=True)


# ---------------------------------------------------------------------------------------------------------- the test of the theory


def averages(table: pd.DataFrame, term: str = TOGETHER, group: str = "all") -> pd.DataFrame:
    """Each run's metrics averaged over training time (trapezoids over progress): columns run, variant, seed, metric, value, moments.

    A metric is averaged over those moments (`moments`: how many) at which every run that has a number at all has one, so that what differs
    between runs is not when they were measured; nan where there are none. A start counts as no number where the auxiliary's gradient is
    rounding (`LEAST_RATIO`). It then is a moment of no run; but where that leaves less than two, such runs are left out instead (nan).
    """
    table, keys = table.assign(progress=table["progress"].round(3)), ["run", "variant", "seed", "metric"]  # runs of other lengths
    part = table[table["term"].eq(term) & table["group"].eq(group)]
    ratios = part[part["metric"].eq("norm ratio")].groupby(["run", "progress"], observed=True)["value"].mean().unstack("progress")
    out = []
    for _, rows in part.groupby("metric", sort=False, observed=True):
        at = rows.groupby([*keys, "progress"], sort=False, observed=True)["value"].mean().unstack("progress")  # [run, progress]
        runs = at.index.get_level_values("run")
        known = ratios.reindex(index=runs, columns=at.columns).to_numpy()
        rounding = ~(known >= LEAST_RATIO) & runs.isin(ratios.index)[:, None] & (at.columns == 0)[None]
        told = _shared(at.mask(rounding))
        if told.shape[1] < 2:
            told = _shared(at).mask(pd.DataFrame(rounding, at.index, at.columns))
        out.append(_over_time(told).reindex(at.index).reset_index(name="value").assign(moments=told.shape[1]))
    return pd.concat(out, ignore_index=True) if out else pd.DataFrame(columns=[*keys, "value", "moments"])


def _shared(at: pd.DataFrame) -> pd.DataFrame:
    """Of [run, progress], the moments that all runs have that have any."""
    return at.dropna(how="all").sort_index(axis=1).dropna(axis=1)


def _over_time(table: pd.DataFrame) -> pd.Series:
    """Mean of each row over progress, which the columns are."""
    x = table.columns.to_numpy(float)
    return table.mean(axis=1, skipna=False) if len(x) < 2 else pd.Series(np.trapezoid(table, x, axis=1) / (x[-1] - x[0]), table.index)


def predictions(
    averaged: pd.DataFrame, rows: pd.DataFrame, against: str = "baseline", draws: int = 2_000, seed: int = 0,
    names: Sequence[str] = PREDICTORS,
) -> pd.DataFrame:  # fmt: skip
    """How well each predictor foretells the benefit of the auxiliaries: rank correlation over variants x seeds, per benchmark.

    averaged: of `averages`, or any table of its columns with metrics `names`;  rows: probe results (`results.load`), of which top-1 counts,
    benchmarks ending in /LABEL, of one encoder and probe each (`results.select`). A variant's seeds are no independent evidence: see
    `ranks.correlations`; p-values are exact for up to 8 variants of equal seeds. A run that lacks a predictor does not count for it.
    Columns benchmark, predictor, rho, lo, hi, p, partial (with the norm ratio held fixed), variants, seeds, points, moments (of `averaged`,
    or nan); the predictor "neutral utility - cosine" is the pre-registered comparison. Benchmarks with fewer than 4 variants are left
    out; if none is left, ValueError.
    """
    deltas = results.delta(results.select(rows), against)
    wide = averaged.pivot_table(values="value", index=["variant", "seed"], columns="metric")
    moments = dict(zip(averaged["metric"], averaged.get("moments", []), strict=False))
    out = []
    for benchmark, part in deltas[deltas["paired"]].groupby("benchmark", sort=False):
        label = benchmark.rsplit("/")[-1]
        gain = part.groupby(["variant", "seed"])["delta"].mean()
        metrics = [f"{p}/{label}" if p.endswith("utility") else p for p in names]
        points = wide.reindex(columns=metrics).set_axis(list(names), axis=1).join(gain, how="inner")
        over = {name: moments.get(metric) for name, metric in zip(names, metrics, strict=True)}
        points = points.dropna(axis=1, how="all")
        found = ranks.correlations(points.dropna(how="all", subset=points.columns.drop("delta")), draws, seed) if len(points) else []
        out += [{"benchmark": benchmark} | row | {"moments": over.get(row["predictor"])} for row in found]
    if not out:
        raise ValueError("the test of the theory needs at least 4 watched variants with probe results beside a baseline of the same seeds")
    return pd.DataFrame(out).astype({"moments": float})


def verdict(found: pd.DataFrame, smoke: bool = False) -> str:
    """One sentence from the rows of `predictions`, by the pre-registered rule, and what it cannot decide."""
    if smoke:
        return "Verdict: none; smoke size only shows that it runs."
    told = found["variants"].ge(5) & ~found["p"].gt(0.05)  # resampling four variants gives intervals of no width; the p-values know better
    signs = {name: _signs(part[told[part.index]]) for name, part in found.groupby("predictor")}
    seeds, total = found["seeds"].min(), found["benchmark"].nunique()
    count = f"{found['variants'].min()} variants x {seeds} seed{'s' * int(seeds > 1)}"
    above = signs.get(DIFFERENCE, (0, 0))
    silent = all(signs.get(name) == (0, 0) for name in ("utility", "neutral utility"))  # measured, and telling nothing
    if silent and sum(signs.get("norm ratio", (0, 0))):
        head = "the theory fails by its own rule: the norm ratio foretells the benefit, utility and neutral utility do not"
    elif above[0] and not above[1]:
        head = f"as pre-registered, the neutral utility foretells the benefit better than the cosine on {above[0]} of {total} benchmarks"
    elif above[1] and not above[0]:
        head = f"against the pre-registered sign, the cosine foretells the benefit better than the neutral utility on {above[1]} of {total}"
    elif DIFFERENCE not in signs:
        head = "undecided: the neutral utility was not measured beside the cosine"
    else:
        head = "undecided: no interval separates the neutral utility from the cosine"
    said = "; ".join(f"{name} {up} positive, {down} negative" for name, (up, down) in signs.items() if name != DIFFERENCE and up + down)
    return (
        f"Verdict over {count}: {head}. "
        f"Predictors whose interval excludes 0 and whose p is below 0.05, of {total} benchmarks: {said or 'none'}. "
        "A correlation over objectives cannot tell whether alignment causes a benefit, nor speak for other data or sizes."
    )


def _signs(part: pd.DataFrame) -> tuple[int, int]:
    return int((part["lo"] > 0).sum()), int((part["hi"] < 0).sum())
