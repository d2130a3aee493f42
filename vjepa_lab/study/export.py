"""What is kept of a study: rows, predictions, curves, and where each run comes from; and the check that a run can be had again."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from .. import variants
from ..evidence import results
from ..files import replacing
from ..training import locks
from . import cell as cells
from .grid import Cell, Study
from .reading import read

ROWS, RUNS, PREDICTIONS, CURVES = "rows.csv", "provenance/runs.csv", "predictions.parquet", "curves.parquet"
CELLS, ALIGNMENT, STUDY = "provenance/cells.csv", "alignment.parquet", "provenance/study.txt"


def rows(study: Study, runs: str | Path, only: str | None = None) -> pd.DataFrame:
    """Every measurement of a study so far, as `results.load` gives it; what ignores the encoder (constants) once for each benchmark.

    Raises FileNotFoundError if nothing was run yet.
    """
    found = _measured(study.chosen(only), runs)
    if found.empty:
        raise FileNotFoundError(f"{runs}: no run of {study.name} was probed there yet")
    return _constants_once(found)


def _measured(several: Iterable[Cell], runs: str | Path) -> pd.DataFrame:
    return results.tidy(_joined(results.read_run(Path(runs) / each.name) for each in several))


def _constants_once(table: pd.DataFrame) -> pd.DataFrame:
    constant = table["source"].eq("constant")
    again = table[constant].duplicated(["regime", "variant", "benchmark", "metric", "value", "n"])
    return table.drop(index=again[again].index).reset_index(drop=True)


def provenance(cell: Cell, runs: str | Path) -> dict:
    """Where a finished run comes from, one row: recipe, seed, versions, processor, threads, data, time, the hash of its weights, and, as
    JSON, every field of its preset (`size`) and what it was probed on (`benchmarks`)."""
    folder = Path(runs) / cell.name
    config, report, about = results.config(folder), results.report(folder), cells.about(folder)
    last = (config.get("sessions") or [{}])[-1]
    versions = last.get("versions", {})
    seconds = about.get("seconds", {})
    return {
        "run": cell.name, "variant": cell.variant, "edition": cell.edition, "regime": cell.regime.name, "seed": cell.seed,
        "recipe": (folder / "recipe.txt").read_text().strip(), "preset": config.get("preset", {}).get("name"),
        "steps": config.get("preset", {}).get("steps"), "data": config.get("spec"), "manifest": config.get("manifest"),
        "weights_sha256": about.get("weights_sha256"), "git": versions.get("git"), "torch": versions.get("torch"),
        "cuda": versions.get("cuda"), "python": versions.get("python"), "processor": last.get("processor"), "gpu": last.get("gpu"),
        "threads": last.get("threads"), "bf16": config.get("bf16"), "processes": last.get("processes"),
        "compile": last.get("compile"), "accumulate": last.get("accumulate"), "checkpoint": last.get("checkpoint"),
        "sessions": len(config.get("sessions") or []), "started": last.get("started"), "wall_s": report.get("wall_s"),
        "probes_s": round(sum(value or 0 for name, value in seconds.items() if name != "01_pretrain"), 1),
        "energy_j": (report.get("energy_j") or {}).get("gpu"), "alarms": len(report.get("alarms") or []),
        "size": json.dumps(config.get("preset")), "benchmarks": json.dumps(_benchmarks(cell)),
    }  # fmt: skip


def collect(study: Study, runs: str | Path, to: str | Path, only: str | None = None) -> list[Path]:
    """Write the finished runs of a study as tables into a folder that `results.load` reads; returns the files.

    rows.csv              every measurement
    predictions.parquet   what each probe said of each test clip, for paired statistics
    curves.parquet        the logged steps of each pretraining
    alignment.parquet     gradients measured while training (`alignment.Watch`) or at its ends (`ends.align`), where they were
    provenance/runs.csv   a row per run: where it comes from
    provenance/cells.csv  every cell that is planned, and where it stands: "done" if it is collected here
    provenance/study.txt  the study
    Cells that `to` holds and that are not finished in `runs` stay, so that what several machines ran, or what ran before the run folders
    were deleted, is collected in turn; of a cell that is in both, the run in `runs` counts, however the other was run. Each file is
    replaced whole, and one that has nothing to hold any more is deleted.

    Of several that collect into one folder one writes at a time, and the others wait for it.

    Warns where some runs trained in bf16 and others in fp32. Raises FileNotFoundError if no cell is finished, ValueError if `to` holds runs
    that are no cells of the study, or one that would stay and differs from the cell of its name (see `collected`).
    """
    runs, to = Path(runs), Path(to)
    standing = {each: cells.state(each, runs).state for each in study.cells}
    done = [each for each in study.chosen(only) if standing[each] == "done"]
    if not done:
        raise FileNotFoundError(f"{runs}: no cell of {study.name} is finished yet")
    with locks.hold(to, name="collect.lock", patience_s=math.inf, void_after_s=results.VOID_AFTER_S, option="--to") as held:
        return _collect(study, runs, to, done, standing, held)


def _collect(study: Study, runs: Path, to: Path, done: list[Cell], standing: dict[Cell, str], held: locks.Held) -> list[Path]:
    from ..analysis.alignment import FILE

    before = collected(study, to, strict=True, but=done)
    kept_here = {*done, *before}
    standing = {each: "done" if each in kept_here else state if state != "done" else "not collected" for each, state in standing.items()}
    table = _measured(done, runs).round({"value": 4, "lo": 4, "hi": 4})
    about = lambda each: {"run": each.name, "variant": each.variant, "edition": each.edition, "regime": each.regime.name, "seed": each.seed}
    tables = {
        ROWS: table.dropna(axis=1, how="all"),
        PREDICTIONS: _predictions(done, runs),
        CURVES: _joined(results.metrics(runs / each.name).assign(run=each.name) for each in done if each.size.steps),
        ALIGNMENT: _joined(pd.read_csv(file).assign(**about(each)) for each in done if (file := runs / each.name / FILE).is_file()),
        RUNS: pd.DataFrame([provenance(each, runs) for each in done]),
    }
    places = {each.name: place for place, each in enumerate(study.cells)}
    tables = {name: _with(kept, to / name, {each.name for each in before}, places) for name, kept in tables.items()}
    tables[ROWS] = _constants_once(tables[ROWS])
    tables[RUNS] = _told(tables[RUNS], _planned(to))
    _one_precision(tables[RUNS]["bf16"], study)
    tables[CELLS] = pd.DataFrame([about(each) | {"state": state} for each, state in standing.items()])
    (to / "provenance").mkdir(parents=True, exist_ok=True)
    held.check()
    for name, kept in tables.items():
        _replace(kept, to / name)
    with replacing(to / STUDY) as part:
        part.write_text(f"{study!r}\n")
    return [path for path in (to / name for name in (*tables, STUDY)) if path.exists()]


def _one_precision(bf16: pd.Series, study: Study) -> None:
    """Warn where some runs trained in bfloat16 and others did not."""
    many = int(bf16.eq(True).sum())
    if 0 < many < (known := int(bf16.notna().sum())):
        said = f"{many} of {known} runs of {study.name} trained in bf16, the others in fp32: differences between them may be of precision"
        warnings.warn(f"{said}. bf16=True or False in the study holds all to one", stacklevel=4)


def collected(study: Study, folder: str | Path, strict: bool = False, but: Collection[Cell] = ()) -> list[Cell]:
    """The cells of a study whose runs a collected folder holds; without those of `but`, such as what is about to be replaced.

    Raises ValueError where one of them is of another row, recipe, data set, preset or any field of it, or precision where the study says
    one, or was probed otherwise, than the study's cell of that name; `strict`: and where the folder holds runs that are no cells of the
    study. What runs.csv does not say of a run that an earlier version collected, the study that was written beside it does, if that can be
    read.
    """
    file = Path(folder) / RUNS
    if not file.is_file():
        return []
    known = pd.read_csv(file).set_index("run")
    if strict and (strange := sorted(set(known.index) - {each.name for each in study.cells})):
        raise ValueError(f"{file}: {strange[0]} is no cell of {study.name} ({len(strange)} such runs); name another folder")
    found = [each for each in study.cells if each.name in known.index and each not in but]
    planned = _planned(Path(folder)) if found else {}
    for each in found:
        for difference in _differences(each, known.loc[each.name].to_dict(), planned.get(each.name)):
            raise ValueError(f"{file}: {each.name} has {difference}; name another folder, or undo the change in the study")
    return found


def _planned(folder: Path) -> dict[str, Cell]:
    """The cells, by name, of the study that was collected into a folder last; none where it says none that can be read."""
    with suppress(OSError, ValueError):
        return {each.name: each for each in read((folder / STUDY).read_text()).cells}
    return {}


def _differences(cell: Cell, row: Mapping, planned: Cell | None) -> Iterator[str]:
    """In words, how a collected run is another than the cell of its name: "lr 0.0005, in the study it is 0.001"."""
    here = {"variant": cell.variant, "edition": cell.edition, "data": cell.regime.data, "preset": cell.study.preset}
    here |= {"steps": cell.size.steps}
    here |= {"bf16": cell.study.bf16} if pd.notna(row.get("bf16")) and cell.study.bf16 is not None else {}
    pairs = [(what, row[what], wanted) for what, wanted in here.items()]
    with suppress(ValueError, TypeError):  # a recipe that this version cannot read is not known to differ
        pairs += [("recipe", row["recipe"], cell.trained)] if variants.recipe(row["recipe"]) != cell.trained else []
    size = _said(row, "size", planned)
    pairs += [(what, size[what], wanted) for what, wanted in _plain(cell.size.plain()).items() if what in size]
    probed, wanted = _said(row, "benchmarks", planned), _benchmarks(cell)
    if probed and wanted.keys() - probed.keys():
        pairs += [("benchmarks", ", ".join(probed), ", ".join(wanted))]
    for name in (name for name in wanted if name in probed):
        pairs += [(f"{name}: {what}", probed[name][what], value) for what, value in wanted[name].items() if what in probed[name]]
    for what, there, wanted in pairs:
        if there != wanted:
            yield f"{what} {there}, in the study it is {wanted}"


def _said(row: Mapping, column: Literal["size", "benchmarks"], planned: Cell | None) -> dict:
    """What a collected run's row holds as JSON, else what was planned, else nothing."""
    if isinstance(text := row.get(column), str):
        return json.loads(text) or {}
    if planned is None:
        return {}
    return _plain(planned.size.plain()) if column == "size" else _benchmarks(planned)


