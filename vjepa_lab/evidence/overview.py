"""Measurements as a table to look at: a row per method, a column per benchmark, means over nothing but seeds."""

import pandas as pd

from .results import wide

RUN = ["source", "regime", "variant", "edition", "seed"]
"What tells one run from another."


def overview(df: pd.DataFrame, index: list[str]) -> pd.DataFrame:
    """Means over seeds of tidy rows of one regime and metric, and in the column `seeds` over how many ("1 to 2" where benchmarks differ).

    What one run measured in several ways, with several probes or encoders, has a column each. index: what a row is, columns of `df`, the
    edition among them: editions are different objectives.
    """
    df = df.assign(benchmark=apart(df))
    counts = df.groupby([*index, "benchmark"], sort=False, dropna=False)["seed"].nunique()
    said = counts.groupby(level=index, sort=False, dropna=False).agg(
        lambda n: f"{n.min()} to {n.max()}" if n.min() < n.max() else f"{n.max()}"
    )
    return wide(df, index=index).round(2).join(said.where(said.ne("0"), "").rename("seeds"))


def apart(df: pd.DataFrame) -> pd.Series:
    """Names of the benchmarks, with the probe, or the encoder, where one run was measured with several: a mean over them says nothing."""
    names, runs = df["benchmark"], [df[name] for name in RUN if name in df]
    for column in ("probe", "encoder"):
        if column in df:
            several = df.groupby([*runs, names], dropna=False)[column].transform("nunique").gt(1).groupby(names).transform("any")
            names = names.where(~several, names + ", " + df[column].fillna("").astype(str))
    return names
