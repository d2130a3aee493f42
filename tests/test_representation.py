"""Measures of representations against planted truths and independent formulas; the halves against planted splits."""

import numpy as np
import pytest
import scipy.linalg
import torch

import vjepa_lab as vl
from vjepa_lab import data, plots
from vjepa_lab.analysis import geometry, halves, representation, subjects
from vjepa_lab.evaluation import features
from vjepa_lab.evaluation.features import Features

G = torch.Generator()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=G.manual_seed(seed), dtype=torch.float64)


def rotation(d, seed=1):
    return torch.linalg.qr(noise(d, d, seed=seed))[0]


def spectrum(eigenvalues, n=400):
    """Centred features [n d] whose covariance has exactly these eigenvalues, up to a common factor."""
    z = noise(n, len(eigenvalues))
    q = torch.linalg.qr(z - z.mean(0))[0]
    return (q * torch.as_tensor(eigenvalues, dtype=torch.float64).sqrt()) @ rotation(len(eigenvalues))


# -------------------------------------------------------------------------------------------------------------------- rank, spectrum


@pytest.mark.parametrize("k", [1, 4, 16])
def test_rank_of_k_directions_is_k(k):
    z = spectrum([1.0] * k + [0.0] * (32 - k)) + 5  # an offset is no direction once centred
    assert geometry.rankme(z) == pytest.approx(k, rel=1e-3)
    assert geometry.participation_ratio(z) == pytest.approx(k)
    sampled = noise(2000, k) @ noise(k, 32, seed=2)  # a random map: k directions of unequal strength
    assert k / 2 <= geometry.rankme(sampled) <= k + 0.01


def test_uncentred_rank_counts_the_mean():
    z = spectrum([1.0] * 4 + [0.0] * 12)
    shifted = z + 0.05 * rotation(16)[0]
    assert geometry.rankme(shifted, centre=False) != pytest.approx(geometry.rankme(z), abs=0.01)
    assert geometry.rankme(shifted) == pytest.approx(geometry.rankme(z))


def test_rank_measures_equal_their_formulas():
    z = noise(60, 20).float() * torch.linspace(0.1, 2, 20)
    s = np.linalg.svd(z.double().numpy() - z.double().numpy().mean(0), compute_uv=False)
    p = s / s.sum() + 1e-7
    assert geometry.rankme(z) == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    values = np.linalg.eigvalsh(np.cov(z.double().numpy().T))
    assert geometry.participation_ratio(z) == pytest.approx(values.sum() ** 2 / (values**2).sum())


@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0])
def test_a_planted_decay_is_found(decay):
    z = spectrum(np.arange(1.0, 121) ** -decay)
    assert geometry.alpha_req(z) == pytest.approx(decay)
    slope = np.polyfit(np.log(np.arange(11, 101)), np.log(np.sort(np.linalg.eigvalsh(np.cov(z.numpy().T)))[::-1][10:100]), 1)[0]
    assert geometry.alpha_req(z) == pytest.approx(-slope)
    with pytest.raises(ValueError, match="needs 4 eigenvalues from number 11 on; 400 clips of 12 channels have 12"):
        geometry.alpha_req(z[:, :12])


def test_lidar_equals_the_generalised_eigenvalues():
    views = noise(40, 5, 12) + 2 * noise(40, 1, 12, seed=3) * torch.linspace(0.1, 1, 12)
    x = views.numpy()
    means = x.mean(1)
    within = sum((x[i] - means[i]).T @ (x[i] - means[i]) for i in range(40)) / (40 * 4) + 1e-4 * np.eye(12)
    values = scipy.linalg.eigh(np.cov(means.T), within, eigvals_only=True)
    p = values / values.sum() + 1e-7
    assert geometry.lidar(views) == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_lidar_counts_the_directions_that_tell_clips_apart():
    clips = 10 * noise(300, 1, 3) @ rotation(16)[:3]
    assert geometry.lidar(clips + noise(300, 8, 16, seed=4)) == pytest.approx(3, abs=0.3)
    nuisance = 100 * noise(300, 8, 1, seed=5) * rotation(16)[10]  # what varies between views only is no rank
    assert geometry.lidar(clips + noise(300, 8, 16, seed=4) + nuisance) == pytest.approx(3, abs=0.3)
    with pytest.raises(ValueError, match="at least 2 of each, got 1"):
        geometry.lidar(clips)


