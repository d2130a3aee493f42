"""What a class defined elsewhere, such as a term in a notebook, consists of: where it was edited, a run of it is another run."""

import dataclasses
import dis
import hashlib
import inspect
import re
from collections.abc import Iterator
from types import CodeType, FunctionType
from weakref import WeakSet

GENERATED = {"__init__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__replace__"}
MADE = ("<string>", dataclasses.__file__)
"Methods that dataclasses write for a class, from nothing but its fields, and the files that these are said to be from."
HOLDERS = ("fget", "fset", "func")
"Where a property and functools.partial keep their functions."
PLAIN = (bool, int, float, complex, str, bytes, type(None))
_known_here: WeakSet[type] = WeakSet()
"Classes that were read in this process; the others of which a fingerprint is known came with it from another one."


def fingerprint(kind: type) -> str:
    """A hash of a class's source, and of what it uses of its own module: functions, classes and constants, and what these use in turn.

    It stays with the class, for a process that gets it without its source. Not in it: what comes from other modules; a list, a dict and
    whatever else may change while it runs.
    """
    if "_fingerprint" not in vars(kind) or kind in _known_here:
        told = "\n".join([_source(kind), *_beside(kind)])
        kind._fingerprint = hashlib.sha1(told.encode()).hexdigest()[:12]
        _known_here.add(kind)
    return kind._fingerprint


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # in a notebook, whose __main__ is no file
        return _content(kind)


def _beside(kind: type) -> list[str]:
    """What a class uses of its module and does not tell of itself: its bases there, and what stands outside of it, by name."""
    told: set[str] = set()
    read, waiting = {kind}, [*_bases(kind), *_functions(kind)]
    told |= _evaluated(kind)
    while waiting:
        part = waiting.pop()
        if part.__module__ != kind.__module__:
            continue
        told |= _evaluated(part)
        if isinstance(part, FunctionType) and not part.__qualname__.startswith(f"{kind.__qualname__}."):  # such as a default_factory
            told.add(_told(part, ()))
        for name, value in [(part.__qualname__, part)] if isinstance(part, type) else _used(part):
            inner = inspect.unwrap(value) if callable(value) else value
            if isinstance(inner, type | FunctionType):
                if inner.__module__ != kind.__module__ or inner in read:
                    continue
                read.add(inner)
                waiting += [*_bases(inner), *_functions(inner)]
                told.add(f"{name} = {_source(inner) if isinstance(inner, type) else _told(inner, ())}")
            elif _constant(value):
                told.add(f"{name} = {_plain(value)}")
    return sorted(told)


def _evaluated(part) -> set[str]:
    """The constants that a function's header or a class's body came to, which may stand there by a name."""
    if isinstance(part, type):
        found = {name: value for name, value in vars(part).items() if _written(name, value)}
    else:
        found = dict(enumerate(part.__defaults__ or ())) | (part.__kwdefaults__ or {})
    return {f"{part.__qualname__}, {name}: {_plain(value)}" for name, value in found.items() if _constant(value)}


def _bases(part) -> list[type]:
    return [base for base in part.__mro__[1:] if base.__module__ == part.__module__] if isinstance(part, type) else []


def _functions(part) -> Iterator[FunctionType]:
    """The functions that a function, a class, a property or the like consists of."""
    inner = inspect.unwrap(part)
    if isinstance(inner, FunctionType):
        yield inner
        return
    if isinstance(inner, type):
        held = [value for name, value in vars(inner).items() if _written(name, value) and not isinstance(value, type)]
        held += [field.default_factory for field in vars(inner).get("__dataclass_fields__", {}).values()]
    else:
        held = [value for name in HOLDERS if callable(value := getattr(inner, name, None))]
    for each in held:
        yield from _functions(each)


def _used(function: FunctionType) -> Iterator[tuple[str, object]]:
    """Names outside a function that it reads and does not set, with their values."""
    space = dict(function.__globals__)
    loads, stores, codes = set(), set(), [function.__code__]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            space[name] = cell.cell_contents
        except ValueError:  # not given yet
            continue
        loads.add(name)
    while codes:
        code = codes.pop()
        codes += [part for part in code.co_consts if isinstance(part, CodeType)]
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                loads.add(step.argval)
            elif step.opname in ("STORE_GLOBAL", "STORE_DEREF"):
                stores.add(step.argval)
    return ((name, space[name]) for name in sorted(loads - stores) if name in space and not name.startswith("__"))


def _constant(value) -> bool:
    return all(map(_constant, value)) if isinstance(value, tuple | frozenset) else isinstance(value, PLAIN)


def _content(kind: type, seen: tuple[type, ...] = ()) -> str:
    """What a class consists of, and its bases in the same notebook: annotations, defaults, the sources of its functions.

    seen: the classes that name it, which are not told once more
    """
    said, seen = [], (*seen, kind)
    for part in kind.__mro__:
        if part.__module__ != kind.__module__:
            continue
        fields = vars(part).get("__dataclass_fields__", {})
        for name, note in inspect.get_annotations(part).items():
            said.append(f"{name}: {_plain(note)}")
            if name in fields:
                said += [_told(fields[name].default, seen), _told(fields[name].default_factory, seen)]
        said += [f"{name} = {_told(value, seen)}" for name, value in vars(part).items() if _written(name, value)]
    return "\n".join(said)


def _written(name: str, value) -> bool:
    """Whether an entry of a class stands in its body, and is neither Python's nor made from what else stands there."""
    inner = inspect.unwrap(value)
    if name in GENERATED and getattr(getattr(inner, "__code__", None), "co_filename", None) in MADE:
        return False
    return name != "_fingerprint" and not name.startswith("__annotate") and (not name.startswith("__") or callable(inner))


def _told(value, seen: tuple[type, ...]) -> str:
    """A function by its source, or by its byte code where nobody kept that; a class by its content; all else by its repr."""
    inner = inspect.unwrap(value)
    if code := getattr(inner, "__code__", None):
        try:
            if code.co_filename != "<string>":  # of which Python may know another text
                return inspect.getsource(inner)
        except (OSError, TypeError):
            pass
        return f"{_compiled(code)} {_plain(inner.__defaults__)} {_plain(inner.__kwdefaults__)}"
    if isinstance(inner, type) and inner.__module__ == "__main__":
        return inner.__qualname__ if inner in seen else _content(inner, seen)
    held = [part for name in HOLDERS if callable(part := getattr(inner, name, None))]
    return " ".join([_plain(inner), *(_told(part, seen) for part in held)])


def _plain(value) -> str:
    """The repr without the addresses in memory, nor the order of a set, which are others in every process."""
    if isinstance(value, set | frozenset):
        return str(sorted(map(_plain, value)))
    if isinstance(value, tuple | list):
        return str([_plain(part) for part in value])
    if isinstance(value, dict):
        return str([(_plain(name), _plain(part)) for name, part in value.items()])
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _compiled(code: CodeType) -> str:
    """What a function does, in the words of the Python that compiled it."""
    constants = [_compiled(part) if isinstance(part, CodeType) else _plain(part) for part in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars} {constants}"
