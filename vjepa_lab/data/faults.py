"""Clips that cannot be read, and data sets that cannot be used: named, counted, and too many of them refused."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fault:
    """One clip that could not be read: which file, and why."""

    path: str
    why: str


class ClipError(Exception):
    """A clip cannot be read. It is skipped and counted; only too many of them stop a run."""

    def __init__(self, path, why):
        self.fault = Fault(str(path), " ".join(str(why).split()) or "unreadable")
        super().__init__(f"{self.fault.path}: {self.fault.why}")

    def __reduce__(self):
        return type(self), (self.fault.path, self.fault.why)


class DataError(ValueError):
    """A data set cannot be used as asked; the message says what was found, what was expected and what to do."""


def listed(faults: list[Fault], most: int = 5) -> str:
    """The first few faults, one a line."""
    more = [f"  ... and {len(faults) - most} more"] if len(faults) > most else []
    return "\n".join([f"  {fault.path}: {fault.why}" for fault in faults[:most]] + more)


@dataclass
class Faults:
    """Counts distinct bad files against the files tried, and says when there are too many to go on.

    Up to `share` of the source may fail. Fewer than 3 files never stop a run, unless they are half of the source, which always does.
    """

    total: int
    share: float = 0.05
    seen: dict[str, str] = field(default_factory=dict)

    @property
    def too_many(self) -> bool:
        """Whether more failed than may; not by a product, whose rounding would refuse 29 of 100 at a share of 0.29."""
        bad = len(self.seen)
        return bad > 0 and (2 * bad >= self.total or (bad >= 3 and bad / self.total > self.share))

    def record(self, faults) -> None:
        """Add faults; raises DataError with the first few names once there are too many."""
        self.seen.update({fault.path: fault.why for fault in faults})
        if self.too_many:
            raise DataError(
                f"{len(self.seen)} of {self.total} files cannot be read, too many to go on (allowed: {self.share:.0%}); "
                f"remove or replace them, or pass bad=SHARE to allow more:\n" + listed([Fault(*item) for item in self.seen.items()])
            )
