"""What a recipe costs: which passes a training step runs, and their floating-point operations, counted without computing anything."""

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from vjepa_lab.masks import Mask, MultiBlock
from vjepa_lab.model import VJEPA, Latents
from vjepa_lab.objective import Loss, Recipe, Term
from vjepa_lab.presets import Preset, preset
from vjepa_lab.weighting import TorchJD, Uncertainty, flat_gradient


@dataclass(frozen=True)
class Cost:
    """GFLOP for one clip and one training step, by pass (forward and backward together); `ratio` is against the baseline.

    A multiplication and an addition count as two. Elementwise work (normalisation, softmax, rotation, cosines) is not counted.
    """

    preset: str
    passes: dict[str, float] = field(default_factory=dict)
    baseline: float = float("nan")

    @property
    def total(self) -> float:
        return sum(self.passes.values())

    @property
    def ratio(self) -> float:
        return self.total / self.baseline

    def __repr__(self) -> str:
        lines = [f"{name:<28}{value:>10.1f}" for name, value in self.passes.items()]
        total = f"{'total':<28}{self.total:>10.1f}   {self.ratio:.2f} x baseline"
        return "\n".join([f"GFLOP per clip and step at {self.preset}", *lines, total])


def cost(recipe: Recipe, size: Preset | str = "base", batch: int = 8) -> Cost:
    """One training step of `recipe`, counted on meta tensors at the mean number of seen and hidden tokens.

    batch  clips per process: official masks keep fewer tokens the more clips they are cut to.
    Raises ValueError for a recipe of more levels than the preset has blocks.
    """
    from vjepa_lab.variants import SOUND

    size = preset(size)
    if recipe.levels > size.depth:
        raise ValueError(
            f"the recipe has {recipe.levels} levels and preset {size.name!r} {size.depth} blocks; "
            f"ask for the cost at replace(preset({size.name!r}), depth={recipe.levels}), or at a larger preset"
        )
    plain = sum(_spent(SOUND["baseline"], size, batch).values())
    return Cost(size.name, _spent(recipe, size, batch), plain)


def _spent(recipe: Recipe, size: Preset, batch: int) -> dict[str, float]:
    """GFLOP of the passes that the recipe's terms ask for, and of the terms. Backward is two products for each of a pass forward; a pass
    that terms without gradient alone ask for has none."""
    lengths, views = typical_lengths(size.masks_of(recipe.masks), size, batch), recipe.objective.views
    trained = {term.view for _, term in recipe.objective if not term.idle}
    if recipe.teacher == "online" and not recipe.stop_grad:
        views, trained = views | {"full"}, trained | {"full"}  # the target itself is a pass with gradient
    times = lambda *asked: 3 if trained.intersection(asked) else int(bool(views.intersection(asked)))
    wanted = {
        "student, seen tokens": times("visible", "hidden"),
        "predictor": times("hidden"),
        "student, full clip": times("full"),
        "student, causal": times("causal"),
        "teacher": 1,
    }
    if recipe.teacher == "online" and "full" in views:
        wanted["teacher"] = 0  # the student's own full pass serves
    forward = _passes(size, recipe.levels, lengths, tuple(name for name, times in wanted.items() if times))
    found = {name: wanted[name] * gflop for name, gflop in forward.items()}
    terms = sum(_term(term, size, recipe.levels, recipe.stop_grad, lengths) for _, term in recipe.objective)
    beside = {"terms": terms, "weighting": _weighting(recipe, size, lengths)}
    return found | {name: gflop for name, gflop in beside.items() if gflop}


@lru_cache(maxsize=512)
@torch.enable_grad()
def _weighting(recipe: Recipe, size: Preset, lengths) -> float:
    """GFLOP of the backward passes of an adaptive rule, beside that of the step: to the student from each term, every so many steps; and at
    every step to predictor and heads, from the terms whose weight is not the written one: those that it moves where all auxiliaries oppose
    the main term, which is the most that a rule costs."""
    rule = recipe.weighting
    if rule is None or isinstance(rule, Uncertainty):
        return 0.0
    model = _model(size, recipe.levels, recipe.teacher, recipe.stop_grad)
    latents = _latents(model, size, lengths, full="full" in recipe.objective.views)
    with torch.device("meta"):
        loss = Loss(recipe.objective, model.width).eval()  # as in `_term`
    parts = list(loss.parts(latents).values())
    student = list(model.student.parameters())
    private = [p for module in (model.predictor, loss.heads) for p in module.parameters()]
    moved = sum(part for part, moves in zip(parts, _moved(rule, len(parts)), strict=True) if moves)
    back = lambda: torch.autograd.grad(moved, private, retain_graph=True, allow_unused=True)
    measured = _gflop(lambda: [flat_gradient(part, student) for part in parts])
    return measured / rule.every + (_gflop(back) if torch.is_tensor(moved) else 0.0)


