"""Gradient alignment: through training, by depth, what helps and harms, whether it foretells a benefit; and the counting toy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np
import pandas as pd

from ..analysis.changes import over_seeds
from ..evidence import stats
from .style import INK, PALETTE, RULE, WIDTH, encoders_note, footnote, in_lines, look, maths, new_figure

LINES = {"cosine": (PALETTE[0], "-"), "adam": (PALETTE[1], "-"), "plain cosine": ("#9aa0a6", "--")}
MEANING = {
    "cosine": "cosine with JEPA's gradient, sampling noise taken out",
    "adam": "the same in the metric of Adam's step sizes: above 0, a step on the auxiliary lowers JEPA's loss",
    "plain cosine": "as it is, noise and all",
}
SMOKE = "Smoke size: only shows that it runs."
NO_AUXILIARY = "no row of the term {!r}: a plain objective has no auxiliary to follow"
CONVERGED = "Where training has converged, the total gradient is zero, and the auxiliaries' cosine is −1 whatever they do."


def _notes(table: pd.DataFrame, said: Sequence[str]) -> list[str]:
    return [*said, encoders_note(table), *([SMOKE] if table.get("smoke", pd.Series(dtype=bool)).any() else [])]


def _over_seeds(part: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds at each moment with a 95 % interval: over seeds where there are several, else over micro-batches."""
    found = over_seeds(part.dropna(subset=["value"]).assign(n=part["clips"]), ["progress"])
    return found[["progress", "value", "lo", "hi", "seeds"]].astype(float).sort_values("progress", ignore_index=True)


def through_training(
    df: pd.DataFrame, metrics: Sequence[str] = tuple(LINES), *, term: str = "auxiliaries", paper: bool = False, column: str = "double"
):
    """How each objective's auxiliaries lie to JEPA over training, a panel per variant, a line per metric with its 95 % band.

    df: rows of `alignment.load`, all weights together. Returns a matplotlib Figure.
    """
    part = df[df["term"].eq(term) & df["group"].eq("all") & df["metric"].isin(metrics)]
    names = list(dict.fromkeys(part["variant"]))
    if not names:
        raise ValueError(NO_AUXILIARY.format(term))
    limit = _limit(part["value"])
    columns = min(len(names), 5 if column == "double" else 2)
    rows = -(-len(names) // columns)
    with look(paper):
        fig, axes = new_figure(WIDTH[column], 1.45 * rows + 0.85, rows, columns, sharex=True, sharey=True)
        for ax in axes.flat[len(names) :]:
            ax.set_visible(False)
        for ax, name in zip(axes.flat, names, strict=False):
            for metric in metrics:
                line = _over_seeds(part[part["variant"].eq(name) & part["metric"].eq(metric)])
                colour, dash = LINES.get(metric, (PALETTE[3], "-"))
                ax.fill_between(line["progress"], line["lo"], line["hi"], color=colour, alpha=0.15, linewidth=0)
                ax.plot(
                    line["progress"], line["value"], color=colour, linestyle=dash, linewidth=1.1, marker="o", markersize=2, label=metric
                )
            ax.axhline(0, color=INK, linewidth=0.6)
            ax.set_title(name, fontsize=7.5)
            ax.set_ylim(-limit, limit)
            ax.yaxis.grid(True)
            ax.set_axisbelow(True)
        for ax in axes[:, 0]:
            ax.set_ylabel("cosine")
        for i, ax in enumerate(axes.flat[: len(names)]):
            if i + columns >= len(names):
                ax.set_xlabel("share of training")
                ax.tick_params(axis="x", labelbottom=True)
        fig.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(metrics))
        seeds, batches = part["seed"].nunique(), int(part["micro_batches"].iloc[0])
        band = f"{seeds} seeds; bands: 95 % over seeds" if seeds > 1 else f"one seed; bands: 95 % over {batches} micro-batches"
        clips = f"On {int(part['clips'].iloc[0])} fixed clips, {band}."
        meaning = "; ".join(f"{m}: {MEANING[m]}" for m in metrics if m in MEANING) + "."
        footnote(fig, _notes(part, [clips, meaning, *([CONVERGED] if term == "auxiliaries" else [])]))
    return fig


