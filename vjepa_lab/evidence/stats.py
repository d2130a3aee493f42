"""What a difference between two objectives is worth: paired intervals, families of tests, factorial effects.

Units: accuracies and differences in percentage points. Axes: s seeds, i test samples; leading axes broadcast.
A run's seed fixes its initialisation, data order and masks, so runs are compared seed by seed.

Which interval decides. Seeds and test samples are both random and crossed: every seed answers the same samples. `paired_interval`
estimates both variances and uses Student's t with Satterthwaite's degrees of freedom; under the null it rejects 5 % of the time at 3, 5
and 8 seeds (tests/test_stats.py). `hierarchical_bootstrap` resamples both. With few seeds its percentile interval is not calibrated: at a
nominal 5 % it rejects 19, 14 and 12 % of null studies with 3, 5 and 8 seeds where seeds dominate the noise (it lacks the factor S/(S-1)
and has normal tails), and under 1 % where test sampling dominates (it counts the residual up to three times). So it stands beside the
t-interval and does not decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats as sps

from .results import GROUP, delta, flag_constant, wilson

__all__ = [
    "FAMILY", "Interval", "benjamini_hochberg", "cluster_interval", "compare", "compare_predictions", "correlation", "factorial",
    "hierarchical_bootstrap", "holm", "mcnemar", "newcombe", "paired_interval", "pareto", "rank_stability", "t_interval", "tost", "wilson",
]  # fmt: skip

FAMILY = ("ld", "fwm", "fwm-ld", "fwm-hw-ld", "hw")
"Pre-registered variants: each against the baseline on each benchmark, Holm-adjusted together; all others are exploratory."


class Interval(NamedTuple):
    """An estimate with its confidence interval and two-sided p-value against zero."""

    value: np.ndarray | float
    lo: np.ndarray | float
    hi: np.ndarray | float
    p: np.ndarray | float


# --- intervals --------------------------------------------------------------------------------------------------------


def t_interval(x, confidence: float = 0.95, axis: int = -1) -> Interval:
    """Student's t-interval of the mean over `axis` (at least two values)."""
    x = np.asarray(x, float)
    count = x.shape[axis]
    if count < 2:
        raise ValueError("a t-interval needs at least two seeds; one run has a sampling interval only (newcombe)")
    return _t(x.mean(axis), x.std(axis, ddof=1) / math.sqrt(count), count - 1, confidence)


def _t(value, error, df, confidence: float) -> Interval:
    half = sps.t.ppf(0.5 + confidence / 2, df) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(error > 0, 2 * sps.t.sf(np.abs(value) / error, df), np.where(value == 0, 1.0, 0.0))
    return Interval(value, value - half, value + half, p)


def newcombe(value, n, base, base_n, confidence: float = 0.95) -> Interval:
    """Difference of two independent percentages, in points (Newcombe 1998, method 10; p by the pooled two-proportion z-test). Broadcasts.

    Covers the sampling of test examples only: what another seed would have changed is not in it.
    """
    value, n, base, base_n = (np.asarray(x, float) for x in (value, n, base, base_n))
    (lo, hi), (base_lo, base_hi) = wilson(value, n, confidence), wilson(base, base_n, confidence)
    d, pooled = value - base, (value * n + base * base_n) / (n + base_n)
    error = np.sqrt(pooled * (100 - pooled) * (1 / n + 1 / base_n))
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(error > 0, 2 * sps.norm.sf(np.abs(d) / error), 1.0)
    return Interval(d, d - np.hypot(value - lo, base_hi - base), d + np.hypot(hi - value, base - base_lo), p)


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
    return _t(x.mean(), math.sqrt(count / (count - 1) * (residual**2).sum()) / len(x), count - 1, confidence)


def _difference(a, b) -> np.ndarray:
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(f"paired arms need equal shapes [.. s i] (seeds, test samples); got {a.shape} and {b.shape}")
    return a - b


