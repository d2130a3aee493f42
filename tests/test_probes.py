"""Probes find what is there, do not find what is not, and never look at test labels before the final count."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import vjepa_lab as vl
from vjepa_lab import data
from vjepa_lab.evaluation import evaluate, probes
from vjepa_lab.evaluation import features as features_of
from vjepa_lab.evaluation.heads import AttentiveHead, LinearHead, ReleasedHead, StackedAdamW, stack
from vjepa_lab.evaluation.pixels import frame_difference_nn, mean_frame_nn
from vjepa_lab.evaluation.probes import Features, attentive, controls, extract, few_shot, knn, linear, ridge, stepwise
from vjepa_lab.evidence import results, stats
from vjepa_lab.model import Encoder
from vjepa_lab.rope import positions

GRID, DIM = (4, 2, 2), 48
QUICK = {"progress": False}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices: more threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def features(tokens, y, classes, split="train", **kw) -> Features:
    names = {"class": [f"c{i}" for i in range(classes)]}
    return Features(
        tokens.mean(1), {"class": y}, names, torch.arange(len(y)), tokens.half(), GRID, name="planted", split=split, encoder="none", **kw
    )


def planted(what: str, n: int, split: str, classes: int = 2) -> Features:
    """Tokens in which the label is in the mean of all ("mean"), in the order of two tokens ("order"), or nowhere ("nothing")."""
    g = torch.Generator().manual_seed(1 if split == "train" else 2)
    y = torch.randint(0, classes, (n,), generator=g)
    tokens = 0.3 * torch.randn(n, math.prod(GRID), DIM, generator=g)
    if what == "mean":
        tokens += 0.3 * F.one_hot(y, DIM)[:, None]
    elif what == "order":
        early, late = torch.randint(0, 8, (n,), generator=g), torch.randint(8, 16, (n,), generator=g)
        first, second = torch.where(y == 0, early, late), torch.where(y == 0, late, early)
        clip = torch.arange(n)
        tokens[clip, first, :8] += 2.0
        tokens[clip, second, 8:16] += 2.0
    return features(tokens, y, classes, split)


# ------------------------------------------------------------------------------------------------------------------- sanity


def test_a_label_in_the_mean_is_found_by_every_probe():
    train, test = (planted("mean", n, split, classes=4) for n, split in ((400, "train"), (200, "test")))
    assert linear(train, test, **QUICK).value() > 90
    assert knn(train, test).value() > 80
    assert attentive(train, test, **QUICK).value() > 90
    assert attentive(train, test, form="released", epochs=10, **QUICK).value() > 90
    assert attentive(train, test, form="vjepa2", lrs=(1e-3,), epochs=10, **QUICK).value() > 90


def test_a_label_in_the_order_of_tokens_is_found_only_by_what_knows_places():
    train, test = planted("order", 800, "train"), planted("order", 300, "test")
    blind = [linear(train, test, **QUICK), knn(train, test), attentive(train, test, **QUICK)]
    for result in blind:
        row = result.rows[0]
        assert row["lo"] < 50 < row["hi"] or abs(row["value"] - 50) < 8, result
    assert attentive(train, test, with_positions=True, **QUICK).value() > 85
    assert stepwise(train, test, **QUICK).value() > 85


def test_a_label_that_is_nowhere_is_not_found():
    train, test = planted("nothing", 600, "train"), planted("nothing", 400, "test")
    for result in (linear(train, test, **QUICK), knn(train, test), attentive(train, test, with_positions=True, epochs=5, **QUICK)):
        assert 40 < result.value() < 60, result
        assert (result.table()["flag"] != "").any()


PROBES = {
    "linear": lambda train, test, **kw: linear(train, test, epochs=10, **QUICK, **kw),
    "linear kept": lambda train, test, **kw: linear(train, test, epochs=10, refit=False, **QUICK, **kw),
    "attentive": lambda train, test, **kw: attentive(train, test, epochs=2, **QUICK, **kw),
    "vjepa2": lambda train, test, **kw: attentive(train, test, form="vjepa2", lrs=(1e-4, 1e-3), epochs=1, **QUICK, **kw),
    "released": lambda train, test, **kw: attentive(train, test, form="released", epochs=2, **QUICK, **kw),
    "knn": lambda train, test: knn(train, test),
}


@pytest.mark.parametrize("name", PROBES)
def test_test_labels_change_neither_the_selection_nor_a_prediction(name):
    train, test = planted("mean", 200, "train", 4), planted("mean", 100, "test", 4)
    shuffled = Features(**{**vars(test), "labels": {"class": test.labels["class"][torch.randperm(len(test))]}})
    honest, permuted = PROBES[name](train, test), PROBES[name](train, shuffled)
    assert honest.selected == permuted.selected and honest.search.equals(permuted.search)
    assert honest.predictions["top1"].equals(permuted.predictions["top1"])
    assert honest.value() > permuted.value()


@pytest.mark.parametrize("name", [name for name in PROBES if name != "knn"])
def test_the_same_seed_gives_the_same_result_and_another_does_not(name):
    train, test = planted("mean", 200, "train", 4), planted("mean", 100, "test", 4)
    one = PROBES[name](train, test, seed=3)
    torch.rand(7)
    again, other = PROBES[name](train, test, seed=3), PROBES[name](train, test, seed=4)
    assert one.rows == again.rows and one.predictions.equals(again.predictions)
    assert not one.predictions["margin"].equals(other.predictions["margin"])


# ------------------------------------------------------------------------------------------------------------------- numbers


def test_rows_intervals_and_classes_are_counted_right():
    y = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
    top1 = torch.tensor([0, 0, 0, 1, 1, 1, 0, 2, 2, 0])  # 3/4, 2/2, 2/4; class 3 does not occur
    test = features(torch.zeros(10, 16, DIM), y, 4, "test")
    result = probes.scored(0.7 * F.one_hot(top1, 4) + 0.075, y, test, "class", "made", None, 5, {})
    rows = {row["metric"]: row for row in result.rows}
    assert set(rows) == {"top1", "balanced_accuracy"}  # top-5 of 4 classes says nothing
    assert rows["top1"]["value"] == pytest.approx(70) and rows["balanced_accuracy"]["value"] == pytest.approx(75)
    z, p, n = 1.959964, 0.7, 10
    centre, half = (p + z * z / 2 / n) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    assert rows["top1"]["lo"] == pytest.approx(100 * (centre - half), abs=1e-3)
    assert rows["top1"]["hi"] == pytest.approx(100 * (centre + half), abs=1e-3)
    balanced = float(stats.wilson(75.0, 9 / (1 / 4 + 1 / 2 + 1 / 4))[0])
    assert rows["balanced_accuracy"]["lo"] == pytest.approx(balanced)
    assert {row["n"] for row in result.rows} == {10} and rows["top1"]["probe_seed"] == 5 and rows["top1"]["encoder"] == "none"
    assert result.per_class["n"].tolist() == [4, 2, 4] and result.per_class["top1"].tolist() == [75, 100, 50]
    margin = result.predictions["margin"]
    assert (margin[result.predictions["top1"] == result.predictions["label"]] > 0).all()
    assert margin.iloc[0] == pytest.approx(0.7) and margin.iloc[3] == pytest.approx(-0.7)


def test_top5_is_there_with_six_classes():
    y = torch.arange(12) % 6
    probability = torch.rand(12, 6)
    probability[torch.arange(12), y] = torch.cat([torch.full((9,), 2.0), torch.full((3,), -1.0)])  # three are last of six
    test = features(torch.zeros(12, 16, DIM), y, 6, "test")
    assert probes.scored(probability, y, test, "class", "made", None, 0, {}).value("top5") == pytest.approx(75)


def test_controls_and_their_flags():
    train, test = torch.tensor([0, 0, 0, 1, 2]), torch.tensor([1] * 5 + [0] * 3 + [2] * 2)
    made = controls(train, test, benchmark="made")
    rows = {(row["metric"], row["variant"]): row["value"] for row in made}
    assert rows["top1", "chance"] == pytest.approx(100 / 3) and rows["balanced_accuracy", "chance"] == pytest.approx(100 / 3)
    assert rows["top1", "majority-train"] == 30 and rows["top1", "majority-test"] == 50
    assert all(row["source"] == "constant" and row["n"] == 10 for row in made)

    at = features(torch.zeros(10, 16, DIM), test, 3, "test")
    constant = F.one_hot(torch.ones(10, dtype=torch.long), 3)
    weak, strong = (probes.scored(guess, test, at, "class", "made", "made", 0, {}).table() for guess in (constant, F.one_hot(test, 3)))
    assert weak["flag"].iloc[0].startswith("= majority") and strong["flag"].iloc[0] == ""


def test_every_metric_is_held_against_its_own_constant():
    """A probe that always answers the same is flagged under each metric; top-5 by the five largest classes, not by the largest."""
    y = torch.arange(60) % 10  # ten classes
    y[:30] = 0
    at = features(torch.zeros(60, 16, DIM), y, 10, "test")
    by_size = torch.bincount(y, minlength=10).argsort(descending=True, stable=True)
    ranking = torch.linspace(1, 0.1, 10)[by_size.argsort()].expand(60, -1)
    same = probes.scored(ranking, y, at, "class", "made", "made", 0, {}).table()
    constant = same[same["source"] == "constant"].set_index(["metric", "variant"])["value"]
    assert constant["top5", "majority-test"] == pytest.approx(100 * torch.bincount(y).sort().values[-5:].sum() / 60)
    own = same[same["source"] == "run"].set_index("metric")
    assert (own["flag"] != "").all() and own.loc["top5", "value"] == pytest.approx(constant["top5", "majority-test"])
    # right on every other clip: far above 1/10 balanced, though top-1 stays below the share of the largest class
    guess = torch.where(torch.arange(60) % 2 == 0, y, (y + 1) % 10)
    half = probes.scored(F.one_hot(guess, 10).float(), y, at, "class", "made", "made", 0, {}).table().set_index(["source", "metric"])
    assert half.loc[("run", "balanced_accuracy"), "flag"] == "" and half.loc[("run", "top1"), "flag"] != ""


def test_clips_without_the_label_are_left_out():
    train, test = planted("mean", 300, "train", 4), planted("mean", 100, "test", 4)
    test.labels["class"][:40] = -1
    train.labels["class"][::3] = -1
    result = linear(train, test, epochs=20, **QUICK)
    assert result.rows[0]["n"] == 60 and result.predictions["id"].min() == 40


def test_a_diverging_learning_rate_is_not_chosen():
    train, test = planted("mean", 300, "train"), planted("mean", 100, "test")
    result = attentive(train, test, lrs=(1e18, 1e-3), epochs=5, **QUICK)
    assert result.selected["lr"] == 1e-3 and result.value() > 80


def test_selection_uses_a_stratified_part_of_train():
    y = torch.tensor([0] * 50 + [1] * 20 + [2] * 3)
    held = features_of.held_out(y, 0.2, seed=0)
    assert [int(held[y == k].sum()) for k in range(3)] == [10, 4, 0]
    assert not torch.equal(held, features_of.held_out(y, 0.2, seed=1))
    train, test = planted("mean", 200, "train"), planted("mean", 50, "test")
    result = linear(train, test, epochs=5, **QUICK)
    assert len(result.search) == 12 and result.selected["val_n"] in (39, 40)
    assert result.search["val_top1"].max() == result.selected["val_top1"]


def test_knn_chooses_k_by_leaving_one_out():
    g = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    tokens = torch.randn(90, 16, DIM, generator=g) + 0.1 * F.one_hot(y, DIM)[:, None]
    train = features(tokens, y, 3)
    x = F.normalize((train.pooled - train.pooled.mean(0)) / train.pooled.std(0, correction=0))
    right = 0
    for i in range(90):
        closeness = x[i] @ x.T
        closeness[i] = -9
        near = closeness.argsort(descending=True)[:5]
        votes = [float(((closeness[near] / 0.07).exp() * (y[near] == k)).sum()) for k in range(3)]
        right += int(np.argmax(votes) == y[i])
    assert knn(train, train, ks=(5,)).search["val_top1"].item() == pytest.approx(100 * right / 90)


def test_knn_in_parts_is_knn_at_once():
    """More clips than one part holds, two clips of each file: every clip's neighbours are of other files."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(2400) // 2 % 3
    tokens = torch.randn(2400, 2, DIM, generator=g) + 0.5 * F.one_hot(y, DIM)[:, None]
    train = replace(features(tokens, y, 3), index=torch.arange(2400) // 2)
    x = F.normalize((train.pooled - train.pooled.mean(0)) / train.pooled.std(0, correction=0))
    near = (x @ x.T).masked_fill(train.index[:, None] == train.index, -9).topk(5)
    votes = torch.zeros(2400, 3).scatter_add_(1, y[near.indices], (near.values / 0.07).exp())
    assert knn(train, train, ks=(5,)).search["val_top1"].item() == pytest.approx(100 * float((votes.argmax(1) == y).float().mean()))


def recorded(recordings: int, each: int, seed: int):
    """Clips of two classes, `each` near-twins of every recording; the class shows weakly, the recording strongly."""
    g = torch.Generator().manual_seed(seed)
    of = torch.arange(recordings).repeat_interleave(each)
    y = of % 2
    own = torch.randn(recordings, 1, DIM, generator=g)[of]
    tokens = own + 0.02 * torch.randn(len(of), 2, DIM, generator=g) + 0.7 * F.one_hot(y, DIM)[:, None]
    return replace(features(tokens, y, 2), recordings=of)


def test_clips_of_one_recording_lie_on_one_side_of_the_selection():
    """Otherwise twins would answer for each other, and whatever fits the recording best is chosen."""
    train, test = recorded(40, 6, 0), recorded(40, 6, 1)
    apart, together = knn(train, test), knn(replace(train, recordings=None), test)
    assert (together.search["val_top1"] == 100).any() and together.selected["k"] == 1
    assert apart.search["val_top1"].max() < 90 and apart.selected["k"] > 1
    held = features_of.origins_held_out(train.labels["class"], train.origin, 0.2, 0)
    assert held.sum() == 48 and not set(train.recordings[held].tolist()) & set(train.recordings[~held].tolist())
    few = recorded(8, 3, 0)  # four recordings a class: a fifth of them is none, one is held out all the same
    assert features_of.origins_held_out(few.labels["class"], few.origin, 0.2, 0).sum() == 6
    alone = replace(recorded(2, 5, 0), recordings=torch.zeros(10, dtype=torch.long))
    assert np.isfinite(knn(alone, alone).search["val_top1"]).all()


def test_recordings_come_with_the_features(tmp_path):
    for name in ("v_a_g08_c01", "v_a_g08_c02", "v_b_g08_c01", "v_b_g09_c01"):
        (tmp_path / name[2]).mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (len(list(tmp_path.rglob("*.png"))) * 50,) * 3).save(tmp_path / name[2] / f"{name}.png")
    source = data.open(tmp_path, frames=4, size=32, augment=False)
    assert len(set(source.recordings)) == 3 and source.recordings[0] == source.recordings[1]
    found = extract(Patches(), source, device="cpu", **QUICK)
    assert found.origin.tolist() == [0, 0, 1, 2] and found.subset(torch.tensor([1, 3])).origin.tolist() == [0, 2]
    assert data.open("synthetic").recordings is None


