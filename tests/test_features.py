"""What decides the features of a clip decides where they are cached, what cannot be read is told, what will not fit is refused at once."""

import os
import warnings
from dataclasses import replace
from functools import wraps
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import vjepa_lab as vl
from vjepa_lab import data
from vjepa_lab.analysis import readers, shifts
from vjepa_lab.data.edited import Frozen
from vjepa_lab.evaluation import evaluate, features, finetuning, pixels, room
from vjepa_lab.evaluation.features import Features, extract, fingerprint
from vjepa_lab.evaluation.finetuning import Finetuned
from vjepa_lab.evaluation.layers import Layers
from vjepa_lab.evaluation.multiview import OneView, extract_views
from vjepa_lab.evaluation.yardsticks import baselines
from vjepa_lab.evidence import stats
from vjepa_lab.model import Encoder

QUIET = {"device": "cpu", "progress": False}
pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = {"frames": 4, "size": 16}


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Images of two classes, dark and bright, in three splits of six."""
    folder = tmp_path / "pictures"
    for split in ("train", "val", "test"):
        for i in range(6):
            path = folder / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 16), (5 * i + 150 * (i % 2), 9, 9)).save(path)
    return folder


def opened(folder: Path, split: str = "test", **how) -> data.Source:
    return data.open(str(folder), split, **SHAPE | {"augment": False} | how)


def built() -> Encoder:
    torch.manual_seed(0)
    return Encoder(24, 2, 2, 8).eval()


class Colours(nn.Module):
    """Tokens are the mean colours of the quarters of the picture; it counts the batches that it was shown."""

    def __init__(self):
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.ones(3)), 0

    def grid(self, clip):
        return 1, 2, 2

    def forward(self, clip):
        self.calls += 1
        return F.adaptive_avg_pool3d(clip, (1, 2, 2)).flatten(2).transpose(1, 2) * self.weight


class Half(nn.Module):
    """Half of an encoder's channels."""

    def __init__(self, encoder: Encoder, half: str):
        super().__init__()
        self.encoder, self.half = encoder, half

    def grid(self, clip):
        return self.encoder.grid(clip)

    def forward(self, clip):
        return self.encoder(clip).chunk(2, -1)[self.half == "dyn"]


# ------------------------------------------------------------------------------------------------------------------------- the cache


def test_what_holds_an_encoder_of_ours_is_known_by_what_it_makes_of_a_clip(pictures, tmp_path):
    source, encoder = opened(pictures), built()
    halves = [Half(encoder, half) for half in ("app", "dyn", "app")]
    app, dyn, again = (fingerprint(half, source) for half in halves)
    assert app == again != dyn
    found = [extract(half, source, cache=tmp_path / "kept", **QUIET).pooled for half in halves]
    whole = extract(encoder, source, **QUIET).pooled
    assert torch.equal(torch.cat(found[:2], 1), whole) and torch.equal(found[2], found[0])


def test_no_clip_is_encoded_to_know_an_encoder_of_ours(pictures, monkeypatch):
    monkeypatch.setattr(features, "_of_first_clip", lambda *_: pytest.fail("encoded"))
    fingerprint(built(), opened(pictures))
    fingerprint(Layers(built(), (0, 1)), opened(pictures))


