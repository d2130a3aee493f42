"""Whatever ends a training, the same call goes on: kills, signals, damaged files, full disks, losses that break, folders in use."""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

import vjepa_lab as vl
from vjepa_lab import files, train
from vjepa_lab.__main__ import main
from vjepa_lab.data import synthetic
from vjepa_lab.objective import Term
from vjepa_lab.terms import JEPA
from vjepa_lab.train import resume
from vjepa_lab.training import checkpoint, locks
from vjepa_lab.training.health import FiniteWatch, NotFinite
from vjepa_lab.training.logbook import TIMING

QUICK = {"preset": "smoke", "progress": False, "log_every": 1, "bf16": False}


@pytest.fixture(scope="module")
def world():
    """A little of the synthetic world, in memory."""
    assert vl.pretrain  # loaded here, not in every forked process
    return vl.data.open("synthetic", frames=8, size=32, n=24, cache="memory")


def forked(work) -> int:
    """A process that does some work and exits with its result (0 for None), 128 + signal if it was interrupted."""
    if pid := os.fork():
        return pid
    code = 70
    try:
        torch.set_num_threads(1)  # the parent's other threads do not exist here
        code = work() or 0
    except KeyboardInterrupt as error:
        code = 128 + error.signal
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        sys.__stderr__.flush()
    finally:
        os._exit(code)


def ended(pid: int, patience_s: float = 120) -> int:
    """Exit status of a forked process; minus the signal that killed it."""
    if (status := ended_within(pid, patience_s)) is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise TimeoutError(f"the process did not end in {patience_s} s")
    return status


def ended_within(pid: int, seconds: float) -> int | None:
    """The exit status, or None if the process is still there after so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (done := os.waitpid(pid, os.WNOHANG))[0]:
            return os.waitstatus_to_exitcode(done[1])
        time.sleep(0.002)
    return None


def wait_for(path: Path, pid: int) -> None:
    deadline = time.time() + 120
    while not path.exists():
        assert psutil.pid_exists(pid) and time.time() < deadline, f"no {path.name}"
        time.sleep(0.005)


def same(a, b) -> bool:
    """Whether two runs' weights and heads are bit-equal."""
    a, b = a.checkpoint(), b.checkpoint()
    return checkpoint.checksum((a["model"], a["loss"])) == checkpoint.checksum((b["model"], b["loss"]))


class Noisy(Term):
    """Draws from the global generator."""

    def error(self, view, head):
        return (view.z + torch.randn_like(view.z)).square().mean(-1)


# -------------------------------------------------------------------------------------------------------------------------------- kills


def survives(world, folder: Path, kills: int, seed: int, **how) -> None:
    """Start, kill at a random moment, start again ... as often as asked; whatever comes to its end equals what was never killed."""
    draw, steps = random.Random(seed), 12
    recipe = vl.recipe("fwm-hw-ld").objective + 0.1 * Noisy()
    how = QUICK | {"steps": steps, "save_every": 1, "batch": 4} | how

    def work(out):
        return lambda: vl.pretrain(recipe, world, out=out, **how) and 0

    usual = []
    for name in ("warm", "whole"):
        began = time.monotonic()
        assert ended(forked(work(folder / name))) == 0
        usual.append(time.monotonic() - began)
    whole, done = vl.load_run(folder / "whole"), 0
    while True:
        cut = folder / f"cut-{done}"
        while not (cut / "report.json").exists():
            pid = forked(work(cut))
            if done >= kills:
                assert ended(pid) == 0
            elif (status := ended_within(pid, draw.uniform(0, 0.8 * min(usual)))) is None:
                target = draw.choice([pid, *(child.pid for child in psutil.Process(pid).children())])  # the caller, or one that it started
                with suppress(ProcessLookupError):
                    os.kill(target, signal.SIGKILL)
                status = ended(pid)
                assert status == (-signal.SIGKILL if target == pid else 70) or status == 0
                done += status != 0
            else:
                assert status == 0
        run = vl.load_run(cut)
        assert same(run, whole)
        assert list(run.metrics()["step"]) == list(range(steps)), "no step is logged twice, none is missing"
        timeless = [table.drop(columns=[name for name in TIMING if name in table]) for table in (run.metrics(), whole.metrics())]
        assert timeless[0].equals(timeless[1])
        shutil.rmtree(cut)
        if done >= kills:
            return


