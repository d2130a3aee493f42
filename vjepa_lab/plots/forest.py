"""Every row of a study against the baseline: one dot and interval per benchmark, the untrained encoder beside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..evidence.stats import UNTRAINED
from .bars import base_span
from .style import INK, PALETTE, RULE, WIDTH, footnote, look, named_rows, new_figure, smoke_note, span

SURE, OPEN = PALETTE[1], "#8a929b"
WIDE = 10.0
"Inches of a page on its side, where a study has more than four benchmarks."


def forest(found: pd.DataFrame, against: str = "baseline", *, title: str = "", order: Sequence[str] | None = None, paper: bool = False):
    """Differences from the baseline in points with 95 % intervals: a line per row of the study, a panel per benchmark.

    found: of `collected.differences`.  Orange: stands after correction in its family; the names of the pre-registered rows are bold, with
    the number of seed pairs where rows differ in it. The
    untrained encoder is the lowest line. A panel holds the whole intervals of three rows of four; what lies beyond has its value at the
    edge, an interval that goes on there an arrow.  order: rows from above; by default by their mean difference.  Returns a matplotlib
    Figure.
    """
    own = found[found["variant"].ne(UNTRAINED)]
    names = list(order or own.groupby("variant")["delta"].mean().sort_values(ascending=False).index)
    lines = [*names, *([UNTRAINED] if found["variant"].eq(UNTRAINED).any() else [])]
    benchmarks = list(dict.fromkeys(found["benchmark"]))
    primary = set(found.loc[found["family"].eq("primary"), "variant"])
    with look(paper):
        width = WIDTH["double"] if len(benchmarks) <= 4 else WIDE
        fig, axes = new_figure(width, 0.155 * len(lines) + 1.25, 1, len(benchmarks), sharey=True)
        for ax, benchmark in zip(axes[0], benchmarks, strict=True):
            rows = found[found["benchmark"].eq(benchmark)].set_index("variant").reindex(lines)
            _panel(ax, rows, f"{benchmark}\n{against} {base_span(rows, 1)} %")
        counts = _counts(own)
        counted = [f"{name} ({counts[name]:.0f})" if name in counts else name for name in lines]
        axes[0][0].set_yticks(range(len(lines)), counted)
        axes[0][0].set_ylim(len(lines) - 0.4, -0.6)
        for name, label in zip(lines, axes[0][0].get_yticklabels(), strict=True):
            label.set_fontweight("bold" if name in primary else "normal")
        axes[0][len(benchmarks) // 2].set_xlabel(f"difference from {against} (points)")
        if title:
            fig.suptitle(title, fontsize=9)
        footnote(fig, _notes(found, against, bool(primary)))
    return fig


def _panel(ax, rows: pd.DataFrame, title: str) -> None:
    ax.set_xlim(*(limits := _limits(rows.drop(index=UNTRAINED, errors="ignore"))))
    for y, row in enumerate(rows.itertuples()):
        if np.isnan(row.delta):
            continue
        colour = SURE if row.significant is True or row.significant == 1 else OPEN
        (left, lo), (right, hi) = zip(limits, np.clip([row.lo, row.hi], *limits), strict=True)
        if not left <= row.delta <= right:
            beyond = row.delta > right
            said = f"{row.delta:+.0f} ▸" if beyond else f"◂ {row.delta:+.0f}"
            edge, side = (right, "right") if beyond else (left, "left")
            ax.text(edge, y, said.replace("-", "−"), ha=side, va="center", fontsize=6, color=INK if colour == OPEN else colour)
            continue
        ax.hlines(y, lo, hi, color=colour, linewidth=1.1)
        ax.plot(row.delta, y, marker="o", markersize=3, color=colour)
        for end, edge, mark in ((row.lo, left, "<"), (row.hi, right, ">")):
            if end < left or end > right:
                ax.plot(edge, y, marker=mark, markersize=2.5, color=colour, clip_on=False)
    if UNTRAINED in rows.index:
        ax.axhline(len(rows) - 1.5, color=RULE, linewidth=0.8)
    ax.axvline(0, color=INK, linewidth=0.7)
    ax.set_title(title, fontsize=7)
    named_rows(ax)


def _limits(rows: pd.DataFrame) -> tuple[float, float]:
    """Ends of a panel that holds zero and the whole intervals of three rows of four: a few collapsed runs would make dots of all others."""
    ends = rows[["lo", "hi"]].dropna()
    if ends.empty:
        return -1.0, 1.0
    inner = ends[ends.abs().max(axis=1) <= ends.abs().max(axis=1).quantile(0.75, interpolation="higher")]
    low, high = min(inner["lo"].min(), -1.0), max(inner["hi"].max(), 1.0)
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


def _counts(rows: pd.DataFrame) -> pd.Series:
    """Seed pairs by variant, where these differ; else none."""
    counts = rows.groupby("variant")["seeds"].max()
    return counts if counts.nunique() > 1 else counts[:0]


def _notes(found: pd.DataFrame, against: str, primary: bool) -> list[str]:
    seeds = span(found["seeds"].min(), found["seeds"].max())
    told = {"seeds and samples": "seeds and test clips, both random", "seeds and recordings": "seeds and recordings, both random"}
    covers = told.get(found["basis"].iloc[0], "seeds") if found["basis"].nunique() == 1 else "seeds"
    several = " (in brackets)" if len(_counts(found[found["variant"].ne(UNTRAINED)])) else ""
    notes = [
        f"Paired by seed with {against}: {seeds} pairs{several}, {found['n'].max():,.0f} test clips; 95 % intervals over {covers}, each by "
        "itself. Orange: differs after correction (pre-registered rows, in bold: Holm, 5 %; others: Benjamini-Hochberg, 10 %)."
    ]
    if not primary:
        notes[0] = notes[0].replace("pre-registered rows, in bold: Holm, 5 %; others: ", "")
    if several:
        notes[0] += f" On top the {against}'s means, least to most: each row meets it on its own seeds."
    if found["family"].eq("collapsed").any():
        notes[0] += " Rows of which every run collapsed are a family of their own."
    if found["variant"].eq(UNTRAINED).any():
        notes[0] += f" {UNTRAINED} is corrected by itself (Holm, 5 %)."
    notes[0] += " Arrows: intervals, and with a number differences, that go on beyond the panel."
    return notes + smoke_note(found)
