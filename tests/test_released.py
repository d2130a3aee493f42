"""The released edition against the published trainer's arithmetic, written anew in numpy: visible tokens on the grid, pairs of which both
steps are visible, a mean for each mask kind, then over kinds (train.py of the paper's code)."""

import numpy as np
import pytest
import torch
from laws import recipe_loss

from vjepa_lab import masks, variants
from vjepa_lab.objective import nested
from vjepa_lab.terms import Orthogonal

RAMP = 0.25  # of the context loss at 75 % of training, where `recipe_loss` stands


def on_grid(seen, mask, grid):
    """Visible tokens [b k d] at their places [b t h w d], zero elsewhere, and which places those are."""
    b, _, d = seen.shape
    full, there = np.zeros((b, np.prod(grid), d)), np.zeros((b, np.prod(grid)), bool)
    rows = np.arange(b)[:, None]
    full[rows, mask.seen], there[rows, mask.seen] = seen, True
    return full.reshape(b, *grid, d), there.reshape(b, *grid)


def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def softmax_mean(weights_of, errors):
    """Mean of errors weighed by softmax times n over the last axis."""
    w = np.exp(weights_of)
    return (w / w.sum(-1, keepdims=True) * w.shape[-1] * errors).mean()


def distance_weights(mask, grid):
    """1 / sqrt of each visible place's distance to the nearest hidden one [b k]."""
    at = lambda ids: np.stack(np.unravel_index(np.asarray(ids), grid), -1).astype(float)
    gaps = np.linalg.norm(at(mask.seen)[:, :, None] - at(mask.hidden)[:, None], axis=-1)
    return gaps.min(-1) ** -0.5


def applied(head, x):
    with torch.no_grad():
        return head(torch.tensor(x, dtype=torch.float32)).double().numpy()


def expected(lat, heads, kind):
    """{term name: its loss on one mask kind}, of every term whose arithmetic is spelled out here."""
    numbers = lambda x: x.detach().double().numpy()
    mask, grid, h, clip = lat.masks[kind], lat.grid, numbers(lat.h), numbers(lat.clip)
    z, there = on_grid(numbers(lat.seen[kind]), mask, grid)
    pairs, half = there[:, 1:] & there[:, :-1], h.shape[-1] // 2
    dz, dh, now = np.diff(z, axis=1), np.diff(h, axis=1), z[:, :-1]
    flat = z[there] - z[there].mean(0)
    always = there.all(1)
    waves = np.fft.rfft((z - h).transpose(0, 2, 3, 1, 4)[always], axis=1)
    error = np.abs(numbers(lat.pred[kind]) - numbers(lat.target[kind])).mean(-1)
    behind = np.take_along_axis(h.reshape(len(h), -1, h.shape[-1]), np.asarray(mask.seen)[..., None], 1)
    t, rows, columns = grid
    colour = clip.reshape(len(clip), 3, t, -1, rows, clip.shape[3] // rows, columns, clip.shape[4] // columns).mean((3, 5, 7))
    action = np.diff(colour, axis=2).transpose(0, 2, 3, 4, 1)
    found = {
        "JEPA": error.mean(),
        "Hard(JEPA)": softmax_mean(error, error),
        "Context": (np.abs(numbers(lat.context[kind]) - behind).mean(-1) * distance_weights(mask, grid)).mean(),
        "Kinematic[app]": np.abs(dz[..., :half])[pairs].mean(),
        "Orthogonal": ((flat[:, :half].T @ flat[:, half:] / len(flat)) ** 2).mean(),
        "Delta": np.abs(dz - dh)[pairs].mean(),
        "Contrast": np.maximum(0.5 - cosine(now, h[:, :-1]) + cosine(now, h[:, 1:]), 0)[pairs].mean(),
        "Spectral": (np.abs(waves) * np.linspace(0.1, 1, waves.shape[1])[:, None]).mean(),
    }
    for name, head in heads.items():
        half_of = now[..., half:] if "[dyn]" in name else now
        if "Dynamics" in name:
            missed = np.abs(applied(head, half_of) - dh)[pairs].mean(-1)
            found[name] = softmax_mean(missed, missed) if "Hard" in name else missed.mean()
        elif "Pixels" in name:
            found[name] = np.abs(applied(head, half_of) - action)[pairs].mean()
    return found


ROWS = ["baseline", "fwm-hw-ld", "ld", "fwm", "ac-hw", "hw", "hw-ld", "fwm-ld", "combo", "delta", "ac", "fac", "ltc", "spectral"]


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("name", ROWS)
def test_every_mixed_row_computes_what_the_published_trainer_does(name):
    """All rows of Table 4 but masks alone, whose loss is the baseline's."""
    torch.manual_seed(0)
    recipe = variants.recipe(name, "released")
    _, lat, loss = recipe_loss(recipe)
    total, parts = loss(lat)
    heads = dict(zip(parts, loss.heads, strict=True))
    kinds = [expected(lat, heads, kind) for kind in range(len(lat.masks))]
    mean = {term: np.mean([kind[term] for kind in kinds]) for term in parts}
    for term, value in parts.items():
        assert value.item() == pytest.approx(mean[term], rel=1e-4), term
    weights = [RAMP if term == "Context" else weight for term, (weight, _) in zip(parts, recipe.objective, strict=True)]
    assert total.item() == pytest.approx(sum(w * mean[term] for w, term in zip(weights, parts, strict=True)), rel=1e-4)


def test_the_rows_are_those_of_table_4_that_change_the_loss():
    masks_alone = {
        n for n in variants.TABLE4 if variants.recipe(n, "released").objective == variants.recipe("baseline", "released").objective
    }
    assert set(ROWS) == (set(variants.TABLE4) - masks_alone) | {"baseline"} and masks_alone == {"baseline", "amg"}


def test_norms_are_channel_means_but_for_the_printed_frobenius_norm():
    forms = {}
    for edition in variants.EDITIONS:
        terms = [
            term for name in variants.names(edition) for _, outer in variants.recipe(name, edition).objective for term in nested(outer)
        ]
        assert {getattr(term, "reduce", "mean") for term in terms} == {"mean"}
        forms[edition] = {term.form for term in terms if isinstance(term, Orthogonal)}
    assert forms == {"sound": {"cov_mean"}, "paper": {"paper"}, "released": {"cov_mean"}}


def test_only_the_released_masks_take_motion_as_published():
    """Whose score mixes the clips of a batch."""
    for edition in variants.EDITIONS:
        wheres = [variants.recipe(name, edition).masks.where for name in variants.names(edition)]
        motions = {where.motion for where in wheres if isinstance(where, masks.Motion)}
        assert motions == {"released" if edition == "released" else "tubelet-mean"}


def test_the_published_code_cuts_masks_over_eight_clips_and_sees_more():
    """What the editions leave out: see the numbers in `variants`."""
    for clips, wanted in ((8, (421, 142)), (32, (354, 92))):
        drawn = [masks.MULTIBLOCK.draw(clips, (8, 14, 14), seed=0, step=step) for step in range(200)]
        seen = np.mean([[mask.seen.shape[1] for mask in kinds] for kinds in drawn], 0)
        np.testing.assert_allclose(seen, wanted, atol=15)
