"""The house has no circles: what a module imports when it is loaded never leads back to it, and of two
folders one at most imports the other directly."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import vjepa_lab

ROOT = Path(vjepa_lab.__file__).parent
MODULES = {
    ".".join(("vjepa_lab", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path for path in ROOT.rglob("*.py")
}


def imported(name: str) -> set[str]:
    """Modules of this package that one imports at its top level."""
    path, found = MODULES[name], set()
    inside = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = inside.split(".")[: inside.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
    return (found & MODULES.keys()) - {name}


def folder(name: str) -> str:
    """The subpackage of a module; a module of the package itself stands for itself."""
    return ".".join(name.split(".")[:2])


def test_there_is_something_to_check():
    assert len(MODULES) > 100
    assert imported("vjepa_lab.plots.paper") >= {"vjepa_lab.plots", "vjepa_lab.evidence.claims", "vjepa_lab.plots.tables"}
    assert "vjepa_lab.files" in imported("vjepa_lab.training.checkpoint")


def test_modules_import_without_circles():
    TopologicalSorter({name: imported(name) for name in MODULES}).prepare()


def test_folders_import_without_circles():
    graph: dict[str, set[str]] = {}
    for name in MODULES:
        graph.setdefault(folder(name), set()).update({folder(other) for other in imported(name)} - {folder(name)})
    inner = {name for name in graph if (ROOT / name.removeprefix("vjepa_lab.")).is_dir()}
    TopologicalSorter({name: graph[name] & inner for name in inner}).prepare()
    assert not graph["vjepa_lab"], "importing the package alone loads nothing"
