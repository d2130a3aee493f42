"""A world small enough for the theory: counting objects, and which distinctions an auxiliary target must keep.

The theorem (No Unhealthy Representation Collapse; Yu et al. 2025, arXiv:2509.12249, after its abstract and code): in a deterministic world,
if a latent transition and an auxiliary target p are both learnt without error, two observations that the largest bisimulation of (world, p)
tells apart have different codes. It is one-sided (equivalent observations may merge or not), knows no momentum teacher and no
stop-gradient, and says nothing about gradients.

Here the world is finite, so the largest bisimulation is computed and every pair of observations is checked: nine cells with 0 to 8 objects,
511 observations; one action puts an object on the first free cell, the other takes the last one away. It is our own world, in the spirit
of the paper's pictures with 0 to 8 objects.
Axes: s seeds, o observations, a actions, d channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from vjepa_lab.evaluation.heads import Dense

CELLS = 9
MERGED = 0.02
"""Codes nearer than this share of their mean distance before training count as one. A transition trained alone brings them there slowly: in
1500 steps to 0.07 to 0.09 of it on average (3 seeds)."""
LEARNT = 0.05
"""Losses below this count as learnt: the transition's in units of the trained codes' mean squared distance (that codes shrink is no merit),
the target's in units of its variance."""


def observations() -> np.ndarray:
    """All ways to lay 0 to 8 objects on nine cells: bool [o cells]."""
    every = np.array(list(np.ndindex(*[2] * CELLS)), bool)
    return every[every.sum(1) < CELLS]


def transitions(seen: np.ndarray) -> np.ndarray:
    """Index of the observation after putting an object down and after taking one away: [o a]; nothing happens at 8 and at 0 objects."""
    place = {row.tobytes(): i for i, row in enumerate(seen)}
    more, less = seen.copy(), seen.copy()
    rows = np.arange(len(seen))
    few, some = seen.sum(1) < CELLS - 1, seen.any(1)
    more[rows[few], (~seen[few]).argmax(1)] = True
    less[rows[some], CELLS - 1 - seen[some, ::-1].argmax(1)] = False
    return np.array([[place[a.tobytes()], place[b.tobytes()]] for a, b in zip(more, less, strict=True)])


