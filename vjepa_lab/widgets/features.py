"""The feature viewer: what student and teacher make of a clip, frame by frame, in colours; and where each term errs."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .. import data as video
from ..analysis.diagnose import error_maps
from ..analysis.representation import pca_colours
from ..evaluation.evaluate import still
from ..plots.clips import frames_of, heat
from ..plots.sheet import Sheet, sheet, spread, tiles
from ..training.runs import Run, load_run
from .base import Explorer, number, several


@torch.no_grad()
def panels(run: Run, clip: Tensor, recipe=None) -> dict[str, tuple[str, np.ndarray]]:
    """{panel: (its scale in words, frames [f y x 3] uint8)}: the clip; the first three principal components of the student's tokens, of its
    halves Z_app and Z_dyn and of the teacher's; the error of each term on a scale of its own. Fitted on this clip alone.

    clip    uint8 [c f y x] of the run's preset
    recipe  the run's, where it uses a term defined elsewhere
    """
    frames, model = frames_of(clip), run.model().eval()
    latents = model.latents(video.normalize(clip[None]), [], full=True)
    z, h = latents.z[0].flatten(0, 2), latents.h[0].flatten(0, 2)
    half = z.shape[-1] // 2
    found = {"clip": ("", frames)}
    for name, tokens in {"student": z, "Z_app": z[:, :half], "Z_dyn": z[:, half:], "teacher": h}.items():
        colours = pca_colours(tokens).unflatten(0, latents.grid).mul(255).round().byte().numpy()
        found[name] = "", _enlarged(colours, frames.shape)
    recipe = recipe or run.recipe
    maps = error_maps(model, run.loss(recipe), clip, masks=run.preset.masks_of(recipe.masks))
    for name, error in maps.items():
        low, high = np.nanpercentile(error, [2, 98]) if np.isfinite(error).any() else (0.0, 1.0)
        steps = len(frames) * len(error) // latents.grid[0]
        found[name] = f"\n{low:.2g} to {high:.2g}", heat(frames[:steps], error, low, high)
    return found


def _enlarged(colours: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Token colours [t h w 3] at the frames' shape [f y x 3]."""
    for axis, n in enumerate(shape[:3]):
        colours = colours.repeat(n // colours.shape[axis], axis=axis)
    return colours


def feature_view(run: Run, clip: Tensor, *, frame: int | None = None, shown=None, recipe=None) -> Sheet:
    """The panels of one clip: all frames of each, a row per panel; or one `frame` of all, side by side."""
    return _picture(panels(run, clip, recipe), frame, shown)


def _picture(found: dict[str, tuple[str, np.ndarray]], frame: int | None, shown) -> Sheet:
    chosen = {name + scale: frames for name, (scale, frames) in found.items() if shown is None or name in shown}
    if frame is None:
        return sheet({name: spread(frames, 8) for name, frames in chosen.items()}, most=112)
    return tiles({name: frames[min(frame, len(frames) - 1)] for name, frames in chosen.items()})


def feature_viewer(run: Run | str, data=None, clips: int = 12, recipe=None) -> Explorer:
    """Look through the clips of a run's data, frame by frame, or let them play.

    data  what `data.open` takes, or a Source of clips of the run's shape; by default the test part of what the run was trained on
    """
    from ipywidgets import Play, jslink

    run = run if isinstance(run, Run) else load_run(run)
    source = data if isinstance(data, video.Source) else still(data or run.config["spec"], "test", run.preset, clips)
    seen = lru_cache(maxsize=32)(lambda index: panels(run, source[index].clip, recipe))

    def view(clip: int, frame: int, shown: tuple[str, ...]) -> Sheet:
        return _picture(seen(clip), frame, shown)

    controls = {
        "clip": number(0, min(clips, len(source)) - 1, 0, "clip", lazy=True),
        "frame": number(0, run.preset.frames - 1, 0, "frame"),
        "shown": several(list(seen(0)), label="shown"),
    }
    play = Play(min=0, max=run.preset.frames - 1, interval=250, repeat=True)
    jslink((play, "value"), (controls["frame"], "value"))
    whole = lambda clip, frame, shown: _picture(seen(clip), None, shown)
    return Explorer(view, controls, below=[play], static=whole)
