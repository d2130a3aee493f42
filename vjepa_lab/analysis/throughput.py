"""What fine-tuning an encoder costs against resolution and frames, whether it depends on the objective, and what pretraining costs.

Axes: b batch, n tokens of a clip, d channels. Times are medians of rounds in which the contenders take turns, in blocks whose
configurations come in random order: a machine that slows down slows all alike. A block is one independent measurement.

A fine-tuning step here: clips to the device, the encoder with a linear classifier on its mean token, backward, AdamW.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import stats as sps
from scipy.optimize import least_squares, nnls
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from vjepa_lab import data as video
from vjepa_lab import variants
from vjepa_lab.evidence import stats
from vjepa_lab.model import Encoder
from vjepa_lab.objective import Loss
from vjepa_lab.presets import Preset, preset
from vjepa_lab.training.meters import energy_meter, peak_memory
from vjepa_lab.training.processes import device_of

PHASES = ("data", "forward", "backward", "optimiser")
ABOUT = ("device", "bf16", "batch", "mode", "data", "encoder")
"""What the rows of one table of fine-tuning steps share."""
CLASSES = 101
"""Outputs of the linear classifier, as UCF-101 has."""


# ---------------------------------------------------------------------------------------------------------------- operations, exactly


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one clip as a polynomial of its tokens, a n + b n^2, a multiplication and an addition counted as two.

    Products only: no normalisation, softmax, GELU or rotation.
    """

    a: float
    b: float

    def __call__(self, tokens):
        return self.a * tokens + self.b * tokens**2

    def exponent(self, tokens):
        """d log FLOPs / d log resolution at fixed frames: 2 where the products over tokens rule, 4 where attention does."""
        return 2 * (self.a * tokens + 2 * self.b * tokens**2) / self(tokens)


def work(encoder: Encoder, mode: str = "forward") -> Work:
    """Operations of an encoder: "forward", or "finetune" (forward and backward; the pixels need no gradient), or "frozen" (forward)."""
    patch = 2 * 3 * encoder.tubelet * encoder.patch**2 * encoder.dim
    a, b = 24 * encoder.depth * encoder.dim**2, 4 * encoder.depth * encoder.dim
    return Work(3 * a + 2 * patch, 3 * b) if mode == "finetune" else Work(a + patch, b)


def tokens_of(encoder: Encoder, frames: int, resolution: int) -> int:
    """Tokens of a clip; raises ValueError where frames or pixels do not divide."""
    grid = encoder.grid(torch.empty(1, 3, frames, resolution, resolution, device="meta"))
    return int(np.prod(grid))


def counted(encoder: Encoder, frames: int, resolution: int, mode: str = "finetune") -> float:
    """GFLOP of one clip as torch.utils.flop_counter sees them go by, attention through plain products; the encoder stays as it is."""
    parameters = {name: p.detach().to("meta").requires_grad_() for name, p in encoder.named_parameters()}
    clip = torch.empty(1, 3, frames, resolution, resolution, device="meta")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        out = torch.func.functional_call(encoder, parameters, (clip,)).mean()
        if mode == "finetune":
            out.backward()
    return counter.get_total_flops() / 1e9


# -------------------------------------------------------------------------------------------------------------------------- the step


class Clock:
    """Milliseconds between marks: events on CUDA, which do not hold the device up, else the wall clock."""

    def __init__(self, device: torch.device):
        self.cuda, self.steps = device.type == "cuda", []

    def start(self) -> None:
        self.steps.append([self._now()])

    def mark(self) -> None:
        self.steps[-1].append(self._now())

    def _now(self):
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self, last: int) -> np.ndarray:
        """Durations [steps phases] of the last steps; the device must have finished them."""
        span = (lambda a, b: a.elapsed_time(b)) if self.cuda else lambda a, b: 1e3 * (b - a)
        found = np.array([[span(a, b) for a, b in pairwise(s)] for s in self.steps[-last:]])
        self.steps.clear()
        return found


