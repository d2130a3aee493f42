"""Figure 2 on the screen: the bars of `bars.tradeoffs` as plain data for plotly, with everything known of each in its hover text.

Plain data, since plotly's own objects check each value: that takes longer than all else, too long for a figure that follows a control.
Margins are given, too: a browser that must find them lays the figure out twice.
"""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import pandas as pd

from .style import DAGGER, INK, PALE, RULE, SOURCES, colours, parted, patterns

SIZE = 12
"Of letters, in pixels."
ABOVE, FOOT, BETWEEN = 120, 62, 110
"Room in pixels: above the panels, below them to the notes, and between panels that stand one above the other."
ENTRY = 35
"Pixels of an entry of a menu."
LONGEST = 300
"Pixels of a row's name, at most: longer ones stand in several lines."
SMALL = 11
"Of the notes' letters."
EMPTY = " "
"Stands in a panel without rows: given no names at all, plotly shows the first ones that it knows."
MENU = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "bgcolor": "white", "bordercolor": PALE}
"Where all menus stand: between the legend and the panels' titles."


def spec(
    panels: Mapping[str, pd.DataFrame],
    rankings: Mapping[str, Sequence[Sequence[str]]],
    labels: Mapping[str, str],
    *,
    benchmarks: Sequence[str],
    against: str,
    notes: Sequence[str],
    shared: bool,
    families: Mapping[str, Iterable[str]],
) -> dict:
    """{"data": traces, "layout": ...}, which plotly.graph_objects.Figure takes.

    panels      comparisons of one source, edition and regime each, by title
    rankings    {how they are sorted: the variants of each panel, top down}; the first is shown, a menu offers the others
    labels      variant -> the name that is shown
    benchmarks  all of them, each panel's in this order
    notes       lines below the figure
    shared      panels side by side with one list of names; else one above the other
    families    {what objectives are made with: the variants made with it}, which a menu filters by

    Menus and the switch of the intervals act in the page, so without a kernel and in a saved page too.
    """
    labels = {variant: "<br>".join(parted(label, lambda text: _width([text]) <= LONGEST).split("\n")) for variant, label in labels.items()}
    orders = next(iter(rankings.values()))
    colour, pattern = colours(benchmarks), patterns(benchmarks)
    groups = [_by_benchmark(part.assign(name=part["variant"].map(labels)), benchmarks) for part in panels.values()]
    stack = Stack(tuple(15 * len(group) + 8 for group in groups), shared)
    layout = copy.deepcopy(_grid(tuple(title.replace("\n", "<br>") for title in panels), shared))
    for place, value in stack.places([len(order) for order in orders]).items():
        where, key = place.split(".")
        (layout["annotations"][int(where[12:-1])] if where.startswith("annotations") else layout[where])[key] = value
    same = shared and len({frozenset(group) for group in groups}) == 1
    traces, lines, legend = [], [], set()
    ends = ["", *range(2, len(panels) + 1)]  # plotly's own numbers of axes
    for order, group, end in zip(orders, groups, ends, strict=True):
        own = "" if shared else end  # side by side, one axis has the names of all
        on = {"xaxis": f"x{end}", "yaxis": f"y{own}"}
        for benchmark, rows in group.items():
            look = {"color": colour[benchmark], "pattern": {"shape": pattern[benchmark], "size": 5, "solidity": 0.25, "fgcolor": "white"}}
            traces += [on | _bars(rows, benchmark, look, against, benchmark not in legend), on | _daggers(rows, benchmark)]
            legend.add(benchmark)
        line = {"color": INK, "width": 1}
        lines.append({"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "xref": f"x{end}", "yref": f"y{own} domain", "line": line})
        names = [labels[name] for name in order]
        y = {"categoryorder": "array", "categoryarray": names, "range": _range(names), "showgrid": False, "ticks": ""}
        x = {"title": {"text": f"difference from {against} (pp)"}, "showgrid": True, "gridcolor": RULE, "zeroline": False}
        layout[f"yaxis{own}"] |= y | {"automargin": False}
        layout[f"xaxis{end}"] |= x | {"automargin": False} | ({"matches": "x"} if same else {})
    written = [line for note in notes for line in textwrap.wrap(note, 110)]
    below = FOOT + round(1.3 * SMALL * len(written)) + 12
    layout |= {
        "template": template(),
        "annotations": [note | {"font": {"size": 13}} for note in layout["annotations"]] + [_written(written)],
        "shapes": lines,
        "barmode": "group",
        "scattermode": "group",
        "bargap": 0.25,
        "height": stack.height([len(order) for order in orders]) + ABOVE + below,
        "margin": {"l": _width(labels[name] for order in orders for name in order), "r": 14, "t": ABOVE, "b": below},
        "legend": {
            "orientation": "h", "x": 0, "y": 1, "xanchor": "left", "yanchor": "top", "yref": "container", "itemsizing": "constant",
        },
        "font": {"family": "Helvetica, Arial, sans-serif", "size": SIZE, "color": INK},
    }  # fmt: skip
    layout["updatemenus"] = _menus(rankings, labels, families, stack, below)
    if any(any(trace["error_x"]["array"]) for trace in traces[::2]):
        layout["updatemenus"].append(_switch(traces))
    return {"data": traces, "layout": layout}


@dataclass(frozen=True)
class Stack:
    """How much room panels take, with so many rows each, and where each of them stands.

    each    pixels of a row of each panel
    shared  side by side with one axis of names; else one above the other
    """

    each: tuple[int, ...]
    shared: bool

    def height(self, counts: Sequence[int]) -> int:
        pixels = self._pixels(counts)
        return max(pixels) if self.shared else sum(pixels) + BETWEEN * (len(pixels) - 1)

    def places(self, counts: Sequence[int]) -> dict:
        """{plotly's name of an axis' or a title's place: where it is, of the whole height}; nothing where panels stand side by side."""
        if self.shared:
            return {}
        found, top, height = {}, 0, self.height(counts)
        for k, pixels in enumerate(self._pixels(counts)):
            end, upper, lower = "" if k == 0 else k + 1, 1 - top / height, 1 - (top + pixels) / height
            found |= {f"yaxis{end}.domain": [max(lower, 0), upper], f"annotations[{k}].y": upper}
            top += pixels + BETWEEN
        return found

    def axes(self) -> list[str]:
        """Plotly's names of the axes of rows, a panel each, or one for all."""
        return ["yaxis"] if self.shared else ["yaxis", *(f"yaxis{k}" for k in range(2, len(self.each) + 1))]

    def _pixels(self, counts: Sequence[int]) -> list[int]:
        return [max(count, 1) * each for count, each in zip(counts, self.each, strict=True)]


@cache
def template() -> dict:
    """Plotly's white look as plain data."""
    from plotly import io

    return io.templates["simple_white"].to_plotly_json()


@lru_cache(maxsize=64)
def _grid(titles: tuple[str, ...], shared: bool) -> dict:
    """Axes and titles of panels: side by side with one axis of names, or one above the other."""
    from plotly.subplots import make_subplots

    shape = {"rows": 1, "cols": len(titles), "horizontal_spacing": 0.03} if shared else {"rows": len(titles), "cols": 1}
    layout = make_subplots(**shape, subplot_titles=titles).layout.to_plotly_json()
    del layout["template"]
    if shared:  # axes that only match would not do: plotly keeps the first order of their names, whatever a menu asks for
        for end in range(2, len(titles) + 1):
            del layout[f"yaxis{end}"]
            layout[f"xaxis{end}"]["anchor"] = "y"
    return layout


def _by_benchmark(part: pd.DataFrame, benchmarks: Sequence[str]) -> dict[str, pd.DataFrame]:
    found = dict(list(part.groupby("benchmark", sort=False)))
    return {name: found[name] for name in benchmarks if name in found}


def _width(names: Iterable[str]) -> int:
    """Pixels that the longest line of some names needs, at most: the advances of Arial, capitals and others."""
    lines = [line for name in names for line in name.split("<br>")]
    return int(SIZE * max(sum(0.75 if letter.isupper() else 0.56 for letter in line) for line in lines)) + 12


def _written(lines: Sequence[str]) -> dict:
    """The notes below the figure."""
    place = {"xref": "paper", "yref": "paper", "x": 0, "y": 0, "yshift": -FOOT, "xanchor": "left", "yanchor": "top"}
    return place | {"text": "<br>".join(lines), "showarrow": False, "align": "left", "font": {"size": SMALL}}


def _bars(rows: pd.DataFrame, benchmark: str, look: dict, against: str, showlegend: bool) -> dict:
    return {
        "type": "bar",
        "x": rows["delta"].tolist(),
        "y": rows["name"].tolist(),
        "orientation": "h",
        "name": benchmark,
        "meta": rows[["variant", "edition"]].astype(object).fillna("").to_numpy().tolist(),  # what tells the objective
        "legendgroup": benchmark,
        "offsetgroup": benchmark,
        "showlegend": showlegend,
        "marker": look | {"line": {"color": INK, "width": 0.5}, "opacity": np.where(rows["smoke"], 0.35, 1.0).tolist()},
        "error_x": {
            "symmetric": False,
            "array": (rows["hi"] - rows["delta"]).tolist(),
            "arrayminus": (rows["delta"] - rows["lo"]).tolist(),
            "thickness": 1.3,
            "width": 0,
            "color": "#7d828a",  # mid grey shows on the dark bars and on white
        },
        "customdata": [_about(row, against) for row in rows.itertuples(index=False)],
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def _daggers(rows: pd.DataFrame, benchmark: str) -> dict:
    """Marks beside the bars that are no better than a constant."""
    rows = rows[rows["flag"].ne("")]
    return {
        "type": "scatter",
        "x": rows["hi"].clip(lower=0).tolist(),
        "y": rows["name"].tolist(),
        "mode": "text",
        "text": DAGGER,
        "textposition": "middle right",
        "textfont": {"size": 9},
        "legendgroup": benchmark,
        "offsetgroup": benchmark,
        "orientation": "h",
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _about(r, against: str) -> str:
    """Everything known of one bar, in lines."""
    basis = {"seeds": "over seed pairs", "seeds, unpaired": "over seeds that do not pair up", "samples": "test sampling only"}[r.basis]
    edition = f", edition {r.edition}" * (r.source == "run" and isinstance(r.edition, str))
    where = f", pretrained on {r.regime}" * isinstance(r.regime, str)
    lines = [
        f"<b>{r.name}</b>, {r.benchmark} ({r.probe})",
        f"{SOURCES.get(r.source, r.source)}{edition}{where}",
        f"{r.value:.2f} % against {r.base:.2f} % of {against}: <b>{r.delta:+.2f} pp</b>",
        f"95 % interval {r.lo:+.2f} to {r.hi:+.2f} ({basis})",
        f"{r.seeds} seed{'s' * (r.seeds != 1)}, n " + ("unknown" if np.isnan(r.n) else f"= {r.n:,.0f}"),
        f"no better than a constant predictor ({r.flag})" if r.flag else "",
        "an untrained encoder was measured" if r.random_init else "",
        "demonstration size: not evidence" if r.smoke else "",
    ]
    return "<br>".join(filter(None, lines))


def _menus(
    rankings: Mapping[str, Sequence[Sequence[str]]],
    labels: Mapping[str, str],
    families: Mapping[str, Iterable[str]],
    stack: Stack,
    below: int,
) -> list[dict]:
    """A drop-down of the families, and for each of them that has several rows one that sorts it, of which one is to be seen.

    Both set the order of the rows' names, so a choice in the first shows its own second one, which starts with the first ranking. The first
    list hangs over the rows: where they are too few for it there is more room below the figure, whose other room below is `below` pixels.
    No menu where there is nothing to choose.
    """
    orders = next(iter(rankings.values()))
    everyone = {name for order in orders for name in order}
    choices = {"all objectives": everyone} | {_made(part): set(names) for part, names in families.items()}

    def rows(shown: set[str], ranking: Sequence[Sequence[str]]) -> dict:
        """The names on top, and a range that ends below the last of them."""
        found = {}
        for axis, order in zip(stack.axes(), ranking, strict=False):
            names = [labels[name] for name in order if name in shown] or [EMPTY]
            found |= {f"{axis}.categoryarray": names, f"{axis}.range": _range(names)}
        return found

    least = ABOVE + ENTRY * len(choices)
    counts = {label: [len(shown.intersection(order)) for order in orders] for label, shown in choices.items()}
    sorted_too = [label for label, numbers in counts.items() if max(numbers) > 1 and len(rankings) > 1]
    filters, sorts = [], []
    for label, shown in choices.items():
        others = {}
        for k, name in enumerate(sorted_too, 1):
            others |= {f"updatemenus[{k}].visible": name == label} | ({f"updatemenus[{k}].active": 0} if name == label else {})
        height = stack.height(counts[label]) + ABOVE + below
        room = {"height": max(height, least), "margin.b": below + max(least - height, 0)}
        filters.append(_button(label, rows(shown, orders) | stack.places(counts[label]) | others | room))
        if label in sorted_too:
            buttons = [_button(text, rows(shown, ranking)) for text, ranking in rankings.items()]
            sorts.append(MENU | {"buttons": buttons, "pad": {"b": 62, "l": 170 * bool(families)}, "visible": not sorts})
    return [MENU | {"buttons": filters, "pad": {"b": 62}}, *sorts] if families else sorts


def _made(part: str) -> str:
    return "own objectives" if part == "own" else f"with {part}"


def _range(names: Sequence[str]) -> list[float]:
    return [len(names) - 0.5, -0.5]


def _switch(traces: Sequence[dict]) -> dict:
    """A button that hides the whiskers of the bars and shows them again; without them, the daggers stand at the bars' ends.

    traces: bars and their daggers in turn
    """
    without = []
    for bars, daggers in zip(traces[::2], traces[1::2], strict=True):
        end = {name: max(x, 0) for name, x in zip(bars["y"], bars["x"], strict=True)}
        without += [bars["x"], [end[name] for name in daggers["y"]]]
    whiskers = {"error_x.visible": [trace["type"] == "bar" for trace in traces], "x": [trace["x"] for trace in traces]}
    button = {"label": "intervals on / off", "method": "restyle"}
    button |= {"args": [{"error_x.visible": False, "x": without}], "args2": [whiskers]}
    place = {"x": 1, "xanchor": "right", "pad": {"b": 62}}
    return MENU | place | {"type": "buttons", "buttons": [button], "showactive": False, "active": -1}  # an active one would show first


def _button(label: str, change: dict) -> dict:
    return {"label": label, "method": "relayout", "args": [change]}
