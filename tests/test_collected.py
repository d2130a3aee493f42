"""A collected study says what its rows hold, whole or unfinished: planted differences are found, what is missing is named."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_notebooks_run import execute, pictures, printed
from test_plots import assert_legible, texts

from vjepa_lab import plots
from vjepa_lab.analysis import collected, foretelling
from vjepa_lab.evidence import claims, results, stats

WORLD = {"synthetic:plain/motion": ("linear", 8), "synthetic:plain/texture": ("linear", 3), "synthetic:plain-order/order": ("stepwise", 2)}
GAINS = {
    "baseline": (0, 0, 0), "random-init": (-20, -25, -15), "ld": (8, -9, 10), "fwm": (0, 0, 0), "hw": (0, 1, 0), "fwm-ld": (6, -7, 8),
    "fwm-hw-ld": (5, 6, 7), "delta": (7, -8, 7), "ac": (0, -12, 0), "ltc": (-5, -6, -5),
}  # fmt: skip
"Planted differences from the baseline, in points."


def make(folder: Path, seeds=None, planned: int = 5, n: int = 500, steps_seen: bool = True, spread: float = 0.0) -> Path:
    """A collected study of generated answers: every clip is as hard for all, a variant shifts how many are answered."""
    seeds, rng = {name: planned for name in GAINS} | (seeds or {}), np.random.default_rng(0)
    hard = {benchmark: rng.random(n) for benchmark in WORLD}
    rows, answers, cells, curves = [], [], [], []
    for variant, gains in GAINS.items():
        for seed in range(planned):
            run = f"{variant}-plain-micro-s{seed}"
            about = {"run": run, "variant": variant, "edition": "sound", "regime": "plain", "seed": seed}
            cells.append(about | {"state": "done" if seed < seeds[variant] else "open"})
            if seed >= seeds[variant]:
                continue
            encoder = "random-init" if variant == "random-init" else "student"
            own = about | {"pretrain": "synthetic:plain", "source": "run", "encoder": encoder, "smoke": not steps_seen}
            for (benchmark, (probe, classes)), gain in zip(WORLD.items(), gains, strict=True):
                level = 0.7 + (gain + spread * rng.normal()) / 100
                right = hard[benchmark] + 0.1 * rng.normal(size=n) < level
                what = {"benchmark": benchmark, "probe": probe}
                rows.append(own | what | {"metric": "top1", "value": 100 * right.mean(), "n": n})
                rows.append(own | what | {"source": "constant", "variant": "chance", "metric": "top1", "value": 100 / classes, "n": n})
                label = np.arange(n) % classes
                facts = {"id": np.arange(n), "label": label, "top1": np.where(right, label, (label + 1) % classes)}
                answers.append(pd.DataFrame(facts).assign(**what, encoder=encoder, run=run, variant=variant, seed=seed, edition="sound"))
            rank = 10 + gains[0] + 0.1 * rng.normal()
            rows.append(own | {"benchmark": "synthetic:plain", "probe": "none", "metric": "rankme", "value": rank, "n": n})
            curves.append(pd.DataFrame({"step": range(3), "rank": rng.random(3), "run": run}))
    (folder / "provenance").mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "rows.csv", index=False)
    pd.DataFrame(cells).to_csv(folder / "provenance" / "cells.csv", index=False)
    pd.concat(answers, ignore_index=True).to_parquet(folder / "predictions.parquet", index=False)
    pd.concat(curves, ignore_index=True).to_parquet(folder / "curves.parquet", index=False)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> collected.Collected:
    return collected.load(make(tmp_path_factory.mktemp("whole") / "study"))


def test_planted_differences_are_found_and_nothing_else(whole):
    found = collected.differences(whole)
    planted = pd.Series({(v, b): g for v, gains in GAINS.items() for b, g in zip(whole.benchmarks, gains, strict=True) if v != "baseline"})
    got = found.set_index(["variant", "benchmark"])
    assert set(got.index) == set(planted.index)
    assert (got["delta"] - planted.reindex(got.index)).abs().max() < 3.5
    assert got.loc[planted[planted.abs() >= 5].index, "significant"].all()
    assert not got.loc[planted[planted.abs() <= 1].index, "significant"].any()
    assert set(found["basis"]) == {"seeds and samples"}
    assert "ld (motion +" in collected.verdict(found) and "undecided, not equal" in collected.verdict(found)


def test_runs_that_collapsed_on_the_way_are_named(whole, tmp_path):
    assert collected.collapse(whole).empty and "cannot be said" in collected.says_collapse(collected.collapse(whole))
    folder = make(tmp_path / "s", planned=2)
    curves = pd.read_parquet(folder / "curves.parquet").assign(std=0.5).assign(rank=3.0)
    curves.loc[curves["run"].eq("fwm-plain-micro-s1"), "std"] = [0.5, 0.09, 0.3]  # came back
    curves.loc[curves["run"].eq("hw-plain-micro-s0"), "rank"] = [3.0, 3.0, 1.1]
    curves.to_parquet(folder / "curves.parquet", index=False)
    found = collected.collapse(collected.load(folder))
    assert found.loc[found["collapsed"], "run"].tolist() == ["fwm-plain-micro-s1", "hw-plain-micro-s0"] and len(found) == 20
    said = collected.says_collapse(found)
    assert said.startswith("2 of 20 trained runs collapsed") and said.endswith("of the others it ends at 0.50 to 0.50.")
    assert "(standard deviation of the teacher's tokens below 0.1 or their participation ratio below 1.2)" in said
    assert "fwm 1 of 2 (standard deviation at the end 0.300), hw 1 of 2 (standard deviation at the end 0.500)" in said


def still(folder: Path, runs: dict[str, float]) -> Path:
    """A study with the spread of each run's features, 0.2 but for the runs that are named."""
    rows = pd.read_csv(folder / "rows.csv")
    spread = rows[rows["metric"].eq("rankme")]
    spread = spread.assign(metric="std", value=spread["run"].map(runs).fillna(0.2))
    pd.concat([rows, spread]).to_csv(folder / "rows.csv", index=False)
    return folder


