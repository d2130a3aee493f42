"""What a probe found, scored once: rows with intervals beside predictors that ignore their input, per-class tables, predictions.

Axes: n clips, k classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from vjepa_lab.evaluation.features import Features
from vjepa_lab.evidence import results
from vjepa_lab.evidence.intervals import wilson
from vjepa_lab.files import replacing


@dataclass(frozen=True, eq=False, repr=False)
class ProbeResult:
    """What a probe found.

    rows: one dict per metric: benchmark, probe, metric, value, n, lo, hi, encoder, label, probe_seed. Accuracies in percent with their 95 %
      Wilson interval; balanced accuracy is the mean over the classes that occur in the test set, its interval Wilson's at the effective
      n = k^2 / sum_k(1 / n_k), which is n for equal classes.
    per_class: a row per class of the test set.  predictions: id (index in the source), recording (its number, where the
    set knows what was cut from one), label, top1, and margin: the probability of the
      label minus the largest other one, positive where the prediction is right (0: a tie).
    selected: the hyperparameters chosen, and by what.  search: every candidate.  controls: rows of predictors that ignore their input.
    head: the trained head, on the CPU; None for a probe without one, such as nearest neighbours.
    """

    rows: list[dict]
    per_class: pd.DataFrame
    predictions: pd.DataFrame
    selected: dict
    search: pd.DataFrame = field(default_factory=pd.DataFrame)
    controls: list[dict] = field(default_factory=list)
    head: nn.Module | None = None

    def value(self, metric: str = "top1") -> float:
        return next(row["value"] for row in self.rows if row["metric"] == metric)

    def table(self) -> pd.DataFrame:
        """Rows and controls with the column `flag`: which constant predictor a number cannot be told from, if any.

        A row that knows of no objective is called by its encoder.
        """
        table = pd.DataFrame([{"source": "run", "variant": row["encoder"]} | row for row in self.rows] + self.controls)
        return table.assign(flag=results.flag_constant(table))

    def save(self, run: str | Path) -> None:
        """Add the rows (with the controls) to the run folder's rows.csv and the predictions to its predictions/."""
        results.append_rows(run, self.rows + self.controls)
        name = "-".join(str(self.rows[0][key]) for key in ("benchmark", "probe", "encoder") if self.rows[0][key])
        path = Path(run) / "predictions" / f"{name.replace('/', '-').replace(', ', '-').replace(' ', '-')}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            self.predictions.to_parquet(part)

    def __repr__(self) -> str:
        columns = ["benchmark", "probe", "variant", "metric", "value", "lo", "hi", "n", "flag"]
        return self.table()[columns].to_string(index=False, na_rep="", float_format="{:.1f}".format)

    def _repr_html_(self) -> str:
        return self.table().to_html(index=False, float_format="{:.1f}".format)


def controls(train_labels: Tensor, test_labels: Tensor, classes: int | None = None, benchmark: str = "class") -> list[dict]:
    """Rows (source "constant") of predictors that ignore the clip: chance, the largest classes of train, the largest classes of test.

    Labels: long [n], no -1.  Values in percent of the test set. top1: chance is 1 / classes; top5 (from six classes on): the five largest
    classes, ranked by train or by test; balanced_accuracy: 1 / classes that occur in test, whatever is named.
    """
    classes = classes or int(torch.cat([train_labels, test_labels]).max()) + 1
    n, seen = len(test_labels), torch.bincount(test_labels, minlength=classes)
    ranked = {"majority-train": torch.bincount(train_labels, minlength=classes), "majority-test": seen}
    same = {"source": "constant", "benchmark": benchmark, "probe": "constant", "n": n}
    rows = [same | {"variant": "chance", "metric": "top1", "value": 100 / classes}]
    for metric, k in [("top1", 1), *[("top5", 5)] * (classes > 5)]:
        named = {name: counts.argsort(descending=True, stable=True)[:k] for name, counts in ranked.items()}
        rows += [same | {"variant": name, "metric": metric, "value": 100 * int(seen[top].sum()) / n} for name, top in named.items()]
    return [*rows, same | {"variant": "chance", "metric": "balanced_accuracy", "value": 100 / int((seen > 0).sum())}]


