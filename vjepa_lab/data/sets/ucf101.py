"""UCF-101: 13,320 clips of 101 actions, in three official splits (Soomro et al., 2012)."""

from __future__ import annotations

from pathlib import Path

from ..core import DataError
from ..listing import Clip, Listing, group_of, no_validation
from .common import choose, need, numbered, of_split, present, read_lines

LAYOUT = """  UCF-101/<Class>/v_<Class>_gNN_cNN.avi
  ucfTrainTestlist/{classInd,trainlist01,testlist01,...}.txt"""
OFFICIAL = {"train": 9537, "test": 3783}
CLASSES = 101


def listing(root, split: str = "train", number: int = 1) -> Listing:
    """Official split `number` (1-3); 2 and 3 are named ucf101-2 and ucf101-3. There is no validation part: "val" is the test part.

    The class is the folder (HandstandPushups holds files named v_HandStandPushups_*), classInd.txt counts from 1, and the test lists have
    no labels. Clips of one group are cut from one recording: a copy whose lists put a class's group on both sides is refused.
    """
    if number not in (1, 2, 3):
        raise DataError(f"UCF-101 has the splits 1, 2 and 3; got number={number}")
    part = choose("UCF-101", split, {"train": "train", "val": "test", "test": "test"})
    lists = need("UCF-101", root, "ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist", layout=LAYOUT)
    videos = need("UCF-101", root, "UCF-101", "UCF101/UCF-101", "videos", layout=LAYOUT)
    names = _names(lists / "classInd.txt")
    place = {name: i for i, name in enumerate(names)}
    rows = {side: [line.split()[0] for line in read_lines(lists / f"{side}list{number:02d}.txt")] for side in ("train", "test")}
    _no_leak(rows)
    unknown = {row.split("/")[0] for row in rows[part]} - set(place)
    if unknown:
        raise DataError(f"{lists}: classes {', '.join(sorted(unknown)[:5])} are not in classInd.txt")
    clips = [Clip(str(videos / row), {"class": place[row.split("/")[0]]}, group_of(Path(row).stem)) for row in rows[part]]
    return present(Listing(of_split("ucf101", number), split, clips, {"class": names}, no_validation("UCF-101", split)), LAYOUT)


def _names(file: Path) -> list[str]:
    """Class names by lines of `number Name`, from 1."""
    rows = [line.split() for line in read_lines(file)]
    for number, row in enumerate(rows, 1):
        if len(row) != 2 or not row[0].isdecimal():
            raise DataError(f"{file}, line {number}: expected `number ClassName`, found {' '.join(row)!r}")
    return numbered(file, {name: int(i) for i, name in rows}, first=1)


def _no_leak(rows: dict[str, list[str]]) -> None:
    """Refuse lists in which a group of a class lies on both sides: 1-NN on mean frames then scores 95 % instead of 65 %."""
    groups = {side: {group_of(Path(row).stem) or row.split("/")[0] for row in files} for side, files in rows.items()}
    shared = sorted(groups["train"] & groups["test"])
    if shared:
        raise DataError(f"UCF-101: {len(shared)} groups lie in both lists, the first {shared[0]}; these are not the official splits")