def paired_interval(a, b, confidence: float = 0.95) -> Interval:
    """Mean difference of two arms in points, with both seeds and test samples random and crossed.

    a, b: correctness `[.. s i]` (0/1), row s of both arms trained from the same seed, column i the same test sample.
    Var(mean) = (MS_seed + MS_sample - MS_residual) / (s i), df by Satterthwaite; never below MS_seed / (s i).
    With one seed it is the paired sampling interval (seed noise unknown).
    """
    d = 100 * _difference(a, b)
    s, i = d.shape[-2:]
    mean = d.mean((-1, -2))
    if s == 1:
        return _t(mean, d[..., 0, :].std(-1, ddof=1) / math.sqrt(i), i - 1, confidence)
    by_seed, by_sample = d.mean(-1), d.mean(-2)
    ms_seed, ms_sample = i * by_seed.var(-1, ddof=1), s * by_sample.var(-1, ddof=1)
    residual = d - by_seed[..., :, None] - by_sample[..., None, :] + mean[..., None, None]
    ms_residual = (residual**2).sum((-1, -2)) / ((s - 1) * (i - 1))
    shared = np.maximum(ms_sample - ms_residual, 0)
    total = ms_seed + shared
    spread = ms_seed**2 / (s - 1) + np.where(shared > 0, ms_sample**2 / (i - 1) + ms_residual**2 / ((s - 1) * (i - 1)), 0)
    df = np.where(spread > 0, total**2 / np.where(spread > 0, spread, 1), s - 1)
    return _t(mean, np.sqrt(total / (s * i)), df, confidence)


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
    """Holm-adjusted p-values (family-wise error); NaN stays NaN. Own lines: statsmodels collects garbage at every call, 50 ms each."""
    return _adjust(p, lambda sorted_p: np.maximum.accumulate(sorted_p * np.arange(len(sorted_p), 0, -1)))


def benjamini_hochberg(p) -> np.ndarray:
    """Benjamini-Hochberg adjusted p-values (false discovery rate); NaN stays NaN."""
    return _adjust(p, sps.false_discovery_control)


def _adjust(p, method) -> np.ndarray:
    p = np.asarray(p, float)
    order = np.argsort(p)[: int((~np.isnan(p)).sum())]  # NaN sorts last
    out = np.full(p.shape, np.nan)
    out[order] = np.minimum(method(p[order]), 1) if len(order) else []
    return out


# --- comparing objectives ---------------------------------------------------------------------------------------------


def compare(
    df: pd.DataFrame,
    against: str = "baseline",
    *,
    baseline_seed: int | None = None,
    family: Iterable[str] = FAMILY,
    alpha: float = 0.05,
    fdr: float = 0.10,
) -> pd.DataFrame:
    """One row per variant and benchmark: its difference from the baseline with an interval, a p-value and the family's verdict.

    df: tidy rows, already reduced to one probe per benchmark (`results.select`). Several rows of one seed (probe seeds) are averaged first.
    Columns added to source, edition, regime, variant, benchmark, probe, metric, printed: `value, base, delta, lo, hi, p`; `seeds` (pairs);
    `n`; `basis` (`seeds`: t-interval over seed pairs; `samples`: one run, sampling of test examples only); `family` (`primary` is
    Holm-adjusted over all its variants and benchmarks, `exploratory` Benjamini-Hochberg); `p_adj`, `significant`;
    `flag`, `base_flag` (no better than a constant predictor), `smoke`, `random_init`.
    """
    deltas = delta(df, against, baseline_seed)
    constant = df[df["source"].eq("constant")]
    deltas["flag"] = flag_constant(pd.concat([deltas, constant]))[: len(deltas)]
    keys = ["source", "edition", "regime", "variant", "benchmark", "probe", "metric"]
    baseline = df[df["variant"].eq(against)].reset_index(drop=True)
    baseline["flag"] = flag_constant(pd.concat([baseline, constant], ignore_index=True))[: len(baseline)]
    rows = [
        dict(zip(keys, key, strict=True)) | _compare_one(part, baseline) for key, part in deltas.groupby(keys, dropna=False, sort=False)
    ]
    table = pd.DataFrame(rows)
    if table.empty:
        raise ValueError(f"nothing to compare with {against!r}: no other variant was measured on a benchmark of the baseline")
    table["family"] = np.where(table["variant"].isin(list(family)), "primary", "exploratory")
    table["p_adj"] = np.nan
    for (_, _, _, kind), part in table.groupby(["source", "edition", "regime", "family"], dropna=False):
        table.loc[part.index, "p_adj"] = (holm if kind == "primary" else benjamini_hochberg)(part["p"])
    table["significant"] = table["p_adj"] < np.where(table["family"].eq("primary"), alpha, fdr)
    return table


