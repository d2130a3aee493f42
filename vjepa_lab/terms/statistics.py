"""Terms on the distribution of latents rather than on single tokens. They are not linear in the batch; images count as clips do."""

from collections.abc import Iterator, Sequence
from dataclasses import field
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vjepa_lab.objective import ErrorMap, Term, View
from vjepa_lab.terms.common import positive
from vjepa_lab.training.processes import over_processes, sharers
from vjepa_lab.values import check, whole


class Orthogonal(Term):
    """Appearance and dynamics halves should not correlate: C = centred Z_app' Z_dyn / N over the rank's tokens (Eq. 8); its map is over
    channel pairs [d_app d_dyn]. Not linear in the batch: it normalises over the tokens of this process's batch.

    form    "cov_mean": mean of C^2 over channel pairs. "cov_sum": their sum. "vicreg": sum / d_app. "corr_mean": correlations in place of
            covariances. "paper": (1/N) sum (N C)^2 as printed, at least d_app*d_dyn in expectation even for independent features.
    centre  what a token's mean is taken over: "batch" (all tokens of this process), "clip" (its clip), "position" (its place in all clips
            of the batch), "global" (all tokens of all processes), or "none"
    """

    FORMS = ("cov_mean", "cov_sum", "vicreg", "corr_mean", "paper")
    temporal = False
    form: str = "cov_mean"
    centre: str = "batch"

    def __post_init__(self):
        super().__post_init__()
        check(self, form=self.FORMS, centre=("batch", "clip", "position", "global", "none"))

    def error(self, view, head):  # [d_app d_dyn]
        z = self.centred(view)
        n, half = len(z), z.shape[-1] // 2
        if self.form == "corr_mean":
            z = z / z.square().mean(0).sqrt().clamp_min(1e-6)
        square = (z[:, :half].T @ z[:, half:] / max(n, 1)).square()
        scale = {"cov_sum": square.numel(), "vicreg": square.shape[1], "paper": square.numel() * n}.get(self.form, 1)
        return ErrorMap(square * scale)

    def centred(self, view: View) -> Tensor:
        """The tokens that count, without their mean: [n d]."""
        z = view.rows
        if self.centre == "none":
            return z
        if self.centre in ("batch", "global"):
            mean = z.mean(0)
            return z - (over_processes(mean) if self.centre == "global" else mean)
        over = (1, 2, 3) if self.centre == "clip" else (0,)
        if view.valid is None:
            return (view.z - view.z.mean(over, keepdim=True)).flatten(0, -2)
        counts = view.valid.sum(over, keepdim=True).clamp_min(1).unsqueeze(-1)
        return (view.z - view.z.sum(over, keepdim=True) / counts)[view.valid]  # what does not count is zero in view.z


