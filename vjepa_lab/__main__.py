"""The command line: `python -m vjepa_lab COMMAND`, or `vjepa-lab COMMAND`.

A command is a function of the library; its options are the function's arguments, with their types, their defaults and the words of its
docstring. Nothing is imported before the command is known.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import os
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .arguments import REQUIRED, Argument, describe, literal
from .options import Parser, UserError, add, arguments, escaped, offer, setting

# ------------------------------------------------------------------------------------------------------------------------------ commands


def run(parser: argparse.ArgumentParser):
    """execute a notebook headless, with checked parameters"""
    parser.add_argument("notebook", type=Path, help="the notebook to execute")
    parser.add_argument(
        "-p", dest="params", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter; repeat for more"
    )
    parser.add_argument("-o", dest="out", type=Path, help="where the executed notebook goes, a file or a folder; default runs/notebooks")
    parser.add_argument("--cwd", type=Path, help="the kernel's folder, which relative paths mean; default the current one")
    parser.add_argument("--timeout", type=int, metavar="SECONDS", help="the longest that one cell may take")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no bar")
    parser.add_argument("--parameters", action="store_true", help="list the notebook's parameters and execute nothing")
    parser.epilog = "What cells tagged `summary` print is shown at the end. Ctrl-C interrupts the running cell, so that training can save."

    def call(notebook, params, out, cwd, timeout, progress, parameters):
        from . import notebook as notebooks

        if parameters:
            for argument in notebooks.parameters(notebook).values():
                default = "" if argument.default is REQUIRED else f" = {argument.default!r}"
                print(f"{argument.name}: {'anything' if argument.kind is Any else describe(argument.kind)}{default}")
            return
        done = notebooks.run(notebook, out, dict(params), cwd=cwd, timeout=timeout, progress=progress)
        for text in notebooks.summary(done):
            print(text)
        print(f"executed notebook:  {done}  ({notebooks.status(done)['seconds']:.0f} s)")

    return call


def variants(parser):
    """list the named objectives, each as the expression that rebuilds it"""
    parser.add_argument("names", nargs="*", help="only these; default all")
    parser.add_argument(
        "--edition", default="sound", help="paper: as printed; released: as the published code computes it; sound (default)"
    )

    def call(names, edition):
        from . import variants

        known = variants.names(edition)
        chosen = names or known
        recipes = {name: variants.recipe(name, edition) for name in chosen}
        width = max(map(len, chosen))
        for name, recipe in recipes.items():
            print(f"{name:{width}}  {recipe!r}")

    return call


def pretrain(parser):
    """pretrain one objective with one seed into a run folder, or go on with it where it stopped"""
    from dataclasses import fields

    from .presets import Preset
    from .train import pretrain

    offer(parser, pretrain, leave_out=("callback", "probe"))
    size = parser.add_argument_group("single values of the preset")
    taken = {argument.name for argument in arguments(pretrain)} | {"name"}
    for field in fields(Preset):
        if field.name not in taken | {"masks"}:
            add(size, Argument(field.name, field.type, None), "")
    says = 'such as "MultiBlock((Blocks(1, 0.15),), max_temporal_keep=0.5)"; null: those of the recipe'
    size.add_argument("--masks", default=argparse.SUPPRESS, type=_masks, metavar="VALUE", help=says)

    def call(**options):
        done = pretrain(**options)
        print(f"{done!r}\n{done.path}")

    return call


def _masks(text: str):
    """The masks that an expression spells."""
    from .masks import MultiBlock
    from .values import read

    if literal(text) is None:
        return None
    try:
        found = read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not isinstance(found, MultiBlock):
        raise argparse.ArgumentTypeError(f"expected MultiBlock(...), got {text!r}")
    return found


def resume(parser):
    """go on with a run in its folder where it stopped"""
    from .train import resume

    offer(parser, resume)
    return lambda **options: print(repr(resume(**options)))


def probe(parser):
    """probe a run's frozen encoder on a benchmark; the rows go into the run's folder"""
    from .evaluation.evaluate import probe

    offer(parser, probe)
    how = {"action": "append", "type": setting, "default": [], "metavar": "NAME=VALUE"}
    parser.add_argument("--set", dest="more", help="a further option of the probe; repeat for more", **how)

    def call(more, **options):
        import pandas as pd

        results = probe(**options, **_further(more, options))
        columns = ["benchmark", "probe", "variant", "metric", "value", "lo", "hi", "n"]
        table = pd.concat([result.table() for result in results], ignore_index=True)
        print(table[[name for name in columns if name in table]].to_string(index=False, float_format="%.2f"))

    return call


def _further(more: list[tuple[str, Any]], given: dict) -> dict:
    """What --set says of a probe. Raises UserError for what the probe does not take, or was given before."""
    from .evaluation import evaluate

    kind = given.get("probe", "linear")
    if kind not in evaluate.PROBES:
        return dict(more)  # it is refused by that name
    found, own = {}, {argument.name for argument in arguments(evaluate.probe)}
    for name, value in more:
        try:
            evaluate.check_options(kind, {name} - own)
        except ValueError as error:
            raise UserError(f"--set {error}") from None
        if name in given or name in found:
            raise UserError(f"--set {name}: given twice; leave one out")
        found[name] = value
    return found


def ava(parser):
    """frame mAP on AVA: what persons do, read off frozen features of their boxes"""
    from .evaluation.ava import probe

    offer(parser, probe)

    def call(**options):
        for result in probe(**options):
            print(result)

    return call


def finetune(parser):
    """train encoder and classifier end to end, then test them; into a folder of their own"""
    from .evaluation.finetuning import finetune

    offer(parser, finetune)

    def call(**options):
        done = finetune(**options)
        columns = ["benchmark", "probe", "variant", "metric", "value", "lo", "hi", "n"]
        print(f"{done.rows()[columns].to_string(index=False, float_format='%.2f')}\n{done.path}")

    return call


def align(parser):
    """measure how the gradients of finished runs' terms lie to each other, before and after training"""
    from .analysis.ends import align

    offer(parser, align)

    def call(**options):
        table = align(**options)
        shown = table[table["term"].isin(["auxiliaries", "main"]) & table["group"].eq("all")]
        shown = shown.assign(edition=shown["edition"].fillna("")).sort_values(["variant", "edition", "term", "progress"], kind="stable")
        by = ["variant", "edition", "term", "progress"]  # auxiliaries and main both have utilities
        print(shown.pivot_table(values="value", index=by, columns="metric", sort=False).round(3).to_string(na_rep=""))
        print(f"means over seeds ({table['run'].nunique()} runs in all); each run's own, with intervals, in alignment.csv of its folder")

    return call


