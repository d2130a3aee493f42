"""Terms on how latents change over time. Each is a differentiable zero on an image (t = 1) and leaves images among clips out."""

import math

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor

from vjepa_lab.data.core import STD
from vjepa_lab.masks import motion_score
from vjepa_lab.objective import ErrorMap, Term, View, diff
from vjepa_lab.terms.common import Distance, none_of, positive, two_layers
from vjepa_lab.values import check, number, whole


class Kinematic(Distance):
    """Latents should change little from step to step: |z[t+1] - z[t]| (Eq. 2). On "app" it is the static loss (Eq. 7).

    order  1: velocity; 2: acceleration (Kin-Accel).
    huber  None: L1; a number: Huber's loss with that threshold (Kin-Huber). Smooth L1 with beta is Huber's divided by it: weigh by 1/beta.
    """

    temporal = True
    order: int = 1
    huber: float | None = None

    def __post_init__(self):
        super().__post_init__()
        whole(self, order=1)
        if self.huber is not None:
            positive(self, "huber")

    def error(self, view, head):  # [b t-order h w]
        change = view.z
        for _ in range(self.order):
            change = diff(change)
        if self.huber is None:
            return self.over_channels(change.abs())
        return self.over_channels(F.huber_loss(change, torch.zeros_like(change), reduction="none", delta=self.huber))

    @property
    def label(self) -> str:
        return {1: "Kinematic", 2: "Accel"}.get(self.order, f"Kinematic{self.order}") + ("" if self.on == "all" else f"[{self.on}]")


class Straight(Term):
    """Latent paths should bend as little as possible: 1 - cos(z[t+1] - z[t], z[t+2] - z[t+1]) (temporal straightening,
    arXiv:2603.12231)."""

    temporal = True

    def error(self, view, head):  # [b t-2 h w]
        v = diff(view.z)
        return 1 - F.cosine_similarity(v[:, 1:], v[:, :-1], dim=-1)


class Delta(Distance):
    """Student and teacher should change alike: |(z[t+1] - z[t]) - (h[t+1] - h[t])| (Eq. 5)."""

    temporal = True

    def error(self, view, head):  # [b t-1 h w]
        return self.over_channels((diff(view.z) - diff(view.cut(view.h))).abs())


class Dynamics(Distance):
    """A head should foresee the teacher's next change: |Dyn(z[t]) - (h[t+1] - h[t])| (LD, Eq. 6).

    z[t] comes from an encoder that attends to the whole clip, so h[t+1] is not hidden from it; view="causal" hides it.
    hidden    width of the two-layer GELU head (Table 7: 256); 0: a linear head.
    foretell  "all": every channel of h, whatever z the head sees; "own": the channels that it sees (`on`).
    """

    temporal = True
    hidden: int = 256
    foretell: str = "all"

    def __post_init__(self):
        super().__post_init__()
        check(self, foretell=("all", "own"))
        whole(self, hidden=0)

    def head(self, dim):
        return two_layers(self.width(dim), self.hidden, dim if self.foretell == "all" else self.width(dim))

    def error(self, view, head):  # [b t-1 h w]
        h = view.h if self.foretell == "all" else view.cut(view.h)
        return self.over_channels((head(view.z[:, :-1]) - diff(h)).abs())


class Spectral(Distance):
    """Student and teacher should have one spectrum over time: |w_f (rfft(z)_f - rfft(h)_f)| (Sec. 3.6); orthonormal FFT over token time.

    Its map is [b frequencies h w]; through the visible view only places seen at all times count. Masks that show only a part of time, as
    the preset micro's do, leave none of them, and the term is zero there.
    weights    "linear": (f + 1) / mean; "uniform"; "highpass": f / last, without the mean over time; "released": 0.1 to 1, and the FFT
               not normalised, which is the published code's: sqrt(t) times as large
    amplitude  compare |Z| and |H| alone, blind to phase; otherwise the modulus of the complex difference
    """

    temporal = True
    over_time = False
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
            return none_of(view)
        norm = "backward" if self.weights == "released" else "ortho"
        z, h = (torch.fft.rfft(x, dim=1, norm=norm) for x in (view.z, view.cut(view.h)))
        error = (z.abs() - h.abs()).abs() if self.amplitude else (z - h).abs()
        error = self.over_channels(error)
        error = error * self.scale(error.shape[1]).to(error)[:, None, None]
        return ErrorMap(error, None if view.valid is None else view.valid.all(1, keepdim=True))


