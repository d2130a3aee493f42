"""The language of predicates: one expression, parsed and checked against a short list of what it may hold; nothing else is executed.

A number may be an array with a value for each of many worlds; a truth is then an array too (`elementwise`).
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Iterator, Sequence

from .elementwise import FUNCTIONS, Truth, as_number, every, is_number, no, some, truth

MARGIN_PP, MARGIN_CORRELATION = 1.0, 0.1
"""How far "equals" reaches on measured data: points, and correlations."""


class MissingEvidence(LookupError):
    """The predicate needs a number that this evidence does not hold."""


LOOKUPS = ("acc", "delta", "deltas", "methods", "reported", "rank_desc", "kin", "dominated", "value")
NAMES = frozenset([*FUNCTIONS, *LOOKUPS, "spearman", "count", "num", "BENCH", "T"])
BINARY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
UNARY = {ast.Not: no, ast.USub: operator.neg, ast.UAdd: operator.pos}
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


def measures(text: str) -> bool:
    """Whether a predicate asks for a number of the evidence at all, or compares what stands in it."""
    return any(isinstance(node, ast.Name) and node.id in (*LOOKUPS, "T") for node in ast.walk(ast.parse(text, mode="eval")))


def compile_parts(text: str) -> Code:
    """The predicate as statements that hold together exactly when it holds: a function of its names' values that gives a list of truths.

    Apart are taken: `and`, `all(...)`, chains (`2 < x < 3`), equal numbers (at most, and at least), `abs(x) < c` (both sides), and the best
    of several (`max(xs, key=f) == x`, `rank_desc(...) == 1`: better than each rival). Everything else is one statement.
    text: a predicate that `compile_predicate` takes.
    """
    return _parts(ast.parse(text, mode="eval").body, NAMES)


def _parts(node: ast.expr, names: frozenset[str]) -> Code:
    build = lambda child: _build(child, names)
    together = lambda nodes: _together([_parts(each, names) for each in nodes])
    match node:
        case ast.BoolOp(op=ast.And(), values=values):
            return together(values)
        case ast.Call(
            func=ast.Name(id="all"), args=[ast.GeneratorExp(elt=each, generators=loops) | ast.ListComp(elt=each, generators=loops)]
        ):
            run = _loop(each, loops, names, _parts)
            return lambda env: [truth for parts in run(env) for truth in parts]
        case ast.Compare(left=left, ops=ops, comparators=rights) if len(ops) > 1:
            return together(ast.Compare(a, [op], [b]) for a, op, b in zip([left, *rights], ops, rights, strict=False))
        case ast.Compare(left=left, ops=[ast.Gt() | ast.GtE() as op], comparators=[ast.Call(func=ast.Name(id="abs")) as right]):
            return _parts(ast.Compare(right, [ast.Lt() if isinstance(op, ast.Gt) else ast.LtE()], [left]), names)
        case ast.Compare(left=ast.Call(func=ast.Name(id="abs"), args=[inner]), ops=[ast.Lt() | ast.LtE() as op], comparators=[right]):
            return together(ast.Compare(side, [op], [right]) for side in (inner, ast.UnaryOp(ast.USub(), inner)))
        case ast.Compare(
            left=ast.Call(func=ast.Name(id="max"), args=[among], keywords=[ast.keyword(arg="key", value=key)]),
            ops=[ast.Eq()],
            comparators=[best],
        ):
            return _best(build(among), build(key), build(best))
        case ast.Compare(
            left=ast.Call(func=ast.Name(id="rank_desc"), args=[bench, method, *table]), ops=[ast.Eq()], comparators=[ast.Constant(value=1)]
        ):
            call = lambda name, *args: build(ast.Call(ast.Name(name), list(args), []))
            own, every = call("delta", bench, method, *table), call("deltas", bench, ast.Constant(None), *table)
            return lambda env: [other <= own(env) for other in every(env)]
        case ast.Compare(left=left, ops=[ast.Eq() as op], comparators=[right]):
            a, b, whole, margin = build(left), build(right), build(node), _margin(op, left, right)
            return lambda env: _both_sides(a(env), b(env), margin * env["near"]) or [truth(whole(env))]
    code = build(node)
    return lambda env: [truth(code(env))]


def _together(parts: Sequence[Code]) -> Code:
    return lambda env: [truth for part in parts for truth in part(env)]


def _best(among: Code, key: Code, best: Code) -> Code:
    """`best` is one of them, and no other has a larger key."""

    def parts(env: Env) -> list[Truth]:
        every, score, first = list(among(env)), key(env), best(env)
        return [score(other) <= score(first) for other in every if other != first] if first in every else [False]

    return parts


def _both_sides(a, b, margin: float) -> list[Truth]:
    """a <= b and a >= b of numbers, or of lists of numbers, within a margin; nothing where they are no numbers."""
    a, b = (x if isinstance(x, list | tuple) else [x] for x in (a, b))
    numbers = all(map(is_number, (*a, *b)))
    return [side <= margin for x, y in zip(a, b, strict=True) for side in (x - y, y - x)] if numbers and len(a) == len(b) else []


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
            parts, fold = [build(value) for value in values], every if isinstance(op, ast.And) else some
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
    numbers = all(is_number(x) or isinstance(x, bool) for x in (a, b))
    if not numbers and not (isinstance(op, ast.Add) and isinstance(a, str) and isinstance(b, str)):
        lacking = a is None or b is None
        raise MissingEvidence("arithmetic on a number that was not reported") if lacking else TypeError("arithmetic is for numbers")
    return as_number(a), as_number(b)


def _comparison(node: ast.Compare, build: Callable[[ast.expr], Code]) -> Code:
    sides = [node.left, *node.comparators]
    if unknown := [op for op in node.ops if type(op) not in COMPARE]:
        raise ValueError(f"{ast.unparse(node)!r}: {type(unknown[0]).__name__} is not part of the predicate language")
    steps = [(build(sides[k + 1]), COMPARE[type(op)], _margin(op, *sides[k : k + 2])) for k, op in enumerate(node.ops)]
    first = build(node.left)

    def compare(env: Env) -> Iterator[Truth]:
        left = first(env)
        for part, act, margin in steps:
            right = part(env)
            if (left is None or right is None) and act is not operator.eq:
                raise MissingEvidence("a number that was not reported")
            yield _near(left, right, margin * env["near"]) if margin else act(left, right)
            left = right

    return lambda env: every(compare(env))


def _margin(op: ast.cmpop, left: ast.expr, right: ast.expr) -> float:
    """`==` with a decimal number speaks of a measured value: exact on printed tables, elsewhere within this margin; 0: always exact."""
    decimal = any(isinstance(part, ast.Constant) and isinstance(part.value, float) for side in (left, right) for part in _literals(side))
    if not (isinstance(op, ast.Eq) and decimal):
        return 0
    correlation = any(isinstance(part, ast.Name) and part.id == "spearman" for side in (left, right) for part in ast.walk(side))
    return MARGIN_CORRELATION if correlation else MARGIN_PP


def _near(a, b, margin: float) -> Truth:
    a, b = (x if isinstance(x, list | tuple) else [x] for x in (a, b))
    known = len(a) == len(b) and all(x is not None for x in (*a, *b))
    return known and every(abs(x - y) <= margin for x, y in zip(a, b, strict=True))


def _literals(node: ast.expr) -> list[ast.expr]:
    """The constants of a literal: a number, a signed number, a list of them."""
    match node:
        case ast.UnaryOp(operand=operand):
            return _literals(operand)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [part for item in items for part in _literals(item)]
    return [node]


def _loop(element: ast.expr, loops: Sequence[ast.comprehension], names: frozenset[str], inner: Callable[..., Code] = _build) -> Code:
    steps = []
    for loop in loops:
        source = _build(loop.iter, names)
        targets = loop.target.elts if isinstance(loop.target, ast.Tuple) else [loop.target]
        if not all(isinstance(target, ast.Name) for target in targets) or loop.is_async:
            raise ValueError(f"{ast.unparse(loop)!r}: a loop variable is a name or a tuple of names")
        own = [target.id for target in targets]
        names = names.union(own)
        steps.append((source, own, isinstance(loop.target, ast.Tuple), [_build(test, names) for test in loop.ifs]))
    body = inner(element, names)

    def run(env: Env, depth: int = 0) -> list:
        if depth == len(steps):
            return [body(env)]
        source, own, unpack, tests = steps[depth]
        scopes = (env | dict(zip(own, item if unpack else [item], strict=True)) for item in source(env))
        return [value for scope in scopes if all(test(scope) for test in tests) for value in run(scope, depth + 1)]

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
