"""What the readers of official annotation files share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ..core import DataError
from ..listing import Clip, Listing


def need(name: str, root, *options: str, layout: str) -> Path:
    """The first of `options` (paths below root) that exists; else DataError with the layout that was expected and what was found."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{name}: no folder {root}")
    for option in options:
        if (root / option).exists():
            return root / option
    found = ", ".join(sorted(path.name + "/" * path.is_dir() for path in root.iterdir())[:8]) or "nothing"
    raise DataError(f"{name}: {root} has no {' or '.join(options)}; expected\n{layout}\nfound {found}")


def read_lines(path: Path) -> list[str]:
    """Lines that are not blank, stripped (copies differ in line ends); raises DataError for an empty file."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not lines:
        raise DataError(f"{path} is empty")
    return lines


def read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no readable JSON: {error}") from error


def numbered(file: Path, numbers: dict[str, int], first: int = 0) -> list[str]:
    """Class names in the order of their numbers; raises DataError unless these are `first`, `first` + 1, ... each once."""
    names = sorted(numbers, key=numbers.get)
    if [numbers[name] for name in names] != list(range(first, first + len(names))):
        found = ", ".join(f"{numbers[name]} {name}" for name in names[:4])
        raise DataError(f"{file}: expected {len(names)} classes numbered from {first} without gaps; found {found}, ...")
    return names


def choose(name: str, split: str, splits: dict[str, str]) -> str:
    """What a set calls the split."""
    if split not in splits:
        raise DataError(f"{name} has no split {split!r}; one of {', '.join(splits)}")
    return splits[split]


def present(listing: Listing, layout: str) -> Listing:
    """The listing without the files that this copy lacks, which a note counts; raises DataError if it lacks them all.

    Folders are listed once instead of asking for every file.
    """
    folders: dict[Path, set[str]] = {}
    here: list[Clip] = []
    for clip in listing.clips:
        path = Path(clip.path)
        if path.parent not in folders:
            folders[path.parent] = {file.name for file in path.parent.iterdir()} if path.parent.is_dir() else set()
        if path.name in folders[path.parent]:
            here.append(clip)
    gone = len(listing.clips) - len(here)
    if not here:
        first = listing.clips[0].path
        raise DataError(
            f"{listing.name} [{listing.split}]: none of the {gone} listed files is here, the first: {first}; expected\n{layout}"
        )
    if not gone:
        return listing
    names = {clip.path for clip in here}
    first = next(clip.path for clip in listing.clips if clip.path not in names)
    note = f"{gone} of {len(listing.clips)} listed files are missing from this copy, the first: {Path(first).name}"
    return replace(listing, clips=here, notes=(*listing.notes, note), missing=gone)
