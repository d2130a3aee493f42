"""What a machine has, what will and will not work on it, and what to do about that. Every finding was tried, not looked up."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

GB = 1e9
PROJECT = Path(__file__).resolve().parents[1]
PACKAGES = [
    *("torch", "torchvision", "timm", "einops", "av", "decord", "numpy", "pandas", "scipy", "scikit-learn"),
    *("matplotlib", "plotly", "jupyterlab", "ipywidgets", "papermill"),
]
OPTIONAL = {"decord": "PyAV decodes in its place", "transformers": "no comparison with Hugging Face's models"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `state`: ok; note (works, but know this); fail (does not work: `advice` says what to do)."""

    area: str
    what: str
    state: str
    detail: str
    advice: str = ""


def examine(roots: Sequence[str | Path] = ()) -> list[Finding]:
    """Look at everything; data sets are looked for in `roots` (default: ./data). A check that breaks is itself a finding."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": versions,
        "processor": processor,
        "accelerators": accelerators,
        "memory and disk": space,
        "video": decoders,
        "notebooks": notebooks,
        "several processes": processes,
        "data": lambda: data_sets([Path(root) for root in roots] or [Path("data")]),
    }
    found = []
    for area, check in checks.items():
        try:
            found += check()
        except Exception as error:
            found.append(
                Finding(area, "check", "fail", f"{type(error).__name__}: {error}", "an installation that is not whole: make setup")
            )
    return found


# ------------------------------------------------------------------------------------------------------------------------------- versions


def versions() -> Iterator[Finding]:
    """Python and the packages, beside the versions that the tests ran with."""
    here = platform.python_version()
    supported = (3, 11) <= sys.version_info < (3, 14)
    yield Finding(
        "versions", "Python", "ok" if supported else "fail", f"{here} ({sys.prefix})", "" if supported else "use Python 3.11 to 3.13"
    )
    yield Finding("versions", "vjepa_lab", "ok", f"{version('vjepa_lab')} in {PROJECT}")
    tested = constraints()
    for name in PACKAGES:
        try:
            have = version(name)
        except PackageNotFoundError:
            missing = OPTIONAL.get(name)
            yield Finding("versions", name, "note" if missing else "fail", "missing", missing or f"pip install {name}")
            continue
        same = have.partition("+")[0] == tested.get(name, have)
        yield Finding("versions", name, "ok" if same else "note", have, "" if same else f"tested with {tested[name]}")


def constraints() -> dict[str, str]:
    """The tested versions, of a checkout; empty for an installed package."""
    file = PROJECT / "constraints.txt"
    lines = file.read_text().splitlines() if file.is_file() else []
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


# --------------------------------------------------------------------------------------------------------------------------------- devices


def processor() -> Iterator[Finding]:
    import torch

    from vjepa_lab.training import provenance
    from vjepa_lab.training.trainer import fast_bf16

    cores, threads = provenance.cores(), torch.get_num_threads()
    yield Finding("processor", "CPU", "ok", f"{provenance.processor()}, {cores} cores for this process, torch uses {threads} threads")
    if os.environ.get("OMP_NUM_THREADS") == "1" and cores > 1:
        yield Finding("processor", "OMP_NUM_THREADS", "note", "1: training uses one core", "unset it, except under torchrun")
    known = torch.cpu
    kinds = {"AVX-512": known._is_avx512_supported(), "AVX-512 bf16": known._is_avx512_bf16_supported()}
    kinds |= {"AMX bf16": known._is_amx_tile_supported()}
    detail = ", ".join(name for name, there in kinds.items() if there) or "none of AVX-512, AMX"
    fast = fast_bf16(torch.device("cpu"))
    advice = "training on this CPU stays in fp32, which is faster here"
    yield Finding("processor", "bf16", "ok" if fast else "note", detail, "" if fast else advice)
    compiler = next(filter(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")), None)
    advice = "torch.compile on the CPU will not work; install g++, or leave compile off, as it is by default"
    yield Finding("processor", "C++ compiler", "ok" if compiler else "note", compiler or "none", "" if compiler else advice)


def accelerators() -> Iterator[Finding]:
    """Each device is made to multiply."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _cuda(index)
    elif shutil.which("nvidia-smi"):
        yield Finding("accelerators", "CUDA", "fail", *_unusable_cuda())
    if torch.backends.mps.is_available():
        yield Finding("accelerators", "MPS", *_multiplies("mps"))
    if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        advice = "the presets smoke and micro are made for CPUs; small and base want a GPU"
        yield Finding("accelerators", "GPU", "note", "none that torch can use", advice)