class FineTuning:
    """Fine-tuning of one encoder, which is changed: `step(feed)` is a step on the feed's next clips, its phases timed by `clock`.

    mode  "finetune": the encoder learns; "frozen": only the classifier does
    """

    def __init__(self, encoder: Encoder, device: torch.device, bf16: bool = False, mode: str = "finetune", lr: float = 1e-5):
        if mode not in ("finetune", "frozen"):
            raise ValueError(f"mode {mode!r}: expected 'finetune' or 'frozen'")
        self.encoder = encoder.to(device).train(mode == "finetune").requires_grad_(mode == "finetune")
        self.head = nn.Linear(encoder.dim, CLASSES).to(device)
        self.device, self.bf16, self.clock = device, bf16, Clock(device)
        learnt = [p for module in (self.encoder, self.head) for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learnt, lr=lr, fused=device.type in ("cpu", "cuda"))

    def step(self, feed: Iterator[Tensor]) -> None:
        self.clock.start()
        clip = video.normalize(next(feed).to(self.device, non_blocking=True))
        self.clock.mark()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.head(self.encoder(clip).mean(1))
        loss = F.cross_entropy(logits.float(), torch.arange(len(clip), device=self.device) % CLASSES)
        self.clock.mark()
        loss.backward()
        self.clock.mark()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.clock.mark()


def random_feed(batch: int, frames: int, resolution: int, device: torch.device) -> Iterator[Tensor]:
    """The same random uint8 clips [b c f y x] for ever: what the data path costs when nothing is decoded."""
    clip = torch.randint(0, 256, (batch, 3, frames, resolution, resolution), dtype=torch.uint8)
    clip = clip.pin_memory() if device.type == "cuda" else clip
    while True:
        yield clip


def source_feed(spec: str, batch: int, frames: int, resolution: int, workers: int = 0) -> Iterator[Tensor]:
    """Batches of a data set read, decoded and cropped as in training, for ever."""
    source = video.open(spec, "train", frames=frames, size=resolution)
    for part in video.loader(source, batch, workers=workers):
        yield part.clip


# ----------------------------------------------------------------------------------------------------------------------- measuring


