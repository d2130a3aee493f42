"""The paper's study, whole: both regimes, all rows in two editions and the controls, five seeds each.

    VJEPA_DATA=/data python -m vjepa_lab study plan studies/paper.py                   # 4 GPUs a run, as in the paper (--how gpus=1: one)
    VJEPA_DATA=/data python -m vjepa_lab study run studies/paper.py --preset small     # one GPU a run, ViT-S
    python -m vjepa_lab study run studies/paper.py --preset micro                      # a laptop, on the procedural world

VJEPA_DATA is the folder that holds ucf101, ssv2, imagenet100 and diving48 (data/README.md says how to get them). The first comparisons are
those that its abstract makes; with their seeds done, the rest only adds rows.

The probes are V-JEPA's attentive head, on frames spread over the whole video as in the published evaluation, and a linear one; `--only
released` has the rows as the published code trains them. UCF-101 is pretrained on the training part of split 1: the paper's 13K clips are
all three parts, test clips among them.
"""

import os
from dataclasses import replace
from pathlib import Path

from vjepa_lab import variants
from vjepa_lab.study import Benchmark, Regime, Study

DATA = Path(os.environ.get("VJEPA_DATA", "data"))
UCF, SSV2, IN100, D48 = (f"{name}:{DATA / name}" for name in ("ucf101", "ssv2", "imagenet100", "diving48"))

paper = Study(
    "paper",
    variants=variants.names("sound"),
    first=("baseline", "fwm-hw-ld", "ld", "fwm", "hw", "fwm-ld", "hw-ld", "fwm-hw", "random-init"),
    editions=("sound", "released"),
    regimes=(Regime("mixed", f"0.2*{UCF} + 0.6*{SSV2} + 0.2*{IN100}"), Regime("ucf101", UCF)),
    benchmarks=(
        Benchmark("D-48", D48, probe="attentive", options={"benchmark": "D-48", "whole": True}),
        Benchmark("IN-100", IN100, splits=("train", "val"), options={"benchmark": "IN-100"}),
        Benchmark("SSv2", SSV2, probe="attentive", splits=("train", "val"), options={"benchmark": "SSv2", "whole": True}),
    ),
    preset="base",
    keep="model",
    gpus=4,
    workers=8,
)
small = replace(paper, name="paper-small", preset="small", gpus=1)
micro = replace(
    paper, name="paper-micro", preset="micro", gpus=1, workers=0,
    regimes=(Regime("plain", "synthetic:plain"),),
    benchmarks=(Benchmark("factors", labels=("motion", "speed", "shape", "texture")),),
)  # fmt: skip


def study(preset: str = "paper") -> Study:
    smoke = replace(micro, name="paper-smoke", preset="smoke", editions=("sound",))
    sizes = {"paper": paper, "small": small, "micro": micro, "smoke": smoke}
    if preset not in sizes:
        raise ValueError(f"the paper's study has the sizes {', '.join(sizes)}; got {preset!r}")
    return sizes[preset]
