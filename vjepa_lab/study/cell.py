"""One cell of a study: its notebooks executed in order into its folder, what is done already left alone, and where it stands."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

from .. import notebook
from ..training import locks
from .grid import Cell, Step

LOCK, CELL, FAILURES, WEIGHTS = "cell.lock", "cell.json", "failures.jsonl", "last.pt"
LISTEN_S = 60.0
"Seconds in which a living owner of a lock gives several signs of life."
WHERE = {"out", "run", "runs", "device", "devices", "workers", "cache", "how"}
"Parameters that say where and how a notebook runs, not what comes out."


def notebooks_folder(given: str | Path | None = None) -> Path:
    """The folder of 01_pretrain and 02_probe: the given one, this project's, or `notebooks` here. Raises FileNotFoundError."""
    places = [Path(given)] if given else [Path(__file__).parents[2] / "notebooks", Path("notebooks")]
    for place in places:
        if (place / "01_pretrain.ipynb").is_file():
            return place
    raise FileNotFoundError(f"{places[-1]}: no 01_pretrain.ipynb there; name the folder of the notebooks with --notebooks")


# ------------------------------------------------------------------------------------------------------------------------- where it stands


@dataclass(frozen=True)
class State:
    """Where a cell stands: state is done, running, failed, stopped, or open; `text` says more in one line."""

    state: str
    text: str = ""


def result(folder: Path, step: Step) -> Path:
    """Where a step's executed notebook goes."""
    return folder / f"{step.name}.ipynb"


def is_done(folder: Path, step: Step) -> bool:
    """Whether a step's notebook was executed with the parameters that are wanted now."""
    out = result(folder, step)
    known = notebook.status(out) if out.is_file() else {}
    if known.get("state") != "done":
        return False
    there, wanted = decides(known["params"]), decides(step.params)
    if step.notebook == "01_pretrain":
        if "bf16" not in wanted:  # of either precision
            there.pop("bf16", None)
        elif there.get("bf16") is None:  # the device decided
            there["bf16"] = _config(folder).get("bf16")
    return there == wanted


def _config(folder: Path) -> dict:
    from ..evidence import results  # only here: it reads tables

    return results.config(folder)


def decides(params: Mapping) -> dict:
    """Of a notebook's parameters, those that decide what comes out, as JSON-like data."""
    return {name: value for name, value in json.loads(json.dumps(params)).items() if name not in WHERE}


def open_steps(cell: Cell, folder: Path) -> list[Step]:
    """The notebooks that are still to be executed; with the pretraining, where one of them needs weights that were deleted."""
    steps = cell.steps(folder)
    wanted = [step for step in steps if not is_done(folder, step)]
    if wanted and steps[0] not in wanted and not (folder / WEIGHTS).exists() and cell.size.steps:
        wanted.insert(0, steps[0])
    return wanted


def state(cell: Cell, runs: Path) -> State:
    """Where a cell stands, read from its folder alone."""
    folder = runs / cell.name
    if not folder.is_dir():
        return State("open")
    wanted = open_steps(cell, folder)
    if not wanted:
        return State("done")
    if held := _held(folder):
        owner, silent = max(held, key=lambda each: each[1])
        who = f"process {owner.pid} on {owner.host} since {owner.since}" if owner else "somebody"
        quiet = f", silent for {age(silent)}" if silent > 5 * locks.BEAT_S else ""
        return State("running", f"{at(folder, wanted[0], cell)}  ({who}{quiet})")
    known, wrong = notebook.status(result(folder, wanted[0])), failures(folder)
    if wrong and (known.get("state", "failed") == "failed" or (known["state"] == "killed" and wrong[-1]["time"] >= _began(known))):
        return State("failed", f"{wrong[-1]['step']}: {wrong[-1]['error']}")
    began = known or len(wanted) < len(cell.steps(folder))
    return State("stopped", at(folder, wanted[0], cell)) if began else State("open")


def _began(known: Mapping) -> float:
    """When the execution began that a status file tells of."""
    return datetime.fromisoformat(known["started"]).timestamp()


def settled(cell: Cell, runs: Path) -> bool:
    """Whether a cell is done, and what follows its last notebook too: a kill may come between the two."""
    return state(cell, runs).state == "done" and _finished(cell, runs / cell.name)


def _finished(cell: Cell, folder: Path) -> bool:
    return {step.name for step in cell.steps(folder)} <= about(folder).get("seconds", {}).keys()


def taken(cell: Cell, runs: Path, void_after_s: float | None = None) -> bool:
    """Whether another process has a cell; one that was silent for longer than `void_after_s` has lost it."""
    return any(void_after_s is None or since <= void_after_s for _, since in _held(runs / cell.name))


def _held(folder: Path) -> list[tuple[locks.Owner | None, float]]:
    """Who has a cell, and who trains its run, where there is somebody, each with the seconds since the last sign of life."""
    return [held for name in (LOCK, "lock") if (held := locks.holder(folder, name))]


