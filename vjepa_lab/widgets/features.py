"""The feature viewer: what student and teacher make of a clip, frame by frame, in colours; and where each term errs."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .. import data as video
from ..analysis.diagnose import error_maps
from ..analysis.representation import pca_colours
from ..evaluation import evaluate
from ..evaluation.scoring import ProbeResult
from ..plots.clips import enlarge, frames_of, heat, mapped
from ..plots.sheet import Sheet, sheet, spread, tiles
from ..presets import whole
from ..training.runs import Run, load_run
from .base import Explorer, number, several
from .clips import opened

PROBED = 128
"""Clips of each split, at most, for a probe that is trained on demand."""


@torch.no_grad()
def panels(run: Run, clip: Tensor, recipe=None, probe: ProbeResult | None = None) -> dict[str, tuple[str, np.ndarray]]:
    """{panel: (its scale in words, frames [f y x 3] uint8)}: the clip; the first three principal components of the student's tokens, of its
    halves Z_app and Z_dyn and of the teacher's, fitted on this clip alone; where an attentive `probe` looks; the error of each term on a
    scale of its own.

    clip    uint8 [c f y x] of the run's preset
    recipe  the run's, where it uses a term defined elsewhere
    probe   as `vl.probe(run, labels="motion", probe="attentive")` returns it
    """
    frames, model = frames_of(clip), run.model().eval()
    latents = model.latents(video.normalize(clip[None]), [], full=True)
    z, h = latents.z[0].flatten(0, 2), latents.h[0].flatten(0, 2)
    half = z.shape[-1] // 2
    found = {"clip": ("", frames)}
    for name, tokens in {"student": z, "Z_app": z[:, :half], "Z_dyn": z[:, half:], "teacher": h}.items():
        colours = pca_colours(tokens).unflatten(0, latents.grid).mul(255).round().byte().numpy()
        found[name] = "", enlarge(colours, frames.shape[:3])
    if probe is not None:
        found["attention"] = _read(probe), _attention(run, probe, clip)
    recipe = recipe or run.recipe
    maps = error_maps(model, run.loss(recipe), clip, masks=run.preset.masks_of(recipe.masks))
    for name, error in maps.items():
        scale, shown = mapped(frames, error, latents.grid[0])
        found[name] = f"\n{scale}", shown
    return found


def _attention(run: Run, probe: ProbeResult, clip: Tensor) -> np.ndarray:
    """The clip under the attention of the probe's query, in shares of an even spread over the tokens: dark is none, bright four times."""
    if not hasattr(probe.head, "attended"):
        raise ValueError(f"the {probe.rows[0]['probe']} probe has no query over tokens: pass a result of probe='attentive'")
    which = {"random-init": "initial"}.get(probe.rows[0]["encoder"], probe.rows[0]["encoder"])
    encoder, x = run.encoder(which).eval(), video.normalize(clip[None])
    share = probe.head.attended(encoder(x).float())[0, 0]
    return heat(frames_of(clip), (share * len(share)).unflatten(0, encoder.grid(x)).numpy(), 0, 4)


def _read(probe: ProbeResult) -> str:
    """What the probe reads and how well, beside the best predictor that ignores the clip."""
    row = next(row for row in probe.rows if row["metric"] == "top1")
    guess = max(row["value"] for row in probe.controls if row["metric"] == "top1")
    return f"\n{row['label']}: {row['value']:.0f} %, guess {guess:.0f} %"


def feature_view(run: Run, clip: Tensor, *, frame: int | None = None, shown=None, recipe=None, probe=None) -> Sheet:
    """The panels of one clip: all frames of each, a row per panel; or one `frame` of all, side by side. The rest as in `panels`.

    frame  counted from 0; beyond the last, the last
    shown  names of panels; by default all

    Raises ValueError for an unknown name, for none, and for a frame that is no whole number from 0 on.
    """
    if frame is not None:
        whole(0, frame=frame)
    return _picture(panels(run, clip, recipe, probe), frame, shown)


def _picture(found: dict[str, tuple[str, np.ndarray]], frame: int | None, shown) -> Sheet:
    shown = list(found) if shown is None else [shown] if isinstance(shown, str) else list(shown)
    if not shown or not set(shown) <= found.keys():
        raise ValueError(f"shown={tuple(shown)}: expected one or more of {', '.join(found)}")
    chosen = {name + scale: frames for name, (scale, frames) in found.items() if name in shown}
    if frame is None:
        return sheet({name: spread(frames, 8) for name, frames in chosen.items()}, most=112)
    return tiles({name: frames[min(frame, len(frames) - 1)] for name, frames in chosen.items()})


def feature_viewer(run: Run | str, data=None, clips: int = 12, recipe=None, probe: ProbeResult | str | bool = False) -> Explorer:
    """Look through the clips of a run's data, frame by frame, or let them play.

    data   what `data.open` takes, or a Source; by default the test part of what the run was trained on
    clips  at most so many of them
    probe  show where an attentive probe looks: a result of `vl.probe(..., probe="attentive")`, or the label (True: the data's first) that
           one is now trained to read, on at most 128 clips of the data's training part; nothing is saved

    Raises ValueError for clips that are no whole number from 1 on, for a label that the data lack, and for a label where a Source was not
    opened by its name, so that its training part is not known.
    """
    from ipywidgets import Play, jslink

    run = load_run(run)
    data = run.config["spec"] if data in (None, "") else data
    source = opened(data, "test", run.preset, clips)
    if probe is True:  # clips without labels have nothing to read
        probe = next(iter(source.classes), False)
    if isinstance(probe, str):
        spec = data.spec if isinstance(data, video.Source) else data
        if not spec:
            raise ValueError(f"probe={probe!r}: {source.name} was opened by no name, its training part is unknown; pass a vl.probe result")
        probe = evaluate.probe(run, spec, probe, probe="attentive", limit=PROBED, save=False)[0]
    seen = lru_cache(maxsize=32)(lambda index: panels(run, source[index].clip, recipe, probe or None))

    def view(clip: int, frame: int, shown: tuple[str, ...]) -> Sheet:
        return _picture(seen(clip), frame, shown)

    last = source[0].clip.shape[1] - 1
    controls = {
        "clip": number(0, min(clips, len(source)) - 1, 0, "clip", lazy=True),
        "frame": number(0, last, 0, "frame"),
        "shown": several(list(seen(0)), label="shown"),
    }
    play = Play(min=0, max=last, interval=250, repeat=True)
    jslink((play, "value"), (controls["frame"], "value"))
    whole = lambda clip, frame, shown: _picture(seen(clip), None, shown)
    return Explorer(view, controls, below=[play], static=whole)
