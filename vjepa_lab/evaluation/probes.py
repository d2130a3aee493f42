"""Probes on frozen features: what a linear map, one attention block or a nearest neighbour can read from an encoder that no longer learns.

Axes: b batch, c colour, f y x frames, rows, columns, n clips, t h w token grid, d channels, g heads trained side by side, k classes.

    train, test = (extract(encoder, data.open("synthetic", split), tokens=True) for split in ("train", "test"))
    linear(train, test, "hue").table()
    attentive(train, test, "motion").save("runs/micro-0")

Hyperparameters are chosen on a held-out fifth of *train*; the test labels are used for nothing but the final count. Every probe of a label
returns a `ProbeResult`; `ridge`, which reads a number, returns one row. A number means something beside its `controls` (chance, majority
class), the same probe on a random-init encoder, and `mean_frame_nn`, `frame_difference_nn`, which need no encoder at all.
"""

import math
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from vjepa_lab.evaluation.features import Features, device_for, extract, few_shot, origins_held_out, scaling
from vjepa_lab.evaluation.heads import AttentiveHead, LinearHead, ReleasedHead, StackedAdamW, divisor, pick, stack
from vjepa_lab.evaluation.scoring import ProbeResult, controls, paired, scored
from vjepa_lab.rope import positions

__all__ = ["Features", "ProbeResult", "attentive", "controls", "extract", "few_shot", "knn", "linear", "ridge"]

# ------------------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class _Recipe:
    """How a probe's heads are made and trained. candidates: (lr, wd) pairs; `together` of them are trained side by side."""

    probe: str
    make: type[nn.Module]
    classes: int
    candidates: Sequence[tuple[float, float]]
    epochs: int
    batch: int
    options: dict = field(default_factory=dict)
    together: int = 64
    warmup: float = 0.0
    constant: bool = False

    def factor(self, done: float) -> float:
        """Learning rate relative to its peak when `done` (0 to 1) of the training is over."""
        if done < self.warmup:
            return (done + 1e-3) / (self.warmup + 1e-3)
        return 1.0 if self.constant else 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup)))


@dataclass(frozen=True, eq=False)
class _Inputs:
    """What a head reads of the clips, [n d] or [n tokens d], moved and converted batch by batch."""

    x: Tensor
    device: torch.device
    add: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> Tensor:
        part = self.x[rows].to(self.device).float()
        return part if self.add is None else part + self.add


def _train(recipe: _Recipe, candidates: Sequence[tuple[float, float]], x: _Inputs, y: Tensor, rows: Tensor, seed: int, bar) -> nn.Module:
    """One head per (lr, wd), trained on the clips `rows` in an order that the seed alone decides; y holds all labels."""
    generator = torch.Generator().manual_seed(seed)
    head = recipe.make(1, x.x.shape[-1], recipe.classes, generator, **recipe.options)
    head = stack(head, len(candidates)).to(x.device)
    optimiser = StackedAdamW(head, candidates)
    steps = math.ceil(len(rows) / recipe.batch)
    for epoch in range(recipe.epochs):
        order = rows[torch.randperm(len(rows), generator=generator)]
        for i, part in enumerate(order.split(recipe.batch)):
            logits, target = head(x[part]), y[part].to(x.device)
            loss = F.cross_entropy(logits.flatten(0, 1), target.repeat(len(logits)), reduction="sum") / len(part)
            loss.backward()
            optimiser.step(recipe.factor((epoch + i / steps) / recipe.epochs))
        bar.update()
    return head


@torch.no_grad()
def _logits(head: nn.Module, x: _Inputs, rows: Tensor) -> Tensor:
    """Logits [g n k] of the clips `rows`, on the CPU."""
    return torch.cat([head(x[part]).cpu() for part in rows.split(256)], 1)


def _validate(heads: nn.Module, group: Sequence[tuple[float, float]], x: _Inputs, y: Tensor, rows: Tensor) -> list[dict]:
    logits = _logits(heads, x, rows)
    top1 = 100 * (logits.argmax(-1) == y[rows]).double().mean(1)
    loss = torch.stack([F.cross_entropy(each, y[rows]) for each in logits])
    top1 = top1.masked_fill(~loss.isfinite(), 0.0)  # a head that diverged must not win
    return [
        {"lr": lr, "wd": wd, "val_top1": float(a), "val_loss": float(b)}
        for (lr, wd), a, b in zip(group, top1, loss.nan_to_num(math.inf), strict=True)
    ]


