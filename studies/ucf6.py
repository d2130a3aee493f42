"""A check on real video beside the reference study: six classes of UCF-101, four objectives, three seeds, at micro size.

    VJEPA_CLIPS=/data/ucf101_6cls_128p python -m vjepa_lab study run studies/ucf6.py

VJEPA_CLIPS is a folder with a folder of clips per class (Archery, BasketballDunk, HorseRace, PlayingPiano, PlayingViolin, Surfing), under
their UCF-101 names: groups 1 to 7 are the test set, as in split 1. With groups 1, 2 and 8 to 11 of each class that is 120 clips to train on
and 62 to test: enough to see that real video goes through, too few to rank objectives.
"""

import os

from vjepa_lab.study import Benchmark, Regime, Study

CLIPS = os.environ.get("VJEPA_CLIPS", "data/ucf101_6cls_128p")

study = Study(
    "ucf6",
    variants=("baseline", "fwm-hw-ld", "ld", "random-init"),
    regimes=(Regime("ucf6", CLIPS),),
    benchmarks=(Benchmark("class"), Benchmark("edits", data=f"time:{CLIPS}", labels=("edit",))),
    seeds=range(3),
    preset="micro",
    keep="model",
)
