"""Studies: the grid as a value, locks, the runner that resumes and shares, what is kept. Notebooks here are stand-ins that take no time;
the real ones run in the slow test at the end."""

import io
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats as sps
from tqdm.auto import tqdm

from vjepa_lab import notebook, variants
from vjepa_lab import study as study_values
from vjepa_lab.analysis import collected
from vjepa_lab.evidence import results
from vjepa_lab.options import UserError
from vjepa_lab.study import Benchmark, Extra, Regime, Study, cluster, export, load, local, main
from vjepa_lab.study import cell as cells
from vjepa_lab.study import forecast as forecasting
from vjepa_lab.study.export import RUNS, STUDY, collect, rerun, rows
from vjepa_lab.study.forecast import forecast
from vjepa_lab.training import locks

PLAIN = (Regime("plain", "synthetic:plain"),)
MOTION = (Benchmark("motion", labels=("motion",)),)

PRETRAIN = """\
variant, edition, data, regime, preset, seed, out, device = "", "", "", "", "", 0, "", ""
workers, devices, overrides = 0, 1, {}
---
import json, os, shutil, time
from pathlib import Path
folder = Path(out)
ledger = folder.parent / "ledger.txt"
def note(what):
    with ledger.open("a") as file:
        file.write(f"{what} {folder.name} {os.getpid()}\\n")
---
note("begin")
if variant == "hw" and not (folder.parent / "mended").exists():
    raise RuntimeError("first line\\nno such thing as hw")
time.sleep(float(os.environ["STAND_IN_S"]))
shutil.copy(os.environ["STAND_IN_WEIGHTS"], folder / "last.pt")
about = {"variant": variant, "edition": edition, "seed": seed, "data": data, "preset": {"steps": 600}}
(folder / "config.json").write_text(json.dumps(about))
(folder / "report.json").write_text("{}")
note("end")
"""
PROBE = """\
run, data, labels, probe, encoder, limit, train_split, test_split, options = "", "", [""], "", "", 0, "", "", {}
controls, workers = False, 0
---
import hashlib
from pathlib import Path
folder = Path(run)
digest = int(hashlib.sha1(folder.name.encode()).hexdigest()[:6], 16)
rows = "".join(f"stand-in,w/{label},linear,top1,{digest % 1000 / 10},1000,student\\n" for label in labels)
(folder / "rows.csv").write_text("variant,benchmark,probe,metric,value,n,encoder\\n" + rows)
"""


def stand_in(path: Path, source: str) -> None:
    nb = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    nb.cells = [nbformat.v4.new_code_cell(part) for part in source.split("---\n")]
    nb.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nb, path)


class Bench:
    """A study of stand-ins in a folder, and its runner in processes that can be killed."""

    def __init__(self, folder: Path, variants: str, seeds: int, wait: float = 0.3, **more):
        self.folder, self.runs, self.file = folder, folder / "runs", folder / "study.py"
        (folder / "notebooks").mkdir()
        stand_in(folder / "notebooks/01_pretrain.ipynb", PRETRAIN)
        stand_in(folder / "notebooks/02_probe.ipynb", PROBE)
        torch.save({"step": 600, "model": {"w": torch.arange(3.0)}, "optimizer": {"m": torch.zeros(999)}}, folder / "w.pt")
        study = Study("bench", tuple(variants.split()), PLAIN, MOTION, seeds=range(seeds), **more)
        self.file.write_text(f"from vjepa_lab.study import Benchmark, Extra, Regime, Study\nstudy = {study!r}\n")
        self.study = load(self.file)
        self.env = os.environ | {"STAND_IN_S": str(wait), "STAND_IN_WEIGHTS": str(folder / "w.pt"), "OMP_NUM_THREADS": "1"}

    def start(self, command: str = "run", *words: str) -> subprocess.Popen:
        line = [sys.executable, "-m", "vjepa_lab", "study", command, str(self.file), "--runs", str(self.runs), *words]
        line += ["--notebooks", str(self.folder / "notebooks"), "--jobs", "2"]
        return subprocess.Popen(line, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def call(self, command: str = "run", *words: str) -> tuple[int, str]:
        """Exit status and what was printed, of a process of its own where something is to be run."""
        if command == "run" and set(self.states().values()) != {"done"}:
            process = self.start(command, *words)
            return process.wait(300), "".join(process.communicate())
        with redirect_stdout(io.StringIO()) as said:
            status = main([command, str(self.file), "--runs", str(self.runs), *words])
        return status, said.getvalue()

    def ledger(self, what: str) -> list[str]:
        file = self.runs / "ledger.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.split()[1] for line in lines if line.startswith(what)]

    def states(self) -> dict[str, str]:
        return {cell.name: cells.state(cell, self.runs).state for cell in self.study.cells}

    def wait_for(self, condition, seconds: float = 120) -> None:
        until = time.time() + seconds
        while not condition():
            assert time.time() < until, self.states()
            time.sleep(0.05)


# ------------------------------------------------------------------------------------------------------------------------------- value


@pytest.mark.parametrize("command", ["status", "cell"])
def test_what_only_starts_or_looks_at_runs_loads_no_model(tmp_path, command):
    """Each cell has a process of its own that starts notebooks; timm, and torchvision below it, would take it seconds."""
    bench = Bench(tmp_path, "baseline", 1, wait=0)
    words = [command, str(bench.file), "--runs", str(bench.runs)]
    words += ["--notebooks", str(tmp_path / "notebooks"), bench.study.cells[0].name] if command == "cell" else []
    code = f"import sys; from vjepa_lab.study.cli import main; status = main({words!r})"
    code += "; print(status or 0, {'timm', 'torchvision'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], env=bench.env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.endswith("0 set()\n"), (done.stdout, done.stderr)
    assert bench.states() == {bench.study.cells[0].name: "done" if command == "cell" else "open"}


def test_a_study_prints_as_the_code_that_rebuilds_it():
    names = {"Study": Study, "Regime": Regime, "Benchmark": Benchmark, "Extra": Extra}
    study = Study(
        "whole", variants.names(), (Regime("mixed", "0.2*a + 0.8*b", {"steps": 7}),), (Benchmark("ssv2", "ssv2:x", probe="attentive"),),
        editions=("sound", "released"), seeds=range(3), first=("ld",), overrides={"lr": 1e-4}, keep="rows",
        extras=(Extra("06_x", {"k": 1}),),
    )  # fmt: skip
    assert eval(repr(study), names) == study
    assert max(map(len, repr(study).splitlines())) <= 140
    assert study_values.reading.read(f"{study!r}\n") == study
    for text in ("print(1)", "Study('s', wings=2)", "Study(", "(1, 2)"):
        with pytest.raises(ValueError):
            study_values.reading.read(text)


def test_cells_are_each_distinct_recipe_once_in_the_order_of_their_worth():
    study = Study("s", variants.names(), PLAIN, MOTION, editions=("sound", "paper", "released"), seeds=(0, 1), first=("ld", "baseline"))
    names = [cell.name for cell in study.cells]
    assert len(set(names)) == len(names)
    assert names[:4] == ["ld-plain-micro-s0", "baseline-plain-micro-s0", "ld-plain-micro-s1", "baseline-plain-micro-s1"]
    recipes = {(cell.variant, cell.seed, repr(cell.recipe)) for cell in study.cells}
    assert len(recipes) == len(names)  # nothing runs twice under two editions
    everything = {(name, repr(variants.recipe(name, e))) for e in study.editions for name in variants.names(e)}
    assert len(recipes) == 2 * len(everything)  # and nothing is left out
    sound = [cell.edition == "sound" for cell in study.cells]
    assert sound == sorted(sound, reverse=True)
    others = [cell.seed for cell in study.cells if cell.edition == "sound" and cell.variant not in study.first]
    assert others == sorted(others)


def test_an_expression_is_a_variant():
    study = Study("s", ("baseline", "JEPA() + 0.5*Delta()"), PLAIN, MOTION, editions=("sound", "released"), seeds=(0,))
    assert [cell.row.partition("_")[0] for cell in study.cells] == ["baseline", "custom", "baseline-released"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": ("basline",)}, "did you mean baseline"),
        ({"variants": ("ld", "ld")}, "variants twice: ld"),
        ({"seeds": ()}, "no seeds"),
        ({"regimes": (Regime("a/b", "synthetic"),)}, "'a/b' cannot be a name"),
        ({"first": ("fwm",)}, "'fwm', which is not among"),
        ({"keep": "nothing"}, "expected one of all, model, rows"),
        ({"variants": "ld"}, r"variants='ld'; expected several, such as variants=\('ld',\)"),
        ({"seeds": 3}, r"seeds=3; expected several, such as seeds=range\(3\)"),
        ({"seeds": (0, -1)}, "seed -1; expected whole numbers"),
        ({"seeds": ("a",)}, "seed 'a'; expected whole numbers"),
        ({"preset": "smok"}, "did you mean smoke"),
        (
            {"variants": ("fwm", "fwm-ld"), "regimes": (*PLAIN, Regime("ld-plain", "synthetic"))},
            "several cells would share the folder fwm-ld-plain-micro-s0, fwm-ld-plain-micro-s1, fwm-ld-plain-micro-s2 and 2 more; rename",
        ),
        ({"extras": (Extra("x", {"a": 1}), Extra("x", {"a": 2}))}, "several notebooks would be kept under the name x; give the extras"),
        ({"extras": (Extra("x"), Extra("sub/x.ipynb"))}, "several notebooks would be kept under the name x;"),
        ({"extras": (Extra("02_probe-motion"),)}, "several notebooks would be kept under the name 02_probe-motion;"),
        ({"regimes": (Regime("plain", "synthetic:plain", {"stepz": 3}),)}, "did you mean steps"),
        ({"overrides": {"masks": variants.recipe("ld").masks}}, r"overrides: masks=MultiBlock\(.*; expected a plain number or None"),
        ({"extras": (Extra("x", {"to": Path("a")}),)}, r"extra 'x': params: to=.*Path\('a'\); expected numbers, text, or lists"),
        (
            {"benchmarks": tuple(Benchmark(f"knn{k}", labels=("motion",), probe="knn", options={"ks": [k]}) for k in (1, 5))},
            r"benchmarks 'knn1' and 'knn5' would write the same rows \(motion, knn\)",
        ),
        (
            {"benchmarks": (*MOTION, Benchmark("short", labels=("shape", "motion"), options={"epochs": 5}))},
            r"benchmarks 'motion' and 'short' would write the same rows \(motion, linear\), the second over the first",
        ),
        *(
            ({"benchmarks": (*MOTION, Benchmark("again", labels=("motion",), options=option))}, "'again' would write the same rows")
            for option in ({"batch": 32}, {"exact": True}, {"seed": 1})
        ),
    ],
)
def test_a_study_that_cannot_run_is_refused(change, message):
    about = {"variants": ("ld",), "regimes": PLAIN, "benchmarks": MOTION} | change
    with pytest.raises(ValueError, match=message):
        assert Study("s", **about).cells