def finetuning(
    encoders: Mapping[str, Encoder], resolutions: Sequence[int] = (112, 160, 224, 288, 384, 512), frames: Sequence[int] = (16,), *,
    batch: int = 8, blocks: int = 5, rounds: int = 5, warmup: int = 2, device: str | torch.device = "cpu", bf16: bool = False,
    mode: str = "finetune", data: str = "", workers: int = 0, energy_s: float = 2.0, seed: int = 0, progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Fine-tuning steps of several objectives' encoders: a row per objective, resolution, frames and block.

    data      "": random clips, so that compute is measured; else a data set, so that decoding is in `data_ms`
    energy_s  seconds of steps behind each energy reading, of the first encoder; 0: none
    device    as `device_of` takes it: "cpu", "cuda", "auto"; ValueError for one that is not there
    Columns: objective, resolution, frames, tokens, batch, block, ms (median of the rounds), PHASES_ms, clips_per_s, tokens_per_s,
    gflop (of one clip), tflop_per_s, memory_mb (peak; `meters.peak_memory`), joule_per_clip (nan where the machine does not tell), and
    what was measured: ABOUT, of which `encoder` is its size.
    """
    from vjepa_lab.bench import interleaved

    device, order = device_of(device), random.Random(seed)
    steps = {name: FineTuning(encoder, device, bf16, mode) for name, encoder in encoders.items()}
    shapes = [(f, r) for f in frames for r in resolutions]
    first = next(iter(encoders.values()))
    sizes = {shape: tokens_of(first, *shape) for shape in shapes}
    about = {shape: _once(steps, shape, batch, device, energy_s, lambda s: _feed(data, batch, *s, device, workers)) for shape in shapes}
    rows = []
    with tqdm(total=blocks * len(shapes), desc="fine-tuning steps", unit="block", disable=not progress) as bar:
        for block in range(blocks):
            for shape in order.sample(shapes, len(shapes)):
                feed = _feed(data, batch, *shape, device, workers)
                names = order.sample(list(steps), len(steps))
                times = interleaved({name: partial(steps[name].step, feed) for name in names}, rounds, device, warmup)
                for name, ms in times.items():
                    phases = np.median(steps[name].clock.read(rounds), axis=0)
                    rows.append({"objective": name, "frames": shape[0], "resolution": shape[1], "tokens": sizes[shape], "block": block}
                                | {"ms": float(np.median(ms))} | dict(zip([f"{p}_ms" for p in PHASES], phases, strict=True))
                                | about[shape][name])  # fmt: skip
                bar.update()
    about = f"{first.depth} blocks of width {first.dim}, patch {first.patch}"
    table = pd.DataFrame(rows).assign(batch=batch, device=device_name(device), bf16=bf16, mode=mode, data=data or "random clips")
    table["encoder"] = about
    per_clip = work(first, mode)
    table["gflop"] = [per_clip(n) / 1e9 for n in table["tokens"]]
    table["clips_per_s"] = 1e3 * batch / table["ms"]
    table["tokens_per_s"] = table["clips_per_s"] * table["tokens"]
    table["tflop_per_s"] = table["clips_per_s"] * table["gflop"] / 1e3
    return table


def _feed(data: str, batch: int, frames: int, resolution: int, device: torch.device, workers: int) -> Iterator[Tensor]:
    return source_feed(data, batch, frames, resolution, workers) if data else random_feed(batch, frames, resolution, device)


def _once(steps: Mapping[str, FineTuning], shape, batch: int, device: torch.device, energy_s: float, feed: Callable) -> dict[str, dict]:
    """What needs no repeats: peak memory of each encoder's step, energy of the first one's."""
    meter = energy_meter(device) if energy_s else None
    found = {}
    for i, (name, each) in enumerate(steps.items()):
        clips = feed(shape)
        each.step(clips)  # the optimiser's state and the allocator's pools are there from now on
        found[name] = {"memory_mb": peak_memory(partial(each.step, clips), device) / 2**20}
        found[name]["joule_per_clip"] = _energy(each, clips, batch, meter, energy_s) if meter and i == 0 else np.nan
        each.clock.steps.clear()
    return found


def _energy(each: FineTuning, clips: Iterator[Tensor], batch: int, meter: Callable[[], float], seconds: float) -> float:
    start, before, count = time.perf_counter(), meter(), 0
    while time.perf_counter() - start < seconds:
        each.step(clips)
        if each.device.type == "cuda":
            torch.cuda.synchronize()
        count += 1
    return (meter() - before) / (count * batch)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {(n := torch.get_num_threads())} thread{'s' * (n > 1)}"


def pretraining(
    names: Sequence[str], size: str | Preset = "micro", *, batch: int = 8, blocks: int = 5, rounds: int = 3, warmup: int = 2,
    device: str | torch.device = "cpu", bf16: bool = False, against: str = "baseline", seed: int = 0, progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Pretraining steps of recipes by name, on random clips: a row per recipe and block, measured beside analytic.

    Columns variant, block, ms, clips_per_s, ratio (to `against` in the same block), gflop (of one clip, `cost`), analytic (its ratio to
    that of `against`), against.
    """
    from vjepa_lab.bench import interleaved
    from vjepa_lab.train import Trainer, build

    size, device, order = preset(size), device_of(device), random.Random(seed)
    names = list(dict.fromkeys([against, *names]))
    clip = torch.randint(0, 256, (batch, 3, size.frames, size.size, size.size), dtype=torch.uint8).to(device)
    runs, costs, steps = {}, {}, iter(range(10**9))
    for name in names:
        plan = variants.recipe(name)
        plan = replace(plan, masks=size.masks_of(plan.masks))
        model = build(plan.teacher, plan.stop_grad, plan.levels, size, seed, bf16)
        trainer = Trainer(plan, model.to(device), Loss(plan.objective, model.width, plan.weighting).to(device), size, seed, device)
        runs[name], costs[name] = (lambda t=trainer: t.step(next(steps), clip)), plan.cost(size, batch)
    rows = []
    for block in tqdm(range(blocks), desc="pretraining steps", unit="block", disable=not progress):
        shuffled = {name: runs[name] for name in order.sample(names, len(names))}
        ms = {name: float(np.median(times)) for name, times in interleaved(shuffled, rounds, device, warmup).items()}
        rows += [
            {"variant": name, "block": block, "ms": ms[name], "clips_per_s": 1e3 * batch / ms[name], "ratio": ms[name] / ms[against]}
            | {"gflop": costs[name].total, "analytic": costs[name].total / costs[against].total}
            for name in names
        ]
    return pd.DataFrame(rows).assign(against=against, preset=size.name, batch=batch, device=device_name(device), bf16=bf16)


# ---------------------------------------------------------------------------------------------------------------------- what it says


def summary(table: pd.DataFrame, by: Sequence[str] = ("objective", "frames", "resolution")) -> pd.DataFrame:
    """Medians over blocks of every number, and the 95 % interval of the time (t, on its logarithm, over blocks); small clips first.

    What was measured (ABOUT) stays as it is in `table`.
    """
    by = list(by)
    out = table.groupby(by, sort=False).median(numeric_only=True).drop(columns="block")
    ends = table.groupby(by, sort=False)["ms"].agg(_interval)
    out["lo"], out["hi"] = ends.str[0], ends.str[1]
    out = out.assign(blocks=table.groupby(by, sort=False).size()).reset_index().assign(**_about(table))
    return out.sort_values([name for name in ("frames", "resolution") if name in by], kind="stable", ignore_index=True)


def _about(table: pd.DataFrame) -> dict:
    """What every row of a table of fine-tuning steps shares."""
    return {name: table[name].iloc[0] for name in ABOUT if name in table}


def _interval(ms: pd.Series) -> tuple[float, float]:
    if len(ms) < 2:
        return np.nan, np.nan
    found = stats.t_interval(np.log(ms))
    return float(np.exp(found.lo)), float(np.exp(found.hi))


def cost_model(table: pd.DataFrame, flops: Work, draws: int = 300, seed: int = 0) -> pd.DataFrame:
    """log t = log(c0 + a n + b n^2), t the milliseconds of one clip with n tokens, fitted to one objective's medians over blocks.

    One row per tokens: ms, fitted, local exponent d log t / d log resolution with its 95 % interval, the exponent of the FLOPs, and the
    coefficients. c0 is what does not grow (launches, the optimiser's share), a and b are not negative. Intervals come from
    residuals resampled over shapes (Student's t, three parameters fitted): they hold both timing noise and what the form does not fit.
    Raises ValueError for fewer than 5 shapes.
    """
    points = (
        table.assign(clip_ms=table["ms"] / table["batch"]).groupby(["frames", "resolution", "tokens"], as_index=False)["clip_ms"].median()
    )
    n, t = points["tokens"].to_numpy(float), points["clip_ms"].to_numpy()
    if len(n) < 5:
        raise ValueError(f"a cost model with three parameters needs at least 5 shapes, got {len(n)}")
    whole = _fit(n, np.log(t))
    fitted = _powers(n) @ whole
    residual = (np.log(t) - np.log(fitted)) * np.sqrt(len(n) / (len(n) - 3))
    rng = np.random.default_rng(seed)
    drawn = [_exponent(n, _fit(n, np.log(fitted) + rng.choice(residual, len(n)))) for _ in range(draws)]
    exponent = _exponent(n, whole)
    half = sps.t.ppf(0.975, len(n) - 3) * np.std(drawn, axis=0, ddof=1)
    found = points.assign(ms=t, fitted=fitted, exponent=exponent, lo=exponent - half, hi=exponent + half, flop_exponent=flops.exponent(n))
    c0, a, b = whole
    return found.drop(columns="clip_ms").assign(c0=c0, a=a, b=b).sort_values("tokens", ignore_index=True)


def _powers(n: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(n), n, n**2], axis=1)


