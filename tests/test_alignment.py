"""Gradient alignment: planted truths, calibrated intervals, a probe that changes nothing, the test of the theory on planted data."""

import math
import shutil
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch
from laws import latents
from scipy import stats as sps

import vjepa_lab as vl
from vjepa_lab import plots
from vjepa_lab.analysis import alignment, ends, gradients
from vjepa_lab.analysis.alignment import ProbeSet, Watch, measure, readout, step_sizes
from vjepa_lab.evidence import ranks, stats
from vjepa_lab.objective import ErrorMap, Loss, Recipe, Term
from vjepa_lab.plots import alignment as drawn
from vjepa_lab.terms import JEPA, Delta, Dynamics, Kinematic


class Copy(Term):
    """JEPA again, at three times its size."""

    def maps(self, latents, head):
        return [ErrorMap(3 * m.value, m.weight) for m in JEPA().maps(latents, head)]


class Negative(Term):
    def maps(self, latents, head):
        return [ErrorMap(-m.value, m.weight) for m in JEPA().maps(latents, head)]


class Elsewhere(Term):
    """A random direction in the features of each place, which has nothing to do with prediction."""

    number: int = 0

    def error(self, view, head):
        draw = torch.Generator().manual_seed(self.number)
        return (view.z * torch.randn(view.z.shape[1:], generator=draw)).mean(-1)


def probe_set(clips=32, micro=4, labels=False):
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (clips + 48, 3, 8, 32, 32), dtype=torch.uint8, generator=draw)
    known = torch.arange(clips + 48) % 3
    pixels[known == 1, 0] = pixels[known == 1, 0] // 2 + 128  # a class has a colour
    named = lambda rows: {"class": known[rows]} if labels else {}
    return ProbeSet(pixels[:clips], named(slice(None, clips)), pixels[clips:], named(slice(clips, None)), micro)


def measured(objective, **how):
    net, _ = latents(objective)
    return measure(net, Loss(objective, net.width), how.pop("probe", None) or probe_set(), **how)


def value(table, term, metric, group="all"):
    return table.set_index(["term", "group", "metric"]).loc[(term, group, metric)]


# ------------------------------------------------------------------------------------------------------------------- planted truths


@pytest.mark.parametrize(("term", "truth"), [(Copy(), 1), (Negative(), -1)], ids=["copy", "negative"])
def test_a_copy_of_jepa_aligns_at_one_and_its_negative_at_minus_one(term, truth):
    table = measured(JEPA() + term)
    groups = table["group"].unique()
    assert {"patch_embed", "block 0", "block 1", "norm", "all"} == set(groups)
    for group in groups:
        assert value(table, term.label, "cosine", group)["value"] == pytest.approx(truth, abs=1e-5)
    assert value(table, term.label, "plain cosine")["value"] == pytest.approx(truth, abs=1e-5)
    assert value(table, term.label, "norm ratio")["value"] == pytest.approx(3 if truth == 1 else 1, rel=1e-4)


def test_a_term_that_has_nothing_to_do_with_jepa_aligns_at_zero():
    """One random direction is not exactly orthogonal to JEPA's, but over draws of it the cosine is zero within its interval."""
    found = stats.t_interval([value(measured(JEPA() + Elsewhere(number=n)), "Elsewhere", "cosine")["value"] for n in range(8)])
    assert found.lo < 0 < found.hi and found.hi - found.lo < 0.6


def planted(cosine, noise, micro_batches, rng, p=300, shared=0.7):
    """Micro-batch gradients of two losses with this true cosine, in noise that they mostly share."""
    means = np.zeros((2, p))
    means[0, 0], means[1, :2] = 1, (cosine, math.sqrt(1 - cosine**2))
    first, second = rng.normal(size=(2, micro_batches, p)) * noise / math.sqrt(p)
    values = means[:, None] + np.stack([first, shared * first + math.sqrt(1 - shared**2) * second])
    flat = values.reshape(-1, p)
    return (flat @ flat.T).reshape(2, micro_batches, 2, micro_batches)


