"""Benchmarks that anyone can run: `python -m vjepa_lab bench step`.

The yardstick is a plain training step of V-JEPA 2's structure (facebookresearch/vjepa2 app/vjepa/train.py, written anew): convolutional
patch embedding of all tokens once per mask, rotary angles computed in every layer and call, predictor tokens sorted by place, one pass per
mask throughout, an optimiser and an EMA of many small steps, and a host synchronisation every step.
Same maths, same weights, same masks, same clips as ours: both must give the same loss before anything is timed.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vjepa_lab import data as video
from vjepa_lab import variants
from vjepa_lab.blocks import Block
from vjepa_lab.model import VJEPA, Encoder, Grid, Predictor
from vjepa_lab.objective import Loss
from vjepa_lab.presets import Preset, preset
from vjepa_lab.processes import device_of
from vjepa_lab.train import Trainer, build, fast_bf16

BATCH = {"base": 2, "small": 4, "tiny": 8, "micro": 32, "smoke": 32}


# --------------------------------------------------------------------------------------------------------------- the plain step


def turned(x: Tensor, places: Tensor) -> Tensor:
    """Rotate part of the head vectors x [b g n d] by places [b 1 n], the angles computed here and now."""
    omega = 10_000.0 ** (-torch.arange(x.shape[-1] // 2, dtype=x.dtype, device=x.device) / (x.shape[-1] / 2))
    angle = (places.unsqueeze(-1) * omega).repeat_interleave(2, -1)
    swapped = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    return x * angle.cos() + swapped * angle.sin()


def plain_block(block: Block, x: Tensor, ids: Tensor, grid: Grid) -> Tensor:
    """The same block, rotating time, row and column separately with angles of its own."""
    b, n, d = x.shape
    heads = block.attn.heads
    q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    _, h, w = grid
    places = ids // (h * w), ids % (h * w) // w, ids % w
    width = 2 * (d // heads // 3 // 2)

    def rotated(u: Tensor) -> Tensor:
        parts = [turned(u[..., i * width : (i + 1) * width], p.unsqueeze(1)) for i, p in enumerate(places)]
        return torch.cat([*parts, u[..., 3 * width :]], dim=-1)

    out = F.scaled_dot_product_attention(rotated(q), rotated(k), v)
    x = x + block.attn.proj(out.transpose(1, 2).reshape(b, n, d))
    return x + block.mlp(block.norm2(x))


def plain_encode(encoder: Encoder, conv: nn.Conv3d, clip: Tensor, keep: Tensor | None) -> Tensor:
    """Tokens [b k d] of the kept places, embedding all of them first."""
    grid = encoder.grid(clip)
    x = conv(clip).flatten(2).transpose(1, 2)
    ids = torch.arange(x.shape[1], device=x.device).expand(len(x), -1) if keep is None else keep
    x = x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    for block in encoder.blocks:
        x = plain_block(block, x, ids, grid)
    return encoder.norms[str(encoder.depth - 1)](x)


def plain_predict(predictor: Predictor, tokens: Tensor, seen: Tensor, hidden: Tensor, grid: Grid, kind: int) -> Tensor:
    """Prediction [b m d], with all tokens sorted by place on the way."""
    known = predictor.embed(tokens)
    blank = predictor.mask_tokens[kind].to(known.dtype).expand(*hidden.shape, -1)
    ids = torch.cat([seen, hidden], dim=1)
    order = ids.argsort(dim=1)
    x, ids = torch.cat([known, blank], dim=1), ids.gather(1, order)
    x = x.gather(1, order.unsqueeze(-1).expand_as(x))
    for block in predictor.blocks:
        x = plain_block(block, x, ids, grid)
    x = predictor.norm(x)
    back = order.argsort(dim=1).unsqueeze(-1).expand_as(x)
    return predictor.proj(x.gather(1, back)[:, seen.shape[1] :])


def convolution(encoder: Encoder) -> nn.Conv3d:
    """The encoder's patch embedding as upstream writes it."""
    size = (encoder.tubelet, encoder.patch, encoder.patch)
    conv = nn.Conv3d(3, encoder.dim, size, size)
    conv.weight.data = encoder.patch_embed.weight.data.unflatten(1, (3, *size)).clone()
    conv.bias.data = encoder.patch_embed.bias.data.clone()
    return conv


