"""Several training processes from one call: `pretrain(..., devices=4)` in a notebook, a script or on the command line.

The processes are fresh interpreters, so neither threads nor a GPU that the caller used stand in their way. What they are to do travels by
value (cloudpickle), so terms, callbacks and data defined in a notebook cell come along. They meet at a store in the calling process, on a
port that the system chose. The first error of any of them ends all, and is raised in the caller with its traceback; so does the end of
the caller, however it ends.
"""

import dataclasses
import io
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

import cloudpickle
import torch
import torch.distributed as dist

from vjepa_lab.training.logbook import Bar
from vjepa_lab.training.processes import Interrupted, Stop

GRACE_S = 5.0  # what the others get to end by themselves after one has failed


class Relay:
    """Stands in for the progress bar in a started process: tells the caller, if it is the first one."""

    def __init__(self, connection: Connection, first: bool):
        self.connection, self.first, self.told, self.steps = connection, first, 0.0, 0

    def send(self, *message) -> None:
        if self.first:
            self.connection.send(message)

    def begin(self, total: int, start: int) -> None:
        self.send("begin", total, start)

    def advance(self, steps: int = 1) -> None:
        self.steps += steps
        if time.monotonic() - self.told > 0.1:
            self.flush()

    def record(self, values: dict) -> None:
        self.send("record", values)

    def flush(self) -> None:
        """Tell of the steps since it last told."""
        if self.steps:
            self.send("advance", self.steps)
        self.told, self.steps = time.monotonic(), 0

    close = flush


_mine: dict = {}


def relay() -> Relay | None:
    """The way to the caller, in a process that `together` started; else None."""
    return _mine.get("relay")


def store() -> dist.Store | None:
    """Where the processes that `together` started meet; else None: at the address in the environment."""
    return _mine.get("store")


# ------------------------------------------------------------------------------------------------------------------ in the caller


@dataclass
class Worker:
    """One started process."""

    rank: int
    process: subprocess.Popen
    connection: Connection
    failed: tuple | None = None

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.connection.close()


def together(arguments: dict, count: int, device: torch.device) -> Path:
    """`pretrain(**arguments)` in `count` processes: the run's folder. Progress and records are shown by the caller.

    Raises what the first process to fail raised, with that process's traceback as its cause; ChildProcessError if one was killed.
    """
    from vjepa_lab.training.runs import own_terms
    from vjepa_lab.variants import recipe

    if device.type == "cuda" and count > torch.cuda.device_count():
        raise ValueError(f"devices={count}, but {torch.cuda.device_count()} GPUs are here; use as many as there are, or device='cpu'")
    plan = recipe(arguments["recipe"], arguments["edition"])
    own_terms(plan)  # while their source is at hand
    bar = Bar(arguments["variant"] or "pretrain", arguments["progress"], arguments["callback"])
    job = packed(arguments | {"devices": None, "callback": None, "progress": False})
    meeting = dist.TCPStore("127.0.0.1", 0, count, is_master=True, wait_for_workers=False)
    workers: list[Worker] = []
    try:
        with Forward(workers):
            for rank in range(count):
                workers.append(started(rank, count, meeting.port))
            for worker in workers:
                worker.connection.send_bytes(job)
            return followed(workers, bar)
    finally:
        bar.close()
        for worker in workers:
            worker.end()


class Pickler(cloudpickle.Pickler):
    """Keeps the one thing that dataclasses know by its identity what it is."""

    def reducer_override(self, value):
        return (getattr, (dataclasses, "MISSING")) if value is dataclasses.MISSING else super().reducer_override(value)


def packed(value) -> bytes:
    """A value with the classes and functions in it that no module holds."""
    with io.BytesIO() as file:
        Pickler(file).dump(value)
        return file.getvalue()