def _told(table: pd.DataFrame, planned: Mapping[str, Cell]) -> pd.DataFrame:
    """runs.csv with what is known, or nothing as {}, in its empty cells `size` and `benchmarks`: the study beside is soon another."""
    rows = [row for _, row in table.iterrows()]
    fill = lambda row, name: row[name] if isinstance(row[name], str) else json.dumps(_said(row, name, planned.get(row["run"])))
    return table.assign(**{name: [fill(row, name) for row in rows] for name in ("size", "benchmarks")})


def _plain(values: Any) -> Any:
    return json.loads(json.dumps(values))


def _benchmarks(cell: Cell) -> dict[str, dict]:
    """What a cell is probed on: the parameters of each benchmark by its name."""
    names = [benchmark.name for benchmark in cell.study.benchmarks]
    return {name: cells.decides(step.params) for name, step in zip(names, cell.steps(Path())[1:], strict=False)}


def _with(table: pd.DataFrame, file: Path, runs: set[str], places: Mapping[str, int]) -> pd.DataFrame:
    """A table with the rows that a collected file holds of some runs, in the order of the cells."""
    if runs and file.is_file():
        there = pd.read_csv(file) if file.suffix == ".csv" else pd.read_parquet(file)
        text = there.select_dtypes("category").columns
        table = _joined([there.astype(dict.fromkeys(text, object))[there["run"].isin(runs)], table])
    return table.sort_values("run", key=lambda names: names.map(places), kind="stable", ignore_index=True) if len(table) else table


