"""Where a number comes from: code, versions, machine, and a fingerprint of the weights."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path


def machine(folder: Path) -> dict:
    """What trained the run in a folder: git state, versions, host, processor or GPU, threads."""
    config = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
    return {
        "git": git_state(),
        "versions": config.get("versions", {}),
        "host": platform.node(),
        "device": config.get("device"),
        "processor": processor(),
        "gpu": gpu() if str(config.get("device", "")).startswith("cuda") else None,
        "threads": config.get("threads"),
        "bf16": config.get("bf16"),
    }


def git_state(folder: Path | None = None) -> str | None:
    """The commit that the package is at, with "+changes" if files differ from it; None outside of git."""
    where = folder or Path(__file__).parent
    git = lambda *words: subprocess.run(["git", *words], cwd=where, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    with suppress(OSError, subprocess.SubprocessError):
        return git("rev-parse", "HEAD")[:12] + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    return None


def processor() -> str:
    """The processor's own name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def weights_hash(checkpoint: str | Path) -> str | None:
    """sha256 of the trained model's weights, names and all; equal exactly when every bit is. None if there is no checkpoint.

    Of the model alone: the optimiser's state and the file's layout may differ between versions.
    """
    import torch

    if not os.path.exists(checkpoint):
        return None
    state, digest = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"], hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
