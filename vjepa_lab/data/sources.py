"""From a data set's name to its clips."""

from __future__ import annotations

from pathlib import Path

from .core import DataError, Source
from .listing import Listing, list_folder, list_manifest


def open(
    spec,
    split: str = "train",
    *,
    frames: int = 8,
    size: int = 64,
    stride: int = 2,
    seed: int = 0,
    cache: str | None = None,
    **options,
) -> Source:
    """The source that `spec` names, one split of it.

    synthetic            the factor world; also synthetic:trs8, synthetic:dirs8, synthetic:compositional, synthetic:spurious
    FOLDER               one folder per class, with videos, images or both
    FILE.csv, FILE.txt   lines of `path label`

    `frames` a clip (1: images), `size` pixels square, every `stride`-th frame of a video (a synthetic clip fills its frames exactly).
    `cache="memory"` keeps the clips of a fixed source in memory. Raises DataError when there is nothing to open under that name.
    """
    if isinstance(spec, Source):
        return spec
    name, _, rest = str(spec).partition(":")
    if name == "synthetic":
        from .synthetic import world

        source = world(rest, split, frames=frames, size=size, seed=seed, **options)
    else:
        from .files import Files

        source = Files(_listing(str(spec), split), frames=frames, size=size, stride=stride, seed=seed, **options)
    if cache is None:
        return source
    if cache != "memory":
        raise DataError(f"cache={cache!r} is unknown; use 'memory' or None")
    from .memory import Memory

    return Memory(source)


def _listing(spec: str, split: str) -> Listing:
    """The clips of a folder or of a manifest file."""
    if Path(spec).is_dir():
        return list_folder(spec, split)
    if Path(spec).is_file():
        return list_manifest(spec, split)
    raise DataError(f"no data set is called {spec!r}, and no such file or folder exists; use synthetic, a folder, or a manifest file")