def test_killed_at_random_moments(world, tmp_path):
    """kill -9, then the same call: bit-equal to what was never interrupted."""
    survives(world, tmp_path, kills=4, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("devices", [1, 2])
def test_killed_fifty_times(world, tmp_path, devices):
    survives(world, tmp_path, kills=50, seed=devices, devices=devices)


# ------------------------------------------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_says_how_to_go_on(world, tmp_path, number):
    out, steps = tmp_path / "cut", 40

    def work():
        vl.pretrain("baseline", world, out=out, steps=steps, **QUICK | {"save_every": 1000})

    pid = forked(work)
    wait_for(out / "metrics.jsonl", pid)
    time.sleep(0.1)
    os.kill(pid, number)
    assert ended(pid) == 128 + number
    run = vl.load_run(out)
    stopped = run.steps_done
    assert 0 < stopped < steps and not (out / "lock").exists()
    assert ended(forked(work)) == 0
    if number == signal.SIGTERM:
        assert ended(forked(lambda: vl.pretrain("baseline", world, out=tmp_path / "b", steps=steps, **QUICK) and 0)) == 0
        assert same(run, vl.load_run(tmp_path / "b"))
    assert _resumed(out) == stopped


def _resumed(out: Path) -> int:
    return json.loads((out / "report.json").read_text())["resumed_at"]


def test_the_command_line_exits_with_the_signal(tmp_path, capfd):
    words = [
        "pretrain",
        "baseline",
        "--preset",
        "smoke",
        "--steps",
        "400",
        "--no-progress",
        "--log-every",
        "1",
        "--out",
        str(tmp_path / "a"),
    ]
    pid = forked(lambda: main(words))
    wait_for(tmp_path / "a" / "metrics.jsonl", pid)
    time.sleep(0.1)
    os.kill(pid, signal.SIGTERM)
    assert ended(pid) == 128 + signal.SIGTERM
    assert "the same call goes on from the last checkpoint in" in capfd.readouterr().err


@pytest.mark.slow
def test_a_signal_stops_all_processes_at_one_step(world, tmp_path):
    out = tmp_path / "a"
    pid = forked(lambda: vl.pretrain("baseline", world, out=out, steps=400, devices=2, **QUICK) and 0)
    wait_for(out / "metrics.jsonl", pid)
    time.sleep(0.2)
    workers = psutil.Process(pid).children()
    assert len(workers) == 2
    os.kill(pid, signal.SIGTERM)
    assert ended(pid) == 128 + signal.SIGTERM
    psutil.wait_procs(workers, timeout=10)
    assert not any(worker.is_running() for worker in workers)
    run = vl.load_run(out)
    assert 0 < run.steps_done < 400 and list(run.metrics()["step"])[-1] == run.steps_done - 1


# -------------------------------------------------------------------------------------------------------------------------- checkpoints


def flipped(path: Path) -> None:
    """One byte of the largest tensor changed; the zip around it stays whole."""
    state = torch.load(path, weights_only=True)
    state["model"]["student.patch_embed.weight"][0, 0] += 1
    torch.save(state, path)


DAMAGE = {
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "no checkpoint": lambda path: path.write_text("hello"),
    "other content": flipped,
    "gone": Path.unlink,
}


def test_resumed_from_its_folder_it_keeps_its_habits(tmp_path):
    class Stopped(Exception):
        pass

    def stops(record):
        if record["step"] == 5:
            raise Stopped

    how = {"preset": "smoke", "steps": 8, "progress": False, "bf16": False, "log_every": 1, "save_every": 2, "keep": 3}
    with pytest.raises(Stopped):
        vl.pretrain("ld", "synthetic", out=tmp_path / "a", callback=stops, **how)
    run = resume(tmp_path / "a", progress=False)
    whole = vl.pretrain("ld", "synthetic", out=tmp_path / "b", **how)
    assert same(run, whole) and list(run.metrics()["step"]) == list(range(8))
    assert {path.name for path in run.path.glob("last*.pt")} == {path.name for path in whole.path.glob("last*.pt")}
    assert len(list(run.path.glob("last*.pt"))) == 3


def begun(source, out, **how):
    """A run that was stopped after its second step."""

    def stops(run, trainer, step):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vl.pretrain("baseline", source, out=out, probe=stops, **QUICK | how)
    return out


def test_resumed_from_its_folder_it_reads_the_source_that_it_was_given(tmp_path):
    """With the options that it was opened with, of which neither files nor labels tell."""
    source = vl.data.open("synthetic", frames=8, size=32, n=24, noise=60.0, sizes=(0.3, 0.5))
    out = begun(source, tmp_path / "a")
    assert json.loads((out / "config.json").read_text())["data_options"] == {"n": 24, "noise": 60.0, "sizes": [0.3, 0.5]}
    assert same(resume(out, progress=False), vl.pretrain("baseline", source, out=tmp_path / "b", **QUICK))
    calm = vl.data.open("synthetic", frames=8, size=32, n=24, sizes=(0.3, 0.5))
    with pytest.raises(ValueError, match=r"holds another run \(data_options\.noise: 60\.0 there, None asked\)"):
        vl.pretrain("baseline", calm, out=out, **QUICK)


def test_files_that_were_opened_before_are_resumed_with_their_own_crops(tmp_path):
    """Given by name they are cropped by the run's seed; a Source has its own."""
    root = vl.data.export(tmp_path / "clips", clips={"train": 6, "test": 2}, size=32, frames=12, progress=False)
    source = vl.data.open(root, frames=8, size=32, flips=0.0)
    out = begun(source, tmp_path / "a", seed=3)
    assert json.loads((out / "config.json").read_text())["data_options"] == {"flips": 0.0, "seed": 0}
    assert same(resume(out, progress=False), vl.pretrain("baseline", source, seed=3, out=tmp_path / "b", **QUICK))


def test_where_a_nodes_cache_lies_makes_no_other_run(tmp_path):
    """Clips are the same from any folder of decoded ones; resumed from its folder, a run uses the one that it had last."""
    root = vl.data.export(tmp_path / "clips", clips={"train": 6, "test": 2}, size=32, frames=12, progress=False)
    there, here = (vl.data.open(root, frames=8, size=32, cache=tmp_path / name) for name in ("there", "here"))
    out = begun(there, tmp_path / "a")
    assert json.loads((out / "config.json").read_text())["data_options"] == {"cache": True}
    assert vl.pretrain("baseline", here, out=out, **QUICK | {"steps": 4}).steps_done == 4
    again = begun(there, tmp_path / "b")
    assert same(resume(again, progress=False), vl.load_run(out))
    assert json.loads((again / "config.json").read_text())["sessions"][-1]["cache"] == str(tmp_path / "there")
    with pytest.raises(ValueError, match=r"holds another run \(data_options\.cache: True there, None asked\)"):
        vl.pretrain("baseline", vl.data.open(root, frames=8, size=32), out=out, **QUICK)


def test_a_source_that_no_name_opens_is_not_resumed_from_its_folder(world, tmp_path):
    mixed = vl.data.Mixture([world, vl.data.open("synthetic", frames=8, size=32, n=8, seed=1)], [1, 1])
    out = begun(mixed, tmp_path / "a")
    with pytest.raises(ValueError, match=r"was given a Source that the name '.*' does not open again: repeat the call .* same source"):
        resume(out, progress=False)
    assert vl.pretrain("baseline", mixed, out=out, **QUICK).steps_done == 4


def test_a_folder_of_an_older_version_which_says_no_options_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setitem(synthetic.CLIPS, "train", 24)
    out = begun("synthetic", tmp_path / "a")
    config = json.loads((out / "config.json").read_text())
    assert config.pop("data_options") == {}
    (out / "config.json").write_text(json.dumps(config))
    assert resume(out, progress=False).steps_done == 4 and "data_options" not in json.loads((out / "config.json").read_text())


def test_what_is_no_pretraining_is_not_resumed(tmp_path):
    for text, why in (("{", r"config.json: damaged, no JSON"), ('{"plan": {}}', "holds no pretraining: its config.json lacks own_terms")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=why):
            resume(tmp_path)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(world, tmp_path, damage):
    whole = vl.pretrain("baseline", world, out=tmp_path / "a", save_every=1, **QUICK)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "report.json").unlink()
    assert checkpoint.load(tmp_path / "b" / "last-1.pt")["step"] == 3
    DAMAGE[damage](tmp_path / "b" / "last.pt")
    if damage == "gone":
        again = vl.pretrain("baseline", world, out=tmp_path / "b", save_every=1, **QUICK)
    else:
        with pytest.warns(UserWarning, match=r"last.pt: damaged.*going back to the checkpoint before it"):
            again = vl.pretrain("baseline", world, out=tmp_path / "b", save_every=1, **QUICK)
    assert same(again, whole) and _resumed(again.path) == 3