def started(rank: int, count: int, port: int) -> Worker:
    """A process that waits for its job."""
    ours, theirs = Pipe()
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, torch.get_num_threads() // count))
    who = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    environment = os.environ | {name: str(value) for name, value in who.items()}
    environment |= {"OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it warns that a step in which all parameters are used could be told so
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host whose own name leads nowhere is no obstacle
    process = subprocess.Popen(
        [sys.executable, "-m", "vjepa_lab.training.launch", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # a terminal's Ctrl-C reaches the caller, which passes it on
    )
    theirs.close()
    return Worker(rank, process, ours)


class Forward(Stop):
    """Passes signals on to the workers, which save and end; the third ends them at once, if it is not one of a quick few."""

    def __init__(self, workers: list[Worker]):
        super().__init__()
        self.workers, self.count = workers, 0

    def _note(self, number: int, frame) -> None:
        if self.wish and time.monotonic() - self.since < self.AGAIN_S:
            return
        self.wish, self.count, self.since = number, self.count + 1, time.monotonic()
        if self.count > 2:
            raise Interrupted("interrupted at once; the same call goes on from the last checkpoint", number)
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.send_signal(number)


def followed(workers: list[Worker], bar: Bar) -> Path:
    """Show what the workers tell until all have ended."""
    open_, results = {worker.connection: worker for worker in workers}, {}
    until = float("inf")
    tell: dict[str, Callable] = {"begin": bar.begin, "advance": bar.advance, "record": bar.record}
    while open_ and time.monotonic() < until:
        for connection in wait(list(open_), timeout=0.5):
            worker = open_[connection]
            try:
                what, *values = connection.recv()
            except (EOFError, ConnectionError):
                del open_[connection]
                worker.process.wait()
                if worker.rank not in results and worker.failed is None:
                    worker.failed = (time.monotonic(), None, "")
            else:
                if what in tell:
                    tell[what](*values)
                elif what == "done":
                    results[worker.rank] = values[0]
                else:
                    worker.failed = tuple(values)
            if worker.failed:
                until = min(until, time.monotonic() + GRACE_S)
    failed = [worker for worker in workers if worker.failed]
    if failed:
        raise first_failure(failed, len(workers))
    return results[0]


def first_failure(failed: list[Worker], count: int) -> BaseException:
    """The error to raise: of the process that failed first; those that merely lost the others come last."""
    killed = [w for w in failed if w.failed[1] is None and (w.process.returncode or 0) < 0]
    spoke = sorted((w for w in failed if w.failed[1] is not None), key=lambda w: w.failed[0])
    if killed:
        who = killed[0]
        name = signal.Signals(-who.process.returncode).name
        hint = " (the machine may have run out of memory)" if name == "SIGKILL" else ""
        return ChildProcessError(
            f"process {who.rank} of {count} was ended by {name}{hint}, so all were; the same call goes on from the last checkpoint"
        )
    if not spoke:
        return ChildProcessError(f"process {failed[0].rank} of {count} ended without a word, exit code {failed[0].process.returncode}")
    _, told, text = spoke[0].failed
    try:
        error = cloudpickle.loads(told)
    except Exception:
        error = RuntimeError(text.strip().splitlines()[-1])
    error.__cause__ = RemoteError(f"in process {spoke[0].rank} of {count}:\n{text}")
    return error


class RemoteError(Exception):
    """The traceback of another process."""


# ---------------------------------------------------------------------------------------------------------------- in a started process


def main(descriptor: int) -> int:
    """Take a job from the caller, do it, tell how it went."""
    connection = Connection(descriptor)
    job = connection.recv_bytes()
    threading.Thread(target=_live_with, args=(connection,), daemon=True).start()
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        from vjepa_lab.train import pretrain

        _mine["relay"] = Relay(connection, rank == 0)
        _mine["store"] = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), count, is_master=False)
        arguments = cloudpickle.loads(job)
        connection.send(("done", pretrain(**arguments).path))
        dist.destroy_process_group()
    except SystemExit:  # another process speaks of the error
        return 1
    except BaseException as error:
        error.__cause__ = error.__context__ = None
        text = traceback.format_exc()
        try:
            told = packed(error.with_traceback(None))
        except Exception:
            told = b""
        connection.send(("failed", time.monotonic(), told, text))
        return 1
    return 0


def _live_with(connection: Connection) -> None:
    """End with the caller."""
    try:
        connection.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


if __name__ == "__main__":
    # Not as __main__: the processes share this module's state with the code that they run.
    from vjepa_lab.training import launch

    code = launch.main(int(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without waiting for a process group whose others are gone