def test_a_study_knows_the_probes_and_encoders_that_there_are():
    """It names them itself, so that planning loads no torch."""
    from vjepa_lab.analysis import subjects
    from vjepa_lab.evaluation import evaluate
    from vjepa_lab.study import grid

    assert grid.PROBES == evaluate.PROBES and grid.ENCODERS == subjects.ENCODERS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": "motion"}, "labels='motion'; expected several"),
        ({"probe": "linaer"}, "did you mean linear"),
        ({"encoder": "techer"}, "encoder='techer'; did you mean teacher"),
        ({"options": {"probe": "knn"}}, "probe is a field of Benchmark itself: probe="),
        ({"splits": ("a",)}, "test split"),
    ],
)
def test_a_benchmark_that_cannot_be_probed_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Benchmark("b", **change)


@pytest.mark.parametrize(
    ("text", "message"),
    [("import nothing_there", "line 1: ModuleNotFoundError"), ("\nstudy = (", "line 2: SyntaxError"), ("study = 3", "expected a variable")],
)
def test_a_file_that_is_no_study_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "s.py").write_text(text)
    with pytest.raises(ValueError, match=f"s.py.*{message}"):
        load(tmp_path / "s.py")


def test_a_file_that_is_not_python_is_no_study(tmp_path):
    (tmp_path / "README.md").write_text("# A study")
    with pytest.raises(ValueError, match=r"README.md: expected a Python file, FILE.py, that defines `study`"):
        load(tmp_path / "README.md")


@pytest.mark.parametrize("words", [("run", "--jobs", "-1"), ("plan", "--jobs", "0"), ("run", "--retries", "-1"), ("plan", "--rate", "nan")])
def test_options_that_mean_nothing_are_refused(tmp_path, words):
    study = Study("s", ("ld",), PLAIN, MOTION, seeds=(0,))
    (tmp_path / "s.py").write_text(f"from vjepa_lab.study import Benchmark, Regime, Study\nstudy = {study!r}\n")
    with pytest.raises(UserError, match=r"expected a (whole )?number"):
        main([words[0], str(tmp_path / "s.py"), "--runs", str(tmp_path), *words[1:]])


