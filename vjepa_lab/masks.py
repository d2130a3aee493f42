"""Which tokens the student sees and which it must predict.

Axes: b batch, c colour, f y x frames/rows/columns of pixels, t h w token grid, n = t*h*w tokens, k seen, m hidden, j blocks.
Token id = t*(h*w) + row*w + column, so ids are ordered by time first.

A mask is a frozen value whose `repr` is the code that rebuilds it. `MultiBlock()` is V-JEPA's sampler (facebookresearch/vjepa2,
src/masks/multiseq_multiblock3d.py); `where=Motion()` moves its blocks to where the clip moves, `max_temporal_keep` with
`full_complement` makes it predict the future. Everything is drawn on the CPU from generators seeded by (seed, step, kind[, rank]):
the same call gives the same mask on every machine, and no other use of random numbers can shift it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import BoolTensor, LongTensor, Tensor

from vjepa_lab.values import Value, check

Grid = tuple[int, int, int]
Range = float | tuple[float, float]
MAX_TRIES = 1000
STILL = 1e-6  # a clip whose motion score never exceeds this is a still image


def _bounds(value: Range) -> tuple[float, float]:
    return tuple(value) if isinstance(value, tuple) else (value, value)


@dataclass(frozen=True, eq=False)
class Mask:
    """Token ids of one mask kind, ascending in every row.

    seen: ids given to the student, [b k].  hidden: ids that the predictor must fill in, [b m].
    seen_valid, hidden_valid: bool, same shapes; False marks padding, which repeats the row's last id. Both are None when nothing is padded.
    """

    seen: LongTensor
    hidden: LongTensor
    seen_valid: BoolTensor | None = None
    hidden_valid: BoolTensor | None = None

    def to(self, device: torch.device | str) -> "Mask":
        parts = (self.seen, self.hidden, self.seen_valid, self.hidden_valid)
        if torch.device(device).type == "cuda":  # from pageable memory a copy would wait for the device
            parts = [part if part is None or part.is_cuda else part.pin_memory() for part in parts]
        return Mask(*(part if part is None else part.to(device, non_blocking=True) for part in parts))

    def rows(self, part: slice) -> "Mask":
        """The masks of some samples of the batch; padding stays."""
        parts = (self.seen, self.hidden, self.seen_valid, self.hidden_valid)
        return Mask(*(ids if ids is None else ids[part] for ids in parts))

    def maps(self, grid: Grid) -> tuple[BoolTensor, BoolTensor]:
        """Seen and hidden as bool maps [b t h w]; a token in neither was dropped by the truncation."""
        flat = torch.zeros(2, len(self.seen), prod(grid), dtype=torch.bool, device=self.seen.device)
        return tuple(m.scatter_(1, ids, True).unflatten(1, grid) for m, ids in zip(flat, (self.seen, self.hidden), strict=True))


class Size(NamedTuple):
    """Extent of one block in tokens."""

    t: int
    h: int
    w: int


@dataclass(frozen=True, repr=False)
class Blocks(Value):
    """One mask kind: `count` blocks of one size, each covering `scale` of the frame for `temporal_scale` of the time.

    scale, aspect_ratio (height / width) and temporal_scale may be a (low, high) range, drawn uniformly once per batch.
    """

    count: int
    scale: Range
    aspect_ratio: Range = (0.75, 1.5)
    temporal_scale: Range = 1.0

    def __post_init__(self):
        for name in ("scale", "aspect_ratio", "temporal_scale"):
            low, high = _bounds(value := getattr(self, name))
            if not 0 < low <= high or (name != "aspect_ratio" and high > 1):
                limit = "" if name == "aspect_ratio" else ", at most 1"
                raise ValueError(f"Blocks: {name}={value}, expected a positive number or (low, high){limit}")
        if self.count < 1:
            raise ValueError(f"Blocks: count={self.count}, expected at least one block")

    def size(self, grid: Grid, generator: torch.Generator) -> Size:
        """Block size, computed as upstream; at least one token, where upstream would silently hide nothing on a tiny grid."""
        t, h, w = grid
        ranges = map(_bounds, (self.temporal_scale, self.scale, self.aspect_ratio))
        draws = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        temporal, spatial, aspect = (low + u * (high - low) for u, (low, high) in zip(draws, ranges, strict=True))
        area = max(1, int(h * w * spatial))
        return Size(max(1, int(t * temporal)), min(h, max(1, round(sqrt(area * aspect)))), min(w, max(1, round(sqrt(area / aspect)))))


@dataclass(frozen=True, repr=False)
class Uniform(Value):
    """Every block position equally likely: V-JEPA's choice."""

    def score(self, clip: Tensor | None, grid: Grid) -> None:
        return None

    def corners(self, score: None, shape: tuple[int, int], size: Size, grid: Grid, generator: torch.Generator) -> LongTensor:
        """First token (t, row, column) of each block, [3 b j] for shape (b, j)."""
        return torch.stack([torch.randint(n, shape, generator=generator) for n in _positions(size, grid)])


