"""What a term sees of a batch, and what it gives back: views of the latents, and error maps."""

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from vjepa_lab.masks import Mask
from vjepa_lab.training.processes import over_processes

VIEWS = ("full", "causal", "visible", "hidden")
WHOLE = ("full", "causal")  # views of whole clips, at the price of a second student pass


class View:
    """What one term sees of one batch. With `view="full"` or "causal" there is one View; otherwise one per mask kind.

    z       student's tokens [b t h w d], normalised and cut to the channels that the term asks for (`norm`, `on`); in the visible view
            those of the seen places, zero elsewhere; `rows` are those that count, [n d]
    h       teacher's tokens [b t h w d], normalised, no gradient
    valid   boolean [b t h w] (visible), [b m] (hidden, padded masks), or None: every place counts
    still   boolean [b]: which samples are images repeated to fill the frames; None: none of them
    pred, target, hidden    at the hidden places: prediction and teacher [b m d], token ids [b m]
    context, seen           at the seen places: prediction [b k d], token ids [b k]
    clip    [b c f y x] normalised pixels; grid (t, h, w); step, progress
    """

    def __init__(self, latents, name: str = "full", kind: int = 0, *, norm: str = "layer", on: str = "all"):
        self.latents, self.name, self.kind, self.norm, self.on = latents, name, kind, norm, on
        self.clip, self.grid, self.step, self.progress = latents.clip, latents.grid, latents.step, latents.progress
        self.still: Tensor | None = latents.still

    @property
    def mask(self) -> Mask:
        return self.latents.masks[self.kind]

    def cut(self, x: Tensor) -> Tensor:
        """The channels of x [... d] that the term works on."""
        order = getattr(self.latents, "order", None)
        x = x if order is None else x[..., order]
        half = x.shape[-1] // 2
        return {"all": x, "app": x[..., :half], "dyn": x[..., half:]}[self.on]

    @cached_property
    def _tokens(self) -> Tensor:
        """Student's tokens, normalised and cut: [b t h w d], or [b k d] of the seen places."""
        if self.name == "hidden":
            raise ValueError("through view='hidden' there is no view.z, only view.pred, view.context and the teacher; use view='visible'")
        lat = self.latents
        z = lat.z if self.name == "full" else lat.causal if self.name == "causal" else lat.seen[self.kind]
        z = self.cut(lat.normalise(z) if self.norm == "layer" else z)
        return torch.nn.functional.layer_norm(z, z.shape[-1:]) if self.norm == "half" else z

    @cached_property
    def z(self) -> Tensor:
        if self.name in WHOLE:
            return self._tokens
        return self.latents.scatter(self._tokens, self.mask.seen, self.mask.seen_valid)

    @property
    def rows(self) -> Tensor:
        """The tokens of z that count, for terms that are statistics over them: [n d]."""
        if self.name in WHOLE or self.mask.seen_valid is None:
            return self._tokens.flatten(0, -2)
        return self._tokens[self.mask.seen_valid]

    @property
    def h(self) -> Tensor:
        return self.latents.h

    @cached_property
    def valid(self) -> Tensor | None:
        if self.name == "hidden":
            return self.mask.hidden_valid
        return None if self.name in WHOLE else self.latents.places(self.mask.seen, self.mask.seen_valid)

    @property
    def pred(self) -> Tensor:
        return self._of_kind("pred", self.latents.pred)

    @property
    def target(self) -> Tensor:
        return self._of_kind("target", self.latents.target)

    @property
    def context(self) -> Tensor:
        return self._of_kind("context", self.latents.context)

    @property
    def hidden(self) -> Tensor:
        return self.mask.hidden

    @property
    def seen(self) -> Tensor:
        return self.mask.seen

    def _of_kind(self, what: str, each: list[Tensor]) -> Tensor:
        """A view of whole clips comes once, not once for each mask kind: it would show the first kind's alone."""
        if self.name in WHOLE:
            raise ValueError(f"through view={self.name!r} there is no view.{what}, which each mask kind has its own of; use view='hidden'")
        return each[self.kind]

    def has_fewer_steps(self, error: Tensor) -> bool:
        """Whether an error map is [b t-j h w ...] with j of 1 or more: what is made of several time steps is about change."""
        t, *space = self.grid
        return error.ndim >= 4 and len(error) == len(self.clip) and list(error.shape[2:4]) == space and error.shape[1] < t

    def valid_for(self, error: Tensor) -> Tensor | None:
        """Which entries of an error map count, read off its shape: an entry [b t-j h w ...] made of j+1 steps needs all of them valid."""
        if error.numel() == 0:
            return None
        valid = self.valid
        if valid is None:
            return None
        if valid.ndim == 4 and self.has_fewer_steps(error):
            valid = valid.unfold(1, valid.shape[1] - error.shape[1] + 1, 1).all(-1)
        if valid.shape == error.shape[: valid.ndim]:
            return valid.view(*valid.shape, *[1] * (error.ndim - valid.ndim))
        raise ValueError(
            f"through view={self.name!r} an error map has one entry per token, {list(self.valid.shape)} or fewer steps; got "
            f"{list(error.shape)}. Return ErrorMap(value, weight) to say yourself which entries count."
        )


