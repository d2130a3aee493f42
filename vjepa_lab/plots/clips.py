"""Clips to look at: film strips with masks or error maps over them, and looping players. Clips are uint8 [c f y x]."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np

from ..arguments import suggest
from .style import INK, embedded, footnote, in_lines, key, look, new_figure

HIDDEN = (232, 205, 176)
"Colour of what need not be predicted."


def frames_of(clip) -> np.ndarray:
    """Clip uint8 [c f y x] (tensor or array) -> frames [f y x c]."""
    clip = np.asarray(clip)
    if clip.ndim != 4 or clip.shape[0] != 3 or clip.dtype != np.uint8:
        raise ValueError(
            f"a clip to look at is uint8 [3 f y x], got {clip.dtype} {list(clip.shape)}; normalised ones: data.denormalize(clip)"
        )
    return clip.transpose(1, 2, 3, 0)


def veil(frames: np.ndarray, shown: np.ndarray, colour: Sequence[int] = (120, 126, 134), strength: float = 0.88) -> np.ndarray:
    """Frames [f y x c] with a flat colour over every token that is not `shown` [t h w]."""
    cover = ~enlarge(shown, frames.shape[:3])[..., None]
    return np.where(cover, (1 - strength) * frames + strength * np.asarray(colour), frames).astype(np.uint8)


def heat(frames: np.ndarray, error: np.ndarray, low: float, high: float, strength: float = 0.65) -> np.ndarray:
    """Frames [f y x c] in grey under a map [t h w] in colour, transparent where the map is nan; values from `low` to `high`."""
    from matplotlib import colormaps

    error = enlarge(error, frames.shape[:3])
    share = np.clip((np.nan_to_num(error) - low) / max(high - low, 1e-12), 0, 1)
    colour = 255 * colormaps["inferno"](share)[..., :3]
    grey = frames.mean(-1, keepdims=True) * np.ones(3)
    mixed = (1 - strength) * grey + strength * colour
    return np.where(np.isnan(error)[..., None], 0.6 * grey + 90, mixed).astype(np.uint8)


def enlarge(tokens: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Map [t h w ...] -> [f y x ...] of a shape (f, y, x), each token over its own pixels; further axes, such as colour, stay."""
    tokens = np.asarray(tokens)
    for axis, n in enumerate(shape):
        tokens = tokens.take(np.arange(n) * tokens.shape[axis] // n, axis=axis)
    return tokens


def mapped(frames: np.ndarray, error: np.ndarray, steps: int) -> tuple[str, np.ndarray]:
    """A term's error map over frames [f y x c]: (its scale in words, 2nd to 98th percentile, and all frames under it).

    error: [t h w], nan where there is no error.  steps: of the token grid in time. A term about change has fewer: what it makes of the
    steps k to k + j stands at step k + j, so the first j steps show no error. Raises ValueError for a map of more steps than the grid.
    """
    error = np.asarray(error, dtype=float)
    if len(error) > steps:
        raise ValueError(f"an error map of {len(error)} time steps over steps={steps} of tokens; give the token grid's, such as grid[0]")
    low, high = np.nanpercentile(error, [2, 98]) if np.isfinite(error).any() else (0.0, 1.0)
    error = np.concatenate([np.full((steps - len(error), *error.shape[1:]), np.nan), error])
    return f"{low:.2g} to {high:.2g}", heat(frames, error, low, high)


def strips(
    rows: Mapping[str, np.ndarray], *, every: int = 1, title: str | None = None, note: str = "", width: float = 6.875, paper: bool = False
):
    """Film strips under one another: {label: frames [f y x c]} -> matplotlib Figure, time from left to right; `note` stands below."""
    rows = {label: np.asarray(frames)[::every] for label, frames in rows.items()}
    count = max(len(frames) for frames in rows.values())
    side = (width - 1.05) / count
    with look(paper):
        title = title and in_lines(title, width - 0.2, 9)
        head = 0.32 + 0.15 * title.count("\n") if title else 0.06
        figure, axes = new_figure(width, side * len(rows) * 1.06 + head + 0.2 * bool(note), len(rows), count)
        figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
        for line, (label, frames) in zip(axes, rows.items(), strict=True):
            for ax in line:
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
            for ax, frame in zip(line, frames, strict=False):
                ax.imshow(frame, interpolation="nearest")
            line[0].set_ylabel(in_lines(label, 1.4), rotation=0, ha="right", va="center", color=INK, labelpad=5)
        if title:
            figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        footnote(figure, [note])
    return figure


def kind_names(count: int, names: Sequence[str] = ()) -> Sequence[str]:
    """What the mask kinds of one draw are called, in their order: `names`; without them "" of one alone, "short" and "long" of two, as
    V-JEPA's are, "kind 1" and so on of more. Raises ValueError for names that are not as many as the kinds.
    """
    if names:
        if len(names) != count:
            raise ValueError(f"names={list(names)}: {len(names)} for {count} mask kinds")
        return names
    return {1: ("",), 2: ("short", "long")}.get(count) or [f"kind {k + 1}" for k in range(count)]


def masked(clip, masks, grid, *, sample: int = 0, names: Sequence[str] = (), every: int = 2, title: str | None = None):
    """What the student sees and what it must predict of a clip, for each mask kind.

    clip: uint8 [c f y x].  masks: what `draw` returned.  grid: tokens (t, h, w).  sample: which row of the masks belongs to the clip.
    names: of the mask kinds, by default those of `clips.kind_names`.
    """
    frames = frames_of(clip)
    rows = {"clip": frames}
    for name, mask in zip(kind_names(len(masks), names), masks, strict=True):
        before = f"{name}: " if name else ""
        seen, hidden = (part[sample].numpy() for part in mask.maps(grid))
        rows[f"{before}seen"] = veil(frames, seen)
        rows[f"{before}predict"] = veil(frames, hidden, HIDDEN)
    return strips(rows, every=every, title=title)


def error_maps(clip, maps: Mapping[str, np.ndarray], *, steps: int | None = None, every: int = 2, title: str | None = None):
    """Error maps over a clip, each on its own scale (2nd to 98th percentile, printed in its label); nan: no error there.

    clip: uint8 [c f y x].  maps: {term: [t h w]}, fewer steps than the grid's for terms about change: the change from step k to k + 1
    stands at step k + 1, and the first step shows no error.  steps: of the token grid in time, such as `preset.grid[0]`; by default one
    for every two frames, as in every preset, or as many as the longest map has, if more.
    Raises ValueError for a map of more than `steps`.
    """
    frames = frames_of(clip)
    if steps is None:
        steps = max(len(frames) // 2, *map(len, maps.values()), 1)
    rows = {"clip": frames}
    for name, error in maps.items():
        scale, shown = mapped(frames, error, steps)
        rows[f"{name}\n{scale}"] = shown
    return strips(rows, every=every, title=title)


class Player:
    """A clip that plays in a notebook: an animated WebP, a few kilobytes, no scripts."""

    def __init__(self, clip, *, fps: float = 8.0, zoom: int = 3, caption: str = ""):
        from PIL import Image

        frames = [Image.fromarray(f) for f in frames_of(clip)]
        size = tuple(zoom * n for n in frames[0].size)
        frames = [f.resize(size, Image.Resampling.NEAREST) for f in frames]
        buffer = BytesIO()
        frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0, quality=80)
        self.webp, self.size, self.caption = buffer.getvalue(), size, caption

    def _repr_html_(self) -> str:
        picture = embedded(self.webp, self.caption or "clip", kind="webp", size=self.size)
        return f'<figure style="display:inline-block;margin:4px">{picture}<figcaption>{html.escape(self.caption)}</figcaption></figure>'


class Players:
    """Several clips side by side."""

    def __init__(self, clips, captions: Sequence[str] = (), **options):
        captions = [*captions, *[""] * len(clips)]
        self.players = [Player(clip, caption=caption, **options) for clip, caption in zip(clips, captions, strict=False)]

    def _repr_html_(self) -> str:
        return "".join(p._repr_html_() for p in self.players)


def curves(table, *, more: Sequence[str] = (), title: str | None = None, paper: bool = False):
    """Training curves of one or several runs: loss, the spread of the teacher's channels (0: collapse), gradient norm, throughput.

    table: logged steps (`Run.metrics()`), or {name: logged steps}.  more: further columns, a panel each, such as "rank" or terms' names.
    Raises ValueError for one that no table has.
    """
    tables = table if isinstance(table, Mapping) else {"": table}
    more, logged = [more] if isinstance(more, str) else list(more), list(dict.fromkeys(name for steps in tables.values() for name in steps))
    if unknown := [name for name in more if name not in logged]:
        raise ValueError(f"more: no logged column {unknown[0]!r}; {suggest(unknown[0], logged)}")
    panels = {"loss": "loss", "std": "teacher's spread", "grad_norm": "gradient norm", "clips_per_s": "clips / s"}
    panels |= {name: {"rank": "teacher's rank"}.get(name, name) for name in more}
    lines = -(-len(panels) // 4)
    with look(paper):
        panels = {column: in_lines(label, 1.4) for column, label in panels.items()}
        title = title and in_lines(title, 6.7, 9)
        more_lines = max(label.count("\n") for label in panels.values()) * lines + (title.count("\n") if title else 0)
        figure, axes = new_figure(6.875, 1.75 * lines + 0.15 * more_lines, lines, 4)
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        for ax, (column, label) in zip(axes.flat, panels.items(), strict=False):
            for name, steps in tables.items():
                if column in steps:
                    ax.plot(steps["step"], steps[column], lw=1.1, label=name or None)
            ax.set(xlabel="step")
            ax.set_title(label, loc="left")
            ax.set_ylim(bottom=0) if column in ("std", "rank", "clips_per_s") else None
        if len(tables) > 1 and (legend := key(figure, *axes[0][0].get_legend_handles_labels(), most=2, loc="outside lower left")):
            # names of runs are long: below all panels, and these stay as high as they are
            figure.set_figheight(figure.get_figheight() + legend.get_window_extent().height / figure.dpi)
        if title:
            figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    return figure
