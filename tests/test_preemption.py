"""What clusters and notebooks do to a run: killed kernels, lost nodes, jobs that are queued again, signals at any moment."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import vjepa_lab as vl
from vjepa_lab import notebook
from vjepa_lab.study import Benchmark, Regime, Study, cluster, local
from vjepa_lab.study import cell as cells
from vjepa_lab.study import main as study_command
from vjepa_lab.train import _as_many, resume
from vjepa_lab.training import launch, locks
from vjepa_lab.training.processes import Interrupted
from vjepa_lab.widgets import monitor

STUDY = Study("s", ("baseline",), (Regime("plain", "synthetic:plain"),), (Benchmark("motion", labels=("motion",)),), seeds=(0,))
SMOKE = {"preset": "smoke", "progress": False}


def forged(folder: Path, silent_s: float = 0.0, name: str = "lock", **changes) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(vars(locks.Owner.me()) | changes))
    os.utime(folder / name, (time.time() - silent_s,) * 2)


# -------------------------------------------------------------------------------------------------------------------------------- locks


def test_a_job_that_is_queued_again_knows_its_earlier_start_to_be_gone(tmp_path, monkeypatch):
    """On another node, whose processes nobody here can see."""
    for where, job, again, silent_s, free in (
        ("west", "4711", "0", 100, False), ("west", "4712", "1", 100, False), ("east", "4711", "1", 100, False),
        ("west", "4711", "1", 20, False), ("west", "4711", "1", 100, True),
    ):  # fmt: skip
        forged(tmp_path, silent_s, host="elsewhere", pid=1, job="west 4711 0")
        for name, value in (("CLUSTER_NAME", where), ("JOB_ID", job), ("RESTART_COUNT", again)):
            monkeypatch.setenv(f"SLURM_{name}", value)
        assert locks.restarted() == (again == "1")
        assert (locks.holder(tmp_path) is None) == free, "other jobs, and a node that is merely cut off, may well live"
    with locks.hold(tmp_path, patience_s=0):
        assert locks.holder(tmp_path)[0].job == "west 4711 1"


def test_a_lost_cell_is_waited_for_and_one_that_lives_is_not(tmp_path):
    assert cells.silent(tmp_path, 60), "nobody has it: at once"
    forged(tmp_path, host="elsewhere", pid=1, name=cells.LOCK)
    began = time.monotonic()
    assert cells.silent(tmp_path, 0.4) and time.monotonic() - began >= 0.4
    with locks.hold(tmp_path / "b", name=cells.LOCK, beat_s=0.02):
        assert not cells.silent(tmp_path / "b", 0.4)


def test_a_cell_takes_over_from_a_lost_node_when_its_time_has_come(tmp_path, monkeypatch):
    """A job is queued again sooner than the silence voids the lock that its earlier start left."""
    cell, ran = STUDY.cells[0], []
    folder = tmp_path / cell.name
    forged(folder, host="elsewhere", pid=1, name=cells.LOCK)

    def run(cell, runs, notebooks, *, void_after_s, progress):
        with locks.hold(folder, name=cells.LOCK, patience_s=0, void_after_s=1.5):
            ran.append(cell.name)
        return folder

    file = tmp_path / "s.py"
    file.write_text(f"from vjepa_lab.study import Benchmark, Regime, Study\nstudy = {STUDY!r}\n")
    words = ["cell", str(file), "--runs", str(tmp_path), cell.name]
    monkeypatch.setattr(cells, "run", run)
    monkeypatch.setattr(cells, "LISTEN_S", 0.5)
    assert study_command(words) == local.TAKEN and not ran, "without a word on when, it is left alone"
    monkeypatch.setenv(local.PARENT, "1")
    assert study_command([*words, "--void-after", "120"]) == local.TAKEN, "a study run looks again by itself"
    monkeypatch.delenv(local.PARENT)
    assert study_command([*words, "--void-after", "120"]) == 0 and ran == [cell.name]


def test_a_silence_that_the_living_keep_too_voids_nothing(tmp_path, capsys):
    with pytest.raises(Exception, match="expected 120 s or more, got 20"):
        study_command(["run", "studies/reference.py", "--runs", str(tmp_path), "--void-after", "20"])


def test_a_run_that_somebody_trains_is_no_failed_cell(tmp_path):
    """The monitor's "go on", say; the lock of the cell is free then."""
    cell = STUDY.cells[0]
    forged(tmp_path / cell.name, host="elsewhere", pid=1)
    with pytest.raises(locks.Locked, match="process 1 on elsewhere"):
        cells.run(cell, tmp_path, void_after_s=None)
    assert not cells.failures(tmp_path / cell.name)
    assert cells.taken(cell, tmp_path) and cells.state(cell, tmp_path).state == "running", "nor one to start again and again"


