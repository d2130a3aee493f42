"""The cells of a study as a Slurm job array, by submitit (the extra `cluster`): the light way, without a workflow engine."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import cell as cells
from .grid import Study
from .local import TAKEN

SAVE_S = 90
"Seconds that a cell gets to save when its job is to end."


LINGER_S = 900
"Seconds that a job waits for Slurm to end it, once Slurm has announced that."

TIMEOUT_MIN = 24 * 60
"The time limit of a job, as in workflow/study.sbatch; submitit's own is five minutes."


class CellJob:
    """One cell, as submitit pickles it: a command. A job that is preempted, or out of time, has its cell save and is queued again."""

    def __init__(self, name: str, command: Sequence[str]):
        self.name, self.command, self.process = name, list(command), None

    def __call__(self) -> str:
        """What became of the cell. Raises RuntimeError if it failed, with where to read why."""
        self.process = subprocess.Popen(self.command, start_new_session=True)
        while (status := self.process.poll()) is None:  # within wait(), `checkpoint` could not wait for the process itself
            time.sleep(1)
        if status == TAKEN:
            return f"{self.name} is run by another process"
        if status == 128 + signal.SIGTERM:  # a preempted job that ends by itself counts as failed: it has saved, Slurm queues it again
            time.sleep(LINGER_S)
        if status:
            raise RuntimeError(f"{self.name} ended with status {status}; `study status` says why")
        return f"{self.name} is done"

    def checkpoint(self, *_args):
        """Called by submitit on Slurm's signal: stop the cell, which saves, and ask for the same job again."""
        import submitit

        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(SAVE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return submitit.helpers.DelayedSubmission(CellJob(self.name, self.command))


def submit(
    study: Study,
    file: str | Path,
    runs: str | Path,
    *,
    preset: str | None = None,
    how: Mapping | None = None,
    only: str | None = None,
    but: Collection[str] = (),
    notebooks: str | Path | None = None,
    void_after_s: float | None = None,
    cluster: str | None = None,
    at_once: int = 64,
    **slurm: Any,
) -> list:
    """Submit every cell that is not settled (`cell.settled`) and that no process has; returns submitit's jobs.

    preset, how   what the jobs read the study in `file` with (see `reading.load`)
    but  names of cells that are left out, such as those that were collected
    void_after_s  submit a cell, too, whose process was silent for so long: the job takes it over; None: never
    cluster  "slurm", "local" (processes of this machine, all at once) or "debug" (in this one); None: slurm where there is one
    at_once  most cells that run at the same time (Slurm's array throttle)
    slurm    further parameters of `submitit.AutoExecutor`, such as timeout_min=600 (by default a day), slurm_partition="gpu"

    Raises ModuleNotFoundError without submitit.
    """
    import submitit

    runs = Path(runs)
    chosen = study.chosen(only, but)
    left = [each for each in chosen if not cells.settled(each, runs) and not cells.taken(each, runs, void_after_s)]
    command = cells.command(file, runs, preset=preset, how=how, notebooks=notebooks, void_after_s=void_after_s)
    executor = submitit.AutoExecutor(folder=runs / ".submitit", cluster=cluster)
    gpus = study.gpus if study.on_gpus else 0
    given = {"name": f"study-{study.name}", "gpus_per_node": gpus, "cpus_per_task": study.cores, "timeout_min": TIMEOUT_MIN}
    if executor.cluster == "slurm":
        given["slurm_array_parallelism"] = at_once
    executor.update_parameters(**given | slurm)
    with executor.batch():
        return [executor.submit(CellJob(each.name, [*command, each.name])) for each in left]
