"""Fine-tuning: layer-wise learning rates, what is mixed and dropped, resuming to the same bits, what is written down."""

import json
from itertools import pairwise

import pytest
import torch
from PIL import Image
from torch import nn

import vjepa_lab as vl
from vjepa_lab import __main__ as cli
from vjepa_lab import data
from vjepa_lab.data.encode import x264_options
from vjepa_lab.evaluation import finetuning
from vjepa_lab.evaluation.classifier import Classifier, options_of, predictions
from vjepa_lab.evaluation.finetuning import Finetuned, Plan
from vjepa_lab.evidence import results
from vjepa_lab.model import Encoder
from vjepa_lab.training.processes import Interrupted
from vjepa_lab.training.trainer import seed_step

HOW = {"device": "cpu", "bf16": False, "progress": False, "log_every": 1}
pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = {"frames": 4, "size": 16, "stride": 1}


def encoder(**how) -> Encoder:
    torch.manual_seed(3)
    return Encoder(24, 3, 2, 8, **how)


class Bright(data.Source):
    """Clips that are dark, grey or bright, with noise; the label says which."""

    name, fixed = "bright", True

    def __init__(self, n=24, split="train", classes=3, blank=0):
        self.n, self.split, self.blank, self.classes = n, split, blank, {"class": [f"c{i}" for i in range(classes)], "none": ["x"]}

    def __len__(self):
        return self.n

    def read(self, index, epoch=0):
        g = torch.Generator().manual_seed(1000 * (self.split == "test") + index)
        clip = torch.randint(0, 60, (3, 4, 16, 16), generator=g, dtype=torch.uint8) + 90 * (index % 3)
        return data.Sample(clip, {"class": int(self.labels["class"][index]), "none": 0}, index)

    @property
    def labels(self):
        y = torch.arange(self.n) % 3
        y[: self.blank] = -1
        return {"class": y, "none": torch.zeros(self.n, dtype=torch.long)}


PAIR = (Bright(), Bright(12, "test"))


def tune(path, **how) -> Finetuned:
    how = {"epochs": 2, "batch": 8, "lr": 3e-3} | how
    return vl.finetune(encoder(), how.pop("data", PAIR), out=path, **SHAPE, **HOW, **how)


# ----------------------------------------------------------------------------------------------------------------------- the model


def test_learning_rates_fall_from_the_head_down_layer_by_layer():
    """Head 1, last block (with the norm after it) .5, ..., first block .125, patch embedding .0625; everything is in exactly one group."""
    model = Classifier(encoder(image_path=True), 5)
    groups = model.groups(0.5, 0.1)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters())) == len(scale)
    expected = {"head.": 1.0, "encoder.norms": 0.5, "encoder.blocks.2": 0.5, "encoder.blocks.1": 0.25, "encoder.blocks.0": 0.125}
    for name, p in model.named_parameters():
        own = next((value for prefix, value in expected.items() if name.startswith(prefix)), 0.0625)
        assert scale[id(p)] == pytest.approx(own), name
    plain = {name for name, p in model.named_parameters() if decay[id(p)] == 0}
    assert all(name.endswith("bias") or ".norm" in name or name == "head.query" or name.endswith("mod_embed") for name in plain)
    assert {"head.head.bias", "head.norm1.weight", "head.query", "encoder.blocks.0.norm1.weight", "encoder.img_mod_embed"} <= plain
    assert "head.cross.key" not in plain and "encoder.patch_embed.weight" not in plain


def test_the_schedule_warms_up_and_falls_with_every_groups_share():
    model = Classifier(encoder(), 5)
    optimizer = torch.optim.AdamW(model.groups(0.5, 0.1), lr=1e-2)
    schedule = finetuning._schedule(optimizer, 100, Plan(lr=1e-2, warmup=0.2))
    seen = []
    for step in range(100):
        schedule.step_update(step)
        rates = {group["lr"] / group["lr_scale"] for group in optimizer.param_groups}
        assert max(rates) - min(rates) < 1e-12
        seen.append(max(rates))
    assert seen[0] == pytest.approx(1e-4) and max(seen) == pytest.approx(1e-2) and seen.index(max(seen)) == 20
    assert seen[19] < seen[20] and all(a > b for a, b in pairwise(seen[20:])) and seen[-1] < 2e-5


