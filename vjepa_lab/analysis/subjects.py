"""The frozen encoders that a study looks at: of runs that are there or are trained now, student, teacher and untrained start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vjepa_lab.data import Source, is_synthetic
from vjepa_lab.evaluation.features import Features, extract
from vjepa_lab.evidence import results
from vjepa_lab.model import Encoder
from vjepa_lab.presets import Preset, overridden
from vjepa_lab.train import pretrain, training_source
from vjepa_lab.training.runs import Run, load_run
from vjepa_lab.variants import name_of, recipe

ENCODERS = ("student", "teacher", "initial")
BORN = ("dim", "depth", "heads", "patch", "tubelet", "frames", "size")
"Fields of a preset that, with the seed, decide an untrained encoder and its clips."


def finished(folder: str | Path, preset: str | Preset | None = None) -> list[Run]:
    """The runs in a folder whose training is over, by name, with `preset` those of that size; none if there is no such folder."""
    folder, size = Path(folder), getattr(preset, "name", preset)
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    runs = [Run(path) for path in paths if (path / "report.json").is_file() and (path / "config.json").is_file()]
    return [run for run in runs if size in (None, run.config["preset"]["name"])]


def runs_of(
    variants: Sequence[str],
    seeds: Iterable[int],
    data="synthetic",
    preset: str | Preset = "micro",
    runs: str | Path = "runs",
    *,
    against: str | None = None,
    **how,
) -> list[Run]:
    """Every variant with every seed, trained now unless it is there; without variants, every finished run of that size in `runs`.

    against: a variant that must be among them, to compare the others with.
    how: further arguments of `pretrain`, and fields of the preset, such as steps=200.
    Raises ValueError when there is neither a variant to train nor a finished run, and before anything is trained for an unknown variant and
    where `against` is not among them.
    """
    if not variants:
        if not (there := finished(runs, preset)):
            raise ValueError(
                f"{runs}: no finished run of size {getattr(preset, 'name', preset)} in this folder; name the variants to train"
            )
        _among(against, [run.config["variant"] for run in there])
        return there
    named = [name_of(recipe(variant, how.get("edition", "sound"))) for variant in variants]
    _among(against, [name[0] if name else "custom" for name in named])
    size = overridden(preset, {name: value for name, value in how.items() if name in Preset.__dataclass_fields__})
    source = training_source(data, size) if is_synthetic(data) else data  # drawn once for all runs
    return [pretrain(variant, source, preset, seed, runs=runs, **how) for variant in variants for seed in seeds]


def _among(against: str | None, names: Sequence[str]) -> None:
    """Refuse an `against` that is none of these variants. One that is no named row is called custom and a hash, which is known later."""
    if against is not None and against not in names and not ("custom" in names and against.startswith("custom-")):
        raise ValueError(f"no {against!r} to compare with; there are {', '.join(dict.fromkeys(names))}")


@dataclass(frozen=True)
class Subject:
    """One frozen encoder of a run: its "student", its "teacher", or the "initial" one, which stands for an untrained encoder."""

    run: Run
    which: str

    @property
    def name(self) -> str:
        """The encoder's name in the tables: student, teacher or random-init."""
        return "random-init" if self.which == "initial" else self.which

    @property
    def size(self) -> Preset:
        return self.run.preset

    @property
    def about(self) -> dict:
        """What every row about this encoder says; `teacher` is how the run makes its targets, `smoke` too few steps to be evidence."""
        config = self.run.config
        known = {"regime": config["data"], "pretrain": config["data"]} | config
        facts = {key: known.get(key) for key in ("variant", "edition", "seed", "regime", "pretrain", "teacher")}
        if self.which == "initial":
            facts |= {"variant": "random-init", "edition": "sound", "teacher": None}
        smoke = self.which != "initial" and self.size.steps < results.SMOKE_STEPS
        return {"run": self.run.name} | facts | {"encoder": self.name, "source": "run", "smoke": smoke}

    def encoder(self) -> Encoder:
        """Loaded anew at each call: a study of many runs holds one at a time."""
        return self.run.encoder(self.which)

    def features(self, source: Source, **how) -> Features:
        """Its features of every clip of a source; `how` goes to `features.extract`.

        They are read in the precision of the first source's (`features.COARSE`): what is learnt on one is asked on the others.
        """
        known = self.__dict__.get("_read", {"bf16": self.run.config["bf16"]})  # no field: two subjects are equal whatever they have read
        found = extract(self.encoder(), source, encoder_name=self.name, **known | how)
        self.__dict__.setdefault("_read", {"bf16": found.bf16, "settled": True})
        return found