def test_ranks_of_encoders_that_stand_still_are_ranks_of_rounding(tmp_path):
    folder = still(make(tmp_path / "s"), {f"ltc-plain-micro-s{s}": 0.001 for s in range(5)} | {"ac-plain-micro-s0": 0.049})
    curves = pd.read_parquet(folder / "curves.parquet").assign(std=0.5).assign(rank=3.0)
    curves.to_parquet(folder / "curves.parquet", index=False)
    study = collected.load(folder)
    said = collected.says_collapse(collected.collapse(study))
    assert (
        "The features of 6 of 45 have a standard deviation over clips below 0.05 and were read in bfloat16 (ac 1 of 5, ltc 5 of 5)" in said
    )
    assert "rank (RankMe 5 to 10) is in part one of rounding" in said
    known = foretelling.predictors(study)
    assert known.attrs["left_out"] == ["ac-plain-micro-s0", *(f"ltc-plain-micro-s{s}" for s in range(5))]
    assert set(known["run"]).isdisjoint(known.attrs["left_out"]) and known["run"].nunique() == 39
    found = foretelling.foretold(study)
    assert set(found["variants"]) == {7} and set(found["points"]) == {34}  # ltc has none left, ac four
    assert "Rank and spread of 6 of 40 runs are left out" in foretelling.says_foretold(found, aligned=False)
    rows = pd.read_csv(folder / "rows.csv")
    exact = rows[rows["metric"].eq("std") & rows["run"].eq("ac-plain-micro-s0")].assign(metric="bf16", value=0.0)
    pd.concat([rows, exact]).to_csv(folder / "rows.csv", index=False)
    left_out = foretelling.predictors(collected.load(folder)).attrs["left_out"]
    assert left_out == [f"ltc-plain-micro-s{s}" for s in range(5)], "read in float32, its rank is its own"
    many = {f"{v}-plain-micro-s{s}": 0.01 for v in ("ltc", "ac", "delta", "hw", "fwm") for s in range(3)}
    with pytest.raises(ValueError, match=r"takes 4 tested rows.*15 of 40 runs are left out.*3 rows with 3 others are too few"):
        foretelling.foretold(collected.load(still(make(tmp_path / "few"), many)))


