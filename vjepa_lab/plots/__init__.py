"""Figures and tables: one function each, a tidy table in, a figure out. Nothing here loads, trains or decides what is true."""

from .ablation import ablation, effects, interaction
from .audit import audit
from .bars import tradeoffs
from .style import save

__all__ = ["ablation", "audit", "effects", "interaction", "save", "tradeoffs"]