@pytest.mark.parametrize("full", [False, True])
def test_a_cell_that_is_killed_each_time_is_given_up(tmp_path, monkeypatch, full):
    """By want of memory, say: it leaves no word itself, and what the runner notes must count, on a full disk, too."""
    study = Study("s", ("ld",), PLAIN, MOTION, seeds=(0,))
    runner = local._Run(study, tmp_path / "s.py", tmp_path, None, None, study.cells, None, 2, None)
    runner.bar, (cell,) = tqdm(disable=True), study.cells
    (tmp_path / cell.name).mkdir()
    if full:
        monkeypatch.setattr(cells, "failed", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    runner.open = []
    for attempt in range(3):
        assert not runner.tally.failed
        runner._ended(cell, -9)
        assert runner.open == ([cell] if attempt < 2 else [])
        runner.open = []
    assert runner.tally.failed == [cell.name]
    assert all("SIGKILL" in each["error"] for each in runner._failures(cell)) and len(runner._failures(cell)) == 3


def test_a_notebook_that_is_not_there_is_missed_before_training(tmp_path):
    bench = Bench(tmp_path, "ld", 1, extras=(Extra("nowhere.ipynb"),))
    with pytest.raises(FileNotFoundError, match=r"nowhere.ipynb: no such notebook"):
        cells.run(bench.study.cells[0], bench.runs, tmp_path / "notebooks", progress=False)
    assert not (bench.runs / "ledger.txt").exists()


def test_studies_of_the_project_are_sound():
    files = sorted((Path(__file__).parents[1] / "studies").glob("*.py"))
    assert files
    for file in files:
        for study in [load(file), *([load(file, size) for size in ("small", "micro", "smoke")] if file.stem == "paper" else [])]:
            assert study.cells and len({cell.name for cell in study.cells}) == len(study.cells), file
            assert eval(repr(study), vars(study_values)) == study
    with pytest.raises(ValueError, match=r"paper.py: .* sizes paper, small, micro, smoke; got 'huge'"):
        load(files[0].with_name("paper.py"), "huge")


def test_a_forecast_counts_the_work_and_learns_the_rate(tmp_path):
    study = Study("s", ("baseline", "ld", "random-init"), PLAIN, MOTION, seeds=range(5), device="cpu")
    before = forecast(study, tmp_path, jobs=2)
    assert (before.cells, before.open) == (15, 15) and math.isnan(before.hours) and "not known yet" in str(before)
    base, ld, untrained = (forecasting.gflop(cell) for cell in study.cells[:3])
    assert untrained == 0 < base < ld and before.petaflop == pytest.approx(5e-6 * (base + ld))
    assert forecast(study, tmp_path, rate_gflops=100, jobs=2).hours == pytest.approx(5 * (base + ld) / 100 / 3600 / 2)
    assert "resolves_pp" in str(before)
    last = forecast(study, tmp_path, rate_gflops=100, jobs=64, only="ld-*-s0")
    assert last.hours == pytest.approx(ld / 100 / 3600), "one run is no sooner done on many cores"


def test_a_forecast_learns_from_what_was_collected():
    """Speed and spread over seeds of the reference study, for who has no run of it yet; what is stated counts for more."""
    folder = Path(__file__).parents[1] / "data" / "reference"
    study = load(Path(__file__).parents[1] / "studies" / "reference.py")
    told, alone = (forecast(study, "nowhere", jobs=2, collected=where) for where in (folder, None))
    known = pd.read_csv(folder / "provenance" / "runs.csv").set_index("run")
    trained = [cell for cell in study.cells if cell.name in known.index and forecasting.gflop(cell)]
    rates = [forecasting.gflop(cell) / known.loc[cell.name, "wall_s"] for cell in trained]
    assert 0 < told.hours < math.inf and math.isnan(alone.hours)
    assert f"{np.median(rates):,.0f} GFLOP/s, median of {len(rates)} runs" in str(told)
    compared = collected.differences(collected.load(folder), least=3)  # intervals over seeds: their half widths tell the spread
    spread = np.sqrt(compared["seeds"]) * (compared["t_hi"] - compared["t_lo"]) / 2 / sps.t.ppf(0.975, compared["seeds"] - 1)
    assert told.plan.sd == pytest.approx(spread.median(), rel=0.05) and "a guess" in alone.spread and alone.plan.sd == 2
    assert forecast(study, "nowhere", jobs=2, collected=folder, sd=1.5, rate_gflops=50).plan.sd == 1.5


@pytest.mark.parametrize(
    ("name", "capability", "gflops", "said"),
    [
        ("NVIDIA A100-SXM4-80GB", (8, 0), 0.4 * 312e3, "40% of NVIDIA A100-SXM4-80GB's peak in bf16"),
        ("Tesla V100-SXM2-32GB", (7, 0), 0.4 * 15.7e3, "40% of Tesla V100-SXM2-32GB's peak in fp32"),
        ("Some New Card", (12, 0), 0.4 * 312e3, "40% of an A100's peak, since that of Some New Card is not known"),
    ],
)
def test_where_nothing_is_measured_a_share_of_the_cards_own_peak_is_stated(tmp_path, monkeypatch, name, capability, gflops, said):
    monkeypatch.setattr(forecasting, "_has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    told = forecast(Study("s", ("ld",), PLAIN, MOTION, seeds=(0,)), tmp_path, jobs=1)
    (cell,) = told.study.cells
    assert told.hours == pytest.approx(forecasting.gflop(cell) / gflops / 3600)
    assert f"{gflops:,.0f} GFLOP/s, stated: {said}: if" in str(told) and "probes not counted" in str(told)


def test_what_is_chosen_is_what_is_planned(tmp_path):
    study = Study("s", ("baseline", "ld", "fwm-ld"), PLAIN, MOTION, seeds=range(5), device="cpu")
    whole, part = (forecast(study, tmp_path, rate_gflops=100, jobs=1, only=only) for only in (None, "*-s[01]"))
    assert (part.cells, part.open) == (6, 6) and "cells   6, 6 of them to be run: chosen of 15" in str(part)
    for what in ("petaflop", "hours", "disk_gb"):
        assert getattr(part, what) == pytest.approx(getattr(whole, what) * 6 / 15)
    assert part.plan.seeds == 2 and whole.plan.seeds == 5
    assert forecast(study, tmp_path, only="fwm-ld").plan is None, "nothing to compare it with"


def test_flags_are_offered_where_they_are_used(tmp_path, capsys):
    study = Study("s", ("baseline", "ld"), PLAIN, MOTION, seeds=(0,))
    (tmp_path / "s.py").write_text(f"from vjepa_lab.study import Benchmark, Regime, Study\nstudy = {study!r}\n")
    where = [str(tmp_path / "s.py"), "--runs", str(tmp_path)]
    with pytest.raises(ValueError, match="no cell of s matches"):
        main(["plan", *where, "--only", "hamiltonian"])
    assert capsys.readouterr().out == ""
    assert main(["plan", *where, "--only", "baseline"]) == 0
    assert "cells   1, 1 of them to be run: chosen of 2" in capsys.readouterr().out
    where.append(study.cells[0].name)
    for words in (["cell", *where, "--only", "ld"], ["rerun", *where, "--only", "ld"], ["rerun", *where, "--void-after", "9"]):
        with pytest.raises(UserError, match=r"unrecognized arguments: --(only|void-after)"):
            main(words)


def test_cells_are_chosen_by_pattern():
    study = Study("s", ("baseline", "ld", "fwm-ld"), PLAIN, MOTION, seeds=range(3))
    assert [cell.name for cell in study.chosen("ld-*-s[12]")] == ["ld-plain-micro-s1", "ld-plain-micro-s2"]
    assert len(study.chosen("ld")) == 6
    pair = Study("s", ("hw-ld", "ld"), PLAIN, MOTION, seeds=(0, 1))
    assert [cell.name for cell in pair.chosen("ld-plain-micro-s0")] == ["ld-plain-micro-s0"] and len(pair.chosen("ld-plain")) == 4
    with pytest.raises(ValueError, match="no cell of s matches"):
        study.chosen("hamiltonian")
    with pytest.raises(ValueError, match="did you mean ld-plain-micro-s1"):
        study.cell("ld-plain-micro-s11")


def test_cells_can_be_left_out():
    study = Study("s", ("baseline", "ld", "fwm-ld"), PLAIN, MOTION, seeds=range(2), without=("fwm-ld-*", "ld-plain-micro-s1"))
    assert [cell.name for cell in study.cells] == ["baseline-plain-micro-s0", "ld-plain-micro-s0", "baseline-plain-micro-s1"]
    assert eval(repr(study)) == study
    with pytest.raises(ValueError, match=r"without names 'hw-\*', which is no cell; cells are called like baseline-plain-micro-s0"):
        Study("s", ("baseline", "ld"), PLAIN, MOTION, without=("hw-*",)).chosen()
    with pytest.raises(ValueError, match="without leaves no cell of 10"):
        Study("s", ("baseline", "ld"), PLAIN, MOTION, without=("*",)).chosen()
    assert [cell.name for cell in study.chosen(but=["ld-plain-micro-s0"])] == ["baseline-plain-micro-s0", "baseline-plain-micro-s1"]
    small = Study("s", ("baseline", "ld"), PLAIN, MOTION, without=("ld-*-micro-*",)).at("small")
    assert len(small.cells) == 10, "what is left out at one size is there at another"


# ------------------------------------------------------------------------------------------------------------------------------- locks


def forged(folder: Path, silent_s: float = 0.0, name: str = "lock", **changes) -> None:
    path = folder / name
    path.write_text(json.dumps(vars(locks.Owner.me()) | changes))
    os.utime(path, (time.time() - silent_s,) * 2)


def test_a_dead_owner_of_this_machine_is_recognised(tmp_path):
    code = "import os, signal\nfrom vjepa_lab.training.locks import hold\n"
    code += f"with hold({str(tmp_path)!r}): os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code])
    assert (tmp_path / "lock").exists() and locks.holder(tmp_path) is None
    with locks.hold(tmp_path):
        assert locks.holder(tmp_path)[0].pid == os.getpid()
    assert locks.holder(tmp_path) is None


def test_a_silent_owner_elsewhere_is_void_only_if_the_caller_says_so(tmp_path):
    forged(tmp_path, silent_s=7200, host="elsewhere", pid=1)
    for void_after_s in (None, 10_000):
        with pytest.raises(locks.Locked, match="process 1 on elsewhere"), locks.hold(tmp_path, patience_s=0, void_after_s=void_after_s):
            pass
    with locks.hold(tmp_path, void_after_s=60):
        assert locks.holder(tmp_path)[0].pid == os.getpid()


def test_of_many_that_take_over_a_void_lock_one_wins(tmp_path):
    for round_ in range(10):
        forged(tmp_path, born="1")  # a process with this number lives, but it is another one
        won, lost, all_tried = [], [], threading.Barrier(8)

        def attempt(won=won, lost=lost, all_tried=all_tried):
            try:
                with locks.hold(tmp_path, patience_s=0.2):
                    won.append(1)
                    all_tried.wait(20)
            except locks.Locked as error:
                lost.append(error)
                all_tried.wait(20)

        threads = [threading.Thread(target=attempt) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 7), round_


# ----------------------------------------------------------------------------------------------------------------------------- running


def test_killed_and_resumed_nothing_is_lost_and_nothing_runs_twice(tmp_path):
    bench = Bench(tmp_path, "baseline ld", 1, wait=2.0)
    first = bench.start()
    bench.wait_for(lambda: len(bench.ledger("begin")) >= 2)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    bench.wait_for(lambda: "running" not in bench.states().values())  # the cells see that their runner is gone
    status, said = bench.call()
    assert status == 0, said
    assert set(bench.states().values()) == {"done"}
    assert sorted(bench.ledger("end")) == sorted(cell.name for cell in bench.study.cells)
    began = bench.ledger("begin")
    status, said = bench.call()
    assert status == 0 and "2 were done before" in said
    assert bench.ledger("begin") == began
    for cell in bench.study.cells:
        assert {"01_pretrain.ipynb", "02_probe-motion.ipynb", "cell.json"} <= {path.name for path in (bench.runs / cell.name).iterdir()}
    status, said = bench.call("table", "--csv", str(tmp_path / "rows.csv"))
    assert len(pd.read_csv(tmp_path / "rows.csv")) == 2, said


def as_trained(bench: Bench) -> None:
    """What a real pretraining writes beside the stand-in's files."""
    for cell in bench.study.cells:
        if (folder := bench.runs / cell.name).is_dir():
            constant = {"source": "constant", "variant": "majority-test", "benchmark": "w/motion", "probe": "constant", "metric": "top1"}
            results.append_rows(folder, [constant | {"value": 20.0, "n": 1000}])
            (folder / "recipe.txt").write_text(f"{cell.trained!r}\n")
            preset = cell.size.plain()
            config = {"variant": cell.variant, "edition": cell.edition, "seed": cell.seed, "spec": cell.regime.data, "preset": preset}
            config |= {"regime": cell.regime.name}
            (folder / "config.json").write_text(json.dumps(config))
            (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, "loss": cell.seed}) + "\n")


