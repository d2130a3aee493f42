"""What a class defined elsewhere, such as a term in a notebook, consists of: where it was edited, a run of it is another run."""

import hashlib
import inspect
import re
from types import CodeType

GENERATED = {"__init__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__replace__"}
"Methods that dataclasses write for a class, from nothing but its fields."


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


def _content(kind: type) -> str:
    """What a class consists of, and its bases in the same notebook: annotations, defaults, the sources of its functions."""
    said = []
    for part in kind.__mro__:
        if part.__module__ != kind.__module__:
            continue
        fields = vars(part).get("__dataclass_fields__", {})
        for name, note in inspect.get_annotations(part).items():
            said.append(f"{name}: {_plain(note)}")
            if name in fields:
                said += [_told(fields[name].default), _told(fields[name].default_factory)]
        said += [f"{name} = {_told(value)}" for name, value in vars(part).items() if _written(name, value)]
    return "\n".join(said)


def _written(name: str, value) -> bool:
    """Whether an entry of a class stands in its body, and is neither Python's nor made from what else stands there."""
    inner = inspect.unwrap(value)
    if name in GENERATED and getattr(getattr(inner, "__code__", None), "co_filename", None) == "<string>":
        return False
    return name != "_fingerprint" and not name.startswith("__annotate") and (not name.startswith("__") or callable(inner))


def _told(value) -> str:
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
        return _content(inner)
    held = [part for name in ("fget", "fset", "func") if callable(part := getattr(inner, name, None))]  # a property, functools.partial
    return " ".join([_plain(inner), *map(_told, held)])


def _plain(value) -> str:
    """The repr without the addresses in memory, which are others in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _compiled(code: CodeType) -> str:
    """What a function does, in the words of the Python that compiled it."""
    constants = [
        _compiled(c) if isinstance(c, CodeType) else sorted(map(repr, c)) if isinstance(c, frozenset) else c for c in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars} {constants}"
