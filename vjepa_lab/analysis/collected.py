"""What a collected study says: how much of it is there, which objectives differ, which statements hold, what foretells a gain.

    study = load("data/reference")
    found = differences(study)
    print(completeness(study), verdict(found), sep="\\n")

Tables in, tables and sentences out. A study may be unfinished: what is missing is named, and what lacks seed pairs is left out of tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from vjepa_lab.evidence import claims, results, stats
from vjepa_lab.training.health import CollapseAlarm

UNTRAINED = stats.UNTRAINED
LAX = [name for name, adjusted in stats.ADJUSTED.items() if adjusted is stats.benjamini_hochberg]
"Families that are held to a false discovery rate of 10 %."
LEAST_STD = 0.05
"""Standard deviation of a run's features over clips below which their rank and spread count for nothing where they were read in bfloat16,
whose rounding has one of about 0.001. At 0.0005 it doubles RankMe (46 exact, 89 rounded), at 0.015 too (7, 14), at 0.07 and 0.16 it adds
0.2 and 0.5 (to 30 and 12)."""
LEAST = 3
"Seed pairs with the baseline that a row needs to be tested: an interval of two reaches thirteen standard errors to either side."
ROW = ["edition", "variant"]


@dataclass(frozen=True, eq=False)
class Collected:
    """Tables of one regime of a study, as `study collect` writes them, and what was planned.

    rows         measurements (`results.load`), benchmarks by their short names
    cells        a row per planned run: run, variant, edition, regime, seed, state
    predictions  what each probe said of each test clip;  curves: the logged steps;  alignment: gradients while training.  May be empty.
    """

    name: str
    rows: pd.DataFrame
    cells: pd.DataFrame
    predictions: pd.DataFrame
    curves: pd.DataFrame
    alignment: pd.DataFrame

    @property
    def benchmarks(self) -> list[str]:
        """What encoders were tested on, in the study's order."""
        tested = self.rows[self.rows["metric"].eq("top1") & self.rows["source"].eq("run")]
        return list(dict.fromkeys(tested["benchmark"]))

    @property
    def editions(self) -> list[str]:
        return list(dict.fromkeys(self.cells["edition"]))


def load(folder: str | Path = "data/reference", regime: str | None = None) -> Collected:
    """A collected study, or one regime of it.

    Raises FileNotFoundError where nothing was collected, ValueError if there are several regimes and none is chosen.
    """
    folder = Path(folder)
    planned = folder / "provenance" / "cells.csv"
    if not planned.is_file():
        raise FileNotFoundError(f"{planned}: no collected study there; write one with: study collect studies/reference.py --to {folder}")
    cells = pd.read_csv(planned)
    there = list(dict.fromkeys(cells["regime"]))
    if len(there) > 1 if regime is None else regime not in there:
        raise ValueError(f"{folder}: choose one regime of {', '.join(there)}" + (f", not {regime!r}" if regime else ""))
    cells = cells[cells["regime"].eq(regime or there[0])].reset_index(drop=True)
    runs = set(cells["run"])
    tables = {name: _table(folder / f"{name}.parquet", runs) for name in ("predictions", "curves", "alignment")}
    rows = results.load(folder / "rows.csv")
    short = _short(rows["benchmark"].unique())
    rows = rows[rows["run"].isin(runs)].assign(benchmark=rows["benchmark"].map(short)).reset_index(drop=True)
    if len(tables["predictions"]):
        tables["predictions"] = tables["predictions"].assign(benchmark=tables["predictions"]["benchmark"].astype(str).map(short))
    return Collected(folder.name, rows, cells, **tables)


def _table(path: Path, runs: set[str]) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame()
    table = pd.read_parquet(path)
    return table[table["run"].isin(runs)].reset_index(drop=True)


def _short(names: Iterable[str]) -> dict[str, str]:
    """Benchmark -> what follows its last slash; where two share that, the data set's own suffix goes before it: order/motion."""
    names = list(names)
    tail = {name: name.rpartition("/")[2] for name in names}
    taken, out = set(), {}
    for name in sorted(names, key=len):
        data = re.split("[:-]", name.rpartition("/")[0])[-1]
        out[name] = tail[name] if tail[name] not in taken else f"{data}/{tail[name]}"
        taken.add(tail[name])
    return out


# ------------------------------------------------------------------------------------------------------------------- how much is there


