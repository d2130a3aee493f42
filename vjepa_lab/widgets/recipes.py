"""The recipe builder: put an objective together; see the expression that pastes back, what it costs and where it hurts on a clip."""

from __future__ import annotations

import html
import inspect
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from .. import equations, terms
from ..arguments import suggest
from ..modifiers import Hard
from ..objective import Objective, Recipe, Term
from ..plots.clips import frames_of, mapped
from ..plots.sheet import Sheet, sheet, spread
from ..plots.style import embedded
from ..presets import Preset, preset, whole
from ..training.runs import Run, load_run
from .base import Explorer, choice, switch
from .clips import opened
from .masks import strategies

MAIN = "JEPA"
DIALS = ("weight", "on", "view", "hard")


def auxiliaries() -> dict[str, type[Term]]:
    """The terms that can be added to JEPA, by name."""
    found = {name: kind for name, kind in vars(terms).items() if inspect.isclass(kind) and issubclass(kind, Term)}
    return {name: kind for name, kind in found.items() if kind is not Term and name != MAIN}


def compose(
    start: str = "baseline", extra: Mapping[str, Mapping] | None = None, masking: str = "", teacher: str = "", size="micro"
) -> Recipe:
    """The recipe of a named row with further terms.

    extra    {term: {"weight": float, "on": "all" | "app" | "dyn", "view": "full" | "visible", "hard": bool}}; weight 0 leaves a term out,
             "on" and "view" that are "" or not there keep the term's own
    masking  a name of `masks.strategies`; "" and teacher "" keep the row's own

    Raises ValueError for a row, term, key, masking or teacher that there is not, and for a term without a weight.
    """
    from ..variants import recipe

    made = recipe(start)
    objective = made.objective
    for name, how in (extra or {}).items():
        objective = objective + _added(name, how)
    known = strategies(preset(size)) if masking else {}
    if masking and masking not in known:
        raise ValueError(f"unknown masks {masking!r}: {suggest(masking, known)}")
    changes = {"masks": known[masking]} if masking else {}
    return replace(made, objective=objective, **changes, **({"teacher": teacher} if teacher else {}))


def _added(name: str, how: Mapping) -> Objective | int:
    """A further term with its weight, as `compose` is told of it; 0 where it is left out."""
    known = auxiliaries()
    if name not in known:
        raise ValueError(f"unknown term {name!r}: {suggest(name, known)}")
    if not isinstance(how, Mapping):
        raise ValueError(f"{name}: {how!r} is no dict; expected one such as {{'weight': 0.1}}")
    for key in how:
        if key not in DIALS:
            raise ValueError(f"{name}: unknown key {key!r}; {suggest(str(key), DIALS)}")
    if "weight" not in how:
        raise ValueError(f"{name}: no weight in {how!r}; expected a number under 'weight', 0 to leave the term out")
    if not how["weight"]:
        return 0
    term = replace(known[name](), **{key: how[key] for key in ("on", "view") if how.get(key)})
    return how["weight"] * (Hard(term) if how.get("hard") else term)


class Built:
    """A recipe to look at: the expression, its equation and cost at a size, error maps over a clip (where one was asked for)."""

    def __init__(self, recipe: Recipe, size: Preset, picture: Sheet | None):
        self.recipe, self.size, self.picture = recipe, size, picture
        self._html = self._page()

    def _repr_html_(self) -> str:
        return self._html

    def _page(self) -> str:
        paste = f"<pre style='white-space:pre-wrap;user-select:all'>{html.escape(repr(self.recipe))}</pre>"
        maps = "" if self.picture is None else embedded(self.picture._repr_png_(), "error map of each term")
        return f"<div>{paste}{equations.page(self.recipe, self.size)}{maps}</div>"


def recipe_view(recipe: Recipe, size: str | Preset = "micro", clip=None, model=None) -> Built:
    """A recipe with its cost, and its error maps over a clip (uint8 [c f y x]) by a model, by default one that is not trained.

    Raises ValueError for a recipe that cannot be trained or has no cost at this size.
    """
    size = preset(size)
    _try(recipe, size)
    return Built(recipe, size, None if clip is None else _hurts(recipe, size, clip, model))