def _compare_one(part: pd.DataFrame, baseline: pd.DataFrame) -> dict:
    """Interval of one variant on one benchmark, from its rows with their `delta`, `base`, `base_n`."""
    paired = part["paired"].any()
    used = part[part["paired"]] if paired else part
    seeds = used.groupby("seed", dropna=False)[["value", "base", "delta"]].mean() if paired else used[["value", "base", "delta"]]
    n, base_n = used["n"].mean(), used["base_n"].mean()
    if paired and len(seeds) > 1:
        interval, basis = t_interval(seeds["delta"]), "seeds"
    else:
        interval, basis = newcombe(seeds["value"].mean(), n, seeds["base"].mean(), base_n), "samples"
    first = used.iloc[0]
    same = baseline[[*GROUP]].fillna("").eq(first[GROUP].fillna("")).all(axis=1)
    return {
        "printed": first.get("printed", np.nan),
        "value": seeds["value"].mean(),
        "base": seeds["base"].mean(),
        "delta": float(interval.value),
        "lo": float(interval.lo),
        "hi": float(interval.hi),
        "p": float(interval.p),
        "seeds": len(seeds),
        "n": n,
        "basis": basis,
        "flag": every(used["flag"]),
        "base_flag": every(baseline.loc[same, "flag"]),
        "smoke": bool(used["smoke"].any()) if "smoke" in used else False,
        "random_init": bool(used["encoder"].eq("random-init").any()) if "encoder" in used else False,
    }


def every(flags: pd.Series) -> str:
    """The first flag if all runs carry one: the mean of several is no better than a constant only if none of them is."""
    return str(flags.iloc[0]) if len(flags) and flags.ne("").all() else ""


def compare_predictions(
    predictions: pd.DataFrame, against: str = "baseline", *, draws: int = 10_000, seed: int = 0, family: Iterable[str] = FAMILY
) -> pd.DataFrame:
    """As `compare`, from predictions per test sample: columns `variant, seed, benchmark, probe, id, label, top1` (labels as predicted).

    Adds the hierarchical bootstrap (`boot_lo, boot_hi, boot_p`) beside the crossed t-interval (`lo, hi, p`), the t-interval over seed means
    (`t_lo, t_hi`) and the smallest McNemar p-value over seeds, Holm-adjusted (`mcnemar`).
    """
    lacking = {"variant", "seed", "benchmark", "probe", "id", "label", "top1"} - set(predictions)
    if lacking:
        raise ValueError(f"predictions lack the column {', '.join(sorted(lacking))}")
    if not predictions["variant"].eq(against).any():
        raise ValueError(f"no predictions of the baseline {against!r}; there are {sorted(predictions['variant'].unique())}")
    scored = predictions.assign(correct=predictions["top1"].eq(predictions["label"]))
    rows = []
    for (benchmark, probe), part in scored.groupby(["benchmark", "probe"], sort=False):
        tables = {
            variant: rows.pivot_table(values="correct", index="seed", columns="id") for variant, rows in part.groupby("variant", sort=False)
        }
        base = tables.pop(against, None)
        if base is None:
            continue
        for variant, table in tables.items():
            arm, reference = table.align(base, join="inner")
            if arm.empty:
                continue
            if arm.isna().any(axis=None) or reference.isna().any(axis=None):
                raise ValueError(f"{variant} on {benchmark}: some test samples lack a prediction for some seeds; probe them again")
            rows.append(
                {"variant": variant, "benchmark": benchmark, "probe": probe}
                | _from_predictions(arm.to_numpy(), reference.to_numpy(), draws, seed)
            )
    out = pd.DataFrame(rows)
    out["family"] = np.where(out["variant"].isin(list(family)), "primary", "exploratory")
    primary = out["family"].eq("primary")
    out["p_adj"] = np.where(primary, holm(out["p"].where(primary)), benjamini_hochberg(out["p"].where(~primary)))
    return out


