"""Terms against independent references in numpy, and what each must do by its definition."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from laws import Stub, latents, tokens
from torch.utils.flop_counter import FlopCounterMode

from vjepa_lab import variants
from vjepa_lab.cost import cost, of_terms, typical_lengths
from vjepa_lab.masks import Mask
from vjepa_lab.model import VJEPA
from vjepa_lab.modifiers import Detached, Hard
from vjepa_lab.objective import ErrorMap, Loss, Recipe, Term
from vjepa_lab.presets import MICRO, SMOKE
from vjepa_lab.terms import (
    JEPA,
    SIGREG,
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
    statistics,
)
from vjepa_lab.weighting import CosineGate, Fixed, GradientRatio, Projection, TorchJD, Uncertainty


def views(seed=0, **shape):
    """Student and teacher tokens, and the same as float64 numpy, normalised."""
    torch.manual_seed(seed)
    z, h = tokens(**shape), torch.randn_like(tokens(**shape)).detach()
    lat = Stub(z, h)
    return lat, lat.normalise(z).detach().double().numpy(), h.double().numpy()


def close(value, expected, tolerance=1e-5):
    value, expected = (float(x.detach()) if isinstance(x, torch.Tensor) else float(x) for x in (value, expected))
    assert abs(value - expected) <= tolerance * max(1.0, abs(expected))


def epps_pulley(x, directions, knots=17, t_max=3.0):
    """LeJEPA's statistic without the factor n: trapezoid over [0, t_max], doubled, Gaussian window."""
    t = np.linspace(0, t_max, knots)
    projected = (x @ directions)[:, :, None] * t
    gap = (np.cos(projected).mean(0) - np.exp(-(t**2) / 2)) ** 2 + np.sin(projected).mean(0) ** 2
    return 2 * np.trapezoid(gap * np.exp(-(t**2) / 2), t, axis=-1)


def directions_at(step, d, slices):
    """The random directions that SIGReg draws at a step, as numpy."""
    drawn = torch.randn(d, slices, generator=torch.Generator().manual_seed(step))
    return torch.nn.functional.normalize(drawn, dim=0).double().numpy()


def test_sigreg_over_clips_and_over_steps():
    """One sample a clip; or, step by step, one a clip, as LeWorldModel takes them."""
    lat, _, _ = views(d=6)
    z, directions = lat.z.detach().double().numpy(), directions_at(0, 6, 300)
    clips = z.mean((1, 2, 3))
    close(SIGReg(slices=300, samples="clips", n_scale=True).loss(lat), len(clips) * epps_pulley(clips, directions).mean())
    steps = [epps_pulley(z[:, t].mean((1, 2)), directions).mean() for t in range(4)]
    close(SIGReg(slices=300, samples="steps").loss(lat), np.mean(steps))


def test_sigreg_over_steps_leaves_out_the_steps_that_nobody_sees():
    _, lat = latents(SIGReg(view="visible"))
    early = torch.arange(32).expand(3, -1)  # the first two of four steps
    lat.masks = [Mask(early, torch.arange(32, 64).expand(3, -1))]
    lat.seen = [torch.randn(3, 32, lat.seen[0].shape[-1], requires_grad=True)]
    z, directions = lat.seen[0].detach().double().numpy().reshape(3, 2, 16, -1), directions_at(0, lat.seen[0].shape[-1], 300)
    steps = [epps_pulley(z[:, t].mean(1), directions).mean() for t in range(2)]
    close(SIGReg(slices=300, samples="steps", view="visible").loss(lat), np.mean(steps))
    close(SIGReg(slices=300, samples="steps", n_scale=True, view="visible").loss(lat), 3 * np.mean(steps))


