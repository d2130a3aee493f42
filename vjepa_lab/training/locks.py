"""Locks on folders that processes of several machines may want to write: one owner at a time, named to all others.

A lock is a file that appears in one atomic step (a hard link, sound on NFS too) with its owner's machine and process in it; a living owner
touches it every few seconds. On the owner's own machine a dead owner is recognised at once, also one from before a restart, and its lock
taken over. Of another machine's owner only the last sign of life is known: its lock is respected, and the refusal says how to remove it;
or the caller says which silence voids it. An owner that was merely silent (suspended, say) finds its lock lost when it wakes, and is to
write nothing more (`Held.check`).
"""

import json
import math
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

BEAT_S = 10.0
UNFINISHED_S = 60.0  # what is written beside a lock, or a lock without an owner in it, is left over from a kill when it is this old
TELL_S = 5.0
"Seconds after which one who waits for a lock is told for whom."


class Locked(OSError):
    """Somebody else writes this folder."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lock. `born` tells a process from a later one of the same number, `world` names what numbers the processes, `machine`
    the installation that they run on, through every restart of it, `job` the scheduler's job and how often that was started again; empty
    where that is not to be had."""

    host: str
    world: str
    pid: int
    born: str
    since: str
    token: str
    machine: str = ""
    job: str = ""

    @classmethod
    def me(cls) -> "Owner":
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(platform.node(), _world(), os.getpid(), _born(os.getpid()), now, uuid.uuid4().hex, _machine(), _job())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"

    @property
    def near(self) -> bool:
        """Whether its process is one of those that this machine (and container) numbers."""
        return self.host == platform.node() and self.world == _world()

    @property
    def replaced(self) -> bool:
        """Whether it belongs to an earlier start of the scheduler's job that this process belongs to."""
        its, mine = self.job.split(), _job().split()
        return bool(its and mine) and its[:-1] == mine[:-1] and int(its[-1]) < int(mine[-1])

    @property
    def dead(self) -> bool:
        """Whether its process is known to be gone: only on a machine (and in a container) that can tell."""
        if self.host != platform.node():
            return False
        if (world := _world()) != self.world:  # another container is not to be seen into, but none outlives a restart
            return bool(self.machine) and self.machine == _machine() and _start(self.world) not in ("", _start(world))
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return bool(self.born) and _born(self.pid) != self.born


class Held:
    """A lock as its owner sees it. `lost` says how it went to another, for good; empty while it is ours."""

    def __init__(self, path: Path, me: Owner):
        self.path, self.me, self.lost = path, me, ""

    def look(self) -> bool:
        """Whether it is still ours. What cannot be read now, such as on a disk that is away for a while, counts as ours until it can."""
        with suppress(OSError, ValueError, TypeError):
            try:
                owner = Owner(**json.loads(self.path.read_text()))
            except FileNotFoundError:
                self.lost = self.lost or f"{self.path} was removed, as if this process were gone"
            else:
                if owner.token != self.me.token:
                    self.lost = f"it was taken over by {owner}, which had not heard of this one for too long (was it suspended?)"
        return not self.lost

    def check(self) -> None:
        """Raise Locked if the lock is lost; to be called before anything is written."""
        if not self.look():
            raise Locked(
                f"{self.path.parent} is no longer this process's to write: {self.lost}. It stops, and leaves the folder to the other; once "
                "that has ended, the same call goes on from what is there"
            )


@contextmanager
def hold(
    folder: str | Path,
    *,
    name: str = "lock",
    patience_s: float = 3.0,
    void_after_s: float | None = None,
    beat_s: float = BEAT_S,
    option: str = "out=",
) -> Iterator[Held]:
    """Be the only one to write `folder` (made if need be) while the block runs.

    patience_s    how long to wait for a holder that may be on its way out; who waits for long is told once, on stderr, for whom
    void_after_s  a holder that was silent for so long, on whatever machine, has lost the lock; None: never
    option        what the caller's user says to choose another folder
    Raises Locked, with the holder's name and what to do.
    """
    path, me = Path(folder) / name, Owner.me()
    tell, until = time.monotonic() + TELL_S, time.monotonic() + patience_s
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while not _take(path, me, void_after_s):
            if time.monotonic() > until:
                raise Locked(refusal(path, option))
            if time.monotonic() > tell:
                tell = math.inf
                print(f"vjepa-lab: {_waiting(path, until - time.monotonic(), void_after_s)}", file=sys.stderr)
            time.sleep(0.1)
    except OSError as error:
        if isinstance(error, Locked):
            raise
        raise OSError(f"{path.parent}: no folder that can be written ({error.strerror}); choose another with {option}") from error
    held, over = Held(path, me), threading.Event()
    beating = threading.Thread(target=_beat, args=(held, beat_s, over), daemon=True)
    beating.start()
    try:
        yield held
    finally:
        over.set()
        beating.join()
        if (owner := _owner(path)) and owner.token == me.token:
            path.unlink(missing_ok=True)


def holder(folder: str | Path, name: str = "lock") -> tuple[Owner | None, float] | None:
    """Who holds a folder (None while the lock is being written) and the seconds since the last sign of life; None if it is free."""
    path = Path(folder) / name
    owner = _owner(path)
    silent = _silence(path)
    # A job is queued again as soon as its node does not answer, which may still be writing for a while.
    void = (owner.dead or (owner.replaced and silent > UNFINISHED_S)) if owner else not path.exists() or silent > UNFINISHED_S
    return None if void else (owner, silent)


