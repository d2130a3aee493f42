"""Controls that need no encoder: nearest neighbours of the mean frame and of the mean frame difference."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from vjepa_lab import data
from vjepa_lab.evaluation.features import Features, clip_bar
from vjepa_lab.evaluation.probes import ProbeResult, paired, scored

VIEWS = {"mean-frame": lambda clip: clip.mean(2), "frame-difference": lambda clip: clip.diff(dim=2).abs().mean(2)}
"""What is made of a clip [b c f y x] in [0, 1]: small pictures [b c y x]."""


def mean_frame_nn(
    train: data.Source, test: data.Source, label: str = "class", *, benchmark: str | None = None, progress: bool = True
) -> ProbeResult:
    """Nearest neighbour on the mean frame, 24 x 32 pixels, by Euclidean distance: what appearance alone gives, with no encoder."""
    return nearest(*(small(source, ["mean-frame"], progress)[0] for source in (train, test)), label, benchmark=benchmark)


def frame_difference_nn(
    train: data.Source, test: data.Source, label: str = "class", *, benchmark: str | None = None, progress: bool = True
) -> ProbeResult:
    """Nearest neighbour on the mean absolute difference of successive frames, 24 x 32 pixels: where things move, with no encoder."""
    return nearest(*(small(source, ["frame-difference"], progress)[0] for source in (train, test)), label, benchmark=benchmark)


def nearest(train: Features, test: Features, label: str = "class", *, benchmark: str | None = None) -> ProbeResult:
    """The label of the nearest training clip by Euclidean distance on the pooled features."""
    train, test = paired(train, test, label)
    near = torch.cat([torch.cdist(some, train.pooled).argmin(1) for some in test.pooled.split(1024)])  # not all distances at once
    vote = F.one_hot(train.labels[label][near], len(train.classes[label]))
    return scored(vote, train.labels[label], test, label, f"{test.encoder}-1nn", benchmark, 0, {"k": 1})


def small(source: data.Source, views: Sequence[str] = tuple(VIEWS), progress: bool = True, workers: int = 0) -> list[Features]:
    """Features of each of some VIEWS, 24 x 32 pixels in [0, 1] of every clip as [n c*24*32], in one pass over the clips, which `workers`
    processes read ahead."""
    rows, labels, index = {name: [] for name in views}, [], []
    with clip_bar(source, " and ".join(views), progress) as bar:
        for part in data.loader(source, 64, train=False, workers=workers):
            clip = part.clip.float() / 255
            for name, kept in rows.items():
                kept.append(F.interpolate(VIEWS[name](clip), (24, 32), mode="area").flatten(1))
            labels.append(part.labels)
            index.append(part.index)
            bar.update(len(part))
    gathered = {name: torch.cat([each[name] for each in labels]) for name in source.classes}
    about = {"name": source.name, "split": source.split}
    known = gathered, dict(source.classes), torch.cat(index)
    return [Features(torch.cat(kept), *known, **about, encoder=name) for name, kept in rows.items()]
