"""The counting toy: its world, the bisimulation by hand, what training must and may do."""

import numpy as np
import pandas as pd
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


def test_networks_start_from_weights_of_their_own():
    """Encoder, transition and head of one seed share no draw, nor do seeds."""
    nets = toys.Nets((0, 1), 1)
    first = [stack.layers[0].weight[seed].flatten()[:64] for stack in (nets.encoder, nets.transition, nets.head) for seed in (0, 1)]
    close = torch.corrcoef(torch.stack(first)).abs() - torch.eye(len(first))
    assert close.max() < 0.5


def test_what_training_merged_is_seen():
    """Five observations; the first two are equivalent, and the others are."""
    classes = np.array([0, 0, 1, 1, 1])
    code = np.array([0, 0.01, 1, 1, 1])
    found = toys._held_against(abs(code[:, None] - code), classes)
    assert found == pytest.approx({"apart": 1, "far": 0.995, "near": 0.01 / 4})
    assert toys._held_against(np.zeros((5, 5)), classes) == pytest.approx({"apart": 0, "far": 0, "near": 0})
    assert np.isnan(toys._held_against(np.zeros((5, 5)), np.zeros(5))["apart"])


def test_how_much_the_number_of_objects_explains():
    counts = toys.observations().sum(1)
    noise = torch.randn(2, len(counts), 3, generator=torch.Generator().manual_seed(0))
    number = torch.tensor(counts, dtype=torch.float32)[:, None].expand(-1, 3)
    known, unknown = toys._explained(torch.stack([5 * number + 3, noise[0]]), counts)
    assert known == pytest.approx(1) and unknown == pytest.approx(8 / 510, abs=0.02)
    half = toys._explained((number + number.std(correction=0) * noise[1])[None], counts)
    assert half[0] == pytest.approx(0.5, abs=0.05)


def told(**changed) -> str:
    """The verdict on a run of the joint setting and one of the reward alone."""
    joint = {"setting": "dynamics + reward", "seed": 0, "classes": 9, "apart": 1.0, "counts": 1.0, "learnt": True, "cosine": -0.4}
    alone = joint | {"setting": "reward alone", "classes": 2, "counts": 0.6, "cosine": np.nan}
    return toys.verdict(toys.Counting(pd.DataFrame([joint | changed, alone]), {}, {}, pd.DataFrame()), 10)


def test_the_verdict_follows_its_rows():
    assert "100.0% for dynamics + reward (9 classes)" in told() and "as the theorem says" in told() and "60% (reward alone)" in told()
    assert "90.0% for dynamics + reward" in told(apart=0.9) and "none alike where the losses are zero" in told(apart=0.9)
    assert "the theorem" not in told(setting="dynamics alone", apart=np.nan), "it says nothing of a target alone"
    assert "for dynamics + reward (9 classes)" not in told(learnt=False, apart=0.9) and "(1 of 2 runs)" in told(learnt=False)
    assert "pulling against it" in told() and "pulling against it" not in told(cosine=0.1)


def test_a_training_that_diverged_has_learnt_nothing():
    for setting in toys.SETTINGS:
        assert not toys._ends(setting, float("nan"), float("nan"))["learnt"]


def test_learnt_is_what_a_setting_trains():
    joint, reward, dynamics = toys.SETTINGS[:3]
    assert (
        toys._ends(joint, 0.01, 0.01)["learnt"]
        and not toys._ends(joint, 0.01, 0.06)["learnt"]
        and not toys._ends(joint, 0.06, 0.01)["learnt"]
    )
    assert (
        toys._ends(reward, 9.0, 0.01)["learnt"]
        and toys._ends(dynamics, 0.01, 9.0)["learnt"]
        and np.isnan(toys._ends(reward, 9, 0)["dynamics"])
    )


def test_a_target_keeps_what_the_transition_alone_lets_go():
    torch.manual_seed(0)
    found = toys.count(seeds=(0,), steps=250, settings=toys.SETTINGS[:3:2], progress=False)
    rows = found.rows.set_index("setting")
    assert rows.loc["dynamics + reward", "apart"] > 0.95
    assert rows.loc["dynamics alone", "near"] < 0.75 * rows.loc["dynamics + reward", "far"]
    assert found.must["dynamics + reward"][4, 4] == 0 and found.must["dynamics + reward"][3, 4] == 1
    assert set(found.curve["setting"]) == {"dynamics + reward"} and found.curve["cosine"].between(-1, 1).all()
    assert "Verdict (counting toy, 1 seed," in toys.verdict(found, 250)
    from vjepa_lab import plots

    assert len(plots.counting(found, paper=True).axes) > 4
