"""What shape features have: rank, spectrum, likeness to others, and how tokens move in time. Functions of tensors, nothing else.

Axes: n clips, q views of a clip, t h w token grid, d channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vjepa_lab.training.processes import exact

# --------------------------------------------------------------------------------------------------------------- of one representation


def rankme(z: Tensor, centre: bool = True) -> float:
    """Effective rank of features [n d]: exp of the entropy of the singular values' shares (Garrido et al. 2023, arXiv:2210.02885).

    k for features of k equally strong directions; at most min(n, d). The shares carry 1e-7 as in that paper. Without `centre` the mean
    counts as a direction.
    """
    s = torch.linalg.svdvals(_centred(z) if centre else exact(z))
    p = s / s.sum().clamp_min(1e-12) + 1e-7
    return float((-p * p.log()).sum().exp())


def participation_ratio(z: Tensor) -> float:
    """(sum l)^2 / sum l^2 of the eigenvalues l of the covariance of features [n d]: k for k equally strong directions."""
    variances = torch.linalg.svdvals(_centred(z)) ** 2
    return float(variances.sum() ** 2 / (variances**2).sum().clamp_min(1e-30))


def alpha_req(z: Tensor, first: int = 11, last: int = 100) -> float:
    """Decay a of the covariance spectrum of features [n d], l_j ~ j^-a, fitted by least squares on log j for j = first .. last.

    (Agrawal et al. 2022, alpha-ReQ.) Near 1 is reported to be healthy; larger: few directions carry all. The range is cut to the
    eigenvalues that are there. Raises ValueError where fewer than 4 remain.
    """
    eigenvalues = torch.linalg.svdvals(_centred(z)) ** 2
    last = min(last, z.shape[1], len(z) - 1)
    if last - first < 3:
        raise ValueError(f"alpha-ReQ needs 4 eigenvalues from number {first} on; {len(z)} clips of {z.shape[1]} channels have {last}")
    j = torch.arange(first, last + 1, dtype=torch.float64).log()
    y = eigenvalues[first - 1 : last].clamp_min(1e-30).log()
    j = j - j.mean()
    return -float((j * y).sum() / (j**2).sum())


def lidar(views: Tensor, delta: float = 1e-4) -> float:
    """Effective rank of what tells clips apart, of features [n q d] of q views of each clip (Thilak et al. 2023, arXiv:2312.04000).

    exp of the entropy of the eigenvalues' shares of Sw^-1/2 Sb Sw^-1/2, Sb the covariance of the clips' means (n - 1), Sw the mean
    covariance within clips (q - 1) plus delta I; at most n - 1.
    """
    if views.shape[1] < 2:
        raise ValueError(f"LiDAR compares views of the same clip: expected at least 2 of each, got {views.shape[1]}")
    views = exact(views)
    means = views.mean(1)
    between = torch.cov(means.T)
    inner = (views - means[:, None]).flatten(0, 1)
    within = inner.T @ inner / (len(views) * (views.shape[1] - 1)) + delta * torch.eye(views.shape[-1]).to(views)
    values, vectors = torch.linalg.eigh(within)
    whiten = vectors * values.rsqrt() @ vectors.T
    eigenvalues = torch.linalg.eigvalsh(whiten @ between @ whiten).clamp_min(0)
    p = eigenvalues / eigenvalues.sum().clamp_min(1e-30) + 1e-7
    return float((-p * p.log()).sum().exp())


def _centred(z: Tensor) -> Tensor:
    z = exact(z)
    return z - z.mean(0)


# ------------------------------------------------------------------------------------------------------------- of two representations


def cka(x: Tensor, y: Tensor, unbiased: bool = True) -> float:
    """Linear centred kernel alignment of features [n d] and [n e] of the same clips: 1 for a rotated and scaled copy, 0 for nothing shared.

    (Kornblith et al. 2019, arXiv:1905.00414.) unbiased: with the HSIC estimator of Song et al. 2012, which independent features bring to 0
    on average however many channels they have; the plain one gives about d / n. Raises ValueError for fewer than 4 clips.
    """
    if len(x) != len(y) or len(x) < 4:
        raise ValueError(f"CKA compares features of the same 4 or more clips; got {len(x)} and {len(y)}")
    x, y = _centred(x), _centred(y)
    hsic = _hsic if unbiased else lambda a, b: (a.T @ b).square().sum()
    own, other = hsic(x, x), hsic(y, y)
    return float(hsic(x, y) / (own * other).sqrt()) if own > 0 and other > 0 else math.nan


def _hsic(x: Tensor, y: Tensor) -> Tensor:
    """HSIC_1 of the linear kernels of x [n d] and y [n e], in O(n d e): no n x n kernel is made."""
    n, kx, ky = len(x), x.square().sum(1), y.square().sum(1)
    rows_x, rows_y = x @ x.sum(0) - kx, y @ y.sum(0) - ky  # row sums of the kernels without their diagonals
    trace = (x.T @ y).square().sum() - (kx * ky).sum()
    total = rows_x.sum() * rows_y.sum() / ((n - 1) * (n - 2))
    return (trace + total - 2 / (n - 2) * (rows_x * rows_y).sum()) / (n * (n - 3))


def cross_correlation(x: Tensor, y: Tensor) -> float:
    """Mean absolute correlation of every channel of x [n d] with every channel of y [n e]; a constant channel correlates with nothing."""
    x, y = (z / z.norm(dim=0).clamp_min(1e-12) for z in (_centred(x), _centred(y)))
    return float((x.T @ y).abs().mean())


# -------------------------------------------------------------------------------------------------------------------------- in time


@dataclass
class Motion:
    """How tokens [b t h w d] move, summed over batches: channel by channel, so that halves of the channels can be asked for, too."""

    count: int = 0
    total: Tensor | float = 0.0  # sums over tokens [d]
    square: Tensor | float = 0.0
    within: Tensor | float = 0.0  # variance over time, summed over clips and places [d]
    places: int = 0
    bends: float = 0.0  # cosines of successive steps, and how many
    turns: int = 0
    lengths: float = 0.0
    steps: int = 0

    def add(self, z: Tensor) -> None:
        tokens = exact(z.flatten(0, 3))
        self.count += len(tokens)
        self.total = self.total + tokens.sum(0).cpu()
        self.square = self.square + tokens.square().sum(0).cpu()
        self.within = self.within + exact(z.var(1, correction=0)).sum((0, 1, 2)).cpu()
        self.places += z[:, 0, ..., 0].numel()
        step = z.diff(dim=1)
        cosine = F.cosine_similarity(step[:, 1:], step[:, :-1], dim=-1)
        self.bends, self.turns = self.bends + float(cosine.sum()), self.turns + cosine.numel()
        length = step.norm(dim=-1)
        self.lengths, self.steps = self.lengths + float(length.sum()), self.steps + length.numel()

    def temporal_variance(self, channels=slice(None)) -> float:
        """Share of all variance that is change over time at one place of one clip: 0 stands still, 1 is change alone."""
        spread = self._variance()[channels].sum()
        return float((self.within / self.places)[channels].sum() / spread) if spread > 0 else math.nan

    @property
    def straightness(self) -> float:
        """Mean cosine of successive steps: 1 on a straight line, about -1/2 for noise that is independent at each time."""
        return self.bends / self.turns if self.turns else math.nan

    @property
    def speed(self) -> float:
        """Mean length of a step, relative to the spread of all tokens."""
        spread = float(self._variance().sum().sqrt())
        return self.lengths / self.steps / spread if self.steps and spread else math.nan

    @property
    def std(self) -> float:
        """Mean standard deviation of the channels of tokens over clips, times and places: towards 0 when the representation collapses.

        That of mean-pooled features over clips (`evaluation.features.spread`) is another, smaller number."""
        return float(self._variance().sqrt().mean())

    def _variance(self) -> Tensor:
        return (self.square / self.count - (self.total / self.count) ** 2).clamp_min(0)
