"""Clips kept in memory as one uint8 tensor, for sources that are read over and over."""

from __future__ import annotations

from functools import cached_property
from math import prod

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .core import Batch, ClipError, DataError, Derived, Sample, Source

LIMIT = 8 * 2**30
"""Bytes that a memory cache may take unless told otherwise."""


def needed(source: Source) -> int:
    """Bytes that a source's clips, of three colours, take in memory, if all are as large as the first."""
    return 3 * prod(source.clip_shape()) * len(source)


class Memory(Derived):
    """A fixed source (one whose clips do not depend on the epoch), read once into `clips [n c f y x]`; a batch is then one gather."""

    def __init__(self, source: Source, limit: int | None = None, progress: bool = True):
        if not source.fixed:
            raise DataError(f"{source.name} draws new views every epoch; a memory cache would freeze them (open it with augment=False)")
        super().__init__(source)
        self.spec, self.options = source.spec, source.options  # its clips are the same
        need, limit = needed(source), LIMIT if limit is None else limit
        if need > limit:
            gib = [f"{x / 2**30:.1f} GiB" for x in (need, limit)]
            raise DataError(f"{source.name} needs {gib[0]} in memory, more than the {gib[1]} allowed (limit=BYTES)")
        self.clips = torch.zeros((len(source), 3, *source.clip_shape()), dtype=torch.uint8)
        self._index, self._still = torch.zeros(len(source), dtype=torch.long), torch.zeros(len(source), dtype=torch.bool)
        for index in tqdm(range(len(source)), desc=f"{source.name} [{source.split}] into memory", disable=not progress, leave=False):
            try:
                self._keep(index, source.attempt(index, 0))
            except ClipError as error:
                self.avoid[index] = error.fault
        self.faults.record(self.avoid.values())

    def _keep(self, index: int, sample: Sample) -> None:
        if sample.clip.shape != self.clips.shape[1:]:
            shapes = f"{tuple(self.clips.shape[1:])} and {tuple(sample.clip.shape)}"
            raise DataError(f"{self.name} has clips of different shapes ({shapes}); a memory cache needs one (images='repeat')")
        self.clips[index], self._index[index], self._still[index] = sample.clip, sample.index, sample.still

    @cached_property
    def labels(self) -> dict[str, Tensor]:
        return self.source.labels

    def read(self, index: int, epoch: int = 0) -> Sample:
        if index in self.avoid:  # its place in memory is black
            raise ClipError(self.avoid[index].path, self.avoid[index].why)
        labels = {name: values[index] for name, values in self.labels.items()}
        return Sample(self.clips[index], labels, int(self._index[index]), bool(self._still[index]))

    def batch(self, keys, replace: bool = True) -> Batch:
        if any(index in self.avoid for index, _ in keys):
            return super().batch(keys, replace)
        at = torch.tensor([index for index, _ in keys])
        labels = {name: values[at] for name, values in self.labels.items()}
        return Batch(self.clips[at], labels, self._index[at], (), self._still[at])
