"""Sentences computed from tables: what the numbers show, what they cannot decide, and on what basis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from . import results, stats
from .factorials import POOLED

ALPHA = 0.05
ONE_SEED = "One run per cell: the intervals cover the sampling of test clips alone, so whether another seed would show the same is open."


def _signed(value: float, digits: int = 1) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _listed(words: Sequence[str]) -> str:
    words = list(words)
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]])) if words else "none"


def treatments(cells: Iterable[str]) -> list[str]:
    """Where the cells of the factorial FWM x LD x HW differ in more than their factors: sentences, from the variants taken as cells
    (`stats.cells`; `vjepa_lab.variants` has their objectives)."""
    cells = set(cells)
    hard, dynamics = (sorted(name for name in cells if part in name.split("-")) for part in ("hw", "ld"))
    says = []
    if "hw-1.0" in cells:
        says.append("HW alone is the control hw-1.0, which has the other cells’ weight.")
    elif "hw" in cells and len(hard) > 1:
        says.append("HW alone has weight 0.3, in the other cells 1.0: not the same treatment.")
    if len(dynamics) > 1:
        beside = {
            "without FWM its head reads all channels, beside FWM the dynamic half": {"fwm" in name.split("-") for name in dynamics},
            "beside HW its own error is hard-weighted": {"hw" in name.split("-") for name in dynamics},
        }
        if changed := [what for what, found in beside.items() if len(found) > 1]:
            says.append(f"LD is not one treatment: {'; '.join(changed)}.")
    return says


def fits(df: pd.DataFrame, factors: Sequence[str] = ("fwm", "ld", "hw"), against: str = "baseline") -> dict[str, pd.DataFrame]:
    """`stats.factorial` for every benchmark of tidy rows of one source, regime and edition, with p adjusted (Holm) over all of them."""
    rows = results.select(df)
    found = {name: stats.factorial(part, factors, against) for name, part in rows.groupby("benchmark", sort=False)}
    p = stats.holm(pd.concat([fit["p"] for fit in found.values()]))
    at = 0
    for fit in found.values():
        fit["p_adj"], at = p[at : at + len(fit)], at + len(fit)
    return found


def factorial(fitted: Mapping[str, pd.DataFrame]) -> str:
    """What a factorial says: do the components add up, which interactions stand, what is open and what was not crossed cleanly.
    `fitted`: as `fits` gives."""
    everything = pd.concat([fit.assign(benchmark=name) for name, fit in fitted.items()], ignore_index=True)
    crossed = everything[everything["term"].str.contains(" x ")]
    real = crossed[crossed["p_adj"] < ALPHA]
    name = lambda term: term.upper().replace(" X ", " × ")
    says = []
    if len(real):
        effect = lambda r: f"{name(r.term)} {_signed(r.effect)} [{_signed(r.lo)}, {_signed(r.hi)}]"
        by_benchmark = real.groupby("benchmark", sort=False)
        where = [f"{benchmark} ({', '.join(map(effect, part.itertuples()))})" for benchmark, part in by_benchmark]
        says.append(f"The components do not simply add up on {_listed(where)}.")
    quiet = [benchmark for benchmark in fitted if benchmark not in set(real["benchmark"])]
    if quiet:
        says.append(f"On {_listed(quiet)} no interaction can be told from zero at this n; that does not show that there is none.")
    turned = sorted(set(_sign_changes(everything)))
    if turned:
        says.append(f"The effect of {_listed([name(t) for t in turned])} changes its sign from benchmark to benchmark.")
    missing, basis = next(iter(fitted.values())).attrs["missing"], set(everything["basis"])
    if missing:
        says.append(
            f"Without the cell {_listed([m.upper() for m in missing])} the three-way interaction cannot be told apart and is taken as zero."
        )
    says += treatments(name for fit in fitted.values() for name in fit.attrs["cells"])
    pooled = ", on the assumption that all cells vary alike, since fewer than two seeds ran them all" if POOLED in basis else ""
    over = f"Intervals are over seeds{pooled}; p adjusted (Holm) over {len(everything)} effects."
    says.append(ONE_SEED if basis == {"samples"} else over)
    return " ".join(says)


def _sign_changes(effects: pd.DataFrame) -> list[str]:
    """Main effects that are told from zero on several benchmarks, with different signs."""
    sure = effects[(effects["p_adj"] < ALPHA) & ~effects["term"].str.contains(" x ")]
    return [term for term, part in sure.groupby("term") if part["effect"].gt(0).nunique() > 1]


def tradeoff(df: pd.DataFrame, x: str, y: str, against: str = "baseline", baseline_seed: int | None = None) -> str:
    """Whether variants that gain on one benchmark lose on the other: the rank correlation of their differences with its interval and p.

    df: tidy rows of one source and regime.
    """
    table = stats.compare(results.select(df, benchmarks=[x, y]), against, baseline_seed=baseline_seed)
    d = table.pivot_table(index="variant", columns="benchmark", values="delta").reindex(columns=[x, y]).dropna()
    if len(d) < 4:
        return f"{x} against {y}: {len(d)} variants measured on both, too few for a correlation."
    rho = stats.correlation(d[x], d[y])
    value = f"Spearman {_signed(rho.value, 2)} [{_signed(rho.lo, 2)}, {_signed(rho.hi, 2)}], p {rho.p:.2g}, over {len(d)} variants"
    sure = rho.p < ALPHA
    if sure and rho.hi < 0:
        return f"{x} against {y}: a trade-off across variants ({value})."
    if sure and rho.lo > 0:
        return f"{x} against {y}: no trade-off across variants, they rise and fall together ({value})."
    return f"{x} against {y}: neither a trade-off nor its absence can be told at this number of variants ({value})."


def one_event(motions: int = 8) -> float:
    """Top-1 accuracy in percent on the label `order` of two different motions (`data.synthetic`: the first one's index is the greater) for
    who knows one of them alone. After motion m the other is any of the rest, m of them smaller, so the best guess is right in
    max(m, motions - 1 - m) of motions - 1 cases: 11/14 of all for 8 motions."""
    return 100 * sum(max(m, motions - 1 - m) for m in range(motions)) / (motions * (motions - 1))


def order(df: pd.DataFrame, label: str = "order", motion: str = "order/motion") -> str:
    """What the benchmark `label` can show beside chance: what one motion alone tells of it, and how it goes over runs with the motion read
    from the same clips. df: tidy rows; empty where no own run was measured on it."""
    own = df[df["source"].eq("run") & df["metric"].eq("top1")]
    if not own["benchmark"].eq(label).any():
        return ""
    reads = results.select(own, benchmarks=[label, motion]).pivot_table(values="value", index="run", columns="benchmark")
    reads, goes = reads.reindex(columns=[label, motion]).dropna(), ""
    if len(reads) > 2 and reads.std().min() > 0:
        rho = reads.corr().iloc[0, 1]
        goes = f" Over {len(reads)} runs it goes with the motion read from the same clips (Pearson correlation {rho:.2f})."
    limits = f"{label}: chance is 50 %, one of the two motions alone tells {one_event():.1f} %.{goes}"
    return f"{limits} A gain cannot be told from reading motions better."
