"""Our training step against the plain one, and our encoder against Hugging Face's."""

import importlib.util
import itertools
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from vjepa_lab import data as video
from vjepa_lab import variants
from vjepa_lab.bench.alone import Alone, Make
from vjepa_lab.bench.plain import PlainTrainer
from vjepa_lab.bench.timing import gemm_rate, interleaved, ratio, spread
from vjepa_lab.objective import Loss, Recipe
from vjepa_lab.presets import Preset, preset
from vjepa_lab.train import Trainer, build
from vjepa_lab.training.meters import peak_memory
from vjepa_lab.training.processes import device_of

BATCH = {"base": 2, "small": 4, "tiny": 8, "micro": 32, "smoke": 32}
"""Clips per step on a CPU; on CUDA, BATCH_CUDA."""
BATCH_CUDA = {"base": 32, "small": 64, "tiny": 128, "micro": 256, "smoke": 256}


PLAIN, THEIRS = "plain step", "HF encoder"


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
    contender it stands against, the median over rounds. On a CPU each contender has a process of its own (`Alone`); those that are not
    ours leave memory to the defaults of torch and the C library. Raises RuntimeError if both steps do not compute the same loss, which is
    asked before either is timed, or if a process dies.

    variant     also time our step of this recipe
    compile     also time our step compiled (the first steps, which compile, are not counted)
    checkpoint  also time our step with activations recomputed
    """
    device = device_of(device)
    batch, bf16 = batch or batch_of(name, device), dtype == "bf16"
    same_loss(name, min(batch, 4), device, bf16)
    how = (name, batch, device, bf16)
    makes: dict[str, Make] = {PLAIN: partial(plain_step, *how), "our step": partial(our_step, "baseline", *how)}
    if compile:
        makes["compiled"] = partial(our_step, "baseline", *how, compile=True)
    if checkpoint:
        makes["recomputed"] = partial(our_step, "baseline", *how, checkpoint=True)
    if variant:
        makes[variant] = partial(our_step, variant, *how)
    cost = variants.recipe("baseline").cost(measured(name), batch)
    work = dict.fromkeys(makes, cost.total)
    against = {"our step": PLAIN, "compiled": PLAIN, "recomputed": "our step", "our encoder": THEIRS}
    if variant:
        work[variant], against[variant] = variants.recipe(variant).cost(measured(name), batch).total, "our step"
    if encoder and importlib.util.find_spec("transformers"):
        makes |= {THEIRS: partial(hugging_face, *how), "our encoder": partial(our_encoder, *how)}
        work |= dict.fromkeys((THEIRS, "our encoder"), 3 * cost.passes["teacher"])
    rate = gemm_rate(batch * 256, measured(name).dim, torch.bfloat16 if bf16 else torch.float32, device)
    rows = []
    with ExitStack() as stack:
        contenders = {what: _begun(make, what not in (PLAIN, THEIRS), device, stack) for what, make in makes.items()}
        times = interleaved(contenders, repeats, device, warmup=6 if compile else 2)
        for what, ms in times.items():
            row = {"preset": name, "dtype": dtype, "batch": batch, "threads": torch.get_num_threads(), "what": what, **spread(ms)}
            row |= {"clips_per_s": 1e3 * batch / row["ms"], "gflop_per_s": work[what] * batch / row["ms"] * 1e3}
            row["of_gemm"] = row["gflop_per_s"] / rate
            if device.type == "cuda" or what != "compiled":  # elsewhere operations are followed, which compiled ones evade
                run = contenders[what]
                row["memory_mb"] = (run.memory() if isinstance(run, Alone) else peak_memory(run, device)) / 2**20
            if against.get(what) in times:
                row |= {"ratio": ratio(ms, times[against[what]]), "against": against[what]}
            rows.append(row)
    return rows


def _begun(make: Make, ours: bool, device: torch.device, stack: ExitStack) -> Callable[[], None]:
    """A contender, ready for its first step; the stack ends its process."""
    return stack.enter_context(closing(Alone(make, huge_pages=ours))) if device.type == "cpu" else make()


COLUMNS = {
    "what": "s", "ms": ".1f", "q1": ".1f", "q3": ".1f", "clips_per_s": ".1f", "gflop_per_s": ".0f", "of_gemm": ".0%", "memory_mb": ".0f",
    "ratio": ".2f", "against": "s",
}  # fmt: skip


def same_loss(name: str, batch: int, device: torch.device, bf16: bool) -> None:
    """Both steps must compute the same number before either is timed; raises RuntimeError where they do not."""
    ours, plain = trainer(variants.recipe("baseline"), measured(name), device, bf16), plain_trainer(name, device, bf16)
    x = video.normalize(random_clips(measured(name), batch, device))
    masks = ours.recipe.masks.draw(len(x), ours.model.student.grid(x), seed=0, step=0, device=x.device)
    with torch.no_grad():
        a, b = ours.loss(ours.model.latents(x, masks))[0], plain.loss(0, x)
    if abs(float(a) - float(b)) > (2e-2 if bf16 else 1e-4):
        raise RuntimeError(
            f"our step computes {float(a):.6f} and the plain one {float(b):.6f}: they must agree before a comparison means anything"
        )


# ------------------------------------------------------------------------------- contenders: what is made here takes a step at each call


def plain_trainer(name: str, device: torch.device, bf16: bool) -> PlainTrainer:
    return PlainTrainer(build("ema", True, 1, measured(name), 0, bf16).to(device), measured(name), 0, device)


def plain_step(name: str, batch: int, device: torch.device, bf16: bool) -> Callable[[], None]:
    """The plain training step."""
    return in_turn(plain_trainer(name, device, bf16), random_clips(measured(name), batch, device))


def our_step(variant: str, name: str, batch: int, device: torch.device, bf16: bool, **how) -> Callable[[], None]:
    """Our training step of a recipe; `how` as in `VJEPA.run_as`."""
    return in_turn(trainer(variants.recipe(variant), measured(name), device, bf16, **how), random_clips(measured(name), batch, device))


def hugging_face(name: str, batch: int, device: torch.device, bf16: bool) -> Callable[[], None]:
    """Forward and backward of an equally large VJEPA2Model on the full clip."""
    from transformers import VJEPA2Config, VJEPA2Model

    size = measured(name)
    config = VJEPA2Config(
        patch_size=size.patch, crop_size=size.size, frames_per_clip=size.frames, tubelet_size=size.tubelet, hidden_size=size.dim,
        num_attention_heads=size.heads, num_hidden_layers=size.depth, mlp_ratio=4.0, pred_hidden_size=size.pred_dim,
        pred_num_attention_heads=size.pred_heads, pred_num_hidden_layers=size.pred_depth,
    )  # fmt: skip
    theirs = VJEPA2Model(config).to(device).train()
    pixels = video.normalize(random_clips(size, batch, device)).transpose(1, 2)
    return forward_and_backward(theirs, lambda: theirs(pixels, skip_predictor=True).last_hidden_state, device, bf16)


def our_encoder(name: str, batch: int, device: torch.device, bf16: bool) -> Callable[[], None]:
    """Forward and backward of our encoder on the full clip, in the process of a training."""
    encoder = trainer(variants.recipe("baseline"), measured(name), device, bf16).model.student
    pixels = video.normalize(random_clips(measured(name), batch, device))
    return forward_and_backward(encoder, lambda: encoder(pixels), device, bf16)


def forward_and_backward(model: nn.Module, forward: Callable[[], Tensor], device: torch.device, bf16: bool) -> Callable[[], None]:
    def run() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            out = forward()
        out.float().square().mean().backward()
        model.zero_grad()

    return run