class Reordered:
    """The same latents, whose channels every View takes in another order [d]."""

    def __init__(self, latents, order: Tensor):
        self.latents, self.order = latents, order

    def __getattr__(self, name: str):
        return getattr(self.latents, name)


class ErrorMap(NamedTuple):
    """An error map with a non-negative weight per entry (None: all alike). Its mean is sum(weight * value) / sum(weight); where several
    processes share a batch the weights' sum is that of all, so that the mean over processes is the mean over the whole batch.

    samples  how many samples of the batch count in it, an int or a scalar tensor; None: not said
    share    what its mean counts for beside the other micro-batches of one step, 1 on average (`Latents.share`)
    """

    value: Tensor
    weight: Tensor | None = None
    samples: int | Tensor | None = None
    share: float | Tensor = 1.0

    def mean(self) -> Tensor:
        """Scalar; a differentiable zero where no entry counts (an image has no temporal difference)."""
        if self.value.numel() == 0:
            return self.value.sum()
        if self.weight is None:
            return self.value.mean()
        weight = self.weight.to(self.value.dtype).expand_as(self.value)
        return (self.value * weight).sum() / over_processes(weight.sum()).clamp_min(torch.finfo(weight.dtype).tiny)

    def of_samples(self, keep: Tensor) -> "ErrorMap":
        """Only the samples where `keep` [b] is True count. Raises ValueError for a map whose first axis is not the batch."""
        if self.value.ndim == 0 or len(self.value) != len(keep):
            raise ValueError(
                f"images are among the clips, and a map about change leaves them out: its first axis must be the batch of {len(keep)}; "
                f"got {list(self.value.shape)}. Set `temporal = False` in the class if the images should count."
            )
        keep = keep.view(-1, *[1] * (self.value.ndim - 1))
        return ErrorMap(self.value, keep.expand_as(self.value) if self.weight is None else self.weight * keep, keep.sum())


def mean_of(maps: list[ErrorMap]) -> Tensor:
    """Mean of the maps' means, each counted by its samples: over mask kinds, as V-JEPA averages, and over the parts of a mixed batch.

    A part in which nothing counts (images, for a term about change) does not dilute the others.
    """
    counts = [1 if m.samples is None else m.samples for m in maps]
    total = sum(counts)
    total = max(total, 1) if isinstance(total, int) else total.clamp_min(1)
    return sum(m.mean() * (n / total) * m.share for n, m in zip(counts, maps, strict=True))


def diff(x: Tensor) -> Tensor:
    """Difference along token time: [b t ...] -> [b t-1 ...]."""
    return x[:, 1:] - x[:, :-1]