def test_ridge_finds_a_planted_value_and_none_in_noise():
    g = torch.Generator().manual_seed(0)
    train, test = (features(torch.randn(n, 16, DIM, generator=g), torch.zeros(n, dtype=torch.long), 1) for n in (300, 200))
    weight = torch.randn(DIM, generator=g)
    found = ridge(train, test, (train.pooled @ weight + 3, test.pooled @ weight + 3), name="speed")
    assert found["value"] > 0.99 and found["benchmark"] == "planted/speed" and found["metric"] == "r2"
    noise = ridge(train, test, (torch.randn(300, generator=g), torch.randn(200, generator=g)), name="noise")
    assert -0.2 < noise["value"] < 0.1 and noise["alpha"] > found["alpha"]


def test_few_shot_draws_nested_equal_parts():
    train = planted("mean", 200, "train", 4)
    two, five = few_shot(train, 2, seed=1), few_shot(train, 5, seed=1)
    assert torch.bincount(five.labels["class"]).tolist() == [5] * 4
    assert set(two.index.tolist()) < set(five.index.tolist())
    assert set(few_shot(train, 5, seed=2).index.tolist()) != set(five.index.tolist())
    with pytest.raises(ValueError, match="100 shots of 'class' are not there for: c0"):
        few_shot(train, 100)


