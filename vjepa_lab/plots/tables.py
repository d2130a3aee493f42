"""The paper's tables as HTML, CSV and LaTeX (booktabs), from printed numbers and from one's own runs."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from ..evidence import results, stats
from .bars import DAGGER, DOUBLE_DAGGER, UNTRAINED, benchmark_order, clips_note, constant_note, names_of, panel_title, probes_note


@dataclass(frozen=True, eq=False)
class Table:
    """Text cells with a header of one or two levels: shows itself in a notebook, saves itself as html, csv and LaTeX.

    `x_sub` is set as a subscript.

    cells: a row per method, columns `(group, name)`; neighbours of one group share a header. bold: which cells are set bold.
    """

    cells: pd.DataFrame
    caption: str = ""
    notes: tuple[str, ...] = ()
    bold: pd.DataFrame | None = field(default=None, repr=False)
    align: str = "r"

    def _strong(self, row: int, column: int) -> bool:
        return self.bold is not None and bool(self.bold.iat[row, column])

    def _rows(self, text: Callable[[str], str], strong: Callable[[str], str]) -> list[list[str]]:
        body = self.cells.to_numpy()
        cell = lambda r, c: strong(text(body[r, c])) if self._strong(r, c) else text(body[r, c])
        return [[text(name), *(cell(r, c) for c in range(body.shape[1]))] for r, name in enumerate(self.cells.index)]

    def _groups(self) -> list[tuple[str, int]]:
        """Neighbouring columns of one group: (group, how many)."""
        groups: list[tuple[str, int]] = []
        for group, _ in self.cells.columns:
            groups = [*groups[:-1], (group, groups[-1][1] + 1)] if groups and groups[-1][0] == group else [*groups, (group, 1)]
        return groups

    def to_html(self) -> str:
        head = "".join(f'<th colspan="{n}">{_html(group)}</th>' for group, n in self._groups())
        names = "".join(f"<th>{_html(name)}</th>" for _, name in self.cells.columns)
        body = self._rows(_html, "<b>{}</b>".format)
        rows = "\n".join(f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in body)
        top = f"<tr><th></th>{head}</tr>\n" if any(group for group, _ in self._groups()) else ""
        notes = "".join(f"<p><small>{_html(note)}</small></p>" for note in self.notes)
        first = _html(self.cells.index.name or "")
        caption = f"<caption>{_html(self.caption)}</caption>\n" if self.caption else ""
        return f"<table>\n{caption}<thead>\n{top}<tr><th>{first}</th>{names}</tr>\n</thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n{notes}"

    _repr_html_ = to_html

    def to_latex(self, label: str = "") -> str:
        """A booktabs table; needs `\\usepackage{booktabs}` only."""
        groups = self._groups()
        kind, size = self._fit()
        lines = [rf"\begin{{{kind}}}[t]", r"\centering", size, r"\setlength{\tabcolsep}{3pt}"]
        caption = re.sub(r"^Table \d+\. ", "", self.caption)  # LaTeX numbers by itself
        lines += [rf"\caption{{{latex(caption)}}}"] * bool(caption) + [rf"\label{{{label}}}"] * bool(label)
        lines += [rf"\begin{{tabular}}{{{self._columns(size)}}}", r"\toprule"]
        if any(group for group, _ in groups):
            lines.append(" & ".join(["", *(rf"\multicolumn{{{n}}}{{c}}{{{latex(group)}}}" for group, n in groups)]) + r" \\")
            edges = [2]
            for _, n in groups:
                edges.append(edges[-1] + n)
            lines.append(" ".join(rf"\cmidrule(lr){{{a}-{b - 1}}}" for a, b in pairwise(edges)))
        lines += [" & ".join([latex(self.cells.index.name or ""), *(latex(name) for _, name in self.cells.columns)]) + r" \\", r"\midrule"]
        lines += [" & ".join(row) + r" \\" for row in self._rows(latex, r"\textbf{{{}}}".format)]
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par\smallskip\raggedright\scriptsize {latex(note)}" for note in self.notes]
        return "\n".join([*lines, rf"\end{{{kind}}}", ""])

    def _fit(self) -> tuple[str, str]:
        """Float and font size whose width holds the longest line: one column (3.25 in), else both (6.5 in)."""
        longest = [max(map(len, map(str, [name, *self.cells.iloc[:, k]]))) for k, (_, name) in enumerate(self.cells.columns)]
        letters = max(map(len, map(str, self.cells.index))) + sum(longest)
        points = lambda size: 0.52 * size * letters + 6 * len(longest)
        for kind, room in (("table", 220), ("table*", 460)):
            for size, name in ((9, r"\small"), (8, r"\footnotesize"), (7, r"\scriptsize")):
                if points(size) <= room:
                    return kind, name
        return "table*", r"\tiny"

    def _columns(self, size: str) -> str:
        """Column letters: as `align` says, but columns of long text share the line where even the smallest size does not hold them."""
        lengths = [max(map(len, map(str, self.cells.index)))]
        lengths += [max(map(len, map(str, [name, *self.cells.iloc[:, k]]))) for k, (_, name) in enumerate(self.cells.columns)]
        if self.align != "l" or size != r"\tiny":
            return "l" + self.align * (len(lengths) - 1)
        short, wide = sum(n for n in lengths if n <= LONG), [n for n in lengths if n > LONG]
        room = max(0.3, 1 - 0.0085 * short - 0.015 * len(lengths))  # \tiny: about 118 letters a line
        return "".join("l" if n <= LONG else rf"p{{{room * n / sum(wide):.3f}\linewidth}}" for n in lengths)

    def to_csv(self) -> str:
        flat = self.cells.copy()
        flat.columns = [f"{group}: {name}" if group else name for group, name in self.cells.columns]
        return flat.to_csv(lineterminator="\n")

    def save(self, path: str | Path) -> list[Path]:
        """Write path.html, path.csv and path.tex; returns the paths."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        written = {"html": self.to_html(), "csv": self.to_csv(), "tex": self.to_latex(f"tab:{path.name}")}
        for kind, text in written.items():
            path.with_name(f"{path.name}.{kind}").write_text(text, encoding="utf-8")
        return [path.with_name(f"{path.name}.{kind}") for kind in written]