def standing(study: Collected, against: str = "baseline", least: int = LEAST) -> pd.DataFrame:
    """A row per planned row of the study: edition, variant, planned and done seeds, pairs with the baseline, and whether it is tested."""
    done = study.cells[study.cells["state"].eq("done")]
    seeds = done.groupby(ROW)["seed"].agg(set)
    table = study.cells.groupby(ROW, sort=False)["seed"].nunique().rename("planned").reset_index()
    own = [seeds.get((edition, variant), set()) for edition, variant in table[ROW].itertuples(index=False)]
    base = [seeds.get((edition, against), set()) for edition in table["edition"]]
    table["done"] = [len(found) for found in own]
    table["pairs"] = [len(found & reference) for found, reference in zip(own, base, strict=True)]
    table["tested"] = (table["pairs"] >= least) & table["variant"].ne(against)
    return table


def completeness(study: Collected, against: str = "baseline", least: int = LEAST) -> str:
    """How many cells were planned and are there, and which rows have too few seeds to be tested."""
    table = standing(study, against, least)
    planned, done = len(study.cells), int(study.cells["state"].eq("done").sum())
    whole = int(table["done"].eq(table["planned"]).sum())
    says = [f"{done} of {planned} planned runs are there; {whole} of {len(table)} rows have all their seeds."]
    part = table[table["done"].between(1, table["planned"] - 1)]
    if len(part):
        says.append("Fewer seeds: " + ", ".join(f"{_row(r)} {r.done} of {r.planned}" for r in part.itertuples()) + ".")
    few = table[~table["tested"] & table["done"].gt(0) & table["variant"].ne(against)]
    if len(few):
        says.append(f"Fewer than {least} seed pairs with {against}, so left out of every test: {', '.join(map(_row, few.itertuples()))}.")
    absent = table[table["done"].eq(0)]
    if len(absent):
        says.append(f"Not run yet: {', '.join(map(_row, absent.itertuples()))}.")
    if study.rows["smoke"].any():
        says.append("Demonstration size: shows that it runs, not what an objective does.")
    return " ".join(says)


def _row(row) -> str:
    return row.variant if row.edition == "sound" else f"{row.variant} ({row.edition})"


# ------------------------------------------------------------------------------------------------------------------------- differences


def comparable(study: Collected, edition: str = "sound", against: str = "baseline", least: int = LEAST) -> pd.DataFrame:
    """Top-1 of one edition's baseline and of the rows with at least `least` seed pairs, at the seeds that the baseline has; and constants.

    Raises ValueError if there is no such row.
    """
    table = standing(study, against, least)
    names = table.loc[table["edition"].eq(edition) & table["tested"], "variant"]
    if names.empty:
        raise ValueError(f"{study.name}: no row of the edition {edition!r} has {least} seed pairs with {against} yet")
    rows = study.rows[study.rows["source"].eq("constant") | study.rows["edition"].eq(edition)]
    rows = results.select(rows)
    own = rows["source"].eq("run")
    seeds = rows.loc[own & rows["variant"].eq(against), "seed"].unique()
    kept = rows["variant"].isin([against, *names]) & rows["seed"].isin(seeds)
    return rows[~own | kept].reset_index(drop=True)


def differences(study: Collected, edition: str = "sound", against: str = "baseline", least: int = LEAST) -> pd.DataFrame:
    """`stats.compare` over seed pairs, each row of an edition against that edition's baseline.

    Where predictions were kept, interval and p come from seeds and test clips as crossed random effects (`stats.paired_interval`; `basis`
    "seeds and samples", or "seeds and recordings" where clips are cut from common ones), with the interval over seeds alone beside them
    (`t_lo, t_hi`). The pre-registered family (`stats.FAMILY`, edition sound) is Holm-adjusted over all its planned tests, what cannot be
    tested yet counting as not rejected, so that a verdict does not turn on how far the study has come; the others are Benjamini-Hochberg
    at 10 %. Apart from them stand the untrained encoder (`family` "untrained") and, by themselves, the rows of which every run collapsed
    (`collapse`; "collapsed"): that these differ is sure, and sure rejections among the tests would loosen the rest. A difference without
    any spread over seeds has no p, and the interval that rounding leaves (`stats.rounding`).
    """
    rows = comparable(study, edition, against, least)
    table = stats.compare(rows, against, family=stats.FAMILY if edition == "sound" else ())
    table["t_lo"], table["t_hi"] = table["lo"], table["hi"]
    table.loc[table["variant"].isin(_collapsed(study, edition)) & table["family"].eq("exploratory"), "family"] = "collapsed"
    table = _crossed(table, study.predictions, rows, against)
    of_seeds = results.delta(rows, against).groupby(["variant", "benchmark", "probe", "seed"])["delta"].mean()
    spread = of_seeds.groupby(level=[0, 1, 2]).std().reindex(pd.MultiIndex.from_frame(table[["variant", "benchmark", "probe"]]))
    table.loc[spread.lt(1e-9).to_numpy(), "p"] = np.nan
    planned = sum(name in set(study.cells["variant"]) for name in stats.FAMILY) * len(study.benchmarks)
    table["p_adj"], table["planned"] = np.nan, 0
    for family, part in table.groupby("family"):
        missing = max(planned - len(part), 0) if family == "primary" else 0
        table.loc[part.index, "p_adj"] = stats.ADJUSTED[family]([*part["p"], *[1.0] * missing])[: len(part)]
        table.loc[part.index, "planned"] = len(part) + missing
    table["significant"] = table["p_adj"] < np.where(table["family"].isin(LAX), 0.10, 0.05)
    return table