def test_what_foretells_is_the_students_and_computed_once(tmp_path, monkeypatch):
    folder = still(make(tmp_path / "s"), {})
    rows = pd.read_csv(folder / "rows.csv")
    teachers = rows[rows["metric"].isin(["rankme", "std"]) & rows["encoder"].eq("student")].assign(encoder="teacher", value=1000.0)
    alone = foretelling.predictors(collected.load(folder))
    pd.concat([rows, teachers]).to_csv(folder / "rows.csv", index=False)
    study = collected.load(folder)
    pd.testing.assert_frame_equal(foretelling.predictors(study), alone)
    calls, whole = [], foretelling.predictors
    monkeypatch.setattr(foretelling, "predictors", lambda study: calls.append(study) or whole(study))
    foretelling.foretold(study)
    assert len(calls) == 1


def test_a_panel_without_intervals_is_drawn_empty(whole):
    """Of an unfinished study: a benchmark with the untrained encoder alone, and a row without an interval."""
    found = collected.differences(whole)
    untrained = found[found["variant"].isin(["random-init"])]
    bare = found[found["variant"].isin(["random-init", "ld"])].assign(lo=np.nan, hi=np.nan)
    for table in (untrained, bare):
        assert plots.forest(table, paper=True).axes


def test_families_are_adjusted_apart(whole):
    found = collected.differences(whole)
    primary, others = (found[found["family"].eq(name)] for name in ("primary", "exploratory"))
    assert set(primary["variant"]) == set(stats.FAMILY) and len(primary) == 15
    np.testing.assert_allclose(primary["p_adj"], stats.holm(primary["p"]))
    np.testing.assert_allclose(others["p_adj"], stats.benjamini_hochberg(others["p"]))
    assert "random-init" not in set(others["variant"])


def test_only_the_edition_that_has_registered_comparisons_waits_for_them(whole):
    found = collected.differences(whole)
    others = found[found["family"].ne("primary")]
    assert "None of the pre-registered comparisons" in collected.verdict(others)
    assert "pre-registered" not in collected.verdict(others.assign(edition="released"))


def test_rows_that_collapsed_do_not_loosen_the_verdict_on_others(tmp_path):
    """Their differences are sure, and a false discovery rate over all would pass more of the rest."""
    folder = make(tmp_path / "s")
    before = collected.differences(collected.load(folder))
    curves = pd.read_parquet(folder / "curves.parquet")
    fallen = curves["run"].str.startswith("ltc")
    curves["std"], curves["rank"] = np.where(fallen, 0.01, 0.5), 2.0
    curves.to_parquet(folder / "curves.parquet")
    found = collected.differences(collected.load(folder))
    assert set(found.loc[found["family"].eq("collapsed"), "variant"]) == {"ltc"}
    for family in ("exploratory", "collapsed"):
        part = found[found["family"].eq(family)]
        np.testing.assert_allclose(part["p_adj"], stats.benjamini_hochberg(part["p"]))
    assert (before["family"] != "collapsed").all() and "rows of which every run collapsed" in collected.verdict(found)
    curves.loc[curves["run"].str.endswith("s0"), "std"] = 0.5  # one run of them did not
    curves.to_parquet(folder / "curves.parquet")
    assert not collected.differences(collected.load(folder))["family"].eq("collapsed").any()


