"""Means over seeds of any measurement, and differences from a reference: tables in, tables out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from vjepa_lab.evidence.stats import Interval, adjusted_apart, t_interval

KINDS = ("appearance", "codec", "camera", "temporal", "scene")
"What a shift changes (`analysis.shifts`), in the order of tables and figures."


def one_encoder(df: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """The rows of one encoder of every run, unless `by` tells encoders apart: its student, where there is one among them, else its teacher.
    Untrained encoders stay, and rows of no encoder.

    A mean over a run's student and teacher is of neither; and a run without a momentum teacher has a student alone, so that it would be
    held against something else.
    """
    if "encoder" not in df or "encoder" in by:
        return df
    student = df["encoder"].eq("student")
    has_one = student.groupby([df[name] for name in ("run", "variant", "seed") if name in df], dropna=False).transform("any")
    return df[student | ~has_one | df["encoder"].isna() | df["encoder"].eq("random-init")]


def over_seeds(df: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Means over seeds of the rows that agree in `by`, in the table's order: columns `by`, value, lo, hi, n, seeds, basis, smoke. Of
    several encoders of a run one counts (`one_encoder`).

    The interval is Student's over seeds where there are several that differ (`basis` "seeds"), else the rows' own (`basis` "samples"): that
    seeds happen to agree is no certainty. Several rows of one seed are averaged first.
    """
    rows = []
    for key, part in one_encoder(df, by).groupby(list(by), dropna=False, sort=False):
        seeds = part.groupby("seed", dropna=False)[["value", "lo", "hi"]].mean()
        several = len(seeds) > 1 and not np.ptp(seeds["value"]) <= 1e-9
        interval = t_interval(seeds["value"]) if several else Interval(*seeds.mean(), np.nan)
        measured = {"value": float(interval.value), "lo": float(interval.lo), "hi": float(interval.hi), "n": part["n"].mean()}
        smoke = bool(part["smoke"].any()) if "smoke" in part else False
        facts = {"seeds": len(seeds), "basis": "seeds" if several else "samples", "smoke": smoke}
        rows.append(dict(zip(by, key, strict=True)) | measured | facts)
    return pd.DataFrame(rows, columns=[*by, "value", "lo", "hi", "n", "seeds", "basis", "smoke"])


def changes(df: pd.DataFrame, against: str = "baseline", by: Sequence[str] = ("benchmark",), margin: float = 0.0) -> pd.DataFrame:
    """Each variant's difference from `against` in each group of `by`: columns variant, `by`, value, base, delta, lo, hi, p, p_adj,
    significant, seeds, basis.

    Runs are paired by seed; of several encoders of a run one counts (`one_encoder`). With several common seeds the interval is Student's
    over the pairs; with one it combines the two rows' own intervals (square-and-add: Newcombe 1998, Zou and Donner 2008), which leaves the
    pairing of test clips out and errs on the safe side; rows without an interval give none. So it is, too, where all pairs differ by the
    same: that seeds happen to agree is no certainty.
    p_adj: Benjamini-Hochberg over the whole table, an untrained encoder's rows apart; significant: below 0.05, and the difference is not
    smaller than `margin`.
    Raises ValueError if there is no `against`.
    """
    by = list(by)
    table = one_encoder(df, by).groupby(["variant", "seed", *by], sort=False, dropna=False)[["value", "lo", "hi"]].mean().reset_index()
    if against not in set(table["variant"]):
        raise ValueError(f"no {against!r} to compare with; there are {', '.join(map(str, table['variant'].unique()))}")
    base = table[table["variant"].eq(against)].drop(columns="variant")
    pairs = table[table["variant"].ne(against)].merge(base, on=["seed", *by], suffixes=("", "_base"))
    pairs = pairs.dropna(subset=["value", "value_base"])  # else either mean would be over seeds of its own
    rows = []
    for key, part in pairs.groupby(["variant", *by], sort=False, dropna=False):
        apart = part["value"] - part["value_base"]
        several = len(part) > 1 and np.ptp(apart) > 1e-9
        interval = t_interval(apart) if several else _square_and_add(part.select_dtypes("number").mean())
        measured = {"value": part["value"].mean(), "base": part["value_base"].mean(), "delta": interval.value}
        measured |= {"lo": interval.lo, "hi": interval.hi, "p": interval.p}
        facts = {"seeds": len(part), "basis": "seeds" if several else "samples"}
        rows.append(dict(zip(["variant", *by], key, strict=True)) | {name: float(x) for name, x in measured.items()} | facts)
    out = pd.DataFrame(rows, columns=["variant", *by, "value", "base", "delta", "lo", "hi", "p", "seeds", "basis"])
    adjusted = adjusted_apart(out)
    return out.assign(p_adj=adjusted, significant=(adjusted < 0.05) & (out["delta"].abs() >= margin))


def factor_changes(rows: pd.DataFrame, against: str = "baseline") -> pd.DataFrame:
    """`changes` in the retention of every factor; below one point none is called a difference: where nothing is known, errors are shared
    and scatter less than that."""
    return changes(rows, against, ("factor",), margin=1.0)


def _square_and_add(row: pd.Series) -> Interval:
    """Difference of two independent estimates from their own 95 % intervals."""
    from scipy.stats import norm

    delta = row["value"] - row["value_base"]
    down = np.hypot(row["value"] - row["lo"], row["hi_base"] - row["value_base"])
    up = np.hypot(row["hi"] - row["value"], row["value_base"] - row["lo_base"])
    error = (down if delta > 0 else up) / norm.ppf(0.975)
    p = 2 * norm.sf(abs(delta) / error) if error > 0 else float(delta == 0) if error == 0 else np.nan
    return Interval(delta, delta - down, delta + up, p)


def shown(row, digits: int = 1, sign: bool = False) -> str:
    """Such as "65.0 [49.5, 77.9]": a value with its interval."""
    plus = "+" if sign else ""
    value = f"{row['delta' if sign else 'value']:{plus}z.{digits}f}"
    lo, hi = (f"{row[end]:{plus}.{digits}f}" for end in ("lo", "hi"))  # an end at -0.0 still says on which side of zero it lies
    return value if "nan" in lo else f"{value} [{lo}, {hi}]"
