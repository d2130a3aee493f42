"""Released weights: exact in every format, both ways; files that do not fit say what is wrong; nothing in a file is ever run."""

import hashlib
import json
import math
import os
import subprocess
import sys
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

import vjepa_lab as vl
from vjepa_lab import weights
from vjepa_lab.evaluation.evaluate import subject_of
from vjepa_lab.evidence import results
from vjepa_lab.masks import Mask
from vjepa_lab.model import VJEPA, Encoder, Predictor, count, gather
from vjepa_lab.objective import Recipe
from vjepa_lab.presets import PRESETS
from vjepa_lab.rope import positions
from vjepa_lab.terms import JEPA
from vjepa_lab.train import starting_point
from vjepa_lab.training import locks
from vjepa_lab.weights import WeightsError, load

DIM, DEPTH, HEADS, PATCH, PDIM = 48, 4, 2, 8, 24
GRID = (2, 4, 4)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def clip(b=2, f=4, side=32):
    return torch.randn(b, 3, f, side, side)


# ------------------------------------------------------------------------------------------------------- files in upstream's formats


def upstream_encoder(*, family: str, images: bool = False) -> dict:
    """Random weights under the names that facebookresearch/jepa and vjepa2 save."""
    hidden = 4 * DIM
    state = {"patch_embed.proj.weight": torch.randn(DIM, 3, 2, PATCH, PATCH) * 0.05, "patch_embed.proj.bias": torch.randn(DIM) * 0.1}
    for i in range(DEPTH):
        shapes = {"norm1": (DIM,), "attn.qkv": (3 * DIM, DIM), "attn.proj": (DIM, DIM)}
        shapes |= {"norm2": (DIM,), "mlp.fc1": (hidden, DIM), "mlp.fc2": (DIM, hidden)}
        for name, shape in shapes.items():
            state[f"blocks.{i}.{name}.weight"] = torch.randn(shape) * (0.15 if len(shape) > 1 else 0.5)
            state[f"blocks.{i}.{name}.bias"] = torch.randn(shape[:1]) * 0.1
    norms = [f"norms_block.{i}" for i in range(4)] if family == "vjepa2.1" else ["norm"]
    for name in norms:
        state |= {f"{name}.weight": 1 + 0.2 * torch.randn(DIM), f"{name}.bias": 0.2 * torch.randn(DIM)}
    if family == "vjepa":
        state["pos_embed"] = positions(GRID, DIM)[None]
    if family == "vjepa2.1":
        state |= {"img_mod_embed": torch.randn(1, 1, DIM), "video_mod_embed": torch.randn(1, 1, DIM)}
        state |= {"patch_embed_img.proj.weight": torch.randn(DIM, 3, 1, PATCH, PATCH), "patch_embed_img.proj.bias": torch.randn(DIM)}
    return state


def upstream_predictor(*, family: str, kinds: int = 3, out: int = DIM, multi: bool = False) -> dict:
    width, state = 4 * DIM if multi else DIM, {}
    if multi:
        state |= {"predictor_embed.0.weight": torch.randn(DIM, width) * 0.1, "predictor_embed.0.bias": torch.randn(DIM) * 0.1}
        state |= {"predictor_embed.2.weight": torch.randn(PDIM, DIM) * 0.1, "predictor_embed.2.bias": torch.randn(PDIM) * 0.1}
    else:
        state |= {"predictor_embed.weight": torch.randn(PDIM, DIM) * 0.1, "predictor_embed.bias": torch.randn(PDIM) * 0.1}
    state |= {f"mask_tokens.{i}": torch.randn(1, 1, PDIM) for i in range(kinds)}
    for i in range(2):
        shapes = {"norm1": (PDIM,), "attn.qkv": (3 * PDIM, PDIM), "attn.proj": (PDIM, PDIM), "norm2": (PDIM,)}
        for name, shape in (shapes | {"mlp.fc1": (4 * PDIM, PDIM), "mlp.fc2": (PDIM, 4 * PDIM)}).items():
            state[f"predictor_blocks.{i}.{name}.weight"] = torch.randn(shape) * (0.15 if len(shape) > 1 else 0.5)
            state[f"predictor_blocks.{i}.{name}.bias"] = torch.randn(shape[:1]) * 0.1
    state |= {"predictor_norm.weight": 1 + 0.2 * torch.randn(PDIM), "predictor_norm.bias": torch.randn(PDIM)}
    heads = ["predictor_proj"] + ["predictor_proj_context"] * (family == "vjepa2.1")
    for name in heads:
        state |= {f"{name}.weight": torch.randn(out, PDIM) * 0.1, f"{name}.bias": torch.randn(out)}
    if family == "vjepa":
        state["predictor_pos_embed"] = positions(GRID, PDIM)[None]
    if family == "vjepa2.1":
        state |= {"img_mod_embed": torch.randn(1, 1, PDIM), "video_mod_embed": torch.randn(1, 1, PDIM)}
    return state


def released(path, family: str, teacher: str = "target_encoder", **predictor):
    """A checkpoint as the training apps write it: wrapped names, optimiser beside it."""
    student, target = upstream_encoder(family=family), upstream_encoder(family=family)
    guess = upstream_predictor(family=family, **predictor)
    optimiser = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(5)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}

    def wrap(state):
        return {f"module.backbone.{name}": value for name, value in state.items()}

    slots = {"encoder": wrap(student), "predictor": wrap(guess), teacher: wrap(target)}
    torch.save(slots | {"opt": optimiser, "scaler": None, "epoch": 7, "loss": 0.4, "batch_size": 24, "world_size": 128, "lr": 1e-3}, path)
    return student, target, guess


# ----------------------------------------------------------------------------------------------- upstream's forward, written out plainly