def table(parser):
    """show the results of runs, beside the paper's, in one table: means over seeds, editions and probes apart"""
    parser.add_argument("paths", nargs="*", type=Path, help="run folders, folders of them, csv files; default runs and data/paper")
    parser.add_argument("--regime", help="only rows of this pretraining regime")
    says = "default top1; rankme, std: of pooled features over clips (std in a run's log is of the teacher's tokens, another number)"
    parser.add_argument("--metric", default="top1", help=says)
    parser.add_argument("--csv", type=Path, help="write every measurement to this file instead")

    def call(paths, regime, metric, csv):
        from .evidence import results
        from .evidence.overview import overview

        paths = paths or [path for path in (Path("runs"), Path("data/paper")) if path.is_dir()]
        if not paths:
            raise UserError("no folder runs or data/paper here; name the folders to read")
        rows = results.load(*paths)
        if csv:
            rows.to_csv(csv, index=False)
            print(f"{len(rows)} measurements:  {csv}")
            return
        known, rows = rows, rows[rows["metric"].eq(metric) & (rows["regime"].eq(regime) if regime else True)]
        if rows.empty:
            which = f" with metric {metric!r}" + (f" and regime {regime!r}" if regime else "")
            raise UserError(f"{', '.join(map(str, paths))}: {len(known)} measurements, none{which}; probe a run, or name another folder")
        for name, part in rows.groupby("regime", sort=False):
            print(f"\n{name}: means over seeds\n{overview(part, ['source', 'variant', 'edition']).to_string(na_rep='')}")

    return call


