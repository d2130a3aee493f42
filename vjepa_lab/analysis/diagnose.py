"""What a trained model does: where each term hurts."""

import math

import numpy as np
import torch
from torch import Tensor

from vjepa_lab import data as video
from vjepa_lab.analysis.gradients import collect, plain_cosine, weight_groups
from vjepa_lab.masks import Mask, MultiBlock
from vjepa_lab.model import VJEPA
from vjepa_lab.objective import ErrorMap, Loss


@torch.no_grad()
def error_maps(model: VJEPA, loss: Loss, clip: Tensor, *, masks: MultiBlock | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """The error map of each term over one clip: {term: [t h w]}, nan where a term has no error; fewer steps for temporal terms; for a
    spectrum the mean over frequencies, the same at all steps.

    clip: uint8 [c f y x].  masks: how to hide tokens; by default V-JEPA's.  A term whose map is not over tokens (Orthogonal) is left out.
    Maps of several mask kinds are averaged; hard weights are multiplied in.
    """
    x = video.normalize(clip[None])
    drawn = (masks or MultiBlock()).draw(1, model.student.grid(x), seed=seed, step=0, clip=x)
    latents = model.latents(x, drawn, full="full" in loss.objective.views)
    out = {}
    for name, (_, term), head in zip(loss.objective.names, loss.objective, loss.heads, strict=True):
        layers = [on_tokens(m, mask, latents.grid) for m, mask in zip(term.maps(latents, head), drawn, strict=False)]
        if all(layer is not None for layer in layers):
            found = _mean(np.stack(layers))
            out[name] = found if term.over_time else np.broadcast_to(_mean(found), latents.grid).copy()
    return out


def on_tokens(error: ErrorMap, mask: Mask, grid: tuple[int, int, int]) -> np.ndarray | None:
    """An error map of one clip on the token grid [t h w]; None if its entries are not tokens."""
    value = error.value if error.weight is None else error.value * error.weight.to(error.value.dtype)
    valid = torch.ones_like(value, dtype=torch.bool) if error.weight is None else error.weight.expand_as(value) > 0
    value = torch.where(valid, value, torch.nan)[0] if value.ndim > 1 else value
    if value.shape == mask.hidden.shape[1:]:
        flat = torch.full((math.prod(grid),), torch.nan)
        flat[mask.hidden[0]] = value
        return flat.unflatten(0, grid).numpy()
    if value.ndim == 3 and value.shape[1:] == grid[1:]:
        return value.numpy()
    return None


def _mean(layers: np.ndarray) -> np.ndarray:
    """Mean of [k t h w] over k, nan only where every layer is."""
    known = ~np.isnan(layers)
    total = np.where(known, layers, 0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)


def gradient_cosine(model: VJEPA, loss: Loss, clips: Tensor, masks: MultiBlock | None = None, *, seed: int = 0):
    """Cosine of each term's gradient with the first term's on the student's weights: a pandas table, a row per block, a column per term.

    clips: uint8 [b c f y x].  masks: how to hide tokens; by default V-JEPA's.  seed: of the masks.
    Blocks from the patch embedding up, nan where a term has no gradient.  One batch is mostly noise, and noise that the terms share:
    `alignment.measure` takes it out.
    """
    import pandas as pd

    x = video.normalize(clips)
    drawn = (masks or MultiBlock()).draw(len(x), model.student.grid(x), seed=seed, step=0, clip=x)
    latents = model.latents(x, drawn, full="full" in loss.objective.views)
    found = collect(weight_groups(model.student), lambda _: loss.parts(latents), 1)
    rows = {name: [plain_cosine(found.gram(name), 0, k) for k in range(1, len(found.names))] for name in found.groups}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(found.names)[1:])
