"""Statements as predicates, judged on evidence: the printed tables, the released results, or any set of runs with their intervals.

    claims.evaluate("paper")                                  # 35 statements of the paper on its own tables
    claims.evaluate(results.load("runs"))                     # the same on one's own runs
    claims.evaluate("runs", [claim("mine", "LD lifts SSv2", 'delta("SSv2", "ld") > 2')])

A predicate is one expression in a small language: no attributes but `split` and `startswith`, no assignment, and only the names

- `acc(bench, method, table=4)`: accuracy in percent; `delta(...)`: its difference from the baseline in points
- `deltas(bench, methods, table)`, `methods(table)`, `rank_desc(bench, method, table)` (1 = best), `reported(method)`, `kin()`
- `dominated(method, methods)`, `spearman(x, y)`, `count(xs)`, `value(table, row, column)`, `num(text)`
- `BENCH`, `T[n]` (the rows of printed table n), and `all any min max abs len round sum sorted mean set zip float int`

A table is 3 (UCF-101), 4 (mixed), 5 (ablation), 6 (synthetic motion), or the name of a regime. A method is a printed name or a variant.

Verdicts: `supported`, `contradicted`, `undecided` (at this n), `partly` (some parts supported, others contradicted), `not testable` (no
table can decide it), `not applicable` (a statement about the document, asked of other evidence). With intervals, a predicate is supported
when it holds in 97.5 % of the accuracies that the evidence allows, and contradicted when it fails in 97.5 %. An accuracy measured with
several seeds varies jointly over seeds (a multivariate t, so differences vary as in a paired t-test); one measured once varies by the
sampling of its test set only, and `basis` says so. "Equals 5.92" then means: within 1 point of it (0.1 for a correlation).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from . import results
from .predicates import BUILTINS, Code, Env, MissingEvidence, compile_predicate

PAPER = Path(__file__).resolve().parents[2] / "data" / "paper"
COLUMNS = {"D-48": "d48", "IN-100": "in100", "SSv2": "ssv2"}
BENCH = list(COLUMNS)
REGIMES = {3: "ucf101", 4: "mixed", 5: "mixed", 6: "ucf101"}
ABLATION = {
    "Baseline": "baseline",
    "LD only": "ld",
    "HW + LD": "hw-ld",
    "FWM only": "fwm",
    "FWM + LD": "fwm-ld",
    "FWM + HW + LD": "fwm-hw-ld",
}
SYNTHETIC = {"Baseline": "baseline", "Kinematic-L1 (lambda=1.0)": "kin-l1", "Kinematic-L1 (lambda=0.1)": "kin-l1-weak"}
SYNTHETIC_MOTION = "synthetic-motion"  # the only benchmark of Table 6, whose predicates name none
LEVEL = 0.975


# --- evidence ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """One set of accuracies: `values[table][method][benchmark]` in percent, None where the paper left the cell empty too."""

    values: dict[int | str, dict[str, dict[str | None, float | None]]]
    printed: dict[int, list[dict[str, str]]]
    variants: dict[tuple[int | str, str], str] = field(default_factory=dict)
    document: bool = False
    "True when `printed` is the evidence itself, so that predicates may read its rows."

    def _methods(self, table) -> dict[str, dict]:
        if table not in self.values:
            raise MissingEvidence(f"table or regime {table!r}")
        return self.values[table]

    def acc(self, bench, method, table=4):
        rows = self._methods(table)
        method = method if method in rows else self.variants.get((table, method), method)
        if method not in rows:
            raise MissingEvidence(f"{method} in table {table}")
        if bench not in rows[method]:
            raise MissingEvidence(f"{method} on {bench or SYNTHETIC_MOTION} (table {table})")
        return rows[method][bench]

    def delta(self, bench, method, table=4):
        value, base = self.acc(bench, method, table), self.acc(bench, next(iter(self._methods(table))), table)
        if value is None:
            return None
        if base is None:
            raise MissingEvidence(f"the baseline on {bench} (table {table})")
        return round(value - base, 2)

    def methods(self, table=4) -> list[str]:
        return list(self._methods(table))[1:]

    def deltas(self, bench, methods=None, table=4) -> list[float]:
        every = [self.delta(bench, method, table) for method in (self.methods(table) if methods is None else methods)]
        return [d for d in every if d is not None]

    def reported(self, method, table=3) -> list[str]:
        return [bench for bench in BENCH if self.acc(bench, method, table) is not None]

    def rank_desc(self, bench, method, table=4) -> int:
        own = self.delta(bench, method, table)
        if own is None:
            raise MissingEvidence(f"{method} on {bench}")
        return 1 + sum(d > own for d in self.deltas(bench, table=table))

    def kin(self) -> list[str]:
        return [method for method in self.methods(3) if method.startswith("Kin.")]

    def dominated(self, method, methods, table=4) -> bool:
        """Another method is at least as good on every benchmark and better on one."""
        own = [self.delta(bench, method, table) for bench in BENCH]
        others = [[self.delta(bench, other, table) for bench in BENCH] for other in methods if other != method]
        return any(all(o >= m for o, m in zip(d, own, strict=True)) and d != own for d in others)

    def value(self, table, row, column=None) -> str:
        first = next(iter(self.printed[table][0]))
        found = next((r for r in self.printed[table] if r[first] == row), None)
        if found is None:
            raise MissingEvidence(f"row {row!r} of table {table}")
        return found[column or list(found)[1]]

    @cached_property
    def env(self) -> Env:
        own = {
            name: getattr(self, name)
            for name in ("acc", "delta", "deltas", "methods", "reported", "rank_desc", "kin", "dominated", "value")
        }
        tables = self.printed if self.document else _Unreadable()
        return (
            BUILTINS
            | own
            | {"BENCH": BENCH, "T": tables, "count": _count, "spearman": _spearman, "num": _num, "near": 0 if self.document else 1}
        )


class _Unreadable:
    def __getitem__(self, table):
        raise MissingEvidence("the rows of a printed table (this evidence is not the document)")


def _count(xs: Iterable) -> int:
    return sum(map(bool, xs))


def _spearman(x: Sequence[float], y: Sequence[float]) -> float:
    from scipy.stats import rankdata

    if len(x) != len(y) or len(x) < 3:
        raise MissingEvidence("equally many deltas on both benchmarks")
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def _num(text: str) -> float:
    """The first number in a text: "~1,224 GPU-h" -> 1224."""
    return float(re.search(r"\d[\d,]*(?:\.\d+)?", text)[0].replace(",", ""))


@dataclass(frozen=True, eq=False)
class Evidence:
    """What claims are judged on: `point`, the numbers as they are, and `draws`, the numbers as they might have been (empty for a
    document)."""

    name: str
    point: World
    draws: Sequence[World] = ()
    basis: str = "as printed"
    seeds: int = 1
    left_out: int = 0
    "Rows of runs too small to be evidence."


def printed(folder: str | Path = PAPER) -> Evidence:
    """The paper's eight tables as printed: every predicate has an exact value."""
    tables = _tables(folder)
    values = {
        t: {next(iter(r.values())): {b: float(r[c]) if r[c] else None for b, c in COLUMNS.items()} for r in tables[t]} for t in (3, 4, 5)
    }
    values[6] = {r["method"]: {None: float(r["accuracy"])} for r in tables[6]}
    return Evidence("paper", World(values, tables, _variants(folder), document=True))


