"""A study as a value: which objectives, pretrained on what, with which seeds, read off by which probes.

A study is Python: a file whose variable `study` is a `Study`, or a function from a size's name to one. Its cells are its runs, in the
order in which they are worth having.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ..arguments import suggest
from ..values import Value

KEEP = ("all", "model", "rows")
PROBES = ("linear", "stepwise", "attentive", "knn")
ENCODERS = ("student", "teacher", "initial")
FITTING = ("epochs", "lrs", "wds", "batch", "val", "refit", "seed", "exact", "with_positions", "ks", "temperature")
"""Options that say how a probe is fitted, on tokens of which precision, and how neighbours vote: rows or predictions of two that differ in
these alone would have one name."""
STEP = ("compile", "accumulate", "checkpoint")
"""How a training step is computed, which 01_pretrain is told as `how`."""
HOW = ("device", "gpus", "threads", "workers", *STEP)
"""Fields of a study that say where and how its runs are computed, not what comes out but for rounding."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True, repr=False)
class Regime(Value):
    """A pretraining setting: its name in tables, its data as `data.open` takes it, and single values of the preset that it changes."""

    name: str
    data: str
    overrides: dict = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Benchmark(Value):
    """What a finished run is probed on: one execution of 02_probe. An empty `data` is what the run was pretrained on.

    encoder  "student", "teacher" or "initial"; empty: the recipe's choice
    limit    at most so many clips of each split; 0: all
    options  go to the probe, such as {"form": "released"}
    """

    name: str
    data: str = ""
    labels: tuple[str, ...] = ("class",)
    probe: Literal["linear", "stepwise", "attentive", "knn"] = "linear"
    encoder: str = ""
    splits: tuple[str, str] = ("train", "test")
    limit: int = 0
    options: dict = field(default_factory=dict)

    def __post_init__(self):
        listed(f"benchmark {self.name!r}", self, "labels", "splits")
        if self.probe not in PROBES:
            raise ValueError(f"benchmark {self.name!r}: probe={self.probe!r}; {suggest(str(self.probe), PROBES)}")
        if self.encoder and self.encoder not in ENCODERS:
            raise ValueError(f"benchmark {self.name!r}: encoder={self.encoder!r}; {suggest(str(self.encoder), ENCODERS)}")
        if own := [f.name for f in fields(self) if f.name in self.options and f.name != "name"]:
            raise ValueError(f"benchmark {self.name!r}: options={{{own[0]!r}: ...}}; {own[0]} is a field of Benchmark itself: {own[0]}=...")
        if len(self.splits) != 2 or not self.labels:
            raise ValueError(f"benchmark {self.name!r}: expected a label or more, and a training and a test split")


@dataclass(frozen=True, repr=False)
class Extra(Value):
    """A further notebook for each finished run, which gets the run's folder as its parameter `run`, before weights are dropped.

    notebook  its name in the folder of the notebooks, with or without .ipynb
    """

    notebook: str
    params: dict = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "notebook", self.notebook.removesuffix(".ipynb"))

    @property
    def name(self) -> str:
        """What the executed notebook is kept as."""
        return Path(self.notebook).stem


def listed(who: str, value: Value, *names: str) -> None:
    """Make tuples of these fields. Raises ValueError, naming the field, for what is no list, or a text that would fall into letters."""
    for name in names:
        given = getattr(value, name)
        if isinstance(given, str) or not isinstance(given, Iterable):
            hint = f"range({given})" if isinstance(given, int) else f"({given!r},)"
            raise ValueError(f"{who}: {name}={given!r}; expected several, such as {name}={hint}")
        object.__setattr__(value, name, tuple(given))


def plain(who: str, values: dict, numbers: bool = False) -> None:
    """Refuse what no notebook's parameter can hold, naming it: anything but numbers, text, and lists and dicts of them.

    numbers  a number each, as the fields of a preset are; or masks=None, with which a recipe keeps its own
    """
    for name, value in values.items():
        if numbers and (name, value) != ("masks", None) and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise ValueError(f"{who}: {name}={value!r}; expected a plain number" + " or None" * (name == "masks"))
        try:
            json.dumps(value)
        except TypeError:
            raise ValueError(f"{who}: {name}={value!r}; expected numbers, text, or lists and dicts of them") from None


