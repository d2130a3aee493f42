"""Several processes: the same training as one, and one clear error when something goes wrong in any of them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import vjepa_lab as vl
from vjepa_lab.__main__ import expected
from vjepa_lab.modifiers import Hard
from vjepa_lab.objective import Recipe, Term
from vjepa_lab.terms import JEPA, Kinematic, SIGReg, statistics
from vjepa_lab.training import health, launch, locks, meters
from vjepa_lab.training.processes import Team

QUICK = {"preset": "smoke", "batch": 8, "steps": 3, "bf16": False, "progress": False, "log_every": 1}


@pytest.fixture(scope="module")
def world():
    """A little of the synthetic world, in memory."""
    return vl.data.open("synthetic", frames=8, size=32, n=24, cache="memory")


def apart(a, b) -> float:
    """The largest difference between two runs' weights, heads included."""
    a, b = (run.checkpoint()["model"] | run.checkpoint()["loss"] for run in (a, b))
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_two_processes_equal_one(world, tmp_path):
    """1 x 8 and 2 x 4 clips: a term of this very function with a trained head, weighted means, masks that look at the clips, and
    SIGReg, whose statistics are reckoned over both processes."""

    class Echo(Term):
        def head(self, dim):
            return torch.nn.Linear(dim, 3)

        def error(self, view, head):
            return (head(view.z) - view.clip.mean((1, 2, 3, 4)).view(-1, 1, 1, 1, 1)).square().mean(-1)

    objective = JEPA() + 0.1 * Echo() + 0.1 * Kinematic(huber=1.0, view="visible") + 0.01 * SIGReg(slices=16)
    objective = objective + 0.01 * SIGReg(slices=16, samples="steps", projector="bn_mlp", hidden=8)
    recipe, seen = Recipe(objective, masks=vl.masks.MOTION_GUIDED), []
    how = QUICK | {"lr": 1e-4}
    one = vl.pretrain(recipe, world, out=tmp_path / "one", **how)
    two = vl.pretrain(recipe, world, out=tmp_path / "two", devices=2, callback=seen.append, **how)
    assert 0 < apart(one, two) < 1e-5
    names = ["loss", "grad_norm", "std", "rank", *objective.names[:3]]
    torch.testing.assert_close(*(torch.tensor(run.metrics()[names].values) for run in (one, two)), rtol=1e-3, atol=1e-5)
    assert [record["step"] for record in seen] == [0, 1, 2], "records reach the caller"
    assert [session["processes"] for session in two.config["sessions"]] == [2]
    assert {p.name for p in two.path.iterdir()} == {p.name for p in one.path.iterdir()}, "one process writes"
    assert vl.pretrain(recipe, world, out=tmp_path / "one", devices=2, **how).path == one.path, "the same run, and it is finished"


def test_processes_with_samples_of_several_sizes_agree(world, tmp_path):
    """Masks that hide another number of tokens in each clip: what one process has does not decide what all add up."""
    term = SIGReg(slices=20_000, view="visible")
    assert statistics.CHUNK["cpu"] < 20_000 * 4 * 8, "directions are taken in parts"
    recipe = Recipe(JEPA() + 0.01 * term, masks=vl.MultiBlock(truncate="padded"))
    one, two = (vl.pretrain(recipe, world, out=tmp_path / str(n), devices=n, **QUICK) for n in (1, 2))
    name = recipe.objective.names[1]
    assert two.metrics()[name].tolist() == pytest.approx(one.metrics()[name].tolist(), rel=1e-3)


def test_what_hard_weights_rest_on_is_of_all_processes(world, tmp_path):
    recipe = JEPA() + 0.1 * Hard(Kinematic(), tau=0.05) + 0.1 * Hard(Kinematic(), tau=0.05, scope="global")
    one, two = (vl.pretrain(recipe, world, out=tmp_path / str(n), devices=n, **QUICK | {"lr": 1e-4}).metrics() for n in (1, 2))
    names = [name for name in one.columns if name.startswith("ess")]
    assert len(names) == 1 and "global" not in names[0], "weights that go into the error are not to be seen"
    torch.testing.assert_close(*(torch.tensor(table[names].values) for table in (one, two)), rtol=1e-4, atol=0)


