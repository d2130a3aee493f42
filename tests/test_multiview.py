"""Several segments and views of every video: which pixels they are, how they are put together, one prediction per video."""

import json

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vjepa_lab as vl
from vjepa_lab import data
from vjepa_lab.data.encode import x264_options
from vjepa_lab.data.files import Files
from vjepa_lab.data.listing import Clip, Listing
from vjepa_lab.evaluation import evaluate, probes, scoring
from vjepa_lab.evaluation import features as features_of
from vjepa_lab.evaluation.features import Features, extract
from vjepa_lab.evaluation.multiview import OneView, extract_views
from vjepa_lab.evidence import results

QUIET = {"progress": False}


class Colours(nn.Module):
    """An encoder whose token is the mean colour of its patch, of the channels asked for, on a grid of (frames / 2, 2, 2)."""

    def __init__(self, seen=(1.0, 1.0, 1.0)):
        super().__init__()
        self.mix = nn.Parameter(torch.diag(torch.tensor(seen, dtype=torch.float32)))

    def grid(self, clip):
        return clip.shape[2] // 2, 2, 2

    def forward(self, clip):
        return F.adaptive_avg_pool3d(clip, self.grid(clip)).flatten(2).transpose(1, 2) @ self.mix


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Wide videos of 24 frames, 12 to train, 8 to test on: red grows with time, green from left to right, blue says the class."""
    av = pytest.importorskip("av")
    root = tmp_path_factory.mktemp("videos")
    for split in ("train", "test"):
        for i in range(12 if split == "train" else 8):
            path = root / split / "ab"[i % 2] / f"{i}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            with av.open(str(path), "w") as file:
                stream = file.add_stream("libx264", rate=24, options={"crf": "1", "g": "1", **x264_options()})
                stream.width, stream.height, stream.pix_fmt = 96, 32, "yuv444p"
                for t in range(24):
                    picture = torch.zeros(32, 96, 3)
                    picture[..., 0] = 10 * t
                    picture[..., 1] = torch.linspace(0, 250, 96)
                    picture[..., 2] = 40 + 160 * (i % 2)
                    frame = av.VideoFrame.from_ndarray(picture.byte().numpy(), format="rgb24")
                    file.mux(stream.encode(frame))
                file.mux(stream.encode())
    return root


def open_(videos, split="test", **more) -> Files:
    return data.open(videos, split, frames=4, size=32, stride=1, augment=False, **more)


def raw(features: Features) -> torch.Tensor:
    """Mean red and green as pixels [n 2]."""
    std, mean = torch.tensor(data.core.STD), torch.tensor(data.core.MEAN)
    return ((features.pooled * std + mean) * 255)[:, :2]


# -------------------------------------------------------------------------------------------------------------------- the clips


def test_segments_follow_time_and_views_go_from_left_to_right(videos):
    source, encoder = open_(videos), Colours()
    red, green = {}, {}
    for segment in range(2):
        for view in range(3):
            values = raw(extract(encoder, OneView(source, 2, 3, segment, view), **QUIET))
            red[segment, view], green[segment, view] = values.mean(0).tolist()
    # segments are frames 0-11 and 12-23, the clip their centre: frames 4-7 and 16-19; 32 of 96 columns: their centres at 1/6, 1/2, 5/6
    assert all(abs(red[0, v] - 55) < 6 and abs(red[1, v] - 175) < 6 for v in range(3)), red
    assert all(abs(green[s, v] - 250 * (1 + 2 * v) / 6) < 6 for s in range(2) for v in range(3)), green


def test_a_view_is_the_clip_that_the_source_itself_would_give(videos):
    whole, source = open_(videos, segments=2, views=3), open_(videos)
    for segment in range(2):
        for view in range(3):
            one = OneView(source, 2, 3, segment, view)
            assert len(one) == 8 and torch.equal(one[5].clip, whole[5 * 6 + segment * 3 + view].clip)
            assert one[5].index == 5 and torch.equal(one.labels["class"], source.labels["class"]) and one.where(5) == source.where(5)
    assert source.copies == 1  # the views change nothing about it


@torch.no_grad()
def test_tokens_of_the_segments_follow_one_another_and_their_means_agree(videos):
    source, encoder = open_(videos), Colours()
    both = extract_views(encoder, source, 2, 3, tokens=True, **QUIET)
    assert both.clips == (2, 3) and len(both) == 24 and both.grid == (4, 2, 2) and both.tokens.shape == (24, 16, 3)
    assert both.index.tolist() == list(range(8)) * 3
    parts = [extract(encoder, OneView(source, 2, 3, segment, 1), tokens=True, **QUIET) for segment in range(2)]
    assert torch.equal(both.tokens[8:16], torch.cat([part.tokens for part in parts], 1))
    torch.testing.assert_close(both.pooled[8:16], both.tokens[8:16].float().mean(1), atol=2e-3, rtol=2e-3)
    loose = extract_views(encoder, source, 2, 3, merge="softmax", tokens=True, **QUIET)
    assert len(loose) == 48 and loose.grid == (2, 2, 2) and loose.clips == (2, 3)


def test_every_view_is_cached_for_itself(videos, tmp_path, monkeypatch):
    from vjepa_lab.evaluation import features

    calls = []
    true = features._extract
    monkeypatch.setattr(features, "_extract", lambda *a, **k: calls.append(repr(a[1]).splitlines()[-1]) or true(*a, **k))
    encoder, source = Colours(), open_(videos)
    one = extract_views(encoder, source, 2, 1, cache=tmp_path, **QUIET)
    assert len(calls) == 2
    again = extract_views(encoder, source, 2, 1, cache=tmp_path, **QUIET)
    assert len(calls) == 2 and torch.equal(one.pooled, again.pooled) and again.clips == (2, 1)
    extract_views(encoder, source, 2, 3, cache=tmp_path, **QUIET)
    assert len(calls) == 8 and len(set(calls)) == 8 and len(list(tmp_path.iterdir())) == 8
    with torch.no_grad():
        encoder.mix.mul_(2)
    extract_views(encoder, source, 2, 1, cache=tmp_path, **QUIET)
    assert len(calls) == 10


def test_a_video_that_cannot_be_read_is_left_out_of_all_views(videos, tmp_path):
    clips = list(open_(videos).listing.clips)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    clips[3] = Clip(str(tmp_path / "broken.mp4"), {"class": 1})
    source = Files(Listing("some", "test", clips, {"class": ["a", "b"]}), frames=4, size=32, stride=1)
    found = extract_views(Colours(), source, 2, 2, tokens=True, **QUIET)
    assert found.index.tolist() == [0, 1, 2, 4, 5, 6, 7] * 2


def test_sources_without_views_are_refused(videos):
    with pytest.raises(ValueError, match="segments and views are of video files"):
        extract_views(Colours(), data.open("synthetic", n=4, frames=4, size=32), 1, 3)
    with pytest.raises(ValueError, match="opened for training"):
        extract_views(Colours(), data.open(videos, "train", frames=4, size=32), 1, 3)
    with pytest.raises(ValueError, match="views of its own"):
        extract_views(Colours(), open_(videos, views=3), 1, 3)
    with pytest.raises(ValueError, match="expected 1 or more"):
        extract_views(Colours(), open_(videos), 0, 3)
    with pytest.raises(ValueError, match="expected 'tokens'"):
        extract_views(Colours(), open_(videos), 2, 3, merge="mean")


# --------------------------------------------------------------------------------------------------------------- one prediction each


def made(pooled, y, index, split="test", clips=(1, 1)) -> Features:
    return Features(pooled, {"class": y}, {"class": ["a", "b", "c"]}, index, name="made", split=split, encoder="none", clips=clips)


def test_probabilities_of_a_videos_clips_are_averaged():
    """Three videos, two views: the first is right only on average, the second wrong only on average."""
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    views = [[[0.40, 0.50, 0.10], [0.10, 0.45, 0.45], [0.1, 0.2, 0.7]], [[0.80, 0.10, 0.10], [0.90, 0.05, 0.05], [0.3, 0.2, 0.5]]]
    probability = torch.tensor(views).flatten(0, 1)
    features = made(torch.zeros(6, 1), y, torch.tensor([0, 1, 2, 0, 1, 2]), clips=(1, 2))
    result = scoring.scored(probability, y, features, "class", "linear", None, 0, {})
    rows = {row["metric"]: row for row in result.rows}
    assert rows["top1"]["value"] == pytest.approx(200 / 3) and rows["top1"]["n"] == 3
    assert rows["top1"]["probe"] == "linear 1x2" and (rows["top1"]["segments"], rows["top1"]["views"]) == (1, 2)
    assert result.predictions["id"].tolist() == [0, 1, 2] and result.predictions["top1"].tolist() == [0, 0, 2]
    expected = torch.tensor(views).double().mean(0)
    assert result.predictions["margin"].tolist() == pytest.approx([(0.6 - 0.3), (0.25 - 0.5), (0.6 - 0.2)])
    torch.testing.assert_close(scoring.per_file(features, probability.double())[1], expected)
    assert all(row["n"] == 3 for row in result.controls)
    single = scoring.scored(probability[:3], y[:3], made(torch.zeros(3, 1), y[:3], y[:3]), "class", "linear", None, 0, {})
    assert single.rows[0]["probe"] == "linear" and "views" not in single.rows[0]


def test_clips_of_one_training_video_lie_on_one_side_of_the_selection():
    index = torch.arange(20).repeat(3)
    y = (torch.arange(20) % 2).repeat(3)
    held = features_of.origins_held_out(y, index, 0.2, 0)
    assert held.sum() == 12 and all(len(set(held[index == i].tolist())) == 1 for i in range(20))
    alone = features_of.origins_held_out(y[:20], index[:20], 0.2, 0)
    assert torch.equal(alone, features_of.held_out(y[:20], 0.2, 0))


def test_neighbours_of_the_same_video_do_not_vote():
    """Every training video has two equal clips and random labels: only a vote by its own copy could be right."""
    x = torch.randn(30, 16)
    y = torch.randint(0, 3, (30,))
    train = made(x.repeat(2, 1), y.repeat(2), torch.arange(30).repeat(2), "train", (1, 2))
    assert probes.knn(train, train, ks=(1,)).search["val_top1"].item() < 70


@pytest.mark.parametrize("probe", ["linear", "attentive", "knn", "stepwise"])
@pytest.mark.parametrize("merge", ["tokens", "softmax"])
def test_every_probe_takes_views(videos, tmp_path, probe, merge):
    more, name = {} if probe == "knn" else {"epochs": 8}, f"{probe} 2x3" + ", mean of clips" * (merge == "softmax")
    (result,) = vl.probe(
        Colours((0, 0, 1)), str(videos), probe=probe, merge=merge, segments=2, views=3, frames=4, size=32, stride=1, out=tmp_path / "mine",
        cache=tmp_path / "cache", progress=False, **({"ks": (1, 3)} if probe == "knn" else more),
    )  # fmt: skip
    assert result.rows[0]["n"] == 8 and result.rows[0]["probe"] == name and len(result.predictions) == 8
    if probe != "attentive":  # eight videos are too few to train attention on
        assert result.value() == 100
    table = results.read_run(tmp_path / "mine").query("source == 'run'")
    own = table[table["probe"].eq(name) & table["metric"].eq("top1")]
    assert own["views"].tolist() == [3] and own["segments"].tolist() == [2] and own["variant"].tolist() == ["mine"]
    (file,) = (tmp_path / "mine" / "predictions").iterdir()
    assert len(pd.read_parquet(file)) == 8


def test_one_view_and_several_stay_apart_in_the_table(videos, tmp_path):
    how = {"frames": 4, "size": 32, "stride": 1, "out": tmp_path / "mine", "epochs": 3, "progress": False}
    for views in (1, 3, 3):
        vl.probe(Colours(), str(videos), views=views, **how)
    table = results.read_run(tmp_path / "mine")
    assert sorted(table[table["metric"].eq("top1") & table["source"].eq("run")]["probe"]) == ["linear", "linear 1x3"]


def test_the_views_softmax_is_averaged_not_their_features(videos):
    """Blue in the left view alone is turned around: two views of three outvote it."""
    train, test = (
        extract_views(Colours((0, 0, 1)), open_(videos, split), 1, views, **QUIET) for split, views in (("train", 1), ("test", 3))
    )
    pooled = test.pooled.clone()
    pooled[:8] = 2 * train.pooled.mean(0) - pooled[:8]
    turned = probes.linear(train, Features(**vars(test) | {"pooled": pooled}), epochs=20, **QUIET)
    assert turned.value() == 100 and turned.rows[0]["n"] == 8 and turned.predictions["margin"].max() < 0.5


# ----------------------------------------------------------------------------------------------------------- whose encoder is probed


def test_an_encoder_needs_a_clip_shape_and_data(videos):
    with pytest.raises(ValueError, match="say its clips' frames, size, stride"):
        vl.probe(Colours(), str(videos))
    with pytest.raises(ValueError, match="name the data set"):
        vl.probe(Colours(), frames=4, size=32, stride=1)


def test_a_misspelt_label_is_refused_before_a_clip_is_encoded(videos, monkeypatch):
    monkeypatch.setattr(evaluate, "extract_views", lambda *_, **__: pytest.fail("encoded"))
    with pytest.raises(ValueError, match=r"\[train\] has no label 'clas'; it has class"):
        vl.probe(Colours(), str(videos), ("class", "clas"), frames=4, size=32, stride=1)


@pytest.mark.parametrize(("probe", "option", "near"), [("linear", "epoch", "epochs"), ("stepwise", "name", ""), ("knn", "k", "ks")])
def test_an_option_that_a_probe_lacks_is_refused_before_a_clip_is_encoded(videos, monkeypatch, probe, option, near):
    monkeypatch.setattr(evaluate, "extract_views", lambda *_, **__: pytest.fail("encoded"))
    with pytest.raises(ValueError, match=f"{option}: unknown to the probe '{probe}'; .*{near}"):
        vl.probe(Colours(), str(videos), probe=probe, frames=4, size=32, stride=1, **{option: 3})


def test_released_weights_are_probed_without_a_run(videos, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    config = transformers.VJEPA2Config(
        patch_size=16, crop_size=32, frames_per_clip=4, hidden_size=48, num_attention_heads=2, num_hidden_layers=2, pred_hidden_size=24,
        pred_num_attention_heads=2, pred_num_hidden_layers=1,
    )  # fmt: skip
    transformers.VJEPA2Model(config).save_pretrained(tmp_path / "hf")
    how = {"frames": 4, "stride": 1, "epochs": 3, "progress": False}
    for spec in ("hf", "vjepa2:hf"):
        (result,) = vl.probe(spec, str(videos), **how)
        assert result.rows[0]["encoder"] == "student" and result.rows[0]["n"] == 8
    about = json.loads((tmp_path / "runs" / "vjepa2" / "config.json").read_text())
    assert about["variant"] == "vjepa2" and about["init"]["path"] == str(tmp_path / "hf")
    table = results.read_run(tmp_path / "runs" / "vjepa2")
    assert set(table[table["source"].eq("run")]["variant"]) == {"vjepa2"} and set(table["regime"]) == {"released weights"}
    other = tmp_path / "other"
    transformers.VJEPA2Model(config).save_pretrained(other)
    with pytest.raises(ValueError, match="holds results of another encoder"):
        vl.probe(str(other), str(videos), **how)


def test_views_of_real_videos(clips):
    """UCF-101's AVI files: segments differ, the left and right views share the picture's middle and nothing else."""
    folder = clips / "ucf101" / "UCF-101"
    source = data.open(str(folder), "all", frames=8, size=96, stride=2, augment=False)
    left, middle, right = (OneView(source, 2, 3, 0, view)[0].clip for view in range(3))
    later = OneView(source, 2, 3, 1, 1)[0].clip
    assert left.shape == (3, 8, 96, 96) and not torch.equal(middle, later)
    # 320 x 240: squares of 240 begin at 0, 40, 80; so the left one's columns from 16 on are the middle one's from 0 on
    near = (left[..., 20:90].float() - middle[..., 4:74].float()).abs().mean()
    far = (left[..., 4:74].float() - middle[..., 4:74].float()).abs().mean()
    assert near < 4 and near < far / 2
    assert (middle[..., 20:90].float() - right[..., 4:74].float()).abs().mean() < 4