def _fit(n: np.ndarray, log_t: np.ndarray) -> np.ndarray:
    """Non-negative (c0, a, b) with the least squared error of log t; the start minimises relative errors."""
    powers, t = _powers(n), np.exp(log_t)
    scale = t.mean() / powers.mean(0)
    start, _ = nnls(powers * scale / t[:, None], np.ones(len(n)))
    error = lambda x: np.log(powers * scale @ x) - log_t
    return least_squares(error, np.maximum(start, 1e-6), bounds=(0, np.inf)).x * scale


def _exponent(n: np.ndarray, fit: np.ndarray) -> np.ndarray:
    _, a, b = fit
    return 2 * (a * n + 2 * b * n**2) / (_powers(n) @ fit)


def equivalence(table: pd.DataFrame, against: str = "baseline", margin: float = 2.0) -> pd.DataFrame:
    """Does a step's time depend on the objective? Two one-sided tests per objective and shape against +-`margin` percent, over blocks.

    Columns objective, frames, resolution, difference (percent), lo, hi (90 %), p, equivalent, blocks, ABOUT. All are equivalent
    together at 5 % when each one is (intersection-union): no correction is needed for that claim.
    Raises ValueError without the reference objective or with fewer than 3 blocks.
    """
    wide = table.pivot_table(values="ms", index=["frames", "resolution", "block"], columns="objective", sort=False)
    if against not in wide or table["block"].nunique() < 3:
        raise ValueError(f"an equivalence test needs {against!r} among the objectives ({', '.join(wide)}) and at least 3 blocks")
    percent = 100 * np.log(wide.div(wide[against], axis=0))
    rows = []
    for (frames, resolution), part in percent.groupby(level=["frames", "resolution"], sort=False):
        for name in [c for c in part if c != against]:
            found = stats.tost(part[name].to_numpy(), margin)
            rows.append({"objective": name, "frames": frames, "resolution": resolution, "difference": float(found.value)}
                        | {"lo": float(found.lo), "hi": float(found.hi), "p": found.p, "blocks": len(part)})  # fmt: skip
    return pd.DataFrame(rows).assign(equivalent=lambda r: r["p"] < 0.05, margin=margin, **_about(table))


