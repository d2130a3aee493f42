"""Run folders: which class a run was trained with, which run is the latest to look into, how a run shows itself."""

import hashlib
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys

import cloudpickle
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import vjepa_lab as vl
from vjepa_lab import notebook
from vjepa_lab.objective import Term
from vjepa_lab.terms import JEPA
from vjepa_lab.training import locks, runs
from vjepa_lab.training.runs import fingerprint

QUICK = {"preset": "smoke", "progress": False, "log_every": 1}


@pytest.fixture(scope="module")
def world():
    """A little of the synthetic world, in memory."""
    return vl.data.open("synthetic", frames=8, size=32, n=24, cache="memory")


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    return vl.pretrain("baseline", world, runs=tmp_path_factory.mktemp("runs"), **QUICK)


class Straight(Term):
    """Of the same name as a term of the library."""

    def error(self, view, head):
        return view.z.abs().mean(-1)


@pytest.fixture(scope="module")
def own(world, tmp_path_factory):
    return vl.pretrain(JEPA() + 0.1 * Straight(), world, runs=tmp_path_factory.mktemp("runs"), **QUICK)


# --- fingerprints ---

FIRST = """
import vjepa_lab as vl
from vjepa_lab.objective import Term
from vjepa_lab.terms import JEPA

world = vl.data.open("synthetic", frames=8, size=32, n=24, cache="memory")

def go(**more):
    recipe = JEPA() + 0.1 * Swift()
    try:
        run = vl.pretrain(recipe, world, preset="smoke", progress=False, log_every=1, out=out, **more)
        print("done", run.steps_done, run.config["own_terms"]["Swift"])
    except (KeyboardInterrupt, ValueError) as error:
        print(type(error).__name__, error)

def stop(run, trainer, step):
    if step == 2:
        raise KeyboardInterrupt
"""
SWIFT = """
class Swift(Term):
    power: float = 1.0
    scale = lambda self: 2.0

    @property
    def exponent(self):
        return self.power

    def error(self, view, head):
        return self.scale() * view.z.abs().mean(-1) ** self.exponent
"""
EDITS = [("view.z.abs()", "view.h.abs()"), ("power: float = 1.0", "power: float = 2.0"), ("lambda self: 2.0", "lambda self: 3.0")]


def executed(folder, out, *cells: str) -> list[str]:
    """What each cell printed, in a kernel of its own."""
    meta = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    tagged = new_code_cell(f"out = {str(out)!r}", metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[tagged, *map(new_code_cell, (FIRST, *cells))], metadata=meta), folder / "given.ipynb")
    done = nbformat.read(notebook.run(folder / "given.ipynb", folder / "executed.ipynb", progress=False), as_version=4)
    return ["".join(o.get("text", "") for o in cell.get("outputs", ()) if o.get("name") == "stdout") for cell in done.cells][2:]


def test_a_term_edited_in_a_notebook_is_another_run(tmp_path):
    """Refused while the run is on its way and after; the unchanged class goes on, in another kernel and from another cell."""
    stopped = executed(tmp_path, tmp_path / "a", SWIFT, "go(probe=stop)", *(SWIFT.replace(*edit) + "go()" for edit in EDITS))
    assert "Interrupted" in stopped[1]
    assert all("holds another run (own_terms.Swift: '" in said for said in stopped[2:])
    again = executed(tmp_path, tmp_path / "a", "# elsewhere\n" + SWIFT, "go()", SWIFT + "go()", SWIFT.replace(*EDITS[0]) + "go()")
    assert again[1].startswith("done 4 ") and again[2] == again[1] and "holds another run (own_terms.Swift" in again[3]


def defined(text: str) -> type:
    """The class of a text whose source nobody keeps, as at a prompt."""
    space = {"__name__": "nowhere", "Term": Term}
    exec(text, space)
    return space["Swift"]


