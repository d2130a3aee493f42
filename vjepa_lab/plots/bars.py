"""Figure 2 and its audit: what each objective changes against the baseline, a bar per benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from ..arguments import suggest
from ..evidence import results, stats
from . import screen_bars
from .style import DAGGER, DOUBLE_DAGGER, INK, SOURCES, WIDTH, colours, footnote, hatches, key, look, named_rows, new_figure, span

CONSTANT = {
    "top1": "always names the test set’s largest class",
    "top5": "always names the test set’s five largest classes",
    "balanced_accuracy": "always names the same class",
}
"What the best predictor that ignores its input does, by metric."
UNTRAINED = f"{DOUBLE_DAGGER} an untrained encoder (the paper’s evaluation without EMA loads a teacher that never moved)."


def constant_note(metrics: Iterable[str], where: Iterable[str] = ()) -> str:
    """What the dagger means for these metrics."""
    does = " or ".join(CONSTANT.get(metric, "ignores its input") for metric in dict.fromkeys(metrics))
    return f"{DAGGER} not above a predictor that {does}" + (f" ({', '.join(where)})" if where else "") + "."


def tradeoffs(
    df: pd.DataFrame,
    against: str = "baseline",
    *,
    regime: str | None = None,
    benchmarks: Sequence[str] | None = None,
    variants: Sequence[str] | None = None,
    sources: Sequence[str] = ("paper", "run"),
    editions: Sequence[str] | None = None,
    baseline_seed: int | None = None,
    compared: pd.DataFrame | None = None,
    sort: str = "mean",
    intervals: bool = True,
    interactive: bool = True,
    paper: bool = False,
    column: str = "double",
    plain: bool = False,
):
    """Grouped bars: each variant's difference from the baseline per benchmark, with 95 % intervals, sorted by its mean (the paper's
    Figure 2).

    df: tidy rows (`results.load`). A panel per source and regime, so printed numbers and own runs stand side by side, each labelled with
    its seeds and with what its interval covers. Marks: † no better than a predictor that ignores its input; ‡ an untrained encoder was
    measured; pale bars: too small a run to be evidence.
    editions: of own runs, all by default.  baseline_seed: against the baseline of this seed only, where seeds are known.
    compared: `bars.comparisons` where they are at hand, which are most of the work.
    sort: "mean", a benchmark's name (the mean where it is not drawn), or "given" (the table's own order).
    intervals: whether whiskers are drawn.
    `paper=True` gives a print-quality matplotlib Figure of `column` width ("single", "double"), `interactive=False` the same for the
    screen, otherwise a plotly Figure, whose own menus filter by what objectives are made with, sort and switch the intervals, in a saved
    page too. `plain=True` gives what that Figure is made of, {"data": ..., "layout": ...}, unchecked, in less time.
    Raises ValueError naming what the table holds when nothing is left to draw, and for a `sort` that is no benchmark of the table.
    """
    if compared is None:
        compared = comparisons(df, against, regime=regime, benchmarks=benchmarks, variants=variants, sources=sources, seed=baseline_seed)
    df, compared = of_editions(df, editions), of_editions(compared, editions)
    panels = _panels(_chosen(compared, regime, benchmarks, variants, sources), sources, editions is not None)
    known = ["mean", "given", *benchmark_order(panels.values())]
    if sort not in known and not df["benchmark"].eq(sort).any():
        raise ValueError(f"sort={sort!r}: {suggest(str(sort), known)}")
    notes = _notes(panels, against, baseline_seed) + _left_out(df, panels, against, regime, sources, benchmarks, baseline_seed)
    if not intervals:
        panels = {title: part.assign(lo=part["delta"], hi=part["delta"]) for title, part in panels.items()}
    shared = _shared(panels)
    shown = benchmark_order(panels.values())
    sort = sort if sort in ("given", *shown) else "mean"
    ranked = lambda by: [_order(panels.values() if shared else [part], by) for part in panels.values()]
    orders = ranked(sort)
    if paper or not interactive:
        return _matplotlib(panels, orders, against, notes, paper, column)
    offered = ("mean", *shown) if len(shown) > 1 else ("mean",) if sort == "given" else ()
    rankings = {_sorted(by): ranked(by) for by in dict.fromkeys((sort, *offered))}
    drawn = screen_bars.spec(
        panels, rankings, _labels(panels), benchmarks=shown, against=against, notes=notes, shared=shared,
        families=_families(sorted({name for order in orders for name in order})),
    )  # fmt: skip
    if plain:
        return drawn
    import plotly.graph_objects as go

    return go.Figure(drawn)


def comparisons(df, against, *, regime=None, benchmarks=None, variants=None, sources, seed: int | None = None) -> pd.DataFrame:
    """The comparisons of the rows asked for, and of no others, with the baseline, or with its `seed`; see `stats.compare`."""
    rows = df[df["source"].isin([*sources, "constant"])]
    rows = results.select(rows, regime=regime, benchmarks=benchmarks)
    if variants is not None:
        rows = rows[rows["variant"].isin([against, *variants]) | rows["source"].eq("constant")]
    return stats.compare(rows, against, baseline_seed=seed)


def of_editions(table: pd.DataFrame, editions: Sequence[str] | None) -> pd.DataFrame:
    """Rows or comparisons without those of own runs of other editions; None: all."""
    return table if editions is None else table[table["source"].ne("run") | table["edition"].isin(list(editions))]


def _chosen(table: pd.DataFrame, regime, benchmarks, variants, sources) -> pd.DataFrame:
    wanted = {"source": sources, "regime": None if regime is None else [regime], "benchmark": benchmarks, "variant": variants}
    for column, values in wanted.items():
        if values is not None:
            table = table[table[column].isin(list(values))]
    if table.empty:
        asked = ", ".join(f"{column} {' or '.join(map(str, values))}" for column, values in wanted.items() if values is not None)
        raise ValueError(f"nothing to draw: no comparison with {asked}")
    return table


def _panels(table: pd.DataFrame, sources: Sequence[str], asked: bool = False) -> dict[str, pd.DataFrame]:
    """Title -> comparisons of one source, edition and regime, in the order of `sources`; titles name the edition of own runs where there
    are several, or some were `asked` for.

    Having no edition or regime is a group of its own, too: it is counted and named, so that no two panels have one title.
    """
    several = table["regime"].nunique(dropna=False) > 1
    panels = {}
    for source in sources:
        own = table[table["source"].eq(source)]
        editions = own["edition"].nunique(dropna=False) > 1 or (asked and source == "run")
        for (edition, where), part in own.groupby(["edition", "regime"], dropna=False, sort=False):
            about = [source] + [_edition(edition)] * editions + [_pretrained(where)] * several
            panels[_title(about, part)] = part
    return panels if _shared(panels) else dict(sorted(panels.items(), key=lambda item: item[1]["variant"].nunique()))


def _edition(name) -> str:
    return "no edition named" if pd.isna(name) else f"edition {name}"


def _pretrained(where) -> str:
    return "of unnamed pretraining" if pd.isna(where) else f"pretrained on {where}"


def _title(about: list[str], part: pd.DataFrame) -> str:
    seeds = part["seeds"].where(part["basis"].ne("samples"), 1)
    return panel_title(about[0], seeds, bool(part["smoke"].all()), about[1:], seed_unit(part))


def seed_unit(table: pd.DataFrame) -> str:
    """What an interval of comparisons is over."""
    return "seeds" if table["basis"].eq("seeds, unpaired").any() else "seed pairs"


def panel_title(source: str, seeds: pd.Series, smoke: bool, about: Sequence[str] = (), unit: str = "seeds") -> str:
    """Two lines: whose numbers over how many seeds; what the interval covers, or that they are no evidence."""
    low, high = int(seeds.min()), int(seeds.max())
    count = "one seed" if high == 1 else f"{span(low, high)} seeds"
    head = ", ".join([SOURCES.get(source, source), *about, count])
    if smoke:
        return f"{head}\ndemonstration size: not evidence"
    alone = "" if low > 1 else ", of test sampling where there is one seed"
    return f"{head}\n95 % interval " + (
        "of test sampling only" if high == 1 else f"over {high if low == high else ''} {unit}{alone}".replace("  ", " ")
    )


def _whose(title: str) -> str:
    """What a panel's title says before it counts seeds, for use inside a sentence."""
    head = title.splitlines()[0].rpartition(", ")[0]
    return head[0].lower() + head[1:]


