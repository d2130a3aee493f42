"""Pretraining, the loop in view; run folders, checkpoints, resume."""

import difflib
import hashlib
import inspect
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from tqdm.auto import tqdm

import vjepa_lab
from vjepa_lab import data as video
from vjepa_lab import variants
from vjepa_lab.model import VJEPA, Encoder
from vjepa_lab.objective import Loss, Recipe
from vjepa_lab.presets import Preset, preset


def device_of(name: str) -> torch.device:
    """ "auto": CUDA, else Apple's MPS, else the CPU; or a device by name. Raises ValueError if it is not there."""
    if name != "auto":
        kind = torch.device(name).type
        there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(kind, False)
        if not there:
            raise ValueError(f"device {name!r} is not available here; use 'auto' or 'cpu'")
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 passes pay on this device: CUDA from Ampere on, CPUs with AMX tiles."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


# ------------------------------------------------------------------------------------------------------------------------ run folder


@dataclass(frozen=True, repr=False)
class Run:
    """One pretraining on disk: recipe.txt, config.json, metrics.jsonl, last.pt, report.json."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> dict:
        """What was asked for, and with which versions on which machine."""
        return json.loads((self.path / "config.json").read_text())

    @property
    def recipe(self) -> Recipe:
        """Raises ValueError if the recipe uses a term defined elsewhere, such as in a notebook."""
        return variants.recipe((self.path / "recipe.txt").read_text())

    @property
    def preset(self) -> Preset:
        return Preset.read(self.config["preset"])

    def metrics(self):
        """The logged steps, a pandas table: step, loss, lr, grad_norm, clips_per_s, std, one column per term."""
        import pandas as pd

        table = pd.read_json(self.path / "metrics.jsonl", lines=True)
        return table.drop(columns="parts").join(pd.DataFrame(list(table["parts"]))) if len(table) else table

    def checkpoint(self, device="cpu") -> dict:
        path = self.path / "last.pt"
        if not path.exists():
            raise FileNotFoundError(f"{path}: no checkpoint; run pretrain with the same arguments to train it")
        return torch.load(path, map_location=device, weights_only=True)

    @property
    def steps_done(self) -> int:
        return self.checkpoint()["step"] if (self.path / "last.pt").exists() else 0

    def model(self, trained: bool = True) -> VJEPA:
        """Student, predictor and teacher, as saved last or as they were before training."""
        config = self.config
        model = build(config["teacher"], config["stop_grad"], config["levels"], self.preset, config["seed"], config["bf16"])
        if trained:
            model.load_state_dict(self.checkpoint()["model"])
        return model

    def loss(self, recipe: Recipe | None = None) -> Loss:
        """The objective with its trained heads; pass the recipe if it uses a term of your own."""
        recipe = recipe or self.recipe
        loss = Loss(recipe.objective, self.preset.dim * self.config["levels"], recipe.weighting)
        loss.load_state_dict(self.checkpoint()["loss"])
        return loss

    def encoder(self, which: str | None = None) -> Encoder:
        """The frozen encoder: "student", "teacher", or "initial" (as it was before training); None takes the recipe's choice."""
        which = which or self.config["probe"]
        if which not in ("student", "teacher", "initial"):
            raise ValueError(f"encoder {which!r}: expected student, teacher or initial")
        model = self.model(trained=which != "initial")
        encoder = model.teacher if which == "teacher" and model.teacher is not None else model.student  # an online teacher is the student
        return encoder.eval().requires_grad_(False)

    def __repr__(self) -> str:
        done = self.config["preset"]["steps"] if (self.path / "report.json").exists() else self.steps_done
        return f"Run({self.name}: {done} of {self.config['preset']['steps']} steps)"