def claims(parser):
    """judge each statement of the paper on printed numbers, released ones, or runs"""
    from .evidence.claims import main

    offer(parser, main, leave_out=("as_json",))
    parser.add_argument("--json", dest="as_json", action="store_true", help="machine-readable verdicts")
    return main


def data_check(parser):
    """inspect a copy of a data set: counts, missing and damaged files, balance, lengths; writes its manifest"""
    from .data.check import check

    offer(parser, check)
    where = "where the table goes, .csv or .parquet; default manifest.csv in ROOT, checked.csv where one is there"
    parser.add_argument("--manifest", type=Path, help=where)
    parser.epilog = "Exit status 1 where it found problems; the table is written all the same."

    def call(manifest=None, **options):
        report = check(**options)
        print(report)
        print(f"table:     {report.write(manifest)}")
        return 0 if report.ok else 1

    return call


def data_prepare(parser):
    """transcode a data set to small H.264 files in which seeking is cheap and exact"""
    from .data.check import called_unreadable, check
    from .data.prepare import FAULTS, prepare

    parser.add_argument("name", metavar="NAME", help="the data set, or folder")
    parser.add_argument("root", metavar="ROOT", type=Path)
    offer(parser, prepare, leave_out=("report",))
    parser.epilog = (
        "Exit status 1 where a file is damaged or cannot be transcoded. The others are prepared all the same, and the manifest of the copy "
        "lists them, so that it can be used; what is left out is counted, and what failed while transcoding is named in faults.csv. Once "
        "the files are mended, the same command makes only what is missing."
    )

    def call(name, root, **options):
        import pandas as pd

        report = check(name, root, hashes=False, workers=options.get("workers", 1), progress=options.get("progress", True))
        folder = prepare(report, **options)
        print(f"prepared:  {folder}")
        table = report.table
        if damaged := table.loc[table["fault"].notna(), "path"].nunique() if "fault" in table else 0:
            print(f"left out:  {damaged} files that cannot be read; `data check` names them")
        if known := len(called_unreadable(report)):
            print(f"left out:  {known} files that {report.root / 'manifest.csv'} calls unreadable; remove it to have them read again")
        if failed := len(pd.read_csv(folder / FAULTS)) if (folder / FAULTS).exists() else 0:
            print(f"left out:  {failed} files that could not be transcoded, named in {folder / FAULTS}")
        return 1 if damaged or known or failed else 0

    return call


def data_export(parser):
    """write the synthetic world out as files, in the layout of a real data set"""
    from .data.layouts import export

    offer(parser, export)
    return lambda **options: print(f"written:  {export(**options)}")


def doctor(parser):
    """what this machine has, and what will and will not work on it"""
    parser.add_argument("roots", nargs="*", type=Path, help="folders to look for data sets in; default ./data")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print as JSON")

    def call(roots, as_json):
        from .doctor import main

        return main(roots, as_json)

    return call


OWN_ARGUMENTS = {
    "bench": "measure speed and memory: the training step, what objectives add, growth, the loader",
    "study": "run, resume and tabulate a grid of runs",
}
"Commands whose module reads its arguments itself, `main(argv) -> exit status`; they are offered where the module is there."