@cache
def _tables(folder: str | Path) -> dict[int, list[dict[str, str]]]:
    read = lambda n: pd.read_csv(Path(folder) / "printed" / f"table{n}.csv", dtype=str, keep_default_na=False).to_dict("records")
    return {n: read(n) for n in range(1, 9)}


@cache
def _variants(folder: str | Path) -> dict[tuple[int | str, str], str]:
    """(table, variant) -> the name printed in that table."""
    methods = pd.read_csv(Path(folder) / "printed" / "methods.csv")
    named = {(int(t), v): name for t, v, name in zip(methods["table"], methods["variant"], methods["paper_name"], strict=True)}
    named |= {(5, v): name for name, v in ABLATION.items()} | {(6, v): name for name, v in SYNTHETIC.items()}
    return named


def from_rows(df: pd.DataFrame, name: str = "runs", *, baseline_seed: int | None = None, draws: int = 1000, seed: int = 0) -> Evidence:
    """Tidy rows as evidence: own runs of one edition where there are any (`results.one_edition`), else the only source. Runs too small to
    be evidence are left out and counted.

    baseline_seed: compare with this baseline run only (the released results hold two of the mixed baseline, seeds 42 and 239).
    Raises ValueError when nothing is left, or when printed and released rows come together.
    """
    rows = df[df["source"].ne("constant")]
    sources = sorted(rows["source"].unique())
    if len(sources) > 1:
        rows = rows[rows["source"].eq("run")]
        if rows.empty:
            raise ValueError(f"{name}: rows of {' and '.join(sources)} together are no evidence of one thing; choose one source")
    small = rows["smoke"].astype(bool) if "smoke" in rows else pd.Series(False, index=rows.index)
    rows = rows[~small]
    if rows.empty:
        raise ValueError(f"{name}: no row that could be evidence ({int(small.sum())} rows of runs too small to be evidence were left out)")
    rows = results.select(results.one_edition(rows))
    if baseline_seed is not None:
        rows = _of_baseline(rows, baseline_seed, name)
    cells = _Cells(rows)
    tables, variants = _tables(PAPER), _variants(PAPER)
    slots = _slots(cells.keys, tables, variants)
    world = lambda accuracies: World(_fill(slots, accuracies.tolist()), tables, variants)
    basis = "seeds" if cells.seeds > 1 else "sampling of test examples only (one seed)"
    simulated = [world(a) for a in cells.simulate(draws, np.random.default_rng(seed))]
    return Evidence(name, world(cells.mean), simulated, basis, cells.seeds, int(small.sum()))