def _from_predictions(a: np.ndarray, b: np.ndarray, draws: int, seed: int) -> dict:
    crossed, boot = paired_interval(a, b), hierarchical_bootstrap(a, b, draws, seed)
    means = 100 * (a.mean(1) - b.mean(1))
    over_seeds = t_interval(means) if len(means) > 1 else Interval(means.mean(), np.nan, np.nan, np.nan)
    return {
        "value": 100 * a.mean(),
        "base": 100 * b.mean(),
        "delta": float(crossed.value),
        "lo": float(crossed.lo),
        "hi": float(crossed.hi),
        "p": float(crossed.p),
        "boot_lo": boot.lo,
        "boot_hi": boot.hi,
        "boot_p": boot.p,
        "t_lo": over_seeds.lo,
        "t_hi": over_seeds.hi,
        "mcnemar": float(holm([mcnemar(x, y) for x, y in zip(a, b, strict=True)]).min()),
        "seeds": len(a),
        "n": a.shape[1],
        "basis": "seeds and samples" if len(a) > 1 else "samples",
    }


# --- factorial model --------------------------------------------------------------------------------------------------


def cells(variants: Iterable[str], factors: Sequence[str] = ("fwm", "ld", "hw"), against: str = "baseline") -> dict[str, tuple[int, ...]]:
    """Factor levels (0/1) of the variants that are combinations of `factors`: `fwm-ld` -> (1, 1, 0); others are left out."""
    levels = {variant: set() if variant == against else set(variant.split("-")) for variant in variants}
    return {variant: tuple(int(f in parts) for f in factors) for variant, parts in levels.items() if parts <= set(factors)}


def factorial(
    df: pd.DataFrame, factors: Sequence[str] = ("fwm", "ld", "hw"), against: str = "baseline", confidence: float = 0.95, method: str = "ols"
) -> pd.DataFrame:
    """Main effects and interactions of a 2^k design on one benchmark: value ~ A * B * C + seed.

    df: tidy rows of one source, regime, benchmark and probe. Effects in points, in Yates' sense: a main effect is the mean change when the
    factor is switched on; an interaction is half the difference between that change with the other factor on and off. Returns rows
    `term, effect, lo, hi, p, basis`; `attrs["missing"]` names the cells without data and `attrs["order"]` the highest interaction fitted:
    a missing cell leaves the top interaction not estimable, so it is dropped and the others rest on the assumption that it is zero.
    With several seeds the seed is a block (`method="ols"`, exact t) or a random intercept (`method="mixed"`, statsmodels MixedLM: the
    same effects
    when every seed ran every cell). With one seed the interval covers the sampling of test examples only.
    """
    if df["benchmark"].nunique() != 1:
        raise ValueError(f"factorial() takes one benchmark at a time, got {sorted(df['benchmark'].unique())}")
    levels = cells(df["variant"].unique(), factors, against)
    rows = df[df["variant"].isin(levels)]
    if rows["edition"].nunique() > 1:
        raise ValueError(f"factorial() takes one edition at a time, got {sorted(rows['edition'].dropna().unique())}")
    every = {tuple(int(f in c) for f in factors): "-".join(c) or against for k in range(len(factors) + 1) for c in combinations(factors, k)}
    missing = [name for level, name in every.items() if level not in levels.values()]
    order = len(factors) if not missing else len(factors) - 1
    terms = [c for k in range(1, order + 1) for c in combinations(range(len(factors)), k)]
    signs = 2 * np.array([levels[v] for v in rows["variant"]], float) - 1
    design = np.stack([np.prod(signs[:, term], axis=1) for term in terms], axis=1) / 2
    names = [" x ".join(factors[f] for f in term) for term in terms]
    y = rows["value"].to_numpy(float)
    seeds = rows["seed"].fillna(-1).to_numpy()
    if len(np.unique(seeds)) < 2:
        fit = _sampling_effects(design, y, rows["n"].to_numpy(float), confidence)
        basis = "samples"
    elif method == "ols":
        fit, basis = _block_effects(design, y, seeds, confidence), "seeds"
    elif method == "mixed":
        fit, basis = _mixed_effects(design, y, seeds, confidence), "seeds"
    else:
        raise ValueError(f'method must be "ols" or "mixed", got {method!r}')
    out = pd.DataFrame({"term": names, "effect": fit.value, "lo": fit.lo, "hi": fit.hi, "p": fit.p, "basis": basis})
    out.attrs |= {"missing": missing, "order": order}
    return out


