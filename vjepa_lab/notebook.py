"""Notebooks run headless: papermill with checked parameters, an honest state, and a result that appears only when it is whole.

Papermill alone accepts any parameter name and type, reads `false` as text, calls a notebook completed whose kernel died, and loses kernels
that start in parallel over TCP. `run` removes these traps; the notebooks themselves stay plain and run under bare papermill as well.

Relative paths mean the folder in which the command was typed, for `run` and for papermill alike. JupyterLab starts its kernels in the
notebook's own folder instead; `home()`, in each notebook's first cell, moves from there to the project's folder.

Files of one execution, beside each other: `NAME.ipynb` (the result, once done), `NAME.part.ipynb` (while it runs),
`NAME.failed.ipynb` or `NAME.interrupted.ipynb` (what is left of one that did not finish), `NAME.status.json` (the truth about it).
"""

from __future__ import annotations

import ast
import json
import logging
import os
import platform
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from .arguments import REQUIRED, Argument, kind_of, suggest
from .files import write_json

if TYPE_CHECKING:
    from nbformat import NotebookNode

AGAIN_S = 2.0  # a scheduler may signal every process of a job, and its shell pass the same signal on: that is one request, not two
ENDINGS = {"running": ".part.ipynb", "failed": ".failed.ipynb", "interrupted": ".interrupted.ipynb"}


class NotebookError(RuntimeError):
    """A notebook did not finish; one line says where and why, `notebook` is what is left of it."""

    def __init__(self, message: str, notebook: Path):
        super().__init__(message)
        self.notebook = notebook


class Interrupted(KeyboardInterrupt):
    """A notebook was stopped by Ctrl-C or SIGTERM (`signal`); `notebook` is what is left of it."""

    def __init__(self, message: str, notebook: Path, number: int):
        super().__init__(message)
        self.notebook, self.signal = notebook, number


def workplace() -> Path:
    """Where notebooks work that are started here: the project's folder, if this is in its `notebooks` or `runs`; anywhere else, here."""
    here = Path.cwd()
    for folder in here.parents:
        if (folder / "pyproject.toml").is_file() and here.relative_to(folder).parts[0] in ("notebooks", "runs"):
            return folder
    return here


def home() -> Path:
    """Go to the `workplace`, since JupyterLab starts a kernel beside its notebook."""
    os.chdir(folder := workplace())
    return folder


# ------------------------------------------------------------------------------------------------------------------------- parameters


def read(path: str | Path) -> NotebookNode:
    """A notebook file. Raises FileNotFoundError (with near names) or ValueError if it is not a notebook."""
    import nbformat  # takes seconds, which a notebook's first cell need not wait for

    path = Path(path)
    if not path.is_file():
        names = [p.name for p in path.parent.glob("*.ipynb")] if path.parent.is_dir() else []
        hint = suggest(path.name, names) if names else "no notebook lies there"
        raise FileNotFoundError(f"{path}: no such notebook; {hint}")
    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a Jupyter notebook ({_first_line(error)})") from None


def parameters(notebook: str | Path | NotebookNode) -> dict[str, Argument]:
    """What a notebook can be given: the assignments of its cell tagged `parameters`, with their types and defaults.

    The type is the annotation, or else the default's; a default of None takes anything.
    Raises ValueError if that cell is not Python.
    """
    nb = read(notebook) if isinstance(notebook, str | Path) else notebook
    cell = next((c for c in nb.cells if "parameters" in c.metadata.get("tags", [])), None)
    if cell is None:
        return {}
    try:
        body = ast.parse(cell.source).body
    except SyntaxError as error:
        raise ValueError(f"the parameters cell is not plain Python: {error.msg}, line {error.lineno}") from None
    return {argument.name: argument for node in body for argument in _assigned(node)}


def _assigned(node: ast.stmt) -> Iterator[Argument]:
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        default = REQUIRED if node.value is None else _constant(node.value)
        yield Argument(node.target.id, _annotated(node.annotation, default), default)
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            pairs = zip(target.elts, node.value.elts, strict=False) if several else [(target, node.value)]
            for name, value in pairs:
                if isinstance(name, ast.Name):
                    default = _constant(value)
                    yield Argument(name.id, kind_of(default), default)


def _constant(node: ast.expr):
    """The value of a literal; None for an expression, whose value only the kernel knows."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _annotated(node: ast.expr, default):
    """The type that an annotation names; the default's type where the annotation is a name that only the notebook knows."""
    source = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)
    try:
        return eval(source, {**vars(typing), "typing": typing, "Path": Path})
    except Exception:
        return kind_of(default)


def check(notebook: str | Path | NotebookNode, values: Mapping) -> dict:
    """The values as the notebook will get them, each read as its parameter's type.

    Raises ValueError for an unknown name (with the near ones), a value of a wrong type, or a parameter without default that is not given.
    """
    known = parameters(notebook)
    for name in values:
        if name not in known:
            raise ValueError(f"unknown parameter {name!r}: {suggest(name, known)}")
    for name, argument in known.items():
        if argument.default is REQUIRED and name not in values:
            raise ValueError(f"parameter {name!r} has no default: give it a value")
    return {name: known[name].read(value) for name, value in values.items()}


