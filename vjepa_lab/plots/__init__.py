"""Figures and tables: one function each, a tidy table in, a figure out. Nothing here loads, trains or decides what is true."""

from .bars import tradeoffs
from .clips import Player, Players, curves, error_maps, masked, strips
from .style import save

__all__ = ["Player", "Players", "curves", "error_maps", "masked", "save", "strips", "tradeoffs"]