def _of_baseline(rows: pd.DataFrame, seed: int, name: str) -> pd.DataFrame:
    """The rows with one run of the mixed baseline."""
    baseline = rows["variant"].eq("baseline") & rows["regime"].eq("mixed")
    there = rows.loc[baseline, "seed"].dropna().unique()
    if seed not in there:
        seeds = ", ".join(f"{each:.0f}" for each in sorted(there)) or "none"
        raise ValueError(f"{name}: no mixed baseline of seed {seed}; its seeds: {seeds}")
    return rows[~baseline | rows["seed"].eq(seed)]


class _Cells:
    """Mean accuracies of (regime, variant, benchmark) cells, and how they might have come out."""

    def __init__(self, rows: pd.DataFrame):
        rows = rows.assign(seed=rows["seed"].fillna(-1))
        by_seed = rows.groupby(["regime", "variant", "benchmark", "seed"], dropna=False)[["value", "n"]].mean()
        table = by_seed["value"].unstack("seed")
        self.keys = {key: k for k, key in enumerate(table.index)}
        self.x = table.to_numpy()  # [cells s]
        self.n = by_seed["n"].groupby(level=[0, 1, 2]).mean().reindex(table.index).to_numpy()
        self.count = (~np.isnan(self.x)).sum(1)
        self.mean = np.nanmean(self.x, 1)
        self.seeds = int(self.count.min())

    def simulate(self, draws: int, rng: np.random.Generator) -> np.ndarray:
        """Accuracies `[draws cells]`: a multivariate t over seeds where there are several, Jeffreys' posterior of one accuracy else."""
        from scipy.stats import chi2

        several = self.count > 1
        out = np.tile(self.mean, (draws, 1))
        if several.any():
            count = self.count[several]
            deviation = np.nan_to_num(self.x[several] - self.mean[several, None]) / np.sqrt(count * (count - 1))[:, None]
            scale = np.sqrt((count - 1) / chi2.ppf(rng.uniform(size=(draws, 1)), count - 1))
            out[:, several] += rng.normal(size=(draws, self.x.shape[1])) @ deviation.T * scale
        known = ~several & (self.n > 0)
        hits = self.mean[known] * self.n[known] / 100
        out[:, known] = 100 * rng.beta(hits + 0.5, self.n[known] - hits + 0.5, (draws, int(known.sum())))
        return np.clip(out, 0, 100)


