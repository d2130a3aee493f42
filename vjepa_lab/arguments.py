"""Text read as what a typed name means: notebook parameters and command-line options share these rules."""

from __future__ import annotations

import ast
import difflib
import json
import os
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

REQUIRED = type("Required", (), {"__repr__": lambda self: "required"})()
"Default of an argument that has none."

_WORDS = {"true": True, "false": False, "null": None, "none": None}


@dataclass(frozen=True)
class Argument:
    """A name with a type and a default. `read` turns text, or a value from Python, into a plain value of that type."""

    name: str
    kind: Any = Any
    default: Any = REQUIRED

    def read(self, value):
        """The value as JSON-like data. Text means what it means for the type: "false", "1e-4", "null", "[0, 1]" or "0,1" for a list,
        "a=1,b=2" for a dict.

        Raises ValueError naming the argument and the type for a value that does not fit, TypeError for one that is not plain data.
        """
        from pydantic import PydanticUserError, TypeAdapter, ValidationError

        try:
            value = plain(value)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}") from None
        try:
            adapter = TypeAdapter(self.kind)
        except (PydanticUserError, NameError):  # a class that pydantic knows nothing about: no check is possible
            adapter = TypeAdapter(Any)
        for candidate, strict in _readings(value, self.kind):
            try:
                return plain(adapter.validate_python(candidate, strict=strict))
            except ValidationError:
                continue
        raise ValueError(f"{self.name}: expected {describe(self.kind)}, got {value!r}{self._near(value)}")

    def _near(self, value) -> str:
        choices = [c for c in get_args(self.kind) if isinstance(c, str)] if get_origin(self.kind) is Literal else []
        close = difflib.get_close_matches(str(value), choices, n=1)
        return f"; did you mean {close[0]!r}?" if close else ""


def _readings(value, kind) -> list[tuple[Any, bool]]:
    """What a value may mean, the likeliest first, each with whether the type must match as it is."""
    if isinstance(value, bool):
        return [(value, True)]
    if not isinstance(value, str):
        return [(value, True), (value, False)]
    readings = [(literal(value), True), (value, False)]
    if _holds(kind, (list, tuple, Sequence)):
        parts = [part.strip() for part in value.strip("[]() ").split(",") if part.strip()]
        whole = [(literal(value), False)] if isinstance(literal(value), list | tuple) else []
        several = [*whole, ([literal(part) for part in parts], False), (parts, False)]
        return several + readings if "," in value else readings + several
    if _holds(kind, (dict,)) and "=" in value:
        pairs = (pair.partition("=") for pair in value.split(","))
        readings.append(({name.strip(): literal(item) for name, _, item in pairs}, False))
    return readings


def _holds(kind, containers: tuple[type, ...]) -> bool:
    """Whether a type, or one of its alternatives, is one of these containers."""
    if get_origin(kind) in (Union, types.UnionType):
        return any(_holds(k, containers) for k in get_args(kind))
    return (get_origin(kind) or kind) in containers


def literal(text: str):
    """The plain value that a text spells, in Python's or JSON's words; the text itself if it spells none."""
    word = text.strip()
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    for parse in (ast.literal_eval, json.loads):
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return plain(parse(word))
    return text


def plain(value):
    """A value as None, bool, int, float, str, and lists, tuples and dicts of them: paths as text, numpy and torch values as numbers.

    Raises TypeError for anything else.
    """
    if value is None or isinstance(value, str):
        return value
    for base in (bool, int, float):
        if isinstance(value, base):
            return base(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value) if type(value) in (list, tuple) else [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays, torch tensors
        return plain(value.tolist())
    raise TypeError(f"a {type(value).__name__} is no plain value; pass text (such as its repr), a number, a list or a dict")


def kind_of(default):
    """The type that a default value stands for: `[0, 1]` for list[int], None for anything."""
    if default is None or default is REQUIRED:
        return Any
    if isinstance(default, list | tuple):
        kinds = {type(item) for item in default}
        item = float if kinds == {int, float} else kinds.pop() if len(kinds) == 1 else Any
        item = Any if item is type(None) else item
        return list[item] if isinstance(default, list) else tuple[item, ...]
    return type(default)


def describe(kind) -> str:
    """A type in words: "int", "one of 'a', 'b'", "float or nothing"."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join("nothing (null)" if k is type(None) else describe(k) for k in get_args(kind))
    if get_origin(kind):
        return re.sub(r"[\w.]+\.", "", str(kind))
    return getattr(kind, "__name__", str(kind))


def suggest(name: str, known: Iterable[str]) -> str:
    """How to go on from an unknown name: the near ones, or all."""
    known = list(known)
    near = difflib.get_close_matches(name, known)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"expected one of {', '.join(known)}" if known else "there is none"
