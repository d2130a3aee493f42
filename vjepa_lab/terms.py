"""The terms, one equation each. Equation numbers are those of arXiv:2605.17165; where its text is silent, the docstring names the choice.

Every temporal term is a differentiable zero on an image (t = 1). Means are over all entries of the map unless a term says otherwise.
"""

from collections.abc import Sequence
from dataclasses import field
from itertools import pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vjepa_lab.masks import motion_score
from vjepa_lab.objective import ErrorMap, Term, View, diff


def mlp(*widths: int, activation: type[nn.Module] = nn.GELU) -> nn.Sequential:
    """Linear layers from width to width with the activation between them."""
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1])


def check(term: Term, **allowed: Sequence) -> None:
    """Refuse a term whose named fields hold anything but the values allowed."""
    for name, values in allowed.items():
        if getattr(term, name) not in values:
            raise ValueError(f"{type(term).__name__}({name}={getattr(term, name)!r}): expected one of {', '.join(map(repr, values))}")


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
        check(self, distance=(None, "seen"))

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

    hidden  width of the two-layer GELU head (Table 7: 256).
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
        check(self, form=self.FORMS)

    def error(self, view, head):  # [d_app d_dyn]
        z = view.rows
        z = z - z.mean(0)
        n, half = len(z), z.shape[-1] // 2
        if self.form == "corr_mean":
            z = z / z.std(0, correction=0).clamp_min(1e-6)
        square = (z[:, :half].T @ z[:, half:] / max(n, 1)).square()
        scale = {"cov_sum": square.numel(), "vicreg": square.shape[1], "paper": square.numel() * n}.get(self.form, 1)
        return ErrorMap(square * scale)


class Context(Term):
    """Predict the teacher at seen places too, the more the nearer they are to a hidden one: |context - h|^p / (p sqrt(distance))
    (V-JEPA 2.1, vjepa2 app/vjepa_2_1/train.py; its weight there ramps from 0 to 0.5 in the second half of training)."""

    p: float = 1.0
    view: str = field(default="hidden", kw_only=True)

    def error(self, view, head):  # [b k]
        target = view.h.flatten(1, 3).gather(1, view.seen.unsqueeze(-1).expand_as(view.context))
        error = ((view.context - target).abs() ** self.p).mean(-1) / self.p
        nearness = token_distance(view, view.seen, view.hidden, view.mask.hidden_valid).rsqrt()
        return ErrorMap(error * nearness, view.mask.seen_valid)  # the distances are not normalised away, as upstream


class Straight(Term):
    """Latent paths should bend as little as possible: 1 - cos(z[t+1] - z[t], z[t+2] - z[t+1]) (temporal straightening,
    arXiv:2603.12231)."""

    def error(self, view, head):  # [b t-2 h w]
        v = diff(view.z)
        return 1 - F.cosine_similarity(v[:, 1:], v[:, :-1], dim=-1)


class Spectral(Term):
    """Student and teacher should have one spectrum over time: |w_f (rfft(z)_f - rfft(h)_f)| (Sec. 3.6); orthonormal FFT over token time.

    Its map is [b frequencies h w]; through the visible view only places seen at all times count.
    weights    "linear": (f + 1) / mean; "uniform"; "highpass": f / last, without the mean over time; "released": 0.1 to 1
    amplitude  compare |Z| and |H| alone, blind to phase
    """

    weights: str = "linear"
    amplitude: bool = False

    def __post_init__(self):
        super().__post_init__()
        check(self, weights=("linear", "uniform", "highpass", "released"))

    def scale(self, bins: int) -> Tensor:
        """Weight of each frequency [bins]."""
        f = torch.arange(bins, dtype=torch.float32)
        return {
            "linear": (f + 1) / (f + 1).mean(),
            "uniform": torch.ones(bins),
            "highpass": f / max(bins - 1, 1),
            "released": torch.linspace(0.1, 1, bins),
        }[self.weights]

    def error(self, view, head):  # [b frequencies h w]
        if view.grid[0] == 1:  # no time, no spectrum
            return ErrorMap(view.z[:, :0].sum(-1))
        z, h = (torch.fft.rfft(x, dim=1, norm="ortho") for x in (view.z, view.cut(view.h)))
        error = (z.abs() - h.abs()).abs() if self.amplitude else (z - h).abs()
        error = error.mean(-1) * self.scale(error.shape[1]).to(error)[:, None, None]
        return ErrorMap(error, None if view.valid is None else view.valid.all(1, keepdim=True))