def test_sigreg_over_both_sides():
    """eb_jepa's integral: 10 knots over [-3, 3], none of them at 0."""
    lat, _, _ = views(d=6)
    x, directions = lat.z.detach().double().numpy().mean((1, 2, 3)), directions_at(0, 6, 256)
    t = np.linspace(-3, 3, 10)
    gap = np.abs(np.exp(1j * (x @ directions)[:, :, None] * t).mean(0) - np.exp(-(t**2) / 2)) ** 2
    expected = np.trapezoid(gap * np.exp(-(t**2) / 2), t, axis=-1).mean()
    ((weight, term),) = SIGREG["eb_jepa"]
    close(term.loss(lat), expected)
    assert weight == 10.0


def test_a_projectors_normalisation_is_over_the_samples_that_count():
    """As torch's own is, of those alone: what is not seen lies at zero, and would count."""
    term, x = SIGReg(samples="steps", projector="bn_mlp", hidden=8), torch.randn(3, 6, 5, requires_grad=True)
    head, counts = term.head(5), torch.tensor([[1.0, 1, 0, 1, 0, 1], [0] * 6, [1] * 6])
    torch.nn.init.normal_(head.scale)
    torch.nn.init.normal_(head.shift)
    own = torch.nn.BatchNorm1d(8)
    own.weight, own.bias = head.scale, head.shift
    kept = counts > 0
    expected = head.outer(torch.nn.functional.gelu(own(head.inner(x[kept]))))
    torch.testing.assert_close(head((x * counts.unsqueeze(-1)), counts)[kept], expected)
    _, lat = latents(SIGReg(view="visible"))
    lat.masks = [Mask(torch.arange(32).expand(3, -1), torch.arange(32, 64).expand(3, -1))]  # of four steps the first two
    lat.seen = [torch.randn(3, 32, lat.seen[0].shape[-1])]
    term = SIGReg(samples="steps", projector="bn_mlp", hidden=8, slices=50, view="visible")
    head = term.head(lat.seen[0].shape[-1])
    half = Stub(lat.seen[0].unflatten(1, (2, 4, 4)))
    close(term.loss(lat, head), SIGReg(samples="steps", projector="bn_mlp", hidden=8, slices=50).loss(half, head).item())


