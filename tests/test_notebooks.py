"""Notebooks as they are committed: no outputs, one parameters cell, short cells that compile, nothing that only one machine has."""

import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from vjepa_lab import notebook

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LONGEST = 15
"Lines of a code cell; what is longer belongs into the library."


def faults(nb: nbformat.NotebookNode) -> list[str]:
    """What is wrong with a notebook, a sentence each."""
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    spec, tags = nb.metadata.get("kernelspec", {}), [tag for cell in nb.cells for tag in cell.metadata.get("tags", [])]
    found = []
    if spec.get("name") != "python3" or spec.get("language") != "python":
        found.append("kernelspec: papermill needs name python3 and language python")
    if tags.count("parameters") != 1:
        found.append(f"{tags.count('parameters')} cells tagged parameters: expected one")
    if "raises-exception" in tags:
        found.append("tag raises-exception: papermill fails such a notebook all the same; catch the error in the cell")
    if not any("home()" in cell.source for cell in code):
        found.append("no call of vl.notebook.home(): in JupyterLab, relative paths would mean the notebook's folder")
    if "papermill" in nb.metadata or "widgets" in nb.metadata:
        found.append("metadata of an execution (papermill, widgets)")
    for number, cell in enumerate(nb.cells, 1):
        found += [f"cell {number}: {fault}" for fault in (cell_faults(cell) if cell.cell_type == "code" else [])]
    try:
        notebook.parameters(nb)
    except ValueError as error:
        found.append(str(error))
    return found


def cell_faults(cell: nbformat.NotebookNode) -> list[str]:
    found = []
    if cell.outputs or cell.execution_count is not None:
        found.append("has outputs or an execution count")
    if (lines := len(cell.source.splitlines())) > LONGEST:
        found.append(f"{lines} lines, at most {LONGEST}")
    try:
        compile(TransformerManager().transform_cell(cell.source), "cell", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError as error:
        found.append(f"does not compile: {error.msg}")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path):
    nb = nbformat.read(path, as_version=4)
    nbformat.validate(nb)
    assert faults(nb) == []


def test_lint():
    if not NOTEBOOKS:
        pytest.skip("no notebooks in notebooks/")
    ruff = subprocess.run([sys.executable, "-m", "ruff", "check", FOLDER], cwd=FOLDER.parent, capture_output=True, text=True)
    assert ruff.returncode == 0, ruff.stdout + ruff.stderr


def good() -> nbformat.NotebookNode:
    setup = "%matplotlib inline\nimport vjepa_lab as vl\nvl.notebook.home()"
    cells = [new_code_cell("seed = 0", metadata={"tags": ["parameters"]}), new_markdown_cell("Look."), new_code_cell(setup)]
    return new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}})


def test_a_good_notebook_has_no_faults():
    assert faults(good()) == []


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda nb: nb.metadata.pop("kernelspec"), "kernelspec"),
        (lambda nb: nb.metadata.kernelspec.pop("language"), "kernelspec"),
        (lambda nb: nb.cells[0].metadata.pop("tags"), "0 cells tagged parameters"),
        (lambda nb: nb.cells[2].metadata.update(tags=["parameters"]), "2 cells tagged parameters"),
        (lambda nb: nb.cells[2].metadata.update(tags=["raises-exception"]), "raises-exception"),
        (lambda nb: nb.cells[2].update(source="import vjepa_lab"), "home()"),
        (lambda nb: nb.cells[2].update(execution_count=1), "cell 3: has outputs"),
        (lambda nb: nb.cells[2].outputs.append(nbformat.v4.new_output("stream", text="x")), "cell 3: has outputs"),
        (lambda nb: nb.cells[2].update(source=nb.cells[2].source + "\nx = 1" * 15), "cell 3: 18 lines"),
        (lambda nb: nb.cells[2].update(source=nb.cells[2].source + "\nx ="), "cell 3: does not compile"),
        (lambda nb: nb.cells[0].update(source="%time seed = 0"), "not plain Python"),
        (lambda nb: nb.metadata.update(papermill={}), "metadata of an execution"),
    ],
)
def test_faults_are_found(spoil, fault):
    nb = good()
    spoil(nb)
    found = faults(nb)
    assert len(found) == 1 and fault in found[0]
