"""The trade-off explorer: the paper's numbers, the released ones and one's own, as one chooses to see them."""

from __future__ import annotations

import html
import re
import textwrap
import zlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import pandas as pd

from .. import plots, variants
from ..evidence import results
from ..plots.bars import comparisons, of_editions
from ..plots.style import INK, SOURCES
from .base import Explorer, choice, several, switch

LONGEST = 80
"Letters of a kept view's name: file systems take 255 bytes with the suffix, of which a letter may need three."


class Tradeoffs:
    """Rows of results and their comparisons, each made once: `view` draws a choice of them, `code` is the call that draws it again.

    where  the rows are from, for the message
    Raises ValueError where there are no top-1 rows, such as before any run was probed.
    """

    def __init__(self, rows: pd.DataFrame, where: str = "the table"):
        self.rows = rows = results.tidy(rows)
        shown = rows[rows["metric"].eq("top1") & rows["source"].isin(list(SOURCES))].dropna(subset=["variant", "benchmark"])
        if shown.empty:
            raise ValueError(f"no top-1 rows in {where}: nothing to compare; probe a run first, or load results that have some")
        self.sources = [name for name in SOURCES if shown["source"].eq(name).any()]
        self.variants, self.regimes, self.benchmarks = (
            list(dict.fromkeys(shown[column].dropna())) for column in ("variant", "regime", "benchmark")
        )
        self.editions = sorted(shown.loc[shown["source"].eq("run"), "edition"].dropna().unique())
        pairs = dict.fromkeys(shown[["variant", "edition"]].astype(object).fillna("").itertuples(index=False, name=None))
        self.objectives = {f"{name}, {_edition(edition)}": (name, edition) for name, edition in pairs}
        self.parts = sorted({part for name in self.variants for part in variants.parts_of(name)})
        self._compared = lru_cache(maxsize=64)(self._compare)

    @property
    def baselines(self) -> dict[str, tuple[str, int | None]]:
        """What differences may be taken against: {label: (variant, seed)}."""
        seeds = self.rows.loc[self.rows["variant"].eq("baseline") & self.rows["source"].eq("released"), "seed"].dropna().unique()
        named = {f"baseline, released seed {seed:.0f}": ("baseline", int(seed)) for seed in sorted(seeds)}
        others = [name for name in ("random-init", *self.variants) if name in self.variants and name != "baseline"]
        return {"baseline": ("baseline", None)} | named | {name: (name, None) for name in dict.fromkeys(others)}

    def _compare(self, baseline: str, regime: str | None, sources: tuple[str, ...], benchmarks: tuple[str, ...]) -> pd.DataFrame:
        against, seed = self.baselines[baseline]
        return comparisons(self.rows, against, regime=regime or None, benchmarks=benchmarks, sources=sources, seed=seed)

    def compared(self, *, baseline, regime, sources, benchmarks, **_) -> pd.DataFrame:
        """The comparisons of a choice, of all that the objectives are made of. Raises ValueError where nothing can be compared."""
        return self._compared(baseline, regime, tuple(sources), tuple(benchmarks))

    def start(self, sources) -> str | None:
        """The first regime in which these sources have something to compare with the baseline, or the first where none has."""
        for regime in self.regimes:
            with suppress(ValueError):
                self._compared("baseline", regime, tuple(sources), tuple(self.benchmarks))
                return regime
        return next(iter(self.regimes), None)

    def chosen(self, baseline: str, parts: tuple[str, ...]) -> list[str] | None:
        against, _ = self.baselines[baseline]
        if not parts or set(parts) == set(self.parts):
            return None
        return [name for name in self.variants if name != against and set(parts) & set(variants.parts_of(name))]

    def arguments(self, regime, sources, benchmarks, baseline, parts, sort, intervals, editions=()) -> dict:
        """Arguments of `plots.tradeoffs` for a choice; those at their defaults are left out. No editions: all."""
        against, seed = self.baselines[baseline]
        wanted = {
            "against": (against, "baseline"),
            "baseline_seed": (seed, None),
            "regime": (regime or None, None),
            "benchmarks": (list(benchmarks) if len(benchmarks) < len(self.benchmarks) else None, None),
            "variants": (self.chosen(baseline, tuple(parts)), None),
            "sources": (tuple(sources), ("paper", "run")),
            "editions": (list(editions) if 0 < len(editions) < len(self.editions) else None, None),
            "sort": (sort, "mean"),
            "intervals": (intervals, True),
        }
        return {name: value for name, (value, default) in wanted.items() if value != default}

    def view(self, *, paper: bool = False, plain: bool = False, **choice):
        """The trade-off figure of a choice: regime, sources, benchmarks, baseline, parts, sort, intervals, editions of own runs."""
        return plots.tradeoffs(self.rows, compared=self.compared(**choice), paper=paper, plain=plain, **self.arguments(**choice))

    def table(self, **choice) -> pd.DataFrame:
        """The comparisons that the figure shows."""
        wanted = self.arguments(**choice)
        table = of_editions(self.compared(**choice), wanted.get("editions"))
        return table[table["variant"].isin(wanted["variants"])] if "variants" in wanted else table

    def code(self, paths: tuple[str, ...] = ("runs", "data/paper"), **choice) -> str:
        where = ", ".join(map(repr, paths))
        options = "".join(f", {name}={value!r}" for name, value in self.arguments(**choice).items())
        return f"plots.tradeoffs(results.load({where}){options})"

    def name(self, **choice) -> str:
        """A file name for a choice, without a suffix: the regime and what is not at its default, in letters and digits."""
        chosen = self.arguments(**choice)
        words = ["view", chosen.pop("regime", "all")]
        for key, value in chosen.items():
            key, value = ("parts", choice["parts"]) if key == "variants" else (key, value)  # the variants are many
            words += [key, *map(str, value if isinstance(value, list | tuple) else [value])]
        name = re.sub(r"\W+", "-", " ".join(words)).strip("-")
        return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{zlib.crc32(name.encode()):08x}"


