"""What training writes down while it runs: metrics.jsonl, TensorBoard, a progress bar, and how fast it goes."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from tqdm.auto import tqdm

from vjepa_lab.files import replacing
from vjepa_lab.objective import Recipe
from vjepa_lab.presets import Preset
from vjepa_lab.training import provenance

TIMING = ("clips_per_s", "clips_per_s_mean", "data_wait", "gflop_per_s", "mfu", "peak_gb")
"""Columns of metrics.jsonl that differ between two otherwise equal runs."""


class Log:
    """metrics.jsonl, one line per logged step, and TensorBoard's files if asked for.

    What a killed run wrote past its checkpoint is dropped on resume. Raises ModuleNotFoundError without the package tensorboard.
    """

    def __init__(self, folder: Path, start: int, tensorboard: bool = False):
        self.path, self.writer = folder / "metrics.jsonl", None
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if (step := _step_of(line)) is not None and step < start]
        with replacing(self.path) as part:
            part.write_text("".join(line + "\n" for line in kept))
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                said = "tensorboard=True needs the package tensorboard: pip install -e '.[tensorboard]', in the project's folder"
                raise ModuleNotFoundError(said) from None
            self.writer = SummaryWriter(folder / "tensorboard", purge_step=start)

    def __call__(self, record: dict) -> None:
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OSError(f"{self.path}: cannot be written ({error.strerror}); the last checkpoint is intact") from error
        if self.writer:
            for name, value in (record | record["parts"]).items():
                if isinstance(value, int | float):
                    self.writer.add_scalar(f"terms/{name}" if name in record["parts"] else name, value, record["step"])

    def close(self) -> None:
        if self.writer:
            self.writer.close()


def _step_of(line: str) -> int | None:
    """The step of a logged line; None for one that a kill cut short."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return None


class Meter:
    """How fast training goes, since the last reading and over all of this session.

    clips_per_s, clips_per_s_mean   of all processes together
    data_wait    share of the time spent waiting for clips
    gflop_per_s  arithmetic that the recipe asks for (`cost`), per process; mfu its share of the GPU's peak by the data sheet
    peak_gb      most memory in use at once (GPU; without one, this process)
    """

    COUNT_AFTER_S = 5.0  # counting the arithmetic takes a second or two: not for the shortest runs

    def __init__(self, recipe: Recipe, size: Preset, device: torch.device, bf16: bool = False, world: int = 1):
        self.recipe, self.size, self.device, self.world = recipe, size, device, world
        self.peak = provenance.peak_tflops(device, bf16)
        if device.type == "cuda":  # else the peak would be that of whatever this process did before
            torch.cuda.reset_peak_memory_stats(device)
        self.began = self.last = time.perf_counter()
        self.clips = self.since = 0
        self.waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def add(self, clips: int) -> None:
        self.clips += clips
        self.since += clips

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    @property
    def mean(self) -> float:
        return self.clips / max(self.seconds, 1e-9)

    @cached_property
    def gflop_per_clip(self) -> float | None:
        """None for a recipe whose terms cannot be followed without numbers (one of the user's own, say)."""
        try:
            return self.recipe.cost(self.size, self.size.batch).total
        except Exception:
            return None

    def read(self) -> dict[str, float]:
        now = time.perf_counter()
        span = max(now - self.last, 1e-9)
        rate = self.since / span
        found = {"clips_per_s": rate, "clips_per_s_mean": self.mean, "data_wait": self.waited / span}
        found["peak_gb"] = provenance.peak_gb(self.device)
        if self.seconds > self.COUNT_AFTER_S and self.gflop_per_clip is not None:
            found["gflop_per_s"] = rate / self.world * self.gflop_per_clip
            if self.peak:
                found["mfu"] = found["gflop_per_s"] / (1e3 * self.peak)
        self.last, self.since, self.waited = now, 0, 0.0
        return {name: float(f"{value:.4g}") for name, value in found.items()}


class Bar:
    """Shows progress, and hands each logged record on."""

    def __init__(self, title: str, shown: bool = True, callback: Callable[[dict], None] | None = None):
        self.title, self.shown, self.callback, self.bar = title, shown, callback, None

    def begin(self, total: int, start: int) -> None:
        self.bar = tqdm(total=total, initial=start, desc=self.title, unit="step", disable=not self.shown)

    def advance(self, steps: int = 1) -> None:
        self.bar.update(steps)

    def record(self, values: dict) -> None:
        self.bar.set_postfix_str(f"loss {values['loss']:.3f}")
        if self.callback:
            self.callback(values)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
