"""Statistics: known answers, then simulation: the stated error rates are the real ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats as sps

from vjepa_lab.evidence import factorials, intervals, planning, results, stats, verdicts

PAPER = Path(__file__).parents[1] / "data" / "paper"


@pytest.fixture(scope="module")
def paper():
    return results.load(PAPER)


def arms(rng, studies: int, seeds: int, samples: int, effect=0.0, seed_sd=0.01, sample_sd=0.3):
    """Correctness `[study s i]` of two arms that answer the same samples of varied difficulty: each arm has its own noise per seed and,
    because objectives find different samples hard, per sample. `effect` is the difference of the means in the population."""
    difficulty = rng.beta(4, 8, (studies, 1, samples))

    def arm(shift):
        seed, sample = rng.normal(0, seed_sd, (studies, seeds, 1)), rng.normal(0, sample_sd, (studies, 1, samples))
        return rng.random((studies, seeds, samples)) < difficulty * (1 + np.clip(sample, -1, 1)) + seed + shift

    return arm(effect), arm(0.0)


def within(rate: float, nominal: float, studies: int) -> bool:
    """A simulated rate agrees with the nominal one within the simulation's own 99.9 % interval."""
    return sps.binomtest(round(rate * studies), studies, nominal).pvalue > 0.001


def table(values: dict[str, list[float]], benchmark="motion", n=1000, **columns) -> pd.DataFrame:
    rows = [{"variant": v, "seed": s, "value": x} for v, xs in values.items() for s, x in enumerate(xs)]
    about = {
        "benchmark": benchmark,
        "probe": "linear",
        "metric": "top1",
        "n": n,
        "source": "run",
        "regime": "synthetic",
        "edition": "sound",
    }
    return results.tidy(pd.DataFrame(rows).assign(**about | columns))


# --- known answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seeds", "family", "expected"),
    [
        (3, 1, 2.48), (3, 14, 9.6),
        (5, 1, 1.24), (5, 5, 2.06), (5, 14, 2.75), (5, 27, 3.27),
        (8, 1, 0.84), (8, 5, 1.24), (8, 27, 1.72),
        (10, 1, 0.72), (10, 5, 1.03), (10, 27, 1.38),
    ],
)  # fmt: skip
def test_detectable_differences(seeds, family, expected):
    assert planning.detectable(seeds, family) == pytest.approx(expected, abs=0.05 if expected > 9 else 0.0055)


def test_detectable_with_power_is_statsmodels_answer():
    from statsmodels.stats.power import TTestPower

    expected = TTestPower().solve_power(nobs=5, alpha=0.05, power=0.8)
    assert planning.detectable(5, power=0.8) == pytest.approx(expected, abs=1e-3)
    assert planning.detectable(5, 15, power=0.8) > planning.detectable(5, 15)
    with pytest.raises(ValueError, match="one seed"):
        planning.detectable(1)


def test_sampling_floor_of_the_benchmarks():
    assert planning.sampling_floor(8.4, 1970) == pytest.approx(1.7, abs=0.05)
    assert planning.sampling_floor([9, 25], 5000) == pytest.approx([1.1, 1.7], abs=0.05)
    assert planning.sampling_floor(8.39, 24777) == pytest.approx(0.5, abs=0.05)


def test_newcombe_covers_the_printed_differences():
    # Newcombe (1998), table II, method 10: 56/70 - 48/80 -> (0.0524, 0.3339)
    interval = stats.newcombe(100 * 56 / 70, 70, 100 * 48 / 80, 80)
    assert (interval.lo, interval.hi) == pytest.approx((5.24, 33.39), abs=0.01)
    motion_guided = stats.newcombe([8.68, 12.16, 3.45], [1970, 5000, 24777], [8.38, 12.02, 2.07], [1970, 5000, 24777])
    z = sps.norm.isf(motion_guided.p / 2)
    assert z == pytest.approx([0.34, 0.21, 9.4], abs=0.05)


def test_one_seed_of_predictions_is_the_paired_sampling_interval():
    rng = np.random.default_rng(0)
    a, b = rng.random((1, 500)) < 0.4, rng.random((1, 500)) < 0.3
    expected = sps.ttest_1samp(100.0 * a[0] - 100.0 * b[0], 0)
    interval = stats.paired_interval(a, b)
    assert interval.p == pytest.approx(expected.pvalue)
    assert (interval.lo, interval.hi) == pytest.approx(tuple(expected.confidence_interval()))


def test_paired_interval_is_the_seed_t_interval_when_samples_do_not_interact():
    d = np.array([1.0, -0.5, 2.0, 0.3])[:, None] * np.ones((1, 50))
    crossed, simple = stats.paired_interval(d / 100, 0 * d), stats.t_interval(d[:, 0])
    assert crossed[:3] == pytest.approx(simple[:3]) and crossed.p == pytest.approx(simple.p)


def test_the_bootstrap_draws_patterns_as_it_would_draw_samples():
    rng = np.random.default_rng(3)
    a, b = rng.random((4, 300)) < 0.45, rng.random((4, 300)) < 0.35
    fast = stats.hierarchical_bootstrap(a, b, draws=20_000)
    d = 100.0 * a - 100.0 * b
    slow = np.array([d[rng.integers(0, 4, 4)][:, rng.integers(0, 300, 300)].mean() for _ in range(4000)])
    assert fast.value == pytest.approx(d.mean())
    assert (fast.lo, fast.hi) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.5)


def test_arms_of_different_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 5\) and \(2, 6\)"):
        stats.paired_interval(np.zeros((2, 5)), np.zeros((2, 6)))


