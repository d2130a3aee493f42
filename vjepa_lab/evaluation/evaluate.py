"""Probe a frozen encoder on a benchmark: features once, a probe per label, rows into a run's folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from vjepa_lab import data as video
from vjepa_lab.arguments import suggest
from vjepa_lab.evaluation import probes
from vjepa_lab.evaluation.features import device_for, spread
from vjepa_lab.evaluation.layers import Layers
from vjepa_lab.evaluation.multiview import Merge, extract_views
from vjepa_lab.evaluation.probes import ProbeResult
from vjepa_lab.evidence.results import append_rows
from vjepa_lab.files import differing, write_json
from vjepa_lab.model import Encoder
from vjepa_lab.training.runs import Run, load_run
from vjepa_lab.training.trainer import fast_bf16

if TYPE_CHECKING:
    from vjepa_lab.weights import Weights

PROBES = ("linear", "stepwise", "attentive", "knn")


def probe(
    run: Run | str | Path,
    data=None,
    labels: Sequence[str] | str = ("class",),
    *,
    probe: str = "linear",
    encoder: str | None = None,
    layers: Sequence[int] | None = None,
    splits: tuple[str, str] | None = None,
    segments: int = 1,
    views: int = 1,
    merge: Merge = "tokens",
    frames: int | None = None,
    size: int | None = None,
    stride: int | None = None,
    fps: float | None = None,
    whole: bool = False,
    limit: int | None = None,
    exact: bool = False,
    seed: int = 0,
    cache: str | Path | None = None,
    workers: int = 0,
    device: str | None = None,
    save: bool = True,
    out: str | Path | None = None,
    progress: bool = True,
    **options,
) -> list[ProbeResult]:
    """One result per label, in order; with `save`, their rows and predictions are added to the run's folder, and how much of its space the
    encoder uses (`features.spread`).

    run      a Run or its folder; or released weights, as `weights.open` takes them ("vjepa2-vitl:vitl.pt"); or an encoder of your own,
             any module clip [b c f y x] -> tokens [b n d] with `.grid(clip)`
    data     what the probe trains and is tested on: a name as `data.open` takes it, or a pair (train, test) of names or of Sources; by
             default what the run was pretrained on. Two splits that share files are refused
    labels   names of the labels to read off, such as ("motion", "shape") in the factor world
    probe    "linear" (mean-pooled) | "stepwise" (linear, time steps side by side) | "attentive" (all tokens) | "knn"
    encoder  "student" | "teacher" | "initial"; by default the recipe's choice, of released weights the teacher. The initial one of released
             weights is drawn anew (seed 0)
    layers   blocks of the encoder, counted from 0, whose tokens the probe reads together, such as (17, 19, 21, 23) of ViT-L for Diving-48
             in V-JEPA 2; by default the last one's. The rows name them with the probe
    segments  clips in time of each video; with `merge="tokens"` the probe reads them together, in training and test, as V-JEPA's do
    views    crops across the picture of each test video (3: left, centre, right); the softmax is averaged, one prediction per video
    merge    "tokens", or "softmax": the probe is trained on the centre clip and its softmax averaged over all segments and views
    frames   frames per clip; by default the run's, of released weights 16. Where this and the next four are others, the rows name them
             with the probe; Sources have a shape of their own
    size     pixels a side; by default the run's, of released weights those of their last training
    stride   frames of the video for one of the clip; by default the run's, of released weights 4
    fps      in place of the stride: frames of the clip that lie 1/fps seconds apart, whatever the video's own rate
    whole    in place of the stride: frames spread evenly over the whole video, or over each of its `segments`, such as 16 over a dive of
             Diving-48
    splits   of what is opened here, by default ("train", "test"); where the test split is another than "test", the rows name it with the
             benchmark
    limit    at most so many clips of each split; None or 0: all. Where it leaves some out, the rows name it with the benchmark
    exact    the attentive and stepwise probes read tokens in float32, twice the memory of the usual float16 (see `features.FINE`)
    out      where the rows go; by default the run's folder, of released weights `runs`/<name>, of an encoder of your own nowhere
    options  go to the probe: epochs, lrs, form, ...

    Raises ValueError for an unknown probe, option or label, for a block that is not there or of an encoder that is not of this package,
    for an encoder of your own without data, or without a clip shape where data is to be opened, for a shape or splits beside Sources, for
    two of stride, fps and whole, and for fps or whole of clips that are drawn;
    DataError, a ValueError, for splits that share files, and for Sources that are opened for training.
    """
    check_options(probe, options)
    shape = {"frames": frames, "size": size, "stride": stride, "fps": fps, "whole": whole or None}
    subject = subject_of(run, encoder, out, device)
    if not given(data, **shape, splits=splits):
        subject = subject.shaped(**shape)
    if layers is not None:
        subject = replace(subject, encoder=Layers(subject.encoder, layers))
    labels = (labels,) if isinstance(labels, str) else tuple(labels)
    if data is None and subject.data is None:
        raise ValueError("data=None: name the data set, this encoder was pretrained on none that is known")
    sources = video.pair(data or subject.data, splits or ("train", "test"), labels, subject, limit)
    tokens = probe in ("attentive", "stepwise") and (torch.float32 if exact else True)
    kept = {"tokens": tokens, "cache": cache, "workers": workers, "device": device}
    kept |= {"encoder_name": subject.name, "progress": progress, "merge": merge}
    ahead = len(sources[1]) * segments * views  # clips whose features are held beside those of the training split
    train = extract_views(subject.encoder, sources[0], segments if merge == "tokens" else 1, 1, bf16=subject.bf16, also=ahead, **kept)
    test = extract_views(subject.encoder, sources[1], segments, views, bf16=train.bf16, settled=True, **kept)
    limited = next((source.limit for source in sources if source.limit), None)
    read = subject.unusual() + (", mean of clips" if merge == "softmax" and segments > 1 else "")
    train, test = (replace(part, blocks=tuple(layers or ()), limit=limited, read=read) for part in (train, test))

    fit = getattr(probes, probe)
    if probe != "knn":
        options |= {"seed": seed, "device": device, "progress": progress}
    results = [fit(train, test, label, **options) for label in labels]
    if subject.variant:
        results = [replace(result, rows=[row | {"variant": subject.variant} for row in result.rows]) for result in results]
    if save and subject.folder:
        subject.introduce()
        append_rows(subject.folder, spread(train))
        for result in results:
            result.save(subject.folder)
    return results


def given(data, **asked) -> bool:
    """Whether data is a pair with a Source in it, which was opened as it is. Raises ValueError for what is asked of clips that are opened
    here."""
    ready = isinstance(data, tuple | list) and any(isinstance(part, video.Source) for part in data)
    if ready and (wrong := [f"{name}={value!r}" for name, value in asked.items() if value is not None]):
        raise ValueError(f"{', '.join(wrong)}: Sources have splits and a clip shape of their own; open them so, or give the set's name")
    return ready


def check_options(kind: str, options: Iterable[str]) -> None:
    """Raises ValueError for a probe that there is not, and for the name of an option that neither it nor `probe` takes."""
    if kind not in PROBES:
        raise ValueError(f"unknown probe {kind!r}: expected one of {', '.join(PROBES)}")
    fit = probes.linear if kind == "stepwise" else getattr(probes, kind)
    known = [p.name for each in (probe, fit) for p in signature(each).parameters.values() if p.kind is p.KEYWORD_ONLY]
    known = [name for name in dict.fromkeys(known) if (kind, name) != ("stepwise", "name")]
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"{unknown[0]}: unknown to the probe {kind!r}; {suggest(unknown[0], known)}")


@dataclass(frozen=True)
class Shape:
    """Of a clip: frames, pixels a side, and how many frames of the video go by for one of the clip; in place of that `fps`, frames of the
    clip for a second of the video, or `whole`: they are spread over the whole of it."""

    frames: int
    size: int
    stride: int
    fps: float | None = None
    whole: bool = False


def one_pace(stride: int | None = None, fps: float | None = None, whole: bool | None = None, **_) -> None:
    """Raises ValueError where two of these are asked for: each says alone which frames of a video make a clip; and for an fps that is not
    above 0."""
    if len(asked := [f"{name}={value}" for name, value in {"stride": stride, "fps": fps, "whole": whole}.items() if value]) > 1:
        raise ValueError(f"{', '.join(asked)}: each says which frames of a video make a clip; give one of them")
    if fps is not None and not fps > 0:
        raise ValueError(f"fps={fps}: expected frames of the clip for a second of the video, more than 0")


def said_of_pace(fps: float | None, whole: bool) -> str:
    """What rows call clips whose frames are not every so many: ", whole", ", 8 fps"."""
    return ", whole" if whole else f", {fps:g} fps" if fps else ""


@dataclass(frozen=True)
class Subject:
    """A frozen encoder with what its evaluation needs: its name in the rows, clip shape, pretraining data, and where its rows go.

    config: what the folder's config.json says of an encoder that no run of ours trained.  usual: the clips that it is shown by default.
    variant: the objective, as the rows call it; None of an encoder of your own without a folder.
    """

    encoder: nn.Module
    name: str
    frames: int | None = None
    size: int | None = None
    stride: int | None = None
    fps: float | None = None
    whole: bool = False
    data: str | None = None
    folder: Path | None = None
    bf16: bool = False
    config: dict | None = None
    usual: Shape | None = None
    variant: str | None = None

    def shaped(
        self, frames: int | None, size: int | None, stride: int | None, *, fps: float | None = None, whole: bool | None = None
    ) -> Subject:
        """The clip shape with what was asked for in place of what is usual.

        Raises ValueError where neither says, for two of stride, fps and whole, and for a shape that an encoder of this package does not cut
        into whole patches and tubelets.
        """
        asked = {"frames": frames, "size": size, "stride": stride, "fps": fps, "whole": whole}
        one_pace(**asked)
        found = replace(self, **{name: value for name, value in asked.items() if value is not None})
        if (fps or whole) and found.stride is None:
            found = replace(found, stride=1)  # it says nothing then
        if lacking := [name for name in ("frames", "size", "stride") if getattr(found, name) is None]:
            raise ValueError(f"an encoder of your own: say its clips' {', '.join(lacking)} (such as frames=16, size=224, stride=4)")
        if isinstance(self.encoder, Encoder):
            patch, tubelet = self.encoder.patch, self.encoder.tubelet
            if found.size % patch:
                raise ValueError(f"size={found.size} does not divide by the encoder's patch of {patch} pixels: {_near(found.size, patch)}")
            if found.frames > 1 and found.frames % tubelet:  # a single frame is filled up, or has a path of its own
                near = _near(found.frames, tubelet)
                raise ValueError(f"frames={found.frames} does not divide by the encoder's tubelet of {tubelet} frames: {near}")
        return found

    def unusual(self) -> str:
        """How rows call a clip shape that is not the usual one: ", 4 frames, whole"; empty where it is, or where there is none."""
        units, pace = {"frames": "{} frames", "size": "{} pixels", "stride": "every {}. frame"}, said_of_pace(self.fps, self.whole)
        changed = {name: getattr(self, name) for name in units if self.usual and getattr(self, name) != getattr(self.usual, name)}
        return "".join(f", {units[name].format(value)}" for name, value in changed.items()) + pace

    def introduce(self) -> None:
        """Write config.json, unless a run has; raises ValueError for a folder that speaks of another encoder."""
        if self.config is None:
            return
        path = self.folder / "config.json"
        if path.exists():
            if differ := differing(Run(self.folder).config, self.config):
                raise ValueError(f"{self.folder} holds results of another encoder ({'; '.join(differ)}); choose another folder with out=")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, self.config)


def _near(value: int, unit: int) -> str:
    below = value // unit * unit
    return f"{below} or {below + unit} would do" if below else f"{unit} would do"


def subject_of(run, encoder: str | None = None, out: str | Path | None = None, device: str | None = None) -> Subject:
    """Whose encoder to look at: of a run or its folder, of released weights (the teacher, where there is one), or a module as it is.

    A run's encoder is read in the precision of its training; another one in bf16 where `device` is fast at it. Raises FileNotFoundError for
    what is neither a run folder nor released weights.
    """
    bf16, run = fast_bf16(device_for(device)), opened(run)
    if isinstance(run, nn.Module):
        name = encoder or "encoder"
        config = {"variant": Path(out).name, "encoder_name": name} if out else None
        return Subject(run, name, folder=out and Path(out), bf16=bf16, config=config, variant=config and config["variant"])
    usual = usual_shape(run)
    shape = vars(usual) | {"usual": usual}
    if not isinstance(run, Run):
        which = encoder or ("teacher" if "teacher" in run.slots else "student")
        config = {"variant": run.name, "regime": "released weights", "pretrain": run.name, "init": run.about}
        folder = Path(out) if out else Path("runs") / run.name
        return Subject(run.encoder(which), _named(which), **shape, folder=folder, bf16=bf16, config=config, variant=run.name)
    which = encoder or run.config["probe"]
    known = {"data": run.config["spec"], "folder": Path(out or run.path), "bf16": run.config["bf16"], "variant": run.config["variant"]}
    return Subject(run.encoder(which), _named(which), **shape, **known)


def opened(run) -> Run | Weights | nn.Module:
    """The run in a folder, or released weights by their name or file; what is open already, and a module, as it is.

    Raises FileNotFoundError for what is neither, with the near names.
    """
    from vjepa_lab import weights

    if isinstance(run, Run | weights.Weights | nn.Module):
        return run
    if weights.are_weights(run):
        return weights.open(run)
    if not Path(run).exists():
        name = str(run).partition(":")[0]
        near = f", and no released model is called that; {suggest(name, weights.RELEASES)}" if Path(name).name == name else ""
        raise FileNotFoundError(f"{run}: not a run folder: there is no such place{near}")
    return load_run(run)


def usual_shape(run: Run | Weights) -> Shape:
    """The clips that an encoder is shown unless asked otherwise: a run's own, of released weights those of upstream's evaluations."""
    return Shape(run.preset.frames, run.preset.size, run.preset.stride) if isinstance(run, Run) else Shape(16, run.crop, 4)


def _named(which: str) -> str:
    """What rows call an encoder."""
    return {"initial": "random-init"}.get(which, which)
