"""The paper, regenerated: its eight tables and three figures in their order, from its own numbers and, beside them, from one's own runs.

own = paper.own("runs")
paper.table(4, own)                       # shows itself in a notebook
paper.save(own, "figures")                # every table as html, csv and LaTeX, every figure as pdf, png and html
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import pandas as pd

from .. import plots
from ..arguments import suggest
from ..evidence import claims, results
from .ablation import crossed
from .tables import Table

FOLDER, REGIMES = claims.PAPER, claims.REGIMES
BENCHMARKS = list(results.PROBES)
CAPTIONS = {
    1: "Pretraining setup", 2: "Benchmarks and probes", 3: "Pretraining on UCF-101: top-1 accuracy (%)",
    4: "Mixed pretraining: top-1 accuracy (%) and difference from the baseline", 5: "Ablation of FWM, HW and LD: top-1 accuracy (%)",
    6: "Synthetic motion: top-1 accuracy (%)", 7: "Hyperparameters", 8: "Compute",
}  # fmt: skip
CELLS = ("baseline", "fwm", "ld", "hw", "fwm-ld", "fwm-hw", "hw-ld", "fwm-hw-ld")
NONE = "Our runs: no runs yet."


@dataclass(frozen=True, eq=False, repr=False)
class Own:
    """One's own runs of one edition.

    rows: their measurements, and constant predictors beside them, the regimes called as the paper's; runs: what each folder says of
    itself; folder: where they were looked for; called: {the paper's regime: its name among one's own}; others: {edition: runs of it}.
    """

    rows: pd.DataFrame
    runs: tuple[Mapping, ...] = ()
    edition: str = "sound"
    printed: pd.DataFrame = field(default_factory=lambda: results.load(FOLDER))
    folder: Path | None = None
    called: Mapping[str, str] = field(default_factory=lambda: {name: name for name in dict.fromkeys(REGIMES.values())})
    others: Mapping[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        if not self.runs:
            return self.lacks()
        small = int(self.measured["smoke"].sum())
        about = f"{len(self.runs)} runs of the edition {self.edition!r}"
        about += f", {len(self.measured)} measurements, {small} of them too small to be evidence"
        unmet = [name for name in self.called if name not in set(self.measured["regime"])]
        asked = [name for name in unmet if self.called[name] != name] or unmet * (len(unmet) == len(self.called))
        return f"{about}; {self._elsewhere(*asked)}" if asked and len(self.measured) else about

    @property
    def measured(self) -> pd.DataFrame:
        """The rows of the runs themselves, without the constant predictors."""
        return self.rows[self.rows["source"].eq("run")]

    @cached_property
    def judged(self) -> pd.DataFrame:
        """Every statement of the paper with its verdict on the printed tables, the released results and these runs."""
        there = self.measured if len(self.measured) else None
        where = {"paper": "paper", "released, seed 42": "released@42", "released, seed 239": "released@239"}
        return claims.beside(where | {"our runs": there})

    @property
    def table(self) -> pd.DataFrame:
        """The paper's rows and one's own."""
        return results.tidy(pd.concat([self.printed, self.rows], ignore_index=True)) if len(self.rows) else self.printed

    def has(self, number: int, variants: Iterable[str] = ()) -> bool:
        """Whether there is own evidence for a table: on one benchmark, a baseline and a variant of its regime, neither of smoke size."""
        if self.rows.empty:
            return False
        rows = self.measured[self.measured["regime"].eq(REGIMES[number]) & ~self.measured["smoke"]]
        rows = rows[rows["benchmark"].eq("synthetic-motion") == (number == 6)]
        rows = rows[rows["variant"].isin(list(variants))] if variants else rows
        return any("baseline" in names and len(names) > 1 for names in rows.groupby("benchmark")["variant"].agg(set))

    def lacks(self, number: int | None = None) -> str:
        """Why one of the paper's tables, or all of this, has no own numbers, and what to do about it."""
        if not self.runs and self.others:
            there = " and ".join(f"{_runs(count)} of the edition {name!r}" for name, count in self.others.items())
            return f"Our runs: none of the edition {self.edition!r} in {self.folder}, but {there}."
        if not self.runs:
            looked = f" Looked in {self.folder}{', which is not there' * (not self.folder.is_dir())}." if self.folder else ""
            return f"{NONE}{looked} {results.elsewhere(self.folder) if self.folder else ''}".strip()
        if self.measured.empty or number is None:
            said = "and none is probed yet" if self.measured.empty else "which say nothing of this"
            return f"Our runs: {_runs(len(self.runs))} of the edition {self.edition!r}, {said}."
        rows = self.measured[self.measured["regime"].eq(REGIMES[number])]
        if rows.empty:
            return f"Our runs: {self._elsewhere(REGIMES[number])}."
        lacking = "no baseline and variant of this table, measured on one benchmark and large enough to be evidence"
        return f"Our runs: {_runs(rows['run'].nunique())} on {self.called[REGIMES[number]]!r}, but {lacking}."

    def _elsewhere(self, *regimes: str) -> str:
        """What there is where no run has a regime that stands for one of the paper's."""
        counts = self.measured.groupby("regime", sort=False)["run"].nunique()
        there = " and ".join(f"{_runs(count)} on {self.called.get(name, name)!r}" for name, count in counts.items())
        unmet, dials = (" or ".join(words) for words in ([repr(self.called[name]) for name in regimes], [f"`{name}`" for name in regimes]))
        return f"none on {unmet}, but {there}: name the one that stands for the paper's in {dials}"


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count > 1)}"