@pytest.mark.parametrize("truth", [0.0, 0.4, -0.8])
@pytest.mark.parametrize("micro_batches", [8, 16])
def test_noise_is_taken_out_and_the_interval_covers(truth, micro_batches):
    rng = np.random.default_rng(0)
    grams = [planted(truth, 3.0, micro_batches, rng) for _ in range(150)]
    found = [gradients.jackknife(lambda x: gradients.cosine(x, 0, 1), gram) for gram in grams]
    covered = np.mean([f.lo <= truth <= f.hi for f in found])
    assert 0.9 <= covered <= 1.0
    assert np.median([f.value for f in found]) == pytest.approx(truth, abs=0.06)
    if truth <= 0:  # what the plain cosine makes of it: shared noise looks like alignment
        assert np.mean([gradients.plain_cosine(gram, 0, 1) for gram in grams]) > truth + 0.15


def test_only_noise_has_no_cosine():
    rng = np.random.default_rng(0)
    values = [planted(0.0, 1e6, 8, rng) for _ in range(40)]
    assert any(math.isnan(gradients.cosine(gram, 0, 1)) for gram in values)


def test_a_shrunk_cosine_is_always_there_and_right_on_average_in_sign():
    rng = np.random.default_rng(0)
    found = [gradients.shrunk_cosine(planted(-0.8, 3.0, 8, rng), 0, 1) for _ in range(200)]
    assert not np.isnan(found).any() and -0.8 < np.mean(found) < -0.1
    assert gradients.shrunk_cosine(planted(-0.8, 0.0, 8, rng), 0, 1) == pytest.approx(-0.8)


def test_help_harm_and_neutral_parts():
    """The main gradient along e0 with spread along e0 and e1: an auxiliary along e0 helps, against it harms, along e2 is neutral."""
    rng, m, p = np.random.default_rng(0), 16, 12
    main = np.zeros((m, p))
    main[:, 0], main[:, 1] = 1 + 0.1 * rng.normal(size=m), 0.5 + 0.1 * rng.normal(size=m)
    for axis, sign, truth in ((0, 1, (1, 0, 0)), (0, -1, (0, 1, 0)), (2, 1, (0, 0, 1))):
        other = np.zeros((m, p))
        other[:, axis] = sign
        flat = np.concatenate([main, other])
        gram = (flat @ flat.T).reshape(2, m, 2, m)
        assert gradients.split(gram, 0, 1) == pytest.approx(truth, abs=0.3)
        assert sum(gradients.split(gram, 0, 1)) == pytest.approx(1)


def test_the_neutral_part_is_what_main_gradients_do_not_span():
    """A target along e2; an auxiliary along e0 + e2: its neutral part is e2, which is all that serves the target."""
    m, p = 8, 6
    main, target, other = np.zeros((3, m, p))
    main[:, 0], target[:, 2], other[:, [0, 2]] = 1, 1, 1
    flat = np.concatenate([main, target, other])
    gram = (flat @ flat.T).reshape(3, m, 3, m)
    assert gradients.cosine(gram, 1, 2) == pytest.approx(math.sqrt(0.5))
    assert gradients.neutral_cosine(gram, 0, 1, 2) == pytest.approx(1)


def test_intervals_of_halved_statistics_are_as_wide_as_their_spread():
    """The jackknife's standard error against the true one, over draws of gradients. Cosine 1.1; where halves were dealt out anew for every
    micro-batch left out, help 1.6, neutral 1.6 and neutral utility 1.9."""
    rng, m, p, draws = np.random.default_rng(0), 16, 100, 80
    means = np.zeros((3, 1, p))
    means[0, 0, 0], means[1, 0, :2], means[2, 0, 1:3] = 1, (0.3, 0.95), (0.8, 0.6)
    told = {
        "help": lambda x, halves: gradients.split(x, 0, 1, halves)[0],
        "neutral": lambda x, halves: gradients.split(x, 0, 1, halves)[2],
        "neutral utility": lambda x, halves: gradients.neutral_cosine(x, 0, 2, 1, halves),
    }
    found = {name: [] for name in told}
    for _ in range(draws):
        flat = (means + 2 / math.sqrt(p) * rng.normal(size=(3, m, p))).reshape(-1, p)
        gram = (flat @ flat.T).reshape(3, m, 3, m)
        for name, statistic in told.items():
            found[name].append(gradients.jackknife(statistic, gram, halved=True))
        assert found["help"][-1].value == gradients.split(gram, 0, 1)[0]
    scale = sps.t.ppf(0.975, m - 1)
    for name, intervals in found.items():
        error = np.median([x.hi - x.value for x in intervals]) / scale
        assert 0.85 < error / np.std([x.value for x in intervals], ddof=1) < 1.4, name