class Contrast(Term):
    """A token should be nearer to the teacher's at its own time than to the one a step later:
    relu(margin - cos(z[t], h[t]) + cos(z[t], h[t+1])) (LTC, Sec. 3.6). The last step, which has no later one, drops out.

    negatives    "next": the step after; "both": the steps before and after, averaged; "all": cross-entropy over all times, which has a
                 temperature instead of a margin and loses no step
    temperature  of the cross-entropy
    """

    temporal = True
    margin: float = 0.5
    negatives: str = "next"
    temperature: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        check(self, negatives=("next", "both", "all"))
        number(self, margin=-math.inf)
        positive(self, "temperature")

    def error(self, view, head):  # [b t-1 h w]; [b t h w] for "all"
        z, h = F.normalize(view.z, dim=-1), F.normalize(view.cut(view.h), dim=-1)
        if self.negatives == "all":
            if view.grid[0] == 1:
                return none_of(view)
            logits = torch.einsum("bthwd,bshwd->btshw", z, h) / self.temperature
            return logits.logsumexp(2) - logits.diagonal(dim1=1, dim2=2).permute(0, 3, 1, 2)
        own = (z * h).sum(-1)
        later = F.relu(self.margin - own[:, :-1] + (z[:, :-1] * h[:, 1:]).sum(-1))
        if self.negatives == "next":
            return later
        return (later + F.relu(self.margin - own[:, 1:] + (z[:, 1:] * h[:, :-1]).sum(-1))) / 2


class Pixels(Distance):
    """A head should foresee the next change of mean patch colour: |Act(z[t]) - (P[t+1] - P[t])| (AC-JEPA, Sec. 3.9; FAC sees Z_dyn).

    P is the mean colour of each token's tubelet.
    hidden  width of the two-layer GELU head; 0: a linear head
    target  "next": change to the next tubelet; "within": from the first to the last frame of the token's own one
    pixels  "normalised": by ImageNet's mean and standard deviation, as the encoder sees them; "unit": in [0, 1]
    """

    temporal = True
    hidden: int = 256
    target: str = "next"
    pixels: str = "normalised"

    def __post_init__(self):
        super().__post_init__()
        check(self, target=("next", "within"), pixels=("normalised", "unit"))
        whole(self, hidden=0)

    def head(self, dim):
        return two_layers(self.width(dim), self.hidden, 3)

    def error(self, view, head):  # [b t-1 h w]; [b t h w] for "within"
        if view.clip.shape[2] == 1:
            return none_of(view)
        change = self.change(view)
        return self.over_channels((head(view.z[:, : change.shape[1]]) - change).abs())

    def change(self, view: View) -> Tensor:
        """Change of colour that the head should foresee, [b t-1 h w c] or [b t h w c]."""
        t, h, w = view.grid
        clip = view.clip.float()
        if self.pixels == "unit":
            clip = clip * torch.tensor(STD, device=clip.device).view(3, 1, 1, 1)  # differences know no mean
        if self.target == "next":
            return diff(reduce(clip, "b c (t p) (h q) (w r) -> b t h w c", "mean", t=t, h=h, w=w))
        tubelet = clip.shape[2] // t
        if tubelet < 2:
            raise ValueError("target='within' needs tubelets of two frames or more: one frame does not change")
        first, last = clip[:, :, ::tubelet], clip[:, :, tubelet - 1 :: tubelet]
        return reduce(last - first, "b c t (h q) (w r) -> b t h w c", "mean", h=h, w=w)


class VelGate(Distance):
    """Tokens of the background should stand still: |z[t+1] - z[t]| where the clip moves little (Sec. 3.5).

    gate         speed by "teacher": mean |h[t+1] - h[t]|, or by "pixels": mean |frame difference| of the token; "released", as the
                 published code has it: speed by the teacher's 2-norm, the quantile of all tokens, seen or not, and the mean over moving
                 tokens too, which count as zero
    quantile     tokens up to this quantile of speed count as background
    within       the quantile of each "clip", or of each "step" of it
    temperature  0: a token counts or not; otherwise by sigmoid((1 - speed / the quantile's speed) / temperature), half at the quantile
    """

    temporal = True
    gate: str = "teacher"
    quantile: float = 0.5
    within: str = "clip"
    temperature: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check(self, gate=("teacher", "pixels", "released"), within=("clip", "step"))
        number(self, quantile=0, temperature=0)
        if self.quantile > 1:
            raise ValueError(f"VelGate(quantile={self.quantile!r}): expected a number from 0 to 1")

    def error(self, view, head):  # [b t-1 h w]
        error = self.over_channels(diff(view.z).abs())
        if error.numel() == 0:
            return error
        if self.gate == "released":
            return error * self.background(view, None)
        return ErrorMap(error, self.background(view, view.valid_for(error)))

    def background(self, view: View, valid: Tensor | None) -> Tensor:
        """How much a token counts as background, among the valid ones: bool, or floats in [0, 1], [b t-1 h w]."""
        if self.gate == "pixels":
            speed = motion_score(view.clip, view.grid)[:, :-1]
        else:
            change = diff(view.h.detach())
            speed = change.norm(dim=-1) if self.gate == "released" else change.abs().mean(-1)
        known = speed if valid is None else speed.masked_fill(~valid, torch.nan)
        start = 1 if self.within == "clip" else 2
        limit = known.flatten(start).nanquantile(self.quantile, dim=-1)
        limit = limit.view(*limit.shape, *[1] * (speed.ndim - limit.ndim))
        if self.temperature == 0:
            return known <= limit  # nan compares as False
        return torch.sigmoid((1 - known / limit.clamp_min(1e-12)) / self.temperature).nan_to_num(0.0)
