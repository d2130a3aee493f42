"""Benchmarks: they compare like with like, their ratios and exponents are what their names say, and each one runs."""

import ctypes
import json
import multiprocessing
import os
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vjepa_lab import bench, masks, variants
from vjepa_lab.bench import steps
from vjepa_lab.bench.alone import Alone
from vjepa_lab.bench.auxiliaries import Tubes
from vjepa_lab.bench.timing import interleaved, ratio, show
from vjepa_lab.model import VJEPA
from vjepa_lab.options import UserError
from vjepa_lab.presets import PRESETS

SMOKE, CPU = PRESETS["smoke"], torch.device("cpu")
QUICK = {"batch": 4, "repeats": 2, "device": "cpu"}


def test_both_steps_train_alike():
    """The plain step and ours follow the same losses from the same weights; only the optimisers' rounding parts them."""
    size = steps.measured("smoke")
    ours = steps.trainer(variants.recipe("baseline"), size, CPU, bf16=False)
    plain = bench.PlainTrainer(steps.build("ema", True, 1, size, 0, False), size, 0, CPU)
    clip = steps.random_clips(size, 4, CPU)
    for group in (*ours.optimizer.param_groups, *plain.optimizer.param_groups):
        group["lr"], group["weight_decay"] = 1e-3, 0.0
    ours.schedule.step_update = lambda step: None
    for step in range(3):
        torch.testing.assert_close(ours.step(step, clip, log=True)["loss"], plain.step(step, clip), atol=2e-4, rtol=0)


def test_a_step_that_computes_something_else_is_not_timed(monkeypatch):
    loss = bench.PlainTrainer.loss
    monkeypatch.setattr(bench.PlainTrainer, "loss", lambda self, *args: 1.1 * loss(self, *args))
    with pytest.raises(RuntimeError, match="must agree"):
        bench.step("smoke", "fp32", **QUICK)


def test_rows_of_step():
    rows = {row["what"]: row for row in bench.step("smoke", "fp32", variant="ld", checkpoint=True, encoder=False, **QUICK)}
    assert {"plain step", "our step", "recomputed", "ld"} <= set(rows)
    assert rows["our step"]["against"] == "plain step" and rows["ld"]["against"] == "our step" and "ratio" not in rows["plain step"]
    for row in rows.values():
        assert row["q1"] <= row["ms"] <= row["q3"] and row["clips_per_s"] == pytest.approx(4e3 / row["ms"])
        assert 0 < row["of_gemm"] < 1 and row["memory_mb"] > 0
    assert rows["recomputed"]["memory_mb"] < rows["our step"]["memory_mb"]
    assert rows["ld"]["memory_mb"] > rows["our step"]["memory_mb"]


def test_encoders_go_forward_and_backward():
    """Of one size, ours and Hugging Face's: as many operations, and no gradient left for the next turn."""
    flops = []
    for make in (steps.our_encoder, steps.hugging_face):
        run = make("smoke", 4, CPU, False)
        with FlopCounterMode(display=False) as counter:
            run()
        flops.append(counter.get_total_flops())
    assert flops[0] == pytest.approx(flops[1], rel=0.1) and flops[0] > 0


def test_a_contender_runs_by_itself_and_says_so_if_that_dies():
    """In a process of its own, where memory is managed as it would be; nothing of it stays."""
    before = set(multiprocessing.active_children())
    with closing(Alone(partial(steps.plain_step, "smoke", 4, CPU, False), huge_pages=False)) as step:
        step()
        assert step.memory() > 1e6
        (child,) = set(multiprocessing.active_children()) - before
        assert b"THP_MEM_ALLOC_ENABLE=0" in Path(f"/proc/{child.pid}/environ").read_bytes().split(b"\0")
        assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
        child.kill()
        with pytest.raises(RuntimeError, match=r"own process died \(exit code -9\)"):
            step()
    assert set(multiprocessing.active_children()) == before


def test_rows_of_objectives():
    rows = {row["what"]: row for row in bench.objectives("smoke", "fp32", **QUICK)}
    assert list(rows) == ["baseline", "fwm-hw-ld, full", "fwm-hw-ld, visible", "fwm-hw-ld, tubes"]
    assert rows["baseline"]["added"] == 0 == rows["baseline"]["by_operations"]
    assert rows["fwm-hw-ld, full"]["by_operations"] > 0.5 > rows["fwm-hw-ld, visible"]["by_operations"] > 0
    assert rows["fwm-hw-ld, full"]["memory_mb"] > rows["fwm-hw-ld, tubes"]["memory_mb"] > rows["baseline"]["memory_mb"]


