"""Throughput: exact operations, honest clocks and meters, the cost model and the equivalence test on planted data."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import vjepa_lab as vl
from vjepa_lab.analysis import throughput
from vjepa_lab.analysis.throughput import Work, cost_model, counted, equivalence, finetuning, tokens_of, work
from vjepa_lab.model import Encoder
from vjepa_lab.presets import PRESETS, preset
from vjepa_lab.training import meters


def encoder(name="smoke", **changes):
    p = preset(name)
    return Encoder(p.dim, p.depth, p.heads, changes.get("patch", p.patch), p.tubelet)


# ---------------------------------------------------------------------------------------------------------------------- operations


@pytest.mark.parametrize("name", ["smoke", "micro", "tiny"])
@pytest.mark.parametrize("resolution", [112, 224])
@pytest.mark.parametrize("mode", ["forward", "finetune"])
def test_analytic_operations_are_those_that_torch_counts(name, resolution, mode):
    e = encoder(name, patch=16)
    analytic = work(e, mode)(tokens_of(e, 16, resolution)) / 1e9
    assert analytic == pytest.approx(counted(e, 16, resolution, mode), rel=0.01)


def test_operations_at_the_papers_size():
    """ViT-B/16 on 16 frames of 224 pixels: 360.689 GFLOP forward, and the exponents of its polynomial."""
    with torch.device("meta"):
        e = encoder("base")
    assert work(e)(1568) / 1e9 == pytest.approx(360.689, abs=1e-3)
    assert [round(float(work(e).exponent(n)), 2) for n in (392, 1568, 8192)] == [2.15, 2.50, 3.27]


def test_operations_agree_with_what_pretraining_is_said_to_cost():
    size, e = PRESETS["smoke"], encoder("smoke")
    passes = vl.recipe("ld").cost("smoke", 1).passes  # forward and backward together count as three forward
    assert work(e)(tokens_of(e, size.frames, size.size)) / 1e9 == pytest.approx(passes["student, full clip"] / 3, rel=0.01)


def test_a_real_step_does_what_is_counted():
    """torch's counter around the step as it runs, attention as it runs: within 1 %, the classifier's few operations included."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    e = encoder()
    each = throughput.FineTuning(e, torch.device("cpu"))
    feed = throughput.random_feed(2, 8, 32, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        each.step(feed)
    assert counter.get_total_flops() / 2 == pytest.approx(work(e, "finetune")(tokens_of(e, 8, 32)), rel=0.01)


def test_counting_leaves_the_encoder_alone():
    e = encoder()
    before = {k: v.clone() for k, v in e.state_dict().items()}
    counted(e, 8, 32)
    assert all(torch.equal(before[k], v) for k, v in e.state_dict().items()) and all(p.grad is None for p in e.parameters())


def test_a_clip_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="sides by 8"):
        tokens_of(encoder(), 8, 30)


# -------------------------------------------------------------------------------------------------------------------------- meters


def test_peak_memory_follows_tensors():
    mb = lambda n: torch.zeros(n * 2**18)  # n MiB

    def run():
        a = mb(4)
        b = a + 1  # 8 alive
        del a
        c = b * 2  # 8 alive
        del b, c
        mb(2)

    assert meters.peak_memory(run, torch.device("cpu")) == pytest.approx(8 * 2**20, rel=0.01)


def test_peak_memory_of_a_backward_pass_grows_with_depth():
    def run(depth):
        layers = torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU()) for _ in range(depth)])
        x = torch.randn(512, 64)
        return meters.peak_memory(lambda: layers(x).sum().backward(), torch.device("cpu"))

    assert run(8) > 1.7 * run(4)


def test_energy_counters_are_summed_and_unwrapped(tmp_path, monkeypatch):
    def write(zone, value):
        (tmp_path / zone).mkdir(exist_ok=True)
        (tmp_path / zone / "energy_uj").write_text(str(value))
        (tmp_path / zone / "max_energy_range_uj").write_text("999999")

    write("intel-rapl:0", 900_000), write("intel-rapl:1", 0), write("intel-rapl:0:0", 5)
    read = meters.rapl(tmp_path)
    monkeypatch.setattr(meters, "RAPL", tmp_path)
    energy = meters.Energy(torch.device("cpu"))
    write("intel-rapl:0", 100_000), write("intel-rapl:1", 300_000), write("intel-rapl:0:0", 999)
    assert read() == pytest.approx(0.5)
    assert energy.add() == {"processors": pytest.approx(0.5)} == energy.add()
    assert meters.rapl(tmp_path / "nothing") is None
    assert meters.Energy(torch.device("cpu"), packages=False).add() == {}


