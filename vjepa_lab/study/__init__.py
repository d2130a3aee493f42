"""Whole studies: a grid of runs as a value, each cell two notebooks executed into its own folder, on one machine or on many.

    python -m vjepa_lab study plan studies/reference.py
    python -m vjepa_lab study run studies/reference.py

`grid` has the values, `reading` reads them from files, `cell` runs one cell and knows where it stands, `local` fills a machine,
`forecast` says what a study costs and resolves, `export` gathers what is to be kept.
"""

from .cli import main
from .grid import Benchmark, Cell, Extra, Regime, Study
from .reading import load

__all__ = ["Benchmark", "Cell", "Extra", "Regime", "Study", "load", "main"]
