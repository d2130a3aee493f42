"""Rules that set the weights of an objective's terms while it trains, from how their gradients on the student lie to one another.

Axes: k l terms, the first one main (JEPA), the others auxiliaries; p the student's parameters.

All but one rule are functions from the Gramian <g_k, g_l> of the terms' gradients and their written weights b to new weights w: the step
stays one ordinary backward pass of sum_k w_k L_k. What belongs to a term alone (its head, the predictor) goes on learning at the written
weight, whatever the rule does to the student: a head whose gate is closed would else never learn what might open it.

    recipe = Recipe(JEPA() + 0.5 * Delta(), weighting=CosineGate())
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vjepa_lab.training.processes import over_processes
from vjepa_lab.values import Value

TINY = 1e-30


@dataclass(frozen=True, repr=False, kw_only=True)
class Weighting(Value):
    """Base of the rules. The terms' gradients are measured every `every` steps, a backward pass per term.

    A rule sees the Gramian of averaged cosines and averaged log norms: moving averages with `momentum`, bias-corrected. The average of the
    inner products themselves would be ruled by the first steps, since squared norms shrink many times over as training sets in.

    Between measurements the weights follow the written ones, which a schedule may move at every step.
    """

    every: int = 50
    momentum: float = 0.9

    def __post_init__(self):
        super().__post_init__()
        numbers = isinstance(self.every, int) and isinstance(self.momentum, int | float)
        if not numbers or self.every < 1 or not 0 <= self.momentum < 1:
            raise ValueError(f"{self!r}: expected every >= 1 (steps) and momentum in [0, 1)")

    def weights(self, gram: Tensor, own: Tensor, solver: nn.Module | None = None) -> Tensor:
        """Weights [k] from the Gramian [k l] of the unweighted terms' gradients and the written weights [k]; float64, on the CPU.

        Asked at every step, a rule with a `solver` only where the gradients are measured.
        """
        raise NotImplementedError(f"{type(self).__name__} must say its weights")

    def solver(self) -> nn.Module | None:
        """What a rule of another library keeps between calls, which may cost; in between, its weights move with the written ones."""
        return None


@dataclass(frozen=True, repr=False)
class Fixed(Weighting):
    """The weights as written; the gradients are measured for the log all the same."""

    def weights(self, gram, own, solver=None):
        return own


@dataclass(frozen=True, repr=False)
class CosineWeight(Weighting):
    """Weigh each auxiliary by its cosine with the main gradient, b_k max(0, cos_k): it fades as it turns away (Du et al. 2018,
    arXiv:1812.02224, the weighted version)."""

    momentum: float = field(default=0.99, kw_only=True)

    def weights(self, gram, own, solver=None):
        return _auxiliaries(own, own * cosines(gram).clamp_min(0))


@dataclass(frozen=True, repr=False)
class CosineGate(Weighting):
    """Let an auxiliary act on the student only while its gradient does not oppose the main one, b_k [cos_k >= 0] (Du et al. 2018,
    arXiv:1812.02224, the unweighted version)."""

    def weights(self, gram, own, solver=None):
        return _auxiliaries(own, own * (cosines(gram) >= 0))


@dataclass(frozen=True, repr=False)
class Projection(Weighting):
    """Take from an auxiliary's gradient the part that opposes the main one, g_k - min(0, <g_k, g_0>) / |g_0|^2 g_0; the main gradient
    stays (PCGrad's surgery, Yu et al. 2020, arXiv:2001.06782, on auxiliaries only). Over all of the student's parameters together.

    As weights: w_k = b_k and w_0 = b_0 - sum_k b_k min(0, <g_k, g_0>) / |g_0|^2. Exact where it is measured, so at every step.
    """

    every: int = field(default=1, kw_only=True)
    momentum: float = field(default=0.0, kw_only=True)

    def weights(self, gram, own, solver=None):
        opposed = gram[0].clamp_max(0) / gram[0, 0].clamp_min(TINY)
        opposed[0] = 0
        out = own.clone()
        out[0] -= own @ opposed
        return out


@dataclass(frozen=True, repr=False)
class GradientRatio(Weighting):
    """Weigh every auxiliary so that its gradient is `ratio` times the main one's in norm; the terms' own weights are left out.

    Of terms with the same equation at different scales it makes one and the same objective, which fixed weights do not.
    """

    ratio: float = 0.3

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.ratio, int | float) or not self.ratio > 0:
            raise ValueError(f"{self!r}: expected a ratio above 0")

    def weights(self, gram, own, solver=None):
        norms = gram.diagonal().sqrt()
        wanted = torch.where(norms > 0, self.ratio * norms[0] / norms.clamp_min(TINY), own)
        return _auxiliaries(torch.ones_like(own), wanted)


@dataclass(frozen=True, repr=False)
class Uncertainty(Weighting):
    """Learn a log-variance s_k per term: sum_k exp(-s_k) L_k + s_k (Kendall et al. 2018, arXiv:1705.07115; twice its Eq. 7). It needs no
    gradients, starts from the written weights, exp(-s_k) = b_k, and acts on heads and predictor alike. For losses above zero.

    A recipe refuses it beside schedules: after the start it does not ask for the written weights.
    """


@dataclass(frozen=True, repr=False)
class TorchJD(Weighting):
    """A weighting of the package torchjd by name (torchjd.aggregation.<name>Weighting), on the gradients of b_k L_k: "UPGrad", "MGDA",
    "PCD", "GradVac", "DualProj", "IMTLG", "AlignedMTL", "PCGrad", "CAGrad" ... It sees the Gramian; its weights come times b_k.

    options  its keyword arguments, such as (("tau", 0.05),)
    Raises ImportError without torchjd (`pip install -e '.[multitask]'`) or what the weighting needs besides, ValueError for a name that
    torchjd does not have or that works on something else than a Gramian.
    """

    every: int = field(default=1, kw_only=True)
    momentum: float = field(default=0.0, kw_only=True)
    name: str
    options: tuple[tuple[str, float | str], ...] = ()

    def solver(self):
        try:
            from torchjd import aggregation
        except ImportError:
            raise ImportError(f"{self!r} needs the package torchjd: pip install -e '.[multitask]', in the project's folder") from None
        known = sorted(n.removesuffix("Weighting") for n in dir(aggregation) if _on_gramians(getattr(aggregation, n)))
        if self.name not in known:
            raise ValueError(f"{self!r}: torchjd has no weighting {self.name!r} of Gramians; it has {', '.join(known)}")
        return getattr(aggregation, f"{self.name}Weighting")(**dict(self.options))

    def weights(self, gram, own, solver=None):
        return own * (solver or self.solver())(own[:, None] * gram * own)


def _on_gramians(kind) -> bool:
    return (
        isinstance(kind, type) and kind.__name__.endswith("Weighting") and any(b.__name__ == "_GramianWeighting" for b in kind.__mro__[1:])
    )


def cosines(gram: Tensor) -> Tensor:
    """Cosine of each gradient with the first one, from their Gramian [k l]: [k]; 0 where a gradient is zero."""
    norms = gram.diagonal().clamp_min(0).sqrt()
    return gram[0] / (norms[0] * norms).clamp_min(TINY)


def _auxiliaries(own: Tensor, wanted: Tensor) -> Tensor:
    """The main term's own weight, and the wanted ones of the others."""
    return torch.cat([own[:1], wanted[1:]])


# ------------------------------------------------------------------------------------------------------------------------ in training


AVERAGED = ("cosine", "log_norm", "count")


class Weigher(nn.Module):
    """A rule at work: averaged gradients and the weights of now, saved and restored with the loss. Numbers live on the CPU.

    own  the written weights at the start [k]
    cosine [k l], log_norm [k]  averages over the measurements so far, None before the first;  count [k l]  of how many, both terms in them
    """

    def __init__(self, rule: Weighting, own: list[float]):
        super().__init__()
        self.rule, self.machine = rule, rule.solver()
        self.cosine = self.log_norm = self.count = None
        self.weights, self.calls = list(own), 0
        self.solved: tuple[list[float], list[float]] | None = None  # a solver's last weights, and the written ones they were for
        if isinstance(rule, Uncertainty):
            if min(own) <= 0:
                raise ValueError(f"{rule!r} starts from the written weights, which must be positive; got {own}")
            self.log_variance = nn.Parameter(torch.tensor([-math.log(b) for b in own]))

    def due(self, step: int) -> bool:
        """Whether gradients are measured at this step: at every so many, and where nothing is known yet."""
        return not isinstance(self.rule, Uncertainty) and (step % self.rule.every == 0 or self.count is None)

    @property
    def gram(self) -> Tensor | None:
        """The Gramian [k l] of gradients with the averaged cosines and norms, 0 where a term had none so far; None before any."""
        if self.count is None:
            return None
        norms = torch.where(self.count.diagonal() > 0, self.log_norm.exp(), 0)
        return self.cosine * norms[:, None] * norms

    def measure(self, parts: list[Tensor], shared: list[nn.Parameter], own: list[float]) -> None:
        """Set the weights from the gradients of the terms on the shared parameters; the graph is kept."""
        gram = gramian(parts, shared)
        if self.count is None:
            self.cosine, self.log_norm, self.count = (torch.zeros_like(x) for x in (gram, gram[0], gram.long()))
        norms = gram.diagonal().sqrt()
        there = (norms[:, None] > 0) & (norms > 0)  # a term without gradient here (of change, on images) keeps what was known of it
        self.count = self.count + there
        # An average over n measurements gives the last one (1 - m) / (1 - m^n) of the weight: all of it at first, 1 - m in the long run.
        share = (1 - self.rule.momentum) / (1 - self.rule.momentum ** self.count.double())
        self.cosine = torch.where(there, self.cosine.lerp(gram / (norms[:, None] * norms), share), self.cosine)
        self.log_norm = torch.where(there.diagonal(), self.log_norm.lerp(norms.log(), share.diagonal()), self.log_norm)
        self.calls += 1
        if self.machine is not None:
            self.solved = self._asked(own), list(own)
        self.weights = self.at(own)

    def at(self, own: list[float]) -> list[float]:
        """The weights [k] where the written ones are `own` [k], from the gradients as they were last measured."""
        if self.count is None:
            return list(own)
        if self.machine is None:
            return self._asked(own)
        if self.solved is None:  # an older checkpoint does not say which written weights a solver was asked with
            return self.weights
        return [w * (now / then) if then else w for w, now, then in zip(self.solved[0], own, self.solved[1], strict=True)]

    def _asked(self, own: list[float]) -> list[float]:
        with torch.random.fork_rng(devices=[]):  # some of torchjd's draw an order: the same in every run
            torch.default_generator.manual_seed(self.calls)
            return self.rule.weights(self.gram, torch.tensor(own, dtype=torch.float64), self.machine).tolist()

    def total(self, parts: list[Tensor], private: list[nn.Parameter], own: list[float]) -> Tensor:
        """sum_k w_k L_k, whose gradient on the `private` parameters is that of sum_k b_k L_k."""
        if isinstance(self.rule, Uncertainty):
            return torch.stack(parts) @ (-self.log_variance).exp() + self.log_variance.sum()
        weights = self.at(own)
        total = sum(w * part for w, part in zip(weights, parts, strict=True))
        if not torch.is_grad_enabled():
            return total
        self.weights = weights
        lacking = [(b - w, part) for b, w, part in zip(own, weights, parts, strict=True) if b != w and part.requires_grad]
        if not (lacking and private):
            return total
        missed = torch.autograd.grad(sum(gap * part for gap, part in lacking), private, retain_graph=True, allow_unused=True)
        # Worth zero, with just the missing gradient: hooks of the one backward pass, such as a process group's, see the whole.
        return total + sum((g * (p - p.detach())).sum() for g, p in zip(missed, private, strict=True) if g is not None)

    @property
    def now(self) -> list[float]:
        """The weights in force [k], those of the last step."""
        return (-self.log_variance).exp().tolist() if isinstance(self.rule, Uncertainty) else self.weights

    def report(self, names: tuple[str, ...]) -> dict[str, float]:
        """For the log: the weight of each term, and each auxiliary's cosine with the main gradient."""
        found = {f"weight {name}": w for name, w in zip(names, self.now, strict=True)}
        if self.count is not None:
            found |= {f"cosine {name}": c for name, c in zip(names[1:], cosines(self.gram)[1:].tolist(), strict=True)}
        return found

    def get_extra_state(self) -> dict:
        kept = {} if self.machine is None else vars(self.machine) | self.machine._buffers
        plain = {k: v for k, v in kept.items() if k != "training" and isinstance(v, int | float | tuple | Tensor | None)}
        averaged = {name: getattr(self, name) for name in AVERAGED}
        return averaged | {"weights": self.weights, "calls": self.calls, "solved": self.solved, "machine": plain}

    def set_extra_state(self, state: dict) -> None:
        """An older checkpoint averaged the Gramian itself: the weights in force are read from it, the averages begin anew."""
        self.weights, self.calls, self.solved = state["weights"], state["calls"], state.get("solved")
        for name in AVERAGED:
            setattr(self, name, None if (value := state.get(name)) is None else value.cpu())
        for name, value in state["machine"].items():
            setattr(self.machine, name, value.cpu() if isinstance(value, Tensor) else value)


def gramian(parts: list[Tensor], parameters: list[nn.Parameter]) -> Tensor:
    """<g_k, g_l> of the losses' gradients on the parameters, averaged over processes first: float64 [k l] on the CPU. Keeps the graph."""
    rows = torch.stack([flat_gradient(part, parameters) for part in parts])
    rows = over_processes(rows)
    return (rows @ rows.T).cpu().double()


def flat_gradient(part: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """Gradient of one loss on the parameters, flat [p] in their order, zero where it does not reach; the graph is kept."""
    found = torch.autograd.grad(part, parameters, retain_graph=True, allow_unused=True) if part.requires_grad else [None] * len(parameters)
    return torch.cat(
        [torch.zeros(p.numel(), device=p.device) if g is None else g.flatten() for g, p in zip(found, parameters, strict=True)]
    )
