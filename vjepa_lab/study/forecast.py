"""What a study will cost and what it will be able to tell, before it runs: from what was measured, else from what is stated."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from ..evidence import planning, results
from . import cell as cells
from .grid import Cell, Study

USEFUL, A100_TFLOPS = 0.4, 312.0
"""The share of a GPU's peak that is stated where no speed is measured, if the loader keeps up (the paper's own runs took some ten times as
long), and the peak where a GPU's own is not known. A CPU's speed is not stated: they differ too much."""
TOKENS = ("attentive", "stepwise")
"Probes that keep every token of every clip."


@dataclass(frozen=True)
class Forecast:
    """Work, time, disk and resolution of a study."""

    study: Study
    cells: int
    open: int
    petaflop: float
    hours: float
    runs_at_once: int
    rate: str
    disk_gb: float
    checkpoint_gb: float
    plan: planning.Plan | None
    spread: str
    which: str
    tokens_mb: dict[str, float]
    "Of each clip, what a benchmark's probe keeps in memory."

    def __str__(self) -> str:
        together = f" with {self.runs_at_once} at once" if self.runs_at_once > 1 else ""
        time = f"{_span(self.hours)}{together}" if math.isfinite(self.hours) else "not known yet: run one cell, or state --rate GFLOPS"
        lines = [
            f"cells   {self.cells}, {self.open} of them to be run: {self.which}",
            f"work    {self.petaflop:,.1f} PFLOP of pretraining ({self.rate})",
            f"time    {time}",
            f"disk    {self.disk_gb:.1f} GB kept; {self.checkpoint_gb:.2f} GB a checkpoint, three of them while a run trains",
        ]
        if self.tokens_mb:
            each = ", ".join(f"{name} {mb:.2g} MB" for name, mb in self.tokens_mb.items())
            lines.append(f"memory  all tokens of every clip that a probe reads stay there: {each} a clip")
        if self.plan is not None:
            lines += ["", f"what it resolves (standard deviation over seeds: {self.spread})", str(self.plan)]
        return "\n".join(lines)


def forecast(
    study: Study,
    runs: str | Path,
    *,
    rate_gflops: float | None = None,
    sd: float | None = None,
    jobs: int | None = None,
    only: str | None = None,
    but: Collection[str] = (),
    collected: str | Path | None = None,
) -> Forecast:
    """Cost and resolution of a study, or of the cells of it that `only` chooses.

    Those named in `but` were run elsewhere: they count in what it resolves, and cost nothing.

    rate_gflops  speed of one run's training, in useful GFLOP/s; by default that of the finished runs in `runs`, else of those in
                 `collected`, else a stated one on GPUs; where it is given, `jobs` are at once, on whatever machine; else no more
                 than this one has room for
    sd           spread over seeds of paired differences, in points; by default the median of those in `collected`, else a guess of 2
    collected    a folder that `study collect` wrote, such as data/reference: what was measured there, on whatever machines
    """
    from .local import slots

    runs = Path(runs)
    try:
        rooms = jobs if jobs and rate_gflops else min(len(slots(study)), jobs or math.inf)  # more than there is room for are no faster
    except ValueError:  # planned on another machine than the one with the GPUs
        rooms = jobs or 1
    chosen = study.chosen(only)
    here = [cell for cell in chosen if cell.name not in but]
    left = [cell for cell in here if cells.state(cell, runs).state != "done"]
    work = {cell: gflop(cell) for cell in study.cells}
    measured, of = _measured(runs, work), "finished runs"  # also by cells that are not asked about
    if not measured and collected:
        measured, of = _measured_elsewhere(Path(collected), work), f"runs in {collected}"
    on_gpu = study.on_gpus and _has_gpu()
    if rate_gflops:
        rate, probes, said = rate_gflops, measured[1] if measured else 0.0, f"{rate_gflops:,.0f} GFLOP/s, as stated"
    elif measured:
        rate, probes = measured[:2]
        said = f"{rate:,.0f} GFLOP/s, median of {measured[2]} {of}"
    elif on_gpu:
        rate, of = _stated(study)
        clips, probes = _clips_per_s(left or here, rate), 0.0
        said = f"{rate:,.0f} GFLOP/s, {of}: if {clips:,.0f} clips/s a run can be read; probes not counted"
    else:
        rate, probes, said = math.nan, 0.0, "no rate measured or stated"
    seconds = [work[cell] / rate + probes for cell in left]
    hours = max(sum(seconds) / rooms, max(seconds)) / 3600 if left else 0.0  # however much room there is, a run takes its time
    kept = {"rows": 0.0, "model": 0.5, "all": 1.0}[study.keep]
    sizes = {cell: checkpoint_bytes(cell) / 1e9 for cell in here}
    disk = sum(sizes.values()) * kept + 4e-4 * len(here) * (1 + len(study.benchmarks))
    work_here, largest = sum(work[cell] for cell in here) / 1e6, max(sizes.values(), default=0.0)
    sd, spread = (sd, "as stated") if sd else _spread(collected)
    resolved = _plan(study, chosen, sd)
    which, tokens = _row(study, chosen), _tokens_mb(study, here)
    return Forecast(study, len(chosen), len(left), work_here, hours, rooms, said, disk, largest, resolved, spread, which, tokens)


def gflop(cell: Cell) -> float:
    """GFLOP of a cell's pretraining."""
    size = cell.size
    return _per_clip(cell.recipe, size) * size.batch * size.steps if size.steps else 0.0


