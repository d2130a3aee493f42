"""The counting toy: its world, the bisimulation by hand, what training must and may do."""

import numpy as np
import pytest
import torch

from vjepa_lab.analysis import toys


def test_the_world():
    seen, after = toys.observations(), toys.transitions(toys.observations())
    counts = seen.sum(1)
    assert len(seen) == 2**9 - 1 and counts.max() == 8
    np.testing.assert_array_equal(counts[after[:, 0]], np.minimum(counts + 1, 8))
    np.testing.assert_array_equal(counts[after[:, 1]], np.maximum(counts - 1, 0))
    moved = (seen[after[:, 0]] != seen).sum(1)
    assert set(moved[counts < 8]) == {1} and set(moved[counts == 8]) == {0}


def test_bisimulation_by_hand():
    """A ring of four states with one action: with states 0 and 2 marked, opposite states are equivalent; with one marked, none are."""
    ring = np.array([[1], [2], [3], [0]])
    assert len(set(toys.bisimulation(ring, np.array([1, 0, 1, 0])))) == 2
    assert len(set(toys.bisimulation(ring, np.array([1, 0, 0, 0])))) == 4
    assert len(set(toys.bisimulation(ring, np.zeros(4)))) == 1


@pytest.mark.parametrize(
    ("setting", "classes"), list(zip(toys.SETTINGS, (9, 2, 1, 17, 511), strict=True)), ids=lambda v: getattr(v, "name", v)
)
def test_predicted_classes(setting, classes):
    seen = toys.observations()
    found = toys.predicted(setting, seen)
    assert found.max() + 1 == classes
    if setting.name == "dynamics + reward":  # the count and nothing but the count
        assert len(np.unique(np.stack([found, seen.sum(1)]), axis=1).T) == 9


def test_seeds_train_side_by_side_as_if_alone():
    how = {"steps": 5, "settings": toys.SETTINGS[:1], "progress": False}
    alone, both = toys.count(seeds=(1,), **how).rows, toys.count(seeds=(0, 1), **how).rows
    for column in ("far", "near", "dynamics", "target", "cosine"):
        assert alone[column].item() == pytest.approx(both.loc[both["seed"].eq(1), column].item(), rel=1e-4)


def test_a_target_keeps_what_the_transition_alone_lets_go():
    torch.manual_seed(0)
    found = toys.count(seeds=(0,), steps=250, settings=toys.SETTINGS[:3:2], progress=False)
    rows = found.rows.set_index("setting")
    assert rows.loc["dynamics + reward", "apart"] > 0.95
    assert rows.loc["dynamics alone", "near"] < 0.75 * rows.loc["dynamics + reward", "far"]
    assert found.must["dynamics + reward"][4, 4] == 0 and found.must["dynamics + reward"][3, 4] == 1
    assert set(found.curve["setting"]) == {"dynamics + reward"} and found.curve["cosine"].between(-1, 1).all()
    assert "Verdict (counting toy, 1 seeds" in toys.verdict(found, 250)
    from vjepa_lab import plots

    assert len(plots.counting(found, paper=True).axes) > 4