def test_mcnemar_is_the_exact_binomial_test():
    from statsmodels.stats.contingency_tables import mcnemar

    rng = np.random.default_rng(0)
    a, b = rng.random(200) < 0.5, rng.random(200) < 0.4
    counts = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    assert stats.mcnemar(a, b) == pytest.approx(mcnemar(counts, exact=True).pvalue)
    assert stats.mcnemar(a, a) == 1.0


def test_tost_agrees_with_statsmodels_and_with_its_interval():
    from statsmodels.stats.weightstats import DescrStatsW

    x = np.array([0.3, -0.2, 0.5, 0.1, -0.4])
    result = stats.tost(x, 1.0)
    assert result.p == pytest.approx(DescrStatsW(x).ttost_mean(-1.0, 1.0)[0])
    assert (result.p < 0.05) == (result.lo > -1 and result.hi < 1)
    assert stats.tost(x + 3, 1.0).p > 0.9
    assert [stats.tost([d, d, d], 1.0).p for d in (0.5, 1.0, -1.0, 2.0)] == [0, 1, 1, 1]  # no spread: inside or not, the edge is not
    with pytest.raises(ValueError, match="margin"):
        stats.tost(x, 0)


def test_adjustments_are_statsmodels_answers():
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(0).uniform(0, 0.2, 15)
    np.testing.assert_allclose(stats.holm(p), multipletests(p, method="holm")[1])
    np.testing.assert_allclose(stats.benjamini_hochberg(p), multipletests(p, method="fdr_bh")[1])


def test_a_difference_on_an_unknown_number_of_clips_has_no_p():
    out = stats.newcombe([52.0, 52.0], [np.nan, 1000], [50.0, 50.0], [1000, 1000])
    assert np.isnan([out.p[0], out.lo[0], out.hi[0]]).all() and 0 < out.p[1] < 1


def test_adjustments_keep_missing_values():
    p = np.array([0.01, np.nan, 0.04, 0.03])
    np.testing.assert_allclose(stats.holm(p), [0.04, np.nan, 0.09, 0.09])  # of four planned tests
    np.testing.assert_allclose(stats.benjamini_hochberg(p), [0.03, np.nan, 0.04, 0.04])


# --- comparing objectives ---------------------------------------------------------------------------------------------


def test_the_printed_table_under_its_sampling_noise(paper):
    rows = results.select(paper[paper["source"].isin(["paper", "constant"])], regime="mixed")
    out = stats.compare(rows).set_index(["variant", "benchmark"])
    assert set(out["basis"]) == {"samples"} and set(out["seeds"]) == {1}
    assert out.loc[("ld", "D-48"), "p"] == pytest.approx(0.043, abs=0.001) and out.loc[("ld", "IN-100"), "p"] == pytest.approx(
        0.016, abs=0.001
    )
    assert not out.loc[("ld", "D-48"), "significant"] and out.loc[("fwm-hw-ld", "IN-100"), "significant"]
    assert set(out[out["family"].eq("primary")].index.get_level_values(0)) == set(stats.FAMILY)
    assert (out.xs("D-48", level=1)["flag"] != "").all()
    assert not out["random_init"].any()


def test_seed_pairs_give_the_t_interval_and_cancel_what_seeds_share():
    shared = np.array([0.0, 8.0, -5.0, 3.0])
    gain = np.array([1.0, 1.4, 0.8, 1.2])
    out = stats.compare(table({"baseline": list(30 + shared), "ld": list(30 + shared + gain)})).iloc[0]
    expected = sps.ttest_1samp(gain, 0)
    assert (out["basis"], out["seeds"]) == ("seeds", 4)
    assert out["p"] == pytest.approx(expected.pvalue) and (out["lo"], out["hi"]) == pytest.approx(tuple(expected.confidence_interval()))


def test_a_missing_name_and_an_empty_one_are_the_same():
    rows = table({"baseline": [30.0, 32.0, 31.0], "ld": [31.0, 34.0, 33.0]}).assign(probe_seed=0)
    rows["edition"] = [np.nan, "", np.nan] * 2
    out = stats.compare(rows)
    assert len(out) == 1 and out.iloc[0]["seeds"] == 3 and out.iloc[0]["delta"] == pytest.approx(5 / 3)


def test_probe_seeds_are_no_seeds():
    rows = table({"baseline": [30.0, 32.0], "ld": [31.0, 34.0]}).assign(probe_seed=0)
    again = rows.assign(probe_seed=1, value=rows["value"] + np.where(rows["variant"].eq("ld"), 1.0, 0.0))
    out = stats.compare(results.tidy(pd.concat([rows, again]))).iloc[0]
    assert out["seeds"] == 2 and out["delta"] == pytest.approx(2.0)


