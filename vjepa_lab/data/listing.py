"""What a data set consists of, before any file is opened: which clips, with which labels."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import zlib
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from .core import DataError
from .video import is_media

TESTS, VALIDATIONS = ("test", "testing"), ("val", "valid", "validation", "validate")
SPLITS = {"train": ("train", "training"), "val": (*VALIDATIONS, *TESTS), "test": (*TESTS, *VALIDATIONS)}
"""Split -> the folder names it goes by, in order of preference: a set with one held-out part gives it as val and as test."""

NOT_LABELS = {
    *("path", "split", "label_id", "group", "start", "end", "fault"),
    *("frames", "fps", "seconds", "width", "height", "bytes", "hash", "container", "codec", "seekable", "dark_end", "variable_rate"),
}
"""Columns of a table manifest that are no labels."""
UNLABELLED = "no labels: clips to pretrain on; a probe needs one folder for each class, or a label column in the manifest"


@dataclass(frozen=True, slots=True)
class Clip:
    """A file and its labels by name; `start` and `end` (seconds) and `box` (x1 y1 x2 y2, shares of the picture) narrow it down.

    `group`: the recording that it was cut from, '' where that is not known; clips of other classes with that group are of it too.
    """

    path: str
    labels: dict
    group: str = ""
    start: float | None = None
    end: float | None = None
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Listing:
    """The clips of one split. `classes`: label name -> class names; `notes`: what a user should know about this copy;
    `multi`: a label is a tuple of classes, read as a 0/1 vector; `missing`: how many listed files (or films) this copy lacks."""

    name: str
    split: str
    clips: list[Clip]
    classes: dict[str, list[str]]
    notes: tuple[str, ...] = ()
    multi: bool = False
    missing: int = 0

    def __post_init__(self):
        if not self.clips:
            raise DataError(f"{self.name} [{self.split}] has no clips")

    @cached_property
    def mirrored(self) -> dict[str, dict[int, int]]:
        """Label name -> {class: the class that a flip of left and right turns it into}; see `mirrors`."""
        return {} if self.multi else {label: mirrors(names) for label, names in self.classes.items()}

    def mirror(self, labels: dict) -> dict:
        """The labels of a clip after a flip of left and right.

        Two motions that are each other's mirror image (`motion`, `then` of synthetic:order) change places, so their order turns around.
        """
        flipped = labels | {name: table.get(labels[name], labels[name]) for name, table in self.mirrored.items()}
        if {"motion", "then"} <= labels.keys():
            before, after = ([self.classes[name][of[name]] for name in ("motion", "then")] for of in (labels, flipped))
            if before != after == before[::-1]:
                flipped |= {name: 1 - labels[name] for name, names in self.classes.items() if set(names) == ORDER}
        return flipped

    def count(self, label: str = "class") -> dict[str, int]:
        """Clips per class."""
        labels = (clip.labels[label] for clip in self.clips)
        counts = Counter(chain.from_iterable(labels) if self.multi else labels)
        return {name: counts[i] for i, name in enumerate(self.classes[label])}


SIDES = {"left": "right", "right": "left", "clockwise": "counterclockwise", "counterclockwise": "clockwise", "cw": "ccw", "ccw": "cw"}
ORDER = {"forward", "backward"}
"""The class names of a label that tells the order of two motions."""
COMPASS = {"n": "n", "ne": "nw", "e": "w", "se": "sw", "s": "s", "sw": "se", "w": "e", "nw": "ne"}


def mirrors(names: list[str]) -> dict[int, int]:
    """Class -> the class that a flip of left and right turns it into, told by the words in their names.

    In Something-Something V2 these are 86-87, 93-94 and 166-167, as in the authors' augmentation_mappings.json.
    """
    plain = [re.sub(r"(counter|anti)[- _]?clockwise", "counterclockwise", name.lower()) for name in names]
    place = {name: i for i, name in enumerate(plain)}
    if set(plain) == set(COMPASS):
        return {i: place[COMPASS[name]] for name, i in place.items() if COMPASS[name] != name}
    word = re.compile(rf"(?<![a-z])({'|'.join(SIDES)})(?![a-z])")
    twins = {i: place.get(word.sub(lambda side: SIDES[side[0]], name), i) for i, name in enumerate(plain)}
    return {i: twin for i, twin in twins.items() if twin != i}


def no_validation(name: str, split: str) -> tuple[str, ...]:
    """The note on the "val" of a set that has no validation part of its own."""
    return (f"{name} has no validation part: val is the test part",) if split == "val" else ()


def list_folder(root, split: str = "train", held_out: float = 0.25, random: bool = False, leak: bool = False) -> Listing:
    """One folder per class, below `root` or below `root/<split>`; or what `root/manifest.csv` says. Files that lie there without a folder
    of their class have no label: to pretrain on they need none.

    Without split folders the clips are dealt by name: UCF-101's names by its official rule (groups 1-7 are the test set), others by a hash
    of the name, `held_out` of them for the test. `random` deals UCF-101's clips by that hash too; as its clips of one group are cut from
    one recording, that is refused without `leak`. Raises DataError for a missing folder or one without media files, and for these
    options where a manifest decides.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"no folder {root}")
    manifest = root / "manifest.csv"
    if manifest.is_file():
        if (held_out, random, leak) != (0.25, False, False):
            raise DataError(
                f"held_out, random and leak deal the clips of a folder, but {manifest} decides what is read there; leave them out, "
                "or remove the manifest"
            )
        return list_manifest(manifest, split)
    folders = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    parts = {name: next((folders[alias] for alias in aliases if alias in folders), None) for name, aliases in SPLITS.items()}
    part = root if split == "all" and not any(parts.values()) else parts.get(split)
    if any(parts.values()) and part is None:
        raise DataError(f"{root} has no folder for the split {split!r}; it has {', '.join(sorted(p.name for p in parts.values() if p))}")
    base = part or root
    bases = {folder for folder in parts.values() if folder} or {root}  # a class has one number, also where a split has no clip of it
    folders = (folder for base in bases for folder in base.iterdir())
    classes = sorted({folder.name for folder in folders if folder.is_dir() and not folder.name.startswith(".")})
    files = [
        (i, path)
        for i, name in enumerate(classes)
        for path in sorted((base / name).rglob("*"))
        if is_media(path) and path.is_file() and path.name[0] != "."
    ]
    notes = ()
    if not files:
        files = [(None, path) for path in sorted(base.iterdir()) if is_media(path) and path.is_file() and path.name[0] != "."]
        classes, notes = [], (UNLABELLED,)
    if not files:
        raise DataError(
            f"no video or image files below {base}; expected {base.name}/<class>/<clip>.mp4 (or .avi, .webm, .jpg, ...), or to pretrain on "
            f"alone {base.name}/<clip>.mp4"
        )
    if part is None:
        files, dealt = _dealt(files, split, held_out, random, leak)
        notes += dealt
    if part is None or part.name.lower() in TESTS:
        notes += no_validation(root.name, split)
    empty = [name for i, name in enumerate(classes) if i not in {label for label, _ in files}]
    if empty:
        notes += (f"{len(empty)} of {len(classes)} classes have no clip in this split: {', '.join(empty[:5])}",)
    clips = [Clip(str(path), {"class": i} if classes else {}, group_of(path.stem)) for i, path in files]
    return Listing(root.name, split, clips, {"class": classes} if classes else {}, notes)