def test_sigreg_behind_a_projector_gives_a_layer_norm_its_way_out():
    """Tokens of one length are not normal from every side; a projector's output may be."""
    term = SIGReg(slices=64, most=0, projector="bn_mlp", hidden=64)
    z = torch.nn.functional.layer_norm(torch.randn(8, 4, 4, 4, 4), (4,))
    head, lat = term.head(4), Stub(z.requires_grad_())
    optimiser = torch.optim.Adam(head.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        optimiser.zero_grad()
        loss = term.loss(lat, head)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * SIGReg(slices=64, most=0).loss(lat).item()


@pytest.mark.parametrize("n_scale", [False, True])
def test_sigreg(n_scale):
    lat, _, _ = views(d=6)
    lat.step = 5
    directions = directions_at(5, 6, 300)
    x = lat.z.detach().double().numpy().reshape(-1, 6)
    expected = epps_pulley(x, directions).mean() * (len(x) if n_scale else 1)
    close(SIGReg(slices=300, most=0, n_scale=n_scale).loss(lat), expected)


@pytest.mark.parametrize("both_sides", [False, True])
def test_the_gradient_of_sigreg_is_that_of_its_formula(both_sides, monkeypatch):
    """Three statistics of samples that count differently, in double precision; and the term's own, which takes its directions in parts."""
    term = SIGReg(slices=50, knots=9, t_max=4.0, both_sides=both_sides, samples="steps")
    x = (3 * torch.randn(3, 12, 5, dtype=torch.double)).requires_grad_()
    share = torch.rand(3, 12, dtype=torch.double).softmax(1)
    directions = torch.randn(5, 50, dtype=torch.double)
    t = torch.linspace(-4 if both_sides else 0, 4, 9, dtype=torch.double)
    gap = ((torch.exp(1j * (x @ directions).unsqueeze(-1) * t) * share[..., None, None]).sum(1) - torch.exp(-t.square() / 2)).abs().square()
    expected = (1 if both_sides else 2) * torch.trapezoid(gap * torch.exp(-t.square() / 2), t)
    value, towards = term.statistic(x, share, directions.split(20, 1)), torch.rand(3, 50, dtype=torch.double)
    torch.testing.assert_close(value, expected)
    found, wanted = (torch.autograd.grad((y * towards).sum(), x)[0] for y in (value, expected))
    torch.testing.assert_close(found, wanted)
    latents, grads = torch.randn(8, 2, 2, 3, 5, requires_grad=True), []
    for at_once in (2**18, 60):
        monkeypatch.setitem(statistics.CHUNK, "cpu", at_once)
        grads.append(torch.autograd.grad(term.loss(Stub(latents)), latents)[0])
    torch.testing.assert_close(*grads)


def test_sigreg_of_all_mask_kinds_together():
    """The published code's: one sample of every kind's visible tokens, and the factor n of all of them."""
    _, lat = latents(SIGReg(view="visible"))
    x = np.concatenate([seen.detach().double().numpy().reshape(-1, seen.shape[-1]) for seen in lat.seen])
    expected = len(x) * epps_pulley(x, directions_at(0, x.shape[1], 300)).mean()
    close(SIGReg(slices=300, most=0, n_scale=True, kinds="together", view="visible").loss(lat), expected)
    assert len(lat.seen) > 1


def test_sigreg_of_each_mask_kind_by_itself():
    """The mean over the kinds, none of which is left out."""
    _, lat = latents(SIGReg(view="visible"))
    each = [seen.detach().double().numpy().reshape(-1, seen.shape[-1]) for seen in lat.seen]
    directions = directions_at(0, each[0].shape[1], 300)
    expected = [epps_pulley(x, directions).mean() for x in each]
    assert len(expected) > 1 and abs(expected[0] / np.mean(expected) - 1) > 1e-3
    close(SIGReg(slices=300, most=0, view="visible").loss(lat), np.mean(expected))


def test_sigreg_is_small_for_normal_tokens_and_large_for_collapsed_ones():
    """Under the null, n times the statistic is sqrt(2 pi) erf(3 / sqrt 2) - sqrt(2 pi / 3) erf(3 sqrt 1.5) = 1.05 in expectation."""
    normal = Stub(torch.randn(16, 4, 8, 8, 12))
    null = SIGReg(n_scale=True, most=0).loss(normal)
    assert 0.8 < float(null) < 1.3
    assert SIGReg(n_scale=True, most=0).loss(Stub(torch.zeros(16, 4, 8, 8, 12))) > 100 * null


def test_sigreg_draws_new_directions_at_every_step():
    lat, _, _ = views()
    first = SIGReg(slices=8).loss(lat)
    lat.step = 1
    assert SIGReg(slices=8).loss(lat) != first


@pytest.mark.parametrize("weights", ["linear", "uniform", "highpass", "released"])
def test_spectral(weights):
    lat, z, h = views()
    scale = {"linear": np.array([1, 2, 3]) / 2, "uniform": np.ones(3), "highpass": np.array([0, 0.5, 1]), "released": [0.1, 0.55, 1]}[
        weights
    ]
    gap = np.abs(np.fft.rfft(z - h, axis=1, norm="backward" if weights == "released" else "ortho")).mean(-1)
    close(Spectral(weights=weights).loss(lat), (gap * np.reshape(scale, (1, 3, 1, 1))).mean())


def test_spectral_amplitude_is_blind_to_a_shift_in_time():
    z = torch.randn(2, 4, 3, 3, 12)
    shifted = Stub(z, Stub(z).normalise(z).roll(1, 1))
    assert Spectral(amplitude=True).loss(shifted) < 1e-6 < Spectral().loss(shifted)


def test_spectral_is_zero_where_no_place_is_seen_at_all_times():
    model, loss = VJEPA.build(SMOKE), Loss(0.5 * Spectral(view="visible"), SMOKE.dim)
    clips = torch.randn(2, 3, SMOKE.frames, SMOKE.size, SMOKE.size)
    drawn = MICRO.masks.draw(2, SMOKE.grid, seed=0, step=0)
    total, _ = loss(model.latents(clips, drawn))
    total.backward()
    assert total == 0 and all(p.grad is None or p.grad.abs().max() == 0 for p in model.student.parameters())


def test_contrast():
    lat, z, h = views()
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    own = (unit(z) * unit(h)).sum(-1)
    later = (unit(z)[:, :-1] * unit(h)[:, 1:]).sum(-1)
    close(Contrast(margin=0.5).loss(lat), np.maximum(0.5 - own[:, :-1] + later, 0).mean())
    earlier = (unit(z)[:, 1:] * unit(h)[:, :-1]).sum(-1)
    both = (np.maximum(0.3 - own[:, :-1] + later, 0) + np.maximum(0.3 - own[:, 1:] + earlier, 0)) / 2
    close(Contrast(margin=0.3, negatives="both").loss(lat), both.mean())
    logits = np.exp(np.einsum("bthwd,bshwd->bhwts", unit(z), unit(h)) / 0.4)
    share = np.diagonal(logits, axis1=-2, axis2=-1) / logits.sum(-1)
    close(Contrast(negatives="all", temperature=0.4).loss(lat), -np.log(share).mean())


def test_straight():
    lat, z, _ = views()
    v = np.diff(z, axis=1)
    cosine = (v[:, 1:] * v[:, :-1]).sum(-1) / np.linalg.norm(v[:, 1:], axis=-1) / np.linalg.norm(v[:, :-1], axis=-1)
    close(Straight().loss(lat), (1 - cosine).mean())


@pytest.mark.parametrize("order", [1, 2])
def test_kinematic(order):
    lat, z, _ = views()
    change = np.diff(z, n=order, axis=1)
    close(Kinematic(order=order).loss(lat), np.abs(change).mean())
    huber = np.where(np.abs(change) < 0.5, change**2 / 2, 0.5 * (np.abs(change) - 0.25))
    close(Kinematic(order=order, huber=0.5).loss(lat), huber.mean())


def test_smooth_l1_is_huber_over_its_threshold():
    lat, z, _ = views()
    change = torch.tensor(np.diff(z, axis=1))
    smooth = torch.nn.functional.smooth_l1_loss(change, torch.zeros_like(change), beta=0.3)
    close(Kinematic(huber=0.3).loss(lat) / 0.3, smooth)


@pytest.mark.parametrize("term", [Kinematic(), Delta(), Dynamics(), Pixels(), Spectral(), VelGate(), Hamiltonian()], ids=repr)
def test_a_sum_over_channels_is_their_number_times_the_mean(term):
    """The printed 1-norms (Eq. 5, 9) against the means that V-JEPA computes."""
    lat, _, _ = views()
    torch.manual_seed(0)
    head = term.head(12)
    channels = {Pixels: 3, Hamiltonian: 6}.get(type(term), 12)
    close(type(term)(reduce="sum").loss(lat, head), channels * term.loss(lat, head).item())


def test_a_sum_over_channels_in_jepa_and_its_context():
    for term in (JEPA, Context):
        net, lat = latents(term())
        close(term(reduce="sum").loss(lat), net.width * term().loss(lat).item())


@pytest.mark.parametrize("options", [{"on": "app"}, {"on": "dyn", "norm": "raw"}, {"norm": "half"}], ids=str)
@pytest.mark.parametrize("term", [JEPA, Context])
def test_what_jepa_and_its_context_cannot_do_is_refused(term, options):
    """They see the predictor's output and the teacher, never z, which `on` and `norm` are about."""
    with pytest.raises(ValueError, match=rf"{term.__name__}\(.*=.*leave them out"):
        term(**options)


def test_soft_velgate_against_numpy():
    lat, z, h = views()
    speed = np.abs(np.diff(h, axis=1)).mean(-1)
    limit = np.quantile(speed.reshape(3, -1), 0.3, axis=1)[:, None, None, None]
    gate = 1 / (1 + np.exp(-(1 - speed / limit) / 0.2))
    change = np.abs(np.diff(z, axis=1)).mean(-1)
    close(VelGate(quantile=0.3, temperature=0.2).loss(lat), (change * gate).sum() / gate.sum())
    close(VelGate(quantile=0.3, temperature=1e-6).loss(lat), VelGate(quantile=0.3).loss(lat).item())


def test_velgate_counts_the_slow_half_of_each_clip():
    lat, z, h = views()
    speed = np.abs(np.diff(h, axis=1)).mean(-1)
    gate = speed <= np.quantile(speed.reshape(3, -1), 0.5, axis=1)[:, None, None, None]
    change = np.abs(np.diff(z, axis=1)).mean(-1)
    close(VelGate().loss(lat), (change * gate).sum() / gate.sum())


def test_velgate_as_released():
    """Speed is the teacher's 2-norm, the quantile every token's of a step, and moving tokens count as zero rather than not at all."""
    _, lat = latents(VelGate(view="visible"))
    h = lat.h.double().numpy()
    speed = np.linalg.norm(np.diff(h, axis=1), axis=-1)
    gate = speed <= np.quantile(speed.reshape(*speed.shape[:2], -1), 0.5, axis=-1)[..., None, None]
    values = []
    for kind, mask in enumerate(lat.masks):
        seen = lat.places(mask.seen).numpy()
        change = np.abs(np.diff(lat.scatter(lat.seen[kind], mask.seen).detach().double().numpy(), axis=1)).mean(-1)
        values.append((gate * change)[seen[:, 1:] & seen[:, :-1]].mean())
    close(VelGate(gate="released", within="step", view="visible", norm="raw").loss(lat), np.mean(values))


def test_dynamics_and_pixels_with_a_linear_head():
    lat, z, h = views()
    head = torch.nn.Linear(12, 12)
    with torch.no_grad():
        foreseen = head(torch.tensor(z[:, :-1]).float()).double().numpy()
    close(Dynamics().loss(lat, head), np.abs(foreseen - np.diff(h, axis=1)).mean())
    close(Dynamics(reduce="sum").loss(lat, head), np.abs(foreseen - np.diff(h, axis=1)).sum(-1).mean())
    half = torch.nn.Linear(6, 6)
    with torch.no_grad():
        foreseen = half(torch.tensor(z[:, :-1, ..., 6:]).float()).double().numpy()
    close(Dynamics(on="dyn", foretell="own").loss(lat, half), np.abs(foreseen - np.diff(h, axis=1)[..., 6:]).mean())
    colours = torch.nn.Linear(12, 3)
    clip = lat.clip.double().numpy().reshape(3, 3, 4, 2, 4, 2, 4, 2).mean((3, 5, 7)).transpose(0, 2, 3, 4, 1)
    with torch.no_grad():
        foreseen = colours(torch.tensor(z[:, :-1]).float()).double().numpy()
    close(Pixels().loss(lat, colours), np.abs(foreseen - np.diff(clip, axis=1)).mean())
    unit = np.diff(clip, axis=1) * np.array([0.229, 0.224, 0.225])  # ImageNet's deviations: pixels in [0, 1]
    close(Pixels(pixels="unit").loss(lat, colours), np.abs(foreseen - unit).mean())
    frames = lat.clip.double().numpy().reshape(3, 3, 4, 2, 4, 2, 4, 2).mean((5, 7)).transpose(0, 2, 4, 5, 1, 3)  # [b t h w c p]
    with torch.no_grad():
        foreseen = colours(torch.tensor(z).float()).double().numpy()
    close(Pixels(target="within").loss(lat, colours), np.abs(foreseen - (frames[..., 1] - frames[..., 0])).mean())


def test_heads_without_a_hidden_layer_are_linear():
    for term in (Pixels(hidden=0), Dynamics(hidden=0)):
        (layer,) = term.head(12)
        assert isinstance(layer, torch.nn.Linear)


def test_a_change_within_a_tubelet_of_one_frame_is_refused():
    lat, _, _ = views()
    lat.clip = lat.clip[:, :, ::2]
    with pytest.raises(ValueError, match="tubelets of two frames"):
        Pixels(target="within").loss(lat, torch.nn.Linear(12, 3))


class Oscillator(torch.nn.Module):
    """H = (q^2 + p^2) / 2, summed over channels: tokens turn in the (q, p) plane."""

    def forward(self, x):
        return x.square().sum(-1, keepdim=True) / 2


@pytest.mark.parametrize("method", ["symplectic", "euler", "leapfrog", "energy", "released"])
def test_hamiltonian(method):
    """With a known H the residual has a closed form: dH/dq = q, dH/dp = p."""
    lat, z, _ = views()
    dt, q, p = 0.3, z[..., :6], z[..., 6:]
    q0, q1, p0, p1 = q[:, :-1], q[:, 1:], p[:, :-1], p[:, 1:]
    if method == "energy":
        energy = (z**2).sum(-1) / 2
        expected = np.abs(np.diff(energy, axis=1)).mean()
    else:
        half = p0 - dt / 2 * q0
        step = {
            "symplectic": (q0 + dt * p1, p0 - dt * q0),
            "euler": (q0 + dt * p0, p0 - dt * q0),
            "leapfrog": (q0 + dt * half, half - dt / 2 * (q0 + dt * half)),
            "released": (q0 + dt * p0, p0 - dt * (q0 + dt * p0)),
        }[method]
        expected = (np.abs(q1 - step[0]) + np.abs(p1 - step[1])).mean()
    close(Hamiltonian(method=method, dt=dt).loss(lat, Oscillator()), expected)


def test_consistency_against_numpy():
    """One leapfrog step under H = (q^2 + p^2) / 2 in closed form; the goal q[t+1] carries no gradient (HamJEPA)."""
    lat, z, _ = views()
    dt, q, p = 0.3, z[:, :-1, ..., :6], z[:, :-1, ..., 6:]
    half = p - dt / 2 * q
    q1 = q + dt * half
    p1 = half - dt / 2 * q1
    gap = (((q1**2 + p1**2) - (q**2 + p**2)).sum(-1) / 2) ** 2
    error = ((q1 - z[:, 1:, ..., :6]) ** 2).mean(-1) + 0.5 * gap
    loss = Hamiltonian(method="consistency", dt=dt, conserve=0.5).loss(lat, Oscillator())
    close(loss, error.mean())
    loss.backward()
    assert lat.z.grad[:, -1].abs().sum() == 0, "the last step is a goal only"


def test_consistency_has_an_energy_that_cannot_be_constant():
    """Its head is the oscillator's energy and a hundredth of a potential: nought of both at rest."""
    head, x = Hamiltonian(method="consistency", hidden=8).head(12), torch.randn(5, 12)
    close((head(x) - 0.01 * head.potential(x[:, :6])).sum(), x.square().sum().item() / 2)


def test_hamiltonian_trains_its_head_through_its_slope():
    term = Hamiltonian(hidden=8)
    lat, _, _ = views()
    head = term.head(12)
    term.loss(lat, head).backward()
    assert all(p.grad.abs().sum() > 0 for p in head.parameters())


def test_hard_weights_against_numpy():
    error = torch.rand(3, 40) * 2
    for standardise in (False, True):
        e = error.double().numpy()
        if standardise:
            e = (e - e.mean(1, keepdims=True)) / e.std(1, keepdims=True)
        e = np.exp(np.clip(e / 0.7, -20, 20))
        expected = 40 * e / e.sum(1, keepdims=True)
        weights = Hard(Kinematic(), tau=0.7, standardise=standardise).weights(error, None)
        np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-4)


