"""Intervals of accuracies and of differences, tests, and their adjustment for families of tests (on scipy).

Units: accuracies and differences in percentage points. Axes: s seeds, i test samples; leading axes broadcast.

Which interval decides. Seeds and test samples are both random and crossed: every seed answers the same samples. `paired_interval`
estimates both variances and uses Student's t with Satterthwaite's degrees of freedom. With few seeds these are estimated badly: where
the seeds agree by luck, error and critical value shrink together, and far out, where corrections for many tests read p, three seeds
reject up to ten times too often. So p is never smaller, nor the interval narrower, than those of the t-interval over seeds. Under the
null the two together reject at no more than 1.2 times the stated 5 % at 2, 3, 5 and 8 seeds, and at no more than 1.6 times 1/600, the
first step of Holm's correction over 30 (simulated mean squares of 400,000 studies; tests/test_stats.py draws fewer studies, answer by
answer, and holds them to 1.25 and 2 times). `hierarchical_bootstrap` resamples both. With few seeds its percentile
interval is not calibrated: at a nominal 5 % it rejects more than 10 % of null studies of three seeds where seeds dominate the noise (the
same tests; it lacks the factor S/(S-1) and has normal tails), and too few where test sampling dominates (it counts the residual up to
three times). So it stands beside the t-interval and does not decide.

Accuracies on n samples lie on a grid of 100/n points, so few seeds can tie. Their spread of zero is no certainty: `rounding` is the
standard error that the grid alone leaves, and no interval over accuracies that is told its `least` error is narrower.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats as sps


class Interval(NamedTuple):
    """An estimate with its confidence interval and two-sided p-value against zero."""

    value: np.ndarray | float
    lo: np.ndarray | float
    hi: np.ndarray | float
    p: np.ndarray | float


# --- intervals --------------------------------------------------------------------------------------------------------


def wilson(value, n, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson score interval `(lo, hi)` of a percentage `value` measured on `n` samples, in percent (Wilson 1927). Broadcasts."""
    z = sps.norm.ppf(0.5 + confidence / 2)
    p, n = np.asarray(value, float) / 100, np.asarray(n, float)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return 100 * np.clip(centre - half, 0, 1), 100 * np.clip(centre + half, 0, 1)


def rounding(seeds, *n):
    """Standard error in points that rounding alone gives the mean over `seeds` of an accuracy on n samples, or of a difference of two.

    An accuracy lies on a grid of 100/n, and a rounded number has the grid's square / 12 as variance (Sheppard); the two of a difference
    are rounded each by itself, paired or not: sqrt(sum (100/n)^2 / 12 / seeds). NaN where an n is unknown.
    """
    return np.sqrt(sum((100 / np.asarray(each, float)) ** 2 for each in n) / 12 / seeds)


def floored(error, least):
    """The standard error, or `least` where that is larger; NaN where there is no spread and `least` is unknown (NaN)."""
    return np.where(np.isnan(least), np.where(np.asarray(error) > 1e-12, error, np.nan), np.maximum(error, least))


def t_interval(x, confidence: float = 0.95, axis: int = -1, least=0.0) -> Interval:
    """Student's t-interval of the mean over `axis` (at least two values), on a standard error of at least `least` (see `rounding`)."""
    x = np.asarray(x, float)
    count = x.shape[axis]
    if count < 2:
        raise ValueError("a t-interval needs at least two seeds; one run has a sampling interval only (newcombe)")
    return from_error(x.mean(axis), floored(x.std(axis, ddof=1) / math.sqrt(count), least), count - 1, confidence)


def from_error(value, error, df, confidence: float = 0.95) -> Interval:
    """Student's interval of an estimate with standard error `error` on `df` degrees of freedom (inf: normal). Broadcasts.

    NaN where the error is unknown."""
    half = sps.t.ppf(0.5 + confidence / 2, df) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(error > 0, 2 * sps.t.sf(np.abs(value) / error, df), np.where(np.isnan(error), np.nan, np.where(value == 0, 1.0, 0.0)))
    return Interval(value, value - half, value + half, p)