def turned(x, place, style):
    """Upstream's rotation of x [b heads n d] by `place` [n], pairs of neighbours."""
    d = x.shape[-1]
    angle = place[:, None] * 10000.0 ** -(torch.arange(d // 2, dtype=torch.float64) / (d / 2))
    angle = torch.cat([angle, angle], 1) if style == "vjepa2" else angle.repeat_interleave(2, 1)
    other = torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)
    return x * angle.cos() + other * angle.sin()


def plain_block(x, state, prefix, heads, places=None, style=None):
    """One pre-norm block in float64; places: (t, h, w) of each token, each [n], or None: no rotation."""

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{prefix}.{name}.weight"], state[f"{prefix}.{name}.bias"], eps=1e-6)

    def dense(x, name):
        return x @ state[f"{prefix}.{name}.weight"].T + state[f"{prefix}.{name}.bias"]

    q, k, v = dense(norm(x, "norm1"), "attn.qkv").unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    if places is not None:
        d = 2 * (q.shape[-1] // 3 // 2)

        def rotated(u):
            axes = [turned(u[..., i * d : (i + 1) * d], place, style) for i, place in enumerate(places)]
            return torch.cat([*axes, u[..., 3 * d :]], -1)

        q, k = rotated(q), rotated(k)
    attention = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    x = x + dense((attention @ v).transpose(1, 2).flatten(2), "attn.proj")
    return x + dense(F.gelu(dense(norm(x, "norm2"), "mlp.fc1")), "mlp.fc2")


def doubled(state):
    return {name: value.double() for name, value in state.items()}


def axes_of(ids, grid, base=None):
    _, h, w = grid
    places = [ids // (h * w), ids % (h * w) // w, ids % w]
    stretch = [1.0, *((base - 1) / (n - 1) if base else 1.0 for n in (h, w))]
    return [place.double() * s for place, s in zip(places, stretch, strict=True)]


def plain_encoder(state, x, family, ids=None, image=False):
    """Upstream's encoder in float64: convolution, table or rotation, blocks, last norm; only the tokens `ids` [n] if given."""
    state, name = doubled(state), "patch_embed_img" if image else "patch_embed"
    weight = state[f"{name}.proj.weight"]
    x = F.conv3d(x.double(), weight, state[f"{name}.proj.bias"], stride=weight.shape[2:])
    grid = tuple(x.shape[2:])
    x = x.flatten(2).transpose(1, 2)
    if family == "vjepa2.1":
        x = x + state["img_mod_embed" if image else "video_mod_embed"]
    if family == "vjepa":
        table = state["pos_embed"]
        if grid != GRID:
            table = F.interpolate(table.reshape(1, *GRID, DIM).permute(0, 4, 1, 2, 3), size=grid, mode="trilinear")
            table = table.flatten(2).transpose(1, 2)
        x = x + table
    ids = torch.arange(math.prod(grid)) if ids is None else ids
    x = x[:, ids]
    base = 256 // PATCH if family == "vjepa2.1" else None
    places = None if family == "vjepa" else axes_of(ids, grid, base)
    style = "interleaved" if family == "vjepa2.1" else "vjepa2"
    for i in range(DEPTH):
        x = plain_block(x, state, f"blocks.{i}", HEADS, places, style)
    last = "norms_block.3" if family == "vjepa2.1" else "norm"
    return F.layer_norm(x, (DIM,), state[f"{last}.weight"], state[f"{last}.bias"], eps=1e-6).float()


def plain_predictor(state, tokens, seen, hidden, family, kind):
    """Upstream's predictor in float64 for one clip: sorted by place, blocks, unsorted, the hidden places' outputs, and the seen ones'."""
    state = doubled(state)
    if "predictor_embed.0.weight" in state:
        x = F.gelu(tokens.double() @ state["predictor_embed.0.weight"].T + state["predictor_embed.0.bias"])
        x = x @ state["predictor_embed.2.weight"].T + state["predictor_embed.2.bias"]
    else:
        x = tokens.double() @ state["predictor_embed.weight"].T + state["predictor_embed.bias"]
    blank = state[f"mask_tokens.{kind}"].expand(1, len(hidden), -1)
    ids = torch.cat([seen, hidden])
    x = torch.cat([x, blank], 1)
    if family == "vjepa":
        x = x + state["predictor_pos_embed"][:, ids]
    order = ids.argsort()
    x = x[:, order]
    if family == "vjepa2.1":
        x = x + state["video_mod_embed"]
    base = 256 // PATCH if family == "vjepa2.1" else None
    places = None if family == "vjepa" else axes_of(ids[order], GRID, base)
    for i in range(2):
        x = plain_block(x, state, f"predictor_blocks.{i}", HEADS, places, "interleaved" if family == "vjepa2.1" else "vjepa2")
    x = F.layer_norm(x, (PDIM,), state["predictor_norm.weight"], state["predictor_norm.bias"], eps=1e-6)[:, order.argsort()]
    guess = x[:, len(seen) :] @ state["predictor_proj.weight"].T + state["predictor_proj.bias"]
    return guess.float(), x[:, : len(seen)]


FAMILIES = ["vjepa", "vjepa2", "vjepa2.1"]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_released_file_computes_what_upstream_computes(tmp_path, family):
    student, teacher, _ = released(tmp_path / "w.pt", family)
    ours = vl.encoder(f"{family}:{tmp_path / 'w.pt'}", heads=HEADS)
    assert not ours.training and not any(p.requires_grad for p in ours.parameters())
    x = clip()
    torch.testing.assert_close(ours(x), plain_encoder(teacher, x, family), **CLOSE)
    ids = torch.randperm(32)[:11].sort().values
    torch.testing.assert_close(ours(x, ids.expand(2, -1)), plain_encoder(teacher, x, family, ids), **CLOSE)
    other = vl.encoder(family, tmp_path / "w.pt", which="student", heads=HEADS)
    torch.testing.assert_close(other(x), plain_encoder(student, x, family), **CLOSE)
    wide = clip(1, 8, 48)
    torch.testing.assert_close(ours(wide), plain_encoder(teacher, wide, family), **CLOSE)
    if family == "vjepa2.1":
        still = clip(f=1)
        torch.testing.assert_close(ours(still), plain_encoder(teacher, still, family, image=True), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "how"), [("vjepa", {}), ("vjepa2", {"kinds": 10}), ("vjepa2.1", {"out": 80}), ("vjepa2.1", {"multi": True, "out": 4 * DIM})]
)
def test_a_released_predictor_computes_what_upstream_computes(tmp_path, family, how):
    _, _, state = released(tmp_path / "w.pt", family, **how)
    ours = weights.open(f"{family}:{tmp_path / 'w.pt'}", heads=HEADS, pred_heads=HEADS).predictor()
    places = torch.randperm(32)
    seen, hidden = places[:9].sort().values, places[9:20].sort().values
    tokens = torch.randn(1, 9, 4 * DIM if how.get("multi") else DIM)
    guess, own = ours(tokens, Mask(seen[None], hidden[None]), GRID, kind=1)
    theirs, theirs_seen = plain_predictor(state, tokens, seen, hidden, family, 1)
    torch.testing.assert_close(guess, theirs, **CLOSE)
    if family == "vjepa2.1":
        context = theirs_seen @ state["predictor_proj_context.weight"].double().T + state["predictor_proj_context.bias"].double()
        torch.testing.assert_close(ours.context(own), context.float(), **CLOSE)


@torch.no_grad()
def test_an_evaluation_reads_the_teacher_of_a_file_that_holds_both(tmp_path):
    student, teacher, _ = released(tmp_path / "w.pt", "vjepa2")
    opened, x = weights.open(f"vjepa2:{tmp_path / 'w.pt'}", heads=HEADS), clip()
    assert set(opened.slots) == {"teacher", "student"}
    for asked, named, state in ((None, "teacher", teacher), ("student", "student", student)):
        subject = subject_of(opened, asked)
        assert subject.name == named
        torch.testing.assert_close(subject.encoder(x), plain_encoder(state, x, "vjepa2"), **CLOSE)
    alone = weights.open(f"vjepa2:{save(tmp_path, {'encoder': student})}", heads=HEADS)
    assert subject_of(alone).name == "student"


def test_released_weights_stand_beside_what_they_have_to_beat(tmp_path, monkeypatch):
    """With an encoder of their build that was never trained; rows go to the folder of their name."""
    monkeypatch.chdir(tmp_path)
    released(tmp_path / "w.pt", "vjepa2")
    opened = weights.open(f"vjepa2:{tmp_path / 'w.pt'}", heads=HEADS)
    before = torch.random.get_rng_state()
    drawn = [[p.clone() for p in opened.encoder("initial", seed).parameters()] for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [p.shape for p in drawn[0]] == [p.shape for p in opened.encoder().parameters()]
    assert all(map(torch.equal, drawn[0], drawn[1])) and not all(map(torch.equal, drawn[0], drawn[2]))
    how = {"frames": 4, "size": 32, "save": True, "limit": 40, "epochs": 2, "progress": False}
    table = vl.baselines("synthetic:plain", opened, "motion", **how)
    assert list(table["predictor"][-3:]) == ["frame-difference 1-NN", "random-init encoder", "vjepa2"]
    assert table.attrs["note"].startswith("vjepa2: released weights; 40 test clips.") and "against one of its build" in table.attrs["note"]
    rows = results.read_run(tmp_path / "runs" / "vjepa2")
    kept = rows[rows["benchmark"].eq("synthetic:plain/motion, 40 clips") & rows["metric"].eq("top1")].set_index("encoder")["value"]
    assert kept["random-init"] == table["value"].iloc[-2] and kept["teacher"] == table["value"].iloc[-1]
    with pytest.raises(ValueError, match="an encoder of your own"):
        vl.baselines("synthetic:plain", opened.encoder(), "motion", **how)


def test_the_distilled_models_average_is_the_teacher(tmp_path):
    _, teacher, _ = released(tmp_path / "w.pt", "vjepa2.1", teacher="ema_encoder", out=80)
    ours = vl.encoder(tmp_path / "w.pt", heads=HEADS)  # the keys alone show that this is 2.1
    torch.testing.assert_close(ours.blocks[0].mlp.fc1.weight, teacher["blocks.0.mlp.fc1.weight"])
    assert ours.levels == 4 and list(ours.norms) == ["0", "1", "2", "3"] and ours.rope_base_grid == 32


# ------------------------------------------------------------------------------------------------------------------- Hugging Face


@pytest.fixture(scope="module")
def hf():
    """A small, randomly initialised VJEPA2Model."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.VJEPA2Config(
        patch_size=8, crop_size=32, frames_per_clip=4, tubelet_size=2, hidden_size=DIM, num_attention_heads=HEADS, num_hidden_layers=3,
        mlp_ratio=48 / 11, pred_hidden_size=PDIM, pred_num_attention_heads=2, pred_num_hidden_layers=2, pred_num_mask_tokens=3,
        pred_zero_init_mask_tokens=False, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.VJEPA2Model(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def theirs(hf, x, **masks):
    return hf(rearrange(x, "b c f y x -> b f c y x"), skip_predictor=not masks, **masks)


@torch.no_grad()
@pytest.mark.parametrize("shard", ["5GB", "40KB"])
def test_a_hugging_face_folder_computes_the_same_here(hf, tmp_path, shard):
    hf.save_pretrained(tmp_path, max_shard_size=shard)
    assert (shard == "5GB") == (tmp_path / "model.safetensors").exists()
    there = weights.open(tmp_path)
    x, ours = clip(), there.encoder()
    torch.testing.assert_close(ours(x), theirs(hf, x).last_hidden_state, **CLOSE)

    keep = torch.stack([torch.randperm(32)[:11].sort().values for _ in range(2)])
    hidden = gather(hf.encoder.embeddings(rearrange(x, "b c f y x -> b f c y x")), keep)
    for layer in hf.encoder.layer:
        hidden = layer(hidden, keep)[0]
    torch.testing.assert_close(ours(x, keep), hf.encoder.layernorm(hidden), **CLOSE)

    places = torch.stack([torch.randperm(32) for _ in range(2)])
    mask = Mask(places[:, :11].sort().values, places[:, 11:25].sort().values)
    full = theirs(hf, x, context_mask=[mask.seen], target_mask=[mask.hidden])
    guess, _ = there.predictor()(gather(full.last_hidden_state, mask.seen), mask, GRID, kind=1)
    torch.testing.assert_close(guess, full.predictor_output.last_hidden_state, **CLOSE)


@torch.no_grad()
def test_a_video_classifiers_folder_gives_its_encoder(hf, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = transformers.VJEPA2ForVideoClassification(hf.config).eval()
    model.save_pretrained(tmp_path)
    x = clip()
    torch.testing.assert_close(vl.encoder(tmp_path)(x), theirs(model.vjepa2, x).last_hidden_state, **CLOSE)


# --------------------------------------------------------------------------------------------------- released attentive classifiers


def upstream_classifier(model) -> dict:
    """The pooler and the classifier of a VJEPA2ForVideoClassification under the names that facebookresearch/vjepa2 saves."""
    state, found = model.state_dict(), {}

    def put(theirs: str, upstream: str, parts: tuple[str, ...]) -> None:
        for kind in ("weight", "bias"):
            names = [".".join(filter(None, ("pooler", theirs, part, kind))) for part in parts]
            found[f"module.pooler.{upstream}.{kind}"] = torch.cat([state[name] for name in names])

    for i in range(len(model.pooler.self_attention_layers)):
        layer, block = f"self_attention_layers.{i}", f"blocks.{i}"
        put(f"{layer}.self_attn", f"{block}.attn.qkv", ("q_proj", "k_proj", "v_proj"))
        put(f"{layer}.self_attn.out_proj", f"{block}.attn.proj", ("",))
        for theirs, upstream in (("layer_norm1", "norm1"), ("layer_norm2", "norm2"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            put(f"{layer}.{theirs}", f"{block}.{upstream}", ("",))
    layer, block = "cross_attention_layer", "cross_attention_block"
    put(f"{layer}.cross_attn.q_proj", f"{block}.xattn.q", ("",))
    put(f"{layer}.cross_attn", f"{block}.xattn.kv", ("k_proj", "v_proj"))
    for theirs, upstream in (("layer_norm1", "norm1"), ("layer_norm2", "norm2"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
        put(f"{layer}.{theirs}", f"{block}.{upstream}", ("",))
    found["module.pooler.query_tokens"] = state["pooler.query_tokens"]
    return found | {f"module.linear.{kind}": state[f"classifier.{kind}"] for kind in ("weight", "bias")}


@pytest.fixture(scope="module")
def judge(hf):
    """A small, randomly initialised VJEPA2ForVideoClassification whose pooler has upstream's epsilon (LayerNorm's own)."""
    transformers = pytest.importorskip("transformers")
    config = transformers.VJEPA2Config(**hf.config.to_dict() | {"num_pooler_layers": 3, "num_labels": 7, "mlp_ratio": 4.0})
    torch.manual_seed(1)
    model = jolted(transformers.VJEPA2ForVideoClassification(config))
    for part in model.pooler.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = 1e-5
    return model


@torch.no_grad()
def test_a_released_classifier_says_what_upstreams_says(judge, tmp_path):
    judge.vjepa2.save_pretrained(tmp_path / "encoder")
    state = upstream_classifier(judge)
    other = {name: value + 1 for name, value in state.items()}
    torch.save({"classifiers": [other, state], "opt": [{"lr": 1.0}], "epoch": 20, "batch_size": 4}, tmp_path / "ssv2.pt")
    ours = weights.classifier(tmp_path / "ssv2.pt", vl.encoder(tmp_path / "encoder"), heads=HEADS, which=1)
    x = clip()
    expected = judge(rearrange(x, "b c f y x -> b f c y x")).logits
    assert expected.std() > 0.05 and not ours.training and not any(p.requires_grad for p in ours.parameters())
    torch.testing.assert_close(ours(x), expected, **CLOSE)
    tokens = torch.randn(2, 50, DIM)  # of several segments, one after another
    torch.testing.assert_close(ours.head(tokens)[0], judge.classifier(judge.pooler(tokens)), **CLOSE)


@torch.no_grad()
def test_a_released_classifier_of_several_layers(judge, tmp_path):
    """As Diving-48's: every layer's tokens through the last norm, one layer behind the other."""
    judge.vjepa2.save_pretrained(tmp_path / "encoder")
    torch.save({"classifiers": [upstream_classifier(judge)]}, tmp_path / "diving48.pt")
    encoder = vl.encoder(tmp_path / "encoder")
    ours = weights.classifier(tmp_path / "diving48.pt", encoder, heads=HEADS, layers=(1, encoder.depth - 1))
    x, seen = clip(), []
    hooks = [layer.register_forward_hook(lambda _, __, out: seen.append(out[0])) for layer in judge.vjepa2.encoder.layer]
    judge(rearrange(x, "b c f y x -> b f c y x"))
    for hook in hooks:
        hook.remove()
    tokens = torch.cat([judge.vjepa2.encoder.layernorm(state) for state in (seen[1], seen[-1])], dim=1)
    torch.testing.assert_close(ours(x), judge.classifier(judge.pooler(tokens)), **CLOSE)


@torch.no_grad()
def test_a_probe_of_v_jepa_has_a_projection_that_nothing_reads(judge, tmp_path):
    state = {name: value for name, value in upstream_classifier(judge).items() if ".blocks." not in name}
    stale = {f"module.pooler.cross_attention_block.xattn.proj.{kind}": torch.randn(DIM) for kind in ("weight", "bias")}
    torch.save({"classifier": state | stale, "epoch": 20}, tmp_path / "k400-probe.pth.tar")
    ours = weights.classifier(tmp_path / "k400-probe.pth.tar", Encoder(DIM, 2, HEADS, PATCH), heads=HEADS)
    tokens = torch.randn(2, 20, DIM)
    query = judge.pooler.query_tokens.repeat(2, 1, 1)
    expected = judge.classifier(judge.pooler.cross_attention_layer(query, tokens)[0].squeeze(1))
    torch.testing.assert_close(ours.head(tokens)[0], expected, **CLOSE)


def test_what_is_no_released_classifier_says_why(judge, tmp_path):
    encoder, state, path = Encoder(DIM, 2, HEADS, PATCH), upstream_classifier(judge), tmp_path / "probe.pt"

    def said(value, why: str, **how) -> None:
        torch.save(value, path)
        with pytest.raises(WeightsError, match=why):
            weights.classifier(path, how.pop("encoder", encoder), **{"heads": HEADS} | how)

    lacking = {name: value for name, value in state.items() if "xattn.kv.weight" not in name}
    said({"classifiers": [lacking]}, r"2 missing \(cross.value.weight, cross.key\)|2 missing \(cross.key, cross.value.weight\)")
    said({"classifiers": [state | {"module.verb_classifier.weight": torch.ones(3, DIM)}]}, r"1 foreign \(verb_classifier.weight\)")
    said({"classifiers": [state]}, "which=2 is none of 0 to 0", which=2)
    said({"classifiers": [state]}, "48 channels do not divide into heads=5", heads=5)
    said({"classifiers": [state]}, "trained on tokens of 48 channels; this encoder gives 96", encoder=Encoder(96, 2, HEADS, PATCH))
    said({"encoder": state}, "holds encoder; expected classifiers")
    with pytest.raises(WeightsError, match="no such file"):
        weights.classifier(tmp_path / "none.pt", encoder)


def jolted(module: nn.Module):
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return module.eval()


@torch.no_grad()
def test_what_is_exported_computes_the_same_there(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = jolted(Encoder(DIM, 3, HEADS, PATCH, mlp_ratio=48 / 11, rope="vjepa2"))
    guess = jolted(Predictor(DIM, PDIM, 2, 2, rope="vjepa2"))
    folder = weights.export(ours, tmp_path, predictor=guess, size=32, frames=4)
    there, report = transformers.VJEPA2Model.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    x = clip()
    places = torch.stack([torch.randperm(32) for _ in range(2)])
    mask = Mask(places[:, :11].sort().values, places[:, 11:25].sort().values)
    out = theirs(there.eval(), x, context_mask=[mask.seen], target_mask=[mask.hidden])
    torch.testing.assert_close(out.last_hidden_state, ours(x), **CLOSE)
    expected, _ = guess(gather(ours(x), mask.seen), mask, GRID, kind=1)
    torch.testing.assert_close(out.predictor_output.last_hidden_state, expected, **CLOSE)

    back = weights.open(folder)
    assert all(torch.equal(a, b) for a, b in zip(back.encoder().state_dict().values(), ours.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(back.predictor().state_dict().values(), guess.state_dict().values(), strict=True))


@torch.no_grad()
def test_the_mark_of_videos_and_all_but_the_last_level_go_into_the_export(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = jolted(Encoder(DIM, 4, HEADS, PATCH, rope="vjepa2", levels=4, image_path=True))
    there = transformers.VJEPA2Model.from_pretrained(weights.export(ours, tmp_path, size=32, frames=4)).eval()
    x = clip()
    torch.testing.assert_close(theirs(there, x).last_hidden_state, ours(x), **CLOSE)


def test_what_hugging_face_cannot_compute_is_not_exported(tmp_path):
    for how, why in (({}, "rotary style 'interleaved'"), ({"position": "sincos"}, "fixed positions")):
        with pytest.raises(WeightsError, match=why):
            weights.export(Encoder(DIM, 2, 2, PATCH, **how), tmp_path / "out", size=32, frames=4)
    guess = Predictor(DIM, PDIM, 1, 2)
    with pytest.raises(WeightsError, match="cannot compute a predictor with the rotary style 'interleaved'"):
        weights.export(Encoder(DIM, 2, 2, PATCH, rope="vjepa2"), tmp_path / "out", size=32, frames=4, predictor=guess)
    with pytest.raises(WeightsError, match="needs size="):
        weights.export(Encoder(DIM, 2, 2, PATCH, rope="vjepa2"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------------------- sizes

COUNTS = {  # encoder parameters: facebookresearch/vjepa2's modules as counted there, tables of V-JEPA 1 apart
    ("vjepa2", 192, 12, 3): 5_633_856,
    ("vjepa2", 384, 12, 6): 21_884_544,
    ("vjepa2", 768, 12, 12): 86_236_416,
    ("vjepa2", 1024, 24, 16): 303_885_312,
    ("vjepa2.1", 768, 12, 12): 86_833_152,
}


@pytest.mark.parametrize("kind", COUNTS)
def test_encoders_have_as_many_parameters_as_upstreams(kind):
    family, dim, depth, heads = kind
    more = {"levels": 4, "image_path": True} if family == "vjepa2.1" else {}
    with torch.device("meta"):
        assert count(Encoder(dim, depth, heads, **more)) == COUNTS[kind]


@pytest.mark.parametrize(("levels", "expected"), [(1, 21_886_080), (4, 26_316_672 - 2 * 384)])
def test_predictors_have_as_many_parameters_as_upstreams(levels, expected):
    """The two marks of modality, 384 each, are folded into what is there."""
    with torch.device("meta"):
        assert count(Predictor(768, 384, 12, 12, levels=levels)) == expected


@pytest.mark.parametrize("size", ["vitl", "vith", "vitg"])
def test_named_sizes_have_the_shapes_of_transformers(size):
    """Every key and shape of VJEPA2Model at that size fits ours; on the meta device."""
    transformers = pytest.importorskip("transformers")
    width, depth = load.SIZES[size]
    ratio = 48 / 11 if size == "vitg" else 4.0
    with torch.device("meta"):
        model = transformers.VJEPA2Model(
            transformers.VJEPA2Config(hidden_size=width, num_hidden_layers=depth, num_attention_heads=load.HEADS[width], mlp_ratio=ratio)
        )
    from vjepa_lab.weights.files import Checkpoint
    from vjepa_lab.weights.keys import our_predictor, upstream_of

    encoder, predictor = upstream_of(model.state_dict(), "meta")
    checkpoint = Checkpoint("meta", {"encoder": encoder}, predictor, None)
    release = load.recognised(load.RELEASES[f"vjepa2-{size}"], encoder, checkpoint)
    options = load.structure(encoder, release, checkpoint, None)
    found, _ = load.predictor_structure(checkpoint, release, options, None)
    there = weights.Weights(checkpoint, release, options, found)
    with torch.device("meta"):
        ours, guess = Encoder(**options), Predictor(**found)
    assert {n: v.shape for n, v in ours.state_dict().items()} == {n: v.shape for n, v in there.state().items()}
    assert {n: v.shape for n, v in guess.state_dict().items()} == {n: v.shape for n, v in our_predictor(predictor).items()}
    assert options["heads"] == load.HEADS[width] and found["heads"] == 12 and count(ours) == count(model.encoder)
    assert count(guess) == count(model.predictor)


def test_the_gigantic_models_levels_are_upstreams():
    with torch.device("meta"):
        encoder = Encoder(1664, 48, 26, mlp_ratio=64 / 13, levels=4, after=(11, 23, 37, 47), image_path=True)
    assert list(encoder.norms) == ["11", "23", "37", "47"] and encoder.blocks[0].mlp.fc1.out_features == 8192


# -------------------------------------------------------------------------------------------------------------- starting a model of ours


def model_like(there, **preset):
    size = {"frames": 4, "size": 32, "pred_dim": PDIM, "pred_depth": 2, "pred_heads": 2} | preset
    from dataclasses import replace

    p = replace(PRESETS["smoke"], dim=DIM, depth=DEPTH, heads=HEADS, patch=PATCH, **size)
    skip = ("dim", "depth", "heads", "patch", "tubelet", "levels")
    return VJEPA.build(p, levels=there.options["levels"], **{k: v for k, v in there.options.items() if k not in skip})


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_ours_starts_from_released_weights(tmp_path, family):
    student, teacher, _ = released(tmp_path / "w.pt", family, multi=family == "vjepa2.1", out=4 * DIM if family == "vjepa2.1" else DIM)
    there = weights.open(f"{family}:{tmp_path / 'w.pt'}", heads=HEADS, pred_heads=2)
    model = model_like(there)
    assert there.predictor_for(model)[1] == "loaded" and there.begin(model) is model
    x = clip()
    torch.testing.assert_close(model.student(x), plain_encoder(student, x, family), **CLOSE)
    torch.testing.assert_close(model.teacher(x), plain_encoder(teacher, x, family), **CLOSE)
    assert all(p.requires_grad for p in model.student.parameters()) and not any(p.requires_grad for p in model.teacher.parameters())
    tokens = model.predictor.mask_tokens
    assert torch.equal(tokens[0], tokens[1]) == (family != "vjepa")  # one shared token from V-JEPA 2 on
    fresh = model_like(there, pred_depth=1)
    assert "built otherwise" in there.predictor_for(fresh)[1]
    before = fresh.predictor.proj.weight.clone()
    assert torch.equal(there.begin(fresh).predictor.proj.weight, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_pretraining_starts_from_released_weights_and_says_so(tmp_path, family):
    student, teacher, _ = released(tmp_path / "w.pt", family)
    there = weights.open(f"{family}:{tmp_path / 'w.pt'}", heads=HEADS, pred_heads=2)
    how = {"preset": "smoke", "steps": 1, "warmup": 0, "runs": tmp_path, "device": "cpu", "bf16": False, "progress": False}
    run = vl.pretrain("baseline", vl.data.open("synthetic", n=8, frames=8, size=32), init=there, lr=1e-5, start_lr=1e-5, **how)
    init, preset = run.config["init"], run.preset
    assert init["name"] == family and init["sha256"] and run.config["regime"].endswith(f"from {family}") and family in run.name
    assert (preset.dim, preset.depth, preset.heads, preset.patch, preset.frames) == (DIM, DEPTH, HEADS, PATCH, 8)
    # 2.1's predictor projects seen places by a map of its own, which a model of one level does not have
    assert init["predictor"].startswith("fresh" if family == "vjepa2.1" else "loaded")
    x = clip()
    with torch.no_grad():
        torch.testing.assert_close(run.encoder("initial")(x), plain_encoder(student, x, family), **CLOSE)
        moved = run.encoder("student")(x)
        torch.testing.assert_close(moved, plain_encoder(student, x, family), atol=0.05, rtol=0.05)
        assert not torch.allclose(moved, plain_encoder(student, x, family), **CLOSE)
        torch.testing.assert_close(run.encoder("teacher")(x), plain_encoder(teacher, x, family), atol=0.05, rtol=0.05)
    (tmp_path / "w.pt").unlink()
    assert run.encoder("student") is not None
    with pytest.raises(WeightsError, match="no such file"):
        run.encoder("initial")


@torch.no_grad()
def test_a_run_in_v_jepa_2s_style_is_exported(tmp_path):
    transformers = pytest.importorskip("transformers")
    how = {"preset": "smoke", "steps": 1, "warmup": 0, "runs": tmp_path, "device": "cpu", "bf16": False, "progress": False}
    data = vl.data.open("synthetic", n=8, frames=8, size=32)
    with torch.enable_grad():
        run, other = (vl.pretrain("baseline", data, rope=rope, **how) for rope in ("vjepa2", None))
    there = transformers.VJEPA2Model.from_pretrained(weights.export(run, tmp_path / "hf"), attn_implementation="eager").eval()
    x = clip(f=8)
    torch.testing.assert_close(theirs(there, x).last_hidden_state, run.encoder()(x), **CLOSE)
    with pytest.raises(WeightsError, match='train the run to be exported with rope="vjepa2"'):
        weights.export(other, tmp_path / "no")


@pytest.fixture
def small_run(tmp_path):
    how = {"steps": 2, "warmup": 0, "device": "cpu", "bf16": False, "progress": False}
    return vl.pretrain("baseline", vl.data.open("synthetic", n=8, frames=8, size=32), "smoke", rope="vjepa2", out=tmp_path / "run", **how)


@pytest.mark.parametrize("which", ["initial", "student", None])
def test_an_exported_predictor_is_of_the_same_moment_as_its_encoder(small_run, tmp_path, which):
    back = weights.open(weights.export(small_run, tmp_path / "hf", which=which))
    same = {trained: torch.equal(back.predictor().proj.weight, small_run.model(trained).predictor.proj.weight) for trained in (True, False)}
    assert same == {True: which != "initial", False: which == "initial"}
    if which is None:  # the recipe's choice
        config = small_run.path / "config.json"
        config.write_text(json.dumps(small_run.config | {"probe": "initial"}))
        back = weights.open(weights.export(small_run, tmp_path / "untrained"))
        assert torch.equal(back.predictor().proj.weight, small_run.model(trained=False).predictor.proj.weight)


def test_positions_that_a_recipe_asks_for_must_be_those_of_the_weights(tmp_path):
    for family, theirs, said in (("vjepa2", None, "as they are"), ("vjepa2.1", 32, "on a grid of 32")):
        released(tmp_path / f"{family}.pt", family)
        there = weights.open(f"{family}:{tmp_path / family}.pt", heads=HEADS, pred_heads=2)
        with pytest.raises(ValueError, match=rf"rope_grid=8 in the recipe: the weights of {family} take positions {said}; give"):
            vl.pretrain(Recipe(JEPA(), rope_grid=8), preset="smoke", init=there, out=tmp_path / "run", progress=False)
        for grid in (None, theirs):
            assert starting_point(there, Recipe(JEPA(), rope_grid=grid), None)[1].get("rope_base_grid") == theirs
    assert not (tmp_path / "run").exists()


@torch.no_grad()
def test_one_level_of_four_is_the_last(tmp_path):
    _, teacher, _ = released(tmp_path / "w.pt", "vjepa2.1")
    one = weights.open(tmp_path / "w.pt", heads=HEADS).at_levels(1)
    x = clip()
    torch.testing.assert_close(one.encoder()(x), plain_encoder(teacher, x, "vjepa2.1"), **CLOSE)
    with pytest.raises(WeightsError, match=r"4 levels need weights of V-JEPA 2\.1"):
        one.at_levels(4)


# -------------------------------------------------------------------------------------------------------------------- wrong files


def test_missing_and_foreign_keys_are_listed(tmp_path):
    state = upstream_encoder(family="vjepa2")
    del state["blocks.1.attn.qkv.weight"], state["norm.bias"]
    state |= {"blocks.0.gamma": torch.ones(DIM), "norm.weight": torch.ones(DIM + 1)}
    torch.save({"encoder": state}, tmp_path / "w.pt")
    with pytest.raises(WeightsError) as error:
        vl.encoder("vjepa2", tmp_path / "w.pt", heads=HEADS)
    for said in ("2 missing (blocks.1.attn.qkv.weight, norms.3.bias)", "1 foreign (blocks.0.gamma)", "norms.3.weight [49] instead of [48]"):
        assert said in str(error.value)


def save(tmp_path, value):
    torch.save(value, tmp_path / "w.pt")
    return tmp_path / "w.pt"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"model": {"a": torch.ones(1)}, "epoch": 3}, "holds model, epoch; expected one of target_encoder"),
        ({"encoder": {"conv1.weight": torch.ones(1)}}, "no patch_embed.proj.weight among its 1 keys"),
        ({"encoder": {"patch_embed.proj.weight": torch.ones(8, 3, 16, 16)}}, r"expected \[channels, 3, frames, rows, columns\]"),
        ([1, 2], "holds list"),
        ({"encoder": 3}, "'encoder' is no state dict"),
    ],
)
def test_foreign_files_say_what_was_expected(tmp_path, value, said):
    with pytest.raises(WeightsError, match=said):
        vl.encoder("vjepa2", save(tmp_path, value))


def test_names_and_files_must_agree(tmp_path):
    path = tmp_path / "w.pt"
    released(path, "vjepa")
    with pytest.raises(WeightsError, match="say vjepa:PATH or vjepa2:PATH"):
        vl.encoder(path)
    with pytest.raises(WeightsError, match=r"vjepa2\.1, but its keys are those of vjepa or vjepa2"):
        vl.encoder("vjepa2.1", path)
    with pytest.raises(WeightsError, match="width 48 and depth 4; vjepa-vitl has 1024 and 24"):
        vl.encoder("vjepa-vitl", path)
    with pytest.raises(WeightsError, match=r"no released model is 48 wide.*weights.open\(\.\.\., heads=\)"):
        vl.encoder("vjepa", path)
    with pytest.raises(WeightsError, match="did you mean vjepa2-vitl"):
        vl.encoder("vjepa2-vitll", path)
    with pytest.raises(WeightsError, match="neither a path that exists nor a released model"):
        vl.encoder("nowhere.pt")
    state = upstream_encoder(family="vjepa") | {"pos_embed": torch.randn(1, 32, DIM)}
    with pytest.raises(WeightsError, match="not the sine-cosine table"):
        vl.encoder("vjepa", save(tmp_path, {"encoder": state}), heads=HEADS)
    with pytest.raises(WeightsError, match="has no teacher; it has student"):
        vl.encoder("vjepa2", save(tmp_path, {"encoder": upstream_encoder(family="vjepa2")}), which="teacher", heads=HEADS)


def test_a_tilde_after_the_name_is_ones_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    released(tmp_path / "w.pt", "vjepa2.1")
    for given in (("vjepa2.1:~/w.pt",), ("vjepa2.1", "~/w.pt"), ("~/w.pt",)):
        assert weights.open(*given, heads=HEADS).about["path"] == str(tmp_path / "w.pt")
    assert weights.are_weights("~/w.pt") and not weights.are_weights("~/nowhere.pt")


class Run:
    def __reduce__(self):
        return os.mkdir, (str(Run.path),)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path):
    Run.path = tmp_path / "was-here"
    for legacy in (False, True):
        held = {"encoder": upstream_encoder(family="vjepa2"), "opt": Run()}
        torch.save(held, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(WeightsError, match=r"mkdir.*can run code when they are loaded; it is refused"):
            vl.encoder("vjepa2", tmp_path / "w.pt", heads=HEADS)
    assert not Run.path.exists()


def test_damaged_files_and_folders_say_so(tmp_path, hf):
    released(tmp_path / "w.pt", "vjepa2")
    whole = (tmp_path / "w.pt").read_bytes()
    for part in (whole[: len(whole) // 2], b"", b"<html>not found</html>"):
        (tmp_path / "half.pt").write_bytes(part)
        with pytest.raises(WeightsError, match="no torch checkpoint, or a damaged one"):
            vl.encoder("vjepa2", tmp_path / "half.pt", heads=HEADS)
    folder = tmp_path / "hf"
    hf.save_pretrained(folder, max_shard_size="40KB")
    gone = next(folder.glob("model-00002*"))
    gone.rename(tmp_path / "shard")
    with pytest.raises(WeightsError, match=r"lacks 1 of \d+ files that model.safetensors.index.json names: model-00002"):
        vl.encoder(folder)
    gone.write_bytes((tmp_path / "shard").read_bytes()[:100])
    with pytest.raises(WeightsError, match="no safetensors file, or a damaged one"):
        vl.encoder(folder)
    index = folder / "model.safetensors.index.json"
    for text, said in (
        ("{}", r"index.json has no usable weight_map \(it holds nothing\); expected an index with weight_map.*download it again"),
        ('{"weight_map": [1]}', r"index.json has no usable weight_map \(it holds weight_map\)"),
        ("[]", "index.json holds list; expected an index with weight_map"),
        ('{"weight_map"', "index.json is not valid JSON .*; expected an index with weight_map"),
    ):
        index.write_text(text)
        with pytest.raises(WeightsError, match=said):
            vl.encoder(folder)
    (folder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(WeightsError, match="model_type is 'vit', expected 'vjepa2'"):
        vl.encoder(folder)


@pytest.mark.parametrize(
    ("text", "said"), [("{half", "is not valid JSON"), ("", "is not valid JSON"), ("[1]", "holds list"), ('"x"', "holds str")]
)
def test_a_broken_description_is_named_wherever_it_is_read(tmp_path, text, said):
    (tmp_path / "config.json").write_text(text)
    for read in (vl.encoder, subject_of):
        with pytest.raises(WeightsError, match=rf"config.json {said}.*expected the description of a Hugging Face VJEPA2Model.*download it"):
            read(tmp_path)
    (tmp_path / "recipe.txt").write_text("x")  # a run's folder, which says what to do itself
    assert not weights.are_weights(tmp_path)
    if said == "is not valid JSON":
        with pytest.raises(ValueError, match=r"config.json: damaged, no JSON .*; remove .* to start again"):
            subject_of(tmp_path)
    (tmp_path / "config.json").write_text('{"variant": "ld"}')
    assert not weights.are_weights(tmp_path)


@pytest.mark.parametrize("name", ["vjepa2-vitx", "vjepa2-vitx:odd.pt"])
def test_a_misspelt_release_is_told_the_near_names(name):
    said = rf"{name}: not a run folder: .*no released model is called that; did you mean .*vjepa2-vitl"
    with pytest.raises(FileNotFoundError, match=said):
        vl.probe(name)
    with pytest.raises(FileNotFoundError, match=said):
        vl.finetune(name, "synthetic")
    said = r"nothere.pt: not a run folder: there is no such place, and no released model.*expected one of vjepa, "
    with pytest.raises(FileNotFoundError, match=said):
        vl.finetune("nothere.pt", "synthetic")
    with pytest.raises(FileNotFoundError, match=r"ld-micro-s0: not a run folder: there is no such place$"):
        vl.probe("runs/ld-micro-s0")


def test_a_clip_that_does_not_divide_is_refused_with_what_would_do(tmp_path):
    released(tmp_path / "w.pt", "vjepa2")
    opened = weights.open(f"vjepa2:{tmp_path / 'w.pt'}", heads=HEADS)
    for shape, said in (
        ({"size": 30}, "size=30 does not divide by the encoder's patch of 8 pixels: 24 or 32 would do"),
        ({"size": 5}, "size=5 .*: 8 would do"),
        ({"frames": 3}, "frames=3 does not divide by the encoder's tubelet of 2 frames: 2 or 4 would do"),
    ):
        with pytest.raises(ValueError, match=said):
            vl.probe(opened, "synthetic", "motion", **{"frames": 4, "size": 32, "limit": 4, **shape}, save=False)
    assert subject_of(opened).shaped(1, 32, 1).frames == 1  # a single frame fills a tubelet


# ------------------------------------------------------------------------------------------------------------------------ download


class Server(BaseHTTPRequestHandler):
    """Gives one file, with ranges; breaks off after `most` bytes of each answer, and rests `slow` seconds between pieces."""

    body, most, ranges, tag, asked, slow = b"", None, True, '"one"', [], 0.0

    def do_GET(self):
        cls = type(self)
        cls.asked.append(self.headers.get("Range"))
        if self.path.partition("?")[0] != "/vitl.pt":
            return self.send_error(404, "Not Found")
        start = 0
        if cls.ranges and self.headers.get("Range") and self.headers.get("If-Range") == cls.tag:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        if start >= len(cls.body) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(cls.body)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        part = cls.body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", cls.tag)
        self.end_headers()
        part = part[: cls.most]
        for at in range(0, len(part), 1 << 19):
            self.wfile.write(part[at : at + (1 << 19)])
            time.sleep(cls.slow)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    kind = type("One", (Server,), {"asked": []})
    there = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=there.serve_forever, daemon=True)
    thread.start()
    kind.url = f"http://127.0.0.1:{there.server_port}/vitl.pt"
    yield kind
    there.shutdown()
    there.server_close()
    thread.join()


@pytest.fixture
def body(server):
    server.body = os.urandom(3_000_000)
    return server.body


QUIET = {"progress": False}


def there(folder):
    return sorted(file.name for file in folder.iterdir())


def test_a_download_that_stops_is_resumed_and_checked(server, body, tmp_path):
    right = hashlib.sha256(body).hexdigest()
    server.most = 1_200_000
    path = weights.fetch(server.url, right, tmp_path, **QUIET)
    assert path == tmp_path / "vitl.pt" and path.read_bytes() == body
    assert server.asked == [None, "bytes=1200000-", "bytes=2400000-"] and there(tmp_path) == ["vitl.pt", "vitl.pt.url"]
    assert weights.fetch(server.url, right, tmp_path, **QUIET) == path and len(server.asked) == 3  # it is there


def test_the_next_call_goes_on(server, body, tmp_path):
    server.most = 1_000_000
    with pytest.raises(WeightsError, match=r"stopped after 1,000,000 bytes.*the same call goes on"):
        weights.fetch(server.url, None, tmp_path, attempts=1, **QUIET)
    assert not (tmp_path / "vitl.pt").exists()
    server.most = None
    assert weights.fetch(server.url, None, tmp_path, attempts=1, **QUIET).read_bytes() == body
    assert server.asked[-1] == "bytes=1000000-"


def test_another_version_or_a_server_without_ranges_starts_anew(server, body, tmp_path):
    for change in ({"tag": '"two"'}, {"ranges": False}):
        (tmp_path / "vitl.pt").unlink(missing_ok=True)
        server.most, server.tag, server.ranges = 1_000_000, '"one"', True
        with pytest.raises(WeightsError):
            weights.fetch(server.url, None, tmp_path, attempts=1, **QUIET)
        server.most, server.body = None, os.urandom(1_500_000)
        for name, value in change.items():
            setattr(server, name, value)
        assert weights.fetch(server.url, None, tmp_path, attempts=1, **QUIET).read_bytes() == server.body


FETCH = """
import sys
from vjepa_lab.weights import fetch
print("ready", flush=True)
sys.stdin.readline()
print(fetch(sys.argv[1], folder=sys.argv[2], progress=False).read_bytes() == open(sys.argv[3], "rb").read())
"""


def test_of_two_processes_that_want_a_file_one_downloads_it(server, body, tmp_path):
    (tmp_path / "right").write_bytes(body)
    server.slow = 0.3
    command = [sys.executable, "-c", FETCH, server.url, str(tmp_path / "got"), str(tmp_path / "right")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "got").mkdir()
    said = []
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
        time.sleep(0.5)  # the second one comes while the first one's download is under way
    for process in both:
        said.append(process.communicate(timeout=300))
    assert [out for out, _ in said] == ["True\n"] * 2, said
    assert server.asked == [None] and there(tmp_path / "got") == ["vitl.pt", "vitl.pt.url"]


def test_a_folder_that_cannot_be_written_is_named(server, body, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(locks, "_take", full)
    with pytest.raises(OSError, match=r"no folder that can be written \(Read-only file system\); choose another with folder="):
        weights.fetch(server.url, None, tmp_path, **QUIET)
    (tmp_path / "vitl.pt").write_bytes(body)
    assert weights.fetch(server.url, None, tmp_path, **QUIET).read_bytes() == body, "what is there needs no lock"


def test_a_whole_partial_file_is_taken(server, body, tmp_path):
    (tmp_path / "vitl.pt.part").write_bytes(body)
    (tmp_path / "vitl.pt.part.json").write_text('"\\"one\\""')
    assert weights.fetch(server.url, None, tmp_path, **QUIET).read_bytes() == body


def test_a_wrong_checksum_keeps_nothing(server, body, tmp_path):
    with pytest.raises(WeightsError, match=r"expected 00.*thrown away"):
        weights.fetch(server.url, "00" * 32, tmp_path, **QUIET)
    assert list(tmp_path.iterdir()) == []
    weights.fetch(server.url, None, tmp_path, **QUIET)
    with pytest.raises(WeightsError, match="remove the file to download it again"):
        weights.fetch(server.url, "00" * 32, tmp_path, **QUIET)


def test_a_file_of_another_address_is_not_taken_for_this_one(server, body, tmp_path):
    """Two addresses may end alike. What lies there without an address is the user's, and used with a warning; a checksum settles it."""
    path, other = weights.fetch(server.url, None, tmp_path, **QUIET), server.url + "?version=2"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert weights.fetch(server.url, None, tmp_path, **QUIET) == path
        with pytest.raises(
            WeightsError, match=r"comes from .*vitl.pt, and not from .*version=2; name another folder with weights.open\(\.\.\., folder=\)"
        ):
            weights.fetch(other, None, tmp_path, **QUIET)
        right = hashlib.sha256(body).hexdigest()
        assert weights.fetch(other, right, tmp_path, **QUIET) == path
        (tmp_path / "vitl.pt.url").unlink()
        assert weights.fetch(other, right, tmp_path, **QUIET) == path
    with pytest.warns(UserWarning, match="vitl.pt is used as it is: nothing beside it says that it is http"):
        assert weights.fetch(other, None, tmp_path, **QUIET) == path and there(tmp_path) == ["vitl.pt"]


def test_half_a_file_of_another_address_is_not_gone_on_with(server, body, tmp_path):
    server.most = 1_000_000
    with pytest.raises(WeightsError, match="stopped after 1,000,000 bytes"):
        weights.fetch(server.url, None, tmp_path, attempts=1, **QUIET)
    server.most, asked = None, len(server.asked)
    other = server.url.replace("127.0.0.1", "localhost")
    assert weights.fetch(other, None, tmp_path, **QUIET).read_bytes() == body and server.asked[asked:] == [None]
    assert (tmp_path / "vitl.pt.url").read_text().strip() == other


def test_addresses_that_do_not_answer(server, tmp_path):
    with pytest.raises(WeightsError, match="the server answers 404"):
        weights.fetch(server.url.replace("vitl", "vith"), None, tmp_path, **QUIET)
    with pytest.raises(WeightsError, match="stopped after 0 bytes"):
        weights.fetch("http://127.0.0.1:9/vitl.pt", None, tmp_path, attempts=2, timeout=2, **QUIET)


@torch.no_grad()
def test_an_encoder_from_a_url(server, tmp_path):
    _, teacher, _ = released(tmp_path / "w.pt", "vjepa2")
    server.body = (tmp_path / "w.pt").read_bytes()
    x, folder = clip(), tmp_path / "cache"
    ours = vl.encoder(f"vjepa2:{server.url}", heads=HEADS, folder=folder, sha256=hashlib.sha256(server.body).hexdigest(), **QUIET)
    torch.testing.assert_close(ours(x), plain_encoder(teacher, x, "vjepa2"), **CLOSE)
    assert vl.encoder(server.url, heads=HEADS, folder=folder, **QUIET).rope == "vjepa2"