def test_few_micro_batches_are_refused():
    with pytest.raises(ValueError, match="at least 6 needed"):
        probe_set(clips=8)
    gram = np.eye(2 * 5).reshape(2, 5, 2, 5)
    with pytest.raises(ValueError, match="at least 2 micro-batches in each half, got 3 and 1"):
        gradients.jackknife(lambda x, halves: gradients.split(x, 0, 1, halves), gram, halved=True)


def test_the_sum_of_auxiliaries_is_weighted():
    table = measured(JEPA() + 2 * Copy() + 0.5 * Negative())
    assert value(table, "auxiliaries", "cosine")["value"] == pytest.approx(1, abs=1e-5)
    assert value(table, "auxiliaries", "norm ratio")["value"] == pytest.approx(5.5, rel=1e-4)


def test_a_term_without_weight_is_left_out():
    table = measured(JEPA() + 0.0 * Delta() + Copy())
    assert set(table["term"]) == {"Copy", "auxiliaries"}


# ------------------------------------------------------------------------------------------------------- the optimiser's metric


def test_step_sizes_are_what_adam_multiplies_with():
    """One Adam step without decay moves a weight by lr times its step size times its (first) gradient."""
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    optimizer = torch.optim.AdamW([p], lr=0.1, weight_decay=0)
    assert step_sizes(optimizer, [p]) is None
    gradient = torch.tensor([0.5, -4.0, 1e-3])
    p.grad, before = gradient.clone(), p.detach().clone()
    optimizer.step()
    torch.testing.assert_close(before - p, 0.1 * step_sizes(optimizer, [p]) * gradient)


def test_the_adam_metric_can_turn_a_sign():
    """Against each other where gradients are large, along each other where they are small: Adam's steps even that out."""
    values = torch.zeros(2, 4, 3)
    values[0], values[1] = torch.tensor([1.0, 0.1, 0.1]), torch.tensor([-1.0, 0.1, 0.1])
    found = gradients.Gradients(("a", "b"), values, {"all": slice(0, 3)})
    assert gradients.cosine(found.gram(), 0, 1) < 0
    assert gradients.cosine(found.gram(metric=torch.tensor([1.0, 100.0, 100.0])), 0, 1) > 0


# ------------------------------------------------------------------------------------------------------------------------ read-outs


def test_a_step_along_the_read_outs_gradient_improves_it():
    objective, probe = JEPA() + Delta(), probe_set(labels=True)
    net, _ = latents(objective)
    read, clips = readout(net, probe, "class"), vl.data.normalize(probe.clips)
    features = lambda: net.student(clips).mean(1)
    before = read(features(), probe.labels["class"])
    before.backward()
    assert before < 0.95 * 2 / 3  # better than guessing the classes' rates
    with torch.no_grad():
        for p in net.student.parameters():
            p -= 1e-3 * p.grad
        assert read(features(), probe.labels["class"]) < before


class Colour(Term):
    """The read-out's own aim: make the mean feature tell how red the clip is."""

    def error(self, view, head):
        red = view.clip[:, 0].mean((1, 2, 3))
        mean = view.z.mean((1, 2, 3, 4))
        return (mean - red).square()


def test_utilities_are_measured_for_every_term_and_the_main_one():
    objective, probe = JEPA() + Colour(norm="raw"), probe_set(labels=True)
    table = measured(objective, probe=probe)
    assert {"utility/class", "neutral utility/class"} <= set(table[table["term"].eq("Colour")]["metric"])
    assert set(table[table["term"].eq("main")]["metric"]) == {"utility/class"}
    shares = table[table["metric"].isin(["help", "harm", "neutral"])].groupby(["term", "group"])["value"].sum()
    assert shares.to_numpy() == pytest.approx(1)
    cosines = table[table["metric"].str.contains("cosine|utility")].dropna()
    assert cosines["value"].abs().max() < 1.5 and (cosines["lo"] <= cosines["value"]).all() and (cosines["value"] <= cosines["hi"]).all()