def test_a_kernel_that_was_killed_leaves_no_lock_to_the_next_try(tmp_path, monkeypatch):
    cell = STUDY.cells[0]

    def run(path, out, params, **_):
        process = subprocess.Popen([sys.executable, "-c", "0"])
        born = locks._born(process.pid)
        process.wait()
        forged(tmp_path / cell.name, pid=process.pid, born=born)
        raise notebook.NotebookError("KernelDied", out)

    monkeypatch.setattr(notebook, "run", run)
    with pytest.raises(notebook.NotebookError, match="KernelDied"):
        cells.run(cell, tmp_path)
    assert not (tmp_path / cell.name / "lock").exists(), "on another node nobody could tell that its owner is dead"


def test_a_cell_that_was_given_up_after_kills_is_called_failed(tmp_path):
    cell = STUDY.cells[0]
    (folder := tmp_path / cell.name).mkdir()
    step = cell.steps(folder)[0]
    status = cells.result(folder, step).with_suffix(".status.json")
    known = {"state": "running", "params": {}, "started": "2026-01-01T00:00:00+00:00"}
    status.write_text(json.dumps(known))
    assert cells.state(cell, tmp_path).state == "stopped"
    cells.failed(folder, "cell", "killed by SIGKILL")
    assert cells.state(cell, tmp_path) == cells.State("failed", "cell: killed by SIGKILL")
    status.write_text(json.dumps(known | {"started": "2999-01-01T00:00:00+00:00"}))
    assert cells.state(cell, tmp_path).state == "stopped", "that failure was of an earlier try"
    status.write_text("")
    assert notebook.status(cells.result(folder, step)) == {}, "a node that crashed leaves an empty file"


def test_what_is_not_reached_from_here_is_not_signalled(tmp_path, monkeypatch):
    """The number of a process in another container is that of any process here."""
    run = vl.pretrain("baseline", "synthetic", runs=tmp_path, steps=1, **SMOKE)
    forged(run.path, pid=os.getpid(), world="of another container", machine="")
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("signalled"))
    with pytest.raises(ProcessLookupError, match="not to be reached from here"):
        monitor.stop(run)


# ------------------------------------------------------------------------------------------------------------------------------ signals


def test_a_command_that_is_ended_gives_back_its_locks(tmp_path):
    code = f"""
import sys, time
import vjepa_lab.__main__ as line
from vjepa_lab.training.locks import hold
def command(parser):
    "stands in"
    return call
def call(**_):
    with hold({str(tmp_path)!r}):
        print("held", flush=True)
        time.sleep(60)
line.COMMANDS["variants"] = command
sys.exit(line.main(["variants"]))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not (tmp_path / "lock").exists()


def test_a_job_that_is_to_end_waits_for_its_cell_only_as_long_as_that_saves(monkeypatch):
    """submitit, here a stand-in, calls `checkpoint` within the job's own wait for the cell."""
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(helpers=SimpleNamespace(DelayedSubmission=lambda job: job)))
    saves = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(0)); print('up', flush=True); time.sleep(60)"
    job, took = cluster.CellJob("ld", [sys.executable, "-c", saves]), []

    def announced(*_):
        began = time.monotonic()
        job.checkpoint()
        took.append(time.monotonic() - began)

    before = signal.signal(signal.SIGUSR1, announced)
    try:
        subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(3); os.kill({os.getpid()}, {int(signal.SIGUSR1)})"])
        assert job() == "ld is done"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert took and took[0] < cluster.SAVE_S / 3