def _choose(recipe: _Recipe, x: _Inputs, y: Tensor, origin: Tensor, val: float, seed: int, bar) -> tuple[nn.Module, dict, list[dict]]:
    """Train every candidate on a part of train, score it on the rest -> the best head, its hyperparameters, all scores."""
    held = origins_held_out(y, origin, val, seed)
    if not held.any():
        raise ValueError(
            f"{len(y)} training clips of {len(y.unique())} classes leave none to choose among {len(recipe.candidates)} candidates on "
            f"(val={val}); pass a single learning rate and decay, or more clips"
        )
    fit, held = (~held).nonzero()[:, 0], held.nonzero()[:, 0]
    best, scores, chosen = None, [], {}
    for start in range(0, len(recipe.candidates), recipe.together):
        group = recipe.candidates[start : start + recipe.together]
        heads = _train(recipe, group, x, y, fit, seed, bar)
        scores += (fresh := _validate(heads, group, x, y, held))
        i = max(range(len(fresh)), key=lambda i: _merit(fresh[i]))
        if best is None or _merit(fresh[i]) > _merit(chosen):
            best, chosen = pick(heads, i), fresh[i]
    return best, chosen | {"val_n": len(held)}, scores


def _merit(score: dict) -> tuple[float, float]:
    return score["val_top1"], -score["val_loss"]


def _probe(
    recipe: _Recipe, train: Features, test: Features, label: str, x: tuple[Tensor, Tensor], add: Tensor | None = None, *,
    val: float, refit: bool, seed: int, benchmark: str | None, device, progress: bool,
) -> ProbeResult:  # fmt: skip
    """Choose (lr, wd) on a held-out part of train, train the chosen head on all of train (or keep it), score it on test."""
    device = device_for(device)
    seen, unseen = (_Inputs(part, device, None if add is None else add.to(device)) for part in x)
    y, choose = train.labels[label], len(recipe.candidates) > 1
    refit = refit or not choose
    passes = refit + choose * math.ceil(len(recipe.candidates) / recipe.together)
    with tqdm(total=passes * recipe.epochs, desc=f"{recipe.probe} probe: {label}", unit="epoch", disable=not progress, leave=False) as bar:
        selected, search = dict(zip(("lr", "wd"), recipe.candidates[0], strict=True)), []
        if choose:
            head, selected, search = _choose(recipe, seen, y, train.origin, val, seed, bar)
        if refit:
            head = _train(recipe, [(selected["lr"], selected["wd"])], seen, y, torch.arange(len(y)), seed, bar)
    probability = _logits(head, unseen, torch.arange(len(test)))[0].softmax(-1)
    selected |= {"refit": refit, "epochs": recipe.epochs}
    return replace(scored(probability, y, test, label, recipe.probe, benchmark, seed, selected, search), head=head.cpu())


@contextmanager
def _threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --------------------------------------------------------------------------------------------------------------------- probes


