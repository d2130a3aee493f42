"""The algebra and the terms: identities, closed forms on small tensors, clear errors."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laws import SIZE, Stub, latents, tokens

import vjepa_lab as vl
from vjepa_lab import data as video
from vjepa_lab import masks, variants
from vjepa_lab.analysis.diagnose import error_maps
from vjepa_lab.model import VJEPA
from vjepa_lab.modifiers import Detached, Hard, Shuffled
from vjepa_lab.objective import ErrorMap, Loss, Objective, Recipe, Term, diff
from vjepa_lab.schedules import Cosine, Ramp
from vjepa_lab.terms import JEPA, Contrast, Delta, Dynamics, Hamiltonian, Kinematic, Orthogonal, SIGReg, Spectral, VelGate, token_distance
from vjepa_lab.values import read
from vjepa_lab.weighting import GradientRatio, Uncertainty


class Straight(Term):
    """A term as a user would write it in a notebook cell."""

    def error(self, view, head):  # [b t-2 h w]
        v = diff(view.z)
        return 1 - F.cosine_similarity(v[:, 1:], v[:, :-1], dim=-1)


class Margin(Term):
    margin: float
    power: int = 2

    def error(self, view, head):
        return (view.z.abs().mean(-1) - self.margin).relu() ** self.power


def test_prints_as_equation_12():
    """The paper's Eq. 12 with plain hard weights."""
    text = "JEPA() + Hard(JEPA()) + 0.05*Kinematic(on='app') + 0.01*Orthogonal() + Hard(Dynamics(on='dyn'))"
    assert repr(JEPA() + Hard(JEPA()) + 0.05 * Kinematic(on="app") + 0.01 * Orthogonal() + Hard(Dynamics(on="dyn"))) == text
    assert repr(read(text)) == text


def test_sums_and_products():
    a, b = JEPA(), Delta()
    assert 0.5 * (a + 2 * b) == Objective(((0.5, a), (1.0, b)))
    assert sum([a, b]) == a + b
    assert a * 2 == 2 * a
    assert (a + b) + b == a + (b + b)
    assert Cosine(1.0, 0.0) * b == Objective(((Cosine(1.0, 0.0), b),))
    assert 0.5 * (Cosine(1.0, 0.0) * b) == Cosine(0.5, 0.0) * b


def test_a_user_term_is_a_value():
    term = Margin(0.5, on="app")
    assert repr(term) == "Margin(0.5, on='app')"
    assert term == Margin(0.5, on="app") != Margin(0.4, on="app")
    assert eval(repr(JEPA() + 0.1 * term)) == JEPA() + 0.1 * term


@pytest.mark.parametrize("view", ["full", "visible"])
def test_a_user_term_trains_through_any_view(view):
    objective = JEPA() + 0.1 * Straight(view=view)
    net, lat = latents(objective)
    total, parts = Loss(objective, net.width)(lat)
    total.backward()
    assert set(parts) == {"JEPA", "Straight"} and parts["Straight"] > 0


def test_names_are_distinct():
    assert (JEPA() + JEPA() + Kinematic(on="app") + Hard(JEPA())).names == ("JEPA", "JEPA#2", "Kinematic[app]", "Hard(JEPA)")


def test_schedules():
    cosine, ramp = Cosine(1.0, 0.2), Ramp(0.0, 0.5, begin=0.5)
    assert [round(cosine(p), 6) for p in (-1, 0, 0.5, 1, 2)] == [1.0, 1.0, 0.6, 0.2, 0.2]
    assert [ramp(p) for p in (0, 0.5, 0.75, 1, 2)] == [0.0, 0.0, 0.25, 0.5, 0.5]
    assert [Ramp(1.0, 0.0)(p) for p in (-1, 0, 0.25, 1, 2)] == [1.0, 1.0, 0.75, 0.0, 0.0]  # from the start to the end


def test_a_schedule_weighs_its_term():
    objective = JEPA() + Cosine(1.0, 0.0) * Kinematic()
    net, lat = latents(objective)
    loss = Loss(objective, net.width)
    lat.progress = 1.0
    total, parts = loss(lat)
    torch.testing.assert_close(total, parts["JEPA"])


