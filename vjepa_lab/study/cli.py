"""`python -m vjepa_lab study ...`: plan, run, status, table; and single cells, for schedulers."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..options import Parser, UserError, setting
from .grid import HOW, Study
from .reading import load


def whole(least: int, text: str) -> int:
    """A whole number of an option, `least` or more."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number, {least} or more, got {text!r}")
    return int(text)


def silence(text: str) -> float:
    """Seconds of an option after which somebody counts as gone: well above those between two signs of life."""
    if (value := above_zero(text)) < 120:
        raise argparse.ArgumentTypeError(f"expected 120 s or more, got {text}: on NFS a living process may seem silent for a minute")
    return value


def above_zero(text: str) -> float:
    """A finite number of an option, above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


SETTINGS = {"action": "append", "type": setting, "default": [], "metavar": "NAME=VALUE"}
SIGNS = {"done": "#", "running": ">", "failed": "!", "stopped": "-", "open": "."}


def plan(parser: argparse.ArgumentParser) -> Callable:
    """what a study costs in time and disk, and which differences it will resolve"""
    parser.add_argument("--rate", type=above_zero, metavar="GFLOPS", help="speed of one run's training, where no run has been measured yet")
    said = "spread over seeds of paired differences, in points; default the median of what was collected, else 2, a guess"
    parser.add_argument("--sd", type=above_zero, help=said)
    parser.add_argument("--jobs", type=partial(whole, 1), help="runs at once; default one for each GPU, or for each core")
    _collected(parser, "; speed and spread are taken from there, too")

    def call(study, runs, only, rate, sd, jobs, but=(), collected=None, **_):
        from .forecast import forecast

        told = forecast(study, runs, rate_gflops=rate, sd=sd, jobs=jobs, only=only, but=but, collected=collected)
        print(f"{study}\n{told}")

    return call


def run(parser: argparse.ArgumentParser) -> Callable:
    """run what is missing: in order, as many cells at once as there is room, each failed one once more"""
    parser.add_argument("--jobs", type=partial(whole, 1), help="runs at once; default one for each GPU, or for each core")
    parser.add_argument("--retries", type=partial(whole, 0), default=1, help="how often a cell that failed is tried again (default 1)")
    _collected(parser)
    _notebooks(parser)
    _void_after(parser)

    def call(study, file, runs, preset, how, only, jobs, retries, notebooks, void_after, but=(), **_):
        from .local import run

        read = {"preset": preset, "how": how, "notebooks": notebooks}
        tally = run(study, file, runs, only=only, but=but, jobs=jobs, retries=retries, void_after_s=void_after, **read)
        left = len(study.chosen(only, but)) - tally.before - len(tally.done) - len(tally.failed)
        words = f"{len(tally.done)} done, {len(tally.failed)} failed, {tally.before} were done before"
        print(f"{study.name}: {words}" + (f"; stopped with {left} to go, the same command goes on" if tally.stopped else ""))
        return 128 + tally.stopped if tally.stopped else 1 if tally.failed else 0

    return call


def cell(parser: argparse.ArgumentParser) -> Callable:
    """run one cell: for schedulers; exit status 75 if another process has it, 128 + signal if it was stopped and has saved"""
    parser.add_argument("name", help="the cell's name, as `study list` prints it")
    parser.add_argument("--quiet", action="store_true", help="no bar")
    _notebooks(parser)
    _void_after(parser)

    def call(study, runs, name, quiet, notebooks, void_after, **_):
        from ..training.locks import Locked, restarted
        from .cell import run, silent
        from .local import PARENT, TAKEN, environment, watch_parent

        watch_parent()
        os.environ.update(environment(study))  # a scheduler may have said otherwise
        while True:
            try:
                print(run(study.cell(name), runs, notebooks, void_after_s=void_after, progress=not quiet))
                return 0
            except Locked as held:
                print(f"vjepa-lab: {held}", file=sys.stderr)
            # A job that is started again after its node was lost finds its own lock. (A `study run` looks again by itself.)
            waits = (void_after is not None or restarted()) and PARENT not in os.environ
            if not waits or not silent(Path(runs) / name):
                return TAKEN

    return call


def listing(parser: argparse.ArgumentParser) -> Callable:
    """the names of the cells, in the order in which they run"""

    parser.add_argument("--json", dest="as_json", action="store_true", help="with the folder, and the GPUs and cores of each cell")
    _collected(parser)

    def call(study, runs, only, as_json, but=(), **_):
        names = [each.name for each in study.chosen(only, but)]
        if as_json:
            gpus = study.gpus if study.on_gpus else 0
            print(json.dumps({"study": study.name, "runs": str(runs), "gpus": gpus, "cores": study.cores, "cells": names}))
        else:
            print("".join(f"{name}\n" for name in names), end="")

    return call


def status(parser: argparse.ArgumentParser) -> Callable:
    """where every cell stands, and what went wrong where"""
    _collected(parser)

    def call(study, runs, only, but=(), **_):
        from .cell import state

        found = {each: state(each, runs) for each in study.chosen(only, but)}
        count = Counter(each.state for each in found.values())
        if not found:
            print(f"{study.name}: nothing is left")
            return 0
        print(f"{study.name} in {runs}: " + ", ".join(f"{count[name]} {name}" for name in SIGNS if count[name]))
        print("\n".join(_map(study, found)))
        for name in ("running", "stopped", "failed"):
            for each, here in found.items():
                if here.state == name:
                    print(f"{name:8}{each.name}  {here.text}")
        return 1 if count["failed"] else 0

    return call


def _map(study: Study, found: dict) -> list[str]:
    """A line per row of the study, a sign per seed."""
    lines: dict[tuple[str, str], dict[int, str]] = {}
    for each, here in found.items():
        lines.setdefault((each.regime.name, each.row), {})[each.seed] = SIGNS[here.state]
    width = max(len(f"{regime}  {row}") for regime, row in lines)
    legend = "  ".join(f"{sign} {name}" for name, sign in SIGNS.items())
    rows = []
    for (regime, row), signs in lines.items():
        rows.append(f"{f'{regime}  {row}':{width}}  " + "".join(signs.get(seed, " ") for seed in study.seeds))
    return [f"{'':{width}}  seeds {study.seeds[0]} to {study.seeds[-1]}   ({legend})", *rows]


def table(parser: argparse.ArgumentParser) -> Callable:
    """every measurement so far in one table; as csv with --csv"""
    parser.add_argument("--metric", default="top1")
    parser.add_argument("--csv", type=Path, help="write every measurement to this file instead")

    def call(study, runs, only, metric, csv, **_):
        from ..evidence.overview import overview
        from .export import rows

        found = rows(study, runs, only)
        if csv:
            csv.parent.mkdir(parents=True, exist_ok=True)
            found.to_csv(csv, index=False)
            print(f"{len(found)} measurements:  {csv}")
            return
        found = found[found["metric"].eq(metric) & found["source"].eq("run")]
        if found.empty:
            raise UserError(f"{runs}: nothing measured yet with metric {metric!r}")
        for regime, part in found.groupby("regime", sort=False):
            print(f"\n{regime}: means over seeds\n{overview(part, ['variant', 'edition']).to_string(na_rep='')}")

    return call


def collect(parser: argparse.ArgumentParser) -> Callable:
    """write what is to be kept of finished runs, rows and provenance without weights, as tables; what is there already stays"""
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="such as data/reference")

    def call(study, runs, only, to, **_):
        from .export import collect

        for path in collect(study, runs, to, only):
            print(f"{path}  {path.stat().st_size / 1e3:.0f} kB")

    return call


def prune(parser: argparse.ArgumentParser) -> Callable:
    """drop the weights of finished cells, or only their optimisers' state; what was measured stays"""
    parser.add_argument("--keep", choices=("model", "rows"), required=True, help="what stays: the model's weights, or the rows alone")

    def call(study, runs, only, keep, **_):
        from ..training import locks
        from .cell import LOCK, slim, state

        freed = []
        for each in study.chosen(only):
            if state(each, runs).state == "done":
                try:
                    with locks.hold(runs / each.name, name=LOCK, patience_s=0, option="--runs"):
                        freed.append(slim(runs / each.name, keep))
                except locks.Locked as held:  # another study may be probing it
                    freed.append(0)
                    print(f"vjepa-lab: {each.name} keeps its weights: {held}", file=sys.stderr)
        print(f"{sum(freed) / 1e9:.2f} GB freed in {sum(map(bool, freed))} of {len(freed)} finished cells")

    return call


