"""What frozen encoders keep under shift: a reader trained on clean clips, asked about the same test clips corrupted.

Every reader (an encoder, a label, a part of the channels) answers the same test clips under every condition, so that falls are paired by
clip, objectives by clip and seed, and the halves Z_app and Z_dyn by clip within one encoder. Metrics and intervals: `shifts.metrics`.

    answers = robustness.corrupted(subjects.runs_of(["baseline", "ld"], [0, 1]), corruptions=["fog", "jumble"])
    rows = robustness.summary(answers)
    print(robustness.verdict(answers, rows))
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from vjepa_lab import data
from vjepa_lab.analysis import shifts
from vjepa_lab.analysis.changes import one_encoder, over_seeds, shown
from vjepa_lab.analysis.readers import PARTS, Reader, about_clips, constant, differences, standing, tabulate, widest
from vjepa_lab.analysis.shifts import CLEAN, SCENES, Condition, Line, conditions, mean_corrupted
from vjepa_lab.analysis.subjects import Run, Subject, clip_size, subjects
from vjepa_lab.data.core import Source
from vjepa_lab.data.splits import labelled, pair
from vjepa_lab.data.synthetic import FactorMotion
from vjepa_lab.evaluation.features import Features
from vjepa_lab.evidence import results
from vjepa_lab.evidence.stats import UNTRAINED, benjamini_hochberg
from vjepa_lab.presets import Preset

LABELS = ("shape", "motion", "action", "object", "edit")
"Labels read by default where a source has them, else its class: what a clip shows, and what happens in it."
READER = ["variant", "encoder", "seed", "label", "part"]
GROUP = ["kind", "truth"]
OWN = ["each", "origin", "shift", "severity", "ordered"]
"Columns of an answer that a summary over several has not."


def corrupted(
    runs: Iterable[Run],
    world: str = "synthetic",
    labels: Sequence[str] = (),
    clips: tuple[int, int] | None = (2000, 500),
    *,
    corruptions: Iterable[str] | None = None,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    scenes: Sequence[str] | None = None,
    parts: Sequence[str] = PARTS,
    encoders: Sequence[str] = ("student",),
    shape: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: bool = True,
    **how,
) -> pd.DataFrame:
    """Answers of every encoder's readers about the test clips of a world, clean and under every shift, as a table (see `readers`).

    world        a data set as `data.open` takes it: synthetic, a folder of classes, "ucf101:ROOT", "time:FOLDER", "kenburns:FOLDER"
    labels       what is read; by default those of `LABELS` that the world has, else "class"
    clips        at most so many of the training and the test split; None: all
    corruptions  names in `data.corruptions`; by default all 27;  severities: 1 to 5
    scenes       names in `shifts.SCENES`; by default all where the world is the factor world, else none
    how          goes to `features.extract`: cache (a folder, with which an interrupted study goes on where it was), workers, device, batch

    Columns beside the common ones: label, part, shift, severity, kind, ordered, truth, chance (percent of the largest class of the test).
    Raises ValueError for an unknown label, DataError for an unknown corruption.
    """
    found = subjects(runs, encoders)
    size, wanted = clip_size(found, shape), conditions(corruptions, severities)
    train, test = pair(world, ("train", "test"), (), size, clips)
    factor = isinstance(test, FactorMotion)
    names = (list(SCENES) if factor else []) if scenes is None else list(scenes)
    others = {name: _scene(world, test, name, size) for name in names}
    labels = list(labels) or [name for name in LABELS if name in test.classes] or ["class"]
    labelled((train, test), labels)
    return ask(found, train, test, labels, wanted, others, parts, seed, progress, **how)


def _scene(world: str, test: Source, name: str, size: Preset) -> Source:
    """The test clips of the factor world with one more thing in the picture."""
    if name not in SCENES:
        raise ValueError(f"unknown scene {name!r}: expected some of {', '.join(SCENES)}")
    if not isinstance(test, FactorMotion):
        raise ValueError(f"{world}: scenes need the factor world (synthetic, synthetic:plain, ...)")
    source = data.open(world, "test", frames=size.frames, size=size.size, n=len(test), **SCENES[name])
    source.name = f"{test.name}/{name}"
    return source


def ask(
    found: Sequence[Subject],
    train: Source,
    test: Source,
    labels: Sequence[str],
    wanted: Sequence[Condition],
    scenes: Mapping[str, Source] | None = None,
    parts: Sequence[str] = PARTS,
    seed: int = 0,
    progress: bool = True,
    **how,
) -> pd.DataFrame:
    """The answers behind `corrupted`, of any frozen encoders and sources; one condition after the other, its clips made once for all."""
    rows, readers, how = [], {}, how | {"progress": False}
    total = len(found) * (2 + len(wanted) + len(scenes or {}))
    with tqdm(total=total, desc="shifts", unit="encoder", disable=not progress) as bar:
        for place, subject in enumerate(found):
            bar.set_postfix_str(f"{subject.about['variant']}, training")
            features = subject.features(train, **how)
            readers[place] = [Reader.fit(features, label, part, seed=seed) for label in labels for part in parts]
            bar.update()
        index = None
        for condition, source in shifts.sources(test, wanted, scenes or {}, seed):
            for place, subject in enumerate(found):
                bar.set_postfix_str(f"{condition.shift} {condition.severity or ''}")
                features = subject.features(source, **how)
                index = features.index if index is None else index
                if not features.index.equal(index):
                    raise ValueError(f"{source.name}: other clips could be read than of the clean ones; remove the unreadable files")
                rows += [_answer(subject, reader, features, condition, test.name) for reader in readers[place]]
                bar.update()
    return pd.DataFrame(rows)


def _answer(subject: Subject, reader: Reader, features: Features, condition: Condition, name: str) -> dict:
    about = {"benchmark": name if reader.label == "class" else f"{name}/{reader.label}", "probe": "logistic", "metric": "top1"}
    about |= {"label": reader.label, "part": reader.part} | vars(condition) | {"truth": condition.truth(reader.label)}
    return subject.about | about | _each(reader, features)


def _each(reader: Reader, features: Features) -> dict:
    return {"chance": constant(features.labels[reader.label])} | about_clips(reader.correct(features), features)


# -------------------------------------------------------------------------------------------------------------------------- summaries


def summary(answers: pd.DataFrame, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Rows of every corruption metric (`shifts.metrics`) of every reader, for each kind of shift, and for all kinds together ("all").

    truth: "kept" are shifts under which the label stays true; "changed" those under which the clip shows another motion than labelled,
    where a fall is what a good reader does. "all" takes the former only. Where recordings are known intervals are over them. A relative
    metric that is undefined (`shifts.undefined`) is nan, and `note` says why. Of parts "app" and "dyn" there is "retained-app-dyn" as
    well: by how many points Z_app retains more than Z_dyn, the bootstrap drawing the same clips for both.
    """
    rows = []
    for _, reader in answers.groupby([*READER, "benchmark", "run"], dropna=False, sort=False):
        clean = _clean(reader)
        for key, part in _groups(reader):
            shared = clean.drop(OWN, errors="ignore").to_dict() | dict(zip(GROUP, key, strict=True))
            found = shifts.metrics(clean["each"], _stacked(part), clean["chance"], draws, seed, clean.get("origin"))
            notes = shifts.undefined(100 * clean["each"].mean(), clean["chance"])
            shared["n"] = len(clean["each"])
            rows += [
                shared | {"metric": name, "value": x.value, "lo": x.lo, "hi": x.hi, "note": notes.get(name, "")}
                for name, x in found.items()
            ]
    rows += _apart(answers, draws, seed)
    return results.tidy(pd.DataFrame(rows))


