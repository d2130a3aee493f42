"""Moments in Time: about a million 3-second clips of 339 (v1) or 305 (v2) verbs (Monfort et al., 2019)."""

from __future__ import annotations

import csv

from ..core import DataError
from ..listing import Clip, Listing, list_folder
from .common import choose, need, present, read_lines

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
    rows = list(csv.reader(read_lines(table)))
    if categories.is_file():
        place = {name: int(number) for name, number in (line.rsplit(",", 1) for line in read_lines(categories))}
        names = sorted(place, key=place.get)
    else:
        names = sorted({row[1] for row in rows})
        place = {name: i for i, name in enumerate(names)}
    unknown = sorted({row[1] for row in rows} - set(place))
    if unknown:
        raise DataError(f"{table}: classes {', '.join(unknown[:5])} are not in {categories.name}")
    notes = () if len(names) in CLASSES else (f"{len(names)} classes; v1 has 339 and v2 has 305",)
    clips = [Clip(str(videos / row[0]), {"class": place[row[1]]}) for row in rows]
    return present(Listing("moments", split, clips, {"class": names}, notes), LAYOUT)
