"""What a class defined elsewhere, such as a term in a notebook, consists of: where it was edited, a run of it is another run."""

import dataclasses
import hashlib
import inspect
import re
from types import CodeType

GENERATED = {"__init__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__replace__"}
MADE = ("<string>", dataclasses.__file__)
"Methods that dataclasses write for a class, from nothing but its fields, and the files that these are said to be from."


def fingerprint(kind: type) -> str:
    """A hash of a class's source. It stays with the class, for a process that gets it without its source.

    What the class calls is not in it: a function that stands beside it may change unseen.
    """
    if "_fingerprint" not in vars(kind):
        try:
            source = inspect.getsource(kind)
        except (OSError, TypeError):  # in a notebook, whose __main__ is no file
            source = _content(kind)
        kind._fingerprint = hashlib.sha1(source.encode()).hexdigest()[:12]
    return kind._fingerprint


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
    held = [part for name in ("fget", "fset", "func") if callable(part := getattr(inner, name, None))]  # a property, functools.partial
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