def _clean(reader: pd.DataFrame) -> pd.Series:
    return reader[reader["kind"].eq("clean")].iloc[0]


def _groups(reader: pd.DataFrame):
    """((kind, truth), its answers) of one reader, then everything under which the label stays true."""
    shifted = reader[reader["kind"].ne("clean")]
    yield from shifted.groupby(GROUP, sort=False)
    if len(kept := shifted[shifted["truth"].eq("kept")]):
        yield ("all", "kept"), kept


def _stacked(part: pd.DataFrame) -> dict[str, np.ndarray]:
    return {shift: np.stack(list(rows["each"])) for shift, rows in part.groupby("shift", sort=False)}


def _apart(answers: pd.DataFrame, draws: int, seed: int) -> list[dict]:
    """By how much Z_app retains more of what it knows than Z_dyn, where both know enough (`shifts.knows`)."""
    rows = []
    keys = [name for name in READER if name != "part"]
    for _, reader in answers.groupby([*keys, "benchmark", "run"], dropna=False, sort=False):
        halves = {part: table for part, table in reader.groupby("part", sort=False) if part in ("app", "dyn")}
        if len(halves) < 2:
            continue
        clean = [_clean(halves[part]) for part in ("app", "dyn")]
        chance = clean[0]["chance"] / 100
        if not all(shifts.knows(100 * x["each"].mean(), 100 * chance) for x in clean):
            continue
        groups = [dict(_groups(halves[part])) for part in ("app", "dyn")]
        for key in groups[0]:
            shifted = [mean_corrupted(_stacked(group[key])) for group in groups]
            columns = [shifted[0], clean[0]["each"], shifted[1], clean[1]["each"]]
            means = np.vstack([[np.mean(x) for x in columns], shifts.resampled(columns, draws, seed, clean[0].get("origin"))]) - chance
            value = 100 * (means[:, 0] / means[:, 1] - means[:, 2] / means[:, 3])
            lo, hi = np.quantile(value[1:], [0.025, 0.975])
            shared = clean[0].drop(OWN, errors="ignore").to_dict() | dict(zip(GROUP, key, strict=True))
            measured = {"value": float(value[0]), "lo": float(lo), "hi": float(hi), "n": len(columns[0])}
            rows.append(shared | {"part": "app-dyn", "metric": "retained-app-dyn"} | measured)
    return rows


