"""Laws that every mask obeys, the statistics of V-JEPA's sampler, and motion guidance against an independent computation."""

from dataclasses import FrozenInstanceError, dataclass, replace
from math import sqrt

import numpy as np
import pytest
import torch

from vjepa_lab import masks
from vjepa_lab.masks import Blocks, Mask, Motion, MultiBlock, Size, Uniform, motion_score
from vjepa_lab.values import read

SHORT, LONG = Blocks(8, 0.15), Blocks(2, 0.7)
PAPER, MICRO, IMAGE, ODD = (8, 14, 14), (4, 8, 8), (1, 14, 14), (3, 5, 9)
NAMED = {name: value for name, value in vars(masks).items() if isinstance(value, MultiBlock)}
OPTIONS = {
    "random": MultiBlock(truncate="random"),
    "padded": MultiBlock(truncate="padded"),
    "padded max_keep": MultiBlock(truncate="padded", max_keep=20),
    "max_keep": MultiBlock(max_keep=12),
    "random max_keep": MultiBlock(truncate="random", max_keep=12),
    "pred_full_complement": MultiBlock(pred_full_complement=True),
    "inv_block": MultiBlock(inv_block=True),
    "short in time": MultiBlock(kinds=(Blocks(6, (0.1, 0.4), temporal_scale=(0.25, 0.75)),)),
    "random future": MultiBlock(truncate="random", max_temporal_keep=0.5, full_complement=True),
    "linear": MultiBlock(where=Motion(sampling="linear")),
    "zscore": MultiBlock(where=Motion(scaling="zscore")),
}
ALL = NAMED | OPTIONS


def draw(mask: MultiBlock, batch=6, grid=MICRO, seed=0, step=0, rank=0, clip="moving", **kw) -> list[Mask]:
    if isinstance(clip, str):
        t, h, w = grid
        clip = torch.rand(batch, 3, 2 * t, 8 * h, 8 * w, generator=torch.Generator().manual_seed(7))
    return mask.draw(batch, grid, seed=seed, step=step, rank=rank, clip=clip, **kw)


def rows(ids, valid):
    """The ids of every sample without padding."""
    return [row[keep].tolist() for row, keep in zip(ids, torch.ones_like(ids, dtype=torch.bool) if valid is None else valid, strict=True)]


def same(one: list[Mask], other: list[Mask]) -> bool:
    return all(torch.equal(a.seen, b.seen) and torch.equal(a.hidden, b.hidden) for a, b in zip(one, other, strict=True))


# ------------------------------------------------------------------------------------------------------------------------ laws