@dataclass(frozen=True, repr=False)
class Motion(Value):
    """Blocks where the clip moves (motion-guided masking, Eq. 4 and App. D of arXiv:2605.17165).

    With probability `random_rate`, block by block, the position is uniform. Otherwise, with s a token's motion score averaged over time:
      softmax  block centre ~ softmax(strength * s), s scaled in each clip as `scaling` says (Eq. 4)
      linear   block centre ~ s (App. D's wording; strength is not used)
      power    block corner ~ (mean of s over the block's own tokens and times)^strength (the published code)
    A centre whose block would leave the frame is moved inwards. A clip without motion, and so an image, gets uniform positions.

    motion: "tubelet-mean" averages the frame differences over colour, patch and tubelet; "released" resamples them (trilinear, no
    averaging: it reads a few pixels of a patch) and divides step t by the peak of clip t of the batch, as the published code does: where
    that clip is still, step t of all clips counts a million times. See `motion_score`. It is the motion of the clip that `draw`
    gets, in training the augmented one: that of the frames before cropping and flipping lies elsewhere than the clip's tokens.
    scaling (softmax): "minmax" to [0, 1], or "zscore" to mean 0 and deviation 1, where a few lively tokens go further.
    """

    strength: float = 2.0
    random_rate: float = 0.1
    sampling: Literal["softmax", "linear", "power"] = "softmax"
    motion: Literal["tubelet-mean", "released"] = "tubelet-mean"
    scaling: Literal["minmax", "zscore"] = "minmax"

    def __post_init__(self):
        check(self, scaling=("minmax", "zscore"), sampling=("softmax", "linear", "power"), motion=("tubelet-mean", "released"))
        if not 0 <= self.random_rate <= 1 or self.strength < 0:
            raise ValueError(f"{self!r}: expected random_rate in [0, 1] and strength >= 0")

    def score(self, clip: Tensor | None, grid: Grid) -> Tensor:
        """Motion score [b t h w] of the augmented clips, on the CPU.

        Each process scores its own clips, as the published code does those of a GPU. With "released", where other clips have a part in a
        clip's score, the number of processes matters unless each has a multiple of t clips.
        """
        if clip is None:
            raise ValueError(f"{self!r} follows the clip's motion: pass clip=[b c f y x] to draw()")
        return motion_score(clip, grid, self.motion).cpu()

    def probability(self, score: Tensor, size: Size) -> Tensor:
        """Probability of each block corner: score [b t h w] (see `motion_score`) -> [b t' h' w'], summing to 1 for each clip.

        One entry for each position that fits: t' = t - size.t + 1, and so on.
        """
        uniform = score.new_full((), 1 / prod(_positions(size, score.shape[1:])))
        moving = score.amax((1, 2, 3), keepdim=True) > STILL
        guided = self._by_block(score, size) if self.sampling == "power" else self._by_centre(score, size)
        return torch.where(moving, torch.lerp(guided, uniform, self.random_rate), uniform)

    def corners(self, score: Tensor, shape: tuple[int, int], size: Size, grid: Grid, generator: torch.Generator) -> LongTensor:
        """First token (t, row, column) of each block, [3 b j] for shape (b, j)."""
        pick = self.probability(score, size).flatten(1).multinomial(shape[1], replacement=True, generator=generator)
        return torch.stack(torch.unravel_index(pick, _positions(size, grid)))

    def _by_centre(self, score: Tensor, size: Size) -> Tensor:
        heat = score.mean(1)  # [b h w]
        weight = (self.strength * self._scaled(heat)).exp() if self.sampling == "softmax" else heat
        weight = weight / weight.sum((1, 2), keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
        rows, columns = (_corner_of_centre(n, block).to(weight) for n, block in zip(heat.shape[1:], size[1:], strict=True))
        starts = score.shape[1] - size.t + 1  # time is not guided: every start is equally likely
        return torch.einsum("bhw,hi,wj->bij", weight, rows, columns)[:, None].expand(-1, starts, -1, -1) / starts

    def _scaled(self, heat: Tensor) -> Tensor:
        """Motion [b h w] in a unit of the clip's own."""
        if self.scaling == "zscore":
            variance, mean = torch.var_mean(heat, (1, 2), correction=0, keepdim=True)
            return (heat - mean) / variance.sqrt().clamp_min(STILL)
        low, high = heat.amin((1, 2), keepdim=True), heat.amax((1, 2), keepdim=True)
        return (heat - low) / (high - low).clamp_min(STILL)

    def _by_block(self, score: Tensor, size: Size) -> Tensor:
        peak = score.amax((1, 2, 3), keepdim=True).clamp_min(STILL)  # powers of what released scores may be, 1e6, would overflow
        floor = STILL / peak if self.motion == "released" else STILL  # the published floor is under the score as it is
        weight = F.avg_pool3d((score / peak)[:, None], size, stride=1)[:, 0].clamp_min(floor) ** self.strength
        return weight / weight.sum((1, 2, 3), keepdim=True)


@dataclass(frozen=True, repr=False)
class MultiBlock(Value):
    """V-JEPA's multiblock masks: the union of some blocks is hidden, the rest is seen.

    kinds: one mask per kind and step; the loss averages over kinds.
    where: how block positions are drawn, `Uniform()` or `Motion(...)`.
    truncate: rows of one tensor need one length, but samples hide different numbers of tokens. "official" keeps the first ids up to the
      batch's shortest row, of seen and of hidden; ids are ordered by time, so late frames starve, the more so the larger the batch.
      "random" keeps a random subset of that length. "padded" keeps everything and marks padding in `seen_valid`, `hidden_valid`.
    max_temporal_keep: nothing is seen after this part of the clip's time (0.5: future prediction); what comes later is hidden.
    max_keep: at most this many tokens are seen.
    full_complement: hidden = everything not seen after truncation.
    pred_full_complement: seen = everything not hidden after truncation. As upstream, `max_keep` then limits nothing, and what truncation
      drops from the hidden tokens is seen, after `max_temporal_keep` too: "official" drops the latest.
    inv_block: swap seen and hidden at the end. As upstream, both limits then hold for what is hidden, and the later part is seen.
    """

    kinds: tuple[Blocks, ...] = (Blocks(8, 0.15), Blocks(2, 0.7))
    where: Uniform | Motion = Uniform()
    truncate: Literal["official", "random", "padded"] = "official"
    max_temporal_keep: float = 1.0
    max_keep: int | None = None
    full_complement: bool = False
    pred_full_complement: bool = False
    inv_block: bool = False

    def __post_init__(self):
        kinds = tuple(self.kinds) if isinstance(self.kinds, list | tuple) else ()  # a list would not hash
        if not kinds or not all(isinstance(blocks, Blocks) for blocks in kinds):
            raise ValueError(f"MultiBlock: kinds={self.kinds!r}, expected a tuple of Blocks(count, scale), one or more")
        object.__setattr__(self, "kinds", kinds)
        if not callable(getattr(self.where, "corners", None)):
            raise ValueError(f"MultiBlock: where={self.where!r}, expected Uniform() or Motion(...)")
        check(self, truncate=("official", "random", "padded"))
        if not 0 < self.max_temporal_keep <= 1:
            raise ValueError(f"MultiBlock: max_temporal_keep={self.max_temporal_keep}, expected a part of the clip's time in (0, 1]")
        if self.max_keep is not None and self.max_keep < 1:
            raise ValueError(f"MultiBlock: max_keep={self.max_keep}, expected at least one seen token or None")
        if self.full_complement and self.pred_full_complement:
            raise ValueError("MultiBlock: full_complement and pred_full_complement exclude each other; choose one")

    @property
    def needs_clip(self) -> bool:
        """Whether `draw` looks at the clip."""
        return isinstance(self.where, Motion)

    def draw(
        self,
        batch: int,
        grid: Sequence[int],
        *,
        seed: int,
        step: int,
        rank: int = 0,
        clip: Tensor | None = None,
        score: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> list[Mask]:
        """One `Mask` per kind for a batch of clips.

        batch: samples on this rank.  grid: tokens (t, h, w).  seed, step, rank: non-negative; block sizes follow from (seed, step) and
        are the same on every rank, positions follow from the rank too.  clip: [b c f y x], any dtype, as the student gets it; only
        `Motion` looks at it.  score: in place of the clip, what `where.score` makes of it [b t h w].
        Raises ValueError when the blocks cannot leave a token to see, or when `Motion` gets no clip or one that does not fit.
        """
        grid = tuple(grid)
        score = self.where.score(clip, grid) if score is None else score
        if score is not None and len(score) != batch:
            raise ValueError(f"draw: clip holds {len(score)} samples, batch is {batch}")
        return [self._draw(blocks, batch, grid, score, (seed, step, kind), rank).to(device) for kind, blocks in enumerate(self.kinds)]

    def _draw(self, blocks: Blocks, batch: int, grid: Grid, score: Tensor | None, key: tuple[int, ...], rank: int) -> Mask:
        size = blocks.size(grid, _generator(*key))
        generator = _generator(*key, rank)
        outside = self._outside(blocks, size, batch, grid, score, generator)
        seen, hidden = outside, ~outside
        most_seen, most_hidden = self.max_keep or prod(grid), prod(grid)
        if self.truncate != "padded":
            most_seen, most_hidden = min(most_seen, int(seen.sum(1).min())), int(hidden.sum(1).min())
        seen, hidden = self._keep(seen, most_seen, generator), self._keep(hidden, most_hidden, generator)
        if self.full_complement:
            hidden = ~seen
        elif self.pred_full_complement:
            seen = ~hidden
        if self.inv_block:
            seen, hidden = hidden, seen
        (seen, seen_valid), (hidden, hidden_valid) = _ids(seen), _ids(hidden)
        whole = bool(seen_valid.all() and hidden_valid.all())
        return Mask(seen, hidden) if whole else Mask(seen, hidden, seen_valid, hidden_valid)

    def _outside(self, blocks: Blocks, size: Size, batch: int, grid: Grid, score: Tensor | None, generator: torch.Generator) -> BoolTensor:
        """Tokens in no block [b n]; a sample that would see nothing is drawn again."""
        outside = torch.zeros(batch, prod(grid), dtype=torch.bool)
        horizon = max(1, int(grid[0] * self.max_temporal_keep))
        for _ in range(MAX_TRIES):
            corners = self.where.corners(score, (batch, blocks.count), size, grid, generator)
            fresh = ~_union(corners, size, grid)
            fresh[:, horizon:] = False
            outside = torch.where(outside.any(1, keepdim=True), outside, fresh.flatten(1))
            if outside.any(1).all():
                return outside
        raise ValueError(
            f"{blocks!r} left nothing to see in {MAX_TRIES} tries on the grid {grid} (blocks of {tuple(size)} tokens); "
            "use fewer or smaller blocks, or a larger grid"
        )

    def _keep(self, mask: BoolTensor, count: int, generator: torch.Generator) -> BoolTensor:
        """At most `count` of the True tokens of each row: the first ones, or random ones."""
        if count >= mask.shape[1]:  # max_keep may be more than the grid has, as of an image
            return mask
        if self.truncate == "official":
            return mask & (mask.cumsum(1) <= count)
        order = torch.rand(mask.shape, generator=generator, dtype=torch.float64).masked_fill_(~mask, 2.0)
        return mask & (order <= order.kthvalue(count, dim=1, keepdim=True).values)


def motion_score(clip: Tensor, grid: Grid, motion: Literal["tubelet-mean", "released"] = "tubelet-mean") -> Tensor:
    """How much each token moves: absolute differences of successive frames, [b c f y x] -> float [b t h w], in units of the clip's values.

    tubelet-mean: mean over colour, patch and the differences that start in the tubelet. The last frame starts none, so the last
      difference counts twice there (for tubelet 2: the mean over what that tubelet has).
    released: mean over colour, first difference doubled, trilinear resampling to the grid, step t divided by the maximum of clip t, and
      not of its own clip (MaskCollator in the published code of arXiv:2605.17165, by broadcasting, where a GPU has as many clips as
      there are steps). Here clip t is that of each t consecutive clips; those left over at the end are divided by their own maxima.
    A single frame scores zero. Raises ValueError when the clip does not divide into the grid.
    """
    b, _, f, y, x = clip.shape
    t, h, w = grid
    if f == 1:
        return clip.new_zeros(b, t, h, w, dtype=torch.float32)
    if f % t or y % h or x % w:
        raise ValueError(f"motion_score: a clip of {f} x {y} x {x} does not divide into the token grid {tuple(grid)}")
    step = clip.float().diff(dim=2).abs_().mean(1)  # [b f-1 y x]
    if motion == "tubelet-mean":
        step = torch.cat([step, step[:, -1:]], 1)
        return reduce(step, "b (t p) (h q) (w r) -> b t h w", "mean", t=t, h=h, w=w)
    step = rearrange(torch.cat([step[:, :1], step], 1), "b f y x -> b 1 f y x")
    step = F.interpolate(step, size=tuple(grid), mode="trilinear", align_corners=False)[:, 0]
    return step / _peaks_of_steps(step)


def _peaks_of_steps(motion: Tensor) -> Tensor:
    """What each step of motion [b t h w] is divided by, [b t 1 1]: in every t consecutive clips step i of all by the peak of the i-th, in
    the clips left over by the own clip's."""
    steps, peak = motion.shape[1], motion.amax((1, 2, 3)).clamp_min(STILL)
    whole = len(peak) // steps * steps
    shared = repeat(peak[:whole], "(group step) -> (group clip) step 1 1", clip=steps, step=steps)
    return torch.cat([shared, repeat(peak[whole:], "clip -> clip step 1 1", step=steps)])


def _union(corners: LongTensor, size: Size, grid: Grid) -> BoolTensor:
    """Tokens covered by any block: corners [3 b j] -> [b t h w]."""
    offsets = (torch.arange(n) - corner[..., None] for n, corner in zip(grid, corners, strict=True))  # per axis [b j n]
    inside = (((offset >= 0) & (offset < block)).float() for offset, block in zip(offsets, size, strict=True))
    return torch.einsum("bjt,bjh,bjw->bthw", *inside) > 0


def _ids(mask: BoolTensor) -> tuple[LongTensor, BoolTensor]:
    """Ascending ids of the True entries [b n] -> [b k], k the longest row's, and which are valid; padding repeats the row's last id."""
    length = mask.sum(1, keepdim=True)
    place = torch.arange(int(length.max()))
    ids = mask.logical_not().byte().argsort(dim=1, stable=True)
    return ids.gather(1, place.minimum(length - 1)), place < length


def _corner_of_centre(tokens: int, block: int) -> Tensor:
    """One-hot [tokens, positions]: the block corner that a centre token gets, moved inwards at the border."""
    corner = (torch.arange(tokens) - block // 2).clamp(0, tokens - block)
    return F.one_hot(corner, tokens - block + 1)


def _positions(size: Size, grid: Sequence[int]) -> Grid:
    return tuple(n - block + 1 for n, block in zip(grid, size, strict=True))


def _generator(*key: int) -> torch.Generator:
    """Generator for a key: neighbouring seeds, steps and ranks give unrelated streams. Keys of up to four numbers that differ in zeros at
    their end alone give one stream (SeedSequence fills up with zeros): rank 0 draws its places from the one that drew the blocks' size."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)))


# The masks of the paper's rows, as printed; and, where the published code differs, as it computes them.
MULTIBLOCK = MultiBlock()
MOTION_GUIDED = MultiBlock(where=Motion())
AMG = MultiBlock(where=Motion(strength=5.0, random_rate=0.0))
FUTURE = MultiBlock(max_temporal_keep=0.5, full_complement=True)
MOTION_FUTURE = replace(FUTURE, where=Motion())

_RELEASED_MOTION = Motion(sampling="power", motion="released")
MOTION_GUIDED_RELEASED = MultiBlock(where=_RELEASED_MOTION)
AMG_RELEASED = MultiBlock(where=replace(_RELEASED_MOTION, strength=5.0, random_rate=0.0))
FUTURE_RELEASED = replace(FUTURE, kinds=(Blocks(4, 0.15), Blocks(1, 0.7)))
MOTION_FUTURE_RELEASED = replace(FUTURE_RELEASED, where=_RELEASED_MOTION)