def overview(rows: pd.DataFrame, part: str = "all", kind: str = "all") -> pd.DataFrame:
    """Every metric of `summary` beside each other, a row per label and variant: means over seeds, undefined where a seed's is; `note` says
    why."""
    own = rows[rows["part"].eq(part) & rows["kind"].eq(kind)]
    by = ["label", "variant"]
    wide = own.groupby([*by, "metric"], sort=False)["value"].agg(lambda x: x.mean(skipna=False)).unstack("metric")
    notes = own.groupby(by, sort=False)["note"].agg(lambda x: "; ".join(dict.fromkeys(x[x.ne("")])))
    return wide.reindex(columns=own["metric"].unique()).join(notes).loc[notes.index]


def falls(answers: pd.DataFrame, against: str = "baseline") -> pd.DataFrame:
    """Objectives against `against` (`readers.differences`), from all channels: in accuracy on clean clips, in mPC of each kind of shift,
    and in the fall from the one to the other (100 points of fall are 1 of gamma_abs). Columns label, kind, truth, metric."""
    rows = []
    for _, reader in answers[answers["part"].eq("all")].groupby([*READER, "benchmark", "run"], dropna=False, sort=False):
        clean = _clean(reader)
        rows.append(clean.to_dict() | {"metric": "clean"})
        for key, part in _groups(reader):
            shifted, shared = mean_corrupted(_stacked(part)), clean.to_dict() | dict(zip(GROUP, key, strict=True))
            rows += [shared | {"metric": "mPC", "each": shifted}, shared | {"metric": "fall", "each": shifted - clean["each"]}]
    return differences(pd.DataFrame(rows), against, ["label", *GROUP, "metric"])


def lines(answers: pd.DataFrame) -> dict[tuple[str, str], Line]:
    """(label, kind) -> the line of shifted on clean accuracy over the trained variants, where there are enough of them; untrained encoders
    are shown beside it. All channels, shifts that keep the label true; p_adj is over all lines."""
    table = points(answers)
    found = {}
    for key, part in table.groupby(["label", "kind"], sort=False) if len(table) else ():
        try:
            found[key] = shifts.line(part, part["encoder"].ne("random-init"))
        except ValueError:
            continue
    return _corrected_together(found)


