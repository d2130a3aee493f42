"""Python's own functions on numbers, and on arrays that hold a number for each of many worlds: one meaning, elementwise.

What has no elementwise meaning (the order of arrays, a set of them) raises, as numpy does, and is asked world by world then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from statistics import mean

import numpy as np

Truth = bool | np.ndarray


def is_number(x) -> bool:
    return isinstance(x, int | float | np.ndarray) and not isinstance(x, bool)


def as_number(x):
    """Truths count as 0 and 1, as Python's do; numpy would join them by "or"."""
    return x.astype(int) if isinstance(x, np.ndarray) and x.dtype == bool else x


def truth(x) -> Truth:
    return x.astype(bool) if isinstance(x, np.ndarray) else bool(x)


def every(xs: Iterable) -> Truth:
    """`all`: what comes after one that is false in all worlds is not asked."""
    found: Truth = True
    for x in xs:
        found = found & truth(x)
        if not np.any(found):
            return False
    return found


def some(xs: Iterable) -> Truth:
    """`any`: what comes after one that is true in all worlds is not asked."""
    found: Truth = False
    for x in xs:
        found = found | truth(x)
        if np.all(found):
            return True
    return found


def no(x) -> Truth:
    return ~truth(x) if isinstance(x, np.ndarray) else not x


def count(xs: Iterable):
    return sum(map(truth, xs))


def rounded(x, digits: int | None = None):
    """`round`: near a tie by Python's own, since numpy's takes other sides (0.35 is a little less than it says)."""
    if not isinstance(x, np.ndarray):
        return round(x, digits)
    out = np.round(x, digits or 0)
    near = np.abs(np.abs(x) * 10.0 ** (digits or 0) % 1 - 0.5) < 1e-6
    out[near] = [round(each, digits) for each in x[near].tolist()]
    return out


def _mean(xs: Iterable):
    xs = list(xs)
    return sum(xs) / len(xs) if any(isinstance(x, np.ndarray) for x in xs) else mean(xs)


def _extreme(own: Callable, of_two: Callable) -> Callable:
    def extreme(*given, **options):
        items = list(given[0]) if len(given) == 1 else given
        arrays = not options and any(isinstance(x, np.ndarray) for x in items)
        return reduce(of_two, items) if arrays else own(items, **options)

    return extreme


FUNCTIONS: dict[str, Callable] = {f.__name__: f for f in (abs, len, sum, sorted, set, zip, float, int)} | {
    "all": every,
    "any": some,
    "min": _extreme(min, np.minimum),
    "max": _extreme(max, np.maximum),
    "round": rounded,
    "mean": _mean,
}
"""Python's functions by their names."""
