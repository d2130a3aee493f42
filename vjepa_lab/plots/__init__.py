"""Figures and tables: one function each, a tidy table in, a figure out. Nothing here loads, trains or decides what is true."""

from .ablation import ablation, effects, interaction
from .audit import audit
from .bars import tradeoffs
from .fronts import correlations, pareto, ranks, scatter
from .style import save

__all__ = ["ablation", "audit", "correlations", "effects", "interaction", "pareto", "ranks", "save", "scatter", "tradeoffs"]