def scored(
    probability: Tensor, taught: Tensor, test: Features, label: str, probe: str, benchmark: str | None, seed: int, selected: dict,
    search: Sequence[dict] = (),
) -> ProbeResult:  # fmt: skip
    """Score class probabilities [n k] of the test clips: the only place where a probe meets test labels.

    taught: labels of the training clips, long, no -1; they are counted for the controls.  benchmark: by default `Features.benchmark`.
    The probabilities of several clips of one file are averaged: one prediction per file. The row then says how many segments and views.
    Raises ValueError for probabilities that are not finite: their argmax would count as a guess.
    """
    if not torch.isfinite(probability).all():
        lost = int((~torch.isfinite(probability)).any(1).sum())
        raise ValueError(
            f"{test.name}, {probe} probe: {lost} of {len(probability)} test clips have class probabilities that are not finite; "
            f"look for NaN in the features of {test.encoder} (a broken checkpoint, or bf16 where it overflows)"
        )
    test, probability = per_file(test, probability.cpu().double())
    y, names = test.labels[label], test.classes[label]
    about = {"benchmark": benchmark or test.benchmark(label), "probe": test.named(probe)}
    if test.clips != (1, 1):
        about |= {"segments": test.clips[0], "views": test.clips[1]}
    top1 = probability.argmax(1)
    per_class = _per_class(y, top1, names)

    measured = {"top1": (100 * (top1 == y).double().mean(), len(y))}
    if len(names) > 5:
        measured["top5"] = 100 * (probability.topk(5).indices == y[:, None]).any(1).double().mean(), len(y)
    measured["balanced_accuracy"] = per_class["top1"].mean(), len(per_class) ** 2 / (1 / per_class["n"]).sum()
    rows = []
    for metric, (value, size) in measured.items():
        lo, hi = map(float, wilson(float(value), size))
        row = about | {"metric": metric, "value": float(value), "n": len(y), "lo": lo, "hi": hi}
        rows.append(row | {"encoder": test.encoder, "label": label, "probe_seed": seed})

    others = probability.scatter(1, y[:, None], -torch.inf).amax(1)
    margin = (probability.gather(1, y[:, None])[:, 0] - others).float()
    clips = {"id": test.index} | ({} if test.recordings is None else {"recording": test.origin})
    predictions = pd.DataFrame(clips | {"label": y, "top1": top1, "margin": margin} | about | {"encoder": test.encoder})
    beside = controls(taught, y, len(names), about["benchmark"])
    return ProbeResult(rows, per_class, predictions, selected, pd.DataFrame(search), beside)


def per_file(features: Features, probability: Tensor) -> tuple[Features, Tensor]:
    """One row for each file, in the order of their places in the source: mean probabilities [files k] of the clips that share a place."""
    places, back = features.index.unique(return_inverse=True)
    if len(places) == len(features):
        return features, probability
    count = torch.bincount(back)
    mean = probability.new_zeros(len(places), probability.shape[1]).index_add_(0, back, probability) / count[:, None]
    first = torch.full_like(places, len(back)).scatter_reduce_(0, back, torch.arange(len(back)), "amin")
    return replace(features, tokens=None).subset(first), mean


def _per_class(y: Tensor, top1: Tensor, names: Sequence[str]) -> pd.DataFrame:
    """Accuracy within each class that occurs, in percent with its Wilson interval."""
    count, hits = (torch.bincount(each, minlength=len(names)) for each in (y, y[top1 == y]))
    there = count.nonzero()[:, 0]
    share = 100 * hits[there] / count[there]
    lo, hi = wilson(share, count[there])
    return pd.DataFrame({"class": there, "name": [names[i] for i in there], "n": count[there], "top1": share, "lo": lo, "hi": hi})


def paired(train: Features, test: Features, label: str) -> tuple[Features, Features]:
    """The clips of both that have the label.

    Raises ValueError where a side has no such label or no clip with it, and where the two sides number its classes differently, differ in
    channels or grid, are of other blocks, or of other encoders: nothing learnt on one could be asked on the other.
    """
    train, test = train.labelled(label), test.labelled(label)
    if train.classes[label] != test.classes[label]:
        raise ValueError(f"train and test number the classes of {label!r} differently; open both from the same class list")
    if train.pooled.shape[1] != test.pooled.shape[1] or train.grid != test.grid:
        shapes = [f"{part.pooled.shape[1]} channels on {part.grid}" for part in (train, test)]
        raise ValueError(f"train and test features differ in shape ({' and '.join(shapes)}); extract both with one encoder and clip size")
    if train.blocks != test.blocks:
        raise ValueError(f"train features are of blocks {train.blocks}, test features of {test.blocks}; extract both alike")
    if train.encoder != test.encoder:
        raise ValueError(f"train features are of {train.encoder!r}, test features of {test.encoder!r}; extract both with one encoder")
    return train, test