def own(runs: str | Path | None = "runs", *, edition: str = "sound", mixed: str = "mixed", ucf101: str = "ucf101") -> Own:
    """Own runs below `runs` (none if the folder is not there), of one edition.

    mixed, ucf101: the regimes (pretraining data) of one's own runs that stand for the paper's two.
    Raises ValueError for an unknown edition, and where the runs of such a regime differ in size.
    """
    from vjepa_lab.variants import BY_EDITION

    if edition not in BY_EDITION:
        raise ValueError(f"unknown edition {edition!r}: {suggest(str(edition), BY_EDITION)}")
    folder, called = Path(runs) if runs else None, {"mixed": mixed, "ucf101": ucf101}
    if folder is None or not folder.is_dir():
        return Own(results.load(FOLDER).iloc[:0], edition=edition, folder=folder, called=called)
    folders = [folder] if results.is_run(folder) else [path for path in sorted(folder.iterdir()) if path.is_dir() and results.is_run(path)]
    rows = results.load(folder)
    for regime in (mixed, ucf101):
        sized = sorted(rows.loc[rows["regime"].astype(str).str.startswith(f"{regime}, "), "regime"].unique())
        if sized and not rows["regime"].eq(regime).any():
            raise ValueError(f"{folder} holds runs of several sizes on {regime}; choose one of the regimes {', '.join(map(repr, sized))}")
    rows = rows[rows["edition"].eq(edition) | rows["edition"].isna() | rows["source"].eq("constant")]
    rows = rows.assign(regime=rows["regime"].replace({mixed: "mixed", ucf101: "ucf101"}))
    about = [_about(path) for path in folders]
    others = Counter(a["edition"] for a in about if a.get("edition", edition) != edition)
    chosen = tuple(a for a in about if a.get("edition", edition) == edition)
    return Own(rows, chosen, edition, folder=folder, called=called, others=others)


def _about(run: Path) -> dict:
    recipe = run / "recipe.txt"
    known = {"report": results.report(run), "recipe": recipe.read_text().strip() if recipe.is_file() else ""}
    return results.config(run) | known


# ----------------------------------------------------------------------------------------------------------------------- tables


