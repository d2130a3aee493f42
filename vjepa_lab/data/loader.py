"""Batches in an order that is fixed by the seed alone: endless, reshuffled every epoch, resumable at any batch, exact on any number of
workers and ranks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .core import Batch, DataError, Source


@lru_cache(maxsize=4)
def shuffled(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, a permutation of range(length)."""
    return np.random.default_rng((seed, epoch, 0x5EED)).permutation(length)


def training_keys(length: int, batch: int, seed: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[list[tuple[int, int]]]:
    """Endless batches of (index, epoch), from batch `start` on.

    Epochs follow one another without a gap, so a batch may span two of them and every clip is seen once an epoch. Position p of the
    stream belongs to global batch p // (batch * world); the ranks take consecutive parts of it.
    """
    step = start
    while True:
        first = (step * world + rank) * batch
        places = [divmod(place, length) for place in range(first, first + batch)]
        yield [(int(shuffled(length, seed, epoch)[at]), epoch) for epoch, at in places]
        step += 1


def ordered_keys(length: int, batch: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[list[tuple[int, int]]]:
    """One pass in order, the last batch as small as it comes; batches are dealt to the ranks in turn."""
    for first in range((start * world + rank) * batch, length, batch * world):
        yield [(index, 0) for index in range(first, min(first + batch, length))]


class _Batches(Dataset):
    """A source read by whole batches, what a worker process runs."""

    def __init__(self, source: Source, replace: bool):
        self.source, self.replace = source, replace

    def __getitems__(self, keys) -> Batch:
        return self.source.batch(keys, self.replace)


def _as_is(batch: Batch) -> Batch:
    return batch


def loader(
    source: Source,
    batch: int,
    *,
    seed: int = 0,
    start: int = 0,
    workers: int = 0,
    train: bool = True,
    rank: int = 0,
    world: int = 1,
    pin: bool = False,
) -> Iterator[Batch]:
    """Batches of `source`, clips uint8 `[b c f y x]`.

    `train=True`: endless, reshuffled every epoch; batch number `start` is the same batch whether reached or resumed at.
    `train=False`: one pass in order; clips that cannot be read are left out. `batch` counts clips of one rank.
    Faults are recorded in `source.faults` of the calling process; too many raise DataError.
    """
    if batch < 1:
        raise DataError(f"batch is {batch}; it must be at least 1")
    if len(source) == 0:
        raise DataError(f"{source.name} [{source.split}] has no clips")
    if train:
        keys = getattr(source, "training_keys", None)  # a mixture draws its own order
        keys = keys(batch, seed, start, rank, world) if keys else training_keys(len(source), batch, seed, start, rank, world)
    else:
        keys = ordered_keys(len(source), batch, start, rank, world)
    return _run(source, keys, workers, replace=train, pin=pin)


def _run(source: Source, keys, workers: int, replace: bool, pin: bool) -> Iterator[Batch]:
    batches = _Batches(source, replace)
    if workers:
        batches = DataLoader(
            batches,
            batch_sampler=keys,
            num_workers=workers,
            collate_fn=_as_is,
            pin_memory=pin,
            prefetch_factor=2,
            generator=torch.Generator().manual_seed(0),  # else starting the workers would advance the global generator
        )
    else:
        batches = map(batches.__getitems__, keys)  # no DataLoader: nothing to start, nothing to copy
    for made in batches:
        if made.faults:
            source.faults.record(made.faults)
        if len(made):
            yield made
