"""What a trained model does: where each term hurts."""

import math

import numpy as np
import torch
from torch import Tensor

from vjepa_lab import data as video
from vjepa_lab.masks import Mask, MultiBlock
from vjepa_lab.model import VJEPA
from vjepa_lab.objective import ErrorMap, Loss


@torch.no_grad()
def error_maps(model: VJEPA, loss: Loss, clip: Tensor, *, masks: MultiBlock | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """The error map of each term over one clip: {term: [t h w]}, nan where a term has no error; fewer steps for temporal terms.

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
            out[name] = _mean(np.stack(layers))
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

    clips: uint8 [b c f y x].  One batch says little about a direction: average over several, or over a fixed probe set.
    """
    import pandas as pd

    x = video.normalize(clips)
    drawn = (masks or MultiBlock()).draw(len(x), model.student.grid(x), seed=seed, step=0, clip=x)
    latents = model.latents(x, drawn, full="full" in loss.objective.views)
    _, parts = loss(latents)
    groups = weight_groups(model.student)
    flat = [p for group in groups.values() for p in group]
    gradients = [dict(zip(map(id, flat), _gradient(part, flat), strict=True)) for part in parts.values()]

    def cosine(a: dict, b: dict, group: list) -> float:
        u, v = (torch.cat([g[id(p)].flatten() for p in group]) for g in (a, b))
        return float(torch.nn.functional.cosine_similarity(u, v, dim=0))

    rows = {name: [cosine(gradients[0], g, group) for g in gradients[1:]] for name, group in (groups | {"all": flat}).items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(parts)[1:])


def weight_groups(encoder: torch.nn.Module) -> dict[str, list[torch.nn.Parameter]]:
    """The encoder's parameters by depth: patch_embed, block 0 ..., norm."""
    groups: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in encoder.named_parameters():
        first, *rest = name.split(".")
        groups.setdefault(f"block {rest[0]}" if first == "blocks" else "norm" if first == "norms" else first, []).append(parameter)
    return groups


def _gradient(part: Tensor, parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    """Gradient of one loss, zero where it does not reach; the graph is kept."""
    found = torch.autograd.grad(part, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