def _limit(values: pd.Series) -> float:
    """Half the height of an axis for cosines: all of them, not much more."""
    return float(np.clip(1.25 * values.abs().max(), 0.2, 1.05))


def by_depth(df: pd.DataFrame, metrics: Sequence[str], *, term: str = "auxiliaries", paper: bool = False, column: str = "double"):
    """Alignment by depth: mean over training and seeds, a panel per metric, rows variants, columns groups of weights.

    Blocks count from 1, as in the figures of representation; in `df` their groups are called "block 0" and on. Bold: the 95 % interval
    over the seeds excludes 0; one seed has no interval of its mean over training. Returns a matplotlib Figure.
    """
    part = df[df["term"].eq(term) & df["metric"].isin(metrics)]
    names, groups = list(dict.fromkeys(part["variant"])), list(dict.fromkeys(part["group"]))
    metrics = [m for m in metrics if part.loc[part["metric"].eq(m), "value"].notna().any()]
    if not metrics:
        raise ValueError(f"no cosine of {term!r} above the noise; measure on more clips")
    cells = {metric: _cells(part[part["metric"].eq(metric)], names, groups) for metric in metrics}
    limit = max(0.2, min(1.0, max(float(np.nanmax(np.abs(values))) for values, _ in cells.values())))
    with look(paper):
        height = 0.2 * len(names) * len(metrics) + 0.55 * len(metrics) + 0.7
        fig, axes = new_figure(WIDTH[column], height, len(metrics), 1, sharex=True)
        for ax, metric in zip(axes.flat, metrics, strict=True):
            values, clear = cells[metric]
            image = ax.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
            for (i, j), value in np.ndenumerate(values):
                if not np.isnan(value):
                    bold = "bold" if clear[i, j] else "normal"
                    ink = "white" if abs(value) > 0.6 * limit else INK
                    ax.text(j, i, f"{value:+.2f}".replace("-", "−"), ha="center", va="center", fontsize=5.5, color=ink, fontweight=bold)
            ax.set_yticks(range(len(names)), names)
            ax.set_xticks(range(len(groups)), [_place(group) for group in groups], rotation=35, ha="right")
            ax.set_title(metric, fontsize=7.5)
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
        fig.colorbar(image, ax=axes, shrink=0.6, pad=0.01, label="cosine")
        seeds = part["seed"].nunique()
        text = f"Means over the moments with more than noise, {seeds} seed{'s' * (seeds != 1)}."
        text += " Bold, where there are several seeds: the 95 % interval over them excludes 0." * (seeds > 1)
        text += " Empty: only noise was measured."
        footnote(fig, _notes(part, [text]))
    return fig


def _place(group: str) -> str:
    """A group of weights as a reader is told of it."""
    kind, _, number = group.partition(" ")
    return f"block {int(number) + 1}" if kind == "block" else group.replace("_", " ")