# ---- identities between terms


def test_delta_is_dynamics_with_the_identity_as_head_on_changes():
    """Eq. 5 is Eq. 6 with z[t+1] - z[t] in place of Dyn(z[t])."""
    z, h = tokens(), torch.randn(3, 4, 4, 4, 12)
    lat = Stub(z, h)

    class Change(torch.nn.Module):
        def forward(self, _):
            return diff(lat.normalise(z))

    torch.testing.assert_close(Delta().loss(lat), Dynamics().loss(lat, Change()))


def test_jepa_by_hand():
    objective = JEPA() + Delta()
    _, lat = latents(objective)
    by_hand = sum((p - h).abs().mean() for p, h in zip(lat.pred, lat.target, strict=True)) / 2
    torch.testing.assert_close(JEPA().loss(lat), by_hand)
    squared = sum((p - h).square().mean() / 2 for p, h in zip(lat.pred, lat.target, strict=True)) / 2
    torch.testing.assert_close(JEPA(p=2.0).loss(lat), squared)


def test_targets_are_normalised():
    _, lat = latents(JEPA() + Delta())
    torch.testing.assert_close(lat.h.mean(-1), torch.zeros(lat.h.shape[:-1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(lat.h.var(-1, correction=0), torch.ones(lat.h.shape[:-1]), atol=1e-3, rtol=0)


def test_multilevel_targets_are_normalised_each():
    _, lat = latents(JEPA() + Delta(), levels=4, size=replace(SIZE, depth=4))
    levels = lat.h.unflatten(-1, (4, -1))
    torch.testing.assert_close(levels.mean(-1), torch.zeros(levels.shape[:-1]), atol=1e-5, rtol=0)


def test_hard_by_hand():
    """Three tokens with errors 0, 1, 2: weights 3 softmax(e)."""
    error = torch.tensor([[0.0, 1.0, 2.0]])
    expected = 3 * torch.tensor([[0.09003057, 0.24472847, 0.66524096]])
    torch.testing.assert_close(Hard(JEPA()).weights(error, None), expected)
    torch.testing.assert_close(Hard(JEPA(), tau=1e9).weights(error, None), torch.ones(1, 3))


def test_hard_clips_its_logits():
    """Errors as L1 sums exceed 20 everywhere: the printed formula then gives weight 1 to all."""
    torch.testing.assert_close(Hard(JEPA()).weights(torch.tensor([[100.0, 300.0, 600.0]]), None), torch.ones(1, 3))
    share = torch.tensor([[19.0, 20.0, 25.0]]).clamp(max=20).softmax(-1)  # 20 and 25 weigh the same, 19 less
    torch.testing.assert_close(Hard(JEPA()).weights(torch.tensor([[19.0, 20.0, 25.0]]), None), 3 * share)
    low = torch.tensor([[-25.0, -20.0, -19.0]])  # an error of a term's own making may be negative
    torch.testing.assert_close(Hard(JEPA()).weights(low, None), 3 * low.clamp(min=-20).softmax(-1))


def test_standardised_hard_weights_ignore_scale_and_offset():
    hard, error = Hard(JEPA(), standardise=True), torch.rand(2, 50)
    torch.testing.assert_close(hard.weights(error, None), hard.weights(0.01 * error + 3, None), atol=1e-3, rtol=1e-3)


def test_hard_gives_padding_no_weight():
    base = torch.tensor([[True, True, False]])
    weights = Hard(JEPA()).weights(torch.tensor([[1.0, 1.0, 9.0]]), base)
    torch.testing.assert_close(weights, torch.tensor([[1.0, 1.0, 0.0]]))


@pytest.mark.parametrize("form", Orthogonal.FORMS)
def test_orthogonal_by_hand(form):
    z = tokens(d=6)
    x = z.detach().double().reshape(-1, 6)
    x = (x - x.mean(0)).numpy()
    n, a, b = len(x), x[:, :3], x[:, 3:]
    if form == "corr_mean":
        a, b = a / a.std(0), b / b.std(0)
    cross = a.T @ b / n
    expected = {
        "cov_mean": (cross**2).mean(), "cov_sum": (cross**2).sum(), "vicreg": (cross**2).sum() / 3,
        "corr_mean": (cross**2).mean(), "paper": ((a.T @ b) ** 2).sum() / n,
    }[form]  # fmt: skip
    value = Orthogonal(form=form, norm="raw").loss(Stub(z))
    torch.testing.assert_close(value.double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-7)


def test_printed_orthogonality_has_a_floor():
    """Read literally, Eq. 8 is d_app*d_dyn in expectation for independent features, whatever N: 384*384 = 147 456 at the paper's size."""
    z = torch.randn(4, 8, 16, 16, 64)
    value = Orthogonal(form="paper", norm="raw").loss(Stub(z))
    assert abs(float(value) / (32 * 32) - 1) < 0.15


def test_distance_to_the_nearest_token():
    _, lat = latents(JEPA())
    view = next(JEPA().views(lat))
    seen, hidden = torch.tensor([[0]]), torch.tensor([[1, 4, 16, 21]])  # neighbours along column, row, time, and all three
    torch.testing.assert_close(token_distance(view, hidden, seen), torch.tensor([[1.0, 1.0, 1.0, 3.0**0.5]]))


def test_weights_of_kinds_are_equal():
    """V-JEPA averages each mask kind by itself: the kind with more hidden tokens weighs no more."""
    _, lat = latents(JEPA())
    sizes = [m.hidden.shape[1] for m in lat.masks]
    assert sizes[0] != sizes[1]
    joint = torch.cat([m.value.flatten() for m in JEPA().maps(lat, None)]).mean()
    assert not torch.isclose(joint, JEPA().loss(lat))


# ---- numbers of NumPy's


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (Hard(JEPA(), tau=np.float64(0.5)), "Hard(JEPA(), tau=0.5)"),
        (Kinematic(order=np.int64(2)), "Kinematic(order=2)"),
        (Kinematic() * np.float64(0.5), "0.5*Kinematic()"),
        (np.float64(0.5) * Kinematic(), "0.5*Kinematic()"),
        (Kinematic() * np.float32(0.5), "0.5*Kinematic()"),
        (np.float32(0.5) * (JEPA() + 0.1 * Delta()), "0.5*JEPA() + 0.05*Delta()"),
        ((JEPA() + 0.1 * Delta()) * np.float32(0.5), "0.5*JEPA() + 0.05*Delta()"),
        (Cosine(np.float64(1), np.float32(0.5)) * np.float32(0.5) * Delta(), "Cosine(0.5, 0.25)*Delta()"),
        (GradientRatio(ratio=np.float32(0.5), every=np.int64(3)), "GradientRatio(every=3, ratio=0.5)"),
        (Recipe(JEPA(), levels=np.int64(4), rope_grid=np.int64(16)), "Recipe(JEPA(), levels=4, rope_grid=16)"),
        (Recipe(JEPA(), teacher="online", stop_grad=np.bool_(False)), "Recipe(JEPA(), teacher='online', stop_grad=False)"),
        (masks.Motion(strength=np.float64(5)), "Motion(strength=5.0)"),
        (masks.Blocks(np.int64(2), (np.float64(0.5), np.float64(0.75))), "Blocks(2, (0.5, 0.75))"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_of_numpy_become_pythons(made, text):
    assert repr(made) == text and read(text) == made and hash(read(text)) == hash(made)


# ---- bad input


class Sampler:
    def draw(self, batch, grid, **how):
        return []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Kinematic(on="left"), "on='left'"),
        (lambda: Delta(view="half"), "view='half'"),
        (lambda: JEPA() + 3, "cannot add 3"),
        (lambda: Orthogonal(form="cov"), "cov_mean"),
        (lambda: Hard(JEPA(), scope="clips"), "scope='clips'"),
        (lambda: Recipe(JEPA(), teacher="emma"), "teacher='emma'"),
        (lambda: Recipe("JEPA()"), "Recipe('JEPA()'): expected a Term"),
        (lambda: Recipe(JEPA(), masks="amg"), "masks='amg'"),
        (lambda: Recipe(JEPA() + Delta(), weighting="gradnorm"), "weighting='gradnorm'"),
        (lambda: Recipe(JEPA(), stop_grad=False), "only an online teacher"),
        (lambda: Recipe(JEPA(), stop_grad=0), "stop_grad=0): expected True or False"),
        (lambda: Recipe(JEPA(), rope_grid=1), "rope_grid=1): expected a whole number, 2 or more"),
        (lambda: Recipe(JEPA(), rope_grid="16"), "rope_grid='16'"),
        (lambda: Recipe(JEPA(), masks=Sampler()), "subclasses MultiBlock"),
        (lambda: Recipe(JEPA() + Cosine(1, 0.1) * Delta(), weighting=Uncertainty()), "expected numbers, no schedules"),
        (lambda: Cosine(1, 0) * None, "cannot multiply Cosine(1, 0) by None"),
        (lambda: Cosine(1, 0) * "a", "cannot multiply Cosine(1, 0) by 'a'"),
        (lambda: "a" * Cosine(1, 0), "cannot multiply Cosine(1, 0) by 'a'"),
        (lambda: Cosine(1, 0) * torch.tensor(2.0), "cannot multiply Cosine(1, 0) by tensor(2.)"),
        (lambda: Cosine(1, 0) * masks.MultiBlock(), "unsupported operand"),
        (lambda: (JEPA() + Delta()) * "a", "cannot multiply JEPA() + Delta() by 'a'"),
        (lambda: Ramp(0, 1, begin="0"), "begin='0'"),
        (lambda: JEPA(p="2"), "JEPA(p='2'): expected a number above 0"),
        (lambda: Hard(JEPA(), tau="1"), "Hard(tau='1'): expected a number above 0"),
        (lambda: Kinematic(huber="1"), "Kinematic(huber='1'): expected a number above 0"),
        (lambda: VelGate(quantile="0.5"), "VelGate(quantile='0.5'): expected a finite number"),
        (lambda: VelGate(quantile=1.5), "VelGate(quantile=1.5): expected a number from 0 to 1"),
        (lambda: VelGate(temperature=-1), "VelGate(temperature=-1)"),
        (lambda: Contrast(margin="0.5"), "Contrast(margin='0.5')"),
        (lambda: Hamiltonian(method="consistency", conserve=-1), "Hamiltonian(conserve=-1)"),
        (lambda: Shuffled(JEPA(), seed="a"), "Shuffled(seed='a')"),
        (lambda: Hamiltonian(on="app").head(6), "expected an even number of them, got 3 of 6"),
        (lambda: GradientRatio(ratio="1"), "ratio='1'"),
        (lambda: GradientRatio(every="1"), "every='1'"),
        (lambda: Recipe(Detached(JEPA())), "at least one term that trains"),
        (lambda: JEPA() + Delta, "did you mean Delta()"),
        (lambda: float("nan") * JEPA(), "weight of JEPA() is nan"),
        (lambda: Cosine("1", 0), "finite numbers"),
        (lambda: Ramp(0, 1, begin=0.9, until=0.1), "begin <= until"),
        (lambda: Kinematic(order=0), "order=0"),
        (lambda: Kinematic(huber=-1.0), "huber=-1.0"),
        (lambda: JEPA(p=0), "p=0"),
        (lambda: Dynamics(hidden=-3), "hidden=-3"),
        (lambda: SIGReg(knots=1), "knots=1"),
        (lambda: SIGReg(kinds="together", samples="clips"), "needs samples='tokens'"),
        (lambda: Contrast(temperature=0), "temperature=0"),
        (lambda: Hamiltonian(dt=0), "dt=0"),
        (lambda: Hard(JEPA(), tau=0), "tau=0"),
        (lambda: GradientRatio(ratio=-1), "ratio above 0"),
        (lambda: variants.recipe("fwm-hw-l"), "fwm-hw-ld"),
        (lambda: variants.recipe("FWM_HW_LD"), "did you mean fwm-hw-ld"),
        (lambda: variants.recipe("baseline", "sounds"), "sound"),
        (lambda: variants.recipe("JEPA() + Kin()"), "Kin"),
        (lambda: variants.recipe("__import__('os').system('true')"), "cannot read"),
        (lambda: variants.recipe("JEPA() +"), "not an expression"),
    ],
)
def test_bad_values_are_refused_by_name(make, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("JEPA(foo=1)", "unexpected keyword argument 'foo'"),
        ("JEPA() + 3", "cannot add 3"),
        ("Hard()", "missing 1 required positional argument"),
        ("Cosine(1, 0)*None", "cannot multiply Cosine(1, 0) by None"),
        ("-JEPA()", "bad operand type"),
    ],
)
def test_an_expression_that_cannot_be_is_a_value_error(text, message):
    with pytest.raises(ValueError, match=re.escape(f"cannot read {text!r}: ") + ".*" + re.escape(message)):
        variants.recipe(text)


