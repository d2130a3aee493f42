"""Notebooks run headless: parameters mean what they say, and the recorded state is true whatever ends the execution."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from vjepa_lab import notebook
from vjepa_lab.arguments import Argument

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
PARAMETERS = """
seed: int = 0
lr = 1e-3                       # a float
use_ema = True
out = None
data = "synthetic"
warmup: int | None = None
probe: Literal["linear", "attentive"] = "linear"
seeds = [0, 1]
size, where = 64, Path("runs")
overrides: dict = {}
labels: str | Sequence[str] = "class"
"""


def write(path: Path, *cells: str, parameters: str | None = None, metadata=None) -> Path:
    tagged = [] if parameters is None else [new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells = [*tagged, new_markdown_cell("words"), *map(new_code_cell, cells)]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": KERNEL} if metadata is None else metadata), path)
    return path


@pytest.fixture
def given(tmp_path):
    path = write(tmp_path / "given.ipynb", parameters=PARAMETERS)
    return lambda **values: notebook.check(path, values)


def printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.get("text", "") for cell in cells for o in cell.get("outputs", []))


# --- parameters ---


@pytest.mark.parametrize(
    ("name", "text", "meant"),
    [
        ("seed", "3", 3),
        ("lr", "1e-4", 1e-4),
        ("lr", "1", 1.0),
        ("use_ema", "false", False),
        ("use_ema", "0", False),
        ("out", "null", None),
        ("out", "runs/x", "runs/x"),
        ("out", "7", 7),
        ("warmup", "none", None),
        ("warmup", "30", 30),
        ("data", "7", "7"),
        ("data", "...", "..."),
        ("data", "JEPA() + 0.1*Delta()", "JEPA() + 0.1*Delta()"),
        ("probe", "attentive", "attentive"),
        ("seeds", "[2, 3]", [2, 3]),
        ("seeds", "4,5", [4, 5]),
        ("seeds", "6", [6]),
        ("size", "32", 32),
        ("where", "elsewhere", "elsewhere"),
        ("overrides", "{'steps': 20}", {"steps": 20}),
        ("overrides", "steps=20, lr=1e-3", {"steps": 20, "lr": 1e-3}),
        ("labels", "motion,shape", ["motion", "shape"]),
        ("labels", "motion", "motion"),
        ("overrides", '{"compile": true}', {"compile": True}),
    ],
)
def test_text_means_what_its_type_says(given, name, text, meant):
    value = given(**{name: text})[name]
    assert value == meant and type(value) is type(meant)


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("out", Path("runs") / "x", "runs/x"),
        ("seed", np.int64(4), 4),
        ("lr", np.float32(0.5), 0.5),
        ("lr", torch.tensor(0.25), 0.25),
        ("seeds", np.arange(3), [0, 1, 2]),
        ("seeds", (1, 2), [1, 2]),
        ("use_ema", np.bool_(False), False),
        ("out", {"a": [Path("b")]}, {"a": ["b"]}),
    ],
)
def test_values_from_python_become_plain(given, name, value, meant):
    value = given(**{name: value})[name]
    assert value == meant and type(value) is type(meant)
    json.dumps(value)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"sed": 4}, "unknown parameter 'sed': did you mean seed"),
        ({"seed": "notanint"}, "seed: expected int, got 'notanint'"),
        ({"seed": "true"}, "seed: expected int"),
        ({"seed": True}, "seed: expected int"),
        ({"use_ema": "maybe"}, "use_ema: expected bool"),
        ({"warmup": "soon"}, r"warmup: expected int or nothing"),
        ({"probe": "atentive"}, "one of 'linear', 'attentive', got 'atentive'; did you mean 'attentive'"),
        ({"seeds": "1,two"}, r"seeds: expected list\[int\]"),
        ({"data": 5}, "data: expected str, got 5"),
    ],
)
def test_bad_values_are_refused_by_name(given, values, complaint):
    with pytest.raises(ValueError, match=complaint):
        given(**values)


def test_objects_are_refused_with_a_way_out(given):
    with pytest.raises(TypeError, match="out: a object is no plain value; pass text"):
        given(out=object())


def test_a_parameter_without_default_must_be_given(tmp_path):
    path = write(tmp_path / "n.ipynb", parameters="run: str")
    with pytest.raises(ValueError, match="'run' has no default"):
        notebook.check(path, {})
    assert notebook.check(path, {"run": "x"}) == {"run": "x"}


def test_names_that_only_the_notebook_knows_take_the_type_of_the_default(tmp_path):
    found = notebook.parameters(
        write(tmp_path / "n.ipynb", parameters="import os\na: Mine = 3\nb = os.cpu_count()\nc: 'int | None' = None")
    )
    assert found["a"] == Argument("a", int, 3)
    assert found["b"].read("5") == 5 and found["b"].read("five") == "five"
    assert found["c"].read("null") is None


def test_a_notebook_without_parameters_cell_takes_none(tmp_path):
    with pytest.raises(ValueError, match=r"n.ipynb: unknown parameter 'seed': there is none"):
        notebook.run(write(tmp_path / "n.ipynb"), tmp_path / "out", {"seed": 1})
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_notebooks(tmp_path):
    write(tmp_path / "00_quickstart.ipynb")
    with pytest.raises(FileNotFoundError, match=r"did you mean 00_quickstart\.ipynb"):
        notebook.run(tmp_path / "00_quickstar.ipynb")
    (tmp_path / "text.ipynb").write_text("not json")
    with pytest.raises(ValueError, match=r"text.ipynb: not a Jupyter notebook"):
        notebook.run(tmp_path / "text.ipynb")
    with pytest.raises(ValueError, match="would overwrite"):
        notebook.run(tmp_path / "00_quickstart.ipynb", tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        notebook.run(tmp_path / "00_quickstart.ipynb", tmp_path / "out.ipynb", cwd=tmp_path / "nowhere")


# --- execution ---


def test_done(tmp_path):
    """Values arrive with their types; the folder is made; braces in a path stay; a notebook without kernelspec runs in python3."""
    source = write(
        tmp_path / "in.ipynb", "import os; print([seed, lr, use_ema, out, warmup, float(wide)], os.getcwd())", metadata={},
        parameters="seed, lr, use_ema = 0, 1e-3, True\nout = None\nwarmup: int | None = 5\nwide = 1.0",
    )  # fmt: skip
    out = tmp_path / "new" / "{braces} and blanks" / "out.ipynb"
    values = {"seed": "3", "lr": "1e-4", "use_ema": "false", "out": tmp_path, "warmup": "null", "wide": "inf"}
    assert notebook.run(source, out, values, cwd=tmp_path, progress=False) == out
    assert printed(out).strip() == f"[3, 0.0001, False, {str(tmp_path)!r}, None, inf] {tmp_path}"
    known = notebook.status(out)
    assert known["state"] == "done" and known["params"]["lr"] == 1e-4 and known["seconds"] > 0
    assert sorted(p.name for p in out.parent.iterdir()) == ["out.ipynb", "out.status.json"]


def test_a_failing_cell(tmp_path, capfd):
    """One line says where and why; the rest does not run; the earlier result stays; the next success clears the failure away."""
    source = write(
        tmp_path / "in.ipynb",
        "x = 1",
        "if bad:\n    raise ValueError('no such file: a.mp4\\nmore')",
        "print('end')",
        parameters="bad = True",
    )
    out = tmp_path / "out.ipynb"
    out.write_text("earlier")
    with pytest.raises(notebook.NotebookError) as caught:
        notebook.run(source, out)
    assert str(caught.value) == (
        f"in.ipynb failed in In [3] (if bad:): ValueError: no such file: a.mp4 (see {tmp_path / 'out.failed.ipynb'})"
    )
    assert out.read_text() == "earlier" and "end" not in printed(caught.value.notebook)
    known = notebook.status(out)
    assert known["state"] == "failed" and known["error"]["name"] == "ValueError" and known["error"]["message"].endswith("more")
    assert "TCP" not in capfd.readouterr().err

    notebook.run(source, out, {"bad": False}, progress=False)
    assert notebook.status(out)["state"] == "done" and printed(out) == "end\n"
    assert not notebook.beside(out, "failed").exists()


def test_exits(tmp_path):
    """sys.exit(0) ends a notebook early and well; another code is a failure."""
    source = write(tmp_path / "in.ipynb", "import sys; sys.exit(code)", "print('end')", parameters="code = 0")
    out = notebook.run(source, tmp_path / "out.ipynb", progress=False)
    assert notebook.status(out)["state"] == "done" and "end" not in printed(out)
    with pytest.raises(notebook.NotebookError, match="SystemExit: 3"):
        notebook.run(source, out, {"code": 3}, progress=False)
    assert notebook.status(out)["state"] == "failed"


def test_the_kernel_dies(tmp_path):
    """Papermill calls every cell of such a notebook completed."""
    source, out = write(tmp_path / "in.ipynb", "import os; os._exit(1)", "print('end')"), tmp_path / "out.ipynb"
    with pytest.raises(notebook.NotebookError, match=r"In \[1\] \(import os; os._exit\(1\)\): KernelDied: .* too little memory"):
        notebook.run(source, out, progress=False)
    saved = nbformat.read(notebook.beside(out, "failed"), as_version=4)
    assert saved.metadata.papermill.exception is None
    assert notebook.status(out)["state"] == "failed" and not out.exists()


def test_a_cell_that_takes_too_long(tmp_path):
    source, out = write(tmp_path / "in.ipynb", "import time; time.sleep(60)"), tmp_path / "out.ipynb"
    with pytest.raises(notebook.NotebookError, match="Timeout: the cell took longer"):
        notebook.run(source, out, timeout=1, progress=False)
    assert notebook.status(out)["state"] == "failed" and not out.exists()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("timeout", [None, 60])
def test_a_reply_that_arrives_unnoticed_is_found(tmp_path, monkeypatch, timeout):
    """The cell ends while its last output is answered: without a second look the run would wait for ever, or call the cell too slow."""
    from nbclient.output_widget import OutputWidget

    answered, send = [], OutputWidget.send

    def late(self, *args, **more):
        time.sleep(1)
        answered.append(self)
        send(self, *args, **more)

    monkeypatch.setattr(OutputWidget, "send", late)
    cell = "import ipywidgets\nout = ipywidgets.Output()\ndisplay(out)\nwith out:\n    print('shown')"
    began = time.monotonic()
    done = notebook.run(write(tmp_path / "n.ipynb", cell, "print('next')"), tmp_path / "out.ipynb", timeout=timeout, progress=False)
    assert answered and "next" in printed(done)
    assert time.monotonic() - began < 50


def test_an_unknown_kernel(tmp_path):
    spec = {"kernelspec": KERNEL | {"name": "no-such-kernel"}}
    with pytest.raises(notebook.NotebookError, match=r"'no-such-kernel' is not installed here; set the notebook's kernel to python3"):
        notebook.run(write(tmp_path / "in.ipynb", "1", metadata=spec), tmp_path / "out.ipynb", progress=False)


RUN = "import sys; from vjepa_lab import notebook; notebook.run(sys.argv[1], sys.argv[2], progress=False)"
TRAIN = """
import time
from pathlib import Path
try:
    Path("started").touch()
    time.sleep(60)