def test_a_gpus_energy_needs_its_driver_alone(monkeypatch):
    """The driver's own library is asked, so that no Python package must be there."""

    class Driver:
        millijoules = 5_000

        def nvmlInit_v2(self):
            return 0

        def nvmlDeviceGetHandleByUUID(self, uuid, handle):
            return uuid != b"GPU-of-this-run"

        def nvmlDeviceGetTotalEnergyConsumption(self, handle, spent):
            spent._obj.value = self.millijoules
            return 0

    driver = Driver()
    monkeypatch.setattr(meters.ctypes, "CDLL", lambda name: driver)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="of-this-run"))
    energy = meters.Energy(torch.device("cuda"), packages=False)
    driver.millijoules = 7_500
    assert energy.add() == {"gpu": 2.5}


def test_the_clock_tells_phases_apart():
    clock = throughput.Clock(torch.device("cpu"))
    for _ in range(3):
        clock.start()
        time.sleep(0.01)
        clock.mark()
        clock.mark()
    found = clock.read(2)
    assert found.shape == (2, 2) and (found[:, 0] > 9).all() and (found[:, 1] < 5).all()


# ----------------------------------------------------------------------------------------------------------------------- measuring


def test_finetuning_measures_every_objective_and_shape():
    encoders = {name: encoder() for name in ("baseline", "ld")}
    before = encoders["ld"].patch_embed.weight.clone()
    table = finetuning(encoders, (16, 32), (4, 8), batch=2, blocks=3, rounds=2, warmup=1, energy_s=0, progress=False)
    assert len(table) == 2 * 4 * 3
    phases = table[[f"{p}_ms" for p in throughput.PHASES]]
    assert (phases > 0).all(axis=None) and (phases.sum(axis=1) < 2 * table["ms"]).all()
    assert (table["memory_mb"] > 0).all() and set(table["tokens"]) == {8, 16, 32, 64}
    np.testing.assert_allclose(table["tokens_per_s"], table["clips_per_s"] * table["tokens"])
    assert not torch.equal(before, encoders["ld"].patch_embed.weight)  # it did fine-tune
    summed = throughput.summary(table)
    assert len(summed) == 8 and (summed["lo"] <= summed["hi"]).all() and set(summed["blocks"]) == {3}
    assert summed[["frames", "resolution"]].equals(summed[["frames", "resolution"]].sort_values(["frames", "resolution"]))


def test_a_frozen_encoder_stays_and_asks_for_less_memory():
    e = encoder()
    before = {k: v.clone() for k, v in e.state_dict().items()}
    how = {"resolutions": (32,), "frames": (8,), "batch": 2, "blocks": 1, "rounds": 1, "energy_s": 0, "progress": False}
    frozen = finetuning({"baseline": e}, mode="frozen", **how)
    assert all(torch.equal(before[k], v) for k, v in e.state_dict().items())
    assert frozen["memory_mb"].item() < finetuning({"baseline": encoder()}, **how)["memory_mb"].item()
    with pytest.raises(ValueError, match="'finetune' or 'frozen'"):
        finetuning({"baseline": e}, mode="half", **how)


def test_decoding_shows_in_the_data_phase(tmp_path):
    folder = tmp_path / "clips"
    vl.data.synthetic.export(folder, task="plain", clips={"train": 8, "test": 4}, frames=8, size=32)
    how = {"resolutions": (32,), "frames": (4,), "batch": 4, "blocks": 1, "rounds": 3, "energy_s": 0, "progress": False}
    from_files = finetuning({"baseline": encoder()}, data=str(folder / "manifest.csv"), **how)
    assert from_files["data_ms"].item() > 3 * finetuning({"baseline": encoder()}, **how)["data_ms"].item()


