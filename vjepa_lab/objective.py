"""The algebra of objectives: frozen values with `+` and `*` whose repr is the code that rebuilds them.

A term maps a `View` of the latents to an error map of any shape; an objective is a weighted sum of terms; `Loss` holds the trainable
heads and turns latents into numbers. A new objective is a small class and one expression:

    class Unbent(Term):
        "Latent paths should bend as little as possible."
        def error(self, view, head):                                    # [b t-2 h w]
            v = diff(view.z)
            return 1 - F.cosine_similarity(v[:, 1:], v[:, :-1], dim=-1)

    recipe = Recipe(JEPA() + 0.1 * Unbent())
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import dataclass_transform

import torch
from torch import Tensor, nn

from vjepa_lab.masks import MultiBlock
from vjepa_lab.schedules import Schedule, Weight
from vjepa_lab.values import Value, check, plain, whole
from vjepa_lab.views import VIEWS, WHOLE, ErrorMap, Reordered, View, diff, mean_of
from vjepa_lab.weighting import Uncertainty, Weigher, Weighting

__all__ = ["ErrorMap", "Loss", "Objective", "Recipe", "Reordered", "Term", "View", "as_objective", "as_recipe", "diff"]

# ------------------------------------------------------------------------------------------------------------------------- algebra


@dataclass_transform(frozen_default=True, kw_only_default=False)
class Term(Value):
    """One equation. A subclass is made a frozen dataclass by itself; it defines `error` and, if it trains a head, `head`.

    view  "full": student and teacher see the whole clip (a second student pass); "causal": the same, but a student's token sees only
          its own time and the past (the full view shows z[t] the later frames, so the target of Eq. 6 is not hidden from its input);
          "visible": the seen tokens of each mask kind, at no extra pass; "hidden": prediction and target at the hidden places.
    norm  what z passes through before the term: "layer" (LayerNorm without affine, as the teacher's h), "half" (the same over the
          chosen half alone) or "raw" (the encoder's output, whose gain the JEPA loss does not see).
    on    channels of z that the term sees: "all", "app" (first half), "dyn" (second half).

    Images among the clips: a term about change leaves them out, and its mean is over the samples that count. `temporal` says whether
    a term is; None reads it off the map: one with fewer steps than the grid is. Statistics that a term takes over the batch by itself
    see the images too, unless it looks at `view.still`.
    """

    temporal = None
    idle = False  # True for a term that is meant to give no gradient
    over_time = True  # False for a term whose map has something else than token time as its second axis

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        dataclass(frozen=True, repr=False)(cls)

    view: str = field(default="full", kw_only=True)
    norm: str = field(default="layer", kw_only=True)
    on: str = field(default="all", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check(self, view=VIEWS, norm=("layer", "half", "raw"), on=("all", "app", "dyn"))

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
        kinds = 1 if self.view in WHOLE else len(latents.masks)
        return (View(latents, self.view, kind, norm=self.norm, on=self.on) for kind in range(kinds))

    def maps(self, latents, head: nn.Module | None) -> list[ErrorMap]:
        """The error map seen through each view, with what counts in it."""
        out = []
        for view in self.views(latents):
            error = self.error(view, head)
            if not isinstance(error, Tensor | ErrorMap):
                raise TypeError(f"error() must return a tensor or an ErrorMap, got {type(error).__name__}")
            error = error if isinstance(error, ErrorMap) else ErrorMap(error, view.valid_for(error))
            if not error.value.is_floating_point():
                raise TypeError(f"an error map holds real numbers, got {error.value.dtype}")
            if error.weight is not None and error.weight.device.type == "cpu" and (error.weight < 0).any():  # a GPU would be waited for
                raise ValueError("the weights of an ErrorMap are not negative, but some are here")
            out.append(self._of_clips(error, view))
        return out

    def _of_clips(self, error: ErrorMap, view: View) -> ErrorMap:
        """The map with the number of samples that count in it; without the images, if it is about change."""
        if error.value.numel() == 0:
            return error._replace(samples=0)
        about_change = view.has_fewer_steps(error.value) if self.temporal is None else self.temporal
        if about_change and view.still is not None:
            return error.of_samples(~view.still)._replace(share=view.latents.share)
        return error._replace(samples=len(view.clip))

    def loss(self, latents, head: nn.Module | None = None) -> Tensor:
        """Mean of each map, then over mask kinds (as V-JEPA averages)."""
        return mean_of(self.maps(latents, head))

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
        super().__post_init__()
        for weight, term in self.terms:
            if not isinstance(term, Term) or not isinstance(weight, int | float | Schedule):
                raise TypeError(f"an objective sums weight * Term; got {weight!r} * {term!r}")
            if not isinstance(weight, Schedule) and not math.isfinite(weight):
                raise ValueError(f"the weight of {term!r} is {weight}: expected a finite number")

    def __add__(self, other):
        return Objective(self.terms + as_objective(other).terms)

    def __radd__(self, other):
        return as_objective(other) + self

    def __mul__(self, weight: Weight):
        weight = plain(weight)  # before the product, which NumPy would round to its own precision
        if not isinstance(weight, int | float | Schedule):
            raise TypeError(f"cannot multiply {self!r} by {weight!r}: expected a number or a Schedule")
        return Objective(tuple((w * weight, t) for w, t in self.terms))

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return " + ".join(f"{t!r}" if w == 1 and not isinstance(w, Schedule) else f"{w!r}*{t!r}" for w, t in self.terms)

    def __iter__(self) -> Iterator[tuple[Weight, Term]]:
        return iter(self.terms)

    def _repr_latex_(self) -> str:
        from vjepa_lab.equations import equation

        return f"$\\displaystyle {equation(self)}$"

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


def nested(term: Term) -> Iterator[Term]:
    """The term, and if it is made from another one (`modifiers`) that one too, and so on: the innermost comes last."""
    while isinstance(term, Term):
        yield term
        term = getattr(term, "term", None)


def as_objective(value) -> Objective:
    """A term or an objective as an objective; 0 is the empty sum, so that `sum(terms)` works."""
    if isinstance(value, Objective):
        return value
    if isinstance(value, Term):
        return Objective(((1.0, value),))
    if isinstance(value, int | float) and value == 0:
        return Objective(())
    hint = f" (did you mean {value.__name__}()?)" if isinstance(value, type) else ""
    raise TypeError(f"cannot add {value!r} to an objective: expected a Term or an Objective{hint}")


class Loss(nn.Module):
    """An objective with its trainable heads.

    dim        channels of the latents (`VJEPA.width`).
    weighting  None: the terms' own weights; or a rule that adapts them, at work in `weigher`.
    """

    def __init__(self, objective: Objective | Term, dim: int, weighting: Weighting | None = None):
        super().__init__()
        self.objective = as_objective(objective)
        heads = [term.head(dim) for _, term in self.objective]
        for name, head in zip(self.objective.names, heads, strict=True):
            if not isinstance(head, nn.Module | None):
                raise TypeError(f"{name}: head(dim) must return a torch.nn.Module or None, got {type(head).__name__}")
        self.heads = nn.ModuleList(nn.Identity() if head is None else head for head in heads)
        self.weigher = None if weighting is None else Weigher(weighting, self.written())

    def forward(self, *latents) -> tuple[Tensor, dict[str, Tensor]]:
        """(total, {term name: unweighted loss}) as scalars on the device; reading them is what waits for it.

        Several latents are the parts of one batch, such as videos and single images: a term's loss is the mean over parts, each counted
        by the samples that count in it, so that images neither enter nor dilute a term about change.
        With gradient on, an adaptive rule measures the terms' gradients at the steps where it is due; its weights follow the written ones
        at every step.
        """
        parts, own = self.parts(*latents), self.written(latents[0].progress)
        if self.weigher is None:
            return sum(b * part for b, part in zip(own, parts.values(), strict=True)), parts
        model, losses = latents[0].model, list(parts.values())
        if torch.is_grad_enabled() and self.weigher.due(latents[0].step):
            self.weigher.measure(losses, list(model.student.parameters()), own)
        private = [p for module in (model.predictor, self.heads) for p in module.parameters()]
        return self.weigher.total(losses, private, own), parts

    def parts(self, *latents) -> dict[str, Tensor]:
        """{term name: unweighted loss}.

        Raises what a term raises, with the term's name before it; ValueError for a term that nothing trainable has a part in.
        """
        terms = zip(self.objective.names, self.objective, self.heads, strict=True)
        return {name: self._part(name, term, latents, head) for name, (_, term), head in terms}

    def written(self, progress: float = 0.0) -> list[float]:
        """The terms' own weights at a progress in [0, 1]."""
        return [w(progress) if isinstance(w, Schedule) else w for w, _ in self.objective]

    def weights(self, progress: float = 0.0) -> list[float]:
        """The weights in force: a rule's as of its last step, or the written ones at a progress."""
        return self.written(progress) if self.weigher is None else self.weigher.now

    @staticmethod
    def _part(name: str, term: Term, latents: tuple, head: nn.Module) -> Tensor:
        try:
            part = mean_of([m for part in latents for m in term.maps(part, head)])
        except Exception as error:
            if type(error) in (ValueError, TypeError, RuntimeError):
                raise type(error)(f"{name}: {error}") from error
            error.add_note(f"in the term {name}")  # one of another kind may be made of more than a text
            raise
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
    lr         after the warm-up, "cosine" down to the preset's `final_lr`, or "constant"
    images     repeated to fill the frames, they are left "out" of terms about change; or "in": they count as clips that stand still
    rope_grid  stretch rows and columns of the rotary positions onto this many tokens a side (V-JEPA 2.1: 16); None: as they are
    """

    objective: Objective
    masks: MultiBlock = field(default_factory=MultiBlock)
    teacher: str = "ema"
    stop_grad: bool = True
    levels: int = 1
    probe: str = "student"
    weighting: Weighting | None = None
    lr: str = "cosine"
    rope_grid: int | None = None
    images: str = "out"

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.objective, Objective | Term):
            raise TypeError(
                f"Recipe({self.objective!r}): expected a Term or an Objective; a name or an expression is read by vl.recipe(...)"
            )
        object.__setattr__(self, "objective", as_objective(self.objective))
        if not isinstance(self.masks, MultiBlock):
            raise TypeError(
                f"Recipe(masks={self.masks!r}): expected masks such as masks.AMG or MultiBlock(...); a sampler of your own subclasses "
                "MultiBlock, or is its `where`"
            )
        if not isinstance(self.weighting, Weighting | None):
            raise TypeError(f"Recipe(weighting={self.weighting!r}): expected a rule such as GradientRatio(), or None")
        check(self, teacher=("ema", "online", "frozen"), levels=(1, 4), probe=("student", "teacher", "initial"))
        check(self, lr=("cosine", "constant"), images=("out", "in"))
        if not isinstance(self.stop_grad, bool):
            raise TypeError(f"Recipe(stop_grad={self.stop_grad!r}): expected True or False")
        if self.rope_grid is not None:
            whole(self, rope_grid=2)
        if self.weighting is not None and (len(self.objective.terms) < 2 or any(t.idle for _, t in self.objective)):
            raise ValueError(f"{self.weighting!r} weighs auxiliaries by their gradients: it needs two terms or more, none of them Detached")
        if isinstance(self.weighting, Uncertainty) and any(isinstance(weight, Schedule) for weight, _ in self.objective):
            raise ValueError(f"{self.weighting!r} learns the weights from where they start: expected numbers, no schedules")
        if all(term.idle for _, term in self.objective):
            raise ValueError("a recipe needs an objective with at least one term that trains, such as JEPA()")
        if not self.stop_grad and self.teacher != "online":
            raise ValueError(f"Recipe(teacher={self.teacher!r}, stop_grad=False): only an online teacher's targets can carry gradient")

    def cost(self, preset="base", batch: int = 8):
        """Passes and GFLOP per clip and training step, against the baseline's (`cost.Cost`)."""
        from vjepa_lab.cost import cost

        return cost(self, preset, batch)

    def _repr_html_(self) -> str:
        from vjepa_lab.equations import page

        return page(self)

    def _repr_latex_(self) -> str:
        from vjepa_lab.equations import equation

        return f"$\\displaystyle {equation(self.objective)}$"


def as_recipe(value) -> Recipe:
    """A recipe, or the recipe of a bare objective or term with the default masks and EMA teacher."""
    return value if isinstance(value, Recipe) else Recipe(value)