# -------------------------------------------------------------------------------------------------------------------------- likeness


@pytest.mark.parametrize("unbiased", [True, False])
def test_cka_of_a_rotated_scaled_and_shifted_copy_is_1(unbiased):
    x = noise(100, 24)
    assert geometry.cka(x, 3 * x @ rotation(24) + 7, unbiased) == pytest.approx(1)
    assert geometry.cka(x, noise(100, 24, seed=9), unbiased) < 0.5
    y = x + noise(100, 24, seed=9)
    assert geometry.cka(x, y, unbiased) == pytest.approx(geometry.cka(y, x, unbiased))


def test_cka_of_independent_features_is_0_only_without_bias():
    pairs = [(noise(50, 100, seed=s), noise(50, 100, seed=100 + s)) for s in range(20)]
    assert abs(np.mean([geometry.cka(x, y) for x, y in pairs])) < 0.02
    assert np.mean([geometry.cka(x, y, unbiased=False) for x, y in pairs]) > 0.5


def test_cka_equals_its_kernels():
    x, y = noise(30, 6), noise(30, 6) @ noise(6, 9, seed=2) + noise(30, 9, seed=3)
    centre = np.eye(30) - 1 / 30
    kernel = lambda z: centre @ (z @ z.T).numpy() @ centre

    def hsic(a, b):
        a, b = a - np.diag(np.diag(a)), b - np.diag(np.diag(b))
        ones = np.ones(30)
        return np.trace(a @ b) + ones @ a @ ones * (ones @ b @ ones) / (29 * 28) - 2 / 28 * (ones @ a @ b @ ones)

    a, b = kernel(x), kernel(y)
    assert geometry.cka(x, y, unbiased=False) == pytest.approx((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    assert geometry.cka(x, y) == pytest.approx(hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b)))


def test_cross_correlation_of_a_channel_with_itself_is_1():
    x = noise(200, 1)
    assert geometry.cross_correlation(x, -2 * x + 1) == pytest.approx(1)
    assert geometry.cross_correlation(x, torch.zeros(200, 2)) == 0


# ----------------------------------------------------------------------------------------------------------------------------- time


def moved(z, parts=1):
    motion = geometry.Motion()
    for part in z.chunk(parts):
        motion.add(part)
    return motion


def test_what_stands_still_has_no_variance_in_time():
    still = noise(6, 1, 2, 2, 8).expand(6, 5, 2, 2, 8)
    assert moved(still).temporal_variance() == pytest.approx(0, abs=1e-12) and moved(still).speed == 0
    change = moved(noise(200, 5, 2, 2, 64))  # independent in time: only the mean over time is left out
    assert change.temporal_variance() == pytest.approx(4 / 5, abs=0.01)
    assert change.straightness == pytest.approx(-0.5, abs=0.02)
    assert change.std == pytest.approx(1, abs=0.02) and moved(3 * noise(200, 5, 2, 2, 64)).speed == pytest.approx(change.speed)


def test_a_straight_path_is_straight():
    line = noise(6, 1, 2, 2, 8) + noise(6, 1, 2, 2, 8, seed=2) * torch.arange(5.0, dtype=torch.float64).view(1, 5, 1, 1, 1)
    assert moved(line).straightness == pytest.approx(1)


def test_sums_over_batches_are_those_of_the_whole():
    z = noise(12, 4, 2, 2, 8)
    one, many = moved(z), moved(z, parts=5)
    for name in ("straightness", "speed", "std"):
        assert getattr(one, name) == pytest.approx(getattr(many, name))
    assert one.temporal_variance(slice(0, 4)) == pytest.approx(many.temporal_variance(slice(0, 4)))


# --------------------------------------------------------------------------------------------------------------------------- halves


