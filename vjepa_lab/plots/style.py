"""One look for all figures: colours that survive colour blindness and grey print, fonts that embed, widths that fit a column."""

from __future__ import annotations

import base64
import html
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path

PALETTE = ("#1f3a5f", "#d9792b", "#8fcfbb", "#7a4f8c", "#e6c34a", "#9aa0a6")
"Dark blue, orange, pale green, ...: neighbours differ in luminance (CIE L about 24, 60, 79, 40, 80, 65), so grey print keeps them apart."
HATCHES = ("", "", "", "///", "\\\\\\", "...")
AGAIN = ("xxx", "---", "+++")
"Hatches of a colour's second, third and fourth use."
MARKERS = {
    "o": "circle", "s": "square", "D": "diamond", "^": "triangle", "v": "triangle down", "P": "plus", "X": "cross", "h": "hexagon",
    "p": "pentagon", "*": "star",
}  # fmt: skip
INK, PALE, RULE = "#222222", "#b8bdc4", "#d9dce0"
DAGGER, DOUBLE_DAGGER = "†", "‡"
SOURCES = {"paper": "Paper, printed", "released": "Released results", "run": "Our runs"}
"Whose numbers, as figures say it."

WIDTH = {"single": 3.25, "double": 6.875}
"Column widths in inches."

PRINT = {
    "font.family": "STIXGeneral",  # Times-like and shipped with matplotlib, so no machine falls back to another face
    "mathtext.fontset": "stix",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "vjepa",
    "text.parse_math": False,  # a name may have dollar signs; see `maths`
    "figure.dpi": 150,
    "savefig.dpi": 300,
}
SCREEN = PRINT | {"font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"}


@contextmanager
def look(paper: bool = True):
    """Matplotlib settings of this module for a `with` block."""
    import matplotlib as mpl

    with mpl.rc_context(PRINT if paper else SCREEN):
        yield


@contextmanager
def maths():
    """Texts made in a `with` block may hold formulas between dollar signs, which in all others are dollar signs."""
    import matplotlib as mpl

    with mpl.rc_context({"text.parse_math": True}):
        yield