def tradeoff_explorer(*paths: str | Path, rows: pd.DataFrame | None = None, out: str | Path = "figures") -> Explorer:
    """Choose regime, sources, benchmarks and baseline; the figure's own menus filter, sort and switch the intervals at once, in the page.

    What is to be kept is chosen below it: order, what the objectives are made of (nothing chosen: whatever) and intervals, which the figure
    follows; so all can be done from the keyboard, too. A click on a bar shows the objective's expression in the edition of that bar's rows,
    another one hides it; from the keyboard, the list below the figure does.

    paths  what `results.load` takes; by default runs and data/paper, where they are there.  rows: a table instead.
    out    the folder that the buttons write to: the present view as PDF, PNG and CSV, and the code that draws it again (of `rows`, with
           them in a CSV of their own), under a name that says what was chosen

    Raises ValueError where there are no top-1 rows.
    """
    from ipywidgets import HTML, Button, HBox

    paths = paths or tuple(path for path in ("runs", "data/paper") if Path(path).is_dir())
    known = Tradeoffs(results.load(*paths), ", ".join(map(str, paths))) if rows is None else Tradeoffs(rows)
    own = [name for name in known.sources if name != "released"] or known.sources
    said, expression = HTML(), HTML()
    controls = {
        "regime": choice(known.regimes or {"any": None}, known.start(own), "pretrained on"),
        "baseline": choice(list(known.baselines), label="against"),
        "sources": several([(SOURCES[name].lower(), name) for name in known.sources], own, "numbers of", 3),
        "benchmarks": several(known.benchmarks, label="benchmarks", rows=5),
        "sort": choice({"by mean": "mean", **{f"by {name}": name for name in known.benchmarks}, "as given": "given"}, "mean", "sorted"),
        "parts": several(known.parts, [], "made with", rows=5),
        "intervals": switch("95 % intervals", True),
    }
    if len(known.editions) > 1:
        controls["editions"] = several(known.editions, label="own editions", rows=2)

    before = {}

    def follow(change):
        """A released baseline is for the released results, printed numbers having no seed and own runs others: show these, and what was
        shown before when another baseline is chosen."""
        seeded = [known.baselines[change[when]][1] is not None for when in ("old", "new")]
        if seeded == [False, True]:
            before.update({name: controls[name].value for name in ("regime", "sources")})
            controls["regime"].value, controls["sources"].value = known.start(("released",)), ("released",)
        elif seeded == [True, False]:
            for name, value in before.items():
                controls[name].value = value

    controls["baseline"].observe(follow, "value")

    made = Explorer(
        lambda **chosen: clickable(known.view(plain=True, **chosen)),
        controls,
        under=("sort", "parts", "intervals"),
        columns=2,
        static=lambda **chosen: known.view(paper=True, **chosen),
    )

    def write(chosen: dict) -> str:
        stem = Path(out) / known.name(**chosen)
        files = plots.save(known.view(paper=True, **chosen), stem)
        files += [stem.with_suffix(".csv"), stem.with_suffix(".py")]
        known.table(**chosen).to_csv(files[-2], index=False)
        read = paths
        if rows is not None:
            read = [stem.with_name(f"{stem.name}-rows.csv")]
            known.rows.to_csv(read[0], index=False)
            files += read
        code = known.code(tuple(Path(path).resolve().as_posix() for path in read), **chosen)  # runs from whatever folder
        stem.with_suffix(".py").write_text(f"from vjepa_lab import plots, results\n\nfigure = {code}\n", encoding="utf-8")
        written = ", ".join(map(str, files))
        return f"<code style='user-select:all'>{html.escape(code)}</code><br>written: {html.escape(written)}"

    def keep(_):
        try:
            said.value = write(made.values)
        except (ValueError, OSError) as error:
            said.value = f"<p>not kept: {html.escape(str(error))}</p>"

    def explain(change):
        expression.value = f"<code>{html.escape(_expression(*change['new']))}</code>"

    button = Button(description="keep this view", tooltip="what the controls say, as PDF, PNG, CSV and code")
    button.on_click(keep)
    look = choice(known.objectives, label="objective of")
    look.observe(explain, "value")
    explain({"new": look.value})
    made.widget.children = (*made.widget.children, HBox([look, expression]), HBox([button, said]))
    return made