def _moved(rule, terms: int) -> list[bool]:
    """Which terms' weights differ from the written ones where all auxiliaries oppose the main term; of another library's rule, all."""
    if isinstance(rule, TorchJD):
        return [True] * terms
    gram, own = torch.full((terms, terms), -0.5 / terms).double(), torch.ones(terms).double()
    gram.diagonal().copy_(torch.arange(1, terms + 1))
    return (rule.weights(gram, own) != own).tolist()


@lru_cache
def typical_lengths(masks: MultiBlock, size: Preset, batch: int) -> tuple[tuple[int, int], ...]:
    """Mean numbers of seen and hidden tokens, a pair per mask kind, of masks drawn for `batch` clips."""
    score = None
    if masks.needs_clip:
        noise = torch.rand(batch, 3, size.frames, size.size, size.size, generator=torch.Generator().manual_seed(0))
        score = masks.where.score(noise, size.grid)
    drawn = [masks.draw(batch, size.grid, seed=0, step=step, score=score) for step in range(128)]
    lengths = torch.tensor([[[m.seen.shape[1], m.hidden.shape[1]] for m in kinds] for kinds in drawn])
    return tuple(map(tuple, lengths.double().mean(0).round().long().tolist()))


@lru_cache
def _model(size: Preset, levels: int, teacher: str = "ema", stop_grad: bool = True) -> VJEPA:
    with torch.device("meta"):
        return VJEPA.build(size, levels=levels, teacher=teacher, stop_grad=stop_grad)


def _latents(model: VJEPA, size: Preset, lengths, full: bool = False) -> Latents:
    """One clip's latents on the meta device."""
    with torch.device("meta"):
        clip = torch.empty(1, 3, size.frames, size.size, size.size)
        return model.latents(clip, [Mask(*(torch.empty(1, n, dtype=torch.long) for n in pair)) for pair in lengths], full=full)


def _gflop(make) -> float:
    with FlopCounterMode(display=False) as counter:
        make()
    return counter.get_total_flops() / 1e9


PASSES = {
    "student, seen tokens": lambda latents: latents.seen,
    "predictor": lambda latents: latents.pred,
    "student, full clip": lambda latents: latents.z,
    "student, causal": lambda latents: latents.causal,
    "teacher": lambda latents: latents.h,
}
BY_TOKENS = ("student, seen tokens", "predictor")  # what depends on the masks


def _passes(size: Preset, levels: int, lengths, names: tuple[str, ...] = tuple(PASSES)) -> dict[str, float]:
    """GFLOP of forward passes of one clip."""
    return {name: _pass(name, size, levels, lengths if name in BY_TOKENS else ()) for name in names}


@lru_cache
def _pass(name: str, size: Preset, levels: int, lengths) -> float:
    """GFLOP of one forward pass of one clip."""
    latents = _latents(_model(size, levels), size, lengths)
    if name == "predictor":
        latents.seen  # noqa: B018  the pass before it is not its own
    return _gflop(lambda: PASSES[name](latents))


@lru_cache(maxsize=512)
@torch.enable_grad()
def _term(term: Term, size: Preset, levels: int, stop_grad: bool, lengths) -> float:
    """GFLOP of one term, forward and back to its head and to what student and predictor said."""
    # In eval mode: batch normalisation asks for more samples than the one clip here.
    model = _model(size, levels)
    latents, width, inner = _latents(model, size, lengths), model.width, model.predictor.dim
    with torch.device("meta"):
        loss = Loss(term, width).eval()
        full = torch.empty(1, *latents.grid, width, requires_grad=True)
        seen, hidden = ([torch.empty(1, n, width, requires_grad=True) for n in side] for side in zip(*lengths, strict=True))
        states = [torch.empty(1, n, inner, requires_grad=True) for n, _ in lengths]  # at the seen places, for a term that asks for context
    guesses = list(zip(hidden, states, strict=True))
    h, target = (full.detach(), [x.detach() for x in hidden]) if stop_grad else (full, hidden)
    latents.__dict__.update(z=full, causal=full, h=h, seen=seen, pred=hidden, target=target, _predicted=guesses)

    def both() -> None:
        total, _ = loss(latents)
        if total.requires_grad:
            total.backward()

    return _gflop(both)


def of_terms(recipe: Recipe, size: Preset | str = "base", batch: int = 8) -> list[float]:
    """GFLOP per clip and step of each term by itself, its head included; the passes that it asks for come on top."""
    size = preset(size)
    lengths = typical_lengths(size.masks_of(recipe.masks), size, batch)
    return [_term(term, size, recipe.levels, recipe.stop_grad, lengths) for _, term in recipe.objective]