class Shapeless(Term):
    def error(self, view, head):
        return view.z.mean()


class Absent(Term):
    def error(self, view, head):
        return None


class Untouched(Term):
    def error(self, view, head):
        return view.h.abs().mean(-1)


class Switch(Term):
    def error(self, view, head):
        return view.z.abs().mean(-1) > 0.5


class Lambda(Term):
    def head(self, dim):
        return lambda x: x


class Typo(Term):
    def error(self, view, head):
        return view.zz


class Guess(Term):
    """Compares prediction and target without saying view="hidden": it would see the first mask kind alone."""

    def error(self, view, head):
        return (view.pred - view.target).abs()


class Negative(Term):
    def error(self, view, head):
        error = view.z.abs().mean(-1)
        return ErrorMap(error, -torch.ones_like(error))


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (Shapeless(view="visible"), r"Shapeless: .*one entry per token"),
        (Absent(), r"Absent: .*got NoneType"),
        (Untouched(), r"Untouched: .*nothing that trains"),
        (Hard(Negative()), r"Hard\(Negative\): .*not negative"),
        (Negative(), r"Negative: .*not negative"),
        (Switch(), r"Switch: an error map holds real numbers, got torch.bool"),
        (Lambda(), r"Lambda: head\(dim\) must return a torch.nn.Module"),
        (Guess(), r"Guess: .*no view.pred.*view='hidden'"),
        (Kinematic(view="hidden"), r"Kinematic: .*no view.z.*view='visible'"),
        (Hard(Orthogonal()), r"Hard\(Orthogonal\): scope='clip' weighs the errors of each clip"),
    ],
    ids=repr,
)
def test_a_term_that_is_wrong_on_purpose_is_named(term, message):
    objective = JEPA() + term
    net, lat = latents(objective)
    with pytest.raises((ValueError, TypeError), match=message):
        Loss(objective, net.width)(lat)