def submit(parser: argparse.ArgumentParser) -> Callable:
    """submit the missing cells to Slurm as a job array, by submitit"""
    parser.add_argument("--cluster", choices=("slurm", "local", "debug"), help="default slurm where there is one, else this machine")
    parser.add_argument("--at-once", type=partial(whole, 1), default=64, help="most cells that run at the same time (default 64)")
    parser.add_argument("--wait", action="store_true", help="until all jobs have ended")
    said = "a parameter of submitit's executor, such as timeout_min=600 or slurm_partition=gpu"
    parser.add_argument("--set", dest="more", help=said, **SETTINGS)
    _collected(parser)
    _notebooks(parser)
    _void_after(parser)

    def call(study, file, runs, preset, how, only, cluster, at_once, wait, more, notebooks, void_after, but=(), **_):
        from .cluster import submit

        where = {"preset": preset, "how": how, "only": only, "but": but, "notebooks": notebooks, "void_after_s": void_after}
        if twice := sorted(dict(more).keys() & {"cluster", "at_once"}):
            raise ValueError(f"--set {twice[0]}: say it as --{twice[0].replace('_', '-')}")
        jobs = submit(study, file, runs, cluster=cluster, at_once=at_once, **where, **dict(more))
        print(f"{len(jobs)} cells submitted" + (f", jobs {jobs[0].job_id} to {jobs[-1].job_id}" if jobs else ""))
        ended = [job.exception() for job in jobs] if wait else []
        for error in filter(None, ended):
            print(str(error).strip().splitlines()[-1])
        return 1 if any(ended) else 0

    return call


