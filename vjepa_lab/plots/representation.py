"""What shape each objective's representation has: measures block by block, likeness between encoders, and the halves Z_app and Z_dyn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..analysis.changes import over_seeds
from .retention import SHADES
from .style import INK, PALETTE, RULE, WIDTH, colours, encoders_note, footnote, key, look, maths, named_rows, new_figure, smoke_note, span

TITLES = {
    "rankme": "effective rank (RankMe)",
    "lidar": "LiDAR",
    "alpha-req": "spectrum's decay α",
    "participation-ratio": "participation ratio",
    "temporal-variance": "share of variance in time",
    "straightness": "straightness of paths",
    "speed": "length of a step",
    "std": "spread of channels",
}
UNTRAINED = {"color": "#777777", "linestyle": (0, (2, 1.5))}


def representation(rows: pd.DataFrame, metrics: Sequence[str] | None = None, *, encoder: str = "student", paper: bool = False):
    """Every measure against the block, a line per objective, the untrained encoder dashed; bands: 95 % intervals over three or more seeds.

    Of two seeds each is drawn, thin: Student's interval of two would fill every panel.

    rows: of `representation.measures`.  Returns a matplotlib Figure.
    """
    own = rows[rows["part"].eq("all") & rows["encoder"].isin([encoder, "random-init"])]
    wanted = [name for name in metrics or TITLES if own["metric"].eq(name).any()]
    table = over_seeds(own[own["metric"].isin(wanted)], ["metric", "variant", "block"])
    look_of = _looks(table["variant"].unique())
    columns = min(4, len(wanted))
    with look(paper):
        lines = -(-len(wanted) // columns)
        fig, axes = new_figure(WIDTH["double"], 1.55 * lines + 0.75, lines, columns)
        for ax, name in zip(axes.flat, wanted, strict=False):
            _lines(ax, table[table["metric"].eq(name)], look_of, own[own["metric"].eq(name)])
            ax.set_title(TITLES.get(name, name))
            ax.set_xlabel("block")
        for ax in list(axes.flat)[len(wanted) :]:
            ax.set_visible(False)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        key(fig, handles, labels, most=5)
        footnote(fig, [f"{_seen(own)} {encoders_note(own)}", *_notes(table)])
    return fig


def likeness(rows: pd.DataFrame, against: str = "baseline", *, within: Sequence[str] | None = None, paper: bool = False):
    """Linear CKA: to `against` block by block (left), and of every block with every other inside single encoders (right).

    rows: of `representation.measures`.  within: variants whose blocks are compared, by default the first four and the untrained one.
    The grey band is what `against` reaches with itself under another seed: likeness above it says nothing of the objective.
    Returns a matplotlib Figure. Raises ValueError where no row is a likeness to `against`.
    """
    own = rows[rows["encoder"].isin(["student", "random-init"])]
    between = over_seeds(own[own["metric"].eq("cka") & own["of"].eq(against)], ["variant", "block"])
    inside = own[own["metric"].eq("cka-within")]
    known = list(dict.fromkeys(inside["variant"]))
    if between.empty:
        raise ValueError(f"no {against!r} to compare with; there are {', '.join(known)}")
    names = list(within or [*[name for name in known if name != "random-init"][:4], *[name for name in known if name == "random-init"]])
    null = own[own["metric"].eq("cka") & own["of"].eq("another seed") & own["variant"].eq(against)].groupby("block")["value"]
    with look(paper):
        fig, axes = new_figure(WIDTH["double"], 2.45, 1, 1 + len(names), width_ratios=[1.7] + [1] * len(names))
        ax = axes[0][0]
        if len(null):
            ax.fill_between(null.min().index, null.min(), null.max(), color=RULE, label=f"{against}, seed to seed", linewidth=2)
        _lines(ax, between, _looks(known))
        low = min([*between[["value", "lo"]].min(), *null.min(), 0.9])
        ax.set(xlabel="block", ylim=(max(low, 0) - 0.03, 1.02))
        ax.set_title(f"CKA with {against}")
        key(fig, *ax.get_legend_handles_labels())
        for ax, name in zip(axes[0][1:], names, strict=True):
            _matrix(ax, inside[inside["variant"].eq(name)], name)
        band = f" Grey: {against} against itself under other seeds, from the least to the most." if len(null) else ""
        says = f"CKA: 1 for a rotated copy, 0 for nothing shared; debiased. {_seen(inside)} Right: blocks of one encoder.{band}"
        footnote(fig, [f"{says} {encoders_note(own)}", *_notes(between)])
    return fig


def halves(rows: pd.DataFrame, *, paper: bool = False):
    """The factorisation gap of each encoder against random halves (left), and what each half knows (right).

    rows: of `halves.halves`.  Left: G with its 95 % interval; the band spans 95 % of random halves, the diamond is the split by principal
    components with its own.  Right: appearance and dynamics read from Z, Z_app and Z_dyn; the cross: dynamics from clips that stand still.
    Returns a matplotlib Figure.
    """
    table = over_seeds(rows, ["variant", "encoder", "metric", "part"])
    several = rows[rows["encoder"].ne("random-init")]["encoder"].nunique() > 1
    table["line"] = table["variant"] + (", " + table["encoder"] if several else "")
    lines = list(dict.fromkeys(table["line"]))
    band = rows[rows["metric"].eq("gap") & rows["part"].eq("random")].groupby(["variant", "encoder"])[["lo", "hi"]].mean()
    with look(paper):
        fig, axes = new_figure(WIDTH["double"], 0.3 * len(lines) + 1.35, 1, 3, sharey=True)
        _gaps(axes[0][0], table[table["metric"].eq("gap")], lines, band)
        for ax, kind in zip(axes[0][1:], ("appearance", "dynamics"), strict=True):
            _scores(ax, table, kind, lines)
        for ax in axes[0]:
            ax.set_ylim(len(lines) - 0.5, -0.5)
            named_rows(ax, len(lines))
        axes[0][0].set_yticks(range(len(lines)), lines)
        handles = [handle for ax in axes[0][[0, 2]] for handle in zip(*ax.get_legend_handles_labels(), strict=True)]
        with maths():  # the halves' symbols
            fig.legend(*zip(*handles, strict=True), loc="outside upper center", ncols=4, columnspacing=1.2, handletextpad=0.4)
        scores = f"Scores: accuracy corrected for chance, 0 guessing, 1 perfect; {table['n'].max():,.0f} test clips."
        says = f"{scores} Grey: 95 % of random halves."
        footnote(fig, [f"{says} {encoders_note(rows)}", *_notes(table)])
    return fig


def _gaps(ax, table: pd.DataFrame, lines: list[str], band: pd.DataFrame) -> None:
    for k, line in enumerate(lines):
        part = table[table["line"].eq(line)].set_index("part")
        name = part[["variant", "encoder"]].iloc[0]
        lo, hi = band.loc[tuple(name)]
        alpha = 0.4 if part["smoke"].any() else 1.0
        ax.barh(k, hi - lo, 0.62, left=lo, color=RULE, zorder=1, label="random halves" if k == 0 else None)
        ax.hlines(k, part.at["pca", "lo"], part.at["pca", "hi"], color=INK, linewidth=0.6, alpha=alpha, zorder=2)
        ax.scatter(part.at["pca", "value"], k, s=14, marker="D", facecolor="white", edgecolor=INK, linewidth=0.6, zorder=3,
                   label="halves of principal components" if k == 0 else None)  # fmt: skip
        ax.hlines(k, part.at["app", "lo"], part.at["app", "hi"], color=PALETTE[0], linewidth=1.1, alpha=alpha, zorder=4)
        ax.scatter(
            part.at["app", "value"], k, s=18, color=PALETTE[0], alpha=alpha, zorder=5, label=r"$Z_{app}$ / $Z_{dyn}$" if k == 0 else None
        )
    ax.axvline(0, color=INK, linewidth=0.6)
    ax.set_xlabel("factorisation gap G")


def _scores(ax, table: pd.DataFrame, kind: str, lines: list[str]) -> None:
    marks = {"all": ("o", PALETTE[5], "Z"), "app": ("s", PALETTE[1], r"$Z_{app}$"), "dyn": ("^", PALETTE[0], r"$Z_{dyn}$")}
    for shift, (part, (marker, colour, label)) in zip((-0.22, 0, 0.22), marks.items(), strict=True):
        own = table[table["metric"].eq(kind) & table["part"].eq(part)]
        y = np.array([lines.index(line) for line in own["line"]]) + shift
        ax.hlines(y, own["lo"], own["hi"], color=colour, linewidth=0.9, zorder=2)
        ax.scatter(own["value"], y, s=14, marker=marker, color=colour, edgecolor=INK, linewidth=0.3, zorder=3, label=label)
    stopped = table[table["metric"].eq(f"frozen-{kind}") & table["part"].eq("all")]
    if len(stopped):
        y = np.array([lines.index(line) for line in stopped["line"]]) - 0.22
        ax.scatter(stopped["value"], y, s=16, marker="x", color=INK, linewidth=0.8, zorder=4, label="Z, clips stopped")
    ax.axvline(0, color=INK, linewidth=0.6)
    ax.set_xlabel(f"{kind} read")


def _looks(names: Sequence[str]) -> dict[str, dict]:
    trained = [name for name in names if name != "random-init"]
    return {name: {"color": colour} for name, colour in colours(trained).items()} | {"random-init": UNTRAINED}


def _lines(ax, table: pd.DataFrame, look_of: dict[str, dict], single: pd.DataFrame | None = None) -> None:
    """Means over seeds of `table`, with bands, or with the rows of the two seeds in `single`."""
    for name, part in table.groupby("variant", sort=False):
        part = part.sort_values("block")
        alpha = 0.5 if part["smoke"].any() else 1.0
        ax.plot(part["block"], part["value"], marker="o", markersize=2.5, linewidth=1.2, alpha=alpha, label=name, **look_of[name])
        if part["seeds"].max() > 2:
            ax.fill_between(part["block"], part["lo"], part["hi"], color=look_of[name]["color"], alpha=0.12, linewidth=0)
        elif single is not None and part["seeds"].max() == 2:
            for _, seed in single[single["variant"].eq(name)].groupby("seed"):
                seed = seed.sort_values("block")
                ax.plot(seed["block"], seed["value"], linewidth=0.5, alpha=0.45, color=look_of[name]["color"])
    ax.xaxis.get_major_locator().set_params(integer=True)


def _matrix(ax, rows: pd.DataFrame, name: str) -> None:
    blocks = int(rows[["block", "other"]].max().max())
    values = np.eye(blocks)
    for (i, j), value in rows.groupby(["block", "other"])["value"].mean().items():
        values[int(i) - 1, int(j) - 1] = values[int(j) - 1, int(i) - 1] = value
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("likeness", SHADES)
    ax.imshow(values, cmap=shades, vmin=0, vmax=1, origin="lower", extent=(0.5, blocks + 0.5, 0.5, blocks + 0.5))
    for (i, j), value in np.ndenumerate(values) if blocks <= 6 else ():
        ax.text(
            j + 1, i + 1, f"{value:.2f}".removeprefix("0"), ha="center", va="center", fontsize=5, color="white" if value > 0.62 else INK
        )
    ticks = range(1, blocks + 1, max(1, blocks // 4))
    ax.set_xticks(ticks)
    ax.set_yticks(ticks)
    ax.set_title(name, fontsize=7)
    ax.set_xlabel("block")


def _seen(rows: pd.DataFrame) -> str:
    """The clips that the encoders looked at."""
    return f"{span(rows['n'].min(), rows['n'].max(), ',.0f')} clips of {', '.join(rows['benchmark'].unique())}."


def _notes(table: pd.DataFrame) -> list[str]:
    if table.empty:
        return []
    low, high = int(table["seeds"].min()), int(table["seeds"].max())
    many = f"95 % intervals over {span(low, high)} seeds."
    basis = {
        1: "One seed: no interval over seeds.",
        2: "Means over two seeds; thin lines are single seeds, intervals Student's over the two.",
    }
    return [basis.get(high, many), *smoke_note(table)]