def _corrected_together(found: dict[tuple[str, str], Line]) -> dict[tuple[str, str], Line]:
    """The lines with p_adj over the residuals of all of them."""
    every = benjamini_hochberg(np.concatenate([each.residuals["p"] for each in found.values()] or [[]]))
    ends = np.cumsum([len(each.residuals) for each in found.values()])
    parts = np.split(every, ends[:-1]) if len(ends) else []
    return {key: replace(each, residuals=each.residuals.assign(p_adj=p)) for (key, each), p in zip(found.items(), parts, strict=True)}


def points(answers: pd.DataFrame) -> pd.DataFrame:
    """Clean and shifted accuracy in percent of every run (`one_encoder`), from all channels, by label and kind of shift."""
    rows, answers = [], one_encoder(answers)
    for (variant, encoder, seed, label, _), reader in answers[answers["part"].eq("all")].groupby(READER, dropna=False, sort=False):
        clean = _clean(reader)["each"]
        for (kind, truth), part in _groups(reader):
            if truth == "kept":
                about = {"variant": variant, "encoder": encoder, "seed": seed, "label": label, "kind": kind}
                rows.append(about | {"clean": 100 * clean.mean(), "shifted": 100 * mean_corrupted(_stacked(part)).mean(), "n": len(clean)})
    return pd.DataFrame(rows)


# -------------------------------------------------------------------------------------------------------------------- laws of a world


def laws(
    runs: Iterable[Run],
    world: str = "synthetic",
    label: str = "motion",
    clips: tuple[int, int] = (2000, 1000),
    *,
    changed: Sequence[str] = ("compositional", "spurious"),
    encoders: Sequence[str] = ("student",),
    shape: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: bool = True,
    **how,
) -> pd.DataFrame:
    """Answers where the law between factors changes after training: the test split holds what training never showed.

    world    the factor world or one of its kin (synthetic, synthetic:plain, ...), drawn under another law (see `FactorMotion`)
    label    whose reader can be misled
    changed  "compositional": a fifth of the pairs of shape and motion occurs in the test only; "spurious": shape tells the motion in nine
             of ten training clips, and nothing about it in the test
    clips    of the training split, and of each other

    The reader trains on the training split; `shift` "in-domain" is the validation split, which obeys its law, "shifted" the test. The two
    are different clips: objectives are paired by clip, the fall is not.

    Raises ValueError for an unknown label, and for a world without factors.
    """
    found = subjects(runs, encoders)
    size, rows, how = clip_size(found, shape), [], how | {"progress": False}
    counts = {"train": clips[0], "val": clips[1], "test": clips[1]}
    with tqdm(total=len(changed) * len(found), desc="laws", unit="encoder", disable=not progress) as bar:
        for law in changed:
            parts = {split: _under_law(world, law, split, size, n) for split, n in counts.items()}
            labelled(parts.values(), [label])
            for subject in found:
                reader = Reader.fit(subject.features(parts["train"], **how), label, seed=seed)
                for shift, part in (("in-domain", "val"), ("shifted", "test")):
                    features = subject.features(parts[part], **how)
                    about = {"benchmark": f"{parts[part].name}/{label}", "probe": "logistic", "metric": "top1"}
                    about |= {"label": label, "part": "all", "shift": shift, "panel": f"{law}: {shift}"}
                    rows.append(subject.about | about | _each(reader, features))
                bar.update()
    return pd.DataFrame(rows)


def _under_law(world: str, law: str, split: str, size: Preset, clips: int) -> Source:
    if world.partition(":")[0] != "synthetic":
        raise ValueError(f"{world}: another law needs the factor world (synthetic, synthetic:plain, ...)")
    source = data.open(world, split, n=clips, frames=size.frames, size=size.size, law=law)
    source.name = f"{source.name}/{law}"
    return source


# --------------------------------------------------------------------------------------------------------------------------- verdict