def test_an_unfinished_study_is_held_to_the_tests_that_were_planned(tmp_path, whole):
    part = collected.load(make(tmp_path / "part", {"fwm-hw-ld": 2, "ltc": 1, "hw": 0, "ac": 4}))
    said = collected.completeness(part)
    done = int(part.cells["state"].eq("done").sum())
    assert f"{done} of 50 planned runs are there; 6 of 10 rows" in said
    assert "Fewer seeds: fwm-hw-ld 2 of 5, ac 4 of 5, ltc 1 of 5." in said and "Not run yet: hw." in said
    assert "left out of every test: fwm-hw-ld, ltc." in said
    found = collected.differences(part)
    assert {"fwm-hw-ld", "ltc", "hw"}.isdisjoint(found["variant"])
    assert found.set_index("variant")["seeds"].groupby(level=0).first()[["ac", "ld"]].tolist() == [4, 5]
    primary = found[found["family"].eq("primary")]
    np.testing.assert_allclose(primary["p_adj"], stats.holm([*primary["p"], *[1.0] * 6])[:9])
    assert "Of 9 (of 15 planned) pre-registered comparisons" in collected.verdict(found)


def test_without_predictions_seeds_alone_decide(tmp_path):
    folder = make(tmp_path / "s")
    (folder / "predictions.parquet").unlink()
    found = collected.differences(collected.load(folder))
    assert set(found["basis"]) == {"seeds"} and found["lo"].equals(found["t_lo"])


def test_what_cannot_be_told_is_not_told(tmp_path):
    """Equal rows, a row without spread, one seed, smoke size: no verdict comes out of any of them."""
    one = collected.load(make(tmp_path / "one", planned=1))
    with pytest.raises(ValueError, match="no row of the edition 'sound' has 3 seed pairs"):
        collected.differences(one)
    with pytest.raises(ValueError, match="'released'"):
        collected.differences(one, "released")
    assert "left out of every test: random-init, ld, fwm" in collected.completeness(one)
    smoke = collected.load(make(tmp_path / "smoke", steps_seen=False))
    assert collected.verdict(collected.differences(smoke)).startswith("Verdict: none")
    folder = make(tmp_path / "still")
    (folder / "predictions.parquet").unlink()
    rows = pd.read_csv(folder / "rows.csv")
    rows.loc[rows["metric"].eq("top1") & rows["source"].eq("run"), "value"] = 50.0
    rows.loc[rows["variant"].eq("ld") & rows["metric"].eq("top1"), "value"] = 51.0
    rows.to_csv(folder / "rows.csv", index=False)
    found = collected.differences(collected.load(folder))
    assert not found["significant"].any() and found.loc[found["delta"].eq(1), "p"].isna().all()
    assert (found["lo"] < found["hi"]).all()
    assert "0 differ from baseline" in collected.verdict(found)


def test_the_untrained_encoder_is_the_yardstick(whole, tmp_path):
    said = collected.trained(collected.differences(whole))
    assert said.startswith("baseline over an untrained encoder: motion +") and "not shown" not in said
    part = collected.load(make(tmp_path / "none", {"random-init": 1}))
    assert "cannot be said yet" in collected.trained(collected.differences(part))


def test_statements_are_judged_on_the_seeds_that_their_rows_share(whole, tmp_path):
    say = lambda study: collected.judged(study, [claims.claim(*c) for c in statements]).set_index("id")
    statements = [
        ("up", "LD gains motion", 'delta("motion","ld","here")>0'),
        ("down", "LD gains texture", 'delta("texture","ld","here")>0'),
        ("open", "FWM gains motion", 'delta("motion","fwm","here")>0'),
        ("two", "LTC loses motion", 'delta("motion","ltc","here")<0'),
    ]
    table = say(whole)
    assert table["verdict"].to_dict() == {"up": "supported", "down": "contradicted", "open": "undecided", "two": "supported"}
    assert set(table["seeds"]) == {5}
    part = say(collected.load(make(tmp_path / "part", {"ltc": 2, "ld": 4})))
    assert part.loc["two", ["verdict", "seeds", "lacks"]].tolist() == ["undecided", 2, "fewer than 3 seeds of ltc"]
    assert part.loc["up", ["verdict", "seeds"]].tolist() == ["supported", 4]
    assert "Of 4 statements, as restated for this world: 1 supported, 1 contradicted, 2 undecided (1 of them" in collected.tally(part)


