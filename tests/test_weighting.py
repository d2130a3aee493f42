"""Rules that set weights: what their definitions say on gradients worked by hand; values; training and exact resume."""

import math
from functools import partial

import pytest
import torch

import vjepa_lab as vl
from vjepa_lab import blocks, weighting
from vjepa_lab.objective import Loss, Recipe
from vjepa_lab.schedules import Ramp
from vjepa_lab.terms import JEPA, Delta, Dynamics, Kinematic
from vjepa_lab.values import read
from vjepa_lab.weighting import CosineGate, CosineWeight, Fixed, GradientRatio, Projection, TorchJD, Uncertainty, Weigher

RULES = [
    *(Fixed(every=2), CosineWeight(every=2), CosineGate(every=2, momentum=0.5), Projection(), GradientRatio(0.5, every=2), Uncertainty()),
    *(TorchJD("MGDA"), TorchJD("PCD", (("tau", 0.05),)), TorchJD("GradVac"), TorchJD("AlignedMTL", every=2, momentum=0.3)),
]
MAIN, WITH, AGAINST = (3.0, 4.0), (2.0, 0.0), (-2.0, 1.0)  # norm 5; cosine 0.6; cosine -2/(5 sqrt 5)


def student(*gradients, rule, own, private=()):
    """A weigher on losses <g, theta> + <1, private>, whose gradients on theta are known; the weighted gradient and the private ones."""
    theta = torch.nn.Parameter(torch.tensor([0.3, -0.2]))
    losses = [torch.tensor(g) @ theta + sum(p.sum() for p in private[i : i + 1]) for i, g in enumerate(gradients)]
    weigher = Weigher(rule, own)
    if weigher.due(0):
        weigher.measure(losses, [theta], own)
    weigher.total(losses, list(private), own).backward()
    return theta.grad, weigher


@pytest.mark.parametrize("rule", [Fixed(), CosineWeight(), CosineGate(), Projection()])
def test_without_conflict_the_main_weight_is_as_written(rule):
    _, weigher = student(MAIN, WITH, rule=rule, own=[2.0, 0.5])
    assert weigher.now[0] == 2.0


def test_fixed():
    gradient, weigher = student(MAIN, AGAINST, rule=Fixed(), own=[1.0, 0.5])
    torch.testing.assert_close(gradient, torch.tensor([2.0, 4.5]))
    assert weigher.report(("JEPA", "X"))["cosine X"] == pytest.approx(-2 / (5 * math.sqrt(5)))


def test_cosine_weight_is_the_cosine_or_nothing():
    gradient, weigher = student(MAIN, WITH, AGAINST, rule=CosineWeight(), own=[1.0, 0.5, 0.5])
    assert weigher.now == pytest.approx([1.0, 0.5 * 0.6, 0.0])
    torch.testing.assert_close(gradient, torch.tensor([3.6, 4.0]))


def test_cosine_gate_shuts_out_what_opposes():
    gradient, weigher = student(MAIN, WITH, AGAINST, rule=CosineGate(), own=[1.0, 0.5, 0.5])
    assert weigher.now == [1.0, 0.5, 0.0]
    torch.testing.assert_close(gradient, torch.tensor([4.0, 4.0]))


def test_projection_takes_out_the_opposing_part():
    gradient, _ = student(MAIN, WITH, AGAINST, rule=Projection(), own=[1.0, 0.5, 0.5])
    main, opposed = torch.tensor(MAIN), torch.tensor(AGAINST)
    cleaned = opposed - (opposed @ main) / (main @ main) * main
    assert float(cleaned @ main) == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(gradient, main + 0.5 * torch.tensor(WITH) + 0.5 * cleaned)


def test_gradient_ratio_sets_the_norm():
    gradient, _ = student(MAIN, WITH, rule=GradientRatio(0.3), own=[1.0, 77.0])
    torch.testing.assert_close(gradient, torch.tensor([3.0 + 0.3 * 5, 4.0]))


def test_uncertainty_starts_as_written_and_settles_at_the_inverse_loss():
    """At its optimum exp(-s) = 1 / L, so that every term counts 1."""
    losses, weigher = [torch.tensor(4.0), torch.tensor(0.25)], Weigher(Uncertainty(), [1.0, 0.5])
    assert weigher.now == pytest.approx([1.0, 0.5])
    optimiser = torch.optim.SGD(weigher.parameters(), lr=0.1)
    for _ in range(500):
        optimiser.zero_grad()
        weigher.total(losses, [], [1.0, 0.5]).backward()
        optimiser.step()
    assert weigher.now == pytest.approx([0.25, 4.0], rel=1e-3)
    with pytest.raises(ValueError, match="must be positive"):
        Weigher(Uncertainty(), [1.0, 0.0])


