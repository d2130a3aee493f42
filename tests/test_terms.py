"""Terms against independent references in numpy, and what each must do by its definition."""

import numpy as np
import pytest
import torch
from laws import Stub, tokens

from vjepa_lab import variants
from vjepa_lab.cost import cost
from vjepa_lab.modifiers import Hard
from vjepa_lab.objective import Recipe
from vjepa_lab.terms import Contrast, Dynamics, Hamiltonian, Kinematic, Pixels, SIGReg, Spectral, Straight, VelGate


def views(seed=0, **shape):
    """Student and teacher tokens, and the same as float64 numpy, normalised."""
    torch.manual_seed(seed)
    z, h = tokens(**shape), torch.randn_like(tokens(**shape)).detach()
    lat = Stub(z, h)
    return lat, lat.normalise(z).detach().double().numpy(), h.double().numpy()


def close(value, expected, tolerance=1e-5):
    assert abs(float(value) - float(expected)) <= tolerance * max(1.0, abs(float(expected)))


def epps_pulley(x, directions, knots=17, t_max=3.0):
    """LeJEPA's statistic without the factor n: trapezoid over [0, t_max], doubled, Gaussian window."""
    t = np.linspace(0, t_max, knots)
    projected = (x @ directions)[:, :, None] * t
    gap = (np.cos(projected).mean(0) - np.exp(-(t**2) / 2)) ** 2 + np.sin(projected).mean(0) ** 2
    return 2 * np.trapezoid(gap * np.exp(-(t**2) / 2), t, axis=-1)


@pytest.mark.parametrize("n_scale", [False, True])
def test_sigreg(n_scale):
    lat, _, _ = views(d=6)
    lat.step = 5
    draw = torch.Generator().manual_seed(5)
    directions = torch.nn.functional.normalize(torch.randn(6, 300, generator=draw), dim=0).double().numpy()
    x = lat.z.detach().double().numpy().reshape(-1, 6)
    expected = epps_pulley(x, directions).mean() * (len(x) if n_scale else 1)
    close(SIGReg(slices=300, most=0, n_scale=n_scale).loss(lat), expected)


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
    gap = np.abs(np.fft.rfft(z - h, axis=1, norm="ortho")).mean(-1)
    close(Spectral(weights=weights).loss(lat), (gap * np.reshape(scale, (1, 3, 1, 1))).mean())


def test_spectral_amplitude_is_blind_to_a_shift_in_time():
    z = torch.randn(2, 4, 3, 3, 12)
    shifted = Stub(z, Stub(z).normalise(z).roll(1, 1))
    assert Spectral(amplitude=True).loss(shifted) < 1e-6 < Spectral().loss(shifted)


def test_contrast():
    lat, z, h = views()
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    own = (unit(z) * unit(h)).sum(-1)
    later = (unit(z)[:, :-1] * unit(h)[:, 1:]).sum(-1)
    close(Contrast(margin=0.5).loss(lat), np.maximum(0.5 - own[:, :-1] + later, 0).mean())


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


def test_velgate_counts_the_slow_half_of_each_clip():
    lat, z, h = views()
    speed = np.abs(np.diff(h, axis=1)).mean(-1)
    gate = speed <= np.quantile(speed.reshape(3, -1), 0.5, axis=1)[:, None, None, None]
    change = np.abs(np.diff(z, axis=1)).mean(-1)
    close(VelGate().loss(lat), (change * gate).sum() / gate.sum())


def test_dynamics_and_pixels_with_a_linear_head():
    lat, z, h = views()
    head = torch.nn.Linear(12, 12)
    with torch.no_grad():
        foreseen = head(torch.tensor(z[:, :-1]).float()).double().numpy()
    close(Dynamics().loss(lat, head), np.abs(foreseen - np.diff(h, axis=1)).mean())
    colours = torch.nn.Linear(12, 3)
    clip = lat.clip.double().numpy().reshape(3, 3, 4, 2, 4, 2, 4, 2).mean((3, 5, 7)).transpose(0, 2, 3, 4, 1)
    with torch.no_grad():
        foreseen = colours(torch.tensor(z[:, :-1]).float()).double().numpy()
    close(Pixels().loss(lat, colours), np.abs(foreseen - np.diff(clip, axis=1)).mean())


class Oscillator(torch.nn.Module):
    """H = (q^2 + p^2) / 2, summed over channels: tokens turn in the (q, p) plane."""

    def forward(self, x):
        return x.square().sum(-1, keepdim=True) / 2


@pytest.mark.parametrize("method", ["symplectic", "euler", "leapfrog", "energy"])
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
        }[method]
        expected = (np.abs(q1 - step[0]) + np.abs(p1 - step[1])).mean()
    close(Hamiltonian(method=method, dt=dt).loss(lat, Oscillator()), expected)


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