def test_devices_are_named_as_everywhere():
    how = {"blocks": 1, "rounds": 1, "warmup": 0, "batch": 1, "progress": False}
    table = finetuning({"baseline": encoder()}, (32,), (4,), energy_s=0, device="auto", **how)
    assert table["device"].notna().all()
    assert throughput.pretraining([], "smoke", device="auto", **how)["device"].notna().all()
    for measure in (lambda: finetuning({"baseline": encoder()}, device="tpu", **how), lambda: throughput.pretraining([], device="tpu")):
        with pytest.raises(ValueError, match="device 'tpu' is not available here"):
            measure()


def test_pretraining_stands_beside_analytic():
    table = throughput.pretraining(["ld"], "smoke", batch=2, blocks=2, rounds=1, warmup=1, progress=False)
    rows = table.groupby("variant").mean(numeric_only=True)
    assert rows.loc["baseline", "ratio"] == rows.loc["baseline", "analytic"] == 1
    assert rows.loc["ld", "analytic"] == pytest.approx(vl.recipe("ld").cost("smoke", 2).ratio)
    ms = table.pivot(index="block", columns="variant", values="ms")
    ratio = table[table["variant"].eq("ld")].set_index("block")["ratio"]
    assert ratio.to_dict() == pytest.approx((ms["ld"] / ms["baseline"]).to_dict())  # how long a step takes here says nothing of the code


# ------------------------------------------------------------------------------------------------------------------ what it says