def test_torchjd_mgda_is_the_shortest_convex_combination():
    """Of g = (1, 0) and 2 g' = (0, 2) written as 2 * (0, 1): weights 4/5 and 1/5 on the weighted gradients."""
    gradient, weigher = student((1.0, 0.0), (0.0, 1.0), rule=TorchJD("MGDA", (("max_iters", 1000),)), own=[1.0, 2.0])
    assert weigher.now == pytest.approx([0.8, 0.4], abs=2e-3)
    torch.testing.assert_close(gradient, torch.tensor([0.8, 0.4]), atol=2e-3, rtol=0)


def test_torchjd_pcd_follows_the_main_gradient_and_still_serves_the_other():
    gradient, _ = student(MAIN, AGAINST, rule=TorchJD("PCD", (("tau", 0.05),)), own=[1.0, 1.0])
    assert gradient @ torch.tensor(AGAINST) > 0
    assert torch.nn.functional.cosine_similarity(gradient, torch.tensor(MAIN), dim=0) > 0.9


def test_torchjd_upgrad_serves_both_of_two_that_conflict():
    """Its projection needs a quadratic program's solver, which the extra brings."""
    gradient, _ = student(MAIN, AGAINST, rule=TorchJD("UPGrad"), own=[1.0, 1.0])
    assert gradient @ torch.tensor(MAIN) > 0 and gradient @ torch.tensor(AGAINST) > -1e-4


def test_what_belongs_to_one_term_learns_as_written():
    """Whatever a rule does to the student: a shut gate does not stop the head behind it, nor projection speed up the predictor."""
    for rule in (CosineGate(), Projection(), CosineWeight(), GradientRatio(), TorchJD("MGDA")):
        predictor, head = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
        student(MAIN, AGAINST, rule=rule, own=[1.5, 0.5], private=(predictor, head))
        torch.testing.assert_close(predictor.grad, torch.full((2,), 1.5))
        torch.testing.assert_close(head.grad, torch.full((2,), 0.5))


def test_a_term_without_gradient_keeps_its_weight():
    """A batch of single images gives terms about change no gradient."""
    rule, own, theta = GradientRatio(0.3, momentum=0.0), [1.0, 1.0], torch.nn.Parameter(torch.ones(2))
    weigher = Weigher(rule, own)
    weigher.measure([torch.tensor(MAIN) @ theta, torch.tensor(WITH) @ theta], [theta], own)
    before = list(weigher.now)
    weigher.measure([torch.tensor(MAIN) @ theta, 0 * theta.sum()], [theta], own)
    assert weigher.now == before


def watched(rule, *pairs, own=(1.0, 1.0)):
    """A weigher that has measured each pair of gradients in turn."""
    theta, weigher = torch.nn.Parameter(torch.ones(2)), Weigher(rule, list(own))
    for pair in pairs:
        weigher.measure([torch.tensor(g) @ theta for g in pair], [theta], list(own))
    return weigher


def test_smoothing_remembers():
    """Cosines and log norms, the last of two measurements at 1 / 1.9 of the weight."""
    gram = watched(Fixed(momentum=0.9), (MAIN, WITH), (MAIN, AGAINST)).gram
    cosine = (0.9 * 0.6 - 2 / (5 * math.sqrt(5))) / 1.9
    norm = math.exp((0.9 * math.log(2) + math.log(5) / 2) / 1.9)
    torch.testing.assert_close(gram, torch.tensor([[25, 5 * norm * cosine], [5 * norm * cosine, norm**2]], dtype=torch.float64))


def test_how_large_the_first_gradients_are_decides_nothing():
    """Squared norms fall a hundredfold after the first step: cosine and log norm are averages over measurements all the same."""
    first = [tuple(10 * x for x in g) for g in (MAIN, WITH)]
    later = [(MAIN, AGAINST)] * 12
    weigher = watched(CosineWeight(), first, *later)
    weights = torch.tensor([0.99 ** (12 - i) for i in range(13)], dtype=torch.float64)
    cosines = torch.tensor([0.6] + [-2 / (5 * math.sqrt(5))] * 12, dtype=torch.float64)
    assert weigher.report(("JEPA", "X"))["cosine X"] == pytest.approx(float(weights @ cosines / weights.sum()))
    assert weigher.now == [1.0, 0.0]
    assert watched(CosineGate(), first, *later).now == [1.0, 0.0]
    assert watched(GradientRatio(0.3), first, *later).now[1] == pytest.approx(0.3 * 5 / math.sqrt(5), rel=0.05)
    projected = watched(Projection(every=50, momentum=0.9), first, *later[:6]).now
    assert projected[0] == pytest.approx(1 + 2 / 25, abs=0.05)