def table(number: int, own: Own) -> Table:
    """One of the paper's tables: what it prints and, beside it, what one's own runs gave, with intervals and seeds."""
    if number not in CAPTIONS:
        raise ValueError(f"the paper has the tables 1 to 8, not {number!r}")
    made = {1: _setup, 2: _benchmarks, 7: _hyperparameters, 8: _compute}.get(number)
    if made is not None:
        return made(number, own)
    regime, benchmarks = REGIMES[number], ["synthetic-motion"] if number == 6 else None
    rows, wanted = own.table, _variants(number)
    if benchmarks is None:
        rows = rows[rows["benchmark"].ne("synthetic-motion")]
    else:
        rows = rows[rows["regime"].eq(regime) | rows["source"].eq("constant")]
    wanted += [v for v in own.measured["variant"].unique() if v not in wanted] if number in (3, 4) and own.has(number) else []
    has = own.has(number, wanted)
    how = {"regime": regime, "benchmarks": benchmarks, "variants": wanted, "sources": ("paper", "run") if has else ("paper",)}
    found = plots.result_table(rows, f"Table {number}. {CAPTIONS[number]}", **how)
    notes = found.notes
    if number == 5:
        found = _with_missing_cells(found)
        notes += ("HW-JEPA (its weight 0.3, elsewhere 1.0) is taken from Table 4; the cell FWM + HW was not run by the paper.",)
    return replace(found, notes=notes if has else (*notes, own.lacks(number)))


def _with_missing_cells(found: Table) -> Table:
    """The ablation's table with a row for the eighth cell and "not run" where a source has none."""
    cells, bold = found.cells, found.bold
    if len(cells) < len(CELLS):
        place = CELLS.index("fwm-hw")
        row = pd.DataFrame([[""] * cells.shape[1]], index=["FWM-HW"], columns=cells.columns)
        cells = pd.concat([cells.iloc[:place], row, cells.iloc[place:]])
        bold = pd.concat([bold.iloc[:place], row.ne(""), bold.iloc[place:]])
        cells.index.name = found.cells.index.name
    return replace(found, cells=cells.replace("", "not run").rename({"fwm-hw": "FWM-HW"}), bold=bold)


def _variants(number: int) -> list[str]:
    """The rows of a table in the paper's order; Table 5 with the two cells that it leaves out."""
    if number == 5:
        return list(CELLS)
    methods = pd.read_csv(FOLDER / "printed" / "methods.csv")
    return list(claims.SYNTHETIC.values()) if number == 6 else list(methods.loc[methods["table"].eq(number), "variant"])


def against_seeds(own: Own) -> Table:
    """Table 4 of the released results, against the baseline that the paper reports (seed 42) and the one of the runs' own seed (239)."""
    rows = own.printed[own.printed["source"].isin(["released", "constant"])]
    parts = {seed: plots.result_table(rows, regime="mixed", sources=["released"], baseline_seed=seed) for seed in (42, 239)}
    named = {
        seed: [frame.set_axis(pd.MultiIndex.from_tuples([(f"Released, against seed {seed}", b) for _, b in frame.columns]), axis=1)
               for frame in (part.cells, part.bold)]
        for seed, part in parts.items()
    }  # fmt: skip
    cells, bold = (pd.concat([named[seed][k] for seed in parts], axis=1).fillna("" if k == 0 else False) for k in (0, 1))
    cells.index.name = "method"
    notes = list(dict.fromkeys(note for part in parts.values() for note in part.notes))
    notes.append("All mixed runs but the reported baseline have seed 239; that seed's own baseline was released without Diving-48.")
    return Table(cells, "Table 4, as released, against both baselines", tuple(notes), bold.astype(bool))


def claims_table(own: Own) -> Table:
    """`own.judged` as a table, whose notes say what the verdicts mean."""
    notes = [
        "Released: with intervals of test sampling, the baseline of seed 42 (as reported) and of seed 239 (that of the other runs).",
        "Supported: each comparison that it makes holds in at least 97.5 % of the accuracies that the evidence allows; contradicted: one "
        "fails in as many, after Bonferroni over them; partly: some of its parts so, others so; undecided: at this n.",
        *(f"{name}: {why}." for name, why in own.judged.attrs["why"].items()),
    ]
    made = plots.text_table(own.judged, "The paper’s statements and what decides them")
    return replace(made, notes=tuple(notes))


def _printed(number: int) -> pd.DataFrame:
    return pd.read_csv(FOLDER / "printed" / f"table{number}.csv", dtype=str, keep_default_na=False)


def _beside(number: int, own: Own, columns: Mapping[str, Sequence[str]], has: bool, notes: Sequence[str] = ()) -> Table:
    """A printed table of words with further columns; without own runs it says so."""
    frame = _printed(number).assign(**columns)
    made = plots.text_table(frame, f"Table {number}. {CAPTIONS[number]}")
    return replace(made, notes=(*notes, *([] if has else [own.lacks()])))


