"""Terms made from other terms: reweighted, without gradient, on shuffled channels."""

from dataclasses import field, replace

import torch
from torch import Tensor

from vjepa_lab.objective import ErrorMap, Reordered, Term
from vjepa_lab.terms import positive
from vjepa_lab.training.processes import sum_over_processes
from vjepa_lab.values import check, whole


class Modifier(Term):
    """A term made from another one: it sees what the inner term sees, and has its head."""

    term: Term
    view: str = field(init=False, default="full")
    norm: str = field(init=False, default="layer")
    on: str = field(init=False, default="all")

    def __post_init__(self):
        if not isinstance(self.term, Term):
            raise TypeError(f"{type(self).__name__} wraps a term, got {self.term!r}")
        for name in ("view", "norm", "on"):
            object.__setattr__(self, name, getattr(self.term, name))
        super().__post_init__()

    def seen_as(self, view):
        return replace(self, term=self.term.seen_as(view))

    def head(self, dim):
        return self.term.head(dim)

    def maps(self, latents, head):
        return self.term.maps(latents, head)

    @property
    def over_time(self) -> bool:
        return self.term.over_time

    @property
    def label(self) -> str:
        return f"{type(self).__name__}({self.term.label})"


class Detached(Modifier):
    """A term that is computed and added but gives no gradient: what the paper's released code does to hard-weighted LD."""

    idle = True

    def maps(self, latents, head):
        # Not under no_grad: that would leave the latents, which all terms share, without gradient.
        return [m._replace(value=m.value.detach()) for m in self.term.maps(latents, head)]


class Shuffled(Modifier):
    """A term whose two halves are random channels instead of the first and the last ones: a control for the meaning of the split.

    seed       of the permutation, the same for all terms that carry it
    each_step  a new permutation at every training step: no split that could be learned
    """

    seed: int = 0
    each_step: bool = False

    def __post_init__(self):
        super().__post_init__()
        whole(self, seed=0)

    def maps(self, latents, head):
        channels = latents.model.width
        draw = torch.Generator().manual_seed(self.seed + (1000 * (latents.step + 1) if self.each_step else 0))
        order = torch.randperm(channels, generator=draw).to(latents.clip.device)
        return self.term.maps(Reordered(latents, order), head)


class Hard(Modifier):
    """Reweigh another term's error map by its own errors: w = N softmax(clamp(e / tau, -20, 20)), mean weight 1, no gradient (Eq. 9-11).

    Not linear in the batch beyond scope "clip". What does not count (padding, images under a term about change) is in no softmax.
    standardise  divide out mean and spread of the errors first, so that tau means something: raw errors of a JEPA differ so little that
                 at tau = 1 the weights are all but 1.
    scope        what a softmax runs over, and N is the size of: "clip" (each clip and mask kind), "mask" (the batch, each mask kind),
                 "batch" (all mask kinds together), "global" (that, over all processes)
    The errors are channel means, as V-JEPA computes them; `Hard(JEPA(reduce="sum"))` takes the 1-norm as printed, whose logits all exceed
    20, so that every weight is 1.
    """

    tau: float = 1.0
    standardise: bool = False
    scope: str = "clip"

    def __post_init__(self):
        super().__post_init__()
        check(self, scope=("clip", "mask", "batch", "global"))
        positive(self, "tau")

    @torch.no_grad()
    def weights(self, error: Tensor, base: Tensor | None) -> Tensor:
        """Weights of errors [g n], one softmax per row, times the map's own weights `base` [g n]; mean 1 over what counts."""
        base = torch.ones_like(error) if base is None else base.to(error.dtype)
        error = torch.where(base > 0, error, 0.0)
        total = self._sum(base).clamp_min(1e-12)
        if self.standardise:
            centred = error - self._sum(base * error) / total
            spread = (self._sum(base * centred.square()) / total).sqrt()
            error = centred / spread.clamp_min(1e-12)
        share = base * (error / self.tau).clamp(-20, 20).exp()
        return share * (total / self._sum(share).clamp_min(1e-30))  # a row in which nothing counts has no weights

    def _sum(self, x: Tensor) -> Tensor:
        """Sums of the rows [g n] -> [g 1], over all processes if the scope asks for it."""
        total = x.sum(-1, keepdim=True)
        return sum_over_processes(total) if self.scope == "global" else total

    def maps(self, latents, head):
        maps = self.term.maps(latents, head)
        if self.scope == "clip":
            for m in maps:
                if m.value.ndim < 2 or len(m.value) != len(latents.clip):
                    raise ValueError(
                        f"scope='clip' weighs the errors of each clip, a map [b ...] of b = {len(latents.clip)}; "
                        f"got {list(m.value.shape)}. A statistic over tokens has no errors of its own to weigh"
                    )
        maps = [_joined(maps)] if self.scope in ("batch", "global") else maps
        return [m if m.value.numel() == 0 else self._reweighed(m) for m in maps]

    def _reweighed(self, m: ErrorMap) -> ErrorMap:
        rows = len(m.value) if self.scope == "clip" else 1
        base = None if m.weight is None else m.weight.expand_as(m.value).reshape(rows, -1)
        weight = self.weights(m.value.reshape(rows, -1), base).reshape(m.value.shape)
        if self.scope != "global":
            return m._replace(weight=weight)
        # The weights of one process need not average 1: they go into the error, which is averaged as it was.
        base = torch.ones_like(weight) if m.weight is None else m.weight.expand_as(m.value).to(weight.dtype)
        return m._replace(value=m.value * weight / base.clamp_min(1e-12), weight=base)


def _joined(maps: list[ErrorMap]) -> ErrorMap:
    """All entries of some maps as one map [n]; entries without a weight of their own weigh 1."""
    counted = [m for m in maps if m.value.numel()] or maps[:1]
    weights = [torch.ones_like(m.value) if m.weight is None else m.weight.to(m.value.dtype).expand_as(m.value) for m in counted]
    value, weight = torch.cat([m.value.flatten() for m in counted]), torch.cat([w.flatten() for w in weights])
    return ErrorMap(value, weight, counted[0].samples, counted[0].share)