class Contrast(Term):
    """A token should be nearer to the teacher's at its own time than to the one a step later:
    relu(margin - cos(z[t], h[t]) + cos(z[t], h[t+1])) (LTC, Sec. 3.6).

    negatives  "next": the step after; "both": the steps before and after, averaged; "all": cross-entropy over all times with
               temperature 0.1 (margin is not used)
    """

    margin: float = 0.5
    negatives: str = "next"

    def __post_init__(self):
        super().__post_init__()
        check(self, negatives=("next", "both", "all"))

    def error(self, view, head):  # [b t-1 h w]; [b t h w] for "all"
        z, h = F.normalize(view.z, dim=-1), F.normalize(view.cut(view.h), dim=-1)
        if self.negatives == "all":
            if view.grid[0] == 1:
                return ErrorMap(z[:, :0].sum(-1))
            logits = torch.einsum("bthwd,bshwd->btshw", z, h) / 0.1
            return logits.logsumexp(2) - logits.diagonal(dim1=1, dim2=2).permute(0, 3, 1, 2)
        own = (z * h).sum(-1)
        later = F.relu(self.margin - own[:, :-1] + (z[:, :-1] * h[:, 1:]).sum(-1))
        if self.negatives == "next":
            return later
        return (later + F.relu(self.margin - own[:, 1:] + (z[:, 1:] * h[:, :-1]).sum(-1))) / 2


class Pixels(Term):
    """A head should foresee the next change of mean patch colour: |Act(z[t]) - (P[t+1] - P[t])| (AC-JEPA, Sec. 3.9; FAC sees Z_dyn).

    P is the mean colour of each token's tubelet in normalised pixels; hidden is the width of the two-layer GELU head.
    """

    hidden: int = 256

    def head(self, dim):
        return mlp(self.width(dim), self.hidden, 3)

    def error(self, view, head):  # [b t-1 h w]
        t, h, w = view.grid
        colour = reduce(view.clip.float(), "b c (t p) (h q) (w r) -> b t h w c", "mean", t=t, h=h, w=w)
        return (head(view.z[:, :-1]) - diff(colour)).abs().mean(-1)


class VelGate(Term):
    """Tokens of the background should stand still: |z[t+1] - z[t]| where the clip moves little (Sec. 3.5).

    gate      speed by "teacher": mean |h[t+1] - h[t]|, or by "pixels": mean |frame difference| of the token
    quantile  tokens up to this quantile of speed count as background
    within    the quantile of each "clip", or of each "step" of it
    """

    gate: str = "teacher"
    quantile: float = 0.5
    within: str = "clip"

    def __post_init__(self):
        super().__post_init__()
        check(self, gate=("teacher", "pixels"), within=("clip", "step"))

    def error(self, view, head):  # [b t-1 h w]
        error = diff(view.z).abs().mean(-1)
        return ErrorMap(error, self.background(view, view.valid_for(error))) if error.numel() else error

    def background(self, view: View, valid: Tensor | None) -> Tensor:
        """True where a token moves little, among the valid ones: [b t-1 h w]."""
        by_teacher = self.gate == "teacher"
        speed = diff(view.h.detach()).abs().mean(-1) if by_teacher else motion_score(view.clip, view.grid)[:, :-1]
        known = speed if valid is None else speed.masked_fill(~valid, torch.nan)
        start = 1 if self.within == "clip" else 2
        limit = known.flatten(start).nanquantile(self.quantile, dim=-1)
        return known <= limit.view(*limit.shape, *[1] * (speed.ndim - limit.ndim))  # nan compares as False


