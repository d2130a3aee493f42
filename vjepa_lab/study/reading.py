"""Studies from where they are written down: a Python file, or the text that one prints as."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import values as expressions
from ..arguments import suggest
from .grid import Benchmark, Extra, Regime, Study


def read(text: str) -> Study:
    """The study that prints as `text`; nothing in it is executed. Raises ValueError for what is none, or one of another version."""
    try:
        found = expressions.read(text, {kind.__name__: kind for kind in (Study, Regime, Benchmark, Extra)})
    except ValueError as error:
        raise ValueError(f"not a study: {error}") from None
    if not isinstance(found, Study):
        raise ValueError(f"not a study: {found!r}")
    return found


def _line(error: Exception, file: Path) -> str:
    """Where in a file an error came from, such as ", line 3"."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file.absolute()]
    lines += [error.lineno] if isinstance(error, SyntaxError) else []
    return f", line {lines[-1]}" if lines else ""


def load(file: str | Path, preset: str | None = None, how: Mapping[str, Any] | None = None) -> Study:
    """The study that a Python file defines as `study`: a value, or a function from a size's name to one.

    preset, how   another size, and other ways to compute it (`Study.how`), than the file says

    Raises FileNotFoundError, or ValueError saying what the file lacks, or where it fails.
    """
    file = Path(file)
    if not file.is_file():
        names = sorted(str(path) for path in Path("studies").glob("*.py"))
        raise FileNotFoundError(f"{file}: no such study; {suggest(str(file), names) if names else 'expected a Python file'}")
    spec = importlib.util.spec_from_file_location(f"study_{file.stem}", file.absolute())
    if spec is None:
        raise ValueError(f"{file}: expected a Python file, FILE.py, that defines `study`")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{file}{_line(error, file)}: {type(error).__name__}: {error}") from error
    found = getattr(module, "study", None)
    if callable(found):
        try:
            found = found(preset) if preset else found()
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    elif isinstance(found, Study) and preset:
        found = found.at(preset)
    if not isinstance(found, Study):
        raise ValueError(f"{file}: expected a variable `study` that is a vjepa_lab.study.Study, or a function that gives one")
    return found.how(**how or {})
