"""Figures and tables: one function each, a tidy table in, a figure out. Nothing here trains.

What a figure says of differences, `evidence.stats` computes. `paper` alone also reads: the printed tables, the runs of a folder and the
verdicts of `evidence.claims` on them, to put the paper together again.
"""

from .ablation import ablation, effects, interaction
from .alignment import by_depth, counting, energy, foretold, through_training
from .audit import audit
from .bars import tradeoffs
from .card import Card, card
from .clips import Player, Players, curves, error_maps, masked, strips
from .diagram import diagram
from .forest import forest
from .fronts import correlations, pareto, ranks, scatter
from .motion import motion
from .representation import halves, likeness, representation
from .retention import retention
from .robustness import elsewhere, robustness, severities, shifted_on_clean
from .style import encoders_note, save
from .tables import Table, result_table, text_table
from .throughput import pretraining_cost, same_speed, step_split, throughput

__all__ = [
    "Card",
    "Player",
    "Players",
    "Table",
    "ablation",
    "audit",
    "by_depth",
    "card",
    "correlations",
    "counting",
    "curves",
    "diagram",
    "effects",
    "elsewhere",
    "encoders_note",
    "energy",
    "error_maps",
    "forest",
    "foretold",
    "halves",
    "interaction",
    "likeness",
    "masked",
    "motion",
    "pareto",
    "pretraining_cost",
    "ranks",
    "representation",
    "result_table",
    "retention",
    "robustness",
    "same_speed",
    "save",
    "scatter",
    "severities",
    "shifted_on_clean",
    "step_split",
    "strips",
    "text_table",
    "through_training",
    "throughput",
    "tradeoffs",
]