@cache
def _figure_class():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A figure outside pyplot's registry (nothing to close, no global backend) that still shows itself in a notebook."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            FigureCanvasAgg(self)

        def _repr_png_(self) -> bytes:
            picture = BytesIO()
            self.savefig(picture, format="png", dpi=120)
            return picture.getvalue()

    return Picture


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **kwargs):
    """(figure, axes[rows, columns]) of a size in inches, constrained layout."""
    figure = _figure_class()(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


FIXED = {"D-48": 0, "IN-100": 1, "SSv2": 2}
"A benchmark of the paper has the same colour in every figure."


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour per name; where there are more names than colours these repeat, with another hatch and another pattern."""
    return {name: PALETTE[k] for name, (k, _) in _assign(names).items()}


def hatches(names: Iterable[str]) -> dict[str, str]:
    """matplotlib's hatch per name, so that print in grey keeps the names apart."""
    return {name: AGAIN[(turn - 1) % len(AGAIN)] if turn else HATCHES[k] for name, (k, turn) in _assign(names).items()}


def patterns(names: Iterable[str]) -> dict[str, str]:
    """plotly's pattern per name: none but where a colour is used again."""
    return {name: AGAIN[(turn - 1) % len(AGAIN)][0] if turn else "" for name, (_, turn) in _assign(names).items()}


def _assign(names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """name -> (index of its colour, how many names before it had this one)."""
    names = list(names)
    fixed = {name: FIXED[name] for name in names if name in FIXED}
    free = [k for k in range(len(PALETTE)) if k not in fixed.values()]
    others = {name: (free[i % len(free)], i // len(free)) for i, name in enumerate(name for name in names if name not in fixed)}
    return {name: (fixed[name], 0) if name in fixed else others[name] for name in names}


def named_rows(ax, count: int = 0) -> None:
    """An axis of named rows: a grid for the values, thin rules between `count` rows, no ticks and no frame at the names."""
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.xaxis.grid(True, zorder=0)
    ax.set_axisbelow(True)
    for y in range(count - 1):
        ax.axhline(y + 0.5, color=RULE, linewidth=0.3, zorder=0)


def key(
    figure, handles: Sequence, labels: Sequence[str] | None = None, *, most: int = 6, loc: str = "outside upper center", **options
):  # fmt: skip
    """A legend above all panels (or at `loc`), in as many columns as the figure is wide enough for, `most` at most; options: of
    matplotlib's legend, which is returned, None where nothing has a label. A label wider than the figure stands in several lines.
    """
    labels = [handle.get_label() for handle in handles] if labels is None else labels
    labels = [in_lines(label, figure.get_figwidth() - 0.6, 7) for label in labels]  # beside the line or patch that it explains
    for columns in range(min(most, len(labels)), 0, -1):
        legend = figure.legend(handles, labels, loc=loc, ncols=columns, columnspacing=1.2, **options)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return legend
        legend.remove()
    return None


def in_lines(name: str, inches: float, size: float = 8) -> str:
    """A name such as "synthetic:plain/motion" in lines of at most this width, in letters of `size` points (see `parted`)."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size)
    drawn = lambda text: 1.1 * text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]  # letters on whole pixels are wider
    return parted(name, lambda text: max(0.52 * size * len(text), drawn(text)) / 72 <= inches)


def parted(name: str, fits: Callable[[str], bool]) -> str:
    """A name in lines that fit: parted after / : - _ , or a space where that will do, within a word where it must."""
    lines = []
    for given in name.split("\n"):
        lines.append("")
        for part in re.split(r"(?<=[/:,_ -])(?![ %])", given):
            if lines[-1] and not fits((lines[-1] + part).rstrip()):
                lines.append("")
            lines[-1] += part
            while len(lines[-1].rstrip()) > 1 and not fits(lines[-1].rstrip()):
                cut = next((n for n in range(len(lines[-1]) - 1, 1, -1) if fits(lines[-1][:n])), 1)
                lines[-1:] = [lines[-1][:cut], lines[-1][cut:]]
    return "\n".join(line.rstrip() for line in lines)


def note_lines(lines: Sequence[str], width: float, size: float = 6.2) -> list[str]:
    """Small notes as `footnote` wraps them to a width in inches."""
    import matplotlib as mpl

    letter = 0.43 if "STIXGeneral" in mpl.rcParams["font.family"] else 0.54  # mean width in em
    return [part for line in filter(None, lines) for part in textwrap.wrap(line, int(width * 72 / (letter * size)))]


def footnote(figure, lines: Sequence[str], size: float = 6.2) -> None:
    """Small notes under everything else, wrapped to the figure's width."""
    if not any(lines):
        return
    width, height = figure.get_size_inches()
    wrapped = note_lines(lines, width, size)
    share = (len(wrapped) * size * 1.25 + 4) / 72 / height
    figure.get_layout_engine().set(rect=(0, share, 1, 1 - share))
    figure.text(0.01, 2 / 72 / height, "\n".join(wrapped), size=size, va="bottom", ha="left", color="#555555", linespacing=1.2)


def span(low, high, form: str = "") -> str:
    """Such as "3 to 5", or "3" where both ends print as the same. form: of a number, such as ",.0f"."""
    return " to ".join(dict.fromkeys(format(end, form) for end in (low, high)))


def smoke_note(rows, note: str = "Demonstration size: not evidence.") -> list[str]:
    """The note, where a table's rows (`smoke`) come from runs too small to be evidence; else none."""
    return [note] * bool(rows["smoke"].any())


def encoders_note(rows) -> str:
    """Which encoders a table's rows speak of, as a note under its figure: their size, as the runs are named, and what they were trained on.

    rows: a table with the columns `run` and `pretrain`, as studies make them. Returns "" where neither tells anything.
    """
    runs, seen = (rows[name].dropna().astype(str).unique() if name in rows else [] for name in ("run", "pretrain"))
    sizes = dict.fromkeys(end[1] for run in runs if (end := re.search(r"-([^-]+)-s\d+$", run)))
    parts = [f"{' and '.join(sizes)} size"] * bool(len(sizes)) + [f"pretrained on {', '.join(seen)}"] * bool(len(seen))
    return f"Encoders: {', '.join(parts)}." if parts else ""


def embedded(picture: bytes, alt: str, *, kind: str = "png", size: tuple[int, int] | None = None) -> str:
    """An HTML image that holds its picture, the bytes of a file of that `kind`; `size`: width and height in pixels, by default its own."""
    sides = f' width="{size[0]}" height="{size[1]}"' if size else ""
    return f'<img alt="{html.escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(picture).decode()}"{sides}>'


def save(figure, path: str | Path, formats: Iterable[str] | None = None) -> list[Path]:
    """Write a figure: matplotlib as pdf and png, plotly as html that holds plotly.js (5 MB) and so needs no network.

    `path` without a suffix; `formats` overrides (a matplotlib figure as "html" is a page with its drawing in it). Files are the same bytes
    every time (no dates inside). Returns the paths.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if hasattr(figure, "write_html"):
        chosen = list(formats or ["html"])
        files = [path.with_name(f"{path.name}.{kind}") for kind in chosen]
        for file, kind in zip(files, chosen, strict=True):
            if kind == "html":
                figure.write_html(file, include_plotlyjs=True, div_id=path.name)
            else:
                figure.write_image(file)
        return files
    chosen = list(formats or ["pdf", "png"])
    files = [path.with_name(f"{path.name}.{kind}") for kind in chosen]
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}
    with look(), maths():  # font embedding is decided when the file is written, not when the figure is drawn, and so are some numbers
        for file, kind in zip(files, chosen, strict=True):
            if kind == "html":
                file.write_text(_page(figure, path.name), encoding="utf-8")
            else:
                figure.savefig(file, metadata=undated.get(kind))
    return files


def _page(figure, title: str) -> str:
    """A page that shows a matplotlib figure as a vector drawing, letters as outlines, and needs nothing from elsewhere."""
    import matplotlib as mpl

    drawing = BytesIO()
    with mpl.rc_context({"svg.fonttype": "path"}):
        figure.savefig(drawing, format="svg", metadata={"Date": None})
    picture = drawing.getvalue().decode()
    picture = picture[picture.index("<svg") :]
    look = "svg { display: block; margin: auto; width: min(100%, 1100px); height: auto }"
    return f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n<style>{look}</style>\n{picture}</html>\n'
