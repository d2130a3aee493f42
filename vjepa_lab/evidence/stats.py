"""What a difference between two objectives is worth: comparisons paired by seed, factorial effects, trade-offs over variants.

Units: accuracies and differences in percentage points. Axes: s seeds, i test samples.
A run's seed fixes its initialisation, data order and masks, so runs are compared seed by seed. The intervals and tests themselves, and
which of them decides, are in `intervals`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import permutations
from math import factorial as orders_of

import numpy as np
import pandas as pd
from scipy import stats as sps

from .factorials import cells, covered, factorial
from .intervals import (
    Interval,
    benjamini_hochberg,
    cluster_interval,
    hierarchical_bootstrap,
    holm,
    less_sure,
    mcnemar,
    newcombe,
    paired_interval,
    rounding,
    t_interval,
    tost,
    unpaired_interval,
    wilson,
)
from .results import ACCURACIES, GROUP, delta, flag_constant

__all__ = [
    "FAMILY", "Interval", "benjamini_hochberg", "cells", "cluster_interval", "compare", "compare_predictions", "correlation", "covered",
    "factorial", "hierarchical_bootstrap", "holm", "mcnemar", "newcombe", "paired_interval", "pareto", "rank_stability", "rounding",
    "t_interval", "tost", "unpaired_interval", "wilson",
]  # fmt: skip

FAMILY = ("ld", "fwm", "fwm-ld", "fwm-hw-ld", "hw")
"Pre-registered variants: each against the baseline on each benchmark, Holm-adjusted together; all others are exploratory."
UNTRAINED = "random-init"
"The variant whose differences are corrected by themselves: sure rejections among the tests of objectives would loosen the rest."


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
    `n`; `basis` (`seeds`: t-interval over seed pairs; `seeds, unpaired`: Welch's, where the arms share no seed but have
    several; `samples`: one run, sampling of test examples only, and seeds that tie on an unknown number of them: NaN). No interval is
    narrower than the grid of its accuracies allows (`rounding`); `family` (`primary` is
    Holm-adjusted over all its variants and benchmarks, `untrained` by itself, `exploratory` Benjamini-Hochberg); `p_adj`, `significant`;
    `flag`, `base_flag` (no better than a constant predictor), `smoke`, `random_init`.
    """
    deltas = delta(df, against, baseline_seed)
    constant = df[df["source"].eq("constant")]
    deltas["flag"] = flag_constant(pd.concat([deltas, constant]))[: len(deltas)]
    keys = ["source", "edition", "regime", "variant", "benchmark", "probe", "metric"]
    baseline = df[df["variant"].eq(against)].reset_index(drop=True)
    baseline["flag"] = flag_constant(pd.concat([baseline, constant], ignore_index=True))[: len(baseline)]
    arms = _arrays(baseline, GROUP)
    rows = []
    for part in _arrays(deltas, keys).values():
        about = {name: part[name][0] for name in keys}
        rows.append(about | _compare_one(part, arms.get(_key(part, GROUP), {})))
    table = pd.DataFrame(rows)
    if table.empty:
        raise ValueError(f"nothing to compare with {against!r}: no other variant was measured on a benchmark of the baseline")
    table["family"], table["p_adj"] = _families(table["variant"], family), np.nan
    for (_, _, _, kind), part in table.groupby(["source", "edition", "regime", "family"], dropna=False):
        table.loc[part.index, "p_adj"] = ADJUSTED[kind](part["p"])
    table["significant"] = table["p_adj"] < np.where(table["family"].eq("exploratory"), fdr, alpha)
    return table


ADJUSTED = {"primary": holm, "untrained": holm, "exploratory": benjamini_hochberg, "collapsed": benjamini_hochberg}


def _families(variants: pd.Series, primary: Iterable[str]) -> np.ndarray:
    return np.select([variants.isin(list(primary)), variants.eq(UNTRAINED)], ["primary", "untrained"], "exploratory")


def adjusted_apart(table: pd.DataFrame, adjust: Callable = benjamini_hochberg) -> np.ndarray:
    """p of a table of differences adjusted, those of `UNTRAINED` by themselves."""
    out, p = np.full(len(table), np.nan), table["p"].to_numpy(float)
    for own in (untrained := table["variant"].eq(UNTRAINED).to_numpy(), ~untrained):
        out[own] = adjust(p[own])
    return out


