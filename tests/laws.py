"""What every term, modifier and recipe must satisfy, written once. A term joins by its entry in a list, named recipes by themselves."""

import math
from dataclasses import replace

import pytest
import torch

from vjepa_lab import masks, variants
from vjepa_lab.model import VJEPA
from vjepa_lab.modifiers import Detached, Hard, Shuffled
from vjepa_lab.objective import ErrorMap, Loss, Objective, View, as_objective
from vjepa_lab.presets import PRESETS
from vjepa_lab.terms import (
    JEPA,
    Context,
    Contrast,
    Delta,
    Dynamics,
    Hamiltonian,
    Kinematic,
    Orthogonal,
    Pixels,
    SIGReg,
    Spectral,
    Straight,
    VelGate,
)
from vjepa_lab.values import read

SIZE = PRESETS["smoke"]
TEMPORAL = [
    *(Kinematic(), Kinematic(order=2), Kinematic(huber=0.5), Delta(), Delta(reduce="sum"), Dynamics(hidden=8), Straight()),
    *(Dynamics(hidden=0, foretell="own"), Contrast(negatives="all", temperature=1.0)),
    *(Contrast(negatives=which) for which in ("next", "both", "all")),
    *(Spectral(weights=which) for which in ("linear", "uniform", "highpass", "released")),
    *(Spectral(amplitude=True), VelGate(), VelGate(within="step", quantile=0.3), VelGate(gate="pixels"), Pixels(hidden=8)),
    VelGate(gate="released", within="step"),
    *(VelGate(temperature=0.2), Pixels(hidden=0, pixels="unit"), Pixels(hidden=8, target="within")),
    *(Hamiltonian(method=which, hidden=8) for which in Hamiltonian.METHODS),
    Hamiltonian(dt=0.1, toward="teacher", hidden=8, layers=2),
    Hamiltonian(method="consistency", conserve=0.1, hidden=8),
]
STATISTICS = [
    *(Orthogonal(form=form) for form in Orthogonal.FORMS),
    *(Orthogonal(centre=centre) for centre in ("clip", "position", "global", "none")),
    *(SIGReg(slices=32), SIGReg(slices=32, samples="clips", n_scale=True), SIGReg(slices=32, samples="steps", both_sides=True)),
    SIGReg(slices=32, kinds="together"),
    SIGReg(slices=32, projector="bn_mlp", hidden=8),
]
AUXILIARY = [*TEMPORAL, *STATISTICS]
PER_TOKEN = [JEPA(), JEPA(distance="seen"), *TEMPORAL]
MODIFIED = [
    *(Hard(t) for t in PER_TOKEN),
    Hard(JEPA(), standardise=True),
    Hard(JEPA(), scope="batch"),
    Hard(JEPA(distance="seen"), scope="global"),
    Hard(JEPA(reduce="sum")),
    Hard(Delta(), scope="mask", tau=0.1),
]
TERMS = [
    JEPA(),
    JEPA(p=2.0),
    JEPA(distance="seen"),
    Context(),
    *AUXILIARY,
    *MODIFIED,
    Shuffled(Orthogonal()),
    Shuffled(Delta(on="dyn"), seed=3),
]
EDITIONS = [(name, edition) for edition in variants.EDITIONS for name in variants.names(edition)]


class Stub:
    """Latents with given student and teacher tokens [b t h w d], for laws that need no model."""

    def __init__(self, z, h=None, masks=(), still=None):
        self.z, self.h, self.masks = z, z.detach() if h is None else h, list(masks)
        self.grid, self.step, self.progress, self.still, self.share = z.shape[1:4], 0, 0.0, still, 1.0
        moving = torch.randn(3, *(2 * n for n in self.grid), generator=torch.Generator().manual_seed(0))
        self.clip = moving.expand(len(z), -1, -1, -1, -1)  # the same for every sample
        self.seen = [self._at(m.seen) for m in self.masks]

    def _at(self, index):
        return self.z.flatten(1, 3).gather(1, index.unsqueeze(-1).expand(-1, -1, self.z.shape[-1]))

    def normalise(self, z):
        return torch.nn.functional.layer_norm(z, z.shape[-1:])


def tokens(b=3, t=4, h=4, w=4, d=12, scale=1.0):
    return (torch.randn(b, t, h, w, d) * scale).requires_grad_()