def test_other_errors_of_a_term_carry_its_name():
    net, lat = latents(JEPA() + Typo())
    with pytest.raises(AttributeError, match="zz") as caught:
        Loss(JEPA() + Typo(), net.width)(lat)
    assert caught.value.__notes__ == ["in the term Typo"]


@pytest.mark.parametrize("view", ["full", "visible"])
def test_a_map_that_keeps_its_channels_means_the_same(view):
    """The same entries count as in the map [b t-1 h w] of the channels' mean."""

    class Channels(Term):
        def error(self, view, head):  # [b t-1 h w d]
            return diff(view.z).abs()

    _, lat = latents(JEPA() + Delta())
    lat.still = torch.tensor([False, True, False])
    torch.testing.assert_close(Channels(view=view).loss(lat), Kinematic(view=view).loss(lat))
    torch.testing.assert_close(Hard(Channels(view=view), tau=1e9).loss(lat), Kinematic(view=view).loss(lat))


def test_a_term_without_an_error_is_refused_by_name():
    class Empty(Term):
        pass

    net, lat = latents(JEPA() + Empty())
    with pytest.raises(NotImplementedError, match="Empty must define error"):
        Loss(JEPA() + Empty(), net.width)(lat)


def test_seen_as_leaves_jepa_alone():
    objective = (JEPA() + Hard(JEPA()) + Delta() + Hard(Delta())).seen_as("visible")
    assert repr(objective) == "JEPA() + Hard(JEPA()) + Delta(view='visible') + Hard(Delta(view='visible'))"
    assert isinstance(Recipe(objective).masks, masks.MultiBlock)


