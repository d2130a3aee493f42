"""Probe a run's frozen encoder on a benchmark: features once, a probe per label, rows into the run's folder."""

from collections.abc import Sequence
from pathlib import Path

from vjepa_lab import data as video
from vjepa_lab import probes
from vjepa_lab.features import spread
from vjepa_lab.presets import Preset
from vjepa_lab.probes import ProbeResult
from vjepa_lab.results import append_rows
from vjepa_lab.train import Run, load_run

PROBES = ("linear", "stepwise", "attentive", "knn")


def probe(
    run: Run | str | Path,
    data=None,
    labels: Sequence[str] | str = ("class",),
    *,
    probe: str = "linear",
    encoder: str | None = None,
    splits: tuple[str, str] = ("train", "test"),
    limit: int | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    workers: int = 0,
    device: str | None = None,
    save: bool = True,
    progress: bool = True,
    **options,
) -> list[ProbeResult]:
    """One result per label, in order; with `save`, their rows and predictions are added to the run's folder, and how much of its space the
    encoder uses (`features.spread`).

    run      a Run or its folder
    data     what the probe trains and is tested on: a name as `data.open` takes it, or a pair of Sources (train, test); by default what
             the run was pretrained on
    labels   names of the labels to read off, such as ("motion", "shape") in the factor world
    probe    "linear" (mean-pooled) | "stepwise" (linear, time steps side by side) | "attentive" (all tokens) | "knn"
    encoder  "student" | "teacher" | "initial"; by default the recipe's choice
    limit    at most so many clips of each split
    options  go to the probe: epochs, lrs, form, ...

    Raises ValueError for an unknown probe or label.
    """
    if probe not in PROBES:
        raise ValueError(f"unknown probe {probe!r}: expected one of {', '.join(PROBES)}")
    run = run if isinstance(run, Run) else load_run(run)
    labels = (labels,) if isinstance(labels, str) else tuple(labels)
    config, which = run.config, encoder or run.config["probe"]
    sources = data if isinstance(data, tuple | list) else [still(data or config["spec"], split, run.preset, limit) for split in splits]
    frozen, name = run.encoder(which), {"initial": "random-init"}.get(which, which)
    kept = {"tokens": probe in ("attentive", "stepwise"), "bf16": config["bf16"], "cache": cache, "workers": workers, "device": device}
    train, test = (probes.extract(frozen, source, encoder_name=name, progress=progress, **kept) for source in sources)

    fit = getattr(probes, probe)
    if probe != "knn":
        options |= {"seed": seed, "device": device, "progress": progress}
    results = [fit(train, test, label, **options) for label in labels]
    if save:
        append_rows(run.path, spread(train))
        for result in results:
            result.save(run.path)
    return results


def still(spec, split: str, size: Preset, limit: int | None = None) -> video.Source:
    """One split of a data set for probing: no augmentation, at most `limit` clips."""
    shape = {"frames": size.frames, "size": size.size, "stride": size.stride}
    if str(spec).startswith("synthetic"):
        return video.open(spec, split, **shape, **({} if limit is None else {"n": limit}))
    source = video.open(spec, split, augment=False, **shape)
    return source if limit is None or len(source) <= limit else source.subset(range(limit))