def _cuda(index: int) -> Finding:
    import torch

    name = torch.cuda.get_device_name(index)
    free, total = (amount / GB for amount in torch.cuda.mem_get_info(index))
    state, detail, advice = _multiplies(f"cuda:{index}")
    bf16 = torch.cuda.get_device_capability(index) >= (8, 0)
    if state == "ok" and not bf16:
        state, advice = "note", "older than Ampere: training stays in fp32"
    if state == "ok" and free < total / 2:
        state, advice = "note", "other processes hold most of its memory"
    return Finding(
        "accelerators",
        f"cuda:{index}",
        state,
        f"{name}, {free:.0f} of {total:.0f} GB free, bf16 {'yes' if bf16 else 'no'}; {detail}",
        advice,
    )


def _multiplies(device: str) -> tuple[str, str, str]:
    import torch

    try:
        one = torch.ones(64, 64, device=device)
        right = bool((one @ one == 64).all())
    except RuntimeError as error:
        return "fail", str(error).splitlines()[0], f"use device='cpu', or mend the driver; torch was built for CUDA {torch.version.cuda}"
    return ("ok", "works", "") if right else ("fail", "a product of matrices came out wrong", "do not use this device")


def _unusable_cuda() -> tuple[str, str]:
    import torch

    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, timeout=30)
    there = said.stdout.strip().splitlines()[0] if said.returncode == 0 and said.stdout.strip() else "nvidia-smi finds no device"
    if torch.version.cuda is None:
        return there, "this torch was built without CUDA: install one that has it"
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return there, "CUDA_VISIBLE_DEVICES is empty and hides every GPU: unset it"
    return there, f"torch was built for CUDA {torch.version.cuda} and cannot use it: the driver may be too old for that"


# --------------------------------------------------------------------------------------------------------------------------------- space


def space() -> Iterator[Finding]:
    total, free = memory()
    enough = free > 4 * GB
    advice = "" if enough else "keep to the presets smoke and micro and to few workers"
    yield Finding("memory and disk", "memory", "ok" if enough else "note", f"{free / GB:.1f} of {total / GB:.1f} GB free", advice)
    for what, folder in {"runs": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}.items():
        left = shutil.disk_usage(folder).free
        state = "ok" if left > 5 * GB else "note" if left > GB else "fail"
        advice = "" if state == "ok" else "make room: a checkpoint of the base size takes over 1 GB"
        yield Finding("memory and disk", what, state, f"{left / GB:.0f} GB free in {folder}", advice)
        if not os.access(folder, os.W_OK):
            yield Finding("memory and disk", what, "fail", f"{folder} cannot be written", "start from another folder")
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        small = size < GB
        advice = "loader workers die with a bus error: give the container more (--shm-size=8g), or use workers=0" if small else ""
        yield Finding("memory and disk", "shared memory", "note" if small else "ok", f"{size / GB:.2g} GB", advice)


def memory() -> tuple[float, float]:
    """(total, free) bytes that this process may use: the machine's, or less where a control group sets a limit."""
    import psutil

    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit() and int(text) < total:
        total, free = int(text), min(free, int(text) - int(used.read_text()))
    return total, free


# ---------------------------------------------------------------------------------------------------------------------------------- video


