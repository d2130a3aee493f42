"""A study on one machine, or on several that share its folder: no server, a process for each cell, as many at once as there is room for.

Each cell is `python -m vjepa_lab study cell`, so a cell that dies takes nothing with it. Who runs what is settled by locks on the cells'
folders: any number of `study run` may work on one folder, and each takes what no other has.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from .. import notebook
from . import cell as cells
from .grid import Cell, Study

TAKEN = 75
"Exit status of a cell that another process has: try again later (sysexits.h)."
PARENT = "VJEPA_STUDY_PARENT"
"The process that a cell belongs to: when that is gone, the cell saves and stops."
POLL_S, LOOK_S = 0.2, 5.0


@dataclass(frozen=True, eq=False)
class Slot:
    """Room for one run: the environment that its process gets."""

    env: dict[str, str]


def slots(study: Study, jobs: int | None = None) -> list[Slot]:
    """Room on this machine: each GPU (or each group of `study.gpus`) takes a run; without GPUs, each `study.threads` cores do.

    `jobs` sets the number of runs at once; more than there are GPUs share them in turn.
    """
    if str(study.device).startswith("cuda:"):
        said = f"{study.name}: device={study.device!r} would be that of every run"
        raise ValueError(f"{said}; expected 'cuda', and CUDA_VISIBLE_DEVICES={study.device[5:]} for the one card")
    gpus = _gpus() if study.on_gpus else []
    groups = [gpus[i : i + study.gpus] for i in range(0, len(gpus) - study.gpus + 1, study.gpus)]
    if study.gpus > 1 and not groups:
        raise ValueError(f"{study.name} wants {study.gpus} GPUs for a run, and {len(gpus)} can be seen here; set gpus=1 in the study")
    if groups:
        return [Slot({"CUDA_VISIBLE_DEVICES": ",".join(groups[i % len(groups)])}) for i in range(jobs or len(groups))]
    from ..training.provenance import cores

    return [Slot(environment(study)) for _ in range(jobs or max(1, cores() // study.threads))]


def environment(study: Study) -> dict[str, str]:
    """Variables of a run without a GPU: sums in another number of threads differ in their last bits; and none is to see a GPU."""
    if study.on_gpus and _gpus():
        return {}
    unseen = {"CUDA_VISIBLE_DEVICES": ""} if study.device == "cpu" else {}  # its probes would take the first GPU, all of them
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(study.threads)) | unseen


def _gpus() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


@dataclass
class Tally:
    """How a study run ended."""

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    before: int = 0
    stopped: int = 0


def run(
    study: Study,
    file: str | Path,
    runs: str | Path,
    *,
    preset: str | None = None,
    how: Mapping | None = None,
    jobs: int | None = None,
    only: str | None = None,
    but: Collection[str] = (),
    notebooks: str | Path | None = None,
    retries: int = 1,
    void_after_s: float | None = None,
    progress: bool = True,
) -> Tally:
    """Run what is missing of a study, but the cells named in `but`; a cell that fails is tried again `retries` times, after the others.

    Raises ValueError before anything starts where a probe could not do what it is asked (`cell.check_probe`).
    Cells that another process runs are left to it and waited for. Ctrl-C and SIGTERM are passed on to the cells, which save; once more
    stops them at once. `file` is where the study came from: the cells' processes read it again, with `preset` and `how`, as `reading.load`
    does.
    """
    chosen = study.chosen(only, but)
    at_work = _Run(study, Path(file), Path(runs), preset, how, chosen, notebooks, retries, void_after_s)
    _check(at_work.open, at_work.runs)
    return at_work.go(slots(study, jobs), progress)


def _check(open: Sequence[Cell], runs: Path) -> None:
    """Raise ValueError for a benchmark that cannot be had: of the cells of a regime the first stands for all."""
    asked = {(cell.regime.name, step.name): (cell, step) for cell in reversed(open) for step in cells.open_steps(cell, runs / cell.name)}
    for cell, step in asked.values():
        if step.name in cell.study.probes:
            try:
                cells.check_probe(cell, step.params)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{step.name}: {error}") from None


class _Run:
    def __init__(self, study, file, runs, preset, how, chosen, notebooks, retries, void_after_s):
        self.study, self.file, self.runs, self.retries, self.void_after_s = study, file, runs, retries, void_after_s
        self.command = cells.command(file, runs, preset=preset, how=how, notebooks=notebooks, void_after_s=void_after_s)
        self.began, self.tally = time.time(), Tally()
        self.open = [cell for cell in chosen if not cells.settled(cell, runs)]
        self.total, self.tally.before = len(chosen), len(chosen) - len(self.open)
        self.active: dict[Slot, tuple[Cell, subprocess.Popen]] = {}
        self.wrong: dict[str, list[dict]] = {}
        "Failures that could not be written down: on a full disk they must count all the same."
        self.looked: dict[str, float] = {}
        self.tried: dict[str, int] = {}
        self.asked = 0.0

    def go(self, rooms: Sequence[Slot], progress: bool) -> Tally:
        self.runs.mkdir(parents=True, exist_ok=True)
        quiet = not (progress and sys.stderr.isatty())  # in a log file, the line of each cell says it all
        layout = "{desc} |{bar:20}| {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}"
        with (
            tqdm(total=self.total, initial=self.tally.before, desc=self.study.name, bar_format=layout, disable=quiet) as self.bar,
            self._stoppable(),
        ):
            while self.open or self.active:
                self._fill([room for room in rooms if room not in self.active] if not self.tally.stopped else [])
                for room, (cell, process) in list(self.active.items()):
                    if process.poll() is not None:
                        del self.active[room]
                        self._ended(cell, process.returncode)
                if self.tally.stopped and not self.active:
                    break
                self._show()
                time.sleep(POLL_S)
        return self.tally

    def _fill(self, rooms: list[Slot]) -> None:
        """Start the next cells that nobody has."""
        for cell in list(self.open) if rooms else ():
            if not rooms or self.tally.stopped:  # looking through many cells takes a while
                return
            if time.time() - self.looked.get(cell.name, 0) < LOOK_S:
                continue
            self.looked[cell.name] = time.time()
            if cells.taken(cell, self.runs, self.void_after_s):
                continue
            self.open.remove(cell)
            if cells.settled(cell, self.runs):  # by another study run
                self.bar.update()
            elif len(self._failures(cell)) > self.retries:
                self._gave_up(cell)
            else:
                self._start(cell, rooms.pop(0))

    def _start(self, cell: Cell, room: Slot) -> None:
        folder = self.runs / cell.name
        folder.mkdir(exist_ok=True)
        env = os.environ | room.env | {PARENT: str(os.getpid())}
        with (folder / "cell.log").open("a") as log:
            process = subprocess.Popen([*self.command, cell.name], stdout=log, stderr=log, env=env, start_new_session=True)
        self.active[room] = cell, process
        if self.tally.stopped:  # asked for while it started, when it was not among those that are told
            process.send_signal(self.tally.stopped)

    def _ended(self, cell: Cell, status: int) -> None:
        if status == TAKEN:  # another was quicker
            self.open.append(cell)
        elif status == 0:
            self.tally.done.append(cell.name)
            self.bar.update()
            self.bar.write(f"done    {cell.name}  {_took(self.runs / cell.name)}")
        elif not self.tally.stopped:
            folder = self.runs / cell.name
            if len(self._failures(cell)) == self.tried.get(cell.name, 0):  # it could not say itself what went wrong
                killed = f"killed by {signal.Signals(-status).name}; see {folder / 'cell.log'}" if status < 0 else ""
                self._note(cell, killed or _last_line(folder / "cell.log") or f"exit status {status}")
            tries = self.tried[cell.name] = len(self._failures(cell))
            if tries > self.retries:
                self._gave_up(cell)
            else:
                self.bar.write(f"again   {cell.name}  {self._failures(cell)[-1]['error']}")
                self.open.append(cell)

    def _gave_up(self, cell: Cell) -> None:
        last = self._failures(cell)[-1]
        self.tally.failed.append(cell.name)
        self.bar.update()
        kept = f"  (see {self.runs / cell.name / (last['notebook'] or 'cell.log')})"
        self.bar.write(f"failed  {cell.name}  {last['error']}{kept}")

    def _note(self, cell: Cell, error: str) -> None:
        try:
            cells.failed(self.runs / cell.name, "cell", error)
        except OSError:
            self.wrong.setdefault(cell.name, []).append({"time": time.time(), "step": "cell", "error": error, "notebook": None})

    def _failures(self, cell: Cell) -> list[dict]:
        """Failures since this run began, whoever's."""
        written = [each for each in cells.failures(self.runs / cell.name) if each["time"] >= self.began]
        return written + self.wrong.get(cell.name, [])

    def _show(self) -> None:
        if not self.bar.disable and time.time() - self.looked.get("", 0) > 2:
            self.looked[""] = time.time()
            now = [f"{cell.row} s{cell.seed} {_at(cell, self.runs)}" for cell, _ in self.active.values()]
            elsewhere = len(self.open) if not self.active else 0
            now += [f"{elsewhere} run elsewhere"] if elsewhere else []
            self.bar.set_postfix_str("; ".join(now))

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        def stop(number, _frame):
            if self.tally.stopped and time.monotonic() - self.asked < notebook.AGAIN_S:
                return
            again, self.tally.stopped, self.asked = self.tally.stopped, number, time.monotonic()
            for _, process in self.active.values():
                with suppress(ProcessLookupError):
                    process.send_signal(number)
            left = len(self.active)
            if left:
                word = "stopping at once" if again else f"running cells save and stop ({left}); once more to stop at once"
                print(f"\n{word}", file=sys.stderr)

        with notebook.taking_signals(stop):
            yield


