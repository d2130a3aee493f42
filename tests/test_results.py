"""The tidy table: what is read is what was written, printed or logged, and bad input is named."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vjepa_lab.evaluation.evaluate import said_of_pace
from vjepa_lab.evidence import results, stats

PAPER = Path(__file__).parents[1] / "data" / "paper"
PRINTED = {"d48": "D-48", "in100": "IN-100", "ssv2": "SSv2", "accuracy": "synthetic-motion"}


@pytest.fixture(scope="module")
def paper():
    return results.load(PAPER)


def make_run(folder: Path, variant: str, seed: int, values: dict[str, float], n: int = 1000, steps: int = 5000) -> Path:
    folder.mkdir(parents=True)
    about = {"variant": variant, "edition": "sound", "seed": seed, "regime": "synthetic", "pretrain": "synthetic", "steps": steps}
    (folder / "config.json").write_text(json.dumps(about))
    results.append_rows(folder, [{"benchmark": b, "probe": "linear", "value": v, "n": n} for b, v in values.items()])
    return folder


# --- the paper's tables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [3, 4, 5, 6])
def test_tidy_tables_hold_every_printed_cell_and_no_other(number):
    printed = pd.read_csv(PAPER / "printed" / f"table{number}.csv")
    tidy = results.load(PAPER / f"table{number}.csv")
    methods = pd.read_csv(PAPER / "printed" / "methods.csv")
    regime = "mixed" if number in (4, 5) else "ucf101"
    names = methods[methods["regime"].eq(regime)].set_index("paper_name")["variant"].to_dict()
    names |= {"LD only": "ld", "HW + LD": "hw-ld", "FWM only": "fwm", "FWM + LD": "fwm-ld", "FWM + HW + LD": "fwm-hw-ld"}
    names |= {"Baseline": "baseline", "Kinematic-L1 (lambda=1.0)": "kin-l1", "Kinematic-L1 (lambda=0.1)": "kin-l1-weak"}
    cells = {
        (names[row.iloc[0]], benchmark): row[column]
        for _, row in printed.iterrows()
        for column, benchmark in PRINTED.items()
        if column in printed and pd.notna(row[column])
    }
    assert tidy.set_index(["variant", "benchmark"])["value"].to_dict() == cells
    assert set(tidy["source"]) == {"paper"} and set(tidy["regime"]) == {regime}


def test_the_accuracies_are_whole_numbers_of_test_samples(paper):
    rows = paper[paper["source"].isin(["paper", "released", "constant"]) & paper["n"].notna()]
    hits = rows["value"] * rows["n"] / 100
    assert (abs(hits - hits.round()) <= 0.005 * rows["n"] / 100 + 1e-9).all()


def test_released_numbers_equal_the_printed_ones_but_for_rows_the_paper_lacks(paper):
    key = ["variant", "regime", "benchmark"]
    released = paper[paper["source"].eq("released") & paper["probe"].isin(["attentive", "linear"])]
    same_seed = released["variant"].eq("baseline") & released["regime"].eq("mixed") & released["seed"].eq(239)
    merged = paper[paper["source"].eq("paper")].merge(released[~same_seed], on=key, how="left")
    assert merged["value_y"].notna().all()
    pd.testing.assert_series_equal(merged["value_x"], merged["value_y"], check_names=False)


def test_a_number_printed_in_two_tables_is_one_measurement(paper):
    assert len(paper[paper["source"].eq("paper")]) == 24 + 45 + 3


def test_ema_off_rows_are_marked_as_random_init(paper):
    rows = results.random_init(paper[paper["source"].eq("released")])
    assert set(rows["variant"]) == {"kin-l1", "kin-l1-weak", "kin-accel", "kin-huber", "kin-split", "kin-anneal", "sigreg-no-ema"}
    in100 = rows.loc[rows["benchmark"].eq("IN-100"), "value"]
    assert round(in100.mean(), 2) == pytest.approx(13.66, abs=0.01)


def test_diving48_rows_are_flagged_against_the_largest_class(paper):
    assert results.constants(paper)["D-48"] == {"majority-train": 3.50, "majority-test": 8.27}
    table = paper.assign(flag=results.flag_constant(paper))
    row = table[table["source"].eq("paper") & table["benchmark"].eq("D-48")].set_index(["regime", "variant"])["flag"]
    assert row["mixed", "fwm-hw-ld"] == "= majority-test" and row["mixed", "amg"] == "< majority-test"
    assert (table.loc[table["benchmark"].eq("IN-100"), "flag"] == "").all()
    assert set(table.loc[table["benchmark"].eq("SSv2") & table["flag"].ne(""), "variant"]) == {"baseline"}


# --- run folders ------------------------------------------------------------------------------------------------------


def test_rows_written_are_the_rows_read(tmp_path):
    make_run(tmp_path / "runs" / "a", "ld", 3, {"motion": 40.0, "shape": 71.5})
    (tmp_path / "runs" / "not-probed-yet").mkdir()
    (tmp_path / "runs" / "not-probed-yet" / "config.json").write_text("{}")
    table = results.load(tmp_path / "runs")
    assert table["value"].tolist() == [40.0, 71.5]
    assert (
        set(table["run"]) == {"a"}
        and set(table["seed"]) == {3}
        and set(table["source"]) == {"run"}
        and set(table["regime"]) == {"synthetic"}
    )
    lo, hi = stats.wilson(40.0, 1000)
    assert table.loc[0, "lo"] == pytest.approx(lo) and table.loc[0, "hi"] == pytest.approx(hi)


def test_probing_again_replaces_and_never_duplicates(tmp_path):
    run = make_run(tmp_path / "a", "ld", 3, {"motion": 40.0, "shape": 71.5})
    results.append_rows(run, [{"benchmark": "motion", "probe": "linear", "value": 41.0, "n": 1000}])
    table = results.load(run).set_index("benchmark")["value"]
    assert table.to_dict() == {"shape": 71.5, "motion": 41.0}


WRITER = """
import sys
from vjepa_lab.evidence.results import append_rows
print("ready", flush=True)
sys.stdin.readline()
for i in range(5):
    append_rows(sys.argv[1], [{"benchmark": f"b{i}", "probe": sys.argv[2], "value": 50.0, "n": 200}])
