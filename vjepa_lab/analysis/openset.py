"""Clips of classes that a reader has never seen: how well its scores tell them from known ones (AUROC).

Axes: n clips, m known and u unknown clips, d channels, k classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp
from scipy.stats import rankdata
from tqdm.auto import tqdm

from vjepa_lab.analysis.readers import Reader, about_clips
from vjepa_lab.analysis.shifts import Kept
from vjepa_lab.analysis.subjects import Run, Subject, clip_size, subjects
from vjepa_lab.data.splits import labelled, pair
from vjepa_lab.evaluation.features import Features

SCORES = ("max-logit", "energy", "prototype")


def placements(known, unknown) -> tuple[np.ndarray, np.ndarray]:
    """AUROC by clip (DeLong et al. 1988): for each known clip the share of unknown clips with a lower score [m], for each unknown clip the
    share of known clips with a higher one [u]; ties count half. The mean of either is the AUROC. Raises ValueError if one side is empty."""
    known, unknown = (np.asarray(x, float) for x in (known, unknown))
    if not len(known) or not len(unknown):
        raise ValueError(f"an AUROC needs clips of both sides; got {len(known)} known and {len(unknown)} unknown ones")
    together = rankdata(np.concatenate([known, unknown]))
    m, u = len(known), len(unknown)
    return (together[:m] - rankdata(known)) / u, 1 - (together[m:] - rankdata(unknown)) / m


def auroc_each(known, unknown) -> np.ndarray:
    """Numbers per clip [m + u], known ones first, whose mean is the AUROC and whose standard error is DeLong's: two rows of them can be
    compared clip by clip as accuracies can."""
    of_known, of_unknown = placements(known, unknown)
    m, u, area = len(of_known), len(of_unknown), of_known.mean()
    return area + (m + u) * np.concatenate([(of_known - area) / m, (of_unknown - area) / u])


def prototypes(x: np.ndarray, y: np.ndarray, classes: int) -> np.ndarray:
    """Mean direction of each class [k d] of features [n d]; nan for a class without clips."""
    count = np.bincount(y, minlength=classes)[:, None]
    total = np.zeros((classes, x.shape[1]))
    np.add.at(total, y, x)
    with np.errstate(invalid="ignore"):
        return total / count


def nearness(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Cosine of features [n d] with class prototypes [k d] -> [n k]; -inf where there is no prototype."""
    unit = lambda z: z / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
    cosine = unit(x) @ unit(centres).T
    return np.where(np.isnan(cosine), -np.inf, cosine)


def scores(train: Features, test: Features, label: str, unknown: Sequence[int], seed: int = 0) -> dict[str, np.ndarray]:
    """Scores [n] of test clips, higher the more a clip looks like one of the known classes, which alone the reader and prototypes see.

    max-logit (Vaze et al. 2022), energy: logsumexp of the logits (Liu et al. 2020), prototype: cosine with the nearest class mean, features
    centred on the training clips.
    """
    seen = ~torch.isin(train.labels[label], torch.tensor(list(unknown)))
    train = train.subset(seen)
    logits = Reader.fit(train, label, seed=seed).logits(test)
    x, z = (part.pooled.double().numpy() for part in (train, test))
    centres = prototypes(x - x.mean(0), train.labels[label].numpy(), len(train.classes[label]))
    return {"max-logit": logits.max(1), "energy": logsumexp(logits, axis=1), "prototype": nearness(z - x.mean(0), centres).max(1)}


def folds(classes: int, count: int, seed: int = 0) -> list[list[int]]:
    """Every class is held out once: `count` random parts of the classes. Raises ValueError if a part would leave fewer than two known."""
    if not 2 <= count <= classes or classes - -(-classes // count) < 2:
        raise ValueError(f"{classes} classes cannot be held out in {count} parts with two known ones left each time; take 2 to {classes}")
    order = np.random.default_rng(seed).permutation(classes)
    return [sorted(map(int, part)) for part in np.array_split(order, count)]


def held_out(
    runs: Iterable[Run],
    world: str = "synthetic",
    labels: Sequence[str] = (),
    clips: tuple[int, int] | None = (2000, 1000),
    *,
    parts: int = 3,
    encoders: Sequence[str] = ("student",),
    shape: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: bool = True,
    **how,
) -> pd.DataFrame:
    """Answers (see `readers`) whose mean is the AUROC of known against unknown test clips, for each encoder, label and score.

    parts: the classes are held out in so many random parts, each class once; a clip's numbers are averaged over the parts, so that the
    interval counts each clip once.  The other arguments as in `robustness.corrupted`.  Chance is 50.

    Raises ValueError for an unknown label, and for more parts than its classes allow.
    """
    from vjepa_lab.analysis.robustness import LABELS

    found = subjects(runs, encoders)
    size, rows, how = clip_size(found, shape), [], how | {"progress": False}
    train, test = map(Kept, pair(world, ("train", "test"), (), size, clips))
    labels = list(labels) or [name for name in LABELS if name in test.classes] or ["class"]
    labelled((train, test), labels)
    for subject in tqdm(found, desc="open set", unit="encoder", disable=not progress):
        seen, asked = (subject.features(source, **how) for source in (train, test))
        rows += [row for label in labels for row in open_rows(subject, seen, asked, label, parts, seed)]
    return pd.DataFrame(rows)


def open_rows(subject: Subject, train: Features, test: Features, label: str, parts: int = 3, seed: int = 0) -> list[dict]:
    """The rows of one encoder and label, a row per score; test clips of a class without training clips are left out: nobody knows them."""
    train, test = train.labelled(label), test.labelled(label)
    there = sorted(set(train.labels[label].tolist()))
    test = test.subset(torch.isin(test.labels[label], torch.tensor(there)))
    y, each = test.labels[label], {name: [] for name in SCORES}
    for part in folds(len(there), parts, seed):
        unknown = [there[place] for place in part]
        outside = torch.isin(y, torch.tensor(unknown)).numpy()
        for name, score in scores(train, test, label, unknown, seed).items():
            numbers = np.empty(len(y))
            numbers[np.concatenate([np.flatnonzero(~outside), np.flatnonzero(outside)])] = auroc_each(score[~outside], score[outside])
            each[name].append(numbers)
    benchmark = test.name if label == "class" else f"{test.name}/{label}"
    about = {"benchmark": benchmark, "metric": "auroc", "label": label, "part": "all", "chance": 50.0, "held out": parts}
    return [
        subject.about | about | {"probe": name, "panel": f"{label}: {name}"} | about_clips(np.mean(numbers, axis=0), test)
        for name, numbers in each.items()
    ]
