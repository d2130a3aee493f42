"""What a number has to beat: every predictor in one table, intervals over what was really sampled."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import stats as sps

import vjepa_lab as vl
from vjepa_lab import data
from vjepa_lab.analysis import ends, halves, openset, robustness, subjects, transfer
from vjepa_lab.data.edited import Frozen
from vjepa_lab.data.splits import apart
from vjepa_lab.evaluation.yardsticks import COLUMNS, baselines
from vjepa_lab.evidence import results, stats

UCF = "ucf101_6cls_128p"


def test_the_real_six_classes_in_one_table(clips, tmp_path):
    table = baselines(str(clips / UCF), preset="smoke", runs=tmp_path, progress=False).set_index("predictor")
    assert list(table.reset_index().columns) == COLUMNS
    assert list(table.index[:6]) == [
        "chance", "largest class of train", "largest class of test", "mean-frame 1-NN", "frame-difference 1-NN", "random-init encoder",
    ]  # fmt: skip
    assert table.loc["chance", "value"] == pytest.approx(100 / 6) and np.isnan(table.loc["chance", "lo"])
    rest = table.drop("chance")
    assert (rest["n"] == 62).all() and (rest["recordings"] == 12).all()  # groups 1 and 2 of six classes
    assert (rest["lo"] <= rest["value"]).all() and (rest["value"] <= rest["hi"]).all()
    assert (rest["recording_hi"] - rest["recording_lo"] > rest["hi"] - rest["lo"]).all()  # clips of one recording are alike
    assert table.loc["mean-frame 1-NN", "value"] > table.loc["largest class of test", "value"]


def test_a_note_says_what_the_table_cannot_show(clips, tmp_path):
    table = baselines(str(clips / UCF), preset="smoke", runs=tmp_path, limit=40, progress=False)
    assert "4 pretraining steps" in table.attrs["note"] and "Smoke size" in table.attrs["note"]


def test_a_run_that_was_stopped_is_told_by_the_steps_it_took(tmp_path):
    class Stop(Exception):
        pass

    def stop(record):
        if record["step"] >= 4:
            raise Stop

    with pytest.raises(Stop):
        vl.pretrain("baseline", "synthetic", "smoke", runs=tmp_path, steps=50, save_every=2, log_every=1, callback=stop, progress=False)
    (run,) = (vl.load_run(path) for path in tmp_path.iterdir() if (path / "config.json").exists())
    assert 0 < run.steps_done < 50
    source = [data.open("synthetic", split, frames=8, size=32, n=40, cache="memory") for split in ("train", "test")]
    assert f" {run.steps_done} pretraining steps" in baselines(source, run, "shape", progress=False).attrs["note"]


def test_a_trained_run_and_its_own_sources(tmp_path):
    source = [data.open("synthetic", split, frames=8, size=32, n=40, cache="memory") for split in ("train", "test")]
    run = vl.pretrain("baseline", source[0], "smoke", runs=tmp_path, progress=False)
    table = baselines(source, run, "shape", progress=False)
    assert table["predictor"].iloc[-1] == run.name and table["recording_lo"].isna().all() and (table["n"] == 40).all()


def test_a_misspelt_label_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    source = [data.open("synthetic", split, frames=8, size=32, n=40) for split in ("train", "test")]
    run = vl.pretrain("baseline", source[0], "smoke", runs=tmp_path, progress=False)
    monkeypatch.setattr(data, "loader", lambda *_, **__: pytest.fail("clips were read"))
    with pytest.raises(ValueError, match=r"has no label 'shpe'; it has .*shape"):
        baselines(source, run, "shpe", progress=False)
    with pytest.raises(ValueError, match="epoch: unknown to the probe 'linear'; did you mean epochs"):
        baselines(source, run, "shape", progress=False, epoch=3)


@pytest.fixture
def pictures(tmp_path):
    """Ten images, a list of all, one of the first six and one of the last six."""
    for i in range(10):
        Image.new("RGB", (32, 32), (20 * i,) * 3).save(tmp_path / f"{i}.png")
    for name, part in (("all", range(10)), ("first", range(6)), ("last", range(4, 10))):
        (tmp_path / f"{name}.txt").write_text("".join(f"{tmp_path}/{i}.png {i % 2}\n" for i in part))
    return tmp_path


def test_the_same_files_are_no_training_and_test_set_whatever_is_made_of_them(pictures, monkeypatch):
    monkeypatch.setattr(vl.train, "pretrain", lambda *_, **__: pytest.fail("trained"))
    same = "are the same 10 clips"
    for spec, label in (("", "class"), ("kenburns:", "motion"), ("time:", "edit")):
        with pytest.raises(ValueError, match=same):
            baselines(f"{spec}{pictures / 'all.txt'}", labels=label, preset="smoke", progress=False)
    shape = {"frames": 4, "size": 16}
    opened = lambda name, split, spec="": data.open(f"{spec}{pictures / name}.txt", split, augment=False, **shape)
    shared = r"share 2 of 6 test clips \(.*4.png, \.\.\.\)"
    with pytest.raises(ValueError, match=shared):
        baselines((opened("first", "train"), opened("last", "test")), preset="smoke", progress=False)
    frozen = Frozen(opened("last", "test", "kenburns:"))
    with pytest.raises(ValueError, match=shared):
        vl.probe(torch.nn.Identity(), (opened("first", "train"), frozen))
    mixed = data.Mixture([data.open("synthetic", "test", n=4, **shape), opened("last", "test")], [1, 1], "test")
    with pytest.raises(ValueError, match=shared):
        apart(opened("first", "train"), mixed)
    apart(*(data.open("synthetic", split, n=4, **shape) for split in ("train", "train")))  # clips of no file


def test_sources_opened_for_training_are_not_asked(pictures):
    """Their clips are cut anew each time; a shape and splits are for what is opened by name."""
    shape = {"frames": 4, "size": 16}
    train, test = (data.open(pictures / f"{name}.txt", **shape) for name in ("first", "last"))
    assert train.augment and data.Mixture([train], [1]).augment and not data.open("synthetic").augment
    for one in (train, Frozen(train), data.Mixture([train, train], [1, 1])):
        with pytest.raises(data.DataError, match=r"opened for training: .* open it with augment=False"):
            data.still(one, "train", vl.preset("smoke"))
    with pytest.raises(data.DataError, match="opened for training"):
        vl.probe(torch.nn.Identity(), (train, test))
    with pytest.raises(data.DataError, match=r"is one split; give a pair of Sources"):
        vl.probe(torch.nn.Identity(), data.open("synthetic", **shape), stride=1, **shape)
    calm = [data.open(pictures / f"{name}.txt", augment=False, **shape) for name in ("first", "last")]
    for asked in ({"frames": 8}, {"size": 32}, {"splits": ("train", "val")}):
        with pytest.raises(ValueError, match=r"Sources have splits and a clip shape of their own"):
            vl.probe(torch.nn.Identity(), calm, **asked)
        with pytest.raises(ValueError, match=r"Sources have splits and a clip shape of their own"):
            baselines(calm, preset="smoke", progress=False, **asked)
    (pictures / "rest.txt").write_text("".join(f"{pictures}/{i}.png {i % 2}\n" for i in range(6, 10)))
    first, rest = data.pair((pictures / "first.txt", pictures / "rest.txt"), ("train", "test"), ("class",), vl.preset("smoke"))
    assert not first.augment and len(first) == 6 and len(rest) == 4  # names of two lists, as the refusal of one list advises


def test_a_clip_shape_is_for_the_probe_and_not_for_the_pretraining(tmp_path):
    how = {"labels": "motion", "preset": "smoke", "runs": tmp_path, "limit": 20, "epochs": 1, "save": True, "progress": False}
    baselines("synthetic", **how)
    baselines("synthetic", frames=4, **how)
    (folder,) = tmp_path.iterdir()
    rows = results.read_run(folder).query("metric == 'top1' and source == 'run'")
    assert set(rows["probe"]) == {"linear", "linear, 4 frames"} and vl.load_run(folder).preset.frames == 8


@pytest.mark.parametrize("study", [robustness.corrupted, openset.held_out, halves.halves])
def test_no_study_teaches_the_clips_that_it_asks(study, pictures, monkeypatch):
    monkeypatch.setattr(subjects.Subject, "features", lambda *_, **__: pytest.fail("clips were read"))
    run = vl.pretrain("baseline", "synthetic", "smoke", steps=0, out=pictures / "run", progress=False)
    with pytest.raises(ValueError, match="are the same 10 clips"):
        study([run], f"kenburns:{pictures / 'all.txt'}", clips=(50, 50), progress=False)
    with pytest.raises(ValueError, match="are the same 10 clips"):
        transfer.across([run], str(pictures / "all.txt"), str(pictures / "all.txt"), progress=False)


def test_who_reads_one_set_is_not_asked_about_its_clips_in_another(pictures, monkeypatch):
    monkeypatch.setattr(subjects.Subject, "features", lambda *_, **__: pytest.fail("clips were read"))
    run = vl.pretrain("baseline", "synthetic", "smoke", steps=0, out=pictures / "run", progress=False)
    for name, trains in (("here", "012"), ("there", "345")):
        lines = "".join(f"{pictures}/{i}.png,{i % 2},{'train' if str(i) in trains else 'test'}\n" for i in range(6))
        (pictures / f"{name}.csv").write_text(f"path,label,split\n{lines}")
    with pytest.raises(ValueError, match=r"share|are the same"):
        transfer.across([run], str(pictures / "here.csv"), str(pictures / "there.csv"), progress=False)
    run = vl.pretrain("baseline", "synthetic", "smoke", steps=1, out=pictures / "trained", progress=False)
    with pytest.raises(ValueError, match="are the same 10 clips"):
        ends.align(run, data=f"kenburns:{pictures / 'all.txt'}")


def test_parts_of_one_file_are_apart_where_they_share_no_time(tmp_path):
    (tmp_path / "list.csv").write_text("path,label,split,start,end\na.mp4,0,train,0,5\na.mp4,1,test,5,9\nb.mp4,1,test,,\n")
    apart(*(data.open(tmp_path / "list.csv", split) for split in ("train", "test")))
    (tmp_path / "list.csv").write_text("path,label,split,start,end\na.mp4,0,train,0,5\na.mp4,1,test,4,9\nb.mp4,1,test,,\n")
    with pytest.raises(data.DataError, match=r"share 1 of 2 test clips \(.*a.mp4, "):
        apart(*(data.open(tmp_path / "list.csv", split) for split in ("train", "test")))


def test_a_run_is_taken_by_its_folder_and_a_limit_is_said_in_its_rows(tmp_path):
    source = [data.open("synthetic", split, frames=8, size=32, n=40, cache="memory") for split in ("train", "test")]
    run = vl.pretrain("baseline", source[0], "smoke", runs=tmp_path, progress=False)
    how = {"labels": "shape", "save": True, "progress": False, "preset": "smoke", "epochs": 2}
    whole = baselines(source, run.path, **how)
    part = baselines("synthetic", run.path, limit=30, **how)
    assert whole["predictor"].iloc[-1] == part["predictor"].iloc[-1] == run.name
    assert {"synthetic/shape", "synthetic/shape, 30 clips"} <= set(results.read_run(run.path)["benchmark"])


def test_an_untrained_encoder_says_nothing_of_training(tmp_path):
    source = [data.open("synthetic", split, frames=8, size=32, n=40, cache="memory") for split in ("train", "test")]
    run = vl.pretrain("baseline", source[0], "smoke", runs=tmp_path, progress=False)
    note = baselines(source, run, "shape", encoder="initial", progress=False).attrs["note"]
    assert "Both rows are of the encoder before its training" in note and "This training" not in note
    assert "This training" in baselines(source, run, "shape", progress=False).attrs["note"]


def test_several_labels_are_read_off_in_one_pass(tmp_path, monkeypatch):
    source = [data.open("synthetic", split, frames=8, size=32, n=40, cache="memory") for split in ("train", "test")]
    run = vl.pretrain("baseline", source[0], "smoke", runs=tmp_path, progress=False)
    alone = [baselines(source, run, label, progress=False) for label in ("shape", "motion")]
    passes, loader = [], data.loader
    monkeypatch.setattr(data, "loader", lambda source, *a, **k: passes.append(source.split) or loader(source, *a, **k))
    together = baselines(source, run, ["shape", "motion"], progress=False)
    assert sorted(passes) == ["test", "test", "test", "train", "train", "train"]  # pixels, untrained, trained
    for one, other in zip(alone, together, strict=True):
        pd.testing.assert_frame_equal(one, other)
        assert one.attrs == other.attrs
    with pytest.raises(ValueError, match="1 results for 2 labels"):
        baselines(source, run, ["shape", "motion"], found=vl.probe(run, source, "shape", progress=False), progress=False)


def test_a_leaking_split_flatters_the_mean_frame(clips):
    from vjepa_lab.evaluation.pixels import mean_frame_nn

    at = {"frames": 4, "size": 32, "augment": False}
    fair, leaky = (
        mean_frame_nn(*(data.open(str(clips / UCF), s, **at, **how) for s in ("train", "test")), progress=False).value()
        for how in ({}, {"random": True, "leak": True})
    )
    assert leaky > fair + 15


# --- intervals over recordings ----------------------------------------------------------------------------------------


def test_a_cluster_per_sample_is_the_t_interval():
    x = np.random.default_rng(0).random(60) < 0.4
    alone, plain = stats.cluster_interval(x, np.arange(60)), stats.t_interval(100.0 * x)
    assert (alone.lo, alone.hi) == pytest.approx((plain.lo, plain.hi))
    with pytest.raises(ValueError, match="at least two"):
        stats.cluster_interval(x, np.zeros(60))


def test_intervals_over_clusters_cover_where_intervals_over_samples_do_not():
    rng, truth, studies = np.random.default_rng(1), 50.0, 400
    hit = {"clusters": 0, "samples": 0}
    for _ in range(studies):
        cluster = np.repeat(np.arange(20), 6)
        x = rng.random(120) < rng.beta(0.5, 0.5, 20)[cluster]
        for name, place in (("clusters", cluster), ("samples", np.arange(120))):
            interval = stats.cluster_interval(x, place)
            hit[name] += interval.lo <= truth <= interval.hi
    assert sps.binomtest(hit["clusters"], studies, 0.95).pvalue > 0.001 and hit["samples"] < 0.8 * studies