def _replace(table: pd.DataFrame, path: Path) -> None:
    if table.empty:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as part:
        if path.suffix == ".csv":
            table.to_csv(part, index=False)
        else:
            _small(table).to_parquet(part, compression="zstd", index=False)


def _joined(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    kept = [table for table in tables if len(table)]
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()


def _predictions(done: list[Cell], runs: Path) -> pd.DataFrame:
    """Predictions of every run, as `results.predictions` gives them, with the edition and without the margins."""
    parts = _joined(results.predictions(runs / each.name).assign(run=each.name, edition=each.edition) for each in done)
    return parts.drop(columns="margin", errors="ignore")


def _small(table: pd.DataFrame) -> pd.DataFrame:
    """The same table with repeated text as categories, whole numbers in as few bytes as they need, others in four."""
    for name in table:
        if table[name].dtype == object or isinstance(table[name].dtype, pd.StringDtype):
            table[name] = table[name].astype("category")
        elif pd.api.types.is_integer_dtype(table[name]):
            table[name] = pd.to_numeric(table[name], downcast="integer")
        elif pd.api.types.is_float_dtype(table[name]):
            table[name] = table[name].astype("float32")
    return table


# ------------------------------------------------------------------------------------------------------------------------------- again


@dataclass(frozen=True)
class Again:
    """A run beside its repetition in `folder`: whether weights and rows are the same, and what differs around them.

    rows       how many the first has, of which `differing` are others now, by `largest` at most, and `lacking` are not there any more
    new        rows of the repetition alone, which a later version measures
    """

    cell: str
    folder: Path
    weights: bool
    rows: int
    differing: int
    lacking: int
    new: int
    largest: float
    around: tuple[str, ...]

    @property
    def equal(self) -> bool:
        return self.weights and self.rows > 0 and self.differing == self.lacking == 0

    def __str__(self) -> str:
        weights = "weights equal bit by bit" if self.weights else "weights DIFFER"
        differ = f"{self.differing} of {self.rows} rows DIFFER, by {self.largest:.3g} at most"
        rows = differ if self.differing else f"all {self.rows - self.lacking} rows equal"
        rows += f", {self.lacking} more LACK" * (self.lacking > 0) + f", {self.new} are new" * (self.new > 0)
        around = "".join(f"\n  otherwise now: {line}" for line in self.around)
        return f"{self.cell}, run again in {self.folder}: {weights}, {rows}{around}"


AS_BEFORE = {"bf16": bool, "compile": bool, "accumulate": int, "checkpoint": bool}
"What a run is had again with, where the first one tells it; the precision where the study leaves it open."
SURROUNDINGS = ("recipe", "torch", "cuda", "python", "processor", "gpu", "threads", "processes", *AS_BEFORE, "manifest", "git")


def rerun(
    cell: Cell, runs: str | Path, *, into: str | Path | None = None, against: str | Path | None = None, notebooks: str | Path | None = None
) -> Again:
    """Run a finished cell again in another folder, on as many threads, in the precision and in the steps of computation of the first time,
    and compare weights and rows bit by bit.

    into     where it runs again; by default RUNS-rerun, or the first of RUNS-rerun-2, ... in which the cell is not finished yet. A rerun
             that was stopped goes on
    against  a collected folder (`collect`) whose run is to be had again; by default the run itself, in `runs`
    Raises ValueError if the run is not there, or was measured with weights of which no hash is kept, or is finished in `into` already, or
    was collected as another than the study's.
    """
    first, table = _known(cell, Path(runs), against and Path(against))
    if not isinstance(first.get("weights_sha256"), str):
        raise ValueError(f"{cell.name}: no hash of its weights is kept; it cannot be compared")
    into = Path(into) if into else next(folder for folder in _reruns(runs) if cells.state(cell, folder).state != "done")
    if cells.state(cell, into).state == "done":
        raise ValueError(f"{into / cell.name}: finished already, so nothing would run again; name another folder with --into, or remove it")
    if pd.notna(first.get("threads")):  # either variable decides
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(int(first["threads"])))
    told = {name: kind(first[name]) for name, kind in AS_BEFORE.items() if pd.notna(first.get(name))}
    told |= {} if cell.study.bf16 is None else {"bf16": cell.study.bf16}
    cell = replace(cell.study, **told).cell(cell.name)
    cells.run(cell, into, notebooks)
    second, fresh = _known(cell, into, None)
    what = ["benchmark", "probe", "metric", "encoder", "variant"]
    both = _rounded(table).merge(_rounded(fresh), on=what, how="outer", suffixes=("_first", "_again"), indicator="where")
    count = both["where"].value_counts()
    apart = (both["value_first"] - both["value_again"]).abs()[both["where"].eq("both")]
    now, then = ({name: about[name] for name in SURROUNDINGS if pd.notna(about.get(name))} for about in (second, first))
    around = [f"{name} {now.get(name)}, then {then.get(name)}" for name in SURROUNDINGS if str(now.get(name)) != str(then.get(name))]
    return Again(
        cell.name, into / cell.name,
        weights=first["weights_sha256"] == second["weights_sha256"],
        rows=int(count["both"] + count["left_only"]), differing=int(count["both"] - (apart == 0).sum()),
        lacking=int(count["left_only"]), new=int(count["right_only"]),
        largest=float(apart.max()) if apart.notna().any() else 0.0, around=tuple(around),
    )  # fmt: skip