def load_run(path: str | Path) -> Run:
    """The run in a folder. Raises FileNotFoundError if there is none."""
    path = Path(path)
    if not (path / "config.json").exists():
        raise FileNotFoundError(f"{path}: not a run folder (no config.json in it)")
    return Run(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to the path given, then put the whole file in place at once: a reader sees the old one or the new one."""
    part = path.with_name(path.name + ".part")
    yield part
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)


def write_json(path: Path, value) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=1, default=str) + "\n")


# --------------------------------------------------------------------------------------------------------------------------- training


def build(teacher: str, stop_grad: bool, levels: int, size: Preset, seed: int, bf16: bool = False) -> VJEPA:
    """The model as it is before training, the same for the same seed whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VJEPA.build(size, teacher=teacher, stop_grad=stop_grad, levels=levels, bf16=bf16)


def run_name(variant: str, edition: str, source: str, size: Preset, seed: int) -> str:
    """Such as ld-synthetic-micro-s0; an edition other than sound follows the variant's name."""
    parts = (variant, "" if edition == "sound" else edition, source.replace(":", "_"), size.name, f"s{seed}")
    return "-".join(part for part in parts if part)


def pretrain(
    recipe,
    data="synthetic",
    preset: str | Preset = "micro",
    seed: int = 0,
    *,
    edition: str = "sound",
    variant: str | None = None,
    runs: str | Path = "runs",
    out: str | Path | None = None,
    device: str = "auto",
    bf16: bool | None = None,
    workers: int = 0,
    log_every: int = 10,
    save_every: int = 200,
    progress: bool = True,
    callback=None,
    **overrides,
) -> Run:
    """Pretrain one recipe with one seed into a run folder, or go on with it where it stopped.

    recipe     a name ("fwm-hw-ld"), an expression, an objective or a Recipe; one that evaluates the encoder as it was before training
               (probe="initial") is not trained unless `steps` is given
    data       what `vjepa_lab.data.open` takes, or a Source
    preset     a size by name; `overrides` replace single fields of it, such as steps=200, lr=1e-3, ema=.995, batch=16
    seed       fixes initial weights, order of clips, masks and augmentation: the same seed pairs runs of different recipes
    variant    the run's name in tables; by default the recipe's own, or "custom" and a hash
    out        the run folder; by default `runs`/<variant>-<data>-<preset>-s<seed>
    bf16       None: where the device is fast at it
    save_every steps between checkpoints
    callback   called with each logged record (a dict), for live plots

    Raises ValueError for an unknown name or parameter and for a folder that holds another run; FloatingPointError naming the term that
    became NaN or infinite.
    """
    plan = variants.recipe(recipe, edition)
    size = overridden(preset, ({"steps": 0} if plan.probe == "initial" else {}) | overrides)
    named = variants.name_of(plan)
    plan = replace(plan, masks=size.masks_of(plan.masks))
    if variant is None:
        variant, edition = named or (f"custom-{hashlib.sha1(repr(plan).encode()).hexdigest()[:6]}", "sound")
    source = training_source(data, size, seed)
    folder = Path(out) if out else Path(runs) / run_name(variant, edition, Path(source.name).name, size, seed)
    device = device_of(device)
    bf16 = fast_bf16(device) if bf16 is None else bf16
    config = {
        "variant": variant, "edition": edition, "data": Path(source.name).name, "clips": len(source), "seed": seed, "preset": size.plain(),
        "spec": str(data) if isinstance(data, str | Path) else getattr(source, "spec", source.name),
        "teacher": plan.teacher, "stop_grad": plan.stop_grad, "levels": plan.levels, "probe": plan.probe,
        "bf16": bf16, "own_terms": own_terms(plan.objective),
    }  # fmt: skip
    run = _open_folder(folder, repr(plan), config, device)
    if (run.path / "report.json").exists():
        return run

    model = build(plan.teacher, plan.stop_grad, plan.levels, size, seed, bf16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        loss = Loss(plan.objective, model.width, plan.weighting)
    trainer = Trainer(plan, model.to(device), loss.to(device), size, seed, device)
    start = trainer.restore(run.path / "last.pt")
    log = _Log(run.path / "metrics.jsonl", start, callback)

    bar = tqdm(total=size.steps, initial=start, desc=variant, unit="step", disable=not progress)
    batches = video.loader(source, size.batch, seed=seed, start=start, workers=workers, pin=device.type == "cuda")
    began, clips = time.perf_counter(), 0
    try:
        if size.steps == 0:
            trainer.save(run.path / "last.pt", 0)
        for step, batch in zip(range(start, size.steps), batches, strict=False):
            saving = (step + 1) % save_every == 0 or step + 1 == size.steps
            record = trainer.step(step, batch.clip, log=saving or step % log_every == 0)
            clips += len(batch.clip)
            bar.update()
            if record:
                log(record | {"clips_per_s": round(clips / (time.perf_counter() - began), 2)})
                bar.set_postfix_str(f"loss {record['loss']:.3f}")
            if saving:  # a step whose record was checked: a checkpoint never holds a loss that is not finite
                trainer.save(run.path / "last.pt", step + 1)
    except KeyboardInterrupt:
        if trainer.whole:
            trainer.save(run.path / "last.pt", trainer.done)
        print(f"interrupted after step {trainer.done}: the same call goes on from the last checkpoint in {run.path}")
        raise
    finally:
        bar.close()
    seconds = time.perf_counter() - began
    report = {"steps": size.steps, "resumed_at": start, "wall_s": round(seconds, 1), "clips_per_s": round(clips / max(seconds, 1e-9), 2)}
    write_json(run.path / "report.json", report | {"data": source.report()})
    return run


def training_source(data, size: Preset, seed: int = 0) -> video.Source:
    """The training split of `data` (a name, or a Source as it is) as clips of a preset's shape.

    The synthetic world is one data set, the same for every seed, and is kept in memory; files are cropped and flipped anew for each.
    """
    synthetic = str(data).startswith("synthetic")
    options = {"seed": 0, "cache": "memory"} if synthetic else {"seed": seed}
    return video.open(data, "train", frames=size.frames, size=size.size, stride=size.stride, **options)


def overridden(base: str | Preset, overrides: dict) -> Preset:
    """A preset with single fields replaced; raises ValueError for an unknown field, with the near ones."""
    size = preset(base)
    known = [f.name for f in fields(Preset)]
    for name in overrides:
        if name not in known:
            near = difflib.get_close_matches(name, known) or known
            raise ValueError(f"unknown parameter {name!r}: did you mean {' or '.join(near)}?")
    return replace(size, **overrides)


def own_terms(objective) -> dict[str, str]:
    """Fingerprints of the source of every term defined outside this package: an edited one makes another run, whatever its repr."""
    found = {}
    for _, term in objective:
        while term is not None:
            kind = type(term)
            if not kind.__module__.startswith("vjepa_lab."):
                try:
                    found[kind.__name__] = hashlib.sha1(inspect.getsource(kind).encode()).hexdigest()[:12]
                except (OSError, TypeError):
                    found[kind.__name__] = "source unknown"
            term = getattr(term, "term", None)
    return found


def _open_folder(folder: Path, recipe: str, config: dict, device: torch.device) -> Run:
    """Make the run folder, or check that it holds this very run."""
    run = Run(folder)
    if (folder / "config.json").exists():
        theirs = run.config
        differ = [f"{k}: {theirs.get(k)!r} there, {v!r} asked" for k, v in config.items() if theirs.get(k) != v]
        if (there := (folder / "recipe.txt").read_text().strip()) != recipe:
            differ.append(f"recipe: {there} there, {recipe} asked")
        if differ:
            raise ValueError(f"{folder} holds another run ({'; '.join(differ)}); choose another folder with out=, or remove it")
        return run
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.txt").write_text(recipe + "\n")
    versions = {"vjepa_lab": vjepa_lab.__version__, "torch": torch.__version__, "python": platform.python_version()}
    made = {"versions": versions, "device": str(device), "machine": platform.machine(), "threads": torch.get_num_threads()}
    write_json(folder / "config.json", config | made)
    return run


def _step_of(line: str) -> int | None:
    """The step of a logged line; None for one that a kill cut short."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return None


class _Log:
    """metrics.jsonl: one line per logged step; what a killed run wrote past its checkpoint is dropped on resume."""

    def __init__(self, path: Path, start: int, callback=None):
        self.path, self.callback = path, callback
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if (step := _step_of(line)) is not None and step < start]
        with replacing(path) as part:
            part.write_text("".join(line + "\n" for line in kept))

    def __call__(self, record: dict) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.callback:
            self.callback(record)


class Trainer:
    """Model, loss, optimiser and schedules of one run; `step` is the whole training step."""

    def __init__(self, recipe: Recipe, model: VJEPA, loss: Loss, size: Preset, seed: int, device: torch.device):
        self.recipe, self.model, self.loss, self.size, self.seed, self.device = recipe, model, loss, size, seed, device
        self.full = "full" in recipe.objective.views
        both = nn.ModuleDict({"model": model, "loss": loss})
        groups = param_groups_weight_decay(both, size.weight_decay)  # biases and 1-D parameters do not decay
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=size.lr, betas=(0.9, 0.999), eps=1e-8, fused=device.type in ("cpu", "cuda"))
        warmup = min(size.warmup, size.steps // 2)
        self.schedule = CosineLRScheduler(
            self.optimizer, t_initial=max(size.steps - warmup, 2), lr_min=size.final_lr, warmup_t=warmup,
            warmup_lr_init=size.start_lr, warmup_prefix=True, t_in_epochs=False,
        )  # fmt: skip
        self.done = 0
        self.whole = True  # False in the middle of an update: such weights must not be saved

    def step(self, step: int, clip: Tensor, log: bool = False) -> dict | None:
        """One optimiser step on uint8 clips [b c f y x]; with `log`, what to write down about it."""
        clip = video.normalize(clip.to(self.device, non_blocking=True))
        masks = self.recipe.masks.draw(len(clip), self.model.student.grid(clip), seed=self.seed, step=step, clip=clip, device=self.device)
        latents = self.model.latents(clip, masks, step=step, progress=step / max(self.size.steps, 1), full=self.full)

        total, parts = self.loss(latents)
        if (rule := self.recipe.weighting) is not None and step % rule.every == 0:
            self.loss.measure(parts, list(self.model.student.parameters()), first=step == 0)
            total = self.loss.total(parts)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.schedule.step_update(step)
        record = self._record(step, total, parts, latents) if log else None
        if self.device.type == "cpu" and not log and not math.isfinite(total.item()):
            self._record(step, total, parts, latents)
        self.whole = False
        self.optimizer.step()
        self.model.update_teacher(self.size.ema)
        self.done, self.whole = step + 1, True
        return record

    def _record(self, step: int, total: Tensor, parts: dict[str, Tensor], latents) -> dict:
        """Numbers of this step; raises FloatingPointError naming the terms that are not finite."""
        values = {name: part.item() for name, part in parts.items()}
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        if not math.isfinite(norm) and all(map(math.isfinite, values.values())):
            values["the gradient"] = norm
        if bad := [name for name, value in values.items() if not math.isfinite(value)]:
            raise FloatingPointError(
                f"{' and '.join(bad)} became {values[bad[0]]} at step {step}; try a smaller lr or weight. The last checkpoint is intact."
            )
        return {
            "step": step,
            "loss": total.item(),
            "parts": values,
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": norm,
            # Spread of the teacher's channels over clips and tokens: it falls towards 0 when the representation collapses.
            "std": latents.h.flatten(0, 3).std(0).mean().item(),
        }

    def save(self, path: Path, step: int) -> None:
        """Checkpoint, put in place at once."""
        state = {
            "step": step,
            "model": self.model.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }
        with replacing(path) as part:
            torch.save(state, part)

    def restore(self, path: Path) -> int:
        """Load a checkpoint if there is one; the step to go on with."""
        if not path.exists():
            return 0
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"].cpu())
        self.done = state["step"]
        return state["step"]
