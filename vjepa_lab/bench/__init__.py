"""Benchmarks that anyone can run: `python -m vjepa_lab bench step | objectives | scaling | loader`.

Contenders take turns in one run, medians of rounds are shown, ratios are medians over rounds: a machine that slows down slows all alike.
"""

import argparse
import json

import torch

from vjepa_lab.bench import auxiliaries, growth, steps
from vjepa_lab.bench.auxiliaries import objectives
from vjepa_lab.bench.growth import scaling
from vjepa_lab.bench.plain import PlainTrainer
from vjepa_lab.bench.steps import BATCH, step
from vjepa_lab.bench.timing import gemm_rate, interleaved, show
from vjepa_lab.options import Parser
from vjepa_lab.presets import whole
from vjepa_lab.train import fast_bf16
from vjepa_lab.training.processes import device_of

__all__ = ["BATCH", "PlainTrainer", "gemm_rate", "interleaved", "loader", "main", "objectives", "scaling", "step"]

LOADER = {"source": "s", "reader": "s", "ms_per_clip": ".1f", "clips_per_s_per_core": ".1f"}


def loader(frames: int = 16, size: int = 224, seconds: float = 2.0, length: int = 250, progress: bool = True) -> list[dict]:
    """Clips a second that one core supplies: files by decord with one and two threads and by PyAV, caches, the synthetic world."""
    from vjepa_lab.data.throughput import throughput

    return throughput(frames, size, seconds=seconds, length=length, progress=progress).to_dict("records")


def parser() -> Parser:
    """The command line of all benchmarks."""
    out = Parser("vjepa-lab bench", description=__doc__.partition("\n\n")[2])
    each = out.add_subparsers(dest="what", required=True, metavar="step | objectives | scaling | loader")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--threads", type=int, help="CPU threads")
    common.add_argument("--quick", action="store_true", help="smallest sizes and few rounds: only shows that it runs")
    common.add_argument("--json", action="store_true", help="print rows as JSON")
    timed = argparse.ArgumentParser(add_help=False)
    timed.add_argument("--preset", nargs="+", help="sizes to measure (micro tiny small base)")
    timed.add_argument("--dtype", nargs="+", choices=["bf16", "fp32"], help="default: bf16 where the device is fast at it, else fp32")
    timed.add_argument("--batch", type=int, help="clips per step")
    timed.add_argument("--repeats", type=int, help="timed rounds")
    timed.add_argument("--device", default="auto")
    against = each.add_parser("step", parents=[timed, common], help="our training step against a plain one of V-JEPA 2's structure")
    against.add_argument("--variant", default="", help="also time our step of this recipe")
    against.add_argument("--compile", action="store_true", help="also time our step compiled")
    against.add_argument("--checkpoint", action="store_true", help="also time our step with activations recomputed")
    against.add_argument("--no-encoder", dest="encoder", action="store_false", help="leave Hugging Face's encoder out")
    added = each.add_parser("objectives", parents=[timed, common], help="what auxiliaries add to a step, by the view they take")
    added.add_argument("--variant", default="fwm-hw-ld", help="the recipe with the auxiliaries; default fwm-hw-ld")
    growth = each.add_parser("scaling", parents=[timed, common], help="a step's time over clip length, resolution, batch and width")
    growth.add_argument("--variant", default="baseline", help="the recipe; default baseline")
    each.add_parser("loader", parents=[common], help="clips a second that a core supplies, from every kind of source")
    return out


MEASURES = {"step": (step, steps.COLUMNS), "objectives": (objectives, auxiliaries.COLUMNS), "scaling": (scaling, growth.COLUMNS)}


def main(argv: list[str] | None = None) -> int:
    """`bench WHAT`: tables on stdout, or their rows as JSON."""
    options = vars(parser().parse_args(argv))
    whole(1, **{name: value for name in ("threads", "batch", "repeats") if (value := options.get(name)) is not None})
    what, threads, quick, as_json = (options.pop(name) for name in ("what", "threads", "quick", "json"))
    if threads:
        torch.set_num_threads(threads)
    if what == "loader":
        small = {"frames": 4, "size": 32, "seconds": 0.05, "length": 40} if quick else {}
        title = "{frames} frames at {size} px, 1 core".format(**{"frames": 16, "size": 224} | small)
        tables = [(title, loader(**small, progress=not as_json), LOADER)]
    else:
        tables = timed(what, quick, **options)
    rows = []
    for title, found, columns in tables:
        rows += found
        if not as_json:
            print(show(found, columns, title + (" (quick: only shows that it runs)" if quick else "")), end="\n\n", flush=True)
    if as_json:
        print(json.dumps(rows, indent=1))
    return 0


def timed(what: str, quick: bool, preset, dtype, batch, repeats, device, **options):
    """(title, rows, columns) for each size and precision asked for, one after the other."""
    measure, columns = MEASURES[what]
    small = {"batch": batch or 4, "repeats": repeats or 3} if quick else {}
    given = {"batch": batch} | ({"repeats": repeats} if repeats else {}) | small | options
    default = ["micro", "tiny"] if what == "step" else ["micro"]
    for name in preset or (["smoke"] if quick else default):
        for kind in dtype or ["bf16" if fast_bf16(device_of(device)) else "fp32"]:
            rows = measure(name, kind, device=device, **given)
            yield f"{name}, {kind}, {rows[0]['batch']} clips, {device_of(device)}, {torch.get_num_threads()} threads", rows, columns
