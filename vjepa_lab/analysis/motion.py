"""What an encoder knows of motion: the paper's Table 6 with every control that it lacks.

The released task behind Table 6 (santoshpremi/Factorized-Latent-Dynamics-...,
`scripts/generate_eval_synth_videos.py` and its synthetic evaluation): one disc drifting in one of eight directions, 200 clips, the first
160 to train on; the text speaks of translation, rotation and scaling, which is the task `trs8`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product

import pandas as pd
import torch
from tqdm.auto import tqdm

from vjepa_lab import data
from vjepa_lab.analysis.changes import changes, over_seeds, shown
from vjepa_lab.analysis.subjects import Run, clip_size, subjects
from vjepa_lab.data.edited import Frozen
from vjepa_lab.evaluation import pixels, probes
from vjepa_lab.evaluation.features import Features
from vjepa_lab.evaluation.probes import ProbeResult
from vjepa_lab.evidence import results
from vjepa_lab.presets import Preset

RELEASED = {"form": "released", "lrs": (3e-4,), "wds": (0.01,), "epochs": 100, "batch": 32}
"The published probe of the synthetic task: a class token and one attention, lr 3e-4, decay .01, 100 epochs of 32, nothing selected."
PROBES = {"released": (probes.attentive, RELEASED), "attentive": (probes.attentive, {}), "linear": (probes.linear, {})}
SIZES = {200: ("released", "linear"), 2000: ("linear",)}
"Clips -> probes: the paper's 200 (40 of them tested), and as many as decide a difference of 7 points (400 tested)."
STILLS = {"first frame": 0.0, "middle frame": 0.5, "last frame": 1.0}


def sizes(wanted: Mapping[int, Sequence[str]]) -> dict[int, tuple[str, ...]]:
    """Numbers of clips -> probes, checked. Raises ValueError for a number that cannot be split 4 : 1, or an unknown probe."""
    for clips, names in wanted.items():
        if clips < 80 or clips % 20:
            raise ValueError(
                f"clips={clips}: expected a multiple of 20, at least 80, of which the first 80 % train the probe and the rest test it"
            )
        if unknown := [name for name in names if name not in PROBES]:
            raise ValueError(f"unknown probe {unknown[0]!r} of a motion task: expected some of {', '.join(PROBES)}")
    return {clips: tuple(names) for clips, names in wanted.items()}


def stream(task: str, clips: int, size: Preset) -> data.Source:
    """So many clips of a motion task in a fixed order, none of which any pretraining has seen; label "motion".

    Raises ValueError for an unknown task or a number that cannot be split 4 : 1.
    """
    sizes({clips: ()})
    shape = {"frames": size.frames, "size": size.size}
    if task == "dirs8":  # the released clips in their order: "train" is the first 80 % of n
        return data.open("synthetic:dirs8", "train", n=clips * 5 // 4, **shape)
    if task == "trs8":  # pretraining reads the training split
        return data.open("synthetic:trs8", "test", n=clips, **shape)
    raise ValueError(f"unknown motion task {task!r}: expected dirs8 (as released) or trs8 (as printed)")


def table6(
    runs: Iterable[Run],
    tasks: Sequence[str] = ("dirs8", "trs8"),
    sizes: Mapping[int, Sequence[str]] = SIZES,
    *,
    encoders: Sequence[str] = ("student", "teacher"),
    stills: Sequence[str] = ("middle frame", "last frame"),
    still_of: Sequence[str] = ("random-init", "baseline"),
    shape: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: bool = True,
    **how,
) -> pd.DataFrame:
    """Eight motions read from frozen encoders, with every control: a row per encoder, task, number of clips, probe and view.

    runs      pretrained encoders; of each those in `encoders`, and the untrained one of each seed
    sizes     number of clips (the first 80 % train the probe, the rest test it) -> probes: "released", "attentive", "linear"
    stills    frames at which clips are stopped for the variants named in `still_of`: what an encoder tells from one frame
    shape     fields of the preset for the clips alone, such as {"size": 160, "frames": 8} as released; by default as pretrained
    how       goes to `features.extract`: cache, workers, device, batch

    Columns beside the common ones: task, clips, view ("clip" or a still frame). Nearest neighbours in pixels are variants of their own.
    """
    found = subjects(runs, encoders)
    size, rows, how = clip_size(found, shape), [], {"progress": progress} | how
    with tqdm(total=len(tasks) * len(sizes) * (len(found) + 1), desc="motion tasks", unit="encoder", disable=not progress) as bar:
        for task, (clips, names) in product(tasks, sizes.items()):
            source = stream(task, clips, size)
            rows += _pixel_rows(source, task, progress)
            bar.update()
            for subject in found:
                views = {"clip": source}
                if subject.about["variant"] in still_of and subject.which != "teacher":
                    views |= {name: Frozen(source, STILLS[name]) for name in stills}
                for view, seen in views.items():
                    features = subject.features(seen, tokens=set(names) != {"linear"}, **how)
                    about = subject.about | {"task": task, "clips": clips, "view": view}
                    rows += [about | row for row in _probed(features, names, benchmark(task, clips, view), seed, how)]
                bar.update()
    return results.tidy(pd.DataFrame(rows))


def split(features: Features) -> tuple[Features, Features]:
    """80 % of the clips, the first ones, to train a probe on, and the rest to test it on."""
    n, cut = len(features), len(features) * 4 // 5
    return tuple(replace(features.subset(torch.arange(*part)), split=name) for part, name in (((0, cut), "train"), ((cut, n), "test")))


def _probed(features: Features, names: Sequence[str], benchmark: str, seed: int, how: Mapping) -> list[dict]:
    train, test = split(features)
    same = {"benchmark": benchmark, "seed": seed, "device": how.get("device"), "progress": how["progress"]}
    return [_top1(fit(train, test, "motion", **options, **same)) for fit, options in (PROBES[name] for name in names)]


def _pixel_rows(source: data.Source, task: str, progress: bool) -> list[dict]:
    """Nearest neighbours in pixels, and predictors that ignore the clip."""
    rows, about = [], {"task": task, "clips": len(source)}
    for features in pixels.small(source, progress=progress):
        found = pixels.nearest(*split(features), "motion", benchmark=benchmark(task, len(source)))
        rows += [_top1(found) | about | {"variant": features.encoder, "source": "run", "view": "clip"}]
        rows += [row | about for row in found.controls]
    return rows


def _top1(found: ProbeResult) -> dict:
    keep = ("benchmark", "probe", "metric", "value", "n", "lo", "hi", "encoder", "probe_seed")
    row = next(row for row in found.rows if row["metric"] == "top1")
    return {key: row[key] for key in keep}


def benchmark(task: str, clips: int, view: str = "clip") -> str:
    """Such as "dirs8 160/40", or "dirs8 160/40, last frame" where the encoder was shown a stopped clip."""
    return f"{task} {clips * 4 // 5}/{clips // 5}" + ("" if view == "clip" else f", {view}")


def side_by_side(rows: pd.DataFrame, printed: pd.DataFrame | None = None) -> pd.DataFrame:
    """Table 6 and what each control reaches: accuracy in percent with its 95 % interval as text, a row per encoder, a column per task.

    rows: of `table6`.  printed: rows of the paper's table (`results.load("data/paper")` has them), in a column of their own.
    """
    measured = over_seeds(rows[rows["source"].eq("run")], ["variant", "encoder", "view", "benchmark", "probe"])
    measured["cell"] = [shown(row) for _, row in measured.iterrows()]
    measured["task"] = measured["benchmark"].str.split(",").str[0] + ", " + measured["probe"].astype(str)
    nearest = measured["probe"].astype(str).str.endswith("-1nn")
    measured.loc[nearest, "task"] = measured.loc[nearest, "task"].str.split(",").str[0]
    if nearest.any():  # a control without a probe stands in every column of its task and size
        measured = pd.concat([measured[~nearest], *(_in_every_column(r, measured[~nearest]) for _, r in measured[nearest].iterrows())])
    table = measured.pivot_table(index=["variant", "encoder", "view"], columns="task", values="cell", aggfunc="first", sort=False)
    if printed is not None and len(printed):
        known = {row["variant"]: shown(row) for _, row in printed.iterrows()}
        first = ~table.index.to_frame()["variant"].duplicated()
        table.insert(
            0,
            "Table 6, printed",
            [known.get(name, "") if top else "" for name, top in zip(table.index.get_level_values(0), first, strict=True)],
        )
    return table.fillna("")


def _in_every_column(row: pd.Series, table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame([row.to_dict() | {"task": task} for task in table["task"].unique() if task.startswith(row["task"] + ",")])


CHANCE = 12.5
PAIRS = {"EMA on": ("kin-l1-ema", "baseline"), "EMA off": ("kin-l1", "baseline-no-ema")}
"What the kinematic term alone changes: each row of the paper's Table 6 turns the EMA off as well."


def verdict(rows: pd.DataFrame, printed: pd.DataFrame | None = None) -> str:
    """What the rows of `table6` say of the printed table, in one sentence, and what they cannot decide in another."""
    own = rows[rows["source"].eq("run")]
    moving, few, many = own[own["view"].eq("clip")], own["clips"].min(), own["clips"].max()
    parts = [_against_print(moving[moving["clips"].eq(few)], printed), *_kinematic(moving[moving["clips"].eq(many)]), _still(own, many)]
    said = "; ".join(part for part in parts if part) + "."
    seeds = own["seed"].nunique()
    size = own["run"].dropna().str.contains(r"-base-s\d+$").any()
    left = ["what another seed would change"] * (seeds < 2) + ["how encoders of the paper's size and training differ"] * (not size)
    small = own.loc[own["clips"].eq(many), "smoke"].any()  # forty test clips are the paper's own number, and are said so
    smoke = "Demonstration size, which decides nothing. " * bool(small)
    return smoke + said[0].upper() + said[1:] + (" Not decided: " + " and ".join(left) + "." if left else "")


def _against_print(rows: pd.DataFrame, printed: pd.DataFrame | None) -> str:
    """Whether the printed kinematic rows can be told from an encoder that never trained, on the released task at the paper's size."""
    untrained = rows[rows["variant"].eq("random-init") & rows["task"].eq("dirs8")]
    if untrained.empty:
        return ""
    first = over_seeds(untrained[untrained["probe"].eq(untrained["probe"].iloc[0])], ["probe"]).iloc[0]
    said = f"on the released task with {first['n']:.0f} test clips an untrained encoder of this size reaches {shown(first)} %"
    kinematic = printed[printed["variant"].str.startswith("kin")] if printed is not None else []
    if not len(kinematic):
        return said
    apart = kinematic["lo"] > first["hi"]
    listed = lambda which: " and ".join(f"{value:g}" for value in kinematic.loc[which, "value"])
    if apart.all() or not apart.any():
        return said + f", from which the printed {listed(apart.notna())} % can{'' if apart.all() else 'not'} be told"
    return said + f", from which the printed {listed(apart)} % can be told, {listed(~apart)} % cannot"