except KeyboardInterrupt:
    print("checkpoint saved")
    if again: raise
"""


def started(tmp_path: Path, source: Path, out: Path) -> subprocess.Popen:
    """A process that executes a notebook and has reached its long cell."""
    process = subprocess.Popen([sys.executable, "-c", RUN, source, out], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    until = time.time() + 240
    while not (tmp_path / "started").exists():
        assert time.time() < until and process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    return process


@pytest.mark.parametrize(("number", "again"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_interrupted(tmp_path, number, again):
    """The running cell gets to save, whether it raises on or swallows the interrupt; no later cell runs."""
    source, out = write(tmp_path / "in.ipynb", f"again = {again}", TRAIN, "print('end')"), tmp_path / "out.ipynb"
    process = started(tmp_path, source, out)
    assert notebook.status(out)["state"] == "running"
    with pytest.raises(notebook.NotebookError, match="another process is running this notebook"):
        notebook.run(source, out, progress=False)
    process.send_signal(number)
    said = process.communicate(timeout=240)[1]
    assert process.returncode != 0 and f"interrupted by {number.name} in In [2] (import time)" in said
    known = notebook.status(out)
    assert known["state"] == "interrupted" and known["signal"] == number.name and not out.exists()
    assert printed(notebook.beside(out, "interrupted")) == "checkpoint saved\n"


def test_killed(tmp_path):
    """kill -9 leaves no time to write anything; the state tells it all the same, and the same call starts anew."""
    source, out = write(tmp_path / "in.ipynb", "from pathlib import Path", TRAIN.replace("60", "1")), tmp_path / "out.ipynb"
    process = started(tmp_path, source, out)
    process.kill()
    process.communicate()
    assert notebook.status(out)["state"] == "killed" and not out.exists()
    notebook.run(source, out, cwd=tmp_path, progress=False)
    assert notebook.status(out)["state"] == "done"


@pytest.mark.skipif(notebook.fcntl is None, reason="no locks here")
def test_locks_as_network_file_systems_have_them(tmp_path, monkeypatch):
    """NFS makes a lock of a byte range, which needs a file open for writing; others have none at all: what is not known is not told."""
    out = tmp_path / "out.ipynb"
    part = notebook.beside(out, "running")
    part.touch()
    (tmp_path / "out.status.json").write_text('{"state": "running"}')
    monkeypatch.setattr(notebook.fcntl, "flock", notebook.fcntl.lockf)
    assert notebook.status(out)["state"] == "killed"
    part.chmod(0o444)
    assert notebook.status(out)["state"] == ("killed" if os.access(part, os.W_OK) else "running")  # root may write it
    part.chmod(0o644)

    def none(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(notebook.fcntl, "flock", none)
    assert notebook.status(out)["state"] == "running"
    with notebook._claimed(part) as held:
        assert not held
    part.unlink()
    assert notebook.status(out)["state"] == "killed"


def test_several_at_once(tmp_path):
    """Threads share no state: each kernel has its own folder and parameters."""
    source = write(tmp_path / "in.ipynb", "import os; print(seed, os.path.basename(os.getcwd()))", parameters="seed = 0")
    for seed in range(3):
        (tmp_path / str(seed)).mkdir()

    def one(seed: int) -> None:
        notebook.run(source, tmp_path / f"{seed}.ipynb", {"seed": seed}, cwd=tmp_path / str(seed), progress=False)

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [printed(tmp_path / f"{seed}.ipynb") for seed in range(3)] == [f"{seed} {seed}\n" for seed in range(3)]


def test_the_way_to_the_kernel(tmp_path, monkeypatch):
    """Sockets where they can be made; TCP where the path is too long for one. Nothing stays behind."""
    with notebook._connection() as short:
        folder = Path(short["connection_file"]).parent
        assert short["transport"] == "ipc" and not list(folder.iterdir())
    assert not folder.exists()
    deep = tmp_path / ("long" * 25)
    deep.mkdir()
    monkeypatch.setattr(notebook.tempfile, "tempdir", str(deep))
    with notebook._connection() as long:
        assert long == {}


def test_tcp_works_too(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "_has_sockets", lambda file: False)
    out = notebook.run(write(tmp_path / "in.ipynb", "print(1)"), tmp_path / "out.ipynb", progress=False)
    assert printed(out) == "1\n"


def test_the_bar_shows_the_bar_of_the_running_cell(tmp_path):
    """On a terminal: the name of the notebook, the cell, and the steps of the training in it."""
    pty = pytest.importorskip("pty")
    cell = "import time\nfrom tqdm.auto import tqdm\nfor _ in tqdm(range(30), desc='baseline'): time.sleep(.05)"
    source = write(tmp_path / "quick.ipynb", cell)
    here, there = pty.openpty()
    command = [sys.executable, "-c", RUN.replace(", progress=False", ""), source, tmp_path / "out.ipynb"]
    process = subprocess.Popen(command, stderr=there, stdout=there)
    os.close(there)
    shown = b""
    while True:
        try:
            more = os.read(here, 4096)
        except OSError:  # the other side closed
            break
        if not more:
            break
        shown += more
    os.close(here)
    assert process.wait() == 0
    frames = shown.decode().split("\r")
    assert any("quick |" in f and "cell 1/2" in f and re.search(r"baseline \d+/30 \[.*it/s", f) for f in frames), frames


# --- where relative paths lie ---


def test_home(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    for below in ("notebooks/mine", "runs/notebooks", "elsewhere"):
        (tmp_path / below).mkdir(parents=True)
    for start, place in {"notebooks": ".", "notebooks/mine": ".", "runs/notebooks": ".", ".": ".", "elsewhere": "elsewhere"}.items():
        monkeypatch.chdir(tmp_path / start)
        assert notebook.home() == Path.cwd() == (tmp_path / place).resolve()