def test_when_every_checkpoint_is_damaged_nothing_is_overwritten(world, tmp_path):
    run = vl.pretrain("baseline", world, out=tmp_path / "a", save_every=1, **QUICK)
    (run.path / "report.json").unlink()
    for name in ("last.pt", "last-1.pt"):
        os.truncate(run.path / name, 100)
    with pytest.warns(UserWarning), pytest.raises(checkpoint.DamagedCheckpoint, match="no older one is readable"):
        vl.pretrain("baseline", world, out=tmp_path / "a", **QUICK)
    assert (run.path / "last.pt").stat().st_size == 100


def test_older_checkpoints_stay_as_asked(world, tmp_path):
    run = vl.pretrain("baseline", world, out=tmp_path / "a", save_every=1, keep=3, **QUICK)
    assert [checkpoint.load(path)["step"] for path in checkpoint.kept(run.path / "last.pt", 3)] == [4, 3, 2]
    assert sorted(path.name for path in run.path.glob("*.pt")) == ["last-1.pt", "last-2.pt", "last.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save({"step": 1, "model": {"w": torch.ones(1000)}}, path, keep=2)
    monkeypatch.setattr(files.uuid, "uuid4", lambda: SimpleNamespace(hex="0" * 32))
    (tmp_path / f"last.pt.{os.getpid()}-00000000.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"last.pt: the checkpoint cannot be written \(No space left on device\); the one before is intact"):
        checkpoint.save({"step": 2, "model": {"w": torch.zeros(1000)}}, path, keep=2)
    assert checkpoint.load(path)["step"] == 1 and not (tmp_path / "last-1.pt").exists()
    checkpoint.save({"step": 2, "model": {"w": torch.zeros(1000)}}, path, keep=2)
    assert checkpoint.load(path)["step"] == 2


def test_a_disk_that_is_full_only_when_it_is_flushed_moves_nothing(tmp_path, monkeypatch):
    """As network disks and delayed allocation have it: the bytes go to memory first, the error comes with fsync."""
    path = tmp_path / "last.pt"
    for step in (1, 2):
        checkpoint.save({"step": step}, path, keep=2)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="the one before is intact"):
        checkpoint.save({"step": 3}, path, keep=2)
    assert [checkpoint.load(name)["step"] for name in checkpoint.kept(path, 2)] == [2, 1]


def test_of_two_writers_of_a_file_each_puts_a_whole_one_in_place(tmp_path):
    path = tmp_path / "x.json"
    with files.replacing(path) as first:
        first.write_text("A" * 10)
        with pytest.raises(KeyboardInterrupt), files.replacing(path) as second:
            second.write_text("B")
            raise KeyboardInterrupt
        with files.replacing(path) as second:
            second.write_text("BB")
        assert path.read_text() == "BB"
    assert path.read_text() == "A" * 10 and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_goes_in_time(tmp_path):
    def dies():
        with files.replacing(tmp_path / "[x].json") as part:
            part.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert ended(forked(dies)) == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    write = lambda name: files.replacing(tmp_path / name)
    with write("[x].json") as part:
        part.write_text("whole")
    assert left.exists()  # its writer may be at it
    os.utime(left, (time.time() - 2 * files.LEFT_S,) * 2)
    with write("x.json") as part:
        part.write_text("another file")
    assert left.exists()
    with write("[x].json") as part:
        part.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["[x].json", "x.json"]


# --------------------------------------------------------------------------------------------------------------- numbers that break


class Broken(Term):
    def error(self, view, head):
        return view.z.mean(-1) / (0.0 if view.step == 2 else 1.0)


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_loss_that_breaks_names_its_term_and_keeps_its_batch(world, tmp_path, log_every):
    how = QUICK | {"log_every": log_every}
    with pytest.raises(NotFinite, match=r"Broken became .* at step 2.*failed-step-2.pt") as caught:
        vl.pretrain(JEPA() + Broken(), world, runs=tmp_path, variant="a", **how)
    assert isinstance(caught.value, FloatingPointError)
    (path,) = tmp_path.glob("*/failed-step-2.pt")
    kept = torch.load(path, weights_only=True)
    (batch,) = (b for step, b in zip(range(3), vl.data.loader(world, 4, seed=0), strict=False) if step == 2)
    assert torch.equal(kept["clips"][0], batch.clip) and kept["seed"] == 0 and kept["recipe"] == "Recipe(JEPA() + Broken())"
    assert "Broken" in kept["terms"] and all(x.isfinite().all() for x in kept["model"].values())


class Cusp(Term):
    """A finite loss whose gradient is not, at step 2."""

    def error(self, view, head):
        return (view.z[..., 0] * (0.0 if view.step == 2 else 1.0)).abs().sqrt()


def test_an_interruption_does_not_save_weights_that_broke(world, tmp_path):
    """After a step that nobody logged, whose loss was finite and whose gradient was not."""

    def stop(run, trainer, step):
        if step == 3:
            raise KeyboardInterrupt

    def go(**how):
        return vl.pretrain(JEPA() + Cusp(), world, out=tmp_path / "a", **QUICK | {"log_every": 100, "save_every": 2, "steps": 8} | how)

    with pytest.raises(KeyboardInterrupt, match="not saved after step 3, its weights are not finite"):
        go(probe=stop)
    assert checkpoint.load(tmp_path / "a" / "last.pt")["step"] == 2
    with pytest.raises(NotFinite, match="at step 3"):
        go()
    assert checkpoint.load(tmp_path / "a" / "last.pt")["step"] == 2


def test_a_gradient_that_breaks_is_named():
    watch = FiniteWatch(torch.device("cpu"))
    watch.send(0, ("the loss", "JEPA"), torch.tensor([1.0, 1.0]), None)
    with pytest.raises(NotFinite, match="JEPA became inf at step 1"):
        watch.send(1, ("the loss", "JEPA"), torch.tensor([1.0, torch.inf]), None)


# -------------------------------------------------------------------------------------------------------------------------------- locks


def test_a_folder_has_one_writer(world, tmp_path):
    out = tmp_path / "a"
    pid = forked(lambda: vl.pretrain("baseline", world, out=out, steps=4000, **QUICK) and 0)
    try:
        wait_for(out / "metrics.jsonl", pid)
        with (
            pytest.raises(locks.Locked, match=rf"being written by process {pid} on .*last sign of life \d+ s ago"),
            locks.hold(out, patience_s=0),
        ):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL and (out / "lock").exists()
    with locks.hold(out, patience_s=0):
        assert json.loads((out / "lock").read_text())["pid"] == os.getpid(), "a dead owner's lock is taken over at once"
    assert not (out / "lock").exists()


def test_a_lock_of_another_machine_is_respected_and_named(tmp_path):
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "node7", "world": "", "pid": 1, "born": "", "since": "2026-01-01 00:00:00", "token": "x"}))
    os.utime(path, (time.time() - 500,) * 2)
    with (
        pytest.raises(locks.Locked, match=r"process 1 on node7 .*last sign of life 50\d s ago.*remove .*lock"),
        locks.hold(tmp_path, patience_s=0),
    ):
        pass
    assert path.exists()