def group_of(stem: str) -> str:
    """The recording that a clip with a name as UCF-101's was cut from, "Archery/g01" of v_Archery_g01_c02, or ''; every class has a g01."""
    found = re.fullmatch(r"v_(.+)_g(\d+)_c(\d+)", stem)
    return f"{found[1]}/g{found[2]}" if found else ""


def _dealt(files, split: str, held_out: float, random: bool, leak: bool):
    """Deal the files of class folders to train and test by their names."""
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; one of train, val, test, all")
    grouped = {path for _, path in files if group_of(path.stem)}
    if grouped and random and not leak:
        raise DataError(
            "a random split of UCF-101 leaks: the clips of a group (v_..._gNN_cNN) are cut from one recording, and a random split puts "
            "them on both sides. On the 731 clips of six classes the nearest neighbour of the mean frame then scores 95 % instead of 65 %. "
            "Leave random out for the official rule (groups 1-7 are the test set), or pass leak=True to see the leak."
        )
    ruled = set() if random else grouped
    tested = {path for path in ruled if int(group_of(path.stem).rpartition("/g")[2]) <= 7}
    loose = [file for file in files if file[1] not in ruled]
    for label in {label for label, _ in loose}:
        own = sorted((path for i, path in loose if i == label), key=lambda path: zlib.crc32(path.stem.encode()))
        tested.update(own[: math.ceil(held_out * len(own)) if len(own) > 1 else 0])
    if ruled:
        others = f"; {len(loose)} files of other names are dealt by a hash of the name" if loose else ""
        note = f"no split folders: UCF-101's rule, groups 1-7 are the test set{others}"
    elif grouped:
        note = "a random split: it LEAKS, clips of one recording lie on both sides"
    else:
        note = f"no split folders: {held_out:.0%} of each class held out by file name; clips of one recording may lie on both sides"
    return [file for file in files if (file[1] in tested) != (split == "train")], (note,)