def test_what_several_machines_ran_is_collected_in_turn_and_need_not_run_again(tmp_path, capfd):
    bench, kept, whole = Bench(tmp_path, "baseline ld", 2, wait=0), tmp_path / "kept", tmp_path / "whole"
    as_run(bench, "*-s0")
    as_trained(bench)
    collect(bench.study, bench.runs, kept)
    first = {name: (kept / name).read_bytes() for name in ("rows.csv", "provenance/runs.csv")}
    planned = pd.read_csv(kept / "provenance/cells.csv").set_index("run")["state"]
    assert planned.to_dict() == {cell.name: "open" if cell.seed else "done" for cell in bench.study.cells}
    elsewhere = bench.runs.rename(tmp_path / "first")
    assert "2 open" in bench.call("status", "--collected", str(kept))[1] and "2 of 4 cells of bench are in" in capfd.readouterr().err
    status, said = bench.call("run", "--collected", str(kept))
    assert status == 0 and "2 done, 0 failed" in said
    assert sorted(bench.ledger("begin")) == sorted(cell.name for cell in bench.study.chosen("*-s1"))
    as_trained(bench)
    collect(bench.study, bench.runs, kept)
    for cell in bench.study.chosen("*-s0"):
        (elsewhere / cell.name).rename(bench.runs / cell.name)
    collect(bench.study, bench.runs, whole)
    for name in ("rows.csv", "provenance/runs.csv", "provenance/cells.csv", "provenance/study.txt"):
        assert (kept / name).read_bytes() == (whole / name).read_bytes(), name
        assert name not in first or set(first[name].splitlines()) < set((kept / name).read_bytes().splitlines())
    assert "nothing is left" in bench.call("status", "--collected", str(kept))[1]
    assert bench.call("run", "--collected", str(kept), "--only", "baseline")[0] == 0
    assert bench.call("list", "--collected", str(kept))[1] == ""
    shutil.rmtree(bench.runs)
    planned = bench.call("plan", "--collected", str(kept))[1]
    for line in ("cells   4, 0 of them to be run", "work    0.0 PFLOP", "disk    0.0 GB kept; 0.00 GB"):
        assert line in planned
    assert "not known" not in planned and "what it resolves" in planned
    pd.testing.assert_frame_equal(pd.read_parquet(kept / "curves.parquet"), pd.read_parquet(whole / "curves.parquet"))
    with pytest.raises(UserError, match=r"runs.csv: not there; --collected takes a folder"):
        bench.call("status", "--collected", str(tmp_path))


def test_a_folder_with_another_study_is_not_added_to(tmp_path):
    bench, kept = Bench(tmp_path, "baseline ld", 1, wait=0), tmp_path / "kept"
    as_run(bench)
    as_trained(bench)
    collect(bench.study, bench.runs, kept)
    other = kept / "provenance/runs.csv"
    other.write_text(other.read_text().replace(",600,", ",90,"))
    before = (kept / "rows.csv").read_bytes()
    with pytest.raises(ValueError, match=r"runs.csv: ld-plain-micro-s0 is no cell of bench \(1 such runs\); name another folder"):
        collect(replace(bench.study, variants=("baseline",)), bench.runs, kept)
    with pytest.raises(ValueError, match=r"runs.csv: baseline-\S+-s0 has steps 90, in the study it is 600"):
        collect(bench.study, bench.runs, kept, only="ld")
    assert (kept / "rows.csv").read_bytes() == before


def test_what_is_collected_anew_may_differ_from_what_it_replaces(tmp_path):
    bench, kept = Bench(tmp_path, "baseline ld", 1, wait=0), tmp_path / "kept"
    as_run(bench)
    as_trained(bench)
    collect(bench.study, bench.runs, kept)
    shutil.rmtree(bench.runs)
    bench.study = replace(bench.study, benchmarks=(*MOTION, Benchmark("shape", labels=("shape",))))
    as_run(bench)
    as_trained(bench)
    with pytest.raises(ValueError, match="baseline-plain-micro-s0 has benchmarks motion, in the study it is motion, shape"):
        collect(bench.study, bench.runs, kept, only="ld")
    with pytest.raises(ValueError, match="baseline-plain-micro-s0 is no cell of bench"):
        collect(replace(bench.study, variants=("ld",)), bench.runs, kept)
    collect(bench.study, bench.runs, kept)
    assert [list(json.loads(text)) for text in pd.read_csv(kept / RUNS)["benchmarks"]] == [["motion", "shape"]] * 2


@pytest.mark.parametrize("readable", [True, False])
def test_what_the_study_beside_says_of_runs_is_kept_with_them(tmp_path, readable):
    """The next to collect writes a study of its own there; what is not known of a run stays so."""
    bench, kept = Bench(tmp_path, "baseline ld", 1, wait=0), tmp_path / "kept"
    as_run(bench)
    as_trained(bench)
    collect(bench.study, bench.runs, kept)
    whole = pd.read_csv(kept / RUNS)
    whole.drop(columns=["size", "benchmarks"]).to_csv(kept / RUNS, index=False)
    if not readable:
        (kept / STUDY).write_text("Study('of another version', wings=2)")
    collect(bench.study, bench.runs, kept, only="ld")
    told = pd.read_csv(kept / RUNS)
    names = ["size", "benchmarks"]
    assert told.loc[1].equals(whole.loc[1])
    expected = [json.loads(text) for text in whole.loc[0, names]] if readable else [{}, {}]
    assert [json.loads(text) for text in told.loc[0, names]] == expected
    other = replace(bench.study, overrides={"lr": 1e-3})
    (kept / STUDY).write_text(f"{other!r}\n")
    with pytest.raises(ValueError, match=r"has lr 0.0005, in") if readable else nullcontext():
        export.collected(other, kept, but=[other.cell("ld-plain-micro-s0")])


def as_run(bench: Bench, only: str = "*") -> None:
    """What `study run` leaves of the stand-ins, without a kernel."""
    for cell in bench.study.chosen(only):
        (folder := bench.runs / cell.name).mkdir(parents=True)
        for step in cell.steps(folder):
            (out := cells.result(folder, step)).write_text("{}")
            notebook._status_file(out).write_text(json.dumps({"state": "done", "params": step.params, "seconds": 1.5}))
        shutil.copy(bench.folder / "w.pt", folder / "last.pt")
        about = {"variant": cell.variant, "edition": cell.edition, "seed": cell.seed, "data": cell.regime.data, "preset": {"steps": 600}}
        (folder / "config.json").write_text(json.dumps(about))
        (folder / "report.json").write_text("{}")
        exec(PROBE.split("---\n")[1], {"run": str(folder), "labels": ["motion"]})
        cells._finish(cell, folder)