class Mixed(Term):
    """Two maps with weights of different kinds and shapes, as two mask kinds may give them."""

    def maps(self, latents, head):
        one = ErrorMap(latents.z[:, 0, :, :, 0], torch.tensor([True, False, True]).view(3, 1, 1))
        return [one, ErrorMap(latents.z[:, 1, :2, 0, 0])]


@pytest.mark.parametrize("scope", ["batch", "global"])
def test_hard_over_the_batch_joins_maps_with_and_without_weights(scope):
    lat, _, _ = views()
    z = lat.z.detach().double().numpy()
    errors, base = np.concatenate([z[:, 0, :, :, 0].ravel(), z[:, 1, :2, 0, 0].ravel()]), np.repeat([1, 0, 1, 1], [16, 16, 16, 6])
    weight = np.exp(errors / 0.8) * base
    weight *= base.sum() / weight.sum()
    close(Hard(Mixed(), tau=0.8, scope=scope).loss(lat), (weight * errors).sum() / weight.sum())


def orthogonal(rows):
    """Mean squared entry of the cross-covariance of the two halves of [n d], as it is."""
    half = rows.shape[1] // 2
    return ((rows[:, :half].T @ rows[:, half:] / len(rows)) ** 2).mean()


@pytest.mark.parametrize(("centre", "over"), [("batch", (0, 1, 2, 3)), ("global", (0, 1, 2, 3)), ("clip", (1, 2, 3)), ("position", (0,))])
def test_orthogonal_takes_means_over_what_it_says(centre, over):
    lat, _, _ = views()
    x = lat.z.detach().double().numpy()
    close(Orthogonal(centre=centre, norm="raw").loss(lat), orthogonal((x - x.mean(over, keepdims=True)).reshape(-1, 12)))