def silent(folder: Path, listen_s: float | None = None) -> bool:
    """Whether a cell that was taken is to be had, or may come to be: who has it gives no sign of life for so long
    (`LISTEN_S`)."""
    listen_s = LISTEN_S if listen_s is None else listen_s
    if not _held(folder):
        return True
    time.sleep(listen_s)
    return all(since > listen_s / 2 for _, since in _held(folder))


def command(
    file: str | Path,
    runs: str | Path,
    *,
    preset: str | None,
    how: Mapping | None,
    notebooks: str | Path | None,
    void_after_s: float | None,
) -> list[str]:
    """What runs a cell of the study in `file` in a process of its own; the cell's name comes last."""
    words = [sys.executable, "-m", "vjepa_lab", "study", "cell", str(file), "--runs", str(runs), "--quiet"]
    words += [word for name, value in (how or {}).items() for word in ("--how", f"{name}={value}")]
    for flag, value in (("--preset", preset), ("--notebooks", notebooks), ("--void-after", void_after_s)):
        words += [flag, str(value)] if value is not None else []
    return words


def at(folder: Path, step: Step, cell: Cell) -> str:
    """How far the step that is next, or running, has come."""
    if step.notebook != "01_pretrain":
        return step.name
    with suppress(OSError, ValueError, IndexError, KeyError), (folder / "metrics.jsonl").open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 4096))
        return f"{step.name} step {json.loads(file.read().splitlines()[-1])['step']} of {cell.size.steps}"
    return step.name


def age(seconds: float) -> str:
    """A time span in one unit: 40 s, 12 min, 3.5 h."""
    return f"{max(seconds, 0):.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def failures(folder: Path) -> list[dict]:
    """What went wrong in a cell so far: {time, step, error, notebook}, oldest first."""
    found = []
    with suppress(FileNotFoundError):
        for line in (folder / FAILURES).read_text().splitlines():
            with suppress(ValueError):  # a full disk, or a kill, cuts a line short
                found.append(json.loads(line))
    return [each for each in found if isinstance(each, dict) and {"time", "step", "error", "notebook"} <= each.keys()]


def failed(folder: Path, step: str, error: str, kept: Path | None = None) -> Path | None:
    """Write down a failure; what is left of its notebook gets a name that the next attempt leaves alone, which is returned."""
    number = len(failures(folder)) + 1
    if kept is not None and kept.is_file() and kept.name.endswith(".failed.ipynb"):
        kept = kept.rename(kept.with_name(kept.name.replace(".failed.ipynb", f".failed-{number}.ipynb")))
    record = {"time": time.time(), "step": step, "error": error, "notebook": kept and kept.name}
    with (folder / FAILURES).open("a") as file:
        file.write("\n" * _cut(folder / FAILURES) + json.dumps(record) + "\n")
    return kept


def _cut(path: Path) -> bool:
    """Whether the last line of a file lacks its end."""
    return path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")


# --------------------------------------------------------------------------------------------------------------------------------- running


def run(
    cell: Cell, runs: str | Path, notebooks: str | Path | None = None, *, void_after_s: float | None = None, progress: bool = True
) -> Path:
    """Execute what is missing of a cell; returns its folder.

    void_after_s  take over from another machine's process that was silent for so long; None: never

    Raises Locked if another process has it, or took it over (nothing more is written then), NotebookError if a notebook fails (kept, and
    written down in failures.jsonl), Interrupted on Ctrl-C or SIGTERM, after training has saved; and before anything runs
    FileNotFoundError or ValueError for a notebook that is not there or lacks a parameter, and for a folder that holds another run.
    """
    folder, source = Path(runs) / cell.name, notebooks_folder(notebooks)
    with locks.hold(folder, name=LOCK, patience_s=1, void_after_s=void_after_s) as held:
        with locks.hold(folder, void_after_s=void_after_s):  # whoever lost the cell may have left that of its training, or may train on
            pass
        wanted = open_steps(cell, folder)
        if lacking := [step.notebook for step in wanted if not (source / f"{step.notebook}.ipynb").is_file()]:
            raise FileNotFoundError(f"{source / lacking[0]}.ipynb: no such notebook; the study names it for every cell")
        check(cell, wanted, source)
        if wanted and wanted[0] == cell.steps(folder)[0]:
            _refuse_another(cell, folder)
            if not (folder / WEIGHTS).exists() and (folder / "report.json").exists():  # finished once, its weights deleted since
                _write(folder, cell, {"weights_sha256": None, "seconds": {}})
                (folder / "report.json").unlink()
        for step in wanted:
            held.check()
            _execute(cell, step, folder, source, progress, held)
        if wanted or not _finished(cell, folder):
            held.check()
            _finish(cell, folder)
    return folder