def planted(c0=5.0, a=0.02, b=2e-6, noise=0.0, blocks=5, slower=None, seed=0):
    """Times of two objectives that follow the cost model, `slower` percent apart."""
    rng, rows = np.random.default_rng(seed), []
    for resolution in (112, 160, 224, 288, 384, 512):
        tokens = 8 * (resolution // 16) ** 2
        for block in range(blocks):
            drift = rng.normal() * noise  # of the machine, shared
            for name, factor in (("baseline", 0.0), ("ld", slower or 0.0)):
                ms = 2 * (c0 + a * tokens + b * tokens**2) * np.exp(drift + factor / 100 + rng.normal() * noise / 5)
                rows.append(
                    {"objective": name, "frames": 16, "resolution": resolution, "tokens": tokens, "block": block, "ms": ms, "batch": 2}
                )
    return pd.DataFrame(rows)


def test_the_cost_model_finds_what_was_planted():
    table = planted().query("objective == 'baseline'")
    found = cost_model(table, Work(1.0, 1e-3), draws=20)
    assert found[["c0", "a", "b"]].iloc[0].to_numpy() == pytest.approx([5.0, 0.02, 2e-6], rel=0.02)
    np.testing.assert_allclose(found["ms"], found["fitted"], rtol=1e-3)
    n = found["tokens"]
    truth = 2 * (0.02 * n + 4e-6 * n**2) / (5 + 0.02 * n + 2e-6 * n**2)
    np.testing.assert_allclose(found["exponent"], truth, rtol=0.02)


def test_the_intervals_of_the_exponents_cover():
    hits = []
    for seed in range(12):
        found = cost_model(planted(noise=0.05, seed=seed).query("objective == 'baseline'"), Work(1.0, 1e-3), draws=60, seed=seed)
        n = found["tokens"]
        truth = 2 * (0.02 * n + 4e-6 * n**2) / (5 + 0.02 * n + 2e-6 * n**2)
        hits.append(((found["lo"] <= truth) & (truth <= found["hi"])).mean())
    assert np.mean(hits) > 0.8
    with pytest.raises(ValueError, match="at least 5 shapes, got 2"):
        cost_model(planted().query("resolution < 200"), Work(1.0, 1e-3))


@pytest.mark.parametrize(("slower", "equal", "says"), [(0.0, True, "does not depend"), (10.0, False, "differs by more than 2 %")])
def test_equivalence(slower, equal, says):
    table = planted(noise=0.02, slower=slower)
    found = equivalence(table)
    assert found["equivalent"].eq(equal).all() and len(found) == 6
    assert found["difference"].mean() == pytest.approx(slower, abs=1)
    model = cost_model(table.query("objective == 'baseline'"), Work(1.0, 1e-3), draws=20)
    assert says in throughput.verdict(found, model) and "says nothing about accuracy" in throughput.verdict(found, model)


def test_the_verdict_tells_every_clip_length_with_its_own_interval():
    short = planted(noise=0.02).assign(frames=8)
    short["tokens"], long = short["tokens"] // 2, planted(noise=0.02)
    both = pd.concat([short, long], ignore_index=True)
    model = cost_model(both.query("objective == 'baseline'"), Work(1.0, 1e-3), draws=20)
    said = throughput.verdict(equivalence(both), model)
    for (frames, resolution), row in model.set_index(["frames", "resolution"]).iterrows():
        end = f"{row['exponent']:.2f} [{row['lo']:.2f}, {row['hi']:.2f}] at {resolution} pixels (FLOPs {row['flop_exponent']:.2f})"
        assert (end in said.partition(f"with {frames} frames ")[2].partition(";")[0]) == (resolution in (112, 512))


def test_time_and_operations_of_pretraining_have_one_reference():
    table = throughput.pretraining(["baseline"], "smoke", batch=2, blocks=1, rounds=1, warmup=0, against="ld", progress=False)
    rows = table.set_index("variant")
    assert rows.loc["ld", "ratio"] == rows.loc["ld", "analytic"] == 1
    assert rows.loc["baseline", "analytic"] == pytest.approx(1 / vl.recipe("ld").cost("smoke", 2).ratio)
    assert vl.plots.pretraining_cost(table).axes[0].get_xlabel() == "pretraining step against that of ld"
    assert vl.plots.pretraining_cost(table.drop(columns="against")).axes[0].get_xlabel().endswith("of baseline")


def test_the_notebook_finds_encoders_by_the_names_of_their_runs():
    cells = json.loads((Path(__file__).parents[1] / "notebooks" / "09_throughput.ipynb").read_text(encoding="utf-8"))["cells"]
    (source,) = ("".join(cell["source"]) for cell in cells if "encoders = {" in "".join(cell["source"]))
    config = {"variant": "custom-123456"}
    run = SimpleNamespace(config=config, encoder=lambda _: "its encoder")
    space = {"variants": ["JEPA() + 0.25*Delta()"], "subjects": SimpleNamespace(runs_of=lambda *_, **__: [run])}
    space |= dict.fromkeys(("preset", "runs", "steps", "patch", "device")) | {"frames": [], "resolutions": []}
    exec(source, space)
    assert space["first"] == "its encoder" and space["against"] == "custom-123456"


def test_noise_leaves_it_undecided():
    found = equivalence(planted(noise=0.5, blocks=3))
    assert "undecided" in throughput.verdict(found, cost_model(planted().query("objective == 'ld'"), Work(1.0, 1e-3), draws=5))
    with pytest.raises(ValueError, match="at least 3 blocks"):
        equivalence(planted(blocks=2))


def test_figures(tmp_path):
    from vjepa_lab import plots

    table = planted(noise=0.02)
    phases = {f"{phase}_ms": table["ms"] / 4 for phase in throughput.PHASES}
    speed = {
        "clips_per_s": 2e3 / table["ms"],
        "tokens_per_s": 1.0,
        "memory_mb": 100.0,
        "joule_per_clip": np.nan,
        "gflop": 1.0,
        "tflop_per_s": 1.0,
    }
    table = table.assign(**phases, **speed, device="CPU, 1 thread", bf16=False)
    summed, model = throughput.summary(table), cost_model(table.query("objective == 'baseline'"), Work(1.0, 1e-3), draws=10)
    cost = pd.DataFrame({"variant": ["baseline", "ld"] * 2, "block": [0, 0, 1, 1], "ratio": [1, 2.1, 1, 1.9], "analytic": [1, 2.0] * 2})
    cost = cost.assign(device="CPU, 1 thread", bf16=False, batch=2, preset="smoke")
    figures = [
        plots.throughput(table, summed, model, paper=True),
        plots.step_split(summed, paper=True),
        plots.same_speed(equivalence(table), paper=True),
        plots.pretraining_cost(cost, paper=True),
    ]
    for i, figure in enumerate(figures):
        assert plots.save(figure, tmp_path / f"{i}")[0].stat().st_size > 5_000
    assert plots.throughput(table, summed, model, smoke=True).layout.title.text.endswith("only shows that it runs.")