"""


def test_several_processes_write_rows_and_none_is_lost(tmp_path):
    run = make_run(tmp_path / "a", "ld", 3, {"motion": 40.0})
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(run), f"p{k}"], **pipes) for k in range(3)]
    for process in writers:
        assert process.stdout.readline() == "ready\n"
    for process in writers:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.wait(300) for process in writers] == [0, 0, 0]
    assert len(results.read_run(run)) == 1 + 3 * 5
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "rows.csv"]


def test_small_runs_are_marked_as_no_evidence(tmp_path):
    make_run(tmp_path / "runs" / "few-samples", "ld", 0, {"motion": 40.0}, n=40)
    make_run(tmp_path / "runs" / "few-steps", "ld", 1, {"motion": 40.0}, steps=20)
    make_run(tmp_path / "runs" / "real", "ld", 2, {"motion": 40.0})
    make_run(tmp_path / "runs" / "just-enough", "ld", 3, {"motion": 40.0}, n=results.SMOKE_N, steps=results.SMOKE_STEPS)
    small = results.load(tmp_path / "runs").set_index("run")["smoke"].to_dict()
    assert small == {"few-samples": True, "few-steps": True, "real": False, "just-enough": False}


def test_a_run_of_the_trainer_is_read(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"variant": "ld", "data": "synthetic", "seed": 2, "preset": {"name": "smoke", "steps": 4}})
    )
    results.append_rows(
        tmp_path, [{"benchmark": "b", "probe": "linear", "value": 50.0, "n": 500, "encoder": name} for name in ("student", "random-init")]
    )
    results.append_rows(tmp_path, [{"source": "constant", "variant": "majority-test", "benchmark": "b", "value": 20.0, "n": 500}])
    table = results.load(tmp_path)
    row = table[table["encoder"].eq("student")].iloc[0]
    assert (row["variant"], row["regime"], row["pretrain"], row["seed"], row["smoke"]) == ("ld", "synthetic", "synthetic", 2, True)
    assert results.constants(table) == {"b": {"majority-test": 20.0}}
    assert results.select(table, regime="synthetic")["encoder"].dropna().tolist() == ["student"]
    assert results.select(table, encoder="random-init")["encoder"].dropna().tolist() == ["random-init"]


def test_each_edition_keeps_the_encoder_that_it_evaluates():
    """As coded, rows evaluate the teacher, and those without EMA an untrained copy: beside sound rows they must not vanish."""
    what = [
        ("a", "ld", "sound", "student"), ("a", "ld", "sound", "random-init"), ("b", "ld", "released", "teacher"),
        ("c", "kin-l1", "released", "random-init"), ("d", "random-init", "sound", "random-init"),
    ]  # fmt: skip
    same = {"seed": 0, "regime": "r", "benchmark": "b", "probe": "linear", "value": 50.0, "n": 500}
    table = results.tidy(pd.DataFrame([{"run": r, "variant": v, "edition": e, "encoder": k} | same for r, v, e, k in what]))
    assert results.select(table)["run"].tolist() == ["a", "b", "c", "d"]
    assert results.select(table, encoder="random-init")["run"].tolist() == ["a", "c", "d"]
    assert results.one_edition(results.select(table))["run"].tolist() == ["a", "d"]  # where one value stands for a row's name


def own_run(folder, variant="ld", seed=0, size="micro", value=40.0, n=1970, **row):
    folder.mkdir(parents=True, exist_ok=True)
    about = {"variant": variant, "edition": "sound", "seed": seed, "data": "mixed", "preset": {"name": size, "steps": 5000}}
    (folder / "config.json").write_text(json.dumps(about))
    results.append_rows(folder, [{"benchmark": "D-48", "probe": "attentive", "encoder": "student", "value": value, "n": n} | row])
    return folder


def test_a_measurement_on_more_clips_replaces_the_one_of_smoke_size(tmp_path):
    for n, value in ((50, 40.0), (1970, 20.0)):
        folder = own_run(tmp_path / "a", value=value, n=n)
    row = results.load(folder)
    assert row[["value", "n", "smoke"]].to_numpy().tolist() == [[20.0, 1970, False]]


def test_two_runs_of_one_seed_are_not_averaged(tmp_path):
    for name in ("a", "copy-of-a"):
        own_run(tmp_path / name)
    with pytest.raises(ValueError, match="a, copy-of-a measured the same: ld, seed 0"):
        results.select(results.load(tmp_path))
    with pytest.raises(ValueError, match=r"load only one of them, or tell them apart .* with variant= or regime="):
        results.select(results.load(tmp_path))
    assert len(results.select(results.load(tmp_path / "a"))) == 1


def test_runs_of_different_sizes_share_no_baseline(tmp_path):
    for size, value in (("micro", 20.0), ("base", 60.0)):
        own_run(tmp_path / f"baseline-{size}", "baseline", size=size, value=value)
    own_run(tmp_path / "ld-base", "ld", size="base", value=61.0)
    table = results.load(tmp_path)
    assert sorted(table["regime"].unique()) == ["mixed, base", "mixed, micro"]
    assert results.delta(table)["delta"].tolist() == [1.0]
    assert results.load(tmp_path / "ld-base", tmp_path / "baseline-base")["regime"].eq("mixed").all()


@pytest.mark.parametrize(
    ("row", "says"),
    [("ld,D-48,30,many,0,top1", "n 'many'"), ("ld,D-48,30,9,zero,top1", "seed 'zero'"), ("ld,D-48,130,9,0,top1", "percent")],
)
def test_a_row_that_cannot_be_is_named_with_its_file_and_line(tmp_path, row, says):
    (file := tmp_path / "odd.csv").write_text(f"variant,benchmark,value,n,seed,metric\nld,D-48,3,500,0,top1\n{row}\n")
    with pytest.raises(ValueError, match=rf"odd.csv: line 3: .*{says}"):
        results.load(file)


def test_metrics_survive_a_kill_and_a_resume(tmp_path):
    lines = [
        {"step": 0, "loss": 1.0, "parts": {"jepa": 0.9}},
        {"step": 1, "loss": 0.8, "parts": {"jepa": 0.7}},
        {"step": 1, "loss": 0.75, "parts": {"jepa": 0.6}},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 2, "lo')
    table = results.metrics(tmp_path)
    assert table["step"].tolist() == [0, 1] and table["loss"].tolist() == [1.0, 0.75] and table["parts.jepa"].tolist() == [0.9, 0.6]
    (tmp_path / "metrics.jsonl").write_text('{"step": 0\n{"step": 1}\n')
    with pytest.raises(ValueError, match="line 1"):
        results.metrics(tmp_path)


def test_predictions_carry_their_run(tmp_path):
    run = make_run(tmp_path / "a", "ld", 3, {"motion": 40.0})
    (run / "predictions").mkdir()
    pd.DataFrame({"benchmark": "motion", "probe": "linear", "id": [0, 1], "label": [1, 2], "top1": [1, 1]}).to_parquet(
        run / "predictions" / "motion.parquet"
    )
    table = results.predictions(run)
    assert table["variant"].tolist() == ["ld", "ld"] and table["seed"].tolist() == [3, 3]
    assert results.predictions(tmp_path).empty


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variant,benchmark\nld,motion\n", "lacks the column value"),
        ("variant,benchmark,value\nld,motion,high\n", "line 2.*'high'"),
        ("", "not a readable csv"),
    ],
)
def test_a_csv_that_is_no_results_table_is_named(tmp_path, text, message):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(ValueError, match=f"rows.csv.*{message}"):
        results.load(tmp_path / "rows.csv")


def test_missing_paths_and_columns_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        results.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="at least one path"):
        results.load()
    with pytest.raises(ValueError, match="missing here: variant"):
        results.append_rows(tmp_path / "rows.csv", [{"benchmark": "motion", "value": 1.0}])


def test_runs_that_lie_deeper_are_named(tmp_path):
    runs = tmp_path / "runs"
    assert results.elsewhere(runs) == "" and results.elsewhere(own_run(runs / "a")) == results.elsewhere(runs) == ""
    for name in ("quickstart/b", "quickstart/c", "studies/deep/d"):
        own_run(runs / name)
    (runs / "studies" / "not-probed").mkdir()
    (runs / "studies" / "not-probed" / "config.json").write_text("{}")
    (runs / "studies" / "tables").mkdir()
    (runs / "studies" / "tables" / "rows.csv").write_text("variant,benchmark,value\nld,motion,40\n")
    where = runs.as_posix()
    assert f" {where}/quickstart (2 runs), {where}/studies/deep (1 run): name one of these" in results.elsewhere(runs)
    assert len(results.load(runs)["run"].unique()) == 1 and len(results.load(runs / "quickstart")["run"].unique()) == 2


def test_an_empty_folder_gives_an_empty_table(tmp_path):
    table = results.load(tmp_path)
    assert table.empty and list(table.columns[: len(results.COLUMNS)]) == results.COLUMNS


# --- views ------------------------------------------------------------------------------------------------------------


def test_wilson_matches_statsmodels():
    from statsmodels.stats.proportion import proportion_confint

    hits, n = np.array([0, 3, 165, 40]), np.array([40, 40, 1970, 40])
    lo, hi = stats.wilson(100 * hits / n, n)
    expected = proportion_confint(hits, n, method="wilson")
    np.testing.assert_allclose([lo / 100, hi / 100], expected, atol=1e-12)


def test_deltas_of_the_printed_table(paper):
    printed = pd.read_csv(PAPER / "printed" / "table4.csv").set_index("method")
    rows = results.select(paper[paper["source"].eq("paper")], regime="mixed")
    table = results.delta(rows).pivot(index="printed", columns="benchmark", values="delta").round(2)
    for column, benchmark in list(PRINTED.items())[:3]:
        assert table[benchmark].to_dict() == printed[f"{column}_delta"].dropna().to_dict()


def test_runs_are_paired_by_seed_and_fall_back_to_the_mean(tmp_path):
    for seed, value in ((0, 30.0), (1, 40.0)):
        make_run(tmp_path / f"base-{seed}", "baseline", seed, {"motion": value})
    make_run(tmp_path / "ld-1", "ld", 1, {"motion": 45.0})
    make_run(tmp_path / "ld-7", "ld", 7, {"motion": 45.0})
    df = results.load(tmp_path)
    table = results.delta(df).set_index("seed")
    assert table.loc[1, "delta"] == 5.0 and table.loc[1, "paired"]
    assert table.loc[7, "delta"] == 10.0 and not table.loc[7, "paired"]
    assert results.delta(df, baseline_seed=0)["delta"].tolist() == [15.0, 15.0]
    with pytest.raises(ValueError, match="seed 9"):
        results.delta(df, baseline_seed=9)
    with pytest.raises(ValueError, match=r"'fwm'.*baseline"):
        results.delta(df, against="fwm")


def test_a_term_without_edition_meets_the_baseline_of_another(tmp_path):
    make_run(tmp_path / "base", "baseline", 0, {"motion": 30.0})
    run = make_run(tmp_path / "mine", "mine", 0, {"motion": 33.0})
    table = pd.read_csv(run / "rows.csv").drop(columns="edition")
    table.to_csv(run / "rows.csv", index=False)
    (run / "config.json").write_text("{}")
    assert results.delta(results.load(tmp_path))["delta"].tolist() == [3.0]


def test_a_seed_that_the_own_baseline_lacks_meets_its_mean_and_no_other_edition():
    rows = [(v, s, x, "sound") for v, s, x in (("baseline", 0, 50), ("baseline", 1, 51), ("ld", 0, 50), ("ld", 1, 51), ("ld", 2, 50))]
    rows += [("baseline", 2, 30, "paper"), ("hw", 2, 31, "paper"), ("fwm", 2, 33, "released")]
    table = pd.DataFrame(rows, columns=["variant", "seed", "value", "edition"])
    about = {"benchmark": "X", "probe": "linear", "metric": "top1", "n": 1000, "source": "run", "regime": "r"}
    out = results.delta(results.tidy(table.assign(**about))).set_index(["variant", "seed"])
    assert out.loc[("ld", 2), "base"] == 50.5 and not out.loc[("ld", 2), "paired"]
    assert out.loc[("hw", 2), "base"] == 30 and out.loc[("fwm", 2), "base"] == 30, "an edition without a baseline meets another's"


def test_a_row_is_held_against_the_constants_of_its_own_test():
    row = {"benchmark": "ucf101", "probe": "linear", "metric": "top1", "source": "run", "edition": "sound", "seed": 0}
    good = row | {"variant": "ld", "run": "ld", "value": 14.0, "n": 3783, "regime": "a"}
    own = good | {"source": "constant", "variant": "majority-test", "value": 1.3, "probe": "constant"}
    small = row | {"variant": "hw", "run": "hw", "value": 15.0, "n": 20, "regime": "b"}
    large = small | {"source": "constant", "variant": "majority-test", "value": 20.0, "probe": "constant"}
    other = good | {"variant": "fwm", "run": "fwm", "value": 1.2}  # of a run without constants: those of as large a test
    table = results.tidy(pd.DataFrame([good, own, small, large, other]))
    flags = dict(zip(table["variant"], results.flag_constant(table), strict=True))
    assert flags["ld"] == "" and flags["hw"] == "= majority-test" and flags["fwm"] == "= majority-test"


def test_select_keeps_one_probe_per_benchmark_and_says_what_there_is(paper):
    rows = results.select(paper[paper["source"].ne("constant")], regime="ucf101")
    assert rows.groupby("benchmark")["probe"].nunique().eq(1).all()
    assert set(rows.loc[rows["benchmark"].eq("IN-100"), "probe"]) == {"linear"}
    with pytest.raises(ValueError, match=r"kinetics.*mixed.*ucf101"):
        results.select(paper, regime="kinetics")


def test_own_rows_on_other_frames_stand_beside_the_papers(paper):
    """The published evaluation spreads 16 frames over the video; own rows say so in the name of their probe."""
    row = {"source": "run", "regime": "mixed", "benchmark": "D-48", "metric": "top1", "seed": 0, "edition": "sound", "n": 1970}
    own = [row | {"variant": "ld", "run": "a", "probe": probe, "value": 9.0} for probe in ("attentive, whole", "knn")]
    table = results.tidy(pd.concat([paper, pd.DataFrame(own)]))
    mixed = lambda **how: results.select(table, regime="mixed", benchmarks=["D-48"], **how).query("source == 'run'")["probe"].tolist()
    assert mixed() == ["attentive, whole"] and mixed(probe="attentive") == []
    own += [own[0] | {"probe": "attentive, 4 frames"}]
    table = results.tidy(pd.DataFrame(own))
    assert mixed() == ["attentive, whole"], "the head decides without the paper's rows, too; four frames are another measurement"
    table = results.tidy(pd.concat([paper, pd.DataFrame([*own, own[0] | {"probe": "attentive"}])]))
    assert mixed() == ["attentive"]
    for said in (said_of_pace(None, True), said_of_pace(8.0, False), said_of_pace(0.5, False)):
        assert results.PACE.sub("", f"attentive, every token{said}") == "attentive, every token"


def test_wide_is_the_printed_layout(paper):
    table = results.wide(paper[paper["source"].eq("paper") & paper["regime"].eq("mixed")])
    assert list(table.columns) == ["D-48", "IN-100", "SSv2"] and len(table) == 15
    assert table.loc[("paper", "fwm-hw-ld")].tolist() == [8.38, 30.78, 11.60]


def test_rows_are_written_without_torch(tmp_path):
    row = "{'variant': 'ld', 'benchmark': 'b', 'value': 1.0}"
    write = f"import sys; from vjepa_lab.evidence import results; results.append_rows('{tmp_path.as_posix()}/rows.csv', [{row}])"
    subprocess.run([sys.executable, "-c", f"{write}; assert 'torch' not in sys.modules"], check=True, timeout=120)
    assert results.load(tmp_path / "rows.csv")["value"].tolist() == [1.0]


def test_the_paper_s_numbers_are_found_from_any_folder(tmp_path, monkeypatch):
    here = results.load(PAPER)
    monkeypatch.chdir(tmp_path)
    assert results.load("data/paper").equals(here) and len(results.load("data/paper/table6.csv"))
    with pytest.raises(FileNotFoundError, match="no such run folder"):
        results.load("data/paper/table66.csv")
    own = tmp_path / "data" / "paper"
    own.mkdir(parents=True)
    (own / "mine.csv").write_text("variant,benchmark,value\nld,ucf101,50\n")
    assert results.load("data/paper")["variant"].tolist() == ["ld"]  # a folder's own comes first
