"""Clips from video files, images and a synthetic world, in batches whose order the seed alone decides."""

from .core import Batch, ClipError, DataError, Fault, Mixed, Sample, Source, Uncut, denormalize, normalize
from .layouts import export
from .loader import loader
from .memory import Memory
from .mixture import Mixture
from .sources import is_synthetic, open
from .splits import pair, still

__all__ = [
    "Batch",
    "ClipError",
    "DataError",
    "Fault",
    "Memory",
    "Mixed",
    "Mixture",
    "Sample",
    "Source",
    "Uncut",
    "denormalize",
    "export",
    "is_synthetic",
    "loader",
    "normalize",
    "open",
    "pair",
    "still",
]