def subjects(runs: Iterable[Run | str | Path], encoders: Sequence[str] = ("student",), initial: bool = True) -> list[Subject]:
    """The encoders to look at: of each run (or its folder) those in `encoders`, and with `initial` the untrained encoder of each seed and
    size, once.

    A teacher is there where the run kept one apart (an EMA); a run of no steps gives its initial encoder only.
    Raises ValueError for an unknown encoder, and for two trained runs of one variant and seed, such as of two editions: what looks at
    encoders knows them by these, and would take the mean of both. FileNotFoundError for a folder that is no run's.
    """
    if unknown := [name for name in encoders if name not in ENCODERS]:
        raise ValueError(f"unknown encoder {unknown[0]!r}: expected some of {', '.join(ENCODERS)}")
    trained, untrained, known = [], {}, {}
    for run in map(load_run, runs):
        config = run.config
        untrained.setdefault((config["seed"], *(config["preset"][name] for name in BORN)), Subject(run, "initial"))
        if config["preset"]["steps"]:
            other = known.setdefault((config["variant"], config["seed"]), run)
            if other.path.resolve() != run.path.resolve():
                both = f"{other.path} and {run.path} are both {config['variant']} of seed {config['seed']}{_apart(other, run)}"
                raise ValueError(f"{both}; name the runs of one kind, or a folder that holds them, or links to them, alone")
            apart = [name for name in encoders if name == "student" or (name == "teacher" and config["teacher"] == "ema")]
            trained += [Subject(run, name) for name in apart]
    return trained + list(untrained.values()) * (initial or "initial" in encoders)


def _apart(a: Run, b: Run) -> str:
    """In what two runs differ, as an aside; empty where it is in nothing that is looked at here."""
    found = [name for name in ("edition", "regime", "spec", "clips", "preset") if a.config.get(name) != b.config.get(name)]
    read = lambda run: (run.path / "recipe.txt").read_text() if (run.path / "recipe.txt").is_file() else None
    found += ["recipe"] * (read(a) != read(b))
    return f" (they differ in {', '.join(found)})" if found else ""


def clip_size(found: Sequence[Subject], shape: Mapping[str, int] | None = None) -> Preset:
    """The preset whose clips all these encoders are shown, with fields replaced by `shape`.

    Raises ValueError when there is no encoder, when they are of different sizes, which would pass for a difference of objectives, or when
    they were trained on clips of different shapes and `shape` does not say which.
    """
    if not found:
        raise ValueError("no run to look at; pretrain one, or name a folder that holds finished runs")
    shapes = {(subject.size.frames, subject.size.size) for subject in found}
    if len(shapes) > 1 and not {"frames", "size"} <= set(shape or {}):
        listed = ", ".join(f"{frames} frames of {size} pixels" for frames, size in sorted(shapes))
        raise ValueError(f"these runs saw clips of different shapes ({listed}); look at one size at a time, or give shape=")
    for name in BORN[:-2]:  # the clip's last two are looked at above
        if len(values := {getattr(subject.size, name): subject.run.name for subject in found}) > 1:
            listed = ", ".join(f"{value} in {run}" for value, run in values.items())
            raise ValueError(f"these runs have encoders of different sizes ({name}: {listed}); look at one size at a time")
    return replace(found[0].size, **(shape or {}))
