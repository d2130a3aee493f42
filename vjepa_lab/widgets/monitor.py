"""The run monitor: how runs in a folder stand, also those that other processes train; stop them, go on with them, compare them."""

from __future__ import annotations

import asyncio
import html
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd

from ..arguments import suggest
from ..plots.clips import curves
from ..plots.style import embedded
from ..train import resumable
from ..training import locks
from ..training.runs import Run
from .base import Explorer, several

NUMBERS = dict.fromkeys(("loss", "clips_per_s", "eta_s", "updated"), float)


def overview(folder: str | Path = "runs") -> pd.DataFrame:
    """One row per run below `folder`: run, state, step, of, loss, clips_per_s, eta_s, updated (seconds ago), path.

    run    its path below `folder`
    state  "done", "training" (by whom, its lock says), "stopped", "begun" where nothing was logged yet, or "damaged" where config.json
           cannot be read

    Folders whose config.json speaks of something else, such as exported weights or a fine-tuning, are left out.
    """
    rows = [_standing(Run(config.parent), Path(folder)) for config in sorted(Path(folder).rglob("config.json"))]
    columns = ["run", "state", "step", "of", "loss", "clips_per_s", "eta_s", "updated", "path"]
    return pd.DataFrame([row for row in rows if row], columns=columns).astype(NUMBERS)


def _standing(run: Run, folder: Path) -> dict | None:
    """A run's row; None for a folder that holds something else, or is gone."""
    name = run.name if run.path == folder else run.path.relative_to(folder).as_posix()
    try:
        config = run.config
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return dict.fromkeys(NUMBERS) | {"run": name, "state": "damaged", "step": 0, "of": 0, "path": run.path}
    if not _of_a_run(config):
        return None
    last = _last_line(run.path / "metrics.jsonl")
    of, step = config["preset"]["steps"], last["step"] + 1 if last else 0
    alive = locks.holder(run.path) is not None
    done = (run.path / "report.json").exists()
    rate = last.get("clips_per_s") if last else None
    eta = (of - step) * config["preset"]["batch"] / rate if alive and rate else None
    return {
        "run": name,
        "state": "done" if done else "training" if alive else "stopped" if last else "begun",
        "step": of if done else step, "of": of, "loss": last and last["loss"], "clips_per_s": rate, "eta_s": eta,
        "updated": _age(run.path / "metrics.jsonl") if last else None, "path": run.path,
    }  # fmt: skip


def _of_a_run(config) -> bool:
    """Whether a config.json is that of a pretraining."""
    size = config.get("preset") if isinstance(config, dict) and "variant" in config else None
    return isinstance(size, dict) and {"steps", "batch"} <= size.keys()


def _age(path: Path) -> float:
    return max(0.0, time.time() - path.stat().st_mtime)


def _last_line(path: Path, most: int = 65536) -> dict | None:
    """The last whole record of a log; only its end is read."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - most))
        for line in reversed(file.read().decode(errors="replace").splitlines()):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None


class Standing:
    """A table of runs with bars of progress, and the curves of some of them."""

    def __init__(self, table: pd.DataFrame, figure):
        self.table, self.figure = table, figure

    def _repr_html_(self) -> str:
        return _page(self.table) + ("" if self.figure is None else embedded(self.figure._repr_png_(), "training curves"))


def _page(table: pd.DataFrame) -> str:
    """The table of runs as it is shown."""
    head = "".join(f"<th style='text-align:left'>{word}</th>" for word in ("run", "", "step", "loss", "clips/s", "left", "last word"))
    return f"<table><tr>{head}</tr>{''.join(map(_row, table.itertuples()))}</table>"


def _row(row) -> str:
    damaged = row.state == "damaged"
    share = row.step / row.of if row.of else float(not damaged)
    colour = {"done": "#7fb08a", "training": "#d9792b"}.get(row.state, "#9aa0a6")
    filled = f"<div style='width:{share:.0%};height:9px;background:{colour}'></div>"
    bar = f"<div style='width:110px;height:9px;border:1px solid #9aa0a6'>{filled}</div>"
    known = lambda value, text: "" if value is None or pd.isna(value) else text(value)
    cells = [
        html.escape(row.run), f"{bar}{row.state}", "" if damaged else f"{row.step} / {row.of}", known(row.loss, "{:.4f}".format),
        known(row.clips_per_s, "{:.1f}".format), known(row.eta_s, _span),
        known(row.updated, lambda s: _ago(s, row.state == "training")),
    ]  # fmt: skip
    return "<tr>" + "".join(f"<td style='text-align:left'>{cell}</td>" for cell in cells) + "</tr>"


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _ago(seconds: float, training: bool) -> str:
    """In whole units, and minutes only of a run that trains: a text that changes has all be drawn again."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size and (training or unit != "min"):
            return f"{seconds // size:.0f} {unit} ago"
    return "just now" if training else "this hour"


