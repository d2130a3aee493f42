"""Pretraining: runs on disk, exact resume, errors that name what is wrong."""

import json
import random
import subprocess
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import vjepa_lab as vl
from vjepa_lab import train
from vjepa_lab.data import memory, synthetic
from vjepa_lab.files import differing
from vjepa_lab.modifiers import Hard
from vjepa_lab.objective import ErrorMap, Objective, Recipe, Term
from vjepa_lab.schedules import Ramp
from vjepa_lab.terms import JEPA, Dynamics, Kinematic
from vjepa_lab.training import health, provenance
from vjepa_lab.training.health import spread
from vjepa_lab.training.logbook import Meter
from vjepa_lab.training.processes import ALONE
from vjepa_lab.training.trainer import Trainer, own_randomness, seed_step

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
    assert vl.load_run(run.path).recipe == vl.recipe("fwm-hw-ld") and vl.load_run(run) is run
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


def test_only_terms_count_as_terms_of_ones_own():
    class Named(Term):
        term: str = "a field of this name need not hold a term"

        def error(self, view, head):
            return view.z.abs().mean(-1)

    assert set(train.own_terms(JEPA() + Hard(Named()))) == {"Named"}


def test_a_finished_run_is_not_run_again(world, tmp_path):
    run = vl.pretrain("baseline", world, runs=tmp_path, **QUICK)
    before = (run.path / "last.pt").stat().st_mtime_ns
    vl.pretrain("baseline", world, runs=tmp_path, **QUICK)
    assert (run.path / "last.pt").stat().st_mtime_ns == before


def test_interrupt_saves_and_says_how_to_go_on(world, tmp_path, monkeypatch):
    step = train.Trainer.step

    def interrupted(self, number, clip, log=False):
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number, clip, log)

    monkeypatch.setattr(train.Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt, match="saved after step 3; the same call goes on from the last checkpoint"):
        vl.pretrain("baseline", world, out=tmp_path / "a", **QUICK)
    monkeypatch.undo()
    cut = vl.pretrain("baseline", world, out=tmp_path / "a", **QUICK)
    assert same(weights(cut), weights(vl.pretrain("baseline", world, out=tmp_path / "b", **QUICK)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "fwm-hw-l"}, "fwm-hw-ld"),
        ({"preset": "mikro"}, "micro"),
        ({"stepz": 3}, "steps"),
        ({"device": "cuda:7"}, "not available"),
        ({"device": "gpu"}, "device 'gpu' is not available here; use 'auto' or 'cpu'"),
        ({"accumulate": 3}, "4 clips does not divide over 1 processes x 3"),
        ({"devices": 3}, "4 clips does not divide over 3 processes"),
        ({"devices": 0}, "devices=0: expected a whole number, 1 or more"),
        ({"log_every": 0}, "log_every=0: expected a whole number, 1 or more"),
        ({"save_every": 0.5}, "save_every=0.5: expected a whole number"),
        ({"keep": 0}, "keep=0: expected"),
        ({"seed": -1}, "seed=-1: expected a whole number, 0 or more"),
        ({"clip": 0}, "clip=0: expected a number"),
        ({"steps": "3"}, "steps='3': expected a whole number, 0 or more"),
        ({"batch": 2.0}, "batch=2.0: expected a whole number, 1 or more"),
        ({"stride": 0}, "stride=0: expected"),
        ({"heads": 0}, "heads=0: expected"),
        ({"ema": 1.5}, "ema=1.5: expected a number, 0 or more, 1 at most"),
        ({"lr": float("nan")}, "lr=nan: expected a number, 0 or more"),
        ({"preset": 3}, "unknown preset 3: expected one of smoke"),
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
    with pytest.raises(ValueError, match=r"holds another run \(preset\.steps: \d+ there, 7 asked\); choose another folder"):
        vl.pretrain("baseline", world, out=tmp_path / "a", **QUICK | {"steps": 7})


def test_what_differs_is_told_field_by_field():
    there = {"seed": 0, "preset": {"steps": 4, "lr": 0.1, "old": 1}, "own_terms": {"Mine": "a"}, "regime": {"a": None}}
    assert differing(there, dict(there)) == []
    asked = {"seed": 1, "preset": {"steps": 6, "lr": 0.1, "new": 2}, "own_terms": {}, "regime": {}}
    assert differing(there, asked) == [
        "seed: 0 there, 1 asked",
        "preset.steps: 4 there, 6 asked",
        "preset.old: 1 there, None asked",
        "preset.new: None there, 2 asked",
        "own_terms.Mine: 'a' there, None asked",
        "regime: {'a': None} there, {} asked",
    ]


