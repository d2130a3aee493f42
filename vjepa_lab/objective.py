"""The algebra of objectives: frozen values with `+` and `*` whose repr is the code that rebuilds them.

A term maps a `View` of the latents to an error map of any shape; an objective is a weighted sum of terms; `Loss` holds the trainable
heads and turns latents into numbers. A new objective is a small class and one expression:

    class Straight(Term):
        "Latent paths should bend as little as possible."
        def error(self, view, head):                                    # [b t-2 h w]
            v = diff(view.z)
            return 1 - F.cosine_similarity(v[:, 1:], v[:, :-1], dim=-1)

    recipe = Recipe(JEPA() + 0.1 * Straight())
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, dataclass_transform

import torch
from torch import Tensor, nn

from vjepa_lab.masks import Mask, MultiBlock
from vjepa_lab.schedules import Schedule, Weight
from vjepa_lab.values import Value
from vjepa_lab.weighting import Weigher, Weighting

VIEWS = ("full", "visible", "hidden")


# --------------------------------------------------------------------------------------------------------------- what a term sees


class View:
    """What one term sees of one batch. With `view="full"` there is one View; otherwise one per mask kind.

    z       student's tokens [b t h w d], normalised and cut to the channels that the term asks for (`norm`, `on`); in the visible view
            those of the seen places, zero elsewhere; `rows` are those that count, [n d]
    h       teacher's tokens [b t h w d], normalised, no gradient
    valid   boolean [b t h w] (visible), [b m] (hidden, padded masks), or None: every place counts
    pred, target, hidden    at the hidden places: prediction and teacher [b m d], token ids [b m]
    context, seen           at the seen places: prediction [b k d], token ids [b k]
    clip    [b c f y x] normalised pixels; grid (t, h, w); step, progress
    """

    def __init__(self, latents, name: str = "full", kind: int = 0, *, norm: str = "layer", on: str = "all"):
        self.latents, self.name, self.kind, self.norm, self.on = latents, name, kind, norm, on
        self.clip, self.grid, self.step, self.progress = latents.clip, latents.grid, latents.step, latents.progress

    @property
    def mask(self) -> Mask:
        return self.latents.masks[self.kind]

    def cut(self, x: Tensor) -> Tensor:
        """The channels of x [... d] that the term works on."""
        order = getattr(self.latents, "order", None)
        x = x if order is None else x[..., order]
        half = x.shape[-1] // 2
        return {"all": x, "app": x[..., :half], "dyn": x[..., half:]}[self.on]

    @cached_property
    def _tokens(self) -> Tensor:
        """Student's tokens, normalised and cut: [b t h w d], or [b k d] of the seen places."""
        lat = self.latents
        z = lat.z if self.name == "full" else lat.seen[self.kind]
        z = self.cut(lat.normalise(z) if self.norm == "layer" else z)
        return torch.nn.functional.layer_norm(z, z.shape[-1:]) if self.norm == "half" else z

    @cached_property
    def z(self) -> Tensor:
        if self.name == "full":
            return self._tokens
        return self.latents.scatter(self._tokens, self.mask.seen, self.mask.seen_valid)

    @property
    def rows(self) -> Tensor:
        """The tokens of z that count, for terms that are statistics over them: [n d]."""
        if self.name == "full" or self.mask.seen_valid is None:
            return self._tokens.flatten(0, -2)
        return self._tokens[self.mask.seen_valid]

    @property
    def h(self) -> Tensor:
        return self.latents.h

    @cached_property
    def valid(self) -> Tensor | None:
        if self.name == "hidden":
            return self.mask.hidden_valid
        return None if self.name == "full" else self.latents.places(self.mask.seen, self.mask.seen_valid)

    @property
    def pred(self) -> Tensor:
        return self.latents.pred[self.kind]

    @property
    def target(self) -> Tensor:
        return self.latents.target[self.kind]

    @property
    def context(self) -> Tensor:
        return self.latents.context[self.kind]

    @property
    def hidden(self) -> Tensor:
        return self.mask.hidden

    @property
    def seen(self) -> Tensor:
        return self.mask.seen

    def valid_for(self, error: Tensor) -> Tensor | None:
        """Which entries of an error map count, read off its shape: an entry [b t-j h w] made of j+1 steps needs all of them valid."""
        valid = self.valid
        if valid is None or valid.shape == error.shape:
            return valid
        b, t, *space = valid.shape
        if error.ndim == 4 and error.shape[0] == b and list(error.shape[2:]) == space and error.shape[1] < t:
            return valid.unfold(1, t - error.shape[1] + 1, 1).all(-1)
        raise ValueError(
            f"through view={self.name!r} an error map has one entry per token, {[b, t, *space]} or fewer steps; got {list(error.shape)}. "
            "Return ErrorMap(value, weight) to say yourself which entries count."
        )