def test_drop_path_grows_with_depth_and_is_off_in_evaluation():
    model = Classifier(encoder(), 5, drop_path=0.4)
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in model.encoder.blocks] == pytest.approx([0.0, 0.2, 0.4])
    x = torch.randn(2, 3, 4, 16, 16)
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    assert all(isinstance(block.drop_path, nn.Identity) for block in Classifier(encoder(), 5).encoder.blocks)


def test_an_encoder_is_built_again_from_its_options():
    for how in ({}, {"rope": "vjepa2", "mlp_ratio": 48 / 11}, {"position": "sincos", "sincos_grid": (2, 2, 2)}):
        ours = encoder(**how)
        again = Encoder(**json.loads(json.dumps(options_of(ours))))
        again.load_state_dict(ours.state_dict())
        x = torch.randn(1, 3, 4, 32, 32)
        assert torch.equal(ours(x), again(x))
    deep = Encoder(24, 4, 2, 8, levels=4, image_path=True)
    assert list(Encoder(**options_of(deep)).norms) == list(deep.norms)


# ------------------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("head", ["attentive", "linear"])
def test_it_learns_end_to_end_and_writes_down_what_it_did(tmp_path, head):
    before = {name: p.clone() for name, p in encoder().named_parameters()}
    done = tune(tmp_path / "ft", epochs=12, head=head)
    top1 = done.rows().query("metric == 'top1' and source == 'run'")
    assert top1["value"].item() > 90 and top1["n"].item() == 12 and top1["probe"].item() == "finetune"
    model = done.model()
    assert not model.training and all(not torch.equal(before[n], p) for n, p in model.encoder.named_parameters() if "qkv.weight" in n)
    table = done.metrics()
    assert table["loss"].iloc[-1] < table["loss"].iloc[0] / 2 and table["step"].tolist() == list(range(36))
    assert {"epoch", "top1", "lr", "clips_per_s"} <= set(table)
    config = done.config
    assert config["plan"]["layer_decay"] == 0.75 and config["train_counts"] == [8, 8, 8] and config["clips"] == 24
    assert json.loads((done.path / "report.json").read_text())["steps"] == 36
    assert set(done.rows()["variant"]) == {"ft", "chance", "majority-train", "majority-test"} and "of 12" in repr(done)
    (file,) = (done.path / "predictions").iterdir()
    assert len(results.predictions(done.path)) == 12 and file.suffix == ".parquet"


REGULAR = {"drop_path": 0.3, "mixup": 0.8, "smoothing": 0.1}


@pytest.mark.parametrize("how", [{}, REGULAR])
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, how):
    whole = tune(tmp_path / "whole", **how)
    steps = []
    true = finetuning.seed_step

    def stop(seed, step, rank):
        steps.append(step)
        true(seed, step, rank)
        if len(steps) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(finetuning, "seed_step", stop)
    with pytest.raises(Interrupted, match="after step 3; the same call goes on"):
        tune(tmp_path / "parts", **how)
    assert not (tmp_path / "parts" / "report.json").exists() and "not finished" in repr(Finetuned(tmp_path / "parts"))
    torch.rand(5)
    parts = tune(tmp_path / "parts", **how)
    assert steps == [0, 1, 2, 3, 3, 4, 5]
    for a, b in zip(whole.model().state_dict().values(), parts.model().state_dict().values(), strict=True):
        assert torch.equal(a, b)
    same = ["step", "loss", "top1", "lr"]
    assert whole.metrics()[same].equals(parts.metrics()[same])
    assert whole.rows()["value"].equals(parts.rows()["value"])
    assert json.loads((parts.path / "report.json").read_text())["resumed_at"] == 3