def test_another_bound_of_the_gradient_is_another_run(world, tmp_path):
    """Even of a run that is finished: else a run without it would be taken for one with it."""
    vl.pretrain("baseline", world, out=tmp_path / "a", **QUICK)
    with pytest.raises(ValueError, match=r"holds another run .*clip: None there, 0\.5 asked"):
        vl.pretrain("baseline", world, clip=0.5, out=tmp_path / "a", **QUICK)


def test_an_out_that_can_be_no_folder_is_named(world, tmp_path):
    (tmp_path / "file").write_text("")
    for out in ("file", "file/below"):
        with pytest.raises(OSError, match=rf"{out}: no folder that can be written \(.*\); choose another with out="):
            vl.pretrain("baseline", world, out=tmp_path / out, **QUICK)


def apart(a, b) -> float:
    """The largest difference between two runs' weights."""
    a, b = weights(a), weights(b)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("recipe", [JEPA() + Hard(JEPA()) + Dynamics(on="dyn"), Recipe(JEPA(), masks=vl.masks.MOTION_GUIDED)])
def test_micro_batches_add_up_to_the_batch(world, tmp_path, recipe):
    """For objectives that are linear in the batch; same clips, same masks."""
    how = QUICK | {"batch": 8, "bf16": False, "steps": 3}
    whole = vl.pretrain(recipe, world, out=tmp_path / "whole", **how)
    parts = vl.pretrain(recipe, world, out=tmp_path / "parts", accumulate=4, **how)
    assert 0 < apart(whole, parts) < 1e-5
    names = ["loss", "grad_norm", "std", "rank", *(recipe.objective.names if isinstance(recipe, Recipe) else [])]
    np.testing.assert_allclose(whole.metrics()[names], parts.metrics()[names], rtol=1e-4)


def trainer_of(recipe, size="smoke", **options) -> Trainer:
    size, recipe = vl.preset(size), vl.recipe(recipe)
    model = train.build(recipe.teacher, recipe.stop_grad, recipe.levels, size, 0)
    return Trainer(recipe, model, vl.Loss(recipe.objective, model.width), size, 0, torch.device("cpu"), **options)


