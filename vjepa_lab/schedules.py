"""Weights that change over training."""

import math
from dataclasses import dataclass, replace

from vjepa_lab.values import Value, number, plain


@dataclass(frozen=True, repr=False)
class Schedule(Value):
    """A weight that changes over training: called with progress in [0, 1]. `schedule * term` weighs a term by it."""

    start: float
    end: float

    def __post_init__(self):
        super().__post_init__()
        for value in (self.start, self.end):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{self!r}: expected finite numbers to start and end with")

    def __call__(self, progress: float) -> float:
        raise NotImplementedError(f"{type(self).__name__} must say its value at a progress between 0 and 1")

    def __mul__(self, other):
        if isinstance(other, Schedule):
            raise TypeError(f"cannot multiply two schedules, {self!r} and {other!r}")
        other = plain(other)
        if isinstance(other, int | float):
            return replace(self, start=self.start * other, end=self.end * other)
        if isinstance(other, Value):  # a term or an objective, which knows how
            return NotImplemented
        raise TypeError(f"cannot multiply {self!r} by {other!r}: expected a number, a Term or an Objective")

    __rmul__ = __mul__


@dataclass(frozen=True, repr=False)
class Cosine(Schedule):
    """Half a cosine from `start` to `end` over the whole training."""

    def __call__(self, progress: float) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2


@dataclass(frozen=True, repr=False)
class Ramp(Schedule):
    """`start` until progress `begin`, then linear, `end` from progress `until` on (V-JEPA 2.1: 0 to 0.5 from half-way to the end)."""

    begin: float = 0.0
    until: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        number(self, begin=0, until=0)
        if not 0 <= self.begin <= self.until <= 1:
            raise ValueError(f"{self!r}: expected shares of the training, 0 <= begin <= until <= 1")

    def __call__(self, progress: float) -> float:
        share = (progress - self.begin) / max(self.until - self.begin, 1e-12)
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)


Weight = float | Schedule
