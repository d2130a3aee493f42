"""The factorial model FWM x LD x HW: main effects and interactions with intervals over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from .intervals import Interval, floored, from_error, rounding, t_interval
from .results import ACCURACIES

POOLED = "seeds, one variance for all cells"
AT_ONE_WEIGHT = {"hw": "hw-1.0"}
"Rows whose weight is not the one that the combinations use, and the control that has it."


def cells(variants: Iterable[str], factors: Sequence[str] = ("fwm", "ld", "hw"), against: str = "baseline") -> dict[str, tuple[int, ...]]:
    """Factor levels (0/1) of the variants that are combinations of `factors`: `fwm-ld` -> (1, 1, 0); others are left out.

    Where the control `hw-1.0` is among them it is the cell HW, and `hw` is left out: its weight is 0.3, in the combinations 1.0."""
    levels = {variant: set() if variant == against else set(variant.split("-")) for variant in variants}
    for row, control in AT_ONE_WEIGHT.items():
        if control in levels and row in factors:
            levels = {variant: {row} if variant == control else parts for variant, parts in levels.items() if variant != row}
    return {variant: tuple(int(f in parts) for f in factors) for variant, parts in levels.items() if parts <= set(factors)}


def covered(df: pd.DataFrame) -> pd.DataFrame:
    """The rows without a control that would take a row's cell with fewer benchmarks or seeds than the row itself has."""
    for names in AT_ONE_WEIGHT.items():
        row, control = (set(df.loc[df["variant"].eq(name), ["benchmark", "seed"]].fillna(-1).itertuples(index=False)) for name in names)
        df = df if row <= control else df[df["variant"].ne(names[1])]
    return df


def factorial(
    df: pd.DataFrame,
    factors: Sequence[str] = ("fwm", "ld", "hw"),
    against: str = "baseline",
    confidence: float = 0.95,
    method: str = "seeds",
) -> pd.DataFrame:
    """Main effects and interactions of a 2^k design on one benchmark: value ~ A * B * C + seed.

    df: tidy rows of one source, regime, benchmark and probe. Effects in points, in Yates' sense: a main effect is the mean change when the
    factor is switched on; an interaction is half the difference between that change with the other factor on and off. Returns rows
    `term, effect, lo, hi, p, basis`; `attrs["cells"]` names the variants taken as cells (see `cells`; what they are not alike in:
    `verdicts.treatments`), `attrs["missing"]` the cells without data and `attrs["order"]` the highest interaction fitted:
    a missing cell leaves the top interaction not estimable, so it is dropped and the others rest on the assumption that it is zero.
    method, with several seeds: "seeds" measures every effect in each seed that ran every cell and takes Student's t over these seeds, which
    holds whatever the spread of a cell is (cells that collapse in some runs vary ten times as much as others); where fewer than two seeds
    did, it is "ols". That takes all rows, with the seed as a block and one variance for all cells, and "mixed" with the seed as a random
    intercept (statsmodels MixedLM, normal): with unequal spreads both are too sure. `attrs["seeds"]`: how many seeds the interval rests on.
    With one seed it covers the sampling of test examples only.
    """
    if df["benchmark"].nunique() != 1:
        raise ValueError(f"factorial() takes one benchmark at a time, got {sorted(df['benchmark'].unique())}")
    df = covered(df)
    levels = cells(df["variant"].unique(), factors, against)
    rows = df[df["variant"].isin(levels)]
    if rows["edition"].nunique() > 1:
        raise ValueError(f"factorial() takes one edition at a time, got {sorted(rows['edition'].dropna().unique())}")
    every = {tuple(int(f in c) for f in factors): "-".join(c) or against for k in range(len(factors) + 1) for c in combinations(factors, k)}
    missing = [name for level, name in every.items() if level not in levels.values()]
    order = len(factors) if not missing else len(factors) - 1
    terms = [c for k in range(1, order + 1) for c in combinations(range(len(factors)), k)]
    rows = rows.groupby(["variant", "seed"], dropna=False, as_index=False, sort=False)[["value", "n"]].mean()  # probe seeds are no seeds
    signs = 2 * np.array([levels[v] for v in rows["variant"]], float) - 1
    design = np.stack([np.prod(signs[:, term], axis=1) for term in terms], axis=1) / 2
    names = [" x ".join(factors[f] for f in term) for term in terms]
    y = rows["value"].to_numpy(float)
    seeds = rows["seed"].fillna(-1).to_numpy()
    least = float(rounding(1, rows["n"].min()) if df["metric"].isin(ACCURACIES).all() else np.nan)  # of one value
    ran, times = np.unique(seeds, return_counts=True)
    whole = ran[times == len(levels)]
    if method not in ("seeds", "ols", "mixed"):
        raise ValueError(f'method must be "seeds", "ols" or "mixed", got {method!r}')
    if len(ran) < 2:
        fit, basis = _sampling_effects(design, y, rows["n"].to_numpy(float), confidence, least), "samples"
    elif method == "seeds" and len(whole) > 1:
        fit, basis, ran = _effects_by_seed(design, y, seeds, whole, confidence, least), "seeds", whole
    elif method == "mixed":
        fit, basis = _mixed_effects(design, y, seeds, confidence, least), POOLED
    else:
        fit, basis = _block_effects(design, y, seeds, confidence, least), POOLED
    out = pd.DataFrame({"term": names, "effect": fit.value, "lo": fit.lo, "hi": fit.hi, "p": fit.p, "basis": basis})
    out.attrs |= {"cells": list(levels), "missing": missing, "order": order, "seeds": len(ran)}
    return out


