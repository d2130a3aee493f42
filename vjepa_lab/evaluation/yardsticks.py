"""What a number on a data set has to beat, in one table: predictors that know nothing, pixels, an untrained encoder, a trained one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from torch.nn import Module

from vjepa_lab.data import pair
from vjepa_lab.data.splits import SHAPE
from vjepa_lab.evaluation import evaluate, pixels
from vjepa_lab.evaluation.probes import ProbeResult
from vjepa_lab.evidence import results, stats
from vjepa_lab.evidence.intervals import several
from vjepa_lab.presets import Preset
from vjepa_lab.presets import preset as preset_of
from vjepa_lab.training.runs import Run

COLUMNS = ["predictor", "value", "lo", "hi", "recording_lo", "recording_hi", "n", "recordings", "flag"]


def baselines(
    data,
    run=None,
    labels: str | Sequence[str] = "class",
    *,
    preset: str | Preset = "micro",
    steps: int | None = None,
    seed: int = 0,
    runs: str | Path = "runs",
    probe: str = "linear",
    splits: tuple[str, str] | None = None,
    limit: int | None = None,
    found: ProbeResult | Sequence[ProbeResult] | None = None,
    save: bool = False,
    progress: bool = True,
    **options,
) -> pd.DataFrame | list[pd.DataFrame]:
    """Top-1 accuracy (%) of everything that a new number should stand beside, a row each, the trained encoder last: a table for the name of
    one label, for several a table each, in order. All labels are read off in one pass over the clips.

    chance, the largest class of train and of test, nearest neighbour on the mean frame and on the mean frame difference, the encoder before
    its training and after it, both under the same probe. `lo, hi`: 95 % interval over test clips (Wilson). Clips cut from one recording
    are alike, so where a set knows its recordings (UCF-101's groups), `recording_lo, recording_hi` is the interval over those
    (`stats.cluster_interval`), which is the honest one. `flag`: which constant predictor the row cannot be told from.

    data     a name as `data.open` takes it, or a pair of Sources (train, test)
    run      the trained run, or its folder, or released weights as `vjepa_lab.probe` takes them; None: the plain baseline is pretrained
             here on the training clips, `steps` of `preset`
    seed     of that pretraining, and of the probes
    found    the trained encoder's result under this probe, one per label, if it is there already
    save     add the encoders' rows to the run's folder
    options  go to `vjepa_lab.probe`: encoder, cache, workers, epochs, ...; frames, size, stride, fps and whole decide the clips that
             pixels are read from, too, and `workers` read ahead for all

    `attrs["note"]` says what the trained row is and whether it could be evidence. Raises ValueError for an encoder of your own, an unknown
    label, an option that the probe lacks, two of stride, fps and whole, and where `found` is not one result per label; DataError, a
    ValueError, for splits that share files.
    """
    from vjepa_lab import train

    evaluate.check_options(probe, options)
    shape = {name: options.pop(name, None) for name in SHAPE}
    shape["whole"] = shape["whole"] or None
    evaluate.one_pace(**shape)
    evaluate.given(data, **shape, splits=splits)
    names = [labels] if isinstance(labels, str) else list(labels)
    if run is None:
        own = preset_of(preset)
        size = evaluate.Shape(own.frames, own.size, own.stride)
    elif isinstance(run := evaluate.opened(run), Module):
        raise ValueError(
            "run: expected a run, or released weights; an encoder of your own has no untrained one beside it that we could build"
        )
    else:
        size = evaluate.usual_shape(run)
    size = replace(size, **{name: value for name, value in shape.items() if value is not None})
    sources = pair(data, splits or ("train", "test"), names, size, limit)
    if run is None:
        over = {} if steps is None else {"steps": steps, "warmup": min(own.warmup, max(steps // 10, 1))}
        pretrained_on = data[0] if isinstance(data, tuple | list) else data
        run = train.pretrain("baseline", pretrained_on, own, seed, runs=runs, progress=progress, **over)
    how = options | {name: value for name, value in shape.items() if value is not None}
    how |= {"splits": splits, "probe": probe, "seed": seed, "limit": limit, "save": save, "progress": progress}
    ahead = {"progress": progress, "workers": options.get("workers", 0)}
    small = zip(*(pixels.small(source, **ahead) for source in sources), strict=True)  # (train, test) of each view
    measured = {f"{name} 1-NN": [pixels.nearest(*both, label) for label in names] for name, both in zip(pixels.VIEWS, small, strict=True)}
    measured["random-init encoder"] = evaluate.probe(run, data, names, **how | {"encoder": "initial"})
    trained = [found] if isinstance(found, ProbeResult) else found or evaluate.probe(run, data, names, **how)
    if len(trained) != len(names):
        raise ValueError(
            f"found: {len(trained)} results for {len(names)} labels ({', '.join(names)}); pass what probe() gave for these labels"
        )
    measured[run.name] = list(trained)
    recordings = None if sources[1].recordings is None else np.array(sources[1].recordings)
    columns = zip(names, *measured.values(), strict=True)
    tables = [_table(run, sources, label, dict(zip(measured, each, strict=True)), recordings) for label, *each in columns]
    return tables[0] if isinstance(labels, str) else tables


def _table(run, sources, label: str, measured: dict[str, ProbeResult], recordings: np.ndarray | None) -> pd.DataFrame:
    known = next(iter(measured.values()))
    rows = [_constant(row, known, sources, label, recordings) for row in known.controls if row["metric"] == "top1"]
    rows += [_measured(name, each, recordings) for name, each in measured.items()]
    table = pd.DataFrame(rows).assign(benchmark=known.rows[0]["benchmark"])  # all were asked about the same clips, whatever they call them
    honest = table.assign(lo=table["recording_lo"].fillna(table["lo"]), hi=table["recording_hi"].fillna(table["hi"]))
    table["flag"] = results.flag_constant(honest)
    table = table[COLUMNS]
    table.attrs["note"] = _note(run, table, measured["random-init encoder"], measured[run.name], recordings)
    return table


def _interval(correct: np.ndarray, ids: np.ndarray, recordings: np.ndarray | None) -> dict:
    lo, hi = map(float, stats.wilson(100 * correct.mean(), len(correct)))
    found = {"value": 100 * correct.mean(), "lo": lo, "hi": hi, "n": len(correct), "metric": "top1"}
    if recordings is None:
        return found | {"recording_lo": np.nan, "recording_hi": np.nan, "recordings": np.nan}
    if not several(recordings[ids]):  # of one recording no interval over recordings is to be had
        return found | {"recording_lo": np.nan, "recording_hi": np.nan, "recordings": 1}
    over = stats.cluster_interval(correct, recordings[ids])
    ends = {"recording_lo": max(float(over.lo), 0.0), "recording_hi": min(float(over.hi), 100.0)}
    return found | ends | {"recordings": len(np.unique(recordings[ids]))}


def _measured(name: str, found, recordings: np.ndarray | None) -> dict:
    p = found.predictions
    about = {"predictor": name, "benchmark": found.rows[0]["benchmark"], "source": "run", "variant": name}
    return about | _interval(p["top1"].eq(p["label"]).to_numpy(), p["id"].to_numpy(), recordings)


def _constant(row: dict, found, sources, label: str, recordings: np.ndarray | None) -> dict:
    """A predictor that ignores the clip. Chance is exact; the others are right on the clips of one class."""
    about = {"predictor": row["variant"].replace("-", " class of ").replace("majority", "largest"), **row}
    if row["variant"] == "chance":
        return about
    p = found.predictions
    named = p["label"] if row["variant"] == "majority-test" else sources[0].labels[label].numpy()
    largest = np.bincount(named[named >= 0]).argmax()
    return about | _interval(p["label"].eq(largest).to_numpy(), p["id"].to_numpy(), recordings)


def _note(run, table: pd.DataFrame, untrained: ProbeResult, trained: ProbeResult, recordings: np.ndarray | None) -> str:
    a, b = (each.predictions.assign(hit=each.predictions["top1"].eq(each.predictions["label"])) for each in (trained, untrained))
    both = a.merge(b, on="id", suffixes=("", "_before"))
    origin = None if recordings is None else recordings[both["id"]]
    cluster = origin if several(origin) else both["id"]
    change = stats.cluster_interval(both["hit"].astype(int) - both["hit_before"].astype(int), cluster)
    over = f" of {table['recordings'].max():.0f} recordings" * (recordings is not None)
    steps = run.steps_done if isinstance(run, Run) else None  # not what was asked for: a run may have been stopped
    trained_how = "released weights" if steps is None else f"{steps} pretraining steps, one seed"
    says = [f"{run.name}: {trained_how}; {len(both)} test clips{over}."]
    if len(both) < results.SMOKE_N or (steps is not None and steps < results.SMOKE_STEPS):
        says.append("Smoke size: shows that it runs and what must be beaten, not what an objective does.")
    does = "lifts the probe" if change.lo > 0 else "lowers the probe" if change.hi < 0 else "cannot be told from no change"
    before = "the same encoder before it" if steps is not None else "one of its build, never trained"
    change_said = f"{change.value:+.1f} pp against {before} [{change.lo:+.1f}, {change.hi:+.1f}]"
    never = trained.rows[0]["encoder"] == untrained.rows[0]["encoder"]
    says.append("Both rows are of the encoder before its training." if never else f"This training {does}: {change_said}.")
    return " ".join([*says, f"The best predictor without it reaches {table.iloc[:-1]['value'].max():.1f} %."])
