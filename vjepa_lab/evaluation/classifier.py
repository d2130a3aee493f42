"""An encoder with a head over its tokens, trained end to end: what fine-tuning moves, layer by layer, and what it says of every video.

Axes: b batch, c colour, f y x frames, rows, columns, n clips, d channels, k classes.
"""

import torch
from timm.layers import DropPath
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from vjepa_lab import data as video
from vjepa_lab.evaluation.features import Features, clip_bar, options_of
from vjepa_lab.evaluation.heads import AttentiveHead, LinearHead, divisor
from vjepa_lab.evaluation.multiview import OneView
from vjepa_lab.model import Encoder

HEADS = ("attentive", "linear")

__all__ = ["HEADS", "Classifier", "options_of", "predictions"]


class Classifier(nn.Module):
    """An encoder and a head over its tokens: clip [b c f y x], normalised -> logits [b k], fp32.

    head  "attentive": V-JEPA's cross-attention of a learned query; "linear": on the mean of the tokens; or an attentive head as it is.
    """

    def __init__(
        self, encoder: Encoder, classes: int, head: str | AttentiveHead = "attentive", *, drop_path: float = 0.0, seed: int = 0,
        bf16: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.encoder, self.pooled, self.bf16 = encoder, head == "linear", bf16
        generator = torch.Generator().manual_seed(seed)
        if isinstance(head, AttentiveHead):
            self.head = head
        elif self.pooled:
            self.head = LinearHead(1, encoder.dim, classes, generator)
        else:
            self.head = AttentiveHead(1, encoder.dim, classes, generator, heads=divisor(encoder.dim, max(1, encoder.dim // 64)))
        for i, block in enumerate(encoder.blocks):
            rate = drop_path * i / max(encoder.depth - 1, 1)
            block.drop_path = DropPath(rate) if rate else nn.Identity()

    def forward(self, clip: Tensor) -> Tensor:
        with torch.autocast(clip.device.type, torch.bfloat16, enabled=self.bf16):
            tokens = self.encoder(clip).float()
        return self.head(tokens.mean(1) if self.pooled else tokens)[0]

    def group_matcher(self, coarse: bool = False) -> dict:
        """For timm: which layer each parameter belongs to, from the patch embedding up; what is not named belongs to the head."""
        norms = (r"^encoder\.norms", (99_999,))
        return {"stem": r"^encoder\.(?:patch_embed|img_mod|video_mod)", "blocks": [(r"^encoder\.blocks\.(\d+)", None), norms]}

    def groups(self, layer_decay: float, weight_decay: float) -> list[dict]:
        """Parameter groups for AdamW with their share of the learning rate, `lr_scale`: 1 for the head, `layer_decay` less per layer."""
        plain = [f"head.{name}" for name, p in self.head.named_parameters() if p.dim() <= 2]  # biases and norms, with a first axis of one
        marks = [name for name, _ in self.named_parameters() if name.endswith("mod_embed")]
        return param_groups_layer_decay(self, weight_decay, no_weight_decay_list=plain + marks, layer_decay=layer_decay)


@torch.no_grad()
def predictions(
    model: Classifier, source: video.Source, label: str, name: str, *, segments: int = 1, views: int = 1, batch: int = 32, workers: int = 0,
    progress: bool = True,
) -> Features:  # fmt: skip
    """Class probabilities of every clip, in `pooled` [n k]; with segments or views several clips share their video's index."""
    one = segments * views == 1
    parts = [source] if one else [OneView(source, segments, views, s, v) for s in range(segments) for v in range(views)]
    device = next(model.parameters()).device
    found, labels, index = [], [], []
    with clip_bar(source, "test", progress) as bar:
        bar.total *= len(parts)
        for part in parts:
            for clips in video.loader(part, batch, train=False, workers=workers, pin=device.type == "cuda"):
                clips = clips.to(device)
                found.append(model(video.normalize(clips.clip)).softmax(-1).cpu())
                labels.append(clips.labels[label].cpu())
                index.append(clips.index)
                bar.update(len(clips))
    if not found:
        raise ValueError(f"no clip of {source.name} [{source.split}] could be read")
    return Features(
        torch.cat(found), {label: torch.cat(labels)}, {label: list(source.classes[label])}, torch.cat(index), name=source.name,
        split=source.split, encoder=name, clips=(segments, views),
    )  # fmt: skip