def test_what_was_collected_under_other_settings_is_not_taken_for_the_studys(tmp_path):
    bench, kept = Bench(tmp_path, "baseline", 1, wait=0), tmp_path / "kept"
    as_run(bench)
    as_trained(bench)
    collect(bench.study, bench.runs, kept)
    assert json.loads(pd.read_csv(kept / RUNS).loc[0, "size"])["lr"] == 5e-4
    others = {
        "lr 0.0005, in the study it is 0.001": {"overrides": {"lr": 1e-3}},
        "ema 0.998, in the study it is 0.9": {"regimes": (Regime("plain", "synthetic:plain", {"ema": 0.9}),)},
        "benchmarks motion, in the study it is motion, shape": {"benchmarks": (*MOTION, Benchmark("shape", labels=("shape",)))},
        "motion: limit 0, in the study it is 50": {"benchmarks": (replace(MOTION[0], limit=50),)},
    }

    def check():
        assert export.collected(bench.study, kept) == list(bench.study.cells)
        for said, change in others.items():
            with pytest.raises(ValueError, match=f"runs.csv: baseline-plain-micro-s0 has {said}; name another folder, or undo the change"):
                export.collected(replace(bench.study, **change), kept)

    check()
    pd.read_csv(kept / RUNS).drop(columns=["size", "benchmarks"]).to_csv(kept / RUNS, index=False)
    check()  # an earlier version's: the study beside it says the same
    (kept / STUDY).write_text("Study('of another version', wings=2)")
    assert export.collected(replace(bench.study, overrides={"lr": 1e-3}), kept), "nothing is known to differ"
    other = pd.read_csv(kept / RUNS)
    other["recipe"] = other["recipe"].str.replace("JEPA()", "JEPA() + Delta()", regex=False)
    other.to_csv(kept / RUNS, index=False)
    with pytest.raises(ValueError, match=r"has recipe Recipe\(JEPA\(\) \+ Delta\(\), .*, in the study it is Recipe\(JEPA\(\), "):
        export.collected(bench.study, kept)


def test_runs_of_two_precisions_are_told_apart(tmp_path):
    """Which precision is fast depends on the machine: in a study that says none, its runs may differ in it."""
    bench, kept = Bench(tmp_path, "baseline ld", 1, wait=0), tmp_path / "kept"
    as_run(bench)
    as_trained(bench)
    for cell, bf16 in zip(bench.study.cells, (True, False), strict=True):
        file = bench.runs / cell.name / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"bf16": bf16}))
    with pytest.warns(UserWarning, match="1 of 2 runs of bench trained in bf16, the others in fp32"):
        collect(bench.study, bench.runs, kept)
    assert export.collected(bench.study, kept) == list(bench.study.cells)
    with pytest.raises(ValueError, match="ld-plain-micro-s0 has bf16 False, in the study it is True"):
        export.collected(replace(bench.study, bf16=True), kept)
    with warnings.catch_warnings(action="error"):
        collect(bench.study, bench.runs, tmp_path / "other", only="ld")


def test_a_study_says_in_which_precision_its_runs_train(tmp_path):
    study = Study("s", ("baseline",), PLAIN, MOTION, seeds=(0,), bf16=False)
    (cell,) = study.cells
    assert cell.steps(tmp_path)[0].params["bf16"] is False and study_values.reading.read(repr(study)) == study
    cells.check(cell, cell.steps(tmp_path), cells.notebooks_folder())  # the notebook takes it
    assert "bf16" not in replace(study, bf16=None).cells[0].steps(tmp_path)[0].params
    with pytest.raises(ValueError, match="bf16='yes'; expected True, False or None"):
        replace(study, bf16="yes")


def test_a_study_says_how_its_runs_are_computed(tmp_path):
    study = Study("s", ("baseline",), PLAIN, MOTION, seeds=(0,), compile=True, accumulate=2, checkpoint=True)
    train = study.cells[0].steps(tmp_path)[0].params
    assert train["how"] == {"compile": True, "accumulate": 2, "checkpoint": True}
    cells.check(study.cells[0], study.cells[0].steps(tmp_path), cells.notebooks_folder())  # the notebook takes them
    plain = Study("s", ("baseline",), PLAIN, MOTION, seeds=(0,))
    assert study.how(compile=False, accumulate=1, checkpoint=False) == plain
    assert "how" not in plain.cells[0].steps(tmp_path)[0].params, "a notebook that lacks it does for most studies"
    for values, said in (
        ({"accumulat": 2}, "accumulat does not say how runs are computed: did you mean accumulate"),
        ({"bf16": True}, "bf16 does not say how"),  # what comes out depends on it
        ({"accumulate": 0}, "accumulate=0; expected a whole number, 1 or more"),
        ({"gpus": True}, "gpus=True; expected a whole number"),
        ({"compile": 1}, "compile=1; expected True or False"),
    ):
        with pytest.raises(ValueError, match=said):
            study.how(**values)


def test_how_a_run_is_computed_is_said_for_every_cell(tmp_path):
    """A word on the command line reaches the cells' own processes; a run that was computed otherwise is done all the same."""
    bench = Bench(tmp_path, "baseline", 1, wait=0)
    pretrain = PRETRAIN.replace("workers, ", "how, workers, ", 1).replace(" = 0, 1", " = {}, 0, 1", 1)
    stand_in(tmp_path / "notebooks/01_pretrain.ipynb", pretrain)
    assert bench.call("run", "--how", "accumulate=4")[0] == 0
    (cell,) = bench.study.cells
    assert notebook.status(bench.runs / cell.name / "01_pretrain.ipynb")["params"]["how"] == {"accumulate": 4}
    assert cells.state(cell, bench.runs).state == "done"
    with pytest.raises(ValueError, match="did you mean gpus"):
        study_values.main(["plan", str(bench.file), "--how", "gpu=1"])


def test_a_run_is_done_whoever_chose_its_precision(tmp_path, monkeypatch):
    """Runs of a study that left it to their device are those of the same study that names what the device took, and of no other."""
    bench = Bench(tmp_path, "baseline", 1, wait=0)
    as_run(bench)
    (cell,) = bench.study.cells
    about = bench.runs / cell.name / "config.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"bf16": True}))
    named = {bf16: replace(bench.study, bf16=bf16).cells[0] for bf16 in (None, True, False)}
    assert [cells.state(each, bench.runs).state for each in named.values()] == ["done", "done", "stopped"]
    monkeypatch.setattr(cells, "check", lambda *_: None)
    with pytest.raises(ValueError, match=r"holds another run \(bf16: True there, False asked\)"):
        cells.run(named[False], bench.runs, tmp_path / "notebooks")
    assert cells.state(named[True], bench.runs).state == "done", "what was there is whole"


def test_a_probe_that_cannot_draw_its_frames_is_refused_before_training(tmp_path):
    for options, said in (({"whole": True}, "frames are chosen of videos only"), ({"fps": 8, "whole": True}, "fps=8, whole=True")):
        study = Study("s", ("baseline",), PLAIN, (replace(MOTION[0], options=options),), seeds=(0,))
        with pytest.raises(ValueError, match=said):
            cells.check(study.cells[0], study.cells[0].steps(tmp_path), cells.notebooks_folder())


def test_the_reference_study_is_recognised():
    root = Path(__file__).parents[1]
    assert len(export.collected(load(root / "studies/reference.py"), root / "data/reference")) >= 53