def monitor_view(folder: str | Path = "runs", compare: Sequence[str] | str | None = None) -> Standing:
    """How the runs below `folder` stand, and the curves of those named in `compare` (by default the three last written): loss and each
    term, the rank and spread of the teacher's tokens, gradient norm, throughput.

    Raises FileNotFoundError where there is no such folder, ValueError for a name in `compare` that no run there has.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; pretrain a run into it, or name another one")
    table = overview(folder)
    compare = (compare,) if isinstance(compare, str) else compare
    for name in compare or ():
        if name not in set(table["run"]):
            raise ValueError(f"compare: no run {name!r} below {folder}; {suggest(str(name), table['run'])}")
    return _compared(table, compare)


def _compared(table: pd.DataFrame, compare: Sequence[str] | None) -> Standing:
    logged = table.dropna(subset=["loss"])
    chosen = logged[logged["run"].isin(compare)] if compare is not None else logged.nsmallest(3, "updated")
    tables = {row.run: Run(row.path).metrics() for row in chosen.itertuples()}
    terms = dict.fromkeys(name for row in chosen.itertuples() for name in _last_line(row.path / "metrics.jsonl").get("parts", ()))
    more = [name for name in ("rank", *terms) if any(name in steps for steps in tables.values())]
    return Standing(table, curves(tables, more=more) if tables else None)


def stop(run: Run) -> None:
    """Ask the process that trains a run to save and stop after the present step.

    Raises ProcessLookupError where nobody trains it, or somebody on another machine or in another container does.
    """
    owner, _ = locks.holder(run.path) or (None, 0.0)
    if owner is None or not owner.near:
        where = f"trained by {owner}, which is not to be reached from here; stop it there" if owner else "nobody trains it now"
        raise ProcessLookupError(f"{run.path}: {where}")
    os.kill(owner.pid, signal.SIGTERM)


def go_on(run: Run) -> subprocess.Popen:
    """Go on with a run in a process of its own; what it prints goes to continued.log in the run's folder.

    Raises locks.Locked where a process trains it already; ValueError where its config.json is damaged, or only the call that began it can
    go on with it.
    """
    if held := locks.holder(run.path):
        raise locks.Locked(f"{run.path}: trained by {held[0] or 'another process'}; there is nothing to go on with until it stops")
    resumable(run)  # the other process would say so too, but there nobody would see it
    with (run.path / "continued.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "vjepa_lab", "resume", str(run.path)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def run_monitor(folder: str | Path = "runs", every: float = 5.0) -> Explorer:
    """Choose the runs to compare; stop them or go on with them. Until some are chosen by hand, runs that begin later take their place
    among the three compared.

    every  seconds between looks at the folder while the kernel has nothing else to do; 0: only when asked to. What they find is drawn
           where it differs from what is shown, and less often where drawing takes long, so that the kernel is free for other things
    """
    from ipywidgets import HTML, Button, HBox, IntText

    names = list(overview(folder)["run"])
    if not names:
        raise FileNotFoundError(f"{folder}: no run folder in it (none holds a run's config.json); pretrain one, or name another folder")
    own = tuple(names[-3:])
    clock = IntText(value=0)  # another number means another look
    said, shown = HTML(), ""
    buttons = {word: Button(description=word) for word in ("look again", "stop", "go on")}

    def view(compare, look) -> Standing:
        nonlocal shown
        table = overview(folder)
        shown = _page(table)
        return _compared(table, [name for name in compare if name in set(table["run"])] or None)  # a run may have gone since it was chosen

    made = Explorer(
        view,
        {"compare": several(names, own, "compare", rows=min(6, max(2, len(names)))), "look": clock},
        below=[HBox([*buttons.values(), said])],
        columns=1,
    )
    clock.layout.display = "none"

    def look(_=None):
        nonlocal own
        control = made.controls["compare"]
        there = list(overview(folder)["run"])
        if list(control.options) != there:
            chosen = tuple(name for name in control.value if name in there)
            if control.value == own:  # nobody chose others
                own = chosen = (*chosen, *(name for name in there if name not in control.options))[-3:]
            control.options = there
            control.value = chosen
        clock.value += 1

    def glance():
        if _page(overview(folder)) != shown:
            look()

    def each(action):
        def act(_):
            paths, refused = overview(folder).set_index("run")["path"], []
            for name in made.values["compare"]:
                try:
                    action(Run(paths[name]))
                except (KeyError, OSError, ValueError) as error:
                    refused.append(f"{name} is gone" if isinstance(error, KeyError) else str(error))
            said.value = html.escape("; ".join(refused))
            look()

        return act

    buttons["look again"].on_click(look)
    buttons["stop"].on_click(each(stop))
    buttons["go on"].on_click(each(go_on))
    if every:
        _watch(Path(folder).resolve(), glance, every)
    return made


_WATCHES: dict[Path, asyncio.Task] = {}


def _watch(folder: Path, look, every: float) -> None:
    """Look now and then while an event loop runs (in a kernel; not in a script): `every` so many seconds, or ten times as long as a look
    takes. One watch a folder: a cell run again takes it over."""

    async def watching():
        took = 0.0
        while True:
            await asyncio.sleep(max(every, 10 * took))
            began = time.monotonic()
            with suppress(OSError, ValueError):  # a folder that is being written, moved or removed: the next look will tell
                look()
            took = time.monotonic() - began

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    if folder in _WATCHES:
        _WATCHES[folder].cancel()
    _WATCHES[folder] = loop.create_task(watching())
