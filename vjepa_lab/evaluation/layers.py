"""Several blocks of a frozen encoder read at once."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vjepa_lab.model import Encoder, Grid


class Layers(nn.Module):
    """What several blocks of an encoder make of a clip, one after the other along the tokens: how V-JEPA 2 probes Diving-48
    (`evals/video_classification_frozen`, out_layers; ViT-L: blocks 17 19 21 23 of 24, V-JEPA 2.1's ViT-B: 2 5 8 11 of 12).

    Clip [b c f y x] -> tokens [b l*n d], of l blocks. Each passes through its own norm where the encoder has one for it (V-JEPA 2.1), else
    through the last one, as upstream. A probe sees l grids one behind the other: `grid` is (l*t, h, w).

    Raises ValueError for a block that is not there, and for an encoder that is not `model.Encoder`.
    """

    def __init__(self, encoder: Encoder, blocks: Sequence[int]):
        super().__init__()
        if not isinstance(encoder, Encoder):
            raise ValueError(f"the blocks of a {type(encoder).__name__} are not known; layers= is for encoders of this package")
        if not blocks or sorted(set(blocks)) != list(blocks) or blocks[0] < 0 or blocks[-1] >= encoder.depth:
            raise ValueError(f"layers={list(blocks)}: expected rising numbers of blocks, 0 to {encoder.depth - 1}")
        self.encoder = encoder
        self.register_buffer("blocks", torch.tensor(blocks), persistent=True)  # part of what a features' fingerprint is made of

    def grid(self, clip: Tensor) -> Grid:
        t, h, w = self.encoder.grid(clip)
        return len(self.blocks) * t, h, w

    def forward(self, clip: Tensor) -> Tensor:
        after, norms = self.blocks.tolist(), self.encoder.norms
        outputs = self.encoder.outputs(self.encoder.patchify(clip), self.encoder.grid(clip), after=after)
        own = [str(i) if str(i) in norms else str(self.encoder.depth - 1) for i in after]
        return torch.cat([norms[name](x) for name, x in zip(own, outputs, strict=True)], dim=1)