def test_a_label_that_is_not_there_is_named():
    source = vl.data.open("synthetic", "test", frames=8, size=32, n=32)
    with pytest.raises(ValueError, match="no label 'size'; it has class"):
        ProbeSet.of(source, source, ["size"])


# ----------------------------------------------------------------------------------------------------------------- through training


@pytest.fixture(scope="module")
def world():
    return vl.data.open("synthetic", frames=8, size=32, n=24, cache="memory")


@pytest.fixture(scope="module")
def probe(world):
    return ProbeSet.of(world, vl.data.open("synthetic", "test", frames=8, size=32, n=24), ["motion"], clips=24, fit=24)


def test_watching_changes_nothing_and_resumes(world, probe, tmp_path):
    how = {"preset": "smoke", "progress": False, "save_every": 2}
    recipe = Recipe(JEPA() + 0.5 * Dynamics(hidden=8) + 0.1 * Kinematic())
    plain = vl.pretrain(recipe, world, out=tmp_path / "plain", **how)
    watched = vl.pretrain(recipe, world, out=tmp_path / "watched", probe=Watch(probe, at=(0, 0.5, 1)), **how)
    a, b = plain.checkpoint()["model"], watched.checkpoint()["model"]
    assert all(torch.equal(a[k], b[k]) for k in a)

    class Killed(Exception):
        pass

    class Short(Watch):
        def __call__(self, run, trainer, step):
            if step == 3:
                raise Killed
            super().__call__(run, trainer, step)

    with pytest.raises(Killed):
        vl.pretrain(recipe, world, out=tmp_path / "parts", probe=Short(probe, at=(0, 0.5, 1)), **how)
    resumed = vl.pretrain(recipe, world, out=tmp_path / "parts", probe=Watch(probe, at=(0, 0.5, 1)), **how)
    one, two = (pd.read_csv(run.path / alignment.FILE) for run in (watched, resumed))
    pd.testing.assert_frame_equal(one, two)
    assert list(one["step"].unique()) == [0, 2, 4]
    assert "adam" not in set(one[one["step"].eq(0)]["metric"]) and "adam" in set(one[one["step"].eq(4)]["metric"])
    table = alignment.load([watched])
    assert table["smoke"].all() and set(table["seed"]) == {0}
    shutil.rmtree(tmp_path / "plain")
    with pytest.raises(FileNotFoundError, match="not watched"):
        alignment.load([tmp_path / "plain"])


def test_a_plain_objective_has_utilities_only(world, probe, tmp_path):
    run = vl.pretrain("baseline", world, runs=tmp_path, preset="smoke", progress=False, probe=Watch(probe, at=(1,)))
    table = alignment.load([run])
    assert set(table["term"]) == {"main"} and set(table["metric"]) == {"utility/motion"}


# ---------------------------------------------------------------------------------------------------------------- test of the theory


def study(strength, variants=10, seeds=3, noise=0.3):
    """Watched runs whose neutral utility is the benefit plus noise, and whose other metrics have nothing to do with it."""
    rng = np.random.default_rng(0)
    benefit = {f"v{i}": rng.normal() for i in range(variants)}
    rows, watched = [], []
    for seed in range(seeds):
        rows.append({"variant": "baseline", "seed": seed, "value": 50.0})
        for name, gain in benefit.items():
            rows.append({"variant": name, "seed": seed, "value": 50 + gain + 0.1 * rng.normal()})
            told = {"neutral utility/motion": strength * gain + noise * rng.normal()}
            told |= {metric: rng.normal() for metric in ("cosine", "norm ratio", "utility/motion", "adam")}
            for metric, at_end in told.items():
                for progress in (0.0, 0.5, 1.0):
                    about = {"run": f"{name}-s{seed}", "variant": name, "seed": seed, "term": "auxiliaries", "group": "all"}
                    value = abs(at_end) + 0.1 if metric == "norm ratio" else 2 * progress * at_end
                    watched.append(about | {"metric": metric, "progress": progress, "value": value})
    about = {"source": "run", "regime": "x", "edition": "sound", "benchmark": "x/motion", "probe": "linear", "metric": "top1", "n": 100}
    rows = pd.DataFrame(rows)
    return pd.DataFrame(watched), rows.assign(run=rows["variant"] + "-s" + rows["seed"].astype(str), **about)