def test_orthogonal_without_a_centre():
    lat, _, _ = views()
    close(Orthogonal(centre="none", norm="raw").loss(lat), orthogonal(lat.z.detach().double().numpy().reshape(-1, 12)))


@pytest.mark.parametrize(("centre", "axes"), [("clip", (1, 2, 3)), ("position", (0,))])
def test_orthogonal_centres_visible_tokens_only(centre, axes):
    """Places that are not seen are in no mean."""
    _, lat = latents(Orthogonal(view="visible"))
    values = []
    for kind, mask in enumerate(lat.masks):
        seen = lat.places(mask.seen).numpy()
        x = lat.scatter(lat.seen[kind], mask.seen, None).detach().double().numpy()
        mean = x.sum(axes, keepdims=True) / np.maximum(seen.sum(axes, keepdims=True), 1)[..., None]
        values.append(orthogonal((x - mean)[seen]))
    close(Orthogonal(centre=centre, norm="raw", view="visible").loss(lat), np.mean(values))


# ---- what a recipe costs: the design's numbers, from an analytic count at the paper's size


@pytest.mark.parametrize(("name", "expected"), [("baseline", 843), ("ld", 1925), ("kin-l1", 1564), ("future", 756)])
def test_cost_at_the_papers_size(name, expected):
    assert abs(variants.recipe(name).cost("base").total / expected - 1) < 0.02


