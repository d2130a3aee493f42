"""Figure 3: the FWM x LD x HW factorial, its interactions and its effects."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, cycle, product

import numpy as np
import pandas as pd

from ..evidence import results, stats, verdicts
from .bars import DAGGER, benchmark_order, clips_note, constant_note, panel_title
from .style import INK, MARKERS, PALE, PALETTE, RULE, WIDTH, colours, footnote, hatches, in_lines, key, look, new_figure

FACTORS = ("fwm", "ld", "hw")


LINE = {"linewidth": 1.2, "markersize": 3.5, "markeredgecolor": INK, "markeredgewidth": 0.4}


def ablation(
    df: pd.DataFrame, *, regime: str = "mixed", source: str | None = None, benchmarks: Sequence[str] | None = None,
    interactive: bool = False, paper: bool = False, column: str = "double", factors: Sequence[str] = FACTORS, against: str = "baseline",
):  # fmt: skip
    """Accuracy of every cell of the factorial per benchmark, with 95 % intervals; a cell that was not run is drawn empty and says so.

    df: tidy rows; source: `run` where there is any, else `paper`. Intervals: over seeds where there are several, else of test sampling.
    A thin line marks the baseline; † a cell no better than a predictor that ignores its input. The cell HW is the control `hw-1.0` where
    that was run (`stats.cells`); a note says so, and in what else the cells differ (`verdicts.treatments`). Returns a matplotlib Figure,
    with `interactive` a plotly one of the same numbers. Raises ValueError for rows of several editions, which are different objectives.
    """
    rows, source = _cells(df, regime, source, benchmarks, factors, against)
    shown, order = benchmark_order([rows]), _all_cells(factors, against)
    colour, hatch = colours(shown), hatches(shown)
    table = means(rows)
    if interactive and not paper:
        return _plotly_cells(rows, table, shown, order, source, against)
    with look(paper):
        side_by_side = column == "double"
        fig, axes = new_figure(
            WIDTH[column],
            2.6 if side_by_side else 1.45 * len(shown) + 0.9,
            *((1, len(shown)) if side_by_side else (len(shown), 1)),
            sharex=True,
        )
        for ax, benchmark in zip(axes.flat, shown, strict=True):
            cells = table.loc[benchmark].reindex(order)
            x = np.arange(len(order))
            ax.bar(x, cells["value"].fillna(0), 0.72, color=colour[benchmark], hatch=hatch[benchmark], edgecolor=INK, linewidth=0.4)
            for width, tone in ((1.8, "white"), (0.8, INK)):  # a pale edge keeps the interval visible on dark bars
                ax.vlines(x, cells["lo"], cells["hi"], color=tone, linewidth=width)
            for missing in x[cells["value"].isna()]:
                _not_run(ax, missing)
            _daggers(ax, x, cells)
            ax.axhline(cells["value"].get(against, np.nan), color=INK, linewidth=0.6, linestyle=(0, (4, 2)), zorder=0.5)
            ax.set_title(in_lines(benchmark, WIDTH[column] / len(axes[0])))
            ax.yaxis.grid(True, zorder=0)
            ax.set_axisbelow(True)
            ax.set_xlim(-0.6, len(order) - 0.4)
            ax.set_xticks(x, [_cell_label(name, against) for name in order])
            ax.tick_params(axis="x", length=0, labelsize=6, labelbottom=side_by_side or benchmark == shown[-1])
        for ax in axes[:, 0]:
            ax.set_ylabel("accuracy (%)")
        fig.suptitle(panel_title(source, table["seeds"], bool(rows["smoke"].all())).replace("\n", "; "), fontsize=8)
        footnote(fig, _notes(rows, order))
    return fig


def _plotly_cells(rows: pd.DataFrame, table: pd.DataFrame, shown: Sequence[str], order: Sequence[str], source: str, against: str):
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    fig = make_subplots(1, len(shown), subplot_titles=shown, horizontal_spacing=0.06)
    for k, benchmark in enumerate(shown, 1):
        cells = table.loc[benchmark].reindex(order)
        names = [_cell_label(name, against).replace("\n", " + ") for name in order]
        text = [
            f"<b>{name}</b>: not run" if np.isnan(c.value)
            else f"<b>{name}</b>, {benchmark}<br>{c.value:.2f} % [{c.lo:.2f}, {c.hi:.2f}], {c.seeds:.0f} seed{'s' * (c.seeds > 1)}"
            + "<br>no better than a constant predictor" * bool(c.flag)
            for name, c in zip(names, cells.itertuples(), strict=True)
        ]  # fmt: skip
        whiskers = {"symmetric": False, "array": cells["hi"] - cells["value"], "arrayminus": cells["value"] - cells["lo"], "width": 0}
        bar = go.Bar(
            x=names, y=cells["value"], error_y=whiskers | {"thickness": 1.3, "color": "#7d828a"}, customdata=text, showlegend=False,
            hovertemplate="%{customdata}<extra></extra>", marker={"color": colours(shown)[benchmark], "line": {"color": INK, "width": 0.5}},
        )  # fmt: skip
        fig.add_trace(bar, 1, k)
        if np.isfinite(base := cells["value"].get(against, np.nan)):
            fig.add_hline(base, line_width=1, line_dash="dash", line_color=INK, row=1, col=k)
        for name in (name for name, value in zip(names, cells["value"], strict=True) if np.isnan(value)):
            fig.add_annotation(x=name, y=0, text="not run", textangle=-90, showarrow=False, yanchor="bottom", row=1, col=k)
    title = panel_title(source, table["seeds"], bool(rows["smoke"].all())).replace("\n", "; ")
    fig.update_layout(
        template="simple_white", height=430, title={"text": title, "font_size": 14}, margin={"l": 10, "r": 10, "t": 90, "b": 10},
        font={"family": "Helvetica, Arial, sans-serif", "size": 12, "color": INK}, yaxis_title="accuracy (%)",
    )  # fmt: skip
    return fig


def _daggers(ax, x: np.ndarray, cells: pd.DataFrame) -> None:
    """A dagger above the interval of every cell that is no better than a constant predictor."""
    for at, high in zip(x, cells["hi"].where(cells["flag"].fillna("").ne("")), strict=True):
        if np.isfinite(high):
            ax.annotate(DAGGER, (at, high), xytext=(0, 1), textcoords="offset points", fontsize=6, ha="center", va="bottom")


def _not_run(ax, x: float) -> None:
    from matplotlib.transforms import blended_transform_factory

    at = blended_transform_factory(ax.transData, ax.transAxes)
    ax.bar([x], [0.97], 0.72, transform=at, facecolor="none", edgecolor=PALE, linestyle=(0, (3, 2)), linewidth=0.7)
    clear = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    ax.text(x, 0.5, "not run", transform=at, rotation=90, ha="center", va="center", fontsize=6.5, color="#777777", bbox=clear)


def interaction(
    df: pd.DataFrame, *, regime: str = "mixed", source: str | None = None, benchmarks: Sequence[str] | None = None, paper: bool = False,
    column: str = "double", factors: Sequence[str] = FACTORS, against: str = "baseline",
):  # fmt: skip
    """Interaction plot: accuracy when the second factor is off and on, a line per level of the others. Parallel lines: no interaction.

    A line with a missing cell shows its one end. Returns a matplotlib Figure. Raises ValueError for other than three factors.
    """
    if len(factors) != 3:
        raise ValueError(f"factors {tuple(factors)!r}: an interaction plot takes three factors; `effects` and `ablation` take any number")
    rows, source = _cells(df, regime, source, benchmarks, factors, against)
    shown, table = benchmark_order([rows]), means(rows)
    first, second, third = factors
    looks = {
        (0, 0): ("#9a9fa5", "o", "-"),
        (1, 0): (PALETTE[0], "s", "-"),
        (0, 1): ("#9a9fa5", "o", "--"),
        (1, 1): (PALETTE[0], "s", "--"),
    }
    with look(paper):
        side_by_side = column == "double"
        fig, axes = new_figure(
            WIDTH[column], 2.5 if side_by_side else 1.6 * len(shown) + 0.8, *((1, len(shown)) if side_by_side else (len(shown), 1))
        )
        for ax, benchmark in zip(axes.flat, shown, strict=True):
            for shift, (a, c) in enumerate(product((0, 1), repeat=2)):
                names = [_name({first: a, second: b, third: c}, against) for b in (0, 1)]
                cells = table.loc[benchmark].reindex(names)
                colour, marker, dash = looks[a, c]
                x = np.array([0, 1]) + 0.02 * (shift - 1.5)
                ax.vlines(x, cells["lo"], cells["hi"], color=colour, linewidth=0.8)
                _daggers(ax, x, cells)
                ax.plot(x, cells["value"], color=colour, marker=marker, linestyle=dash, **LINE)
            ax.set_xticks([0, 1], [f"{second.upper()} off", f"{second.upper()} on"])
            ax.set_xlim(-0.25, 1.25)
            ax.set_title(in_lines(benchmark, WIDTH[column] / len(axes[0])))
            ax.yaxis.grid(True)
            ax.set_axisbelow(True)
        for ax in axes[:, 0]:
            ax.set_ylabel("accuracy (%)")
        title = panel_title(source, table["seeds"], bool(rows["smoke"].all())).replace("\n", "; ")
        fig.legend(
            handles=_line_legend(looks, first, third),
            loc="outside upper center",
            ncols=4 if side_by_side else 2,
            handlelength=3,
            title=title,
            title_fontsize=8,
        )
        footnote(fig, _notes(rows, _all_cells(factors, against)))
    return fig


def _line_legend(looks: dict, first: str, third: str) -> list:
    from matplotlib.lines import Line2D

    text = lambda a, c: " + ".join([first.upper()] * a + [third.upper()] * c) or "neither"
    return [
        Line2D([], [], color=colour, marker=marker, linestyle=dash, label=text(a, c), **LINE)
        for (a, c), (colour, marker, dash) in looks.items()
    ]


def effects(
    df: pd.DataFrame, *, regime: str = "mixed", source: str | None = None, benchmarks: Sequence[str] | None = None, paper: bool = False,
    column: str = "single", factors: Sequence[str] = FACTORS, against: str = "baseline",
):  # fmt: skip
    """Main effects and interactions per benchmark (`stats.factorial`) with 95 % intervals. Returns a matplotlib Figure.

    Raises ValueError for too few cells to tell the effects apart, and for too few runs of them to give these an interval (see `crossed`).
    """
    rows, source = _cells(df, regime, source, benchmarks, factors, against)
    fits = _fits(rows, factors, against)
    shown = list(fits)
    terms = list(fits[shown[0]]["term"])
    colour, markers = colours(shown), dict(zip(shown, cycle(MARKERS), strict=False))
    with look(paper):
        fig, axes = new_figure(WIDTH[column], 0.34 * len(terms) + 1.2)
        ax = axes[0, 0]
        for k, name in enumerate(shown):
            y = np.arange(len(terms)) + min(0.2, 0.8 / len(shown)) * (k - (len(shown) - 1) / 2)
            ax.hlines(y, fits[name]["lo"], fits[name]["hi"], color=INK, linewidth=0.8)
            ax.scatter(
                fits[name]["effect"], y, color=colour[name], marker=markers[name], s=16, edgecolor=INK, linewidth=0.5, label=name, zorder=3
            )
        ax.axvline(0, color=INK, linewidth=0.7)
        ax.set_yticks(range(len(terms)), [term.upper().replace(" X ", " × ") for term in terms])
        ax.set_ylim(len(terms) - 0.5, -0.5)
        for line in np.arange(len(terms) - 1) + 0.5:
            ax.axhline(line, color=RULE, linewidth=0.4, zorder=0)
        ax.tick_params(axis="y", length=0)
        ax.xaxis.grid(True)
        ax.set_axisbelow(True)
        ax.set_xlabel("effect (percentage points)")
        ax.set_title(panel_title(source, means(rows)["seeds"], bool(rows["smoke"].all())), fontsize=7.5)
        key(fig, *ax.get_legend_handles_labels())
        notes = _notes(rows, _all_cells(factors, against), "; the three-way interaction cannot be told apart and is taken as zero")
        footnote(fig, [note.replace(f"{DAGGER} not above", "Some cells are not above") for note in notes])  # effects carry no mark
    return fig


def crossed(
    df: pd.DataFrame, *, regime: str = "mixed", source: str | None = None, factors: Sequence[str] = FACTORS, against: str = "baseline"
) -> bool:
    """Whether so many cells of the factorial were run that `effects` can be drawn; the other two figures take any cells that are there."""
    rows, _ = _cells(df, regime, source, None, factors, against)
    try:
        return bool(_fits(rows, factors, against))
    except ValueError:
        return False


def _fits(rows: pd.DataFrame, factors: Sequence[str], against: str) -> dict[str, pd.DataFrame]:
    """The factorial of each benchmark."""
    return {name: stats.factorial(rows[rows["benchmark"].eq(name)], factors, against) for name in benchmark_order([rows])}


def _cells(df, regime, source, benchmarks, factors, against) -> tuple[pd.DataFrame, str]:
    source = source or ("run" if df["source"].eq("run").any() else "paper")
    rows = results.select(df[df["source"].isin([source, "constant"])], regime=regime, benchmarks=benchmarks)
    rows = rows.assign(flag=results.flag_constant(rows))
    rows = rows[rows["source"].eq(source)]
    if rows["edition"].nunique(dropna=False) > 1:
        raise ValueError(
            f"choose rows of one edition, there are {sorted(rows['edition'].fillna('unnamed').unique())}: they are different objectives"
        )
    rows = stats.covered(rows)
    inside = stats.cells(rows["variant"].unique(), factors, against)
    rows = rows[rows["variant"].isin(inside)]
    names = {variant: _name(dict(zip(factors, level, strict=True)), against) for variant, level in inside.items()}
    if not names:
        raise ValueError(f"no variant of the factorial {' x '.join(factors)} among {sorted(df['variant'].unique())}")
    rows = rows.assign(taken=rows["variant"], variant=rows["variant"].map(names))
    complete = rows.groupby("benchmark")["variant"].nunique()
    return rows[rows["benchmark"].isin(complete.index[complete > 1])], source


def _name(levels: dict[str, int], against: str) -> str:
    return "-".join(factor for factor, on in levels.items() if on) or against


def _all_cells(factors: Sequence[str], against: str) -> list[str]:
    return [against, *("-".join(c) for k in range(1, len(factors) + 1) for c in combinations(factors, k))]


def _cell_label(name: str, against: str) -> str:
    return "none" if name == against else name.upper().replace("-", "\n")


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy per benchmark and cell with its interval: over seeds where there are several, no narrower than rounding allows
    (`stats.rounding`), else of test sampling."""

    def summary(part: pd.DataFrame) -> pd.Series:
        by_seed = part.groupby("seed", dropna=False)["value"].mean()
        flag = stats.every(part["flag"])
        if len(by_seed) > 1:
            interval = stats.t_interval(by_seed, least=stats.rounding(len(by_seed), part["n"].min()))
            return pd.Series({"value": interval.value, "lo": interval.lo, "hi": interval.hi, "seeds": len(by_seed), "flag": flag})
        ends = part[["lo", "hi"]].mean()  # of several probe seeds: as wide as one is on average
        return pd.Series({"value": by_seed.iloc[0], "lo": ends["lo"], "hi": ends["hi"], "seeds": 1, "flag": flag})

    return rows.groupby(["benchmark", "variant"], sort=False)[["seed", "value", "lo", "hi", "n", "flag"]].apply(summary)


def _notes(rows: pd.DataFrame, order: Sequence[str], consequence: str = "") -> list[str]:
    missing = [name for name in order if name not in set(rows["variant"])]
    notes = [f"Not run: {', '.join(name.upper() for name in missing)}{consequence}."] if missing else []
    notes += filter(None, [clips_note(rows)])
    notes += verdicts.treatments(rows["taken"])
    flagged = rows[rows["flag"].ne("")]
    return notes + ([constant_note(flagged["metric"], sorted(set(flagged["benchmark"])))] if len(flagged) else [])