def test_a_result_is_saved_as_rows_and_predictions(tmp_path):
    train, test = planted("mean", 100, "train"), planted("mean", 40, "test")
    result = linear(train, test, epochs=3, benchmark="planted/mean", **QUICK)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"variant": "baseline", "seed": 3}')
    result.save(tmp_path / "run")
    result.save(tmp_path / "run")  # probing again replaces
    table = results.read_run(tmp_path / "run")
    assert len(table) == len(result.rows) + len(result.controls)
    assert table["value"].iloc[0] == pytest.approx(result.value()) and table["encoder"].iloc[0] == "none"
    assert table["variant"].tolist() == ["baseline"] * len(result.rows) + [row["variant"] for row in result.controls]
    (file,) = (tmp_path / "run" / "predictions").iterdir()
    assert pd.read_parquet(file).equals(result.predictions)
    assert {"id", "label", "top1", "margin", "benchmark", "probe"} <= set(result.predictions)
    assert "planted/mean" in repr(result) and "<table" in result._repr_html_()
    shown = result.table()
    assert shown["variant"].tolist() == ["none"] * len(result.rows) + [row["variant"] for row in result.controls]


# ---------------------------------------------------------------------------------------------------------------------- heads


def test_the_attentive_head_equals_attention_written_out():
    head = stack(AttentiveHead(1, DIM, 5, torch.Generator().manual_seed(0), heads=3), 2)
    for parameter in head.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.randn(7, 16, DIM)
    ours = head(x)
    for g in range(2):
        cross, norm1 = head.cross, head.norm1
        kv = F.layer_norm(x, (DIM,), norm1.weight[g], norm1.bias[g])
        q = head.query[g] @ cross.query.weight[g] + cross.query.bias[g]
        k = kv @ cross.key[g] + 0.7  # any bias of the keys
        v = kv @ cross.value.weight[g] + cross.value.bias[g]
        split = [u.unflatten(-1, (3, -1)).transpose(-2, -3) for u in (q.expand(7, 1, -1), k, v)]
        token = head.query[g] + F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)[:, 0]
        inner = F.layer_norm(token, (DIM,), head.norm2.weight[g], head.norm2.bias[g])
        inner = F.gelu(inner @ head.mlp.fc1.weight[g] + head.mlp.fc1.bias[g]) @ head.mlp.fc2.weight[g] + head.mlp.fc2.bias[g]
        logits = (token + inner) @ head.head.weight[g] + head.head.bias[g]
        torch.testing.assert_close(ours[g], logits, atol=1e-5, rtol=1e-5)


