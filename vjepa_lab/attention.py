"""Multi-head self-attention with rotary positions.

Which way is fastest depends on the device and on whether a gradient is wanted: torch's fused attention without one and on GPUs; on the
CPU, where the fused backward is slow in bf16, plain products with everything around them in one function (`Products`).
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vjepa_lab.rope import Rotary, rotate, turned

LONGEST = {torch.bfloat16: 1600, torch.float32: 128}
"""Up to how many tokens products beat the CPU's fused attention, forward and backward together."""

KEPT = 512
"""Up to how many tokens their probabilities are kept for the backward pass; those of longer sequences are computed once more."""

GROUP = 2**22
"""Probabilities that are worked on at a time, 8 MB in bf16: fewer passes over the main memory than with all heads at once."""


class Products(torch.autograd.Function):
    """qkv [b n 3*heads*d] -> attention's output [b n heads*d]; the backward pass by products of matrices, some heads at a time.

    The forward pass of sequences longer than `KEPT` is the fused one.

    turn     complex rotary factors [b n d/2] or [n d/2], or None.
    valid    keys that count, one at least for each query, [b n] or [b n n], or None.
    lengths  of the sequences that lie end to end in n.
    """

    @staticmethod
    def forward(ctx, qkv: Tensor, turn: Tensor | None, valid: Tensor | None, heads: int, lengths: Sequence[int]) -> Tensor:
        b, n, _ = qkv.shape
        x = qkv.view(b, n, 3, heads, -1)
        d = x.shape[-1]
        valid = None if valid is None else valid.expand(b, *valid.shape[1:])
        split = x.new_empty(3, b, heads, n, d)  # heads first: what batched products need
        to = split.permute(1, 3, 0, 2, 4)
        to[:, :, :2] = x[:, :, :2] if turn is None else turned(x[:, :, :2], turn[..., None, None, :])
        to[:, :, 2] = x[:, :, 2]
        q, k, v = split.flatten(1, 2)
        out, kept = x.new_empty(b, n, heads, d), []
        for at, seen in spans(lengths, valid):
            if (length := at.stop - at.start) > KEPT:
                mask = None if seen is None else over_queries(seen)
                mixed = F.scaled_dot_product_attention(*(u[:, at].unflatten(0, (b, heads)) for u in (q, k, v)), attn_mask=mask)
                kept.append(None)
            else:
                p, mixed = x.new_empty(b * heads, length, length), x.new_empty(b * heads, length, d)
                for some in groups(b * heads, length):
                    chances(q[some, at], k[some, at], seen, some, heads, out=p[some])
                    torch.bmm(p[some], v[some, at], out=mixed[some])
                kept.append(p)
                mixed = mixed.unflatten(0, (b, heads))
            out[:, at] = mixed.transpose(1, 2)
        ctx.save_for_backward(q, k, v, turn, valid, *kept)
        ctx.heads, ctx.lengths = heads, lengths
        return out.flatten(2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        q, k, v, turn, valid, *kept = ctx.saved_tensors
        heads, (b, n, _), d = ctx.heads, gradient.shape, q.shape[-1]
        after = gradient.reshape(b, n, heads, d).transpose(1, 2).flatten(0, 1)
        split = q.new_empty(3, *q.shape)
        for (at, seen), whole in zip(spans(ctx.lengths, valid), kept, strict=True):
            for some in groups(b * heads, at.stop - at.start):
                g, query, key = after[some, at], q[some, at], k[some, at]
                p = chances(query, key, seen, some, heads) if whole is None else whole[some]
                split[2, some, at] = p.mT @ g
                logits = torch._softmax_backward_data(g @ v[some, at].mT, p, -1, p.dtype)
                split[0, some, at] = product(logits, key, d**-0.5)
                split[1, some, at] = product(logits.mT, query, d**-0.5)
        x = split.unflatten(1, (b, heads)).permute(1, 3, 0, 2, 4)
        out = x.new_empty(b, n, 3, heads, d)
        out[:, :, :2] = x[:, :, :2] if turn is None else turned(x[:, :, :2], turn.conj()[..., None, None, :])
        out[:, :, 2] = x[:, :, 2]
        return out.flatten(2), None, None, None, None


def groups(count: int, length: int) -> Iterator[slice]:
    """Some of `count` heads of all clips at a time, as many as `GROUP` holds the probabilities of."""
    step = max(1, GROUP // max(1, length**2))
    return (slice(start, start + step) for start in range(0, count, step))


def chances(q: Tensor, k: Tensor, seen: Tensor | None, some: slice, heads: int, out: Tensor | None = None) -> Tensor:
    """Attention probabilities [g n n] of the heads `some`, all clips' heads standing one after the other; seen: `valid` of each clip."""
    p = product(q, k.mT, q.shape[-1] ** -0.5, out)
    if seen is not None:
        clip = torch.arange(len(seen), device=seen.device).repeat_interleave(heads)[some]
        p.masked_fill_(~over_queries(seen)[clip, 0], -torch.inf)
    return torch.softmax(p, -1, out=p)


def product(a: Tensor, b: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale * a @ b for batches of matrices."""
    out = a.new_empty(len(a), a.shape[1], b.shape[2]) if out is None else out
    return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)


def spans(lengths: Sequence[int], valid: Tensor | None = None) -> Iterator[tuple[slice, Tensor | None]]:
    """Where each of the sequences that lie end to end is, and which of its tokens count."""
    start = 0
    for length in lengths:
        at = slice(start, start + length)
        yield at, None if valid is None else valid[:, at] if valid.ndim == 2 else valid[:, at, at]
        start += length


def over_queries(valid: Tensor) -> Tensor:
    """Keys that count, [b n] or [b n n] -> [b 1 1 n] or [b 1 n n]."""
    return valid[:, None, None, :] if valid.ndim == 2 else valid[:, None]


class Attention(nn.Module):
    """Multi-head self-attention: x [b n d] -> [b n d]; queries and keys are rotated where tables are given.

    valid    keys that count, [b n] or for each query [b n n], one at least (else nan); None: all.
    lengths  x is several sequences end to end, of these lengths: none attends to another (None: one sequence).
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} does not divide into {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rope: Rotary | None, valid: Tensor | None = None, lengths: Sequence[int] | None = None) -> Tensor:
        compiling_for_cpu = torch.compiler.is_compiling() and x.device.type == "cpu"
        inner = attend_as_is if compiling_for_cpu else attend
        return self.proj(inner(self.qkv(x), rope, valid, self.heads, [x.shape[1]] if lengths is None else lengths))


def attend(qkv: Tensor, rope: Rotary | None, valid: Tensor | None, heads: int, lengths: Sequence[int]) -> Tensor:
    """qkv [b n 3*heads*d] -> softmax(q k' / sqrt d) v of rotated q and k, [b n heads*d], the fastest way; arguments as in `Products`."""
    trained_here = qkv.device.type == "cpu" and qkv.requires_grad  # asked first: on a GPU a compiler would guard the lengths
    if trained_here and max(lengths) <= LONGEST.get(qkv.dtype, 0) and (rope is None or rope.turn is not None):
        return Products.apply(qkv, None if rope is None else rope.turn, valid, heads, lengths)
    qkv = rearrange(qkv, "b n (g d) -> b n g d", g=3 * heads)  # q, k and v heads side by side
    qk, v = qkv.split((2 * heads, heads), dim=2)
    q, k = (qk if rope is None else rotate(qk, rope)).chunk(2, dim=2)
    # Split, not sliced: the gradient of slices is as many zero-filled wholes, added up.
    each = zip(*(u.transpose(1, 2).split(list(lengths), dim=2) for u in (q, k, v)), spans(lengths, valid), strict=True)
    out = [F.scaled_dot_product_attention(q, k, v, attn_mask=None if seen is None else over_queries(seen)) for q, k, v, (_, seen) in each]
    return rearrange(torch.cat(out, dim=2) if len(out) > 1 else out[0], "b g n d -> b n (g d)")


attend_as_is = torch.compiler.disable(attend)
"""On the CPU what a compiler makes of attention is slower than what is called here."""