def list_manifest(path, split: str = "train") -> Listing:
    """A text file that lists clips: a table with a header that has a `path` column, or bare lines of `path label`.

    Table (separated by commas or tabs): one column per label, if any, class names or numbers in it; a `split` column selects; `start` and
    `end` (seconds) narrow a clip down. Bare lines: separated by the last blank or tab, or by `::`; a path with blanks may be quoted.
    Relative paths start at the manifest's folder. A bad line raises DataError.
    """
    path = Path(path)
    header, rows = header_and_rows(path)
    if header:
        return _table(path, header, rows, split)
    if rows[0][1].split() == ["path", "label"]:
        rows = rows[1:]
    pairs = [_pair(path, number, line) for number, line in rows]
    names, labels = _encode([label for _, label in pairs])
    clips = [
        Clip(_resolve(path, file), {"class": label}, group_of(Path(file).stem)) for (file, _), label in zip(pairs, labels, strict=True)
    ]
    return Listing(path.stem, split, clips, {"class": names}, ("a list without splits: every split gives all of it",))


def header_and_rows(path: Path) -> tuple[list[str], list]:
    """A manifest's header, empty for bare lines, and the numbered rows below it, as cells; as text for bare lines."""
    if path.suffix == ".parquet":
        import pandas as pd

        table = pd.read_parquet(path).astype(object).fillna("")
        return list(table.columns), [(n, [str(value) for value in row]) for n, row in enumerate(table.itertuples(index=False), 1)]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the manifest {path} cannot be read as text: {error}") from error
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise DataError(f"the manifest {path} is empty; expected lines of `path label`")
    comma = "\t" if "\t" in rows[0][1] and "," not in rows[0][1] else ","
    cells = lambda line: [cell.strip() for cell in next(csv.reader([line], delimiter=comma))]
    header = cells(rows[0][1])
    if "path" in header:
        return header, [(number, cells(line)) for number, line in rows[1:]]
    return [], [(number, line.strip()) for number, line in rows]


def class_file(manifest: Path) -> Path:
    """Where a manifest's class names are kept, also of classes without a clip: a JSON list beside it."""
    return manifest.with_suffix(".classes.json")


def keep_classes(manifest: Path, classes: list[str]) -> None:
    """Write the class names beside a manifest: its rows tell only of classes that have a clip."""
    if classes:
        class_file(manifest).write_text(json.dumps(classes, indent=0) + "\n")


def splits_of(manifest) -> tuple[str, ...]:
    """The splits that a manifest names, in its order; ("all",) where it has no `split` column."""
    path = Path(manifest)
    header, rows = header_and_rows(path)
    return tuple(dict.fromkeys(record["split"] for _, record in numbered_records(path, header, rows))) if "split" in header else ("all",)


def _pair(path: Path, number: int, line: str) -> tuple[str, str]:
    if "::" in line:
        file, _, label = line.rpartition("::")
    elif line[0] in "\"'":
        try:
            parts = shlex.split(line)
        except ValueError:
            parts = []
        file, label = parts if len(parts) == 2 else ("", "")
    else:
        file, label = ["", *line.rsplit(maxsplit=1)][-2:]
        if "," in line and not is_media(file):  # rather a table whose paths hold blanks
            file = ""
    if not file.strip() or not label.strip():
        hint = "; a table with commas needs a header with a column `path`, a path with commas quotes" if "," in line else ""
        raise DataError(f"{path}, line {number}: expected `path label`, found {line!r}{hint}")
    return file.strip(), label.strip()


