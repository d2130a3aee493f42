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

    `power=None`: the half-width of the interval. A true difference of this size is found in about half of the studies (`power_at`).
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


def power_at(difference: float, seeds: int, family: int = 1, alpha: float = 0.05) -> float:
    """Share of studies that find a true `difference`, in standard deviations of the paired differences, at level alpha / family."""
    if seeds < 2:
        raise ValueError("one seed cannot tell an objective's effect from a seed's; plan at least two")
    critical, shift = sps.t.ppf(1 - alpha / family / 2, seeds - 1), abs(difference) * math.sqrt(seeds)
    wrong_way = np.nan_to_num(sps.nct.cdf(-critical, seeds - 1, shift))  # scipy gives nan where it is as good as zero
    return float(sps.nct.sf(critical, seeds - 1, shift) + wrong_way)


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
    sd: float = 2.0
    power: float = 0.8

    def __str__(self) -> str:
        head = f"{self.runs} runs: {len(self.variants)} variants and the baseline, {self.seeds} seeds each"
        cost = "" if math.isnan(self.gpu_hours) else f", about {self.gpu_hours:,.0f} GPU-h"
        return f"{head}{cost}.\n{self._says}\n{self.table.to_string(index=False, float_format='{:.2f}'.format)}"

    @property
    def _says(self) -> str:
        """The two meanings of "resolves" in one sentence, for the strictest family."""
        last = self.table.iloc[-1]
        return (
            f"In the largest family ({last['tests']:.0f} tests) a difference is significant when seen beyond {last['resolves_pp']:.1f} pp; "
            f"a true one of that size is found in {100 * last['found_at_resolves']:.0f} % of such studies only, one of "
            f"{last['found_pp']:.1f} pp in {100 * self.power:.0f} %. Both assume a standard deviation of {self.sd:.3g} pp over seeds."
        )

    def _repr_html_(self) -> str:
        return "".join(f"<p>{line}</p>" for line in str(self).splitlines()[:2]) + self.table.to_html(
            index=False, float_format="{:.2f}".format
        )


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
    (its strictest step) and a single comparison; `resolves_pp` is the interval's half-width, what an observed difference must exceed;
    `found_at_resolves` is how many studies find a true difference of that size (about half); `found_pp` is what is found with probability
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
            "found_at_resolves": power_at(detectable(seeds, m, alpha), seeds, m, alpha),
            "found_pp": sd * detectable(seeds, m, alpha, power),
        }
        for kind, m in kinds.items()
        if m
    ]
    runs = (len(names) + 1) * seeds
    return Plan(names, seeds, runs, runs * hours_per_run, pd.DataFrame(rows).drop_duplicates("tests"), sd, power)
