"""The command line: options from signatures, one line for what the user got wrong, exit codes."""

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from vjepa_lab import __main__ as cli
from vjepa_lab import options
from vjepa_lab.arguments import REQUIRED

ROOT = Path(__file__).parents[1]


def said(capsys, *argv: str) -> tuple[int, str, str]:
    try:
        code = cli.main([str(word) for word in argv])
    except SystemExit as end:  # --help
        code = end.code or 0
    return code, *capsys.readouterr()


def example(
    name, preset: str = "micro", seed: int = 0, *, lr: float | None = None, kind: Literal["a", "b"] = "a", save: bool = True, **more
):
    """Do something.

    name     what it is called
    lr       peak of the
             learning rate, 100% of it
    preset   a size; `a word`

    This line  is not about an argument.
    """
    return {"name": name, "preset": preset, "seed": seed, "lr": lr, "kind": kind, "save": save}


def parse(*argv: str) -> dict:
    parser = options.Parser("example")
    options.offer(parser, example, leave_out=["preset"])
    return vars(parser.parse_args(argv))


def test_options_come_from_the_function():
    assert [a.name for a in options.arguments(example)] == ["name", "preset", "seed", "lr", "kind", "save"]
    assert options.arguments(example)[0].default is REQUIRED
    assert options.explained(example) == {
        "name": "what it is called",
        "lr": "peak of the learning rate, 100% of it",
        "preset": "a size; `a word`",
    }
    assert parse("x") == {"name": "x"}  # what is not said keeps the function's default
    assert parse("x", "--lr", "1e-4", "--seed", "3", "--no-save", "--kind", "b") == {
        "name": "x", "lr": 1e-4, "seed": 3, "save": False, "kind": "b",
    }  # fmt: skip
    assert parse("x", "--lr", "null") == {"name": "x", "lr": None}


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], "required: NAME"),
        (["x", "--seed", "y"], "--seed: expected int, got 'y'"),
        (["x", "--kind", "c"], "expected one of 'a', 'b', got 'c'"),
        (["x", "--preset", "tiny"], "unrecognized arguments"),
        (["x", "--see", "1"], "unrecognized arguments"),
    ],
)
def test_arguments_that_make_no_sense(argv, complaint):
    with pytest.raises(cli.UserError, match=complaint):
        parse(*argv)


def test_overview(capsys):
    code, out, _ = said(capsys, "--help")
    assert code == 0 and all(f"  {name} " in out for name in cli.COMMANDS)
    assert said(capsys)[0] == 2
    code, out, _ = said(capsys, "--traceback")
    assert code == 2 and out.startswith("usage: ")
    assert said(capsys, "--version")[1].strip() == "0.1.0"


@pytest.mark.parametrize("name", [name for name, command in cli.COMMANDS.items() if command])
def test_help(capsys, name):
    code, out, _ = said(capsys, *name.split(), "--help")
    assert code == 0 and cli.about(name).split()[0] in out and "--traceback" in out


