"""Readers that are trained once and asked often: a logistic regression on frozen features, and tables of what it answered.

A study of shifts asks one probe about the same clips again and again, so its answers are kept clip by clip: a table of answers has the
common columns of `results` and a column `each` with an array [n], one number per test clip whose mean is the row's value (0 or 1 for a
classification). Two rows about the same clips can then be compared clip by clip. A column `origin`, if there is one, says by number which
recording each clip was cut from [n] (`Features.origin`): clips of one are alike, and no interval is narrower than the one over them.
Axes: n clips, d channels, k classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor, bincount, from_numpy

from vjepa_lab.analysis.changes import one_encoder, over_seeds, shown
from vjepa_lab.evaluation.features import Features, inverse, origins_held_out
from vjepa_lab.evidence import results
from vjepa_lab.evidence.intervals import less_sure, several
from vjepa_lab.evidence.stats import UNTRAINED, adjusted_apart, cluster_interval, paired_interval, t_interval, wilson

PARTS = ("all", "app", "dyn")
"What of a feature is read: all channels (Z), the first half (Z_app), the second half (Z_dyn)."
STRENGTHS = tuple(10.0**k for k in range(-4, 2))
"Inverse regularisation, from strong to weak, among which a held-out part of the training clips chooses."


def channels(part: str, d: int) -> slice:
    """The channels of a part. Raises ValueError for an unknown one."""
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}: expected one of {', '.join(PARTS)}")
    return {"all": slice(None), "app": slice(d // 2), "dyn": slice(d // 2, d)}[part]


@dataclass(frozen=True, eq=False)
class Reader:
    """A softmax regression that is done learning. mean, scale: of the training clips [d]; weight [d k], bias [k]."""

    label: str
    part: str
    classes: list[str]
    strength: float
    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(cls, train: Features, label: str = "class", part: str = "all", val: float = 0.2, seed: int = 0) -> Reader:
        """Trained on mean-pooled features, standardised; the strength of the L2 penalty is chosen on a stratified share `val` of them, of
        files or recordings: those cut from one lie on one side (`origins_held_out`).

        A class without a training clip is never answered. Raises ValueError for fewer than two classes.
        """
        train = train.labelled(label)
        y = train.labels[label]
        if len(y.unique()) < 2:
            raise ValueError(f"{train.name} [{train.split}]: all {len(y)} clips have one {label}; a reader needs two classes to tell apart")
        x = train.pooled[:, channels(part, train.pooled.shape[1])].double().numpy()
        mean, scale = x.mean(0), inverse(from_numpy(x.std(0))).numpy()
        x, held = (x - mean) * scale, origins_held_out(y, train.origin, val, seed).numpy()
        y = y.numpy()
        strength = 1e-2
        if held.any():
            right = {c: _logistic(x[~held], y[~held], c).score(x[held], y[held]) for c in STRENGTHS}
            strength = max(right, key=right.get)  # of equals the first: the strongest penalty
        found = _logistic(x, y, strength)
        weight, bias = np.zeros((x.shape[1], len(train.classes[label]))), np.full(len(train.classes[label]), -np.inf)
        if len(found.classes_) == 2:  # one logit there: the same probabilities from two opposite ones
            weight[:, found.classes_] = 0.5 * found.coef_.T * [-1, 1]
            bias[found.classes_] = 0.5 * found.intercept_ * [-1, 1]
        else:
            weight[:, found.classes_], bias[found.classes_] = found.coef_.T, found.intercept_
        return cls(label, part, list(train.classes[label]), strength, mean, scale, weight, bias)

    def logits(self, features: Features) -> np.ndarray:
        """[n k]; -inf for a class that had no training clip."""
        x = features.pooled[:, channels(self.part, features.pooled.shape[1])].double().numpy()
        return (x - self.mean) * self.scale @ self.weight + self.bias

    def correct(self, features: Features) -> np.ndarray:
        """Which clips are answered rightly [n]. Raises ValueError if a clip has no label, or the classes are numbered otherwise."""
        if features.classes.get(self.label) != self.classes:
            raise ValueError(f"{features.name} [{features.split}] numbers the classes of {self.label!r} otherwise than the training clips")
        y = features.labels[self.label].numpy()
        if (y < 0).any():
            raise ValueError(f"{features.name} [{features.split}]: {(y < 0).sum()} clips have no {self.label!r}; leave them out")
        return self.logits(features).argmax(1) == y


def _logistic(x: np.ndarray, y: np.ndarray, strength: float):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():  # a weak penalty may not settle in 300 steps; held-out clips choose between what came out
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=300, tol=1e-3).fit(x, y)


def constant(labels: Tensor) -> float:
    """Percent of the clips in the largest class: what always naming it reaches, and so at least chance. labels [n], no -1."""
    return 100 * float(bincount(labels).max()) / len(labels)


# ------------------------------------------------------------------------------------------------------------------ tables of answers


def about_clips(each: np.ndarray, features: Features) -> dict:
    """What a row of answers says clip by clip: numbers `each` [n], and where the features know it the recording of each clip."""
    return {"each": each} | ({} if features.recordings is None else {"origin": features.origin.numpy()})


def tabulate(answers: pd.DataFrame) -> pd.DataFrame:
    """Rows in the common columns, in percent: the mean of `each` with Wilson's interval, or where it is not 0 and 1 the t-interval; where
    the clips' `origin` is said, the interval over recordings if that is wider."""
    origins = answers["origin"] if "origin" in answers else [None] * len(answers)
    measured = [_measured(each, origin) for each, origin in zip(answers["each"], origins, strict=True)]
    return results.tidy(answers.drop(columns=["each", "origin"], errors="ignore").reset_index(drop=True).join(pd.DataFrame(measured)))


