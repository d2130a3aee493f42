"""Figures and tables: one function each, a tidy table in, a figure out. Nothing here loads, trains or decides what is true."""

from .ablation import ablation, effects, interaction
from .audit import audit
from .bars import tradeoffs
from .clips import Player, Players, curves, error_maps, masked, strips
from .diagram import diagram
from .fronts import correlations, pareto, ranks, scatter
from .motion import motion
from .representation import halves, likeness, representation
from .retention import retention
from .style import save
from .tables import Table, result_table, text_table

__all__ = [
    "Player",
    "Players",
    "Table",
    "ablation",
    "audit",
    "correlations",
    "curves",
    "diagram",
    "effects",
    "error_maps",
    "halves",
    "interaction",
    "likeness",
    "masked",
    "motion",
    "pareto",
    "ranks",
    "representation",
    "result_table",
    "retention",
    "save",
    "scatter",
    "strips",
    "text_table",
    "tradeoffs",
]