@pytest.mark.parametrize("wrapped", [lambda source: source, Frozen, lambda source: OneView(source, 1, 1, 0, 0)], ids=["", "edit", "view"])
def test_how_clips_are_cut_and_when_files_were_written_is_part_of_the_key(pictures, wrapped):
    encoder = Colours()
    known = lambda **how: fingerprint(encoder, wrapped(opened(pictures, **how)))
    keys = [known(), known(short="loop"), known(stride=3), known(fps=2.0), known(whole=True)]  # of images, all are the same clips
    assert len(set(keys)) == 5 and known() == keys[0]
    middle = sorted(pictures.glob("test/*/*.png"))[2]
    state = middle.stat()
    os.utime(middle, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert known() != keys[0]
    os.utime(middle, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert known() == keys[0]
    middle.unlink()
    assert features.files_of(wrapped(opened(pictures)))  # one file less, and nothing breaks


def test_clips_that_cannot_be_read_are_told_and_what_lacks_them_is_not_taken_for_all(pictures, tmp_path, monkeypatch):
    """A cache is of the files as they are: mended, they are read. What a disk or a network failed to read is not kept."""
    kept, broken = tmp_path / "kept", pictures / "test" / "a" / "2.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"no picture")
    source = opened(pictures)
    with pytest.warns(UserWarning, match=rf"1 of 6 clips of .* cannot be read and are left out of the features, .*{broken.name}") as told:
        found = extract(Colours(), source, cache=kept, batch=2, **QUIET)
    assert len(told) == 1 and len(found) == 5 and len(list(kept.iterdir())) == 1
    broken.write_bytes(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(extract(Colours(), opened(pictures), cache=kept, **QUIET)) == 6 and len(list(kept.iterdir())) == 2
    broken.write_bytes(b"no picture")
    monkeypatch.setattr(features, "PASSING", ("cannot identify",))
    with pytest.warns(UserWarning, match="cannot be read"):
        extract(Colours(), opened(pictures), cache=tmp_path / "other", **QUIET)
    assert not (tmp_path / "other").exists()


def test_recordings_that_hold_several_classes_are_held_out_as_wholes():
    """Films of a data set, say: each shows many classes, and a share of them is held out all the same."""
    for recordings, seed in ((3, 0), (4, 1), (6, 2), (50, 3)):
        origin = torch.arange(1200) % recordings
        y = torch.arange(1200) // recordings % 10
        held = features.origins_held_out(y, origin, 0.2, seed)
        sides = [set(held[origin == k].tolist()) for k in range(recordings)]
        assert all(len(side) == 1 for side in sides) and sum(True in side for side in sides) == max(1, recordings // 5)


# ------------------------------------------------------------------------------------------------------------------------- the memory


def test_features_that_will_not_fit_are_refused_after_the_first_batch(pictures, monkeypatch):
    source, encoder = opened(pictures), Colours()
    need = 6 * (4 * 3 * 2 + 3 * 4)  # float16 tokens, float32 means
    monkeypatch.setattr(room, "available", lambda: need)
    assert len(extract(encoder, source, tokens=True, batch=2, **QUIET)) == 6
    monkeypatch.setattr(room, "available", lambda: need - 1)
    encoder.calls = 0
    with pytest.raises(ValueError, match=r"features of 6 clips .*4 tokens of 3 channels in float16.* GB .* available; .*limit=.*'linear'"):
        extract(encoder, source, tokens=True, batch=2, **QUIET)
    assert encoder.calls == 1
    extract(encoder, source, batch=2, **QUIET)  # the means alone fit


def test_all_segments_and_the_test_split_are_counted_before_the_first_is_read(pictures, monkeypatch):
    asked = []
    monkeypatch.setattr(features, "must_fit", lambda what, clips, *_: asked.append(clips))
    extract_views(Colours(), opened(pictures), 2, 1, tokens=True, also=10, **QUIET)
    assert asked == [10 + 4 * 6, 10 + 3 * 6]  # both segments, and both once more where they are put together
    asked.clear()
    vl.probe(Colours(), (opened(pictures, "train"), opened(pictures)), probe="knn", ks=(1,), **QUIET)
    assert asked == [12, 6]


@pytest.mark.parametrize("version", [1, 2])
def test_memory_is_what_the_control_group_leaves(tmp_path, version):
    limit, used, prefix = [("limit_in_bytes", "usage_in_bytes", "total_"), ("max", "current", "")][version - 1]
    base, said = tmp_path / "cgroup", {1: "4:memory:/job/step\n3:cpu:/job\n", 2: "0::/job/step\n"}[version]
    for folder, most in (("", "max" if version == 2 else 2**62), ("job", 1000), ("job/step", 5000)):
        group = base / ("memory" * (version == 1)) / folder
        group.mkdir(parents=True, exist_ok=True)
        (group / f"memory.{limit}").write_text(f"{most}\n")
        (group / f"memory.{used}").write_text("900\n")
        (group / "memory.stat").write_text(f"anon 1\n{prefix}inactive_file 200\n{prefix}active_file 50\n")
    (tmp_path / "own").write_text(said)
    found = list(room.left_in_groups(base, tmp_path / "own"))
    assert min(found) == 1000 - 900 + 250 and len(found) == (3 if version == 1 else 2)
    assert list(room.left_in_groups(base, tmp_path / "none")) == [] and 0 < room.available() < 2**62


def test_steps_are_averaged_in_parts_as_at_once():
    tokens = torch.randn(600, 8, 5).half()
    some = Features(tokens.float().mean(1), {}, {}, torch.arange(600), tokens, (4, 2, 1))
    assert torch.equal(some.by_step().pooled, tokens.unflatten(1, (4, 2)).float().mean(2).flatten(1))


# ------------------------------------------------------------------------------------------------------------------------- the readers


def test_clips_of_one_recording_do_not_choose_a_readers_strength(monkeypatch):
    g = np.random.default_rng(0)
    of = np.repeat(np.arange(20), 5)
    x = (g.normal(size=(20, 6))[of] + 0.01 * g.normal(size=(100, 6))).astype(np.float32)
    some = Features(torch.tensor(x), {"class": torch.tensor(of % 2)}, {"class": ["a", "b"]}, torch.arange(100))
    some = replace(some, recordings=torch.tensor(of))
    fitted, true = [], readers._logistic
    monkeypatch.setattr(readers, "_logistic", lambda x, y, c: fitted.append(x) or true(x, y, c))
    reader = readers.Reader.fit(some)
    sides = (x - reader.mean) * reader.scale
    taught = {recording for recording, row in zip(of, sides, strict=True) if (np.abs(fitted[0] - row).max(1) < 1e-9).any()}
    assert len(fitted[0]) == 80 and len(taught) == 16


def test_intervals_over_recordings_where_these_are_known():
    """Ten recordings of eight clips that are answered alike: there are ten answers, not eighty."""
    g = np.random.default_rng(1)
    of = np.repeat(np.arange(10), 8)
    clean, shifted = (g.random(10) < p for p in (0.9, 0.6))
    clean, shifted = clean[of].astype(float), (clean & shifted)[of].astype(float)
    alone, known = (shifts.metrics(clean, {"fog": shifted[None]}, 10.0, origin=origin) for origin in (None, of))
    assert alone["clean"].value == known["clean"].value and alone["rPC"].value == pytest.approx(known["rPC"].value)
    for name in ("mPC", "gamma_abs", "rPC", "retained"):
        assert known[name].hi - known[name].lo > 1.5 * (alone[name].hi - alone[name].lo), name
    each = {"baseline": shifted, "ld": clean}
    rows = [{"variant": v, "seed": s, "benchmark": "x", "each": e, "origin": of} for v, e in each.items() for s in (0, 1)]
    table = pd.DataFrame(rows)
    found, naive = (readers.differences(each).iloc[0] for each in (table, table.drop(columns="origin")))
    over = stats.cluster_interval(clean - shifted, of)
    assert (found["lo"], found["hi"]) == pytest.approx((over.lo, over.hi)) and found["hi"] - found["lo"] > naive["hi"] - naive["lo"]
    wide, narrow = (readers.tabulate(each.assign(metric="top1")) for each in (table, table.drop(columns="origin")))
    assert (wide["hi"] - wide["lo"] > narrow["hi"] - narrow["lo"]).all() and "origin" not in wide


# ------------------------------------------------------------------------------------------------------------------------- reading


def test_a_probe_reads_whole_videos_or_so_many_frames_a_second_and_says_so(pictures, tmp_path, monkeypatch):
    seen, true = [], evaluate.extract_views
    monkeypatch.setattr(evaluate, "extract_views", lambda e, s, *a, **k: seen.append(s.sampling) or true(e, s, *a, **k))
    how = {"probe": "knn", "ks": (1,), "out": tmp_path / "mine", **SHAPE, **QUIET}
    for pace in ({"stride": 2}, {"whole": True}, {"fps": 8}, {"fps": 2.5}):
        vl.probe(Colours(), str(pictures), **pace, **how)
    assert [(each.whole, each.fps) for each in seen[::2]] == [(False, None), (True, None), (False, 8), (False, 2.5)] and seen[::2] == seen[
        1::2
    ]
    table = pd.read_csv(tmp_path / "mine" / "rows.csv").query("metric == 'top1' and source == 'run'")
    assert table["probe"].tolist() == ["knn", "knn, whole", "knn, 8 fps", "knn, 2.5 fps"]
    for kind in evaluate.PROBES:
        evaluate.check_options(kind, ["whole", "fps"])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"stride": 2, "whole": True}, "stride=2, whole=True: each says"),
        ({"fps": 8, "whole": True}, "fps=8, whole=True: each says"),
        ({"fps": -1}, "fps=-1: expected"),
    ],
)
@pytest.mark.parametrize("call", [lambda *a, **k: vl.probe(Colours(), *a, **k), baselines, lambda *a, **k: vl.finetune(built(), *a, **k)])
def test_one_way_of_drawing_frames_is_asked_for(pictures, call, asked, said):
    with pytest.raises(ValueError, match=said):
        call(str(pictures), **SHAPE, **asked, **QUIET)


