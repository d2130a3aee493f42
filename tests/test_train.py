"""Pretraining: runs on disk, exact resume, errors that name what is wrong."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import vjepa_lab as vl
from vjepa_lab import train
from vjepa_lab.objective import Term
from vjepa_lab.terms import JEPA

QUICK = {"preset": "smoke", "progress": False, "log_every": 1}


@pytest.fixture(scope="module")
def world():
    """A little of the synthetic world, in memory."""
    return vl.data.open("synthetic", frames=8, size=32, n=24, cache="memory")


def weights(run, which="model"):
    return run.checkpoint()[which]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_is_a_plain_folder(world, tmp_path):
    run = vl.pretrain("fwm-hw-ld", world, runs=tmp_path, **QUICK)
    assert run.path == tmp_path / "fwm-hw-ld-synthetic-smoke-s0"
    assert {p.name for p in run.path.iterdir()} == {"recipe.txt", "config.json", "metrics.jsonl", "last.pt", "report.json"}
    assert vl.load_run(run.path).recipe == vl.recipe("fwm-hw-ld")
    table = run.metrics()
    assert list(table["step"]) == [0, 1, 2, 3]
    assert set(vl.recipe("fwm-hw-ld").objective.names) <= set(table.columns)
    assert (table[["loss", "grad_norm", "std", "clips_per_s"]] > 0).all().all()
    assert run.steps_done == 4


def test_same_seed_same_weights_other_seed_others(world, tmp_path):
    a, b, c = (vl.pretrain("baseline", world, seed=s, out=tmp_path / n, **QUICK) for n, s in (("a", 0), ("b", 0), ("c", 1)))
    assert same(weights(a), weights(b))
    assert not same(weights(a), weights(c))


def test_seeds_pair_recipes(world, tmp_path):
    """The same seed starts every recipe from the same encoder."""
    runs = [vl.pretrain(name, world, runs=tmp_path, **QUICK) for name in ("baseline", "ld")]
    first, second = (run.encoder("initial").state_dict() for run in runs)
    assert same(first, second)
    assert not same(first, runs[0].encoder("student").state_dict())


def test_training_lowers_the_loss(world, tmp_path):
    run = vl.pretrain("baseline", world, out=tmp_path / "a", steps=30, lr=1e-3, batch=8, **QUICK)
    loss = run.metrics()["loss"]
    assert loss.tail(5).mean() < 0.9 * loss.head(5).mean()


def test_a_term_from_a_notebook_trains(world, tmp_path):
    class Quiet(Term):
        def error(self, view, head):
            return view.z.abs().mean(-1)

    run = vl.pretrain(JEPA() + 0.1 * Quiet(), world, runs=tmp_path, **QUICK)
    assert run.name.startswith("custom-")
    assert "Quiet" in run.metrics()
    assert (run.path / "recipe.txt").read_text() == "Recipe(JEPA() + 0.1*Quiet())\n"


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_encoder_of_a_run_is_the_trained_one(world, tmp_path, which):
    run = vl.pretrain("baseline", world, runs=tmp_path, **QUICK)
    encoder = run.encoder(which)
    saved = {k.removeprefix(f"{which}."): v for k, v in weights(run).items() if k.startswith(f"{which}.")}
    assert same(encoder.state_dict(), saved)
    assert not any(p.requires_grad for p in encoder.parameters())


def test_an_edited_term_is_another_run(world, tmp_path):
    """Its repr is the same, its source is not."""

    def once():
        class Mine(Term):
            def error(self, view, head):
                return view.z.abs().mean(-1)

        return Mine()

    def twice():
        class Mine(Term):
            def error(self, view, head):
                return 2 * view.z.abs().mean(-1)

        return Mine()

    assert repr(once()) == repr(twice())
    vl.pretrain(JEPA() + once(), world, out=tmp_path / "a", **QUICK)
    with pytest.raises(ValueError, match="own_terms"):
        vl.pretrain(JEPA() + twice(), world, out=tmp_path / "a", **QUICK)


def test_a_finished_run_is_not_run_again(world, tmp_path):
    run = vl.pretrain("baseline", world, runs=tmp_path, **QUICK)
    before = (run.path / "last.pt").stat().st_mtime_ns
    vl.pretrain("baseline", world, runs=tmp_path, **QUICK)
    assert (run.path / "last.pt").stat().st_mtime_ns == before


SCRIPT = """
import sys, torch, vjepa_lab as vl
torch.set_num_threads(1)
vl.pretrain("fwm-hw-ld", vl.data.open("synthetic", frames=8, size=32, n=24), "smoke", out=sys.argv[1], steps=40, batch=4, save_every=3,
            log_every=1, progress=False)
"""


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    """kill -9 in mid-run, then the same command: the weights come out bit-equal, and no step is logged twice."""
    command = [sys.executable, "-c", SCRIPT]
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = subprocess.Popen([*command, cut])
    deadline = time.time() + 120
    while not (cut / "last.pt").exists():
        assert process.poll() is None and time.time() < deadline, "the run ended or hung before its first checkpoint"
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (cut / "report.json").exists(), "the run was over before it could be killed"
    subprocess.run([*command, cut], check=True)
    subprocess.run([*command, whole], check=True)
    cut, whole = vl.load_run(cut), vl.load_run(whole)
    for part in ("model", "loss"):
        assert same(weights(cut, part), weights(whole, part))
    assert list(cut.metrics()["step"]) == list(range(40))
    assert json.loads((cut.path / "report.json").read_text())["resumed_at"] > 0
    drop = ["clips_per_s"]
    assert cut.metrics().drop(columns=drop).equals(whole.metrics().drop(columns=drop))


def test_interrupt_saves_and_says_how_to_go_on(world, tmp_path, capsys, monkeypatch):
    step = train.Trainer.step

    def interrupted(self, number, clip, log=False):
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number, clip, log)

    monkeypatch.setattr(train.Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vl.pretrain("baseline", world, out=tmp_path / "a", **QUICK)
    assert "goes on from the last checkpoint" in capsys.readouterr().out
    monkeypatch.undo()
    cut = vl.pretrain("baseline", world, out=tmp_path / "a", **QUICK)
    assert same(weights(cut), weights(vl.pretrain("baseline", world, out=tmp_path / "b", **QUICK)))


class Broken(Term):
    def error(self, view, head):
        return view.z.mean(-1) / 0.0


def test_a_loss_that_breaks_names_its_term(world, tmp_path):
    with pytest.raises(FloatingPointError, match=r"Broken became .* at step 0"):
        vl.pretrain(JEPA() + Broken(), world, runs=tmp_path, **QUICK)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "fwm-hw-l"}, "fwm-hw-ld"),
        ({"preset": "mikro"}, "micro"),
        ({"stepz": 3}, "steps"),
        ({"device": "cuda:7"}, "not available"),
    ],
)
def test_bad_arguments_are_refused_by_name(world, tmp_path, arguments, message):
    arguments = {"recipe": "baseline", "data": world, "runs": tmp_path} | QUICK | arguments
    with pytest.raises(ValueError, match=message):
        vl.pretrain(**arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_another_run_is_refused(world, tmp_path):
    vl.pretrain("baseline", world, out=tmp_path / "a", **QUICK)
    with pytest.raises(ValueError, match=r"holds another run .*seed: 0 there, 1 asked"):
        vl.pretrain("baseline", world, seed=1, out=tmp_path / "a", **QUICK)
