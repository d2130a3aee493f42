"""Pretraining, the loop in view."""

import difflib
import hashlib
import time
from dataclasses import fields, replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from vjepa_lab import data as video
from vjepa_lab import variants
from vjepa_lab.objective import Loss
from vjepa_lab.presets import Preset, preset
from vjepa_lab.runs import Log, Run, build, load_run, open_folder, own_terms, replacing, run_name, write_json
from vjepa_lab.trainer import Trainer, device_of, fast_bf16

__all__ = [
    *("Run", "Trainer", "build", "device_of", "fast_bf16", "load_run", "overridden", "own_terms", "pretrain", "replacing", "run_name"),
    *("training_source", "write_json"),
]


def pretrain(
    recipe,
    data="synthetic",
    preset: str | Preset = "micro",
    seed: int = 0,
    *,
    edition: str = "sound",
    variant: str | None = None,
    regime: str | None = None,
    runs: str | Path = "runs",
    out: str | Path | None = None,
    device: str = "auto",
    bf16: bool | None = None,
    workers: int = 0,
    log_every: int = 10,
    save_every: int = 200,
    progress: bool = True,
    callback=None,
    probe=None,
    init: str | Path | None = None,
    rope: str | None = None,
    **overrides,
) -> Run:
    """Pretrain one recipe with one seed into a run folder, or go on with it where it stopped.

    recipe     a name ("fwm-hw-ld"), an expression, an objective or a Recipe; one that evaluates the encoder as it was before training
               (probe="initial") is not trained unless `steps` is given
    data       what `vjepa_lab.data.open` takes, or a Source
    preset     a size by name; `overrides` replace single fields of it, such as steps=200, lr=1e-3, ema=.995, batch=16
    seed       fixes initial weights, order of clips, masks and augmentation: the same seed pairs runs of different recipes
    variant    the run's name in tables; by default the recipe's own, or "custom" and a hash
    regime     the pretraining setting's name in tables; by default the data's
    out        the run folder; by default `runs`/<variant>-<data>-<preset>-s<seed>
    bf16       None: where the device is fast at it
    save_every steps between checkpoints
    callback   called with each logged record (a dict), for live plots
    init       released weights to start from, as `weights.open` takes them ("vjepa2-vitl:vitl.pt"); they decide the sizes of encoder and
               predictor and how positions are told; config.json says which they were, and whether the predictor began with theirs
    rope       rotary style of a new encoder: "interleaved" (by default), or "vjepa2", which Hugging Face's format can express
    probe      called as probe(run, trainer, step) before every step and after the last, to look into the model; it must change nothing

    Raises ValueError for an unknown name or parameter and for a folder that holds another run; FloatingPointError naming the term that
    became NaN or infinite.
    """
    plan = variants.recipe(recipe, edition)
    size = overridden(preset, ({"steps": 0} if plan.probe == "initial" else {}) | overrides)
    begun, places = starting_point(init, plan.levels, rope)
    if begun:
        size = replace(size, **{name: value for name, value in begun.fields.items() if name not in overrides})
    named = variants.name_of(plan)
    plan = replace(plan, masks=size.masks_of(plan.masks))
    if variant is None:
        variant, edition = named or (f"custom-{hashlib.sha1(repr(plan).encode()).hexdigest()[:6]}", "sound")
    source = training_source(data, size, seed)
    spoken = Path(source.name).name + (f"-from-{begun.release.name}" if begun else "") + (f"-{rope}" if rope else "")
    folder = Path(out) if out else Path(runs) / run_name(variant, edition, spoken, size, seed)
    device = device_of(device)
    bf16 = fast_bf16(device) if bf16 is None else bf16
    config = {
        "variant": variant, "edition": edition, "data": Path(source.name).name, "clips": len(source), "seed": seed, "preset": size.plain(),
        "spec": str(data) if isinstance(data, str | Path) else getattr(source, "spec", source.name),
        "teacher": plan.teacher, "stop_grad": plan.stop_grad, "levels": plan.levels, "probe": plan.probe,
        "bf16": bf16, "own_terms": own_terms(plan.objective),
    } | ({"regime": regime} if regime else {}) | ({"encoder": places} if places else {})  # fmt: skip
    if begun:
        with torch.device("meta"):
            fate = begun.predictor_for(build(plan.teacher, plan.stop_grad, plan.levels, size, seed, **places))[1]
        config |= {"init": begun.about | {"predictor": fate}, "regime": regime or f"{config['data']} from {begun.release.name}"}
    run = open_folder(folder, repr(plan), config, device)
    if (run.path / "report.json").exists():
        return run

    model = build(plan.teacher, plan.stop_grad, plan.levels, size, seed, bf16, **places)
    if begun:
        begun.begin(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        loss = Loss(plan.objective, model.width, plan.weighting)
    trainer = Trainer(plan, model.to(device), loss.to(device), size, seed, device)
    start = trainer.restore(run.path / "last.pt")
    log = Log(run.path / "metrics.jsonl", start, callback)

    bar = tqdm(total=size.steps, initial=start, desc=variant, unit="step", disable=not progress)
    batches = video.loader(source, size.batch, seed=seed, start=start, workers=workers, pin=device.type == "cuda")
    began, clips = time.perf_counter(), 0
    try:
        if size.steps == 0:
            trainer.save(run.path / "last.pt", 0)
        for step, batch in zip(range(start, size.steps), batches, strict=False):
            if probe:
                probe(run, trainer, step)
            saving = (step + 1) % save_every == 0 or step + 1 == size.steps
            record = trainer.step(step, batch.clip, log=saving or step % log_every == 0)
            clips += len(batch.clip)
            bar.update()
            if record:
                log(record | {"clips_per_s": round(clips / (time.perf_counter() - began), 2)})
                bar.set_postfix_str(f"loss {record['loss']:.3f}")
            if saving:  # a step whose record was checked: a checkpoint never holds a loss that is not finite
                trainer.save(run.path / "last.pt", step + 1)
        if probe:
            probe(run, trainer, size.steps)
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


def starting_point(init, levels: int, rope: str | None):
    """The opened weights that training starts from, or None, and the encoder's options that no preset has."""
    if init is None:
        return None, {"rope": rope} if rope else {}
    if rope:
        raise ValueError(f"rope={rope!r}: the weights decide how positions are told; leave it out")
    from vjepa_lab import weights

    begun = (init if isinstance(init, weights.Weights) else weights.open(init)).at_levels(levels)
    return begun, begun.places


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
