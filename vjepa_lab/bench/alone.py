"""Contenders in processes of their own, so that each has its own heap and manages memory as it would by itself.

Side by side in one process they fragment one another's memory, and the plain step would profit from what ours does to the allocator. Idle
threads sleep in all of them: with spinning ones no two processes can be timed on one machine.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from vjepa_lab.training.meters import peak_memory

END_S = 10.0
Make = Callable[[], Callable[[], None]]
"""Makes a contender: what it returns takes one step. It must be a function of a module, or a `partial` of one, to be sent."""


class Alone:
    """A contender in a process of its own, on the CPU: calling it has it take its next step, `memory` one more, for its peak in bytes.

    huge_pages  whether torch asks the system for huge pages there
    RuntimeError if that process dies. Python starts it by importing the main script anew: a script of your own needs
    `if __name__ == "__main__":`.
    """

    def __init__(self, make: Make, huge_pages: bool = True):
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(there, make, torch.get_num_threads()), daemon=True)
        with _set("THP_MEM_ALLOC_ENABLE", str(int(huge_pages))):
            self.process.start()
        there.close()

    def __call__(self) -> None:
        self._ask("step")

    def memory(self) -> int:
        return self._ask("memory")

    def _ask(self, what: str) -> int | None:
        try:
            self.pipe.send(what)
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(END_S)
            code = self.process.exitcode
            raise RuntimeError(f"a contender's own process died (exit code {code}); what it printed stands above") from None

    def close(self) -> None:
        self.pipe.close()
        self.process.join(END_S)
        self.process.kill()
        self.process.join()


@contextmanager
def _set(name: str, value: str) -> Iterator[None]:
    """A variable of the environment, for the processes that are started meanwhile."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _serve(pipe, make: Make, threads: int) -> None:
    torch.set_num_threads(threads)
    run = make()
    while True:
        try:
            what = pipe.recv()
        except EOFError:
            return
        pipe.send(run() if what == "step" else peak_memory(run, torch.device("cpu")))