def _setup(number: int, own: Own) -> Table:
    from vjepa_lab.presets import PRESETS

    settings = {"this package, preset base": _setting({"preset": PRESETS["base"].plain()})}
    found: dict[tuple, int] = {}
    for run in own.runs:
        if isinstance(run.get("preset"), dict):
            found[tuple(_setting(run).items())] = found.get(tuple(_setting(run).items()), 0) + 1
    for k, (setting, count) in enumerate(sorted(found.items(), key=lambda item: -item[1])[:3], 1):
        settings[f"our runs, setting {k} ({count} run{'s' * (count > 1)})"] = dict(setting)
    rows = _printed(number).iloc[:, 0]
    left = [f"{len(found) - 3} further settings of our runs are not shown."] if len(found) > 3 else []
    return _beside(number, own, {name: [s.get(row, "") for row in rows] for name, s in settings.items()}, bool(found), left)


def _setting(run: Mapping) -> dict[str, str]:
    """Table 1's rows for one run, from its config.json."""
    p = run["preset"]
    known = {
        "Backbone": f"ViT, width {p['dim']}, depth {p['depth']}, patch {p['patch']}x{p['patch']}, tubelet {p.get('tubelet', 2)}, RoPE",
        "Predictor": f"{p['pred_depth']}-layer Transformer, embed dim {p['pred_dim']}, {p['pred_heads']} heads",
        "Input": f"{p['frames']} frames, frame stride {p.get('stride', 2)}, crop {p['size']}x{p['size']}",
        "Schedule": f"{p['steps']:,} steps",
        "Batch size": str(p["batch"]),
        "Optimizer": f"AdamW, lr = {p['lr']:g}, wd = {p.get('weight_decay', 0.04):g}",
        "LR warmup": f"{p['warmup']} steps, {p['start_lr']:g} to {p['lr']:g} (cosine)",
        "EMA momentum": f"{p.get('ema', 0.99925):g} (constant)",
        "Loss": "L1; terms as in each recipe",
    }
    if "data" in run:
        precision = "bfloat16 passes, float32 losses" if run.get("bf16") else "float32"
        known |= {"Data": f"{run['data']} ({run.get('clips', 0):,} clips)", "Precision": precision, "Hardware": str(run.get("device", ""))}
    return known


def _benchmarks(number: int, own: Own) -> Table:
    rows = own.measured[own.measured["metric"].eq("top1")]
    printed = _printed(number).assign(measured_by="paper")
    ours = []
    for (benchmark, probe), part in rows.groupby(["benchmark", "probe"], sort=False):
        chance = results.constants(own.rows).get(benchmark, {}).get("chance")
        small = ", too small to be evidence" * bool(part["smoke"].all())
        measured = f"our runs: {part['run'].nunique()}, n = {part['n'].max():,.0f}{small}"
        about = {"benchmark": benchmark, "classes": f"{100 / chance:.0f}" if chance else "", "probe": probe, "measured_by": measured}
        ours.append(about)
    frame = pd.concat([printed, pd.DataFrame(ours, columns=printed.columns)], ignore_index=True).fillna("")
    made = plots.text_table(frame, f"Table {number}. {CAPTIONS[number]}")
    return replace(made, notes=() if ours else (own.lacks(),))


def _hyperparameters(number: int, own: Own) -> Table:
    from vjepa_lab import variants

    editions = {"this package, as printed": "paper", "this package, sound": "sound", "this package, as released": "released"}
    recipes = {name: {v: variants.recipe(v, edition) for v in (*variants.TABLE3, *variants.TABLE4)} for name, edition in editions.items()}
    known = {}
    for run in own.runs:
        if run.get("own_terms"):  # a term of a notebook: its expression says more than a table of these rows could
            continue
        with suppress(ValueError, KeyError):
            known[run.get("variant", "")] = variants.recipe(run["recipe"])
    if known:
        recipes["our runs"] = known
    rows = _printed(number).iloc[:, 0]
    columns = {name: [_setting_of(row, chosen.values()) for row in rows] for name, chosen in recipes.items()}
    return _beside(number, own, columns, bool(known))


