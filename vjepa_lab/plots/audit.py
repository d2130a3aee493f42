"""The trade-offs beside what they should be compared with: another seed of the baseline, an untrained encoder, a constant predictor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..evidence import results, stats
from .bars import benchmark_order, names_of
from .style import INK, SOURCES, WIDTH, footnote, in_lines, key, look, named_rows, new_figure, note_lines

WARM, COOL = "#c8553d", "#1f3a5f"


def audit(
    df: pd.DataFrame,
    against: str = "baseline",
    *,
    regime: str = "mixed",
    source: str = "released",
    benchmarks: Sequence[str] | None = None,
    paper: bool = False,
    column: str = "double",
):
    """Accuracy of every variant with its 95 % sampling interval, a panel per benchmark, against three yardsticks.

    Lines: each seed of the baseline (the gap between them is seed noise, seen once), the random-init encoder (mean of the rows that
    measured one; band: their range), and the best predictor that ignores its input. Filled: the difference from every baseline seed has a
    95 % interval without 0, the test clips of both counted (`stats.compare`), uncorrected. Returns a matplotlib Figure.
    """
    rows = df[df["source"].eq(source) & df["regime"].eq(regime)]
    if not rows["variant"].eq(against).any():
        raise ValueError(
            f"no {source!r} rows of regime {regime!r} with a baseline {against!r}; regimes: {sorted(df['regime'].dropna().unique())}"
        )
    known = results.select(df[df["source"].isin([source, "constant"])], benchmarks=benchmarks)
    rows = known[known["source"].eq(source) & known["regime"].eq(regime)]
    base, others = rows[rows["variant"].eq(against)], rows[rows["variant"].ne(against)]
    untrained, constants = results.random_init(known), results.constants(known)
    signs = _signs(known[known["source"].eq("constant") | known["regime"].eq(regime)], against)
    shown = [name for name in benchmark_order([rows]) if name in set(base["benchmark"])]
    order = list(others.groupby("variant")["value"].mean().sort_values().index)
    labels = names_of(rows)
    dashes = _dashes(sorted(base["seed"].fillna(-1).unique(), reverse=True))
    with look(paper):
        side_by_side = column == "double"
        shape = (1, len(shown)) if side_by_side else (len(shown), 1)
        height = 0.17 * len(order) * (1 if side_by_side else len(shown)) + 1.3 + (0 if side_by_side else 0.7)
        notes = _notes(base, untrained, source, not others.duplicated(["variant", "benchmark"]).any())
        least = 1.5 + 0.11 * len(note_lines(notes, WIDTH[column])) + (0.5 if side_by_side else 1.0 * len(shown))
        fig, axes = new_figure(WIDTH[column], max(height, least), *shape, sharey=True)  # notes and titles have room over few rows, too
        for ax, benchmark in zip(axes.flat, shown, strict=True):
            pick = lambda table, name=benchmark: table[table["benchmark"].eq(name)]
            _points(ax, pick(others), signs, order)
            _yardsticks(ax, pick(base), dashes, pick(untrained), constants.get(benchmark, {}))
            ax.set_yticks(range(len(order)), [labels[name] for name in order])
            ax.set_title(in_lines(benchmark, WIDTH[column] / len(axes[0])))
            ax.set_xlabel("accuracy (%)")
        key(fig, _legend(dashes, untrained, constants, shown), most=2 if column == "single" else 4)
        footnote(fig, notes)
    return fig


def _signs(rows: pd.DataFrame, against: str) -> pd.Series:
    """(variant, benchmark) -> 1 above, -1 below every seed of the baseline that was measured there, 0 neither."""
    seeds = rows.loc[rows["variant"].eq(against), "seed"].dropna().unique()
    tables = pd.concat([stats.compare(rows, against, baseline_seed=int(seed)) for seed in seeds] or [stats.compare(rows, against)])
    sign = (tables["lo"] > 0).astype(int) - (tables["hi"] < 0)
    ends = sign.groupby([tables["variant"], tables["benchmark"]]).agg(["min", "max"])
    return ends["min"].where(ends["min"].eq(ends["max"]), 0)


def _points(ax, rows: pd.DataFrame, signs: pd.Series, order: Sequence[str]) -> None:
    y = [order.index(name) for name in rows["variant"]]
    ax.hlines(y, rows["lo"], rows["hi"], color=INK, linewidth=0.9, zorder=3)
    sign = signs.reindex(pd.MultiIndex.from_frame(rows[["variant", "benchmark"]])).fillna(0).to_numpy()
    for mask, fill in ((sign > 0, COOL), (sign < 0, WARM), (sign == 0, "white")):
        ax.scatter(rows["value"][mask], np.array(y)[mask], s=14, facecolor=fill, edgecolor=INK, linewidth=0.6, zorder=4)
    ax.set_ylim(-0.7, len(order) - 0.3)
    named_rows(ax, len(order))


BASELINE_DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


def _dashes(seeds: Sequence[float]) -> dict:
    """A line's style for each seed; all the same where there are more than can be told apart."""
    few = len(seeds) <= len(BASELINE_DASHES)
    return dict(zip(seeds, BASELINE_DASHES, strict=False)) if few else dict.fromkeys(seeds, "-")