def test_tubes_encode_half_of_the_places_at_all_times():
    model = VJEPA.build(SMOKE)
    latents = Tubes(model, torch.randn(2, 3, SMOKE.frames, SMOKE.size, SMOKE.size), masks.MultiBlock().draw(2, SMOKE.grid, seed=0, step=0))
    t, h, w = SMOKE.grid
    assert latents.z.shape == latents.h.shape == (2, t, h * w // 2, 1, SMOKE.dim)
    places = latents.kept.unflatten(1, (t, -1)) % (h * w)
    assert (places == places[:, :1]).all() and (latents.kept.diff().abs() > 0).all()
    assert [x.shape for x in latents.target] == [x.shape for x in latents.pred]


def test_exponents_are_slopes_of_log_time(monkeypatch):
    """Times made to grow as frames * size^3 * batch^0.5 * width^2 give those exponents."""

    def made(contenders, repeats, device, warmup=2):
        law = lambda preset, clips: preset.frames * preset.size**3 * clips**0.5 * preset.dim**2
        return {case: [law(*case) * noise for noise in (1.0, 1.3, 0.9)] for case in contenders}

    monkeypatch.setattr("vjepa_lab.bench.growth.interleaved", made)
    rows = bench.scaling("smoke", "fp32", **QUICK)
    assert [row["exponent"] for row in rows if "exponent" in row] == pytest.approx([1, 3, 0.5, 2])
    frames = [row for row in rows if row["axis"] == "frames"]
    assert [row["tokens"] for row in frames] == [32, 64, 128] and [row["value"] for row in frames] == [4, 8, 16]
    assert all(np.isfinite(row["by_operations"]) for row in rows if "exponent" in row)


def test_contenders_take_turns():
    turns = []
    times = interleaved({name: lambda name=name: turns.append(name) for name in "ab"}, 3, CPU, warmup=1)
    assert turns == list("abababab") and [len(ms) for ms in times.values()] == [3, 3]
    assert ratio([1.0, 2.0, 10.0], [2.0, 4.0, 10.0]) == 2.0


def test_a_table_lines_up_and_leaves_gaps():
    text = show(
        [{"what": "a", "ms": 1.234}, {"what": "longer", "ms": float("nan"), "ratio": 2.0}], {"what": "s", "ms": ".1f", "ratio": ".2f"}
    )
    assert text.splitlines() == ["what     ms  ratio", "a       1.2", "longer        2.00"]


@pytest.mark.parametrize("what", ["step", "objectives", "scaling", "loader"])
def test_each_runs_from_the_command_line(what, capsys):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert bench.main([what, "--quick", "--json", *(["--no-encoder"] if what == "step" else [])]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) >= 2
    assert all(row["preset"] == "smoke" for row in rows if "preset" in row)


def test_a_quick_table_says_that_it_shows_nothing(capsys):
    assert bench.main(["step", "--quick", "--no-encoder", "--dtype", "fp32", "--batch", "2"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("smoke, fp32, 2 clips, cpu") and "only shows that it runs" in text and "our step" in text


@pytest.mark.parametrize("option", ["threads", "batch", "repeats"])
def test_none_of_nothing_is_refused(option):
    with pytest.raises(ValueError, match=f"{option}=0: expected a whole number, 1 or more"):
        bench.main(["step", "--preset", "smoke", f"--{option}", "0"])


def test_a_wrong_word_is_named():
    with pytest.raises(UserError, match="stepp"):
        bench.main(["stepp"])
    with pytest.raises(ValueError, match="did you mean micro"):
        bench.main(["step", "--preset", "mikro"])


def test_what_torch_reads_when_it_loads_is_set_before_and_a_users_own_value_kept():
    script = "import os, vjepa_lab; print(os.environ['OMP_WAIT_POLICY'], os.environ['THP_MEM_ALLOC_ENABLE'])"
    names = ("OMP_WAIT_POLICY", "THP_MEM_ALLOC_ENABLE")

    def run(**own) -> list[str]:
        environment = {name: value for name, value in os.environ.items() if name not in names} | own
        return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True).stdout.split()

    assert run() == ["PASSIVE", "1"] and run(OMP_WAIT_POLICY="ACTIVE", THP_MEM_ALLOC_ENABLE="0") == ["ACTIVE", "0"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_training_keeps_freed_memory():
    """A large block comes from the heap, which outlives it, and not from a mapping of its own; the environment has the last word."""
    script = """if True:
        import ctypes, torch
        from vjepa_lab.training.allocator import keep_freed_memory

        class Info(ctypes.Structure):
            _fields_ = [("before", ctypes.c_size_t * 4), ("hblkhd", ctypes.c_size_t), ("after", ctypes.c_size_t * 5)]

        library = ctypes.CDLL(None)
        library.mallinfo2.restype = Info
        kept, before = keep_freed_memory(), library.mallinfo2().hblkhd
        block = torch.empty(6_000_000)
        print(kept, library.mallinfo2().hblkhd - before)
    """

    def run(**more) -> list[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | more
        return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True).stdout.split()

    try:
        ctypes.CDLL(None).mallinfo2  # noqa: B018
    except AttributeError:
        pytest.skip("this C library does not say where its blocks lie")
    assert run() == ["True", "0"]
    kept, mapped = run(MALLOC_ARENA_MAX="1")
    assert kept == "False" and int(mapped) > 2e7
