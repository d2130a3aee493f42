"""Controls that need no encoder: nearest neighbours of the mean frame and of the mean frame difference."""

import torch
import torch.nn.functional as F

from vjepa_lab import data
from vjepa_lab.evaluation.features import Features, clip_bar
from vjepa_lab.evaluation.probes import ProbeResult, paired, scored


def mean_frame_nn(
    train: data.Source, test: data.Source, label: str = "class", *, benchmark: str | None = None, progress: bool = True
) -> ProbeResult:
    """Nearest neighbour on the mean frame, 24 x 32 pixels, by Euclidean distance: what appearance alone gives, with no encoder."""
    return nearest(*(mean_frame(source, progress) for source in (train, test)), label, benchmark=benchmark)


def frame_difference_nn(
    train: data.Source, test: data.Source, label: str = "class", *, benchmark: str | None = None, progress: bool = True
) -> ProbeResult:
    """Nearest neighbour on the mean absolute difference of successive frames, 24 x 32 pixels: where things move, with no encoder."""
    return nearest(*(frame_difference(source, progress) for source in (train, test)), label, benchmark=benchmark)


def mean_frame(source: data.Source, progress: bool = True) -> Features:
    """The mean frame of every clip, 24 x 32 pixels in [0, 1], as its features."""
    return _pixels(lambda clip: clip.mean(2), source, "mean-frame", progress)


def frame_difference(source: data.Source, progress: bool = True) -> Features:
    """The mean absolute difference of successive frames of every clip, 24 x 32 pixels, as its features."""
    return _pixels(lambda clip: clip.diff(dim=2).abs().mean(2), source, "frame-difference", progress)


def nearest(train: Features, test: Features, label: str = "class", *, benchmark: str | None = None) -> ProbeResult:
    """The label of the nearest training clip by Euclidean distance on the pooled features."""
    train, test = paired(train, test, label)
    near = torch.cdist(test.pooled, train.pooled).argmin(1)
    vote = F.one_hot(train.labels[label][near], len(train.classes[label]))
    return scored(vote, train, test, label, f"{test.encoder}-1nn", benchmark, 0, {"k": 1})


def _pixels(view, source: data.Source, name: str, progress: bool) -> Features:
    """Small frames [n c*24*32] of every clip, in [0, 1]."""
    rows, labels, index = [], [], []
    with clip_bar(source, name, progress) as bar:
        for part in data.loader(source, 64, train=False):
            rows.append(F.interpolate(view(part.clip.float() / 255), (24, 32), mode="area").flatten(1))
            labels.append(part.labels)
            index.append(part.index)
            bar.update(len(part))
    gathered = {name: torch.cat([each[name] for each in labels]) for name in source.classes}
    return Features(torch.cat(rows), gathered, dict(source.classes), torch.cat(index), name=source.name, split=source.split, encoder=name)