def _yardsticks(ax, base: pd.DataFrame, dashes: dict, untrained: pd.DataFrame, constants: dict[str, float]) -> None:
    for seed, value in zip(base["seed"].fillna(-1), base["value"], strict=True):
        ax.axvline(value, color=COOL, linewidth=1.0, linestyle=dashes.get(seed, "-"), zorder=2)
    if len(untrained):
        ax.axvspan(untrained["value"].min(), untrained["value"].max(), color="#f0b892", alpha=0.55, linewidth=0, zorder=1)
        ax.axvline(untrained["value"].mean(), color="#d9792b", linewidth=1.0, zorder=2)
    if constants:
        ax.axvline(max(constants.values()), color="#666666", linewidth=1.0, linestyle=":", zorder=2)


def _legend(dashes: dict, untrained: pd.DataFrame, constants: dict, shown: Sequence[str]) -> list:
    from matplotlib.lines import Line2D

    named = {"baseline" if seed < 0 else f"baseline, seed {seed:.0f}": dash for seed, dash in dashes.items()}
    if len(set(dashes.values())) < len(dashes):
        named = {f"baseline, {len(dashes)} seeds": "-"}
    lines = [Line2D([], [], color=COOL, linestyle=dash, linewidth=1, label=name) for name, dash in named.items()]
    if len(untrained):
        lines.append(Line2D([], [], color="#d9792b", linewidth=1, label="random-init encoder"))
    if any(constants.get(name) for name in shown):
        lines.append(Line2D([], [], color="#666666", linestyle=":", linewidth=1, label="largest class"))
    dot = lambda fill, label: Line2D(
        [], [], marker="o", linestyle="", markersize=4, markerfacecolor=fill, markeredgecolor=INK, markeredgewidth=0.6, label=label
    )
    seen = "every baseline seed" if len(dashes) > 1 else "the baseline"
    return [*lines, dot(COOL, f"above {seen}"), dot(WARM, f"below {seen}"), dot("white", "neither")]


def _notes(base: pd.DataFrame, untrained: pd.DataFrame, source: str, one_seed: bool) -> list[str]:
    each = "one seed each" if one_seed else "a point for each seed"
    notes = [f"{SOURCES.get(source, source)}, {each}; thin lines: 95 % interval of test sampling, without the noise of another seed."]
    clips = base.dropna(subset=["n"]).groupby("benchmark", sort=False)["n"].max()
    if len(clips):
        notes[0] += f" Test clips: {', '.join(f'{name} {n:,.0f}' for name, n in clips.items())}."
    gaps = base.groupby("benchmark", sort=False)["value"].agg(["max", "min", "count"])
    single = list(gaps.index[gaps["count"] < gaps["count"].max()])
    filled = "Filled: the 95 % interval of the difference, test clips of both counted, excludes 0; uncorrected."
    notes.append(filled + f" On {' and '.join(single)} the baseline has one seed." * bool(single))
    gaps = gaps[gaps["count"] > 1]
    if len(gaps):
        notes.append(
            ("Two seeds of the baseline differ by " if gaps["count"].max() == 2 else "Seeds of the baseline differ by up to ")
            + ", ".join(f"{g['max'] - g['min']:.2f} points ({name})" for name, g in gaps.iterrows())
            + "."
        )
    if len(untrained):
        counts = untrained.groupby("benchmark", sort=False)["value"].agg(["mean", "count"])
        means = ", ".join(
            f"{name} {row['mean']:.2f} % ({row['count']:.0f} rows)" for name, row in counts.iterrows() if name in set(base["benchmark"])
        )
        notes.append(f"Random init: the mean of the rows that measured an untrained encoder, band: their range. {means}.")
    return notes