def factors(split, where, n=600, d=64):
    """Features in which the code of "hue" (4 classes) and of "motion" (8) lies in the channels that `where` names."""
    g = torch.Generator().manual_seed({"train": 0, "test": 1}[split])
    labels = {name: torch.randint(0, k, (n,), generator=g) for name, k in (("hue", 4), ("motion", 8))}
    z = 0.1 * torch.randn(n, d, generator=g)
    code = torch.Generator().manual_seed(7)
    for name, k in (("hue", 4), ("motion", 8)):
        z[:, where[name]] += torch.randn(k, d, generator=code)[:, where[name]][labels[name]]
    names = {"hue": list("abcd"), "motion": list("abcdefgh")}
    return Features(z, labels, names, torch.arange(n), name="planted", split=split, encoder="none")


APP, DYN, ALL = slice(0, 32), slice(32, 64), slice(0, 64)


def reader(where):
    return halves.Reader(factors("train", where), factors("test", where), ["hue", "motion"])


def rows_of(where, **options):
    return {(r["metric"], r["part"]): r for r in halves.split_rows(reader(where), ["hue"], ["motion"], **options)}


def test_a_planted_split_has_gap_1_and_its_mirror_minus_1():
    rows = rows_of({"hue": APP, "motion": DYN})
    assert rows["gap", "app"]["value"] > 0.9 and rows["gap", "app"]["lo"] > 0.85 and rows["gap", "app"]["p"] == pytest.approx(1 / 21)
    assert abs(rows["gap", "random"]["value"]) < 0.1 and rows["dissociation", "app"]["lo"] > 100
    assert rows["appearance", "app"]["value"] > 0.95 > 0.1 > rows["appearance", "dyn"]["value"]
    assert rows["dynamics", "dyn"]["value"] > 0.95 > 0.1 > rows["dynamics", "app"]["value"]
    mirrored = rows_of({"hue": DYN, "motion": APP})
    assert mirrored["gap", "app"]["value"] < -0.9 and mirrored["gap", "app"]["p"] == 1


def test_factors_spread_over_all_channels_have_gap_0():
    rows = rows_of({"hue": ALL, "motion": ALL})
    assert abs(rows["gap", "app"]["value"]) < 0.05
    assert rows["appearance", "all"]["value"] > 0.95


def test_halves_of_principal_components_are_alike_in_variance(monkeypatch):
    made = reader({"hue": APP, "motion": DYN})
    monkeypatch.setattr(made, "split", lambda *sides: sides)
    first, second = made.components
    basis = np.concatenate([first, second], axis=1)
    assert basis.T @ basis == pytest.approx(np.eye(64), abs=1e-6)
    a, b = ((made.train @ side).var(0).sum() for side in (first, second))
    assert 1 <= a / b < 1.5


def test_random_halves_of_a_planted_split_are_no_split():
    split = reader({"hue": APP, "motion": DYN}).random(10, seed=3)
    gaps = [s.gap(["hue"], ["motion"], {"hue": 4, "motion": 8}).value for s in split]
    assert abs(np.mean(gaps)) < 0.1 and np.max(np.abs(gaps)) < 0.4


def test_the_gap_is_half_the_dissociation_when_both_count_alike():
    rng = np.random.default_rng(0)
    a, b, c, d = (rng.random(500) < p for p in (0.8, 0.5, 0.4, 0.6))
    split = halves.Split({"x": a, "y": c}, {"x": b, "y": d})
    classes = {"x": 10**9, "y": 10**9}  # chance 0: corrected accuracy is accuracy
    both = halves.dissociation(a, b, c, d)
    assert split.gap(["x"], ["y"], classes).value == pytest.approx(both.value / 200)
    by_hand = 100 * (a.mean() - b.mean() - c.mean() + d.mean())
    assert both.value == pytest.approx(by_hand) and both.lo < by_hand < both.hi and both.p < 0.01
    assert halves.dissociation(a, a, c, c).p == 1


def test_a_dissociation_on_shared_clips_pairs_them():
    """The halves trade: a clip that one half gets right of appearance it gets wrong of dynamics. Then errors add up, not cancel."""
    covered = {True: 0, False: 0}
    for seed in range(200):
        first = np.random.default_rng(seed).random(150) < 0.5
        for same in covered:
            found = halves.dissociation(first, ~first, ~first, first, draws=400, seed=seed, same_clips=same)
            covered[same] += found.lo <= 0 <= found.hi
    assert covered[True] >= 180 > covered[False]