def test_a_step_is_adamws_by_hand(world):
    """Warm-up and cosine; weights of matrices decay, biases and scales do not; then the teacher follows the student as it is by now."""
    size = replace(vl.preset("smoke"), steps=8, warmup=2, lr=1e-2, start_lr=1e-3, final_lr=1e-4, weight_decay=0.5, ema=0.9)
    clips, trainer = torch.stack([world[i].clip for i in range(4)]), trainer_of("baseline", size)
    named = dict(trainer.model.trainable())
    start = lambda tensors: {name: p.detach().double().clone() for name, p in tensors}
    values, teacher, m, v = start(named.items()), start(trainer.model.teacher.named_parameters()), {}, {}
    rates = [1e-3, 5.5e-3, *(1e-4 + (1e-2 - 1e-4) * (1 + np.cos(np.pi * k / 6)) / 2 for k in range(6))]
    for step in range(4):
        assert trainer.step(step, clips, log=True)["lr"] == pytest.approx(rates[step])
        for name, p in named.items():
            g = p.grad.double()
            m[name], v[name] = 0.9 * m.get(name, 0) + 0.1 * g, 0.999 * v.get(name, 0) + 0.001 * g**2
            change = m[name] / (1 - 0.9 ** (step + 1)) / ((v[name] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
            values[name] = values[name] * (1 - rates[step] * 0.5 * (p.ndim > 1)) - rates[step] * change
            torch.testing.assert_close(p.double(), values[name], atol=1e-5, rtol=1e-4, msg=lambda said, name=name: f"{name}: {said}")
        for name, p in trainer.model.teacher.named_parameters():
            teacher[name] = 0.9 * teacher[name] + 0.1 * values[f"student.{name}"]
            torch.testing.assert_close(p.double(), teacher[name], atol=1e-5, rtol=1e-4)


def test_clipping_bounds_the_gradient(world):
    clips = torch.stack([world[i].clip for i in range(4)])
    free, clipped = trainer_of("baseline"), trainer_of("baseline", clip=0.1)
    norms = [t.step(0, clips, log=True)["grad_norm"] for t in (free, clipped)]
    assert norms[0] == norms[1] > 0.1, "the log tells the norm before it is clipped"
    after = [torch.nn.utils.get_total_norm([p.grad for p in t.parameters if p.grad is not None]).item() for t in (free, clipped)]
    assert after == pytest.approx([norms[0], 0.1], rel=1e-3)


def test_videos_and_images_of_one_frame_in_one_batch(world):
    """A term about change is that of the videos alone; JEPA counts each by its number."""
    video, still = (torch.stack([world[i].clip for i in places]) for places in ((0, 1, 2), (3,)))
    part = lambda clip: vl.data.Batch(clip, {}, torch.arange(len(clip)))
    mixed = vl.data.Mixed((part(video), part(still[:, :, :1])))
    trainer = trainer_of(JEPA() + Kinematic())
    found = trainer.step(0, mixed, log=True)["parts"]
    assert found["Kinematic"] == pytest.approx(trainer_of(JEPA() + Kinematic()).step(0, part(video), log=True)["parts"]["Kinematic"])
    with pytest.raises(ValueError, match="images='repeat'"):
        trainer_of("baseline", accumulate=2).step(0, mixed)


def test_crops_that_are_cut_on_the_device(world):
    """A batch of whole pictures trains as the clips that are cut out of it."""
    crop = vl.data.crops.Crop(0, 0, 32, 32, False)
    samples = [world[i] for i in range(4)]
    uncut = vl.data.Uncut(tuple(replace(sample, crop=(crop, 32)) for sample in samples), ())
    cut = torch.stack([sample.clip for sample in samples])
    assert trainer_of("baseline").step(0, uncut, log=True)["loss"] == trainer_of("baseline").step(0, cut, log=True)["loss"]


class Noisy(Term):
    def error(self, view, head):
        noise = torch.randn_like(view.z) + float(np.random.rand()) + random.random()
        return (view.z + noise).square().mean(-1)


def test_what_a_term_draws_is_fixed_by_the_seed_and_costs_the_caller_nothing(world, tmp_path):
    def state():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    runs = []
    for name in "ab":
        torch.manual_seed(len(runs))
        before = state()
        runs.append(vl.pretrain(JEPA() + 0.1 * Noisy(), world, out=tmp_path / name, **QUICK))
        assert state() == before
    assert same(*map(weights, runs))
    with pytest.raises(KeyboardInterrupt), own_randomness(torch.device("cpu")):
        seed_step(0, 0, 0)
        assert state() != before
        raise KeyboardInterrupt
    assert state() == before, "also where it is interrupted"


def test_the_log_says_how_training_is(world, tmp_path):
    run = vl.pretrain(Hard(JEPA()), world, out=tmp_path / "a", tensorboard=True, **QUICK)
    table = run.metrics()
    assert {"lr", "ema", "grad_norm", "std", "rank", "data_wait", "clips_per_s_mean", "peak_gb", "ess Hard(JEPA)"} <= set(table.columns)
    assert table["ess Hard(JEPA)"].between(0, 1, inclusive="right").all() and table["data_wait"].between(0, 1).all()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [e.value for e in written.Scalars("loss")] == pytest.approx(table["loss"].tolist())


def test_a_run_says_where_it_comes_from(world, tmp_path):
    config = vl.pretrain("baseline", world, out=tmp_path / "a", **QUICK).config
    (session,) = config["sessions"]
    assert session["versions"] == config["versions"] and session["versions"]["torch"] == torch.__version__
    assert all(session[name] for name in ("started", "host", "processor", "cores", "threads", "command")) and session["processes"] == 1
    other = vl.data.open("synthetic", frames=8, size=32, n=24, seed=1)
    with pytest.raises(ValueError, match="manifest"):
        vl.pretrain("baseline", other, out=tmp_path / "a", **QUICK)


def test_a_source_of_another_shape_than_the_presets_is_refused(world, tmp_path):
    """It would train another model under the preset's name. Images of one frame are images, also in a mixture."""
    said = r"synthetic gives clips of 8 x 32 x 32 \(frames, rows, columns\), the preset 'micro' is for 8 x 64 x 64: "
    with pytest.raises(ValueError, match=said + "open it with frames=8, size=64, or pass frames=8, size=32 to train on what it gives"):
        vl.pretrain("baseline", world, "micro", out=tmp_path / "a", progress=False)
    short, images = (vl.data.open("synthetic", frames=frames, size=32, n=8) for frames in (4, 1))
    for source in (short, vl.data.Mixture([world, short], [1, 1])):
        with pytest.raises(ValueError, match=r"gives clips of 4 x 32 x 32 .* is for 8 x 32 x 32"):
            vl.pretrain("baseline", source, out=tmp_path / "a", **QUICK)
    assert not list(tmp_path.iterdir())
    for name, source, size in (("b", short, {"frames": 4}), ("c", vl.data.Mixture([world, images], [1, 1]), {})):
        assert vl.pretrain("baseline", source, out=tmp_path / name, **QUICK, **size).steps_done == 4


def test_files_whose_crops_are_cut_on_the_device_have_the_shape_of_what_is_cut(tmp_path):
    pictures = drawn_pictures(tmp_path / "pictures" / "a", [f"{i}.png" for i in range(4)])
    source = vl.data.open(pictures, frames=8, size=32, held_out=0, augment="device")
    assert vl.pretrain("baseline", source, out=tmp_path / "a", **QUICK).steps_done == 4


def drawn_pictures(folder, names):
    from PIL import Image

    folder.mkdir(parents=True)
    for i, name in enumerate(names):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / name)
    return folder.parent


@pytest.mark.parametrize("more", [{"devices": 2}, {"accumulate": 2}])
def test_clips_of_several_shapes_are_shared_by_no_processes_or_micro_batches(world, tmp_path, more):
    """One that has videos would wait for one that has images; it is said before anything is written or started."""
    shape = {"frames": 8, "size": 32, "held_out": 0}
    pictures = drawn_pictures(tmp_path / "pictures" / "a", ["0.png", "1.png", "2.png"])
    stills = vl.data.open(pictures, images="still", **shape)
    mixed = vl.data.Mixture([world, stills], [0.99, 0.01])
    said = r"clips of 8 x 32 x 32 and of 1 x 32 x 32 .*images='repeat', or take one process and accumulate=1"
    for source in (mixed, vl.data.Mixture([mixed, world], [1, 1])):
        with pytest.raises(ValueError, match=said):
            vl.pretrain("baseline", source, out=tmp_path / "a", **QUICK, **more)
    assert not (tmp_path / "a").exists()
    assert vl.pretrain("baseline", mixed, out=tmp_path / "b", **QUICK).steps_done == 4
    for alike in (stills, vl.data.Mixture([world, vl.data.open(pictures, **shape)], [1, 1])):
        train.check_shape(alike, vl.preset("smoke"), world=2, accumulate=2)


def test_a_folder_of_videos_and_images_has_two_shapes(tmp_path):
    folder = drawn_pictures(tmp_path / "both" / "a", ["0.png", "1.png"])
    (folder / "a" / "2.mp4").write_bytes(b"nothing is decoded")
    shape = {"frames": 8, "size": 32, "held_out": 0}
    with pytest.raises(ValueError, match="8 x 32 x 32 and of 1 x 32 x 32"):
        train.check_shape(vl.data.open(folder, images="still", **shape), vl.preset("smoke"), world=2)
    train.check_shape(vl.data.open(folder, **shape), vl.preset("smoke"), world=2)


def test_a_world_that_does_not_fit_in_memory_is_drawn_clip_by_clip(tmp_path, monkeypatch):
    """The same clips, read by workers too."""
    monkeypatch.setitem(synthetic.CLIPS, "train", 24)
    kept = vl.pretrain("baseline", "synthetic", out=tmp_path / "a", **QUICK)
    monkeypatch.setattr(memory, "LIMIT", 2**19)
    with pytest.warns(
        UserWarning, match=r"^synthetic: its 24 clips would take 0\.0 GiB, .* one by one, .*\(workers=N draws ahead\)$"
    ) as said:
        drawn = vl.pretrain("baseline", "synthetic", out=tmp_path / "b", workers=1, **QUICK)
    assert len(said) == 1 and same(weights(drawn), weights(kept)) and drawn.config["manifest"] == kept.config["manifest"]
    with pytest.raises(ValueError, match="allowed"):
        vl.data.Memory(vl.data.open("synthetic", frames=8, size=32))


def test_the_peak_of_memory_is_that_of_this_run(monkeypatch):
    """Not of what the process did on the GPU before it."""
    gpu, done = torch.device("cuda"), []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1e9 if done else 9e9)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", done.append)
    assert Meter(vl.recipe("baseline"), vl.preset("smoke"), gpu).read()["peak_gb"] == 1.0 and done == [gpu]
    Meter(vl.recipe("baseline"), vl.preset("smoke"), torch.device("cpu"))
    assert done == [gpu]