def test_averages_are_over_time():
    watched, _ = study(1.0)
    averaged = alignment.averages(watched)
    part = watched[(watched["run"] == "v0-s0") & (watched["metric"] == "cosine")]
    mean = averaged[(averaged["run"] == "v0-s0") & (averaged["metric"] == "cosine")]["value"].item()
    assert mean == pytest.approx(part["value"].iloc[1])  # linear in progress: the middle


def test_gradients_of_rounding_foretell_nothing():
    """Two rows whose auxiliary has no gradient before the first step have a cosine of noise there. Of two moments too few are left to be
    shared: such rows have no average, others keep theirs."""
    watched, rows = study(1.0)
    watched = watched[watched["progress"].ne(0.5)]
    tiny = watched["variant"].isin(["v0", "v1"]) & watched["progress"].eq(0)
    value = watched["value"].mask(tiny & watched["metric"].eq("norm ratio"), 0.003).mask(tiny & watched["metric"].eq("cosine"), -0.99)
    averaged = alignment.averages(watched.assign(value=value)).set_index(["metric", "variant"])["value"]
    for metric in ("cosine", "norm ratio"):
        assert averaged[metric][["v0", "v1"]].isna().all() and averaged[metric].drop(["v0", "v1"]).notna().all()
    others = ~averaged.index.get_level_values("variant").isin(["v0", "v1"])
    before = alignment.averages(watched).set_index(["metric", "variant"])["value"]
    pd.testing.assert_series_equal(averaged[others], before[others])
    small = watched["variant"].eq("v2") & watched["metric"].eq("norm ratio") & watched["progress"].eq(1)
    late = alignment.averages(watched.assign(value=watched["value"].mask(small, 0.003)))
    assert late["value"].notna().all(), "a small gradient in training is a small gradient"
    found = alignment.predictions(alignment.averages(watched.assign(value=value)), rows, draws=20)
    assert set(found["variants"]) == {watched["variant"].nunique() - 2}


@pytest.mark.parametrize("ratio", [0.003, np.nan])
def test_a_start_of_rounding_is_a_moment_of_no_run_where_later_ones_are_shared(ratio):
    watched, rows = study(1.0)
    gone = watched["variant"].isin(["v0", "v1"]) & watched["progress"].eq(0) & watched["metric"].eq("norm ratio")
    averaged = alignment.averages(watched.assign(value=watched["value"].mask(gone, ratio)))
    later = watched[watched["progress"].gt(0)].groupby(["metric", "run"])["value"].mean()
    assert averaged.set_index(["metric", "run"])["value"].sort_index().to_numpy() == pytest.approx(later.sort_index().to_numpy())
    assert set(averaged["moments"]) == {2}
    found = alignment.predictions(averaged, rows, draws=20)
    assert set(found["variants"]) == {10} and set(found["seeds"]) == {3}


def test_a_predictor_that_some_variants_lack_is_told_of_the_others():
    """As the step of Adam, which is not known before the first step: other predictors keep all of their variants."""
    watched, rows = study(1.0, variants=6)
    whole = alignment.predictions(alignment.averages(watched), rows, draws=50).set_index("predictor")
    lacking = watched[~(watched["metric"].eq("adam") & watched["variant"].isin(["v0", "v1"]))]
    found = alignment.predictions(alignment.averages(lacking), rows, draws=50).set_index("predictor")
    assert found["variants"].to_dict() == {name: 4 if name == "adam" else 6 for name in whole.index}
    pd.testing.assert_frame_equal(found.drop(index="adam"), whole.drop(index="adam"))
    few = watched[~(watched["metric"].eq("adam") & watched["variant"].isin(["v0", "v1", "v2"]))]
    assert set(alignment.predictions(alignment.averages(few), rows, draws=50)["predictor"]) == set(whole.index) - {"adam"}
    cosine = watched[~(watched["metric"].eq("cosine") & watched["variant"].eq("v0"))]
    found = alignment.predictions(alignment.averages(cosine), rows, draws=50).set_index("predictor")
    assert found.loc[["cosine", "neutral utility - cosine", "utility"], "variants"].tolist() == [5, 5, 6]


