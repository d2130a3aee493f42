"""Time, share of the attainable rate, and tables."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def interleaved(contenders: dict[str, Callable[[], None]], repeats: int, device: torch.device, warmup: int = 2) -> dict[str, list[float]]:
    """Milliseconds of each contender, in turn, so that a noisy machine disturbs all alike."""
    sync = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(warmup + repeats):
        for name, run in contenders.items():
            sync()
            start = time.perf_counter()
            run()
            sync()
            if round_ >= warmup:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def spread(ms: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of a contender's times."""
    low, middle, high = statistics.quantiles(ms, n=4) if len(ms) > 1 else [ms[0]] * 3
    return {"ms": middle, "q1": low, "q3": high}


def ratio(ms: Sequence[float], against: Sequence[float]) -> float:
    """How many times as long `against` takes: the median over rounds, in each of which both had their turn."""
    return statistics.median(b / a for a, b in zip(ms, against, strict=True))


def gemm_rate(rows: int, width: int, dtype: torch.dtype, device: torch.device, seconds: float = 0.5) -> float:
    """GFLOP/s of a matrix product [rows width] x [width 4*width], the shape that most of the step's work has."""
    a, b = torch.randn(rows, width, dtype=dtype, device=device), torch.randn(width, 4 * width, dtype=dtype, device=device)
    times = interleaved({"": lambda: a @ b}, max(5, int(seconds / 0.01)), device)[""]
    return 8 * rows * width**2 / statistics.median(times) / 1e6


def show(rows: list[dict], columns: dict[str, str], title: str = "") -> str:
    """Rows as a table for the terminal; `columns` gives each one's format, what is missing stays blank."""

    def cell(row: dict, name: str, form: str) -> str:
        value = row.get(name)
        return "" if value is None or value != value else format(value, form)

    table = [[name.replace("_", " ") for name in columns], *([cell(row, *column) for column in columns.items()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    left = [form == "s" for form in columns.values()]
    lines = ["  ".join(c.ljust(w) if l else c.rjust(w) for c, w, l in zip(line, widths, left, strict=True)).rstrip() for line in table]
    return "\n".join([title, *lines] if title else lines)