LONG = 22
"Letters from which a column of words may be broken into lines."
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "’": "'",
    "λ": r"$\lambda$", "τ": r"$\tau$", "Δ": r"$\Delta$", "×": r"$\times$", "±": r"$\pm$", "−": r"$-$", "→": r"$\to$",
    "†": r"$^\dagger$", "‡": r"$^\ddagger$",
}  # fmt: skip
SUBSCRIPT = re.compile(r"\b([λD])_(\w+)")


def latex(text: str) -> str:
    """Text with LaTeX's special characters escaped and the symbols of these tables as math."""
    parts = SUBSCRIPT.split(str(text))  # text, symbol, subscript, text, ...
    plain = ["".join(LATEX.get(letter, letter) for letter in part) for part in parts[::3]]
    math = [rf"${LATEX.get(s, s).strip('$')}_{{\mathrm{{{sub}}}}}$" for s, sub in zip(parts[1::3], parts[2::3], strict=True)]
    return "".join(a + b for a, b in zip(plain, [*math, ""], strict=True))


def _html(text: str) -> str:
    return SUBSCRIPT.sub(r"\1<sub>\2</sub>", html.escape(str(text)))


def text_table(frame: pd.DataFrame, caption: str = "") -> Table:
    """A table of words (the paper's Tables 1, 2, 7 and 8): the first column names the rows; empty cells stay empty."""
    spelling = {"lambda": "λ", r"\bl1\b": "L1", r"\btau\b": "τ", "->": "→", r"(\d) ?x ?(\d)": r"\1×\2", r"\b4x ": "4 × ", "=(?=[^ ])": "= "}
    spelt = frame.fillna("").astype(str).replace(spelling, regex=True)
    cells = spelt.set_index(spelt.columns[0])
    cells.columns = pd.MultiIndex.from_tuples([("", name.replace("_", " ")) for name in cells.columns])
    cells.index.name = spelt.columns[0].replace("_", " ")
    return Table(cells, caption, align="l")