def _shared(panels: dict[str, pd.DataFrame]) -> bool:
    """True when the panels have most variants in common, so that they stand side by side with one list of names; else stacked."""
    sets = [set(part["variant"]) for part in panels.values()]
    return min(map(len, sets)) >= 0.5 * len(set.union(*sets))


def _order(panels: Iterable[pd.DataFrame], sort: str = "mean") -> list[str]:
    """Variants from best to worst mean difference, in the first panel that has them, or as given.

    By the difference in one benchmark: those that were not measured there come last, by their mean.
    """
    parts = list(panels)
    if sort == "given":
        return list(dict.fromkeys(name for part in parts for name in part["variant"]))
    there = [] if sort == "mean" else _best_first(part[part["benchmark"].eq(sort)] for part in parts)
    return there + [name for name in _best_first(parts) if name not in there]


def _best_first(parts: Iterable[pd.DataFrame]) -> list[str]:
    means = pd.concat([part.groupby("variant")["delta"].mean() for part in parts])
    return list(means[~means.index.duplicated()].sort_values(ascending=False).index)


def _sorted(by: str) -> str:
    return "as given" if by == "given" else f"sorted by {by}"


def _families(names: Sequence[str]) -> dict[str, list[str]]:
    """{a part: the variants that are made with it}, for the parts that some of them have and some have not."""
    from ..variants import parts_of

    made = {name: parts_of(name) for name in names}
    found = {part: [name for name in names if part in made[name]] for part in sorted(set().union(*made.values()))}
    return {part: those for part, those in found.items() if len(those) < len(names)}