def latents(objective, *, batch=3, frames=None, teacher="ema", mask=None, size=SIZE, **model):
    """A smoke-size model's latents of random clips; its student has moved away from its teacher."""
    objective, net = as_objective(objective), VJEPA.build(size, teacher=teacher, **model)
    with torch.no_grad():
        for p in net.student.parameters():
            p.add_(0.02 * torch.randn_like(p))
    clip = torch.randn(batch, 3, frames or SIZE.frames, SIZE.size, SIZE.size)
    drawn = (mask or masks.MultiBlock()).draw(batch, net.student.grid(clip), seed=0, step=0, clip=clip)
    return net, net.latents(clip, drawn, full="full" in objective.views)


def ids(values):
    return [repr(v) for v in values]


@pytest.mark.parametrize("term", TERMS, ids=ids(TERMS))
class TestTerm:
    def test_repr_rebuilds_it(self, term):
        assert read(repr(term)) == term
        assert hash(read(repr(term))) == hash(term)

    @pytest.mark.parametrize("view", ["full", "visible", "causal"])
    def test_is_a_finite_number_that_reaches_the_student(self, term, view):
        objective = Objective(((1.0, term.seen_as(view)),))
        net, lat = latents(objective)
        total, _ = Loss(objective, net.width)(lat)
        assert total.shape == () and total.dtype == torch.float32 and torch.isfinite(total) and total >= 0
        total.backward()
        grads = [p.grad for p in net.student.parameters()]
        assert all(g is not None for g in grads)
        assert sum(g.abs().sum() for g in grads) > 0
        assert all(p.grad is None for p in net.teacher.parameters())

    def test_heads_train(self, term):
        objective = Objective(((1.0, term),))
        net, lat = latents(objective)
        loss = Loss(objective, net.width)
        loss(lat)[0].backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())

    @pytest.mark.parametrize("view", ["full", "visible"])
    def test_on_an_image(self, term, view):
        """Finite and differentiable; what depends on time is zero."""
        objective = Objective(((1.0, term.seen_as(view)),))
        net, lat = latents(objective, frames=1)
        total, _ = Loss(objective, net.width)(lat)
        assert torch.isfinite(total)
        total.backward()
        if term in TEMPORAL or getattr(term, "term", None) in TEMPORAL:
            assert total == 0

    def test_padded_masks(self, term):
        objective = Objective(((1.0, term.seen_as("visible")),))
        blocks = masks.MultiBlock((masks.Blocks(3, 0.3), masks.Blocks(2, 0.5)), truncate="padded")
        net, lat = latents(objective, mask=blocks)
        total, _ = Loss(objective, net.width)(lat)
        assert torch.isfinite(total)


@pytest.mark.parametrize("term", AUXILIARY, ids=ids(AUXILIARY))
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("norm", ["layer", "half", "raw"])
def test_finite_at_any_scale(term, scale, norm):
    z = tokens(scale=scale)
    term = replace(term, norm=norm)
    value = term.loss(Stub(z, torch.randn_like(z)), term.head(12))
    assert torch.isfinite(value)
    value.backward()
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("term", AUXILIARY, ids=ids(AUXILIARY))
def test_does_not_depend_on_the_order_of_clips(term):
    z, order = tokens(), torch.tensor([2, 0, 1])
    h, head = torch.randn_like(z), term.head(12)
    torch.testing.assert_close(term.loss(Stub(z, h), head), term.loss(Stub(z[order], h[order]), head))


@pytest.mark.parametrize("term", [Kinematic(), Kinematic(order=2), Kinematic(huber=0.5), Delta()], ids=repr)
def test_zero_on_a_still_clip(term):
    still = tokens(t=1).expand(-1, 4, -1, -1, -1)
    assert term.loss(Stub(still, torch.zeros_like(still))) == 0


@pytest.mark.parametrize("term", AUXILIARY, ids=ids(AUXILIARY))
def test_sees_only_its_half(term):
    z = tokens()
    term = replace(term, on="dyn", norm="half")
    term.loss(Stub(z, torch.randn_like(z)), term.head(12)).backward()
    assert z.grad[..., :6].abs().sum() == 0 and z.grad[..., 6:].abs().sum() > 0


@pytest.mark.parametrize("term", TEMPORAL, ids=ids(TEMPORAL))
def test_visible_view_is_the_full_view_where_everything_is_seen(term):
    z, h = tokens(), torch.randn(3, 4, 4, 4, 12)
    every = torch.arange(64).expand(3, -1)
    whole = masks.Mask(every, every[:, :0])
    lat = Stub(z, h, [whole])
    lat.scatter = lambda x, index, valid: x.unflatten(1, (4, 4, 4))
    lat.places = lambda index, valid: torch.ones(3, 4, 4, 4, dtype=torch.bool)
    head = term.head(12)
    torch.testing.assert_close(term.loss(lat, head), term.seen_as("visible").loss(lat, head))