def _setting_of(parameter: str, recipes: Iterable) -> str:
    """A hyperparameter's values in some recipes, such as "0.3 / 1": read off the objectives themselves."""
    from vjepa_lab import terms as t
    from vjepa_lab.masks import Motion
    from vjepa_lab.modifiers import Detached, Hard

    def plain(term):
        while isinstance(term, Hard | Detached):
            term = term.term
        return term

    def weights(kind, which: Callable = lambda term: True) -> list:
        return [w for r in recipes for w, term in r.objective if isinstance(plain(term), kind) and which(term)]

    def fields(kind, name: str) -> list:
        return [getattr(plain(term), name) for r in recipes for _, term in r.objective if isinstance(plain(term), kind)]

    recipes = list(recipes)
    hard = [(w, term) for r in recipes for w, term in r.objective if isinstance(term, Hard)]
    motion = [r.masks.where for r in recipes if isinstance(getattr(r.masks, "where", None), Motion)]
    found = {
        "lambda_kin": lambda: weights(t.Kinematic, lambda term: term.on == "all" or getattr(plain(term), "order", 1) == 2),
        "lambda_s (static)": lambda: weights(t.Kinematic, lambda term: term.on == "app" and plain(term).order == 1),
        "lambda_o (orth.)": lambda: weights(t.Orthogonal),
        "D_app/D": lambda: [0.5] if weights(t.Orthogonal) else [],
        "lambda_d (LD)": lambda: weights(t.Dynamics),
        "LD hidden dim": lambda: fields(t.Dynamics, "hidden"),
        "HW temperature tau": lambda: [term.tau for _, term in hard],
        "lambda_HW": lambda: [w for w, term in hard if isinstance(term.term, t.JEPA)],
        "lambda_AC": lambda: weights(t.Pixels),
        "lambda_Delta (delta)": lambda: weights(t.Delta),
        "lambda_spec": lambda: weights(t.Spectral),
        "lambda_LTC / margin": lambda: [*weights(t.Contrast), *fields(t.Contrast, "margin")],
        "Motion fallback rate": lambda: [m.random_rate for m in motion],
    }.get(parameter, list)()
    text = lambda value: f"{value:g}" if isinstance(value, int | float) else f"{value.start:g} to {value.end:g}"
    return " / ".join(dict.fromkeys(text(value) for value in sorted(found, key=lambda v: v if isinstance(v, int | float) else 0)))


def _compute(number: int, own: Own) -> Table:
    done = [run["report"] | {"device": str(run.get("device", "cpu"))} for run in own.runs if run.get("report", {}).get("wall_s")]
    hours = [report["wall_s"] / 3600 for report in done]
    gpu = [h for h, report in zip(hours, done, strict=True) if "cuda" in report["device"]]
    devices = ", ".join(f"{n} on {device}" for device, n in pd.Series([r["device"] for r in done]).value_counts().items()) if done else ""
    ours = {
        "GPUs per training run": devices,
        "Training time per run": f"{sum(hours) / len(hours):.2g} hours" if hours else "",
        "Number of training runs": str(len(done)) if done else "",
        "Total pretraining GPU-h": f"{sum(gpu):.3g} GPU-h, {sum(hours) - sum(gpu):.3g} CPU-h" if done else "",
        "Framework": "PyTorch",
    }
    return _beside(number, own, {"our runs": [ours.get(row, "") for row in _printed(number).iloc[:, 0]]}, bool(done))


# ---------------------------------------------------------------------------------------------------------------------- figures


def diagrams() -> dict[str, dict]:
    """Figure 1: the headline method's structure, as printed and as the published code computes it."""
    from vjepa_lab import variants
    from vjepa_lab.structure import structure

    headline = lambda edition: variants.recipe("fwm-hw-ld", edition)
    return {
        "fig1": structure(headline("paper"), "FWM-HW-LD, as printed (Eq. 12)"),
        "fig1-released": structure(headline("released"), "FWM-HW-LD, as the published code computes it"),
    }