def test_cost_of_the_visible_view():
    visible = cost(Recipe(variants.recipe("ld").objective.seen_as("visible")))
    assert abs(visible.total / 846 - 1) < 0.02 and visible.ratio < 1.02


def test_encoder_flops_are_the_closed_form():
    """L (24 N D^2 + 4 N^2 D) + 2 N D 1536 for 1568 tokens of a ViT-B: 360.689 GFLOP."""
    assert round(variants.recipe("baseline").cost("base").passes["teacher"], 3) == 360.689


def counted(recipe, steps=1, batch=2, size=SMOKE) -> float:
    """GFLOP per clip of real training steps, forward and backward."""
    clip, places = torch.randn(batch, 3, size.frames, size.size, size.size), lambda n: torch.arange(n).expand(batch, n)
    masks = [Mask(places(seen), places(hidden)) for seen, hidden in typical_lengths(size.masks_of(recipe.masks), size, batch)]
    model = VJEPA.build(size)
    loss = Loss(recipe.objective, model.width, recipe.weighting)
    with FlopCounterMode(display=False) as counter:
        for step in range(steps):
            loss(model.latents(clip, masks, step=step, full="full" in recipe.objective.views))[0].backward()
    return counter.get_total_flops() / 1e9 / steps / batch


class Against(Term):
    """What opposes JEPA, at a weight of its own."""

    def maps(self, latents, head):
        return [ErrorMap(-0.5 * m.value, m.weight) for m in JEPA().maps(latents, head)]


