"""Is appearance in one half of the channels and dynamics in the other? Z_app against Z_dyn, with what any split would give beside it.

A ridge classifier reads every factor from the first half of the channels (Z_app), from the second (Z_dyn), from random halves and from
halves of principal components. Without a null the question has no answer: any half knows something of everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from vjepa_lab.analysis.changes import over_seeds, shown
from vjepa_lab.analysis.subjects import Run, clip_size, subjects
from vjepa_lab.data.edited import Frozen
from vjepa_lab.data.splits import pair
from vjepa_lab.data.synthetic import APPEARANCE, DYNAMICS
from vjepa_lab.evaluation.features import Features
from vjepa_lab.evidence import results
from vjepa_lab.evidence.stats import Interval, t_interval

ALPHAS = tuple(10.0**k for k in range(-1, 5))
Correct = dict[str, np.ndarray]
"Label -> which test clips were classified rightly [n]."


@dataclass(frozen=True, eq=False)
class Split:
    """Two halves of a representation and what a classifier gets right from each, per label."""

    first: Correct
    second: Correct

    def lead(self, labels: Sequence[str], classes: Mapping[str, int]) -> np.ndarray:
        """By how much the first half knows more than the second, for each test clip [n]; its mean is the difference of their scores.

        A label's accuracy A counts as (A - 1/k) / (1 - 1/k) with k classes: 0 guessing, 1 perfect; the labels are averaged.
        """
        weight = {name: classes[name] / (classes[name] - 1) for name in labels}
        return np.mean([weight[name] * (self.first[name].astype(float) - self.second[name]) for name in labels], axis=0)

    def gap(self, appearance: Sequence[str], dynamics: Sequence[str], classes: Mapping[str, int]) -> Interval:
        """Factorisation gap G = 1/2 [A(a|first) - A(a|second) + A(d|second) - A(d|first)].

        1: appearance is in the first half alone and dynamics in the second alone; 0: both halves know alike; -1: the other way round.
        It is a mean over test clips, whose t-interval and p-value are returned (the pairing of the halves is in it).
        """
        return t_interval(0.5 * (self.lead(appearance, classes) - self.lead(dynamics, classes)))


def dissociation(app_a, dyn_a, app_d, dyn_d, draws: int = 10_000, seed: int = 0, *, same_clips: bool = False) -> Interval:
    """Double dissociation in points: (A_app - A_dyn) on an appearance benchmark minus the same on a dynamics benchmark.

    app_a, dyn_a: correctness [n] of the two halves on the appearance benchmark's test clips; app_d, dyn_d [m] on the dynamics benchmark's,
    which may be other clips. Percentile interval of a paired bootstrap over the clips of each, with `same_clips` over the clips that both
    benchmarks share; p against zero from the same draws.
    """
    a, d = (100 * (np.asarray(x, float) - np.asarray(y, float)) for x, y in ((app_a, dyn_a), (app_d, dyn_d)))
    rng = np.random.default_rng(seed)

    def resampled(x: np.ndarray) -> np.ndarray:  # a difference takes few values: their counts are drawn instead of clips
        values, counts = np.unique(x, return_counts=True)
        return rng.multinomial(len(x), counts / len(x), draws) @ values / len(x)

    means = resampled(a - d) if same_clips else resampled(a) - resampled(d)
    lo, hi = np.quantile(means, [0.025, 0.975])
    p = min(1.0, 2 * (1 + min((means <= 0).sum(), (means >= 0).sum())) / (1 + draws))
    return Interval(a.mean() - d.mean(), lo, hi, p)


class Reader:
    """Ridge classifiers of all labels from any channels of the features of train and test clips; alpha by leaving one out of train.

    Features are standardised by train with deviations over n - 1, as in all rows so far: `features.scaling` would turn 2 answers of 64 000.
    One decomposition of the chosen channels serves every label; each class has an alpha of its own, unlike in `probes.ridge_map`.
    """

    def __init__(self, train: Features, test: Features, labels: Sequence[str]):
        mean, scale = train.pooled.mean(0), train.pooled.std(0).clamp_min(1e-6)
        self.train, self.test = (((part.pooled - mean) / scale).double().numpy() for part in (train, test))
        self.classes = {name: len(train.classes[name]) for name in labels}
        self.truth = {name: test.labels[name].numpy() for name in labels}
        hot = [np.eye(k)[train.labels[name].numpy()] for name, k in self.classes.items()]
        self.targets = np.concatenate(hot, axis=1)  # [n sum of classes]

    def correct(self, directions: np.ndarray) -> Correct:
        """What is classified rightly from these directions: channel numbers [k], or columns of a matrix [d k]."""
        from sklearn.linear_model import RidgeCV

        cut = lambda x: x[:, directions] if directions.ndim == 1 else x @ directions
        scores = RidgeCV(ALPHAS, alpha_per_target=True).fit(cut(self.train), self.targets).predict(cut(self.test))
        parts = np.split(scores, np.cumsum(list(self.classes.values()))[:-1], axis=1)
        return {name: part.argmax(1) == self.truth[name] for (name, part) in zip(self.classes, parts, strict=True)}

    def split(self, first: np.ndarray, second: np.ndarray) -> Split:
        return Split(self.correct(first), self.correct(second))

    @property
    def channels(self) -> Split:
        """The contiguous halves, which the objectives call app and dyn."""
        d = self.train.shape[1]
        return self.split(np.arange(d // 2), np.arange(d // 2, d))

    def random(self, draws: int, seed: int = 0) -> list[Split]:
        """Halves of randomly chosen channels."""
        d, rng = self.train.shape[1], np.random.default_rng(seed)
        orders = (rng.permutation(d) for _ in range(draws))
        return [self.split(order[: d // 2], order[d // 2 :]) for order in orders]

    @property
    def components(self) -> Split:
        """Every other principal component of train against the rest: halves of like variance that are mixtures of all channels."""
        _, _, vt = np.linalg.svd(self.train - self.train.mean(0), full_matrices=False)
        return self.split(vt[0::2].T, vt[1::2].T)


def score(correct: Correct, labels: Sequence[str], classes: Mapping[str, int]) -> float:
    """Mean over labels of the accuracy corrected for chance: 0 guessing, 1 perfect."""
    return float(np.mean([(correct[name].mean() - 1 / classes[name]) / (1 - 1 / classes[name]) for name in labels]))


# ------------------------------------------------------------------------------------------------------------------------ over runs


def halves(
    runs: Iterable[Run],
    world: str = "synthetic",
    clips: tuple[int, int] = (2000, 1000),
    *,
    encoders: Sequence[str] = ("student",),
    draws: int = 20,
    frozen: bool = True,
    shape: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: bool = True,
    **how,
) -> pd.DataFrame:
    """What each half of each frozen encoder's mean-pooled features knows of appearance and of dynamics, as rows.

    world, clips  a synthetic world, and clips of its training and test split
    draws         random halves: the null of the gap; fewer than 19 cannot reach p = 0.05
    frozen        also read the factors from clips stopped at their first frame: there, dynamics must be at chance from any part
    how           goes to `features.extract`

    Metrics, by `part` ("all", "app", "dyn", "random", "pca"), 0 to 1: "appearance", "dynamics" (accuracy corrected for chance, mean over
    the labels); "gap" with its interval over test clips; of "random" the mean over draws, lo and hi their 2.5 and 97.5 % quantiles. The row
    of part "app" and metric "gap" has `p`: the share of random halves whose gap is at least as large. "dissociation" is in points.
    "frozen-appearance", "frozen-dynamics", "frozen-gap-dynamics": the same on stopped clips, the last one the dynamics half of the gap.
    """
    found = subjects(runs, encoders)
    size = clip_size(found, shape)
    sources = pair(world, ("train", "test"), (), size, clips)
    groups = {kind: [n for n in names if n in sources[0].classes] for kind, names in (("appearance", APPEARANCE), ("dynamics", DYNAMICS))}
    if not all(groups.values()):
        raise ValueError(f"{world}: its clips are labelled {', '.join(sources[0].classes)}; expected appearance and dynamics factors")
    rows, how = [], how | {"progress": progress}
    for subject in tqdm(found, desc="halves", unit="encoder", disable=not progress):
        moving = Reader(*(subject.features(source, **how) for source in sources), [*groups["appearance"], *groups["dynamics"]])
        own = split_rows(moving, **groups, draws=draws, seed=seed)
        if frozen:
            stopped = Reader(*(subject.features(Frozen(s, 0.0), **how) for s in sources), [*groups["appearance"], *groups["dynamics"]])
            own += frozen_rows(stopped, **groups)
        rows += [subject.about | {"n": len(sources[1])} | row for row in own]
    return results.tidy(pd.DataFrame(rows).assign(benchmark=sources[0].name, probe="ridge-classifier"))


def split_rows(reader: Reader, appearance: Sequence[str], dynamics: Sequence[str], draws: int = 20, seed: int = 0) -> list[dict]:
    """The rows of one encoder: scores, gap, dissociation and their nulls (`halves` says what they are)."""
    groups, classes = {"appearance": appearance, "dynamics": dynamics}, reader.classes
    channels, components, null = reader.channels, reader.components, reader.random(draws, seed)
    gap = channels.gap(appearance, dynamics, classes)
    by_chance = np.array([split.gap(appearance, dynamics, classes).value for split in null])
    rows = [_row("gap", "app", *gap[:3], p=(1 + (by_chance >= gap.value).sum()) / (1 + draws)), _spread("gap", by_chance)]
    rows.append(_row("gap", "pca", *components.gap(appearance, dynamics, classes)[:3]))
    pooled = lambda correct, names: np.mean([correct[name] for name in names], axis=0)
    sides = [pooled(side, names) for names in (appearance, dynamics) for side in (channels.first, channels.second)]
    rows.append(_row("dissociation", "app", *dissociation(*sides, same_clips=True)[:3]))
    whole = reader.correct(np.arange(reader.train.shape[1]))
    for kind, names in groups.items():
        parts = {"all": whole, "app": channels.first, "dyn": channels.second}
        rows += [_row(kind, part, *_interval(correct, names, classes)) for part, correct in parts.items()]
        rows.append(_spread(kind, np.array([score(split.first, names, classes) for split in null])))
    return rows


def frozen_rows(reader: Reader, appearance: Sequence[str], dynamics: Sequence[str]) -> list[dict]:
    """The same on clips that stand still: nothing of dynamics is there to be read."""
    channels, whole = reader.channels, reader.correct(np.arange(reader.train.shape[1]))
    rows = [_row("frozen-appearance", "all", *_interval(whole, appearance, reader.classes))]
    rows += [
        _row("frozen-dynamics", part, *_interval(correct, dynamics, reader.classes))
        for part, correct in {"all": whole, "app": channels.first, "dyn": channels.second}.items()
    ]
    return [*rows, _row("frozen-gap-dynamics", "app", *t_interval(-0.5 * channels.lead(dynamics, reader.classes))[:3])]


def _interval(correct: Correct, labels: Sequence[str], classes: Mapping[str, int]) -> tuple[float, float, float]:
    """Mean corrected accuracy with its t-interval over test clips."""
    each = np.mean([(correct[name] - 1 / classes[name]) / (1 - 1 / classes[name]) for name in labels], axis=0)
    return tuple(t_interval(each)[:3])


def _row(metric: str, part: str, value, lo, hi, **more) -> dict:
    return {"metric": metric, "part": part, "value": float(value), "lo": float(lo), "hi": float(hi)} | more


def _spread(metric: str, values: np.ndarray) -> dict:
    return _row(metric, "random", values.mean(), *np.quantile(values, [0.025, 0.975]))


# --------------------------------------------------------------------------------------------------------------------------- verdict


def verdict(rows: pd.DataFrame) -> str:
    """Which encoders keep appearance and dynamics apart more than any halves would, in one sentence, and what that leaves open."""
    own = rows[rows["metric"].eq("gap") & rows["part"].eq("app")]
    table = over_seeds(own, ["variant", "encoder"])
    worst = own.groupby(["variant", "encoder"], sort=False)["p"].max().to_dict()  # an effect has to show in every seed
    apart = [(r, worst[r["variant"], r["encoder"]]) for _, r in table.iterrows()]
    yes = [f"{r['variant']} {shown(r, 3)}" for r, p in apart if p <= 0.05 and r["lo"] > 0]
    no = [f"{r['variant']} {shown(r, 3)}" for r, p in apart if not (p <= 0.05 and r["lo"] > 0)]
    said = "Appearance and dynamics are further apart in the two halves than in random halves for " + (", ".join(yes) or "no encoder")
    said += f"; not for {', '.join(no)}" * bool(no)
    still = rows[rows["metric"].eq("frozen-dynamics") & rows["part"].eq("all")]
    control = ""
    if len(still):
        worst_still = still.loc[still["value"].idxmax()]
        control = f"; with clips stopped, dynamics is read at most {shown(worst_still, 2)} above chance"
    smoke = "Demonstration size, which decides nothing. " * bool(rows["smoke"].any())
    one = " One seed: what another would change is not in the intervals." * bool(own["seed"].nunique() < 2)
    return f"{smoke}{said} (factorisation gap, 1: wholly apart){control}. A linear reader alone was asked.{one}"
