"""What a recipe costs: which passes a training step runs, and their floating-point operations, counted without computing anything."""

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from vjepa_lab.masks import Mask, MultiBlock
from vjepa_lab.model import VJEPA
from vjepa_lab.objective import Loss, Recipe
from vjepa_lab.presets import Preset, preset


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


@lru_cache(maxsize=256)
def cost(recipe: Recipe, size: Preset | str = "base", batch: int = 8) -> Cost:
    """Count one step of `recipe` on meta tensors, at the mean number of seen and hidden tokens.

    batch  clips per process: official masks keep fewer tokens the more clips they are cut to.
    """
    from vjepa_lab.variants import SOUND

    size, plain = preset(size), SOUND["baseline"]
    passes = _count(recipe, size, batch)
    baseline = sum(passes.values()) if recipe == plain else cost(plain, size, batch).total
    return Cost(size.name, passes, baseline)


def _count(recipe: Recipe, size: Preset, batch: int) -> dict[str, float]:
    with torch.device("meta"):
        model = VJEPA.build(size, teacher=recipe.teacher, stop_grad=recipe.stop_grad, levels=recipe.levels)
        loss = Loss(recipe.objective, model.width)
        clip = torch.empty(1, 3, size.frames, size.size, size.size)
    latents = model.latents(clip, typical_masks(recipe.masks, size, batch), full="full" in recipe.objective.views)
    return {name: flops / 1e9 for name, flops in _one(loss, latents).items()}


def typical_masks(masks: MultiBlock, size: Preset, batch: int) -> list[Mask]:
    """One clip's masks on meta tensors, as long as those drawn for `batch` clips are on average."""
    pixels = torch.rand(batch, 3, size.frames, size.size, size.size) if masks.needs_clip else None
    drawn = [masks.draw(batch, size.grid, seed=0, step=step, clip=pixels) for step in range(16 if masks.needs_clip else 256)]
    lengths = torch.tensor([[[m.seen.shape[1], m.hidden.shape[1]] for m in kinds] for kinds in drawn]).float().mean(0).round().long()
    return [Mask(*(torch.empty(1, n, dtype=torch.long, device="meta") for n in pair)) for pair in lengths.tolist()]


def _one(loss: Loss, latents) -> dict[str, float]:
    """FLOPs of the passes of one step. A pass with gradient costs its forward three times: backward is two products for each."""
    found = {}

    def spend(name: str, make, times: int) -> None:
        with FlopCounterMode(display=False) as counter:
            make()
        if counter.get_total_flops():
            found[name] = times * counter.get_total_flops()

    views = loss.objective.views
    if views & {"visible", "hidden"}:
        spend("student, seen tokens", lambda: latents.seen, 3)
    if "hidden" in views:
        spend("predictor", lambda: latents.pred, 3)
    if "full" in views:
        spend("student, full clip", lambda: latents.z, 3)
    spend("teacher", lambda: latents.h, 1)
    spend("terms", lambda: loss(latents), 3)
    return found
