"""Speed against resolution: clips per second with the fitted cost model, where a step's time goes, and what an objective costs."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pandas as pd

from ..evidence.stats import t_interval
from .style import INK, MARKERS, PALETTE, RULE, WIDTH, footnote, look, new_figure

SMOKE = "Smoke size: only shows that it runs."
PHASES = {"data": PALETTE[4], "forward": PALETTE[2], "backward": PALETTE[0], "optimiser": PALETTE[1]}


def _where(table: pd.DataFrame) -> str:
    """Machine, precision, batch and, where the table tells, the encoder and its clips."""
    first = table.iloc[0]
    machine = f"{first['device']}, {'bf16' if first['bf16'] else 'fp32'}, batch {first['batch']}"
    return machine + (f"; encoders of {first['encoder']}, on {first['data']}" if "encoder" in first else "")


def throughput(table: pd.DataFrame, summed: pd.DataFrame, model: pd.DataFrame, *, smoke: bool = False, interactive: bool = True,
               paper: bool = False, column: str = "double"):  # fmt: skip
    """Clips per second against resolution with the cost model's curve, and the local exponent of the time beside that of the FLOPs.

    table, summed: of `throughput.finetuning`, `summary`;  model: of `cost_model`. `paper=True` or `interactive=False` give a matplotlib
    Figure, otherwise a plotly one.
    """
    if interactive and not paper:
        return _plotly(table, summed, model, smoke)
    batch, names = table["batch"].iloc[0], list(dict.fromkeys(summed["objective"]))
    with look(paper):
        fig, axes = new_figure(WIDTH[column], 2.75, 1, 3)
        speed, slope, memory = axes[0]
        for k, frames in enumerate(sorted(summed["frames"].unique())):
            colour = PALETTE[k]
            for mark, name in zip(cycle(MARKERS), names, strict=False):
                part = summed[summed["frames"].eq(frames) & summed["objective"].eq(name)]
                ends = np.abs(1e3 * batch / part[["hi", "lo"]].to_numpy().T - part["clips_per_s"].to_numpy())
                at, how = part["resolution"], {"markersize": 3, "color": colour, "markerfacecolor": "white"}
                speed.errorbar(at, part["clips_per_s"], ends, fmt=mark, linewidth=0.7, **how)
                memory.plot(at, part["memory_mb"] / 1024, mark, **how)
            fit = model[model["frames"].eq(frames)].sort_values("resolution")
            speed.plot(fit["resolution"], 1e3 / fit["fitted"], color=colour, linewidth=1, label=f"{frames} frames")
            slope.fill_between(fit["resolution"], fit["lo"], fit["hi"], color=colour, alpha=0.18, linewidth=0)
            slope.plot(fit["resolution"], fit["exponent"], color=colour, linewidth=1.1)
            slope.plot(fit["resolution"], fit["flop_exponent"], color=colour, linewidth=0.9, linestyle="--")
        for ax, label in ((speed, "clips per second"), (memory, "peak memory (GiB)")):
            ax.set_yscale("log")
            ax.set_ylabel(label)
        slope.set_ylabel("local exponent d log t / d log R")
        for ax in axes[0]:
            ax.set_xscale("log")
            ticks = _ticks(sorted(summed["resolution"].unique()))
            ax.set_xticks(ticks, [str(r) for r in ticks], rotation=45)
            ax.minorticks_off() if ax is not memory else ax.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
            ax.set_xlabel("resolution R (pixels)")
            ax.grid(True, color=RULE)
            ax.set_axisbelow(True)
        speed.legend(loc="lower left")
        _plain_numbers(speed, memory)
        marks = ", ".join(f"{mark} {name}" for mark, name in zip(cycle(MARKERS.values()), names, strict=False))
        blocks = summed["blocks"].min()
        notes = [f"{_where(table)}.", f"Medians and 95 % intervals over {blocks} blocks. Objectives: {marks}."]
        notes.append("Left, line: log(c0 + a N + b N²) fitted.")
        notes.append("Middle: solid, of the measured time with its 95 % band; dashed, of the FLOPs.")
        footnote(fig, [*notes, *([SMOKE] if smoke else [])])
    return fig


def _ticks(resolutions: list[int]) -> list[int]:
    """Resolutions to label on a logarithmic axis: those at least a sixth apart."""
    kept = resolutions[:1]
    for r in resolutions[1:]:
        if r >= kept[-1] * 1.16:
            kept.append(r)
    return kept


def _plain_numbers(*axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for ax in axes:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())


def step_split(summed: pd.DataFrame, *, smoke: bool = False, paper: bool = False, column: str = "double"):
    """Where the time of a fine-tuning step goes: shares of data, forward, backward and optimiser, a bar per resolution, a panel per frames.

    Means over objectives. Returns a matplotlib Figure.
    """
    counts = sorted(summed["frames"].unique())
    with look(paper):
        fig, axes = new_figure(WIDTH[column], 2.2, 1, len(counts), sharey=True)
        for ax, frames in zip(axes[0], counts, strict=True):
            part = summed[summed["frames"].eq(frames)].groupby("resolution")[[f"{p}_ms" for p in PHASES]].mean()
            share = 100 * part.div(part.sum(axis=1), axis=0)
            low = np.zeros(len(share))
            for phase, colour in PHASES.items():
                height = share[f"{phase}_ms"].to_numpy()
                ax.bar(range(len(share)), height, 0.8, bottom=low, color=colour, edgecolor=INK, linewidth=0.3, label=phase)
                low += height
            ax.set_xticks(range(len(share)), [str(r) for r in share.index], rotation=45)
            ax.set_title(f"{frames} frames", fontsize=7.5)
            ax.set_xlabel("resolution (pixels)")
        axes[0, 0].set_ylabel("share of the step (%)")
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
        footnote(fig, [f"{_where(summed)}. Medians over {summed['blocks'].min()} blocks, means over objectives."] + [SMOKE] * smoke)
    return fig


def same_speed(equal: pd.DataFrame, *, smoke: bool = False, paper: bool = False, column: str = "single"):
    """Does fine-tuning depend on the objective? Differences of a step's time in percent with their 90 % intervals, the margin as a band.

    equal: rows of `throughput.equivalence`. Filled: equivalent at 5 %. Returns a matplotlib Figure.
    """
    rows = equal.sort_values(["objective", "frames", "resolution"], ignore_index=True)
    margin = rows["margin"].iloc[0]
    with look(paper):
        fig, axes = new_figure(WIDTH[column], 0.12 * len(rows) + 1.15)
        ax = axes[0, 0]
        ax.axvspan(-margin, margin, color=PALETTE[2], alpha=0.3, linewidth=0)
        ax.axvline(0, color=INK, linewidth=0.7)
        for i, row in enumerate(rows.itertuples()):
            ax.hlines(i, row.lo, row.hi, color=INK, linewidth=0.9)
            ax.plot(row.difference, i, "o", markersize=3.2, color=INK, markerfacecolor=PALETTE[0] if row.equivalent else "white", zorder=3)
        names = [f"{row.objective}, {row.frames} x {row.resolution}²" for row in rows.itertuples()]
        ax.set_yticks(range(len(rows)), names, fontsize=5.5)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlabel("time of a step against the baseline's encoder (%)")
        ax.tick_params(axis="y", length=0)
        note = f"90 % intervals over {rows['blocks'].min()} blocks; band: ±{margin:g} %. Filled: within it (two one-sided tests, 5 %)."
        footnote(fig, [f"{_where(rows)}.", note, *([SMOKE] if smoke else [])])
    return fig


def pretraining_cost(table: pd.DataFrame, *, smoke: bool = False, paper: bool = False, column: str = "single"):
    """What a pretraining step costs against that of one recipe: measured with its 95 % interval over blocks, beside analytic FLOPs.

    table: rows of `throughput.pretraining`, whose column `against` names that recipe; without the column, the baseline. Returns a
    matplotlib Figure.
    """
    against = table["against"].iloc[0] if "against" in table else "baseline"
    names = list(dict.fromkeys(table["variant"]))
    with look(paper):
        fig, axes = new_figure(WIDTH[column], 0.2 * len(names) + 1.1)
        ax = axes[0, 0]
        for i, name in enumerate(names):
            part = table[table["variant"].eq(name)]
            middle = float(np.exp(np.log(part["ratio"]).mean()))
            ax.barh(i, middle, 0.7, color=PALETTE[2], edgecolor=INK, linewidth=0.3, label="measured time" if i == 0 else None)
            if len(part) > 1 and part["ratio"].nunique() > 1:
                ends = t_interval(np.log(part["ratio"]))
                ax.hlines(i, np.exp(ends.lo), np.exp(ends.hi), color=INK, linewidth=0.9)
            ax.plot(part["analytic"].iloc[0], i, "D", markersize=4, color=PALETTE[1], markeredgecolor=INK, markeredgewidth=0.4,
                    label="FLOPs" if i == 0 else None)  # fmt: skip
        ax.axvline(1, color=INK, linewidth=0.7)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.set_xlabel(f"pretraining step against that of {against}")
        ax.tick_params(axis="y", length=0)
        ax.xaxis.grid(True)
        ax.set_axisbelow(True)
        fig.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=2)
        note = f"{_where(table)}, preset {table['preset'].iloc[0]}; 95 % intervals over {table['block'].nunique()} blocks."
        footnote(fig, [note, *([SMOKE] if smoke else [])])
    return fig


def _plotly(table: pd.DataFrame, summed: pd.DataFrame, model: pd.DataFrame, smoke: bool):
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    fig = make_subplots(1, 2, subplot_titles=["clips per second", "local exponent d log t / d log R"], horizontal_spacing=0.1)
    for k, frames in enumerate(sorted(summed["frames"].unique())):
        colour = PALETTE[k]
        part = summed[summed["frames"].eq(frames)]
        text = [
            f"<b>{r.objective}</b>, {r.frames} frames, {r.resolution} pixels, {r.tokens:.0f} tokens<br>{r.clips_per_s:.2f} clips/s, "
            f"{r.tokens_per_s:,.0f} tokens/s, {r.ms:.1f} ms [{r.lo:.1f}, {r.hi:.1f}]<br>"
            f"{r.gflop:.1f} GFLOP per clip, {r.tflop_per_s:.2f} TFLOP/s, {r.memory_mb:,.0f} MiB"
            + ("" if np.isnan(r.joule_per_clip) else f", {r.joule_per_clip:.2f} J per clip")
            for r in part.itertuples()
        ]
        how = {
            "mode": "markers",
            "marker": {"size": 7, "color": colour},
            "customdata": text,
            "hovertemplate": "%{customdata}<extra></extra>",
        }
        fig.add_trace(go.Scatter(x=part["resolution"], y=part["clips_per_s"], showlegend=False, **how), 1, 1)
        fit = model[model["frames"].eq(frames)].sort_values("resolution")
        line = {"mode": "lines", "line": {"color": colour}}
        fig.add_trace(go.Scatter(x=fit["resolution"], y=1e3 / fit["fitted"], name=f"{frames} frames", **line), 1, 1)
        around = {"x": [*fit["resolution"], *fit["resolution"][::-1]], "y": [*fit["hi"], *fit["lo"][::-1]], "fill": "toself"}
        hidden = {"line": {"width": 0}, "opacity": 0.2, "fillcolor": colour, "showlegend": False, "hoverinfo": "skip"}
        band = go.Scatter(**around, **hidden, mode="lines")
        fig.add_trace(band, 1, 2)
        fig.add_trace(go.Scatter(x=fit["resolution"], y=fit["exponent"], showlegend=False, **line), 1, 2)
        dashed = {"color": colour, "dash": "dash"}
        name = f"{frames} frames, FLOPs"
        fig.add_trace(go.Scatter(x=fit["resolution"], y=fit["flop_exponent"], mode="lines", line=dashed, name=name), 1, 2)
    fig.update_xaxes(type="log", title_text="resolution R (pixels)", tickvals=_ticks(sorted(summed["resolution"].unique())))
    fig.update_yaxes(type="log", row=1, col=1)
    fig.update_layout(
        template="simple_white", height=420, margin={"l": 10, "r": 10, "t": 70, "b": 10},
        title={"text": f"Fine-tuning, {_where(table)}" + (f". {SMOKE}" if smoke else ""), "font_size": 14},
        font={"family": "Helvetica, Arial, sans-serif", "size": 12, "color": INK},
    )  # fmt: skip
    return fig
