"""Something-Something V2: 220,847 clips of 174 templates (Goyal et al., 2017; Mahdisoltani et al., 2018)."""

from __future__ import annotations

import re
from pathlib import Path

from ..core import DataError
from ..listing import Clip, Listing
from .common import choose, need, numbered, present, read_json, read_lines

LAYOUT = """  20bn-something-something-v2/<id>.webm
  labels/{labels,train,validation,test}.json (or something-something-v2-*.json), labels/test-answers.csv"""
OFFICIAL = {"train": 168913, "val": 24777, "test": 27157}
CLASSES = 174


def listing(root, split: str = "train") -> Listing:
    """The official splits; the test part needs test-answers.csv.

    A record's class is its template without the brackets; labels.json maps that to the class number, a string. Mirroring a clip swaps the
    classes that differ in left and right only. Clips are short (12 fps; 23 frames occur): they are held, never dropped.
    """
    part = choose("SSv2", split, {"train": "train", "val": "validation", "test": "test"})
    videos = need("SSv2", root, "20bn-something-something-v2", "videos", layout=LAYOUT)
    labels = need("SSv2", root, "labels", "annotations", ".", layout=LAYOUT)

    def annotation(name: str):
        return need("SSv2", labels, f"{name}.json", f"something-something-v2-{name}.json", layout=LAYOUT)

    place = {name: int(number) for name, number in read_json(annotation("labels")).items()}
    names = numbered(annotation("labels"), place)
    if part == "test":
        rows = [tuple(line.split(";", 1)) for line in read_lines(_answers(labels))]
    else:
        rows = [(str(row["id"]), re.sub(r"[\[\]]", "", row["template"])) for row in read_json(annotation(part))]
    unknown = sorted({text for _, text in rows} - set(place))
    if unknown:
        raise DataError(f"SSv2: {len(unknown)} templates are not in labels.json, the first {unknown[0]!r}")
    clips = [Clip(str(videos / f"{number}.webm"), {"class": place[text]}) for number, text in rows]
    return present(Listing("ssv2", split, clips, {"class": names}), LAYOUT)


def _answers(labels: Path) -> Path:
    """The labels of the test part, which is published without."""
    try:
        return need("SSv2", labels, "test-answers.csv", layout=LAYOUT)
    except DataError as error:
        raise DataError(f'{error}\nPapers report the validation split: ask for it by splits=("train", "val")') from error