# ---- editions


def test_the_released_edition_trains_at_a_constant_rate_with_stretched_positions(tmp_path):
    source = vl.data.open("synthetic", frames=8, size=32, n=16, cache="memory")
    how = {"runs": tmp_path, "steps": 6, "depth": 4, "warmup": 2, "progress": False, "log_every": 1}
    for edition, grid in (("released", 16), ("paper", None)):
        run = vl.pretrain("baseline", source, "smoke", edition=edition, **how)
        rate = run.metrics()["lr"]
        assert (rate.iloc[2:].nunique() == 1) == (edition == "released") and rate.iloc[-1] <= run.preset.lr
        model = run.model()
        assert model.student.rope_base_grid == model.predictor.rope_base_grid == grid


def test_the_paper_weighs_by_distance_where_it_says_so_and_not_where_it_defines_the_error():
    """Table 1's loss is distance-weighted, the errors of Eq. 9 are not."""
    objective = variants.recipe("hw", "paper").objective
    assert repr(objective) == "JEPA(distance='seen') + 0.3*Hard(JEPA())"
    assert all(row.objective.terms[0] == (1.0, JEPA(distance="seen")) for row in variants.PAPER.values())


def test_too_many_levels_for_a_preset_are_named_with_their_cost():
    with pytest.raises(ValueError, match=r"4 levels and preset 'smoke' 2 blocks.*depth=4"):
        variants.recipe("baseline", "released").cost("smoke")
    assert variants.recipe("baseline", "released").cost(replace(SIZE, depth=4)).total > 0