def test_an_owner_from_before_a_restart_of_this_machine_is_dead(tmp_path, monkeypatch):
    """Its boot_id is another one, the installation's number the same; a lock that does not tell that number is respected."""
    monkeypatch.setattr(locks, "_world", lambda: "second pid:[1]")
    monkeypatch.setattr(locks, "_machine", lambda: "m")
    known = vars(locks.Owner.me()) | {"pid": os.getpid(), "world": "first pid:[1]"}
    path = tmp_path / "lock"
    others = [{"machine": "n"}, {"machine": ""}, {"world": "second pid:[2]"}, {"world": "pid:[1]"}, {"host": "node7"}]
    for change in others:
        path.write_text(json.dumps(known | change))
        assert locks.holder(tmp_path), change
    path.write_text(json.dumps({name: value for name, value in known.items() if name != "machine"}))
    assert locks.holder(tmp_path)[0].pid == os.getpid(), "as it was written without that number"
    path.write_text(json.dumps(known))
    with locks.hold(tmp_path, patience_s=0):
        pass


def test_a_number_given_to_another_process_does_not_keep_a_lock(tmp_path):
    with locks.hold(tmp_path) as held:
        known = json.loads(held.path.read_text())
    held.path.write_text(json.dumps(known | {"born": "1"}))  # this very process's number, but not this process
    with locks.hold(tmp_path, patience_s=0):
        pass