def test_joules_add_up_over_sessions_of_one_and_several_processes(world, tmp_path, monkeypatch):
    """Meters that read 100 J in every process: sessions of 1, 2 and 2 processes spend 500."""

    class Metered(Term):
        def error(self, view, head):
            meters.Energy.add = lambda energy: {"gpu": 100.0}
            if view.step == 2 and os.environ.get("RANK") == "0":
                os.kill(os.getpid(), signal.SIGTERM)
            return view.z.square().mean(-1)

    def stop(run, trainer, step):
        if step == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(meters.Energy, "add", meters.Energy.add)  # it is put back afterwards
    how = {"recipe": JEPA() + Metered(), "data": world, "out": tmp_path / "a"} | QUICK | {"steps": 6}
    run = vl.Run(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt, match="saved after step 1"):
        vl.pretrain(**how, probe=stop)
    assert run.checkpoint()["spent"]["gpu_j"] == 100
    with pytest.raises(KeyboardInterrupt):
        vl.pretrain(**how, devices=2)
    assert run.checkpoint()["spent"]["gpu_j"] == 300 and 3 <= run.steps_done < 6
    vl.pretrain(**how, devices=2)
    assert json.loads((run.path / "report.json").read_text())["energy_j"] == {"gpu": 500}


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def test_a_process_that_fails_ends_all_and_is_heard(world, tmp_path):
    class Faulty(Term):
        def error(self, view, head):
            if rank() == 1 and view.step == 1:
                raise KeyError("lost in process one")
            return view.z.square().mean(-1)

    with pytest.raises(KeyError, match="lost in process one") as caught:
        vl.pretrain(JEPA() + Faulty(), world, out=tmp_path / "a", devices=2, **QUICK)
    told = str(caught.value.__cause__)
    assert "in process 1 of 2" in told and "raise KeyError" in told, "with the traceback of that process"
    with locks.hold(tmp_path / "a", patience_s=0):
        pass  # whoever wrote there is gone


@pytest.mark.slow
def test_a_process_that_is_killed_ends_all(world, tmp_path):
    class Deadly(Term):
        def error(self, view, head):
            if rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return view.z.square().mean(-1)

    with pytest.raises(ChildProcessError, match="process 1 of 2 was ended by SIGKILL"):
        vl.pretrain(JEPA() + Deadly(), world, out=tmp_path / "a", devices=2, **QUICK)


def ended(told: bytes = b"", status: int = 1):
    """A started process that failed, or was killed, without having been started."""
    failed = (0.0, told, "Traceback ...\nRuntimeError: as text") if told else (0.0, None, "")
    return launch.Worker(1, SimpleNamespace(returncode=status), None, failed)


def test_numbers_that_break_are_told_as_they_are_but_for_their_clips():
    """What a caller of several processes catches is what one process would have raised."""
    error = health.NotFinite("JEPA became nan at step 3", 3, {"JEPA": float("inf")}, torch.zeros(4))
    told = launch.first_failure([ended(launch.packed(error))], 2)
    assert type(told) is health.NotFinite and str(told) == str(error)
    assert (told.step, told.terms, told.batch) == (3, {"JEPA": float("inf")}, None) and error.batch is not None


def test_a_process_that_is_killed_takes_one_line():
    """It is no fault of the library, so the command line shows no traceback."""
    for status, said in ((-signal.SIGKILL, "was ended by SIGKILL .*out of memory"), (3, "ended without a word, exit code 3")):
        told = launch.first_failure([ended(status=status)], 2)
        assert re.search(f"process 1 of 2 {said}", str(told)) and expected(told)


@pytest.mark.parametrize(("set_to", "share"), [(None, "2"), ("3", "3")])
def test_processes_share_the_threads_unless_their_number_is_set(monkeypatch, set_to, share):
    seen = []
    monkeypatch.setattr(launch.subprocess, "Popen", lambda *_, env, **__: seen.append(env["OMP_NUM_THREADS"]))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    if set_to:
        monkeypatch.setenv("OMP_NUM_THREADS", set_to)
    else:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launch.started(0, 2, 12345).connection.close()
    assert seen == [share]


def test_a_port_that_is_taken_is_named(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(ConnectionError, match=rf"cannot meet the others at 127.0.0.1:{port}: .*--master-port"):
            Team.of_environment().meet(torch.device("cpu"))


def test_one_gpu_is_used_without_its_number(monkeypatch):
    """device="auto" says "cuda"; torch.cuda.set_device takes numbers only."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(torch.cuda._utils._get_device_index(device)))
    Team().meet(torch.device("cuda"))
    Team().meet(torch.device("cuda", 1))
    assert chosen == [1]


def test_an_environment_that_makes_no_sense_is_named(monkeypatch):
    monkeypatch.setenv("RANK", "first")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="'RANK': 'first'"):
        Team.of_environment()


def test_devices_beside_torchrun_are_refused(monkeypatch, world, tmp_path):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="one of 4 processes already; leave devices out"):
        vl.pretrain("baseline", world, out=tmp_path / "a", devices=2, **QUICK)


@pytest.mark.slow
def test_torchrun(tmp_path):
    """The command line under torchrun: one run folder, the weights of one process; an error is spoken once."""

    def call(out, *words, processes=2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "vjepa_lab"]
        command += ["pretrain", *words, "--preset", "smoke", "--batch", "8", "--bf16", "false", "--no-progress", "--out", str(out)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    for out, processes in (("one", 1), ("two", 2)):
        done = call(tmp_path / out, "baseline", processes=processes)
        assert done.returncode == 0, done.stderr
    assert 0 < apart(*(vl.load_run(tmp_path / name) for name in ("one", "two"))) < 1e-5
    failed = call(tmp_path / "two", "ld")
    assert failed.returncode != 0 and failed.stderr.count("holds another run") == 1
