"""The model: sizes, parity with Hugging Face's V-JEPA 2, what the objectives pay for."""

from dataclasses import replace

import pytest
import torch
from einops import rearrange

from vjepa_lab import blocks, masks
from vjepa_lab.model import VJEPA, Encoder, Predictor, count, gather
from vjepa_lab.objective import Loss
from vjepa_lab.presets import PRESETS
from vjepa_lab.rope import rotary, rotate
from vjepa_lab.terms import JEPA, Dynamics, Kinematic

SMOKE = PRESETS["smoke"]


def clip(preset=SMOKE, batch=2):
    return torch.randn(batch, 3, preset.frames, preset.size, preset.size)


def test_paper_size():
    with torch.device("meta"):
        model = VJEPA.build(PRESETS["base"])
    assert count(model.student) == 86_236_416
    assert count(model.predictor) == 6_713_344
    assert PRESETS["base"].grid == (8, 14, 14)


def test_multilevel_size():
    """V-JEPA 2.1's four-level predictor: 10 455 552 parameters there, of which 512 are two modality marks that we leave out."""
    with torch.device("meta"):
        model = VJEPA.build(PRESETS["base"], levels=4)
    assert count(model.predictor) == 10_455_552 - 2 * 256
    assert model.width == 4 * 768


@pytest.fixture(scope="module")
def hf():
    """A small, randomly initialised VJEPA2Model in the genuine format."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.VJEPA2Config(
        patch_size=8, crop_size=32, frames_per_clip=4, tubelet_size=2, hidden_size=48, num_attention_heads=2, num_hidden_layers=3,
        mlp_ratio=4.0, pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=2, pred_num_mask_tokens=2,
        pred_zero_init_mask_tokens=False, attn_implementation="eager",
    )  # fmt: skip
    return transformers.VJEPA2Model(config).eval()


def copy_blocks(blocks, layers):
    for block, layer in zip(blocks, layers, strict=True):
        attention = layer.attention
        qkv = (attention.query, attention.key, attention.value)
        block.attn.qkv.weight.data = torch.cat([p.weight for p in qkv])
        block.attn.qkv.bias.data = torch.cat([p.bias for p in qkv])
        for ours, theirs in ((block.attn.proj, attention.proj), (block.norm1, layer.norm1), (block.norm2, layer.norm2)):
            ours.load_state_dict(theirs.state_dict())
        block.mlp.load_state_dict(layer.mlp.state_dict(), strict=False)


def encoder_from(hf):
    ours = Encoder(48, 3, 2, patch=8, tubelet=2, rope="vjepa2")
    convolution = hf.encoder.embeddings.patch_embeddings.proj
    ours.patch_embed.weight.data, ours.patch_embed.bias.data = convolution.weight.flatten(1), convolution.bias
    copy_blocks(ours.blocks, hf.encoder.layer)
    ours.norms["2"].load_state_dict(hf.encoder.layernorm.state_dict())
    return ours.eval()


def predictor_from(hf):
    ours = Predictor(48, 24, 2, 2, rope="vjepa2")
    ours.embed.load_state_dict(hf.predictor.embeddings.predictor_embeddings.state_dict())
    ours.mask_tokens.data = hf.predictor.embeddings.mask_tokens.data.clone()
    copy_blocks(ours.blocks, hf.predictor.layer)
    ours.norm.load_state_dict(hf.predictor.layernorm.state_dict())
    ours.proj.load_state_dict(hf.predictor.proj.state_dict())
    return ours.eval()


@torch.no_grad()
def test_encoder_parity(hf):
    x = torch.randn(2, 3, 4, 32, 32)
    theirs = hf.encoder(pixel_values_videos=rearrange(x, "b c f y x -> b f c y x")).last_hidden_state
    torch.testing.assert_close(encoder_from(hf)(x), theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_encoder_parity_on_kept_tokens(hf):
    """HF cannot encode a subset, but its blocks take the tokens' places, as upstream's training does."""
    x = torch.randn(2, 3, 4, 32, 32)
    keep = torch.stack([torch.randperm(32)[:11].sort().values for _ in range(2)])
    hidden = gather(hf.encoder.embeddings(rearrange(x, "b c f y x -> b f c y x")), keep)
    for layer in hf.encoder.layer:
        hidden = layer(hidden, keep)[0]
    torch.testing.assert_close(encoder_from(hf)(x, keep), hf.encoder.layernorm(hidden), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_predictor_parity(hf):
    """Upstream sorts tokens by place before its blocks and unsorts them after; attention with rotary places does not need it.

    HF takes the second mask token unless told otherwise.
    """
    places = torch.stack([torch.randperm(32) for _ in range(2)])
    mask = masks.Mask(places[:, :11].sort().values, places[:, 11:25].sort().values)
    tokens = torch.randn(2, 32, 48)
    theirs = hf.predictor(tokens, context_mask=[mask.seen], target_mask=[mask.hidden]).last_hidden_state
    ours, _ = predictor_from(hf)(gather(tokens, mask.seen), mask, (2, 4, 4), kind=1)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_rope_depends_on_distance_alone():
    """With the interleaved style q(p) . k(p + 3) is the same at every p; V-JEPA 2's style is not a relative encoding."""
    q, k = torch.randn(2, 1, 1, 16)

    def products(style):
        table = rotary((8, 1, 1), 16, style)
        q_at, k_at = (rotate(u.expand(8, 1, 16), table) for u in (q, k))
        return (q_at[:5] * k_at[3:]).sum(-1).flatten()

    assert products("interleaved").std() < 1e-5
    assert products("vjepa2").std() > 1e-2


