"""Our training step against the plain one, and our encoder against Hugging Face's."""

import copy
import itertools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from vjepa_lab import data as video
from vjepa_lab import variants
from vjepa_lab.bench.alone import plain_step_alone
from vjepa_lab.bench.plain import PlainTrainer
from vjepa_lab.bench.timing import gemm_rate, interleaved, ratio, spread
from vjepa_lab.model import VJEPA
from vjepa_lab.objective import Loss, Recipe
from vjepa_lab.presets import Preset, preset
from vjepa_lab.train import Trainer, build
from vjepa_lab.training.allocator import keep_freed_memory
from vjepa_lab.training.meters import peak_memory
from vjepa_lab.training.processes import device_of

BATCH = {"base": 2, "small": 4, "tiny": 8, "micro": 32, "smoke": 32}
"""Clips per step on a CPU; on CUDA, BATCH_CUDA."""
BATCH_CUDA = {"base": 32, "small": 64, "tiny": 128, "micro": 256, "smoke": 256}


PLAIN, KEPT, CPU = "plain step", "plain, kept memory", torch.device("cpu")


def batch_of(name: str, device: torch.device) -> int:
    return (BATCH_CUDA if device.type == "cuda" else BATCH).get(name, 8)


def random_clips(size: Preset, batch: int, device: torch.device) -> Tensor:
    """uint8 clips [b c f y x]."""
    return torch.randint(0, 256, (batch, 3, size.frames, size.size, size.size), dtype=torch.uint8).to(device)


def trainer(recipe: Recipe, size: Preset, device: torch.device, bf16: bool, **how) -> Trainer:
    """What trains a recipe, begun with seed 0; `how` as in `VJEPA.run_as`."""
    model = build(recipe.teacher, recipe.stop_grad, recipe.levels, size, 0, bf16).to(device).run_as(**how)
    return Trainer(recipe, model, Loss(recipe.objective, model.width, recipe.weighting).to(device), size, 0, device)


def in_turn(trainer: Trainer | PlainTrainer, clip: Tensor) -> Callable[[], None]:
    """The trainer's next step, and so on: contenders that take turns meet the same masks in the same round."""
    number = itertools.count()
    return lambda: trainer.step(next(number), clip)


def measured(size: str) -> Preset:
    """A preset with V-JEPA's own masks, whatever masks it trains with."""
    return replace(preset(size), ema=0.999, masks=None)


def step(
    name: str = "micro",
    dtype: str = "bf16",
    *,
    batch: int | None = None,
    repeats: int = 10,
    device: str = "auto",
    variant: str = "",
    compile: bool = False,
    checkpoint: bool = False,
    encoder: bool = True,
) -> list[dict]:
    """One row per contender, interleaved in one run: our training step, the plain one, our encoder, Hugging Face's.

    Median ms, quartiles, clips/s, GFLOP/s, share of the attainable rate of matrix products, peak memory, and for ours the ratio to the
    contender it stands against, the median over rounds. Both steps must compute the same loss before either is timed.

    The plain step runs with the memory management that it would have by itself; where ours differs (`keep_freed_memory`, huge pages) that
    takes another process, and "plain, kept memory" is the same step within ours. Python starts that process by importing the main script
    anew: a script of your own needs `if __name__ == "__main__":`. Raises RuntimeError if the steps disagree or that process dies.

    variant     also time our step of this recipe
    compile     also time our step compiled (the first steps, which compile, are not counted)
    checkpoint  also time our step with activations recomputed
    """
    device, size = device_of(device), measured(name)
    batch, bf16 = batch or batch_of(name, device), dtype == "bf16"
    apart = device.type == "cpu" and keep_freed_memory()
    clip, recipe = random_clips(size, batch, device), variants.recipe("baseline")
    plain = PlainTrainer(build("ema", True, 1, size, 0, bf16).to(device), size, 0, device)
    steps: dict[str, PlainTrainer | Trainer] = {KEPT if apart else PLAIN: plain, "our step": trainer(recipe, size, device, bf16)}
    same_loss(steps["our step"], plain, clip, bf16)
    if compile:
        steps["compiled"] = trainer(recipe, size, device, bf16, compile=True)
    if checkpoint:
        steps["recomputed"] = trainer(recipe, size, device, bf16, checkpoint=True)
    if variant:
        steps[variant] = trainer(variants.recipe(variant), size, device, bf16)
    rate = gemm_rate(batch * 256, size.dim, torch.bfloat16 if bf16 else torch.float32, device)
    contenders = {what: in_turn(each, clip) for what, each in steps.items()}
    work = dict.fromkeys(steps, recipe.cost(size, batch).total)
    against = {KEPT: PLAIN, "our step": PLAIN, "compiled": PLAIN, "recomputed": "our step", "our encoder": "HF encoder"}
    if variant:
        work[variant], against[variant] = variants.recipe(variant).cost(size, batch).total, "our step"
    if encoder and (theirs := hugging_face(size, clip, bf16)):
        contenders |= {"HF encoder": theirs, "our encoder": our_encoder(steps["our step"].model, clip)}
        work |= dict.fromkeys(("HF encoder", "our encoder"), 3 * recipe.cost(size, batch).passes["teacher"])
    with ExitStack() as stack:
        alone = {PLAIN: stack.enter_context(plain_step_alone(size, batch, bf16))} if apart else {}
        times = interleaved(alone | contenders, repeats, device, warmup=6 if compile else 2)
    work[PLAIN], rows = work["our step"], []
    for what, ms in times.items():
        row = {"preset": name, "dtype": dtype, "batch": batch, "threads": torch.get_num_threads(), "what": what, **spread(ms)}
        row |= {"clips_per_s": 1e3 * batch / row["ms"], "gflop_per_s": work[what] * batch / row["ms"] * 1e3}
        row["of_gemm"] = row["gflop_per_s"] / rate
        # Off CUDA memory is counted by following operations, which compiled ones and another process's evade.
        if device.type == "cuda" or (what in contenders and what != "compiled"):
            row["memory_mb"] = peak_memory(contenders[what], device) / 2**20
        if against.get(what) in times:
            row |= {"ratio": ratio(ms, times[against[what]]), "against": against[what]}
        rows.append(row)
    return rows


