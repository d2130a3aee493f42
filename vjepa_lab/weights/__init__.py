"""Released weights of V-JEPA, V-JEPA 2 and V-JEPA 2.1: found, fetched, checked, turned into our encoder and predictor, and back again."""

from .classifiers import classifier
from .download import fetch
from .export import export
from .files import WeightsError
from .load import RELEASES, Weights, again, are_weights, encoder, open

__all__ = ["RELEASES", "Weights", "WeightsError", "again", "are_weights", "classifier", "encoder", "export", "fetch", "open"]
