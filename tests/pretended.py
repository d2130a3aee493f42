"""A GPU that is not there: shapes, types and devices of a step are followed as on one, nothing is computed (torch's FakeTensorMode).

    python tests/pretended.py

prints every case with what went wrong in it, or null, as JSON. A tensor that lies on another device than its partner is an error, and so
is reading a number, for which a GPU would be waited for. What is cached meanwhile holds no numbers, so this needs a process of its own.
Backward passes cannot be followed: they need a device.
"""

import contextlib
import json
import sys
import warnings
from dataclasses import replace

import laws
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vjepa_lab import data, masks, variants
from vjepa_lab.evaluation.heads import AttentiveHead, LinearHead, ReleasedHead
from vjepa_lab.model import Encoder, Latents
from vjepa_lab.objective import Loss, Recipe, Term, as_objective
from vjepa_lab.presets import PRESETS
from vjepa_lab.training.runs import build

GPU = torch.device("cuda", 0)
SIZE = PRESETS["smoke"]
PRETENDED = FakeTensorMode()
STILL = torch.arange(SIZE.batch) % 3 == 0


class Stray(Term):
    """A term that leaves numbers on the CPU: what must be found."""

    def error(self, view, head):
        return view.z * torch.ones(view.z.shape[-1])


class Curious(Term):
    """A term that looks at a number: it would make the step wait."""

    def error(self, view, head):
        return view.z if view.z.mean() > 0 else -view.z


def there(value):
    """A module or a tensor as it would be on the GPU; modules are changed in place, as by `to`."""
    if isinstance(value, torch.Tensor):
        return PRETENDED.from_tensor(value).to(GPU)
    for module in value.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = nn.Parameter(there(p).detach(), requires_grad=p.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = there(buffer)
    return value


def latents(recipe: Recipe, still: bool = False, **encoder) -> Latents:
    """What a model on the GPU makes of a batch under a recipe's masks, drawn on the CPU."""
    clip = torch.randint(256, (SIZE.batch, 3, SIZE.frames, SIZE.size, SIZE.size), dtype=torch.uint8)
    model = build(recipe.teacher, recipe.stop_grad, 1, SIZE, 0, True, **encoder)
    grid = model.student.grid(data.normalize(clip))
    score = recipe.masks.where.score(data.normalize(clip), grid) if recipe.masks.needs_clip else None
    drawn = recipe.masks.draw(SIZE.batch, grid, seed=0, step=0, score=score)
    with PRETENDED:
        parts = ((m.seen, m.hidden, m.seen_valid, m.hidden_valid) for m in drawn)
        moved = [masks.Mask(*(part if part is None else there(part) for part in each)) for each in parts]
        return there(model).latents(data.normalize(there(clip)), moved, still=there(STILL) if still else None, full=True)


def loss(objective, of: Latents) -> None:
    made = Loss(as_objective(objective), of.model.width)
    with PRETENDED:
        on_gpu(*there(made).parts(of).values())


def train(recipe: Recipe, **how) -> None:
    """The forward passes and the loss of a step, and the teacher's update."""
    made = latents(recipe, **how)
    loss(recipe.objective, made)
    with PRETENDED:
        made.model.update_teacher(0.99)


def on_gpu(*values: torch.Tensor) -> None:
    if wrong := {value.device.type for value in values} - {GPU.type}:
        raise RuntimeError(f"a result is on {', '.join(wrong)}")


def probe(kind, **options) -> None:
    head, x = kind(3, 48, 5, torch.Generator(), **options), torch.randn(4, *([] if kind is LinearHead else [7]), 48)
    with PRETENDED:
        logits = there(head)(there(x))
        on_gpu(logits, nn.functional.cross_entropy(logits.flatten(0, 1), there(torch.arange(12) % 5)))


def encode(**options) -> None:
    encoder, clip = Encoder(48, 4, 3, 8, 2, **options), torch.randn(2, 3, 4, 32, 32)
    with PRETENDED, torch.no_grad():
        on_gpu(there(encoder)(there(clip)))


def settings() -> dict[str, Recipe]:
    """A recipe for each way to mask and to make targets."""
    found = {}
    for name, edition in laws.EDITIONS:
        recipe = variants.recipe(name, edition)
        if "Hamiltonian" in repr(recipe):
            continue
        found.setdefault((recipe.teacher, recipe.stop_grad, repr(SIZE.masks_of(recipe.masks))), (f"{name} {edition}", recipe))
    return {name: replace(recipe, masks=SIZE.masks_of(recipe.masks)) for name, recipe in found.values()}


def terms() -> dict[str, Term]:
    """Those of all recipes, and of the laws; not those that ask for a gradient."""
    own = [term for name, edition in laws.EDITIONS for _, term in variants.recipe(name, edition).objective]
    return {repr(term): term for term in (*laws.TERMS, *own) if "Hamiltonian" not in repr(term)}


def cases():
    """(name, what to run)"""
    for name, recipe in settings().items():
        yield name, lambda recipe=recipe: train(recipe)
    some = variants.recipe("fwm-hw-ld")
    yield "images apart", lambda: train(some, still=True)
    shared = latents(some)
    for name, term in (terms() | {repr(term): term for term in (Stray(), Curious())}).items():
        yield name, lambda term=term: loss(term, shared)
    for style in ("vjepa2", "interleaved"):
        yield f"rope {style}", lambda style=style: train(some, rope=style)
        yield f"encoder {style}", lambda style=style: encode(rope=style)
    yield "encoder of four levels", lambda: encode(levels=4)
    yield "encoder sincos", lambda: encode(position="sincos", sincos_grid=(2, 4, 4))
    for kind, options in ((LinearHead, {}), (AttentiveHead, {"heads": 4}), (ReleasedHead, {"heads": 4})):
        yield f"probe {kind.__name__}", lambda kind=kind, options=options: probe(kind, **options)


def main() -> None:
    warnings.simplefilter("ignore")
    with contextlib.suppress(AttributeError):  # autocast to bf16, as on a GPU that has it
        torch.cuda.amp.common.amp_definitely_not_available = lambda: False
        torch.cuda.is_bf16_supported = lambda *_, **__: True
    found = {}
    for name, run in cases():
        try:
            run()
            found[name] = None
        except Exception as error:  # every kind is a finding
            found[name] = f"{type(error).__name__}: {error}"
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
