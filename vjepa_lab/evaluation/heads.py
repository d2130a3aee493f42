"""Probe heads, several side by side: every parameter has a first axis g, one entry per learning rate and decay, trained in one pass.

Axes: g heads trained side by side, b batch, n tokens, d e channels, j attention heads, k classes.
"""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from torch import Generator, Tensor, nn


class Dense(nn.Module):
    """g linear maps: x [g b ... d] -> [g b ... e]; weights normal with deviation .02 (0: zero), zero bias."""

    def __init__(self, g: int, dim: int, out: int, generator: Generator, std: float = 0.02):
        super().__init__()
        self.weight = nn.Parameter(std * torch.randn(g, dim, out, generator=generator))
        self.bias = nn.Parameter(torch.zeros(g, out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias[:, None], x.flatten(1, -2), self.weight).unflatten(1, x.shape[1:-1])


class Norm(nn.Module):
    """g layer norms: x [g b ... d] -> same."""

    def __init__(self, g: int, dim: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(g, dim)), nn.Parameter(torch.zeros(g, dim))

    def forward(self, x: Tensor) -> Tensor:
        shape = (len(self.weight), *[1] * (x.dim() - 2), x.shape[-1])
        return F.layer_norm(x, x.shape[-1:]) * self.weight.view(shape) + self.bias.view(shape)


class Mlp(nn.Module):
    """g two-layer GELU perceptrons, 4 times as wide inside: x [g b ... d] -> same."""

    def __init__(self, g: int, dim: int, generator: Generator):
        super().__init__()
        self.fc1, self.fc2 = Dense(g, dim, 4 * dim, generator), Dense(g, 4 * dim, dim, generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SelfBlock(nn.Module):
    """g pre-norm transformer blocks: x [g b n d] -> same."""

    def __init__(self, g: int, dim: int, heads: int, generator: Generator):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = Norm(g, dim), Norm(g, dim)
        self.qkv, self.proj = Dense(g, dim, 3 * dim, generator), Dense(g, dim, dim, generator)
        self.mlp = Mlp(g, dim, generator)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm1(x)), "g b n (three j e) -> three (g b) j n e", three=3, j=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(rearrange(attended, "(g b) j n e -> g b n (j e)", g=len(x)))
        return x + self.mlp(self.norm2(x))


class Query(nn.Module):
    """Multi-head attention of g single queries over shared tokens, without an output projection.

    With one query q the key and value maps need not touch every token: q.(K'x) = (Kq).x and sum_n a_n V'x_n = V'(sum_n a_n x_n). A token
    costs 4*j*d operations instead of 4*d*d, and is read once for all g. The keys' bias shifts all scores of a query alike, so softmax
    cancels it: it is left out.
    """

    def __init__(self, g: int, dim: int, heads: int, generator: Generator):
        super().__init__()
        self.heads = heads
        self.query, self.value = Dense(g, dim, dim, generator), Dense(g, dim, dim, generator)
        self.key = nn.Parameter(0.02 * torch.randn(g, dim, dim, generator=generator))

    def forward(self, query: Tensor, x: Tensor, norm: Norm | None = None, own: Tensor | None = None) -> Tensor:
        """query [g d] over tokens x [b n d] -> [g b d].

        norm: the affine part to apply to each token (x comes normalised).  own: one more token for each query [g d].
        """
        value, bias = self.value.weight, self.value.bias
        if norm is not None:  # (x*w + c)'V = x'(wV) + c'V
            bias = bias + einsum(norm.bias, value, "g d, g d e -> g e")
            value = norm.weight[..., None] * value
        value = rearrange(value, "g d (j e) -> g d j e", j=self.heads)
        a = self.attention(query, x, norm, own)
        mixed = rearrange(a[..., -x.shape[1] :] @ x, "b (g j) d -> g b j d", j=self.heads)
        if own is not None:
            mixed = mixed + rearrange(a[..., 0], "b (g j) -> g b j 1", j=self.heads) * rearrange(own, "g d -> g 1 1 d")
        return rearrange(einsum(mixed, value, "g b j d, g d j e -> g b j e"), "g b j e -> g b (j e)") + bias[:, None]

    def attention(self, query: Tensor, x: Tensor, norm: Norm | None = None, own: Tensor | None = None) -> Tensor:
        """Attention [b (g j) n] of every query and head over the tokens, summing to 1; `own` comes first where there is one."""
        key = self.key if norm is None else norm.weight[..., None] * self.key  # the norm's bias shifts all scores alike, and cancels
        key = rearrange(key, "g d (j e) -> g d j e", j=self.heads)
        q = rearrange(self.query(query[:, None]), "g 1 (j e) -> g j e", j=self.heads) / math.sqrt(key.shape[-1])
        direction = einsum(key, q, "g d j e, g j e -> g d j")
        scores = rearrange(x @ rearrange(direction, "g d j -> d (g j)"), "b n m -> b m n")  # m = g*j
        if own is not None:
            first = rearrange(einsum(own, direction, "g d, g d j -> g j"), "g j -> (g j)")
            scores = torch.cat([repeat(first, "m -> b m 1", b=len(x)), scores], -1)
        return scores.softmax(-1)


class LinearHead(nn.Module):
    """Softmax regression: x [b d] -> logits [g b k]. Starts from zero: the problem is convex, there is no symmetry to break."""

    def __init__(self, g: int, dim: int, classes: int, generator: Generator):
        super().__init__()
        self.head = Dense(g, dim, classes, generator, std=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.expand(len(self.head.weight), *x.shape))


class AttentiveHead(nn.Module):
    """V-JEPA's attentive classifier: `depth` - 1 self-attention blocks, then cross-attention of a learned query, then a linear layer.

    tokens [b n d] -> logits [g b k].  q <- q + attention(q, LN(x)), without an output projection; q <- q + MLP(LN(q))
    (facebookresearch/jepa and vjepa2, src/models/attentive_pooler.py). depth 1 is V-JEPA's, 4 is V-JEPA 2's; more than 1 needs g = 1.
    """

    def __init__(self, g: int, dim: int, classes: int, generator: Generator, *, heads: int, depth: int = 1):
        super().__init__()
        if depth > 1 and g > 1:
            raise ValueError(f"{g} heads of depth {depth} do not share their tokens; train them one after the other")
        self.blocks = nn.Sequential(*(SelfBlock(g, dim, heads, generator) for _ in range(depth - 1)))
        self.query = nn.Parameter(0.02 * torch.randn(g, dim, generator=generator))
        self.norm1, self.norm2 = Norm(g, dim), Norm(g, dim)
        self.cross = Query(g, dim, heads, generator)
        self.mlp = Mlp(g, dim, generator)
        self.head = Dense(g, dim, classes, generator)
        shrink([block.proj, block.mlp.fc2] for block in self.blocks)
        with torch.no_grad():
            self.mlp.fc2.weight /= math.sqrt(2 * depth)

    def _tokens(self, x: Tensor) -> Tensor:
        return F.layer_norm(self.blocks(x[None])[0] if len(self.blocks) else x, x.shape[-1:])

    def attended(self, x: Tensor) -> Tensor:
        """The share of each token in what the query gathers: tokens [b n d] -> [g b n], the mean over attention heads, summing to 1."""
        a = self.cross.attention(self.query, self._tokens(x), self.norm1)
        return rearrange(a, "b (g j) n -> g b j n", j=self.cross.heads).mean(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self._tokens(x)
        q = self.query[:, None] + self.cross(self.query, x, self.norm1)
        return self.head(q + self.mlp(self.norm2(q)))


class ReleasedHead(nn.Module):
    """The probe in the published code of arXiv:2605.17165: a class token, one multi-head self-attention, residual, LN, linear.

    tokens [b n d] -> logits [g b k]. Only the class token's output is read there, so only its query is computed here.
    """

    def __init__(self, g: int, dim: int, classes: int, generator: Generator, *, heads: int = 8):
        super().__init__()
        self.cls = nn.Parameter(0.02 * torch.randn(g, dim, generator=generator))
        self.attention = Query(g, dim, heads, generator)
        self.proj = Dense(g, dim, dim, generator)
        self.norm = Norm(g, dim)
        self.head = Dense(g, dim, classes, generator)
        packed, layer = math.sqrt(6 / (4 * dim)), 1 / math.sqrt(dim)  # torch's defaults: Xavier over packed q, k, v; 1/sqrt(d) for a layer
        with torch.no_grad():
            for weight in (self.attention.query.weight, self.attention.key, self.attention.value.weight):
                weight.uniform_(-packed, packed, generator=generator)
            for weight in (self.proj.weight, self.head.weight, self.head.bias):
                weight.uniform_(-layer, layer, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        out = self.proj(self.attention(self.cls, x, own=self.cls))
        return self.head(self.norm(self.cls[:, None] + out))


@torch.no_grad()
def shrink(layers: Iterable[Sequence[Dense]]) -> None:
    """What a block adds shrinks by sqrt(2 * its number), as in the encoder."""
    for number, block in enumerate(layers, start=1):
        for layer in block:
            layer.weight /= math.sqrt(2 * number)


class StackedAdamW:
    """torch's fused AdamW on stacked parameters [g ...], each of the g heads with its own learning rate and decay: candidates (lr, wd).

    Biases, norms and queries, [g d], do not decay.
    """

    def __init__(self, head: nn.Module, candidates: Sequence[tuple[float, float]]):
        self.whole = list(head.parameters())
        self.parts = [[nn.Parameter(p.data[i]) for p in self.whole] for i in range(len(candidates))]  # views: they share p's memory
        groups = []
        for parts, (lr, wd) in zip(self.parts, candidates, strict=True):
            groups.append({"params": [p for p in parts if p.dim() > 1], "lr": lr, "peak": lr, "weight_decay": wd})
            groups.append({"params": [p for p in parts if p.dim() <= 1], "lr": lr, "peak": lr, "weight_decay": 0.0})
        self.adamw = torch.optim.AdamW(groups, fused=True)

    def step(self, factor: float = 1.0) -> None:
        """One update at `factor` times the learning rates; clears the gradients."""
        for group in self.adamw.param_groups:
            group["lr"] = factor * group["peak"]
        for i, parts in enumerate(self.parts):
            for part, whole in zip(parts, self.whole, strict=True):
                part.grad = whole.grad[i]
        self.adamw.step()
        for whole in self.whole:
            whole.grad = None


def stack(head: nn.Module, g: int) -> nn.Module:
    """g copies of a single head (in place): candidates that differ in nothing but how they are trained."""
    for parameter in head.parameters():
        parameter.data = parameter.data.expand(g, *parameter.shape[1:]).clone()
    return head


def pick(head: nn.Module, i: int) -> nn.Module:
    """The i-th of the heads, alone (in place)."""
    for parameter in head.parameters():
        parameter.data = parameter.data[i : i + 1].clone()
    return head


def divisor(dim: int, most: int) -> int:
    """The largest number of attention heads, up to `most`, that divides `dim` channels."""
    return next(heads for heads in range(min(most, dim), 0, -1) if dim % heads == 0)
