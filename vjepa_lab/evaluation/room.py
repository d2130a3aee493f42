"""Whether what is to be kept of clips fits in memory."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch

GB = 1e9
GROUPS = {"": ("", "memory.max", "memory.current", ""), "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")}
"""Of Linux's control groups of both versions, by what /proc calls them: folder, files of the limit and of what is used, and what the names
of statistics begin with."""


def must_fit(what: str, clips: int, tokens: int, channels: int, dtype: torch.dtype | None) -> None:
    """Raise ValueError where the features of so many clips, [clips channels] float32 and [clips tokens channels] of `dtype`, if any, take
    more memory than there is: memory is given out as it is filled, so a process would only be killed hours later."""
    need = clips * channels * (4 + (tokens * dtype.itemsize if dtype else 0))
    if need <= (there := available()):
        return
    kept = f"{tokens} tokens of {channels} channels in {str(dtype).removeprefix('torch.')}" if dtype else f"{channels} channels"
    raise ValueError(
        f"{what}: features of {clips} clips (segments, views and copies among them; {kept} each) take {need / GB:.3g} GB of memory, "
        f"{there / GB:.3g} GB are available; take fewer clips (limit=), fewer segments or views, the probe 'linear', which keeps the mean "
        "of a clip's tokens alone, or a machine with more memory"
    )


def available() -> float:
    """Bytes that this process can still take: what the machine has left, or less where a control group limits it."""
    return min([psutil.virtual_memory().available, *left_in_groups()])


def left_in_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Bytes left in each control group around this process that has a limit. Pages of files that were read are counted as left: they are
    given up when memory is asked for."""
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controller, place = line.split(":", 2)
        if controller not in GROUPS:
            continue
        below, limit, used, prefix = GROUPS[controller]
        inner = Path(place.lstrip("/"))
        for folder in (root / below / part for part in (inner, *inner.parents)):
            with suppress(OSError, ValueError):  # no such group seen from here; or "max", no limit
                left = int((folder / limit).read_text()) - int((folder / used).read_text())
                stat = dict(each.split() for each in (folder / "memory.stat").read_text().splitlines())
                yield left + sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