def test_an_older_state_keeps_its_weights_and_is_averaged_anew():
    """Such a state has the average of inner products, from which no average of cosines can be had."""
    old = Weigher(GradientRatio(0.3), [1.0, 1.0])
    old.set_extra_state({"gram": 1e6 * torch.eye(2, dtype=torch.float64), "weights": [1.0, 0.7], "calls": 5, "machine": {}})
    assert old.now == [1.0, 0.7] and old.gram is None and old.due(123)
    theta = torch.nn.Parameter(torch.ones(2))
    old.measure([torch.tensor(g) @ theta for g in (MAIN, WITH)], [theta], [1.0, 1.0])
    assert old.now == pytest.approx(watched(GradientRatio(0.3), (MAIN, WITH)).now) and not old.due(123)


def test_a_state_is_restored_exactly():
    seen, rule = [(MAIN, WITH), (MAIN, AGAINST), (MAIN, (0.0, 0.0)), (WITH, AGAINST)], Projection(every=2, momentum=0.9)
    whole, first, rest = watched(rule, *seen), watched(rule, *seen[:2]), Weigher(rule, [1.0, 1.0])
    rest.set_extra_state(first.get_extra_state())
    theta = torch.nn.Parameter(torch.ones(2))
    for pair in seen[2:]:
        rest.measure([torch.tensor(g) @ theta for g in pair], [theta], [1.0, 1.0])
    assert torch.equal(rest.gram, whole.gram) and rest.now == whole.now
    assert whole.count.tolist() == [[4, 3], [3, 3]]
    assert torch.equal(first.gram, watched(rule, *seen[:2]).gram)  # what was saved did not move on


@pytest.mark.parametrize("rule", [GradientRatio(0.3), CosineWeight(), Projection(every=5, momentum=0.9)])
def test_smoothing_starts_where_a_term_first_has_gradient(rule):
    """Where training begins with a batch of single images, nothing is known of terms about change: the zeros are no measurement."""
    own, theta = [1.0, 1.0], torch.nn.Parameter(torch.ones(2))
    late, main = Weigher(rule, own), torch.tensor(MAIN) @ theta
    late.measure([main, 0 * theta.sum()], [theta], own)
    for weigher in (late, prompt := Weigher(rule, own)):
        weigher.measure([main, torch.tensor(AGAINST) @ theta], [theta], own)
    torch.testing.assert_close(late.gram, prompt.gram)
    assert late.now == pytest.approx(prompt.now)


@pytest.mark.parametrize(("rule", "wanted"), [
    (Fixed(), [1.0, 0.25]),
    (CosineWeight(), [1.0, 0.25 * 0.6]),
    (CosineGate(), [1.0, 0.25]),
    (Projection(every=50), [1.0, 0.25]),
    (GradientRatio(0.3), [1.0, 0.75]),
    (TorchJD("MGDA", (("max_iters", 1000),), every=50), [1.0, 0.25]),  # relative to the step that was measured
])  # fmt: skip
def test_weights_follow_a_schedule_between_measurements(rule, wanted):
    theta = torch.nn.Parameter(torch.tensor([0.3, -0.2]))
    losses, weigher = [torch.tensor(g) @ theta for g in (MAIN, WITH)], Weigher(rule, [1.0, 0.5])
    weigher.measure(losses, [theta], [1.0, 0.5])
    if isinstance(rule, TorchJD):
        wanted = [weigher.now[0], weigher.now[1] / 2]
    before = list(weigher.now)
    with torch.no_grad():
        torch.testing.assert_close(weigher.total(losses, [], [1.0, 0.25]), wanted[0] * losses[0] + wanted[1] * losses[1])
    assert weigher.now == before  # an evaluation leaves it as it is
    weigher.total(losses, [], [1.0, 0.25]).backward()
    torch.testing.assert_close(theta.grad, wanted[0] * torch.tensor(MAIN) + wanted[1] * torch.tensor(WITH))
    assert weigher.now == pytest.approx(wanted)


@pytest.mark.parametrize("rule", [Fixed(), GradientRatio(0.3), TorchJD("MGDA", every=50)], ids=repr)
def test_a_state_of_before_schedules_were_followed_is_read(rule):
    theta = torch.nn.Parameter(torch.ones(2))
    losses = [torch.tensor(g) @ theta for g in (MAIN, WITH)]
    old, new = Weigher(rule, [1.0, 0.5]), Weigher(rule, [1.0, 0.5])
    old.measure(losses, [theta], [1.0, 0.5])
    new.set_extra_state({k: v for k, v in old.get_extra_state().items() if k != "solved"})
    assert new.now == old.now and torch.equal(new.total(losses, [], [1.0, 0.5]), old.total(losses, [], [1.0, 0.5]))


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_rule_is_a_value(rule):
    assert read(repr(rule)) == rule and hash(read(repr(rule))) == hash(rule)
    recipe = Recipe(JEPA() + 0.5 * Delta(), weighting=rule)
    assert read(repr(recipe)) == recipe