def test_rope_keeps_length_and_leaves_the_rest():
    x = torch.randn(8, 2, 16)
    turned = rotate(x, rotary((2, 2, 2), 16))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(turned[..., 12:], x[..., 12:])  # 3 axes of 4 channels rotate


def test_rope_interpolation_stretches_space_only():
    fine, coarse = rotary((2, 31, 31), 16, base_grid=16), rotary((2, 16, 16), 16)
    torch.testing.assert_close(fine.cos.unflatten(0, (2, 31, 31))[:, ::2, ::2], coarse.cos.unflatten(0, (2, 16, 16)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("position", ["interleaved", "vjepa2", "sincos"])
def test_a_clip_looked_at_in_inference_mode_or_under_a_default_device_leaves_nothing_behind(position):
    """Tables are kept from call to call; one made for the first caller's mode would stop all training on that grid."""
    how = {"position": "sincos"} if position == "sincos" else {"rope": position}
    encoder, clip = Encoder(60, 1, 1, 8, **how), torch.randn(1, 3, 6, 24, 40)  # a grid that nothing else asks for
    with torch.device("meta"):
        Encoder(60, 1, 1, 8, **how)(torch.empty_like(clip, device="meta"))
    with torch.inference_mode():
        seen = encoder(clip)
    encoder(clip).sum().backward()
    assert torch.allclose(seen, encoder(clip), atol=1e-5) and encoder.patch_embed.weight.grad.isfinite().all()


def test_kept_tokens_see_each_other_only():
    """Encoding a subset does not depend on the rest of the clip."""
    encoder, x = Encoder(48, 2, 2, patch=8), clip()
    keep = torch.arange(16).expand(2, -1)  # the first tubelet of a 4 x 4 grid
    other = x.clone()
    other[:, :, 2:] = 0
    torch.testing.assert_close(encoder(x, keep), encoder(other, keep))


def test_image_is_one_tubelet():
    encoder, x = Encoder(48, 2, 2, patch=8), clip()[:, :, :1]
    assert encoder.grid(x) == (1, 4, 4)
    torch.testing.assert_close(encoder(x), encoder(x.expand(-1, -1, 2, -1, -1)))


def test_image_path_has_its_own_embedding():
    encoder, x = Encoder(48, 2, 2, patch=8, image_path=True), clip()[:, :, :1]
    assert encoder(x).shape == (2, 16, 48)
    encoder(x).sum().backward()
    assert encoder.patch_embed.weight.grad is None and encoder.patch_embed_img.weight.grad is not None


def test_clip_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="5 frames, 32 x 30"):
        Encoder(48, 2, 2, patch=8).grid(torch.zeros(1, 3, 5, 32, 30))


@pytest.mark.parametrize(("objective", "passes"), [(JEPA(), 2), (JEPA() + Kinematic(view="visible"), 2), (JEPA() + Dynamics(), 3)])
def test_an_objective_pays_for_what_it_touches(objective, passes, monkeypatch):
    """One student pass for all mask kinds and the teacher's; only an auxiliary on the full view adds another."""
    calls, encode = [], Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, *a, **k: calls.append(1) or encode(self, *a, **k))
    model = VJEPA.build(SMOKE)
    Loss(objective, model.width)(model.latents(clip(), masks.MultiBlock().draw(2, SMOKE.grid, seed=0, step=0)))
    assert len(calls) == passes


