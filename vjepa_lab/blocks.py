"""Transformer blocks, and how a stack of them is run: several sequences at once, compiled, activations recomputed.

Axes as in `model`. Module names follow facebookresearch/vjepa2.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vjepa_lab.attention import Attention
from vjepa_lab.rope import Rotary


class Block(nn.Module):
    """Pre-norm transformer block; LayerNorm eps 1e-6, GELU, no LayerScale (vjepa2)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, rope: Rotary | None, valid: Tensor | None = None, lengths: Sequence[int] | None = None) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), rope, valid, lengths))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def initialise(module: nn.Module, blocks: Iterable[Block]) -> None:
    """Normal(0, .02) weights, zero biases; what a block adds shrinks by sqrt(2 * its number) (vjepa2 `_rescale_blocks`)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            trunc_normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
    with torch.no_grad():
        for number, block in enumerate(blocks, start=1):
            block.attn.proj.weight /= math.sqrt(2 * number)
            block.mlp.fc2.weight /= math.sqrt(2 * number)


class How(NamedTuple):
    """How blocks are run: compiled; with activations recomputed in the backward pass, not kept: less memory, one more forward pass."""

    compile: bool = False
    checkpoint: bool = False


@lru_cache(maxsize=1)
def compiled():
    """A block as a compiled function: blocks of one width share what is compiled, whatever the number of tokens."""
    from torch._dynamo import config as dynamo
    from torch._functorch import config

    # All widths, precisions and kinds of pass are versions of one function. Beyond the limit (8) torch runs it uncompiled.
    dynamo.recompile_limit = max(dynamo.recompile_limit, 64)

    # Weightings measure gradients before the backward pass, so a compiled graph is gone through backwards more than once. It refuses that
    # (retain_graph=True) where torch lets its first backward pass overwrite what the forward pass has kept.
    if hasattr(config, "donated_buffer"):
        config.donated_buffer = False
    return torch.compile(lambda block, *inputs: block(*inputs), dynamic=True)


@lru_cache
def why_not_compiled(device: str) -> str | None:
    """Why torch.compile does not work on a device, found by trying; None where it does."""
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def run_blocks(
    blocks: nn.ModuleList,
    x: Tensor,
    rope: Rotary | None,
    valid: Tensor | None,
    lengths: Sequence[int] | None = None,
    *,
    after: Iterable[int] = (-1,),
    how: How = How(),
) -> list[Tensor]:
    """x [b n d] through all blocks; its value after each of the blocks numbered in `after`. Further arguments as in `Attention`."""
    wanted, outputs = {i % len(blocks) for i in after}, []
    for i, block in enumerate(blocks):
        run, inputs = partial(compiled(), block) if how.compile else block, (x, rope, valid, lengths)
        x = checkpoint(run, *inputs, use_reentrant=False) if how.checkpoint and torch.is_grad_enabled() else run(*inputs)
        if i in wanted:
            outputs.append(x)
    return outputs