class Hamiltonian(Term):
    """Halves q and p of z should move as a Hamiltonian system: dq/dt = dH/dp, dp/dt = -dH/dq, with H a tanh MLP of the token (Sec. 3.5).

    The residual |q[t+1] - ...| + |p[t+1] - ...| of one step from z[t], mean over channels. H constant and z still is a trivial solution.
    method  "symplectic": semi-implicit Euler, H at (q[t], p[t+1]); "euler": H at (q[t], p[t]); "leapfrog"; "energy": |H[t+1] - H[t]|
    dt      length of a token step
    toward  whose z[t+1] the step should reach: "student" or "teacher"
    hidden, layers   width and number of hidden layers of H
    """

    method: str = "symplectic"
    dt: float = 1.0
    toward: str = "student"
    hidden: int = 256
    layers: int = 1

    def __post_init__(self):
        super().__post_init__()
        check(self, method=("symplectic", "euler", "leapfrog", "energy"), toward=("student", "teacher"))

    def head(self, dim):
        network = mlp(self.width(dim), *[self.hidden] * self.layers, 1, activation=nn.Tanh)
        network[-1].register_parameter("bias", None)  # a constant added to H changes nothing
        return network

    def error(self, view, head):  # [b t-1 h w]
        z, later = view.z[:, :-1], view.z[:, 1:] if self.toward == "student" else view.cut(view.h)[:, 1:]
        if self.method == "energy":
            return (head(later) - head(z)).squeeze(-1).abs()
        q, p = z.chunk(2, dim=-1)
        q1, p1 = later.chunk(2, dim=-1)
        if self.method == "leapfrog":
            half = p - self.dt / 2 * self.slope(head, q, p)[0]
            q_step = q + self.dt * self.slope(head, q, half)[1]
            p_step = half - self.dt / 2 * self.slope(head, q_step, half)[0]
        else:
            dq, dp = self.slope(head, q, p1 if self.method == "symplectic" else p)
            q_step, p_step = q + self.dt * dp, p - self.dt * dq
        return ((q1 - q_step).abs() + (p1 - p_step).abs()).mean(-1)

    @staticmethod
    def slope(head: nn.Module, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """(dH/dq, dH/dp), differentiable themselves."""
        with torch.enable_grad():
            q, p = (x if x.requires_grad else x.detach().requires_grad_() for x in (q, p))
            return torch.autograd.grad(head(torch.cat([q, p], dim=-1)).sum(), (q, p), create_graph=True)


class SIGReg(Term):
    """Tokens should look like a standard normal from every side: the Epps-Pulley statistic of random projections (LeJEPA,
    arXiv:2511.08544; rbalestr-lab/lejepa univariate/epps_pulley.py, multivariate/slicing.py). Its map is over slices.

    Not linear in the batch: characteristic functions are means over all tokens, over all processes where there are several.
    slices, knots, t_max   random directions (new at every step, the same in every process); points of the integral over [0, t_max]
    samples  "tokens": each token is one; "clips": the mean over a clip's tokens
    most     at most so many tokens, drawn anew at every step; 0: all
    n_scale  multiply by the number of samples, as LeJEPA does; with thousands of correlated tokens that is a factor of thousands
    """

    slices: int = 1024
    knots: int = 17
    t_max: float = 3.0
    samples: str = "tokens"
    most: int = 4096
    n_scale: bool = False
    norm: str = field(default="raw", kw_only=True)  # unit variance is what it asks for: LayerNorm would give it away

    CHUNK = 128  # slices at a time: bounds the memory of the projections' cosines

    def __post_init__(self):
        super().__post_init__()
        check(self, samples=("tokens", "clips"))

    def error(self, view, head):  # [slices]
        draw = torch.Generator().manual_seed(view.step)
        if self.samples == "clips":
            counts = torch.ones_like(view.z[..., 0]) if view.valid is None else view.valid.to(view.z)
            x = (view.z * counts.unsqueeze(-1)).sum((1, 2, 3)) / counts.sum((1, 2, 3)).clamp_min(1).unsqueeze(-1)
        else:
            x = view.rows
            if 0 < self.most < len(x):
                x = x[torch.randperm(len(x), generator=draw)[: self.most].to(x.device)]
        draw.manual_seed(view.step)  # the directions do not depend on how many tokens there were
        directions = F.normalize(torch.randn(x.shape[-1], self.slices, generator=draw), dim=0).to(x)
        parts = [checkpoint(self.statistic, x, a, use_reentrant=False) for a in directions.split(self.CHUNK, dim=1)]
        world = dist.get_world_size() if dist.is_initialized() else 1
        return ErrorMap(torch.cat(parts) * (len(x) * world if self.n_scale else 1))

    def statistic(self, x: Tensor, directions: Tensor) -> Tensor:
        """Epps-Pulley statistic, without the factor n, of samples x [n d] along directions [d s]: [s]."""
        t = torch.linspace(0, self.t_max, self.knots, device=x.device)
        weight = torch.full_like(t, 2 * self.t_max / (self.knots - 1))  # trapezoid, doubled for the negative half
        weight[[0, -1]] /= 2
        normal = torch.exp(-t.square() / 2)  # characteristic function of N(0, 1), and the window
        angle = (x @ directions).unsqueeze(-1) * t  # [n s knots]
        real, imaginary = over_processes(angle.cos().mean(0)), over_processes(angle.sin().mean(0))
        return ((real - normal).square() + imaginary.square()) @ (weight * normal)


def over_processes(mean: Tensor) -> Tensor:
    """The mean of equal shares over all processes, with gradient."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return mean
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(mean) / dist.get_world_size()