@pytest.mark.parametrize(("objective", "passes"), [(JEPA(), 2), (JEPA() + Dynamics(), 2)])
def test_online_teacher_shares_the_full_pass(objective, passes, monkeypatch):
    calls, encode = [], Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, *a, **k: calls.append(1) or encode(self, *a, **k))
    model = VJEPA.build(SMOKE, teacher="online")
    loss = Loss(objective, model.width)
    latents = model.latents(clip(), masks.MultiBlock().draw(2, SMOKE.grid, seed=0, step=0), full="full" in loss.objective.views)
    loss(latents)
    assert len(calls) == passes
    assert not latents.h.requires_grad
    assert "z" not in vars(latents) or latents.z.requires_grad  # asked for first by the target, it must still carry gradient


def test_ema_moves_the_teacher_a_little():
    model = VJEPA.build(SMOKE)
    with torch.no_grad():
        for p in model.student.parameters():
            p.add_(1.0)
    before = [p.clone() for p in model.teacher.parameters()]
    model.update_teacher(0.9)
    for old, new in zip(before, model.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)


@pytest.mark.parametrize("teacher", ["ema", "frozen"])
def test_teacher_gets_no_gradient(teacher):
    model = VJEPA.build(SMOKE, teacher=teacher)
    total, _ = Loss(JEPA(), model.width)(model.latents(clip(), masks.MultiBlock().draw(2, SMOKE.grid, seed=0, step=0)))
    total.backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.student.parameters())


def test_frozen_teacher_never_moves():
    model = VJEPA.build(SMOKE, teacher="frozen")
    before = [p.clone() for p in model.teacher.parameters()]
    with torch.no_grad():
        for p in model.student.parameters():
            p.add_(1.0)
    model.update_teacher(0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, model.teacher.parameters(), strict=True))