COMMANDS: dict[str, Callable | None] = {
    "run": run,
    "variants": variants,
    "pretrain": pretrain,
    "resume": resume,
    "probe": probe,
    "finetune": finetune,
    "ava": ava,
    "align": align,
    "table": table,
    "claims": claims,
    "data check": data_check,
    "data prepare": data_prepare,
    "data export": data_export,
    "doctor": doctor,
} | {name: None for name in OWN_ARGUMENTS if find_spec(f"{__package__}.{name}")}


def about(name: str) -> str:
    return OWN_ARGUMENTS.get(name) or COMMANDS[name].__doc__


# ------------------------------------------------------------------------------------------------------------------------------ the whole


STATUSES = "Exit status: 0 done, 1 failed or problems found, 2 arguments that make no sense, 128 + signal interrupted (docs/commands.md)."


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:{width}}  {about(name)}" for name in COMMANDS)
    head, tail = "usage: vjepa-lab COMMAND ...    (or python -m vjepa_lab COMMAND ...)", "vjepa-lab COMMAND --help says more."
    return f"{head}\n\n{lines}\n\n{tail}\n{STATUSES}"


def parse(argv: list[str]) -> tuple[Callable[[], int | None], bool]:
    """The call that the arguments ask for, and whether an error shall show its traceback."""
    show = "--traceback" in argv
    argv = [word for word in argv if word != "--traceback"]
    name = next((" ".join(argv[:n]) for n in (2, 1) if " ".join(argv[:n]) in COMMANDS), None)
    if name is None:
        asked = " ".join(argv[: 2 if argv[0] == "data" else 1])
        near = difflib.get_close_matches(asked, COMMANDS, cutoff=0.5) or [known for known in COMMANDS if known.startswith(asked)]
        says = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {asked!r}: {says}")
    rest = argv[len(name.split()) :]
    if name in OWN_ARGUMENTS:
        return lambda: importlib.import_module(f"{__package__}.{name}").main(rest), show
    parser = Parser(f"vjepa-lab {name}", description=escaped(about(name)))
    call = COMMANDS[name](parser)
    parser.epilog = " ".join(filter(None, (parser.epilog, "--traceback shows where an error came from.")))
    options = vars(parser.parse_args(rest))
    return lambda: call(**options), show


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns its exit status: 0, 1 for a failure or problems found, 2 for arguments that make no sense, 128 + signal for an
    interruption; docs/commands.md tells them by command."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # jsonschema, below nbformat, builds a grammar of international addresses as it is imported: seconds, for what no command asks.
    sys.modules.setdefault("rfc3987_syntax", None)
    first = next((word for word in argv if word != "--traceback"), "")
    if first in ("", "-h", "--help"):
        print(usage())
        return 0 if first else 2
    if first in ("-V", "--version"):
        print(__import__(__package__).__version__)
        return 0
    show, before = "--traceback" in argv, None
    with contextlib.suppress(ValueError):  # outside the main thread nothing is taken
        before = signal.signal(signal.SIGTERM, _end)
    try:
        call, show = parse(argv)
        return call() or 0
    except UserError as error:
        print(f"vjepa-lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"vjepa-lab: {error}" if str(error) else "vjepa-lab: interrupted", file=sys.stderr)
        return 128 + getattr(error, "signal", 2)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if show or not expected(error):
            raise
        print(f"vjepa-lab: {_one_line(error)}", file=sys.stderr)
        return 1
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


class Terminated(KeyboardInterrupt):
    """SIGTERM where nothing else takes it: as Ctrl-C, so that locks are given back on the way out."""

    signal = int(signal.SIGTERM)


def _end(_number, _frame):
    raise Terminated


def expected(error: Exception) -> bool:
    """Whether an error speaks of what the user gave or has, rather than of a fault in the library."""
    from .notebook import NotebookError

    if isinstance(error, ValueError | OSError | ModuleNotFoundError | FloatingPointError | NotebookError):
        return True
    return type(error).__name__ == "ClipError"


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError):
        return f"{error}; install it with pip, or look at what `vjepa-lab doctor` says"
    return str(error) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