def _labels(panels: dict[str, pd.DataFrame]) -> dict[str, str]:
    table = pd.concat(panels.values())
    untrained = set(table.loc[table["random_init"], "variant"])
    return {variant: name + (f" {DOUBLE_DAGGER}" if variant in untrained else "") for variant, name in names_of(table).items()}


def names_of(df: pd.DataFrame) -> dict[str, str]:
    """Variant -> the name printed in the paper where the table knows it, else the variant."""
    known = df.dropna(subset=["printed"]).drop_duplicates("variant") if "printed" in df else df[:0]
    printed = dict(zip(known["variant"], known.get("printed", ()), strict=True))
    return {variant: printed.get(variant, variant) for variant in df["variant"].unique()}


def benchmark_order(panels: Iterable[pd.DataFrame]) -> list[str]:
    """The benchmarks of some panels, the paper's first: a benchmark keeps its colour from figure to figure."""
    there = list(dict.fromkeys(name for part in panels for name in part["benchmark"]))
    return [name for name in results.PROBES if name in there] + [name for name in there if name not in results.PROBES]


def _notes(panels: dict[str, pd.DataFrame], against: str, seed: int | None) -> list[str]:
    table = pd.concat(panels.values())
    bases = [
        f"({_whose(title)}): " + ", ".join(_base(name, rows) for name, rows in part.groupby("benchmark", sort=False))
        for title, part in panels.items()
    ]
    notes = [f"Accuracy of {against} {one}." for one in dict.fromkeys(bases)]
    if seed is not None and table["source"].eq("paper").any():
        notes.append(f"Printed numbers have no seed: they are compared with the one {against} that is printed, not with seed {seed}.")
    notes += filter(None, [clips_note(table)])
    flagged = table[table["flag"].ne("") | table["base_flag"].ne("")]
    if len(flagged):
        notes.append(constant_note(flagged["metric"], sorted(set(flagged["benchmark"]))))
    if table["random_init"].any():
        notes.append(UNTRAINED)
    return notes