def decoders() -> Iterator[Finding]:
    """A clip of stripes that move is written in each codec and read back by each backend, forwards and by seeking."""
    from .data.encode import ENCODERS, write_video
    from .data.video import BACKENDS

    clip = stripes()
    installed = [name for name in BACKENDS if find_spec({"pyav": "av"}.get(name, name))]
    with tempfile.TemporaryDirectory(prefix="vj-") as folder:
        for codec, suffix in {"h264": ".mp4", "vp9": ".webm", "mpeg4": ".avi"}.items():
            if codec not in ENCODERS:
                continue
            try:
                path = write_video(Path(folder) / f"clip{suffix}", clip, fps=8, codec=codec)
            except Exception as error:
                yield Finding("video", f"{codec} writing", "note", str(error), "the synthetic world cannot be exported in this codec")
                continue
            for backend in installed:
                try:
                    wrong = read_wrong(path, backend, clip)
                except Exception as error:
                    yield Finding(
                        "video", f"{codec} by {backend}", "fail", f"{type(error).__name__}: {error}", f"do not use backend={backend!r}"
                    )
                    continue
                advice = f"frames come out wrong: do not use backend={backend!r}" if wrong else ""
                detail = f"wrong frames: {wrong}" if wrong else "every frame right"
                yield Finding("video", f"{codec} by {backend}", "fail" if wrong else "ok", detail, advice)
    if "decord" not in installed:
        yield Finding("video", "decord", "note", "not here (its wheels are for Linux on x86-64)", OPTIONAL["decord"])
    yield Finding(
        "video",
        "used first",
        "ok" if installed else "fail",
        installed[0] if installed else "nothing",
        "" if installed else "pip install av",
    )
    yield Finding("video", "images", *_images())


def stripes(frames: int = 16, size: int = 64):
    """Frames [c f y x] uint8 that tell their own number: frame i is bright in column band i and nowhere else."""
    import torch

    clip = torch.full((3, frames, size, size), 32, dtype=torch.uint8)
    band = size // frames
    for i in range(frames):
        clip[:, i, :, i * band : (i + 1) * band] = 224
    return clip


def read_wrong(path: Path, backend: str, clip) -> list[int]:
    """Which frames of a written clip of stripes a backend reads wrongly, in order and one by one out of order."""
    from .data.video import Video

    frames, wrong = clip.shape[1], set()
    for asked in (list(range(frames)), [9], [2], [14]):
        with Video(path, backend) as video:
            columns = video.read(asked).float().mean(dim=(1, 2))  # [f x]
        shown = columns.unflatten(-1, (frames, -1)).mean(-1).argmax(-1)  # the brightest band of each frame
        wrong |= {number for number, band in zip(asked, shown.tolist(), strict=True) if number != band}
    return sorted(wrong)


def _images() -> tuple[str, str, str]:
    from PIL import Image, features

    missing = [name for name in ("jpg", "zlib", "webp") if not features.check(name)]
    if missing:
        return "note", f"Pillow {Image.__version__} lacks {', '.join(missing)}", "install Pillow from its wheel"
    return "ok", f"Pillow {Image.__version__}: JPEG, PNG, WebP", ""


# ------------------------------------------------------------------------------------------------------------------ notebooks, processes


def notebooks() -> Iterator[Finding]:
    """A notebook is executed, in the kernel that the notebooks name."""
    import nbformat
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    from . import notebook

    try:
        spec = KernelSpecManager().get_kernel_spec("python3")
        yield Finding("notebooks", "kernel python3", "ok", spec.resource_dir)
    except NoSuchKernel:
        yield Finding("notebooks", "kernel python3", "fail", "missing", "pip install ipykernel")
        return
    with notebook._connection() as connection:
        yield Finding(
            "notebooks",
            "way to kernels",
            "ok" if connection else "note",
            "sockets" if connection else "TCP: the temporary folder's path is long",
        )
    with tempfile.TemporaryDirectory(prefix="vj-") as folder:
        cell = nbformat.v4.new_code_cell("import sys\nprint(sys.executable)")
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), Path(folder) / "check.ipynb")
        done = notebook.run(Path(folder) / "check.ipynb", Path(folder) / "out.ipynb", progress=False, timeout=60)
        where = nbformat.read(done, as_version=4).cells[0].outputs[0].text.strip()
    same = Path(where).parent == Path(sys.executable).parent
    advice = "" if same else f"the kernel python3 belongs to another Python; {sys.executable} -m ipykernel install --prefix {sys.prefix}"
    yield Finding("notebooks", "execution", "ok" if same else "fail", f"runs in {where}", advice)
    browser = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")), None)
    advice = "" if browser else "only make test-browser and plotly's PDF and PNG export need one; figures from matplotlib do not"
    yield Finding("notebooks", "Chromium", "ok" if browser else "note", browser or "none", advice)


