"""The plain step in a process of its own, whose memory torch and the C library manage by their defaults, as upstream's step finds it.

Within our own process it profits from `keep_freed_memory` and huge pages, two of the things that are to be measured. Idle threads sleep in
both: with spinning ones no two processes can be timed on one machine.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import torch

from vjepa_lab.bench.plain import PlainTrainer
from vjepa_lab.presets import Preset
from vjepa_lab.train import build

END_S = 10.0


@contextmanager
def plain_step_alone(size: Preset, batch: int, bf16: bool) -> Iterator[Callable[[], None]]:
    """A function that has the other process take its next step, on the CPU.

    Raises RuntimeError if that process died.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, size, batch, bf16, torch.get_num_threads()), daemon=True)
    with _with("THP_MEM_ALLOC_ENABLE", "0"):
        process.start()
    there.close()

    def step() -> None:
        try:
            here.send(None)
            here.recv()
        except (EOFError, OSError):
            process.join(END_S)
            raise RuntimeError(f"the plain step's own process died (exit code {process.exitcode}); what it printed stands above") from None

    try:
        yield step
    finally:
        here.close()
        process.join(END_S)
        process.kill()
        process.join()


@contextmanager
def _with(name: str, value: str) -> Iterator[None]:
    """A variable of the environment set for the processes that are started meanwhile."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _serve(pipe: Connection, size: Preset, batch: int, bf16: bool, threads: int) -> None:
    from vjepa_lab.bench.steps import CPU, in_turn, random_clips

    torch.set_num_threads(threads)
    plain = PlainTrainer(build("ema", True, 1, size, 0, bf16), size, 0, CPU)
    step = in_turn(plain, random_clips(size, batch, CPU))
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        step()
        pipe.send(None)