def test_of_two_that_collect_at_once_none_is_lost(tmp_path, monkeypatch):
    bench, kept = Bench(tmp_path, "baseline ld", 1, wait=0), tmp_path / "kept"
    as_run(bench)
    as_trained(bench)
    slow = export._replace

    def late(table, path):
        time.sleep(0.2)
        slow(table, path)

    monkeypatch.setattr(export, "_replace", late)
    both = [threading.Thread(target=collect, args=(bench.study, bench.runs, kept, only)) for only in ("baseline", "ld")]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert set(pd.read_csv(kept / RUNS)["run"]) == {cell.name for cell in bench.study.cells} == set(pd.read_csv(kept / "rows.csv")["run"])
    assert not list(kept.glob("*lock*"))


def test_a_table_takes_no_mean_over_probes_or_encoders(tmp_path):
    bench = Bench(tmp_path, "baseline", 1, wait=0)
    as_run(bench)
    as_trained(bench)
    (cell,) = bench.study.cells
    more = [("attentive", "student", 10.0), ("attentive", "teacher", 30.0)]
    about = {"benchmark": "w/motion", "metric": "top1", "n": 1000, "variant": "stand-in"}
    results.append_rows(bench.runs / cell.name, [about | {"probe": p, "encoder": e, "value": v} for p, e, v in more])
    said = bench.call("table")[1]
    for name in ("w/motion, linear ", "w/motion, attentive, student", "w/motion, attentive, teacher"):
        assert name in said, said
    assert "10.0" in said and "30.0" in said


def test_a_failure_that_was_cut_short_hides_no_other(tmp_path):
    (tmp_path / cells.FAILURES).write_text('{"time": 1, "step": "01_pr')
    cells.failed(tmp_path, "02_probe", "of the next attempt")
    assert [each["error"] for each in cells.failures(tmp_path)] == ["of the next attempt"]


def test_a_wrong_parameter_is_missed_before_training(tmp_path):
    bench = Bench(tmp_path, "ld", 1, extras=(Extra("02_probe-again", {"limt": 3}),))
    shutil.copy(tmp_path / "notebooks/02_probe.ipynb", tmp_path / "notebooks/02_probe-again.ipynb")
    with pytest.raises(ValueError, match=r"02_probe-again.ipynb, for 02_probe-again: unknown parameter 'limt': did you mean limit"):
        cells.run(bench.study.cells[0], bench.runs, tmp_path / "notebooks", progress=False)
    assert not (bench.runs / "ledger.txt").exists()


def test_an_option_that_the_probe_lacks_is_missed_before_training(tmp_path):
    bench = Bench(tmp_path, "ld", 1)
    study = replace(bench.study, benchmarks=(Benchmark("motion", labels=("motion",), options={"epoch": 3}),))
    with pytest.raises(ValueError, match=r"02_probe.ipynb, for 02_probe-motion: epoch: unknown to the probe 'linear'; did you mean epochs"):
        cells.run(study.cells[0], bench.runs, tmp_path / "notebooks", progress=False)
    assert not (bench.runs / "ledger.txt").exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"labels": ("moton",)}, r"plain \[train\] has no label 'moton'; it has .*motion"),
        ({"labels": ("motion",), "splits": ("train", "tset")}, "tset"),
        ({"labels": ("class",), "data": "synthtic:plain"}, "no data set is called 'synthtic:plain'"),
    ],
)
def test_what_a_benchmarks_data_lacks_is_missed_before_training(tmp_path, asked, said):
    bench = Bench(tmp_path, "ld", 2)
    study = replace(bench.study, benchmarks=(Benchmark("wrong", **asked),))
    with pytest.raises(ValueError, match=said):
        cells.run(study.cells[0], bench.runs, tmp_path / "notebooks", progress=False)
    with pytest.raises(ValueError, match=f"02_probe-wrong: .*{said}"):
        local.run(study, bench.file, bench.runs, notebooks=tmp_path / "notebooks", progress=False)
    assert not (bench.runs / "ledger.txt").exists() and not cells.failures(bench.runs / study.cells[0].name)


def test_a_relative_path_is_left_to_notebooks_that_work_elsewhere(tmp_path, monkeypatch):
    """Started in a project's folder of notebooks they go up from it, where the list may lie."""
    (tmp_path / "pyproject.toml").touch()
    bench = Bench(tmp_path, "ld", 1)
    (cell,) = replace(bench.study, benchmarks=(Benchmark("lists", data="list.csv", labels=("class",)),)).cells
    (*_, step) = cell.steps(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"'list\.csv'"):
        cells.check(cell, [step], tmp_path / "notebooks")
    monkeypatch.chdir(tmp_path / "notebooks")
    assert cells.check(cell, [step], tmp_path / "notebooks") is None


def test_a_further_execution_of_a_probe_need_not_say_everything(tmp_path):
    bench = Bench(tmp_path, "ld", 1, wait=0, extras=(Extra("02_probe", {"labels": ["shape"]}),))
    (*_, step) = bench.study.cells[0].steps(tmp_path)
    cells.check(bench.study.cells[0], [step], tmp_path / "notebooks")
    with pytest.raises(ValueError, match="epoch: unknown to the probe 'linear'"):
        cells.check(bench.study.cells[0], [replace(step, params=step.params | {"options": {"epoch": 3}})], tmp_path / "notebooks")


@pytest.mark.parametrize("params", [{"labels": "motion"}, {"labels": '["motion", "shape"]'}, {"limit": "100"}, {"options": '{"ks": [1]}'}])
def test_parameters_are_checked_as_the_notebook_reads_them(tmp_path, params):
    """A notebook takes a text for a list, a number or a dict: so must who looks before."""
    bench = Bench(tmp_path, "ld", 1, extras=(Extra("02_probe", {"probe": "knn", "labels": ["shape"]} | params),))
    (cell,) = bench.study.cells
    (*_, step) = cell.steps(tmp_path)
    cells.check(cell, [step], tmp_path / "notebooks")
    for wrong in ({"labels": "moton"}, {"labels": "motion", "options": '{"epoch": 3}'}, {"limit": "-1"}):
        with pytest.raises(ValueError, match=r"moton|epoch|limit=-1"):
            cells.check(cell, [replace(step, params=step.params | wrong)], tmp_path / "notebooks")


def test_a_benchmark_is_checked_where_any_cell_still_needs_it(tmp_path):
    """The first cell of a regime may have finished what another still lacks."""
    bench = Bench(tmp_path, "ld", 2, wait=0)
    as_run(bench)
    second = cells.result(bench.runs / bench.study.cells[1].name, bench.study.cells[1].steps(tmp_path)[-1])
    second.unlink()
    wrong = replace(bench.study, benchmarks=(*MOTION, Benchmark("wrong", labels=("moton",))))
    with pytest.raises(ValueError, match=r"02_probe-wrong: .*moton"):
        local.run(wrong, bench.file, bench.runs, notebooks=tmp_path / "notebooks", progress=False)


def test_a_changed_study_leaves_a_finished_run_as_it_is(tmp_path):
    """Its weights are gone: were its notebook replaced, changing the study back would train it again."""
    bench = Bench(tmp_path, "ld", 1, wait=0, keep="rows")
    as_run(bench)
    as_trained(bench)
    other, folder = replace(bench.study, overrides={"lr": 1e-3}).cells[0], bench.runs / bench.study.cells[0].name
    with pytest.raises(ValueError, match=r"holds another run \(preset.lr: 0.0005 there, 0.001 asked\); name another folder with --runs"):
        cells.run(other, bench.runs, tmp_path / "notebooks", progress=False)
    assert (folder / "report.json").exists() and set(bench.states().values()) == {"done"}


def test_a_kill_after_the_last_notebook_is_made_up_for(tmp_path):
    bench = Bench(tmp_path, "ld", 1, wait=0, keep="model")
    as_run(bench)
    (cell,) = bench.study.cells
    folder = bench.runs / cell.name
    digest = cells.about(folder)["weights_sha256"]
    (folder / cells.CELL).unlink()
    shutil.copy(tmp_path / "w.pt", folder / "last.pt")
    opened = lambda: local._Run(bench.study, bench.file, bench.runs, None, None, bench.study.cells, None, 1, None).open
    assert set(bench.states().values()) == {"done"} and opened() == [cell]
    cells.run(cell, bench.runs, tmp_path / "notebooks", progress=False)
    assert opened() == [] and "optimizer" not in torch.load(folder / "last.pt")
    assert cells.about(folder)["weights_sha256"] == digest and set(cells.about(folder)["seconds"]) == {"01_pretrain", "02_probe-motion"}


