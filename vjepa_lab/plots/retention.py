"""The factor-retention matrix as a heat map: what each objective's encoder keeps of every factor of a clip."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..analysis.changes import factor_changes, one_encoder, over_seeds
from .style import INK, WIDTH, encoders_note, footnote, look, new_figure, smoke_note, span

KINDS = ("appearance", "place", "dynamics")
SHADES = ("#f7f5f0", "#cfe3da", "#8fcfbb", "#4a8fa0", "#1f3a5f")
"Pale to dark blue; luminance falls throughout, so grey print keeps the order."
UP, DOWN = "▲", "▼"


def retention(rows: pd.DataFrame, against: str = "baseline", *, paper: bool = False):
    """Objectives x factors: retention in percent (0: guessing, 100: all there is to know) with the half-width of its 95 % interval.

    rows: of `retention.retention`.  A triangle marks a difference from `against` that stands after correction (Benjamini-Hochberg over
    the matrix).  Returns an interactive plotly Figure, or with paper=True a matplotlib Figure.
    """
    table = over_seeds(rows, ["variant", "encoder", "factor", "kind"])
    several = table.groupby("encoder")["variant"].nunique().drop("random-init", errors="ignore").size > 1
    table["line"] = table["variant"] + (", " + table["encoder"] if several else "")
    marks = _marks(rows, against)
    table["mark"] = [marks.get((r.variant, r.encoder, r.factor), "") for r in table.itertuples()]
    lines = list(dict.fromkeys(table["line"]))
    factors = [f for kind in KINDS for f in dict.fromkeys(table.loc[table["kind"].eq(kind), "factor"])]
    draw = _matplotlib if paper else _plotly
    notes = _notes(table, {encoder for _, encoder, _ in marks}, against)
    return draw(table, lines, factors, [*notes, *filter(None, [encoders_note(rows)])])


def _marks(rows: pd.DataFrame, against: str) -> dict[tuple[str, str, str], str]:
    """(variant, encoder, factor) -> the triangle of a difference that stands, of the encoders that were compared (`one_encoder`)."""
    if against not in set(rows["variant"]) or rows["variant"].nunique() < 2:
        return {}
    found = factor_changes(rows, against)
    encoders = one_encoder(rows).groupby("variant")["encoder"].unique()
    return {
        (r.variant, encoder, r.factor): UP if r.delta > 0 else DOWN
        for r in found[found["significant"]].itertuples()
        for encoder in encoders[r.variant]
    }


def _grid(table: pd.DataFrame, column: str, lines: list[str], factors: list[str]) -> np.ndarray:
    return table.pivot_table(index="line", columns="factor", values=column, aggfunc="first").reindex(lines)[factors].to_numpy()


def _notes(table: pd.DataFrame, marked: set[str], against: str) -> list[str]:
    """marked: the encoders that have marks."""
    seeds = table.loc[table["encoder"].ne("random-init"), "seeds"]
    seeds = table["seeds"] if seeds.empty else seeds
    basis = "test sampling, one seed" if seeds.max() < 2 else f"{span(seeds.min(), seeds.max())} seeds"
    notes = [
        f"0: what guessing reaches; 100: all there is to know. ± half of the 95 % interval ({basis}; {table['n'].max():,.0f} test clips)."
    ]
    if marked:
        whose = " and ".join(f"{encoder}s" for encoder in sorted(marked - {"random-init"}))
        notes.append(f"{UP}{DOWN} differs from {against} by a point or more, after Benjamini-Hochberg correction over the matrix")
        notes[-1] += f" ({whose})." if whose else "."
    return notes + smoke_note(table)


def _matplotlib(table: pd.DataFrame, lines: list[str], factors: list[str], notes: list[str]):
    from matplotlib.colors import LinearSegmentedColormap

    value, half = (_grid(table, name, lines, factors) for name in ("value", "lo"))
    half, mark = (_grid(table, "hi", lines, factors) - half) / 2, _grid(table, "mark", lines, factors)
    with look():
        fig, axes = new_figure(WIDTH["double"], 0.27 * len(lines) + 1.25)
        ax = axes[0][0]
        shades = LinearSegmentedColormap.from_list("retention", SHADES)
        picture = ax.imshow(np.clip(value, 0, 100), cmap=shades, vmin=0, vmax=100, aspect="auto")
        for (y, x), known in np.ndenumerate(value):
            ink = "white" if known > 62 else INK
            ax.text(x, y - 0.06, f"{known:z.0f}{mark[y, x]}", ha="center", va="center", fontsize=7.5, color=ink)
            ax.text(x, y + 0.33, f"±{half[y, x]:.0f}", ha="center", va="center", fontsize=4.8, color=ink)
        ax.set_xticks(range(len(factors)), factors)
        ax.set_yticks(range(len(lines)), lines)
        ax.tick_params(length=0, top=False)
        ax.spines[:].set_visible(False)
        _group_names(ax, table, factors)
        fig.colorbar(picture, ax=ax, fraction=0.025, pad=0.012, label="retention (%)").outline.set_visible(False)
        footnote(fig, notes)
    return fig


def _group_names(ax, table: pd.DataFrame, factors: list[str]) -> None:
    """The kinds of factors above their columns, white lines between them."""
    kind = table.drop_duplicates("factor").set_index("factor")["kind"]
    for name in KINDS:
        at = [x for x, factor in enumerate(factors) if kind[factor] == name]
        if at:
            ax.text(np.mean(at), -0.62, name, ha="center", va="bottom", fontsize=8, style="italic")
            ax.axvline(at[-1] + 0.5, color="white", linewidth=3)


def _plotly(table: pd.DataFrame, lines: list[str], factors: list[str], notes: list[str]):
    import plotly.graph_objects as go

    value, lo, hi = (_grid(table, name, lines, factors) for name in ("value", "lo", "hi"))
    mark, n, seeds = (_grid(table, name, lines, factors) for name in ("mark", "n", "seeds"))
    text = [[f"{v:z.0f} {m}".strip() for v, m in zip(*row, strict=True)] for row in zip(value, mark, strict=True)]
    shades = [[k / (len(SHADES) - 1), shade] for k, shade in enumerate(SHADES)]
    fig = go.Figure(
        go.Heatmap(
            z=np.clip(value, 0, 100), x=factors, y=lines, zmin=0, zmax=100, colorscale=shades, xgap=2, ygap=2, text=text,
            texttemplate="%{text}", customdata=np.stack([value, lo, hi, n, seeds], axis=-1), colorbar={"title": "retention (%)"},
            hovertemplate="<b>%{y}</b>, %{x}<br>%{customdata[0]:.1f} % [%{customdata[1]:.1f}, %{customdata[2]:.1f}]"
            "<br>%{customdata[3]:.0f} test clips, seeds: %{customdata[4]}<extra></extra>",
        )
    )  # fmt: skip
    fig.add_annotation(
        text="<br>".join(notes), xref="paper", yref="paper", x=0, y=0, yshift=-28, xanchor="left", yanchor="top", align="left",
        showarrow=False, font_size=11,
    )  # fmt: skip
    fig.update_yaxes(autorange="reversed", ticks="")
    fig.update_xaxes(side="top", ticks="")
    fig.update_layout(
        template="simple_white",
        height=34 * len(lines) + 150,
        margin={"l": 10, "r": 10, "t": 40, "b": 80},
        font={"family": "Helvetica, Arial, sans-serif", "size": 12, "color": INK},
    )
    return fig