def _full_rank(design: np.ndarray, names: str) -> np.ndarray:
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise ValueError(f"too few cells of the factorial were run to tell its {names} apart")
    return np.linalg.pinv(design)


def _sampling_effects(design: np.ndarray, y: np.ndarray, n: np.ndarray, confidence: float, least: float) -> Interval:
    solve = _full_rank(np.column_stack([np.ones(len(y)), design]), "effects")[1:]
    effect, error = solve @ y, np.sqrt(solve**2 @ (y * (100 - y) / n))
    return from_error(effect, floored(error, least * np.sqrt((solve**2).sum(1))), np.inf, confidence)


def _effects_by_seed(design: np.ndarray, y: np.ndarray, seeds: np.ndarray, whole: np.ndarray, confidence: float, least: float) -> Interval:
    """Student's t over the effects that each of the seeds `whole` shows by itself, which must have run every cell."""
    found, unit = [], np.zeros(design.shape[1])
    for seed in whole:
        own = seeds == seed
        solve = _full_rank(np.column_stack([np.ones(own.sum()), design[own]]), "effects")[1:]
        found.append(solve @ y[own])
        unit += (solve**2).sum(1) / len(whole) ** 2
    return t_interval(np.stack(found), confidence, axis=0, least=least * np.sqrt(unit))


def _block_effects(design: np.ndarray, y: np.ndarray, seeds: np.ndarray, confidence: float, least: float = 0.0) -> Interval:
    blocks = (seeds[:, None] == np.unique(seeds)).astype(float)
    whole = np.column_stack([blocks, design])
    solve = _full_rank(whole, "effects")
    coefficients, df = solve @ y, len(y) - whole.shape[1]
    if df < 1:
        raise ValueError("no degree of freedom is left: run more seeds or more cells")
    variance = ((y - whole @ coefficients) ** 2).sum() / df
    k = blocks.shape[1]
    unit = (solve[k:] ** 2).sum(1)
    return from_error(coefficients[k:], floored(np.sqrt(variance * unit), least * np.sqrt(unit)), df, confidence)


def _mixed_effects(design: np.ndarray, y: np.ndarray, seeds: np.ndarray, confidence: float, least: float) -> Interval:
    from statsmodels.regression.mixed_linear_model import MixedLM

    whole = np.column_stack([np.ones(len(y)), design])
    fit = MixedLM(y, whole, groups=seeds).fit(reml=True)
    error = np.sqrt(np.diag(fit.cov_params()))[1 : 1 + design.shape[1]]
    unit = (np.linalg.pinv(whole)[1:] ** 2).sum(1)
    return from_error(fit.fe_params[1:], floored(error, least * np.sqrt(unit)), np.inf, confidence)
