"""What several terms share: distances over channels, heads, checks of their fields."""

from dataclasses import field
from itertools import pairwise

import torch
from torch import Tensor, nn

from vjepa_lab.objective import Term
from vjepa_lab.values import check


class Distance(Term):
    """A term whose error is a distance between vectors, |.| in its equation.

    reduce  "mean": over channels, as V-JEPA computes it; "sum": the 1-norm as printed (Eq. 5, 9), larger by the number of channels
    """

    reduce: str = field(default="mean", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check(self, reduce=("mean", "sum"))

    def over_channels(self, x: Tensor) -> Tensor:
        """[... d] -> [...]."""
        return x.mean(-1) if self.reduce == "mean" else x.sum(-1)


def mlp(*widths: int, activation: type[nn.Module] = nn.GELU) -> nn.Sequential:
    """Linear layers from width to width with the activation between them."""
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1])


def two_layers(width: int, hidden: int, out: int) -> nn.Sequential:
    """A GELU head with one hidden layer; a linear one where `hidden` is 0."""
    return mlp(width, hidden, out) if hidden else mlp(width, out)


def positive(term: Term, *names: str) -> None:
    """Refuse a term whose named fields are not above zero."""
    for name in names:
        value = getattr(term, name)
        if not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"{type(term).__name__}({name}={value!r}): expected a number above 0")


def none_of(view) -> Tensor:
    """An empty map [b 0 h w] that gradients reach: what a term about change has to say of an image."""
    return view.z[:, :0].sum(-1)


def token_distance(view, of: Tensor, to: Tensor, to_valid: Tensor | None = None) -> Tensor:
    """Distance in tokens from each place in `of` [b k] to the nearest place in `to` [b m]: [b k]."""
    _, h, w = view.grid

    def place(index: Tensor) -> Tensor:
        return torch.stack([index // (h * w), index // w % h, index % w], dim=-1).float()

    distance = torch.cdist(place(of), place(to), compute_mode="donot_use_mm_for_euclid_dist")
    return (distance if to_valid is None else distance.masked_fill(~to_valid[:, None], torch.inf)).amin(-1)
