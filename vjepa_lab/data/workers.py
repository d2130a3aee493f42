"""Worker processes that read batches in order, and survive a decoder that dies or hangs.

A worker notes which clip it is reading. If it dies or falls silent, that clip is put on the source's `avoid` list (a named fault, replaced
like any other unreadable clip), a new worker takes over, and the sequence of batches goes on.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import cycle

import torch
import torch.multiprocessing as mp

from .core import Batch, DataError, Fault, Source

AHEAD = 2
"""Batches that wait for each worker."""


@dataclass
class _Worker:
    """One process, its pipe, the clip that it is reading, and the batches that it owes, oldest first."""

    source: Source
    replace: bool
    owed: deque = field(default_factory=deque)
    process: mp.Process | None = None  # none where it could not be started

    def start(self) -> None:
        context = mp.get_context("fork" if sys.platform == "linux" else "spawn")
        self.at = context.Value("q", -1, lock=False)
        self.known = set(self.source.avoid)  # what this process leaves alone; others may have learnt of more
        self.pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(self.source, self.replace, theirs, self.at, os.getpid()), daemon=True)
        process.start()
        self.process = process
        theirs.close()
        for keys in self.owed:
            self.pipe.send(keys)

    def order(self, keys) -> None:
        self.owed.append(keys)
        self.pipe.send(keys)

    def deliver(self, patience: float) -> Batch:
        """The oldest batch owed. A clip that kills the process, or on which it rests for `patience` seconds, is avoided from then on."""
        while True:
            before = self.at.value
            try:
                if self.pipe.poll(patience):
                    made = self.pipe.recv()
                    self.owed.popleft()
                    return made
                if self.at.value != before:  # a slow batch, not a stuck clip
                    continue
                why = f"reading it took longer than {patience:g} s"
            except (EOFError, OSError):
                self.process.join(5)
                code = self.process.exitcode
                if code == -signal.SIGBUS:
                    raise DataError(
                        "a worker process ran out of shared memory (/dev/shm); give the container more (--shm-size=8g), or use workers=0"
                    ) from None
                how = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
                why = f"reading it killed the decoder ({how})" + ", or memory ran out" * (code == -signal.SIGKILL)
            index = self.at.value
            self.stop()
            if index < 0 or index in self.known:
                raise DataError(f"a worker process failed while it read no clip of {self.source.name}: {why}")
            self.source.avoid[index] = Fault(self.source.where(index), why)
            self.source.faults.record([self.source.avoid[index]])
            self.start()

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(source: Source, replace: bool, pipe, at, parent: int) -> None:
    """A worker's life: keys in, batches out, until the pipe closes or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    source.watch = at
    try:
        while True:
            while not pipe.poll(5):
                if os.getppid() != parent:
                    return
            keys = pipe.recv()
            at.value = -1
            try:
                made = source.batch(keys, replace)
            except Exception as error:
                made = _portable(error)
            pipe.send(made)
    except (EOFError, OSError):
        return


def _portable(error: Exception) -> Exception:
    """An error that can travel to another process, with its traceback as a note."""
    text = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(str(error))
    error.add_note(f"In a worker process:\n{text}")
    return error


def batches(source: Source, keys: Iterable, workers: int, replace: bool, patience: float) -> Iterator[Batch]:
    """Batches of `keys` in their order, read ahead by `workers` processes that take turns."""
    keys, pool = iter(keys), [_Worker(source, replace) for _ in range(workers)]
    try:
        for worker in pool:
            worker.start()
        for worker, wanted in zip(pool * AHEAD, keys, strict=False):
            worker.order(wanted)
        for worker in cycle(pool):
            if not worker.owed:
                return
            made = worker.deliver(patience)
            if isinstance(made, Exception):
                raise made
            wanted = next(keys, None)
            if wanted is not None:
                worker.order(wanted)
            yield made
    finally:
        for worker in pool:
            worker.stop()