@pytest.mark.parametrize(("extra", "rule"), [
    *((Dynamics(hidden=8), rule) for rule in (Fixed(every=1), GradientRatio(every=3), TorchJD("MGDA"))),
    *((Against(), rule) for rule in (Fixed(every=3), CosineGate(every=1), Projection())),
], ids=repr)  # fmt: skip
def test_what_adaptive_weights_cost_is_what_the_counter_counts(rule, extra):
    """FLOPs of real steps with the rule beside those without it; a projection is counted as where it acts, on what opposes."""
    recipe, every = Recipe(JEPA() + extra, weighting=rule), 3  # steps, a multiple of each rule's
    said = recipe.cost(SMOKE, 2)
    assert said.passes["weighting"] == pytest.approx(counted(recipe, every) - counted(replace(recipe, weighting=None), every), rel=0.03)
    assert "weighting" in repr(said) and "weighting" not in Recipe(recipe.objective).cost(SMOKE).passes
    assert "weighting" not in Recipe(recipe.objective, weighting=Uncertainty()).cost(SMOKE).passes


@pytest.mark.parametrize("term", [
    *(Hamiltonian(method=method, hidden=32, layers=2) for method in Hamiltonian.METHODS),
    *(Hamiltonian(method="energy", hidden=32, toward="teacher"), Contrast(negatives="all"), SIGReg(slices=32, most=0), Orthogonal()),
    *(Hard(Dynamics(hidden=32)), Detached(Dynamics(hidden=32))),
], ids=repr)  # fmt: skip
def test_what_a_term_costs_is_what_the_counter_counts(term):
    """FLOPs of a real step beside those of one with a term that multiplies nothing. A clip alone, as a statistic's sums are counted."""
    plain = Detached(Kinematic()) if term.idle else Kinematic()
    extra = counted(Recipe(JEPA() + term), batch=1) - counted(Recipe(JEPA() + plain), batch=1)
    assert Recipe(JEPA() + term).cost(SMOKE, 1).passes["terms"] == pytest.approx(extra, rel=0.01)


