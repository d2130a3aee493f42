"""Gradients of several losses over micro-batches, and what their inner products say once sampling noise is taken out.

Axes: k l losses, m micro-batches, p parameters of the student.

A gradient of few clips is mostly noise. Noise adds to a squared norm and, where two losses see the same clips, to their inner product; both
distort a plain cosine. Micro-batches with clips and masks of their own give inner products without it: products of different micro-batches
only, averaged. Every number here is a function of the Gramian of micro-batch gradients [k m l m], and its interval comes from leaving out
one micro-batch at a time (jackknife, Student's t).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats as sps
from torch import Tensor, nn

from vjepa_lab.evidence.stats import Interval
from vjepa_lab.weighting import flat_gradient

Gramian = np.ndarray
"""Inner products of micro-batch gradients: float64 [k m l m]."""


@dataclass(frozen=True, eq=False)
class Gradients:
    """Gradients [k m p] of the losses `names`, one row per micro-batch; `groups` are slices of p, by depth and "all"."""

    names: tuple[str, ...]
    values: Tensor
    groups: Mapping[str, slice]

    def gram(self, group: str = "all", metric: Tensor | None = None) -> Gramian:
        """Inner products on one group of parameters, in the metric diag(`metric` [p]) if given (an optimiser's step sizes)."""
        part = self.groups[group]
        rows = self.values[..., part].flatten(0, 1)
        scaled = rows if metric is None else rows * metric[part]
        k, m = self.values.shape[:2]
        return (scaled @ rows.T).cpu().double().numpy().reshape(k, m, k, m)


def weight_groups(encoder: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The encoder's parameters by depth: patch_embed, block 0 ..., norm."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in encoder.named_parameters():
        first, *rest = name.split(".")
        groups.setdefault(f"block {rest[0]}" if first == "blocks" else "norm" if first == "norms" else first, []).append(parameter)
    return groups


def flat_groups(groups: Mapping[str, Sequence[nn.Parameter]]) -> tuple[list[nn.Parameter], dict[str, slice]]:
    """All parameters in the groups' order, and the slice of each group in the flat vector; "all" is the whole."""
    parameters = [p for group in groups.values() for p in group]
    ends = np.cumsum([0] + [sum(p.numel() for p in group) for group in groups.values()])
    slices = {name: slice(int(a), int(b)) for name, a, b in zip(groups, ends, ends[1:], strict=False)}
    return parameters, slices | {"all": slice(0, int(ends[-1]))}


def collect(
    groups: Mapping[str, Sequence[nn.Parameter]], losses: Callable[[int], Mapping[str, Tensor]], micro_batches: int, progress=iter
) -> Gradients:
    """Gradients of {name: loss} = losses(m) for each micro-batch m. Needs losses x micro-batches x parameters x 4 bytes."""
    parameters, slices = flat_groups(groups)
    values, names = None, ()
    for m in progress(range(micro_batches)):
        found = losses(m)
        if values is None:
            names, device = tuple(found), parameters[0].device
            values = torch.empty(len(names), micro_batches, slices["all"].stop, device=device)
        for k, name in enumerate(names):
            values[k, m] = flat_gradient(found[name], parameters)
    return Gradients(names, values, slices)


def combined(gram: Gramian, rows: np.ndarray) -> Gramian:
    """The Gramian of sums of losses, one per row of weights [j k]."""
    return np.einsum("ak,kmln,bl->ambn", rows, gram, rows, optimize=True)


# ---------------------------------------------------------------------------------------------------------------- noise taken out


def products(gram: Gramian) -> np.ndarray:
    """Unbiased inner products of the mean gradients [k l]: over pairs of different micro-batches."""
    m = gram.shape[1]
    whole, same = gram.sum((1, 3)), np.einsum("kmlm->kl", gram)
    return (whole - same) / (m * (m - 1))


def cosine(gram: Gramian, a: int, b: int) -> float:
    """Cosine of two mean gradients without the noise of sampling; nan where a squared norm is not above zero: there is only noise."""
    u = products(gram)
    return float(u[a, b] / np.sqrt(u[a, a] * u[b, b])) if u[a, a] > 0 and u[b, b] > 0 else float("nan")


def plain_cosine(gram: Gramian, a: int, b: int) -> float:
    """Cosine of two mean gradients as they are, noise and all."""
    mean = gram.mean((1, 3))
    norm = np.sqrt(mean[a, a] * mean[b, b])
    return float(mean[a, b] / norm) if norm > 0 else float("nan")


def shrunk_cosine(gram: Gramian, a: int, b: int) -> float:
    """Inner product without noise over norms with it: never nan, its sign is right on average, its size too small where noise is large.

    For gradients that few clips hardly tell from noise, such as a read-out's.
    """
    norm = np.sqrt(np.prod([gram[k].mean((0, 2))[k] for k in (a, b)]))
    return float(products(gram)[a, b] / norm) if norm > 0 else float("nan")


def ratio(gram: Gramian, a: int, b: int) -> float:
    """Norm of mean gradient b to that of a, without noise; nan where there is only noise."""
    u = products(gram)
    return float(np.sqrt(u[b, b] / u[a, a])) if u[a, a] > 0 and u[b, b] > 0 else float("nan")


def split(gram: Gramian, main: int, other: int, halves: np.ndarray | None = None) -> tuple[float, float, float]:
    """Shares (help, harm, neutral) of the energy of gradient `other`, seen from the main loss (Dery et al. 2021, arXiv:2108.11346).

    Along each direction spanned by half of the main loss's micro-batch gradients, `other` helps where it has the sign of the mean main
    gradient and harms where it has the opposite one; the rest of it is neutral. `other` is read from the other half of the micro-batches,
    both ways round; energies and norm are without noise, so a share may come out slightly below zero.

    halves  0 or 1 for each micro-batch [m]: the half that it belongs to; by default they take turns. Both of 2 or more, else ValueError.
    """
    shares = [_split(gram, main, other, *sides) for sides in _sides(gram, halves)]
    return tuple(np.mean(shares, axis=0))


def _split(gram: Gramian, main: int, other: int, basis: np.ndarray, held: np.ndarray) -> tuple[float, float, float]:
    directions, pull = _span(gram, main, basis)
    along = directions @ gram[main][np.ix_(basis, [other], held)][:, 0]  # [i held]
    energy, total = _pairs(along, along), _norm(gram, other, held)
    same = np.sign(along.mean(1)) == np.sign(pull)
    help_, harm = energy[same].sum() / total, energy[~same].sum() / total
    return help_, harm, 1 - help_ - harm


def neutral_cosine(gram: Gramian, main: int, target: int, other: int, halves: np.ndarray | None = None) -> float:
    """`shrunk_cosine` of gradient `target` with what is left of `other` outside the span of the main loss's micro-batch gradients.

    The span is of one half of the micro-batches, the rest is read from the other half, both ways round (`halves` as in `split`).
    """
    return float(np.mean([_neutral_cosine(gram, main, target, other, *sides) for sides in _sides(gram, halves)]))


def _neutral_cosine(gram: Gramian, main: int, target: int, other: int, basis: np.ndarray, held: np.ndarray) -> float:
    directions, _ = _span(gram, main, basis)
    seen = {k: directions @ gram[main][np.ix_(basis, [k], held)][:, 0] for k in (target, other)}
    block = lambda a, b: gram[a][np.ix_(held, [b], held)][:, 0]
    both = block(target, other)
    inner = (both.sum() - np.trace(both)) / (len(held) * (len(held) - 1)) - _pairs(seen[target], seen[other]).sum()
    rest = block(other, other).mean() - (seen[other].mean(1) ** 2).sum()
    square = rest * block(target, target).mean()
    return inner / np.sqrt(square) if square > 0 else float("nan")


def taking_turns(m: int) -> np.ndarray:
    """The half, 0 or 1, that each of m micro-batches belongs to: [m]."""
    return np.arange(m) % 2


def _sides(gram: Gramian, halves: np.ndarray | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two halves of the micro-batches, (basis, held out) both ways round."""
    halves = taking_turns(gram.shape[1]) if halves is None else halves
    first, second = np.flatnonzero(halves == 0), np.flatnonzero(halves == 1)
    if min(len(first), len(second)) < 2:
        raise ValueError(
            f"help, harm and neutral parts need at least 2 micro-batches in each half, got {len(first)} and {len(second)}; "
            "measure on 4 or more, with a jackknife on 6 or more"
        )
    return [(first, second), (second, first)]


def _span(gram: Gramian, main: int, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [i basis] of an orthonormal basis of the main loss's gradients, and the mean main gradient along each direction [i]."""
    block = gram[main][np.ix_(basis, [main], basis)][:, 0]
    values, vectors = np.linalg.eigh(block)
    kept = values > 1e-8 * max(values.max(), 1e-300)
    directions = (vectors[:, kept] / np.sqrt(values[kept])).T
    return directions, directions @ block.mean(1)


def _pairs(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Unbiased product of the means of x and y [i m] over different micro-batches: [i]."""
    m = x.shape[1]
    return (x.sum(1) * y.sum(1) - (x * y).sum(1)) / (m * (m - 1))


def _norm(gram: Gramian, k: int, held: np.ndarray) -> float:
    block = gram[k][np.ix_(held, [k], held)][:, 0]
    norm = (block.sum() - np.trace(block)) / (len(held) * (len(held) - 1))
    return norm if norm > 0 else float("nan")


def jackknife(
    statistic: Callable[..., float | Sequence[float]], gram: Gramian, confidence: float = 0.95, *, halved: bool = False
) -> Interval:
    """A statistic of the Gramian with the interval over micro-batches: leave one out, Student's t with m - 1 degrees of freedom.

    halved  for statistics of two halves, as `split` and `neutral_cosine` are: called as statistic(gram, halves), each micro-batch stays in
            its half while another is left out. Dealt out anew, all that come after that one would change sides, which widens intervals.
    """
    m = gram.shape[1]
    halves = (taking_turns(m),) if halved else ()
    whole = np.asarray(statistic(gram, *halves), float)
    keep = [np.delete(np.arange(m), r) for r in range(m)]
    left = np.array([statistic(gram[:, rows][:, :, :, rows], *(side[rows] for side in halves)) for rows in keep], float)
    error = np.sqrt((m - 1) / m * ((left - left.mean(0)) ** 2).sum(0))
    half = sps.t.ppf(0.5 + confidence / 2, m - 1) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * sps.t.sf(np.abs(whole) / error, m - 1)
    return Interval(whole, whole - half, whole + half, p)