def test_a_finished_training_is_not_done_again_and_another_is_refused(tmp_path, monkeypatch):
    done = tune(tmp_path / "ft")
    monkeypatch.setattr(finetuning, "_train", lambda *_: pytest.fail("trained again"))
    assert tune(tmp_path / "ft").rows().equals(done.rows())
    with pytest.raises(ValueError, match=r"holds another training \(plan: .*choose another folder"):
        tune(tmp_path / "ft", lr=1e-4)
    with pytest.raises(ValueError, match="finetune_seed: 0 there, 1 asked"):
        tune(tmp_path / "ft", seed=1)


def test_the_callers_encoder_stays_as_it_is_and_other_weights_are_another_training(tmp_path):
    ours, weights = encoder(), {name: value.clone() for name, value in encoder().state_dict().items()}
    how = {"epochs": 1, "batch": 8, "lr": 3e-3, **SHAPE, **HOW}
    frozen = ours.requires_grad_(False)
    first = vl.finetune(frozen, PAIR, out=tmp_path / "first", **how)
    assert all(torch.equal(value, weights[name]) for name, value in ours.state_dict().items())
    assert not any(p.requires_grad for p in ours.parameters()) and not hasattr(ours.blocks[0].drop_path, "drop_prob")
    assert vl.finetune(ours, PAIR, out=tmp_path / "again", **how).metrics()["loss"].equals(first.metrics()["loss"])
    with torch.no_grad():
        ours.blocks[0].attn.qkv.weight.mul_(2)
    with pytest.raises(ValueError, match=r"first holds another training \(weights: '[0-9a-f]{16}' there, '[0-9a-f]{16}' asked"):
        vl.finetune(ours, PAIR, out=tmp_path / "first", **how)


def test_another_test_set_is_tested_and_the_same_one_is_not_tested_again(tmp_path, monkeypatch):
    def top1(done):
        return done.rows().query("metric == 'top1' and source == 'run'")

    tune(tmp_path / "ft")
    monkeypatch.setattr(finetuning, "_train", lambda *_: pytest.fail("trained again"))
    done = tune(tmp_path / "ft", data=(PAIR[0], Bright(18, "test")))
    assert top1(done)["n"].tolist() == [18] and top1(done)["benchmark"].tolist() == ["bright"]
    done = tune(tmp_path / "ft", data=(PAIR[0], Bright(9, "val")), splits=("train", "val"))
    assert top1(done)["n"].tolist() == [18, 9] and top1(done)["benchmark"].tolist() == ["bright", "bright, val"]
    assert len(list((done.path / "predictions").iterdir())) == 2
    monkeypatch.setattr(finetuning, "score", lambda *_: pytest.fail("tested again"))
    tune(tmp_path / "ft", data=(PAIR[0], Bright(9, "val")), splits=("train", "val"))


def test_a_training_goes_on_in_the_precision_that_it_began_in(tmp_path, monkeypatch):
    how = {"epochs": 1, "batch": 8, **SHAPE, **HOW, "bf16": None}
    monkeypatch.setattr(finetuning, "fast_bf16", lambda device: False)
    assert vl.finetune(encoder(), PAIR, out=tmp_path, **how).config["bf16"] is False
    monkeypatch.setattr(finetuning, "fast_bf16", lambda device: True)  # another kind of machine
    assert vl.finetune(encoder(), PAIR, out=tmp_path, **how).config["bf16"] is False
    with pytest.raises(ValueError, match="bf16: False there, True asked"):
        vl.finetune(encoder(), PAIR, out=tmp_path, **how | {"bf16": True})


def test_a_folder_that_does_not_say_its_weights_is_taken(tmp_path):
    done = tune(tmp_path / "ft", epochs=1)
    (done.path / "config.json").write_text(json.dumps({name: v for name, v in done.config.items() if name != "weights"}))
    assert tune(tmp_path / "ft", epochs=1).rows().equals(done.rows())


