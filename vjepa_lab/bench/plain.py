"""A plain training step of V-JEPA 2's structure, the yardstick (facebookresearch/vjepa2 app/vjepa/train.py, written anew).

Convolutional patch embedding of all tokens once per mask, rotary angles computed in every layer and call, predictor tokens sorted by place,
one pass per mask throughout, an optimiser and an EMA of many small steps, and a host synchronisation every step. Same maths, same weights,
same masks, same clips as ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vjepa_lab import data as video
from vjepa_lab import variants
from vjepa_lab.blocks import Block
from vjepa_lab.model import VJEPA, Encoder, Grid, Predictor
from vjepa_lab.presets import Preset


def rotated_here(x: Tensor, places: Tensor) -> Tensor:
    """Rotate part of the head vectors x [b g n d] by places [b 1 n], the angles computed here and now."""
    omega = 10_000.0 ** (-torch.arange(x.shape[-1] // 2, dtype=x.dtype, device=x.device) / (x.shape[-1] / 2))
    angle = (places.unsqueeze(-1) * omega).repeat_interleave(2, -1)
    swapped = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    return x * angle.cos() + swapped * angle.sin()


def plain_block(block: Block, x: Tensor, ids: Tensor, grid: Grid) -> Tensor:
    """The same block, rotating time, row and column separately with angles of its own."""
    b, n, d = x.shape
    heads = block.attn.heads
    q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    _, h, w = grid
    places = ids // (h * w), ids % (h * w) // w, ids % w
    width = 2 * (d // heads // 3 // 2)

    def rotated(u: Tensor) -> Tensor:
        parts = [rotated_here(u[..., i * width : (i + 1) * width], p.unsqueeze(1)) for i, p in enumerate(places)]
        return torch.cat([*parts, u[..., 3 * width :]], dim=-1)

    out = F.scaled_dot_product_attention(rotated(q), rotated(k), v)
    x = x + block.attn.proj(out.transpose(1, 2).reshape(b, n, d))
    return x + block.mlp(block.norm2(x))


def plain_encode(encoder: Encoder, conv: nn.Conv3d, clip: Tensor, keep: Tensor | None) -> Tensor:
    """Tokens [b k d] of the kept places, embedding all of them first."""
    grid = encoder.grid(clip)
    x = conv(clip).flatten(2).transpose(1, 2)
    ids = torch.arange(x.shape[1], device=x.device).expand(len(x), -1) if keep is None else keep
    x = x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    for block in encoder.blocks:
        x = plain_block(block, x, ids, grid)
    return encoder.norms[str(encoder.depth - 1)](x)


def plain_predict(predictor: Predictor, tokens: Tensor, seen: Tensor, hidden: Tensor, grid: Grid, kind: int) -> Tensor:
    """Prediction [b m d], with all tokens sorted by place on the way."""
    known = predictor.embed(tokens)
    blank = predictor.mask_tokens[kind].to(known.dtype).expand(*hidden.shape, -1)
    ids = torch.cat([seen, hidden], dim=1)
    order = ids.argsort(dim=1)
    x, ids = torch.cat([known, blank], dim=1), ids.gather(1, order)
    x = x.gather(1, order.unsqueeze(-1).expand_as(x))
    for block in predictor.blocks:
        x = plain_block(block, x, ids, grid)
    x = predictor.norm(x)
    back = order.argsort(dim=1).unsqueeze(-1).expand_as(x)
    return predictor.proj(x.gather(1, back)[:, seen.shape[1] :])


def convolution(encoder: Encoder) -> nn.Conv3d:
    """The encoder's patch embedding as upstream writes it."""
    size = (encoder.tubelet, encoder.patch, encoder.patch)
    conv = nn.Conv3d(3, encoder.dim, size, size)
    conv.weight.data = encoder.patch_embed.weight.data.unflatten(1, (3, *size)).clone()
    conv.bias.data = encoder.patch_embed.bias.data.clone()
    return conv


class PlainTrainer:
    """One step of V-JEPA 2's structure for the baseline objective."""

    def __init__(self, model: VJEPA, size: Preset, seed: int, device: torch.device):
        self.model, self.size, self.seed, self.device = model, size, seed, device
        self.masks = variants.recipe("baseline").masks
        self.convs = nn.ModuleList(convolution(e) for e in (model.student, model.teacher)).to(device)
        self.student = [*model.student.parameters(), *self.convs[0].parameters()]
        self.teacher = [*model.teacher.parameters(), *self.convs[1].parameters()]
        self.optimizer = torch.optim.AdamW([*self.student, *model.predictor.parameters()], lr=size.lr, weight_decay=size.weight_decay)

    def loss(self, step: int, clip: Tensor) -> Tensor:
        model, grid = self.model, self.model.student.grid(clip)
        masks = self.masks.draw(len(clip), grid, seed=self.seed, step=step, device=self.device)
        with torch.autocast(clip.device.type, torch.bfloat16, enabled=model.bf16):
            with torch.no_grad():
                h = plain_encode(model.teacher, self.convs[1], clip, None)
                h = F.layer_norm(h, h.shape[-1:])
            losses = []
            for kind, mask in enumerate(masks):
                z = plain_encode(model.student, self.convs[0], clip, mask.seen)
                guess = plain_predict(model.predictor, z, mask.seen, mask.hidden, grid, kind)
                target = h.gather(1, mask.hidden.unsqueeze(-1).expand_as(guess))
                losses.append((guess - target).abs().mean())
            return sum(losses) / len(losses)

    def step(self, step: int, clip: Tensor) -> float:
        loss = self.loss(step, video.normalize(clip.to(self.device)))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(self.teacher, self.student, strict=True):
                slow.mul_(self.size.ema).add_((1 - self.size.ema) * fast.detach())
        return loss.item()