def _reruns(runs: str | Path) -> Iterator[Path]:
    """RUNS-rerun, RUNS-rerun-2, and so on."""
    return (Path(f"{runs}-rerun" + (f"-{number}" if number > 1 else "")) for number in count(1))


def _known(cell: Cell, runs: Path, collected: Path | None) -> tuple[dict, pd.DataFrame]:
    """Provenance and rows of a run, from its folder or from where it was collected."""
    if collected is None:
        if cells.state(cell, runs).state != "done":
            raise ValueError(f"{runs / cell.name}: not a finished cell; run it first, or name a collected folder with --against")
        return provenance(cell, runs), results.read_run(runs / cell.name)
    known = pd.read_csv(collected / RUNS)
    known = known[known["run"].eq(cell.name)]
    if known.empty:
        raise ValueError(f"{collected / RUNS}: no run {cell.name} there")
    for difference in _differences(cell, known.iloc[0].to_dict(), _planned(collected).get(cell.name)):
        if not difference.startswith("recipe "):  # code that has changed since is what a comparison is to find
            raise ValueError(f"{collected / RUNS}: {cell.name} has {difference}; undo the change in the study, or name another folder")
    table = results.load(collected)
    return known.iloc[0].to_dict(), table[table["run"].eq(cell.name)]


def _rounded(table: pd.DataFrame) -> pd.DataFrame:
    """What an encoder was measured at, as `collect` writes it."""
    own = table[table["source"].eq("run")]
    return own[["benchmark", "probe", "metric", "encoder", "variant", "value"]].round({"value": 4})
