"""Clips to look at in a notebook, without widgets: a looping player, a contact sheet, token masks over a clip, a data set's card."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as N

from .core import DataError, Source

NIGHT = (24, 26, 48)
"""Colour of hidden tokens."""


@dataclass(frozen=True)
class Player:
    """An animated WebP that loops; shows itself in a notebook."""

    webp: bytes
    width: int

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self.webp).decode()
        return f'<img src="data:image/webp;base64,{picture}" width="{self.width}" style="image-rendering:pixelated">'

    def save(self, path) -> Path:
        Path(path).write_bytes(self.webp)
        return Path(path)


def player(clips: Tensor, fps: float = 8, width: int = 224) -> Player:
    """A clip `[c f y x]`, or several `[b c f y x]` side by side, playing in a loop; `width` in screen pixels for each."""
    from PIL import Image

    clips = _clips(clips)
    frames = torch.cat(list(clips), dim=-1).permute(1, 2, 3, 0).contiguous().numpy()  # [f y b*x c]
    pictures, buffer = [Image.fromarray(frame) for frame in frames], io.BytesIO()
    pictures[0].save(buffer, "WEBP", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0, quality=85)
    return Player(buffer.getvalue(), width * len(clips))


def sheet(clips: Tensor, columns: int = 8, gap: int = 2, scale: int = 1):
    """A contact sheet, a PIL image: one row per clip of `[b c f y x]` (or one `[c f y x]`), `columns` frames spread over each."""
    from PIL import Image

    clips = _clips(clips)
    at = torch.linspace(0, clips.shape[2] - 1, min(columns, clips.shape[2])).round().long()
    cells = N.pad(clips[:, :, at], (0, gap, 0, gap), value=255)  # [b c f y x]
    rows = torch.cat([torch.cat(list(clip.unbind(1)), dim=-1) for clip in cells], dim=-2)[:, : -gap or None, : -gap or None]
    picture = Image.fromarray(rows.permute(1, 2, 0).contiguous().numpy())
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _clips(clips: Tensor) -> Tensor:
    if clips.dtype != torch.uint8 or clips.ndim not in (4, 5):
        raise DataError(f"clips [c f y x] or [b c f y x] of type uint8 are expected; got {clips.dtype} {list(clips.shape)}")
    return (clips if clips.ndim == 5 else clips[None]).cpu()


def overlay(clip: Tensor, weight: Tensor, colour: tuple[int, int, int] = NIGHT, strength: float = 0.85) -> Tensor:
    """Paint `colour` over a clip `[c f y x]` uint8 where the map `weight [t h w]` (0 to 1: a mask, or an error scaled so) is high."""
    full = N.interpolate(weight[None, None].float().cpu(), size=clip.shape[1:], mode="nearest")[0] * strength  # [1 f y x]
    paint = torch.tensor(colour, dtype=torch.float32).view(3, 1, 1, 1)
    return (clip.cpu() + full * (paint - clip.cpu())).round().to(torch.uint8)


def hidden(clip: Tensor, ids: Tensor, grid: tuple[int, int, int], **paint) -> Tensor:
    """The clip with the tokens `ids [k]` of the grid (t, h, w) painted over."""
    weight = torch.zeros(grid[0] * grid[1] * grid[2])
    weight[ids.cpu()] = 1
    return overlay(clip, weight.view(grid), **paint)


@dataclass(frozen=True)
class Card:
    """A data set at a glance, as HTML: examples, and how many clips each class has."""

    text: str

    def _repr_html_(self) -> str:
        return self.text


def card(source: Source, examples: int = 6, most: int = 20) -> Card:
    """What is in a source: its size, `examples` playing clips, and the `most` frequent classes of every label."""
    picks = torch.linspace(0, len(source) - 1, min(examples, len(source))).round().long().unique().tolist()
    samples = [source[index] for index in picks]
    shown = "".join(player(sample.clip, width=96)._repr_html_() for sample in samples)
    notes = "<br>".join(html.escape(line.strip()) for line in repr(source).splitlines())
    bars = "".join(_bars(name, source, most) for name in source.classes if name != "class" or len(source.classes) == 1 or _own(source))
    return Card(f'<div style="font:13px sans-serif">{notes}<div style="margin:6px 0">{shown}</div>{bars}</div>')


def _own(source: Source) -> bool:
    """Whether "class" says something that no other label says."""
    return all(not torch.equal(source.labels["class"], values) for name, values in source.labels.items() if name != "class")


def _bars(name: str, source: Source, most: int) -> str:
    values, names = source.labels[name], source.classes[name]
    counts = values.clamp_min(0).sum(0) if values.ndim == 2 else torch.bincount(values[values >= 0], minlength=len(names))
    order = counts.argsort(descending=True, stable=True)[:most].tolist()
    rows = "".join(
        f'<tr><td>{html.escape(str(names[i]))}</td><td style="text-align:left"><span style="display:inline-block;height:10px;'
        f'background:#4c78a8;width:{200 * counts[i].item() / max(1, counts.max().item()):.0f}px"></span> {counts[i].item()}</td></tr>'
        for i in order
    )
    more = f"<tr><td>{len(names) - most} more</td></tr>" if len(names) > most else ""
    return f"<details><summary>{html.escape(name)}: {len(names)} classes</summary><table>{rows}{more}</table></details>"
