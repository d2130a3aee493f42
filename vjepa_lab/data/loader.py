"""Batches in an order that is fixed by the seed alone: endless, reshuffled every epoch, resumable at any batch, exact on any number of
workers and ranks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from .core import Batch, DataError, Mixed, Source, Uncut
from .workers import batches


@lru_cache(maxsize=32)
def shuffled(length: int, seed: int, epoch: int, stream: int = 0) -> np.ndarray:
    """The order of an epoch, a permutation of range(length)."""
    return np.random.default_rng((seed, stream, epoch, 0x5EED)).permutation(length)


def positions(batch: int, step: int, rank: int = 0, world: int = 1) -> range:
    """Which samples of the endless stream batch number `step` holds: a global batch is cut into the ranks' parts, in their order."""
    first = (step * world + rank) * batch
    return range(first, first + batch)


def training_keys(length: int, batch: int, seed: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[list[tuple[int, int]]]:
    """Endless batches of (index, epoch), from batch `start` on.

    Epochs follow one another without a gap: a batch may span two of them, and every clip is seen once an epoch.
    """
    step = start
    while True:
        places = [divmod(place, length) for place in positions(batch, step, rank, world)]
        yield [(int(shuffled(length, seed, epoch)[at]), epoch) for epoch, at in places]
        step += 1


def ordered_keys(length: int, batch: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[list[tuple[int, int]]]:
    """One pass in order, the last batch as small as it comes; batches are dealt to the ranks in turn."""
    for first in range((start * world + rank) * batch, length, batch * world):
        yield [(index, 0) for index in range(first, min(first + batch, length))]


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
    patience: float = 300.0,
) -> Iterator[Batch | Mixed | Uncut]:
    """Batches of `source`, clips uint8 `[b c f y x]`.

    `train=True`: endless, reshuffled every epoch; batch number `start` is the same batch whether reached or resumed at.
    `train=False`: one pass in order; clips that cannot be read are left out. `batch` counts clips of one rank.
    `workers` processes read ahead; one that dies, or rests on one clip for `patience` seconds, costs that clip, not the run.
    Faults are recorded in `source.faults` of the calling process; too many raise DataError.
    """
    if batch < 1:
        raise DataError(f"batch is {batch}; it must be at least 1")
    if workers < 0:
        raise DataError(f"workers is {workers}; it must be at least 0")
    if len(source) == 0:
        raise DataError(f"{source.name} [{source.split}] has no clips")
    keys = source.training_keys(batch, seed, start, rank, world) if train else ordered_keys(len(source), batch, start, rank, world)
    return _run(source, keys, workers, train, pin, patience)


def _run(source: Source, keys, workers: int, replace: bool, pin: bool, patience: float) -> Iterator[Batch | Mixed | Uncut]:
    made = batches(source, keys, workers, replace, patience) if workers else (source.batch(wanted, replace) for wanted in keys)
    for batch in made:
        if batch.faults:
            source.faults.record(batch.faults)
        if len(batch):
            yield batch.pin_memory() if pin else batch
