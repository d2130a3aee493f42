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
table can decide it), `not applicable` (a statement about the document, asked of other evidence). A predicate that asks for no number
(whether two are "several") judges the document alone.

With intervals, a statement is taken apart into comparisons that must hold together (`predicates.compile_parts`), and each has the share of
the accuracies that the evidence allows in which it holds. It is supported when every part holds in 97.5 % of them: none was picked, so
nothing is adjusted (intersection-union). It is contradicted when one part fails in 97.5 %, after Bonferroni over the parts among which this
one was found. So many parts that are each undecided contradict nothing, and neither does evidence too coarse to tell 1.5 from 1.7. What is
no conjunction (`or`, counts, sets) is one part. An accuracy measured with
several seeds varies jointly over seeds (a multivariate t, so differences vary as in a paired t-test), on these very test clips: what other
clips would change is not in it. One measured once varies by the sampling of its test set only, and `basis` says so. "Equals 5.92" then
means: within 1 point of it (0.1 for a correlation).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pandas as pd

from . import results
from .intervals import floored, rounding
from .predicates import Code, MissingEvidence, compile_parts, compile_predicate, measures
from .worlds import BENCH, SYNTHETIC_MOTION, World, Worlds

PAPER = Path(__file__).resolve().parents[2] / "data" / "paper"
COLUMNS = dict(zip(BENCH, ("d48", "in100", "ssv2"), strict=True))
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
LEVEL = 0.975
DRAWS = 2**15
"Simulated accuracies: a share of 1/200 is then known to some 5 % of itself, so that no verdict hangs on how they were drawn."
ONE_BY_ONE = 2000
"Of these, so many where a predicate has to be asked world by world."


# --- evidence ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Evidence:
    """What claims are judged on: `point`, the numbers as they are, and `draws`, the numbers as they might have been (None for a
    document)."""

    name: str
    point: World
    draws: Worlds | None = None
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


def from_rows(df: pd.DataFrame, name: str = "runs", *, baseline_seed: int | None = None, draws: int = DRAWS, seed: int = 0) -> Evidence:
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
    world = lambda accuracies: World(_fill(slots, accuracies), tables, variants)
    basis = "seeds" if cells.seeds > 1 else "sampling of test examples only (one seed)"
    simulated = Worlds(cells.simulate(draws, np.random.default_rng(seed)), world)
    return Evidence(name, world(cells.mean.tolist()), simulated, basis, cells.seeds, int(small.sum()))


def _of_baseline(rows: pd.DataFrame, seed: int, name: str) -> pd.DataFrame:
    """The rows with one run of the mixed baseline."""
    baseline = rows["variant"].eq("baseline") & rows["regime"].eq("mixed")
    there = rows.loc[baseline, "seed"].dropna().unique()
    if seed not in there:
        seeds = ", ".join(f"{each:.0f}" for each in sorted(there)) or "none"
        raise ValueError(f"{name}: no mixed baseline of seed {seed}; its seeds: {seeds}")
    return rows[~baseline | rows["seed"].eq(seed)]


class _Cells:
    """Mean accuracies of (regime, variant, benchmark) cells, and how they might have come out.

    One run on an unknown number of clips makes no cell: how it might have come out nobody can say. Nor do seeds that tie on one, by
    themselves or in their difference from another variant on the same benchmark; of two such variants the baseline stays.
    """

    def __init__(self, rows: pd.DataFrame):
        rows = rows.assign(seed=rows["seed"].fillna(-1))
        by_seed = rows.groupby(["regime", "variant", "benchmark", "seed"], dropna=False)[["value", "n"]].mean()
        table, n = by_seed["value"].unstack("seed"), by_seed["n"].groupby(level=[0, 1, 2]).mean()
        table = table[(table.notna().sum(axis=1) > 1) | n.reindex(table.index).gt(0)]
        self._measure(table, n)
        if lost := {second for first, second in self._ties() if np.isnan(self.least[[first, second]]).any()}:
            self._measure(table.drop(table.index[sorted(lost)]), n)

    def _measure(self, table: pd.DataFrame, n: pd.Series) -> None:
        self.keys = {key: k for k, key in enumerate(table.index)}
        self.x = table.to_numpy()  # [cells s]
        self.n = n.reindex(table.index).to_numpy()
        self.count = (~np.isnan(self.x)).sum(1)
        self.mean = np.nanmean(self.x, 1)
        self.seeds = int(self.count.min(initial=self.x.shape[1]))
        self.least = rounding(self.count, self.n)  # [cells], standard errors
        errors = np.sqrt(np.maximum(self.count * (self.count - 1), 1))
        self.deviation = np.nan_to_num(self.x - self.mean[:, None]) / errors[:, None]  # [cells s]; squares add up to a mean's variance

    def _ties(self) -> list[tuple[int, int]]:
        """Cells of several seeds that vary less than rounding alone makes them, (k, k), and pairs on one benchmark whose difference does,
        the baseline first."""
        groups: dict[tuple, list[int]] = {}
        for (regime, variant, bench), k in self.keys.items():
            if self.count[k] > 1:
                groups.setdefault((regime, bench), []).insert(0 if variant == "baseline" else len(self.keys), k)
        pairs = np.array([pair for group in groups.values() for pair in combinations_with_replacement(group, 2)], int).reshape(-1, 2)
        a, b = pairs.T
        spread = np.linalg.norm(self.deviation[a] - self.deviation[b] * (a != b)[:, None], axis=1)
        least = np.hypot(self.least[a], self.least[b] * (a != b))
        return list(map(tuple, pairs[floored(spread, least) != spread].tolist()))  # NaN, of an unknown number of clips, differs too

    def simulate(self, draws: int, rng: np.random.Generator) -> np.ndarray:
        """Accuracies `[draws cells]`: a multivariate t over seeds where there are several, Jeffreys' posterior of one accuracy else.

        What ties over seeds varies as much as rounding alone makes it (`intervals.rounding`): that few seeds agree is no certainty."""
        from scipy.stats import chi2, norm, qmc

        several = self.count > 1
        out, scale = np.tile(self.mean, (draws, 1)), np.ones((draws, len(self.mean)))
        if several.any():
            count = self.count[several]
            # Shares of an even sequence vary less than by chance; its ends have no finite quantile.
            even = qmc.Sobol(1 + self.x.shape[1], rng=rng).random_base2(math.ceil(math.log2(draws)))[:draws].clip(2**-31, 1 - 2**-31)
            scale[:, several] = np.sqrt((count - 1) / chi2.ppf(even[:, :1], count - 1))
            out[:, several] += norm.ppf(even[:, 1:]) @ self.deviation[several].T * scale[:, several]
        known = ~several
        hits = self.mean[known] * self.n[known] / 100
        out[:, known] = 100 * rng.beta(hits + 0.5, self.n[known] - hits + 0.5, (draws, int(known.sum())))
        tied = sorted({k for pair in self._ties() for k in pair})
        out[:, tied] += rng.normal(size=(draws, len(tied))) * self.least[tied] * scale[:, tied]
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


