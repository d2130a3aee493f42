"""Table 6 beside its controls: eight motions, read from encoders with every excuse taken away."""

from __future__ import annotations

import pandas as pd

from ..analysis.changes import over_seeds
from .style import INK, PALETTE, WIDTH, encoders_note, footnote, look, named_rows, new_figure, span

MARKERS = {"attentive-released": "o", "attentive": "D", "linear": "s"}
TRAINED, UNTRAINED, STOPPED, PIXELS, PRINTED = PALETTE[0], PALETTE[3], PALETTE[5], PALETTE[2], PALETTE[1]
KINDS = {
    "trained encoder": TRAINED, "untrained encoder": UNTRAINED, "encoder shown one frame": STOPPED, "pixels, no encoder": PIXELS,
}  # fmt: skip

PRINT_NOTE = ["As printed: one run each, 40 test clips; the published evaluation of the kinematic rows loads encoders that never trained."]


def motion(rows: pd.DataFrame, printed: pd.DataFrame | None = None, *, chance: float = 12.5, paper: bool = False):
    """Accuracy on each motion task with its 95 % interval, a panel per task and number of clips, a line per encoder or control.

    rows: of `motion.table6`.  printed: rows of the paper's Table 6, drawn hollow on lines of their own in the first
    panel: the released task, 160 + 40 clips.
    Returns a matplotlib Figure.
    """
    own = rows[rows["source"].eq("run")]
    table = over_seeds(own, ["variant", "encoder", "view", "task", "clips", "probe"])
    table["line"] = [_line(r.variant, r.encoder, r.view) for r in table.itertuples()]
    print_lines = [] if printed is None else [f"printed: {name}" for name in printed["printed"]]
    lines, panels = print_lines + _ordered(table), list(table.groupby(["task", "clips"], sort=False))
    with look(paper):
        fig, axes = new_figure(WIDTH["double"], 0.16 * len(lines) + 1.45, 1, len(panels), sharey=True, sharex=True)
        for k, (ax, ((task, clips), part)) in enumerate(zip(axes[0], panels, strict=True)):
            _points(ax, part, lines)
            if k == 0 and print_lines:
                _printed(ax, printed, lines)
            ax.axvline(chance, color=INK, linewidth=0.7, linestyle=(0, (1, 1.5)), zorder=1)
            ax.set_title(f"{task}\n{clips * 4 // 5:,} + {clips // 5:,} clips")
            ax.set(xlabel="accuracy (%)", xlim=(0, 100), ylim=(len(lines) - 0.4, -0.6))
            named_rows(ax, len(lines))
        axes[0][0].set_yticks(range(len(lines)), lines)
        fig.legend(handles=_legend(table, printed), loc="outside upper center", ncols=4, columnspacing=1.2, handletextpad=0.4)
        footnote(fig, [*_notes(table, chance), encoders_note(own), *PRINT_NOTE * bool(print_lines)])
    return fig


def _line(variant: str, encoder: str, view: str) -> str:
    who = {"random-init": "untrained", "mean-frame": "mean frame, 1-NN", "frame-difference": "frame difference, 1-NN"}.get(variant)
    return (who or f"{variant}, {encoder}") + ("" if view == "clip" else f": {view}")


def _kind(variant: str, encoder: str, view: str) -> str:
    trained, untrained, stopped, no_encoder = KINDS
    if variant == encoder and encoder != "random-init":
        return no_encoder
    return stopped if view != "clip" else untrained if encoder == "random-init" else trained


def _ordered(table: pd.DataFrame) -> list[str]:
    """Trained encoders first, then what they must beat."""
    kinds = [_kind(r.variant, r.encoder, r.view) for r in table.itertuples()]
    rank = pd.Series([list(KINDS).index(kind) for kind in kinds], index=table.index)
    return list(dict.fromkeys(table.loc[rank.sort_values(kind="stable").index, "line"]))


def _points(ax, part: pd.DataFrame, lines: list[str]) -> None:
    several = sorted(part["probe"].map(lambda name: "linear" if name.endswith("-1nn") else name).unique())
    for row in part.itertuples():
        probe = "linear" if row.probe.endswith("-1nn") else row.probe
        y = lines.index(row.line) + (0.3 * (several.index(probe) / (len(several) - 1) - 0.5) if len(several) > 1 else 0)
        colour, pale = KINDS[_kind(row.variant, row.encoder, row.view)], 0.35 if row.smoke else 1.0
        ax.hlines(y, max(row.lo, 0), min(row.hi, 100), color=colour, linewidth=0.9, alpha=pale, zorder=3)
        marker = "^" if row.probe.endswith("-1nn") else MARKERS.get(row.probe, "o")
        ax.scatter(row.value, y, s=13, marker=marker, facecolor=colour, edgecolor=INK, linewidth=0.4, alpha=pale, zorder=4)


def _printed(ax, printed: pd.DataFrame, lines: list[str]) -> None:
    for row in printed.itertuples():
        y = lines.index(f"printed: {row.printed}")
        ax.hlines(y, row.lo, row.hi, color=PRINTED, linewidth=0.9, zorder=3)
        ax.scatter(row.value, y, s=20, marker="o", facecolor="white", edgecolor=PRINTED, linewidth=1.1, zorder=4)


def _legend(table: pd.DataFrame, printed: pd.DataFrame | None) -> list:
    from matplotlib.lines import Line2D

    mark = lambda label, marker, colour, edge=INK, width=0.4: Line2D(
        [], [], linestyle="", marker=marker, markersize=4, markerfacecolor=colour, markeredgecolor=edge, markeredgewidth=width, label=label
    )
    there = {_kind(r.variant, r.encoder, r.view) for r in table.itertuples()}
    handles = [mark(kind, "o", colour) for kind, colour in KINDS.items() if kind in there]
    probes = [name for name in MARKERS if name in set(table["probe"])]
    handles += [mark(f"{name} probe", MARKERS[name], "white") for name in probes]
    return handles + [mark("Table 6 as printed", "o", "white", PRINTED, 1.1)] * bool(printed is not None and len(printed))


def _notes(table: pd.DataFrame, chance: float) -> list[str]:
    seeds = table.loc[table["encoder"].isin(["student", "teacher"]), "seeds"]
    low, high = (int(seeds.min()), int(seeds.max())) if len(seeds) else (0, 0)
    basis = "of test sampling, one seed" if high < 2 else f"over {span(low, high)} seeds"
    smoke = ["Pale: too few test clips, or steps of training, to be evidence."] * bool(table["smoke"].any())
    head = f"n + m clips: to train and to test the probe. Lines: 95 % intervals, {basis}. Dotted: chance, {chance} %."
    return [head, *smoke]