def test_weights_that_another_process_reads_are_not_dropped(tmp_path, capfd):
    bench = Bench(tmp_path, "ld", 1, wait=0)
    as_run(bench)
    folder = bench.runs / bench.study.cells[0].name
    forged(folder, name=cells.LOCK, host="node7", pid=1)
    said = bench.call("prune", "--keep", "rows")[1]
    assert "0.00 GB freed in 0 of 1" in said and (folder / "last.pt").exists()
    assert "ld-plain-micro-s0 keeps its weights: " in (told := capfd.readouterr().err) and "process 1 on node7" in told


def test_a_stop_between_two_cells_starts_no_other(tmp_path, monkeypatch):
    study = Study("s", ("ld", "baseline", "hw"), PLAIN, MOTION, seeds=(0,))
    runner, started = local._Run(study, tmp_path / "s.py", tmp_path, None, None, study.cells, None, 1, None), []
    runner.bar = tqdm(disable=True)

    def start(cell, room):
        started.append(cell)
        runner.tally.stopped = signal.SIGINT

    monkeypatch.setattr(runner, "_start", start)
    runner._fill([local.Slot({}), local.Slot({})])
    assert started == [study.cells[0]] and runner.open == list(study.cells[1:])


def test_a_stop_while_a_cell_starts_reaches_it(tmp_path, monkeypatch):
    study = Study("s", ("ld",), PLAIN, MOTION, seeds=(0,))
    runner, told = local._Run(study, tmp_path / "s.py", tmp_path, None, None, study.cells, None, 1, None), []

    def begun(*_, **__):
        runner.tally.stopped = signal.SIGTERM  # the signal comes before the process is among those that are told
        return SimpleNamespace(send_signal=told.append)

    monkeypatch.setattr(local.subprocess, "Popen", begun)
    runner._start(study.cells[0], local.Slot({}))
    assert told == [signal.SIGTERM]


def test_constants_are_collected_with_the_first_run_that_is_finished(tmp_path):
    bench, kept = Bench(tmp_path, "baseline ld", 2, wait=0), tmp_path / "kept"
    as_run(bench)
    as_trained(bench)
    (bench.runs / bench.study.cells[0].name / "02_probe-motion.ipynb").unlink()
    collect(bench.study, bench.runs, kept)
    found = pd.read_csv(kept / "rows.csv")
    assert set(found["run"]) == {cell.name for cell in bench.study.cells[1:]}
    assert found.loc[found["source"].eq("constant"), "run"].tolist() == [bench.study.cells[1].name]
    collect(bench.study, bench.runs, kept, only="ld")
    states = pd.read_csv(kept / "provenance/cells.csv").set_index("run")["state"]
    assert len(states) == 4 and states.iloc[0] == "stopped" and states.iloc[1:].eq("done").all()


def test_a_cell_computes_on_the_studys_threads_whoever_starts_it(tmp_path, monkeypatch):
    """Snakemake sets the variables to the cores that it gives a job."""
    study = Study("s", ("baseline",), PLAIN, MOTION, seeds=(0,), device="cpu", threads=3)
    (tmp_path / "s.py").write_text(f"from vjepa_lab.study import Benchmark, Regime, Study\nstudy = {study!r}\n")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "8")
    seen = {}
    monkeypatch.setattr(cells, "run", lambda *_, **__: seen.update(os.environ))
    assert main(["cell", str(tmp_path / "s.py"), study.cells[0].name, "--runs", str(tmp_path / "runs")]) == 0
    assert (seen["OMP_NUM_THREADS"], seen["MKL_NUM_THREADS"]) == ("3", "3")
    assert study.cores == 3 and replace(study, gpus=2, workers=4).cores == 8


def test_two_runners_share_a_study(tmp_path):
    bench = Bench(tmp_path, "baseline ld", 1)
    both = [bench.start(), bench.start()]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted(bench.ledger("begin")) == sorted(bench.ledger("end")) == sorted(cell.name for cell in bench.study.cells)
    assert set(bench.states().values()) == {"done"}


def test_a_cell_that_fails_is_tried_again_named_and_kept(tmp_path):
    bench = Bench(tmp_path, "hw ld", 1, keep="model")
    status, said = bench.call()
    assert status == 1
    assert bench.ledger("begin").count("hw-plain-micro-s0") == 2
    assert "RuntimeError: first line" in said and "01_pretrain.failed-2.ipynb" in said
    assert bench.states() == {"hw-plain-micro-s0": "failed", "ld-plain-micro-s0": "done"}
    kept = nbformat.read(bench.runs / "hw-plain-micro-s0" / "01_pretrain.failed-2.ipynb", 4)
    assert any(output.get("ename") == "RuntimeError" for cell in kept.cells for output in cell.get("outputs", []))
    status, said = bench.call("status")
    assert status == 1 and "failed  hw-plain-micro-s0  01_pretrain: 01_pretrain.ipynb failed in In" in said
    assert "optimizer" not in torch.load(bench.runs / "ld-plain-micro-s0" / "last.pt")

    (bench.runs / "mended").touch()
    status, said = bench.call()
    assert status == 0 and set(bench.states().values()) == {"done"}, said
    bench.call("prune", "--keep", "rows")
    assert not list(bench.runs.glob("*/last.pt")) and set(bench.states().values()) == {"done"}


def test_ctrl_c_stops_the_runs_and_the_same_command_goes_on(tmp_path):
    bench = Bench(tmp_path, "baseline ld", 1, wait=60)
    process = bench.start()
    bench.wait_for(lambda: len(bench.ledger("begin")) == 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "running cells save and stop (2)" in err and "stopped with 2 to go" in out
    assert set(bench.states().values()) == {"stopped"}
    assert all(notebook.status(bench.runs / cell.name / "01_pretrain.ipynb")["state"] == "interrupted" for cell in bench.study.cells)


def test_a_benchmark_added_later_costs_its_probes_only_unless_the_weights_are_gone(tmp_path, monkeypatch):
    bench = Bench(tmp_path, "baseline", 1, wait=0)
    (cell,), books = bench.study.cells, tmp_path / "notebooks"
    for name in ("STAND_IN_S", "STAND_IN_WEIGHTS"):
        monkeypatch.setenv(name, bench.env[name])
    cells.run(cell, bench.runs, books, progress=False)
    more = Study("bench", ("baseline",), PLAIN, (*MOTION, Benchmark("shape", labels=("shape",))), seeds=(0,)).cells[0]
    folder = bench.runs / cell.name
    assert [step.name for step in cells.open_steps(more, folder)] == ["02_probe-shape"]
    changed = Study("bench", ("baseline",), PLAIN, (Benchmark("motion", labels=("motion", "speed")),), seeds=(0,)).cells[0]
    assert [step.name for step in cells.open_steps(changed, folder)] == ["02_probe-motion"]
    (folder / "last.pt").unlink()
    assert [step.name for step in cells.open_steps(more, folder)] == ["01_pretrain", "02_probe-shape"]
    assert cells.state(cell, bench.runs).state == "done"


def test_a_cell_that_another_has_taken_over_is_left_to_it(tmp_path, monkeypatch):
    """Its process was suspended meanwhile: it writes down neither the weights' hash nor a failure."""
    bench = Bench(tmp_path, "baseline hw", 1, wait=0)
    for name in ("STAND_IN_S", "STAND_IN_WEIGHTS"):
        monkeypatch.setenv(name, bench.env[name])
    execute = notebook.run

    def overtaken(source, out, params, **how):
        try:
            return execute(source, out, params, **how)
        finally:
            forged(out.parent, name=cells.LOCK, host="node7", pid=1, token="another")

    monkeypatch.setattr(notebook, "run", overtaken)
    for cell in bench.study.cells:  # the second one's pretraining fails
        with pytest.raises(locks.Locked, match="it was taken over by process 1 on node7"):
            cells.run(cell, bench.runs, tmp_path / "notebooks", progress=False)
        left = {path.name for path in (bench.runs / cell.name).iterdir()}
        assert cells.LOCK in left and not left & {cells.CELL, cells.FAILURES, "02_probe-motion.ipynb"}


def test_a_cell_whose_owner_is_silent_is_submitted_where_the_caller_says_so(tmp_path, monkeypatch):
    """submitit is a stand-in here: it takes the jobs and starts none."""

    class Executor:
        cluster = "local"
        __init__ = update_parameters = lambda self, **_: None
        batch = nullcontext

        def submit(self, job):
            return job.command

    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=lambda **_: Executor()))
    study = Study("s", ("baseline", "ld", "hw"), PLAIN, MOTION, seeds=(0,))
    for cell, silent_s in zip(study.cells, (7200, 10), strict=False):
        (tmp_path / cell.name).mkdir()
        forged(tmp_path / cell.name, silent_s=silent_s, name=cells.LOCK, host="elsewhere", pid=1)
    silent, _, free = (cell.name for cell in study.cells)
    submitted = lambda void: [command[-1] for command in cluster.submit(study, "s.py", tmp_path, void_after_s=void)]
    assert submitted(None) == submitted(10_000) == [free] and submitted(600) == [silent, free]
    assert cluster.submit(study, "s.py", tmp_path, void_after_s=600)[0][-3:-1] == ["--void-after", "600"]
    bench = Bench(tmp_path, "baseline ld", 1, wait=0)
    as_run(bench)
    killed = bench.study.cells[1]
    (bench.runs / killed.name / cells.CELL).unlink()  # between its last notebook and what follows it
    assert [command[-1] for command in cluster.submit(bench.study, bench.file, bench.runs)] == [killed.name]


