"""One set of accuracies, or many at once, and what a predicate may ask of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .elementwise import FUNCTIONS, Truth, count, every, rounded, some
from .predicates import Env, MissingEvidence

BENCH = ["D-48", "IN-100", "SSv2"]
SYNTHETIC_MOTION = "synthetic-motion"  # the only benchmark of Table 6, whose predicates name none


@dataclass(frozen=True)
class World:
    """One set of accuracies: `values[table][method][benchmark]` in percent, None where the paper left the cell empty too; or many sets at
    once, each value an array `[worlds]`."""

    values: dict[int | str, dict[str, dict[str | None, float | None]]]
    printed: dict[int, list[dict[str, str]]]
    variants: dict[tuple[int | str, str], str] = field(default_factory=dict)
    document: bool = False
    "True when `printed` is the evidence itself, so that predicates may read its rows."

    def _methods(self, table) -> dict[str, dict]:
        if table not in self.values:
            raise MissingEvidence(f"table or regime {table!r}")
        return self.values[table]

    def acc(self, bench, method, table=4):
        rows = self._methods(table)
        method = method if method in rows else self.variants.get((table, method), method)
        if method not in rows:
            raise MissingEvidence(f"{method} in table {table}")
        if bench not in rows[method]:
            raise MissingEvidence(f"{method} on {bench or SYNTHETIC_MOTION} (table {table})")
        return rows[method][bench]

    def delta(self, bench, method, table=4):
        value, base = self.acc(bench, method, table), self.acc(bench, next(iter(self._methods(table))), table)
        if value is None:
            return None
        if base is None:
            raise MissingEvidence(f"the baseline on {bench} (table {table})")
        return rounded(value - base, 2)

    def methods(self, table=4) -> list[str]:
        return list(self._methods(table))[1:]

    def deltas(self, bench, methods=None, table=4) -> list[float]:
        every = [self.delta(bench, method, table) for method in (self.methods(table) if methods is None else methods)]
        return [d for d in every if d is not None]

    def reported(self, method, table=3) -> list[str]:
        return [bench for bench in BENCH if self.acc(bench, method, table) is not None]

    def rank_desc(self, bench, method, table=4) -> int:
        own = self.delta(bench, method, table)
        if own is None:
            raise MissingEvidence(f"{method} on {bench}")
        return 1 + sum(d > own for d in self.deltas(bench, table=table))

    def kin(self) -> list[str]:
        return [method for method in self.methods(3) if method.startswith("Kin.")]

    def dominated(self, method, methods, table=4) -> Truth:
        """Another method is at least as good on every benchmark and better on one."""
        own = [self.delta(bench, method, table) for bench in BENCH]
        others = [[self.delta(bench, other, table) for bench in BENCH] for other in methods if other != method]
        pairs = [list(zip(d, own, strict=True)) for d in others]
        return some(every(o >= m for o, m in each) & some(o != m for o, m in each) for each in pairs)

    def value(self, table, row, column=None) -> str:
        first = next(iter(self.printed[table][0]))
        found = next((r for r in self.printed[table] if r[first] == row), None)
        if found is None:
            raise MissingEvidence(f"row {row!r} of table {table}")
        return found[column or list(found)[1]]

    @cached_property
    def env(self) -> Env:
        own = {
            name: getattr(self, name)
            for name in ("acc", "delta", "deltas", "methods", "reported", "rank_desc", "kin", "dominated", "value")
        }
        tables = self.printed if self.document else _Unreadable()
        return (
            FUNCTIONS
            | own
            | {"BENCH": BENCH, "T": tables, "count": count, "spearman": _spearman, "num": _num, "near": 0 if self.document else 1}
        )


class Worlds(Sequence[World]):
    """Many worlds of the same cells: one by one, and all `together`.

    accuracies: `[worlds cells]` in percent. world: makes a world of the cells' values, each a number or an array.
    """

    def __init__(self, accuracies: np.ndarray, world: Callable[[Sequence], World]):
        self._accuracies, self._world = accuracies, world

    def __len__(self) -> int:
        return len(self._accuracies)

    def __getitem__(self, k: int | slice) -> World | Worlds:
        return Worlds(self._accuracies[k], self._world) if isinstance(k, slice) else self._world(self._accuracies[k].tolist())

    @cached_property
    def together(self) -> World:
        return self._world(list(np.ascontiguousarray(self._accuracies.T)))


class _Unreadable:
    def __getitem__(self, table):
        raise MissingEvidence("the rows of a printed table (this evidence is not the document)")


def _spearman(x: Sequence, y: Sequence) -> float | np.ndarray:
    from scipy.stats import rankdata

    if len(x) != len(y) or len(x) < 3:
        raise MissingEvidence("equally many deltas on both benchmarks")
    ranks = rankdata(np.reshape(np.broadcast_arrays(*x, *y), (2, len(x), -1)), axis=1)  # [2 methods worlds]
    a, b = ranks - ranks.mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):  # all alike: no correlation
        found = (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0))
    return found if len(found) > 1 else float(found[0])


def _num(text: str) -> float:
    """The first number in a text: "~1,224 GPU-h" -> 1224."""
    return float(re.search(r"\d[\d,]*(?:\.\d+)?", text)[0].replace(",", ""))