def check(cell: Cell, steps: Iterable[Step], source: Path) -> None:
    """Raise ValueError if a notebook, or the probe in it, cannot take a step's parameters: known before hours of training, not after."""
    for step in steps:
        path = source / f"{step.notebook}.ipynb"
        try:
            usual = {name: argument.default for name, argument in notebook.parameters(path).items()}
            values = usual | notebook.check(path, step.params)
            if step.notebook == "02_probe":
                check_probe(cell, values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, for {step.name}: {error}") from None


def check_probe(cell: Cell, values: Mapping) -> None:
    """Raise ValueError or TypeError if a probe lacks an option that 02_probe would give it, or its data a split or a label."""
    options, own = values.get("options") or {}, {}
    if options:
        from ..data.splits import SHAPE
        from ..evaluation.evaluate import check_options, one_pace  # only here: it takes seconds

        check_options(values.get("probe") or "linear", options)
        own = {name: options[name] for name in SHAPE if options.get(name)}
        one_pace(**own)
    if any(values.get("labels") or ()) and notebook.workplace() == Path.cwd():  # elsewhere, the notebook takes a relative path for another
        from ..data import pair

        splits = values.get("train_split") or "train", values.get("test_split") or "test"
        shape = SimpleNamespace(**{name: getattr(cell.size, name) for name in ("frames", "size", "stride")} | own)
        pair(values.get("data") or cell.regime.data, splits, values["labels"], shape, values.get("limit"))


def _refuse_another(cell: Cell, folder: Path) -> None:
    """Raise ValueError if the folder holds a run of another size, data, precision or recipe: training would refuse it as well, but only
    after the notebook of that run was replaced."""
    from ..files import differing

    there = _config(folder)
    asked = {"preset": cell.size.plain(), "spec": cell.regime.data}
    asked |= {} if cell.study.bf16 is None else {"bf16": cell.study.bf16}
    known = {name: value for name, value in asked.items() if name in there}
    if isinstance(there.get("preset"), dict):
        known["preset"] = {name: value for name, value in asked["preset"].items() if name in there["preset"]}
    differ = differing({name: there[name] for name in known}, known)
    with suppress(FileNotFoundError):
        recipe = (folder / "recipe.txt").read_text().strip()
        differ += [f"recipe: {recipe} there, {cell.trained!r} asked"] if recipe != repr(cell.trained) else []
    if differ:
        raise ValueError(f"{folder} holds another run ({'; '.join(differ)}); name another folder with --runs, or remove it")


def _execute(cell: Cell, step: Step, folder: Path, source: Path, progress: bool, held: locks.Held) -> None:
    try:
        notebook.run(source / f"{step.notebook}.ipynb", result(folder, step), step.params, progress=progress)
    except notebook.NotebookError as error:
        held.check()  # what went wrong because another has the cell now is no failure of it
        with suppress(OSError), locks.hold(folder, patience_s=0):  # a kernel that was killed leaves the lock of its training
            pass
        said = str(error).split(" (see ")[0]
        kept = failed(folder, step.name, said, error.notebook)
        raise notebook.NotebookError(f"{said} (see {kept})", kept) from None
    except (ValueError, OSError) as error:
        failed(folder, step.name, f"{type(error).__name__}: {error}")
        raise
    held.check()
    if step.notebook == "01_pretrain":
        _write(folder, cell, {"weights_sha256": weights_hash(folder / WEIGHTS)})


def _finish(cell: Cell, folder: Path) -> None:
    if not about(folder).get("weights_sha256") and (folder / WEIGHTS).exists():  # a kill came before it was written down
        _write(folder, cell, {"weights_sha256": weights_hash(folder / WEIGHTS)})
    slim(folder, cell.study.keep)
    done = {step.name: notebook.status(result(folder, step)).get("seconds") for step in cell.steps(folder)}
    _write(folder, cell, {"seconds": done})


def weights_hash(path: Path) -> str:
    """sha256 of the student's, predictor's and teacher's weights in a checkpoint; equal exactly where every bit is."""
    from ..training import checkpoint

    return checkpoint.checksum(checkpoint.load(path)["model"])


def slim(folder: Path, keep: str) -> int:
    """Drop what is not to be kept of a finished run's checkpoints (see `Study.keep`); returns the bytes that it frees."""
    from ..training import checkpoint

    there = [path for path in checkpoint.kept(folder / WEIGHTS, 100) if path.exists()]
    before = sum(path.stat().st_size for path in there)
    if keep == "all" or not there:
        return 0
    for path in there[keep == "model" :]:
        path.unlink()
    if keep == "model" and "optimizer" in (state := checkpoint.load(there[0])):
        checkpoint.save({name: value for name, value in state.items() if name != "optimizer"}, there[0])
    return before - sum(path.stat().st_size for path in there if path.exists())


def about(folder: Path) -> dict:
    """cell.json of a run folder: study, row, provenance, the hash of its weights, seconds of each notebook; empty if there is none."""
    with suppress(FileNotFoundError):
        return json.loads((folder / CELL).read_text())
    return {}


def _write(folder: Path, cell: Cell, more: dict) -> None:
    from ..files import write_json

    same = {"study": cell.study.name, "cell": cell.name, "variant": cell.variant, "edition": cell.edition, "regime": cell.regime.name}
    write_json(folder / CELL, same | about(folder) | {"seed": cell.seed, "recipe": repr(cell.recipe)} | more)
