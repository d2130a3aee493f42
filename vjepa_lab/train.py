"""Pretraining, the loop in view."""

import hashlib
import json
import math
import warnings
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from vjepa_lab import data as video
from vjepa_lab import variants
from vjepa_lab.data import memory
from vjepa_lab.data.files import Files
from vjepa_lab.objective import Recipe
from vjepa_lab.presets import Preset, number, overridden, whole
from vjepa_lab.training import launch, locks, provenance
from vjepa_lab.training.logbook import Bar
from vjepa_lab.training.loop import Habits, train
from vjepa_lab.training.processes import Team, device_of
from vjepa_lab.training.runs import Run, build, heads, load_run, open_folder, own_terms, run_name
from vjepa_lab.training.trainer import Trainer, fast_bf16

__all__ = [
    "Run",
    "Trainer",
    "build",
    "device_of",
    "fast_bf16",
    "load_run",
    "overridden",
    "own_terms",
    "pretrain",
    "resume",
    "run_name",
    "training_source",
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
    devices: int | None = None,
    bf16: bool | None = None,
    accumulate: int = 1,
    clip: float | None = None,
    compile: bool = False,
    checkpoint: bool = False,
    workers: int = 0,
    log_every: int = 10,
    save_every: int | None = None,
    keep: int = 2,
    tensorboard: bool = False,
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
    data       what `vjepa_lab.data.open` takes, or a Source whose clips have the preset's frames and size; a synthetic world is kept in
               memory where it fits, else drawn clip by clip
    preset     a size by name; `overrides` replace single fields of it, such as steps=200, lr=1e-3, ema=.995, batch=16. Of a run shorter
               than twice its `warmup`, half warms up
    seed       fixes initial weights, order of clips, masks and augmentation: the same seed pairs runs of different recipes
    variant    the run's name in tables; by default the recipe's own, or "custom" and a hash
    regime     the pretraining setting's name in tables; by default the data's
    out        the run folder; by default `runs`/<variant>-<data>-<preset>-s<seed>
    device     "auto" (cuda, else mps, else cpu), or a device by name
    devices    so many processes on this machine share each batch, on CUDA one per GPU; terms may be defined in a notebook
    bf16       None: as the run in the folder was begun; for a new one, where the device is fast at it
    accumulate  micro-batches that a step is cut into, one after the other: less memory at once; for what is linear in the batch (below)
    clip       scale the gradients down to this norm where it is larger
    compile    run the transformer blocks through torch.compile, with a warning where it cannot; `bench step --compile` says what it gives
    checkpoint recompute activations in the backward pass instead of keeping them: less memory, one more forward pass, the same gradients
    workers    processes that read clips ahead, for each one that trains
    save_every  steps between checkpoints; None: 200, or a thirtieth of all where that is more
    keep       checkpoints that stay: last.pt, the one before it last-1.pt, and so on
    tensorboard  write the log for TensorBoard too, into the run's folder `tensorboard`
    callback   called with each logged record (a dict), for live plots
    init       released weights to start from, as `weights.open` takes them ("vjepa2-vitl:vitl.pt"); they decide the sizes of encoder and
               predictor and how positions are told; config.json says which they were, and whether the predictor began with theirs
    rope       rotary style of a new encoder: "interleaved" (by default), or "vjepa2", which Hugging Face's format can express
    probe      called as probe(run, trainer, step) before every step and after the last, to look into the model; it must change nothing

    Several processes (`devices`, or torchrun) and micro-batches see the same clips under the same masks in the same step as one process.
    What is linear in the batch comes out the same but for rounding. Of the rest SIGReg, weighted means and Hard(scope="global") reckon over
    all processes; Orthogonal and Hard(scope="mask" or "batch") over one. Under `accumulate` all that is not linear reckons over one
    micro-batch, which is another objective: SIGReg, weighted means (of padded masks, say), Orthogonal, Hard but for scope="clip", adaptive
    weights. Clips of several shapes (images="still" beside videos) need one process and accumulate=1.

    A run that was stopped or killed goes on from its last checkpoint, on any number of processes. SIGINT, SIGTERM and SIGUSR1 save one
    and raise Interrupted (a KeyboardInterrupt). The folder is locked while it is written.

    Raises ValueError for an unknown name or parameter, for a Source of clips of another shape than the preset's, or of several shapes that
    processes or micro-batches cannot share, and for a folder that holds another run; locks.Locked for one that another process writes, or
    has taken over; NotFinite (a FloatingPointError) naming the terms that became NaN or infinite, with their batch in failed-step-N.pt.
    """
    given = {name: value for name, value in locals().items() if name != "overrides"} | overrides
    whole(0, seed=seed, workers=workers)
    whole(1, log_every=log_every, keep=keep, accumulate=accumulate)
    whole(1, **{name: 1 if value is None else value for name, value in {"save_every": save_every, "devices": devices}.items()})
    if clip is not None:
        number(1e-12, math.inf, clip=clip)
    seed, workers, log_every, keep, accumulate = map(int, (seed, workers, log_every, keep, accumulate))
    devices, clip = devices and int(devices), clip and float(clip)  # numpy's would be text in config.json
    bf16, compile, checkpoint, tensorboard = bf16 if bf16 is None else bool(bf16), bool(compile), bool(checkpoint), bool(tensorboard)
    team = Team.of_environment()
    plan = variants.recipe(recipe, edition)
    size = overridden(preset, ({"steps": 0} if plan.probe == "initial" else {}) | overrides)
    begun, places = starting_point(init, plan, rope)
    if begun:
        size = replace(size, **{name: value for name, value in begun.fields.items() if name not in overrides})
    share = share_of(size.batch, devices or team.world, accumulate)
    if isinstance(data, video.Source):
        check_shape(data, size, devices or team.world, accumulate)
    if devices not in (None, team.world):
        if team.world > 1:
            raise ValueError(f"devices={devices}, but this is one of {team.world} processes already; leave devices out")
        return Run(launch.together(given, devices, Team(world=devices).device(device)))
    named = variants.name_of(plan)
    plan = replace(plan, masks=size.masks_of(plan.masks))
    if variant is None:
        variant, edition = named or (f"custom-{hashlib.sha1(repr(plan).encode()).hexdigest()[:6]}", "sound")
    device = team.device(device)
    source = training_source(data, size, seed, progress and team.first)
    spoken = Path(source.name).name + (f"-from-{begun.release.name}" if begun else "") + (f"-{rope}" if rope else "")
    folder = Path(out) if out else Path(runs) / run_name(variant, edition, spoken, size, seed)
    if bf16 is None:  # a run that was begun on another kind of machine goes on as it was begun
        there = Run(folder).config.get("bf16") if (folder / "config.json").exists() else None
        bf16 = fast_bf16(device) if there is None else there
    config = {
        "variant": variant, "edition": edition, "data": Path(source.name).name, "clips": len(source), "seed": seed, "preset": size.plain(),
        "spec": str(data) if isinstance(data, str | Path) else source.spec or source.name,
        "teacher": plan.teacher, "stop_grad": plan.stop_grad, "levels": plan.levels, "probe": plan.probe,
        "bf16": bf16, "clip": clip, "own_terms": own_terms(plan),
    } | ({"regime": regime} if regime else {}) | ({"encoder": places} if places else {})  # fmt: skip
    if begun:
        with torch.device("meta"):
            fate = begun.predictor_for(build(plan.teacher, plan.stop_grad, plan.levels, size, seed, **places))[1]
        config |= {"init": begun.about | {"predictor": fate}, "regime": regime or f"{config['data']} from {begun.release.name}"}
    known = {"manifest": provenance.fingerprint(source), "data_options": beside_the_name(source, size, seed)}
    session = provenance.session(device, team.world)
    session |= {"accumulate": accumulate, "compile": compile, "checkpoint": checkpoint, "workers": workers}
    if source.options and isinstance(source.options.get("cache"), str):
        session["cache"] = source.options["cache"]
    save_every = int(save_every or max(200, size.steps // 30))
    session |= {"log_every": log_every, "save_every": save_every, "keep": keep, "tensorboard": tensorboard}
    with ExitStack() as held:
        team.meet(device, launch.store())

        lock = None

        def take() -> tuple[Run, bool]:
            nonlocal lock
            if not (done := (folder / "report.json").exists()):
                lock = held.enter_context(locks.hold(folder))
                done = (folder / "report.json").exists()  # by the one that held it until now
            return open_folder(folder, repr(plan), config, known, None if done else session), done

        run, done = team.lead(take)
        if done:
            return run
        model = build(plan.teacher, plan.stop_grad, plan.levels, size, seed, bf16, **places)
        if begun:
            begun.begin(model)
        loss = heads(plan, model.width, seed)
        model, loss = model.to(device).run_as(compile=compile, checkpoint=checkpoint), loss.to(device)
        trainer = Trainer(plan, model, loss, size, seed, device, accumulate=accumulate, clip=clip, team=team)
        watch = launch.relay() or Bar(variant, progress and team.first, callback)
        held.callback(watch.close)
        train(run, trainer, source, share, Habits(log_every, save_every, keep, workers, tensorboard, probe), watch, lock)
        team.wait()
    return run


def resume(
    folder: str | Path, *, device: str = "auto", devices: int | None = None, workers: int | None = None, progress: bool = True
) -> Run:
    """Go on with the run in a folder where it stopped, as its config.json asks.

    folder   the run's folder
    devices, workers   as in `pretrain`; None: as many as in its last session, of GPUs where there are as many
    Raises FileNotFoundError where there is no run; ValueError for a folder of another kind, and where the run began with released weights
    (init=) or uses a term defined elsewhere or a Source that no name opens: the call that began it goes on with it.
    """
    run = load_run(folder)
    config = resumable(run)
    session, data = config["sessions"][-1], config["spec"]
    if options := config.get("data_options"):
        options |= {"cache": session["cache"]} if options.get("cache") is True else {}  # the folder of the last session
        data = training_source(data, run.preset, config["seed"], progress and Team.of_environment().first, options)
    habits = {name: session[name] for name in ("log_every", "save_every", "keep", "tensorboard") if name in session}
    devices = _as_many(session, device_of(device)) if devices is None else devices
    workers = session.get("workers", 0) if workers is None else workers
    return pretrain(
        run.recipe, data, run.preset, config["seed"], edition=config["edition"], variant=config["variant"],
        regime=config.get("regime"), out=folder, device=device, devices=devices, bf16=config["bf16"], workers=workers, progress=progress,
        accumulate=session.get("accumulate", 1), clip=config.get("clip"), rope=config.get("encoder", {}).get("rope"),
        compile=session.get("compile", False), checkpoint=session.get("checkpoint", False), steps=run.preset.steps, **habits,
    )  # fmt: skip


def _as_many(session: dict, device: torch.device) -> int | None:
    """As many processes as in a session, if it was on this kind of device, none were started from outside and there is a GPU for each."""
    processes, alike = session.get("processes", 1), torch.device(session.get("device", "cpu")).type == device.type
    there = torch.cuda.device_count() if device.type == "cuda" else processes
    free = alike and device.index is None and device.type != "mps" and Team.of_environment().world == 1
    return processes if free and 1 < processes <= there else None


def resumable(run: Run) -> dict:
    """Its config.json, if the folder alone tells how to go on with the run. Raises ValueError, saying what to do, where it does not."""
    config, folder = run.config, run.path
    if lacking := {"own_terms", "spec", "preset", "sessions"} - config.keys():
        raise ValueError(f"{folder} holds no pretraining: its config.json lacks {', '.join(sorted(lacking))}")
    if config["own_terms"]:
        raise ValueError(f"{folder} uses {', '.join(config['own_terms'])}, defined elsewhere: repeat the call that began it")
    if config.get("data_options", {}) is None:  # a folder of an older version says nothing of them
        raise ValueError(
            f"{folder} was given a Source that the name {config['spec']!r} does not open again: repeat the call that began it, with the "
            "same source"
        )
    begun = config.get("init")
    if begun:
        raise ValueError(f"{folder} began with released weights: repeat the call that began it, with init=")
    return config


def share_of(batch: int, world: int, accumulate: int) -> int:
    """Clips of a step in each of `world` processes; raises ValueError where they do not divide."""
    if min(world, accumulate) < 1 or batch % (world * accumulate):
        raise ValueError(
            f"a batch of {batch} clips does not divide over {world} processes x {accumulate} micro-batches; change one of them"
        )
    return batch // world


def starting_point(init, plan: Recipe, rope: str | None):
    """The opened weights that training starts from, or None, and the encoder's options that no preset has."""
    if init is None:
        return None, ({"rope": rope} if rope else {}) | ({"rope_base_grid": plan.rope_grid} if plan.rope_grid else {})
    if rope:
        raise ValueError(f"rope={rope!r}: the weights decide how positions are told; leave it out")
    from vjepa_lab import weights

    begun = (init if isinstance(init, weights.Weights) else weights.open(init)).at_levels(plan.levels)
    theirs = begun.places.get("rope_base_grid")
    if plan.rope_grid not in (None, theirs):
        grid = "as they are" if theirs is None else f"on a grid of {theirs}"
        raise ValueError(
            f"rope_grid={plan.rope_grid} in the recipe: the weights of {begun.name} take positions {grid}; give one with rope_grid=None"
        )
    return begun, begun.places


def training_source(data, size: Preset, seed: int = 0, progress: bool = True, options: dict | None = None) -> video.Source:
    """The training split of `data` (a name, or a Source as it is) as clips of a preset's shape; `options`: what else `open` is given.

    The synthetic world is one data set, the same for every seed, and is kept in memory; where it does not fit there, a warning says that it
    is drawn clip by clip. Files are cropped and flipped anew for each seed.
    """
    if isinstance(data, video.Source):
        return data
    source = video.open(data, **usual(data, size, seed) | (options or {}))
    if not video.is_synthetic(data):
        return source
    if (need := memory.needed(source)) > memory.LIMIT:
        warnings.warn(
            f"{source.name}: its {len(source)} clips would take {need / 2**30:.1f} GiB, more than the {memory.LIMIT / 2**30:.1f} GiB that "
            "clips may take in memory; they are drawn one by one, every time that they are read (workers=N draws ahead)",
            stacklevel=2,
        )
        return source
    return video.Memory(source, progress=progress)


def usual(data, size: Preset, seed: int) -> dict:
    """What `open` is given with a name to train on: a preset's shape, the training split."""
    shape = {"frames": size.frames, "size": size.size, "stride": size.stride}
    return {"split": "train", "seed": 0 if video.is_synthetic(data) else seed, **shape}


def beside_the_name(source: video.Source, size: Preset, seed: int) -> dict | None:
    """What `training_source` needs beside a source's name to open the same clips again, as JSON has it; None where it cannot.

    A cache's folder is not in it, only that there is one (True): clips are the same in any, and each node has its own."""
    if not source.spec or source.options is None:
        return None
    expected, options = usual(source.spec, size, seed), dict(source.options)
    if isinstance(options.get("cache"), str):
        options["cache"] = True
    try:
        return json.loads(json.dumps({name: v for name, v in options.items() if name not in expected or v != expected[name]}))
    except TypeError:  # an object, such as a Cache
        return None


def check_shape(source: video.Source, size: Preset, world: int = 1, accumulate: int = 1) -> None:
    """Raise ValueError for clips that would train in another shape under the preset's name; those of one frame, as images are, may, but not
    beside videos where several processes or micro-batches share a batch: each must hold the same shapes as the others."""
    wanted = size.frames, size.size, size.size
    shapes = dict.fromkeys(source.clip_shape(index) for index in one_of_each(source))
    for frames, height, width in shapes:
        if (height, width) == wanted[1:] and frames in (1, size.frames):
            continue
        ways = f"open it with frames={size.frames}, size={size.size}"
        if height == width:
            ways += f", or pass frames={frames}, size={height} to train on what it gives"
        raise ValueError(
            f"{source.name} gives clips of {frames} x {height} x {width} (frames, rows, columns), the preset {size.name!r} is for "
            f"{' x '.join(map(str, wanted))}: {ways}"
        )
    if len(shapes) > 1 and world * accumulate > 1:
        named = " and of ".join(" x ".join(map(str, shape)) for shape in shapes)
        raise ValueError(
            f"{source.name} gives clips of {named} (frames, rows, columns), and {world} process{'es' if world > 1 else ''} with "
            f"accumulate={accumulate} need clips of one shape: open images with images='repeat', or take one process and accumulate=1"
        )


def one_of_each(source: video.Source) -> list[int]:
    """Indices of clips that show the shapes which a source gives, without reading all of it: one of each part of a mixture and, of a folder
    opened with images="still", an image and a video. Of a kind defined elsewhere the first clip alone."""
    if isinstance(source, video.Mixture):
        firsts = [0, *source.ends[:-1]]
        return [first + index for first, part in zip(firsts, source.sources, strict=True) for index in one_of_each(part)]
    if len(source.made_of) == 1 and len(source.made_of[0]) == len(source):  # edited clip for clip
        return one_of_each(source.made_of[0])
    if isinstance(source, Files) and source.images == "still":
        return list({source.clip_shape(index): index for index in reversed(range(0, len(source), source.copies))}.values())
    return [0]
