"""Kinetics-400/600/700 by their csv lists (Kay et al., 2017); copies always lack videos that have left the web."""

from __future__ import annotations

import csv
from pathlib import Path

from ..core import DataError
from ..listing import Clip, Listing, list_folder
from .common import choose, need, present

LAYOUT = """  train/<class>/<youtube_id>_<start>_<end>.mp4 (or train/<file>.mp4), val/..., with
  train.csv, val.csv (label,youtube_id,time_start,time_end,split), start and end in six digits"""
OFFICIAL: dict[str, int] = {}
CLASSES = (400, 600, 700)

PARTS = ("train", "val", "validate")
"""Stems of the lists with labels."""
FOLDERS = {"train": ("train",), "val": ("val", "validate"), "test": ("test", "val", "validate")}
"""Split -> the folders that may hold it, in order of preference; one with a list comes before those without."""


def listing(root, split: str = "train") -> Listing:
    """The csv lists where they are there, else the class folders, which may write blanks as underscores.

    "test" is the validation part where a copy has no test part: papers report the validation part.
    """
    names = choose("Kinetics", split, FOLDERS)
    there = [folder for name in names if (folder := Path(root) / name).is_dir()]
    videos = next((folder for folder in there if _table(folder) or (folder.name == split and any(folder.glob("*/")))), None)
    videos = videos or need("Kinetics", root, *names, layout=LAYOUT)
    table = _table(videos)
    if table is None:
        return list_folder(root, split)
    rows = _rows(table)
    others = [file for file in table.parent.glob("*.csv") if file.stem in PARTS and file != table]  # one numbering for all parts
    names = sorted({row["label"] for part in (rows, *map(_rows, others)) for row in part})
    place = {name: i for i, name in enumerate(names)}
    folders = {path.name for path in videos.iterdir() if path.is_dir()}
    clips = []
    for row in rows:
        name = f"{row['youtube_id']}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}.mp4"
        own = next((folder for folder in (row["label"], row["label"].replace(" ", "_")) if folder in folders), "")
        clips.append(Clip(str(videos / own / name), {"class": place[row["label"]]}, row["youtube_id"]))
    notes = () if len(names) in CLASSES else (f"{len(names)} classes; Kinetics has 400, 600 or 700",)
    notes += (f"no test part: {videos.name} is read for it",) if split == "test" and videos.name != "test" else ()
    return present(Listing("kinetics", split, clips, {"class": names}, notes), LAYOUT)


def _table(videos: Path) -> Path | None:
    """The list of a folder of videos, beside it or in annotations/."""
    places = (videos.parent / f"{videos.name}.csv", videos.parent / "annotations" / f"{videos.name}.csv")
    return next((file for file in places if file.is_file()), None)


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"label", "youtube_id", "time_start", "time_end"} <= set(rows[0]):
        raise DataError(
            f"{table}: expected the columns label,youtube_id,time_start,time_end; found {', '.join(rows[0]) if rows else 'nothing'}"
        )
    return rows
