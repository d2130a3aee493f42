"""Claims on folders that several processes, perhaps on several machines, may want to write: one owner at a time, seen by all.

A claim is a file made in one atomic step, with the owner's machine, process and time in it; while the owner lives it touches the file.
On the owner's machine a dead owner is recognised at once and its claim taken over. Of another machine's owner only the last sign of life
is known: such a claim is respected unless the caller says after which silence it is void.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

NAME = "claim.json"
BEAT_S = 10.0


@dataclass(frozen=True)
class Owner:
    """Who holds a claim. `born` tells a process from a later one with its number; `world` names the machine's process numbering."""

    host: str
    world: str
    pid: int
    born: str
    user: str
    since: float
    token: str

    @classmethod
    def me(cls) -> Owner:
        return cls(platform.node(), _world(), os.getpid(), _born(os.getpid()) or "", _user(), time.time(), uuid.uuid4().hex)

    @property
    def here(self) -> bool:
        """Whether its process would be seen from this one."""
        return (self.host, self.world) == (platform.node(), _world())

    @property
    def dead(self) -> bool:
        """Whether its process is known to be gone."""
        if not self.here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return bool(self.born) and _born(self.pid) != self.born


class Claimed(RuntimeError):
    """Somebody else holds the claim; the message says who, since when, and when it was last heard of."""

    def __init__(self, folder: Path, owner: Owner | None, silent_s: float):
        self.folder, self.owner, self.silent_s = folder, owner, silent_s
        who = f"process {owner.pid} of {owner.user} on {owner.host}, since {_clock(owner.since)}" if owner else "somebody"
        super().__init__(f"{folder} is in the hands of {who}; last sign of life {age(silent_s)} ago")


def holder(folder: str | Path) -> Claimed | None:
    """Who holds the claim on a folder, as the error that claiming it would raise; None if it is free or its owner is dead."""
    path = Path(folder) / NAME
    try:
        owner, silent = _read(path), time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None
    if (owner is None and silent > 60) or (owner and owner.dead):
        return None
    return Claimed(Path(folder), owner, silent)


@contextmanager
def claim(folder: str | Path, void_after_s: float | None = None, beat_s: float = BEAT_S) -> Iterator[Owner]:
    """Hold a folder while the block runs. Raises Claimed if another does.

    void_after_s  a claim of another machine that was silent for so long is taken over; None: never
    If the claim is lost all the same, this process gets SIGTERM.
    """
    path, me = Path(folder) / NAME, Owner.me()
    path.parent.mkdir(parents=True, exist_ok=True)
    _take(path, me, void_after_s)
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, me, beat_s, over), daemon=True)
    beating.start()
    try:
        yield me
    finally:
        over.set()
        beating.join()
        if _mine(path, me):
            path.unlink(missing_ok=True)


def _take(path: Path, me: Owner, void_after_s: float | None) -> None:
    for _ in range(5):
        if _create(path, me):
            return
        if (other := holder(path.parent)) and (void_after_s is None or other.silent_s < void_after_s):
            raise other
        _clear(path)
    raise Claimed(path.parent, _read(path), 0.0)


def _clear(path: Path) -> None:
    """Remove a void claim. Only one process does it at a time, so that none removes the claim that another has just put in its place."""
    guard = path.with_name(path.name + ".taking")
    with suppress(FileNotFoundError):
        if time.time() - guard.stat().st_mtime > 60:  # its owner died within these few lines
            guard.unlink()
    seen = _stamp(path)
    try:
        os.close(os.open(guard, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        time.sleep(0.1)
        return
    try:
        if seen is not None and _stamp(path) == seen:
            path.unlink(missing_ok=True)
    finally:
        guard.unlink(missing_ok=True)


def _stamp(path: Path) -> tuple | None:
    with suppress(FileNotFoundError):
        known = path.stat()
        return known.st_ino, known.st_mtime_ns, known.st_size
    return None


def _create(path: Path, me: Owner) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(me), file)
        file.flush()
        os.fsync(file.fileno())
    return True


def _read(path: Path) -> Owner | None:
    """The owner; None while the claim is being written, or if that was cut short."""
    try:
        return Owner(**json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError):
        return None


def _mine(path: Path, me: Owner) -> bool:
    with suppress(FileNotFoundError):
        owner = _read(path)
        return owner is not None and owner.token == me.token
    return False


def _beat(path: Path, me: Owner, every_s: float, over: threading.Event) -> None:
    while not over.wait(every_s):
        with suppress(OSError):  # a shared file system may be away for a while
            if _mine(path, me):
                os.utime(path)
            elif path.parent.is_dir() and not over.is_set():
                os.kill(me.pid, signal.SIGTERM)
                return


def _world() -> str:
    """Processes of two containers may have one host's name and yet not see each other."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _born(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None where that is not to be had."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None


def _user() -> str:
    with suppress(OSError, KeyError, ImportError):
        return getpass.getuser()
    return "unknown"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def age(seconds: float) -> str:
    """A time span in one unit: 40 s, 12 min, 3.5 h."""
    return f"{max(seconds, 0):.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
