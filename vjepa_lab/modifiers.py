"""Terms made from other terms: reweighted, without gradient, on shuffled channels."""

from dataclasses import field, replace

import torch
from torch import Tensor

from vjepa_lab.objective import ErrorMap, Reordered, Term
from vjepa_lab.terms import check


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
    def label(self) -> str:
        return f"{type(self).__name__}({self.term.label})"


class Detached(Modifier):
    """A term that is computed and added but gives no gradient: what the paper's released code does to hard-weighted LD."""

    idle = True

    def maps(self, latents, head):
        # Not under no_grad: that would leave the latents, which all terms share, without gradient.
        return [ErrorMap(m.value.detach(), m.weight) for m in self.term.maps(latents, head)]


class Shuffled(Modifier):
    """A term whose two halves are random channels instead of the first and the last ones: a control for the meaning of the split.

    seed       of the permutation, the same for all terms that carry it
    each_step  a new permutation at every training step: no split that could be learned
    """

    seed: int = 0
    each_step: bool = False

    def maps(self, latents, head):
        channels = latents.model.width
        draw = torch.Generator().manual_seed(self.seed + (1000 * (latents.step + 1) if self.each_step else 0))
        order = torch.randperm(channels, generator=draw).to(latents.clip.device)
        return self.term.maps(Reordered(latents, order), head)


class Hard(Modifier):
    """Reweigh another term's error map by its own errors: w = N softmax(clamp(e / tau, -20, 20)), mean weight 1, no gradient (Eq. 9-11).

    Not linear in the batch beyond scope "clip".
    standardise  divide out mean and spread of the errors first, so that tau means something: raw errors of a JEPA differ so little that
                 at tau = 1 the weights are all but 1.
    scope        what a softmax runs over: "clip" (each clip and mask kind), "mask" (the batch, each mask kind), "batch" (all of it)
    """

    tau: float = 1.0
    standardise: bool = False
    scope: str = "clip"

    def __post_init__(self):
        super().__post_init__()
        check(self, scope=("clip", "mask", "batch"))

    @torch.no_grad()
    def weights(self, error: Tensor, base: Tensor | None) -> Tensor:
        """Weights of errors [g n], one softmax per row, times the map's own weights `base` [g n]; mean 1 over what counts."""
        base = torch.ones_like(error) if base is None else base.to(error.dtype)
        if base.device.type == "cpu" and (base < 0).any():  # elsewhere the check would wait for the device
            raise ValueError("hard weights need an ErrorMap whose own weights are not negative")
        total = base.sum(-1, keepdim=True).clamp_min(1e-12)
        if self.standardise:
            centred = error - (base * error).sum(-1, keepdim=True) / total
            spread = ((base * centred.square()).sum(-1, keepdim=True) / total).sqrt()
            error = centred / spread.clamp_min(1e-12)
        share = torch.softmax((error / self.tau).clamp(-20, 20) + base.log(), dim=-1)
        return share.nan_to_num(0.0) * total  # a row in which nothing counts has no weights

    def maps(self, latents, head):
        maps = self.term.maps(latents, head)
        if self.scope == "batch":
            maps = [ErrorMap(*(None if x[0] is None else torch.cat([u.flatten() for u in x]) for x in zip(*maps, strict=True)))]
        out = []
        for value, base in maps:
            rows = len(value) if self.scope == "clip" and value.ndim > 1 else 1
            error = value.reshape(rows, -1)
            base = None if base is None else base.expand_as(value).reshape(rows, -1)
            out.append(ErrorMap(value, self.weights(error, base).reshape(value.shape)) if value.numel() else ErrorMap(value))
        return out