def unpaired_interval(x, y, confidence: float = 0.95, least: tuple[float, float] = (0.0, 0.0)) -> Interval:
    """Welch's interval of the difference of two means over seeds that do not pair up (at least two values each).

    least: the least standard errors of the two means (see `rounding`)."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if min(len(x), len(y)) < 2:
        raise ValueError("an interval over unpaired seeds needs at least two seeds of either arm")
    a, b = (np.fmax(z.var(ddof=1) / len(z), own**2) for z, own in zip((x, y), least, strict=True))
    spread = a**2 / (len(x) - 1) + b**2 / (len(y) - 1)
    df = (a + b) ** 2 / spread if spread else min(len(x), len(y)) - 1
    return from_error(x.mean() - y.mean(), floored(math.sqrt(a + b), math.hypot(*least)), df, confidence)


def newcombe(value, n, base, base_n, confidence: float = 0.95) -> Interval:
    """Difference of two independent percentages, in points (Newcombe 1998, method 10; p by the pooled two-proportion z-test). Broadcasts.

    Covers the sampling of test examples only: what another seed would have changed is not in it. NaN where their number is unknown.
    """
    value, n, base, base_n = (np.asarray(x, float) for x in (value, n, base, base_n))
    (lo, hi), (base_lo, base_hi) = wilson(value, n, confidence), wilson(base, base_n, confidence)
    d, pooled = value - base, (value * n + base * base_n) / (n + base_n)
    error = np.sqrt(pooled * (100 - pooled) * (1 / n + 1 / base_n))
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(error > 0, 2 * sps.norm.sf(np.abs(d) / error), np.where(np.isnan(error), np.nan, 1.0))
    return Interval(d, d - np.hypot(value - lo, base_hi - base), d + np.hypot(hi - value, base - base_lo), p)


def several(cluster) -> bool:
    """Whether it is known of samples [i] which clusters they come in, and there is more than one."""
    return cluster is not None and len(np.unique(cluster)) > 1


def cluster_interval(correct, cluster, confidence: float = 0.95) -> Interval:
    """Accuracy in percent of samples that come in clusters, such as clips cut from one recording: t over clusters (Liang & Zeger 1986).

    correct: `[i]` (0/1), or the difference of two arms on the same samples; cluster: `[i]`, any labels. With a cluster per sample it is the
    t-interval; of an accuracy it may pass 0 or 100.
    """
    x = 100 * np.asarray(correct, float)
    place = np.unique(np.asarray(cluster), return_inverse=True)[1]
    count = place.max() + 1
    if count < 2:
        raise ValueError("an interval over clusters needs at least two of them")
    residual = np.bincount(place, x - x.mean())
    return from_error(x.mean(), math.sqrt(count / (count - 1) * (residual**2).sum()) / len(x), count - 1, confidence)


def _difference(a, b) -> np.ndarray:
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(f"paired arms need equal shapes [.. s i] (seeds, test samples); got {a.shape} and {b.shape}")
    return a - b


def paired_interval(a, b, confidence: float = 0.95, least=0.0) -> Interval:
    """Mean difference of two arms in points, with both seeds and test samples random and crossed.

    a, b: correctness `[.. s i]` (0/1), row s of both arms trained from the same seed, column i the same test sample.
    Var(mean) = (MS_seed + MS_sample - MS_residual) / (s i), df by Satterthwaite; never below MS_seed / (s i), and never surer than
    Student's t over seeds. With one seed it is the paired sampling interval (seed noise unknown).
    least: the least standard error (see `rounding`).
    """
    d = 100 * _difference(a, b)
    s, i = d.shape[-2:]
    mean = d.mean((-1, -2))
    if s == 1:
        return from_error(mean, floored(d[..., 0, :].std(-1, ddof=1) / math.sqrt(i), least), i - 1, confidence)
    by_seed, by_sample = d.mean(-1), d.mean(-2)
    ms_seed, ms_sample = i * by_seed.var(-1, ddof=1), s * by_sample.var(-1, ddof=1)
    residual = d - by_seed[..., :, None] - by_sample[..., None, :] + mean[..., None, None]
    ms_residual = (residual**2).sum((-1, -2)) / ((s - 1) * (i - 1))
    shared = np.maximum(ms_sample - ms_residual, 0)
    total = ms_seed + shared
    spread = ms_seed**2 / (s - 1) + np.where(shared > 0, ms_sample**2 / (i - 1) + ms_residual**2 / ((s - 1) * (i - 1)), 0)
    df = np.where(spread > 0, total**2 / np.where(spread > 0, spread, 1), s - 1)
    crossed, seeds_alone = (
        from_error(mean, floored(np.sqrt(variance / (s * i)), least), freedom, confidence)
        for variance, freedom in ((total, df), (ms_seed, s - 1))
    )
    return less_sure(crossed, seeds_alone)


def less_sure(a: Interval, b: Interval) -> Interval:
    """Of two intervals about one estimate the wider one, and the larger of their p-values. Broadcasts."""
    first = a.hi - a.lo >= b.hi - b.lo
    return Interval(a.value, np.where(first, a.lo, b.lo)[()], np.where(first, a.hi, b.hi)[()], np.maximum(a.p, b.p))


def hierarchical_bootstrap(a, b, draws: int = 10_000, seed: int = 0, confidence: float = 0.95) -> Interval:
    """Percentile interval of the mean difference in points: seeds resampled, then test samples, the same resample in both arms.

    a, b: correctness `[s i]`. Samples with equal differences over all seeds are interchangeable, so counts of these patterns are drawn
    (multinomial) instead of samples: the same distribution, and 25 000 samples cost what a few hundred do.
    """
    d = 100 * _difference(a, b)
    rng = np.random.default_rng(seed)
    s, i = d.shape
    patterns, counts = np.unique(d, axis=1, return_counts=True)
    seeds = rng.multinomial(s, np.full(s, 1 / s), draws) / s
    samples = rng.multinomial(i, counts / i, draws) / i
    means = np.einsum("ds,sp,dp->d", seeds, patterns, samples, optimize=True)
    lo, hi = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    p = min(1.0, 2 * (1 + min((means <= 0).sum(), (means >= 0).sum())) / (1 + draws))
    return Interval(d.mean(), lo, hi, p)


# --- tests ------------------------------------------------------------------------------------------------------------


def mcnemar(a, b) -> float:
    """Exact two-sided McNemar p-value that two probes err equally often on the same samples; a, b: correctness `[i]` of one seed each."""
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    gained, lost = int((a & ~b).sum()), int((~a & b).sum())
    return float(sps.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def tost(differences, margin: float) -> Interval:
    """Two one-sided t-tests over seeds that the mean difference lies within +-`margin` points (Schuirmann 1987).

    Returns the 90 % interval, which lies inside the margin exactly when p < 0.05.
    """
    if margin <= 0:
        raise ValueError(f"the equivalence margin must be positive, got {margin}")
    x = np.asarray(differences, float)
    mean, lo, hi, _ = t_interval(x, 0.9)
    error, df = x.std(ddof=1) / math.sqrt(x.size), x.size - 1
    if error == 0:
        return Interval(mean, lo, hi, float(abs(mean) >= margin))
    return Interval(mean, lo, hi, float(max(sps.t.sf((mean + margin) / error, df), sps.t.cdf((mean - margin) / error, df))))


def holm(p) -> np.ndarray:
    """Holm-adjusted p-values (family-wise error). NaN, a planned test that could not be made, stays and counts as not rejected.

    Own lines: statsmodels collects garbage at every call, 50 ms each.
    """
    count = np.size(p)
    return _adjust(p, lambda sorted_p: np.maximum.accumulate(sorted_p * np.arange(count, count - len(sorted_p), -1)))


def benjamini_hochberg(p) -> np.ndarray:
    """Benjamini-Hochberg adjusted p-values (false discovery rate) of the tests that were made; NaN stays NaN."""
    return _adjust(p, sps.false_discovery_control)


def _adjust(p, method) -> np.ndarray:
    p = np.asarray(p, float)
    order = np.argsort(p)[: int((~np.isnan(p)).sum())]  # NaN sorts last
    out = np.full(p.shape, np.nan)
    out[order] = np.minimum(method(p[order]), 1) if len(order) else []
    return out
