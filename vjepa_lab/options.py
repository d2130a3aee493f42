"""Command-line options made from a function's arguments: their types, their defaults, the words of its docstring."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

from .arguments import REQUIRED, Argument, describe, literal


class UserError(Exception):
    """What the user gave cannot be used; the message says how to go on."""


class Parser(argparse.ArgumentParser):
    """Takes no abbreviations (a later option could change what they mean), and says what is wrong in one line."""

    def __init__(self, prog: str, **kwargs):
        super().__init__(prog, allow_abbrev=False, **kwargs)

    def error(self, message: str):
        raise UserError(f"{message} (see {self.prog} --help)")


def arguments(function: Callable) -> list[Argument]:
    """A function's named arguments. One without a type takes names as well as objects: on the command line it is a text, never a number."""
    signature = inspect.signature(function, eval_str=True)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    missing, found = inspect.Parameter.empty, []
    for p in signature.parameters.values():
        default = REQUIRED if p.default is missing else p.default
        names = str if default is REQUIRED or isinstance(default, str) else str | None if default is None else Any
        if p.kind in kinds:
            found.append(Argument(p.name, names if p.annotation is missing else p.annotation, default))
    return found


def explained(function: Callable) -> dict[str, str]:
    """What a docstring's `name   text` lines say of each argument; a continuation is indented further."""
    found, name = {}, ""
    for line in inspect.cleandoc(function.__doc__ or "").splitlines():
        if start := re.fullmatch(r"(\w+) {2,}(\S.*)|(\w+) (\S.*)", line) if not line.startswith(" ") else None:
            name = start[1] or ""
            if name:
                found[name] = start[2]
        elif name and line.startswith("  "):
            found[name] += " " + line.strip()
        else:
            name = ""
    return found


def offer(parser: argparse.ArgumentParser, function: Callable, leave_out: Iterable[str] = ()) -> None:
    """Give a parser an option for each argument of a function; one without default is positional."""
    says = explained(function)
    for argument in arguments(function):
        if argument.name not in leave_out:
            add(parser, argument, says.get(argument.name, ""))


def add(parser, argument: Argument, says: str = "") -> None:
    if argument.default is REQUIRED:
        parser.add_argument(argument.name, metavar=argument.name.upper(), type=_reader(argument), help=escaped(says))
        return
    flag = "--" + argument.name.replace("_", "-")
    known = describe(argument.kind) if argument.kind is not Any else ""
    default = "" if argument.default in (None, "") else f"default {argument.default}"
    if argument.kind is bool:
        default = f"default {'on' if argument.default else 'off'}"
        how = {"action": argparse.BooleanOptionalAction}
    else:
        how = {"type": _reader(argument), "metavar": "VALUE"}
    words = "; ".join(filter(None, (says, "" if argument.kind is bool else known, default)))
    parser.add_argument(flag, dest=argument.name, default=argparse.SUPPRESS, help=escaped(words), **how)


def _reader(argument: Argument) -> Callable[[str], Any]:
    def read(text: str):
        try:
            return argument.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(f"{argument.name}: ")) from None

    return read


def escaped(text: str) -> str:
    return text.replace("%", "%%")


def setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, literal(value)