class Reordered:
    """The same latents, whose channels every View takes in another order [d]."""

    def __init__(self, latents, order: Tensor):
        self.latents, self.order = latents, order

    def __getattr__(self, name: str):
        return getattr(self.latents, name)


class ErrorMap(NamedTuple):
    """An error map with a non-negative weight per entry (None: all alike). Its mean is sum(weight * value) / sum(weight)."""

    value: Tensor
    weight: Tensor | None = None

    def mean(self) -> Tensor:
        """Scalar; a differentiable zero where no entry counts (an image has no temporal difference)."""
        if self.value.numel() == 0:
            return self.value.sum()
        if self.weight is None:
            return self.value.mean()
        weight = self.weight.to(self.value.dtype).expand_as(self.value)
        return (self.value * weight).sum() / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)


def diff(x: Tensor) -> Tensor:
    """Difference along token time: [b t ...] -> [b t-1 ...]."""
    return x[:, 1:] - x[:, :-1]


# ------------------------------------------------------------------------------------------------------------------------- algebra


@dataclass_transform(frozen_default=True, kw_only_default=False)
class Term(Value):
    """One equation. A subclass is made a frozen dataclass by itself; it defines `error` and, if it trains a head, `head`.

    view  "full": student and teacher see the whole clip (a second student pass); "visible": the seen tokens of each mask kind, at no
          extra pass; "hidden": prediction and target at the hidden places.
    norm  what z passes through before the term: "layer" (LayerNorm without affine, as the teacher's h), "half" (the same over the
          chosen half alone) or "raw" (the encoder's output, whose gain the JEPA loss does not see).
    on    channels of z that the term sees: "all", "app" (first half), "dyn" (second half).
    """

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        dataclass(frozen=True, repr=False)(cls)

    view: str = field(default="full", kw_only=True)
    norm: str = field(default="layer", kw_only=True)
    on: str = field(default="all", kw_only=True)

    def __post_init__(self):
        for name, allowed in (("view", VIEWS), ("norm", ("layer", "half", "raw")), ("on", ("all", "app", "dyn"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{type(self).__name__}({name}={getattr(self, name)!r}): expected one of {', '.join(allowed)}")

    def error(self, view: View, head: nn.Module | None) -> Tensor | ErrorMap:
        """The error map of any shape, in fp32; `head` is what `self.head` made."""
        raise NotImplementedError(f"{type(self).__name__} must define error(self, view, head)")

    def head(self, dim: int) -> nn.Module | None:
        """A trainable head for latents of `dim` channels (before `on` cuts them), or None."""
        return None

    def width(self, dim: int) -> int:
        """Channels of z that this term sees when the latents have `dim`."""
        return dim if self.on == "all" else dim // 2 if self.on == "app" else dim - dim // 2

    def seen_as(self, view: str) -> "Term":
        """The same term through another view; a term on hidden places stays as it is."""
        return self if self.view == "hidden" else replace(self, view=view)

    def views(self, latents) -> Iterator[View]:
        kinds = 1 if self.view == "full" else len(latents.masks)
        return (View(latents, self.view, kind, norm=self.norm, on=self.on) for kind in range(kinds))

    def maps(self, latents, head: nn.Module | None) -> list[ErrorMap]:
        """The error map seen through each view, with what counts in it."""
        out = []
        for view in self.views(latents):
            error = self.error(view, head)
            if not isinstance(error, Tensor | ErrorMap):
                raise TypeError(f"error() must return a tensor or an ErrorMap, got {type(error).__name__}")
            out.append(error if isinstance(error, ErrorMap) else ErrorMap(error, view.valid_for(error)))
        return out

    def loss(self, latents, head: nn.Module | None = None) -> Tensor:
        """Mean of each map, then over mask kinds (as V-JEPA averages)."""
        means = [m.mean() for m in self.maps(latents, head)]
        return sum(means) / len(means)

    idle = False  # True for a term that is meant to give no gradient

    @property
    def label(self) -> str:
        """Short name for logs and figures: the class and the channels it sees."""
        return type(self).__name__ + ("" if self.on == "all" else f"[{self.on}]")

    def __add__(self, other):
        return as_objective(self) + other

    def __radd__(self, other):
        return as_objective(other) + self

    def __mul__(self, weight):
        return Objective(((weight, self),))

    __rmul__ = __mul__


# The base carries the fields too; __init_subclass__ runs for subclasses only.
Term = dataclass(frozen=True, repr=False)(Term)


@dataclass(frozen=True, repr=False)
class Objective(Value):
    """A weighted sum of terms: ((weight, term), ...). Build it with `+` and `*`."""

    terms: tuple[tuple[Weight, Term], ...]

    def __post_init__(self):
        for weight, term in self.terms:
            if not isinstance(term, Term) or not isinstance(weight, int | float | Schedule):
                raise TypeError(f"an objective sums weight * Term; got {weight!r} * {term!r}")

    def __add__(self, other):
        return Objective(self.terms + as_objective(other).terms)

    def __radd__(self, other):
        return as_objective(other) + self

    def __mul__(self, weight: Weight):
        return Objective(tuple((w * weight, t) for w, t in self.terms))

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return " + ".join(f"{t!r}" if w == 1 and not isinstance(w, Schedule) else f"{w!r}*{t!r}" for w, t in self.terms)

    def __iter__(self) -> Iterator[tuple[Weight, Term]]:
        return iter(self.terms)

    @property
    def names(self) -> tuple[str, ...]:
        """One distinct short name per term."""
        labels, out = [t.label for _, t in self.terms], []
        for i, label in enumerate(labels):
            again = labels[:i].count(label)
            out.append(f"{label}#{again + 1}" if again else label)
        return tuple(out)

    @property
    def views(self) -> frozenset[str]:
        return frozenset(t.view for _, t in self.terms)

    def seen_as(self, view: str) -> "Objective":
        """The same objective with every auxiliary (a term that looks at z) seen through `view`."""
        return Objective(tuple((w, t.seen_as(view)) for w, t in self.terms))


def as_objective(value) -> Objective:
    """A term or an objective as an objective; 0 is the empty sum, so that `sum(terms)` works."""
    if isinstance(value, Objective):
        return value
    if isinstance(value, Term):
        return Objective(((1.0, value),))
    if isinstance(value, int | float) and value == 0:
        return Objective(())
    raise TypeError(f"cannot add {value!r} to an objective: expected a Term or an Objective")


class Loss(nn.Module):
    """An objective with its trainable heads.

    dim        channels of the latents (`VJEPA.width`).
    weighting  None: the terms' own weights; or a rule that adapts them, at work in `weigher`.
    """

    def __init__(self, objective: Objective | Term, dim: int, weighting: Weighting | None = None):
        super().__init__()
        self.objective = as_objective(objective)
        heads = [term.head(dim) for _, term in self.objective]
        self.heads = nn.ModuleList(nn.Identity() if head is None else head for head in heads)
        self.weigher = None if weighting is None else Weigher(weighting, self.written())

    def forward(self, latents) -> tuple[Tensor, dict[str, Tensor]]:
        """(total, {term name: unweighted loss}) as scalars on the device; reading them is what waits for it.

        With gradient on, an adaptive rule measures the terms' gradients at the steps where it is due.
        """
        parts, own = self.parts(latents), self.written(latents.progress)
        if self.weigher is None:
            return sum(b * part for b, part in zip(own, parts.values(), strict=True)), parts
        model, losses = latents.model, list(parts.values())
        if torch.is_grad_enabled() and self.weigher.due(latents.step):
            self.weigher.measure(losses, list(model.student.parameters()), own)
        private = [p for module in (model.predictor, self.heads) for p in module.parameters()]
        return self.weigher.total(losses, private, own), parts

    def parts(self, latents) -> dict[str, Tensor]:
        """{term name: unweighted loss}.

        Raises what a term raises, with the term's name before it; ValueError for a term that nothing trainable has a part in.
        """
        terms = zip(self.objective.names, self.objective, self.heads, strict=True)
        return {name: self._part(name, term, latents, head) for name, (_, term), head in terms}

    def written(self, progress: float = 0.0) -> list[float]:
        """The terms' own weights at a progress in [0, 1]."""
        return [w(progress) if isinstance(w, Schedule) else w for w, _ in self.objective]

    def weights(self, progress: float = 0.0) -> list[float]:
        """The weights in force: a rule's, or the written ones."""
        return self.written(progress) if self.weigher is None else self.weigher.now

    @staticmethod
    def _part(name: str, term: Term, latents, head: nn.Module) -> Tensor:
        try:
            part = term.loss(latents, head)
        except (ValueError, TypeError, RuntimeError) as error:
            raise type(error)(f"{name}: {error}") from error
        if torch.is_grad_enabled() and not (part.requires_grad or term.idle):
            raise ValueError(f"{name}: its error depends on nothing that trains; use view.z, view.pred or a head in it")
        return part


# -------------------------------------------------------------------------------------------------------------------------- recipe


@dataclass(frozen=True, repr=False)
class Recipe(Value):
    """All that a pretraining varies: what is minimised, what is hidden, and what gives the targets.

    masks      how tokens are hidden (`masks.MultiBlock` ...)
    teacher    "ema" | "online" (the student behind a stop-gradient) | "frozen" (its first weights)
    stop_grad  False: an online teacher's targets carry gradient (as the paper's released code without EMA)
    levels     1, or 4: students and teachers speak at four depths (V-JEPA 2.1; what the released code trains)
    probe      which encoder evaluation takes: "student" | "teacher" | "initial" (the encoder before training)
    weighting  None: the weights as written; or a rule that adapts them (`weighting.Weighting`), such as GradientRatio()
    """

    objective: Objective
    masks: MultiBlock = field(default_factory=MultiBlock)
    teacher: str = "ema"
    stop_grad: bool = True
    levels: int = 1
    probe: str = "student"
    weighting: Weighting | None = None

    def __post_init__(self):
        object.__setattr__(self, "objective", as_objective(self.objective))
        for name, allowed in (
            ("teacher", ("ema", "online", "frozen")),
            ("levels", (1, 4)),
            ("probe", ("student", "teacher", "initial")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"Recipe({name}={getattr(self, name)!r}): expected one of {', '.join(map(str, allowed))}")
        if self.weighting is not None and (len(self.objective.terms) < 2 or any(t.idle for _, t in self.objective)):
            raise ValueError(f"{self.weighting!r} weighs auxiliaries by their gradients: it needs two terms or more, none of them Detached")
        if not self.objective.terms:
            raise ValueError("a recipe needs an objective with at least one term, such as JEPA()")

    def cost(self, preset="base", batch: int = 8):
        """Passes and GFLOP per clip and training step, against the baseline's (`cost.Cost`)."""
        from vjepa_lab.cost import cost

        return cost(self, preset, batch)


def as_recipe(value) -> Recipe:
    """A recipe, or the recipe of a bare objective or term with the default masks and EMA teacher."""
    return value if isinstance(value, Recipe) else Recipe(as_objective(value))