def _arrays(df: pd.DataFrame, keys: Sequence[str]) -> dict[tuple, dict[str, np.ndarray]]:
    """The columns of each group of rows, in the table's order: a DataFrame for each would take most of the time of a comparison."""
    columns = {name: df[name].to_numpy() for name in df}
    names = df[list(keys)].astype(object).fillna("").astype(str)  # missing names compare equal, as in `_key`
    place = names.groupby(list(keys), sort=False).ngroup().to_numpy()
    order = np.argsort(place, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(place[order])) + 1) if len(order) else []
    groups = ({name: values[part] for name, values in columns.items()} for part in parts)
    return {_key(group, keys): group for group in groups}


def _key(part: dict[str, np.ndarray], keys: Sequence[str]) -> tuple[str, ...]:
    """Missing names as empty strings, so that they compare equal."""
    return tuple("" if pd.isna(part[name][0]) else str(part[name][0]) for name in keys)


def _compare_one(part: dict[str, np.ndarray], baseline: dict[str, np.ndarray]) -> dict:
    """Interval of one variant on one benchmark, from its rows with their `delta`, `base`, `base_n`; baseline: all of its rows there."""
    paired = part["paired"].astype(bool)
    used = {name: values[paired] for name, values in part.items()} if paired.any() else part
    of_seeds = _by_seed(used["seed"], used["value"], used["base"], used["delta"])
    value, base = of_seeds[:2].mean(1)
    count, n, base_n = of_seeds.shape[1], _mean(used["n"]), _mean(used["base_n"])
    grid = (n, base_n) if part["metric"][0] in ACCURACIES else (np.nan, np.nan)
    others = np.empty((1, 0))
    if not paired.any() and baseline:
        same = _same(baseline["edition"], part["edition"][0]) & ~pd.isna(baseline["seed"])
        others = _by_seed(baseline["seed"][same], baseline["value"][same])
    if paired.any() and count > 1:
        interval, basis = t_interval(of_seeds[2], least=rounding(count, *grid)), "seeds"
    elif min(count, others.shape[1]) > 1 and np.isclose(others.mean(), of_seeds[1, 0]):  # not where one baseline run was asked for
        least = rounding(count, grid[0]), rounding(others.shape[1], grid[1])
        interval, basis = unpaired_interval(of_seeds[0], others[0], least=least), "seeds, unpaired"
        count = min(count, others.shape[1])
    else:
        interval, basis = newcombe(value, n, base, base_n), "samples"
    basis = "samples" if np.isnan(interval.lo) else basis
    return {
        "printed": used["printed"][0] if "printed" in used else np.nan,
        "value": value,
        "base": base,
        "delta": float(interval.value),
        "lo": float(interval.lo),
        "hi": float(interval.hi),
        "p": float(interval.p),
        "seeds": count,
        "n": n,
        "basis": basis,
        "flag": every(used["flag"]),
        "base_flag": every(baseline.get("flag", ())),
        "smoke": bool(used["smoke"].any()) if "smoke" in used else False,
        "random_init": bool((used["encoder"] == "random-init").any()) if "encoder" in used else False,
    }


def _by_seed(seed: np.ndarray, *measured: np.ndarray) -> np.ndarray:
    """Means over the rows of each seed, in the order of seeds, no seed being one of its own: [measured seeds]."""
    place = np.unique(np.nan_to_num(seed.astype(float), nan=np.inf), return_inverse=True)[1]
    count = np.bincount(place)
    return np.stack([np.bincount(place, values.astype(float)) / count for values in measured])


def _mean(values: np.ndarray) -> float:
    """The mean of what is known; NaN if nothing is."""
    known = values[~pd.isna(values)].astype(float)
    return float(known.mean()) if len(known) else np.nan


def _same(values: np.ndarray, wanted: object) -> np.ndarray:
    """Where values are the wanted one; a missing name is the same as another."""
    return pd.isna(values) if pd.isna(wanted) else values == wanted


def every(flags: Sequence[str]) -> str:
    """The first flag if all runs carry one: the mean of several is no better than a constant only if none of them is."""
    return str(next(iter(flags))) if len(flags) and all(flag != "" for flag in flags) else ""


