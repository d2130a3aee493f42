"""Diving-48 V2: 16,997 clips of 48 dives (Li et al., 2018; cleaned labels of 2020)."""

from __future__ import annotations

from pathlib import Path

from ..core import DataError
from ..listing import Clip, Listing, no_validation
from .common import choose, need, present, read_json

LAYOUT = """  rgb/<vid_name>.mp4
  Diving48_V2_train.json  Diving48_V2_test.json  Diving48_vocab.json"""
OFFICIAL = {"train": 15027, "test": 1970}
CLASSES = 48


def listing(root, split: str = "train") -> Listing:
    """The V2 labels (V1's are wrong and refused); "val" is the test part.

    Class 30 has no clip in either part, so a head has 48 outputs and a macro average skips it. Predicting the test part's largest class
    alone gives 8.27 %: read accuracies beside that.
    """
    part = choose("Diving-48", split, {"train": "train", "val": "test", "test": "test"})
    name = f"Diving48_V2_{part}.json"
    if not (Path(root) / name).exists() and (Path(root) / f"Diving48_{part}.json").exists():
        raise DataError(f"Diving-48: {root} holds the V1 labels, which are wrong; get {name}")
    records = read_json(need("Diving-48", root, name, layout=LAYOUT))
    videos = need("Diving-48", root, "rgb", "videos", layout=LAYOUT)
    vocabulary = read_json(need("Diving-48", root, "Diving48_vocab.json", layout=LAYOUT))
    clips = [
        Clip(str(videos / f"{row['vid_name']}.mp4"), {"class": int(row["label"])}, row["vid_name"].rpartition("_")[0]) for row in records
    ]
    names = ["+".join(parts) for parts in vocabulary]
    absent = sorted(set(range(len(names))) - {clip.labels["class"] for clip in clips})
    notes = (f"classes without a clip in this part: {', '.join(map(str, absent))}",) if absent else ()
    notes += no_validation("Diving-48", split)
    return present(Listing("diving48", split, clips, {"class": names}, notes), LAYOUT)
