"""Do objectives trade one benchmark for another? Scatter of deltas, Pareto front, rank stability, correlations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from ..evidence import results, stats
from .ablation import means
from .bars import DAGGER, benchmark_order, clips_note, constant_note, names_of, panel_title, seed_unit
from .style import INK, PALETTE, RULE, SOURCES, WIDTH, colours, encoders_note, footnote, look, new_figure

FRONT, REST = PALETTE[1], "#aeb4bb"
SHOWN = ("delta", "lo", "hi", "flag", "significant")


def scatter(
    df: pd.DataFrame, against: str = "baseline", *, regime: str | None = None, source: str | None = None,
    benchmarks: Sequence[str] | None = None, baseline_seed: int | None = None, tested: pd.DataFrame | None = None,
    interactive: bool = True, paper: bool = False, column: str = "double",
):  # fmt: skip
    """Every pair of benchmarks: differences from the baseline with their 95 % intervals on both axes, and the rank correlation.

    Filled orange: variants that no other beats on all benchmarks (Pareto). A trade-off is a cloud that falls to the right; a general
    quality axis rises. In print, of more than 20 variants only those in front and those that differ significantly on an axis are named:
    after correction over these benchmarks, or as a table of all differences (`collected.differences`) says, where `tested` is one.
    Returns a plotly Figure, or a matplotlib one for print.
    """
    table, source = _compared(df, against, regime, source, benchmarks, baseline_seed)
    shown = benchmark_order([table])
    if len(shown) < 2:
        raise ValueError(f"a trade-off needs two benchmarks, the table has {shown}")
    wide = {name: table.pivot(index="variant", columns="benchmark", values=name) for name in SHOWN}
    if tested is not None:
        wide["significant"] = tested.pivot(index="variant", columns="benchmark", values="significant").reindex_like(wide["delta"])
    front = stats.pareto(wide["delta"][shown].dropna())
    labels, pairs = names_of(table), list(combinations(shown, 2))
    title = panel_title(source, table["seeds"].where(table["basis"].ne("samples"), 1), bool(table["smoke"].all()), unit=seed_unit(table))
    if interactive and not paper:
        return _plotly_scatter(wide, front, labels, pairs, title, against)
    with look(paper):
        side_by_side = column == "double"
        shape = (1, len(pairs)) if side_by_side else (len(pairs), 1)
        fig, axes = new_figure(WIDTH[column], 2.9 if side_by_side else 2.7 * len(pairs) + 0.3, *shape)
        for ax, (x, y) in zip(axes.flat, pairs, strict=True):
            _cloud(ax, wide, front, x, y)
            ax.set_title(_correlation_text(wide["delta"][x], wide["delta"][y]), fontsize=7)
            ax.set_xlabel(f"{x} difference (pp)")
            ax.set_ylabel(f"{y} difference (pp)")
        fig.suptitle(title.replace("\n", "; "), fontsize=8)
        crowded = len(wide["delta"]) > 20
        notes = ["Orange: no other variant is as good on every benchmark and better on one.", clips_note(table)]
        notes += [encoders_note(df[df["source"].eq("run")])] * (source == "run")
        over = "" if tested is None else " over all benchmarks and rows"
        notes += [f"Named: these, and variants that differ from the baseline on an axis after correction{over}."] * crowded
        flagged = table[table["flag"].ne("")]
        notes += [constant_note(flagged["metric"], sorted(set(flagged["benchmark"])))] if len(flagged) else []
        footnote(fig, notes)
        for ax, (x, y) in zip(axes.flat, pairs, strict=True):
            d = wide["delta"][[x, y]].dropna()
            if crowded:
                d = d[front.reindex(d.index, fill_value=False) | wide["significant"].loc[d.index, [x, y]].eq(True).any(axis=1)]
            place_names(ax, d.to_numpy(), [labels[v].removesuffix("-JEPA") + DAGGER * _flagged(wide, v, x, y) for v in d.index])
    return fig


def _flagged(wide: dict[str, pd.DataFrame], variant: str, *benchmarks: str) -> bool:
    """Whether the variant is no better than a constant predictor on one of the benchmarks."""
    return bool(wide["flag"].loc[variant, list(benchmarks)].fillna("").ne("").any())


def _compared(df, against, regime, source, benchmarks, baseline_seed) -> tuple[pd.DataFrame, str]:
    source = source or ("run" if df["source"].eq("run").any() else "paper")
    rows = results.select(results.one_edition(df[df["source"].isin([source, "constant"])]), regime=regime, benchmarks=benchmarks)
    if (several := rows.loc[rows["source"].ne("constant"), "regime"].dropna().unique()).size > 1:
        raise ValueError(f"choose one regime of {sorted(several)}: they do not share a baseline")
    return stats.compare(rows, against, baseline_seed=baseline_seed), source


def _correlation_text(x: pd.Series, y: pd.Series) -> str:
    both = x.notna() & y.notna()
    if both.sum() < 4:
        return f"{both.sum()} variants"
    rho = stats.correlation(x, y)
    return f"Spearman {rho.value:+.2f} [{rho.lo:+.2f}, {rho.hi:+.2f}], {both.sum()} variants".replace("-", "−")


def _cloud(ax, wide: dict[str, pd.DataFrame], front: pd.Series, x: str, y: str) -> None:
    d = wide["delta"][[x, y]].dropna()
    lo, hi = (wide[end].loc[d.index] for end in ("lo", "hi"))
    ax.axhline(0, color=INK, linewidth=0.6)
    ax.axvline(0, color=INK, linewidth=0.6)
    ax.hlines(d[y], lo[x], hi[x], color=REST, linewidth=0.7, zorder=1)
    ax.vlines(d[x], lo[y], hi[y], color=REST, linewidth=0.7, zorder=1)
    best = front.reindex(d.index, fill_value=False)
    ax.scatter(d[x], d[y], s=13, c=np.where(best, FRONT, "white"), edgecolor=INK, linewidth=0.5, zorder=3)
    ax.grid(True)
    ax.set_axisbelow(True)
    ax.margins(0.12)


def place_names(ax, points: np.ndarray, names: Sequence[str], size: float = 5.2) -> None:
    """Write names beside points [n 2], each at the freest place around its point; one that had to go far gets a thin leader.

    Call it last: places are chosen in pixels of the settled layout, and kept as offsets from the points.
    """
    from matplotlib.patheffects import withStroke

    figure = ax.figure
    figure.canvas.draw()  # constrained layout settles, so pixel positions are final
    unit, renderer, frame = figure.dpi / 72, figure.canvas.get_renderer(), ax.get_window_extent()
    at = ax.transData.transform(points)
    taken = [(px - 3 * unit, py - 3 * unit, px + 3 * unit, py + 3 * unit) for px, py in at]
    for k in np.argsort(-at[:, 1]):
        text = ax.annotate(
            names[k], points[k], xytext=(0, 0), textcoords="offset points", fontsize=size, ha="center", va="center", zorder=5
        )
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
        extent = text.get_window_extent(renderer)
        half = np.array([extent.width / 2 + unit, extent.height / 2])
        offsets = [(radius * unit + half) * (np.cos(a), np.sin(a)) for radius in (3.5, 9, 15, 22, 30) for a in np.deg2rad(ANGLES)]
        boxes = [(*(at[k] + offset - half), *(at[k] + offset + half)) for offset in offsets]
        cost = [
            # Pixels that two names share weigh more than those between a name and its point: what lies under another cannot be read.
            9 * sum(_overlap(box, other) for other in taken) + 1e6 * _leaves(box, frame) + np.hypot(*o)
            for box, o in zip(boxes, offsets, strict=True)
        ]
        best = int(np.argmin(cost))
        taken.append(boxes[best])
        text.set_position(offsets[best] / unit)
        if best >= len(ANGLES):
            edge = offsets[best] - half * np.sign(offsets[best]) * (np.abs(offsets[best]) > half)
            leader = {"arrowstyle": "-", "linewidth": 0.3, "color": "#888888", "shrinkA": 0, "shrinkB": 2}
            ax.annotate("", points[k], xytext=edge / unit, textcoords="offset points", arrowprops=leader)


ANGLES = (0, 180, 45, 135, 315, 225, 90, 270)


def _leaves(box: tuple, frame) -> bool:
    return box[0] < frame.x0 or box[2] > frame.x1 or box[1] < frame.y0 or box[3] > frame.y1


def _overlap(a: tuple, b: tuple) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _plotly_scatter(wide, front, labels, pairs, title, against):
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    titles = [_correlation_text(wide["delta"][x], wide["delta"][y]).replace(" [", "<br>[") for x, y in pairs]
    fig = make_subplots(1, len(pairs), subplot_titles=titles, horizontal_spacing=0.08)
    fig.update_annotations(font_size=12)
    for k, (x, y) in enumerate(pairs, 1):
        d = wide["delta"][[x, y]].dropna()
        lo, hi = (wide[end].loc[d.index] for end in ("lo", "hi"))
        best = front.reindex(d.index, fill_value=False)
        whisker = lambda name, d=d, lo=lo, hi=hi: {
            "symmetric": False, "array": hi[name] - d[name], "arrayminus": d[name] - lo[name], "thickness": 0.8, "width": 0, "color": REST,
        }  # fmt: skip
        about = lambda name, v, d=d, lo=lo, hi=hi: (
            f"{name} {d[name][v]:+.2f} [{lo[name][v]:+.2f}, {hi[name][v]:+.2f}]" + " no better than a constant" * _flagged(wide, v, name)
        )
        text = [f"<b>{labels[v]}</b><br>{about(x, v)}<br>{about(y, v)}" for v in d.index]
        fig.add_trace(
            go.Scatter(
                x=d[x], y=d[y], mode="markers", error_x=whisker(x), error_y=whisker(y), customdata=text,
                hovertemplate="%{customdata}<extra></extra>",
                marker={"size": 9, "color": np.where(best, FRONT, "white"), "line": {"width": 1, "color": INK}}, showlegend=False,
            ),
            1, k,
        )  # fmt: skip
        fig.update_xaxes(title_text=f"{x} difference (pp)", row=1, col=k)
        fig.update_yaxes(title_text=f"{y} difference (pp)", row=1, col=k)
    fig.update_xaxes(zeroline=True, zerolinecolor=INK, gridcolor=RULE, showgrid=True)
    fig.update_yaxes(zeroline=True, zerolinecolor=INK, gridcolor=RULE, showgrid=True)
    fig.update_layout(
        template="simple_white", height=430, margin={"l": 10, "r": 10, "t": 110, "b": 10},
        title={"text": f"Against {against}. {title}".replace("\n", "; "), "font_size": 14},
        font={"family": "Helvetica, Arial, sans-serif", "size": 12, "color": INK},
    )  # fmt: skip
    return fig


def pareto(
    df: pd.DataFrame,
    x: str,
    y: str,
    *,
    regime: str | None = None,
    source: str | None = None,
    against: str = "baseline",
    paper: bool = False,
    column: str = "single",
):
    """Accuracy on two benchmarks with 95 % intervals: the front that no variant is right of and above, the baseline as a square.

    Each seed's own front is drawn thinly where there are several seeds: how far the front itself is uncertain. Intervals are over seeds
    where there are several, else of test sampling. Returns a matplotlib Figure.
    """
    source = source or ("run" if df["source"].eq("run").any() else "paper")
    rows = results.select(results.one_edition(df[df["source"].isin([source, "constant"])]), regime=regime, benchmarks=[x, y])
    rows = rows.assign(flag=results.flag_constant(rows))
    rows = rows[rows["source"].eq(source)]
    if rows["regime"].nunique() > 1:
        raise ValueError(f"choose one regime of {sorted(rows['regime'].unique())}")
    by_seed = (
        rows.pivot_table(values="value", index=["variant", "seed"], columns="benchmark", dropna=False)
        if rows["seed"].notna().any()
        else None
    )
    cells = means(rows)
    mean, lo, hi = (cells[name].unstack("benchmark")[[x, y]].dropna() for name in ("value", "lo", "hi"))
    flagged = cells["flag"].ne("").groupby("variant").any()
    labels = {name: label + DAGGER * bool(flagged[name]) for name, label in names_of(rows).items()}
    with look(paper):
        fig, axes = new_figure(WIDTH[column], WIDTH[column] * (0.85 if column == "single" else 0.5))
        ax = axes[0, 0]
        seeds = sorted(rows["seed"].dropna().unique())
        for seed in seeds if len(seeds) > 1 else []:
            _front_line(ax, by_seed.xs(seed, level="seed")[[x, y]].dropna(), color=FRONT, linewidth=0.5, alpha=0.45)
        best = _front_line(ax, mean, color=FRONT, linewidth=1.4)
        ax.hlines(mean[y], lo[x], hi[x], color=REST, linewidth=0.7, zorder=1)
        ax.vlines(mean[x], lo[y], hi[y], color=REST, linewidth=0.7, zorder=1)
        marks = mean.index == against
        for mask, marker in ((~marks, "o"), (marks, "s")):
            ax.scatter(
                mean[x][mask],
                mean[y][mask],
                s=18,
                marker=marker,
                c=np.where(best[mask], FRONT, "white"),
                edgecolor=INK,
                linewidth=0.6,
                zorder=3,
            )
        ax.set_xlabel(f"{x} accuracy (%)")
        ax.set_ylabel(f"{y} accuracy (%)")
        ax.grid(True)
        ax.set_axisbelow(True)
        ax.margins(0.12)
        counts = rows.groupby("variant")["seed"].nunique().clip(lower=1)
        head = panel_title(source, counts, bool(rows["smoke"].all())).splitlines()
        ax.set_title("\n".join(head), fontsize=7.5)
        notes = ["Orange: the front that no variant is right of and above.", clips_note(rows)]
        footnote(fig, notes + [constant_note(rows.loc[rows["flag"].ne(""), "metric"])] * bool(flagged.any()))
        place_names(ax, mean.to_numpy(), [labels[name].removesuffix("-JEPA") for name in mean.index])
    return fig


def _front_line(ax, table: pd.DataFrame, **line) -> np.ndarray:
    """Draw the staircase through the points that no other point beats; returns which they are."""
    best = stats.pareto(table).to_numpy()
    front = table[best].sort_values(table.columns[0])
    if len(front):
        ax.step(front.iloc[:, 0], front.iloc[:, 1], where="pre", zorder=2, **line)
    return best


def ranks(
    df: pd.DataFrame, *, regime: str | None = None, benchmarks: Sequence[str] | None = None, paper: bool = False, column: str = "double"
):
    """Rank of every variant (1 = best) in each seed, a line per variant, a panel per benchmark; Kendall's W in the title (1 = all seeds
    agree).

    Needs own runs with at least two seeds that ran every variant. Returns a matplotlib Figure.
    """
    rows = results.select(results.one_edition(df[df["source"].eq("run")]), regime=regime, benchmarks=benchmarks)
    shown, labels = benchmark_order([rows]), names_of(rows)
    tables = {name: stats.rank_stability(rows[rows["benchmark"].eq(name)]) for name in shown}
    count = max(map(len, tables.values()))
    with look(paper):
        side_by_side = column == "double"
        shape = (1, len(shown)) if side_by_side else (len(shown), 1)
        fig, axes = new_figure(WIDTH[column], (0.15 * count + 1.1) * (1 if side_by_side else len(shown)), *shape)
        for ax, name in zip(axes.flat, shown, strict=True):
            _bump(ax, tables[name], labels, colours([name])[name])
            ax.set_title(f"{name}: Kendall’s W = {tables[name].attrs['kendall_w']:.2f}", fontsize=7.5)
            ax.set_xlabel("seed")
        axes[0, 0].set_ylabel("rank")
    return fig


def _bump(ax, table: pd.DataFrame, labels: dict[str, str], colour: str) -> None:
    x = np.arange(table.shape[1])
    ordered = table.loc[table.mean(axis=1).sort_values().index]
    for place, row in enumerate(ordered.to_numpy(), 1):
        strong = place in (1, len(ordered))
        ax.plot(
            x,
            row,
            color=colour if strong else REST,
            linewidth=1.5 if strong else 0.8,
            marker="o",
            markersize=2.5,
            zorder=3 if strong else 2,
        )
    last = table.iloc[:, -1].rank(method="first")
    for name, place in last.items():
        ax.text(x[-1] + 0.15, place, labels[name].removesuffix("-JEPA"), fontsize=6, va="center")
    ax.set_xticks(x, [f"{seed:.0f}" for seed in table.columns])
    ax.set_xlim(-0.2, x[-1] + 0.25 + 0.32 * len(x))
    ax.set_ylim(len(table) + 0.6, 0.4)
    ax.set_yticks([1, *range(5, len(table) + 1, 5)])
    ax.spines["bottom"].set_bounds(0, x[-1])


def correlations(
    df: pd.DataFrame, against: str = "baseline", *, regime: str | None = None, sources: Sequence[str] = ("paper", "released", "run"),
    baseline_seed: int | None = None, paper: bool = False, column: str = "single",
):  # fmt: skip
    """Rank correlation over variants of the differences on each pair of benchmarks, a row per pair and source.

    Intervals: 95 %, Fisher's z with the variance of Bonett & Wright (`stats.correlation`).

    Left of zero: gaining on one benchmark goes with losing on the other (a capacity trade-off). Returns a matplotlib Figure.
    """
    rows = []
    for source in sources:
        if not df["source"].eq(source).any():
            continue
        table, _ = _compared(df, against, regime, source, None, baseline_seed)
        d = table.pivot(index="variant", columns="benchmark", values="delta")
        for x, y in combinations(benchmark_order([table]), 2):
            if (d[x].notna() & d[y].notna()).sum() >= 4:
                rows.append((source, x, y, stats.correlation(d[x], d[y]), int((d[x].notna() & d[y].notna()).sum())))
    if not rows:
        raise ValueError("no pair of benchmarks with at least 4 variants measured on both")
    markers = dict(zip(dict.fromkeys(row[0] for row in rows), "osD", strict=False))
    with look(paper):
        fig, axes = new_figure(WIDTH[column], 0.26 * len(rows) + 1.0)
        ax = axes[0, 0]
        for k, (source, _, _, rho, _) in enumerate(rows):
            ax.hlines(k, rho.lo, rho.hi, color=INK, linewidth=0.9)
            ax.scatter(
                rho.value,
                k,
                marker=markers[source],
                s=18,
                color=FRONT if source == "run" else "white",
                edgecolor=INK,
                linewidth=0.6,
                zorder=3,
            )
        ax.axvline(0, color=INK, linewidth=0.7)
        ax.set_yticks(
            range(len(rows)), [f"{x}, {y}\n{SOURCES.get(source, source).lower()}, {n} variants" for source, x, y, _, n in rows], fontsize=6
        )
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlim(-1.05, 1.05)
        ax.set_xlabel("Spearman correlation, 95 % interval")
        ax.xaxis.grid(True)
        ax.set_axisbelow(True)
        ax.tick_params(axis="y", length=0)
        footnote(fig, ["Over variants, of their differences from the baseline; these share its noise, which alone makes them correlate."])
    return fig