def test_the_clips_of_the_training_are_no_test(tmp_path, monkeypatch):
    for i in range(4):
        Image.new("RGB", (16, 16), (60 * i,) * 3).save(tmp_path / f"{i}.png")
    (tmp_path / "bare.txt").write_text("".join(f"{tmp_path}/{i}.png {i % 2}\n" for i in range(4)))
    monkeypatch.setattr(finetuning, "_train", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match=r"the splits train and test are the same 4 clips \(.*0.png, \.\.\.\)"):
        tune(tmp_path / "ft", data=str(tmp_path / "bare.txt"))
    assert not (tmp_path / "ft").exists()


def test_the_seed_decides_everything(tmp_path):
    one, again, other = (tune(tmp_path / name, seed=seed, epochs=1, **REGULAR) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert one.metrics()["loss"].equals(again.metrics()["loss"]) and not one.metrics()["loss"].equals(other.metrics()["loss"])
    before = torch.get_rng_state()
    tune(tmp_path / "d", epochs=1, mixup=0.5)
    assert torch.equal(before, torch.get_rng_state())  # the caller's random numbers are the caller's


def test_mixup_and_smoothing_are_off_unless_asked_for(tmp_path, monkeypatch):
    seen = []
    true = finetuning.F.cross_entropy

    def look(logits, target, label_smoothing):
        seen.append((target.clone(), label_smoothing))
        return true(logits, target, label_smoothing=label_smoothing)

    monkeypatch.setattr(finetuning.F, "cross_entropy", look)
    tune(tmp_path / "plain", epochs=1)
    assert all(target.dtype == torch.long and smoothing == 0 for target, smoothing in seen)
    seen.clear()
    tune(tmp_path / "mixed", epochs=1, mixup=0.8, smoothing=0.1)
    for target, smoothing in seen:
        assert target.shape == (8, 3) and smoothing == 0.1
        torch.testing.assert_close(target.sum(1), torch.ones(8))
    assert any(((target > 0) & (target < 1)).any() for target, _ in seen)


def test_mixed_clips_are_the_same_mixture_as_their_labels(monkeypatch, tmp_path):
    """Clips of one brightness per class: the mixture's mean must be its labels' mean of brightness."""
    seen = []
    true = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, clip: seen.append(clip.clone()) or true(self, clip))
    targets = []
    entropy = finetuning.F.cross_entropy
    monkeypatch.setattr(finetuning.F, "cross_entropy", lambda x, y, **kw: targets.append(y.clone()) or entropy(x, y, **kw))
    tune(tmp_path / "mixed", epochs=1, mixup=0.8)
    level = torch.tensor([29.5, 119.5, 209.5]) / 255
    for clip, target in zip(seen, targets, strict=False):  # the clips seen later are the test's
        std, mean = (torch.tensor(x).view(1, 3, 1, 1, 1) for x in (data.core.STD, data.core.MEAN))
        assert type(clip) is torch.Tensor
        torch.testing.assert_close((clip * std + mean).mean((1, 2, 3, 4)), target @ level, atol=0.01, rtol=0)


def test_a_loss_that_is_not_finite_stops_it(tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning, "seed_step", lambda seed, step, rank: seed_step(seed, step, rank))
    true = finetuning.F.cross_entropy
    monkeypatch.setattr(finetuning.F, "cross_entropy", lambda x, y, **kw: true(x, y, **kw) * float("nan"))
    with pytest.raises(FloatingPointError, match="the loss became nan at step 0"):
        tune(tmp_path / "ft")
    assert not (tmp_path / "ft" / "last.pt").exists()


# ------------------------------------------------------------------------------------------------------------------------ what for