def _full_rank(design: np.ndarray, names: str) -> np.ndarray:
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise ValueError(f"too few cells of the factorial were run to tell its {names} apart")
    return np.linalg.pinv(design)


def _sampling_effects(design: np.ndarray, y: np.ndarray, n: np.ndarray, confidence: float) -> Interval:
    solve = _full_rank(np.column_stack([np.ones(len(y)), design]), "effects")[1:]
    effect, error = solve @ y, np.sqrt(solve**2 @ (y * (100 - y) / n))
    return _t(effect, error, np.inf, confidence)


def _block_effects(design: np.ndarray, y: np.ndarray, seeds: np.ndarray, confidence: float) -> Interval:
    blocks = (seeds[:, None] == np.unique(seeds)).astype(float)
    whole = np.column_stack([blocks, design])
    solve = _full_rank(whole, "effects")
    coefficients, df = solve @ y, len(y) - whole.shape[1]
    if df < 1:
        raise ValueError("no degree of freedom is left: run more seeds or more cells")
    variance = ((y - whole @ coefficients) ** 2).sum() / df
    k = blocks.shape[1]
    return _t(coefficients[k:], np.sqrt(variance * (solve[k:] ** 2).sum(1)), df, confidence)


def _mixed_effects(design: np.ndarray, y: np.ndarray, seeds: np.ndarray, confidence: float) -> Interval:
    from statsmodels.regression.mixed_linear_model import MixedLM

    fit = MixedLM(y, np.column_stack([np.ones(len(y)), design]), groups=seeds).fit(reml=True)
    return _t(fit.fe_params[1:], np.sqrt(np.diag(fit.cov_params()))[1 : 1 + design.shape[1]], np.inf, confidence)


# --- trade-offs over variants and seeds -------------------------------------------------------------------------------


def correlation(x, y, draws: int = 10_000, seed: int = 0, confidence: float = 0.95) -> Interval:
    """Spearman correlation of two sets of deltas over variants with its bootstrap interval over variants (p: exact or t, scipy).

    Deltas share their baseline's noise, which alone pushes the correlation up; the interval does not remove that.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    known = ~(np.isnan(x) | np.isnan(y))
    x, y = x[known], y[known]
    if len(x) < 4:
        raise ValueError(f"a rank correlation needs at least 4 variants measured on both benchmarks, got {len(x)}")
    rho, p = sps.spearmanr(x, y)
    pick = np.random.default_rng(seed).integers(0, len(x), (draws, len(x)))
    rx, ry = (sps.rankdata(z[pick], axis=1) for z in (x, y))
    rx, ry = rx - rx.mean(1, keepdims=True), ry - ry.mean(1, keepdims=True)
    scale = np.sqrt((rx**2).sum(1) * (ry**2).sum(1))
    rhos = (rx * ry).sum(1)[scale > 0] / scale[scale > 0]
    lo, hi = np.quantile(rhos, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(rho), float(lo), float(hi), float(p))


def pareto(table: pd.DataFrame) -> pd.Series:
    """True for the rows that no other row beats: none is at least as good in every column and better in one. NaN counts as not beaten."""
    values = table.to_numpy(float)
    with np.errstate(invalid="ignore"):
        weak = ~(values[:, None] < values[None]).any(-1)
        strict = (values[:, None] > values[None]).any(-1)
    return pd.Series(~(weak & strict).any(0), index=table.index, name="pareto")


def rank_stability(df: pd.DataFrame) -> pd.DataFrame:
    """Ranks (1 = best) of the variants on one benchmark, a row per variant, a column per seed that ran them all.

    `attrs["kendall_w"]` is Kendall's coefficient of concordance: 1 = every seed ranks alike, about 1/seeds = chance.
    """
    table = df.pivot_table(values="value", index="variant", columns="seed", sort=False)
    complete = table.dropna(axis=1)
    if complete.shape[1] < 2:
        raise ValueError(f"rank stability needs at least two seeds that ran every variant; complete seeds: {list(complete.columns)}")
    ranks = complete.rank(ascending=False)
    k, m = ranks.shape
    spread = ((ranks.sum(axis=1) - m * (k + 1) / 2) ** 2).sum()
    ranks.attrs["kendall_w"] = float(12 * spread / (m**2 * (k**3 - k))) if k > 1 else 1.0
    return ranks