def verdict(equal: pd.DataFrame, model: pd.DataFrame, smoke: bool = False) -> str:
    """One sentence from the rows of `equivalence` and `cost_model`, and what it cannot decide."""
    if smoke:
        return "Verdict: none; smoke size only shows that it runs."
    held, count, margin, blocks = int(equal["equivalent"].sum()), len(equal), equal["margin"].iloc[0], equal["blocks"].min()
    differ = int(((equal["lo"] > margin) | (equal["hi"] < -margin)).sum())
    if held == count:
        head = f"fine-tuning time does not depend on the objective: all {count} comparisons lie within {margin:g} %"
    elif differ:
        head = f"fine-tuning time differs by more than {margin:g} % in {differ} of {count} comparisons"
    else:
        head = f"undecided: {held} of {count} comparisons are shown to lie within {margin:g} %, none beyond it"
    grows = "; ".join(
        f"with {frames} frames {' and '.join(_slopes(part.sort_values('resolution').iloc[[0, -1]]))}"
        for frames, part in model.groupby("frames")
    )
    return (
        f"Verdict ({blocks} blocks): {head}. Time grows as resolution to a power that itself grows: {grows}. "
        "This speaks for this machine, precision and batch; it says nothing about accuracy."
    )


def _slopes(rows: pd.DataFrame) -> list[str]:
    """The exponent at each of these rows of a cost model, with its own interval: those of other clip lengths are other numbers."""
    each = (f"{r.exponent:.2f} [{r.lo:.2f}, {r.hi:.2f}] at {r.resolution} pixels (FLOPs {r.flop_exponent:.2f})" for r in rows.itertuples())
    return list(dict.fromkeys(each))