def _slots(keys: dict, tables: dict, variants: dict) -> dict:
    """Where each cell goes, `[table][method][benchmark] -> index`: under each regime and variant, and under the paper's tables and names.
    None where the paper left the cell empty and there is no measurement either."""
    slots: dict = {}
    for (regime, variant, bench), k in keys.items():
        slots.setdefault(regime, {"baseline": {}}).setdefault(variant, {})[bench] = k
    for table, regime in REGIMES.items():
        back = {name: variant for (t, variant), name in variants.items() if t == table}
        slots[table] = {}
        for row in tables[table]:
            name = next(iter(row.values()))
            found = slots.get(regime, {}).get(back[name], {})
            empty = {bench: None for bench, column in COLUMNS.items() if row.get(column) == ""}
            if SYNTHETIC_MOTION in found:
                found = found | {None: found[SYNTHETIC_MOTION]}
            slots[table][name] = empty | found
    return slots


def _fill(slots: dict, accuracies: list[float]) -> dict:
    """The slots with each index replaced by its accuracy."""
    put = lambda row: {bench: None if k is None else accuracies[k] for bench, k in row.items()}
    return {table: {method: put(row) for method, row in methods.items()} for table, methods in slots.items()}


def evidence(source, *, baseline_seed: int | None = None) -> Evidence:
    """`"paper"`, `"released"`, `"released@239"` (against the same-seed baseline), a path, tidy rows, or Evidence itself."""
    if isinstance(source, Evidence):
        return source
    if isinstance(source, pd.DataFrame):
        return from_rows(source, baseline_seed=baseline_seed)
    if source == "paper":
        return printed()
    if (released := re.fullmatch(r"released(?:@(\d+))?", str(source))) is not None:
        wanted = baseline_seed if baseline_seed is not None else int(released[1] or 42)
        return from_rows(results.load(PAPER / "released.csv"), f"released, mixed baseline of seed {wanted}", baseline_seed=wanted)
    rows = results.load(source) if isinstance(source, str | Path) else results.load(*source)
    return from_rows(rows, str(source), baseline_seed=baseline_seed)


# --- claims -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A statement and the predicates that formalise it; `formalises` names those that decide (None: all, empty: none can)."""

    id: str
    text: str
    predicates: dict[str, str]
    where: str = ""
    kind: str = "result"
    formalises: tuple[str, ...] | None = None
    expected: dict[str, bool] = field(default_factory=dict)
    status: str = ""
    note: str = ""
    new_data_test: str = ""

    def __post_init__(self) -> None:
        unknown = set(self.formalises or ()) - set(self.predicates)
        if unknown:
            raise ValueError(f"claim {self.id}: formalises names no predicate of it: {', '.join(sorted(unknown))}")
        for name, text in self.predicates.items():
            compile_predicate(text, f"claim {self.id}, predicate {name}")


def claim(id: str, text: str, *predicates: str) -> Claim:
    """A new claim in one line: `claim("mine", "LD lifts SSv2 by more than 2 points", 'delta("SSv2", "ld") > 2')`."""
    return Claim(id, text, {f"p{k}" if len(predicates) > 1 else "p": p for k, p in enumerate(predicates, 1)})


def load(path: str | Path = PAPER / "claims.json") -> list[Claim]:
    """The paper's claims, or those of another file of the same form."""
    try:
        items = json.loads(Path(path).read_text())["claims"]
        return [Claim(**item | {"formalises": None if "formalises" not in item else tuple(item["formalises"])}) for item in items]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a claims file ({error})") from error


def evaluate(source="paper", claims: Sequence[Claim] | None = None, *, baseline_seed: int | None = None) -> list[dict]:
    """Judge claims (default: the paper's) on evidence (see `evidence`).

    A dict per claim: `id, where, text, predicates` (name -> True, False, or None where undecided), `verdict`, `point` (name -> does it
    hold for
    the mean accuracies), `share` (name -> share of the accuracies that the evidence allows in which it holds), `basis`, `seeds`,
    `missing` (name -> what the evidence lacks), `status`, `note`.
    """
    known = evidence(source, baseline_seed=baseline_seed)
    return [_judge(item, known) for item in (load() if claims is None else claims)]