def _fill(slots: dict, accuracies: Sequence) -> dict:
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
    hold for the mean accuracies), `share` (name -> share of the accuracies that the evidence allows in which its weakest part holds),
    `basis`, `seeds`, `missing` (name -> what the evidence lacks), `status`, `note`.
    """
    known = evidence(source, baseline_seed=baseline_seed)
    return [_judge(item, known) for item in (load() if claims is None else claims)]


def _judge(item: Claim, known: Evidence) -> dict:
    out = {"id": item.id, "where": item.where, "text": item.text, "evidence": known.name, "basis": known.basis, "seeds": known.seeds}
    point, shares, missing = {}, {}, {}
    decisive = tuple(item.predicates) if item.formalises is None else item.formalises
    if not known.point.document:  # "several", of two: an answer about the text, which no run gave
        decisive = tuple(name for name in decisive if measures(item.predicates[name]))
    if item.kind == "document" and not known.point.document:
        values = dict.fromkeys(item.predicates)
        verdict = "not applicable"
    else:
        for name, text in item.predicates.items():
            try:
                point[name], shares[name] = _point_and_shares(text, known)
            except MissingEvidence as error:
                missing[name] = str(error)
        values = _decide({name: shares.get(name) for name in decisive})
        values = {name: values[name] if name in values else _decide({name: shares.get(name)})[name] for name in item.predicates}
        verdict = _verdict([values[name] for name in decisive])
    weakest = {name: min(parts, default=1.0) for name, parts in shares.items()}
    extra = {"status": item.status, "note": item.note, "new_data_test": item.new_data_test}
    return out | {"predicates": values, "verdict": verdict, "point": point, "share": weakest, "missing": missing} | extra


def _point_and_shares(text: str, known: Evidence) -> tuple[bool, list[float]]:
    """Whether a predicate holds for the mean accuracies; the share of the accuracies that the evidence allows in which each part holds."""
    whole, parts = compile_predicate(text), compile_parts(text)
    point = bool(whole(known.point.env))
    if known.draws is None:
        return point, [float(point)]
    try:
        return point, [float(np.mean(truths)) for truths in parts(known.draws.together.env)]
    except (LookupError, TypeError, ValueError):  # what is asked differs between worlds
        return point, _shares_one_by_one(whole, parts, known.draws[:ONE_BY_ONE])


def _shares_one_by_one(whole: Code, parts: Code, worlds: Sequence[World]) -> list[float]:
    try:
        truths = [parts(world.env) for world in worlds]
    except (LookupError, TypeError, ValueError):  # one part guards another, as in `len(xs) > 1 and xs[1] > 0`
        truths = []
    if len(set(map(len, truths))) != 1:
        truths = [[bool(whole(world.env))] for world in worlds]
    return np.mean(truths, axis=0).tolist()


def _decide(shares: Mapping[str, Sequence[float] | None]) -> dict[str, bool | None]:
    """True, False or None (undecided) for each of several predicates that a statement consists of, from the shares of their parts; no
    shares: it could not be evaluated.

    All together are true at 97.5 % each. One that is picked out needs Bonferroni: true while others are not, over the predicates; false,
    over the parts.
    """
    known = {name: parts for name, parts in shares.items() if parts is not None}
    weakest = {name: min(parts, default=1.0) for name, parts in known.items()}
    if len(known) == len(shares) and all(share >= LEVEL for share in weakest.values()):
        return dict.fromkeys(shares, True)
    high = 1 - (1 - LEVEL) / max(len(shares), 1)
    low = (1 - LEVEL) / max(sum(map(len, known.values())), 1)
    decided = {name: True if share >= high else False if share <= low else None for name, share in weakest.items()}
    return {name: decided.get(name) for name in shares}


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