def linear(
    train: Features,
    test: Features,
    label: str = "class",
    *,
    lrs: Sequence[float] = (1e-3, 3e-3, 1e-2, 3e-2),
    wds: Sequence[float] = (0.0, 0.1, 1.0),
    epochs: int = 100,
    batch: int = 256,
    val: float = 0.2,
    refit: bool = True,
    seed: int = 0,
    name: str = "linear",
    benchmark: str | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> ProbeResult:
    """Softmax regression on mean-pooled features, standardised with the training set's mean and deviation.

    All lr x wd heads are trained at once by AdamW with a cosine; the best on a held-out, stratified part `val` of train wins (ties: lower
    loss) and is trained again on all of train (`refit`), or kept as it is.
    """
    train, test = paired(train, test, label)
    x = _standardise(train.pooled, test.pooled)
    recipe = _Recipe(name, LinearHead, len(train.classes[label]), list(product(lrs, wds)), epochs, batch)
    with _threads(1):  # matrices this small: more threads would spend the time waiting for one another
        return _probe(recipe, train, test, label, x, val=val, refit=refit, seed=seed, benchmark=benchmark, device=device, progress=progress)


def stepwise(train: Features, test: Features, label: str = "class", **options) -> ProbeResult:
    """`linear` on the mean over space at each time step, side by side: it sees what a mean over time hides, such as the order of events.

    Needs features extracted with tokens=True.
    """
    return linear(train.by_step(), test.by_step(), label, name="stepwise", **options)


VJEPA = {"lrs": (3e-4, 1e-3, 3e-3), "wds": (0.01,), "epochs": 20, "warmup": 0.1}
ATTENTIVE = {  # form: name in the rows, head, attention heads (None: of 64 channels each), training
    "vjepa": ("attentive", AttentiveHead, None, VJEPA),
    "vjepa2": ("attentive-vjepa2", AttentiveHead, 16, VJEPA | {"options": {"depth": 4}, "together": 1}),
    "released": ("attentive-released", ReleasedHead, 8, {"lrs": (1e-3,), "wds": (0.01,), "epochs": 50, "constant": True}),
}


def attentive(
    train: Features,
    test: Features,
    label: str = "class",
    *,
    form: Literal["vjepa", "vjepa2", "released"] = "vjepa",
    lrs: Sequence[float] | None = None,
    wds: Sequence[float] | None = None,
    epochs: int | None = None,
    batch: int = 64,
    with_positions: bool = False,
    val: float = 0.2,
    refit: bool = True,
    seed: int = 0,
    benchmark: str | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> ProbeResult:
    """Attention over all tokens; needs features extracted with tokens=True.

    form:
      vjepa     one cross-attention block with a learned query (V-JEPA); heads of 64 channels.
      vjepa2    three self-attention blocks before it (V-JEPA 2), 16 heads or the next smaller number that divides d. Some 1000 times
                the work of `vjepa` per token: for a GPU, or for few clips.
      released  class token, one 8-head attention, residual, LN, linear; lr 1e-3, decay .01, no schedule, 50 epochs, nothing selected:
                the published code of arXiv:2605.17165.
    with_positions: add a fixed 3-D sine-cosine embedding to the tokens. An encoder's tokens usually carry their place already; without
      either, `vjepa` and `released` cannot see the order of tokens.
    Selection and refit as in `linear`.
    """
    train, test = paired(train, test, label)
    if train.tokens is None or test.tokens is None:
        raise ValueError("the attentive probe reads all tokens, these features hold their mean only; extract(..., tokens=True)")
    if form not in ATTENTIVE:
        raise ValueError(f"form={form!r}, expected one of {', '.join(map(repr, ATTENTIVE))}")
    probe, make, heads, how = ATTENTIVE[form]
    how = how | {name: value for name, value in {"lrs": lrs, "wds": wds, "epochs": epochs}.items() if value is not None}
    candidates, dim = list(product(how.pop("lrs"), how.pop("wds"))), train.tokens.shape[-1]
    options = how.pop("options", {}) | {"heads": divisor(dim, heads or max(1, dim // 64))}
    recipe = _Recipe(probe, make, len(train.classes[label]), candidates, batch=batch, options=options, **how)
    add = positions(train.grid, dim) if with_positions else None
    x = (train.tokens, test.tokens)
    return _probe(
        recipe, train, test, label, x, add, val=val, refit=refit, seed=seed, benchmark=benchmark, device=device, progress=progress
    )


def knn(
    train: Features,
    test: Features,
    label: str = "class",
    *,
    ks: Sequence[int] = (1, 5, 10, 20),
    temperature: float = 0.07,
    benchmark: str | None = None,
) -> ProbeResult:
    """Weighted k nearest neighbours by cosine on standardised mean-pooled features, votes exp(cosine / temperature) (Wu et al. 2018, DINO).

    k is chosen by leaving one out of train: one file, or the recording that several were cut from.
    """
    train, test = paired(train, test, label)
    x, z = (F.normalize(part) for part in _standardise(train.pooled, test.pooled))
    y, classes, most = train.labels[label], len(train.classes[label]), min(max(ks), len(x) - 1)
    ks = [k for k in ks if k <= most] or [most]

    def neighbours(clips: Tensor, origin: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cosines and places of the nearest training clips, [n most] each; none of a clip's own `origin`, where that is said."""
        found = []
        for rows in torch.arange(len(clips)).split(1024):  # a whole table of cosines would be 100 GB for 160 000 clips
            near = clips[rows] @ x.T
            if origin is not None:
                near.masked_fill_(origin[rows, None] == origin, -torch.inf)
            found.append(near.topk(most))
        return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])

    def vote(near: tuple[Tensor, Tensor], k: int) -> Tensor:
        closeness, place = (each[:, :k] for each in near)
        weight = ((closeness - 1) / temperature).exp()
        return torch.zeros(len(place), classes).scatter_add_(1, y[place], weight) / weight.sum(1, keepdim=True)

    among = neighbours(x, train.origin if len(train.origin.unique()) > 1 else train.index)
    search = [{"k": k, "val_top1": 100 * float((vote(among, k).argmax(1) == y).double().mean())} for k in ks]
    selected = max(search, key=lambda row: row["val_top1"]) | {"val_n": len(x)}
    return scored(vote(neighbours(z), selected["k"]), y, test, label, "knn", benchmark, 0, selected, search)


ALPHAS = tuple(10.0**i for i in range(-2, 6))


def ridge(train: Features, test: Features, targets: tuple[Tensor, Tensor], *, name: str, alphas: Sequence[float] = ALPHAS) -> dict:
    """R^2 of a ridge regression on standardised mean-pooled features, for a factor with values `targets` ([n] or [n m], of train and test).

    Fitted by `ridge_map`. Returns one row; R^2 is 1 minus the error relative to the test
    targets' variance (both summed over the m numbers of a value), negative for a regression worse than their mean. Its 95 % interval is
    the delta method's for a ratio of two means over the test clips.
    """
    x, z = (part.double() for part in _standardise(train.pooled, test.pooled))
    y, y_test = (part.double().reshape(len(part), -1) for part in targets)
    if len(y) != len(x) or len(y_test) != len(z):
        raise ValueError(f"ridge of {name!r}: {len(y)} and {len(y_test)} targets for {len(x)} and {len(z)} clips")
    weight, mean, alpha = ridge_map(x, y, alphas)
    guess = z @ weight + mean
    error, spread = ((y_test - guess) ** 2).sum(1), ((y_test - y_test.mean(0)) ** 2).sum(1)  # [n] each
    share = error.mean() / spread.mean()
    half = 1.96 * float((error - share * spread).std() / spread.mean()) / math.sqrt(len(z))
    r2 = 1 - float(share)
    about = {"benchmark": f"{test.name}/{name}", "probe": "ridge", "metric": "r2", "encoder": test.encoder}
    return about | {"value": r2, "n": len(z), "lo": r2 - half, "hi": r2 + half, "alpha": alpha}


def ridge_map(x: Tensor, y: Tensor, alphas: Sequence[float] = ALPHAS) -> tuple[Tensor, Tensor, float]:
    """Ridge regression of y [n m] on centred x [n d]: its weight [d m], the mean of y [m], and the alpha of the least leave-one-out error
    over all m together, in closed form."""
    mean = y.mean(0)
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    uy = u.T @ (y - mean)  # [r m]

    def left_out(alpha: float) -> float:
        shrink = s**2 / (s**2 + alpha)
        leverage = (u**2 * shrink).sum(1) + 1 / len(y)  # the mean is fitted as well
        return float((((y - mean - u @ (shrink[:, None] * uy)) / (1 - leverage).clamp_min(1e-9)[:, None]) ** 2).mean())

    alpha = min(alphas, key=left_out)
    return vt.T @ ((s / (s**2 + alpha))[:, None] * uy), mean, alpha


def _standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the training set's mean and deviation per channel; a channel that is constant there becomes zero."""
    mean, scale = scaling(train)
    return (train - mean) * scale, (test - mean) * scale