def distinct(benchmarks: Iterable[Benchmark]) -> None:
    """Refuse two benchmarks whose rows have the same names, so that the second one's would replace the first one's."""
    known: dict[str, str] = {}
    for b in benchmarks:
        options = sorted((name, value) for name, value in b.options.items() if name not in FITTING)
        for label in dict.fromkeys(b.labels):
            key = repr((b.data, label, b.probe, b.encoder, b.splits[1], b.limit, options))
            if key in known:
                raise ValueError(
                    f"benchmarks {known[key]!r} and {b.name!r} would write the same rows ({label}, {b.probe}), the second over the first; "
                    f"give one a name in the rows, such as options={{'benchmark': {b.name!r}}}"
                )
            known[key] = b.name


@dataclass(frozen=True, repr=False)
class Study(Value):
    """A grid of runs: variants x editions x regimes x seeds, each probed on every benchmark.

    variants   names of rows, or expressions such as "JEPA() + 0.1*Delta()"; a row that an edition lacks, or that equals the same row of an
               edition named before it, is run once
    first      variants that come before all others, with all their seeds
    without    cells that are left out: names, or shell patterns such as "spectral-released-*"; one that names a size, such as
               "ld-*-micro-*", leaves cells of that size out
    preset     a size by name; `overrides` replace single values of it
    keep       what stays of a finished run's checkpoint: "all"; "model", without the optimiser's state; "rows": nothing but what was
               measured
    device     where runs train, as in `pretrain`;  gpus: how many one run takes
    threads    of one run on a CPU; sums in another number of threads differ in their last bits
    bf16       whether all runs train in bfloat16, wherever they run; None: each where its device is fast at it, so that on machines of
               several kinds differences between runs may be of precision
    compile, accumulate, checkpoint   of each pretraining, as in `pretrain`: speed, and memory at once

    Raises ValueError for what cannot be run, naming it.
    """

    name: str
    variants: tuple[str, ...]
    regimes: tuple[Regime, ...]
    benchmarks: tuple[Benchmark, ...]
    editions: tuple[str, ...] = ("sound",)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    first: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    preset: str = "micro"
    overrides: dict = field(default_factory=dict)
    extras: tuple[Extra, ...] = ()
    keep: Literal["all", "model", "rows"] = "all"
    device: str = "auto"
    gpus: int = 1
    threads: int = 1
    workers: int = 0
    bf16: bool | None = None
    compile: bool = False
    accumulate: int = 1
    checkpoint: bool = False

    def __post_init__(self):
        lists = [f.name for f in fields(self) if isinstance(f.default, tuple) or f.name in ("variants", "regimes", "benchmarks")]
        listed(f"study {self.name!r}", self, *lists)
        for what in ("variants", "regimes", "benchmarks", "seeds", "editions"):
            values = getattr(self, what)
            if not values:
                raise ValueError(f"study {self.name!r} has no {what}; name at least one")
            names = [getattr(value, "name", value) for value in values]
            if twice := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"study {self.name!r} names {what} twice: {', '.join(map(str, sorted(twice)))}")
        for name in (self.name, *(part.name for part in (*self.regimes, *self.benchmarks))):
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot be a name here: it becomes part of file names; use letters, digits, _ . + -")
        if wrong := [seed for seed in self.seeds if type(seed) is not int or seed < 0]:
            raise ValueError(f"study {self.name!r}: seed {wrong[0]!r}; expected whole numbers, 0 or more")
        if unknown := [name for name in self.first if name not in self.variants]:
            raise ValueError(f"study {self.name!r}: first names {unknown[0]!r}, which is not among its variants")
        steps = ["01_pretrain", *self.probes, *(extra.name for extra in self.extras)]
        if twice := {name for name in steps if steps.count(name) > 1}:
            said = f"study {self.name!r}: several notebooks would be kept under the name {', '.join(sorted(twice))}"
            raise ValueError(f"{said}; give the extras names of their own")
        plain(f"study {self.name!r}: overrides", self.overrides, numbers=True)
        for regime in self.regimes:
            plain(f"regime {regime.name!r}: overrides", regime.overrides, numbers=True)
        for benchmark in self.benchmarks:
            plain(f"benchmark {benchmark.name!r}: options", benchmark.options)
        for extra in self.extras:
            plain(f"extra {extra.name!r}: params", extra.params)
        distinct(self.benchmarks)
        if self.keep not in KEEP:
            raise ValueError(f"study {self.name!r}: keep={self.keep!r}; expected one of {', '.join(KEEP)}")
        if self.bf16 is not None and type(self.bf16) is not bool:
            raise ValueError(f"study {self.name!r}: bf16={self.bf16!r}; expected True, False or None")
        for flag in ("compile", "checkpoint"):
            if type(getattr(self, flag)) is not bool:
                raise ValueError(f"study {self.name!r}: {flag}={getattr(self, flag)!r}; expected True or False")
        for what, least in (("gpus", 1), ("threads", 1), ("workers", 0), ("accumulate", 1)):
            if type(value := getattr(self, what)) is not int or value < least:
                raise ValueError(f"study {self.name!r}: {what}={value!r}; expected a whole number, {least} or more")

    def at(self, preset: str) -> Study:
        """The same study at another size."""
        return replace(self, preset=preset)

    def how(self, **values) -> Study:
        """The same study computed another way, such as gpus=1; raises ValueError for what is not of `HOW`, with the near names."""
        for name in values:
            if name not in HOW:
                raise ValueError(f"{name} does not say how runs are computed: {suggest(name, HOW)}")
        return replace(self, **values)

    @property
    def probes(self) -> dict[str, Benchmark]:
        """What the executed notebook of each benchmark is kept as."""
        return {f"02_probe-{b.name}": b for b in self.benchmarks}

    @property
    def on_gpus(self) -> bool:
        """Whether runs train on GPUs where there are any."""
        return self.device in ("auto", "cuda")

    @property
    def cores(self) -> int:
        """Cores that one run needs: its threads, or the loader workers of its processes."""
        return max(self.threads, self.gpus * self.workers)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every run: first the `first` variants, then the others, then further editions; within each, seed by seed."""
        from ..presets import PRESETS, overridden

        for regime in self.regimes:
            overridden(self.preset, self.overrides | regime.overrides)  # raises for what is unknown, before anything runs
        rows = list(self._rows())
        waves = {row: (self.editions.index(row[1]) > 0, row[0] not in self.first) for row in rows}
        ordered = sorted(rows, key=lambda row: waves[row])
        groups = [[row for row in ordered if waves[row] == wave] for wave in dict.fromkeys(waves[row] for row in ordered)]
        found = tuple(
            Cell(self, variant, edition, regime, seed)
            for group in groups
            for seed in self.seeds
            for regime in self.regimes
            for variant, edition in group
        )
        count = Counter(cell.name for cell in found)
        if twice := [name for name, times in count.items() if times > 1]:
            several = ", ".join(twice[:3]) + (f" and {len(twice) - 3} more" if len(twice) > 3 else "")
            raise ValueError(f"study {self.name!r}: several cells would share the folder {several}; rename a regime")
        left = tuple(cell for cell in found if not any(fnmatch(cell.name, pattern) for pattern in self.without))
        sizes = [[cell.named(size) for cell in found] for size in {self.preset, *PRESETS}] if self.without else []
        for pattern in self.without:
            if not any(fnmatch(name, pattern) for names in sizes for name in names):
                raise ValueError(f"study {self.name!r}: without names {pattern!r}, which is no cell; cells are called like {found[0].name}")
        if not left:
            raise ValueError(f"study {self.name!r}: without leaves no cell of {len(found)}")
        return left

    def _rows(self) -> Iterator[tuple[str, str]]:
        """(variant, edition), `first` in its own order and each distinct recipe once."""
        from .. import variants

        order = dict.fromkeys((*self.first, *self.variants))
        for place, edition in enumerate(self.editions):
            for name in order:
                if "(" in name:
                    if place == 0:
                        variants.recipe(name)
                        yield name, edition
                    continue
                here = [known for known in self.editions[: place + 1] if name in variants.names(known)]
                if edition not in here:
                    if not any(name in variants.names(known) for known in self.editions):
                        variants.recipe(name, edition)  # raises with the near names
                    continue
                recipe = variants.recipe(name, edition)
                if all(variants.recipe(name, before) != recipe for before in here[:-1]):
                    yield name, edition

    def chosen(self, pattern: str | None = None, but: Collection[str] = ()) -> tuple[Cell, ...]:
        """The cell of that name; else those whose name matches a shell pattern such as "ld-*-s[01]", or contains it. But those named, such
        as what was collected, are left out.

        Raises ValueError if none matches.
        """
        pattern = pattern or "*"
        exact = any(cell.name == pattern for cell in self.cells)  # "ld-plain-micro-s0" is part of "hw-ld-plain-micro-s0"
        pattern = pattern if exact or any(sign in pattern for sign in "*?[") else f"*{pattern}*"
        found = tuple(cell for cell in self.cells if fnmatch(cell.name, pattern))
        if not found:
            raise ValueError(f"no cell of {self.name} matches {pattern!r}; cells are called like {self.cells[0].name}")
        return tuple(cell for cell in found if cell.name not in but)

    def cell(self, name: str) -> Cell:
        """One cell by its name. Raises ValueError with the near names."""
        found = {cell.name: cell for cell in self.cells}
        if name not in found:
            raise ValueError(f"{self.name} has no cell {name!r}: {suggest(name, found)}")
        return found[name]

    def __repr__(self) -> str:
        lines = [f"    {self.name!r},"]
        for f in fields(self)[1:]:
            here, default = getattr(self, f.name), f.default_factory() if callable(f.default_factory) else f.default
            if here != default:
                lines += _field(f.name, here)
        return "\n".join(["Study(", *lines, ")"])


def _field(name: str, value, width: int = 120) -> list[str]:
    """`name=value,` indented, a long tuple broken between its items."""
    line = f"    {name}={value!r},"
    if len(line) <= width or not isinstance(value, tuple):
        return [line]
    lines, row = [f"    {name}=("], " " * 7
    for item in map(repr, value):
        if len(row) + len(item) + 2 > width and row.strip():
            lines, row = [*lines, row], " " * 7
        row += f" {item},"
    return [*lines, row, "    ),"]


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a study: a pretraining and its probes, in a folder of its own."""

    study: Study = field(repr=False)
    variant: str
    edition: str
    regime: Regime
    seed: int

    @property
    def name(self) -> str:
        """The folder's name, such as ld-plain-micro-s0; an edition other than sound follows the variant's name."""
        return self.named(self.study.preset)

    def named(self, preset: str) -> str:
        """What the cell is called at a size."""
        return "-".join(part for part in (self.row, self.regime.name, preset, f"s{self.seed}") if part)

    @property
    def row(self) -> str:
        """Variant and edition in short, such as ld or ld-released."""
        short = f"custom_{hashlib.sha1(self.variant.encode()).hexdigest()[:6]}" if "(" in self.variant else self.variant
        return short if self.edition == "sound" else f"{short}-{self.edition}"

    @cached_property
    def recipe(self):
        from .. import variants

        return variants.recipe(self.variant, self.edition)

    @cached_property
    def size(self):
        """The preset that it trains at, with what the study, its regime and an untrained recipe change."""
        from ..presets import overridden

        return overridden(self.study.preset, ({"steps": 0} if self.recipe.probe == "initial" else {}) | self.overrides)

    @property
    def trained(self):
        """The recipe as it trains at this size, whose masks may be the preset's: what recipe.txt of its run says."""
        return replace(self.recipe, masks=self.size.masks_of(self.recipe.masks))

    @property
    def overrides(self) -> dict:
        return self.study.overrides | self.regime.overrides

    def steps(self, folder: Path) -> tuple[Step, ...]:
        """The notebooks of this cell with their parameters, in order; `folder` is where it runs."""
        study = self.study
        train = {
            "variant": self.variant, "edition": self.edition, "data": self.regime.data, "regime": self.regime.name, "preset": study.preset,
            "seed": self.seed, "overrides": self.overrides, "out": str(folder),
            "device": study.device, "devices": study.gpus, "workers": study.workers,
        }  # fmt: skip
        train |= {} if study.bf16 is None else {"bf16": study.bf16}
        how = {f.name: value for f in fields(study) if f.name in STEP and (value := getattr(study, f.name)) != f.default}
        train |= {"how": how} if how else {}
        steps = [Step("01_pretrain", "01_pretrain", train)]
        for name, b in study.probes.items():
            probe = {
                "run": str(folder), "data": b.data, "labels": list(b.labels), "probe": b.probe, "encoder": b.encoder, "limit": b.limit,
                "train_split": b.splits[0], "test_split": b.splits[1], "options": b.options, "controls": False, "workers": study.workers,
            }  # fmt: skip
            steps.append(Step("02_probe", name, probe))
        for extra in study.extras:
            steps.append(Step(extra.notebook, extra.name, {"run": str(folder)} | extra.params))
        return tuple(steps)


@dataclass(frozen=True)
class Step:
    """One notebook of a cell: which, the name of its result, its parameters."""

    notebook: str
    name: str
    params: dict[str, Any]