def test_chance_correction_of_a_gap_is_by_hand():
    hit, miss = np.ones(4, bool), np.array([True, False, False, False])
    split = halves.Split({"hue": hit, "motion": miss}, {"hue": miss, "motion": hit})
    expected = 0.5 * (0.75 * 4 / 3 + 0.75 * 8 / 7)
    assert split.gap(["hue"], ["motion"], {"hue": 4, "motion": 8}).value == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------------------------------ over runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    source = data.open("synthetic", frames=8, size=32, n=24, cache="memory")
    pairs = [("baseline", 0), ("baseline", 1), ("fwm", 0)]
    return [vl.pretrain(name, source, "smoke", seed, runs=folder, progress=False) for name, seed in pairs]


def test_a_misspelt_name_is_refused_before_anything_is_trained(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(subjects, "pretrain", lambda *_, **__: pytest.fail("trained"))
    for variants, against, says in (
        (["ld", "baselin"], None, "unknown variant 'baselin'"),
        (["ld", "JEPA() + 0.2*Delto()"], None, "Delto"),
        (["ld", "fwm"], "baseline", "no 'baseline' to compare with; there are ld, fwm"),
        (["ld", "JEPA() + 0.25*Delta()"], "baseline", "no 'baseline' to compare with; there are ld, custom"),
    ):
        with pytest.raises(ValueError, match=says):
            subjects.runs_of(variants, [0], preset="smoke", runs=tmp_path, against=against)
    there = runs[0].path.parent
    with pytest.raises(ValueError, match="no 'ld' to compare with; there are baseline, fwm"):
        subjects.runs_of([], [0], preset="smoke", runs=there, against="ld")
    assert len(subjects.runs_of([], [0], preset="smoke", runs=there, against="fwm")) == 3


def test_a_run_may_be_compared_with_an_expression(tmp_path, monkeypatch):
    monkeypatch.setattr(subjects, "pretrain", lambda variant, *_, **__: variant)
    monkeypatch.setattr(subjects, "training_source", lambda data, _: data)
    own = "JEPA() + 0.25*Delta()"
    assert subjects.runs_of(["JEPA()", own], [0], preset="smoke", runs=tmp_path, against="custom-123456") == ["JEPA()", own]
    assert subjects.runs_of([repr(vl.recipe("ld"))], [0], preset="smoke", runs=tmp_path, against="ld")


def test_a_probed_run_is_called_by_its_objective(runs):
    how = {"probe": "knn", "limit": 24, "progress": False, "save": False}
    for encoder in ("student", "initial"):
        (found,) = vl.probe(runs[2], "synthetic", "shape", encoder=encoder, **how)
        assert found.table()["variant"].tolist() == ["fwm"] * len(found.rows) + [row["variant"] for row in found.controls]


def test_the_last_block_is_what_a_probe_sees(runs):
    encoder, clip = runs[0].encoder("student"), data.normalize(data.open("synthetic", frames=8, size=32, n=2)[0].clip[None])
    outputs = representation.blocks_of(encoder, clip)
    assert len(outputs) == encoder.depth and torch.allclose(outputs[-1].flatten(1, 3), encoder(clip), atol=1e-5)


def test_measures_cover_every_block_and_relation(runs):
    rows = representation.measures(runs, clips=40, views=(16, 3), progress=False)
    blocks = rows[rows["part"].eq("all") & rows["encoder"].eq("student") & rows["metric"].isin(representation.MEASURES)]
    assert set(blocks["metric"]) == set(representation.MEASURES) and set(blocks["block"]) == {1, 2}
    related = rows[rows["metric"].eq("cka")]
    assert set(related["of"]) == {"baseline", "own teacher", "another seed"}
    assert related["value"].max() <= 1.1
    shared = rows[rows["metric"].eq("std") & rows["variant"].eq("random-init")]
    assert len(shared) == 2 * 2  # two seeds, two blocks: the untrained encoder is looked at once for all objectives
    assert plots.representation(rows, paper=True).axes and plots.likeness(rows, paper=True).axes
    assert representation.verdict(rows).startswith("Demonstration size")
    with pytest.raises(ValueError, match="no 'baselin' to compare with; there are baseline, fwm, random-init"):
        plots.likeness(rows, "baselin")


def test_encoders_stay_as_they_were_and_nothing_readable_is_said(runs, tmp_path):
    encoder, source = runs[0].encoder("student").train(), data.open("synthetic", "test", frames=8, size=32, n=5)
    (tmp_path / "list.txt").write_text("a.mp4 0\n")
    empty = data.open(tmp_path / "list.txt", "test", frames=8, size=32, bad=1.0)
    empty.faults.total = 100  # one file that cannot be read does not stop the loader
    for look in (lambda source: representation.observe(encoder, source, batch=2, progress=False),
                 lambda source: representation.views_of(encoder, source, 4, 3, batch=2, progress=False)):  # fmt: skip
        found = look(source)
        assert encoder.training and not getattr(found, "requires_grad", found[0].pooled.requires_grad if isinstance(found, list) else True)
        with pytest.raises(ValueError, match=r"no clip of .* could be read"):
            look(empty)
        assert encoder.training


def test_what_bf16_would_round_away_is_measured_in_fp32(runs, monkeypatch):
    run = runs[0]
    monkeypatch.setattr(type(run), "config", run.config | {"bf16": True})
    seen, observe, views_of = [], representation.observe, representation.views_of
    monkeypatch.setattr(representation, "observe", lambda *a, **k: seen.append(k.get("bf16", False)) or observe(*a, **k))
    monkeypatch.setattr(representation, "views_of", lambda *a, **k: seen.append(k.get("bf16", False)) or views_of(*a, **k))
    how = {"clips": 20, "views": (6, 3), "encoders": (), "progress": False}  # the untrained encoder alone
    representation.measures([run.path], **how)
    assert seen == [True, True]
    seen.clear()
    monkeypatch.setattr(features, "COARSE", 10.0)
    with pytest.warns(UserWarning, match=f"{run.name}, random-init: its features differ over the clips of .* read in fp32"):
        representation.measures([run.path], **how)
    assert seen == [True, False, False]


def test_clips_that_stand_still_hold_no_dynamics(runs):
    rows = halves.halves(runs[:1], clips=(400, 400), draws=2, progress=False)
    for part in ("all", "app", "dyn"):
        (found,) = rows[rows["metric"].eq("frozen-dynamics") & rows["part"].eq(part) & rows["variant"].eq("random-init")].itertuples()
        assert found.lo < 0.02 and abs(found.value) < 0.08
    control = rows[rows["metric"].eq("frozen-gap-dynamics")]
    assert control["value"].abs().max() < 0.06
    appearance = rows[rows["metric"].eq("frozen-appearance")]
    assert appearance["value"].min() > 0.2
    assert plots.halves(rows, paper=True).axes and "with clips stopped" in halves.verdict(rows)


def test_the_feature_pictures_have_the_clips_shape(runs):
    clip = data.open("synthetic", frames=8, size=32, n=2)[1].clip
    two = representation.pca_colours(torch.tensor([[1.0, 0, 0, 0], [-1, 0, 0, 0]]).repeat(2, 1))
    assert (two[::2, 0] - two[1::2, 0]).abs().min() > 0.99  # two kinds of token, of neither more: two colours, not one
    pictures = representation.feature_pca({"a": runs[0].encoder("student"), "b": runs[0].encoder("initial")}, clip)
    assert all(picture.shape == clip.shape and picture.dtype == torch.uint8 for picture in pictures.values())
    assert all(len(picture.flatten(1).unique(dim=1).T) > 8 for picture in pictures.values())


def test_the_verdict_of_teachers_alone_is_theirs(runs):
    rows = representation.measures(runs, clips=40, views=(16, 3), encoders=("teacher",), progress=False)
    said = representation.verdict(rows)
    assert "Where there is no student: teacher. " in said
    both = representation.measures(runs, clips=40, views=(16, 3), progress=False)
    assert "no student" not in representation.verdict(both)
    assert representation.verdict(both) == representation.verdict(both[both["encoder"].ne("teacher")])
