"""What an auxiliary objective adds to a step, by the view it takes."""

from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor

from vjepa_lab import variants
from vjepa_lab.bench.steps import batch_of, in_turn, measured, random_clips, trainer
from vjepa_lab.bench.timing import interleaved, ratio, spread
from vjepa_lab.model import Latents, gather
from vjepa_lab.objective import Recipe
from vjepa_lab.training.meters import peak_memory
from vjepa_lab.training.processes import device_of


class Tubes(Latents):
    """Latents whose full view is a random half of the places, the same at all times, [b t h*w/2 1 d]: what such a view would cost.

    For measuring alone: terms that compare places would need to be told which these are.
    """

    @cached_property
    def kept(self) -> Tensor:
        """Ids of the tokens at those places [b t*h*w/2]."""
        t, h, w = self.grid
        places = torch.rand(len(self.clip), h * w, device=self.clip.device).argsort(1)[:, : h * w // 2]
        return (torch.arange(t, device=places.device)[:, None] * h * w + places[:, None]).flatten(1)

    def tubes(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(1, (self.grid[0], -1, 1))

    @cached_property
    def z(self) -> Tensor:
        return self.tubes(self._encode(self.model.student, self.kept))

    @cached_property
    def whole(self) -> Tensor:
        """Teacher's view of the full clip, which the prediction needs [b n d]."""
        return Latents.h.func(self).flatten(1, 3)

    @cached_property
    def h(self) -> Tensor:
        return self.tubes(gather(self.whole, self.kept))

    @cached_property
    def target(self) -> list[Tensor]:
        return [gather(self.whole, mask.hidden) for mask in self.masks]


def objectives(
    name: str = "micro",
    dtype: str = "bf16",
    *,
    variant: str = "fwm-hw-ld",
    batch: int | None = None,
    repeats: int = 10,
    device: str = "auto",
) -> list[dict]:
    """A row for the baseline and for each way in which a recipe's auxiliaries may see the clip, interleaved in one run.

    Full view (a second student pass), half of the places at all times ("tubes"), visible view (no further pass): median ms, quartiles, the
    time added to the baseline's, that which counted operations predict, and peak memory. Tubes need a teacher of their own.

    variant  the recipe whose auxiliaries are measured
    """
    device, size = device_of(device), measured(name)
    batch, bf16 = batch or batch_of(name, device), dtype == "bf16"
    plan = variants.recipe(variant)
    recipes: dict[str, Recipe] = {"baseline": variants.recipe("baseline")}
    recipes |= {f"{variant}, {view}": replace(plan, objective=plan.objective.seen_as(view)) for view in ("full", "visible")}
    steps = {what: trainer(recipe, size, device, bf16) for what, recipe in recipes.items()}
    if plan.teacher != "online":
        tubes = steps[f"{variant}, tubes"] = trainer(recipes[f"{variant}, full"], size, device, bf16)
        tubes.model.latents = partial(Tubes, tubes.model)
    clip = random_clips(size, batch, device)
    contenders = {what: in_turn(each, clip) for what, each in steps.items()}
    times = interleaved(contenders, repeats, device)
    rows = []
    for what, ms in times.items():
        row = {"preset": name, "dtype": dtype, "batch": batch, "threads": torch.get_num_threads(), "what": what, **spread(ms)}
        row["added"] = 1 / ratio(ms, times["baseline"]) - 1
        if what in recipes:
            row["by_operations"] = recipes[what].cost(size, batch).ratio - 1
        rows.append(row | {"memory_mb": peak_memory(contenders[what], device) / 2**20})
    return rows


COLUMNS = {"what": "s", "ms": ".1f", "q1": ".1f", "q3": ".1f", "added": "+.0%", "by_operations": "+.0%", "memory_mb": ".0f"}