def test_an_edit_anywhere_in_the_package_is_seen(tmp_path, monkeypatch):
    """What trains is the whole package, not only the folder of the module that looks."""
    package = tmp_path / "vjepa_lab"
    (package / "training").mkdir(parents=True)
    for name in ("__init__.py", "model.py", "training/__init__.py", "training/provenance.py"):
        (package / name).write_text("")
    (tmp_path / "README.md").write_text("")
    who = ["-c", "user.name=x", "-c", "user.email=x@x"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "__file__", str(package / "training" / "provenance.py"))
    monkeypatch.setattr(vl, "__file__", str(package / "__init__.py"))
    (tmp_path / "README.md").write_text("no part of what trains")
    clean = provenance.versions()["git"]
    assert clean and "+" not in clean
    (package / "model.py").write_text("edited")
    assert provenance.versions()["git"] == f"{clean}+changes"


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA L40", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA RTX A1000 Laptop GPU", None),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA T400 4GB", None),
    ],
)
def test_a_device_has_its_own_peak_rate_or_none(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert provenance.peak_tflops(torch.device("cuda"), bf16=True) == peak


def test_no_progress_shows_no_bar_at_all(tmp_path, monkeypatch, capsys):
    """Neither while the synthetic world is drawn into memory nor while training."""
    monkeypatch.setitem(synthetic.CLIPS, "train", 24)
    run = vl.pretrain("baseline", "synthetic", out=tmp_path / "a", **QUICK)
    assert capsys.readouterr().err == "" and run.config["clips"] == 24 and run.config["spec"] == "synthetic"
    vl.pretrain("baseline", "synthetic", out=tmp_path / "b", **QUICK | {"progress": True})
    assert "synthetic [train] into memory" in capsys.readouterr().err


def test_spread_tells_collapse_from_variety():
    free = torch.nn.functional.layer_norm(torch.randn(4, 4, 4, 4, 32), (32,))
    std, rank = spread(free, ALONE)
    assert std == pytest.approx(1, abs=0.05) and 25 < rank < 32
    assert spread(free[:1, :1, :1, :1].expand(4, 4, 4, 4, 32), ALONE)[0] == pytest.approx(0, abs=1e-6)
    line = torch.randn(4, 4, 4, 4, 1) * torch.randn(32)
    assert spread(line, ALONE)[1] == pytest.approx(1, abs=1e-6)


def test_the_spread_does_not_depend_on_how_a_batch_is_cut(monkeypatch):
    monkeypatch.setattr(health, "TOKENS", 100)
    h = torch.randn(6, 3, 5, 5, 8)
    whole = health.sampled(h)
    assert 90 <= len(whole) <= 100
    for of in (2, 3, 6):
        assert torch.equal(torch.cat([health.sampled(part, i, of) for i, part in enumerate(h.chunk(of))]), whole)


def test_the_alarm_waits_for_the_warm_up_that_there_is(world, tmp_path):
    """Of a run shorter than twice the preset's warm-up, half."""
    how = QUICK | {"steps": 25, "lr": 3e-3, "batch": 8, "warmup": 60}
    with pytest.warns(UserWarning, match="collapses: the standard deviation of the teacher's tokens is"):
        run = vl.pretrain(Recipe(JEPA(), teacher="online", stop_grad=False), world, out=tmp_path / "a", **how)
    rates = run.metrics()["lr"]
    assert rates.idxmax() == 12 and rates.max() == pytest.approx(3e-3)
    few = {"step": 0, "std": 0.01, "rank": 1.0}
    with warnings.catch_warnings(action="error"):
        health.CollapseAlarm(0).look(few)  # of a single step none warms up: an untrained network has not collapsed


def test_collapse_is_announced_once(world, tmp_path):
    """A target that follows its own gradient collapses; an EMA teacher in the same place does not."""
    how = QUICK | {"steps": 25, "lr": 3e-3, "batch": 8}
    collapsing = {"recipe": Recipe(JEPA(), teacher="online", stop_grad=False), "data": world, "out": tmp_path / "a", **how}

    def stop(run, trainer, step):
        if step == 24:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="collapses: the standard deviation of the teacher's tokens is") as said:
        with pytest.raises(KeyboardInterrupt, match="saved after step 24"):
            vl.pretrain(**collapsing, probe=stop)
        run = vl.pretrain(**collapsing)  # goes on, and does not say it again
    assert len([w for w in said if "collapses" in str(w.message)]) == 1
    assert len(json.loads((run.path / "report.json").read_text())["alarms"]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vl.pretrain(JEPA(), world, out=tmp_path / "b", **how)


class Ungrounded(Term):
    """Of which no entry counts, before a certain step."""

    until: int = 100

    def error(self, view, head):
        return ErrorMap(view.z.square().mean(-1), torch.full(view.z.shape[:-1], float(view.step >= self.until)))


class Hinge(Term):
    def error(self, view, head):
        return (view.z.mean(-1) - 100).relu()


def test_a_term_of_which_nothing_counts_is_named_once_and_changes_nothing(world, tmp_path):
    """The released Spectral row at a small size: it sees the first half of time only, and needs places seen at all times."""
    recipe = vl.recipe("spectral", "released")
    with pytest.warns(UserWarning, match="^Spectral: the weights of the error sum to zero with these masks, sizes and clips") as said:
        run = vl.pretrain(recipe, "synthetic", "micro", steps=3, batch=2, out=tmp_path / "a", progress=False, save_every=1)
    assert len([w for w in said if "sum to zero" in str(w.message)]) == 1 and (run.metrics()["Spectral"] == 0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        without = replace(recipe, objective=Objective(recipe.objective.terms[:-1]))
        bare = vl.pretrain(without, "synthetic", "micro", steps=3, batch=2, out=tmp_path / "b", progress=False)
    assert same(weights(run), weights(bare))


@pytest.mark.parametrize("term", [Hinge(), Ungrounded(until=2), 0 * Ungrounded(), Ramp(0, 1) * Kinematic()])
def test_a_term_that_is_rightly_zero_is_not_named(world, tmp_path, term):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vl.pretrain(JEPA() + term, world, out=tmp_path / "a", **QUICK)


def test_a_run_goes_on_with_the_precision_that_it_was_begun_with(world, tmp_path, monkeypatch):
    def stop(run, trainer, step):
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "fast_bf16", lambda device: False)
    with pytest.raises(KeyboardInterrupt):
        vl.pretrain("baseline", world, out=tmp_path / "a", probe=stop, **QUICK)
    monkeypatch.setattr(train, "fast_bf16", lambda device: True)  # another kind of machine
    run = vl.pretrain("baseline", world, out=tmp_path / "a", **QUICK)
    assert run.config["bf16"] is False and run.steps_done == 4
    with pytest.raises(ValueError, match="bf16: False there, True asked"):
        vl.pretrain("baseline", world, out=tmp_path / "a", bf16=True, **QUICK)


def test_a_log_is_read_by_the_rules_of_results(world, tmp_path):
    """A step that was logged twice counts once, the later line; what a kill cut short at the end is left out, elsewhere it is an error."""
    run = vl.pretrain("kin-l1", world, out=tmp_path / "a", **QUICK)
    log, table = run.path / "metrics.jsonl", run.metrics()
    lines = log.read_text().splitlines()
    again = json.loads(lines[-1]) | {"loss": 7.0}
    log.write_text("\n".join([*lines, json.dumps(again), lines[0][:20]]))
    assert list(run.metrics()["loss"]) == [*table["loss"][:-1], 7.0] and list(run.metrics().columns) == list(table.columns)
    log.write_text("\n".join([lines[0][:20], *lines]))
    with pytest.raises(ValueError, match="line 1 is not valid JSON"):
        run.metrics()
    log.unlink()
    with pytest.raises(FileNotFoundError, match="logged no step yet"):
        run.metrics()


def test_recomputing_activations_changes_nothing_but_memory(world, tmp_path):
    kept, recomputed = (vl.pretrain("fwm-hw-ld", world, out=tmp_path / str(way), checkpoint=way, **QUICK) for way in (False, True))
    assert same(weights(kept), weights(recomputed))
    assert [run.config["sessions"][-1]["checkpoint"] for run in (kept, recomputed)] == [False, True]