class PlainTrainer:
    """One step of V-JEPA 2's structure for the baseline objective."""

    def __init__(self, model: VJEPA, size: Preset, seed: int, device: torch.device):
        self.model, self.size, self.seed, self.device = model, size, seed, device
        self.masks = variants.recipe("baseline").masks
        self.convs = nn.ModuleList(convolution(e) for e in (model.student, model.teacher)).to(device)
        self.student = [*model.student.parameters(), *self.convs[0].parameters()]
        self.teacher = [*model.teacher.parameters(), *self.convs[1].parameters()]
        self.optimizer = torch.optim.AdamW([*self.student, *model.predictor.parameters()], lr=size.lr, weight_decay=size.weight_decay)

    def loss(self, step: int, clip: Tensor) -> Tensor:
        model, grid = self.model, self.model.student.grid(clip)
        masks = self.masks.draw(len(clip), grid, seed=self.seed, step=step, device=self.device)
        with torch.autocast(clip.device.type, torch.bfloat16, enabled=model.bf16):
            with torch.no_grad():
                h = plain_encode(model.teacher, self.convs[1], clip, None)
                h = F.layer_norm(h, h.shape[-1:])
            losses = []
            for kind, mask in enumerate(masks):
                z = plain_encode(model.student, self.convs[0], clip, mask.seen)
                guess = plain_predict(model.predictor, z, mask.seen, mask.hidden, grid, kind)
                target = h.gather(1, mask.hidden.unsqueeze(-1).expand_as(guess))
                losses.append((guess - target).abs().mean())
            return sum(losses) / len(losses)

    def step(self, step: int, clip: Tensor) -> float:
        loss = self.loss(step, video.normalize(clip.to(self.device)))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(self.teacher, self.student, strict=True):
                slow.mul_(self.size.ema).add_((1 - self.size.ema) * fast.detach())
        return loss.item()


# ------------------------------------------------------------------------------------------------------------------- measuring


def interleaved(contenders: dict[str, Callable[[], None]], repeats: int, device: torch.device, warmup: int = 2) -> dict[str, list[float]]:
    """Milliseconds of each contender, in turn, so that a noisy machine disturbs all alike."""
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(warmup + repeats):
        for name, run in contenders.items():
            sync()
            start = time.perf_counter()
            run()
            sync()
            if round_ >= warmup:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def gemm_rate(rows: int, width: int, dtype: torch.dtype, device: torch.device, seconds: float = 0.5) -> float:
    """GFLOP/s of a matrix product [rows width] x [width 4*width], the shape that most of the step's work has."""
    a, b = torch.randn(rows, width, dtype=dtype, device=device), torch.randn(width, 4 * width, dtype=dtype, device=device)
    run = lambda: a @ b
    times = interleaved({"": run}, max(5, int(seconds / 0.01)), device)[""]
    return 8 * rows * width**2 / statistics.median(times) / 1e6


def hugging_face(model: VJEPA, size: Preset, clip: Tensor) -> Callable[[], None] | None:
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
        with torch.autocast(clip.device.type, torch.bfloat16, enabled=model.bf16):
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