def test_predictions_are_compared_over_seeds_and_samples():
    rng = np.random.default_rng(0)
    a, b = arms(rng, 1, 4, 300, effect=0.15)
    frames = [
        pd.DataFrame(
            {"variant": v, "seed": s, "benchmark": "motion", "probe": "linear", "id": range(300), "label": 1, "top1": arm[0, s].astype(int)}
        )
        for v, arm in (("fwm", a), ("baseline", b))
        for s in range(4)
    ]
    out = stats.compare_predictions(pd.concat(frames).sample(frac=1, random_state=0), draws=2000).iloc[0]
    direct = stats.paired_interval(a[0], b[0])
    assert (out["delta"], out["lo"], out["hi"], out["seeds"], out["n"]) == pytest.approx((direct.value, direct.lo, direct.hi, 4, 300))
    assert (out["value"], out["base"]) == pytest.approx((100 * a.mean(), 100 * b.mean()))
    boot, over_seeds = stats.hierarchical_bootstrap(a[0], b[0], 2000, 0), stats.t_interval(100 * (a[0].mean(1) - b[0].mean(1)))
    assert (out["boot_lo"], out["boot_hi"], out["boot_p"]) == pytest.approx((boot.lo, boot.hi, boot.p))
    assert (out["t_lo"], out["t_hi"]) == pytest.approx((over_seeds.lo, over_seeds.hi))
    assert out["mcnemar"] == pytest.approx(min(1, 4 * min(stats.mcnemar(x, y) for x, y in zip(a[0], b[0], strict=True))))
    assert out["family"] == "primary" and out["p_adj"] == pytest.approx(out["p"])
    with pytest.raises(ValueError, match=r"fwm on motion.*lack"):
        stats.compare_predictions(pd.concat(frames)[7:])
    with pytest.raises(ValueError, match="'other'"):
        stats.compare_predictions(pd.concat(frames), against="other")


def predicted(variant: str, seed: int, hits: int, n: int = 60, **columns) -> pd.DataFrame:
    """Predictions of one run: the first `hits` of n samples right."""
    known = {"variant": variant, "seed": seed, "benchmark": "motion", "probe": "linear", "id": range(n), "label": np.arange(n) % 4}
    return pd.DataFrame(known | {"top1": np.where(np.arange(n) < hits, np.arange(n) % 4, 9)} | columns)


def test_predictions_that_do_not_line_up_are_refused_and_regimes_stay_apart():
    """Means over encoders, runs, regimes or test sets would look like any other number."""
    arms = [predicted(v, s, h + s, regime="a", encoder="student") for v, h in (("baseline", 20), ("ld", 26)) for s in range(3)]
    elsewhere = [predicted("ld", s, 5, regime="b", encoder="student") for s in range(3)]
    out = stats.compare_predictions(pd.concat([*arms, *elsewhere]), draws=1)
    assert out[["variant", "regime"]].to_numpy().tolist() == [["ld", "a"]] and out["delta"].item() == pytest.approx(10)
    with pytest.raises(ValueError, match=r"ld on motion, seed 1: several predictions.*encoder student, teacher"):
        stats.compare_predictions(pd.concat([*arms, predicted("ld", 1, 3, regime="a", encoder="teacher")]))
    with pytest.raises(ValueError, match="different test sets"):
        stats.compare_predictions(
            pd.concat([*arms, predicted("fwm", 0, 3, regime="a").assign(label=lambda p: p["label"][::-1].to_numpy())])
        )
    with pytest.raises(ValueError, match="no other variant"):
        stats.compare_predictions(pd.concat(arms[:3]))


def test_predictions_of_regimes_without_a_name_count_and_exploratory_ones_control_the_false_discovery_rate():
    own = {"motion-guided": 33, "hw-uniform": 30, "ac": 24, "ld": 36}
    arms = [predicted(v, s, h + s % 2, regime=None) for v, h in ({"baseline": 20} | own).items() for s in range(4)]
    out = stats.compare_predictions(pd.concat(arms), draws=1).set_index("variant")
    assert set(out.index) == set(own) and out["regime"].isna().all()
    rest = out[out["family"].eq("exploratory")]
    assert list(rest["p_adj"]) == pytest.approx(list(sps.false_discovery_control(rest["p"]))) and len(rest) == 3
    assert out.loc["ld", "p_adj"] == pytest.approx(out.loc["ld", "p"])  # alone in its family


def test_arms_without_a_common_seed_are_compared_by_welch():
    base, other = [50.0, 52.0, 51.0], [55.0, 58.0, 80.0]
    rows = table({"baseline": base, "ld": other}, n=500)
    rows.loc[rows["variant"].eq("ld"), "seed"] += 7
    out, expected = stats.compare(rows).iloc[0], sps.ttest_ind(other, base, equal_var=False)
    ends = expected.confidence_interval()
    assert (out["lo"], out["hi"], out["p"]) == pytest.approx((ends.low, ends.high, expected.pvalue))
    assert out["basis"] == "seeds, unpaired" and out["seeds"] == 3
    one = stats.compare(rows, baseline_seed=1).iloc[0]  # one baseline run: its seed noise is not known
    assert one["basis"] == "samples" and one["base"] == 52


def test_a_tie_over_seeds_has_the_interval_of_its_rounding():
    rows = table({"baseline": [50.0, 51.0, 52.0], "ld": [52.0, 53.0, 54.0], "fwm": [50.0, 51.0, 52.0]}, n=500)
    rows.loc[rows["variant"].eq("ld"), "n"] = 1000
    found = stats.compare(rows).set_index("variant")
    error = np.sqrt((0.2**2 + 0.1**2) / 12 / 3)
    assert found.loc["ld", "p"] == pytest.approx(2 * sps.t.sf(2 / error, 2)) and found.loc["fwm", "p"] == 1
    assert found.loc["ld", "hi"] == pytest.approx(2 + sps.t.ppf(0.975, 2) * error) and set(found["basis"]) == {"seeds"}
    apart = rows.assign(value=rows["variant"].map({"baseline": 50.0, "ld": 52.0, "fwm": 50.0}))
    apart["seed"] += apart["variant"].ne("baseline") * 7
    welch = stats.compare(apart).set_index("variant")
    assert set(welch["basis"]) == {"seeds, unpaired"} and (welch["lo"] < welch["hi"]).all() and welch["p"].gt(0).all()
    for unknown in (rows.assign(n=np.nan), rows.assign(metric="mAP"), apart.assign(n=np.nan)):
        out = stats.compare(unknown)
        assert out[["lo", "hi", "p"]].isna().all(axis=None) and not out["significant"].any() and set(out["basis"]) == {"samples"}
    spread = table({"baseline": [50.0, 51.0, 52.0], "ld": [52.0, 53.5, 54.0]}, n=np.nan)
    assert stats.compare(spread)["p"].item() == pytest.approx(sps.ttest_1samp([2.0, 2.5, 2.0], 0).pvalue)


