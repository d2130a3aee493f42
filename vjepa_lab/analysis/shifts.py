"""What a shift is, and what is measured of it: conditions, corruption metrics, the line of effective robustness. No encoder here.

Axes: n test clips, s severities.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vjepa_lab.data.core import DataError, Derived, Sample, Source, known
from vjepa_lab.data.corruptions import CORRUPTIONS, Corrupted
from vjepa_lab.data.synthetic import DYNAMICS
from vjepa_lab.evidence.intervals import from_error, less_sure, several
from vjepa_lab.evidence.stats import Interval, benjamini_hochberg, cluster_interval, t_interval

SCENES = {
    "clutter": {"clutter": 3}, "pan": {"camera": True}, "faint": {"contrast": 0.4}, "grain": {"noise": 25.0},
}  # fmt: skip
"Dials of the factor world (`data.synthetic`) that leave object and motion of every clip as they are: bystanders (occlusion), a moving \
camera, a faint object, a noisy sensor."
MOTION_LABELS = (*DYNAMICS, "edit", "then", "order", "camera")
MOVED = ("static_rotate", "rotate", "translate", "freeze", "reverse", "jumble", "box_jumble")
"Corruptions after which a clip shows another motion than its label says: a reader that falls is not at fault."


@dataclass(frozen=True)
class Condition:
    """One shift at one severity. ordered: whether a higher severity was published as a worse one."""

    shift: str
    severity: int
    kind: str
    ordered: bool = True

    def truth(self, label: str) -> str:
        """ "kept", or "changed" where the shift changes what this label names."""
        return "changed" if label in MOTION_LABELS and self.shift in MOVED else "kept"


CLEAN = Condition("clean", 0, "clean", False)


class Kept(Derived):
    """A fixed source whose clips stay in memory once read, up to `limit` bytes: a clip is corrupted once for all encoders."""

    def __init__(self, source: Source, limit: int = 2 * 2**30):
        super().__init__(source)
        self.fixed, self._left, self._there = True, limit, {}

    def read(self, index: int, epoch: int = 0) -> Sample:
        if index in self._there:
            return self._there[index]
        sample = self.source.read(index, epoch).cut()
        if sample.clip.numel() <= self._left:
            self._left -= sample.clip.numel()
            self._there[index] = sample
        return sample


def conditions(corruptions: Iterable[str] | None = None, severities: Sequence[int] = (1, 2, 3, 4, 5)) -> list[Condition]:
    """Corruptions x severities, all 27 of `data.corruptions` by default; `reverse`, the same at every severity, once.

    Raises DataError for an unknown corruption or severity.
    """
    names = list(CORRUPTIONS) if corruptions is None else list(corruptions)
    for name, severity in [(name, severity) for name in names for severity in severities]:
        known("corruption", name, CORRUPTIONS)
        known("severity", severity, (1, 2, 3, 4, 5))
    return [
        Condition(name, severity, CORRUPTIONS[name].kind, CORRUPTIONS[name].ordered)
        for name in names
        for severity in (severities[:1] if name == "reverse" else severities)
    ]


def sources(test: Source, wanted: Sequence[Condition], scenes: Mapping[str, Source], seed: int = 0) -> Iterator[tuple[Condition, Source]]:
    """The same test clips under every condition, the clean ones first; scenes: other versions of them, by name."""
    clean = Kept(test)
    yield CLEAN, clean
    for condition in wanted:
        yield condition, Kept(Corrupted(clean, condition.shift, condition.severity, seed))
    for name, source in scenes.items():
        if len(source) != len(test):
            raise DataError(f"the scene {name!r} has {len(source)} clips, the test split {len(test)}; they must be the same clips")
        yield Condition(name, 1, "scene", False), Kept(source)


# --------------------------------------------------------------------------------------------------------------------------- metrics


def mean_corrupted(corrupted: Mapping[str, np.ndarray]) -> np.ndarray:
    """Each clip's share of right answers [n], averaged over severities, then over shifts: its mean over clips is mPC / 100.

    corrupted: correctness [s n] of the same clips by shift. With as many severities of every shift it is the plain mean over all.
    """
    return np.mean([np.asarray(each, float).mean(0) for each in corrupted.values()], axis=0)


def _over_clips(x: np.ndarray, origin: np.ndarray | None) -> Interval:
    """The mean of numbers per clip [n] in percent, with Student's interval over clips, or over recordings where that is less sure."""
    found = t_interval(100 * x)
    return less_sure(found, cluster_interval(x, origin)) if several(origin) else found