class Wrong(Term):
    """Returns its first axis averaged away."""

    def error(self, view, head):
        return view.z.abs().mean((0, -1))


class Infinite(Term):
    def error(self, view, head):
        return view.z.mean(-1) / 0.0


def test_a_map_of_the_wrong_shape_is_named_by_hard_too():
    net, lat = latents(JEPA() + Hard(Wrong(view="visible")))
    with pytest.raises(ValueError, match=r"Hard\(Wrong\): .*one entry per token"):
        Loss(JEPA() + Hard(Wrong(view="visible")), net.width)(lat)


def test_a_term_that_is_not_finite_stops_the_training_by_name(tmp_path):
    source = vl.data.open("synthetic", frames=8, size=32, n=16, cache="memory")
    with pytest.raises(FloatingPointError, match="Infinite"):
        vl.pretrain(JEPA() + Infinite(), source, "smoke", runs=tmp_path, steps=2, progress=False)


def test_the_map_of_a_spectrum_is_over_places_and_not_over_frequencies():
    """Frequencies are no time steps: drawn over the frames they would say when."""
    objective = JEPA() + Spectral() + Hard(Spectral()) + Delta()
    net, clip = VJEPA.build(SIZE), torch.randint(0, 256, (3, SIZE.frames, SIZE.size, SIZE.size), dtype=torch.uint8)
    maps = error_maps(net, Loss(objective, net.width), clip)
    t, h, w = net.student.grid(clip[None])
    spectrum, hard = (maps[name] for name in maps if "Spectral" in name)
    for found in (spectrum, hard):
        assert found.shape == (t, h, w) and (found == found[0]).all() and np.isfinite(found).all()
    x = video.normalize(clip[None])
    whole = net.latents(x, masks.MultiBlock().draw(1, (t, h, w), seed=0, step=0, clip=x), full=True)
    (expected,) = Spectral().maps(whole, None)
    assert np.allclose(spectrum[0], expected.value[0].mean(0).detach(), atol=1e-6)
    assert len(maps["Delta"]) == t - 1