def figures(own: Own) -> dict[str, Callable]:
    """Name -> a function that draws it: `draw(paper=True, column="single")` for print, `draw(interactive=True)` for the screen where
    `interactive(name)`. A figure of own runs (`-runs`) is there only if there are some, the effects only if these tell them
    apart. Each name is the file that `save` writes."""
    printed, both = own.printed, own.table
    made: dict[str, Callable] = {name: partial(plots.diagram, structure) for name, structure in diagrams().items()}
    bars = partial(plots.tradeoffs, regime="mixed")
    made["fig2"] = partial(bars, printed, sources=["paper"], benchmarks=BENCHMARKS)
    made["fig2-ucf101"] = partial(bars, printed, sources=["paper"], benchmarks=BENCHMARKS, regime="ucf101")
    for seed in (42, 239):
        made[f"fig2-released-{seed}"] = partial(bars, printed, sources=["released"], benchmarks=BENCHMARKS, baseline_seed=seed)
    if own.has(4):
        made["fig2-runs"] = partial(bars, both, sources=["paper", "run"])
    if own.has(3):
        made["fig2-ucf101-runs"] = partial(bars, both, sources=["paper", "run"], regime="ucf101")
    for name, draw in {"fig3": plots.ablation, "fig3-interaction": plots.interaction, "fig3-effects": plots.effects}.items():
        made[name] = partial(draw, both, source="paper", regime="mixed")
        if own.has(5, CELLS):
            made[f"{name}-runs"] = partial(draw, both, source="run", regime="mixed")
    if own.has(5, CELLS) and not crossed(both, source="run", regime="mixed"):
        del made["fig3-effects-runs"]
    return made


def interactive(name: str) -> bool:
    """Whether a figure has an interactive form; of the others the web page shows the drawing."""
    return name.startswith("fig2") or name in ("fig3", "fig3-runs")


def save(own: Own, out: str | Path = "figures", *, columns: Sequence[str] = ("single", "double")) -> list[Path]:
    """Write every table (html, csv, tex) and every figure (pdf, png, html) of the paper into `out`, and an index.html that shows them.

    A figure of single-column width carries `-single` in its name. Returns the paths. Takes about a minute.
    """
    from tqdm.auto import tqdm

    out, files = Path(out), []
    tables = {f"table{number}": lambda number=number: table(number, own) for number in CAPTIONS}
    tables |= {"table4-seeds": lambda: against_seeds(own), "claims": lambda: claims_table(own)}
    drawn = figures(own)
    shown: list[str] = []
    with tqdm(total=len(tables) + len(drawn), desc=str(out), unit="file") as bar:
        for name, make in tables.items():
            made = make()
            files += made.save(out / name)
            shown.append(made.to_html())
            bar.update()
        for name, draw in drawn.items():
            files += _save_figure(name, draw, out, columns)
            shown.append(f'<h2>{name}</h2>\n<img src="{name}.png" alt="{name}">')
            bar.update()
    (out / "index.html").write_text(_page(shown, own), encoding="utf-8")
    return [*files, out / "index.html"]


def _save_figure(name: str, draw: Callable, out: Path, columns: Sequence[str]) -> list[Path]:
    if name.startswith("fig1"):  # a diagram has one width
        return plots.save(draw(paper=True), out / name, ["pdf", "png", "html"])
    files = []
    for column in columns:
        files += plots.save(figure := draw(paper=True, column=column), out / (name + "-single" * (column == "single")))
    return files + plots.save(draw(interactive=True) if interactive(name) else figure, out / name, ["html"])


def _page(shown: Sequence[str], own: Own) -> str:
    style = (
        "body { font: 15px/1.45 Georgia, serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }"
        " table { border-collapse: collapse; margin: 2.5em 0 .5em; font-size: 13px; display: block; overflow-x: auto }"
        " caption { text-align: left; font-weight: bold; padding-bottom: .4em; white-space: nowrap }"
        " th, td { text-align: left; padding: .15em .6em; vertical-align: top } thead { border-bottom: 1px solid #222 }"
        " tbody tr:nth-child(even) { background: #f6f6f4 } img { max-width: 100% } small { color: #555 }"
    )
    head = f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Tables and figures</title>\n<style>{style}</style>\n'
    says = f"<p>From the numbers that the paper prints and releases, and from {own!r}.</p>" if own.runs else f"<p>{own!r}</p>"
    return "\n".join([head, "<h1>Tables and figures of arXiv:2605.17165, regenerated</h1>", says, *shown, "</html>\n"])
