"""Run folders: what one pretraining leaves on disk, and what is read from it."""

import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from vjepa_lab import variants
from vjepa_lab.files import differing, write_json
from vjepa_lab.model import VJEPA, Encoder
from vjepa_lab.objective import Loss, Objective, Recipe
from vjepa_lab.presets import Preset
from vjepa_lab.training.checkpoint import load, newest
from vjepa_lab.training.fingerprints import fingerprint
from vjepa_lab.values import Value


@dataclass(frozen=True, repr=False)
class Run:
    """One pretraining on disk: recipe.txt, config.json, metrics.jsonl, last.pt, report.json."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> dict:
        """What was asked for, and with which versions on which machine. Raises ValueError where the file is damaged."""
        path = self.path / "config.json"
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: damaged, no JSON ({error}); remove {self.path} to start again") from None

    @property
    def recipe(self) -> Recipe:
        """Raises ValueError if it uses a class defined elsewhere, as in a notebook, even where that has the name of one from here."""
        if own := self.config.get("own_terms"):
            raise ValueError(f"{self.path} uses {', '.join(own)}, defined elsewhere; pass recipe=")
        path = self.path / "recipe.txt"
        try:
            return variants.recipe(path.read_text())
        except ValueError as error:
            hint = "; if it uses a class defined elsewhere, pass recipe=" if "cannot read" in str(error) else ""
            raise ValueError(f"{path}: {error}{hint}") from None

    @property
    def preset(self) -> Preset:
        return Preset.read(self.config["preset"])

    def metrics(self):
        """The logged steps, a pandas table: step, loss, lr, grad_norm, clips_per_s, std, one column per term.

        Raises FileNotFoundError where no step is logged yet, ValueError for a damaged log (`results.metrics`).
        """
        from vjepa_lab.evidence import results

        return results.metrics(self.path).rename(columns=lambda name: name.removeprefix("parts."))

    def checkpoint(self, device="cpu") -> dict:
        """The last checkpoint, or the one before it (with a warning) if the last is damaged. Raises FileNotFoundError if there is none."""
        found = newest(self.path / "last.pt")
        if found is None:
            done = self.path / "report.json"
            first = f"the run is finished, but its weights were deleted; remove {done}, then " if done.exists() else ""
            raise FileNotFoundError(f"{self.path / 'last.pt'}: no checkpoint; {first}run pretrain with the same arguments to train it")
        return found[1] if str(device) == "cpu" else load(found[0], device)

    @property
    def steps_done(self) -> int:
        return self.checkpoint()["step"] if (self.path / "last.pt").exists() else 0

    def model(self, trained: bool = True) -> VJEPA:
        """Student, predictor and teacher, as saved last or as they were before training."""
        config = self.config
        how = config["teacher"], config["stop_grad"], config["levels"], self.preset, config["seed"], config["bf16"]
        model = build(*how, **config.get("encoder", {}))
        if trained:
            model.load_state_dict(self.checkpoint()["model"])
        elif "init" in config:
            from vjepa_lab import weights

            weights.again(config["init"]).at_levels(config["levels"]).begin(model)
        return model

    def loss(self, recipe: Recipe | None = None, trained: bool = True) -> Loss:
        """The objective with its heads, trained or as they were before; pass the recipe if it uses a term of your own."""
        loss = heads(recipe or self.recipe, self.preset.dim * self.config["levels"], self.config["seed"])
        if trained:
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

    def _repr_html_(self) -> str | None:
        from vjepa_lab.plots.card import of_run

        return of_run(self)


def load_run(path: str | Path | Run) -> Run:
    """The run in a folder; a Run is given back as it is. Raises FileNotFoundError if there is none."""
    if isinstance(path, Run):
        return path
    path = Path(path)
    if not (path / "config.json").exists():
        raise FileNotFoundError(f"{path}: not a run folder (no config.json in it)")
    return Run(path)


def latest(folder: str | Path = "runs") -> Run | None:
    """The run last written to, anywhere below a folder, of those that can be looked into: done, with its last checkpoint there, and with a
    recipe that can be read back. One of no steps comes after all others. None where there is no such run.
    """
    found = []
    for report in Path(folder).rglob("report.json"):
        run = Run(report.parent)
        try:
            if (run.path / "last.pt").is_file() and run.recipe:
                found.append((run.preset.steps > 0, report.stat().st_mtime_ns, str(run.path), run))
        except (OSError, ValueError, KeyError, TypeError):  # another kind of training, a damaged or an old one, or gone by now
            continue
    return max(found, key=lambda one: one[:3])[3] if found else None


def build(teacher: str, stop_grad: bool, levels: int, size: Preset, seed: int, bf16: bool = False, **encoder) -> VJEPA:
    """The model as it is before training, the same for the same seed whatever was drawn before; further keywords go to the Encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VJEPA.build(size, teacher=teacher, stop_grad=stop_grad, levels=levels, bf16=bf16, **encoder)


def heads(recipe: Recipe, width: int, seed: int) -> Loss:
    """The objective with its heads as they are before training, for latents of `width` channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        return Loss(recipe.objective, width, recipe.weighting)


def run_name(variant: str, edition: str, source: str, size: Preset, seed: int) -> str:
    """Such as ld-synthetic-micro-s0; an edition other than sound follows the variant's name."""
    parts = (variant, "" if edition == "sound" else edition, source.replace(":", "_"), size.name, f"s{seed}")
    return "-".join(part for part in parts if part)


def own_terms(plan: Recipe | Objective) -> dict[str, str]:
    """Fingerprints of the source of every class defined outside this package that a recipe or an objective is made of (terms, schedules,
    a weighting, masks): an edited one makes another run, whatever its repr."""
    where = [plan.masks.where] if isinstance(plan, Recipe) else []  # which need not be a Value
    kinds = {type(part): None for part in [*_made_of(plan), *where]}
    return {kind.__name__: fingerprint(kind) for kind in kinds if not kind.__module__.startswith("vjepa_lab.")}


def _made_of(value) -> Iterator[Value]:
    """A value and those in its fields, theirs too."""
    if isinstance(value, Value):
        yield value
        parts = [getattr(value, field.name) for field in fields(value)]
    else:
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    for part in parts:
        yield from _made_of(part)


def open_folder(folder: Path, recipe: str, config: dict, known: dict, session: dict | None) -> Run:
    """Make the run folder, or check that it holds this very run; note the session that is to write it.

    config  what was asked for, which must be the same in every session; `known` too, where the folder says it
    """
    run = Run(folder)
    if (folder / "config.json").exists():
        theirs = run.config
        differ = differing(theirs, config | {name: value for name, value in known.items() if name in theirs})
        if (there := (folder / "recipe.txt").read_text().strip()) != recipe:
            differ.append(f"recipe: {there} there, {recipe} asked")
        if differ:
            raise ValueError(
                f"{folder} holds another run ({'; '.join(differ)}); choose another folder (out=, runs= or the notebook's "
                "parameter for it), a name of its own (variant=), or remove it"
            )
        if session:
            write_json(folder / "config.json", theirs | {"sessions": [*theirs.get("sessions", []), session]})
        return run
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.txt").write_text(recipe + "\n")
    made = {name: session[name] for name in ("versions", "device", "threads")} | {"machine": platform.machine()}
    write_json(folder / "config.json", config | known | made | {"sessions": [session]})
    return run
