"""Several sources as one, every sample drawn by weight."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from .core import NO_LABEL, DataError, Sample, Source
from .loader import positions, shuffled

BLOCK = 1 << 14
"""Draws that are made at once."""


class Mixture(Source):
    """Sources in proportion to `weights` (any positive numbers), whatever their sizes.

    Sample number p of the endless stream comes from a source drawn by weight; each source is gone through in its own reshuffled epochs. The
    draw depends on (seed, p) alone, so the stream is the same on any number of workers and ranks, and resumes to the sample.
    Labels are prefixed by their source's name ("ucf101.class"), -1 elsewhere; "source" says which one it was.
    """

    def __init__(self, sources: list[Source], weights: list[float], split: str = "train"):
        if len(sources) != len(weights) or not sources or not all(0 < weight < math.inf for weight in weights):
            raise DataError(f"a mixture needs one positive weight per source; got {len(sources)} sources and the weights {list(weights)}")
        self.sources, self.split = sources, split
        self.weights = tuple(weight / sum(weights) for weight in weights)
        self.names = _distinct([source.name for source in sources])
        self.name = " + ".join(f"{weight:.3g}*{name}" for weight, name in zip(self.weights, self.names, strict=True))
        self.classes = {"source": self.names}
        self.classes |= {f"{n}.{label}": names for n, s in zip(self.names, sources, strict=True) for label, names in s.classes.items()}
        self.fixed = all(source.fixed for source in sources)
        self.bad = max(source.bad for source in sources)
        self.ends = list(accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self.ends[-1]

    @property
    def made_of(self) -> list[Source]:
        return self.sources

    @property
    def augment(self) -> bool:
        return any(source.augment for source in self.sources)

    def place(self, index: int) -> tuple[int, int]:
        """Which source an index belongs to, and its index there."""
        which = bisect_right(self.ends, index)
        return which, index - (self.ends[which] - len(self.sources[which]))

    def read(self, index: int, epoch: int = 0) -> Sample:
        which, inner = self.place(index)
        return self._own(which, self.sources[which].read(inner, epoch))

    def clip_shape(self, index: int = 0) -> tuple[int, int, int]:
        which, inner = self.place(index)
        return self.sources[which].clip_shape(inner)

    def spares(self, index: int, most: int) -> list[int]:
        """Stand-ins come from the same source, which keeps the weights."""
        which, inner = self.place(index)
        return [index - inner + spare for spare in self.sources[which].spares(inner, most)]

    def _own(self, which: int, sample: Sample) -> Sample:
        labels = {f"{self.names[which]}.{name}": value for name, value in sample.labels.items()}
        first = self.ends[which] - len(self.sources[which])
        return replace(sample, labels={"source": which, **labels}, index=first + sample.index)

    def where(self, index: int) -> str:
        which, inner = self.place(index)
        return self.sources[which].where(inner)

    def training_keys(self, batch: int, seed: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[list[tuple[int, int]]]:
        step = start
        while True:
            yield [self.draw(seed, place) for place in positions(batch, step, rank, world)]
            step += 1

    def draw(self, seed: int, place: int) -> tuple[int, int]:
        """The (index, epoch) of sample number `place` of the endless stream."""
        block, at = divmod(place, BLOCK)
        which = int(_choices(self.weights, seed, block)[at])
        epoch, inner = divmod(int(_turns(self.weights, seed, block)[at]), len(self.sources[which]))
        first = self.ends[which] - len(self.sources[which])
        return first + int(shuffled(len(self.sources[which]), seed, epoch, 1 + which)[inner]), epoch

    @cached_property
    def labels(self) -> dict[str, Tensor]:
        found = {"source": torch.repeat_interleave(torch.tensor([len(source) for source in self.sources]))}
        for which, source in enumerate(self.sources):
            first = self.ends[which] - len(source)
            for name, values in source.labels.items():  # [n], multi-label [n classes]
                column = torch.full((len(self), *values.shape[1:]), NO_LABEL, dtype=torch.promote_types(values.dtype, torch.long))
                column[first : self.ends[which]] = values
                found[f"{self.names[which]}.{name}"] = column
        return {name: found.get(name, torch.full((len(self),), NO_LABEL)) for name in self.classes}

    def __repr__(self) -> str:
        return "\n".join([f"{self.name} [{self.split}]", *(f"  {w:.1%} {s!r}" for w, s in zip(self.weights, self.sources, strict=True))])


@lru_cache(maxsize=8)
def _choices(weights: tuple[float, ...], seed: int, block: int) -> np.ndarray:
    """Which source each draw of a block takes."""
    return np.random.default_rng((seed, block, 0x317)).choice(len(weights), size=BLOCK, p=weights)


@lru_cache(maxsize=8)
def _turns(weights: tuple[float, ...], seed: int, block: int) -> np.ndarray:
    """How often each draw's source had been drawn before it, since the stream's beginning."""
    earlier = sum(
        (np.bincount(_choices(weights, seed, past), minlength=len(weights)) for past in range(block)), np.zeros(len(weights), int)
    )
    choices = _choices(weights, seed, block)
    hits = np.cumsum(choices[:, None] == np.arange(len(weights)), axis=0)
    return earlier[choices] + hits[np.arange(BLOCK), choices] - 1


def _distinct(names: list[str]) -> list[str]:
    """Names that occur twice get a number."""
    return [f"{name}{names[:i].count(name) + 1}" if names.count(name) > 1 else name for i, name in enumerate(names)]
