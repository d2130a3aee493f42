"""Robustness drawn: what is kept of every kind of shift, accuracy by severity, the line of shifted on clean accuracy, other data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..analysis.changes import KINDS, over_seeds
from .style import INK, PALE, PALETTE, RULE, WIDTH, encoders_note, footnote, key, look, maths, named_rows, new_figure, smoke_note, span

if TYPE_CHECKING:  # figures need no torch
    from ..analysis.shifts import Line

PARTS = {
    "all": ("Z, all channels", PALETTE[0], "o"),
    "app": (r"$Z_{app}$, first half", PALETTE[1], "s"),
    "dyn": (r"$Z_{dyn}$, second half", PALETTE[2], "D"),
}
MARKS = "osD^vP*X"
PALE_ONES = "Pale: demonstration size, not evidence."


def robustness(rows: pd.DataFrame, *, paper: bool = False):
    """Accuracy under every kind of shift, a panel per label and kind: a line per objective, a mark per part of its channels.

    rows: of `robustness.summary`. Mark: mPC with its 95 % interval; short upright stroke: the same readers on clean clips. Hollow marks:
    the shift changes the motion that the label names, so that the mark should fall.
    Returns a matplotlib Figure.
    """
    own = rows[rows["metric"].isin(["mPC", "clean"])]
    table = over_seeds(own, ["label", "kind", "truth", "variant", "part", "metric"])
    labels, variants = (list(dict.fromkeys(table[name])) for name in ("label", "variant"))
    kinds = [kind for kind in (*KINDS, "all") if kind in set(table["kind"])]
    parts = [part for part in PARTS if part in set(table["part"])]
    with look(paper):
        height = len(labels) * (0.34 * len(variants) + 0.55) + 0.9
        fig, axes = new_figure(WIDTH["double"], height, len(labels), len(kinds), sharey=True, sharex="row")
        for (i, label), (k, kind) in ((a, b) for a in enumerate(labels) for b in enumerate(kinds)):
            ax, part = axes[i][k], table[table["label"].eq(label) & table["kind"].eq(kind)]
            _kept(ax, part, variants, parts)
            ax.axvline(own.loc[own["label"].eq(label), "chance"].mean(), color=INK, linewidth=0.6, linestyle=(0, (1, 1.5)), zorder=1)
            if i == 0:
                ax.set_title({"all": "all, label true"}.get(kind, kind))
            if k == 0:
                ax.set_ylabel(label, style="italic")
            _bare(ax, variants)
        for ax in axes[-1]:
            ax.set_xlabel("accuracy (%)")
        for label, ax in zip(labels, axes[:, 0], strict=True):
            ax.set_xlim(_range(table[table["label"].eq(label)], own.loc[own["label"].eq(label), "chance"].mean()))
        with maths():  # the halves' symbols
            key(fig, _legend(parts, table), most=5, handletextpad=0.4)
        footnote(fig, _notes(own, table))
    return fig


def _kept(ax, part: pd.DataFrame, variants: list[str], parts: list[str]) -> None:
    for row in part[part["metric"].eq("mPC")].itertuples():
        y = variants.index(row.variant) + (0.24 * (parts.index(row.part) - (len(parts) - 1) / 2))
        _, colour, mark = PARTS[row.part]
        pale = 0.4 if row.smoke else 1.0
        clean = part[part["metric"].eq("clean") & part["variant"].eq(row.variant) & part["part"].eq(row.part) & part["truth"].eq(row.truth)]
        ax.hlines(y, row.value, clean["value"].iloc[0], color=RULE, linewidth=0.7, zorder=2)
        ax.scatter(clean["value"], [y], s=22, marker="|", color=colour, linewidth=1.1, alpha=pale, zorder=3)
        ax.hlines(y, row.lo, row.hi, color=colour, linewidth=0.9, alpha=pale, zorder=3)
        face = colour if row.truth == "kept" else "white"
        ax.scatter(row.value, y, s=11, marker=mark, facecolor=face, edgecolor=INK, linewidth=0.4, alpha=pale, zorder=4)


def _range(table: pd.DataFrame, chance: float) -> tuple[float, float]:
    """What of 0 to 100 % the intervals and chance take, with a margin."""
    return max(min(table["lo"].min(), chance) - 4, 0), min(max(table["hi"].max(), chance) + 4, 100)


def _grid(panels: int, most: int) -> tuple[int, int]:
    """Rows and columns that leave few places empty."""
    rows = -(-panels // most)
    return rows, -(-panels // rows)


def _last_in_column(axes, panels: int) -> list:
    """The lowest axes of every column that show a panel; the places without one are hidden."""
    flat, columns = list(axes.flat), axes.shape[1]
    for ax in flat[panels:]:
        ax.set_visible(False)
    last = flat[max(panels - columns, 0) : panels]
    for ax in last:
        ax.tick_params(labelbottom=True)
    return last


def _bare(ax, lines: list[str]) -> None:
    ax.set_yticks(range(len(lines)), lines)
    ax.set_ylim(len(lines) - 0.4, -0.6)
    named_rows(ax, len(lines))


def _mark(label: str, mark: str, colour: str, edge: str = INK):
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], linestyle="", marker=mark, markersize=4, markerfacecolor=colour, markeredgecolor=edge, markeredgewidth=0.5, label=label
    )


def _legend(parts: list[str], table: pd.DataFrame) -> list:
    handles = [_mark(PARTS[part][0], PARTS[part][2], PARTS[part][1]) for part in parts]
    handles.append(_mark("clean", "|", INK))
    return handles + [_mark("motion itself changed", "o", "white")] * bool(table["truth"].eq("changed").any())


def _basis(seeds: pd.Series) -> str:
    low, high = int(seeds.min()), int(seeds.max())
    return "over test clips, one seed" if high < 2 else f"over {span(low, high)} seeds"


def _notes(own: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    note = (
        f"Marks: mean over shifts and severities (mPC), {own['n'].max():,.0f} test clips; lines: 95 % intervals {_basis(table['seeds'])}."
    )
    note += " Dotted: what naming the largest class reaches."
    return [f"{note} {encoders_note(own)}", *smoke_note(table, PALE_ONES)]


# ----------------------------------------------------------------------------------------------------------------------- severities


def severities(rows: pd.DataFrame, label: str, part: str = "all", *, columns: int = 6, paper: bool = False):
    """Accuracy against severity, a panel per shift, a line per objective; the clean accuracy stands at 0.

    rows: of `readers.tabulate` of `robustness.corrupted`. Shifts whose severities are no order have marks without a line.
    Returns a matplotlib Figure. Raises ValueError when the rows hold no such label and part.
    """
    own = rows[rows["label"].eq(label) & rows["part"].eq(part)]
    if own.empty:
        raise ValueError(
            f"no rows of label {label!r} and part {part!r}; there are {sorted(set(zip(rows['label'], rows['part'], strict=True)))}"
        )
    table = over_seeds(own, ["variant", "shift", "severity", "kind", "ordered", "truth"])
    variants, shifts = list(dict.fromkeys(table["variant"])), list(dict.fromkeys(table.loc[table["kind"].ne("clean"), "shift"]))
    count, columns = _grid(len(shifts), columns)
    with look(paper):
        fig, axes = new_figure(WIDTH["double"], 1.1 * count + 0.95, count, columns, sharex=True, sharey=True)
        for ax, shift in zip(axes.flat, shifts, strict=False):
            part_ = table[table["shift"].isin(["clean", shift])]
            _by_severity(ax, part_, variants, shift)
            ax.axhline(own["chance"].mean(), color=INK, linewidth=0.6, linestyle=(0, (1, 1.5)), zorder=1)
        for ax in _last_in_column(axes, len(shifts)):
            ax.set_xlabel("severity (0: clean)")
        for ax in axes[:, 0]:
            ax.set(ylabel="accuracy (%)", ylim=_range(table, own["chance"].mean()))
        handles = [_mark(name, MARKS[i % len(MARKS)], PALETTE[i % len(PALETTE)]) for i, name in enumerate(variants)]
        key(fig, handles, handletextpad=0.4)
        note = f"{label}, {PARTS[part][0]}, {own['n'].max():,.0f} test clips; bars: 95 % intervals {_basis(table['seeds'])}."
        note += " Dotted: largest class."
        more = " * the shift changes the motion itself." * bool(table["truth"].eq("changed").any())
        with maths():  # the halves' symbols
            footnote(fig, [f"{note}{more} {encoders_note(own)}", *smoke_note(table, "Demonstration size, not evidence.")])
    return fig


def _by_severity(ax, table: pd.DataFrame, variants: list[str], shift: str) -> None:
    own = table[table["shift"].eq(shift)]
    star = " *" if own["truth"].eq("changed").any() else ""
    ax.set_title(shift.replace("_", " ") + star, size=7)
    for i, name in enumerate(variants):
        part = table[table["variant"].eq(name)].sort_values("severity")
        x = part["severity"] + 0.12 * (i - (len(variants) - 1) / 2)
        look_ = {"linestyle": "-" if own["ordered"].all() else "", "color": PALETTE[i % len(PALETTE)], "marker": MARKS[i % len(MARKS)]}
        error = np.clip([part["value"] - part["lo"], part["hi"] - part["value"]], 0, None)
        size = {"linewidth": 0.8, "elinewidth": 0.5, "markersize": 2.6, "markeredgecolor": INK, "markeredgewidth": 0.3}
        ax.errorbar(x, part["value"], error, **look_, **size)
    ax.yaxis.grid(True, zorder=0)
    ax.set_xlim(-0.5, 5.5)
    ax.set_xticks(range(6))


# ----------------------------------------------------------------------------------------------------------------------------- line


def shifted_on_clean(
    lines: Mapping[tuple[str, str], Line],
    *,
    kinds: tuple[str, ...] = ("appearance", "codec", "temporal"),
    note: str = "",
    paper: bool = False,
):
    """Shifted against clean accuracy of every encoder on logit axes, a panel per label and kind: the fitted line with its 95 % band.

    lines: of `robustness.lines`.  note: put under the figure, such as an `encoders_note`.
    A variant off the line (after correction) has a ring and its name. Hollow: not fitted (untrained).
    Returns a matplotlib Figure. Raises ValueError when there is no line of these kinds.
    """
    chosen = {key: found for key, found in lines.items() if key[1] in kinds}
    if not chosen:
        raise ValueError("no line to draw: four trained variants of differing clean accuracy are needed for one")
    labels, there = (list(dict.fromkeys(key[i] for key in chosen)) for i in (0, 1))
    variants = list(dict.fromkeys(name for found in chosen.values() for name in found.points["variant"]))
    with look(paper):
        fig, axes = new_figure(WIDTH["double"], 2.1 * len(labels) + 0.7, len(labels), len(there))
        for (label, kind), found in chosen.items():
            ax = axes[labels.index(label)][there.index(kind)]
            _line(ax, found, variants)
            ax.set_title(f"{label}, {kind} shifts", size=7.5)
        for ax in axes.flat:
            ax.set_visible(ax.has_data())
            ax.set(xlabel="clean accuracy (%)", ylabel="mean shifted accuracy (%)")
        fitted = {name for found in chosen.values() for name in found.points.loc[found.points["fitted"], "variant"]}
        faces = [PALETTE[i % len(PALETTE)] if name in fitted else "white" for i, name in enumerate(variants)]
        handles = [_mark(name, MARKS[i % len(MARKS)], face) for i, (name, face) in enumerate(zip(variants, faces, strict=True))]
        key(fig, handles, handletextpad=0.4)
        legend = "Logit axes. Line: least squares over the means of trained variants with its 95 % band; dashed: no fall."
        legend += " Hollow: untrained, not fitted."
        off = any(found.residuals["p_adj"].lt(0.05).any() for found in chosen.values())
        legend += " Ringed: off the line of the other variants after correction." * off
        footnote(fig, [legend if off else f"{legend} No variant lies off the line of the others after correction.", note])
    return fig


def _line(ax, found: Line, variants: list[str]) -> None:
    points = found.points
    for row in points.itertuples():
        i = variants.index(row.variant)
        face = PALETTE[i % len(PALETTE)] if row.fitted else "white"
        ax.scatter(row.clean, row.shifted, s=14, marker=MARKS[i % len(MARKS)], facecolor=face, edgecolor=INK, linewidth=0.5, zorder=4)
    for row in found.residuals[found.residuals["p_adj"].lt(0.05)].itertuples():
        own = points[points["variant"].eq(row.variant)]
        ax.scatter(own["clean"], own["shifted"], s=60, facecolor="none", edgecolor=PALETTE[1], linewidth=1.0, zorder=3)
    shown = points[["clean", "shifted"]].to_numpy()
    low, high = max(shown.min() - 4, 0.5), min(shown.max() + 4, 99.5)
    x = np.linspace(max(points["clean"].min() - 3, 0.5), min(points["clean"].max() + 3, 99.5), 60)
    y, below, above = found.at(x)
    ax.fill_between(x, below, above, color=PALE, alpha=0.5, linewidth=0, zorder=1)
    ax.plot(x, y, color=INK, linewidth=0.9, zorder=2)
    ax.plot([low, high], [low, high], color=INK, linewidth=0.6, linestyle="--", zorder=1)
    for name in ("x", "y"):
        getattr(ax, f"set_{name}scale")("function", functions=(_logit, _expit))
    ticks = [t for t in (1, 2, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95, 98, 99)]
    ax.set(xticks=ticks, yticks=ticks, xlim=(x[0], x[-1]), ylim=(low, high))
    ax.grid(True, zorder=0)


def _logit(percent):
    share = np.clip(np.asarray(percent, float) / 100, 1e-4, 1 - 1e-4)
    return np.log(share / (1 - share))


def _expit(x):
    return 100 / (1 + np.exp(-np.asarray(x, float)))


# ------------------------------------------------------------------------------------------------------------------------ elsewhere


def elsewhere(rows: pd.DataFrame, *, paper: bool = False):
    """A panel per benchmark and probe, a line per objective: value with its 95 % interval; dotted: what a constant answer reaches.

    rows: of `readers.tabulate`, of `transfer.across`, `openset.held_out` or `robustness.laws`.
    Returns a matplotlib Figure.
    """
    table = over_seeds(rows, ["panel", "variant"])
    panels, variants = (list(dict.fromkeys(table[name])) for name in ("panel", "variant"))
    count, columns = _grid(len(panels), 5)
    with look(paper):
        fig, axes = new_figure(WIDTH["double"], count * (0.17 * len(variants) + 0.75) + 0.35, count, columns, sharey=True)
        for ax, panel in zip(axes.flat, panels, strict=False):
            part = table[table["panel"].eq(panel)]
            for row in part.itertuples():
                y, trained = variants.index(row.variant), row.variant != "random-init"
                ax.hlines(
                    y, row.lo, row.hi, color=PALETTE[0] if trained else PALETTE[3], linewidth=0.9, alpha=0.4 if row.smoke else 1, zorder=3
                )
                face = PALETTE[0] if trained else PALETTE[3]
                ax.scatter(row.value, y, s=12, facecolor=face, edgecolor=INK, linewidth=0.4, alpha=0.4 if row.smoke else 1, zorder=4)
            ax.axvline(rows.loc[rows["panel"].eq(panel), "chance"].mean(), color=INK, linewidth=0.6, linestyle=(0, (1, 1.5)), zorder=1)
            ax.set_title(panel, size=7)
            _bare(ax, variants)
            ax.set_xlim(_range(part, rows.loc[rows["panel"].eq(panel), "chance"].mean()))
        what = "AUROC (%)" if rows["metric"].eq("auroc").all() else "accuracy (%)"
        for ax in _last_in_column(axes, len(panels)):
            ax.set_xlabel(what)
        basis = f"{span(rows['n'].min(), rows['n'].max(), ',.0f')} test clips; lines: 95 % intervals {_basis(table['seeds'])}."
        notes = [f"{basis} Dotted: chance or the largest class. {encoders_note(rows)}"]
        notes += smoke_note(table, PALE_ONES)
        footnote(fig, notes + [f"Note: {text}." for text in sorted(set(rows.get("note", pd.Series(dtype=object)).dropna()) - {""})])
    return fig
