"""Attention: the CPU's own way against torch's fused one, rotation by pairs against rotation by channels."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from vjepa_lab import attention
from vjepa_lab.attention import Attention, Products
from vjepa_lab.rope import rotary, rotate

GRID, HEADS, DIM = (2, 4, 4), 3, 48


def written_out(layer: Attention, x, rope, valid, lengths):
    """softmax(q k' / sqrt d) v, sequence by sequence."""
    start, parts = 0, []
    for length in lengths:
        at = slice(start, start + length)
        q, k, v = F.linear(x[:, at], layer.qkv.weight, layer.qkv.bias).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 1, 3, 4)
        if rope is not None:
            q, k = (rotate(u, rope._replace(cos=rope.cos[:, at], sin=rope.sin[:, at], turn=None)) for u in (q, k))
        logits = torch.einsum("bqgd,bkgd->bgqk", q, k) / q.shape[-1] ** 0.5
        if valid is not None:
            seen = valid[:, None, at] if valid.ndim == 2 else valid[:, at, at]
            logits = logits.masked_fill(~seen[:, None], -torch.inf)
        parts.append(torch.einsum("bgqk,bkgd->bqgd", logits.softmax(-1), v).flatten(2))
        start += length
    return F.linear(torch.cat(parts, dim=1), layer.proj.weight, layer.proj.bias)


CASES = ["one", "no rope", "vjepa2", "two", "some keys", "some keys of two", "causal", "causal of two"]


def case(name: str):
    """x, rope, valid, lengths of one way of attending."""
    n = 12
    x = torch.randn(2, n, DIM, requires_grad=True)
    places = torch.stack([torch.randperm(32)[:n] for _ in range(2)])
    style = "vjepa2" if name == "vjepa2" else "interleaved"
    rope = None if name == "no rope" else rotary(GRID, DIM // HEADS, style).to(x.device, x.dtype).at(places)
    some = torch.rand(2, n) > 0.4
    some[:, [0, 5]] = True
    causal = (torch.arange(n)[:, None] >= torch.arange(n))[None]
    valid = some if "some" in name else causal if "causal" in name else None
    return x, rope, valid, [5, 7] if "two" in name else [n]


@pytest.mark.parametrize(("way", "group"), [("fused", 0), *product(("kept", "again"), (2**22, 600, 300, 1))])  # 6, 4, 2 heads at a time, 1
@pytest.mark.parametrize("name", CASES)
def test_every_way_computes_the_formula(name, way, group, monkeypatch):
    monkeypatch.setattr(attention, "LONGEST", {} if way == "fused" else {torch.float32: 99})
    monkeypatch.setattr(attention, "KEPT", 99 if way == "kept" else 5)  # of the two sequences in a case, 5 and 7 long, one each way
    monkeypatch.setattr(attention, "GROUP", group)
    torch.manual_seed(0)
    layer, (x, rope, valid, lengths) = Attention(DIM, HEADS), case(name)
    ours, formula = layer(x, rope, valid, lengths), written_out(layer, x, rope, valid, lengths)
    torch.testing.assert_close(ours, formula, atol=1e-5, rtol=1e-5)
    push, inputs = torch.randn_like(ours), (x, *layer.parameters())
    for a, b in zip(torch.autograd.grad(ours, inputs, push), torch.autograd.grad(formula, inputs, push), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_a_long_sequence_in_bf16_is_as_exact_as_the_fused_way(masked, monkeypatch):
    """More tokens than `KEPT`, fewer than `LONGEST`: against fp32, output and gradient are as near as torch's own."""
    torch.manual_seed(0)
    wide = torch.randn(2, 600, 3 * 2 * 24)
    rope, push = rotary((6, 10, 10), 24), torch.randn(2, 600, 2 * 24)
    valid = torch.rand(2, 600) > 0.3 if masked else None

    def run(dtype) -> list:
        qkv = wide.to(dtype).requires_grad_()
        out = attention.attend(qkv, rope.to(qkv.device, dtype), valid, 2, [600])
        return [out.detach().float(), torch.autograd.grad(out, qkv, push.to(dtype))[0].float()]

    def far(found, true) -> list[float]:
        return [float((a - b).norm() / b.norm()) for a, b in zip(found, true, strict=True)]

    true, ours = run(torch.float32), run(torch.bfloat16)
    monkeypatch.setattr(attention, "LONGEST", {})
    theirs = run(torch.bfloat16)
    assert not torch.equal(ours[1], theirs[1]) and max(far(ours, true)) < 0.02
    assert all(a < 1.5 * b for a, b in zip(far(ours, true), far(theirs, true), strict=True))


@pytest.mark.parametrize("kept", [5, 2])
def test_products_have_the_gradient_of_what_they_compute(kept, monkeypatch):
    monkeypatch.setattr(attention, "KEPT", kept)
    torch.manual_seed(0)
    qkv = torch.randn(1, 5, 3 * 2 * 6, dtype=torch.float64, requires_grad=True)
    turn = rotary((5, 1, 1), 6).turn.to(torch.complex128)
    assert torch.autograd.gradcheck(lambda u: Products.apply(u, turn, None, 2, [2, 3]), qkv)


def test_pairs_turn_as_channels_do():
    """A complex factor for each pair gives what cos and sin of each channel give, and the input stays as it was."""
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        x = torch.randn(2, 32, 3, 16).to(dtype)
        before, rope = x.clone(), rotary(GRID, 16).to(x.device, x.dtype)
        torch.testing.assert_close(rotate(x, rope), rotate(x, rope._replace(turn=None)), atol=tolerance, rtol=tolerance)
        assert torch.equal(x, before) and rotate(x, rope).dtype == dtype
    assert rotary(GRID, 16, "vjepa2").turn is None