def _measured(each: np.ndarray, origin: np.ndarray | None) -> dict:
    each, n = np.asarray(each, float), len(each)
    value = 100 * each.mean()
    lo, hi = wilson(value, n) if np.isin(each, (0, 1)).all() else np.clip(t_interval(100 * each)[1:3], 0, 100)
    if several(origin):
        over = np.clip(cluster_interval(each, origin)[1:3], 0, 100)
        lo, hi = over if over[1] - over[0] > hi - lo else (lo, hi)
    return {"value": float(value), "lo": float(lo), "hi": float(hi), "n": n}


def differences(answers: pd.DataFrame, against: str = "baseline", by: Sequence[str] = ("benchmark",)) -> pd.DataFrame:
    """Each variant's difference from `against` in each group of `by`, paired by test clip and by seed.

    The interval takes seeds and clips both as random and crossed (`stats.paired_interval`), and is never narrower than what the clips alone
    leave open, as it would be where two seeds happen to agree, nor than what their recordings do, where `origin` says them; with one common
    seed it covers the clips alone. Of several encoders of a run one counts (`changes.one_encoder`).
    Columns: variant, `by`, value, base, delta, lo, hi, p, p_adj (Benjamini-Hochberg over the table, an untrained encoder's rows apart),
    significant (p_adj < 0.05), seeds, n.
    Values are means of `each` in percent. Several rows of one seed are averaged first. Raises ValueError if there is no `against`.
    """
    by = list(by)
    if against not in set(answers["variant"]):
        raise ValueError(f"no {against!r} to compare with; there are {', '.join(map(str, answers['variant'].unique()))}")
    rows = []
    for key, group in one_encoder(answers, by).groupby(by, sort=False, dropna=False):
        arms = {variant: _by_seed(part) for variant, part in group.groupby("variant", sort=False)}
        base = arms.pop(against, {})
        for variant, arm in arms.items():
            if seeds := [seed for seed in arm if seed in base]:
                a, b = (np.stack([side[seed] for seed in seeds]) for side in (arm, base))
                found = less_sure(paired_interval(a, b), t_interval(100 * (a - b).mean(0)))
                if several(origin := group["origin"].iloc[0] if "origin" in group else None):
                    found = less_sure(found, cluster_interval((a - b).mean(0), origin))
                measured = {"value": 100 * a.mean(), "base": 100 * b.mean(), "delta": found.value}
                measured |= {"lo": found.lo, "hi": found.hi, "p": found.p}
                facts = {"variant": variant, **dict(zip(by, key, strict=True))}
                rows.append(facts | {k: float(v) for k, v in measured.items()} | {"seeds": len(seeds), "n": a.shape[1]})
    table = pd.DataFrame(rows, columns=["variant", *by, "value", "base", "delta", "lo", "hi", "p", "seeds", "n"])
    adjusted = adjusted_apart(table)
    return table.assign(p_adj=adjusted, significant=adjusted < 0.05)