def _at(cell: Cell, runs: Path) -> str:
    folder = runs / cell.name
    wanted = cells.open_steps(cell, folder)
    return cells.at(folder, wanted[0], cell) if wanted else ""


def _took(folder: Path) -> str:
    """Seconds and headline numbers of a finished cell."""
    seconds = sum(value or 0 for value in cells.about(folder).get("seconds", {}).values())
    return f"{cells.age(seconds)}  {headline(folder)}".rstrip()


def headline(folder: Path) -> str:
    """Top-1 of each benchmark of a run, such as motion 80.5  shape 31.8."""
    from ..evidence import results

    try:
        rows = results.read_run(folder)
    except ValueError as error:  # the cell is done all the same; whoever reads its rows is told
        return str(error)
    rows = rows[rows["metric"].eq("top1") & rows["source"].eq("run")] if len(rows) else rows
    return "  ".join(f"{row.benchmark.rpartition('/')[2]} {row.value:.1f}" for row in rows.itertuples())


def _last_line(log: Path) -> str:
    with suppress(FileNotFoundError):
        return next((line.strip() for line in reversed(log.read_text(errors="replace").splitlines()) if line.strip()), "")
    return ""


def watch_parent() -> None:
    """In a cell's process: when the study run that started it is gone, do what SIGTERM does, once."""
    import threading

    parent = int(os.environ.get(PARENT, 0))
    if not parent or os.getppid() != parent:
        return

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