@pytest.mark.parametrize(
    ("argv", "code", "complaint"),
    [
        (["variantz"], 2, "unknown command 'variantz': did you mean variants?"),
        (["data"], 2, "did you mean data check"),
        (["data", "chek", "ucf101"], 2, "did you mean data check"),
        (["qqq"], 2, "unknown command 'qqq': expected one of run, variants"),
        (["variants", "qqq"], 1, "unknown variant 'qqq': expected one of baseline"),
        (["run"], 2, "required: notebook (see vjepa-lab run --help)"),
        (["run", "nowhere.ipynb"], 1, "nowhere.ipynb: no such notebook"),
        (["variants", "fwm-hw-dl"], 1, "did you mean fwm-hw-ld"),
        (["pretrain", "fwm-hw-dl"], 1, "did you mean fwm-hw-ld"),
        (["pretrain", "ld", "--preset", "mikro"], 1, "did you mean micro"),
        (["pretrain", "ld", "--lr", "fast"], 2, "--lr: expected float"),
        (["probe", "nowhere"], 1, "nowhere: not a run folder"),
        (["probe", "nowhere", "--set", "epochs"], 2, "expected NAME=VALUE"),
        (["probe", "nowhere", "--set", "epoch=1"], 2, "--set epoch: unknown to the probe 'linear'; did you mean epochs"),
        (["probe", "nowhere", "--set", "ks=[1]", "--probe", "stepwise"], 2, "--set ks: unknown to the probe 'stepwise'"),
        (["probe", "nowhere", "--set", "limit=8", "--limit", "8"], 2, "--set limit: given twice; leave one out"),
        (["probe", "nowhere", "--set", "lrs=[1]", "--set", "lrs=[2]"], 2, "--set lrs: given twice"),
        (["probe", "nowhere", "--set", "labels=motion", "--set", "data=synthetic"], 1, "nowhere: not a run folder"),
        (["probe", "nowhere", "--set", "epochs=1", "--set", "limit=8"], 1, "nowhere: not a run folder"),
        (["probe", "nowhere", "--set", "x=1", "--probe", "linaer"], 1, "unknown probe 'linaer'"),
        (["pretrain", "ld", "--preset", "smoke", "--device", "gpu"], 1, "device 'gpu' is not available here; use 'auto' or 'cpu'"),
        (["pretrain", "ld", "--masks", "MultiBlok()"], 2, "--masks: cannot read 'MultiBlok()'"),
        (["pretrain", "ld", "--masks", "MultiBlock(kind=1)"], 2, "unexpected keyword argument 'kind'"),
        (["pretrain", "ld", "--masks", "JEPA()"], 2, "--masks: expected MultiBlock(...), got 'JEPA()'"),
        (["study", "plan", str(ROOT / "README.md")], 1, "README.md: expected a Python file"),
        (["table", "nowhere"], 1, "nowhere: no such run folder"),
        (["data", "check", "ucf", "nowhere"], 1, "unknown data set 'ucf'"),
    ],
)
def test_errors_take_one_line(capsys, argv, code, complaint):
    got, out, err = said(capsys, *argv)
    assert got == code and out == ""
    assert complaint in err and err.startswith("vjepa-lab: ") and err.count("\n") == 1


def test_masks_are_given_as_the_expression_that_rebuilds_them(monkeypatch):
    from vjepa_lab import train
    from vjepa_lab.masks import Blocks, MultiBlock

    got = []
    monkeypatch.setattr(train, "pretrain", lambda recipe, preset="micro", **overrides: got.append(overrides) or SimpleNamespace(path=""))
    wanted = MultiBlock((Blocks(1, 0.15),), max_temporal_keep=0.5)
    for text in (repr(wanted), "null"):
        cli.main(["pretrain", "ld", "--masks", text])
    assert [each["masks"] for each in got] == [wanted, None]


def test_a_folder_may_be_called_like_a_number(capsys):
    """What takes a name as well as an object has no type; a name is a text."""
    from vjepa_lab.evaluation import evaluate

    parser = options.Parser("probe")
    options.offer(parser, evaluate.probe)
    assert vars(parser.parse_args(["7", "--data", "2024"])) == {"run": "7", "data": "2024"}
    assert vars(parser.parse_args(["7", "--data", "null"])) == {"run": "7", "data": None}
    for argv in (["pretrain", "ld", "--preset", "smoke", "--data", "2024"], ["data", "check", "folder", "2024"]):
        code, _, err = said(capsys, *argv)
        assert code == 1 and "2024" in err and err.count("\n") == 1


def test_faults_of_the_library_keep_their_traceback(monkeypatch):
    def broken(parser):
        """broken"""
        return lambda: [][1]

    monkeypatch.setitem(cli.COMMANDS, "variants", broken)
    with pytest.raises(IndexError):
        cli.main(["variants"])


def test_a_traceback_on_request():
    with pytest.raises(FileNotFoundError):
        cli.main(["run", "nowhere.ipynb", "--traceback"])


def test_nothing_is_imported_before_the_command_is_known():
    code = (
        "import sys, vjepa_lab.__main__ as m; m.main(['--help']); print([x for x in ('torch', 'pandas', 'papermill') if x in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("[]\n")


# --- commands ---


def write(path: Path, *cells: str) -> Path:
    tagged = new_code_cell("seed, data = 0, 'synthetic'", metadata={"tags": ["parameters"]})
    last = new_code_cell("print('seed', seed)\ndata", metadata={"tags": ["summary"]})
    meta = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=[tagged, *map(new_code_cell, cells), last], metadata=meta), path)
    return path