def test_benefits_are_of_one_encoder():
    """Baselines whose teacher was probed, too, have no other benefit to compare with than before."""
    watched, rows = study(1.0, variants=5)
    rows = rows.assign(encoder="student")
    teachers = rows[rows["variant"].eq("baseline")].assign(encoder="teacher", value=lambda t: t["value"] + 40 * (t["seed"] - 1))
    averaged = alignment.averages(watched)
    plain, both = (alignment.predictions(averaged, each, draws=20) for each in (rows, pd.concat([rows, teachers])))
    pd.testing.assert_frame_equal(plain, both)


def test_averages_are_over_the_moments_that_all_runs_have():
    """One run has no cosine at the end, where only noise is left: its average over time is not its start beside others' whole training."""
    watched, rows = study(1.0)
    cosine = watched["metric"].eq("cosine")
    gone = watched["run"].eq("v0-s0") & cosine & watched["progress"].eq(1)
    for part in (watched.assign(value=watched["value"].mask(gone)), watched[~gone]):
        averaged = alignment.averages(part).set_index(["metric", "run"])
        assert set(averaged.loc["cosine", "moments"]) == {2} and set(averaged.loc["adam", "moments"]) == {3}
        first = watched[cosine & watched["progress"].lt(1)].groupby("run")["value"].mean()  # of two moments, the mean
        assert averaged.loc["cosine", "value"].to_dict() == pytest.approx(first.to_dict())
    none = alignment.averages(watched.assign(value=watched["value"].mask(cosine & watched["run"].eq("v0-s0"))))
    none = none[none["metric"].eq("cosine")]
    assert none.set_index("run")["value"].isna().to_dict() == {run: run == "v0-s0" for run in none["run"]} and len(none) == 30
    assert set(none["moments"]) == {3}, "a run without any number counts for none"
    other = watched.assign(progress=watched["progress"] + np.where(watched["run"].eq("v0-s0"), 2e-4, 0))  # another number of steps
    assert set(alignment.averages(other)["moments"]) == {3}
    found = alignment.predictions(alignment.averages(watched[~gone]), rows, draws=20).set_index("predictor")
    assert found.loc["cosine", "moments"] == 2 and found.loc["norm ratio", "moments"] == 3
    figure = plots.foretold(found.reset_index(), paper=True)
    assert any("Gradients: means over 2 to 3 moments" in " ".join(text.get_text().split()) for text in figure.texts)
    assert alignment.averages(watched.iloc[:0]).empty


def test_a_planted_predictor_is_found_and_the_others_are_not():
    watched, rows = study(1.0)
    found = alignment.predictions(alignment.averages(watched), rows, draws=400).set_index("predictor")
    assert found.loc["neutral utility", "lo"] > 0.3 and found.loc["neutral utility", "p"] < 0.05
    assert found.loc["neutral utility", "partial"] > 0.5
    assert (found.loc[["cosine", "utility", "adam"], "p"] > 0.05).all()
    assert set(found["variants"]) == {10} and set(found["seeds"]) == {3} and set(found["points"]) == {30}
    assert "as pre-registered" in alignment.verdict(found.reset_index())


def test_without_a_predictor_the_verdict_is_undecided():
    watched, rows = study(0.0)
    found = alignment.predictions(alignment.averages(watched), rows, draws=400)
    assert "undecided" in alignment.verdict(found) and "cannot tell" in alignment.verdict(found)
    assert "only shows that it runs" in alignment.verdict(found, smoke=True)