def _collapsed(study: Collected, edition: str) -> set[str]:
    """The variants of an edition of which every run collapsed."""
    found, done = collapse(study), study.cells[study.cells["state"].eq("done") & study.cells["edition"].eq(edition)]
    fallen = found[found["collapsed"].astype(bool)]
    runs = done.groupby("variant")["run"].agg(set)
    return {variant for variant, own in runs.items() if own <= set(fallen["run"])}


def _crossed(table: pd.DataFrame, predictions: pd.DataFrame, rows: pd.DataFrame, against: str) -> pd.DataFrame:
    """The table with intervals that hold for other seeds and other test clips, where the predictions of every compared run are there."""
    if predictions.empty:
        return table
    wanted = rows.loc[rows["source"].eq("run"), ["run", "benchmark", "probe", "encoder"]].drop_duplicates()
    text = predictions.astype({name: str for name in ("run", "variant", "benchmark", "probe", "encoder")})
    found = text.merge(wanted, on=list(wanted))
    if found.empty:
        return table
    exact = stats.compare_predictions(found, against, draws=1).set_index(["variant", "benchmark", "probe"])
    exact = exact.reindex(pd.MultiIndex.from_frame(table[["variant", "benchmark", "probe"]]))
    whole = exact["seeds"].eq(table["seeds"].to_numpy()).to_numpy() & exact["p"].notna().to_numpy()
    for column in ("lo", "hi", "p", "basis"):
        table[column] = np.where(whole, exact[column], table[column])
    return table


def verdict(found: pd.DataFrame, against: str = "baseline") -> str:
    """Which objectives differ, in sentences computed from `differences`, and how much is left open."""
    if found["smoke"].any():
        return "Verdict: none; demonstration size only shows that it runs."
    says = []
    for family, what in (
        ("primary", "pre-registered comparisons (Holm, 5 %)"), ("exploratory", "exploratory comparisons (Benjamini-Hochberg, 10 %)"),
        ("collapsed", "exploratory comparisons of rows of which every run collapsed (Benjamini-Hochberg, 10 %)"),
    ):  # fmt: skip
        part = found[found["family"].eq(family)]
        if part.empty:
            awaited = family == "primary" and found["edition"].eq("sound").any()  # those that were registered are of this edition
            says.append(f"None of the {what} can be made yet." if awaited else "")
            continue
        sure, open_ = part[part["significant"]], part[~part["significant"]]
        planned = int(part["planned"].iloc[0])
        made = f"{len(part)}" + (f" (of {planned} planned)" if planned > len(part) else "")
        differ = "differs" if len(sure) == 1 else "differ"
        says.append(f"Of {made} {what} {len(sure)} {differ} from {against}" + (f": {_spelled(sure)}." if len(sure) else "."))
        if len(open_):
            reach = open_[["lo", "hi"]].abs().max(axis=1)
            says.append(
                f"The other {len(open_)} are undecided, not equal: their intervals still hold differences of up to "
                f"{reach.median():.1f} points (median; at most {reach.max():.1f})."
            )
    return " ".join(filter(None, says))