def result_table(
    df: pd.DataFrame, caption: str = "", *, against: str = "baseline", regime: str | None = None, benchmarks: Sequence[str] | None = None,
    sources: Sequence[str] = ("paper", "run"), variants: Sequence[str] | None = None, baseline_seed: int | None = None,
    metric: str = "top1",
) -> Table:  # fmt: skip
    """Tables 3 to 6: accuracy and difference from the baseline per method and benchmark, printed numbers and own runs side by side.

    A printed cell is `30.78 (+5.92)`, one of several seeds `29.13 (+5.10 [+3.2, +7.0])` with the 95 % interval over seed pairs; the
    baseline's own cell has the interval over its seeds.
    Bold: best of the benchmark within its source, unless flagged. † no better than a constant predictor; ‡ an untrained encoder.
    variants: the rows and their order; default as in the table. Runs too small to be evidence are left out and counted in a note.
    Raises ValueError for own runs of several regimes or editions.
    """
    rows = results.select(df[df["source"].isin([*sources, "constant"])], regime=regime, benchmarks=benchmarks, metric=metric)
    for column in ("edition", "regime"):
        if len(there := sorted(rows.loc[rows["source"].eq("run"), column].dropna().unique())) > 1:
            raise ValueError(f"own runs of several {column}s ({', '.join(there)}) do not go into one table: select one first")
    small = int(rows["smoke"].sum())
    rows = rows[~rows["smoke"]]
    order = [v for v in (variants or dict.fromkeys(rows.loc[rows["source"].ne("constant"), "variant"])) if v in set(rows["variant"])]
    order = [against] * (against in order) + [v for v in order if v != against]
    known = rows[rows["variant"].isin(order) | rows["source"].eq("constant")]
    compared = stats.compare(known, against, baseline_seed=baseline_seed) if len(order) > 1 else pd.DataFrame()
    cells, bold = {}, {}
    for source in (s for s in sources if known["source"].eq(s).any()):
        own, versus = known[known["source"].eq(source)], compared[compared["source"].eq(source)]
        base = own["variant"].eq(against) & (
            own["seed"].eq(baseline_seed) if baseline_seed is not None and own["seed"].notna().any() else True
        )
        own = own[base | own["variant"].ne(against)]
        group = panel_title(source, _seeds(own), False).splitlines()[0]
        for benchmark in benchmark_order([own]):
            column = (group, benchmark)
            cells[column], bold[column] = _column(
                own[own["benchmark"].eq(benchmark)], versus[versus["benchmark"].eq(benchmark)], known, order
            )
    labels = names_of(known[known["source"].ne("constant")])
    untrained = set(results.random_init(known)["variant"])
    frame = pd.DataFrame(cells, index=[labels[v] + (f" {DOUBLE_DAGGER}" if v in untrained else "") for v in order]).fillna("")
    frame.index.name = "method"
    notes = [*_notes(frame, untrained & set(order), small, metric), clips_note(known[known["variant"].isin(order)])]
    asked = df[df["source"].isin(list(sources)) & df["metric"].eq(metric)]
    notes += probes_note(asked[asked["regime"].eq(regime)] if regime else asked, rows)
    return Table(frame, caption, tuple(filter(None, notes)), pd.DataFrame(bold, index=frame.index))


def _seeds(own: pd.DataFrame) -> pd.Series:
    return own.groupby("variant")["seed"].nunique().clip(lower=1)


def _column(own: pd.DataFrame, versus: pd.DataFrame, known: pd.DataFrame, order: Sequence[str]) -> tuple[list[str], list[bool]]:
    """Text and boldness of one benchmark's cells, in the order of the rows."""
    flags = results.flag_constant(pd.concat([own, known[known["source"].eq("constant")]], ignore_index=True))[: len(own)].ne("").to_numpy()
    mean = own.groupby("variant")["value"].mean()
    flagged = pd.Series(flags, index=own["variant"]).groupby(level=0).all()
    best = mean[~flagged.reindex(mean.index)].max()
    versus = versus.set_index("variant")
    seeds = {v: part.groupby("seed")["value"].mean() for v, part in own.groupby("variant")}
    texts = [_cell(mean[v], versus.loc[v] if v in versus.index else None, flagged[v], seeds[v]) if v in mean.index else "" for v in order]
    return texts, [v in mean.index and mean[v] == best and not flagged[v] for v in order]


def _cell(value: float, against: pd.Series | None, flagged: bool, seeds: pd.Series) -> str:
    mark = DAGGER if flagged else ""
    if against is None:
        over = stats.t_interval(seeds) if len(seeds) > 1 and np.ptp(seeds) > 1e-9 else None  # that seeds agree is no certainty
        return f"{value:.2f}{mark}" + (f" [{over.lo:.1f}, {over.hi:.1f}]" if over else "")
    signed = lambda x, digits: f"{x:+.{digits}f}".replace("-", "−")
    interval = f" [{signed(against['lo'], 1)}, {signed(against['hi'], 1)}]" if against["basis"] != "samples" else ""
    return f"{value:.2f}{mark} ({signed(against['delta'], 2)}{interval})"


def _notes(frame: pd.DataFrame, untrained: set[str], small: int, metric: str) -> list[str]:
    several = bool(frame.map(lambda cell: "[" in cell).any(axis=None))
    notes = ["In brackets: difference from the baseline in percentage points" + ", with its 95 % interval over seeds" * several + "."]
    if frame.map(lambda cell: DAGGER in cell).any(axis=None):
        notes.append(constant_note([metric]))
    if untrained:
        notes.append(UNTRAINED)
    if small:
        notes.append(f"{small} measurements of runs too small to be evidence are left out.")
    return notes