def test_what_reads_a_notebook_waits_for_no_grammar():
    """jsonschema's, of international addresses: seconds in what reads a notebook, such as each cell of a study. A first cell reads none."""
    loaded = "print([x for x in ('lark', 'nbformat') if x in sys.modules])"
    for code, expected in (
        (f"import vjepa_lab.__main__ as m; m.main(['run', 'notebooks/01_pretrain.ipynb', '--parameters']); {loaded}", "['nbformat']"),
        (f"from vjepa_lab import notebook; notebook.home(); {loaded}", "[]"),
    ):
        done = subprocess.run([sys.executable, "-c", f"import sys; {code}"], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stdout.splitlines()[-1] == expected, done.stderr


def test_run(tmp_path, capsys, monkeypatch):
    """The summary of the notebook and where the executed notebook lies; in the caller's folder unless told otherwise."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "one.ipynb", "import os; open('here', 'w').close()")
    code, out, _ = said(capsys, "run", "one.ipynb", "-p", "seed", "3", "-p", "data", "7", "--no-progress")
    assert code == 0 and (tmp_path / "here").exists()
    assert out.startswith("seed 3\n'7'\nexecuted notebook:  runs/notebooks/one.ipynb")
    code, out, _ = said(capsys, "run", "one.ipynb", "--parameters")
    assert code == 0 and out == "seed: int = 0\ndata: str = 'synthetic'\n"
    code, out, err = said(capsys, "run", "one.ipynb", "-p", "sed", "3")
    assert code == 1 and "one.ipynb: unknown parameter 'sed': did you mean seed?" in err


def test_run_that_fails(tmp_path, capsys):
    path = write(tmp_path / "one.ipynb", "raise ValueError('no clips')")
    code, _, err = said(capsys, "run", path, "-o", tmp_path / "out", "--no-progress")
    assert code == 1 and "one.ipynb failed in In [2]" in err and "ValueError: no clips" in err
    assert (tmp_path / "out" / "one.failed.ipynb").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_that_is_interrupted(tmp_path, number):
    path = write(tmp_path / "one.ipynb", "import time; open('started', 'w').close(); time.sleep(60)")
    command = [sys.executable, "-m", "vjepa_lab", "run", path, "-o", "out", "--no-progress"]
    (tmp_path / "work").mkdir()
    process = subprocess.Popen(command, cwd=tmp_path / "work", stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "work" / "started").exists():
        assert process.poll() is None
        time.sleep(0.05)
    assert process.poll() is None
    os.kill(process.pid, number)
    err = process.communicate(timeout=240)[1]
    assert process.returncode == 128 + number and f"interrupted by {number.name}" in err and "Traceback" not in err


def test_variants(capsys):
    code, out, _ = said(capsys, "variants", "ld", "baseline")
    assert code == 0 and out.split("\n")[0].startswith("ld        Recipe(JEPA() + ")
    code, out, _ = said(capsys, "variants")
    assert code == 0 and len(out.splitlines()) >= 29


def test_from_pretraining_to_the_table(tmp_path, capsys):
    """The same run as by hand: pretrain, probe, table."""
    code, out, _ = said(capsys, "pretrain", "ld", "--preset", "smoke", "--steps", "2", "--runs", tmp_path, "--no-progress")
    run = Path(out.splitlines()[-1])
    assert code == 0 and run.parent == tmp_path and (run / "last.pt").exists()
    code, out, err = said(
        capsys, "probe", run, "--labels", "motion,shape", "--limit", "24", "--no-progress", "--set", "epochs=1", "--set", "lrs=[0.1]"
    )
    assert code == 0, err
    assert "motion" in out and "shape" in out
    code, out, _ = said(capsys, "table", tmp_path)
    assert code == 0 and "ld" in out and "motion" in out
    code, out, _ = said(capsys, "table", tmp_path, "--csv", tmp_path / "all.csv")
    assert code == 0 and (tmp_path / "all.csv").read_text().count("\n") > 2
    code, _, err = said(capsys, "table", tmp_path, "--regime", "mixed")
    assert code == 2 and "regime 'mixed'" in err


def test_the_table_averages_over_nothing_but_seeds(tmp_path, capsys):
    """Editions are different objectives, and two probes of one run are two measurements."""
    row = "run,{edition},kin-l1,{seed},plain,motion,{probe},top1,{value},1000,student,{edition}{seed}\n"
    cells = [("sound", 0, "linear", 20), ("sound", 1, "linear", 30), ("released", 0, "linear", 60), ("sound", 1, "attentive", 40)]
    head = "source,edition,variant,seed,regime,benchmark,probe,metric,value,n,encoder,run\n"
    text = "".join(row.format(edition=e, seed=s, probe=p, value=v) for e, s, p, v in cells)
    (tmp_path / "rows.csv").write_text(head + text)
    code, out, _ = said(capsys, "table", tmp_path / "rows.csv")
    lines = out.splitlines()
    assert code == 0
    assert "motion, linear" in lines[2] and "motion, attentive" in lines[2] and lines[2].endswith("seeds")
    sound, released = (next(line.split() for line in lines if edition in line) for edition in ("sound", "released"))
    assert sound[-5:] == ["25.0", "40.0", "1", "to", "2"] and released[-2:] == ["60.0", "1"]


def test_table_and_claims_of_the_paper(capsys):
    code, out, _ = said(capsys, "table", ROOT / "data" / "paper", "--regime", "mixed")
    assert code == 0 and "30.78" in out
    code, out, _ = said(capsys, "claims")
    assert code == 0 and "supported" in out


def test_data(tmp_path, capsys):
    """Export, check, prepare; a check with problems says so by its exit status."""
    out = tmp_path / "set"
    code, text, _ = said(capsys, "data", "export", out, "--clips", "train=8,test=4", "--frames", "8", "--size", "32", "--no-progress")
    assert code == 0 and f"written:  {out}" in text
    code, text, _ = said(capsys, "data", "check", "folder", out, "--no-progress", "--manifest", tmp_path / "found.csv")
    assert (tmp_path / "found.csv").exists() and "folder at" in text and code == (0 if "no problems" in text else 1)
    code, text, err = said(capsys, "data", "prepare", "folder", out, tmp_path / "small", "--no-progress", "--side", "32")
    assert code == 0, err
    assert (tmp_path / "small" / "manifest.csv").exists()


def test_a_prepared_copy_that_lacks_files_says_so(tmp_path, capsys, monkeypatch):
    from vjepa_lab import data
    from vjepa_lab.data import prepare

    out, small = data.export(tmp_path / "set", clips={"train": 4, "test": 2}, size=32, frames=8, progress=False), tmp_path / "small"
    words = ("data", "prepare", "folder", out, small, "--no-progress", "--side", "32")
    whole, victim = prepare.transcode, min(out.rglob("*.mp4"))

    def transcode(source, *how):
        if source == victim:
            raise data.core.ClipError(source, "no frame can be decoded")
        whole(source, *how)

    monkeypatch.setattr(prepare, "transcode", transcode)
    code, text, _ = said(capsys, *words)
    assert code == 1 and f"left out:  1 files that could not be transcoded, named in {small / 'faults.csv'}" in text
    monkeypatch.undo()
    code, text, err = said(capsys, *words)
    assert code == 0 and "left out" not in text and not (small / "faults.csv").exists(), err
    shutil.rmtree(small)
    victim.write_bytes(b"no video")
    code, text, _ = said(capsys, *words)
    assert code == 1 and "left out:  1 files that cannot be read; `data check` names them" in text


def test_what_a_manifest_calls_unreadable_is_said_to_be_left_out(tmp_path, capsys):
    """After `data check` has written its manifest a damaged file is not even listed: the copy lacks it all the same."""
    from vjepa_lab import data

    out = data.export(tmp_path / "set", clips={"train": 3, "test": 3}, size=32, frames=8, progress=False)
    (out / "manifest.csv").unlink()
    min(out.rglob("*.mp4")).write_bytes(b"no video")
    assert said(capsys, "data", "check", "folder", out, "--no-progress")[0] == 1
    words = ("data", "prepare", "folder", out, tmp_path / "small", "--no-progress", "--side", "32")
    code, text, _ = said(capsys, *words)
    assert code == 1 and f"left out:  1 files that {out / 'manifest.csv'} calls unreadable" in text
    assert (tmp_path / "small" / "manifest.csv").is_file()
    (out / "manifest.csv").write_text("".join(f"{file.relative_to(out)} {file.parent.name}\n" for file in out.rglob("test_00000.mp4")))
    assert said(capsys, *words[:4], tmp_path / "bare", *words[5:])[0] == 0  # a list may name whatever it likes


def test_nothing_is_prepared_where_no_file_can_be_read(tmp_path, capsys):
    from vjepa_lab import data

    out = data.export(tmp_path / "set", clips={"train": 1, "test": 1}, size=32, frames=8, progress=False)
    for file in out.rglob("*.mp4"):
        file.write_bytes(b"no video")
    code, _, err = said(capsys, "data", "prepare", "folder", out, tmp_path / "small", "--no-progress")
    assert code == 1 and f"none of the 2 files of {out} can be read; `data check` says why" in err
    assert not (tmp_path / "small").exists()


def stated(words: str) -> int:
    """The exit status that the guide gives in the one row that holds these words."""
    rows = re.findall(r"^\| (.+) \| (\d+) \|$", (ROOT / "docs" / "commands.md").read_text(), flags=re.M)
    (status,) = (status for row, status in rows if words in row)
    return int(status)


def test_the_guide_tells_every_exit_status(tmp_path, capsys, monkeypatch):
    from vjepa_lab import data, doctor
    from vjepa_lab.study import local

    code = lambda *argv: said(capsys, *argv)[0]
    assert code("variants", "ld") == code("--help") == code("--version") == stated("done, now or before; help")
    sense = stated("the command line makes no sense")
    assert code() == code("variantz") == code("variants", "--nmes") == code("pretrain", "ld", "--lr", "fast") == sense
    (tmp_path / "rows.csv").write_text("variant,benchmark,value\nld,ucf101,50\n")
    assert code("table", tmp_path / "rows.csv", "--metric", "map") == stated("asks for what is not there")
    failed = stated("it failed: a file, data set or run that is missing")
    assert code("probe", tmp_path / "nowhere") == code("variants", "qqq") == code("data", "check", "folder", tmp_path / "nowhere") == failed
    out = data.export(tmp_path / "set", clips={"train": 4, "test": 4}, size=32, frames=8, progress=False)
    check, prepare = (
        ("data", "check", "folder", out, "--no-progress"),
        ("data", "prepare", "folder", out, tmp_path / "small", "--no-progress"),
    )
    assert code(*check) == code(*prepare) == 0
    min(out.rglob("*.mp4")).write_bytes(b"no video")
    assert code(*check) == stated("`data check` found problems") and (out / "checked.csv").is_file()
    assert code(*prepare) == stated("`data prepare` left out damaged files")
    assert len(data.open(tmp_path / "small", "all", frames=4, size=32)) == 7
    monkeypatch.setattr(doctor, "examine", lambda _: [doctor.Finding("video", "decord", "fail", "is broken", "mend it")])
    assert code("doctor") == stated("`doctor` found")
    assert stated("another process has this cell") == local.TAKEN


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_guide_tells_how_an_interruption_ends(tmp_path, capsys, name):
    """Training is asked to stop once it has logged a step: by then it takes signals itself."""
    number = getattr(signal, name)

    def ask():
        while not any(log.stat().st_size for log in tmp_path.glob("*/metrics.jsonl")):  # the file is there before a step
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    code, _, err = said(capsys, "pretrain", "baseline", "--preset", "smoke", "--steps", "100000", "--runs", tmp_path, "--no-progress")
    asking.join(timeout=5)
    assert code == stated(f"interrupted by {'Ctrl-C (SIGINT)' if name == 'SIGINT' else name}") == 128 + number, err
    assert next(tmp_path.glob("*/last.pt")).is_file()


def test_help_says_what_becomes_of_damaged_files(capsys):
    assert "Exit status 1 where it found problems" in " ".join(said(capsys, "data", "check", "--help")[1].split())
    text = " ".join(said(capsys, "data", "prepare", "--help")[1].split())
    assert "Exit status 1 where a file is damaged" in text and "others are prepared all the same" in text
    assert "Exit status: 0 done" in said(capsys, "--help")[1]


def test_a_disk_that_is_full_ends_a_preparation(tmp_path, capsys):
    """A file that may not grow stands for the full disk: what it cannot hold is no fault of the video."""
    resource = pytest.importorskip("resource")
    from vjepa_lab import data

    out, small = data.export(tmp_path / "set", clips={"train": 2, "test": 2}, size=64, frames=8, progress=False), tmp_path / "small"
    words = ("data", "prepare", "folder", out, small, "--no-progress", "--side", "64", "--quality", "1")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    multiprocessing.Value("q")  # the first one of a process grows a file of its own, which is kept for the next ones
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        code, text, err = said(capsys, *words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1 and "prepared" not in text and "cannot be written (File too large); make room, then the same call goes on" in err
    assert not (small / "manifest.csv").exists() and not list(small.rglob("*.mp4"))
    code, text, err = said(capsys, *words)
    assert code == 0 and len(data.open(small, "train", frames=4, size=16)) == 2, err