def test_seeds_are_no_independent_evidence():
    """Predictor and benefit belong to the variant and have nothing to do with each other: eight seeds that repeat both make neither the
    p-values small nor the intervals narrow. Counting the 48 points as independent would find something in half of these benchmarks."""
    rng, variants, seeds, worlds = np.random.default_rng(0), 6, 8, 60
    index = pd.MultiIndex.from_product([[f"v{i}" for i in range(variants)], range(seeds)], names=["variant", "seed"]).to_frame(index=False)
    watched = index.assign(metric="cosine", value=np.repeat(rng.normal(size=variants), seeds) + 0.01 * rng.normal(size=variants * seeds))
    rows = [pd.DataFrame({"variant": "baseline", "seed": range(seeds), "value": 50.0, "benchmark": f"{w}/motion"}) for w in range(worlds)]
    rows += [
        index.assign(value=50 + np.repeat(rng.normal(size=variants), seeds) + 0.01 * rng.normal(size=len(index)), benchmark=f"{w}/motion")
        for w in range(worlds)
    ]
    about = {"source": "run", "regime": "x", "edition": "sound", "probe": "linear", "metric": "top1", "n": 100}
    rows = pd.concat(rows).assign(run=lambda t: t["variant"] + t["seed"].astype(str), **about)
    found = alignment.predictions(watched, rows, draws=100, names=("cosine",))
    assert len(found) == worlds and set(found["points"]) == {variants * seeds}
    assert (found["p"] < 0.05).mean() < 0.15
    assert (found["lo"] > 0).mean() + (found["hi"] < 0).mean() < 0.15


def test_a_perfect_order_of_few_variants_has_an_interval():
    watched, rows = study(1.0, variants=4, seeds=1)
    found = alignment.predictions(alignment.averages(watched), rows, draws=50)
    perfect = found[found["rho"].abs().gt(1 - 1e-9)]
    assert len(perfect) and (perfect["lo"] < 0).all() and (perfect["hi"] > 0).all()


def test_four_variants_with_unequal_seeds_prove_nothing():
    """There are 24 ways to deal four benefits: no p-value below 1 in 24, however many seeds some of the variants have."""
    points = pd.DataFrame(
        [(f"v{i}", seed, i + 0.01 * seed, i + 0.02 * seed) for i in range(4) for seed in range(5 if i else 2)],
        columns=["variant", "seed", "cosine", "delta"],
    ).set_index(["variant", "seed"])
    (row,) = ranks.correlations(points, 2000, 0)
    assert row["rho"] > 0.9 and row["seeds"] == 2 and 1 / 24 <= row["p"] <= 2 / 24


def test_p_is_of_the_correlation_that_is_reported():
    """One variant has one seed. The others' first seeds lie in perfect order, all points do not: p must not speak of the first ones."""
    points = [("v0", 0, 0.0, 0.0)]
    points += [(f"v{i}", seed, i + 0.1 * seed, i if seed == 0 else 3 * i % 7) for i in range(1, 8) for seed in range(3)]
    table = pd.DataFrame(points, columns=["variant", "seed", "cosine", "delta"]).set_index(["variant", "seed"])
    (row,) = ranks.correlations(table, 50, 0)
    assert row["rho"] == pytest.approx(sps.spearmanr(table["cosine"], table["delta"]).statistic)
    blocks = [part.to_numpy() for _, part in table.groupby(level="variant", sort=False)]
    assert ranks._dealt(blocks, np.random.default_rng(0))[0] == pytest.approx(row["rho"])
    assert abs(row["rho"]) < 0.6 and row["p"] > 0.05


def test_unequal_seeds_find_nothing_where_nothing_is():
    """The p-values of 200 worlds without a relation, five to one seeds a variant: as many below 5 % as there should be."""
    rng, seeds = np.random.default_rng(1), (5, 5, 5, 3, 3, 1)
    index = pd.MultiIndex.from_tuples([(f"v{i}", s) for i, n in enumerate(seeds) for s in range(n)], names=["variant", "seed"])
    drawn = lambda: np.repeat(rng.normal(size=len(seeds)), seeds) + 0.3 * rng.normal(size=len(index))
    found = [ranks.correlations(pd.DataFrame({"cosine": drawn(), "delta": drawn()}, index), 2, 0)[0]["p"] for _ in range(200)]
    assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.09


def test_four_variants_in_perfect_order_decide_nothing():
    """Their bootstrap intervals have no width; the rarest of 24 orders is not rare."""
    points = pd.DataFrame(
        [(f"v{i}", 0, i, -i, i) for i in range(4)], columns=["variant", "seed", "neutral utility", "cosine", "delta"]
    ).set_index(["variant", "seed"])
    found = pd.DataFrame(ranks.correlations(points, 500, 0)).assign(benchmark="w/motion")
    assert found["lo"].max() > 0 and found["p"].min() >= 2 / 24
    said = alignment.verdict(found)
    assert "undecided" in said and "of 1 benchmarks: none" in said


