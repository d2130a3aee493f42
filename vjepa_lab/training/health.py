"""What goes wrong in training, seen early: numbers that are not finite, targets that collapse, weights that rest on a few tokens."""

import math
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vjepa_lab.modifiers import Hard
from vjepa_lab.objective import nested
from vjepa_lab.training.processes import Team, exact

TOKENS = 4096  # of a batch, at most, that the spread is measured on


class NotFinite(FloatingPointError):
    """A loss or a gradient became NaN or infinite; `step`, the `terms` that did, and the `batch` it happened on."""

    def __init__(self, message: str, step: int, terms: dict[str, float], batch: Any):
        super().__init__(message)
        self.step, self.terms, self.batch = step, terms, batch

    def __reduce__(self):
        """To another process it goes without its clips, which are on disk by then."""
        return type(self), (str(self), self.step, self.terms, None)


def check_finite(step: int, values: dict[str, float], batch: Any = None) -> None:
    """Raise NotFinite, naming what is not finite, if anything is not."""
    if bad := {name: value for name, value in values.items() if not math.isfinite(value)}:
        raise NotFinite(
            f"{' and '.join(bad)} became {next(iter(bad.values()))} at step {step}; try a smaller lr or weight, or clip=1.0. "
            "The last checkpoint is intact",
            step,
            bad,
            batch,
        )


@torch.no_grad()
def all_finite(tensors: list[Tensor]) -> bool:
    """Whether no entry of any tensor is NaN or infinite."""
    return bool(torch.stack(torch._foreach_norm(tensors, torch.inf)).isfinite().all())


@dataclass
class FiniteWatch:
    """Checks every step's losses: on the CPU before the update; on a GPU, which is not waited for, a step or two later."""

    device: torch.device
    sent: deque = field(default_factory=deque)

    def send(self, step: int, names: tuple[str, ...], values: Tensor, batch: Any) -> None:
        if self.device.type != "cuda":
            check_finite(step, dict(zip(names, values.tolist(), strict=True)), batch)
            return
        host = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self.sent.append((arrived, step, names, host, batch))
        self.receive()

    def receive(self, wait: bool = False) -> None:
        """Look at what has arrived by now; with `wait`, at everything."""
        while self.sent and (wait or self.sent[0][0].query()):
            arrived, step, names, host, batch = self.sent.popleft()
            arrived.synchronize()
            check_finite(step, dict(zip(names, host.tolist(), strict=True)), batch)


# ----------------------------------------------------------------------------------------------------------------------------- collapse