def processes() -> Iterator[Finding]:
    import torch.distributed as dist

    if not dist.is_available():
        yield Finding("several processes", "torch.distributed", "note", "not in this torch", "training uses one process")
        return
    backends = [name for name, there in {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available()}.items() if there]
    yield Finding("several processes", "torch.distributed", "ok", ", ".join(backends))


# ----------------------------------------------------------------------------------------------------------------------------------- data


def data_sets(roots: Sequence[Path]) -> Iterator[Finding]:
    """Known data sets in the roots and in their folders, two levels down, by the files that each is distributed with; also a copy that
    lacks a split."""
    from .data.sets import SETS

    found = False
    for root in roots:
        if not root.is_dir():
            yield Finding("data", str(root), "note", "no such folder")
            continue
        folders = [root, *_below(root), *(inner for folder in _below(root) for inner in _below(folder))]
        taken: list[Path] = []
        for folder in folders:
            for name, kind in SETS.items():
                if not kind.OFFICIAL:  # a layout that any folder could have
                    continue
                if any(folder.is_relative_to(parent) for parent in taken):
                    break
                listings = {split: _clips(kind, folder, split) for split in kind.OFFICIAL}
                if any(listings.values()):
                    found = True
                    taken.append(folder)
                    yield _set(name, folder, listings, kind.OFFICIAL)
    if not found:
        unknown = ", ".join(name for name, kind in SETS.items() if not kind.OFFICIAL)
        advice = (
            "nothing is needed for data='synthetic'; data/README.md says how to get the others; vjepa-lab doctor FOLDER looks elsewhere; "
            f"not looked for, having no official counts: {unknown} (vjepa-lab data check NAME FOLDER)"
        )
        yield Finding("data", "data sets", "note", f"none in {', '.join(map(str, roots))}", advice)


def _clips(kind, folder: Path, split: str) -> int:
    """How many clips of a split are here; 0 where its list or all of its files are absent, or where this is no copy of the set.

    Numbered folders of images are no copy of anything, unless there are as many as the set has classes.
    """
    from .data.core import DataError

    try:
        with warnings.catch_warnings(action="ignore"):
            found = kind.listing(folder, split)
    except (DataError, OSError, ValueError, KeyError):
        return 0
    names = found.classes.get("class", [])
    return 0 if all(name.isdecimal() for name in names) and len(names) not in (0, kind.CLASSES) else len(found.clips)


def _set(name: str, folder: Path, listings: dict[str, int], official: dict[str, int]) -> Finding:
    short = {split: official[split] for split, n in listings.items() if split in official and n != official[split]}
    detail = ", ".join(f"{n} {split}" if n else f"{split} absent" for split, n in listings.items())
    advice = f"the whole set has {', '.join(f'{n} {s}' for s, n in short.items())}: vjepa-lab data check {name} {folder}" if short else ""
    return Finding("data", f"{name}:{folder}", "note" if short else "ok", detail, advice)


def _below(folder: Path, most: int = 50) -> list[Path]:
    """Its folders, unless there are so many that they must be classes."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return inside if len(inside) <= most else []


# --------------------------------------------------------------------------------------------------------------------------------- report


def report(found: Sequence[Finding]) -> str:
    """The findings by area; what fails comes once more at the end, with what to do."""
    marks = {"ok": "  ok  ", "note": " note ", "fail": " FAIL "}
    lines = []
    for area in dict.fromkeys(finding.area for finding in found):
        lines += ["", area]
        for finding in (f for f in found if f.area == area):
            lines.append(f"{marks[finding.state]} {finding.what}: {finding.detail}")
            if finding.advice:
                lines.append(f"{'':8}-> {finding.advice}")
    failed = [finding for finding in found if finding.state == "fail"]
    if failed:
        names = ", ".join(f"{finding.what} ({finding.area})" for finding in failed)
        lines += ["", f"{len(failed)} of {len(found)} checks failed: {names}"]
    else:
        lines += ["", f"Everything that is needed works; {sum(f.state == 'note' for f in found)} notes."]
    return "\n".join(lines).lstrip("\n")


def main(roots: Sequence[str | Path] = (), as_json: bool = False) -> int:
    """Print the report; returns 1 if something fails."""
    found = examine(roots)
    print(json.dumps([asdict(finding) for finding in found], indent=1) if as_json else report(found))
    return int(any(finding.state == "fail" for finding in found))
