"""The mask explorer: what the student sees of a clip, what it must predict, and where the blocks fall over many draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from ..masks import Motion, MultiBlock, Uniform, motion_score
from ..plots.clips import HIDDEN, enlarge, frames_of, kind_names, veil
from ..plots.sheet import Sheet, shades, sheet, spread
from ..presets import Preset, preset, whole
from .base import Explorer, choice, number, steps
from .clips import opened

VJEPA = "V-JEPA"


def mask_view(clip: Tensor, masks: MultiBlock, size: Preset | str, *, seed: int = 0, draws: int = 64, batch: int = 8, width=960) -> Sheet:
    """A clip under one draw of `masks`: seen and hidden for each kind, the clip's motion, and how often each token is hidden.

    clip   uint8 [c f y x] of the preset's frames and size
    batch  clips that share a draw: official truncation cuts all of them to the shortest
    draws  batches over which "hidden in ... of the draws" is counted, always on this clip
    width  of the picture, in pixels

    Raises ValueError for a batch, draws or width that are no whole number from 1 on, and for a seed that is none from 0 on.
    """
    whole(1, draws=draws, batch=batch, width=width)
    whole(0, seed=seed)
    grid, frames = preset(size).grid, frames_of(clip)
    tokens = grid[0], *frames.shape[1:3]  # a picture for each step, at the frames' own size
    guide = masks.where.score(clip[None], grid)  # once for all draws: it costs far more than a draw
    guide = None if guide is None else guide.expand(batch, -1, -1, -1)
    moving = shades(motion_score(clip[None], grid)[0].numpy(), colormap="inferno")
    rows = {"clip": spread(frames, grid[0]), "motion": enlarge(moving, tokens)}
    names = [name and f"{name}\n" for name in kind_names(len(masks.kinds))]
    for name, mask in zip(names, masks.draw(batch, grid, seed=seed, step=0, score=guide), strict=True):
        seen, hidden = (part[0].numpy() for part in mask.maps(grid))
        rows[f"{name}seen {seen.mean():.0%}"] = spread(veil(frames, seen), grid[0])
        rows[f"{name}predict {hidden.mean():.0%}"] = spread(veil(frames, hidden, HIDDEN), grid[0])
    for name, share in zip(names, hidden_share(masks, grid, draws, batch, guide), strict=True):
        rows[f"{name}hidden in\n{share.min():.0%} to {share.max():.0%}"] = enlarge(shades(share, 0, 1), tokens)
    return sheet(rows, width=width, most=112)


def hidden_share(masks: MultiBlock, grid, draws: int, batch: int, score: Tensor | None = None) -> list[np.ndarray]:
    """Share of `draws` x `batch` samples in which each token is hidden, per mask kind a map [t h w]; `score`: see `MultiBlock.draw`."""
    found = [masks.draw(batch, grid, seed=1, step=step, score=score) for step in range(draws)]
    return [np.mean([kinds[k].maps(grid)[1].float().mean(0).numpy() for kinds in found], axis=0) for k in range(len(masks.kinds))]


def strategies(size: Preset) -> dict[str, MultiBlock]:
    """The maskings of the paper's rows by name, and the preset's own where it has one."""
    from ..variants import recipe

    own = {_own(size): size.masks} if size.masks else {}
    rows = ("motion-guided", "future", "motion-future", "amg")
    return {VJEPA: recipe("baseline").masks} | {row: recipe(row).masks for row in rows} | own


def _own(size: Preset) -> str:
    return f"preset {size.name}"


def mask_explorer(data="synthetic", size: str | Preset = "micro", clips: int = 12) -> Explorer:
    """Choose a clip, a masking and its dials; see what is seen, what is hidden, and how often. It opens on the masks that a baseline trains
    with at this size: the preset's own, or V-JEPA's where it has none.

    data   what `data.open` takes, or a Source of clips of the preset's shape
    clips  at most so many of them. Raises ValueError for what is no whole number from 1 on
    """
    size = preset(size)
    source = opened(data, "train", size, clips)
    known = strategies(size)

    def view(clip, masking, blocks, scale, keep, truncate, motion, strength, batch, seed) -> Sheet:
        kinds = known[masking].kinds
        kinds = (replace(kinds[0], count=blocks or kinds[0].count, scale=scale or kinds[0].scale), *kinds[1:])
        where = _where(known[masking], motion, strength)
        keep = keep or known[masking].max_temporal_keep
        masks = replace(known[masking], kinds=kinds, truncate=truncate, where=where, max_temporal_keep=keep)
        return mask_view(source[clip].clip, masks, size, seed=seed, batch=batch, draws=16)

    controls = {
        "clip": number(0, min(clips, len(source)) - 1, 0, "clip"),
        "masking": choice(list(known), _own(size) if size.masks else VJEPA, "masking"),
        "truncate": choice(["official", "random", "padded"], label="truncate"),
        "blocks": steps(range(1, 13), "blocks"),
        "scale": steps([n / 20 for n in range(1, 19)], "block scale"),
        "keep": steps([n / 10 for n in range(1, 11)], "time seen"),
        "motion": choice(["its own", "uniform", "softmax", "linear", "power"], label="blocks fall"),
        "strength": steps([n / 2 for n in range(1, 21)], "motion strength"),
        "batch": number(1, 32, 8, "clips a batch"),
        "seed": number(0, 50, 0, "draw"),
    }

    def offer(_=None):
        where = _where(known[controls["masking"].value], controls["motion"].value, 0)
        controls["strength"].disabled = not isinstance(where, Motion) or where.sampling == "linear"  # neither has a strength

    offer()
    for name in ("masking", "motion"):
        controls[name].observe(offer, "value")
    return Explorer(view, controls)


def _where(masks: MultiBlock, motion: str, strength: float) -> Uniform | Motion:
    """How blocks are placed: as the masks do ("its own"), "uniform", or by motion with that sampling; strength 0 leaves what is there."""
    if motion == "uniform":
        return Uniform()
    where = masks.where
    if motion != "its own":
        where = replace(where if isinstance(where, Motion) else Motion(), sampling=motion)
    return replace(where, strength=strength) if strength and isinstance(where, Motion) else where