def test_predictions_that_tie_over_seeds_keep_an_interval():
    """Two seeds that gain as many samples, each its own: neither seeds nor samples show a variance, and none of them is certain."""
    arms = [predicted("baseline", s, 20) for s in range(2)] + [predicted("ld", s, 20) for s in range(2)]
    arms[2].loc[20:24, "top1"] = arms[2].loc[20:24, "label"]
    arms[3].loc[25:29, "top1"] = arms[3].loc[25:29, "label"]
    out = stats.compare_predictions(pd.concat(arms), draws=1).iloc[0]
    error = stats.rounding(2, 60, 60)
    assert out["p"] > 0 and (out["hi"] - out["lo"]) / 2 == pytest.approx(sps.t.ppf(0.975, 1) * error)
    assert (out["t_lo"], out["t_hi"]) == pytest.approx((out["lo"], out["hi"]))
    same = stats.compare_predictions(pd.concat([arms[0], arms[0].assign(variant="ld")]), draws=1).iloc[0]
    assert same["p"] == 1 and same["lo"] < 0 < same["hi"]


# --- factorial --------------------------------------------------------------------------------------------------------

CELLS = ["baseline", "fwm", "ld", "hw", "fwm-ld", "fwm-hw", "hw-ld", "fwm-hw-ld"]


def factorial_table(seeds=4, noise=0.0, leave_out=(), effects=(2.0, -3.0, 0.0, 1.5, 0.0, 0.0, 4.0)):
    """Accuracies made from Yates effects (fwm, ld, hw, fwm x ld, fwm x hw, ld x hw, all), with seed effects and noise."""
    rng = np.random.default_rng(0)
    levels = stats.cells(CELLS)
    seed = rng.normal(0, 5, seeds)
    values = {}
    for variant, level in levels.items():
        f, l, h = (2 * x - 1 for x in level)
        mean = 30 + np.dot(effects, [f, l, h, f * l, f * h, l * h, f * l * h]) / 2
        values[variant] = list(mean + seed + rng.normal(0, noise, seeds))
    return table({v: x for v, x in values.items() if v not in leave_out})


def test_factorial_recovers_planted_effects():
    out = stats.factorial(factorial_table(noise=1e-6)).set_index("term")["effect"]
    expected = {"fwm": 2.0, "ld": -3.0, "hw": 0.0, "fwm x ld": 1.5, "fwm x hw": 0.0, "ld x hw": 0.0, "fwm x ld x hw": 4.0}
    assert out.to_dict() == pytest.approx(expected, abs=1e-5)


def test_the_factorial_takes_hard_weights_at_the_weight_of_the_combinations():
    rows = factorial_table(noise=1e-3)
    control = rows[rows["variant"].eq("hw")].assign(variant="hw-1.0", value=lambda part: part["value"] + 8)
    assert stats.cells([*CELLS, "hw-1.0", "kin-l1"]) == {**{v: x for v, x in stats.cells(CELLS).items() if v != "hw"}, "hw-1.0": (0, 0, 1)}
    assert stats.cells(["ld", "hw-1.0"], ("fwm", "ld")) == {"ld": (0, 1)}
    before, after = stats.factorial(rows), stats.factorial(pd.concat([rows, control]))
    assert set(before.attrs["cells"]) == set(CELLS) and set(after.attrs["cells"]) == set(CELLS) - {"hw"} | {"hw-1.0"}
    change = (after.set_index("term")["effect"] - before.set_index("term")["effect"]).round(2)
    assert change["hw"] == 2 and change["fwm x hw"] == -2 and change["fwm x ld x hw"] == 2
    fewer = control[control["seed"].ne(control["seed"].iloc[0])]
    assert set(stats.factorial(pd.concat([rows, fewer])).attrs["cells"]) == set(CELLS), "fewer seeds than the row itself"


@pytest.mark.parametrize("method", ["seeds", "ols", "mixed"])
def test_a_factorial_without_residuals_is_no_certainty(method):
    rows = factorial_table()
    found = stats.factorial(rows.assign(value=rows["value"].round(1)), method=method)  # on the grid of 1,000 clips
    exact = stats.factorial(factorial_table(effects=np.zeros(7)), method=method)
    for fit in (found, exact):
        assert (fit["hi"] - fit["lo"]).min() > 0 and (method == "mixed" or fit["p"].gt(0).all())  # a normal p of z = 200 underflows
    unit = 4 / len(rows)  # variance of an effect, in that of a value
    assert ((exact["hi"] - exact["lo"]) / 2).to_numpy() == pytest.approx(
        {"seeds": sps.t.ppf(0.975, 3), "ols": sps.t.ppf(0.975, len(rows) - 4 - 7), "mixed": sps.norm.ppf(0.975)}[method]
        * 0.1
        * np.sqrt(unit / 12),
        rel=1e-6,
    )
    alike = rows[rows["seed"].eq(0)].assign(value=100.0)
    assert (stats.factorial(alike)["hi"] > 0).all()  # one seed, every clip right


