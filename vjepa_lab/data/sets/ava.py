"""AVA v2.2: persons in 430 films, boxed once a second, each doing several of 80 actions, 60 of them evaluated (Gu et al., 2018).

Multi-label: a sample is one person at one key frame, its label a 0/1 vector over the evaluated actions, and its measure mean average
precision, not accuracy.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from ..core import DataError
from ..listing import Clip, Listing
from ..video import is_media
from .common import choose, need, read_lines

LAYOUT = """  videos/<video_id>.mp4 (or .mkv, .webm; videos_15min/ for films cut to minutes 15-30)
  ava_{train,val}_v2.2.csv  ava_{train,val}_excluded_timestamps_v2.2.csv  ava_action_list_v2.2_for_activitynet_2019.pbtxt"""
OFFICIAL: dict[str, int] = {}  # counted in boxes, of films that a copy may lack
CLASSES = 60


def listing(root, split: str = "train", seconds: float = 2.0, enlarge: float = 1.2, offset: float | None = None) -> Listing:
    """One clip of `seconds` around each person's key frame, cut to its box `enlarge`d; "test" is the validation part.

    `offset`: seconds that the files lack at the front (default: 900 in videos_15min, else 0).
    """
    copy = found(root, split, offset)
    names, table, films, offset = copy.actions, copy.table, copy.films, copy.offset
    place = {number: i for i, number in enumerate(names)}
    persons, missing = _persons(table, copy.excluded, place, films)
    if not persons:
        raise DataError(f"AVA: {copy.videos} holds none of the films that {table.name} lists; expected\n{LAYOUT}")
    clips = [
        Clip(
            str(films[film]),
            {"class": tuple(sorted(labels))},
            film,
            time - offset - seconds / 2,
            time - offset + seconds / 2,
            _grown(box, enlarge),
        )
        for (film, time, box), labels in persons.items()
    ]
    notes = (f"{len(missing)} listed films are missing from this copy, the first: {min(missing)}",) if missing else ()
    return Listing("ava", split, clips, {"class": list(names.values())}, notes, multi=True, missing=len(missing))


class Copy(NamedTuple):
    """One part of a copy: its table, actions by number, excluded key frames, films by name, seconds that their files lack at the front."""

    table: Path
    actions: dict[int, str]
    excluded: set[tuple[str, float]]
    videos: Path
    films: dict[str, Path]
    offset: float


def found(root, split: str, offset: float | None = None) -> Copy:
    """What a copy holds of a split; raises DataError naming what is missing. `offset` as in `listing`."""
    part = choose("AVA", split, {"train": "train", "val": "val", "test": "val"})
    table = need("AVA", root, f"ava_{part}_v2.2.csv", f"annotations/ava_{part}_v2.2.csv", layout=LAYOUT)
    videos = need("AVA", root, "videos_15min", "videos", "trainval", layout=LAYOUT)
    actions = sorted(table.parent.glob("ava_action_list*.pbtxt"), key=lambda path: "activitynet" not in path.name)
    if not actions:
        raise DataError(f"AVA: {table.parent} has no ava_action_list*.pbtxt; expected\n{LAYOUT}")
    offset = (900.0 if videos.name == "videos_15min" else 0.0) if offset is None else offset
    films = {path.stem: path for path in videos.iterdir() if is_media(path)}
    return Copy(table, read_actions(actions[0]), _excluded(table.parent, part), videos, films, offset)


def read_actions(path: Path) -> dict[int, str]:
    """Action number (from 1, with gaps) -> name, from a label map in text form (`item { name: "..." id: 1 }`, or `label_id`)."""
    found = re.findall(r'name:\s*"((?:[^"\\]|\\.)*)"\s*(?:label_)?id:\s*(\d+)', path.read_text())
    if not found:
        raise DataError(f"{path} holds no `name: ... id: ...` entries")
    return dict(sorted((int(number), name) for name, number in found))


def _excluded(folder: Path, part: str) -> set[tuple[str, float]]:
    file = folder / f"ava_{part}_excluded_timestamps_v2.2.csv"
    return {(row[0], float(row[1])) for row in csv.reader(read_lines(file)) if row} if file.is_file() and file.stat().st_size else set()


def _persons(table: Path, excluded, place: dict[int, int], films: dict[str, Path]):
    """(film, key frame, box) -> evaluated actions, and the films that are not here."""
    persons, missing = defaultdict(set), set()
    for number, row in enumerate(csv.reader(read_lines(table)), 1):
        try:
            film, time, box, action = row[0], float(row[1]), tuple(map(float, row[2:6])), int(row[6])
        except (ValueError, IndexError) as error:
            raise DataError(f"{table}, line {number}: expected video_id,timestamp,x1,y1,x2,y2,action_id,person_id, found {row}") from error
        if (film, time) in excluded or action not in place:
            continue
        if film in films:
            persons[film, time, box].add(place[action])
        else:
            missing.add(film)
    return persons, missing


def _grown(box, factor: float):
    x1, y1, x2, y2 = box
    grow_x, grow_y = (x2 - x1) * (factor - 1) / 2, (y2 - y1) * (factor - 1) / 2
    return max(x1 - grow_x, 0.0), max(y1 - grow_y, 0.0), min(x2 + grow_x, 1.0), min(y2 + grow_y, 1.0)