def test_killed_while_it_takes_the_lock(tmp_path, monkeypatch):
    """Whatever a kill at that moment leaves does not keep the next one waiting, and goes in time."""

    def dies(_):
        os.kill(os.getpid(), signal.SIGKILL)

    def takes():
        monkeypatch.setattr(locks.os, "fsync", dies)
        with locks.hold(tmp_path):
            pass

    assert ended(forked(takes)) == -signal.SIGKILL
    (draft,) = tmp_path.iterdir()
    with locks.hold(tmp_path, patience_s=0):
        assert draft.exists()  # it might be another one's, who is just writing it
    os.utime(draft, (0, time.time() - 2 * locks.UNFINISHED_S))
    with locks.hold(tmp_path, patience_s=0):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lost", [False, True])
def test_locks_without_links_or_their_answers(tmp_path, monkeypatch, lost):
    """A file system that knows no links; one that makes a link and then says that it could not."""
    link = os.link

    def poor(source, target):
        if lost:
            link(source, target)
            raise FileExistsError(17, "File exists")
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(locks.os, "link", poor)
    with locks.hold(tmp_path) as held:
        assert locks.holder(tmp_path)[0].pid == os.getpid() and [held.path] == list(tmp_path.iterdir())
        with pytest.raises(locks.Locked, match="being written by process"), locks.hold(tmp_path, patience_s=0):
            pass
    assert not list(tmp_path.iterdir())


