"""Several processes that train one model: who is here, how they meet, and what they agree on.

They are started by torchrun, or by `launch` for `pretrain(devices=N)`; either way the environment says who is who (RANK, LOCAL_RANK,
WORLD_SIZE). Gradients travel over NCCL on CUDA and gloo on the CPU; what concerns the host alone always over gloo.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(minutes=30)  # the longest that one process waits for another: rank 0 may be writing a large checkpoint


@dataclass(frozen=True)
class Team:
    """The processes that train together, as one of them sees it. `local` is its place among those on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls) -> "Team":
        """Whom the environment says this process belongs to; raises ValueError where it says so half."""
        said = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        if not said["RANK"] or not said["WORLD_SIZE"]:
            return cls()
        try:
            return cls(int(said["RANK"]), int(said["WORLD_SIZE"]), int(said["LOCAL_RANK"] or said["RANK"]))
        except ValueError:
            raise ValueError(
                f"the environment does not say which process this is: {said}; expected whole numbers, as torchrun sets"
            ) from None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """This process's device of the kind `name`: on CUDA, the GPU of its own place on the machine."""
        device = device_of(name)
        if self.world == 1 or device.type == "cpu":
            return device
        if device.type != "cuda":
            raise ValueError(f"several processes cannot share {device}; use device='cpu', or one process")
        if device.index is not None:
            raise ValueError(f"device {name!r} names one GPU, and {self.world} processes need one each; use device='cuda'")
        if self.local >= torch.cuda.device_count():
            raise ValueError(
                f"process {self.local + 1} of this machine finds no GPU left ({torch.cuda.device_count()} here); "
                "start as many processes as there are GPUs, or use device='cpu'"
            )
        return torch.device("cuda", self.local)

    def meet(self, device: torch.device, store: dist.Store | None = None) -> None:
        """Join the others, through `store` or the address in the environment. Raises ConnectionError if they cannot be met there."""
        if device.index is not None and device.type == "cuda":  # plain "cuda" is the one that is current
            torch.cuda.set_device(device)
        if self.world == 1 or dist.is_initialized():
            return
        known = {} if store is None else {"store": store, "rank": self.rank, "world_size": self.world}
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE, **known)
        except (dist.DistError, RuntimeError, ValueError) as error:
            where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
            raise ConnectionError(
                f"process {self.rank} of {self.world} cannot meet the others at {where}: {str(error).splitlines()[0]}. If the port is "
                "taken, choose another with torchrun --master-port PORT (or --standalone, which finds one)"
            ) from error

    def lead(self, make: Callable[[], Any]) -> Any:
        """What `make()` gives in the first process, in all of them. Its error ends them all, and only the first one speaks of it."""
        if self.world == 1:
            return make()
        told: list = [None]
        if self.first:
            try:
                told = [("made", make())]
            except BaseException:
                dist.broadcast_object_list([("failed", None)])
                raise
        dist.broadcast_object_list(told)
        what, value = told[0]
        if what == "failed":
            with suppress(RuntimeError):  # the first one leaves: only then, since torchrun ends all that still speak when one ends
                self.wait()
            raise SystemExit(1)
        return value

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(1))

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes, without gradient."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
            values /= self.world
        return values

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows [b ...] of all processes, in their order: [world*b ...]. On the CPU."""
        if self.world == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def collected(self, value) -> list:
        """A picklable value of each process, in their order."""
        if self.world == 1:
            return [value]
        found: list = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over processes while the backward pass runs.

        What an objective leaves unused (a head whose term is detached, say) is found anew in every step, and keeps no gradient.
        """
        if self.world == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(module, find_unused_parameters=True, gradient_as_bucket_view=True)

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Let what an objective reckons over the batch be reckoned over all processes within the block, which all of them are in."""
        global _sharing
        before, _sharing = _sharing, self.world
        try:
            yield
        finally:
            _sharing = before

    def holding(self, module: nn.Module, hold: bool) -> AbstractContextManager:
        """Leave the gradients unaveraged within the block, if `hold`: more are to be added to them."""
        return module.no_sync() if hold and self.world > 1 else nullcontext()


ALONE = Team()


# ----------------------------------------------------------------------------------------------------------- sums over the processes

_sharing = 1


def sharers() -> int:
    """How many processes share the batch that is being worked on: 1 outside of a training step, whoever else is there."""
    return _sharing


class _Sum(torch.autograd.Function):
    """The sum over processes; each gets the gradients of all."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient.contiguous())


def sum_over_processes(x: Tensor) -> Tensor:
    """Sum over the processes that share a batch, with gradient."""
    return _Sum.apply(x) if _sharing > 1 else x


def over_processes(mean: Tensor) -> Tensor:
    """The mean of equal shares over the processes that share a batch, with gradient."""
    return sum_over_processes(mean) / _sharing if _sharing > 1 else mean


def device_of(asked: torch.device | str | None = "auto", *, mps: bool = True) -> torch.device:
    """A device, or one by name; None or "auto": CUDA, else Apple's MPS unless `mps` is False, else the CPU.

    Raises ValueError if it is not there.
    """
    if asked not in (None, "auto"):
        try:
            kind = torch.device(asked).type
        except RuntimeError:  # a name that no kind of device has
            kind = ""
        there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(kind, False)
        if not there:
            raise ValueError(f"device {str(asked)!r} is not available here; use 'auto' or 'cpu'")
        return torch.device(asked)
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps and torch.backends.mps.is_available() else "cpu")


def exact(x: Tensor) -> Tensor:
    """x in float64; on the CPU where it comes from Apple's MPS, which has none."""
    return (x.cpu() if x.device.type == "mps" else x).double()


# --------------------------------------------------------------------------------------------------------------------------- stopping


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop by a signal, and did, between two steps."""

    def __init__(self, message: str, number: int = signal.SIGINT):
        super().__init__(message)
        self.signal = int(number)


class Stop:
    """SIGINT, SIGTERM and SIGUSR1 as a wish that a loop grants between two steps, in all processes at the same one.

    A second signal, 2 s or more after the first, interrupts at once. Outside of the main thread, where Python takes no signals, nothing is
    caught. `asked` is to be called once a step by every process: the answer about one step comes at the next, so that nobody waits for it.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))
    AGAIN_S = 2.0  # torchrun and a terminal may both pass one Ctrl-C on

    def __init__(self, team: Team = ALONE):
        self.team, self.wish, self.since, self.before = team, 0, 0.0, {}
        self.flag, self.pending = torch.zeros(1, dtype=torch.int32), None
        self.agreed = 0

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        if self.wish and time.monotonic() - self.since > self.AGAIN_S:
            raise Interrupted(f"interrupted at once by {signal.Signals(number).name}", number)
        if not self.wish:
            self.wish, self.since = number, time.monotonic()

    def asked(self) -> int:
        """The signal to stop for, agreed on by all processes, or 0."""
        self.agreed = self._answer()
        if self.team.world > 1 and not self.agreed:
            self.flag = torch.tensor([self.wish], dtype=torch.int32)
            self.pending = dist.all_reduce(self.flag, op=dist.ReduceOp.MAX, async_op=True)
        return self.agreed

    def settle(self) -> None:
        """Take in the last answer; too late to stop for it."""
        self._answer()

    def _answer(self) -> int:
        if self.team.world == 1:
            return self.wish
        if self.pending is None:
            return 0
        self.pending.wait()
        self.pending = None
        return int(self.flag)
