"""Labelled rows of pictures as one image, made in milliseconds: what explorers redraw while a slider moves. `clips.strips` is for print."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np

from .style import INK, parted

LEAST = 16
"Pixels of a picture's side in a sheet, at least."


class Sheet:
    """An image of labelled rows; shows itself in a notebook."""

    def __init__(self, image):
        self.image = image

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.image.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def save(self, path) -> Path:
        self.image.save(path)
        return Path(path)


def sheet(rows: Mapping[str, np.ndarray], *, width: int = 960, gap: int = 3, most: int = 224, size: int = 14) -> Sheet:
    """{label: frames [f y x 3] uint8} -> one row of pictures per label, its label on the left; time goes from left to right.

    width  pixels of the whole, at most; pictures are enlarged or reduced to fill it, up to `most` pixels a side. Only so many pictures that
           each would be smaller than `LEAST` go beyond it
    size   of the labels, in pixels; they take a quarter of the width at most, in several lines where they are longer

    Raises ValueError where there is no row.
    """
    if not rows:
        raise ValueError("a sheet shows one row of pictures or more, got none; name what to show")
    from PIL import Image, ImageDraw

    font = _font(size)
    labels = [_parted(label, width // 4 - size - 4, size) for label in rows]
    margin = int(max(font.getlength(line) for label in labels for line in label.split("\n"))) + size + 4
    count = max(len(frames) for frames in rows.values())
    side = max(LEAST, min(most, (width - margin) // count - gap))
    heights = [round(side * frames.shape[1] / frames.shape[2]) for frames in rows.values()]
    rooms = [max(height, _height(label, size)) for label, height in zip(labels, heights, strict=True)]
    image = Image.new("RGB", (margin + count * (side + gap), sum(rooms) + gap * len(rooms)), "white")
    pen, top = ImageDraw.Draw(image), 0
    for label, frames, height, room in zip(labels, rows.values(), heights, rooms, strict=True):
        pen.multiline_text((margin - size // 2, top + room // 2), label, fill=INK, font=font, anchor="rm", align="right")
        for at, frame in enumerate(np.asarray(frames)):
            how = Image.Resampling.NEAREST if side >= frame.shape[1] else Image.Resampling.BOX
            image.paste(Image.fromarray(frame).resize((side, height), how), (margin + at * (side + gap), top + (room - height) // 2))
        top += room + gap
    return Sheet(image)


def tiles(pictures: Mapping[str, np.ndarray], *, side: int = 176, width: int = 960, gap: int = 8, size: int = 13) -> Sheet:
    """{label: picture [y x 3] uint8} -> the pictures in lines, each under its label, `side` pixels wide; a longer label stands in several
    lines. Raises ValueError for none.
    """
    if not pictures:
        raise ValueError("tiles show one picture or more, got none; name what to show")
    from PIL import Image, ImageDraw

    font, columns = _font(size), max(1, width // (side + gap))
    labels = [_parted(label, side, size) for label in pictures]
    cell = side + gap + max(_height(label, size) for label in labels)
    rows = -(-len(pictures) // columns)
    image = Image.new("RGB", (min(columns, len(pictures)) * (side + gap), rows * cell), "white")
    pen = ImageDraw.Draw(image)
    for at, (label, picture) in enumerate(zip(labels, pictures.values(), strict=True)):
        left, top = at % columns * (side + gap), at // columns * cell
        foot = top + cell - side - gap
        pen.multiline_text((left + 1, foot - 4), label, fill=INK, font=font, anchor="ld")
        height = round(side * picture.shape[0] / picture.shape[1])
        image.paste(Image.fromarray(picture).resize((side, height), Image.Resampling.NEAREST), (left, foot))
    return Sheet(image)


def shades(values: np.ndarray, low: float | None = None, high: float | None = None, colormap: str = "viridis") -> np.ndarray:
    """A map [t h w] -> frames [t h w 3] uint8 in colour, from `low` to `high` (by default its own); nan is grey."""
    from matplotlib import colormaps

    values = np.asarray(values, dtype=float)
    low = np.nanmin(values) if low is None else low
    high = np.nanmax(values) if high is None else high
    share = np.clip((np.nan_to_num(values) - low) / max(high - low, 1e-12), 0, 1)
    colour = (255 * colormaps[colormap](share)[..., :3]).astype(np.uint8)
    return np.where(np.isnan(values)[..., None], np.uint8(200), colour)


def spread(frames: np.ndarray, count: int) -> np.ndarray:
    """`count` frames spread evenly over `frames`, first and last included; all of them where there are fewer."""
    return frames[np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)]


def _parted(label: str, pixels: int, size: int) -> str:
    """A label in lines of at most so many pixels."""
    return parted(label, lambda text: _font(size).getlength(text) <= pixels)


def _height(label: str, size: int) -> int:
    """Pixels that the lines of a label need, one above the other."""
    return (label.count("\n") + 1) * (size + 4) + 4


@cache
def _font(size: int):
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