def test_a_lock_cut_short_while_it_was_written_is_waited_for_and_then_void(tmp_path):
    path = tmp_path / "lock"
    path.touch()
    with pytest.raises(locks.Locked, match="another process"), locks.hold(tmp_path, patience_s=0):
        pass
    os.utime(path, (time.time() - 100,) * 2)
    with locks.hold(tmp_path, patience_s=0):
        pass


def test_an_owner_shows_that_it_lives(tmp_path):
    with locks.hold(tmp_path, beat_s=0.05) as held:
        os.utime(held.path, (0, 0))
        deadline = time.time() + 20
        while held.path.stat().st_mtime == 0:
            assert time.time() < deadline
            time.sleep(0.02)


def test_an_owner_that_was_suspended_for_too_long_writes_nothing_more(tmp_path):
    """Another has taken over meanwhile: it is named, and its lock is not kept alive by the one that wakes."""
    wakes, said = tmp_path / "wakes", tmp_path / "said"

    def work():
        with locks.hold(tmp_path, beat_s=0.1) as held:
            held.check()
            said.touch()
            while not wakes.exists():
                time.sleep(0.01)
            time.sleep(0.5)  # several beats
            try:
                held.check()
            except locks.Locked as error:
                said.write_text(str(error))

    pid = forked(work)
    wait_for(said, pid)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(1.2)
    with locks.hold(tmp_path, void_after_s=1, beat_s=1000) as ours:
        os.utime(ours.path, (0, 0))
        wakes.touch()
        os.kill(pid, signal.SIGCONT)
        assert ended(pid) == 0
        assert ours.path.stat().st_mtime == 0 and ours.look(), "neither kept alive nor removed by the other"
    assert f"it was taken over by process {os.getpid()} on" in said.read_text()


