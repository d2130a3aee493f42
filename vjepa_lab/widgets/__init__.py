"""Explorers for JupyterLab: controls beside a picture that follows them. Each is also a plain function that returns the picture."""

from .base import Explorer
from .features import feature_view, feature_viewer
from .live import LiveCurve
from .masks import mask_explorer, mask_view
from .monitor import monitor_view, overview, run_monitor
from .recipes import compose, recipe_builder, recipe_view
from .tradeoffs import Tradeoffs, tradeoff_explorer

__all__ = [
    "Explorer",
    "LiveCurve",
    "Tradeoffs",
    "compose",
    "feature_view",
    "feature_viewer",
    "mask_explorer",
    "mask_view",
    "monitor_view",
    "overview",
    "recipe_builder",
    "recipe_view",
    "run_monitor",
    "tradeoff_explorer",
]
