"""Figure 3: the FWM x LD x HW factorial, its interactions and its effects."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import pandas as pd

from .. import results, stats
from .bars import benchmark_order, panel_title
from .style import INK, PALE, RULE, WIDTH, colours, footnote, hatches, look, new_figure

FACTORS = ("fwm", "ld", "hw")


def ablation(
    df: pd.DataFrame, *, regime: str = "mixed", source: str | None = None, benchmarks: Sequence[str] | None = None, paper: bool = False,
    column: str = "double", factors: Sequence[str] = FACTORS, against: str = "baseline",
):  # fmt: skip
    """Accuracy of every cell of the factorial per benchmark, with 95 % intervals; a cell that was not run is drawn empty and says so.

    df: tidy rows; source: `run` where there is any, else `paper`. Intervals: over seeds where there are several, else of test sampling.
    Returns a matplotlib Figure.
    """
    rows, source = _cells(df, regime, source, benchmarks, factors, against)
    shown, order = benchmark_order([rows]), _all_cells(factors, against)
    colour, hatch = colours(shown), hatches(shown)
    table = _means(rows)
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
            ax.set_title(benchmark)
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


def _not_run(ax, x: float) -> None:
    from matplotlib.transforms import blended_transform_factory

    at = blended_transform_factory(ax.transData, ax.transAxes)
    ax.bar([x], [0.97], 0.72, transform=at, facecolor="none", edgecolor=PALE, linestyle=(0, (3, 2)), linewidth=0.7)
    ax.text(x, 0.5, "not run", transform=at, rotation=90, ha="center", va="center", fontsize=6.5, color="#777777")


def interaction(
    df: pd.DataFrame, *, regime: str = "mixed", source: str | None = None, benchmarks: Sequence[str] | None = None, paper: bool = False,
    column: str = "double", factors: Sequence[str] = FACTORS, against: str = "baseline",
):  # fmt: skip
    """Interaction plot: accuracy when the second factor is off and on, a line per level of the others. Parallel lines: no interaction.

    A line with a missing cell shows its one end. Returns a matplotlib Figure.
    """
    rows, source = _cells(df, regime, source, benchmarks, factors, against)
    shown, table = benchmark_order([rows]), _means(rows)
    first, second, third = factors
    looks = {
        (0, 0): ("#888888", "o", "-"),
        (1, 0): (colours("abc")["b"], "s", "-"),
        (0, 1): ("#888888", "o", "--"),
        (1, 1): (colours("abc")["b"], "s", "--"),
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
                ax.plot(
                    x,
                    cells["value"],
                    color=colour,
                    marker=marker,
                    linestyle=dash,
                    linewidth=1.2,
                    markersize=3.5,
                    markeredgecolor=INK,
                    markeredgewidth=0.4,
                )
            ax.set_xticks([0, 1], [f"{second.upper()} off", f"{second.upper()} on"])
            ax.set_xlim(-0.25, 1.25)
            ax.set_title(benchmark)
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
        Line2D(
            [],
            [],
            color=colour,
            marker=marker,
            linestyle=dash,
            linewidth=1.2,
            markersize=3.5,
            markeredgecolor=INK,
            markeredgewidth=0.4,
            label=text(a, c),
        )
        for (a, c), (colour, marker, dash) in looks.items()
    ]


def effects(
    df: pd.DataFrame, *, regime: str = "mixed", source: str | None = None, benchmarks: Sequence[str] | None = None, paper: bool = False,
    column: str = "single", factors: Sequence[str] = FACTORS, against: str = "baseline",
):  # fmt: skip
    """Main effects and interactions per benchmark (`stats.factorial`) with 95 % intervals. Returns a matplotlib Figure."""
    rows, source = _cells(df, regime, source, benchmarks, factors, against)
    shown = benchmark_order([rows])
    fits = {name: stats.factorial(rows[rows["benchmark"].eq(name)], factors, against) for name in shown}
    terms = list(fits[shown[0]]["term"])
    colour, markers = colours(shown), dict(zip(shown, "osD^vP", strict=False))
    with look(paper):
        fig, axes = new_figure(WIDTH[column], 0.34 * len(terms) + 1.2)
        ax = axes[0, 0]
        for k, name in enumerate(shown):
            y = np.arange(len(terms)) + 0.2 * (k - (len(shown) - 1) / 2)
            ax.hlines(y, fits[name]["lo"], fits[name]["hi"], color=INK, linewidth=0.8)
            ax.scatter(
                fits[name]["effect"], y, color=colour[name], marker=markers[name], s=16, edgecolor=INK, linewidth=0.5, label=name, zorder=3
            )
        ax.axvline(0, color=INK, linewidth=0.7)
        ax.set_yticks(range(len(terms)), [term.upper().replace(" X ", " × ") for term in terms])
        ax.set_ylim(len(terms) - 0.5, -0.5)
        ax.hlines(np.arange(len(terms) - 1) + 0.5, *ax.get_xlim(), color=RULE, linewidth=0.4, zorder=0)
        ax.tick_params(axis="y", length=0)
        ax.xaxis.grid(True)
        ax.set_axisbelow(True)
        ax.set_xlabel("effect (percentage points)")
        ax.set_title(panel_title(source, _means(rows)["seeds"], bool(rows["smoke"].all())), fontsize=7.5)
        fig.legend(loc="outside upper center", ncols=len(shown))
        missing = next(iter(fits.values())).attrs["missing"]
        if missing:
            footnote(fig, [f"Not run: {', '.join(missing)}; the three-way interaction cannot be told apart and is taken as zero."])
    return fig


def _cells(df, regime, source, benchmarks, factors, against) -> tuple[pd.DataFrame, str]:
    source = source or ("run" if df["source"].eq("run").any() else "paper")
    rows = results.select(df[df["source"].eq(source)], regime=regime, benchmarks=benchmarks)
    inside = stats.cells(rows["variant"].unique(), factors, against)
    rows = rows[rows["variant"].isin(inside)]
    names = {variant: _name(dict(zip(factors, level, strict=True)), against) for variant, level in inside.items()}
    if not names:
        raise ValueError(f"no variant of the factorial {' x '.join(factors)} among {sorted(df['variant'].unique())}")
    rows = rows.assign(variant=rows["variant"].map(names))
    complete = rows.groupby("benchmark")["variant"].nunique()
    return rows[rows["benchmark"].isin(complete.index[complete > 1])], source


def _name(levels: dict[str, int], against: str) -> str:
    return "-".join(factor for factor, on in levels.items() if on) or against


def _all_cells(factors: Sequence[str], against: str) -> list[str]:
    return [against, *("-".join(c) for k in range(1, len(factors) + 1) for c in combinations(factors, k))]


def _cell_label(name: str, against: str) -> str:
    return "none" if name == against else name.upper().replace("-", "\n")


def _means(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy per benchmark and cell with its interval: over seeds where there are several, else of test sampling."""

    def summary(part: pd.DataFrame) -> pd.Series:
        by_seed = part.groupby("seed", dropna=False)["value"].mean()
        if len(by_seed) > 1:
            interval = stats.t_interval(by_seed)
            return pd.Series({"value": interval.value, "lo": interval.lo, "hi": interval.hi, "seeds": len(by_seed)})
        return pd.Series({"value": by_seed.iloc[0], "lo": part["lo"].iloc[0], "hi": part["hi"].iloc[0], "seeds": 1})

    return rows.groupby(["benchmark", "variant"], sort=False)[["seed", "value", "lo", "hi"]].apply(summary)


def _notes(rows: pd.DataFrame, order: Sequence[str]) -> list[str]:
    missing = [name for name in order if name not in set(rows["variant"])]
    notes = [f"Not run: {', '.join(name.upper() for name in missing)}."] if missing else []
    if rows["source"].isin(["paper", "released"]).any() and "hw" in set(rows["variant"]):
        notes.append("HW alone has weight 0.3, in the other cells 1.0: not the same treatment.")
    return notes