@pytest.mark.parametrize("call", [vl.probe, vl.finetune])
def test_clips_that_are_drawn_and_sources_have_no_frames_to_choose(pictures, call):
    with pytest.raises(ValueError, match=r"whole=True: clips of synthetic are drawn"):
        call(built(), "synthetic", whole=True, **SHAPE, **QUIET)
    with pytest.raises(ValueError, match="whole=True: Sources have"):
        call(built(), (opened(pictures, "train"), opened(pictures)), whole=True, **QUIET)


def test_yardsticks_read_the_same_frames_with_as_many_workers(pictures, tmp_path, monkeypatch):
    seen, asked, small, true = [], [], pixels.small, evaluate.probe
    run = vl.pretrain("baseline", str(pictures), "smoke", runs=tmp_path, steps=1, warmup=0, **QUIET)
    monkeypatch.setattr(
        pixels, "small", lambda source, **how: seen.append((source.sampling.whole, how["workers"])) or small(source, progress=False)
    )
    ours = wraps(true)(lambda *a, **how: asked.append(how) or true(*a, **how | {"workers": 0}))
    monkeypatch.setattr(evaluate, "probe", ours)
    baselines(str(pictures), run, probe="knn", ks=(1,), whole=True, workers=3, **QUIET)
    assert seen == [(True, 3)] * 2 and [how["whole"] for how in asked] == [True, True]