def _by_seed(part: pd.DataFrame) -> dict[float, np.ndarray]:
    """Seed -> what stands for each clip, averaged over the rows of that seed."""
    return {seed: np.mean(np.stack(list(rows["each"])).astype(float), axis=0) for seed, rows in part.groupby("seed", dropna=False)}


def standing(table: pd.DataFrame, what: str, unit: str = "") -> str:
    """How many of the differences of a table stand after correction, and which: such as "1 of 4 ... stands: ld motion +3.1 [1.0, 5.2]".
    An untrained encoder's do not count."""
    table = table[table["variant"].ne(UNTRAINED)]
    found = table[table["significant"]]
    named = [f"{row['variant']} {' '.join(map(str, row[what.split()]))} {shown(row, sign=True)}{unit}" for _, row in found.iterrows()]
    return f"{len(found)} of {len(table)} stand" + ("s" * (len(found) == 1)) + (f" ({'; '.join(named)})" if named else "")


def verdict(answers: pd.DataFrame, against: str = "baseline") -> str:
    """What the encoders reach in each `panel` of a table of answers and which differences from `against` stand, and what is left open."""
    rows = tabulate(answers)
    trained = over_seeds(rows[rows["encoder"].ne("random-init")], ["panel", "variant"])
    chance = rows.groupby("panel")["chance"].mean()
    span = lambda x: " to ".join(dict.fromkeys(f"{end:.0f}" for end in (x.min(), x.max())))
    ranges = [f"{panel} {span(part['value'])} (constant {chance[panel]:.0f})" for panel, part in trained.groupby("panel", sort=False)]
    unit = "AUROC" if rows["metric"].eq("auroc").all() else "accuracy"
    said, left = [f"{unit} in percent of {trained['variant'].nunique()} trained objectives: {', '.join(ranges)}"], []
    if against in set(answers["variant"]) and trained["variant"].nunique() > 1:
        table = differences(answers, against, ["panel"])
        said.append(f"of the differences from {against} {standing(table, 'panel')}")
        if not math.isnan(far := widest(table)):
            left.append(f"differences of up to {far:.0f} points (median) are compatible with the others")
    if answers["seed"].nunique() < 2:
        left.append("one seed: what another would change is not in the intervals")
    smoke = "Demonstration size, which decides nothing. " * bool(rows["smoke"].any())
    notes = sorted({str(note) for note in rows.get("note", pd.Series(dtype=object)).dropna()} - {""})
    text = "; ".join(said)
    return smoke + text[0].upper() + text[1:] + "." + (f" Not decided: {'; '.join(left + notes)}." if left + notes else "")


def widest(table: pd.DataFrame) -> float:
    """The difference that the undecided rows are typically compatible with: the median of their intervals' far ends; nan if none is. An
    untrained encoder's do not count."""
    left = table.loc[~table["significant"] & table["variant"].ne(UNTRAINED), ["lo", "hi"]].abs().max(axis=1)
    return float(left.median()) if len(left) else math.nan
