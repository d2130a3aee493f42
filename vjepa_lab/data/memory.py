"""Clips kept in memory as one uint8 tensor, for sources that are read over and over."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .core import Batch, ClipError, DataError, Sample, Source

LIMIT = 8 * 2**30
"""Bytes that a memory cache may take unless told otherwise."""


class Memory(Source):
    """A fixed source (one whose clips do not depend on the epoch), read once into `clips [n c f y x]`; a batch is then one gather."""

    fixed = True

    def __init__(self, source: Source, limit: int = LIMIT, progress: bool = True):
        if not source.fixed:
            raise DataError(f"{source.name} draws new views every epoch; a memory cache would freeze them (open it with augment=False)")
        self.source, self.name, self.split, self.classes, self.bad = source, source.name, source.split, source.classes, source.bad
        first, faults = source.read_or_replace(0, 0)
        need = first.clip.numel() * len(source)
        if need > limit:
            gib = [f"{x / 2**30:.1f} GiB" for x in (need, limit)]
            raise DataError(f"{source.name} needs {gib[0]} in memory, more than the {gib[1]} allowed (limit=BYTES)")
        self.clips = torch.empty((len(source), *first.clip.shape), dtype=torch.uint8)
        self._index, rows = torch.arange(len(source)), []
        for index in tqdm(range(len(source)), desc=f"{source.name} [{source.split}] into memory", disable=not progress, leave=False):
            sample, bad = source.read_or_replace(index, 0)
            self.clips[index], self._index[index] = sample.clip, sample.index
            rows.append(sample.labels)
            faults += bad
        self._labels = {name: torch.tensor([row[name] for row in rows]) for name in self.classes}
        self._bad = {int(i) for i in (self._index != torch.arange(len(source))).nonzero()}
        self.faults.record(faults)

    def __len__(self) -> int:
        return len(self.clips)

    def read(self, index: int, epoch: int = 0) -> Sample:
        if index in self._bad:
            raise ClipError(f"{self.name}[{index}]", "unreadable when cached")
        return Sample(self.clips[index], {name: int(values[index]) for name, values in self._labels.items()}, int(self._index[index]))

    def batch(self, keys, replace: bool = True) -> Batch:
        at = [index for index, _ in keys]
        at = torch.tensor(at if replace else [index for index in at if index not in self._bad], dtype=torch.long)
        return Batch(self.clips[at], {name: values[at] for name, values in self._labels.items()}, self._index[at])

    @cached_property
    def labels(self) -> dict[str, Tensor]:
        return self.source.labels