def refusal(path: Path, option: str = "out=") -> str:
    """Who holds the lock, since when, last heard of when, and what can be done."""
    owner, silent = _owner(path), _silence(path)
    return (
        f"{path.parent} is being written by {owner or 'another process'}; last sign of life {silent:.0f} s ago. Choose another folder with "
        f"{option}, or stop that process; if it is gone for certain, remove {path}"
    )


def _waiting(path: Path, patience_s: float, void_after_s: float | None) -> str:
    """What is waited for, who has it since when, and until when."""
    owner, silent = _owner(path), _silence(path)
    file = path.with_suffix("")
    wanted = file if file.suffix else path.parent  # rows.csv.lock is of a file, collect.lock of its folder
    void_s = math.inf if void_after_s is None else void_after_s
    left = {
        "at the latest until": patience_s,
        "or, if it gives no further sign of life, until": (void_s if owner else min(void_s, UNFINISHED_S)) - silent,
    }
    ends = [f", {word} {time.strftime('%H:%M:%S', time.localtime(time.time() + s))}" for word, s in left.items() if s < math.inf]
    who = f"{owner or 'another process'} is done with it (last sign of life {silent:.0f} s ago)"
    return f"waiting to write {wanted} until {who}{''.join(ends)}"


def _take(path: Path, me: Owner, void_after_s: float | None) -> bool:
    """Make the lock file, after a dead owner's was put away."""
    if (owner := _owner(path)) and owner.token == me.token:  # NFS may have failed to say so of a link that it made
        return True
    seen = _stamp(path)
    held = holder(path.parent, path.name)
    if seen and (held is None or (void_after_s is not None and held[1] > void_after_s)):
        _put_away(path, seen)
    if path.exists():
        return False
    draft = path.with_name(f"{path.name}.{me.token}")  # a kill while it is written leaves no lock that names nobody
    try:
        _write(draft, me)
        try:
            os.link(draft, path)
        except FileExistsError:  # NFS may say so of a link that it made
            return (owner := _owner(path)) is not None and owner.token == me.token
        except OSError:  # a file system without hard links
            return _write(path, me)
    finally:
        draft.unlink(missing_ok=True)
    _tidy(path)
    return True


def _write(path: Path, me: Owner) -> bool:
    """Make a file that names its owner; False where there is one already."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(me), file)
        file.flush()
        os.fsync(file.fileno())
    return True


def _tidy(path: Path) -> None:
    """Remove drafts that kills have left."""
    for draft in path.parent.glob(f"{path.name}.{'[0-9a-f]' * 32}"):
        if _silence(draft) > UNFINISHED_S:
            draft.unlink(missing_ok=True)


def _put_away(path: Path, seen: tuple) -> None:
    """Remove a void lock, unless another was made since it was `seen`. One process at a time: none can remove what another just made."""
    guard = path.with_name(path.name + ".void")
    with suppress(FileNotFoundError):
        if time.time() - guard.stat().st_mtime > UNFINISHED_S:  # its maker died within the lines below
            guard.unlink()
    try:
        os.close(os.open(guard, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return
    try:
        if _stamp(path) == seen:
            path.unlink(missing_ok=True)
    finally:
        guard.unlink(missing_ok=True)


def _stamp(path: Path) -> tuple | None:
    """What tells a file from one that takes its place; of the file as opened, since NFS may answer by name from what it remembers."""
    try:
        with path.open("rb") as file:
            known = os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    return known.st_ino, known.st_mtime_ns, known.st_size


def _owner(path: Path) -> Owner | None:
    """Whom a lock file names; None where there is none, or no name in it (yet)."""
    try:
        return Owner(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _silence(path: Path) -> float:
    """Seconds since the owner last touched the file."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return 0.0


def _beat(held: Held, every_s: float, over: threading.Event) -> None:
    while not over.wait(every_s) and held.look():  # another's lock is not to be kept alive
        with suppress(OSError):  # a shared file system may be away for a while
            os.utime(held.path)


def _world() -> str:
    """Processes of two containers may have one host's name and yet not see each other."""
    parts = []
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(), lambda: os.readlink("/proc/self/ns/pid")):
        with suppress(OSError):
            parts.append(read())
    return " ".join(parts)


def _job() -> str:
    """Slurm's cluster, its job and how often that was queued again, such as "west 4711 0"; empty outside of one."""
    cluster, job, again = (os.environ.get(f"SLURM_{name}", "") for name in ("CLUSTER_NAME", "JOB_ID", "RESTART_COUNT"))
    return f"{cluster or '-'} {job} {again or 0}" if job and (again or "0").isdecimal() else ""


def restarted() -> bool:
    """Whether this process is of a scheduler's job that was started again: it may find locks of its own earlier start."""
    return int((_job().split() or ["0"])[-1]) > 0


def _start(world: str) -> str:
    """Of a world, which start of the machine it belongs to; empty where that is not known."""
    start, _, rest = world.partition(" ")
    return start if rest else ""


def _machine() -> str:
    """The installation's own number, which stays the same through restarts (machine-id(5))."""
    with suppress(OSError):
        return Path("/etc/machine-id").read_text().strip()
    return ""


def _born(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty where that is not to be had."""
    with suppress(OSError, IndexError):
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state == "Z" else rest[18]
    return ""
