"""Peak memory and energy of what runs on this machine."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

RAPL = Path("/sys/class/powercap")


def peak_memory(run: Callable[[], None], device: torch.device) -> int:
    """Bytes of tensors alive at the worst moment of `run`, with what was there before on CUDA.

    On CUDA the allocator's own count. Elsewhere every tensor that an operation makes is followed until it is freed, and those that `run`
    only reads are counted when it touches them; buffers inside an operation are not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    with _Following() as following:
        run()
    return following.peak


class _Following(TorchDispatchMode):
    """Follows the storage of every tensor that goes in or out of an operation."""

    def __init__(self):
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage) -> None:
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)


def energy_meter(device: torch.device) -> Callable[[], float] | None:
    """A function that reads the joules spent so far, by the GPU (NVML) or by the processors (RAPL); None where the machine does not tell.

    Both count the whole device: nothing else should run on it.
    """
    return nvml(device) if device.type == "cuda" else rapl(RAPL)


class Energy:
    """Joules spent from now on by this GPU ("gpu") and by the processor packages, all programs together ("processors"), where told.

    packages  whether this process is the one of its machine that counts the packages
    `add` must be called now and then (each logged step): RAPL's counters overflow after some minutes.
    """

    def __init__(self, device: torch.device, packages: bool = True):
        found = {"gpu": nvml(device) if device.type == "cuda" else None, "processors": rapl(RAPL) if packages else None}
        self.meters = {kind: (read, read()) for kind, read in found.items() if read is not None}

    def add(self) -> dict[str, float]:
        """Joules so far, by kind."""
        return {kind: read() - first for kind, (read, first) in self.meters.items()}


def nvml(device: torch.device) -> Callable[[], float] | None:
    """The GPU's own counter; None without NVML, or on a GPU before Volta."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        handle, spent = ctypes.c_void_p(), ctypes.c_ulonglong()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()  # NVML numbers GPUs in its own order
        failed = library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle))
        if failed or library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(spent)):
            return None
    except (OSError, AttributeError):
        return None

    def read() -> float:
        library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(spent))
        return spent.value / 1e3

    return read


def rapl(folder: Path) -> Callable[[], float] | None:
    """Sum over processor packages (not their parts), each counter unwrapped."""
    zones = sorted(zone for zone in folder.glob("intel-rapl:*") if zone.name.count(":") == 1) if folder.is_dir() else []
    try:
        limits = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
        last = [int((zone / "energy_uj").read_text()) for zone in zones]
    except (OSError, ValueError):  # since 2020 only root may read them, by default
        return None
    if not zones:
        return None
    total = 0

    def read() -> float:
        nonlocal total
        for i, zone in enumerate(zones):
            now = int((zone / "energy_uj").read_text())
            total += (now - last[i]) % (limits[i] + 1)
            last[i] = now
        return total / 1e6

    return read