def step(
    name: str = "micro",
    dtype: str = "bf16",
    *,
    batch: int | None = None,
    repeats: int = 10,
    device: str = "auto",
    variant: str = "",
    encoder: bool = True,
) -> list[dict]:
    """Our training step against the plain one, and our encoder against Hugging Face's, interleaved in one run.

    One row per contender: median ms, quartiles, clips/s, GFLOP/s, share of the attainable matrix-product rate, and for ours the ratio to
    the contender it stands against, the median over rounds. `variant` adds our step of another recipe.
    """
    device, size = device_of(device), replace(preset(name), ema=0.999, masks=None)
    batch, bf16 = batch or BATCH.get(name, 8), dtype == "bf16"
    clip = torch.randint(0, 256, (batch, 3, size.frames, size.size, size.size), dtype=torch.uint8).to(device)
    recipe = variants.recipe("baseline")

    def trainer(recipe) -> Trainer:
        model = build(recipe.teacher, recipe.stop_grad, recipe.levels, size, 0, bf16).to(device)
        return Trainer(recipe, model, Loss(recipe.objective, model.width).to(device), size, 0, device)

    ours, plain = trainer(recipe), PlainTrainer(build("ema", True, 1, size, 0, bf16).to(device), size, 0, device)
    _same_loss(ours, plain, clip, bf16)
    rate = gemm_rate(batch * 256, size.dim, torch.bfloat16 if bf16 else torch.float32, device)
    count = iter(range(10**9))
    contenders = {"plain step": lambda: plain.step(next(count), clip), "our step": lambda: ours.step(next(count), clip)}
    work = {"plain step": recipe.cost(size, batch).total, "our step": recipe.cost(size, batch).total}
    if variant:
        other = trainer(variants.recipe(variant))
        contenders[variant] = lambda: other.step(next(count), clip)
        work[variant] = other.recipe.cost(size, batch).total
    if encoder and (theirs := hugging_face(ours.model, size, clip)):
        contenders |= {"HF encoder": theirs, "our encoder": our_encoder(ours.model, clip)}
        teacher = recipe.cost(size, batch).passes["teacher"]
        work |= {"HF encoder": 3 * teacher, "our encoder": 3 * teacher}
    times = interleaved(contenders, repeats, device)
    against = {"our step": "plain step", "our encoder": "HF encoder", variant: "our step"}
    rows = []
    for what, ms in times.items():
        median = statistics.median(ms)
        low, high = statistics.quantiles(ms, n=4)[::2]
        row = {"preset": name, "dtype": dtype, "batch": batch, "what": what, "ms": median, "q1": low, "q3": high}
        row |= {"clips_per_s": 1e3 * batch / median, "gflop_per_s": work[what] * batch / median * 1e3}
        row["share_of_gemm"] = row["gflop_per_s"] / rate
        if what in against and against[what] in times:
            row["against"] = against[what]
            row["ratio"] = statistics.median(b / a for a, b in zip(ms, times[against[what]], strict=True))
        rows.append(row)
    return rows


def _same_loss(ours: Trainer, plain: PlainTrainer, clip: Tensor, bf16: bool) -> None:
    """Both steps must compute the same number before either is timed."""
    x = video.normalize(clip)
    masks = ours.recipe.masks.draw(len(x), ours.model.student.grid(x), seed=0, step=0, device=x.device)
    with torch.no_grad():
        a, b = ours.loss(ours.model.latents(x, masks))[0], plain.loss(0, x)
    if abs(float(a) - float(b)) > (2e-2 if bf16 else 1e-4):
        raise RuntimeError(
            f"our step computes {float(a):.6f} and the plain one {float(b):.6f}: they must agree before a comparison means anything"
        )


def show(rows: list[dict]) -> str:
    """Rows as a table for the terminal."""
    head = f"{'':<14}{'ms':>9}{'quartiles':>18}{'clips/s':>9}{'GFLOP/s':>9}{'of GEMM':>9}{'ratio':>8}  against"
    lines = [f"{rows[0]['preset']}, {rows[0]['dtype']}, batch {rows[0]['batch']}, {torch.get_num_threads()} threads", head]
    for r in rows:
        ratio = f"{r['ratio']:>8.2f}  {r['against']}" if "ratio" in r else ""
        lines.append(
            f"{r['what']:<14}{r['ms']:>9.1f}{r['q1']:>9.1f}{r['q3']:>9.1f}{r['clips_per_s']:>9.1f}{r['gflop_per_s']:>9.0f}"
            f"{r['share_of_gemm']:>9.2f}{ratio}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """`bench step`: the tables on stdout, or as JSON."""
    parser = argparse.ArgumentParser(
        prog="vjepa_lab bench", description="Speed of the training step, against a plain step in the same run."
    )
    parser.add_argument("what", choices=["step"])
    parser.add_argument("--preset", nargs="+", default=["micro", "tiny"], help="sizes to measure (micro tiny small base)")
    parser.add_argument("--dtype", nargs="+", default=[], choices=["bf16", "fp32"], help="default: bf16 where the device is fast at it")
    parser.add_argument("--batch", type=int, help="clips per step")
    parser.add_argument("--repeats", type=int, default=10, help="timed rounds; medians are shown")
    parser.add_argument("--variant", default="", help="also time our step of this recipe")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--no-encoder", action="store_true", help="leave the comparison with Hugging Face's encoder out")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    dtypes = args.dtype or ["bf16" if fast_bf16(device_of(args.device)) else "fp32"]
    tables = []
    for name in args.preset:
        for dtype in dtypes:
            rows = step(
                name, dtype, batch=args.batch, repeats=args.repeats, device=args.device, variant=args.variant, encoder=not args.no_encoder
            )
            tables += rows
            if not args.json:
                print(show(rows), end="\n\n", flush=True)
    if args.json:
        print(json.dumps(tables, indent=1))
    return 0