def rerun(parser: argparse.ArgumentParser) -> Callable:
    """run one cell again from its provenance, elsewhere, and compare weights and rows bit by bit"""
    parser.add_argument("name", help="the cell's name")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="where it runs again; default RUNS-rerun, then RUNS-rerun-2, ...")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="a collected folder, such as data/reference; default the run itself")
    _notebooks(parser)

    def call(study, runs, name, into, against, notebooks, **_):
        from .export import rerun

        report = rerun(study.cell(name), runs, into=into, against=against, notebooks=notebooks)
        print(report)
        return 0 if report.equal else 1

    return call


def _notebooks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--notebooks", type=Path, metavar="FOLDER", help="where 01_pretrain and 02_probe are; default the project's")


def _collected(parser: argparse.ArgumentParser, more: str = "") -> None:
    said = "leave out the cells that were collected there, such as data/reference: they were run elsewhere, or before"
    parser.add_argument("--collected", type=Path, metavar="FOLDER", help=said + more)


def _there(study: Study, folder: Path) -> list[str]:
    """The names of the cells that are collected in a folder."""
    from .export import RUNS, collected

    if not (folder / RUNS).is_file():
        raise UserError(f"{folder / RUNS}: not there; --collected takes a folder that `study collect` wrote")
    there = [each.name for each in collected(study, folder)]
    print(f"{len(there)} of {len(study.cells)} cells of {study.name} are in {folder}", file=sys.stderr)
    return there


def _void_after(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--void-after",
        type=silence,
        metavar="SECONDS",
        help="take over cells of other machines that were silent for so long (120 or more); default never",
    )


COMMANDS = {
    "plan": plan, "run": run, "status": status, "table": table, "collect": collect, "rerun": rerun, "prune": prune, "submit": submit,
    "list": listing, "cell": cell,
}  # fmt: skip
ONE_CELL = ("rerun", "cell")
"Commands whose cell is named: there is nothing to choose from."


def main(argv: list[str]) -> int:
    """`study COMMAND FILE.py ...`; returns the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = "\n".join(f"  {name:8}{command.__doc__}" for name, command in COMMANDS.items())
        print(f"usage: vjepa-lab study COMMAND FILE.py ...\n\n{lines}\n\nvjepa-lab study COMMAND --help says more.")
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        from ..arguments import suggest

        raise UserError(f"unknown command 'study {argv[0]}': {suggest(argv[0], COMMANDS)}")
    command = COMMANDS[argv[0]]
    parser = Parser(f"vjepa-lab study {argv[0]}", description=command.__doc__)
    parser.add_argument("file", type=Path, help="a Python file that defines `study`, such as studies/reference.py")
    call = command(parser)
    parser.add_argument("--preset", help="the size, instead of the study's own")
    said = f"how its runs are computed, instead of the study's own, such as gpus=1: {', '.join(HOW)}"
    parser.add_argument("--how", help=said, **SETTINGS)
    parser.add_argument("--runs", type=Path, metavar="FOLDER", help="where the runs are; default runs/<the study's name>")
    if argv[0] not in ONE_CELL:
        said = "only this cell, or those whose name contains this, or matches it as a shell pattern"
        parser.add_argument("--only", metavar="PATTERN", help=said)
    options = vars(parser.parse_args(argv[1:]))
    options["how"] = dict(options["how"])
    study = load(options["file"], options["preset"], options["how"])
    if options.get("collected"):
        options["but"] = _there(study, options["collected"])
    return call(study=study, **options | {"runs": options["runs"] or Path("runs") / study.name}) or 0