def _spelled(rows: pd.DataFrame) -> str:
    effect = lambda r: f"{r.benchmark} {r.delta:+.1f} [{r.lo:+.1f}, {r.hi:+.1f}]"
    parts = (f"{name} ({', '.join(map(effect, part.itertuples()))})" for name, part in rows.groupby("variant", sort=False))
    return minus("; ".join(parts)) if len(rows) <= 60 else f"{len(rows)} comparisons, see the table"


def minus(text: str) -> str:
    """Minus signs before numbers; hyphens of names stay."""
    return re.sub(r"(?<!\w)-(?=[\d.])", "−", text)


def trained(found: pd.DataFrame, against: str = "baseline") -> str:
    """Whether training taught anything: the baseline against the untrained encoder, per benchmark."""
    part = found[found["variant"].eq(UNTRAINED)]
    if part.empty:
        return f"Whether {against} beats the untrained encoder cannot be said yet: too few seeds of {UNTRAINED}."
    better = part[part["significant"] & part["delta"].lt(0)]
    gains = minus(", ".join(f"{r.benchmark} {-r.delta:+.1f} [{-r.hi:+.1f}, {-r.lo:+.1f}]" for r in part.itertuples()))
    lacking = [name for name in part["benchmark"] if name not in set(better["benchmark"])]
    tail = f"; not shown on {', '.join(lacking)}, where differences between objectives mean little" if lacking else ""
    return f"{against} over an untrained encoder: {gains} points{tail}."


def collapse(study: Collected) -> pd.DataFrame:
    """Which trained runs collapsed on the way: a row per run with logged steps.

    Columns run, edition, variant, seed; std, rank: of the teacher's tokens at the last logged step, their standard deviation over clips and
    places and their participation ratio (`health.spread`); collapsed: one of them fell below what `health.CollapseAlarm` warns of, at any
    logged step; features, rankme, rounded: of the pooled features as probed, their standard deviation over clips, their RankMe and whether
    rounding has a part in it (`features`).
    """
    columns = ["run", *ROW, "seed", "std", "rank", "collapsed", "features", "rankme", "rounded"]
    if not {"std", "rank"} <= set(study.curves):
        return pd.DataFrame(columns=columns)
    curves = study.curves.astype({"run": str}).sort_values("step").dropna(subset=["std"]).groupby("run")[["std", "rank"]]
    low = curves.min()
    found = curves.last().assign(collapsed=(low["std"] < CollapseAlarm.least_std) | (low["rank"] < CollapseAlarm.least_rank))
    probed = features(study).rename(columns={"std": "features"})
    return study.cells[["run", *ROW, "seed"]].merge(found.reset_index(), on="run").merge(probed, on="run", how="left")[columns]


def features(study: Collected) -> pd.DataFrame:
    """How a run's pooled features spread over clips, as probed (the student's, its output's, where there are others), means over worlds.

    Columns run; std: mean over channels of their standard deviation over clips; rankme; bf16: 1 where they were read so, NaN where it was
    not written down (all `evaluation.features.spread`); rounded: std is below `LEAST_STD`, and they were not, for all that is known, read
    in float32. The column std of training logs is another: of the teacher's tokens, over clips and places."""
    measured = ["std", "rankme", "bf16"]
    own = study.rows[study.rows["source"].eq("run") & study.rows["metric"].isin(measured) & study.rows["encoder"].ne(UNTRAINED)]
    for column, name in (("encoder", "student"), ("probe", "none")):  # of the encoder's output, on clips as it is usually shown
        usual = own[column].eq(name)
        own = own[usual | ~own["run"].isin(own.loc[usual, "run"])]
    table = own.pivot_table(values="value", index="run", columns="metric", aggfunc="mean")
    table = table.reindex(columns=measured).reset_index()
    return table.assign(rounded=table["std"].lt(LEAST_STD) & table["bf16"].ne(0))


def says_collapse(found: pd.DataFrame) -> str:
    """How many of the runs in `collapse` collapsed, and of which rows; and of how many the features are too still for the precision that
    they were read in (`features`)."""
    if found.empty:
        return "Whether runs collapsed cannot be said: their spread was not logged."
    ends = lambda x: f"{x.min():.3f}" + f" to {x.max():.3f}" * (x.nunique() > 1)
    parts = []
    for _, part in found.groupby(ROW, sort=False):
        if part["collapsed"].any():
            count = f"{part['collapsed'].sum()} of {len(part)}"
            parts.append(f"{_row(part.iloc[0])} {count} (standard deviation at the end {ends(part.loc[part['collapsed'], 'std'])})")
    head = (
        f"{found['collapsed'].sum()} of {len(found)} trained runs collapsed on the way (standard deviation of the teacher's tokens below "
    )
    head += f"{CollapseAlarm.least_std:g} or their participation ratio below {CollapseAlarm.least_rank:g})"
    others = found.loc[~found["collapsed"], "std"]
    tail = f"; of the others it ends at {others.min():.2f} to {others.max():.2f}." if len(others) else "."
    return head + (f": {', '.join(parts)}" if parts else "") + tail + _says_still(found)


