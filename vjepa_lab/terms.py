"""The terms, one equation each. Equation numbers are those of arXiv:2605.17165; where its text is silent, the docstring names the choice.

Every temporal term is a differentiable zero on an image (t = 1). Means are over all entries of the map unless a term says otherwise.
"""

from dataclasses import field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vjepa_lab.objective import ErrorMap, Term, View, diff


def mlp(d_in: int, d_hidden: int, d_out: int) -> nn.Sequential:
    """Two-layer GELU head."""
    return nn.Sequential(nn.Linear(d_in, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_out))


def token_distance(view: View, of: Tensor, to: Tensor, to_valid: Tensor | None = None) -> Tensor:
    """Distance in tokens from each place in `of` [b k] to the nearest place in `to` [b m]: [b k]."""
    _, h, w = view.grid

    def place(index: Tensor) -> Tensor:
        return torch.stack([index // (h * w), index // w % h, index % w], dim=-1).float()

    distance = torch.cdist(place(of), place(to), compute_mode="donot_use_mm_for_euclid_dist")
    return (distance if to_valid is None else distance.masked_fill(~to_valid[:, None], torch.inf)).amin(-1)


class JEPA(Term):
    """Predict the teacher at hidden places: |pred - h|^p / p, mean over channels (Eq. 1; vjepa2 app/vjepa/train.py with p = 1).

    distance  None: all hidden tokens alike, as V-JEPA and V-JEPA 2 train; "seen": each weighs 1/sqrt(distance to the nearest seen
              token), normalised to mean 1, one reading of the paper's "distance-weighted".
    """

    p: float = 1.0
    distance: str | None = None
    view: str = field(default="hidden", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.distance not in (None, "seen"):
            raise ValueError(f"JEPA(distance={self.distance!r}): expected None or 'seen'")

    def error(self, view, head):  # [b m]
        error = ((view.pred - view.target).abs() ** self.p).mean(-1) / self.p if self.p != 1 else (view.pred - view.target).abs().mean(-1)
        if self.distance is None:
            return error
        weight = token_distance(view, view.hidden, view.seen, view.mask.seen_valid).rsqrt()
        return ErrorMap(error, weight if view.valid is None else weight * view.valid)


class Kinematic(Term):
    """Latents should change little from step to step: |z[t+1] - z[t]| (Eq. 2). On "app" it is the static loss (Eq. 7).

    order  1: velocity; 2: acceleration (Kin-Accel).
    huber  None: L1; a number: Huber's loss with that threshold (Kin-Huber).
    """

    order: int = 1
    huber: float | None = None

    def error(self, view, head):  # [b t-order h w]
        change = view.z
        for _ in range(self.order):
            change = diff(change)
        if self.huber is None:
            return change.abs().mean(-1)
        return F.huber_loss(change, torch.zeros_like(change), reduction="none", delta=self.huber).mean(-1)

    @property
    def label(self) -> str:
        return {1: "Kinematic", 2: "Accel"}.get(self.order, f"Kinematic{self.order}") + ("" if self.on == "all" else f"[{self.on}]")


class Delta(Term):
    """Student and teacher should change alike: |(z[t+1] - z[t]) - (h[t+1] - h[t])| (Eq. 5)."""

    def error(self, view, head):  # [b t-1 h w]
        return (diff(view.z) - diff(view.cut(view.h))).abs().mean(-1)


class Dynamics(Term):
    """A head should foresee the teacher's next change: |Dyn(z[t]) - (h[t+1] - h[t])| (LD, Eq. 6); all channels of h, whatever z it sees.

    hidden  width of the two-layer GELU head (Table 7: 256); 0 makes the head the identity, which turns LD's equation into a loss on z[t].
    """

    hidden: int = 256

    def head(self, dim):
        return mlp(self.width(dim), self.hidden, dim)

    def error(self, view, head):  # [b t-1 h w]
        return (head(view.z[:, :-1]) - diff(view.h)).abs().mean(-1)


class Orthogonal(Term):
    """Appearance and dynamics halves should not correlate: C = centred Z_app' Z_dyn / N over the rank's tokens (Eq. 8); its map is over
    channel pairs [d_app d_dyn]. Not linear in the batch: it normalises over the tokens of this process's batch.

    form  "cov_mean": mean of C^2 over channel pairs. "cov_sum": their sum. "vicreg": sum / d_app. "corr_mean": correlations in place of
          covariances. "paper": (1/N) sum (N C)^2 as printed, at least d_app*d_dyn in expectation even for independent features.
    """

    form: str = "cov_mean"

    FORMS = ("cov_mean", "cov_sum", "vicreg", "corr_mean", "paper")

    def __post_init__(self):
        super().__post_init__()
        if self.form not in self.FORMS:
            raise ValueError(f"Orthogonal(form={self.form!r}): expected one of {', '.join(self.FORMS)}")

    def error(self, view, head):  # [d_app d_dyn]
        z = view.z.flatten(0, -2) if view.valid is None else view.z[view.valid]
        z = z - z.mean(0)
        n, half = len(z), z.shape[-1] // 2
        if self.form == "corr_mean":
            z = z / z.std(0, correction=0).clamp_min(1e-6)
        square = (z[:, :half].T @ z[:, half:] / max(n, 1)).square()
        scale = {"cov_sum": square.numel(), "vicreg": square.shape[1], "paper": square.numel() * n}.get(self.form, 1)
        return ErrorMap(square * scale)


class Hard(Term):
    """Reweigh another term's error map by its own errors: w = N softmax(clamp(e / tau, -20, 20)), mean weight 1, no gradient (Eq. 9-11).

    Not linear in the batch beyond scope "clip".
    standardise  divide out mean and spread of the errors first, so that tau means something: raw errors of a JEPA differ so little that
                 at tau = 1 the weights are all but 1.
    scope        what a softmax runs over: "clip" (each clip and mask kind), "mask" (the batch, each mask kind), "batch" (all of it)
    """

    term: Term
    tau: float = 1.0
    standardise: bool = False
    scope: str = "clip"
    view: str = field(init=False, default="full")  # what the inner term sees
    norm: str = field(init=False, default="layer")
    on: str = field(init=False, default="all")

    def __post_init__(self):
        for name in ("view", "norm", "on"):
            object.__setattr__(self, name, getattr(self.term, name))
        super().__post_init__()
        if self.scope not in ("clip", "mask", "batch"):
            raise ValueError(f"Hard(scope={self.scope!r}): expected clip, mask or batch")

    def seen_as(self, view):
        return replace(self, term=self.term.seen_as(view))

    def head(self, dim):
        return self.term.head(dim)

    @torch.no_grad()
    def weights(self, error: Tensor, base: Tensor | None) -> Tensor:
        """Weights of errors [g n], one softmax per row, times the map's own weights `base` [g n]; mean 1 over what counts."""
        base = torch.ones_like(error) if base is None else base.to(error.dtype)
        total = base.sum(-1, keepdim=True).clamp_min(1e-12)
        if self.standardise:
            centred = error - (base * error).sum(-1, keepdim=True) / total
            spread = ((base * centred.square()).sum(-1, keepdim=True) / total).sqrt()
            error = centred / spread.clamp_min(1e-12)
        return torch.softmax((error / self.tau).clamp(-20, 20) + base.log(), dim=-1) * total

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

    @property
    def label(self) -> str:
        return f"Hard({self.term.label})"
