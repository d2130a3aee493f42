"""The language of predicates: one expression, parsed and checked against a short list of what it may hold; nothing else is executed."""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Sequence
from statistics import mean

MARGIN_PP, MARGIN_CORRELATION = 1.0, 0.1
"""How far "equals" reaches on measured data: points, and correlations."""


class MissingEvidence(LookupError):
    """The predicate needs a number that this evidence does not hold."""


BUILTINS = {f.__name__: f for f in (all, any, min, max, abs, len, round, sum, sorted, mean, set, zip, float, int)}
LOOKUPS = ("acc", "delta", "deltas", "methods", "reported", "rank_desc", "kin", "dominated", "value")
NAMES = frozenset([*BUILTINS, *LOOKUPS, "spearman", "count", "num", "BENCH", "T"])
BINARY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
UNARY = {ast.Not: operator.not_, ast.USub: operator.neg, ast.UAdd: operator.pos}
COMPARE = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
Env = dict[str, object]
Code = Callable[[Env], object]


def compile_predicate(text: str, where: str = "predicate") -> Code:
    """The predicate as a function of its names' values. Raises ValueError naming the part that the language does not have."""
    if len(text) > 2000:
        raise ValueError(f"{where}: longer than 2000 characters")
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise ValueError(f"{where}: not an expression: {text!r} ({error.msg})") from error
    try:
        return _build(tree.body, NAMES)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _build(node: ast.expr, names: frozenset[str]) -> Code:
    """Turn one node into a closure; nodes without a case here are not part of the language."""
    build = lambda child: _build(child, names)
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return lambda env: value
        case ast.Name(id=name):
            return _name(name, names)
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            parts, kind = [build(item) for item in items], {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
            return lambda env: kind(part(env) for part in parts)
        case ast.BoolOp(op=op, values=values):
            parts, fold = [build(value) for value in values], all if isinstance(op, ast.And) else any
            return lambda env: fold(part(env) for part in parts)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in UNARY:
            act, part = UNARY[type(op)], build(operand)
            return lambda env: act(part(env))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
            act, a, b = BINARY[type(op)], build(left), build(right)
            return lambda env: act(*_plain(a(env), b(env), op))
        case ast.Compare():
            return _comparison(node, build)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            ask, then, other = build(test), build(body), build(orelse)
            return lambda env: then(env) if ask(env) else other(env)
        case ast.Subscript(value=value, slice=ast.Slice(lower=low, upper=high, step=None)):
            part, ends = build(value), [build(end) if end else lambda env: None for end in (low, high)]
            return lambda env: part(env)[ends[0](env) : ends[1](env)]
        case ast.Subscript(value=value, slice=index):
            part, at = build(value), build(index)
            return lambda env: part(env)[at(env)]
        case ast.ListComp(elt=element, generators=loops) | ast.GeneratorExp(elt=element, generators=loops):
            return _loop(element, loops, names)
        case ast.Lambda(args=ast.arguments(args=arguments, posonlyargs=[], kwonlyargs=[], vararg=None, kwarg=None, defaults=[]), body=body):
            own = [argument.arg for argument in arguments]
            inner = _build(body, names.union(own))
            return lambda env: lambda *given: inner(env | dict(zip(own, given, strict=True)))
        case ast.Call():
            return _call(node, build)
    raise ValueError(f"{ast.unparse(node)!r} ({type(node).__name__}) is not part of the predicate language")


def _name(name: str, names: frozenset[str]) -> Code:
    if name not in names:
        near = difflib.get_close_matches(name, names) or sorted(names)
        raise ValueError(f"unknown name {name!r}; did you mean {', '.join(near)}?")
    return lambda env: env[name]


def _plain(a, b, op):
    """Arithmetic is for numbers and `+` also for text, so that no predicate can grow a value without bound."""
    numbers = all(isinstance(x, int | float) for x in (a, b))
    if not numbers and not (isinstance(op, ast.Add) and isinstance(a, str) and isinstance(b, str)):
        raise MissingEvidence("arithmetic on a number that was not reported") if None in (a, b) else TypeError("arithmetic is for numbers")
    return a, b


def _comparison(node: ast.Compare, build: Callable[[ast.expr], Code]) -> Code:
    sides = [node.left, *node.comparators]
    if unknown := [op for op in node.ops if type(op) not in COMPARE]:
        raise ValueError(f"{ast.unparse(node)!r}: {type(unknown[0]).__name__} is not part of the predicate language")
    steps = [(build(sides[k + 1]), COMPARE[type(op)], _margin(op, *sides[k : k + 2])) for k, op in enumerate(node.ops)]
    first = build(node.left)

    def compare(env: Env) -> bool:
        left = first(env)
        for part, act, margin in steps:
            right = part(env)
            if None in (left, right) and act is not operator.eq:
                raise MissingEvidence("a number that was not reported")
            if not (_near(left, right, margin * env["near"]) if margin else act(left, right)):
                return False
            left = right
        return True

    return compare


def _margin(op: ast.cmpop, left: ast.expr, right: ast.expr) -> float:
    """`==` with a decimal number speaks of a measured value: exact on printed tables, elsewhere within this margin; 0: always exact."""
    decimal = any(isinstance(part, ast.Constant) and isinstance(part.value, float) for side in (left, right) for part in _literals(side))
    if not (isinstance(op, ast.Eq) and decimal):
        return 0
    correlation = any(isinstance(part, ast.Name) and part.id == "spearman" for side in (left, right) for part in ast.walk(side))
    return MARGIN_CORRELATION if correlation else MARGIN_PP


def _near(a, b, margin: float) -> bool:
    a, b = (x if isinstance(x, list | tuple) else [x] for x in (a, b))
    return len(a) == len(b) and None not in (*a, *b) and all(abs(x - y) <= margin for x, y in zip(a, b, strict=True))


def _literals(node: ast.expr) -> list[ast.expr]:
    """The constants of a literal: a number, a signed number, a list of them."""
    match node:
        case ast.UnaryOp(operand=operand):
            return _literals(operand)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [part for item in items for part in _literals(item)]
    return [node]


def _loop(element: ast.expr, loops: Sequence[ast.comprehension], names: frozenset[str]) -> Code:
    steps = []
    for loop in loops:
        source = _build(loop.iter, names)
        targets = loop.target.elts if isinstance(loop.target, ast.Tuple) else [loop.target]
        if not all(isinstance(target, ast.Name) for target in targets) or loop.is_async:
            raise ValueError(f"{ast.unparse(loop)!r}: a loop variable is a name or a tuple of names")
        own = [target.id for target in targets]
        names = names.union(own)
        steps.append((source, own, isinstance(loop.target, ast.Tuple), [_build(test, names) for test in loop.ifs]))
    body = _build(element, names)

    def run(env: Env, depth: int = 0) -> list:
        if depth == len(steps):
            return [body(env)]
        source, own, unpack, tests = steps[depth]
        inner = (env | dict(zip(own, item if unpack else [item], strict=True)) for item in source(env))
        return [value for scope in inner if all(test(scope) for test in tests) for value in run(scope, depth + 1)]

    return run


def _call(node: ast.Call, build: Callable[[ast.expr], Code]) -> Code:
    arguments = [build(argument) for argument in node.args]
    keywords = {keyword.arg: build(keyword.value) for keyword in node.keywords}
    if None in keywords or set(keywords) - {"key", "table", "reverse"}:
        raise ValueError(f"{ast.unparse(node)!r}: only the keywords key, table and reverse are known")
    match node.func:
        case ast.Name():
            function = build(node.func)
        case ast.Attribute(value=value, attr="split" | "startswith" as method):
            text = build(value)
            function = lambda env: getattr(_text(text(env)), method)
        case _:
            raise ValueError(f"{ast.unparse(node.func)!r} cannot be called in a predicate")
    return lambda env: function(env)(*(a(env) for a in arguments), **{name: part(env) for name, part in keywords.items()})


def _text(value) -> str:
    if not isinstance(value, str):
        raise TypeError(f"split and startswith are for text, got {value!r}")
    return value