def _says_still(found: pd.DataFrame) -> str:
    """Whose features are too still for their rank to count, from the columns of `collapse`; empty if nobody's."""
    rounded = found["rounded"].eq(True)
    still = found[rounded]
    if still.empty:
        return ""
    rank = f" (RankMe {still['rankme'].min():.0f} to {still['rankme'].max():.0f})" * bool(still["rankme"].notna().any())
    return (
        f" The features of {len(still)} of {found['features'].notna().sum()} have a standard deviation over clips below {LEAST_STD:g} and"
        f" were read in bfloat16 ({of_rows(found, rounded)}), whose rounding is no longer small there: their rank{rank} is in part one of"
        " rounding, no sign of rich features."
    )


def of_rows(found: pd.DataFrame, which: pd.Series) -> str:
    """How many runs of each row are among `which`: fwm 3 of 3, ..."""
    parts = found.assign(which=which).groupby(ROW, sort=False)
    return ", ".join(f"{_row(part.iloc[0])} {part['which'].sum()} of {len(part)}" for _, part in parts if part["which"].any())


# -------------------------------------------------------------------------------------------------------------------------- statements


def judged(study: Collected, statements: Sequence[claims.Claim], against: str = "baseline", least: int = LEAST) -> pd.DataFrame:
    """Statements in the language of `claims`, judged on the edition sound: a row per statement, its verdict, and the seeds behind it.

    Predicates name the study's benchmarks and variants; the table "here" is the study. Each statement is judged on the seeds that all the
    rows it names and the baseline share; with fewer than `least` it is "undecided", and `lacks` says for want of what.
    """
    rows = study.rows[study.rows["edition"].eq("sound") & study.rows["source"].eq("run")].assign(regime="here")
    rows = results.select(rows) if len(rows) else rows
    seeds = rows.groupby("variant")["seed"].agg(set) if len(rows) else pd.Series(dtype=object)
    return pd.DataFrame([_judge(item, rows, seeds, against, least) for item in statements])


def _judge(item: claims.Claim, rows: pd.DataFrame, seeds: pd.Series, against: str, least: int) -> dict:
    named = {against, *(name for text in item.predicates.values() for name in re.findall(r'"([^"]+)"', text))} - set(rows["benchmark"])
    named -= {"here"}
    common = set.intersection(*(seeds.get(name, set()) for name in named))
    out = {"id": item.id, "where": item.where, "claim": item.text, "rows": ", ".join(sorted(named - {against})), "seeds": len(common)}
    if len(common) < least:
        short = sorted(name for name in named if len(seeds.get(name, ())) < least)
        lacks = f"fewer than {least} seeds of {', '.join(short)}" if short else "seeds that its rows share"
        return out | {"verdict": "undecided", "predicates": "", "lacks": lacks, "note": item.note}
    part = rows[rows["variant"].isin(named) & rows["seed"].isin(common)]
    if part["smoke"].all():
        return out | {"verdict": "undecided", "predicates": "", "lacks": "runs large enough to be evidence", "note": item.note}
    (found,) = claims.evaluate(part, [item])
    shown = claims.table([found]).iloc[0]
    return out | {"verdict": found["verdict"], "predicates": shown["predicates"], "lacks": shown["lacks"], "note": item.note}


def tally(table: pd.DataFrame) -> str:
    """How many statements have which verdict, in one sentence."""
    count = table["verdict"].value_counts()
    waiting = int(table["lacks"].ne("").sum())
    words = ", ".join(f"{count[name]} {name}" for name in ("supported", "partly", "contradicted", "undecided") if name in count)
    return (
        f"Of {len(table)} statements, as restated for this world: {words}"
        + (f" ({waiting} of them for want of runs)" if waiting else "")
        + ". Each statement is decided at 95 % by itself, over seeds and on these very test clips; nothing is adjusted over statements."
        " What holds here need not hold on real video."
    )
