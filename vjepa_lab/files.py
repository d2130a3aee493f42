"""Files that are put in place whole or not at all, and what one of them says otherwise."""

import glob
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LEFT_S = 600.0
"A half-written file that nobody has touched for so many seconds is left over from a kill."


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to the path given, then put the whole file in place at once: a reader sees the old one or the new one.

    If writing fails (a full disk, say) the old one stays and nothing is left behind. Each writer has a half-written file of its own: of
    several at once the last to end has its file in place, whole. What a kill leaves is removed by a later writer of the same file.
    """
    _tidy(path)
    part = path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # the folder's entry too; not every file system can
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _tidy(path: Path) -> None:
    """Remove half-written files that kills have left."""
    for part in path.parent.glob(f"{glob.escape(path.name)}.*-*.part"):
        with suppress(OSError):  # another was first; or the disk does not let go of it, which is no obstacle
            if time.time() - part.lstat().st_mtime > LEFT_S:
                part.unlink()


def write_json(path: Path, value) -> None:
    """Put a value in place as JSON; what JSON does not know, such as a path, as text."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=1, default=str) + "\n")


def differing(there: dict, asked: dict, show: Callable = repr) -> list[str]:
    """In words, what of `asked` a folder's config.json says otherwise; in a dict the fields, unless `show` shortens it as a whole."""
    found = []
    for name, value in asked.items():
        known = there.get(name)
        if known == value:
            continue
        fields = []
        if show is repr and isinstance(known, dict) and isinstance(value, dict):
            fields = differing(known, dict.fromkeys(known) | value)
        found += [f"{name}.{field}" for field in fields] or [f"{name}: {show(known)} there, {show(value)} asked"]
    return found