def test_labels_that_cannot_be_learnt(tmp_path):
    with pytest.raises(ValueError, match="has no label 'motion'; it has class, none"):
        tune(tmp_path / "a", label="motion")
    with pytest.raises(ValueError, match=r"2 of 24 clips of bright \[train\] have no 'class'"):
        tune(tmp_path / "b", data=(Bright(blank=2), PAIR[1]))
    with pytest.raises(ValueError, match="has 4 classes of 'class', the classifier learnt 3"):
        tune(tmp_path / "c", data=(PAIR[0], Bright(12, "test", classes=4)), epochs=1)
    with pytest.raises(ValueError, match="pass the test source as data="):
        Finetuned(tmp_path / "c").test(device="cpu")
    with pytest.raises(ValueError, match="needs an Encoder"):
        vl.finetune(nn.Linear(3, 3), PAIR, out=tmp_path / "d", **SHAPE, **HOW)
    for bad in ({"head": "mlp"}, {"layer_decay": 1.5}, {"epochs": 0}, {"mixup": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}="):
            tune(tmp_path / "e", **bad)


def test_a_pretrained_run_is_fine_tuned_under_its_own_name(tmp_path):
    pair = [data.open("synthetic", split, n=16, frames=8, size=32) for split in ("train", "test")]
    run = vl.pretrain("ld", pair[0], "smoke", 5, runs=tmp_path, device="cpu", bf16=False, progress=False, steps=1, warmup=0)
    done = vl.finetune(run, pair, "hue", epochs=1, lr=1e-5, runs=tmp_path, **HOW)
    assert done.path == tmp_path / "finetune-ld-synthetic-s0"
    rows = done.rows().query("source == 'run'")
    assert set(rows["variant"]) == {"ld"} and set(rows["seed"]) == {5} and rows["smoke"].all() and set(rows["encoder"]) == {"student"}
    assert rows["benchmark"].iloc[0].endswith("/hue")
    torch.testing.assert_close(done.model().encoder.patch_embed.weight, run.encoder("student").patch_embed.weight, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="encoder: 'student' there, 'random-init' asked"):
        vl.finetune(run, pair, "hue", epochs=1, lr=1e-5, runs=tmp_path, encoder="initial", **HOW)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    av = pytest.importorskip("av")
    root = tmp_path_factory.mktemp("videos")
    for split in ("train", "test"):
        for i in range(6):
            path = root / split / "ab"[i % 2] / f"{i}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            with av.open(str(path), "w") as file:
                stream = file.add_stream("libx264", rate=24, options=x264_options())
                stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
                for _ in range(12):
                    picture = torch.full((32, 48, 3), 40 + 160 * (i % 2), dtype=torch.uint8)
                    file.mux(stream.encode(av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24")))
                file.mux(stream.encode())
    return root


def test_views_are_averaged_and_a_test_can_be_made_again_with_others(videos, tmp_path):
    done = vl.finetune(encoder(), str(videos), out=tmp_path / "ft", epochs=1, batch=3, segments=2, views=3, **SHAPE, **HOW)
    rows = done.rows().query("source == 'run' and metric == 'top1'")
    assert rows["probe"].tolist() == ["finetune 2x3"] and rows["n"].tolist() == [6] and rows["views"].tolist() == [3]
    result = done.test(views=1, device="cpu", progress=False)
    assert set(done.rows().query("source == 'run'")["probe"]) == {"finetune 2x3", "finetune"} and result.rows[0]["n"] == 6

    vl.finetune(encoder(), str(videos), out=tmp_path / "ft", epochs=1, batch=3, segments=1, views=2, **SHAPE, **HOW)  # tested, not trained
    assert set(done.rows().query("source == 'run'")["probe"]) == {"finetune 2x3", "finetune", "finetune 1x2"}

    source = data.open(videos, "test", augment=False, **SHAPE)
    found = predictions(done.model(), source, "class", "x", segments=2, views=3, progress=False)
    assert len(found) == 36 and found.clips == (2, 3)
    mean = torch.zeros(6, 2).index_add_(0, found.index, found.pooled) / 6
    again = done.test(segments=2, views=3, device="cpu", save=False, progress=False)
    assert again.predictions["top1"].tolist() == mean.argmax(1).tolist()


def test_the_command(videos, tmp_path, capsys):
    run = vl.pretrain("baseline", str(videos), preset="smoke", runs=tmp_path, device="cpu", bf16=False, progress=False, steps=1, warmup=0)
    words = ["finetune", run.path, videos, "--epochs", "1", "--batch", "6", "--runs", tmp_path, "--no-progress", "--device", "cpu"]
    assert cli.main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert "finetune" in said and "balanced_accuracy" in said and "finetune-baseline" in said