class SIGReg(Term):
    """Tokens should look like a standard normal from every side: the Epps-Pulley statistic of random projections (LeJEPA,
    arXiv:2511.08544; rbalestr-lab/lejepa univariate/epps_pulley.py, multivariate/slicing.py). Its map is over slices.

    Not linear in the batch: characteristic functions are means over all samples, over all processes where there are several.
    slices, knots, t_max   random directions (new at every step, the same in every process); points of the integral over [0, t_max]
    both_sides  the knots span [-t_max, t_max] instead of doubling [0, t_max]
    samples    "tokens": each token is one; "clips": the mean over a clip's tokens; "steps": the mean over a time step's tokens, one
               statistic per step over the batch
    most       at most so many tokens, drawn anew at every step; 0: all
    kinds      through the visible view, a statistic of "each" mask kind's tokens, or one of all kinds' "together"
    n_scale    multiply by the number of samples, as LeJEPA does; with thousands of correlated tokens that is a factor of thousands
    projector  None, or "bn_mlp": what is tested is the output of a two-layer MLP with batch normalisation on the sample, `hidden` wide.
               Its mean and variance are over the samples that count, of all processes. An encoder whose last layer is a LayerNorm has
               tokens of one length, which no normal sample has; LeWM reports that the projector is needed for that reason
    See SIGREG for the choices of the published codes.
    """

    temporal = False
    slices: int = 1024
    knots: int = 17
    t_max: float = 3.0
    both_sides: bool = False
    samples: str = "tokens"
    most: int = 4096
    kinds: str = "each"
    n_scale: bool = False
    projector: str | None = None
    hidden: int = 2048
    norm: str = field(default="raw", kw_only=True)  # unit variance is what it asks for: LayerNorm would give it away

    def __post_init__(self):
        super().__post_init__()
        check(self, samples=("tokens", "clips", "steps"), kinds=("each", "together"), projector=(None, "bn_mlp"))
        whole(self, slices=1, knots=2, most=0, hidden=1)
        positive(self, "t_max")
        if self.kinds == "together" and self.samples != "tokens":
            raise ValueError(f"{self!r}: kinds='together' needs samples='tokens'; a clip's mean is over the tokens of one mask kind")

    def views(self, latents):
        return islice(super().views(latents), 1 if self.kinds == "together" else None)

    def head(self, dim):
        if self.projector is None:
            return None
        width = self.width(dim)
        return Projector(width, self.hidden)

    def error(self, view, head):  # [slices], or [steps slices]
        x, counts = self.sample(view)
        if self.projector is not None:
            x = head(x, counts)
        draw = torch.Generator().manual_seed(view.step)  # the directions do not depend on how many tokens there were
        directions = F.normalize(torch.randn(x.shape[-1], self.slices, generator=draw), dim=0).to(x)
        total = over_processes(counts.sum(1, keepdim=True))  # of one process, on average
        share = counts / total.clamp_min(torch.finfo(total.dtype).tiny)
        at_once = max(CHUNK.get(x.device.type, CHUNK["cuda"]) // max(x.shape[:2].numel(), 1), 1)
        value = self.statistic(x, share, directions.split(at_once, dim=1)) * (total * sharers() if self.n_scale else 1)
        some_unseen = self.samples == "steps" and view.valid is not None
        return ErrorMap(value, total > 0 if some_unseen else None)  # of a step that nobody sees there is no statistic

    def sample(self, view: View) -> tuple[Tensor, Tensor]:
        """Samples [g n d] of g statistics, and how much each counts [g n]."""
        if self.samples == "tokens":
            x = view.rows if self.kinds == "each" else torch.cat([v.rows for v in super().views(view.latents)])
            if 0 < self.most < len(x):
                draw = torch.Generator().manual_seed(view.step)
                x = x[torch.randperm(len(x), generator=draw)[: self.most].to(x.device)]
            return x[None], x.new_ones(1, len(x))
        over = (1, 2, 3) if self.samples == "clips" else (2, 3)
        valid = torch.ones_like(view.z[..., 0]) if view.valid is None else view.valid.to(view.z)
        counts = valid.sum(over)  # [b] or [b t]
        x = (view.z * valid.unsqueeze(-1)).sum(over) / counts.clamp_min(1).unsqueeze(-1)
        x, known = (x[None], counts[None]) if self.samples == "clips" else (x.transpose(0, 1), counts.T)
        return x, (known > 0).to(x)

    def statistic(self, x: Tensor, share: Tensor, directions: Sequence[Tensor]) -> Tensor:
        """Epps-Pulley statistic, without the factor n, of samples x [g n d] with shares [g n] along directions [d s], in parts: [g s]."""
        start = -self.t_max if self.both_sides else 0.0
        step = (self.t_max - start) / (self.knots - 1)
        t = torch.linspace(start, self.t_max, self.knots, dtype=x.dtype, device=x.device)
        weight = torch.full_like(t, (1 if self.both_sides else 2) * step)  # trapezoid
        weight[[0, -1]] /= 2
        normal = torch.exp(-t.square() / 2)  # characteristic function of N(0, 1), and the window
        means = [_CharacteristicFunction.apply(x, share, some, start, step, self.knots) for some in directions]
        real, imaginary = over_processes(torch.cat(means, 2))  # once: another process may have split them otherwise
        return ((real - normal).square() + imaginary.square()) @ (weight * normal)


class Projector(nn.Module):
    """Samples [g n d], and how much each counts [g n], through two layers [g n d], batch normalisation between them.

    A normalisation of torch's own would take what does not count for samples at zero, and each process by itself.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.scale, self.shift = nn.Parameter(torch.ones(hidden)), nn.Parameter(torch.zeros(hidden))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        y, share = self.inner(x), counts.unsqueeze(-1)
        total = over_processes(share.sum()).clamp_min(torch.finfo(share.dtype).tiny)
        mean = lambda values: over_processes((share * values).sum((0, 1))) / total
        y = y - mean(y)
        return self.outer(F.gelu(y * torch.rsqrt(mean(y.square()) + 1e-5) * self.scale + self.shift))


CHUNK = {"cpu": 2**18, "cuda": 2**22}
"Projections of samples at a time: so many lie in a core's cache, or keep a GPU busy; they bound the memory, too."


class _CharacteristicFunction(torch.autograd.Function):
    """Means of cos and sin of t y over samples [g n], by their shares, y their projections on directions [d s]: [2 g s knots].

    For t = start + k step. What is kept for the backward pass are the samples: of the waves, knots times as large, none.
    """

    @staticmethod
    def forward(ctx, x: Tensor, share: Tensor, directions: Tensor, start: float, step: float, knots: int) -> Tensor:
        ctx.save_for_backward(x, share, directions)
        ctx.grid = start, step, knots
        over = share.unsqueeze(1)
        means = [torch.cat([over @ cosine, over @ sine], 1) for cosine, sine in _waves(x @ directions, start, step, knots)]
        return torch.stack(means, -1).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (x, share, directions), (start, step, knots) = ctx.saved_tensors, ctx.grid
        y = x @ directions
        slope = torch.zeros_like(y)
        for k, (cosine, sine) in enumerate(_waves(y, start, step, knots)):
            real, imaginary = (start + k * step) * grad[..., k].unsqueeze(2)
            slope.addcmul_(cosine, imaginary).addcmul_(sine, real, value=-1)
        return (slope * share.unsqueeze(-1)) @ directions.T, None, None, None, None, None


def _waves(y: Tensor, start: float, step: float, knots: int) -> Iterator[tuple[Tensor, Tensor]]:
    """cos(t y) and sin(t y) for t = start + k step, k < knots, each turned from the one before: four sines and cosines in all."""
    turn_cosine, turn_sine = (y * step).cos(), (y * step).sin()
    cosine, sine = (y * start).cos(), (y * start).sin()
    yield cosine, sine
    for _ in range(knots - 1):
        cosine, sine = (
            torch.addcmul(cosine * turn_cosine, sine, turn_sine, value=-1),
            torch.addcmul(sine * turn_cosine, cosine, turn_sine),
        )
        yield cosine, sine


SIGREG = {
    # LeJEPA's MINIMAL.md: 0.02, on clip embeddings, with the factor n. There the other loss weighs 1 - 0.02.
    "lejepa": 0.02 * SIGReg(samples="clips", n_scale=True),
    # lucas-maes/le-wm config/train/lewm.yaml and train.py: 0.09, per time step over the batch, behind a projector with batch normalisation.
    "lewm": 0.09 * SIGReg(samples="steps", n_scale=True, projector="bn_mlp"),
    # facebookresearch/eb_jepa losses.py: 10 knots over [-3, 3], 256 slices, no factor n, weight 10.
    "eb_jepa": 10.0 * SIGReg(slices=256, knots=10, both_sides=True, samples="clips"),
}