def test_few_variants_are_dealt_in_every_order():
    """The p-value of five variants with two seeds, from all 120 orders, each correlated by scipy; of nine, nearly the same as from all."""
    rng = np.random.default_rng(3)
    for count, tolerance in ((5, 1e-12), (9, 0.004)):
        x, y = rng.normal(size=(2, count, 2)) + np.arange(count)[:, None] * [[[0.0]], [[0.3]]] + rng.normal(size=(count, 1))
        index = pd.MultiIndex.from_product([range(count), range(2)], names=["variant", "seed"])
        (row,) = ranks.correlations(pd.DataFrame({"cosine": x.ravel(), "delta": y.ravel()}, index), 10, 0)
        a, b = (sps.zscore(sps.rankdata(u)).reshape(count, 2) for u in (x, y))
        each = [abs((a * b[list(order)]).mean()) for order in permutations(range(count))]
        assert row["rho"] == pytest.approx(sps.spearmanr(x.ravel(), y.ravel()).statistic)
        assert row["p"] == pytest.approx(np.mean(np.array(each) >= each[0] - 1e-9), abs=tolerance)


def test_too_few_variants_are_refused():
    watched, rows = study(1.0, variants=3)
    with pytest.raises(ValueError, match="at least 4 watched variants"):
        alignment.predictions(alignment.averages(watched), rows, draws=50)


def test_one_run_is_taken_as_well_as_several(world, probe, tmp_path):
    run = vl.pretrain("ld", world, runs=tmp_path, preset="smoke", progress=False, probe=Watch(probe, at=(0, 1)))
    whole = ends.align([str(run.path)])
    for one in (run, run.path, str(run.path), str(tmp_path), [run]):
        pd.testing.assert_frame_equal(ends.align(one), whole)
    pd.testing.assert_frame_equal(alignment.load(str(run.path)), whole)
    with pytest.raises(FileNotFoundError, match="nowhere: no finished run there"):
        ends.align("nowhere")


# ------------------------------------------------------------------------------------------------------------------------- figures


def test_two_rows_of_one_seed_are_one_seed():
    at = {"progress": 0.0, "micro_batches": 8, "clips": 32}
    rows = pd.DataFrame([{"seed": s, "value": v, "lo": v - 0.1, "hi": v + 0.2} | at for s, v in ((0, 0.1), (0, 0.3), (1, 0.6))])
    two, one = drawn._over_seeds(rows).iloc[0], drawn._over_seeds(rows[rows["seed"].eq(0)]).iloc[0]
    among = stats.t_interval([0.2, 0.6])
    assert (two["value"], two["lo"], two["hi"], two["seeds"]) == pytest.approx((0.4, among.lo, among.hi, 2))
    assert (one["value"], one["lo"], one["hi"], one["seeds"]) == pytest.approx((0.2, 0.1, 0.4, 1))


def test_figures(tmp_path):
    watched, rows = study(1.0, variants=5, seeds=2)
    about = {"lo": watched["value"] - 0.1, "hi": watched["value"] + 0.1, "micro_batches": 8, "clips": 32, "smoke": True}
    table = watched.assign(**about)
    shares = [table[table["metric"].eq("cosine")].assign(metric=m, value=v) for m, v in (("help", 0.2), ("harm", 0.1), ("neutral", 0.7))]
    table = pd.concat([table, *shares])
    found = alignment.predictions(alignment.averages(watched), rows, draws=50)
    figures = [
        plots.through_training(table, paper=True),
        plots.by_depth(table, ["cosine", "neutral utility/motion", "utility/nothing"], paper=True),
        plots.energy(table, paper=True),
        plots.foretold(found, smoke=True, paper=True),
    ]
    for i, figure in enumerate(figures):
        assert plots.save(figure, tmp_path / f"{i}")[0].stat().st_size > 5_000
        assert any("only shows that it runs" in text.get_text() for text in figure.texts)
    assert any("cosine is −1 whatever they do" in text.get_text().replace("\n", " ") for text in figures[0].texts)
    with pytest.raises(ValueError, match="no auxiliary to follow"):
        plots.through_training(table[table["term"].eq("nothing")])