def test_a_stop_that_is_pressed_three_times_at_once_is_one_request():
    told = []
    worker = launch.Worker(0, type("P", (), {"poll": lambda self: None, "send_signal": lambda self, number: told.append(number)})(), None)
    forward = launch.Forward([worker])
    for _ in range(3):
        forward._note(signal.SIGINT, None)
    assert told == [signal.SIGINT]
    forward.since -= forward.AGAIN_S
    forward._note(signal.SIGINT, None)
    assert told == [signal.SIGINT] * 2
    forward.since -= forward.AGAIN_S
    with pytest.raises(Interrupted, match="at once"):
        forward._note(signal.SIGINT, None)


# ----------------------------------------------------------------------------------------------------------------------------- training


def test_a_callback_that_fails_costs_no_step(tmp_path):
    def plot(record):
        if record["step"] == 3:
            raise RuntimeError("no display")

    how = SMOKE | {"log_every": 1, "out": tmp_path / "a"}
    with pytest.raises(RuntimeError, match="no display"):
        vl.pretrain("baseline", "synthetic", callback=plot, **how)
    cut = vl.load_run(tmp_path / "a")
    assert cut.steps_done == 4
    vl.pretrain("baseline", "synthetic", **how)
    assert json.loads((tmp_path / "a/report.json").read_text())["resumed_at"] == 4
    whole = vl.pretrain("baseline", "synthetic", **how | {"out": tmp_path / "b"})
    a, b = (run.checkpoint()["model"] for run in (vl.load_run(tmp_path / "a"), whole))
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_long_runs_save_thirty_times(tmp_path):
    run = vl.pretrain("baseline", "synthetic", runs=tmp_path, steps=2, **SMOKE)
    assert run.config["sessions"][0]["save_every"] == 200

    class Enough(Exception):
        pass

    def look(run, trainer, step):
        raise Enough

    with pytest.raises(Enough):
        vl.pretrain("baseline", "synthetic", out=tmp_path / "long", steps=30_000, probe=look, **SMOKE)
    assert vl.load_run(tmp_path / "long").config["sessions"][0]["save_every"] == 1000


def test_a_run_goes_on_with_as_many_workers_as_before(tmp_path):
    def stop(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vl.pretrain("baseline", "synthetic", out=tmp_path / "a", workers=1, callback=stop, **SMOKE)
    assert [session["workers"] for session in resume(tmp_path / "a", progress=False).config["sessions"]] == [1, 1]


# ------------------------------------------------------------------------------------------------------------------------------ devices


def test_a_run_goes_on_with_as_many_processes_as_there_is_room_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    many = lambda session, device: _as_many(session, torch.device(device))
    assert many({"processes": 4, "device": "cuda:0"}, "cuda") == 4
    for session, device in (
        ({"processes": 8, "device": "cuda"}, "cuda"), ({"processes": 4, "device": "cuda"}, "cuda:1"), ({}, "cpu"),
        ({"processes": 4, "device": "cuda"}, "cpu"), ({"processes": 2, "device": "mps"}, "mps"),
    ):  # fmt: skip
        assert many(session, device) is None
    assert many({"processes": 2, "device": "cpu"}, "cpu") == 2


def test_a_study_on_the_cpu_sees_no_gpu_and_none_shares_one_by_number():
    on_cpu = Study("s", ("ld",), STUDY.regimes, STUDY.benchmarks, device="cpu")
    assert local.environment(on_cpu)["CUDA_VISIBLE_DEVICES"] == "", "its probes would all take the first"
    assert "CUDA_VISIBLE_DEVICES" not in local.environment(STUDY)
    with pytest.raises(ValueError, match="device='cuda:1' would be that of every run; expected 'cuda', and CUDA_VISIBLE_DEVICES=1"):
        local.slots(Study("s", ("ld",), STUDY.regimes, STUDY.benchmarks, device="cuda:1"))