COLUMNS = {
    "what": "s", "ms": ".1f", "q1": ".1f", "q3": ".1f", "clips_per_s": ".1f", "gflop_per_s": ".0f", "of_gemm": ".0%", "memory_mb": ".0f",
    "ratio": ".2f", "against": "s",
}  # fmt: skip


def same_loss(ours: Trainer, plain: PlainTrainer, clip: Tensor, bf16: bool) -> None:
    """Both steps must compute the same number before either is timed; raises RuntimeError where they do not."""
    x = video.normalize(clip)
    masks = ours.recipe.masks.draw(len(x), ours.model.student.grid(x), seed=0, step=0, device=x.device)
    with torch.no_grad():
        a, b = ours.loss(ours.model.latents(x, masks))[0], plain.loss(0, x)
    if abs(float(a) - float(b)) > (2e-2 if bf16 else 1e-4):
        raise RuntimeError(
            f"our step computes {float(a):.6f} and the plain one {float(b):.6f}: they must agree before a comparison means anything"
        )


def hugging_face(size: Preset, clip: Tensor, bf16: bool) -> Callable[[], None] | None:
    """Forward and backward of an equally large VJEPA2Model on the full clip, or None without transformers."""
    try:
        from transformers import VJEPA2Config, VJEPA2Model
    except ImportError:
        return None
    config = VJEPA2Config(
        patch_size=size.patch, crop_size=size.size, frames_per_clip=size.frames, tubelet_size=size.tubelet, hidden_size=size.dim,
        num_attention_heads=size.heads, num_hidden_layers=size.depth, mlp_ratio=4.0, pred_hidden_size=size.pred_dim,
        pred_num_attention_heads=size.pred_heads, pred_num_hidden_layers=size.pred_depth,
    )  # fmt: skip
    theirs = VJEPA2Model(config).to(clip.device).train()
    pixels = video.normalize(clip).transpose(1, 2)

    def run() -> None:
        with torch.autocast(clip.device.type, torch.bfloat16, enabled=bf16):
            out = theirs(pixels, skip_predictor=True).last_hidden_state
        out.float().square().mean().backward()
        theirs.zero_grad()

    return run


def our_encoder(model: VJEPA, clip: Tensor) -> Callable[[], None]:
    """Forward and backward of our encoder on the full clip."""
    encoder = copy.deepcopy(model.student)
    pixels = video.normalize(clip)

    def run() -> None:
        with torch.autocast(clip.device.type, torch.bfloat16, enabled=model.bf16):
            out = encoder(pixels)
        out.float().square().mean().backward()
        encoder.zero_grad()

    return run