def compare_predictions(
    predictions: pd.DataFrame, against: str = "baseline", *, draws: int = 10_000, seed: int = 0, family: Iterable[str] = FAMILY
) -> pd.DataFrame:
    """As `compare`, from predictions per test sample: columns `variant, seed, benchmark, probe, id, label, top1` (labels as predicted).

    Adds the hierarchical bootstrap (`boot_lo, boot_hi, boot_p`) beside the crossed t-interval (`lo, hi, p`), the t-interval over seed means
    (`t_lo, t_hi`) and the smallest McNemar p-value over seeds, Holm-adjusted (`mcnemar`). Where the predictions say their regime and
    edition, arms are compared within these; where they say which `recording` a sample was cut from, samples of one recording are no
    independent ones, and the interval is no narrower than the one over recordings.
    Raises ValueError for predictions that do not line up: a sample predicted twice by one seed (two encoders or runs), or not by every
    seed, or with two labels (two test sets).
    """
    lacking = {"variant", "seed", "benchmark", "probe", "id", "label", "top1"} - set(predictions)
    if lacking:
        raise ValueError(f"predictions lack the column {', '.join(sorted(lacking))}")
    if not predictions["variant"].eq(against).any():
        raise ValueError(f"no predictions of the baseline {against!r}; there are {sorted(predictions['variant'].unique())}")
    scored = predictions.assign(correct=predictions["top1"].eq(predictions["label"]))
    where = [column for column in ("regime", "edition") if column in predictions]
    rows = []
    for key, part in scored.groupby([*where, "benchmark", "probe"], sort=False, dropna=False):
        about = dict(zip([*where, "benchmark", "probe"], key, strict=True))
        _line_up(part, about["benchmark"])
        tables = {variant: own.pivot(values="correct", index="seed", columns="id") for variant, own in part.groupby("variant", sort=False)}
        base = tables.pop(against, None)
        if base is None:
            continue
        for variant, table in tables.items():
            arm, reference = table.align(base, join="inner")
            if arm.empty:
                continue
            if arm.isna().any(axis=None) or reference.isna().any(axis=None):
                raise ValueError(f"{variant} on {about['benchmark']}: some test samples lack a prediction for some seeds; probe them again")
            arms = (each.to_numpy().astype(bool) for each in (arm, reference))
            rows.append({"variant": variant} | about | _from_predictions(*arms, draws, seed, _recordings(part, arm.columns)))
    if not rows:
        raise ValueError(f"no predictions to compare with {against!r}: no other variant shares seeds and test samples with it")
    out = pd.DataFrame(rows)
    out["family"], out["p_adj"] = _families(out["variant"], family), np.nan
    for key, part in out.groupby([*where, "family"], dropna=False):
        out.loc[part.index, "p_adj"] = ADJUSTED[key[-1]](part["p"])
    return out


def _line_up(part: pd.DataFrame, benchmark: str) -> None:
    """Refuse predictions of one benchmark that are not one per variant, seed and sample, of one test set."""
    labels = part.drop_duplicates(["id", "label"])
    if (twice := labels["id"].duplicated()).any():
        sample = labels.loc[twice, "id"].iloc[0]
        raise ValueError(
            f"{benchmark}: test sample {sample} has the labels {sorted(labels.loc[labels['id'].eq(sample), 'label'])}; these predictions "
            "are of different test sets (another limit or listing), probe all runs on one"
        )
    if (again := part.duplicated(["variant", "seed", "id"], keep=False)).any():
        first = part[again].iloc[0]
        same = part[again & part["variant"].eq(first["variant"]) & part["seed"].eq(first["seed"])]
        differ = [f"{name} {', '.join(sorted(map(str, same[name].unique())))}" for name in ("encoder", "run") if name in same]
        raise ValueError(
            f"{first['variant']} on {benchmark}, seed {first['seed']}: several predictions of one test sample"
            + f" ({'; '.join(differ)})" * bool(differ)
            + "; keep those of one encoder and run"
        )


def _recordings(part: pd.DataFrame, samples: pd.Index) -> np.ndarray | None:
    """The recording that each test sample was cut from, where the predictions know it and some have several samples."""
    if "recording" not in part:
        return None
    known = part.dropna(subset=["recording"]).drop_duplicates("id").set_index("id")["recording"].reindex(samples)
    return None if known.isna().any() or known.is_unique or known.nunique() < 2 else known.to_numpy()


def _from_predictions(a: np.ndarray, b: np.ndarray, draws: int, seed: int, recordings: np.ndarray | None) -> dict:
    least = rounding(len(a), a.shape[1], a.shape[1])
    crossed, boot = paired_interval(a, b, least=least), hierarchical_bootstrap(a, b, draws, seed)
    if recordings is not None:
        crossed = less_sure(crossed, cluster_interval(a.mean(0) - b.mean(0), recordings))
    clips = "samples" if recordings is None else "recordings"
    means = 100 * (a.mean(1) - b.mean(1))
    over_seeds = t_interval(means, least=least) if len(means) > 1 else Interval(means.mean(), np.nan, np.nan, np.nan)
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
        "basis": f"seeds and {clips}" if len(a) > 1 else clips,
    }


