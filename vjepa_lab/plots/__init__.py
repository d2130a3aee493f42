"""Figures and tables: one function each, a tidy table in, a figure out. Nothing here loads, trains or decides what is true."""

from .ablation import ablation, effects, interaction
from .audit import audit
from .bars import tradeoffs
from .clips import Player, Players, curves, error_maps, masked, strips
from .fronts import correlations, pareto, ranks, scatter
from .style import save

__all__ = [
    "Player",
    "Players",
    "ablation",
    "audit",
    "correlations",
    "curves",
    "effects",
    "error_maps",
    "interaction",
    "masked",
    "pareto",
    "ranks",
    "save",
    "scatter",
    "strips",
    "tradeoffs",
]