def test_the_statements_of_the_reference_study_name_what_it_holds():
    from vjepa_lab.study import load

    study = load(Path(__file__).parents[1] / "studies" / "reference.py")
    known = {*study.variants, "here", *(label for b in study.benchmarks for label in b.labels)}
    paper = {item.id for item in claims.load()}
    for item in claims.load(Path(__file__).parents[1] / "studies" / "reference-claims.json"):
        named = {name for text in item.predicates.values() for name in re.findall(r'"([^"]+)"', text)}
        assert named <= known and set(item.where.split(", ")) <= paper, item.id


def test_rank_foretells_what_was_planted_to_follow_it(whole):
    found = foretelling.foretold(whole)
    row = found[found["predictor"].eq("rank of the features") & found["benchmark"].eq("motion")].iloc[0]
    assert row["rho"] > 0.8 and row["lo"] > 0 and row["variants"] == 8
    assert (row["lo"], row["hi"]) == pytest.approx(stats.rank_ends(row["rho"], 8))  # wider here than the bootstrap of a near-perfect order
    noise = found[found["predictor"].eq("teacher's rank in training")]
    assert (noise["lo"] < 0).all() and (noise["hi"] > 0).all()
    assert "alignment is not among the predictors" in foretelling.says_foretold(found, aligned=False)


def test_benchmarks_get_short_names_of_their_own():
    names = ["synthetic:plain/motion", "synthetic:plain-order/order", "synthetic:plain-order/motion", "synthetic:plain"]
    assert list(collected._short(names).values()) == ["synthetic:plain", "motion", "order", "order/motion"]


def test_the_forest_is_the_table(whole, tmp_path):
    found = collected.differences(whole)
    figure = plots.forest(found, title="micro, synthetic", paper=True)
    ax = figure.axes[0]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[-1] == "random-init" and set(labels) == set(GAINS) - {"baseline"}
    drawn = {labels[int(line.get_ydata()[0])]: line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"}
    wanted = found[found["benchmark"].eq("motion") & found["variant"].ne("random-init")].set_index("variant")["delta"]
    assert drawn == pytest.approx(wanted.to_dict())
    assert "5 pairs" in texts(figure) and "◂ −2" in texts(figure)
    assert_legible(figure)
    found.loc[found["variant"].eq("random-init") & found["benchmark"].eq("motion"), "base"] += 1.5  # met on other seeds
    low = found.loc[found["benchmark"].eq("motion"), "base"].min()
    assert plots.forest(found).axes[0].get_title() == f"motion\nbaseline {low:.1f} to {low + 1.5:.1f} %"


def test_nothing_collected_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="study collect"):
        collected.load(tmp_path)
    folder = make(tmp_path / "two")
    cells = pd.read_csv(folder / "provenance" / "cells.csv")
    pd.concat([cells, cells.assign(regime="other")]).to_csv(folder / "provenance" / "cells.csv", index=False)
    with pytest.raises(ValueError, match="choose one regime of plain, other"):
        collected.load(folder)
    assert len(collected.load(folder, "plain").cells) == 50


def test_the_notebook_reads_an_unfinished_study(tmp_path):
    folder = make(tmp_path / "part", {"fwm-hw-ld": 2, "ltc": 1, "hw": 0})
    nb = execute("14_reference_study", tmp_path, collection=str(folder), out=str(tmp_path / "figures"))
    said = printed(nb)
    assert "planned runs are there" in said and "Not run yet: hw" in said and "statements, as restated for this world" in said
    assert pictures(nb) >= 3
    written = {file.name for file in (tmp_path / "figures").iterdir()}
    assert {"forest.pdf", "tradeoffs.pdf", "differences.csv", "statements.csv", "foretold.pdf"} <= written
    assert len(results.load(folder)) > 0


def test_the_notebook_reads_a_study_that_has_just_begun(tmp_path):
    folder = make(tmp_path / "part", dict.fromkeys(GAINS, 0) | {"baseline": 2, "random-init": 1, "ld": 1})
    said = printed(execute("14_reference_study", tmp_path, collection=str(folder), out=str(tmp_path / "figures")))
    assert "4 of 50 planned runs are there" in said and "Nothing can be tested yet." in said