def _base(benchmark: str, rows: pd.DataFrame) -> str:
    """The baseline's accuracy on a benchmark; from where to where, if other variants meet it on other seeds."""
    reached, mark = base_span(rows), DAGGER * bool(rows["base_flag"].iloc[0])
    return f"{benchmark} {reached} %{mark}" + " as seeds pair up" * (" to " in reached)


def base_span(comparisons: pd.DataFrame, digits: int = 2) -> str:
    """What the baseline reached, or from where to where: variants that meet it on other seeds meet another mean."""
    return span(comparisons["base"].min(), comparisons["base"].max(), f".{digits}f")


def _left_out(
    df: pd.DataFrame, panels: dict[str, pd.DataFrame], against: str, regime: str | None, sources: Sequence[str],
    benchmarks: Sequence[str] | None, seed: int | None,
) -> list[str]:  # fmt: skip
    """Says what was measured and is not drawn, and why: no baseline to compare with, or another probe than the one shown."""
    rows = df[df["source"].isin(list(sources)) & df["metric"].eq("top1")]
    rows = rows if regime is None else rows[rows["regime"].eq(regime)]
    rows = rows if benchmarks is None else rows[rows["benchmark"].isin(list(benchmarks))]
    table = pd.concat(panels.values())
    keys = ["source", "edition", "regime"]  # what is compared among itself; without a name they are a group, too (`stats.compare`)
    known = lambda part: part[[*keys, "benchmark"]].astype(object).fillna("").itertuples(index=False, name=None)
    drawn, otherwise = set(known(table)), _otherwise(rows, table)
    bare, unbased = [], []
    editions = rows.loc[rows["source"].eq("run"), "edition"].nunique(dropna=False) > 1
    for (source, edition, where), part in rows.groupby(keys, sort=False, dropna=False):
        if not part["variant"].eq(against).any():
            bare += [_pretrained(where) + f" ({_edition(edition)})" * editions] * (source == "run")
            continue
        lost = [key[-1] for key in dict.fromkeys(known(part[part["variant"].ne(against)])) if key not in drawn]
        unbased += [f"{b} of {SOURCES.get(source, source).lower()}" for b in lost if (source, b) not in otherwise]
    says = [f"Not drawn: runs {', '.join(sorted(set(bare)))}, for want of a run of {against} there."] if bare else []
    if unbased:
        which = f"this {against}" if seed is None else f"{against} with seed {seed}"
        says.append(f"Not drawn: {', '.join(dict.fromkeys(unbased))}, where {which} was not measured.")
    return says + _otherwise_note(otherwise)


def _otherwise(rows: pd.DataFrame, shown: pd.DataFrame) -> dict[tuple[str, str], str]:
    """(source, benchmark) -> the probes of a source that has rows, but none with the probe that is shown of this benchmark."""
    probe = shown[shown["source"].ne("constant")].groupby("benchmark")["probe"].first()
    found = {}
    for (source, benchmark), part in rows[rows["source"].ne("constant")].groupby(["source", "benchmark"], sort=False):
        there = sorted(part["probe"].dropna().unique())
        if there and benchmark in probe and probe[benchmark] not in there:
            found[source, benchmark] = ", ".join(there)
    return found


def probes_note(rows: pd.DataFrame, shown: pd.DataFrame) -> list[str]:
    """Says which of the rows are not shown because another probe measured the benchmark: numbers of two probes are not comparable."""
    return _otherwise_note(_otherwise(rows, shown))


def _otherwise_note(otherwise: dict[tuple[str, str], str]) -> list[str]:
    lost = [f"{SOURCES.get(source, source).lower()} on {b} ({probes})" for (source, b), probes in otherwise.items()]
    return [f"Not shown, measured with another probe: {', '.join(lost)}."] if lost else []