def _table(path: Path, header: list[str], rows, split: str) -> Listing:
    """Rows of a manifest with a header -> clips of one split."""
    labels = [name for name in header if name and name not in NOT_LABELS]
    numbered = numbered_records(path, header, rows)
    for number, record in numbered:
        if lacking := [name for name in ("path", *labels) if not record[name]]:
            raise DataError(f"{path}, line {number}: nothing in the column {lacking[0]!r}; fill it in, or take the line or the column out")
    records = [record for _, record in numbered]
    encoded = {name: _encode([record[name] for record in records]) for name in labels}
    if {"label", "label_id"} <= set(header):  # class numbers as the data set's own files give them
        for number, record in numbered:
            if not record["label_id"].isdecimal():
                raise DataError(
                    f"{path}, line {number}: label_id is {record['label_id']!r}; expected a class number from 0, or no such column"
                )
        numbers = [int(record["label_id"]) for record in records]
        names = {number: record["label"] for number, record in zip(numbers, records, strict=True)}
        every = json.loads(class_file(path).read_text()) if class_file(path).is_file() else []
        encoded["label"] = every or [names.get(number, "") for number in range(max(numbers) + 1)], numbers
    called = {name: "class" if name == "label" else name for name in labels}
    present = {record.get("split", split) for record in records}
    wanted = next((name for name in SPLITS.get(split, (split,)) if name in present), None)
    if wanted is None and split != "all":
        raise DataError(f"{path} has no split {split!r}; it has {', '.join(sorted(present))}")
    clips = [
        Clip(
            _resolve(path, record["path"]),
            {called[name]: encoded[name][1][i] for name in labels},
            _group(record),
            *_seconds(path, record),
        )
        for i, record in enumerate(records)
        if (split == "all" or record.get("split", wanted) == wanted) and not record.get("fault")
    ]
    title = path.resolve().parent.name if path.stem == "manifest" else path.stem
    notes = (() if labels else (UNLABELLED,)) + (no_validation(title, split) if wanted in TESTS else ())
    return Listing(title, split, clips, {called[name]: encoded[name][0] for name in labels}, notes)


def _group(record: dict[str, str]) -> str:
    """The recording that a row names. A bare gNN that is its file's is UCF-101's, where every class has one."""
    group, own = record.get("group", ""), group_of(Path(record["path"]).stem)
    return own if group and own.endswith(f"/{group}") else group


def numbered_records(path: Path, header: list[str], rows) -> list[tuple[int, dict[str, str]]]:
    """Rows by their columns' names, with their numbers. Empty cells beyond the header are a spreadsheet's, not values."""
    records = []
    for number, row in rows:
        while len(row) > len(header) and not row[-1]:
            row = row[:-1]
        if len(row) != len(header):
            raise DataError(f"{path}, line {number}: {len(row)} values for {len(header)} columns ({', '.join(header)})")
        records.append((number, {name: cell.strip() for name, cell in zip(header, row, strict=True)}))
    return records


def _seconds(path: Path, record: dict[str, str]) -> tuple[float | None, float | None]:
    """Where a clip starts and ends in its file; without a word on either, None. A start that is not told is 0."""
    told, seconds = [record.get(edge) for edge in ("start", "end")], []
    if not any(told):
        return None, None
    for edge, value in zip(("start", "end"), told, strict=True):
        try:
            seconds.append(float(value) if value else 0.0 if edge == "start" else None)
        except ValueError as error:
            raise DataError(f"{path}: {edge} of {record['path']} is {value!r}; expected seconds") from error
    start, end = seconds
    if not math.isfinite(start) or (end is not None and not start <= end < math.inf):
        raise DataError(f"{path}: {record['path']} starts at {told[0]!r} and ends at {told[1]!r}; expected seconds, start <= end")
    return start, end


def _encode(values: list[str]) -> tuple[list[str], list[int]]:
    """Class names, and each value's number among them. Whole numbers are class numbers already (0-based), unless they are plainly not."""
    numbers = [int(value) for value in values] if all(value.isdecimal() for value in values) else []
    if numbers and max(numbers) < max(1000, 10 * len(numbers)):
        return [str(i) for i in range(max(numbers) + 1)], numbers
    names = sorted(set(values))
    place = {name: i for i, name in enumerate(names)}
    return names, [place[value] for value in values]


def _resolve(manifest: Path, file: str) -> str:
    return str(manifest.parent / file)  # an absolute file stays as it is