def test_a_pass_for_a_term_without_gradient_goes_forward_alone():
    trained, idle = (Recipe(JEPA() + term).cost(SMOKE).passes for term in (Kinematic(), Detached(Kinematic())))
    assert idle == trained | {"student, full clip": pytest.approx(trained["student, full clip"] / 3)}
    both = Recipe(JEPA() + Kinematic() + Detached(Kinematic())).cost(SMOKE).passes
    assert both == trained


def test_what_a_recipe_costs_depends_on_no_random_state_and_leaves_it():
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        typical_lengths.cache_clear()
        found.append(typical_lengths(variants.recipe("amg").masks, SMOKE, 3))
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1]


def test_the_projection_of_the_context_is_counted():
    """Of each seen token, from the predictor's width to four levels of the encoder's; forward, and twice that backward."""
    size, recipe = replace(SMOKE, depth=4), variants.recipe("baseline", "released")
    seen = sum(n for n, _ in typical_lengths(size.masks_of(recipe.masks), size, 8))
    passes = recipe.cost(size).passes
    assert passes["terms"] == pytest.approx(3 * 2 * seen * size.pred_dim * 4 * size.dim / 1e9)
    assert sum(of_terms(recipe, size)) == pytest.approx(passes["terms"])


# ---- every row trains


@pytest.mark.slow
@pytest.mark.parametrize(("name", "edition"), [(n, e) for e in variants.EDITIONS for n in variants.names(e)])
def test_every_row_trains_twenty_steps(name, edition, tmp_path):
    import vjepa_lab as vl

    source = vl.data.open("synthetic", frames=8, size=32, n=32, cache="memory")
    run = vl.pretrain(name, source, "smoke", edition=edition, runs=tmp_path, steps=20, depth=4, progress=False, log_every=1)
    assert run.steps_done == 20
    assert run.recipe == variants.recipe(name, edition)
    assert run.metrics()["loss"].notna().all()