def test_a_rerun_compares_what_it_ran_itself(tmp_path, monkeypatch):
    bench = Bench(tmp_path, "baseline", 1, wait=0)
    (cell,), books = bench.study.cells, tmp_path / "notebooks"
    for name in ("STAND_IN_S", "STAND_IN_WEIGHTS"):
        monkeypatch.setenv(name, bench.env[name])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "2")  # torch obeys it before the other
    executed, threads = [], []

    def execute(source, out, params, **_):
        """What the stand-ins write, without a kernel."""
        executed.append(out)
        threads.append((os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]))
        folder = out.parent
        about = {"preset": {"steps": 600}, "sessions": [{"threads": 1}]}
        (folder / "config.json").write_text(json.dumps(about))
        (folder / "recipe.txt").write_text(repr(cell.recipe))
        shutil.copy(bench.env["STAND_IN_WEIGHTS"], folder / "last.pt")
        (folder / "rows.csv").write_text("variant,benchmark,probe,metric,value,n,encoder\nstand-in,w/motion,linear,top1,5,1000,student\n")
        out.write_text("{}")
        notebook._status_file(out).write_text(json.dumps({"state": "done", "params": dict(params), "seconds": 1}))

    monkeypatch.setattr(notebook, "run", execute)
    cells.run(cell, bench.runs, books)
    for number, folder in ((2, "runs-rerun"), (4, "runs-rerun-2")):
        again = rerun(cell, bench.runs, notebooks=books)
        assert (
            again.equal
            and threads[-1] == ("1", "1")
            and len(executed) == 2 + number
            and executed[-1].parent == tmp_path / folder / cell.name
        )
        assert f"run again in {tmp_path / folder / cell.name}" in str(again)
    here = bench.runs / cell.name / "rows.csv"
    here.write_text(here.read_text() + "stand-in,w/speed,linear,top1,50,1000,student\n")  # measured then, and not now
    lost = rerun(cell, bench.runs, notebooks=books)
    assert (lost.rows, lost.differing, lost.lacking, lost.new, lost.equal) == (2, 0, 1, 0, False)
    assert str(lost).endswith("weights equal bit by bit, all 1 rows equal, 1 more LACK")
    here.write_text(here.read_text().splitlines()[0] + "\nstand-in,w/texture,linear,top1,60,1000,student\n")
    other = rerun(cell, bench.runs, notebooks=books)
    assert (other.rows, other.lacking, other.new, other.largest) == (1, 1, 1, 0) and not other.equal
    here.write_text(here.read_text() + "stand-in,w/motion,linear,top1,7,1000,student\n")
    other = rerun(cell, bench.runs, notebooks=books)
    assert (other.differing, other.largest) == (1, 2) and "1 of 2 rows DIFFER, by 2 at most, 1 more LACK" in str(other)
    about = bench.runs / cell.name / "config.json"
    sessions = [{"accumulate": 2, "compile": False}]
    about.write_text(json.dumps(json.loads(about.read_text()) | {"bf16": False, "sessions": sessions}))
    stand_in(
        books / "01_pretrain.ipynb",
        PRETRAIN.replace("workers, ", "bf16, how, workers, ", 1).replace(" = 0, 1", " = None, {}, 0, 1", 1),
    )
    asked = []
    monkeypatch.setattr(notebook, "run", lambda source, out, params, **how: asked.append(params) or execute(source, out, params, **how))
    before = rerun(cell, bench.runs, notebooks=books)  # wherever it runs, and whatever is fast there
    assert (asked[0]["bf16"], asked[0]["how"]) == (False, {"accumulate": 2})
    assert "accumulate None, then 2" in before.around, "the stand-in writes no session"
    assert rerun(cell, bench.runs, notebooks=books).folder != before.folder
    for into in (bench.runs, tmp_path / "runs-rerun"):
        with pytest.raises(ValueError, match="finished already, so nothing would run again; name another folder with --into"):
            rerun(cell, bench.runs, into=into, notebooks=books)
    assert len(executed) == 16


# ------------------------------------------------------------------------------------------------------------------ the real notebooks


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twelve_cells_killed_three_times_are_the_same_as_uninterrupted(tmp_path):
    """Real notebooks at smoke size: no cell lost, none run twice, the same weights and rows; two cells rerun bit-equally; and collected."""
    benchmark = Benchmark("motion", labels=("motion",), limit=120, options={"epochs": 5})
    study = Study("twelve", ("baseline", "ld", "hw", "random-init"), PLAIN, (benchmark,), seeds=range(3), preset="smoke")
    file = tmp_path / "twelve.py"
    file.write_text(f"from vjepa_lab.study import Benchmark, Regime, Study\nstudy = {study!r}\n")
    study = load(file)
    command = [sys.executable, "-m", "vjepa_lab", "study", "run", str(file), "--jobs", "2", "--runs"]
    env, chance = os.environ | {"OMP_NUM_THREADS": "1"}, random.Random(0)

    finished = {}

    def notebooks() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*/*.ipynb") if path.name.count(".") == 1}

    signals = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)
    for number, when in zip(signals, sorted(chance.sample(range(1, 20), 3)), strict=True):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], env=env, stdout=subprocess.DEVNULL)
        while len(notebooks()) < when:
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(chance.uniform(0, 10))
        process.send_signal(number)
        process.wait(300)
        while any(locks.holder(folder, cells.LOCK) for folder in (tmp_path / "killed").iterdir()):
            time.sleep(0.2)
        now = notebooks()
        assert finished.items() <= now.items()  # what was finished was left alone
        finished = now
    subprocess.run([*command, str(tmp_path / "killed")], env=env, check=True)
    assert finished.items() <= notebooks().items() and len(notebooks()) == 24
    subprocess.run([*command, str(tmp_path / "whole")], env=env, check=True)

    killed, whole = (rows(study, tmp_path / name) for name in ("killed", "whole"))
    pd.testing.assert_frame_equal(killed, whole)
    about = [[cells.about(tmp_path / name / cell.name) for cell in study.cells] for name in ("killed", "whole")]
    hashes = [[each["weights_sha256"] for each in part] for part in about]
    assert hashes[0] == hashes[1] and len(set(hashes[0])) == 12

    collect(study, tmp_path / "killed", tmp_path / "kept")
    assert len(results.load(tmp_path / "kept")) == len(killed)
    assert len(collected.load(tmp_path / "kept").cells) == 12 and "12 of 12 planned" in collected.completeness(
        collected.load(tmp_path / "kept")
    )
    for name in ("ld-plain-smoke-s1", "baseline-plain-smoke-s2"):
        again = rerun(study.cell(name), tmp_path / "killed", into=tmp_path / "again", against=tmp_path / "kept")
        assert again.equal, again
