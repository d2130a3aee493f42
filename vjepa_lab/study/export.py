"""What is kept of a study: one table of measurements, one of runs with where they come from; and the check that a run can be had again."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from .. import results
from .grid import Study


def rows(study: Study, runs: str | Path, only: str | None = None) -> pd.DataFrame:
    """Every measurement of a study so far, as `results.load` gives it, with the study's names of regimes.

    Raises FileNotFoundError if nothing was run yet.
    """
    found = []
    for each in study.chosen(only):
        folder = Path(runs) / each.name
        if len(part := results.read_run(folder)):
            found.append(part.assign(regime=each.regime.name))
    if not found:
        raise FileNotFoundError(f"{runs}: no run of {study.name} was probed there yet")
    return results.tidy(pd.concat(found, ignore_index=True))