# --- trade-offs over variants and seeds -------------------------------------------------------------------------------


ORDERS = orders_of(8)
"Of a permutation test, at most: drawn at random, so many move a p-value of 0.003 by a tenth of itself."


def correlation(x, y, orders: int = ORDERS, seed: int = 0, confidence: float = 0.95) -> Interval:
    """Spearman correlation of two sets of deltas over variants with its interval over variants (Fisher's z with the variance of Bonett &
    Wright 2000) and its permutation p: exact up to eight variants, of `orders` random orders beyond.

    A perfect order, of which z is infinite, has the interval of one with two neighbours exchanged. A bootstrap would give few variants in
    perfect order an interval without width. A baseline that all share shifts all deltas alike, which leaves their ranks as they are.
    Raises ValueError for fewer than 4 variants.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    known = ~(np.isnan(x) | np.isnan(y))
    x, y = (sps.rankdata(each[known].round(9)) for each in (x, y))  # means of the same accuracies in another order tie
    count = len(x)
    if count < 4:
        raise ValueError(f"a rank correlation needs at least 4 variants measured on both benchmarks, got {count}")
    x, y = (each - each.mean() for each in (x, y))
    if not (x.any() and y.any()):
        return Interval(np.nan, -1.0, 1.0, 1.0)
    x, y = (each / np.linalg.norm(each) for each in (x, y))
    rho = float(x @ y)
    dealt = np.abs(y[dealt_out(count, np.random.default_rng(seed), orders)] @ x)
    return Interval(rho, *rank_ends(rho, count, confidence), float((dealt >= abs(rho) - 1e-9).mean()))


def rank_ends(rho: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Ends of the interval of a rank correlation over `count` >= 4 independent pairs: see `correlation`."""
    most = 1 - 12 / (count * (count**2 - 1))
    near = np.clip(rho, -most, most)
    half = sps.norm.ppf(0.5 + confidence / 2) * np.sqrt((1 + near**2 / 2) / (count - 3))
    return float(min(np.tanh(np.arctanh(near) - half), rho)), float(max(np.tanh(np.arctanh(near) + half), rho))


def dealt_out(count: int, rng: np.random.Generator, most: int = ORDERS) -> np.ndarray:
    """For permutation tests: all orders of `count` things, or `most` of them at random, the first as they are: [orders count]."""
    if orders_of(count) <= most:
        return np.array(list(permutations(range(count))))
    return np.concatenate([np.arange(count)[None], rng.permuted(np.tile(np.arange(count), (most - 1, 1)), axis=1)])


def pareto(table: pd.DataFrame) -> pd.Series:
    """True for the rows that no other row beats: none is at least as good in every column and better in one. A row with a NaN cannot be
    compared: it beats none and is not beaten."""
    values = table.to_numpy(float)
    weak = (values[:, None] >= values[None]).all(-1)
    strict = (values[:, None] > values[None]).any(-1)
    return pd.Series(~(weak & strict).any(0), index=table.index, name="pareto")


def rank_stability(df: pd.DataFrame) -> pd.DataFrame:
    """Ranks (1 = best) of the variants on one benchmark, a row per variant, a column per seed that ran them all.

    `attrs["kendall_w"]` is Kendall's coefficient of concordance, corrected for ties: 1 = every seed ranks alike, about 1/seeds = chance.
    NaN where no seed tells any two apart.
    """
    table = df.pivot_table(values="value", index="variant", columns="seed", sort=False)
    complete = table.dropna(axis=1)
    if complete.shape[1] < 2:
        raise ValueError(f"rank stability needs at least two seeds that ran every variant; complete seeds: {list(complete.columns)}")
    ranks = complete.rank(ascending=False)
    k, m = ranks.shape
    spread = ((ranks.sum(axis=1) - m * (k + 1) / 2) ** 2).sum()
    ties = sum((counts**3 - counts).sum() for counts in (ranks[seed].value_counts() for seed in ranks))
    most = m**2 * (k**3 - k) - m * ties
    ranks.attrs["kendall_w"] = float(12 * spread / most) if most else np.nan
    return ranks