def test_the_released_head_equals_torchs_attention_over_all_tokens():
    head = ReleasedHead(1, DIM, 5, torch.Generator().manual_seed(0), heads=8)
    for parameter in head.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    mha = nn.MultiheadAttention(DIM, 8, batch_first=True)
    with torch.no_grad():
        mha.in_proj_weight.copy_(torch.cat([head.attention.query.weight[0], head.attention.key[0], head.attention.value.weight[0]], 1).T)
        mha.in_proj_bias.copy_(torch.cat([head.attention.query.bias[0], torch.rand(DIM), head.attention.value.bias[0]]))
        mha.out_proj.weight.copy_(head.proj.weight[0].T)
        mha.out_proj.bias.copy_(head.proj.bias[0])
    x = torch.randn(7, 16, DIM)
    every = torch.cat([head.cls.expand(7, 1, -1), x], 1)
    out = F.layer_norm(every + mha(every, every, every)[0], (DIM,), head.norm.weight[0], head.norm.bias[0])[:, 0]
    torch.testing.assert_close(head(x)[0], out @ head.head.weight[0] + head.head.bias[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "options", "millions"), [(AttentiveHead, {"depth": 1, "heads": 12}, 6.6), (AttentiveHead, {"depth": 4, "heads": 16}, 27.9)]
)
def test_head_sizes_are_upstreams(make, options, millions):
    head = make(1, 768, 174, torch.Generator(), **options)
    assert sum(p.numel() for p in head.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_released_head_has_two_and_a_half_million_parameters():
    assert sum(p.numel() for p in ReleasedHead(1, 768, 174, torch.Generator()).parameters()) == pytest.approx(2.50e6, abs=5e3)


def test_heads_side_by_side_train_as_they_would_alone_and_as_torchs_adamw_does():
    candidates = [(1e-2, 0.5), (1e-3, 0.0)]
    x, y = torch.randn(40, 6), torch.randint(0, 3, (40,))
    head = stack(LinearHead(1, 6, 3, torch.Generator()), 2)
    ours = StackedAdamW(head, candidates)
    layers = [nn.Linear(6, 3) for _ in candidates]
    for layer in layers:
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    theirs = [
        torch.optim.AdamW([{"params": [m.weight], "weight_decay": wd}, {"params": [m.bias], "weight_decay": 0.0}], lr=lr)
        for m, (lr, wd) in zip(layers, candidates, strict=True)
    ]
    for _ in range(20):
        (F.cross_entropy(head(x).flatten(0, 1), y.repeat(2)) * 2).backward()
        ours.step()
        for layer, optimiser in zip(layers, theirs, strict=True):
            optimiser.zero_grad()
            F.cross_entropy(layer(x), y).backward()
            optimiser.step()
    for g, layer in enumerate(layers):
        torch.testing.assert_close(head(x)[g], layer(x), atol=1e-5, rtol=1e-4)


def test_a_stack_of_self_attention_is_refused():
    with pytest.raises(ValueError, match="one after the other"):
        AttentiveHead(2, DIM, 3, torch.Generator(), heads=3, depth=4)


def test_positions_tell_every_token_apart_and_name_its_place():
    table = positions((4, 3, 5), 48)
    assert table.shape == (60, 48) and len(table.unique(dim=0)) == 60
    by_place = table.unflatten(0, (4, 3, 5))
    assert torch.equal(by_place[1, :, :, :16], by_place[1, :1, :1, :16].expand(3, 5, 16))  # the first third is time
    place = 2 / 10000 ** (torch.arange(8) / 8)
    torch.testing.assert_close(by_place[2, 0, 0, :16], torch.cat([place.sin(), place.cos()]))
    assert positions((2, 2, 2), 32).shape == (8, 32)  # 32 is no multiple of 6


# ---------------------------------------------------------------------------------------------------------------- extraction


class Patches(nn.Module):
    """A stand-in encoder: mean colour of 8 x 8 x 2 patches through a linear map; counts its calls with several clips."""

    def __init__(self):
        super().__init__()
        self.map, self.calls = nn.Linear(3, DIM), 0
        self.dropout = nn.Dropout(0.5)

    def grid(self, clip):
        return clip.shape[2] // 2, clip.shape[3] // 8, clip.shape[4] // 8

    def forward(self, clip):
        self.calls += len(clip) > 1
        return self.dropout(self.map(F.avg_pool3d(clip, (2, 8, 8)).flatten(2).transpose(1, 2)))


@pytest.fixture(scope="module")
def source():
    return data.open("synthetic", "test", frames=4, size=32, n=10)


def test_features_are_every_clips_tokens_in_order(source):
    encoder = Patches().train()
    kept = extract(encoder, source, tokens=True, batch=4, encoder_name="student", device="cpu", **QUICK)
    assert encoder.training and encoder.calls == 3
    assert len(kept) == 10 and kept.tokens.shape == (10, 32, DIM) and kept.tokens.dtype == torch.float16 and kept.grid == (2, 4, 4)
    assert kept.index.tolist() == list(range(10)) and kept.encoder == "student"
    assert kept.classes == source.classes and all(torch.equal(kept.labels[name], source.labels[name]) for name in source.classes)
    encoder.eval()
    tokens = encoder(data.normalize(source[7].clip[None]))
    torch.testing.assert_close(kept.pooled[7], tokens[0].mean(0).detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(kept.tokens[7].float(), tokens[0].detach(), atol=2e-3, rtol=2e-3)
    lean = extract(encoder, source, batch=10, device="cpu", **QUICK)
    assert lean.tokens is None
    torch.testing.assert_close(lean.pooled, kept.pooled)


class Choosy(Patches):
    """What it gives is decided by an attribute that no weight shows."""

    def __init__(self, gain: float):
        super().__init__()
        self.gain = gain

    def forward(self, clip):
        return self.gain * super().forward(clip)


def test_features_of_another_choice_of_your_own_encoder_are_not_taken_from_the_cache(source, tmp_path):
    encoder, found = Choosy(1.0), []
    for encoder.gain in (1.0, 2.0, 1.0):
        found.append(extract(encoder, source, cache=tmp_path, device="cpu", **QUICK))
    one, two, again = found
    assert torch.equal(2 * one.pooled, two.pooled) and torch.equal(one.pooled, again.pooled) and len(list(tmp_path.iterdir())) == 2


def test_cached_features_are_reused_until_weights_or_clips_change(source, tmp_path):
    encoder = Patches()
    first = extract(encoder, source, cache=tmp_path, tokens=True, device="cpu", **QUICK)
    again = extract(encoder, source, cache=tmp_path, tokens=True, device="cpu", encoder_name="teacher", **QUICK)
    assert encoder.calls == 1 and again.encoder == "teacher" and again.grid == first.grid
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.pooled, again.pooled) and first.classes == again.classes
    extract(encoder, source, cache=tmp_path, device="cpu", **QUICK)
    extract(encoder, data.open("synthetic", "test", frames=4, size=32, n=10, seed=1), cache=tmp_path, tokens=True, device="cpu", **QUICK)
    assert encoder.calls == 3
    with torch.no_grad():
        encoder.map.bias += 1
    moved = extract(encoder, source, cache=tmp_path, tokens=True, device="cpu", **QUICK)
    assert encoder.calls == 4 and not torch.equal(moved.pooled, first.pooled)
    assert not list(tmp_path.glob("*.part"))


class Renumbered(data.core.Derived):
    """The same clips, whose shapes are called otherwise."""

    def read(self, index, epoch=0):
        return replace(sample := self.source.read(index, epoch), labels=sample.labels | {"shape": int(self.labels["shape"][index])})

    @property
    def labels(self):
        return self.source.labels | {"shape": self.source.labels["shape"].flip(0)}


def test_labels_and_options_that_no_weight_shows_decide_what_is_cached(source, tmp_path):
    quick = {"cache": tmp_path, "device": "cpu", **QUICK}
    first, second = (extract(Patches(), each, **quick).labels["shape"] for each in (source, Renumbered(source)))
    assert first.tolist() == second.tolist()[::-1] != second.tolist()
    made = [built(rope=rope) for rope in ("interleaved", "vjepa2")]
    assert all(torch.equal(a, b) for a, b in zip(*(each.state_dict().values() for each in made), strict=True))
    one, other = (extract(encoder, source, **quick).pooled for encoder in made)
    assert not torch.equal(one, other) and torch.equal(other, extract(made[1], source, device="cpu", **QUICK).pooled)


def built(gain: float = 1.0, **how) -> Encoder:
    """An encoder whose features differ over clips `gain` times as much, around 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Encoder(48, 2, 2, 8, **how)
        torch.nn.init.constant_(encoder.norms["1"].weight, gain)
        torch.nn.init.ones_(encoder.norms["1"].bias)
    return encoder.eval()


def test_features_that_bf16_would_round_away_are_read_in_fp32(source, tmp_path):
    quick = {"device": "cpu", **QUICK}
    wide, narrow = built(2.0), built(0.01)
    exact = extract(narrow, source, **quick)
    assert features_of.deviation(exact.pooled) < features_of.COARSE < features_of.deviation(extract(wide, source, **quick).pooled)
    with pytest.warns(UserWarning, match=r"student: its features differ over the clips of synthetic \[test\] by 0.00\d+ of.*read in fp32"):
        seen = extract(narrow, source, bf16=True, encoder_name="student", cache=tmp_path, **quick)
    assert torch.equal(seen.pooled, exact.pooled) and not seen.bf16
    rounded = extract(narrow, source, bf16=True, settled=True, cache=tmp_path, **quick)
    assert rounded.bf16 and not torch.equal(rounded.pooled, exact.pooled)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = extract(narrow, source, bf16=True, cache=tmp_path, **quick)
        whole = extract(wide, source, bf16=True, tokens=True, **quick)
    assert torch.equal(again.pooled, exact.pooled) and not again.bf16
    clips = torch.stack([source[i].clip for i in range(len(source))])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = wide(data.normalize(clips)).float()
    assert whole.bf16 and torch.equal(whole.pooled, expected.mean(1))


def test_tokens_that_float16_would_round_away_are_told_and_can_be_kept(source, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "fast_bf16", lambda device: False)
    quick, narrow = {"device": "cpu", **QUICK}, built(0.001)
    with pytest.warns(UserWarning, match=r"student: its tokens differ over the clips of synthetic \[test\] by 0.0\d+ .*exact=True") as told:
        half = extract(narrow, source, tokens=True, encoder_name="student", cache=tmp_path, **quick)
    assert len(told) == 1 and half.tokens.dtype == torch.float16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = extract(narrow, source, tokens=torch.float32, cache=tmp_path, **quick)
        extract(narrow, source, tokens=True, settled=True, **quick)
        extract(built(2.0), source, tokens=True, **quick)
        how = {"probe": "stepwise", "epochs": 1, "lrs": (1e-3,), "wds": (0.0,), **quick}
        vl.probe(narrow, (source, source), "hue", exact=True, **how)
    clips = torch.stack([source[i].clip for i in range(len(source))])
    with torch.no_grad():
        tokens = narrow(data.normalize(clips))
    assert torch.equal(whole.tokens, tokens) and torch.equal(half.tokens, tokens.half()) and torch.equal(half.pooled, whole.pooled)
    with pytest.warns(UserWarning, match="float16") as told:
        vl.probe(narrow, (source, source), "hue", **how)
    assert len([each for each in told if "float16" in str(each.message)]) == 1


def test_several_classes_at_once_are_refused_by_name():
    y = torch.ones(6, 2, dtype=torch.long)
    part = Features(torch.randn(6, 3), {"class": y}, {"class": ["a", "b"]}, torch.arange(6), name="several")
    with pytest.raises(ValueError, match="'class' of several is several classes at once"):
        linear(part, part, **QUICK)


def test_a_limit_holds_for_sources_and_is_said_only_where_it_left_some_out():
    how = {"labels": "shape", "probe": "knn", "device": "cpu", "ks": (1,), **QUICK}
    pair = [data.open("synthetic", split, frames=4, size=32, n=n) for split, n in (("train", 40), ("test", 30))]
    for limit, name, n in ((None, "synthetic/shape", 30), (40, "synthetic/shape", 30), (20, "synthetic/shape, 20 clips", 20)):
        row = vl.probe(Patches(), pair, limit=limit, **how)[0].rows[0]
        assert (row["benchmark"], row["n"]) == (name, n)


def test_a_cache_tells_segments_of_one_film_apart(tmp_path):
    def fingerprints(*spans):
        for name, span in zip("ab", spans, strict=True):
            (tmp_path / f"{name}.csv").write_text("path,label,start,end\n" + "".join(f"film.mp4,0,{at}\n" for at in ("0,1", span, "4,5")))
        return [features_of.clips_of(data.open(tmp_path / f"{name}.csv", "train")) for name in "ab"]

    same, other = fingerprints("1,2", "1,2"), fingerprints("1,2", "2,3")
    assert same[0] == same[1] == other[0] != other[1]


def test_what_bf16_would_hide_is_a_share_of_the_magnitude(source):
    one = torch.rand(40, 8) + 1
    assert features_of.COARSE < features_of.deviation(one) == pytest.approx(features_of.deviation(0.001 * one))
    assert not features_of.coarse(0.001 * one, "", source) and not features_of.coarse(one[:1], "", source)
    with pytest.warns(UserWarning, match="read in fp32"):
        assert features_of.coarse(100 + one, "", source)


def test_the_test_split_is_read_as_the_training_split(source, monkeypatch):
    read = []
    true = features_of._extract
    monkeypatch.setattr(features_of, "_extract", lambda *a, **k: read.append(k.get("bf16", False)) or true(*a, **k))
    monkeypatch.setattr(evaluate, "fast_bf16", lambda device: True)
    how = {"probe": "knn", "device": "cpu", **QUICK}
    with pytest.warns(UserWarning, match="read in fp32"):
        vl.probe(built(0.01), (source, source), "hue", **how)
    assert read == [True, False, False]
    read.clear()
    monkeypatch.setattr(features_of, "deviation", lambda pooled, found=iter([1.0, 0.0, 0.0]): next(found))
    vl.probe(built(2.0), (source, source), "hue", **how)
    assert read == [True, True]


def test_precision_is_that_of_the_device_asked_for(monkeypatch):
    monkeypatch.setattr(evaluate, "fast_bf16", lambda device: device.type == "cuda")
    monkeypatch.setattr(evaluate, "device_for", lambda device: torch.device(device or "cuda"))  # as on a machine with a GPU
    assert evaluate.subject_of(built()).bf16 and not evaluate.subject_of(built(), device="cpu").bf16


def test_measurements_of_another_split_and_of_a_part_stay_beside_the_usual_one(tmp_path):
    how = {"labels": "shape", "probe": "knn", "out": tmp_path, "device": "cpu", "ks": (1,), **QUICK}
    encoder = Patches()
    train, test, val = (data.open("synthetic", split, frames=4, size=32, n=40) for split in ("train", "test", "val"))
    vl.probe(encoder, (train, test), **how)
    before = (tmp_path / "rows.csv").read_text()
    vl.probe(encoder, (train, val), **how)
    for splits in (("train", "test"), ("train", "val")):
        vl.probe(encoder, "synthetic", splits=splits, limit=30, frames=4, size=32, stride=1, **how)
    assert (tmp_path / "rows.csv").read_text().startswith(before)
    rows = results.read_run(tmp_path).query("source == 'run' and metric == 'top1'")
    names = [f"synthetic/shape{part}" for part in ("", ", val", ", 30 clips", ", val, 30 clips")]
    assert rows["benchmark"].tolist() == names and len(results.read_run(tmp_path).query("metric == 'std'")) == 2
    assert sorted(file.stem for file in (tmp_path / "predictions").iterdir()) == sorted(
        f"{name.replace('/', '-').replace(', ', '-').replace(' ', '-')}-knn-encoder" for name in names
    )
    vl.probe(encoder, (train, val), benchmark="mine", **how)  # a name given is the name
    assert "mine" in set(results.read_run(tmp_path)["benchmark"])


class Squares(data.Source):
    """Clips with a square of the class's colour that moves to the class's side, or jumps between frames in the class's corner."""

    name, fixed = "squares", True
    classes = {"class": ["red", "green"], "corner": ["left", "right"]}  # noqa: RUF012

    def __init__(self, split, n):
        self.split, self.n = split, n

    def __len__(self):
        return self.n

    def read(self, index, epoch=0):
        g = torch.Generator().manual_seed(index + 1000 * (self.split == "test"))
        colour, corner = torch.randint(0, 2, (2,), generator=g).tolist()
        clip = torch.randint(0, 256, (3, 1, 48, 64), generator=g, dtype=torch.uint8).div(4, rounding_mode="floor").repeat(1, 6, 1, 1)
        clip[colour, :, :8] = 255
        clip[:, ::2, 24:, 32 * corner : 32 * corner + 32] = 255 - clip[:, ::2, 24:, 32 * corner : 32 * corner + 32]
        return data.Sample(clip, {"class": colour, "corner": corner}, index)


def test_pixel_neighbours_see_colour_in_the_mean_frame_and_place_in_the_difference():
    train, test = Squares("train", 80), Squares("test", 60)
    colour, place = mean_frame_nn(train, test, **QUICK), frame_difference_nn(train, test, "corner", **QUICK)
    assert colour.value() > 95 and place.value() > 95
    assert frame_difference_nn(train, test, **QUICK).value() < 75  # colour stands still
    assert colour.rows[0]["probe"] == "mean-frame-1nn" and place.rows[0]["benchmark"] == "squares/corner" and place.rows[0]["n"] == 60


# --------------------------------------------------------------------------------------------------------------------- errors


def without(test: Features, **changes) -> Features:
    return Features(**{**vars(test), **changes})


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda a, b: linear(a, b, "colour"), "planted have no label 'colour'; they have class"),
        (lambda a, b: linear(a, without(b, labels={"class": torch.full((50,), -1)})), r"no clip of planted \[test\] has the label 'class'"),
        (lambda a, b: linear(a, without(b, classes={"class": ["x", "y"]})), "numbers? the classes of 'class' differently"),
        (lambda a, b: linear(a, without(b, pooled=b.pooled[:, :5])), "48 channels on .* and 5 channels"),
        (lambda a, b: linear(a, without(b, encoder="teacher")), "train features are of 'none', test features of 'teacher'"),
        (lambda a, b: attentive(a, without(b, tokens=None)), r"extract\(\.\.\., tokens=True\)"),
        (lambda a, b: attentive(a, b, form="vjepa3"), "form='vjepa3', expected one of 'vjepa', 'vjepa2', 'released'"),
        (lambda a, b: linear(few_shot(a, 2), b, **QUICK), "4 training clips of 2 classes leave none to choose among 12 candidates"),
        (lambda a, b: ridge(a, b, (torch.zeros(3), torch.zeros(50)), name="speed"), "'speed': 3 and 50 targets for 100 and 50 clips"),
    ],
)
def test_a_wrong_call_is_refused_with_its_reason(run, message):
    with pytest.raises(ValueError, match=message):
        run(planted("mean", 100, "train"), planted("mean", 50, "test"))


def test_one_candidate_needs_no_selection():
    train, test = few_shot(planted("mean", 100, "train"), 1), planted("mean", 50, "test")
    result = linear(train, test, lrs=(1e-2,), wds=(0.1,), epochs=5, **QUICK)
    assert result.selected == {"lr": 1e-2, "wd": 0.1, "refit": True, "epochs": 5} and result.search.empty


def test_features_that_are_not_finite_are_no_guesses():
    x, y = torch.randn(80, 4, DIM), torch.arange(80) % 4
    broken = x.clone()
    broken[3] = torch.nan
    with pytest.raises(ValueError, match=r"planted.*not finite.*NaN in the features"):
        linear(features(broken, y, 4), features(x, y, 4, split="test"), epochs=2, **QUICK)


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert probes.device_for(None).type == probes.device_for("auto").type == "cpu" and probes.device_for("mps").type == "mps"
    with pytest.raises(ValueError, match="'cuda:1' is not available here"):
        probes.device_for("cuda:1")