def metrics(
    clean, corrupted: Mapping[str, np.ndarray], chance: float, draws: int = 2000, seed: int = 0, origin: np.ndarray | None = None
) -> dict[str, Interval]:
    """What of the accuracy under clean conditions is left under shifts, by name, with 95 % intervals over test clips (p is not filled in).

    clean: correctness [n]; corrupted: correctness [s n] of the same clips by shift; chance: percent that a constant answer reaches;
    origin: the recording that each clip was cut from [n], where known: clips of one are alike, intervals are over recordings then.

    clean      accuracy A on clean clips, percent
    mPC        mean accuracy over shifts and severities, percent (Yi et al., arXiv:2110.06513)
    rPC        mPC / A, percent
    gamma_abs  1 - (A - mPC) / 100, gamma_rel = 1 - (A - mPC) / A: mean absolute and relative robustness (Schiappa et al., arXiv:2207.01398)
    corrected  (mPC - chance) / (100 - chance), percent
    retained   (mPC - chance) / (A - chance), percent: rPC of what is known beyond chance

    rPC, gamma_rel and retained are nan where they would say nothing; `undefined` says when, and why.
    Ratios have a percentile bootstrap over clips, clean and shifted answers of a clip drawn together; the others Student's t.
    """
    clean, shifted = np.asarray(clean, float), mean_corrupted(corrupted)
    top, mean, fall = (_over_clips(x, origin) for x in (clean, shifted, shifted - clean))
    found = {"clean": _within(top), "mPC": _within(mean)}
    without, nothing = undefined(top.value, chance), Interval(*[np.nan] * 4)
    ratio = lambda name, offset: nothing if name in without else ratio_interval(shifted, clean, offset, draws, seed, origin)
    relative = _scaled(ratio("rPC", 0.0), 100)
    found |= {"rPC": relative, "gamma_abs": _scaled(fall, 0.01, 1.0), "gamma_rel": _scaled(relative, 0.01)}
    corrected = _scaled(mean, 100 / (100 - chance), -chance * 100 / (100 - chance)) if chance < 100 else nothing
    return found | {"corrected": corrected, "retained": _scaled(ratio("retained", chance / 100), 100)}


def knows(clean: float, chance: float) -> bool:
    """Whether a reader knows enough beyond chance to ask what it retains: twice chance or, where that is less, half of what there is to
    know beyond chance (of a binary label: 75 %). Both in percent."""
    return clean >= min(2 * chance, (100 + chance) / 2) and clean > chance


def undefined(clean: float, chance: float) -> dict[str, str]:
    """Why the relative metrics say nothing of a reader with this accuracy on clean clips: metric -> reason. Both in percent.

    rPC and gamma_rel ask for twice chance: below it a reader that falls back to guessing would seem to keep more than half of what it had.
    No reader of a binary label gets there short of 100 %; `retained`, which leaves chance out, is defined from 75 % on (`knows`).
    """
    seen = f"undefined: {clean:.1f} % right on clean clips, chance {chance:.1f} %; "
    reasons = {}
    if clean < 2 * chance:
        reasons |= dict.fromkeys(("rPC", "gamma_rel"), seen + "below twice chance, who falls back to guessing keeps more than half")
    if not knows(clean, chance):
        reasons["retained"] = seen + "too little is known beyond chance to ask how much of it is kept"
    return reasons


def _within(found: Interval) -> Interval:
    return Interval(float(found.value), max(float(found.lo), 0.0), min(float(found.hi), 100.0), np.nan)


def _scaled(found: Interval, factor: float, offset: float = 0.0) -> Interval:
    return Interval(*(float(offset + factor * x) for x in found[:3]), np.nan)


def resampled(columns: Sequence[np.ndarray], draws: int = 2000, seed: int = 0, origin: np.ndarray | None = None) -> np.ndarray:
    """Means of several numbers per clip ([n] each) under a bootstrap over clips, or over the recordings that these were cut from, `origin`
    [n]: [draws columns].

    Clips with the same numbers are interchangeable, so their counts are drawn, not they.
    """
    if several(origin):
        place = np.unique(origin, return_inverse=True)[1]
        sums = np.stack([np.bincount(place, column) for column in (*columns, np.ones(len(place)))], axis=1)  # [recordings columns+1]
        drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), draws) @ sums
        return drawn[:, :-1] / drawn[:, -1:]
    values, counts = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
    return np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), draws) / counts.sum() @ values


def ratio_interval(
    above: np.ndarray, below: np.ndarray, offset: float = 0.0, draws: int = 2000, seed: int = 0, origin: np.ndarray | None = None
) -> Interval:
    """(mean above - offset) / (mean below - offset) of numbers per clip [n], percentile bootstrap over clips, or their recordings `origin`;
    draws with a denominator of zero or less count as infinite."""
    means = resampled([above, below], draws, seed, origin) - offset
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(means[:, 1] > 0, means[:, 0] / means[:, 1], np.inf)
    lo, hi = np.quantile(ratios, [0.025, 0.975], method="nearest")
    return Interval((np.mean(above) - offset) / (np.mean(below) - offset), lo, hi, np.nan)