@pytest.mark.parametrize(
    "edit", [*EDITS, ("return self.power", "return self.power + 0"), ("abs()", "square()"), ("power: float", "power: int")]
)
def test_a_term_without_source_is_known_by_what_it_does(edit):
    assert fingerprint(defined(SWIFT)) == fingerprint(defined(SWIFT)) != fingerprint(defined(SWIFT.replace(*edit)))


def test_a_base_without_source_counts_too():
    text = SWIFT.replace("class Swift", "class Base") + "\nclass Swift(Base):\n    pass\n"
    assert fingerprint(defined(text)) == fingerprint(defined(text)) != fingerprint(defined(text.replace("abs()", "square()")))


def test_a_term_of_a_file_is_known_by_its_source_as_ever():
    assert fingerprint(Straight) == hashlib.sha1(inspect.getsource(Straight).encode()).hexdigest()[:12]


BESIDE = """
import dataclasses, functools
TAU, LOG = 0.5, []
@functools.lru_cache
def inner(x):
    return TAU * x
def outer(x):
    LOG.append(x)
    return inner(x) if x > 1 else outer(2 * x)
def unused(x):
    return x
SIDES = 2
def listed():
    return ["a"]
class Helper:
    sides = SIDES
    def act(self, x, times=SIDES):
        return outer(x) + 1
class Base(Term):
    def error(self, view, head):
        return Helper().act(view.z.abs().mean(-1))
class Swift(Base):
    power: float = 1.0
    names: list = dataclasses.field(default_factory=listed, repr=False)
    slope = property(lambda self: slope(self.power))
def slope(x):
    return x
"""


