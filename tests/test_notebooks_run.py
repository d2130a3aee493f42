"""Every notebook runs from its first cell to its last, headless and at a size that shows nothing but that."""

import json
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from matplotlib.figure import Figure
from test_plots import CELLS, make_runs

import vjepa_lab as vl
from vjepa_lab import notebook, plots
from vjepa_lab.analysis import subjects, toys
from vjepa_lab.evidence import results

FOLDER = Path(__file__).parents[1] / "notebooks"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with one pretrained run."""
    runs = tmp_path_factory.mktemp("runs")
    source = vl.data.open("synthetic", frames=8, size=32, n=24, cache="memory")
    vl.pretrain("baseline", source, "smoke", runs=runs, progress=False)
    return runs


def execute(name: str, folder: Path, **params) -> nbformat.NotebookNode:
    """The executed notebook; its kernel works in the project's folder, as from the command line."""
    done = notebook.run(FOLDER / f"{name}.ipynb", folder / f"{name}.ipynb", params, cwd=FOLDER.parent, progress=False)
    return nbformat.read(done, as_version=4)


def cells_of(name: str, **params) -> Iterator[dict]:
    """The names of a notebook after each of its code cells, run in this process; what it displays is in `shown`."""
    names = {"shown": []}
    names["display"] = lambda *values: names["shown"].extend(values)
    for cell in nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, name, "exec"), names)
            names |= params if "parameters" in cell.metadata.get("tags", []) else {}
            yield names


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("00_quickstart", {"labels": ["colour"], "preset": "smoke", "clips": 24, "out": "out"}, r"has no label 'colour'; it has .*motion"),
        ("02_probe", {"probe": "liner"}, "unknown probe 'liner'"),
        ("02_probe", {"options": {"epoch": 3}}, "epoch: unknown to the probe 'linear'"),
        ("06_gradient_alignment", {"ruled": "JEPA() + Contrats()"}, "Contrats"),
        ("06_gradient_alignment", {"rules": ["Fixed()", "CosinGate()"]}, "CosinGate"),
        ("06_gradient_alignment", {"variants": ["ld", "detla"]}, "unknown variant 'detla'"),
        ("07_representation", {"variants": ["ld"], "against": "baseline"}, "no 'baseline' to compare with; there are ld"),
        ("08_robustness", {"corruptions": ["fogg"]}, "unknown corruption 'fogg'"),
        ("09_throughput", {"mode": "frozn"}, "mode 'frozn': expected 'finetune' or 'frozen'"),
        ("09_throughput", {"pretrained": ["ld", "detla"]}, "unknown variant 'detla'"),
        ("14_reference_study", {"scatter": ["motoin", "order"], "out": "out"}, "scatter: no benchmark 'motoin'"),
    ],
)
def test_a_misspelt_name_is_refused_before_anything_is_trained(name, wrong, says, tmp_path, monkeypatch):
    for where in (vl, subjects):
        monkeypatch.setattr(where, "pretrain", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(toys, "count", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.chdir(tmp_path)
    if name.startswith("14"):
        wrong = wrong | {"collection": str(FOLDER.parent / "data" / "reference")}
    with pytest.raises(ValueError, match=says):
        list(cells_of(name, **wrong))


def test_tradeoffs_against_a_row_that_the_paper_lacks(tmp_path, monkeypatch, capsys):
    make_runs(tmp_path / "runs", ["baseline", "fwm-hw"], seeds=1, benchmarks=["motion", "shape"], regime="plain")
    monkeypatch.chdir(tmp_path)
    *_, names = cells_of("03_tradeoffs", runs="runs", against="fwm-hw", out="out")
    said = capsys.readouterr().out
    assert "mixed: the paper prints no row 'fwm-hw' there" in said and "rank stability" in said
    (own,) = names["shown"]
    assert {trace.name for trace in own.data} >= {"motion", "shape"}, "one's own runs are compared all the same"


def test_two_cells_of_the_ablation_are_shown_and_what_they_cannot_tell_is_said(tmp_path, monkeypatch, capsys):
    make_runs(tmp_path / "runs", ["baseline", "ld"], seeds=2, regime="plain")
    monkeypatch.setattr(plots, "save", lambda *_: [])
    monkeypatch.chdir(tmp_path)
    *_, names = cells_of("04_ablation", runs="runs", mixed="plain", out="out")
    said = capsys.readouterr().out
    assert "Your runs: too few cells of the factorial were run" in said and "there are baseline, ld" in said
    assert sum(isinstance(value, Figure) for value in names["shown"]) == 2


def pictures(nb: nbformat.NotebookNode) -> int:
    kinds = ("image/png", "application/vnd.plotly.v1+json")
    return sum(kind in output.get("data", {}) for cell in nb.cells for output in cell.get("outputs", []) for kind in kinds)


def printed(nb: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for cell in nb.cells for output in cell.get("outputs", []))


def test_quickstart(tmp_path):
    nb = execute("00_quickstart", tmp_path, preset="smoke", steps=4, batch=4, clips=48, out=str(tmp_path / "out"))
    assert pictures(nb) >= 4
    table = results.load(tmp_path / "out")
    assert set(table["variant"]) >= {"baseline", "fwm-hw-ld", "unbent", "random-init"}
    assert (tmp_path / "out" / "figures" / "tradeoffs.pdf").is_file()


def test_quickstart_on_real_clips(tmp_path, clips):
    nb = execute(
        "00_quickstart", tmp_path, preset="smoke", steps=4, batch=4, out=str(tmp_path / "out"), data=str(clips / "ucf101_6cls_128p")
    )
    assert pictures(nb) >= 4


def test_pretrain(tmp_path):
    own = {"variant": "JEPA() + 0.1*Delta()", "preset": "smoke", "overrides": {"steps": 6}, "how": {"accumulate": 2}}
    nb = execute("01_pretrain", tmp_path, runs=str(tmp_path), **own)
    assert pictures(nb) >= 1
    (run,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert vl.load_run(run).steps_done == 6 and vl.load_run(run).config["sessions"][-1]["accumulate"] == 2


def test_probe(tmp_path, trained):
    (run,) = trained.iterdir()
    execute("02_probe", tmp_path, run=str(run), labels=["motion", "shape"], limit=40)
    rows = results.load(run)
    limited = rows[rows["benchmark"].isin(["synthetic/motion, 40 clips", "synthetic/shape, 40 clips"])]
    assert limited["benchmark"].nunique() == 2, "a limit is said in the rows"
    assert {"student", "random-init"} <= set(limited["encoder"].dropna())


def test_tradeoffs(tmp_path, trained):
    nb = execute("03_tradeoffs", tmp_path, runs=str(trained), out=str(tmp_path / "figures"))
    assert pictures(nb) >= 2
    assert {"tradeoffs-mixed.pdf", "scatter.pdf", "pareto.pdf", "correlations.pdf"} <= {f.name for f in (tmp_path / "figures").iterdir()}
    assert "no runs yet" in printed(nb) and "they rise and fall together" in printed(nb)


def test_tradeoffs_against_a_row_that_one_regime_lacks(tmp_path):
    make_runs(tmp_path / "runs" / "mine", ["baseline", "ld"], seeds=1)
    nb = execute("03_tradeoffs", tmp_path, runs=str(tmp_path / "runs"), against="ld", out=str(tmp_path / "figures"))
    assert f"{tmp_path.as_posix()}/runs/mine (2 runs): name one of these" in printed(nb)
    assert "ucf101: the paper prints no row 'ld' there" in printed(nb)
    written = {file.name for file in (tmp_path / "figures").iterdir()}
    assert "tradeoffs-mixed.pdf" in written and "tradeoffs-ucf101.pdf" not in written


def test_tradeoffs_say_why_own_runs_are_not_drawn(tmp_path):
    runs = tmp_path / "runs"
    for name, variant, regime, benchmark in (
        ("a", "baseline", "apart", "motion"), ("b", "ld", "apart", "shape"), ("c", "baseline", "twice", "motion"),
        ("d", "ld", "twice", "motion"), ("e", "ld", "twice", "motion"), ("f", "ld", "alone", "motion"), ("g", "baseline", "bare", "motion"),
    ):  # fmt: skip
        (runs / name).mkdir(parents=True)
        (runs / name / "config.json").write_text(json.dumps({"variant": variant, "seed": 0, "regime": regime, "steps": 600}))
        results.append_rows(runs / name, [{"benchmark": benchmark, "probe": "linear", "value": 20.0, "n": 2000}])
    said = printed(execute("03_tradeoffs", tmp_path, runs=str(runs), out=str(tmp_path / "figures")))
    assert "apart: nothing to compare with 'baseline'" in said
    assert "twice: the runs d, e measured the same" in said
    assert "alone: no run of 'baseline'" in said and "bare: no run but 'baseline'" in said
    assert "rank stability" in said, "the notebook goes on"


def test_ablation_and_paper_without_runs(tmp_path):
    """What a reader sees on the first day: the paper's numbers, and plainly that there is nothing else."""
    nb = execute("04_ablation", tmp_path, runs=str(tmp_path / "none"), out=str(tmp_path / "figures"))
    assert pictures(nb) >= 3 and "no runs yet" in printed(nb) and "taken as zero" in printed(nb)
    assert (tmp_path / "figures" / "fig3-interaction-single.pdf").is_file()


def test_paper_beside_own_runs(tmp_path):
    make_runs(tmp_path / "runs", CELLS, seeds=2, regime="elsewhere")
    nb = execute("11_paper", tmp_path, runs=str(tmp_path / "runs"), mixed="elsewhere", out=str(tmp_path / "figures"))
    written = {file.name for file in (tmp_path / "figures").iterdir()}
    assert {"fig2-runs.pdf", "fig3-runs.html", "fig3-effects-runs-single.png", "table5.tex", "claims.csv", "index.html"} <= written
    assert "16 runs of the edition 'sound'" in printed(nb) and pictures(nb) >= 10


def test_a_probe_without_a_run_pretrains_one_and_says_what_it_must_beat(tmp_path, clips, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = {"data": str(clips / "ucf101_6cls_128p"), "run": "", "steps": 2, "limit": 60, "runs": str(tmp_path / "elsewhere")}
    done = notebook.run(FOLDER / "02_probe.ipynb", tmp_path / "02_probe.ipynb", where, cwd=tmp_path, progress=False)
    assert "2 pretraining steps, one seed" in "".join(notebook.summary(done))
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1 and not (tmp_path / "runs").exists()


def test_a_probe_asks_for_no_run_that_a_fresh_copy_lacks():
    assert notebook.parameters(FOLDER / "02_probe.ipynb")["run"].default == ""


def test_explorers(tmp_path):
    make_runs(tmp_path / "runs" / "mine", ["baseline", "ld"], seeds=1)
    nb = execute("13_explorers", tmp_path, preset="smoke", runs=str(tmp_path / "runs"))
    shown = [output.get("data", {}) for cell in nb.cells for output in cell.get("outputs", []) if output.output_type == "execute_result"]
    assert sum("image/png" in data or "text/html" in data for data in shown) == 5, "every view leaves a picture or a page"
    assert "runs/mine (2 runs): name one of these" in printed(nb)
    assert vl.load_run(tmp_path / "runs" / "fwm-hw-ld-synthetic_plain-smoke-s0").steps_done


def test_your_objective(tmp_path):
    nb = execute("10_your_objective", tmp_path, preset="smoke", steps=4, batch=4, out=str(tmp_path / "out"))
    assert pictures(nb) >= 2


def test_audit(tmp_path):
    nb = execute("12_audit", tmp_path, steps=4, out=str(tmp_path))
    said = "".join(output.get("text", "") for cell in nb.cells for output in cell.get("outputs", []))
    assert "confirmed: as coded, HW-LD is HW alone" in said
    assert "open" not in {line.split(":")[0] for line in said.splitlines()}
    assert (tmp_path / "audit.pdf").is_file()


def test_synthetic_motion(tmp_path, trained):
    small = {"preset": "smoke", "paper_clips": 80, "clips": 100, "retention_clips": [60, 40], "tasks": ["dirs8"]}
    nb = execute("05_synthetic_motion", tmp_path, variants=[], **small, runs=str(trained), out=str(tmp_path / "figures"))
    assert pictures(nb) >= 2 and "Retention: Demonstration size" in printed(nb)
    for name in ("motion.pdf", "retention.pdf", "motion.csv"):
        assert (tmp_path / "figures" / name).is_file()


def test_representation(tmp_path, trained):
    small = {"variants": [], "preset": "smoke", "clips": 40, "views": [16, 3], "half_clips": [60, 40], "draws": 2}
    nb = execute("07_representation", tmp_path, **small, runs=str(trained), out=str(tmp_path / "figures"))
    assert pictures(nb) >= 4 and "Halves: Demonstration size" in printed(nb)
    for name in ("representation", "likeness", "halves", "feature-pca"):
        assert (tmp_path / "figures" / f"{name}.pdf").is_file()


def test_robustness(tmp_path, trained):
    small = {"variants": [], "preset": "smoke", "clips": [60, 30], "corruptions": ["fog", "jumble"], "severities": [1, 5]}
    where = {"runs": str(trained), "cache": str(tmp_path / "cache"), "out": str(tmp_path / "figures")}
    nb = execute("08_robustness", tmp_path, **small, **where)
    assert pictures(nb) >= 5 and "Shifts: Demonstration size, which decides nothing." in printed(nb)
    written = {file.name for file in (tmp_path / "figures").iterdir()}
    assert {"robustness.pdf", "robustness.csv", "robustness-motion.pdf", "robustness-laws.pdf", "robustness-openset.pdf"} <= written


def test_gradient_alignment(tmp_path):
    few = {"variants": ["delta", "ld", "ltc", "fwm"], "seeds": [0], "steps": 2, "labels": ["motion"]}
    small = few | {"probe_clips": 24, "fit_clips": 24, "clips": [48, 24], "rules": ["CosineGate()"], "toy_steps": 20, "toy_seeds": [0]}
    nb = execute("06_gradient_alignment", tmp_path, preset="smoke", runs=str(tmp_path), out=str(tmp_path / "figures"), **small)
    assert pictures(nb) >= 5
    said = "".join(output.get("text", "") for cell in nb.cells for output in cell.get("outputs", []))
    assert "Verdict: none; smoke size only shows that it runs." in said
    assert len(results.load(tmp_path)["variant"].unique()) >= 6
    assert all((tmp_path / "figures" / f"{name}.pdf").is_file() for name in ("counting", "alignment", "alignment-depth", "foretold"))


def test_throughput(tmp_path):
    few = {"patch": 8, "resolutions": [16, 24, 32, 40, 48], "frames": [4], "blocks": 3, "rounds": 1, "steps": 2, "pretrained": ["ld"]}
    where = {"runs": str(tmp_path / "runs"), "out": str(tmp_path / "figures")}
    nb = execute("09_throughput", tmp_path, preset="smoke", device="cpu", **few, **where)
    assert pictures(nb) >= 4
    said = "".join(output.get("text", "") for cell in nb.cells for output in cell.get("outputs", []))
    assert "Verdict: none; smoke size only shows that it runs." in said and "counted by torch" in said
    assert (tmp_path / "figures" / "throughput-equivalence.pdf").is_file()