# -------------------------------------------------------------------------------------------------------------------------- execution


def run(
    notebook: str | Path,
    out: str | Path | None = None,
    params: Mapping | None = None,
    *,
    cwd: str | Path | None = None,
    timeout: int | None = None,
    progress: bool = True,
) -> Path:
    """Execute a notebook in a kernel of its own; returns the executed notebook, which exists only if every cell ran.

    out       where it goes: a file, or a folder; by default runs/notebooks/<its name>
    params    values for its `parameters` cell (see `check`)
    cwd       the kernel's folder, which relative paths mean; by default the current one
    timeout   seconds that one cell may take; None: any
    progress  show a bar, with the progress bar of the running cell in it

    Raises ValueError for bad parameters, NotebookError if a cell fails, times out or the kernel dies, Interrupted on Ctrl-C or SIGTERM:
    the running cell is interrupted first, so that training can save; a second Ctrl-C stops at once. `status(out)` tells the same later.
    """
    notebook = Path(notebook)
    nb = read(notebook)
    try:
        values = check(nb, params or {})
    except (ValueError, TypeError) as error:
        raise type(error)(f"{notebook.name}: {error}") from None
    out = _target(notebook, out)
    cwd = Path(cwd or Path.cwd())
    if not cwd.is_dir():
        raise FileNotFoundError(f"{cwd}: no such folder for the kernel to run in")
    out.parent.mkdir(parents=True, exist_ok=True)

    part = beside(out, "running")
    with _claimed(part):
        for ending in ("failed", "interrupted"):
            beside(out, ending).unlink(missing_ok=True)
        record = _Record(_status_file(out), notebook, out, values)
        control = _Control()
        try:
            with control.listening(record), _connection() as connection:
                kernel = nb.metadata.get("kernelspec", {}).get("name", "python3")
                engine = {"control": control, "connection": connection, "folder": str(cwd), "timeout": timeout}
                _execute(notebook, kernel, part, values, progress, **engine)
        except BaseException as error:
            raise _ended(error, control, record, notebook, out) from None
        os.replace(part, out)
        record.write("done")
    return out


def status(out: str | Path) -> dict:
    """What is known of the execution that writes `out`, from its status file; empty if there was none, or if the file is damaged.

    `state` is running, done, failed, interrupted, or killed: it was running, and its process is gone.
    """
    try:
        known = json.loads(_status_file(Path(out)).read_text())
    except (FileNotFoundError, ValueError):  # a machine that crashed may leave an empty file
        return {}
    if not isinstance(known, dict) or "state" not in known:
        return {}
    if known["state"] == "running" and _unclaimed(beside(Path(out), "running")):
        known["state"] = "killed"
    return known


def summary(executed: str | Path) -> list[str]:
    """What the cells tagged `summary` of an executed notebook printed or showed, as text."""
    outputs = [o for cell in read(executed).cells if "summary" in cell.metadata.get("tags", []) for o in cell.get("outputs", [])]
    texts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs]
    return [text.rstrip() for text in texts if text.strip()]


def beside(out: str | Path, state: str) -> Path:
    """The notebook of an execution that writes `out` in the state running, failed or interrupted."""
    return Path(out).with_suffix(ENDINGS[state])


def _status_file(out: Path) -> Path:
    return out.with_suffix(".status.json")


def _target(notebook: Path, out: str | Path | None) -> Path:
    folder = Path("runs/notebooks") if out is None else Path(out)
    if folder.suffix != ".ipynb":
        folder = folder / notebook.name
    if folder.resolve() == notebook.resolve():
        raise ValueError(f"{folder}: the result would overwrite the notebook; choose another place for it")
    return folder


class _Record:
    """The status file, replaced whole at each change."""

    def __init__(self, path: Path, notebook: Path, out: Path, values: dict):
        self.path, self.began = path, time.time()
        self.about = {
            "notebook": str(notebook), "out": str(out), "params": values,
            "host": platform.node(), "pid": os.getpid(), "python": platform.python_version(), "started": _now(),
        }  # fmt: skip
        self.write("running")

    def write(self, state: str, **more) -> None:
        ended = {} if state == "running" else {"ended": _now(), "seconds": round(time.time() - self.began, 1)}
        write_json(self.path, {"state": state, **self.about, **ended, **more})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _ended(error: BaseException, control: _Control, record: _Record, notebook: Path, out: Path) -> BaseException:
    """Keep what there is of the notebook under a name that tells, write down how it ended, and say so in one line."""
    stopped = control.stopped or (getattr(error, "signal", signal.SIGINT) if isinstance(error, KeyboardInterrupt) else 0)
    state = "interrupted" if stopped else "failed"
    part, kept = beside(out, "running"), beside(out, state)
    os.replace(part, kept)
    if not kept.stat().st_size:  # nothing ran
        kept.write_bytes(notebook.read_bytes())
    where = f" in {control.cell}" if control.cell else ""
    if stopped:
        record.write(state, signal=signal.Signals(stopped).name)
        return Interrupted(f"{notebook.name}: interrupted by {signal.Signals(stopped).name}{where}; kept as {kept}", kept, stopped)
    name, message = _explained(error)
    record.write(state, error={"name": name, "message": message, "cell": control.cell})
    return NotebookError(f"{notebook.name} failed{where}: {name}: {_first_line(message)} (see {kept})", kept)