def test_bad_rules_are_refused():
    with pytest.raises(ValueError, match="expected every >= 1"):
        CosineGate(every=0)
    with pytest.raises(ValueError, match=r"no weighting 'Best' of Gramians; it has .*MGDA"):
        Weigher(TorchJD("Best"), [1.0, 1.0])
    with pytest.raises(ValueError, match="two terms or more"):
        Recipe(JEPA(), weighting=CosineGate())


def test_without_torchjd_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchjd", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[multitask\]'"):
        TorchJD("MGDA").solver()


# ------------------------------------------------------------------------------------------------------------------------ in training


@pytest.fixture(scope="module")
def world():
    return vl.data.open("synthetic", frames=8, size=32, n=24, cache="memory")


def objective():
    return JEPA() + Ramp(0.2, 0.5) * Dynamics(hidden=8) + 0.1 * Kinematic()


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_rule_trains_and_resumes_exactly(rule, world, tmp_path):
    how = {"preset": "smoke", "progress": False, "log_every": 1, "save_every": 3, "steps": 6}
    fixed = isinstance(rule, Uncertainty)  # it learns the weights from where they start
    recipe = Recipe(JEPA() + 0.2 * Dynamics(hidden=8) + 0.1 * Kinematic() if fixed else objective(), weighting=rule)
    whole = vl.pretrain(recipe, world, out=tmp_path / "whole", **how)

    class Killed(Exception):
        pass

    def kill(record):
        if record["step"] == 4:  # one step past the checkpoint of step 3
            raise Killed

    with pytest.raises(Killed):
        vl.pretrain(recipe, world, out=tmp_path / "parts", callback=kill, **how)
    resumed = vl.pretrain(recipe, world, out=tmp_path / "parts", **how)
    a, b = whole.checkpoint()["model"], resumed.checkpoint()["model"]
    assert all(torch.equal(a[k], b[k]) for k in a)
    one, two = whole.metrics(), resumed.metrics()
    columns = [c for c in one if c.startswith(("weight ", "cosine "))]
    assert len(columns) >= 3 and one[columns].equals(two[columns])
    assert whole.loss().weights() == pytest.approx(list(one.iloc[-1][[f"weight {n}" for n in recipe.objective.names]]), rel=0.05)


def test_a_rule_measures_gradients_of_compiled_blocks(world, tmp_path, monkeypatch):
    """Several times through one compiled graph; traced as for a compiler, and run without one, which takes seconds less."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    how = {"preset": "smoke", "progress": False, "bf16": False, "steps": 2}
    blocks.compiled.cache_clear()
    try:
        runs = [vl.pretrain("aux-gradnorm", world, out=tmp_path / str(way), compile=way, **how) for way in (False, True)]
    finally:
        blocks.compiled.cache_clear()
    eager, compiled = (run.checkpoint()["model"] for run in runs)
    assert runs[1].config["sessions"][-1]["compile"]
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-4, rtol=1e-3)


def test_fixed_is_training_without_a_rule(world, tmp_path):
    how = {"preset": "smoke", "progress": False}
    plain, fixed = (
        vl.pretrain(Recipe(JEPA() + Ramp(0.2, 0.5) * Delta(), weighting=rule), world, out=tmp_path / name, **how)
        for name, rule in (("plain", None), ("fixed", Fixed()))
    )
    a, b = plain.checkpoint()["model"], fixed.checkpoint()["model"]
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


def test_evaluating_a_loss_does_not_adapt_it(world):
    from laws import latents

    recipe = Recipe(JEPA() + 0.5 * Delta(), weighting=GradientRatio())
    net, lat = latents(recipe.objective)
    loss = Loss(recipe.objective, net.width, recipe.weighting)
    with torch.no_grad():
        loss(lat)
    assert loss.weigher.gram is None
    loss.parts(latents(recipe.objective)[1])
    assert loss.weigher.gram is None


def test_the_gramian_is_of_the_student_alone(world):
    """A loss that only a head feels has no gradient on the student."""
    theta, head = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    gram = weighting.gramian([theta.sum(), head.sum()], [theta])
    torch.testing.assert_close(gram, torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.float64))