def clickable(drawn: dict) -> dict:
    """A figure's data with a note on every bar, hidden until the bar is clicked: its objective as an expression."""
    card = {"showarrow": False, "visible": False, "clicktoshow": "onoff", "bgcolor": "white", "bordercolor": INK, "borderpad": 6}
    card |= {"x": 0, "yanchor": "top", "yshift": -55, "align": "left", "font": {"family": "monospace", "size": 12}}
    for bars in (trace for trace in drawn["data"] if trace["type"] == "bar"):
        on = card | {"xref": bars["xaxis"], "yref": bars["yaxis"]}
        for delta, label, objective in zip(bars["x"], bars["y"], bars["meta"], strict=True):
            note = on | {"text": _card(*objective), "y": label, "xclick": delta, "yclick": label}
            drawn["layout"]["annotations"].append(note)
    return drawn


@lru_cache(maxsize=256)
def _card(variant: str, edition: str) -> str:
    return "<br>".join(map(html.escape, textwrap.wrap(_expression(variant, edition), 56, break_on_hyphens=False)))


def _edition(name: str) -> str:
    return f"edition {name}" if name else "no edition named"


def _expression(variant: str, edition: str) -> str:
    """The objective of rows, in their own edition: the same name is another recipe in another one. Rows that name none: the default's."""
    try:
        return f"{_edition(edition)}: {variants.recipe(variant, edition or 'sound')!r}"
    except ValueError:
        return f"{_edition(edition)}: not a row of the paper: its run folder's recipe.txt says"
