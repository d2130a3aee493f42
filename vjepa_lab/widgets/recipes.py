"""The recipe builder: put an objective together; see the expression that pastes back, what it costs and where it hurts on a clip."""

from __future__ import annotations

import html
import inspect
from functools import lru_cache

from .. import terms
from ..modifiers import Hard
from ..objective import Recipe, Term
from ..plots.clips import frames_of, heat
from ..plots.sheet import Sheet, sheet, spread
from ..presets import Preset, preset
from .base import Explorer, choice, switch
from .masks import strategies

MAIN = "JEPA"


def auxiliaries() -> dict[str, type[Term]]:
    """The terms that can be added to JEPA, by name."""
    found = {name: kind for name, kind in vars(terms).items() if inspect.isclass(kind) and issubclass(kind, Term)}
    return {name: kind for name, kind in found.items() if kind is not Term and name != MAIN}


def compose(start: str = "baseline", extra: dict[str, dict] | None = None, masking: str = "", teacher: str = "", size="micro") -> Recipe:
    """The recipe of a named row with further terms.

    extra    {term: {"weight": float, "on": "all" | "app" | "dyn", "view": "full" | "visible", "hard": bool}}; weight 0 leaves a term out
    masking  a name of `masks.strategies`; "" and teacher "" keep the row's own
    """
    from dataclasses import replace

    from ..variants import recipe

    made = recipe(start)
    objective = made.objective
    for name, how in (extra or {}).items():
        if how["weight"]:
            term = auxiliaries()[name]()
            term = replace(term, **{key: how[key] for key in ("on", "view") if how.get(key)})
            objective = objective + how["weight"] * (Hard(term) if how.get("hard") else term)
    changes = {"masks": strategies(preset(size))[masking]} if masking else {}
    return replace(made, objective=objective, **changes, **({"teacher": teacher} if teacher else {}))


class Built:
    """A recipe to look at: the expression, the cost, error maps over a clip (where one was asked for)."""

    def __init__(self, recipe: Recipe, size: Preset, picture: Sheet | None):
        self.recipe, self.size, self.picture = recipe, size, picture

    def _repr_html_(self) -> str:
        import base64

        cost = self.recipe.cost(self.size)
        shown = self.recipe._repr_html_() if hasattr(self.recipe, "_repr_html_") else f"<pre>{html.escape(repr(self.recipe))}</pre>"
        price = f"<p>{cost.ratio:.2f} times the baseline's operations a step at {cost.preset} ({cost.total:.3g} GFLOP a clip)</p>"
        paste = f"<pre style='white-space:pre-wrap;user-select:all'>{html.escape(repr(self.recipe))}</pre>"
        map_ = ""
        if self.picture is not None:
            map_ = f'<img alt="error map of each term" src="data:image/png;base64,{base64.b64encode(self.picture._repr_png_()).decode()}">'
        return f"<div>{paste}{price}{shown}{map_}</div>"


def recipe_view(recipe: Recipe, size: str | Preset = "micro", clip=None, model=None) -> Built:
    """A recipe with its cost, and its error maps over a clip (uint8 [c f y x]) by a model, by default one that is not trained."""
    size = preset(size)
    return Built(recipe, size, None if clip is None else _hurts(recipe, size, clip, model))


def _hurts(recipe: Recipe, size: Preset, clip, model) -> Sheet:
    """Every term's error map, on a scale of its own that its label states."""
    import numpy as np

    from ..analysis.diagnose import error_maps
    from ..objective import Loss
    from ..train import build

    model = model or build(recipe.teacher, recipe.stop_grad, recipe.levels, size, seed=0)
    frames = frames_of(clip)
    rows = {"clip": spread(frames, size.grid[0])}
    maps = error_maps(model, Loss(recipe.objective, model.width, recipe.weighting), clip, masks=size.masks_of(recipe.masks))
    for name, error in maps.items():
        low, high = np.nanpercentile(error, [2, 98]) if np.isfinite(error).any() else (0.0, 1.0)
        steps = len(frames) * len(error) // size.grid[0]
        rows[f"{name}\n{low:.2g} to {high:.2g}"] = spread(heat(frames[:steps], error, low, high), len(error))
    return sheet(rows, most=112)


def recipe_builder(data="synthetic", size: str | Preset = "micro", run=None, clip: int = 0) -> Explorer:
    """Start from a row of the paper, add terms (weight 0: not there), choose masks and teacher.

    run  a trained Run whose model draws the error maps; by default a model that is not trained, and the picture says where errors lie,
         not what training left of them
    """
    from ipywidgets import FloatText

    from .. import data as video
    from ..evaluation.evaluate import still
    from ..variants import names

    size = preset(size) if run is None else run.preset
    source = data if isinstance(data, video.Source) else still(data, "train", size, clip + 1)
    controls = {
        "start": choice(names("sound"), "baseline", "start from"),
        "masking": choice({"its own": "", **{name: name for name in strategies(size)}}, "", "masks"),
        "teacher": choice({"its own": "", "ema": "ema", "online": "online", "frozen": "frozen"}, "", "teacher"),
        "maps": switch("error maps over a clip"),
    }
    for name in auxiliaries():
        controls[f"{name}.weight"] = FloatText(value=0.0, step=0.05, description=name)
        controls[f"{name}.on"] = choice({"all channels": "all", "Z_app": "app", "Z_dyn": "dyn"}, "all")
        controls[f"{name}.view"] = choice({"full view": "full", "seen tokens": "visible"}, "full")
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