def test_padded_masks_equal_each_clip_alone():
    """With padding nothing is dropped, and a clip's loss does not depend on its neighbours."""
    torch.manual_seed(1)
    model, x = VJEPA.build(SMOKE), clip(batch=3)
    together = masks.MultiBlock((masks.Blocks(3, 0.3), masks.Blocks(2, 0.5)), truncate="padded").draw(3, SMOKE.grid, seed=3, step=0)
    assert all(mask.seen_valid is not None for mask in together)
    for mask in together:
        latents = model.latents(x, [mask])
        (joint,) = JEPA().maps(latents, None)
        for i in range(3):
            alone = masks.Mask(mask.seen[i : i + 1, mask.seen_valid[i]], mask.hidden[i : i + 1, mask.hidden_valid[i]])
            (single,) = JEPA().maps(model.latents(x[i : i + 1], [alone]), None)
            torch.testing.assert_close(joint.value[i, mask.hidden_valid[i]], single.value[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("position", ["rope", "sincos"])
@pytest.mark.parametrize("truncate", ["official", "padded"])
def test_masks_that_share_a_pass_do_not_see_each_other(position, truncate):
    """One pass for all mask kinds gives what a pass for each gives, whether the masks are padded or not."""
    model, x = VJEPA.build(SMOKE, position=position), clip(batch=3)
    drawn = masks.MultiBlock((masks.Blocks(3, 0.3), masks.Blocks(2, 0.5)), truncate=truncate).draw(3, SMOKE.grid, seed=3, step=0)
    shared = model.latents(x, drawn)
    for kind, mask in enumerate(drawn):
        single = model.latents(x, [mask])
        guess, state = model.predictor(single.seen[0], mask, single.grid, kind)
        for a, b, valid in ((shared.seen, single.seen[0], mask.seen_valid), (shared.pred, guess, mask.hidden_valid)):
            rows = slice(None) if valid is None else valid
            torch.testing.assert_close(a[kind][rows], b[rows], atol=1e-5, rtol=1e-4)
        rows = slice(None) if mask.seen_valid is None else mask.seen_valid
        torch.testing.assert_close(shared.context[kind][rows], model.predictor.context(state)[rows], atol=1e-5, rtol=1e-4)


def gradients(model, x, drawn) -> tuple[list[torch.Tensor], int]:
    """What the JEPA loss gives every trained parameter, and the bytes that its graph keeps for that."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total, _ = Loss(JEPA(), model.width)(model.latents(x, drawn))
    total.backward()
    return [p.grad.clone() for _, p in model.trainable()], sum(kept.values())


@pytest.mark.parametrize("bf16", [False, True])
def test_recomputed_activations_give_the_same_gradients_in_less_memory(bf16):
    model, x = VJEPA.build(replace(SMOKE, depth=4, pred_depth=3), bf16=bf16, drop_path=0.2), clip(batch=4)
    drawn = masks.MultiBlock().draw(4, SMOKE.grid, seed=0, step=0)
    torch.manual_seed(3)
    wanted, most = gradients(model, x, drawn)
    torch.manual_seed(3)
    recomputed, least = gradients(model.run_as(checkpoint=True), x, drawn)
    assert all(torch.equal(a, b) for a, b in zip(wanted, recomputed, strict=True))
    assert least < most / 2


@pytest.mark.slow
def test_compiled_blocks_give_the_same_gradients():
    """Whatever the number of tokens; alone, and with activations recomputed."""
    torch.manual_seed(0)
    model, x = VJEPA.build(SMOKE), clip(batch=3)
    for step, checkpoint in ((0, False), (1, False), (2, True)):
        drawn = masks.MultiBlock().draw(3, SMOKE.grid, seed=0, step=step)
        wanted, _ = gradients(model.run_as(), x, drawn)
        assert not model.predictor.how.compile
        found, _ = gradients(model.run_as(compile=True, checkpoint=checkpoint), x, drawn)
        assert model.predictor.how.compile and model.teacher.how.compile
        for a, b in zip(wanted, found, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_blocks_of_many_widths_are_all_compiled(monkeypatch):
    """They are versions of one function, of which torch by default makes 8 and runs what is beyond uncompiled."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: compile(function, backend="eager", **how))
    blocks.compiled.cache_clear()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for width in range(8, 8 * 13, 8):
            blocks.compiled()(blocks.Block(width, 1), torch.randn(2, 3, width), None)
    blocks.compiled.cache_clear()
    torch._dynamo.reset()


def test_without_a_compiler_it_says_so_and_runs(monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", broken)
    blocks.why_not_compiled.cache_clear()
    model = VJEPA.build(SMOKE)
    with pytest.warns(UserWarning, match=r"left out.*on cpu .*no C\+\+ compiler"):
        model.run_as(compile=True)
    blocks.why_not_compiled.cache_clear()
    assert not model.student.how.compile
    assert torch.isfinite(Loss(JEPA(), model.width)(model.latents(clip(), masks.MultiBlock().draw(2, SMOKE.grid, seed=0, step=0)))[0])