def _kinematic(rows: pd.DataFrame) -> list[str]:
    """The kinematic term's own effect on the student, with the EMA and without, on each task at the size that decides."""
    said = []
    rows = rows[rows["encoder"].eq("student") & rows["probe"].eq("linear")]
    for label, (with_it, without) in PAIRS.items():
        part = rows[rows["variant"].isin([with_it, without])]
        if part["variant"].nunique() == 2:
            table = changes(part, without, ("task",))
            deltas = ", ".join(f"{row['task']} {shown(row, sign=True)}" for _, row in table.iterrows())
            clips = f"{rows['n'].max():.0f} test clips"
            said.append(f"with {label} the kinematic term changes the student's accuracy ({clips}, linear probe) by {deltas} points")
    return said


def _still(rows: pd.DataFrame, clips: int) -> str:
    """What appearance alone gives away: an encoder on a stopped clip, or the mean frame's nearest neighbour; the best of them."""
    still = rows[(rows["view"].ne("clip") | rows["variant"].eq("mean-frame")) & rows["clips"].eq(clips)]
    if still.empty:
        return ""
    best = over_seeds(still, ["variant", "view", "task", "probe"]).sort_values("value").groupby("task", sort=False).tail(1)
    return "appearance alone gives away " + ", ".join(f"{r['task']} {shown(r)} %" for _, r in best.iterrows()) + f" (chance {CHANCE} %)"
