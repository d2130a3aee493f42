"""What a planned study can resolve, and what it costs. Units: percentage points; runs in GPU hours."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats as sps

from .stats import FAMILY


def detectable(seeds: int, family: int = 1, alpha: float = 0.05, power: float | None = None) -> float:
    """Smallest paired difference that `seeds` resolve, in standard deviations of the paired differences, at level alpha / family.

    `power=None`: the half-width of the interval (a true difference of this size is found in about half of the studies).
    `power=0.8`: found in 80 % of the studies (noncentral t).
    """
    if seeds < 2:
        raise ValueError("one seed cannot tell an objective's effect from a seed's; plan at least two")
    critical = sps.t.ppf(1 - alpha / family / 2, seeds - 1)
    if power is None:
        return float(critical / math.sqrt(seeds))
    from scipy.optimize import brentq

    found = lambda d: sps.nct.sf(critical, seeds - 1, d * math.sqrt(seeds)) - power
    upper = critical / math.sqrt(seeds)
    while found(upper) < 0:
        upper *= 1.5
    return float(brentq(found, 0, upper, xtol=1e-6))


def sampling_floor(value, n, confidence: float = 0.95):
    """Difference in points between two single runs that the sampling of `n` test examples alone produces (unpaired), at accuracy `value`
    %."""
    value = np.asarray(value, float)
    return sps.norm.ppf(0.5 + confidence / 2) * np.sqrt(2 * value * (100 - value) / np.asarray(n, float))


@dataclass(frozen=True)
class Plan:
    """What a study of `variants` (without the baseline) over `seeds` resolves, and what it costs. Prints as a paragraph and a table."""

    variants: tuple[str, ...]
    seeds: int
    runs: int
    gpu_hours: float
    table: pd.DataFrame

    def __str__(self) -> str:
        head = f"{self.runs} runs: {len(self.variants)} variants and the baseline, {self.seeds} seeds each"
        cost = "" if math.isnan(self.gpu_hours) else f", about {self.gpu_hours:,.0f} GPU-h"
        return f"{head}{cost}.\n{self.table.to_string(index=False, float_format='{:.2f}'.format)}"

    def _repr_html_(self) -> str:
        return f"<p>{str(self).splitlines()[0]}</p>" + self.table.to_html(index=False, float_format="{:.2f}".format)


def plan(
    variants: Iterable[str],
    seeds: int,
    *,
    benchmarks: int = 3,
    sd: float = 2.0,
    hours_per_run: float = math.nan,
    alpha: float = 0.05,
    power: float = 0.8,
    against: str = "baseline",
    family: Iterable[str] = FAMILY,
) -> Plan:
    """Resolution and cost of a planned study.

    sd: standard deviation over seeds of the paired differences, in points (take it from a pilot: `compare` prints intervals; 2 is a guess).
    hours_per_run: GPU-hours of one pretraining with its probes. Two comparisons are listed where they apply: a primary variant in its
    Holm family
    (its strictest step) and a single comparison; `resolves_pp` is the interval's half-width, `found_pp` what is found with probability
    `power`.
    """
    names = tuple(dict.fromkeys(variant for variant in variants if variant != against))
    if not names:
        raise ValueError(f"name at least one variant besides {against!r}")
    primary = [name for name in names if name in set(family)]
    kinds = {
        "one comparison": 1,
        f"{len(primary)} primary x {benchmarks} benchmarks, Holm": len(primary) * benchmarks,
        "every comparison": len(names) * benchmarks,
    }
    rows = [
        {
            "comparison": kind,
            "tests": m,
            "resolves_pp": sd * detectable(seeds, m, alpha),
            "found_pp": sd * detectable(seeds, m, alpha, power),
        }
        for kind, m in kinds.items()
        if m
    ]
    runs = (len(names) + 1) * seeds
    return Plan(names, seeds, runs, runs * hours_per_run, pd.DataFrame(rows).drop_duplicates("tests"))