def test_probe_seeds_do_not_narrow_the_factorial():
    rows = factorial_table(noise=1.0)
    again = pd.concat([rows.assign(probe_seed=k, value=rows["value"] + k / 10) for k in range(3)])
    once, thrice = stats.factorial(rows), stats.factorial(again)
    assert thrice[["effect", "lo", "hi", "p"]].to_numpy() == pytest.approx(once[["effect", "lo", "hi", "p"]].to_numpy())


def test_factorial_block_and_mixed_model_agree():
    rows = factorial_table(seeds=6, noise=1.0)
    block, mixed = stats.factorial(rows, method="ols"), stats.factorial(rows, method="mixed")
    np.testing.assert_allclose(block["effect"], mixed["effect"], atol=1e-6)
    np.testing.assert_allclose(
        (block["hi"] - block["lo"]) / (mixed["hi"] - mixed["lo"]), sps.t.ppf(0.975, 35) / sps.norm.ppf(0.975), rtol=1e-3
    )


def test_clips_of_one_recording_are_no_independent_samples():
    """Null studies of two arms that differ by recording, 12 of 6 clips each: over clips too sure, over recordings as sure as stated."""
    rng, sure = np.random.default_rng(0), {"samples": [], "recordings": []}
    for _ in range(160):
        gain = rng.normal(0, 0.2, 12).repeat(6)
        hits = {"baseline": rng.random((1, 72)) < 0.5, "ld": rng.random((1, 72)) < 0.5 + gain}
        answers = pd.concat(
            pd.DataFrame({"variant": v, "seed": 0, "id": range(72), "label": 1, "top1": hit[0].astype(int)}) for v, hit in hits.items()
        ).assign(benchmark="x", probe="linear", recording=lambda table: table["id"] // 6)
        for name, p in sure.items():
            found = stats.compare_predictions(answers if name == "recordings" else answers.drop(columns="recording"), draws=1).iloc[0]
            assert found["basis"] == name
            p.append(found["p"])
    assert within(np.mean(np.array(sure["recordings"]) < 0.05), 0.05, 160) and np.mean(np.array(sure["samples"]) < 0.05) > 0.08


def test_recordings_that_tell_nothing_are_left_out_and_those_of_any_run_are_known():
    rng = np.random.default_rng(0)
    answers = pd.concat(
        pd.DataFrame({"variant": v, "seed": s, "id": range(20), "label": 1, "top1": rng.integers(0, 2, 20)})
        for v in ("baseline", "ld")
        for s in (0, 1)
    ).assign(benchmark="x", probe="linear")
    one = stats.compare_predictions(answers.assign(recording=0), draws=1).iloc[0]
    assert one["basis"] == "seeds and samples", "one film alone"
    whole = answers.assign(recording=answers["id"] // 5)
    part = whole.assign(recording=whole["recording"].mask(whole["variant"].eq("baseline")))  # probed before predictions said it
    found = [stats.compare_predictions(each, draws=1).iloc[0] for each in (whole, part)]
    assert found[0]["basis"] == found[1]["basis"] == "seeds and recordings" and found[0]["p"] == found[1]["p"]


def test_effects_of_cells_that_vary_unlike_are_measured_in_each_seed():
    """Null studies of three seeds in which one cell varies ten times as much as the rest: one variance for all cells would make everything
    of it sure."""
    rng = np.random.default_rng(0)
    spread = {name: 9.0 if name == "fwm" else 1.0 for name in CELLS}
    sure = {"seeds": [], "ols": []}
    for _ in range(80):
        rows = table({name: list(30 + rng.normal(0, sd, 3)) for name, sd in spread.items()})
        for method, p in sure.items():
            p += stats.factorial(rows, method=method)["p"].tolist()
    far = {method: np.mean(np.array(p) < 0.01) for method, p in sure.items()}
    assert far["seeds"] < 0.025 < far["ols"], far


def test_a_factorial_takes_the_seeds_that_ran_every_cell_and_says_where_there_are_too_few():
    rows = factorial_table(seeds=4, noise=1.0)
    holes = rows[~(rows["variant"].eq("hw-ld") & rows["seed"].eq(3))]
    found, whole = stats.factorial(holes), stats.factorial(rows[rows["seed"].lt(3)])
    assert found.attrs["seeds"] == 3 and found.drop(columns="basis").equals(whole.drop(columns="basis"))
    apart = rows[~(rows["variant"].eq("hw-ld") & rows["seed"].gt(0))]
    pooled = stats.factorial(apart)
    assert set(pooled["basis"]) == {"seeds, one variance for all cells"} and pooled.attrs["seeds"] == 4
    assert "on the assumption that all cells vary alike" in verdicts.factorial(verdicts.fits(apart))
    with pytest.raises(ValueError, match='method must be "seeds", "ols" or "mixed"'):
        stats.factorial(rows, method="contrasts")


def test_a_missing_cell_is_named_and_costs_the_top_interaction(paper):
    rows = results.select(paper[paper["source"].eq("paper")], regime="mixed", benchmarks=["IN-100"])
    out = stats.factorial(rows)
    assert out.attrs["missing"] == ["fwm-hw"] and "fwm x ld x hw" not in set(out["term"]) and set(out["basis"]) == {"samples"}
    planted = stats.factorial(factorial_table(noise=1e-6, leave_out=["fwm-hw"], effects=(2.0, -3.0, 0.0, 1.5, 0.0, 0.0, 0.0)))
    assert planted.set_index("term").loc["ld", "effect"] == pytest.approx(-3.0, abs=1e-5)
    with pytest.raises(ValueError, match="too few cells"):
        stats.factorial(factorial_table(leave_out=["fwm-hw", "hw", "ld"]))


def test_one_degree_of_freedom_is_enough_and_none_is_refused():
    """Two cells and two seeds leave one: the effect is then the paired t-test's."""
    y, seeds, design = np.array([10.0, 12.0, 13.0, 17.0]), np.array([0, 1, 0, 1]), np.array([[-1.0], [-1.0], [1.0], [1.0]]) / 2
    effect, paired = factorials._block_effects(design, y, seeds, 0.95), sps.ttest_rel(y[2:], y[:2])
    ends = paired.confidence_interval()
    assert (effect.value[0], effect.lo[0], effect.hi[0], effect.p[0]) == pytest.approx((4, ends.low, ends.high, paired.pvalue))
    with pytest.raises(ValueError, match="no degree of freedom"):
        factorials._block_effects(design[::2], y[::2], seeds[::2], 0.95)


# --- trade-offs -------------------------------------------------------------------------------------------------------


def test_printed_deltas_rise_and_fall_together(paper):
    rows = results.select(paper[paper["source"].eq("paper")], regime="mixed")
    d = results.delta(rows).pivot(index="variant", columns="benchmark", values="delta")
    rho = stats.correlation(d["IN-100"], d["SSv2"])
    assert rho.value == pytest.approx(0.807, abs=5e-4) and rho.p == pytest.approx(0.0009, abs=3e-4) and 0.3 < rho.lo < rho.hi < 1
    assert stats.correlation(d["IN-100"], d["D-48"]).value == pytest.approx(-0.14, abs=0.005)
    front = stats.pareto(d[["D-48", "IN-100", "SSv2"]])
    assert set(front[front].index) == {"fwm-hw-ld", "ld", "ac-hw", "hw"}
    with pytest.raises(ValueError, match="at least 4"):
        stats.correlation([1, 2, 3, np.nan], [1, 2, 3, 4])
    perfect = stats.correlation([1, 2, 3, 4], [4, 3, 2, 1])
    assert perfect.value == pytest.approx(-1) and perfect.lo == -1 and perfect.hi > 0 and perfect.p == pytest.approx(2 / 24)


def test_means_that_differ_by_rounding_tie():
    x, y = [0.1 + 0.2, 0.3, 1.0, 2.0], [1.0, 2.0, 3.0, 4.0]
    assert x[0] != x[1] and stats.correlation(x, y).value == pytest.approx(sps.spearmanr([0.3, 0.3, 1, 2], y).statistic)


@pytest.mark.parametrize(("true", "count"), [(0.0, 4), (0.0, 6), (0.0, 14), (0.8, 5), (0.8, 14)])
def test_the_interval_of_a_rank_correlation_covers_and_its_p_is_exact(true, count):
    rng, studies = np.random.default_rng(count), 400
    x = rng.standard_normal((studies, count))
    y = true * x + np.sqrt(1 - true**2) * rng.standard_normal((studies, count))
    found = [stats.correlation(a, b, orders=720) for a, b in zip(x, y, strict=True)]
    population = 6 / np.pi * np.arcsin(true / 2)
    assert np.mean([r.lo <= population <= r.hi for r in found]) > 0.93
    if true == 0:
        assert np.mean([r.p <= 0.05 for r in found]) < 0.08
    scipys = sps.permutation_test((x[0],), lambda a: sps.spearmanr(a, y[0]).statistic, permutation_type="pairings", n_resamples=720)
    if count <= 6:
        assert found[0].p == pytest.approx(scipys.pvalue, abs=1e-9)


def test_few_variants_in_perfect_order_prove_no_trade_off():
    values = {"baseline": [50.0], "a": [51.0], "b": [52.0], "c": [53.0], "d": [54.0]}
    falls = {name: [100 - x[0]] for name, x in values.items()}
    rows = pd.concat([table(values, "X"), table(falls, "Y")])
    assert "neither a trade-off nor its absence can be told" in verdicts.tradeoff(rows, "X", "Y")
    more = {f"v{i}": [51.0 + i] for i in range(7)} | {"baseline": [50.0]}
    rows = pd.concat([table(more, "X"), table({name: [100 - x[0]] for name, x in more.items()}, "Y")])
    assert "a trade-off across variants" in verdicts.tradeoff(rows, "X", "Y")


def test_an_untrained_encoder_is_corrected_by_itself():
    trained = {"baseline": [50.0, 52.0, 51.0], "ld": [50.4, 52.9, 51.5], "hw": [50.1, 51.8, 51.3]}
    alone = stats.compare(table(trained)).set_index("variant")["p_adj"]
    beside = stats.compare(table(trained | {"random-init": [20.0, 22.1, 21.0]})).set_index("variant")
    assert beside.loc["random-init", "family"] == "untrained" and beside.loc["random-init", "p_adj"] < 1e-3
    assert beside["p_adj"].drop("random-init").equals(alone)
    both = stats.adjusted_apart(beside.reset_index())
    np.testing.assert_allclose(both[:2], stats.benjamini_hochberg(beside["p"].drop("random-init")))


def test_equals_do_not_beat_each_other():
    """Two rows with the same accuracies are both on the front; a tie in one column is no way past the other."""
    table = pd.DataFrame({"a": [2.0, 2.0, 2.0, 1.0], "b": [3.0, 3.0, 1.0, 4.0]}, index=["one", "same", "worse", "other"])
    assert stats.pareto(table).to_dict() == {"one": True, "same": True, "worse": False, "other": True}
    holes = pd.DataFrame({"a": [np.nan, 2.0, 1.0], "b": [4.0, 3.0, np.nan]}, index=["no a", "whole", "no b"])
    assert stats.pareto(holes).all(), "what was not measured neither beats nor is beaten"


def test_rank_stability_is_kendalls_w():
    same = stats.rank_stability(table({"a": [3.0, 4.0, 5.0], "b": [2.0, 3.0, 4.0], "c": [1.0, 2.0, 3.0]}))
    assert same.attrs["kendall_w"] == 1.0 and same.loc["a"].tolist() == [1, 1, 1]
    tied = stats.rank_stability(table({"a": [3.0, 2.0], "b": [3.0, 2.0], "c": [3.0, 2.0], "d": [1.0, 1.0]}))
    assert tied.attrs["kendall_w"] == pytest.approx(1), "two seeds that tie the same three agree"
    turned = stats.rank_stability(table({"a": [3.0, 1.0, 2.0], "b": [2.0, 3.0, 1.0], "c": [1.0, 2.0, 3.0]}))
    assert turned.attrs["kendall_w"] == pytest.approx(0.0)
    with pytest.raises(ValueError, match="two seeds"):
        stats.rank_stability(table({"a": [1.0], "b": [2.0]}))


# --- planning ---------------------------------------------------------------------------------------------------------


def test_plan_counts_runs_hours_and_what_they_resolve():
    plan = planning.plan(["baseline", "ld", "fwm", "hw", "delta"], seeds=5, sd=2.0, hours_per_run=28)
    assert (plan.runs, plan.gpu_hours) == (25, 700)
    resolves = plan.table.set_index("tests")["resolves_pp"]
    assert resolves[1] == pytest.approx(2.48, abs=0.01) and resolves[9] == pytest.approx(2 * planning.detectable(5, 9))
    assert "25 runs" in str(plan) and "700 GPU-h" in str(plan)
    assert plan.table["found_at_resolves"].between(0.4, 0.62).all() and (plan.table["found_pp"] > plan.table["resolves_pp"]).all()
    assert "a true one of that size is found in" in str(plan) and "standard deviation of 2 pp" in str(plan)
    assert planning.power_at(planning.detectable(5, 9, power=0.8), 5, 9) == pytest.approx(0.8, abs=1e-4)
    assert planning.power_at(0.0, 5) == pytest.approx(0.05)
    with pytest.raises(ValueError, match="at least one variant"):
        planning.plan(["baseline"], 3)


# --- the stated error rates are the real ones -------------------------------------------------------------------------

STUDIES = 500


@pytest.mark.parametrize("seeds", [3, 5, 8])
@pytest.mark.parametrize(("seed_sd", "sample_sd"), [(0.03, 0.3), (0.01, 0.0), (0.0, 0.5)])
def test_null_studies_reject_at_five_percent(seeds, seed_sd, sample_sd):
    a, b = arms(np.random.default_rng(seeds), STUDIES, seeds, 400, seed_sd=seed_sd, sample_sd=sample_sd)
    assert within(np.mean(stats.paired_interval(a, b).p < 0.05), 0.05, STUDIES)


FAR_OUT = 0.05 / 30
"Where Holm's correction over 30 comparisons reads its first p."


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
@pytest.mark.parametrize(("seed_sd", "sample_sd"), [(2.5, 5.7), (1.5, 5.7), (3.0, 0.0), (0.0, 9.0)])
def test_seeds_that_agree_by_luck_are_no_certainty(seeds, seed_sd, sample_sd, monkeypatch):
    """Null studies, in points; their noise beside seed and sample is 13.3. A test says no more than it knows, at 5 % and far out."""
    rng = np.random.default_rng(0)

    def studies() -> np.ndarray:
        parts = (rng.normal(0, sd, (5000, s, i)) for sd, s, i in ((seed_sd, seeds, 1), (sample_sd, 1, 100), (13.3, seeds, 100)))
        d = sum(parts) / 100
        return stats.paired_interval(d, np.zeros_like(d)).p

    p = np.concatenate([studies() for _ in range(6)])
    assert (p < 0.05).mean() < 1.25 * 0.05 and (p < FAR_OUT).mean() < 2 * FAR_OUT
    if (seeds, seed_sd) == (3, 2.5):  # by Satterthwaite alone
        monkeypatch.setattr(intervals, "less_sure", lambda crossed, _: crossed)
        assert (studies() < FAR_OUT).mean() > 5 * FAR_OUT


def test_ignoring_shared_samples_would_reject_too_often():
    a, b = arms(np.random.default_rng(0), 2000, 8, 400, seed_sd=0.0, sample_sd=0.5)
    assert np.mean(stats.t_interval(100 * (a.mean(-1) - b.mean(-1))).p < 0.05) > 0.1
    assert within(np.mean(stats.paired_interval(a, b).p < 0.05), 0.05, 2000)


@pytest.mark.parametrize("effect", [0.0, 0.04])
def test_intervals_cover_the_true_difference(effect):
    a, b = arms(np.random.default_rng(1), STUDIES, 5, 400, effect=effect, seed_sd=0.02, sample_sd=0.0)
    truth = 100 * effect
    interval = stats.paired_interval(a, b)
    assert within(np.mean((interval.lo <= truth) & (truth <= interval.hi)), 0.95, STUDIES)


def test_family_of_null_comparisons_errs_in_one_study_of_twenty():
    rng = np.random.default_rng(2)
    p = stats.t_interval(rng.normal(0, 2, (STUDIES, 15, 5))).p
    assert within(np.mean([(stats.holm(row) < 0.05).any() for row in p]), 1 - (1 - 0.05 / 15) ** 15, STUDIES)  # independent: exact


@pytest.mark.parametrize(("seeds", "n"), [(2, 1000), (2, 200), (3, 100)])
def test_seeds_that_tie_on_the_grid_of_accuracies_prove_nothing(seeds, n):
    """Null studies of accuracies rounded to 100/n: no p is 0, and the tests of a family of 15 do not reject more often than they say."""
    rng = np.random.default_rng(n)
    a, b = (np.round(rng.normal(50, 2, (40_000, seeds)) * n / 100) / n * 100 for _ in range(2))
    plain, found = stats.t_interval(a - b), stats.t_interval(a - b, least=stats.rounding(seeds, n, n))
    tied = (plain.lo == plain.hi) | (plain.p < 1e-9)
    assert tied.mean() > 0.003 and found.p.min() > 0 and (found.hi - found.lo).min() > 0
    assert (plain.p < 0.05 / 15).mean() > 0.006 and (found.p < 0.05 / 15).mean() <= 0.05 / 15
    for before, after in zip(plain, found, strict=True):
        assert np.array_equal(before[~tied], after[~tied])  # where seeds differ by a sample, nothing changes


@pytest.mark.parametrize("power", [0.5, 0.8])
def test_power_is_what_the_planner_says(power):
    size = planning.detectable(5, family=5, power=None if power == 0.5 else power)
    rng = np.random.default_rng(3)
    found = stats.t_interval(rng.normal(size, 1.0, (4000, 5))).p < 0.05 / 5
    expected = sps.nct.sf(sps.t.ppf(1 - 0.005, 4), 4, size * np.sqrt(5))
    assert within(found.mean(), expected, 4000)
    assert expected == pytest.approx(power, abs=0.08 if power == 0.5 else 1e-3)  # the half-width's power is one half only for many seeds


def test_bootstrap_is_not_calibrated_at_few_seeds():
    """Why it does not decide: at 3 seeds it rejects true nulls far more often than it says."""
    a, b = arms(np.random.default_rng(4), 200, 3, 1000, seed_sd=0.05, sample_sd=0.0)
    intervals = [stats.hierarchical_bootstrap(x, y, draws=500) for x, y in zip(a, b, strict=True)]
    assert np.mean([i.lo > 0 or i.hi < 0 for i in intervals]) > 0.1


def test_the_whole_pipeline_errs_at_its_rate():
    """Null studies through select and compare: the family errs in about 5 % of studies, not 10 x 5 %."""
    rng = np.random.default_rng(5)
    rejected = []
    for _ in range(60):
        values = {v: list(30 + rng.normal(0, 2, 5)) for v in ("baseline", *stats.FAMILY)}
        rows = pd.concat([table(values), table({v: list(20 + rng.normal(0, 2, 5)) for v in values}, benchmark="shape")])
        rejected.append(stats.compare(results.select(rows))["significant"].any())
    assert sps.binomtest(int(np.sum(rejected)), 60, 0.05, alternative="greater").pvalue > 0.001


# --- the same at full size, through the whole pipeline (make test-slow) --------------------------------------------------


def study(rng, variants, seeds: int, samples: int, effects: dict[str, float], seed_sd=0.015, sample_sd=0.3) -> pd.DataFrame:
    """Predictions of one study: every arm answers the same samples; noise per seed and, for each arm, per sample."""
    difficulty = rng.beta(4, 8, samples)
    frames = []
    for variant in variants:
        p = (
            difficulty * (1 + np.clip(rng.normal(0, sample_sd, samples), -1, 1))
            + effects.get(variant, 0.0)
            + rng.normal(0, seed_sd, (seeds, 1))
        )
        hit = rng.random((seeds, samples)) < p
        frames += [
            pd.DataFrame(
                {
                    "variant": variant,
                    "seed": s,
                    "benchmark": "motion",
                    "probe": "linear",
                    "id": range(samples),
                    "label": 1,
                    "top1": hit[s].astype(int),
                }
            )
            for s in range(seeds)
        ]
    return pd.concat(frames)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seeds", [3, 5])
def test_500_null_studies_through_the_pipeline(seeds):
    """From predictions to verdicts: a single comparison errs in 5 % of studies, the interval covers zero in 95 %, the family (Holm) errs in
    5 % at most; all within the simulation's own interval."""
    rng, single, covered, family = np.random.default_rng(10 + seeds), [], [], []
    for _ in range(STUDIES):
        out = stats.compare_predictions(study(rng, ("baseline", "ld", "fwm", "hw"), seeds, 250, {}), draws=1).set_index("variant")
        single.append(out.loc["ld", "p"] < 0.05)
        covered.append(out.loc["ld", "lo"] <= 0 <= out.loc["ld", "hi"])
        family.append((out["p_adj"] < 0.05).any())
    assert within(np.mean(single), 0.05, STUDIES), np.mean(single)
    assert within(np.mean(covered), 0.95, STUDIES), np.mean(covered)
    assert sps.binomtest(int(np.sum(family)), STUDIES, 0.05, alternative="greater").pvalue > 0.001, np.mean(family)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("seeds", "power"), [(3, None), (5, None), (5, 0.8), (8, 0.8)])
def test_power_through_the_pipeline_is_the_planners(seeds, power):
    """Tables of studies with a true effect of the planned size: `compare` finds it as often as `power_at` says."""
    sd, rng = 2.0, np.random.default_rng(20 + seeds)
    size = sd * planning.detectable(seeds, power=power)
    found = []
    for _ in range(STUDIES):
        base = rng.normal(30, 4, seeds)  # what a seed does to every arm cancels
        found.append(stats.compare(table({"baseline": list(base), "ld": list(base + rng.normal(size, sd, seeds))})).iloc[0]["p"] < 0.05)
    assert within(np.mean(found), planning.power_at(size / sd, seeds), STUDIES), (np.mean(found), planning.power_at(size / sd, seeds))
