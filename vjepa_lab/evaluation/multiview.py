"""Several clips of every video: `segments` in time, `views` across the picture, and one prediction per video.

V-JEPA reads the segments together, their tokens one after another in time, and averages the softmax over the views; the classical way
averages it over all clips. SSv2 takes 2 x 3, Diving-48 4 x 3, Kinetics 8 x 3 (vjepa2 configs/eval).
"""

import copy
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from vjepa_lab.data.core import Sample, Source
from vjepa_lab.data.files import Files
from vjepa_lab.evaluation.features import Features, extract

Merge = Literal["tokens", "softmax"]


class OneView(Source):
    """One clip of every video of a `Files` source: segment s of `segments`, view v of `views`, counted from 0."""

    fixed = True

    def __init__(self, source: Files, segments: int, views: int, segment: int, view: int):
        _must_have_views(source)
        self.source = copy.copy(source)
        self.source.sampling, self.source.views = replace(source.sampling, segments=segments), views
        self.which, self.place = (segment, view), segment * views + view
        self.name, self.split, self.classes, self.bad = source.name, source.split, source.classes, source.bad

    def __len__(self) -> int:
        return self.source.files

    @property
    def made_of(self) -> tuple[Source, ...]:
        return (self.source,)

    def read(self, index: int, epoch: int = 0) -> Sample:
        return self.source.read(index * self.source.copies + self.place, epoch)

    @property
    def labels(self) -> dict[str, Tensor]:
        return {name: values[self.place :: self.source.copies] for name, values in self.source.labels.items()}

    def where(self, index: int) -> str:
        return self.source.where(index * self.source.copies)

    def __repr__(self) -> str:
        segment, view = self.which
        counts = f"segment {segment + 1} of {self.source.sampling.segments}, view {view + 1} of {self.source.views}"
        return f"{super().__repr__()}; {counts}"


def _must_have_views(source: Source) -> None:
    if not isinstance(source, Files):
        raise ValueError(f"{source.name or type(source).__name__} has one clip of each sample; segments and views are of video files")
    if source.augment:
        raise ValueError(f"{source.name} is opened for training; segments and views are for evaluation (open it with augment=False)")
    if source.copies > 1:
        raise ValueError(f"{source.name} is opened with segments or views of its own; open it without and pass them here")


def extract_views(encoder: nn.Module, source: Source, segments: int = 1, views: int = 1, *, merge: Merge = "tokens", **options) -> Features:
    """Features of segments x views clips of every video, each clip extracted (and cached) for itself; the clips of a video share its index.

    merge   "tokens": the segments of a view become one clip, their tokens one after another in time; so rows are files x views
            "softmax": every clip stays a row
    options  go to `extract`
    Videos of which a segment cannot be read are left out. Raises ValueError for sources without several clips of a sample.
    """
    if segments < 1 or views < 1:
        raise ValueError(f"segments={segments}, views={views}: expected 1 or more of each")
    if merge not in ("tokens", "softmax"):
        raise ValueError(f"merge={merge!r}: expected 'tokens' (read the segments together) or 'softmax' (average over all clips)")
    if segments * views == 1:
        return extract(encoder, source, **options)
    rows, left = [], 2 * segments * views  # all clips, and once more where they are put together
    also = options.pop("also", 0)
    for view in range(views):
        parts = []
        for segment in range(segments):
            one, left = OneView(source, segments, views, segment, view), left - 1
            parts.append(extract(encoder, one, also=also + left * len(one), **options))
            options |= {"bf16": parts[0].bf16, "settled": True}  # the first clips of the videos decide for all
        rows += [_joined(parts)] if merge == "tokens" else parts
    return replace(_stacked(rows), clips=(segments, views))


def _joined(parts: list[Features]) -> Features:
    """Segments of the same videos as one clip each: tokens one after another, pooled features averaged."""
    if len(parts) == 1:
        return parts[0]
    whole = parts[0].index
    for part in parts[1:]:
        whole = whole[torch.isin(whole, part.index)]
    if not len(whole):
        raise ValueError(f"no video of {parts[0].name} [{parts[0].split}] can be read in all {len(parts)} segments")
    parts = [part if len(part) == len(whole) else part.subset(torch.isin(part.index, whole)) for part in parts]
    first = parts[0]
    tokens = None if first.tokens is None else torch.cat([part.tokens for part in parts], 1)
    t, h, w = first.grid
    return replace(first, pooled=torch.stack([part.pooled for part in parts]).mean(0), tokens=tokens, grid=(len(parts) * t, h, w))


def _stacked(rows: list[Features]) -> Features:
    if len(rows) == 1:
        return rows[0]
    first = rows[0]
    return replace(
        first,
        pooled=torch.cat([part.pooled for part in rows]),
        labels={name: torch.cat([part.labels[name] for part in rows]) for name in first.labels},
        index=torch.cat([part.index for part in rows]),
        tokens=None if first.tokens is None else torch.cat([part.tokens for part in rows]),
    )
