"""Where a token is: 3-D rotary tables, and V-JEPA 1's fixed table, made once per token grid, gathered by token index.

Each head vector is laid out as [time | row | column | rest]; the first three parts rotate by the token's coordinate on that axis, the
rest does not rotate (V-JEPA 2, vjepa2:src/models/utils/modules.py RoPEAttention).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

STYLES = ("interleaved", "vjepa2")


class Rotary(NamedTuple):
    """cos and signed sin of every channel of a head, [n d] or [b n d]; channels that do not rotate have cos 1, sin 0.

    turn  the same as a complex factor for each pair of neighbouring channels, [n d/2] or [b n d/2], where both share an angle: the CPU's
          fastest way, in one pass and in fp32. None where they do not, or where the device has a better way.
    """

    cos: Tensor
    sin: Tensor
    turn: Tensor | None = None

    def at(self, index: Tensor | None) -> "Rotary":
        """The rows of the tokens in `index` [b k]; all tokens where it is None."""
        return self if index is None else Rotary(*(None if table is None else table[index] for table in self))

    def to(self, device: torch.device, dtype: torch.dtype) -> "Rotary":
        return Rotary(self.cos.to(device, dtype), self.sin.to(device, dtype), self.turn if device.type == "cpu" else None)


@contextmanager
def lasting() -> Iterator[None]:
    """Tensors made within can be kept for all who ask later: neither inference mode nor a default device of the first one marks them."""
    with torch.inference_mode(False), torch.device("cpu"):
        yield


@lru_cache(maxsize=64)
def brought(device: torch.device, dtype: torch.dtype, make: Callable, *how):
    """The table `make(*how)` (`rotary`, `positions`) on a device, brought there once: a copy in every pass would make the host wait."""
    with lasting():
        return make(*how).to(device, dtype)


@lru_cache(maxsize=32)
@lasting()
def rotary(grid: tuple[int, int, int], head_dim: int, style: str = "interleaved", base_grid: int | None = None) -> Rotary:
    """Tables for all tokens of a `grid` (t, h, w), fp32 on the CPU.

    style      "interleaved": neighbouring channels share an angle, so attention depends on distance alone (V-JEPA 2.1).
               "vjepa2": angles repeated block-wise while channels still pair as neighbours, kept by V-JEPA 2 for its checkpoints; it is
               not a relative encoding.
    base_grid  stretch rows and columns onto a square grid of this many tokens a side (V-JEPA 2.1 `interpolate_rope`, 16); time stays.
    """
    if style not in STYLES:
        raise ValueError(f"rope style {style!r}: expected one of {', '.join(STYLES)}")
    t, h, w = grid
    width = 2 * (head_dim // 3 // 2)  # rotated channels per axis
    if width == 0 or head_dim % 2:
        raise ValueError(f"head width {head_dim}: 3-D RoPE needs an even number of channels, 6 at least")
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (t, h, w)), indexing="ij")
    if base_grid is not None:
        stretch = [1.0] + [(base_grid - 1) / (n - 1) if n > 1 else 1.0 for n in (h, w)]
        axes = [a * s for a, s in zip(axes, stretch, strict=True)]
    omega = 10_000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    spread = (lambda a: a.repeat_interleave(2, -1)) if style == "interleaved" else (lambda a: a.repeat(1, 2))
    angle = torch.cat([spread(a.reshape(-1, 1) * omega) for a in axes], dim=-1)  # [n 3*width]
    angle = torch.nn.functional.pad(angle, (0, head_dim - 3 * width))
    sign = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(head_dim // 2)
    turn = torch.polar(torch.ones_like(angle), angle)[:, ::2].to(torch.complex64) if style == "interleaved" else None
    return Rotary(angle.cos().float(), (angle.sin() * sign).float(), turn)


def rotate(x: Tensor, rope: Rotary) -> Tensor:
    """Rotate every head: x [... n heads d] by rope [... n d] with the same leading axes."""
    if rope.turn is not None:
        return turned(x, rope.turn.unsqueeze(-2)).to(x.dtype)
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * rope.cos.unsqueeze(-2), swapped, rope.sin.unsqueeze(-2))


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """Each pair of neighbouring channels of x [... d] times its complex factor in turn [... d/2], which may broadcast; fp32 at least."""
    narrow = x.dtype.itemsize < 4
    wide = x.to(torch.float32, memory_format=torch.contiguous_format) if narrow else x
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs.mul_(turn) if narrow else pairs * turn).flatten(-2)  # in place where the pairs are our own copy


@lru_cache(maxsize=32)
@lasting()
def positions(grid: tuple[int, int, int], dim: int, base: tuple[int, int, int] | None = None) -> Tensor:
    """V-JEPA 1's fixed 3-D sine-cosine embedding [t*h*w d]: 2*ceil(d/6) channels for each of t, h, w, cut to d (its `uniform_power`).

    base  the grid that a network was trained on: its table is stretched to other grids, trilinearly, as jepa's encoder does.
    """
    if base is not None and base != grid:
        table = positions(base, dim).T.unflatten(1, base)[None]  # [1 d t h w]
        return torch.nn.functional.interpolate(table, size=grid, mode="trilinear")[0].flatten(1).T.contiguous()
    pairs = math.ceil(dim / 6)
    omega = 10_000.0 ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    places = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij"), -1).flatten(0, 2)  # [n 3]
    angle = places[..., None] * omega
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(1)[:, :dim].float()
