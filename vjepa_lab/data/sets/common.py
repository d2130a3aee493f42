"""What the readers of official annotation files share."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from ..core import DataError
from ..listing import Clip, Listing
from ..video import VIDEO_SUFFIXES


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


def choose(name: str, split: str, splits: dict):
    """What a set calls the split."""
    if split not in splits:
        raise DataError(f"{name} has no split {split!r}; one of {', '.join(splits)}")
    return splits[split]


def of_split(name: str, number: int) -> str:
    """What the listing of official split `number` is called: results of the splits are measurements of their own."""
    return name if number == 1 else f"{name}-{number}"


class _Folder:
    """The files of a folder, listed once."""

    def __init__(self, path: Path):
        self.names = frozenset(os.listdir(path) if path.is_dir() else ())

    @cached_property
    def videos(self) -> dict[str, str]:
        """Name without suffix -> name, of the videos."""
        parts = ((*os.path.splitext(name), name) for name in sorted(self.names, reverse=True))
        return {stem: name for stem, suffix, name in parts if suffix.lower() in VIDEO_SUFFIXES}

    def find(self, name: str) -> str | None:
        """The file of that name, or a video whose name differs by the suffix alone."""
        if name in self.names:
            return name
        stem, suffix = os.path.splitext(name)
        return self.videos.get(stem) if suffix.lower() in VIDEO_SUFFIXES else None


def present(listing: Listing, layout: str) -> Listing:
    """The listing without the files that this copy lacks, which a note counts; raises DataError if it lacks them all.

    A video may have another suffix than the list says: copies are re-encoded. Folders are listed once instead of asking for every file.
    """
    folders: dict[str, _Folder] = {}
    here: list[Clip] = []
    gone: list[str] = []
    for clip in listing.clips:
        folder, name = os.path.split(clip.path)
        if folder not in folders:
            folders[folder] = _Folder(Path(folder))
        found = folders[folder].find(name)
        if found is None:
            gone.append(clip.path)
        else:
            here.append(clip if found == name else replace(clip, path=os.path.join(folder, found)))
    if not here:
        raise DataError(
            f"{listing.name} [{listing.split}]: none of the {len(gone)} listed files is here, the first: {gone[0]}; expected\n{layout}"
        )
    if not gone:
        return replace(listing, clips=here)
    note = f"{len(gone)} of {len(listing.clips)} listed files are missing from this copy, the first: {Path(gone[0]).name}"
    return replace(listing, clips=here, notes=(*listing.notes, note), missing=len(gone))