def _try(recipe: Recipe, size: Preset) -> None:
    """Show the objective two clips without computing anything, so that a term which cannot train says why. One clip would not do: a
    statistic over all tokens then looks like a map of one clip. The encoders are as shallow as they can be, which no term sees.
    """
    import torch

    from ..cost import typical_lengths
    from ..masks import Mask
    from ..objective import Loss
    from ..train import build

    lengths = typical_lengths(size.masks_of(recipe.masks), size, 8)
    with torch.device("meta"):
        model = build(recipe.teacher, recipe.stop_grad, recipe.levels, replace(size, depth=recipe.levels, pred_depth=1), seed=0)
        masks = [Mask(*(torch.zeros(2, n, dtype=torch.long) for n in pair)) for pair in lengths]
        clips = torch.zeros(2, 3, size.frames, size.size, size.size)
        loss = Loss(recipe.objective, model.width)
    loss.parts(model.latents(clips, masks))


def _hurts(recipe: Recipe, size: Preset, clip, model) -> Sheet:
    """Every term's error map, on a scale of its own that its label states."""
    from ..analysis.diagnose import error_maps
    from ..objective import Loss
    from ..train import build

    model = model or build(recipe.teacher, recipe.stop_grad, recipe.levels, size, seed=0)
    frames = frames_of(clip)
    rows = {"clip": spread(frames, size.grid[0])}
    maps = error_maps(model, Loss(recipe.objective, model.width, recipe.weighting), clip, masks=size.masks_of(recipe.masks))
    for name, error in maps.items():
        scale, shown = mapped(frames, error, size.grid[0])
        rows[f"{name}\n{scale}"] = spread(shown, size.grid[0])
    return sheet(rows, most=112)


def recipe_builder(data="synthetic", size: str | Preset = "micro", run: Run | str | Path | None = None, clip: int = 0) -> Explorer:
    """Start from a row of the paper, add terms (weight 0: not there), choose masks and teacher.

    run  a trained Run, or its folder, whose model draws the error maps; by default a model that is not trained, and the picture says
         where errors lie, not what training left of them
    clip which clip of the training part the maps are over, counted from 0

    Raises FileNotFoundError for a folder that holds no run, ValueError for a clip that is not there.
    """
    from ipywidgets import FloatText

    from ..variants import names

    whole(0, clip=clip)
    run = None if run is None else load_run(run)
    size = preset(size) if run is None else run.preset
    source = opened(data, "train", size, clip + 1)
    if clip >= len(source):
        raise ValueError(f"clip={clip}: {source.name} [{source.split}] has {len(source)} clips, counted from 0")
    controls = {
        "start": choice(names("sound"), "baseline", "start from"),
        "masking": choice({"its own": "", **{name: name for name in strategies(size)}}, "", "masks"),
        "teacher": choice({"its own": "", "ema": "ema", "online": "online", "frozen": "frozen"}, "", "teacher"),
        "maps": switch("error maps over a clip"),
    }
    for name in auxiliaries():
        controls[f"{name}.weight"] = FloatText(value=0.0, step=0.05, description=name)
        controls[f"{name}.on"] = choice({"its own channels": "", "all channels": "all", "Z_app": "app", "Z_dyn": "dyn"}, "")
        controls[f"{name}.view"] = choice({"its own view": "", "full view": "full", "seen tokens": "visible"}, "")
        controls[f"{name}.hard"] = switch("Hard")

    def view(start, masking, teacher, maps, **rows) -> Built:
        extra: dict[str, dict] = {}
        for key, value in rows.items():
            name, what = key.split(".")
            extra.setdefault(name, {})[what] = value
        made = compose(start, extra, masking, teacher, size)
        model = run.model() if run is not None and maps else None
        return recipe_view(made, size, source[clip].clip if maps else None, model)

    return Explorer(lru_cache(maxsize=64)(view), controls, columns=4)
