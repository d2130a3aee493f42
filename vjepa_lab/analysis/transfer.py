"""From one data set to another: shared classes, class prototypes that need none, and AVA.

Classes are shared by name, or through a class map: a csv with the columns source, target, shared, status, origin (data/maps).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from vjepa_lab.analysis.openset import nearness, prototypes
from vjepa_lab.analysis.readers import Reader, about_clips, constant
from vjepa_lab.analysis.shifts import Kept
from vjepa_lab.analysis.subjects import Run, Subject, clip_size, subjects
from vjepa_lab.data.splits import apart, pair
from vjepa_lab.evaluation import ava
from vjepa_lab.evaluation.features import Features
from vjepa_lab.evidence import results

STATUS = ("published", "proposed-strict", "proposed-loose")
UNREVIEWED = "class map proposed by hand from the names, unreviewed"


@dataclass(frozen=True)
class ClassMap:
    """Classes that two data sets share: names in the source -> shared name, names in the target -> shared name, and all shared names."""

    source: dict[str, str]
    target: dict[str, str]
    shared: list[str]
    note: str = ""

    @classmethod
    def read(cls, path: str | Path, status: Sequence[str] = STATUS[:2]) -> ClassMap:
        """The rows of a class map whose status is among `status`. Raises ValueError naming the file for what is no such table."""
        table = pd.read_csv(path)
        if lacking := [name for name in ("source", "target", "shared", "status", "origin") if name not in table]:
            raise ValueError(f"{path}: lacks the column {', '.join(lacking)}; a class map has source, target, shared, status, origin")
        if len(unknown := table.loc[~table["status"].isin(STATUS), "status"]):
            raise ValueError(f"{path}: status {unknown.iloc[0]!r}; expected one of {', '.join(STATUS)}")
        table = table[table["status"].isin(list(status))]
        for side in ("source", "target"):
            if len(twice := table.drop_duplicates([side, "shared"]).loc[lambda t, s=side: t[s].duplicated(), side]):
                raise ValueError(f"{path}: {side} class {twice.iloc[0]!r} has two shared classes")
        if table["shared"].nunique() < 2:
            raise ValueError(f"{path}: fewer than two shared classes of status {', '.join(status)}")
        names = list(dict.fromkeys(table["shared"]))
        note = UNREVIEWED if table["status"].ne("published").any() else ""
        return cls(*(dict(zip(table[side], table["shared"], strict=True)) for side in ("source", "target")), names, note)

    @classmethod
    def same(cls, source: Sequence[str], target: Sequence[str]) -> ClassMap:
        """The classes that have one name in both. Raises ValueError if fewer than two have."""
        names = [name for name in source if name in set(target)]
        if len(names) < 2:
            raise ValueError(f"the two sets share {len(names)} class names; name a class map (data/maps), or use prototypes alone")
        return cls(dict(zip(names, names, strict=True)), dict(zip(names, names, strict=True)), names)


def shared(features: Features, label: str, names: Mapping[str, str], classes: Sequence[str]) -> Features:
    """The clips of shared classes, labelled "shared". Raises ValueError when a name is no class of the features, or no clip has one."""
    if unknown := [name for name in names if name not in features.classes[label]]:
        there = ", ".join(features.classes[label][:8])
        raise ValueError(f"{features.name} has no {label} called {unknown[0]!r}, as the class map says; it has {there}, ...")
    place = torch.tensor([classes.index(names[name]) if name in names else -1 for name in features.classes[label]] + [-1])
    labels = {"shared": place[features.labels[label]]}  # -1, no label, picks the last
    return replace(features, labels=labels, classes={"shared": list(classes)}).labelled("shared")


def by_prototypes(train: Features, test: Features, label: str) -> np.ndarray:
    """Which test clips lie nearest, by cosine, to the mean training feature of their class [n] (Kim et al., arXiv:2401.11406).

    Features are centred on the training clips' mean, without which one common direction may drown the rest.
    """
    train, test = train.labelled(label), test.labelled(label)
    x, z = (part.pooled.double().numpy() for part in (train, test))
    centres = prototypes(x - x.mean(0), train.labels[label].numpy(), len(train.classes[label]))
    return nearness(z - x.mean(0), centres).argmax(1) == test.labels[label].numpy()


def across(
    runs: Iterable[Run],
    source: str = "synthetic",
    target: str = "synthetic:plain",
    labels: tuple[str, str] = ("motion", "motion"),
    mapping: ClassMap | str | Path | None = None,
    clips: tuple[int, int] | None = (2000, 1000),
    *,
    encoders: Sequence[str] = ("student",),
    shape: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: bool = True,
    **how,
) -> pd.DataFrame:
    """Answers (see `readers`) of every encoder on two data sets, a row per protocol.

    in-domain    reader trained on the source, asked about the source's test clips; shared classes alone, as in the next two
    transfer     the same reader asked about the target's test clips
    re-probe     a reader trained on the target's training clips: whether the features carry over, not the reader
    prototypes in-domain, prototypes   class means of the source, of the target, all classes of each: needs no shared class

    mapping: a ClassMap or its file; by default classes of the same name; without any the first three are left out.
    labels: what is read in the source and in the target. clips: at most so many of the training and test split of each; None: all.
    """
    found = subjects(runs, encoders)
    size, how = clip_size(found, shape), how | {"progress": False}
    both = ("train", "test")
    sides = [dict(zip(both, map(Kept, pair(spec, both, (), size, clips)), strict=True)) for spec in (source, target)]
    apart(sides[0]["train"], sides[1]["test"])  # who read the source is asked about the target
    names = [side["train"].classes.get(label) for side, label in zip(sides, labels, strict=True)]
    for spec, label, there in zip((source, target), labels, names, strict=True):
        if there is None:
            raise ValueError(f"{spec} has no label {label!r}; it has {', '.join(sides[spec == target]['train'].classes)}")
    common = _mapping(mapping, *names)
    rows = []
    for subject in tqdm(found, desc="data sets", unit="encoder", disable=not progress):
        features = []
        for side in sides:  # either data set is read in the precision that its own training clips ask for
            own = replace(subject)
            features.append({part: own.features(clip, **how) for part, clip in side.items()})
        rows += across_rows(subject, *features, labels, common, seed)
    return pd.DataFrame(rows)


def _mapping(mapping, source: list[str], target: list[str]) -> ClassMap | None:
    if isinstance(mapping, ClassMap) or mapping is None:
        return mapping or (ClassMap.same(source, target) if len(set(source) & set(target)) > 1 else None)
    return ClassMap.read(mapping)


def across_rows(
    subject: Subject,
    source: Mapping[str, Features],
    target: Mapping[str, Features],
    labels: tuple[str, str],
    common: ClassMap | None,
    seed: int = 0,
) -> list[dict]:
    """The rows of one encoder, from its features of "train" and "test" of both sets."""
    name = f"{source['test'].name} -> {target['test'].name}"
    rows = []

    def add(protocol: str, each: np.ndarray, probe: str, test: Features, label: str, note: str = "") -> None:
        about = {
            "benchmark": f"{name}: {protocol}",
            "probe": probe,
            "metric": "top1",
            "protocol": protocol,
            "panel": protocol,
            "part": "all",
        }
        facts = {"chance": constant(test.labels[label]), "classes": len(test.labels[label].unique()), "note": note}
        rows.append(subject.about | about | facts | about_clips(each, test))

    if common is not None:
        from_, to = (
            {part: shared(features, label, names, common.shared) for part, features in side.items()}
            for side, label, names in ((source, labels[0], common.source), (target, labels[1], common.target))
        )
        reader, again = (Reader.fit(side["train"], "shared", seed=seed) for side in (from_, to))
        for protocol, who, test in (("in-domain", reader, from_), ("transfer", reader, to), ("re-probe", again, to)):
            add(protocol, who.correct(test["test"]), "logistic", test["test"], "shared", common.note)
    for protocol, side, label in (("prototypes in-domain", source, labels[0]), ("prototypes", target, labels[1])):
        test = side["test"].labelled(label)
        add(protocol, by_prototypes(side["train"], test, label), "prototypes", test, label)
    return rows


def ava_map(runs: Iterable[Run], root: str | Path, encoders: Sequence[str] = ("student",), progress: bool = True, **how) -> pd.DataFrame:
    """Rows of AVA's frame mAP of every encoder, where the data are given: `ava.probe` on each, nothing saved to the runs' folders."""
    rows = []
    for subject in tqdm(subjects(runs, encoders), desc="AVA", unit="encoder", disable=not progress):
        for found in ava.probe(subject.run, root, encoder=subject.which, save=False, progress=progress, **how):
            rows += [subject.about | row for row in found.rows] + found.controls
    return results.tidy(pd.DataFrame(rows))