def _stated(study: Study) -> tuple[float, str]:
    """GFLOP/s of a run on this machine's GPUs where none are measured, and what they are, in words."""
    import torch

    from ..training.provenance import peak_tflops
    from ..training.trainer import fast_bf16

    card = torch.device("cuda")
    bf16 = fast_bf16(card) if study.bf16 is None else study.bf16
    peak, name = peak_tflops(card, bf16), torch.cuda.get_device_name(card)
    of = f"{name}'s peak in {'bf16' if bf16 else 'fp32'}" if peak else f"an A100's peak, since that of {name} is not known"
    return 1e3 * USEFUL * (peak or A100_TFLOPS) * study.gpus, f"stated: {USEFUL:.0%} of {of}"


def _clips_per_s(cells: Sequence[Cell], rate: float) -> float:
    """What a run must read at a speed in GFLOP/s: the most of all cells."""
    return max((rate / _per_clip(cell.recipe, cell.size) for cell in cells if cell.size.steps), default=0.0)


def _tokens_mb(study: Study, chosen: Sequence[Cell]) -> dict[str, float]:
    """Megabytes of a clip's tokens in float16, by benchmark that keeps them."""
    found = {}
    for benchmark in study.benchmarks if chosen else ():
        size, options = chosen[0].size, benchmark.options
        if benchmark.probe in TOKENS:
            frames, side = options.get("frames") or size.frames, options.get("size") or size.size
            tokens = frames // size.tubelet * (side // size.patch) ** 2 * options.get("segments", 1) * options.get("views", 1)
            found[benchmark.name] = 2e-6 * tokens * size.dim * (2 if options.get("exact") else 1) * len(options.get("layers") or "1")
    return found


@cache
def _per_clip(recipe, size) -> float:
    from ..cost import cost

    return cost(recipe, size).total


@cache
def _weights(teacher: str, levels: int, size) -> tuple[int, int]:
    """Numbers in the trained parts of a model and in the whole."""
    import torch

    from ..model import VJEPA

    with torch.device("meta"):
        model = VJEPA.build(size, teacher=teacher, levels=levels)
    return sum(p.numel() for p in model.parameters() if p.requires_grad), sum(p.numel() for p in model.parameters())


def checkpoint_bytes(cell: Cell) -> float:
    """Size of a cell's checkpoint: the model, and two moments of every trained number; heads of the terms are small beside them."""
    trained, every = _weights(cell.recipe.teacher, cell.recipe.levels, cell.size)
    return 4.0 * (every + (2 * trained if cell.size.steps else 0))


def _measured(runs: Path, work: dict[Cell, float]) -> tuple[float, float, int] | None:
    """(GFLOP/s, seconds of all probes, number of runs) of the finished runs: medians."""
    rates, probes = [], []
    for cell, amount in work.items():
        seconds = cells.about(runs / cell.name).get("seconds", {})
        if seconds and amount and seconds.get("01_pretrain"):
            whole = results.report(runs / cell.name).get("wall_s") or 0  # of all sessions; a notebook's are of the last one alone
            rates.append(amount / max(seconds["01_pretrain"], whole))
            probes.append(sum(value or 0 for name, value in seconds.items() if name != "01_pretrain"))
    return (statistics.median(rates), statistics.median(probes), len(rates)) if rates else None


def _measured_elsewhere(collected: Path, work: dict[Cell, float]) -> tuple[float, float, int] | None:
    """As `_measured`, of the study's runs in a collected folder."""
    from .export import RUNS

    known, amount = pd.read_csv(collected / RUNS), {cell.name: gflop for cell, gflop in work.items()}
    known = known.assign(rate=known["run"].map(amount) / known["wall_s"])
    known = known[known["rate"].gt(0) & np.isfinite(known["rate"])]
    return (float(known["rate"].median()), float(known["probes_s"].fillna(0).median()), len(known)) if len(known) else None


def _spread(collected: str | Path | None, least: int = 3) -> tuple[float, str]:
    """Standard deviation over seeds of paired differences from the baseline, in points: the median of the comparisons of `least` seeds or
    more in a collected folder, else a guess; and where it is from."""
    rows = results.load(collected) if collected else pd.DataFrame(columns=results.COLUMNS)
    rows = rows[rows["source"].eq("run") & rows["metric"].eq("top1") & rows["edition"].eq("sound")]
    if rows["variant"].eq("baseline").any():
        deltas = results.delta(rows)
        by = deltas[deltas["paired"]].groupby(["regime", "variant", "benchmark", "probe"])["delta"]
        if len(found := by.std()[by.size() >= least]):
            return float(found.median()), f"median of {len(found)} comparisons in {collected}, {found.min():.1f} to {found.max():.1f} pp"
    return 2.0, "a guess"


def _plan(study: Study, chosen: Sequence[Cell], sd: float) -> planning.Plan | None:
    """What the chosen cells' comparisons against the baseline resolve; None where there are none."""
    seeds = {variant: {cell.seed for cell in chosen if cell.variant == variant} for variant in study.variants}
    seeds = {variant: here for variant, here in seeds.items() if here}
    least = min(map(len, seeds.values()))
    if least < 2 or "baseline" not in seeds or len(seeds) < 2:
        return None
    return planning.plan(tuple(seeds), least, benchmarks=sum(len(b.labels) for b in study.benchmarks), sd=sd)


def _row(study: Study, chosen: Sequence[Cell]) -> str:
    if len(chosen) < len(study.cells):
        return f"chosen of {len(study.cells)}"
    parts = {"variants": study.variants, "editions": study.editions, "regimes": study.regimes, "seeds": study.seeds}
    return " x ".join(f"{len(values)} {name if len(values) > 1 else name[:-1]}" for name, values in parts.items())


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _span(hours: float) -> str:
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"
