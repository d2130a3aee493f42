"""A recipe as a structure that can be drawn: what each term reads is found by trying, not declared, so that a new term needs nothing.

plots.diagram(structure(vl.recipe("fwm-hw-ld")))
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from vjepa_lab import masks as kinds
from vjepa_lab import variants
from vjepa_lab.model import VJEPA, Latents
from vjepa_lab.modifiers import Detached, Hard
from vjepa_lab.objective import ErrorMap, Recipe, Term, as_recipe
from vjepa_lab.presets import preset
from vjepa_lab.schedules import Schedule

READS = ("pred", "visible", "z.app", "z.dyn", "pixels", "h")


def structure(recipe, title: str = "") -> dict:
    """What `plots.diagram` draws of a recipe (a name, an expression, an objective or a Recipe).

    `{"title", "masks", "teacher", "stop_grad", "levels", "terms": [{"label", "weight", "reads", "hard", "idle", "head"}, ...]}`. A term
    reads what its error map (or the map's weights) changes with when that alone is drawn anew: the prediction, the student's visible
    tokens, a half of its full view, the pixels, the teacher's view. `idle`: the term gives no gradient. Where no term reads one half of z
    alone, z is one.
    """
    recipe = variants.recipe(recipe) if isinstance(recipe, str) else as_recipe(recipe)
    terms = [
        {"weight": _weight(weight), "head": _head(term)} | _unwrapped(term) | {"reads": reads(term, recipe)}
        for weight, term in recipe.objective
    ]
    halves = [{"z.app", "z.dyn"} & set(term["reads"]) for term in terms]
    if not any(len(found) == 1 for found in halves):
        for term in terms:
            term["reads"] = list(dict.fromkeys("z" if name in ("z.app", "z.dyn") else name for name in term["reads"]))
    if recipe.weighting is not None:
        terms = [terms[0], *(term | {"weight": "g"} for term in terms[1:])]
    named = variants.name_of(recipe)
    about = {"masks": _masks(recipe.masks), "teacher": recipe.teacher, "stop_grad": recipe.stop_grad, "levels": recipe.levels}
    return {"title": title or (", edition ".join(named) if named else "")} | about | {"terms": terms}


def reads(term: Term, recipe: Recipe) -> list[str]:
    """The names in READS that the term's error depends on, at a small size with random latents and a random head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = replace(preset("smoke"), depth=4)
        model = VJEPA.build(size, teacher=recipe.teacher, stop_grad=recipe.stop_grad, levels=recipe.levels)
        clip = torch.rand(2, 3, size.frames, size.size, size.size)
        masks = recipe.masks.draw(2, size.grid, seed=0, step=0, clip=clip)
        head = term.head(model.width)
        for p in head.parameters() if head is not None else ():
            nn.init.normal_(p, std=0.3)  # a head that starts at zero would hide what it reads
        drawn = _draw(model, clip, masks)
        plain = term.maps(_latents(model, masks, drawn), head)
        return [name for name in READS if _differ(plain, term.maps(_latents(model, masks, _redrawn(drawn, name)), head))]


def _draw(model: VJEPA, clip: Tensor, masks) -> dict:
    """Independent random values for everything a term may ask the latents for."""
    b, d, grid = len(clip), model.width, model.student.grid(clip)
    at = {"pred": [m.hidden for m in masks], "context": [m.seen for m in masks], "seen": [m.seen for m in masks]}
    lists = {name: [torch.randn(*index.shape, d) for index in each] for name, each in at.items()}
    return {"clip": clip, "z": torch.randn(b, *grid, d), "h": torch.randn(b, *grid, d)} | lists


def _redrawn(drawn: dict, name: str) -> dict:
    again = {
        key: [torch.randn_like(x) for x in value] if isinstance(value, list) else torch.randn_like(value) for key, value in drawn.items()
    }
    if name.startswith("z."):
        half = drawn["z"].shape[-1] // 2
        app, dyn = (again, drawn) if name == "z.app" else (drawn, again)
        return drawn | {"z": torch.cat([app["z"][..., :half], dyn["z"][..., half:]], dim=-1)}
    keys = {"pred": ("pred", "context"), "visible": ("seen",), "pixels": ("clip",)}.get(name, (name,))
    return drawn | {key: again[key] for key in keys}


def _latents(model: VJEPA, masks, drawn: dict) -> Latents:
    """Latents whose views are the values drawn; z is not normalised again, which would mix its halves."""
    latents = Latents(model, drawn["clip"], masks)
    latents.__dict__ |= {name: value for name, value in drawn.items() if name != "clip"} | {"normalise": lambda tokens: tokens}
    return latents


def _differ(a: list[ErrorMap], b: list[ErrorMap]) -> bool:
    def parts(maps: list[ErrorMap]) -> Iterator[Tensor]:
        return (x for each in maps for x in (each.value, each.weight) if x is not None)

    return any(not torch.equal(x, y) for x, y in zip(parts(a), parts(b), strict=True))


def _unwrapped(term: Term) -> dict:
    found = {"hard": False, "idle": bool(term.idle)}
    while isinstance(term, Hard | Detached):
        found["hard"] |= isinstance(term, Hard)
        term = term.term
    return found | {"label": term.label}


def _weight(weight) -> str:
    return f"({weight.start:g} → {weight.end:g})" if isinstance(weight, Schedule) else f"{weight:g}"


def _head(term: Term) -> str:
    """The head's hidden widths, such as "MLP 256"; empty without a head."""
    head = term.head(preset("smoke").dim)
    if head is None:
        return ""
    linear = [part for part in head.modules() if isinstance(part, nn.Linear)]
    return " ".join(["MLP", ", ".join(str(part.out_features) for part in linear[:-1])]).strip() if linear else type(head).__name__


def _masks(masks) -> str:
    name = next((name for name, value in vars(kinds).items() if name.isupper() and value == masks), type(masks).__name__)
    return name.removesuffix("_RELEASED").lower().replace("_", "-")