def clips_note(table: pd.DataFrame) -> str:
    """How many test clips each source measured on; table: rows or comparisons with source, benchmark, n."""
    says = []
    for source, rows in table[table["n"].notna() & table["source"].ne("constant")].groupby("source", sort=False):
        sizes = rows.groupby("benchmark", sort=False)["n"].agg(["min", "max"])
        each = ", ".join(f"{b} {span(low, high, ',.0f')}" for b, (low, high) in sizes.iterrows())
        says.append(f"{SOURCES.get(source, source).lower()} {each}")
    return f"Test clips: {'; '.join(says)}." if says else ""


# --- print ------------------------------------------------------------------------------------------------------------


def _matplotlib(panels: dict[str, pd.DataFrame], orders: list[list[str]], against: str, notes: list[str], paper: bool, column: str):
    benchmarks, labels, shared = benchmark_order(panels.values()), _labels(panels), _shared(panels)
    thick = 0.085 if column == "double" else 0.075
    rows = [len(order) * (part["benchmark"].nunique() * thick + 0.09) for order, part in zip(orders, panels.values(), strict=True)]
    side_by_side = shared and column == "double"
    shape = (1, len(panels)) if side_by_side else (len(panels), 1)
    height = max(rows) + 1.35 if side_by_side else sum(rows) + 0.6 + 0.75 * len(panels)
    same_scale = len({frozenset(part["benchmark"]) for part in panels.values()}) == 1
    with look(paper):
        fig, axes = new_figure(WIDTH[column], height, *shape, sharex=same_scale, height_ratios=[1] if side_by_side else rows)
        for k, (ax, order, (title, part)) in enumerate(zip(axes.flat, orders, panels.items(), strict=True)):
            grouped_bars(ax, part, order, colours(benchmarks), hatches(benchmarks))
            ax.set_title(title, fontsize=7.5)
            ax.tick_params(axis="x", labelbottom=True)
            ax.set_yticks(range(len(order)), [labels[name] for name in order] if k == 0 or not side_by_side else [""] * len(order))
            if side_by_side or k == len(panels) - 1:
                ax.set_xlabel(f"difference from {against} (percentage points)")
        key(fig, _handles(benchmarks))
        footnote(fig, notes)
    return fig


def grouped_bars(ax, part: pd.DataFrame, order: Sequence[str], colour: Mapping[str, str], hatch: Mapping[str, str]) -> None:
    """Horizontal bars of one panel on `ax`, variants top down, a bar per benchmark, its interval as a thin line."""
    benchmarks = benchmark_order([part])
    thick = 0.8 / len(benchmarks)
    for k, benchmark in enumerate(benchmarks):
        rows = part[part["benchmark"].eq(benchmark)]
        y = np.array([order.index(name) for name in rows["variant"]]) + (k - (len(benchmarks) - 1) / 2) * thick
        alpha = np.where(rows["smoke"], 0.35, 1.0)
        for at, low, value, high, opaque in zip(y, rows["lo"], rows["delta"], rows["hi"], alpha, strict=True):
            ax.barh(at, value, thick * 0.92, color=colour[benchmark], hatch=hatch[benchmark], edgecolor=INK, linewidth=0.3, alpha=opaque)
            ax.plot(
                [low, high], [at, at], color="white", linewidth=1.7, alpha=opaque, solid_capstyle="butt"
            )  # so that it shows on dark bars
            ax.plot([low, high], [at, at], color=INK, linewidth=0.8, alpha=opaque, solid_capstyle="butt")
        flagged = rows["flag"].ne("").to_numpy()
        for at, high in zip(y[flagged], np.maximum(rows["hi"], 0)[flagged], strict=True):
            ax.annotate(DAGGER, (high, at), xytext=(1.5, 0), textcoords="offset points", fontsize=5, va="center", ha="left")
    ax.axvline(0, color=INK, linewidth=0.7)
    ax.set_ylim(len(order) - 0.45, -0.55)
    named_rows(ax, len(order))


def _handles(benchmarks: Sequence[str]) -> list:
    from matplotlib.patches import Patch

    colour, hatch = colours(benchmarks), hatches(benchmarks)
    return [Patch(facecolor=colour[b], hatch=hatch[b], edgecolor=INK, linewidth=0.3, label=b) for b in benchmarks]