# ------------------------------------------------------------------------------------------------------------------------------ line


@dataclass(frozen=True, eq=False)
class Line:
    """logit(shifted) = intercept + slope * logit(clean), one point per variant: its means over seeds.

    Seeds of one variant share its offset from the line, so a variant counts once however many seeds it has: intervals are held against how
    variants scatter, and more seeds make neither the slope more certain nor a variant a stranger to the line.
    error: standard deviation of the residuals, in logits.  mean, spread: of the variants' logit(clean), spread their summed squares.
    residuals: a row per variant: effective robustness, its difference in points from what the line of the *other* variants foretells, with
    a 95 % interval, p and p_adj (Benjamini-Hochberg). points: the encoders, every seed, with `fitted`.
    """

    slope: Interval
    intercept: float
    error: float
    mean: float
    spread: float
    residuals: pd.DataFrame
    points: pd.DataFrame

    def at(self, clean) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shifted accuracy in percent that the line gives for `clean` in percent, and its 95 % confidence band."""
        from scipy.special import expit, logit
        from scipy.stats import t

        x = logit(np.asarray(clean, float) / 100)
        count = self.points.loc[self.points["fitted"], "variant"].nunique()
        half = t.ppf(0.975, count - 2) * self.error * np.sqrt(1 / count + (x - self.mean) ** 2 / self.spread)
        y = self.intercept + float(self.slope.value) * x
        return tuple(100 * expit(z) for z in (y, y - half, y + half))


def line(points: pd.DataFrame, fitted: Sequence[bool] | None = None) -> Line:
    """The line of effective robustness (Taori et al. 2020, Miller et al. 2021), by least squares on logits, over variants.

    points: columns variant, seed, clean, shifted (percent), n.  fitted: which of them the line is fitted to, all by default; the others are
    only shown.  Logits are of (right + 1/2) / (n + 1), averaged over the seeds of a variant.
    The test clips' sampling error lies in both accuracies; it flattens the slope, and encoders that see the same clips share it.
    Raises ValueError for fewer than four fitted variants, or if all are as good on clean clips.
    """
    points = points.reset_index(drop=True).assign(fitted=True if fitted is None else list(fitted))
    own = points[points["fitted"]]
    logits = pd.DataFrame({"variant": own["variant"], "x": _logit(own["clean"], own["n"]), "y": _logit(own["shifted"], own["n"])})
    by_variant = logits.groupby("variant", sort=False)
    means, seeds = by_variant.mean(), by_variant.size()
    x, y = means.to_numpy().T
    if len(means) < 4 or np.ptp(x) == 0:
        raise ValueError(
            f"a line needs four variants of differing clean accuracy at least; there are {len(means)}: {', '.join(means.index)}"
        )
    slope, intercept, error, mean, spread = _least_squares(x, y)
    found = {name: _residual(means.index == name, x, y) for name in means.index}
    rows = [{"variant": name, "seeds": int(seeds[name])} | row for name, row in found.items() if row]
    table = pd.DataFrame(rows, columns=["variant", "seeds", "value", "lo", "hi", "p"])
    table["p_adj"] = benjamini_hochberg(table["p"])
    interval = Interval(*map(float, from_error(slope, error / np.sqrt(spread), len(x) - 2)))
    return Line(interval, intercept, error, mean, spread, table, points)


def _logit(percent: pd.Series, n: pd.Series) -> np.ndarray:
    from scipy.special import logit

    return logit((percent / 100 * n + 0.5) / (n + 1)).to_numpy(float)


def _least_squares(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float, float, float]:
    """Slope, intercept, standard deviation of the residuals, mean of x, its summed squares around it."""
    mean, spread = x.mean(), ((x - x.mean()) ** 2).sum()
    slope = ((x - mean) * y).sum() / spread
    intercept = y.mean() - slope * mean
    return slope, intercept, float(np.sqrt(((y - intercept - slope * x) ** 2).sum() / (len(x) - 2))), mean, spread


def _residual(own: np.ndarray, x: np.ndarray, y: np.ndarray) -> dict | None:
    """How far one variant (`own`) lies off the others' line, in points, with its prediction interval; None if they give no line.

    x, y: a point per variant.
    """
    from scipy.special import expit

    others = ~own
    if others.sum() < 3 or np.ptp(x[others]) == 0:
        return None
    slope, intercept, error, mean, spread = _least_squares(x[others], y[others])
    foretold = intercept + slope * x[own].item()
    width = error * np.sqrt(1 + 1 / others.sum() + (x[own].item() - mean) ** 2 / spread)
    *off, p = from_error(y[own].item() - foretold, width, others.sum() - 2)
    value, lo, hi = (float(100 * (expit(foretold + z) - expit(foretold))) for z in off)
    return {"value": value, "lo": lo, "hi": hi, "p": float(p)}
