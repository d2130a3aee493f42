"""Run folders and one tidy table: a row per measurement, the same columns for the paper's numbers and for one's own.

Columns (missing = NaN):

| column | meaning |
|---|---|
| run | folder name of the run, or `paper/<regime>/<variant>` |
| variant | objective, as in `variants.py`: `baseline`, `fwm-hw-ld`, ... |
| edition | definition of the objective: `paper` (as printed), `released` (as coded), `sound` |
| seed | pretraining seed; the paper prints none |
| regime, pretrain | name of the pretraining setting (`ucf101`, `mixed`, a data set's name); its data in full |
| benchmark, probe, metric | what was measured: `D-48`, `attentive`, `top1` |
| value, lo, hi | the number and its 95 % sampling interval, in percent for accuracies |
| n | test samples behind the number |
| source | `paper` printed, `released` with the paper's code, `run` measured here, `constant` a predictor that ignores its input |

Further columns are kept: `encoder` (`student`, `teacher`, `random-init`), `preset` (the size of a run's model and training), `printed` (the
paper's name of the variant), `note`, `smoke` (too small to be evidence).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

COLUMNS = ["run", "variant", "edition", "seed", "regime", "pretrain", "benchmark", "probe", "metric", "value", "n", "lo", "hi", "source"]
REQUIRED = ("variant", "benchmark", "value")
NUMBERS = ("seed", "value", "n", "lo", "hi")
MEASURED = ("value", "n", "lo", "hi", "note", "smoke")
"Columns that say what came out; all the others say what was measured."

PROBES = {"D-48": "attentive", "IN-100": "linear", "SSv2": "attentive"}
"The paper's probe per benchmark (Table 2)."
PROBE_ORDER = ("attentive", "linear", "knn")
PACE = re.compile(r", (?:whole|\S+ fps)$")
"How rows say that clips are not every so many frames of a video (`evaluation.evaluate.said_of_pace`)."

SMOKE_N, SMOKE_STEPS = 100, 200
"A run tested on fewer samples or pretrained for fewer steps shows that the code runs, not what an objective does."

CHECKOUT = Path(__file__).resolve().parents[2]
"Of this package, which holds the paper's numbers in data/paper."

VOID_AFTER_S = 120.0
"Silence after which a process of another machine has lost its turn to write a table of rows."


# --- reading ----------------------------------------------------------------------------------------------------------


def load(*paths: str | Path) -> pd.DataFrame:
    """One tidy table from run folders, folders of run folders, csv files and folders of csv files, in any mixture.

    Run folders further below a folder are not read; `elsewhere` names them. "data/paper" and what is below it are the paper's numbers of
    this package's checkout, in whatever folder one works, unless that has a data/paper of its own.
    A measurement that occurs twice (printed in two tables, or probed again) is kept once, the last one read. Where own runs of one
    pretraining setting differ in size, each size is a regime of its own ("synthetic, micro"): they share no baseline.
    Raises FileNotFoundError for a path that does not exist, ValueError naming the file and column of a csv that is no such table.
    """
    if not paths:
        raise ValueError('load() needs at least one path, for example results.load("runs", "data/paper")')
    tables = [table for path in paths for table in _tables(Path(path))]
    return _sizes_apart(tidy(pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)))


def elsewhere(folder: str | Path = "runs") -> str:
    """In words, which folders below `folder` hold runs with results that `load(folder)` does not reach; empty where there are none."""
    folder = Path(folder)
    probed = (path for path in sorted(folder.rglob("rows.csv")) if (path.parent / "config.json").is_file())
    counts = Counter(path.parents[1] for path in probed if folder in path.parents[2:])
    if not counts:
        return ""
    there = ", ".join(f"{place.as_posix()} ({count} run{'s' * (count > 1)})" for place, count in counts.items())
    return f"Results are read from one folder, not from those in it. There are more in {there}: name one of these folders instead."


def _sizes_apart(table: pd.DataFrame) -> pd.DataFrame:
    if "preset" not in table:
        return table
    sizes = table.groupby("regime")["preset"].transform("nunique")
    apart = sizes.gt(1) & table["preset"].notna()
    return table.assign(regime=table["regime"].where(~apart, table["regime"] + ", " + table["preset"]))


def _tables(path: Path) -> list[pd.DataFrame]:
    if path.parts[:2] == ("data", "paper") and not path.exists():
        path = CHECKOUT / path
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such run folder, csv file or folder of them")
    if path.is_file():
        return [_read_csv(path)]
    if is_run(path):
        return [read_run(path)]
    inside = sorted(path.iterdir())
    runs = [read_run(folder) for folder in inside if folder.is_dir() and is_run(folder)]
    return [table for table in runs if len(table)] + [_read_csv(file) for file in inside if file.suffix == ".csv"]


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable csv table ({error})") from error
    lacking = [column for column in REQUIRED if column not in table]
    if lacking:
        raise ValueError(f"{path}: lacks the column {', '.join(lacking)}; a results table has {', '.join(COLUMNS)}")
    for column in (name for name in NUMBERS if name in table):
        bad = pd.to_numeric(table[column], errors="coerce").isna() & table[column].notna()
        if bad.any():
            raise ValueError(f"{path}: line {bad.idxmax() + 2}: {column} {table[column][bad.idxmax()]!r} is not a number")
    accuracy = table["metric"].isin(["top1", "top5"]) if "metric" in table else pd.Series(False, index=table.index)
    bad = accuracy & ~pd.to_numeric(table["value"]).between(0, 100) & table["value"].notna()
    if bad.any():
        raise ValueError(f"{path}: line {bad.idxmax() + 2}: an accuracy of {table['value'][bad.idxmax()]}; expected percent, 0 to 100")
    return table


def is_run(folder: str | Path) -> bool:
    """True for a run folder: one that holds config.json, metrics.jsonl or rows.csv."""
    return any((Path(folder) / name).is_file() for name in ("config.json", "metrics.jsonl", "rows.csv"))


def config(run: str | Path) -> dict:
    """config.json of a run folder; empty when it has none yet."""
    return _json(Path(run) / "config.json")


def report(run: str | Path) -> dict:
    """report.json of a run folder, what its training took; empty while it is not done."""
    return _json(Path(run) / "report.json")


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def read_run(run: str | Path) -> pd.DataFrame:
    """The rows of one run folder; what rows.csv leaves out is filled in from config.json. Empty when nothing was probed yet."""
    run = Path(run)
    if not (run / "rows.csv").is_file():
        return pd.DataFrame(columns=COLUMNS)
    known = config(run)
    size = known["preset"].get("name") if isinstance(known.get("preset"), dict) else None
    table = _fill(_read_csv(run / "rows.csv"), _about(run) | ({"preset": size} if size else {}))
    return table.assign(smoke=_steps(known) < SMOKE_STEPS)


def _fill(table: pd.DataFrame, facts: Mapping) -> pd.DataFrame:
    """The table with each fact where its column has none."""
    for column, value in facts.items():
        known = table[column].astype(object) if column in table else pd.Series(np.nan, index=table.index, dtype=object)
        table[column] = known.where(known.notna(), value)
    return table


def _about(run: Path) -> dict:
    """What config.json says of every row of a run. The regime is named after the pretraining data unless config.json names it."""
    known = config(run)
    known = {"regime": known.get("data"), "pretrain": known.get("data")} | known
    facts = {key: known.get(key) for key in ("variant", "edition", "seed", "regime", "pretrain")}
    return {"run": run.name, "source": "run", "metric": "top1"} | {key: v for key, v in facts.items() if isinstance(v, str | int | float)}


def _steps(about: dict) -> float:
    """Pretraining steps by config.json; unknown counts as enough."""
    if about.get("probe") == "initial":  # evaluated as it was before training: no number of steps is too small
        return np.inf
    preset = about.get("preset")
    return about.get("steps", preset.get("steps", np.inf) if isinstance(preset, dict) else np.inf)


def metrics(run: str | Path) -> pd.DataFrame:
    """metrics.jsonl of a run: a row per logged step, the terms' values as columns `parts.<term>`.

    A last line cut short by a kill is left out; a broken line before it raises ValueError with its number.
    A step logged twice (a resumed run repeats what it had not saved) counts once, the later line.
    """
    path = Path(run) / "metrics.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: this run has logged no step yet")
    lines, logged = path.read_text().splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            logged.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}: line {number} is not valid JSON ({error})") from error
    table = pd.json_normalize(logged)
    return table.drop_duplicates("step", keep="last", ignore_index=True) if "step" in table else table


def predictions(*runs: str | Path) -> pd.DataFrame:
    """Predictions per test sample of run folders (predictions/*.parquet), with `run`, `variant` and `seed` filled in from config.json."""
    tables = []
    for run in map(Path, runs):
        about = {key: value for key, value in _about(run).items() if key in ("run", "variant", "seed", "regime")}
        for file in sorted((run / "predictions").glob("*.parquet")):
            table = pd.read_parquet(file)
            tables.append(table.assign(**{key: value for key, value in about.items() if key not in table}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["run", "variant", "seed", "benchmark", "probe"])


def tidy(table: pd.DataFrame) -> pd.DataFrame:
    """Columns in order, numbers as numbers, intervals filled in where n is known, each measurement once."""
    table = table.reindex(columns=[*COLUMNS, *(column for column in table if column not in COLUMNS)])
    for column in set(COLUMNS).union(("encoder", "printed", "note")) & set(table):
        table[column] = (
            pd.to_numeric(table[column]) if column in NUMBERS else table[column].astype(object)
        )  # an empty text column reads as float
    table["source"] = table["source"].fillna("run")
    table["metric"] = table["metric"].fillna("top1")
    small = (table["source"] == "run") & (table["n"] < SMOKE_N)
    table["smoke"] = (table["smoke"].fillna(False).astype(bool) if "smoke" in table else False) | small
    open_ended = table["lo"].isna() & table["n"].gt(0) & table["value"].between(0, 100) & table["metric"].isin(["top1", "top5"])
    open_ended &= table["source"] != "constant"
    if open_ended.any():
        from .intervals import wilson  # only here: scipy takes a while

        table.loc[open_ended, ["lo", "hi"]] = np.column_stack(wilson(table.loc[open_ended, "value"], table.loc[open_ended, "n"]))
    key = [column for column in table if column not in MEASURED]
    place = table.groupby(
        key, dropna=False, sort=False
    ).ngroup()  # a repeated measurement keeps the place of the first and the value of the last
    return (
        table.assign(_place=place)
        .drop_duplicates("_place", keep="last")
        .sort_values("_place")
        .drop(columns="_place")
        .reset_index(drop=True)
    )


# --- writing ----------------------------------------------------------------------------------------------------------


def append_rows(run: str | Path, rows: Iterable[Mapping] | pd.DataFrame) -> Path:
    """Add measurements to `rows.csv` of a run folder (or to a csv file); a measurement made again replaces the old one.

    Each row needs at least `benchmark` and `value`; the rest comes from config.json. The file is replaced whole, so a kill leaves the
    old one. Of several processes one writes at a time, and the others wait for it.
    Raises ValueError for a row without them.
    """
    from vjepa_lab.files import replacing
    from vjepa_lab.training import locks

    run = Path(run)
    path = run if run.suffix == ".csv" else run / "rows.csv"
    new = _fill(pd.DataFrame(rows if isinstance(rows, pd.DataFrame) else list(rows)), _about(path.parent))
    lacking = [column for column in REQUIRED if column not in new or new[column].isna().any()]
    if lacking and len(new):
        raise ValueError(f"{path}: every row needs {', '.join(REQUIRED)}; missing here: {', '.join(lacking)}")
    with locks.hold(path.parent, name=path.name + ".lock", patience_s=math.inf, void_after_s=VOID_AFTER_S) as held:
        old = [_read_csv(path)] if path.is_file() else []
        table = tidy(pd.concat([*old, new], ignore_index=True)).drop(columns="smoke")
        with replacing(path) as part:
            table.to_csv(part, index=False)
            held.check()
    return path


# --- views ------------------------------------------------------------------------------------------------------------


def select(
    df: pd.DataFrame,
    *,
    regime: str | None = None,
    benchmarks: Iterable[str] | None = None,
    probe: str | None = None,
    encoder: str | None = None,
    metric: str = "top1",
) -> pd.DataFrame:
    """The rows of one regime, some benchmarks, and per benchmark one probe and one encoder: what may stand in one table.

    probe: by default the paper's probe of that benchmark, else the first of attentive, linear, knn, others that is there; own runs may have
      been probed so on other frames of the videos, such as "attentive, whole".
    encoder: by default the student where own runs measured several; a random-init encoder probed beside a trained one is left out.
    Constant predictors are kept. Raises ValueError when nothing is left, naming what there is, and when two own runs measured the same:
    one variant, edition and seed of one regime, such as a copy of a run folder or a run made again.
    """
    chosen = df[df["metric"].eq(metric)].reset_index(drop=True)
    if regime is not None:
        chosen = chosen[chosen["regime"].eq(regime) | chosen["source"].eq("constant")]
    if benchmarks is not None:
        chosen = chosen[chosen["benchmark"].isin(list(benchmarks))]
    constant = chosen["source"].eq("constant")
    if not (~constant).any():
        raise ValueError(
            f"no rows for regime={regime!r}, benchmarks={benchmarks and list(benchmarks)!r}, metric={metric!r}; the table has regimes"
            f" {_seen(df, 'regime')}, benchmarks {_seen(df, 'benchmark')}, metrics {_seen(df, 'metric')}"
        )
    kept = constant.copy()
    for benchmark, rows in chosen[~constant].groupby("benchmark"):
        kept[rows.index] = rows["probe"].eq(probe) if probe else _one_probe(benchmark, rows)
    chosen = chosen[kept & ~_other_encoder(chosen, encoder)]
    _refuse_twins(chosen[chosen["source"].eq("run") & chosen["run"].notna()])
    return chosen


def _refuse_twins(own: pd.DataFrame) -> None:
    """A mean over two runs of one seed would look like one run."""
    key = ["variant", "edition", "seed", "regime", "benchmark", "probe"]
    runs = own[[*key, "run"]].drop_duplicates()
    if (twins := runs.duplicated(key, keep=False)).any():
        first = runs[twins].iloc[0]
        same = runs[twins & runs[key].fillna("").eq(first[key].fillna("")).all(axis=1)]
        raise ValueError(
            f"the runs {', '.join(sorted(same['run']))} measured the same: {first['variant']}, seed {first['seed']:.0f}, pretrained on "
            f"{first['regime']}, {first['probe']} probe on {first['benchmark']}; load only one of them, or tell "
            "them apart when they are trained, with variant= or regime= of pretrain"
        )


def _other_encoder(df: pd.DataFrame, wanted: str | None) -> pd.Series:
    """True for own rows of another encoder than the wanted one (default: student, teacher, others, in this order, per benchmark, edition).

    A run of which nothing but the untrained encoder was measured keeps it by default: that is what its recipe evaluates.
    """
    other = pd.Series(False, index=df.index)
    own = df[df["source"].eq("run") & df["variant"].ne("random-init")] if "encoder" in df else df[:0]
    for _, rows in own.groupby(["benchmark", "edition"], dropna=False):
        there = [name for name in ("student", "teacher", *sorted(rows["encoder"].dropna().unique())) if rows["encoder"].eq(name).any()]
        if there:
            other[rows.index] = rows["encoder"].notna() & rows["encoder"].ne(wanted or there[0])
            untrained = rows["encoder"].eq("random-init").groupby(rows["run"]).transform("all") & (wanted is None)
            other[rows.index[untrained]] = False
    return other


def one_edition(df: pd.DataFrame) -> pd.DataFrame:
    """The table with own runs of one edition: the sound one where there are several, else the first by name. Other sources are kept."""
    own = df["source"].eq("run")
    there = sorted(df.loc[own, "edition"].dropna().unique(), key=lambda name: (name != "sound", name))
    return df[~own | df["edition"].isna() | df["edition"].eq(there[0])] if len(there) > 1 else df


def _one_probe(benchmark: str, rows: pd.DataFrame) -> pd.Series:
    """True for the rows of the main probe of a benchmark; own rows may have it on other frames of the videos alone (`PACE`)."""
    head = rows["probe"].str.replace(PACE, "", regex=True)
    there = sorted(head.dropna().unique())
    wanted = next((name for name in (PROBES.get(benchmark), *PROBE_ORDER, *there) if name in there), None)
    if wanted is None:
        return pd.Series(True, index=rows.index)
    own = head.eq(wanted) & rows["source"].eq("run")
    name = min(rows.loc[own, "probe"], default=wanted)  # the plain name comes before "attentive, whole"
    return head.eq(wanted) & (~own | rows["probe"].eq(name))


def _seen(df: pd.DataFrame, column: str) -> list:
    return sorted(df[column].dropna().unique())


def wide(df: pd.DataFrame, values: str = "value", index=("source", "variant"), columns: str = "benchmark") -> pd.DataFrame:
    """Means over seeds, a row per method and a column per benchmark, in the table's own order."""
    index = list(index)
    table = df.pivot_table(values=values, index=index, columns=columns, aggfunc="mean", sort=False)
    return table.reindex(columns=list(dict.fromkeys(df.loc[df[values].notna(), columns])))


GROUP = ["source", "regime", "benchmark", "probe", "metric"]
"What must agree before two rows may be compared."
ACCURACIES = ("top1", "top5")
"Metrics whose values are multiples of 100 / n."


def delta(df: pd.DataFrame, against: str = "baseline", baseline_seed: int | None = None) -> pd.DataFrame:
    """Each row's difference from the baseline: columns `base`, `base_n`, `delta` and `paired` added, the baseline's own rows left out.

    Runs are paired by seed (the seed fixes initialisation, data order and masks), with the baseline of the same edition; with another's
    only where that edition has none. A row whose seed the baseline lacks, or every row when `baseline_seed` names one baseline run, is
    compared with the mean of the baseline's rows and has `paired` False. Rows of a benchmark on which the baseline was not measured are
    left out.
    """
    rows = df[df["source"].ne("constant")]
    base = rows[rows["variant"].eq(against)]
    if base.empty:
        raise ValueError(f"no baseline {against!r} in the table; it has {_seen(rows, 'variant')}")
    if baseline_seed is not None:
        base = base[base["seed"].eq(baseline_seed) | base["seed"].isna()]
        if base.empty:
            raise ValueError(f"the baseline {against!r} was not run with seed {baseline_seed}")
    base, out = _keyed(base), rows[rows["variant"].ne(against)].reset_index(drop=True)
    wanted = _keyed(out)
    out["base"], out["base_n"], out["paired"] = np.nan, np.nan, False
    seeded = base[base["seed"].notna()] if baseline_seed is None else base[:0]
    own = pd.MultiIndex.from_frame(base[[*GROUP, "edition"]].drop_duplicates())
    foreign = ~pd.MultiIndex.from_frame(wanted[[*GROUP, "edition"]]).isin(own)
    for pool, keys in ((seeded, [*GROUP, "edition", "seed"]), (base, [*GROUP, "edition"]), (seeded, [*GROUP, "seed"]), (base, GROUP)):
        means = pool.groupby(keys, as_index=False).agg(_base=("value", "mean"), _n=("n", "mean"))
        found = wanted[keys].merge(means, on=keys, how="left")
        open_rows = out["base"].isna() & found["_base"].notna() & (foreign | ("edition" in keys))
        out.loc[open_rows, ["base", "base_n"]] = found.loc[open_rows, ["_base", "_n"]].to_numpy()
        out.loc[open_rows, "paired"] = "seed" in keys
    out["delta"] = out["value"] - out["base"]
    return out.dropna(subset=["delta"]).reset_index(drop=True)


def _keyed(df: pd.DataFrame) -> pd.DataFrame:
    """Missing names as empty strings, so that they compare equal."""
    return df.assign(**{column: df[column].astype(object).fillna("").astype(str) for column in (*GROUP, "edition")})


def constants(df: pd.DataFrame, metric: str = "top1") -> dict[str, dict[str, float]]:
    """What predictors that ignore their input reach, per benchmark: `{"D-48": {"majority-train": 3.5, "majority-test": 8.27}}`."""
    rows = df[df["source"].eq("constant") & df["metric"].eq(metric)]
    return {benchmark: dict(zip(part["variant"], part["value"], strict=True)) for benchmark, part in rows.groupby("benchmark")}


def flag_constant(df: pd.DataFrame) -> pd.Series:
    """Where a number is no better than a predictor that ignores its input: `"= majority-test"` when that constant lies inside the row's
    interval, `"< majority-test"` when the whole interval lies below it, else an empty string.

    The best constant of the same benchmark and metric decides: top-1 is held against the largest class, top-5 against the five largest,
    balanced accuracy against 1 / classes. It is one measured beside the row, in the same run; else one that belongs to no run, such as the
    paper's; else one of a test set of the same size. A row without such a constant is not flagged."""
    columns = df.reindex(columns=["benchmark", "metric", "lo", "hi", "n", "run"])
    known = columns.assign(regime=df.get("regime"), variant=df["variant"], value=df["value"])[df["source"].eq("constant")]
    best: dict[tuple, tuple[str, float]] = {}
    for row in known.sort_values("value").itertuples():  # the last one stays: the largest
        for place in (("no run",) if pd.isna(row.regime) else ("run", row.run), ("n", row.n)):
            best[row.benchmark, row.metric, *place] = row.variant, row.value

    def flag(benchmark: str, metric: str, lo: float, hi: float, n: float, run: object) -> str:
        found = (best.get((benchmark, metric, *place)) for place in (("run", run), ("no run",), ("n", n)))
        name, value = next(filter(None, found), ("", -np.inf))
        return "" if not lo <= value else f"= {name}" if value <= hi else f"< {name}"

    flags = [flag(*row) for row in columns.itertuples(index=False)]
    return pd.Series(flags, index=df.index, name="flag", dtype=object).where(df["source"].ne("constant"), "")


def random_init(df: pd.DataFrame) -> pd.DataFrame:
    """The rows that measured an untrained encoder, whatever their variant is called."""
    encoder = df["encoder"].eq("random-init") if "encoder" in df else False
    return df[df["variant"].eq("random-init") | encoder]