def _judge(item: Claim, known: Evidence) -> dict:
    out = {"id": item.id, "where": item.where, "text": item.text, "evidence": known.name, "basis": known.basis, "seeds": known.seeds}
    point, shares, missing = {}, {}, {}
    if item.kind == "document" and not known.point.document:
        values = dict.fromkeys(item.predicates)
        verdict = "not applicable"
    else:
        for name, text in item.predicates.items():
            try:
                code = compile_predicate(text)
                point[name], shares[name] = bool(code(known.point.env)), _share(code, known)
            except MissingEvidence as error:
                missing[name] = str(error)
        values = {name: _decide(shares.get(name)) for name in item.predicates}
        decisive = item.predicates if item.formalises is None else item.formalises
        verdict = _verdict([values[name] for name in decisive])
    extra = {"status": item.status, "note": item.note, "new_data_test": item.new_data_test}
    return out | {"predicates": values, "verdict": verdict, "point": point, "share": shares, "missing": missing} | extra


def _share(code: Code, known: Evidence) -> float:
    worlds = known.draws or [known.point]
    return sum(bool(code(world.env)) for world in worlds) / len(worlds)


def _decide(share: float | None) -> bool | None:
    if share is None or 1 - LEVEL < share < LEVEL:
        return None
    return share >= LEVEL


def _verdict(values: Sequence[bool | None]) -> str:
    if not values:
        return "not testable"
    if False in values:
        return "partly" if True in values else "contradicted"
    return "undecided" if None in values else "supported"


def table(judged: Iterable[dict]) -> pd.DataFrame:
    """Verdicts as a table: a row per claim, the predicates spelled out."""
    mark = {True: "yes", False: "no", None: "?"}
    return pd.DataFrame(
        {
            "id": item["id"],
            "where": item["where"],
            "claim": item["text"],
            "verdict": item["verdict"],
            "predicates": ", ".join(f"{name}: {mark[value]}" for name, value in item["predicates"].items()),
            "lacks": "; ".join(dict.fromkeys(item["missing"].values())),
            "basis": item["basis"],
        }
        for item in judged
    )


def beside(evidences: Mapping[str, object], claims: Sequence[Claim] | None = None) -> pd.DataFrame:
    """Verdicts on several pieces of evidence side by side: a row per claim, a column per name; None stands for evidence that is not there.

    Evidence that holds nothing to judge on (only runs too small, say) fills its column with "no evidence"; `attrs["why"]` says why, by
    name.
    """
    columns, why = {}, {}
    judged = evaluate("paper", claims)
    for name, source in evidences.items():
        try:
            found = None if source is None else evaluate(source, claims)
        except ValueError as error:
            found, why[name] = None, str(error)
        lacking = "no runs yet" if source is None else "no evidence"
        columns[name] = [lacking] * len(judged) if found is None else [item["verdict"] for item in found]
    out = pd.DataFrame(
        {"id": [i["id"] for i in judged], "where": [i["where"] for i in judged], "claim": [i["text"] for i in judged]} | columns
    )
    out.attrs["why"] = why
    return out


def main(evidence: str = "paper", as_json: bool = False) -> int:
    """Print the verdicts on `evidence`: paper, released, released@239 or a folder of runs; as JSON or as lines with a count. Returns 0."""
    judged = evaluate(evidence)
    if as_json:
        print(json.dumps(judged, indent=1, ensure_ascii=False))
        return 0
    rows = table(judged)
    for row in rows.itertuples():
        print(f"{row.id:4} {row.verdict:14} {row.claim}\n{'':19} {row.predicates}" + (f"\n{'':19} lacks {row.lacks}" if row.lacks else ""))
    counts = ", ".join(f"{n} {verdict}" for verdict, n in rows["verdict"].value_counts().items())
    print(f"\n{judged[0]['evidence']}: {counts}. Basis: {judged[0]['basis']}.")
    return 0