@pytest.mark.parametrize("grid", [PAPER, MICRO, IMAGE, ODD], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_ids_are_disjoint_sorted_in_range_and_never_empty(name, grid):
    for step in range(3):
        kinds = draw(ALL[name], grid=grid, step=step)
        assert len(kinds) == len(ALL[name].kinds)
        for mask in kinds:
            for seen, hidden in zip(rows(mask.seen, mask.seen_valid), rows(mask.hidden, mask.hidden_valid), strict=True):
                assert seen and hidden and not set(seen) & set(hidden)
                for ids in (seen, hidden):
                    assert ids == sorted(set(ids)) and ids[0] >= 0 and ids[-1] < np.prod(grid)


@pytest.mark.parametrize("name", ["FUTURE", "MOTION_FUTURE", "FUTURE_RELEASED", "padded", "pred_full_complement", "random future"])
def test_nothing_is_dropped_where_the_union_is_promised_complete(name):
    for mask in draw(ALL[name]):
        seen, hidden = mask.maps(MICRO)
        assert (seen ^ hidden).all()


def test_the_official_truncation_drops_tokens_from_the_end_and_random_keeps_as_many():
    official, random = (draw(MultiBlock(truncate=t), batch=16, grid=PAPER) for t in ("official", "random"))
    padded = draw(MultiBlock(truncate="padded"), batch=16, grid=PAPER)
    for off, rnd, pad in zip(official, random, padded, strict=True):
        assert off.seen.shape == rnd.seen.shape and off.hidden.shape == rnd.hidden.shape
        full = rows(pad.seen, pad.seen_valid), rows(pad.hidden, pad.hidden_valid)
        assert off.seen.shape[1] == min(map(len, full[0])) and off.hidden.shape[1] == min(map(len, full[1]))
        for whole, first, some in [(full[0], off.seen, rnd.seen), (full[1], off.hidden, rnd.hidden)]:
            for i, ids in enumerate(whole):
                assert first[i].tolist() == ids[: len(first[i])]
                assert set(some[i].tolist()) <= set(ids)
        assert any(some.tolist() != ids[: len(some)] for ids, some in zip(full[1], rnd.hidden, strict=True))


def test_padding_repeats_the_last_valid_id_and_reaches_the_longest_row():
    for mask in draw(MultiBlock(truncate="padded"), batch=16):
        for ids, valid in ((mask.seen, mask.seen_valid), (mask.hidden, mask.hidden_valid)):
            assert valid.any(0).all() and not valid.all()
            assert valid.shape == ids.shape
            last = ids.masked_fill(~valid, -1).amax(1, keepdim=True)
            assert torch.equal(ids, torch.where(valid, ids, last))


def test_padding_is_marked_in_both_lists_or_in_none():
    for name in ("padded", "padded max_keep"):
        assert all(mask.seen_valid is not None and mask.hidden_valid is not None for mask in draw(OPTIONS[name], batch=16))
    assert all(mask.seen_valid is None and mask.hidden_valid is None for mask in draw(MultiBlock()) + draw(OPTIONS["padded"], batch=1))


@pytest.mark.parametrize("truncate", ["official", "random", "padded"])
def test_max_keep_caps_what_is_seen(truncate):
    free, capped = (draw(MultiBlock(truncate=truncate, max_keep=cap), grid=PAPER)[0] for cap in (None, 50))
    assert free.seen.shape[1] > 50 == capped.seen.shape[1]


@pytest.mark.parametrize("truncate", ["official", "random", "padded"])
def test_a_cap_above_the_grid_caps_nothing(truncate):
    """As that of videos does to images, of which a grid has fewer tokens."""
    (free, _), (capped, _) = (draw(MultiBlock(truncate=truncate, max_keep=cap), grid=IMAGE) for cap in (None, 200))
    assert torch.equal(free.seen, capped.seen) and torch.equal(free.hidden, capped.hidden)


def test_what_pred_full_complement_shows_knows_no_limit():
    """Upstream's way: what the hidden tokens' truncation drops is seen, however late and however much it is."""
    cut = MultiBlock((SHORT,), max_temporal_keep=0.5, max_keep=50, pred_full_complement=True)
    (mask,), (whole,) = (draw(replace(cut, truncate=how), batch=16, grid=PAPER) for how in ("official", "padded"))
    late = mask.maps(PAPER)[0][:, 4:].flatten(1)
    assert late.any(1).sum() > 8 and mask.seen.shape[1] > 50
    assert not whole.maps(PAPER)[0][:, 4:].any() and whole.seen.shape[1] > 50  # nothing is dropped, but more than 50 are seen
    inverse = MultiBlock((SHORT,), max_temporal_keep=0.5, max_keep=50, truncate="padded", inv_block=True)
    (mask,) = draw(inverse, batch=16, grid=PAPER)
    assert mask.maps(PAPER)[0][:, 4:].all() and not mask.maps(PAPER)[1][:, 4:].any() and mask.hidden.shape[1] == 50


def test_inv_block_swaps_the_roles():
    for plain, swapped in zip(draw(MultiBlock()), draw(MultiBlock(inv_block=True)), strict=True):
        assert torch.equal(plain.seen, swapped.hidden) and torch.equal(plain.hidden, swapped.seen)


@pytest.mark.parametrize("name", [name for name in ALL if "FUTURE" in name])
def test_future_masks_see_only_the_first_half(name):
    for mask in draw(ALL[name], grid=PAPER):
        seen, hidden = mask.maps(PAPER)
        assert not seen[:, 4:].any() and hidden[:, 4:].all() and seen[:, :4].any()


@pytest.mark.parametrize("name", ALL)
def test_a_draw_is_fixed_by_seed_step_and_rank_and_by_nothing_else(name):
    first = draw(ALL[name], grid=PAPER)
    torch.rand(100)
    torch.manual_seed(99)
    assert same(first, draw(ALL[name], grid=PAPER))
    for other in ({"seed": 1}, {"step": 1}, {"rank": 1}):
        changed = draw(ALL[name], grid=PAPER, **other)
        assert not any(torch.equal(a.seen, b.seen) for a, b in zip(first, changed, strict=True)), other


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    draw(MultiBlock(where=Motion(), truncate="random"))
    assert torch.equal(before, torch.get_rng_state())


@dataclass(frozen=True)
class Recorder:
    """Uniform positions that note the block sizes asked for."""

    sizes: list

    def score(self, clip, grid):
        return None

    def corners(self, score, shape, size, grid, generator):
        self.sizes.append(size)
        return Uniform().corners(score, shape, size, grid, generator)


def test_every_rank_uses_the_same_block_size_and_steps_differ():
    by_rank = [Recorder([]) for _ in range(4)]
    for rank, where in enumerate(by_rank):
        for step in range(20):
            MultiBlock((LONG,), where=where).draw(1 + rank, PAPER, seed=3, step=step, rank=rank)
    order = [list(dict.fromkeys(where.sizes)) for where in by_rank]  # a retry repeats a size
    assert order[0] == order[1] == order[2] == order[3] and len(order[0]) > 3


def test_block_sizes_are_upstreams():
    def sizes(blocks, grid):
        return {blocks.size(grid, torch.Generator().manual_seed(seed)) for seed in range(400)}

    assert sizes(SHORT, PAPER) == {(8, 5, 5), (8, 5, 6), (8, 6, 4), (8, 6, 5), (8, 7, 4)}
    long = sizes(LONG, PAPER)
    assert {(8, 10, 13), (8, 14, 10)} <= long
    areas = [(h, w) for _, h, w in long]
    assert all(h <= 14 and w <= 14 and 0.6 < h * w / 196 < 0.8 for h, w in areas)
    assert sizes(Blocks(1, 0.15), (2, 2, 2)) == {(2, 1, 1)}  # int(0.6) tokens upstream
    assert {s.t for s in sizes(Blocks(1, 0.5, temporal_scale=(0.25, 1.0)), PAPER)} >= {2, 4, 7}


# --------------------------------------------------------------------------------------------- the sampler against upstream's rules


@dataclass(frozen=True)
class Fixed:
    """Given corners [3 b j], in place of drawn ones."""

    at: torch.Tensor

    def score(self, clip, grid):
        return None

    def corners(self, score, shape, size, grid, generator):
        return self.at


@pytest.mark.parametrize(
    "options", [{}, {"full_complement": True}, {"pred_full_complement": True}, {"max_temporal_keep": 0.5}, {"max_keep": 30}], ids=str
)
def test_ids_equal_a_token_by_token_construction(options):
    grid, batch, blocks = (4, 7, 9), 5, Blocks(3, 0.2, aspect_ratio=1.0, temporal_scale=0.5)
    size = blocks.size(grid, torch.Generator())
    corners = torch.stack([torch.randint(n - s + 1, (batch, blocks.count)) for n, s in zip(grid, size, strict=True)])
    mask = MultiBlock((blocks,), where=Fixed(corners), **options).draw(batch, grid, seed=0, step=0)[0]

    every, seen, hidden = range(4 * 7 * 9), [], []
    for i in range(batch):
        covered = set()
        for t, row, column in corners[:, i].T.tolist():
            covered |= {
                a * 63 + b * 9 + c for a in range(t, t + size.t) for b in range(row, row + size.h) for c in range(column, column + size.w)
            }
        covered |= {n for n in every if n // 63 >= max(1, int(4 * options.get("max_temporal_keep", 1)))}
        hidden.append(sorted(covered))
        seen.append([n for n in every if n not in covered])
    k, m = min(options.get("max_keep", 999), *map(len, seen)), min(map(len, hidden))
    seen, hidden = [ids[:k] for ids in seen], [ids[:m] for ids in hidden]
    if "full_complement" in options:
        hidden = [[n for n in every if n not in ids] for ids in seen]
    if "pred_full_complement" in options:
        seen = [[n for n in every if n not in ids] for ids in hidden]
    assert mask.seen.tolist() == seen and mask.hidden.tolist() == hidden


def statistics(mask: MultiBlock, batch: int, grid=PAPER, steps=300):
    """Mean and standard error, over batches, of the seen and the hidden fraction; and the seen fraction of each tubelet."""
    drawn = [mask.draw(batch, grid, seed=1, step=step)[0] for step in range(steps)]
    share = torch.tensor([[m.seen.shape[1], m.hidden.shape[1]] for m in drawn]) / np.prod(grid)
    by_time = torch.stack([torch.stack(m.maps(grid)).float().mean((1, 3, 4)) for m in drawn])  # [steps, seen/hidden, t]
    return share.mean(0), share.std(0) / sqrt(steps), by_time.mean(0), by_time.std(0) / sqrt(steps)


# Simulated with upstream's sampler: 300 batches, 224 pixels, 16 frames (seen, hidden).
TABLE = {
    "short 1": (MultiBlock((SHORT,)), 1, PAPER, 0.373, 0.627),
    "short 8": (MultiBlock((SHORT,)), 8, PAPER, 0.266, 0.522),
    "short 24": (MultiBlock((SHORT,)), 24, PAPER, 0.234, 0.482),
    "long 1": (MultiBlock((LONG,)), 1, PAPER, 0.180, 0.820),
    "long 8": (MultiBlock((LONG,)), 8, PAPER, 0.089, 0.723),
    "long 24": (MultiBlock((LONG,)), 24, PAPER, 0.067, 0.703),
    "future 4": (MultiBlock((Blocks(4, 0.15),), max_temporal_keep=0.5, full_complement=True), 8, PAPER, 0.240, 0.760),
    "future 1": (MultiBlock((Blocks(1, 0.7),), max_temporal_keep=0.5, full_complement=True), 8, PAPER, 0.150, 0.850),
    "image": (MultiBlock((Blocks(10, 0.15),)), 8, IMAGE, 0.214, 0.579),
}


@pytest.mark.parametrize("case", TABLE)
def test_fractions_reproduce_upstreams(case):
    mask, batch, grid, *expected = TABLE[case]
    mean, error, _, _ = statistics(mask, batch, grid)
    bound = 4 * sqrt(2) * error + 0.001  # both sides are means over 300 batches, the table is rounded
    assert ((mean - torch.tensor(expected)).abs() < bound).all(), (mean, bound)


def test_the_official_truncation_starves_late_frames_and_random_does_not():
    _, _, mean, error = statistics(MultiBlock((LONG,)), 8)
    expected = torch.tensor([0.187, 0.172, 0.130, 0.091, 0.056, 0.035, 0.023, 0.019])
    assert ((mean[0] - expected).abs() < 4 * sqrt(2) * error[0] + 0.001).all(), mean[0]
    assert mean[1, 0] == pytest.approx(0.81, abs=0.02) and mean[1, 7] == pytest.approx(0.26, abs=0.05)
    _, _, short, error = statistics(MultiBlock((SHORT,)), 8)
    for t, value in {0: 0.370, 6: 0.109, 7: 0.052}.items():
        assert short[0, t] == pytest.approx(value, abs=4 * sqrt(2) * float(error[0, t]) + 0.001)
    _, _, even, error = statistics(MultiBlock((LONG,), truncate="random"), 8)
    assert (even[0] - even[0].mean()).abs().max() < 0.005


def test_positions_are_uniform_and_independent_over_samples():
    size, shape, grid = Size(4, 3, 5), (4000, 2), MICRO
    t, row, column = Uniform().corners(None, shape, size, grid, torch.Generator().manual_seed(0))
    assert (t == 0).all()
    share = torch.bincount((row * 4 + column).flatten(), minlength=24) / row.numel()
    assert share.shape == (24,) and ((share - 1 / 24).abs() < 4 * sqrt(1 / 24 / 8000)).all()


# --------------------------------------------------------------------------------------------------------------------- motion


def numpy_score(clip, grid):
    """Mean over colour, patch and tubelet of |frame_{k+1} - frame_k|, by loops."""
    (t, h, w), (b, _, f, y, x) = grid, clip.shape
    p, q, r = f // t, y // h, x // w
    score = np.zeros((b, t, h, w))
    for i in range(t):
        starts = [k for k in range(i * p, (i + 1) * p) if k + 1 < f]
        for j in range(h):
            for k in range(w):
                patch = clip[..., j * q : (j + 1) * q, k * r : (k + 1) * r]
                score[:, i, j, k] = np.mean([np.abs(patch[:, :, s + 1] - patch[:, :, s]).mean((1, 2, 3)) for s in starts], axis=0)
    return score


def numpy_probability(score, size, strength, sampling, random_rate, scaling="minmax"):
    """Corner probabilities of one clip, by loops over positions."""
    t, h, w = score.shape
    count = t - size[0] + 1, h - size[1] + 1, w - size[2] + 1
    out = np.zeros(count)
    if sampling == "power":
        for i, j, k in np.ndindex(*count):
            out[i, j, k] = (score[i : i + size[0], j : j + size[1], k : k + size[2]].mean() / score.max()) ** strength
        out /= out.sum()
    else:
        heat = score.mean(0)
        unit = (heat - heat.mean()) / heat.std() if scaling == "zscore" else (heat - heat.min()) / (heat.max() - heat.min())
        weight = heat if sampling == "linear" else np.exp(strength * unit)
        weight = weight / weight.sum()
        for j, k in np.ndindex(h, w):
            out[:, np.clip(j - size[1] // 2, 0, h - size[1]), np.clip(k - size[2] // 2, 0, w - size[2])] += weight[j, k] / count[0]
    return (1 - random_rate) * out + random_rate / out.size


@pytest.mark.parametrize("size", [Size(4, 3, 4), Size(2, 6, 7), Size(4, 8, 8)], ids=str)
@pytest.mark.parametrize(("sampling", "scaling"), [("softmax", "minmax"), ("softmax", "zscore"), ("linear", "minmax"), ("power", "minmax")])
def test_probabilities_agree_with_numpy(sampling, scaling, size):
    clip = np.random.default_rng(0).random((3, 3, 8, 32, 32)) ** 3
    clip[:, :, :, :12] *= 0.2  # the upper part hardly moves
    score = motion_score(torch.tensor(clip), MICRO)
    np.testing.assert_allclose(score, numpy_score(clip, MICRO), atol=1e-5)
    where = Motion(strength=5.0, random_rate=0.2, sampling=sampling, scaling=scaling)
    ours = where.probability(score, size)
    np.testing.assert_allclose(ours.sum((1, 2, 3)), 1, atol=1e-5)
    for p, s in zip(ours, numpy_score(clip, MICRO), strict=True):
        np.testing.assert_allclose(p, numpy_probability(s, size, 5.0, sampling, 0.2, scaling), atol=1e-5)


def test_the_released_score_is_a_trilinear_resampling_without_averaging():
    f, side, grid = 8, 64, MICRO
    clip = np.random.default_rng(1).random((2, 3, f, side, side))
    step = np.abs(np.diff(clip, axis=2)).mean(1)
    step = np.concatenate([step[:, :1], step], 1)
    for axis, n in zip((1, 2, 3), grid, strict=True):  # linear interpolation at cell centres, one axis after the other
        at = (np.arange(n) + 0.5) * step.shape[axis] / n - 0.5
        low = np.floor(at).astype(int)
        part = (at - low).reshape([-1 if a == axis else 1 for a in range(4)])
        step = np.take(step, low, axis) * (1 - part) + np.take(step, np.minimum(low + 1, step.shape[axis] - 1), axis) * part
    expected = step / step.max((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(motion_score(torch.tensor(clip), grid, "released"), expected, atol=1e-5)


def lively(batch: int, still: int | None = None):
    """Clips of 8 frames that move by other amounts, of which one may be a repeated image: [b 3 8 64 64]."""
    clip = torch.rand(batch, 3, 8, 64, 64, generator=torch.Generator().manual_seed(3)) * torch.arange(1, batch + 1).view(-1, 1, 1, 1, 1)
    if still is not None:
        clip[still] = clip[still, :, :1].expand(-1, 8, -1, -1)
    return clip


def test_the_released_score_divides_step_t_by_the_peak_of_clip_t():
    """Over each t consecutive clips as motion [b t h w] / peaks [b 1 1] broadcasts where b = t; the ninth clip by its own peak."""
    clip, t = lively(9, still=2), MICRO[0]
    motion = torch.stack(
        [own_peak * motion_score(one[None], MICRO, "released")[0] for one, own_peak in zip(clip, peaks(clip), strict=True)]
    )
    score = motion_score(clip, MICRO, "released")
    for first in (0, t):
        group = slice(first, first + t)
        torch.testing.assert_close(score[group], motion[group] / peaks(clip)[group].view(-1, 1, 1))
    torch.testing.assert_close(score[8], motion[8] / peaks(clip)[8])
    assert (score[[0, 1, 3], 2].amax((1, 2)) > 1e5).all() and score[[0, 1, 3]][:, [0, 1, 3]].max() < 10  # step 2: clip 2 is the image
    assert (score[2] == 0).all() and score[4:].max() < 10


def peaks(clip):
    """The largest resampled motion of each clip, at least 1e-6: [b]."""
    step = clip.diff(dim=2).abs().mean(1)
    step = torch.cat([step[:, :1], step], 1)[:, None]
    return torch.nn.functional.interpolate(step, size=MICRO, mode="trilinear").amax((1, 2, 3, 4)).clamp_min(1e-6)


def test_a_process_of_whole_groups_scores_its_clips_as_one_process_does():
    for motion in ("tubelet-mean", "released"):
        clip = lively(8, still=5)
        apart = torch.cat([motion_score(part, MICRO, motion) for part in clip.split(4)])
        torch.testing.assert_close(motion_score(clip, MICRO, motion), apart, rtol=0, atol=0)


def test_under_the_released_score_a_still_clip_decides_which_step_counts():
    """Beside an image blocks lie where the clips move at the image's step; the other editions' clips know nothing of each other."""
    clip, size = torch.zeros(4, 3, 8, 64, 64), Size(4, 3, 3)
    clip[:3, :, 1::2, :, :24] = 1.0  # the left part flickers all the time,
    clip[:3, :, 6:, 32:, 40:] = torch.rand(3, 3, 2, 32, 24) * 0.01  # the lower right a little in the last step, which is clip 3's
    clip[:3, :, 6:, :, :24] = 1.0
    for name, left in (("MOTION_GUIDED_RELEASED", False), ("AMG_RELEASED", False), ("MOTION_GUIDED", True), ("AMG", True)):
        where = replace(NAMED[name].where, random_rate=0.0)
        p = where.probability(where.score(clip, MICRO), size)[:3, 0]
        assert (p[:, :, :3].sum((1, 2)) > p[:, :, 3:].sum((1, 2))).all() == left, name
        assert torch.equal(where.score(clip, MICRO)[:1], where.score(clip[:1], MICRO)) == left


@pytest.mark.parametrize("strength", [0.5, 2.0, 12.0])
def test_released_probabilities_are_powers_of_the_score_above_the_published_floor(strength):
    score, size = torch.rand(3, *MICRO, generator=torch.Generator().manual_seed(0)), Size(2, 3, 4)
    score[..., :4] *= 1e-9  # a part that hardly moves: below the floor in the first and the last clip
    score *= torch.tensor([1.0, 1e6, 1e-3]).view(-1, 1, 1, 1)
    p = Motion(strength, 0.0, sampling="power", motion="released").probability(score, size)
    mean = torch.nn.functional.avg_pool3d(score.double()[:, None], tuple(size), stride=1)[:, 0]
    power = mean.clamp_min(1e-6) ** strength
    torch.testing.assert_close(p.double(), power / power.sum((1, 2, 3), keepdim=True), rtol=1e-4, atol=1e-7)


def test_drawn_corners_follow_the_probabilities():
    where, size = Motion(strength=5.0), Size(4, 3, 3)
    clip = torch.rand(1, 3, 8, 32, 32) * torch.linspace(0, 1, 32)
    score = where.score(clip, MICRO)
    _, row, column = where.corners(score, (1, 20000), size, MICRO, torch.Generator().manual_seed(0))
    share = torch.bincount((row * 6 + column).flatten(), minlength=36) / 20000
    expected = where.probability(score, size).flatten()
    assert ((share - expected).abs() < 4.5 * (expected / 20000).sqrt() + 1e-4).all()


def test_strength_five_prefers_the_liveliest_centre_148_times():
    score = torch.zeros(1, 1, 4, 4)
    score[0, 0, 1, 2] = 3.0
    p = Motion(strength=5.0, random_rate=0.0).probability(score, Size(1, 1, 1))[0, 0]
    assert p[1, 2] / p[0, 0] == pytest.approx(148.4, rel=1e-3)


@pytest.mark.parametrize("name", [name for name in ALL if isinstance(ALL[name].where, Motion)])
@pytest.mark.parametrize("grid", [MICRO, IMAGE], ids=["video", "image"])
def test_a_still_clip_or_an_image_gives_uniform_positions(name, grid):
    t, h, w = grid
    still = torch.rand(2, 3, 1, 8 * h, 8 * w).expand(-1, -1, 2 * t, -1, -1)
    for clip in (still, still[:, :, :1]):
        p = ALL[name].where.probability(ALL[name].where.score(clip, grid), Size(t, 3, 4))
        assert torch.allclose(p, torch.full_like(p, 1 / p[0].numel()))
    assert all(m.seen.shape[1] for m in draw(ALL[name], 2, grid, clip=still[:, :, :1]))


def test_hidden_blocks_lie_where_the_clip_moves():
    clip = torch.zeros(8, 3, 16, 112, 112)
    clip[:, :, ::2, :48, :48] = torch.rand(8, 3, 8, 48, 48)  # flicker in the upper left
    shares = {}
    for name in ("MULTIBLOCK", "MOTION_GUIDED", "AMG", "MOTION_GUIDED_RELEASED", "AMG_RELEASED"):
        drawn = [NAMED[name].draw(8, (8, 14, 14), seed=0, step=step, clip=clip)[0] for step in range(10)]
        shares[name] = torch.stack([m.maps((8, 14, 14))[1][:, 0, :6, :6].float().mean() for m in drawn]).mean()
    assert shares["MULTIBLOCK"] < shares["MOTION_GUIDED"] < shares["AMG"]
    assert shares["MULTIBLOCK"] < shares["MOTION_GUIDED_RELEASED"] < shares["AMG_RELEASED"]


def test_an_integer_clip_gives_the_same_mask_as_its_float():
    clip = torch.randint(0, 256, (6, 3, 8, 64, 64), dtype=torch.uint8)
    assert same(draw(masks.MOTION_GUIDED, clip=clip), draw(masks.MOTION_GUIDED, clip=clip.float()))


# ------------------------------------------------------------------------------------------------------------ values and errors


@pytest.mark.parametrize("name", ALL)
def test_the_repr_rebuilds_an_equal_hashable_value(name):
    for again in (eval(repr(ALL[name]), vars(masks)), read(repr(ALL[name]))):
        assert again == ALL[name] and hash(again) == hash(ALL[name])


def test_reprs_are_short():
    assert repr(masks.MULTIBLOCK) == "MultiBlock()"
    assert repr(masks.AMG) == "MultiBlock(where=Motion(strength=5.0, random_rate=0.0))"
    assert repr(MultiBlock([Blocks(4, 0.15)])) == "MultiBlock(kinds=(Blocks(4, 0.15),))"
    with pytest.raises(FrozenInstanceError):
        masks.MULTIBLOCK.truncate = "random"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiBlock(truncate="none"), r"truncate='none'\): expected one of 'official'"),
        (lambda: MultiBlock(kinds=()), "one or more"),
        (lambda: MultiBlock(kinds=Blocks(2, 0.3)), "a tuple of Blocks"),
        (lambda: MultiBlock(where="motion"), "where='motion'"),
        (lambda: MultiBlock(max_temporal_keep=0), "max_temporal_keep=0"),
        (lambda: MultiBlock(max_keep=0), "max_keep=0"),
        (lambda: MultiBlock(full_complement=True, pred_full_complement=True), "exclude each other"),
        (lambda: Blocks(0, 0.15), "count=0"),
        (lambda: Blocks(2, 1.5), "scale=1.5"),
        (lambda: Blocks(2, (0.7, 0.2)), r"scale=\(0.7, 0.2\)"),
        (lambda: Motion(sampling="exp"), r"sampling='exp'\): expected one of 'softmax'"),
        (lambda: Motion(scaling="rank"), r"scaling='rank'\): expected one of 'minmax'"),
        (lambda: Motion(random_rate=2), "random_rate in"),
        (lambda: draw(masks.AMG, clip=None), "pass clip="),
        (lambda: draw(masks.AMG, clip=torch.rand(5, 3, 8, 64, 64)), "clip holds 5 samples, batch is 6"),
        (lambda: draw(masks.AMG, clip=torch.rand(6, 3, 8, 60, 64)), "8 x 60 x 64 does not divide into the token grid"),
        (lambda: draw(MultiBlock((Blocks(1, 1.0, aspect_ratio=1.0),))), "left nothing to see in 1000 tries"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
