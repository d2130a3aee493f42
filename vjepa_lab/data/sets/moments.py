"""Moments in Time: about a million 3-second clips of 339 (v1) or 305 (v2) verbs (Monfort et al., 2019)."""

from __future__ import annotations

import csv
from pathlib import Path

from ..core import DataError
from ..listing import Clip, Listing, list_folder
from .common import choose, need, numbered, present, read_lines

LAYOUT = """  training/<class>/<clip>.mp4 and validation/<class>/<clip>.mp4
  trainingSet.csv  validationSet.csv (class/clip.mp4,class,...)  moments_categories.txt (class,index)"""
OFFICIAL: dict[str, int] = {}  # differs by version and by copy
CLASSES = (305, 339)


def listing(root, split: str = "train") -> Listing:
    """The csv lists where they are there, else the folders; "test" is the validation part. Class names hold `+`, kept as they are."""
    part = choose("Moments", split, {"train": "training", "val": "validation", "test": "validation"})
    videos = need("Moments in Time", root, part, layout=LAYOUT)
    table, categories = videos.parent / f"{part}Set.csv", videos.parent / "moments_categories.txt"
    if not table.is_file():
        return list_folder(root, split)
    rows = _rows(table)
    if categories.is_file():
        pairs = (line.rpartition(",") for line in read_lines(categories))
        names = numbered(categories, {name: int(number) for name, _, number in pairs})
    else:
        tables = (videos.parent / f"{name}Set.csv" for name in ("training", "validation"))  # one numbering for both parts
        names = sorted({row[1] for file in tables if file.is_file() for row in _rows(file)})
    place = {name: i for i, name in enumerate(names)}
    unknown = sorted({row[1] for row in rows} - set(place))
    if unknown:
        raise DataError(f"{table}: classes {', '.join(unknown[:5])} are not in {categories.name}")
    notes = () if len(names) in CLASSES else (f"{len(names)} classes; v1 has 339 and v2 has 305",)
    clips = [Clip(str(videos / row[0]), {"class": place[row[1]]}) for row in rows]
    return present(Listing("moments", split, clips, {"class": names}, notes), LAYOUT)


def _rows(table: Path) -> list[list[str]]:
    """Rows of class/file.mp4, class, and columns that are not used."""
    rows = list(csv.reader(read_lines(table)))
    for number, row in enumerate(rows, 1):
        if len(row) < 2:
            raise DataError(f"{table}, line {number}: expected `class/clip.mp4,class,...`, found {','.join(row)!r}")
    return rows
