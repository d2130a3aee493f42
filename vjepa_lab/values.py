"""Values that print as the code that rebuilds them, and the reader of such code."""

import ast
import math
from collections.abc import Sequence
from dataclasses import MISSING, fields

import numpy as np


class Value:
    """Base of frozen dataclasses: repr is the shortest constructor call, fields at their default left out."""

    def __post_init__(self):
        for f in fields(self):
            object.__setattr__(self, f.name, plain(getattr(self, f.name)))

    def __repr__(self) -> str:
        required, changed = [], []
        for f in fields(self):
            here = plain(getattr(self, f.name))  # a class with checks of its own may keep NumPy's numbers
            default = f.default if f.default_factory is MISSING else f.default_factory()
            if default is MISSING:
                required.append(repr(here))
            elif f.init and here != default:
                changed.append(f"{f.name}={here!r}")
        return f"{type(self).__name__}({', '.join(required + changed)})"


def plain(value):
    """A scalar of NumPy's as Python's, also within tuples: NumPy's repr is code that `read` does not know. All else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(plain, value)) if type(value) is tuple else value


def check(value: Value, **allowed: Sequence) -> None:
    """Refuse a value whose named fields hold anything but what is allowed. Raises ValueError, naming the field."""
    for name, choices in allowed.items():
        if getattr(value, name) not in choices:
            raise ValueError(f"{type(value).__name__}({name}={getattr(value, name)!r}): expected one of {', '.join(map(repr, choices))}")


def whole(value: Value, **least: int) -> None:
    """Refuse a value whose named fields are not whole numbers from `least` on. Raises ValueError, naming the field."""
    for name, lowest in least.items():
        here = getattr(value, name)
        if not isinstance(here, int) or here < lowest:
            raise ValueError(f"{type(value).__name__}({name}={here!r}): expected a whole number, {lowest} or more")


def number(value: Value, **least: float) -> None:
    """Refuse a value whose named fields are not finite numbers from `least` on. Raises ValueError, naming the field."""
    for name, lowest in least.items():
        here = getattr(value, name)
        if not isinstance(here, int | float) or not math.isfinite(here) or here < lowest:
            limit = f", {lowest} or more" if math.isfinite(lowest) else ""
            raise ValueError(f"{type(value).__name__}({name}={here!r}): expected a finite number{limit}")


def vocabulary() -> dict[str, type]:
    """Every public value class of the package by name: what an expression may use."""
    from vjepa_lab import masks, modifiers, objective, schedules, terms, weighting

    found = {}
    for module in (masks, schedules, objective, terms, modifiers, weighting):
        found |= {k: v for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, Value) and not k.startswith("_")}
    return found


def read(text: str, names: dict[str, type] | None = None):
    """Rebuild a value from its repr: sums, products, numbers, strings, tuples, lists, dicts and calls of known classes; nothing else is
    executed.

    Raises ValueError that names what is not understood.
    """
    names = names or vocabulary()

    def build(node):
        match node:
            case ast.Expression(body=body):
                return build(body)
            case ast.Constant(value=value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -build(operand)
            case ast.Tuple(elts=elements):
                return tuple(map(build, elements))
            case ast.List(elts=elements):
                return list(map(build, elements))
            case ast.Dict(keys=keys, values=values) if None not in keys:
                return dict(zip(map(build, keys), map(build, values), strict=True))
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return build(left) + build(right)
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return build(left) * build(right)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in names:
                return names[name](*map(build, args), **{k.arg: build(k.value) for k in keywords})
        raise ValueError(f"cannot read {ast.unparse(node)!r} in {text!r}: expected sums and products of {', '.join(sorted(names))}")

    try:
        return build(ast.parse(text.strip(), mode="eval"))
    except SyntaxError as error:
        raise ValueError(f"not an expression: {text!r} ({error.msg})") from None
    except TypeError as error:  # what a class says of its arguments, and Python of a sum
        raise ValueError(f"cannot read {text!r}: {error}") from None