def test_fine_tuning_augments_whatever_its_split_is_called(pictures, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(finetuning, "_train", lambda run, encoder, source, *_: seen.append(source))
    monkeypatch.setattr(Finetuned, "test", lambda *_, **__: None)
    how = {"stride": 1, **SHAPE, **QUIET}
    for name, splits in (("train", ("train", "test")), ("val", ("val", "test"))):
        done = vl.finetune(built(), str(pictures), splits=splits, out=tmp_path / name, **how)
        assert done.config.get("augment", False) == (name == "val")
    assert [(source.split, source.augment) for source in seen] == [("train", True), ("val", True)]


def test_fine_tuning_reads_whole_videos_and_says_so(pictures, tmp_path):
    how = {"out": tmp_path / "ft", "whole": True, "epochs": 1, "batch": 6, "bf16": False, **SHAPE, **QUIET}
    done = vl.finetune(built(), str(pictures), **how)
    rows = done.rows().query("source == 'run' and metric == 'top1'")
    assert rows["probe"].tolist() == ["finetune, whole"] and done.config["whole"] and set(done.tested) == {"finetune, whole"}
    opened_again = []
    true = finetuning._opened
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "_opened", lambda *a, **k: opened_again.append(made := true(*a, **k)) or made)
        done.test(device="cpu", save=False, progress=False)
    assert opened_again[0].sampling.whole
    with pytest.raises(ValueError, match="fps: None there, 8 asked"):
        vl.finetune(built(), str(pictures), **{**how, "whole": False, "fps": 8})