def bisimulation(after: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Class of each observation [o] in the largest bisimulation: equal targets [o ...], and successors [o a] in equal classes.

    Refines the partition by targets until every action leads from one class into one class.
    """
    classes = np.unique(target.reshape(len(target), -1), axis=0, return_inverse=True)[1].ravel()
    while True:
        signature = np.concatenate([classes[:, None], classes[after]], axis=1)
        finer = np.unique(signature, axis=0, return_inverse=True)[1].ravel()
        if finer.max() == classes.max():
            return finer
        classes = finer


@dataclass(frozen=True)
class Setting:
    """What is learnt: the transition, a target, or both. `target` names a column of `targets`; none: "" """

    name: str
    dynamics: bool
    target: str


SETTINGS = (
    Setting("dynamics + reward", True, "reward"),
    Setting("reward alone", False, "reward"),
    Setting("dynamics alone", True, ""),
    Setting("dynamics + one cell", True, "one cell"),
    Setting("dynamics + random target", True, "random"),
)


def targets(seen: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Auxiliary targets [o p]: 1 at four objects (the reward), whether the first cell is taken, random numbers for each observation."""
    reward = (seen.sum(1) == 4)[:, None].astype(np.float32)
    random = np.random.default_rng(seed).normal(size=(len(seen), 16)).astype(np.float32)
    return {"reward": reward, "one cell": seen[:, :1].astype(np.float32), "random": random}


def predicted(setting: Setting, seen: np.ndarray) -> np.ndarray:
    """Classes [o] that must have different codes: of the bisimulation; of the target alone where no transition is learnt."""
    target = targets(seen).get(setting.target, np.zeros((len(seen), 1)))
    after = transitions(seen) if setting.dynamics else np.arange(len(seen))[:, None]
    return bisimulation(after, target)


class Nets(nn.Module):
    """Encoder, transition and target head for s seeds side by side."""

    def __init__(self, seeds: Sequence[int], target: int, dim: int = 16, hidden: int = 128):
        super().__init__()
        self.encoder = Stack([CELLS, hidden, hidden, dim], seeds, 0)
        self.transition = Stack([dim + 2, hidden, dim], seeds, 1)
        self.head = Stack([dim, hidden, max(target, 1)], seeds, 2)

    def losses(self, seen: Tensor, after: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Transition loss [s], target loss [s] (zero without a target) and codes [s o d]."""
        z = self.encoder(seen.expand(len(self.encoder.layers[0].weight), -1, -1))
        actions = torch.eye(2).repeat_interleave(len(seen), 0).expand(len(z), -1, -1)
        ahead = self.transition(torch.cat([z.repeat(1, 2, 1), actions], -1))
        dynamics = (ahead - z[:, after.T.flatten()]).square().sum(-1).mean(1)
        known = (self.head(z) - target).square().mean((1, 2)) if target is not None else torch.zeros(len(z))
        return dynamics, known, z


class Stack(nn.Module):
    """s perceptrons side by side, each seed's weights drawn from that seed and `part`, layer by layer: x [s b d] -> [s b e]."""

    def __init__(self, widths: Sequence[int], seeds: Sequence[int], part: int):
        super().__init__()
        self.layers = nn.ModuleList()
        for i, (dim, out) in enumerate(pairwise(widths)):
            single = [Dense(1, dim, out, torch.Generator().manual_seed(1000 * seed + 10 * part + i), std=dim**-0.5) for seed in seeds]
            layer = Dense(len(seeds), dim, out, torch.Generator())
            layer.weight.data = torch.cat([each.weight.data for each in single])
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.gelu(layer(x))
        return self.layers[-1](x)


@dataclass(frozen=True, eq=False)
class Counting:
    """What came out.

    rows     per setting and seed: classes predicted; `apart`: share of the pairs that must differ and do; `far`, `near`: mean distance of
             the pairs that must differ and of those that may merge; `counts`: share of the codes' variance that the number of objects
             explains, the same question to every setting; losses at the end, in the units of `LEARNT`; `learnt`: all
             that the setting trains are; `cosine`: mean over training of the cosine of both losses' gradients on the encoder
    between  per setting: distance of the mean codes of two counts [9 9], mean over seeds
    must     per setting: share of the pairs of observations with these counts that must differ [9 9]
    curve    per setting and step: the cosine, mean over seeds with its 95 % interval where there are several
    Distances are in units of the untrained codes' mean distance.
    """

    rows: pd.DataFrame
    between: Mapping[str, np.ndarray]
    must: Mapping[str, np.ndarray]
    curve: pd.DataFrame


def count(
    seeds: Sequence[int] = (0, 1, 2), steps: int = 3000, settings: Sequence[Setting] = SETTINGS, *, lr: float = 1e-3, weights=(2.0, 10.0),
    progress: bool = True,
) -> Counting:  # fmt: skip
    """Train every setting with every seed on all observations at once (Adam, cosine to zero) and hold it against its bisimulation.

    weights  of the transition and of the target loss (the paper's consistency 2 and reward 10)
    """
    seen = observations()
    rows, between, must, curves = [], {}, {}, []
    for setting in tqdm(settings, desc="counting", unit="setting", disable=not progress):
        classes = predicted(setting, seen)
        codes, first, ends, cosines = _train(setting, seen, seeds, steps, lr, weights)
        distance = torch.cdist(codes, codes).numpy()
        scale, explained = _mean_distance(first), _explained(codes, seen.sum(1))
        rows += [
            {"setting": setting.name, "seed": seed, "classes": int(classes.max()) + 1, "steps": steps}
            | _held_against(distance[s] / scale[s], classes)
            | {"counts": explained[s]}
            | _ends(setting, ends[0][s], ends[1][s])
            | {"cosine": float(cosines[:, s].mean()) if cosines.size else np.nan}
            for s, seed in enumerate(seeds)
        ]
        between[setting.name] = _between(codes, seen, scale)
        must[setting.name] = _must(classes, seen)
        curves += [_curve(setting.name, cosines, steps)] if setting.dynamics and setting.target else []
    return Counting(pd.DataFrame(rows), between, must, pd.concat(curves, ignore_index=True) if curves else pd.DataFrame())


def _ends(setting: Setting, dynamics: float, target: float) -> dict[str, float | bool]:
    """Both losses at the end, nan for one that was not trained, and whether what was trained was learnt."""
    losses = {"dynamics": dynamics if setting.dynamics else np.nan, "target": target if setting.target else np.nan}
    trained = [dynamics] * setting.dynamics + [target] * bool(setting.target)
    return losses | {"learnt": all(loss < LEARNT for loss in trained)}  # a loss that diverged to nan is not below


CURVE = 50  # points of the gradient cosine over training


def _train(setting: Setting, seen: np.ndarray, seeds, steps: int, lr: float, weights):
    """Codes at the end and at the start [s o d], both losses at the end in the units of `LEARNT` [s], the gradients' cosine [points s]."""
    x, after = torch.tensor(seen, dtype=torch.float32) * 2 - 1, torch.tensor(transitions(seen))
    target = torch.tensor(targets(seen)[setting.target]) if setting.target else None
    nets = Nets(seeds, 0 if target is None else target.shape[1])
    optimizer = torch.optim.Adam(nets.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    first = nets.losses(x, after, target)[2].detach()
    cosines, both = [], setting.dynamics and target is not None
    for step in range(steps):
        dynamics, known, _ = nets.losses(x, after, target)
        if both and step % max(steps // CURVE, 1) == 0:
            cosines.append(_cosine(dynamics, known, list(nets.encoder.parameters())))
        optimizer.zero_grad()
        (weights[0] * setting.dynamics * dynamics + weights[1] * known).sum().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        dynamics, known, codes = nets.losses(x, after, target)
    apart = 2 * codes.var(1, correction=0).sum(-1)  # mean squared distance of two codes
    spread = 1.0 if target is None else target.var(correction=0)
    return codes, first, ((dynamics / apart).numpy(), (known / spread).numpy()), np.array(cosines)


def _cosine(a: Tensor, b: Tensor, parameters: list[nn.Parameter]) -> np.ndarray:
    """Cosine of two losses' gradients for each seed [s]: seeds share no parameter."""
    flat = [torch.cat([g.flatten(1) for g in torch.autograd.grad(loss.sum(), parameters, retain_graph=True)], 1) for loss in (a, b)]
    return F.cosine_similarity(*flat, dim=1).numpy()


def _mean_distance(codes: Tensor) -> np.ndarray:
    return torch.cdist(codes, codes).mean((1, 2)).numpy()


def _explained(codes: Tensor, counts: np.ndarray) -> np.ndarray:
    """Share of the variance of codes [s o d] that lies between the numbers of objects [o]: [s]."""
    rest = codes.clone()
    for k in np.unique(counts):
        rest[:, counts == k] -= codes[:, counts == k].mean(1, keepdim=True)
    return (1 - rest.square().sum((1, 2)) / (codes - codes.mean(1, keepdim=True)).square().sum((1, 2))).numpy()


def _held_against(distance: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """Distances of codes [o o] against the classes [o] that must differ."""
    pair = np.triu(np.ones_like(distance, bool), 1)
    must = (classes[:, None] != classes) & pair
    mean = lambda values, where: float(values[where].mean()) if where.any() else np.nan
    return {"apart": mean(distance > MERGED, must), "far": mean(distance, must), "near": mean(distance, pair & ~must)}


def _between(codes: Tensor, seen: np.ndarray, scale: np.ndarray) -> np.ndarray:
    counts = torch.tensor(seen.sum(1))
    means = torch.stack([codes[:, counts == k].mean(1) for k in range(CELLS)], 1)
    return (torch.cdist(means, means).numpy() / scale[:, None, None]).mean(0)


def _must(classes: np.ndarray, seen: np.ndarray) -> np.ndarray:
    counts, differ = seen.sum(1), classes[:, None] != classes
    return np.array([[differ[np.ix_(counts == i, counts == j)].mean() for j in range(CELLS)] for i in range(CELLS)])


def _curve(name: str, cosines: np.ndarray, steps: int) -> pd.DataFrame:
    from scipy import stats as sps

    mean, seeds = cosines.mean(1), cosines.shape[1]
    half = sps.t.ppf(0.975, seeds - 1) * cosines.std(1, ddof=1) / seeds**0.5 if seeds > 1 else np.full(len(mean), np.nan)
    at = np.arange(len(mean)) * max(steps // CURVE, 1)
    return pd.DataFrame({"setting": name, "step": at, "cosine": mean, "lo": mean - half, "hi": mean + half, "seeds": seeds})


def verdict(found: Counting, steps: int) -> str:
    """What the theorem says of what was learnt, what settings keep apart beside it, and what gradients say, computed from the rows."""
    rows, seeds = found.rows, found.rows["seed"].nunique()
    bound = rows[rows["learnt"] & rows["apart"].notna()]
    told = bound.groupby("setting", sort=False)[["apart", "classes"]].mean()
    said = ", ".join(f"{row.apart:.1%} for {name} ({row.classes:.0f} classes)" for name, row in told.iterrows())
    both = bound.loc[bound["setting"].str.startswith("dynamics + "), "apart"]  # the theorem is of a transition and a target, both learnt
    fits = ", as the theorem says" if both.min() > 0.99 else "; the theorem has none alike where the losses are zero" * (len(both) > 0)
    counts = ", ".join(f"{share:.0%} ({name})" for name, share in rows.groupby("setting", sort=False)["counts"].mean().items())
    turned = rows.groupby("setting", sort=False)["cosine"].mean().dropna()
    return (
        f"Verdict (counting toy, {seeds} seed{'s' * (seeds != 1)}, {steps} steps): where all that is trained is learnt "
        f"({len(rows[rows['learnt']])} of {len(rows)} runs), pairs of observations that must have different codes have them: "
        f"{said or 'no run got there'}{fits}. Untrained codes all differ; after training the number of objects explains {counts} of the "
        f"codes' variance."
        + f" Mean gradient cosine of target and transition on the way: {', '.join(f'{k} {x:+.2f}' for k, x in turned.items())}"
        * bool(len(turned))
        + ": a target can save distinctions that the transition would drop by pulling against it" * bool(len(turned) and (turned < 0).all())
        + "." * bool(len(turned))
        + " This cannot speak for video, which has no actions and no exact transition."
    )