def _explained(error: BaseException) -> tuple[str, str]:
    """The name and the message of what went wrong, in terms of the notebook rather than of the machinery below it."""
    match type(error).__name__:
        case "PapermillExecutionError":
            return error.ename, re.sub(r"\x1b\[[0-9;]*m", "", error.evalue)
        case "DeadKernelError":
            return "KernelDied", "the kernel died; the usual reason is too little memory"
        case "CellTimeoutError":
            return "Timeout", "the cell took longer than the time allowed"
        case "NoSuchKernel":
            return "NoSuchKernel", f"the kernel {error.name!r} is not installed here; set the notebook's kernel to python3"
        case name:
            return name, str(error)


def _first_line(message) -> str:
    return next((line.strip() for line in str(message).splitlines() if line.strip()), "")


@contextmanager
def _claimed(part: Path, mode: str = "a") -> Iterator[bool]:
    """Hold the unfinished notebook, so that no second process writes it. The claim ends with this process, however that ends.

    Yields whether it is held: on Windows, and on a file system without locks, two runs into one place are not told apart.
    """
    with part.open(mode) as file:
        held = fcntl is not None
        try:
            if held:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotebookError(f"{part}: another process is running this notebook into the same place", part) from None
        except OSError:  # no locks here
            held = False
        yield held


def _unclaimed(part: Path) -> bool:
    """Whether nobody holds the unfinished notebook; False where that cannot be known."""
    try:
        with _claimed(part, "r+" if os.access(part, os.W_OK) else "r") as held:  # NFS locks only for those who may write
            return held
    except FileNotFoundError:
        return True
    except NotebookError:
        return False


@contextmanager
def _connection() -> Iterator[dict]:
    """How to reach the kernel: by sockets in a folder of its own, which no other kernel can take; by TCP where there are none."""
    with tempfile.TemporaryDirectory(prefix="vj-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "k.json"
        yield {"transport": "ipc", "connection_file": str(file)} if _has_sockets(file) else {}


def _has_sockets(file: Path) -> bool:
    """Whether a socket can be made where the kernel's would lie: not on Windows, nor where the path is longer than about 100 bytes."""
    if not hasattr(socket, "AF_UNIX"):
        return False
    path = file.with_name("k-ipc-1")
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(path))
    except OSError:
        return False
    path.unlink()
    return True


@contextmanager
def taking_signals(handler: Callable) -> Iterator[None]:
    """SIGINT and SIGTERM go to `handler`, and afterwards to whom they went before. In the main thread only."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class _Control:
    """Stops an execution: the first signal interrupts the running cell, the second one stops at once."""

    def __init__(self):
        self.stopped, self.since, self.kernel, self.cell = 0, 0.0, None, ""

    @contextmanager
    def listening(self, record: _Record) -> Iterator[None]:
        """Take SIGINT and SIGTERM for the time being. Only a main thread can; elsewhere the caller's handling stays."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number, _frame):
            if self.stopped and time.monotonic() - self.since < AGAIN_S:
                return
            again, self.stopped, self.since = self.stopped, number, time.monotonic()
            if again or not self._interrupt():
                raise KeyboardInterrupt
            record.write("interrupted", signal=signal.Signals(number).name)
            print("\ninterrupting the running cell; once more to stop at once", file=sys.stderr)

        with taking_signals(stop):
            yield

    def _interrupt(self) -> bool:
        """Send the kernel and its workers what Ctrl-C would; False where that is not possible."""
        group = getattr(getattr(self.kernel, "provisioner", None), "pgid", None)
        if group is None or not hasattr(os, "killpg"):
            return False
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGINT)
        return True


def _execute(notebook: Path, kernel: str, part: Path, values: dict, progress: bool, **control) -> None:
    import papermill

    from . import _papermill as engine

    # Papermill's own reader misses parameters such as `a: int | None = 1`, and would warn of them: they are checked already.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    ncols, nrows = shutil.get_terminal_size((120, 24))  # tqdm itself shows nothing where a terminal calls itself 0 x 0
    layout = "{desc} |{bar:20}| cell {n_fmt}/{total_fmt} {elapsed}{postfix}"
    bar = {"desc": notebook.stem, "bar_format": layout, "ncols": ncols, "nrows": nrows}
    papermill.execute_notebook(
        _literal(notebook), _literal(part), parameters=values, kernel_name=kernel, language="python",
        progress_bar=bar if progress else False, engine_name=engine.NAME, **control,
    )  # fmt: skip


def _literal(path: Path) -> str:
    """A path that papermill leaves as it is: it fills in braces as if they were a template."""
    return str(path).replace("{", "{{").replace("}", "}}")