@pytest.mark.parametrize("term", MODIFIED, ids=ids(MODIFIED))
def test_hard_weights_average_to_one(term):
    """Over what counts, and relative to the weights that the inner term gives: with both in one sum, they add up to as much as those."""
    objective = Objective(((1.0, term),))
    net, lat = latents(objective)
    plain = term.term.maps(lat, head := term.head(net.width))
    own = [torch.ones_like(m.value) if m.weight is None else m.weight.expand_as(m.value).float() for m in plain]
    if term.scope in ("batch", "global"):
        plain, own = [torch.cat([m.value.flatten() for m in plain])], [torch.cat([w.flatten() for w in own])]
    for weighted, inner, base in zip(term.maps(lat, head), plain, own, strict=True):
        weight = weighted.weight * weighted.value / inner if term.scope == "global" else weighted.weight
        assert math.isclose(weight.detach().sum(), base.sum(), rel_tol=1e-4)
        assert not weighted.weight.requires_grad


def recipe_loss(recipe):
    size = replace(SIZE, depth=4) if recipe.levels == 4 else SIZE
    net, lat = latents(
        recipe.objective, teacher=recipe.teacher, stop_grad=recipe.stop_grad, levels=recipe.levels, size=size, mask=recipe.masks
    )
    lat.progress = 0.75  # where every schedule is on
    return net, lat, Loss(recipe.objective, net.width, recipe.weighting)


@pytest.mark.parametrize(("name", "edition"), EDITIONS)
class TestRecipe:
    def test_repr_rebuilds_it(self, name, edition):
        recipe = variants.recipe(name, edition)
        assert read(repr(recipe)) == recipe
        assert hash(read(repr(recipe))) == hash(recipe)

    def test_total_is_the_weighted_sum_of_its_parts(self, name, edition):
        recipe = variants.recipe(name, edition)
        _, lat, loss = recipe_loss(recipe)
        total, parts = loss(lat)
        assert len(parts) == len(recipe.objective.terms)
        if recipe.weighting is None:
            weights = [w if isinstance(w, int | float) else w(0.75) for w, _ in recipe.objective]
            torch.testing.assert_close(total, sum(w * part for w, part in zip(weights, parts.values(), strict=True)))

    def test_every_parameter_learns(self, name, edition):
        """All but the heads whose loss gives no gradient: the released hard-weighted LD."""
        recipe = variants.recipe(name, edition)
        net, lat, loss = recipe_loss(recipe)
        loss(lat)[0].backward()
        idle = {n for m in (net, loss) for n, p in m.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
        place = [i for i, (_, term) in enumerate(recipe.objective) if isinstance(term, Detached)]
        expected = {n for n, _ in loss.named_parameters() if int(n.split(".")[1]) in place}
        assert idle == expected
        assert bool(place) == (edition == "released" and name in ("hw-ld", "fwm-hw-ld"))


@pytest.mark.parametrize("first", [Detached(Dynamics(view="visible", hidden=8)), VelGate(), Hard(Delta(view="visible"))], ids=repr)
def test_gradients_do_not_depend_on_the_order_of_terms(first):
    """Terms share the latents: one that is computed first must not leave them without gradient."""
    gradients = []
    for objective in (first + JEPA(), JEPA() + first):
        torch.manual_seed(1)
        net, lat = latents(objective)
        torch.manual_seed(2)
        Loss(objective, net.width)(lat)[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.student.parameters()]))
    torch.testing.assert_close(*gradients)


def test_hard_weights_of_a_clip_in_which_nothing_counts():
    """Official truncation can leave a clip without two successive visible steps: it gets no weight, and no NaN."""
    weights = Hard(Delta()).weights(torch.rand(2, 5), torch.tensor([[True] * 5, [False] * 5]))
    assert torch.isfinite(weights).all() and not weights[1].any()


def test_empty_map_is_a_differentiable_zero():
    empty = torch.zeros(3, 0, requires_grad=True)
    mean = ErrorMap(empty).mean()
    mean.backward()
    assert mean == 0


def test_view_reads_validity_off_the_shape():
    z = tokens()
    view = View(Stub(z), "full")
    view.name, view.__dict__["valid"] = "visible", torch.ones(3, 4, 4, 4, dtype=torch.bool)
    view.valid[0, 1] = False
    assert (~view.valid_for(torch.zeros(3, 3, 4, 4))[0]).flatten(1).all(1).tolist() == [True, True, False]
    assert (~view.valid_for(torch.zeros(3, 2, 4, 4))[0]).flatten(1).all(1).tolist() == [True, True]
    with pytest.raises(ValueError, match="one entry per token"):
        view.valid_for(torch.zeros(3, 7))
