"""Rank correlations of predictors with a benefit over variants x seeds, in which a variant's seeds are no independent evidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats as sps

from .stats import dealt_out, rank_ends

HELD = "norm ratio"
"The predictor that is held fixed in partial correlations of the others."
PAIR = ("neutral utility", "cosine")
DIFFERENCE = " - ".join(PAIR)
"Of this pair of predictors the difference of their correlations has an interval, too."


def correlations(points: pd.DataFrame, draws: int, seed: int) -> list[dict]:
    """Spearman's correlation of each column with the last one, `delta`, over points with the index (variant, seed).

    Intervals resample variants, then seeds, and are no narrower than `stats.rank_ends` over variants; p permutes whole variants. A row per
    predictor, and one of `DIFFERENCE` where both are there: predictor, rho, lo, hi, p, partial, variants, seeds (the fewest), points.
    Points that lack a predictor do not count for it, nor for the difference.
    """
    known: dict[tuple, list[str]] = {}  # predictors by the points that have them: of one draw each
    for name in points.columns.drop("delta"):
        known.setdefault(tuple(points[name].notna()), []).append(name)
    rows = {}
    for there, names in known.items():
        part = points[list(there)]
        held = [HELD] if HELD in points and HELD not in names and part[HELD].notna().all() else []
        if _enough(part):
            found = _correlations(part[[*names, *held, "delta"]], draws, seed)
            rows |= {row["predictor"]: row for row in found if row["predictor"] not in held}
    if set(PAIR) <= set(rows) and DIFFERENCE not in rows and _enough(both := points.dropna(subset=list(PAIR))):
        rows[DIFFERENCE] = _correlations(both[[*PAIR, "delta"]], draws, seed)[-1]
    order = [*points.columns.drop("delta"), DIFFERENCE]
    return [rows[name] for name in order if name in rows]


def _enough(points: pd.DataFrame) -> bool:
    return points.index.get_level_values("variant").nunique() >= 4


def _correlations(points: pd.DataFrame, draws: int, seed: int) -> list[dict]:
    """`correlations` of points that lack nothing."""
    rng, names = np.random.default_rng(seed), [c for c in points if c != "delta"]
    blocks = [part.to_numpy() for _, part in points.groupby(level="variant", sort=False)]
    resampled = []
    for _ in range(draws):
        chosen = [blocks[i] for i in rng.integers(0, len(blocks), len(blocks))]
        resampled.append(_ranked(np.concatenate([b[rng.integers(0, len(b), len(b))] for b in chosen])))
    boot, dealt = np.array(resampled), _dealt(blocks, rng)  # [draws columns], [orders columns]
    whole, p = dealt[0], (np.abs(dealt) >= np.abs(dealt[0]) - 1e-9).mean(0)  # the first order is as it was measured
    about = {"variants": len(blocks), "seeds": min(map(len, blocks)), "points": len(points)}
    rows = []
    for i, name in enumerate(names):
        held = _partial(points, name) if HELD in names and name != HELD else np.nan
        ends = _wide_enough(whole[i], boot[:, i], len(blocks))
        rows.append({"predictor": name, "rho": whole[i]} | ends | {"p": p[i], "partial": held} | about)
    if set(PAIR) <= set(names):
        a, b = map(names.index, PAIR)
        rows.append({"predictor": DIFFERENCE, "rho": whole[a] - whole[b]} | _ends(boot[:, a] - boot[:, b]) | about)
    return rows


def _wide_enough(rho: float, boot: np.ndarray, variants: int) -> dict[str, float]:
    """Ends of the bootstrap, and no narrower than as many single variants have: a perfect order stays perfect however it is resampled."""
    drawn, (lo, hi) = _ends(boot), rank_ends(rho, variants)
    return {"lo": min(drawn["lo"], lo), "hi": max(drawn["hi"], hi)}


def _dealt(blocks: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Spearman correlations [orders columns - 1] of the columns of all variants' points [s columns] with the last one, the benefit, as it
    was measured and dealt to other variants (`dealt_out`); one with more seeds than the other goes through that one's again."""
    starts = np.cumsum([0, *map(len, blocks)])
    ranks, orders = _unit_ranks(np.concatenate(blocks)), dealt_out(len(blocks), rng)
    turns = [[first + np.arange(len(own)) % len(other) for first, other in zip(starts, blocks, strict=False)] for own in blocks]
    dealt = np.concatenate([ranks[np.array(rows)[order], -1] for rows, order in zip(turns, orders.T, strict=True)], axis=1)
    dealt -= dealt.mean(1, keepdims=True)
    return dealt / np.maximum(np.linalg.norm(dealt, axis=1, keepdims=True), 1e-12) @ ranks[:, :-1]


def _ranked(points: np.ndarray) -> np.ndarray:
    """Spearman correlation of each column with the last one, 0 where a column is constant: [columns - 1]."""
    ranks = _unit_ranks(points)
    return ranks[:, -1] @ ranks[:, :-1]


def _unit_ranks(points: np.ndarray) -> np.ndarray:
    """Ranks within each column, centred and of length 1; 0 where it is constant."""
    ranks = sps.rankdata(points, axis=0)
    ranks -= ranks.mean(0)
    return ranks / np.maximum(np.sqrt((ranks**2).sum(0)), 1e-12)


def _partial(points: pd.DataFrame, name: str) -> float:
    """Spearman correlation of a predictor with the benefit, the held one's ranks regressed out of both."""
    r = points[[name, HELD, "delta"]].rank().corr().to_numpy()
    xz, xy, zy = r[0, 1], r[0, 2], r[1, 2]
    rest = (1 - xz**2) * (1 - zy**2)
    return float((xy - xz * zy) / np.sqrt(rest)) if rest > 0 else float("nan")


def _ends(values: np.ndarray) -> dict:
    lo, hi = np.quantile(values, [0.025, 0.975])
    return {"lo": float(lo), "hi": float(hi)}
