"""HMDB-51: 6,766 clips of 51 actions in three official splits of 70 + 30 a class (Kuehne et al., 2011)."""

from __future__ import annotations

from ..core import DataError
from ..listing import Clip, Listing, no_validation
from .common import choose, need, of_split, present, read_lines

LAYOUT = """  hmdb51_org/<class>/<clip>.avi (the class archives, unpacked)
  testTrainMulti_7030_splits/<class>_test_split{1,2,3}.txt"""
OFFICIAL = {"train": 3570, "test": 1530}
CLASSES = 51


def listing(root, split: str = "train", number: int = 1) -> Listing:
    """Official split `number` (1-3): lines of `clip.avi 1` (train), 2 (test) or 0 (unused); 2 and 3 are named hmdb51-2 and hmdb51-3.

    "val" is the test part.
    """
    if number not in (1, 2, 3):
        raise DataError(f"HMDB-51 has the splits 1, 2 and 3; got number={number}")
    flag = choose("HMDB-51", split, {"train": "1", "val": "2", "test": "2"})
    lists = need("HMDB-51", root, "testTrainMulti_7030_splits", "splits", layout=LAYOUT)
    videos = need("HMDB-51", root, "hmdb51_org", "videos", layout=LAYOUT)
    suffix = f"_test_split{number}.txt"
    files = sorted(lists.glob("*" + suffix))
    if not files:
        raise DataError(f"HMDB-51: {lists} has no *{suffix}")
    names, clips = [path.name.removesuffix(suffix) for path in files], []
    for label, path in enumerate(files):
        rows = [line.rsplit(maxsplit=1) for line in read_lines(path)]
        clips += [Clip(str(videos / names[label] / row[0]), {"class": label}) for row in rows if row[-1] == flag]
    return present(Listing(of_split("hmdb51", number), split, clips, {"class": names}, no_validation("HMDB-51", split)), LAYOUT)