@pytest.mark.parametrize("when", [2, 3])
def test_training_that_lost_its_folder_saves_and_logs_nothing_more(world, tmp_path, when):
    """Before a step that is logged, and before the last, which is saved, too."""
    out = tmp_path / "a"

    def lose(run, trainer, step):
        if step == when:
            owner = json.loads((out / "lock").read_text()) | {"host": "node7", "pid": 1, "token": "another"}
            (out / "lock").write_text(json.dumps(owner))

    with pytest.raises(locks.Locked, match=r"no longer this process's to write: it was taken over by process 1 on node7"):
        vl.pretrain("baseline", world, out=out, probe=lose, **QUICK | {"save_every": 1})
    run = vl.load_run(out)
    assert run.steps_done == when and list(run.metrics()["step"]) == list(range(when))
    assert (out / "lock").exists() and not (out / "report.json").exists(), "the lock is the other's"


def test_a_finished_run_without_weights_says_how_to_have_them_again(world, tmp_path):
    whole = vl.pretrain("baseline", world, out=tmp_path / "a", **QUICK)
    cut = vl.pretrain("baseline", world, out=tmp_path / "b", **QUICK)
    for path in cut.path.glob("last*.pt"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"its weights were deleted; remove .*report.json, then run pretrain with"):
        cut.encoder()
    (cut.path / "report.json").unlink()
    assert same(vl.pretrain("baseline", world, out=tmp_path / "b", **QUICK), whole)


@pytest.mark.parametrize("recipe", ["baseline", "random-init"])
def test_resumed_from_its_folder_it_takes_as_many_steps_as_it_was_given(world, tmp_path, monkeypatch, recipe):
    """Also where the recipe evaluates the encoder as it was before training, which has none by itself; and numpy's numbers are numbers."""

    class Stopped(Exception):
        pass

    def stops(record):
        if record["step"] == 2:
            raise Stopped

    monkeypatch.setattr(train, "training_source", lambda *_: world)
    floats = {name: np.float32(value) for name, value in {"lr": 1e-3, "start_lr": 1e-4, "ema": 0.5, "clip": 1}.items()}
    wholes = {name: np.int64(value) for name, value in {"seed": 1, "steps": 5, "log_every": 1, "save_every": 1, "keep": 2}.items()}
    how = {"preset": "smoke", "bf16": np.bool_(False), "accumulate": np.int64(1), "workers": np.int64(0), "progress": False}
    for name in "ab":
        with pytest.raises(Stopped):
            vl.pretrain(recipe, "synthetic", out=tmp_path / name, callback=stops, **how | floats | wholes)
    resumed = resume(tmp_path / "a", progress=False)
    again = vl.pretrain(recipe, "synthetic", out=tmp_path / "b", **how | floats | wholes)
    assert resumed.steps_done == again.steps_done == 5 and same(resumed, again)
    config = again.config
    assert config["preset"]["lr"] == float(np.float32(1e-3)) and config["clip"] == 1.0 and config["bf16"] is False
    assert [config["sessions"][0][name] for name in ("log_every", "save_every", "keep", "accumulate", "workers")] == [1, 1, 2, 1, 0]