def _cells(part: pd.DataFrame, names: Sequence[str], groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Means, and where their interval over seeds excludes 0: that of a single moment would be of another number than the mean."""
    values, clear = np.full((len(names), len(groups)), np.nan), np.zeros((len(names), len(groups)), bool)
    for (name, group), cell in part.dropna(subset=["value"]).groupby(["variant", "group"]):
        i, j = names.index(name), groups.index(group)
        by_seed = cell.groupby("seed")["value"].mean()
        values[i, j] = by_seed.mean()
        if len(by_seed) > 1:
            lo, hi = stats.t_interval(by_seed)[1:3]
            clear[i, j] = lo > 0 or hi < 0
    return values, clear


def energy(df: pd.DataFrame, *, term: str = "auxiliaries", paper: bool = False, column: str = "single"):
    """What share of an auxiliary's gradient helps JEPA, harms it or is neutral to it: bars per variant, mean over training and seeds.

    Returns a matplotlib Figure. Raises ValueError where there is no such auxiliary.
    """
    kinds = {"help": PALETTE[2], "harm": PALETTE[1], "neutral": "#d9dce0"}
    part = df[df["term"].eq(term) & df["group"].eq("all") & df["metric"].isin(kinds)]
    if part.empty:
        raise ValueError(NO_AUXILIARY.format(term))
    table = part.pivot_table(values="value", index="variant", columns="metric", sort=False).reindex(columns=list(kinds))
    with look(paper):
        fig, axes = new_figure(WIDTH[column], 0.2 * len(table) + 1.15)
        ax = axes[0, 0]
        left = np.zeros(len(table))
        for kind, colour in kinds.items():
            width = table[kind].clip(lower=0).to_numpy()
            ax.barh(range(len(table)), width, 0.75, left=left, color=colour, edgecolor=INK, linewidth=0.3, label=kind)
            left += np.nan_to_num(width)
        ax.set_yticks(range(len(table)), table.index)
        ax.set_ylim(len(table) - 0.4, -0.6)
        ax.set_xlim(0, max(1.0, float(np.nanmax(left))))
        ax.set_xlabel("share of the gradient's energy")
        ax.tick_params(axis="y", length=0)
        fig.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3)
        seeds = part["seed"].nunique()
        span = "Directions: JEPA's micro-batch gradients; outside their span is neutral."
        footnote(fig, _notes(part, [f"{span} Means over training, {seeds} seed{'s' * (seeds != 1)}."]))
    return fig


def foretold(found: pd.DataFrame, *, note: str = "", smoke: bool = False, paper: bool = False, column: str = "single"):
    """The test of the theory: rank correlation of each predictor with the benefit, its 95 % interval, a panel per benchmark.

    found: rows of `alignment.predictions`;  note: put under the figure, such as an `encoders_note`. Returns a matplotlib Figure.
    """
    names, marks = list(dict.fromkeys(found["predictor"])), list(dict.fromkeys(found["benchmark"]))
    side = column == "double"
    with look(paper):
        height = (0.2 * len(names) + 0.5) * (1 if side else len(marks)) + 0.75
        most = 1.05 * max(1.5, float(found[["lo", "hi"]].abs().max(axis=None)))  # a difference of two correlations reaches 2
        fig, axes = new_figure(WIDTH[column], height, *((1, len(marks)) if side else (len(marks), 1)), sharex=True)
        for k, (ax, benchmark) in enumerate(zip(axes.flat, marks, strict=True)):
            rows = found[found["benchmark"].eq(benchmark)].set_index("predictor").reindex(names)
            for i, row in enumerate(rows.itertuples()):
                planned = " - " in row.Index
                ax.hlines(i, row.lo, row.hi, color=PALETTE[1] if planned else INK, linewidth=1.1)
                ax.plot(row.rho, i, marker="D" if planned else "o", markersize=4, color=PALETTE[1] if planned else PALETTE[0])
            ax.axvline(0, color=INK, linewidth=0.7)
            ax.set_yticks(range(len(names)), [n.replace(" - ", " − ") for n in names] if k == 0 or not side else [""] * len(names))
            ax.set_ylim(len(names) - 0.5, -0.5)
            ax.set_xlim(-most, most)
            ax.set_title(in_lines(benchmark, WIDTH[column] / len(axes[0]), 7.5), fontsize=7.5)
            ax.xaxis.grid(True)
            ax.set_axisbelow(True)
            ax.tick_params(axis="y", length=0)
        axes.flat[len(marks) // 2 if side else -1].set_xlabel("rank correlation with the gain")
        least, many, seeds = int(found["variants"].min()), int(found["variants"].max()), int(found["seeds"].min())
        more = bool(found["points"].gt(found["variants"] * found["seeds"]).any())
        count = f"{least}{f' to {many}' * (least < many)} variants x {seeds} seed{'s' * (seeds != 1)}{' or more' * more}"
        legend = f"Spearman, gain over the baseline; {count}."
        legend += " Intervals: variants, then seeds resampled, no narrower than Fisher's over variants."
        legend += " Empty: not measured." * bool(found.pivot(index="predictor", columns="benchmark", values="rho").isna().any(axis=None))
        if (moments := found.get("moments", pd.Series(dtype=float)).dropna()).size:
            least, many = int(moments.min()), int(moments.max())
            legend += f" Gradients: means over {least}{f' to {many}' * (least < many)} moment{'s' * (many != 1)} of the training."
        orange = " Orange: the pre-registered comparison, expected above 0." * any(" - " in name for name in names)
        footnote(fig, [legend + orange, note, *([SMOKE] if smoke else [])])
    return fig


def counting(found, *, paper: bool = False, column: str = "double"):
    """The counting toy: distance of the codes of two counts (upper row), what the bisimulation says (lower row), and the gradients' cosine.

    found: a `toys.Counting`. Returns a matplotlib Figure.
    """
    from matplotlib.colors import LogNorm

    names, rows = list(found.between), found.rows.groupby("setting", sort=False).mean(numeric_only=True)
    with look(paper):
        fig, axes = new_figure(WIDTH[column], 4.9, 3, len(names), height_ratios=(1, 1, 0.9))
        for ax, below, name in zip(axes[0], axes[1], names, strict=True):
            distance = np.where(np.eye(9, dtype=bool), np.nan, found.between[name])
            near = ax.imshow(distance, cmap="viridis", norm=LogNorm(0.005, 20))
            must = below.imshow(found.must[name], cmap="Greys", vmin=0, vmax=1.4)
            ax.set_title(name.replace(" + ", "\n+ ").replace(" alone", "\nalone"), fontsize=7)
            below.set_title(f"{rows.loc[name, 'classes']:.0f} class" + "es" * int(rows.loc[name, "classes"] > 1), fontsize=7)
            for each in (ax, below):
                each.set_xticks([0, 4, 8])
                each.set_yticks([0, 4, 8])
                each.tick_params(length=0, labelsize=6)
        axes[0, 0].set_ylabel("learnt codes\nobjects")
        axes[1, 0].set_ylabel("bisimulation\nobjects")
        with maths():  # powers of ten
            fig.colorbar(near, ax=axes[0], pad=0.01, label="distance")
        fig.colorbar(must, ax=axes[1], pad=0.01, label="must differ", boundaries=np.linspace(0, 1, 21), ticks=[0, 0.5, 1])
        _cosine_curves(fig, axes[2], found.curve)
        seeds = found.rows["seed"].nunique()
        unit = f"{seeds} seed{'s' * (seeds != 1)}. Distances in units of the untrained codes' mean distance."
        curves = " Below: means over seeds, bands: 95 % over seeds." if seeds > 1 else ""
        footnote(fig, [f"{unit} Grey: share of the pairs of observations with these counts that the theorem keeps apart.{curves}"])
    return fig


def _cosine_curves(fig, axes, curve: pd.DataFrame) -> None:
    """One wide panel in place of a row of small ones."""
    grid = axes[0].get_gridspec()
    for ax in axes:
        ax.remove()
    ax = fig.add_subplot(grid[2, :])
    for (name, part), colour in zip(curve.groupby("setting", sort=False), cycle(PALETTE), strict=False):
        ax.fill_between(part["step"], part["lo"], part["hi"], color=colour, alpha=0.15, linewidth=0)
        ax.plot(part["step"], part["cosine"], color=colour, linewidth=1.1, label=name)
    ax.axhline(0, color=INK, linewidth=0.6)
    ax.set_ylim(-1.05, 1.05)
    ax.set_xlabel("step")
    ax.set_ylabel("gradient cosine,\ntarget and transition")
    ax.grid(True, color=RULE)
    ax.set_axisbelow(True)
    ax.legend(loc="upper right", ncols=3)