@torch.no_grad()
def sampled(h: Tensor, number: int = 0, of: int = 1) -> Tensor:
    """The tokens [n d] of micro-batch `number`, its [b t h w d], that the spread is measured on: those of all `of` end to end are every
    k-th token of the whole batch, so that they do not depend on how it is cut."""
    x = h.flatten(0, 3)
    every = -(-len(x) * of // TOKENS)
    return x[-number * len(x) % every :: every].clone()  # a view would keep all of them in memory


@torch.no_grad()
def spread(tokens: Tensor, team: Team) -> tuple[float, float]:
    """How the teacher's tokens [... d] differ over clips and places, all processes together: (std, rank).

    std   mean over channels of their standard deviation; tokens are normalised, so 1 is the most a channel can have on average
    rank  effective number of dimensions, (sum of the covariance's eigenvalues)^2 / sum of their squares (participation ratio), 1 to d
    """
    x = exact(tokens.flatten(0, -2))
    mean, second = team.mean(x.mean(0)), team.mean(x.T @ x / len(x))
    cov = second - mean.outer(mean)
    variance = cov.diagonal().clamp_min(0)
    rank = variance.sum().square() / cov.square().sum().clamp_min(1e-30)
    return variance.sqrt().mean().item(), rank.item()


@dataclass
class CollapseAlarm:
    """Says once when the teacher's tokens become all alike (`std`) or lie along a line (`rank`).

    Nothing is said before the warm-up is over, nor of the first step, whose tokens are an untrained network's. A warning, not a verdict:
    a world of few factors makes few dimensions. In the reference study's first runs (data/reference/curves.parquet: one colour, flat
    ground), which learn, `std` stays within 0.25 and 0.63 from there on and `rank` within 1.48 and 4.8.
    """

    warmup: int
    least_std: float = 0.1
    least_rank: float = 1.2
    raised: list[str] = field(default_factory=list)

    def look(self, record: dict, warn: bool = True) -> None:
        if self.raised or record["step"] < max(self.warmup, 1):
            return
        low = [
            f"{what} of the teacher's tokens is {record[key]:.3g}, below {least}"
            for key, what, least in (("std", "the standard deviation", self.least_std), ("rank", "the effective rank", self.least_rank))
            if record[key] < least
        ]
        if low:
            self.raised.append(f"step {record['step']}: the representation collapses: {' and '.join(low)}")
            if warn:
                warnings.warn(f"{self.raised[0]}. A teacher of its own (EMA), a stop-gradient, or a smaller lr prevents that", stacklevel=3)


# -------------------------------------------------------------------------------------------------------- terms of which nothing counts


@dataclass
class CountAlarm:
    """Says once which terms of a training count nothing at all: their loss is exactly 0 and stays it, and the run is one without them.

    It looks at the first `first` steps, and a term is named that counts nothing in any of them: one batch may by chance have nothing that
    a term is about. A loss of 0 over entries that do count, such as a hinge's, is right, and so is a written weight of 0.
    """

    steps: int
    first: int = 3
    empty: set[str] | None = None

    def look(self, step: int, loss, latents: list, parts: Callable[[], list[float]], warn: bool = True) -> None:
        """parts  reads the terms' losses of this step, of all processes together; it is called while the alarm looks"""
        if step >= min(self.first, self.steps):
            return
        found = uncounted(loss, latents, parts())
        self.empty = found if self.empty is None else self.empty & found
        if warn and self.empty and step + 1 == min(self.first, self.steps):
            warnings.warn(
                f"{' and '.join(sorted(self.empty))}: the weights of the error sum to zero with these masks, sizes and clips, so the loss "
                "was exactly 0 in each of the first steps, and the run is as one without the term; choose another view, masks or preset",
                stacklevel=3,
            )


@torch.no_grad()
def uncounted(loss, latents: list, parts: list[float]) -> set[str]:
    """Names of the terms whose `parts`, their losses, are exactly 0 since no entry of their error maps counts."""
    terms = zip(loss.objective.names, loss.objective, loss.heads, parts, strict=True)
    return {
        name
        for name, (weight, term), head, value in terms
        if value == 0 and weight != 0 and not any(_counts(m) for part in latents for m in term.maps(part, head))
    }


def _counts(error) -> bool:
    """Whether an entry of an error map has a weight."""
    return error.value.numel() > 0 and (error.weight is None or bool((error.weight > 0).any()))


# ------------------------------------------------------------------------------------------------------------------------- hard weights


@torch.no_grad()
def effective_samples(loss, latents: list, team: Team) -> dict[str, float]:
    """{"ess TERM": share of the entries that a hard term's weights in effect rest on}: (sum w)^2 / (n sum w^2), mean over the clips of all
    processes, each of which must ask. Not told of scope="global", whose weights go into the error."""
    found = {}
    for name, (_, term), head in zip(loss.objective.names, loss.objective, loss.heads, strict=True):
        hard = [part for part in nested(term) if isinstance(part, Hard)]
        if hard and all(part.scope != "global" for part in hard):
            with team.sharing():  # as in the step, for weights over all processes
                shares = [share for part in latents for m in term.maps(part, head) if (share := _share(m)) is not None]
            own = torch.cat(shares) if shares else torch.zeros(0, device=latents[0].clip.device)
            total, count = team.mean(torch.stack([own.sum(), own.new_tensor(len(own))])).tolist()
            if count:
                found[f"ess {name}"] = total / count
    return found


def _share(error) -> Tensor | None:
    """Of one error map, a value per clip (or one, for a map that is not by clip); clips in which nothing counts are left out."""
    if error.weight is None or error.value.numel() == 0:
        return None
    weight = error.weight.to(torch.float32).expand_as(error.value)
    rows = weight.flatten(1) if weight.ndim > 1 else weight[None]
    counted = (rows > 0).sum(1)
    share = rows.sum(1).square() / (counted * rows.square().sum(1)).clamp_min(1e-30)
    return share[counted > 0]