@pytest.mark.parametrize(
    ("edit", "another"),
    [
        (("TAU, LOG = 0.5", "TAU, LOG = 0.7"), True), (("TAU * x", "TAU + x"), True), (("else outer(2 * x)", "else outer(3 * x)"), True),
        (("SIDES = 2", "SIDES = 3"), True), (('["a"]', '["b"]'), True),
        (("outer(x) + 1", "outer(x) - 1"), True), (("abs()", "square()"), True), 
        (("def slope(x):\n    return x", "def slope(x):\n    return -x"), True),
        (("def unused(x):\n    return x", "def unused(x):\n    return 2 * x"), False), (("LOG = 0.5, []", "LOG = 0.5, [1]"), False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kept", [True, False], ids=["in a file", "at a prompt"])
def test_what_a_term_uses_of_its_module_is_part_of_it(edit, another, kept, tmp_path, monkeypatch):
    """Functions, classes, bases and constants, through each other; neither what it does not use nor what changes while it runs."""
    monkeypatch.syspath_prepend(tmp_path)

    def known(text: str, name: str) -> str:
        if not kept:
            return fingerprint(defined(text))
        (tmp_path / f"{name}.py").write_text("from vjepa_lab.objective import Term\n" + text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return fingerprint(importlib.import_module(name).Swift)

    assert known(BESIDE, "given") == known(BESIDE, "again")
    assert (known(BESIDE.replace(*edit), "edited") != known(BESIDE, "same")) == another


def test_what_stands_beside_a_class_is_read_anew_where_it_can_be():
    """A function edited in the next cell counts; a class that came from another process keeps what it was there."""
    space = {"__name__": "nowhere", "Term": Term}
    exec(SWIFT.replace("self.power\n", "slope(self.power)\n") + "def slope(x):\n    return x", space)
    before = fingerprint(space["Swift"])
    exec("def slope(x):\n    return x ** 2", space)
    after = fingerprint(space["Swift"])
    assert before != after
    told = subprocess.run(
        [sys.executable, "-c", "import pickle, sys; from vjepa_lab.training.fingerprints import fingerprint; "
         "print(fingerprint(pickle.load(sys.stdin.buffer)))"],
        input=cloudpickle.dumps(space["Swift"]), capture_output=True, check=True,
    )  # fmt: skip
    assert told.stdout.decode().strip() == after


# --- recipes ---


def test_a_recipe_with_a_term_of_ones_own_is_not_read_back(own):
    """Not even where a term of the library has its name."""
    assert vl.recipe((own.path / "recipe.txt").read_text()).objective.terms[1][1] != Straight()
    for ask in (lambda: own.recipe, own.loss):
        with pytest.raises(ValueError, match="uses Straight, defined elsewhere; pass recipe="):
            ask()
    assert own.loss(vl.recipe(JEPA() + 0.1 * Straight())) is not None


def test_a_folder_with_another_run_says_what_to_change(run, world):
    with pytest.raises(ValueError, match=r"choose another folder \(out=, runs= or the notebook's parameter for it\), .*variant="):
        vl.pretrain("baseline", world, out=run.path, **QUICK | {"steps": 7})


# --- the latest ---


def test_the_latest_run_is_one_to_look_into(run, own, world, tmp_path):
    """The last written at any depth; not one that is stopped, pruned, damaged, of another kind, or with a term defined elsewhere."""
    assert runs.latest(tmp_path) is None and runs.latest(tmp_path / "nowhere") is None

    def copied(name, of=run, minute=0):
        shutil.copytree(of.path, tmp_path / name)
        os.utime(tmp_path / name / "report.json", (60 * minute, 60 * minute))
        return tmp_path / name

    copied("own", own, 9)
    (copied("stopped", minute=8) / "report.json").unlink()
    (copied("pruned", minute=7) / "last.pt").unlink()
    (copied("damaged", minute=6) / "config.json").write_text("{")
    (copied("tuned", minute=5) / "recipe.txt").unlink()
    assert runs.latest(tmp_path) is None
    start = copied("start", vl.pretrain("random-init", world, runs=tmp_path / "untrained", **QUICK), 10)
    shutil.rmtree(tmp_path / "untrained")
    assert runs.latest(str(tmp_path)).path == start
    deep = copied("studies/one/cell", minute=2)
    copied("early", minute=1)
    assert runs.latest(tmp_path).path == deep
    assert runs.latest(tmp_path / "early").path == tmp_path / "early"


# --- how a run shows itself ---


def test_a_run_shows_its_state_its_recipe_and_its_loss(run, own, tmp_path):
    shown = run._repr_html_()
    assert f"<b>{run.name}</b>: done, 4 of 4 steps" in shown and run.recipe._repr_html_() in shown and "data:image/png;base64," in shown
    assert len(shown) < 30_000
    assert "<code>Recipe(JEPA() + 0.1*Straight())</code>" in own._repr_html_()
    shutil.copytree(run.path, tmp_path / "a")
    (tmp_path / "a" / "report.json").unlink()
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "a" / "metrics.jsonl").write_text("\n".join(lines[:3]))
    stopped = vl.load_run(tmp_path / "a")
    assert "stopped, 3 of 4 steps" in stopped._repr_html_()
    with locks.hold(stopped.path):
        assert "training, 3 of 4 steps" in stopped._repr_html_()


def test_a_run_with_nothing_to_draw_is_shown_as_text(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "a")
    log = tmp_path / "a" / "metrics.jsonl"
    first = log.read_text().splitlines()[0]
    assert json.loads(first)["step"] == 0
    for write in (lambda: log.write_text(first), lambda: log.write_text(first[:9] + "\n" + first), log.unlink):
        write()
        assert vl.load_run(tmp_path / "a")._repr_html_() is None


NAMED = """
from vjepa_lab.training.fingerprints import fingerprint
class A:
    keys = frozenset({"alpha", "beta", "gamma", "delta"})
    def error(self, key={"x", "y", "z"}):
        return key in {"one", "two", "three"}
class B:
    other = A
A.other = B
print(fingerprint(A), fingerprint(B))
"""


def test_a_fingerprint_is_the_same_in_every_process_also_of_classes_that_name_each_other():
    told = set()
    for seed in ("1", "2", "3"):
        command = [sys.executable, "-c", f"exec({NAMED!r})"]
        told.add(subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout)
    (both,) = told
    assert len(set(both.split())) == 2