def verdict(answers: pd.DataFrame, rows: pd.DataFrame, against: str = "baseline") -> str:
    """What the study says of objectives, of the halves and of the line, in one sentence, and what it leaves open in another. Objectives are
    compared by what is read from all channels."""
    parts, open_ends = [], []
    trained = set(answers.loc[answers["part"].eq("all"), "variant"]) - {UNTRAINED}
    if against in trained and len(trained) > 1:
        table = falls(answers, against)
        kept = table[table["truth"].eq("kept") & table["metric"].eq("fall") & table["kind"].ne("all")]
        clean = table[table["metric"].eq("clean")].set_index(["variant", "label"])["delta"]
        beside = [f"(clean {clean[key]:+.1f})" for key in zip(kept["variant"], kept["label"], strict=True)]
        which = standing(kept.assign(clean=beside), "label kind clean")
        parts.append(
            f"against {against}, of the differences in how far accuracy falls under shift {which}"
            + "; who is lower on clean clips has less to lose" * bool(kept["significant"].any())
        )
        if not math.isnan(far := widest(kept)):
            open_ends.append(f"differences of up to {far:.0f} points (median) are compatible with the others")
    parts += [text for text in (_halves_said(rows), _lines_said(lines(answers))) if text]
    retained = rows[rows["metric"].eq("retained") & rows["part"].eq("all") & rows["kind"].eq("all")]
    if count := int(retained["value"].isna().sum()):
        open_ends.append(f"{count} of {len(retained)} readers know too little beyond chance, so that what they retain is undefined")
    if answers["seed"].nunique() < 2:
        open_ends.append("one seed: what another would change is not in the intervals")
    open_ends.append("the reader is linear on mean-pooled features, trained on clean clips")
    smoke = "Demonstration size, which decides nothing. " * bool(rows["smoke"].any())
    said = "; ".join(parts) or "one encoder only: nothing to compare"
    return f"{smoke}{said[0].upper()}{said[1:]}. Not decided: {'; '.join(open_ends)}."


def _halves_said(rows: pd.DataFrame) -> str:
    """Whether Z_app withstands temporal shifts and Z_dyn appearance shifts, over the trained encoders that have two halves."""
    own = rows[rows["metric"].eq("retained-app-dyn") & rows["truth"].eq("kept") & rows["encoder"].ne("random-init")]
    own = own[own["kind"].isin(["appearance", "temporal"])]
    if own.empty:
        return "of no encoder both halves know enough beyond chance, so which half withstands what cannot be said"
    table = over_seeds(own, ["variant", "label", "kind"])
    said = []
    for kind, wanted in (("temporal", 1), ("appearance", -1)):
        if (part := table[table["kind"].eq(kind)]).empty:
            continue
        shows = part[(part["lo"] > 0) if wanted > 0 else (part["hi"] < 0)]
        against = part[(part["hi"] < 0) if wanted > 0 else (part["lo"] > 0)]
        better, worse = ("Z_app", "Z_dyn") if wanted > 0 else ("Z_dyn", "Z_app")
        named = [f"{r['variant']} {r['label']} {shown({'delta': r['value']} | r.to_dict(), 0, True)}" for _, r in shows.iterrows()]
        said.append(
            f"under {kind} shifts {better} retains more than {worse} in {len(shows)} of {len(part)} cases"
            + (f" ({', '.join(named)})" if named else "")
            + f" and less in {len(against)}"
        )
    return ", ".join(said)


def _lines_said(found: Mapping[tuple[str, str], Line]) -> str:
    if not found:
        return "there are too few trained objectives for a line of effective robustness"
    off = [
        f"{r.variant} ({label}, {kind}: {r.value:+.1f} [{r.lo:+.1f}, {r.hi:+.1f}])"
        for (label, kind), fitted in found.items()
        for r in fitted.residuals.itertuples()
        if r.p_adj < 0.05
    ]
    tested = sum(len(fitted.residuals) for fitted in found.values())
    leaves = f"{', '.join(off)} leave{'s' * (len(off) == 1)}" if off else "no objective leaves"
    return f"{leaves} the line of shifted on clean accuracy ({tested} comparisons, corrected together)"


__all__ = ["CLEAN", "ask", "corrupted", "falls", "laws", "lines", "overview", "points", "summary", "tabulate", "verdict"]
