"""Where a run comes from and what it took: code, versions, machine, data, memory."""

import hashlib
import os
import platform
import re
import resource
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

import vjepa_lab

# Dense peak TFLOP/s in bf16 and (TF32 off) fp32, from NVIDIA's data sheets; the first name whose words the device's has counts.
PEAKS = {
    "GH200": (989, 67), "H200": (989, 67), "H100 PCIe": (756, 51), "H100": (989, 67), "A100": (312, 19.5), "A40": (150, 37),
    "A30": (165, 10.3), "A10": (125, 31), "L40S": (362, 91), "L4": (121, 30), "V100": (0, 15.7), "4090": (165, 83), "3090": (71, 36),
    "T4": (0, 8.1),
}  # fmt: skip
OTHER_RATES = re.compile(r"\b(Laptop|Max-Q|Ti|D|NVL)\b")  # what a name such as RTX 4090 Laptop adds to say that the rate is another one


def versions() -> dict[str, str | int | None]:
    """What computes: this package with its commit, torch and what it stands on."""
    return {
        "vjepa_lab": vjepa_lab.__version__,
        "git": git_state(Path(vjepa_lab.__file__).parent),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
        "python": platform.python_version(),
    }


def git_state(folder: Path) -> str | None:
    """The commit of the checkout that holds a folder, with "+changes" if tracked files differ from it; None outside of a checkout."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    with suppress(OSError, subprocess.SubprocessError):
        if git("ls-files", "--error-unmatch", "__init__.py"):
            return git("rev-parse", "HEAD")[:12] + ("+changes" if git("status", "--porcelain", "--untracked-files=no", ".") else "")
    return None


def processor() -> str:
    """The processor's own name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def session(device: torch.device, world: int) -> dict:
    """One call of pretrain: when, where, how started."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        "host": platform.node(),
        "processor": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": gpu,
        "processes": world,
        "command": sys.argv,
        "versions": versions(),
    }


def fingerprint(source) -> str:
    """A hash of what a source consists of: its files' names below their common folder, and all labels. Another copy has the same one."""
    names = [source.where(index) for index in range(len(source))]
    folder = os.path.commonpath(names) if all(map(os.path.isabs, names)) else ""
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name[len(folder) :]}\n".encode())
    for label, values in sorted(source.labels.items()):
        digest.update(label.encode())
        digest.update(values.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def peak_gb(device: torch.device) -> float:
    """The most memory that was in use at once, in GB: on the GPU what torch allocated, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used * (1 if sys.platform == "darwin" else 1024) / 1e9


def peak_tflops(device: torch.device, bf16: bool) -> float | None:
    """The device's peak rate by its data sheet, in TFLOP/s; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if OTHER_RATES.search(name):
        return None
    return next((peaks[0 if bf16 else 1] or None for known, peaks in PEAKS.items() if re.search(rf"\b{known}\b", name)), None)
