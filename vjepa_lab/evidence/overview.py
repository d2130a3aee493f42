"""Measurements as a table to look at: a row per method, a column per benchmark, means over nothing but seeds."""

import pandas as pd

from .results import wide


def overview(df: pd.DataFrame, index: list[str]) -> pd.DataFrame:
    """Means over seeds of tidy rows of one regime and metric, and in the column `seeds` over how many ("1 to 2" where benchmarks differ).

    What was measured in several ways, with several probes or encoders, has a column each. index: what a row is, columns of `df`, the
    edition among them: editions are different objectives.
    """
    df = df.assign(benchmark=apart(df))
    counts = df.groupby([*index, "benchmark"], sort=False, dropna=False)["seed"].nunique()
    said = counts.groupby(level=index, sort=False, dropna=False).agg(
        lambda n: f"{n.min()} to {n.max()}" if n.min() < n.max() else f"{n.max()}"
    )
    return wide(df, index=index).round(2).join(said.where(said.ne("0"), "").rename("seeds"))


def apart(df: pd.DataFrame) -> pd.Series:
    """Names of the benchmarks, with the probe, or the encoder, where one source measured with several: a mean over them says nothing. The
    encoder of a row that has no other, such as the untrained one, tells it from none."""
    names, sources = df["benchmark"], [df[name] for name in ("source", "regime") if name in df]
    if "probe" in df:
        several = df.groupby([*sources, names], dropna=False)["probe"].transform("nunique").gt(1).groupby(names).transform("any")
        names = names.where(~several, names + ", " + df["probe"].fillna("").astype(str))
    if "encoder" in df:
        own = [df[name] for name in ("source", "regime", "variant", "edition") if name in df]
        several = df.groupby([*own, names], dropna=False)["encoder"].transform("nunique").gt(1).groupby(names).transform("any")
        names = names.where(~several, names + ", " + df["encoder"].fillna("").astype(str))
    return names
