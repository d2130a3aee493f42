"""Walk a copy of a data set: is it complete, readable, and what is in it?"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from .core import ClipError, DataError, Source
from .listing import Clip, Listing, header_and_rows, keep_classes, list_folder, list_manifest, numbered_records, splits_of
from .sets import SETS
from .video import Video, is_image, is_media, read_image
from .workers import batches

CHUNK = 8
"""Files that a worker inspects at a time."""


@dataclass
class Report:
    """What `check` found: `table`, one row per clip, or per file of a set with several classes a clip (`multi`), which has no manifest;
    `classes`, those of the set, with clips or without; `facts`, `problems` in words."""

    name: str
    root: Path
    table: pd.DataFrame
    classes: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    multi: bool = False

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def place(self) -> Path:
        """Where `write` puts the table: manifest.csv in the root, which decides what is read there; checked.csv beside one that is there,
        as it may hold what nothing else does, and for a table that is no manifest."""
        return self.root / ("checked.csv" if self.multi or (self.root / "manifest.csv").exists() else "manifest.csv")

    def write(self, path=None) -> Path:
        """Write the table as a manifest (.csv or .parquet) that `data.open` takes, by default to `place`; the root's manifest.csv is never
        overwritten.

        Beside it, in a file that ends in .classes.json, the class names: some may have no clip here.
        """
        path = Path(path or self.place)
        table, here = self.table.copy(), path.parent.resolve() == self.root.resolve()
        if here and path.name == "manifest.csv" and path.exists():
            raise DataError(f"{path} is there and decides what is read, so it is not overwritten; name another place, or remove it first")
        if not here:
            table["path"] = [str(self.root.resolve() / file) for file in table["path"]]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            (table.to_parquet if path.suffix == ".parquet" else table.to_csv)(path, index=False)
            keep_classes(path, self.classes)
        except OSError as error:
            raise DataError(f"the manifest cannot be written to {path} ({error.strerror}); name another place") from error
        return path

    def __str__(self) -> str:
        verdict = f"{len(self.problems)} problems" if self.problems else "no problems"
        return "\n".join([f"{self.name} at {self.root}: {verdict}", *(f"  ! {p}" for p in self.problems), *(f"  {f}" for f in self.facts)])


def check(
    name: str, root, *, splits: tuple[str, ...] | None = None, hashes: bool = True, workers: int = 1, progress: bool = True
) -> Report:
    """Inspect the copy of a data set `name` (or "folder") below `root`.

    Counts against the official ones, missing and undecodable files, duplicates (also across splits), classes without clips, the largest
    class, lengths, rates, sizes, and videos that end in the dark. Every file is opened and its middle and last frame decoded, once.
    `splits`: by default those of the set, or of the folder's manifest.
    """
    if name != "folder" and name not in SETS:
        raise DataError(f"unknown data set {name!r}; one of folder, {', '.join(SETS)}")
    if workers < 0:
        raise DataError(f"workers is {workers}; it must be at least 0")
    root, lister = Path(root), list_folder if name == "folder" else SETS[name].listing
    official = {} if name == "folder" else SETS[name].OFFICIAL
    manifest = root / "manifest.csv"
    own = splits_of(manifest) if name == "folder" and manifest.is_file() else ()
    if own and (not splits or own == ("all",)):
        listings, absent = _listings(lister, root, own, twice=True)
    else:
        listings, absent = _listings(lister, root, splits or tuple(official) or ("train", "val", "test"))
    multi = listings[0].multi
    table = pd.DataFrame(_inspect(listings, root, hashes, workers, progress))
    report = Report(name, root, table, [] if multi else listings[0].classes.get("class", []), multi=multi)
    report.problems += absent
    if name == "folder":
        _judge_manifest(report)
    for listing in listings:
        _judge_listing(report, listing, official.get(listing.split))
    _judge_files(report)
    if multi:
        report.facts.append(f"no manifest holds several classes and a box a clip: the table lists the files; open {name}:{root} itself")
    elif manifest.exists():
        report.facts.append(f"{manifest} is kept as it is; by default the table goes beside it, to {report.place.name}")
    return report


def _listings(lister, root: Path, splits, twice: bool = False) -> tuple[list[Listing], list[str]]:
    """The listings that can be had, and why others cannot; unless `twice`, a held-out part that serves as val and as test only once."""
    listings, absent, seen = [], [], set()
    for split in splits:
        try:
            listing = lister(root, split)
        except DataError as error:
            absent.append(f"{split}: {error}")
            continue
        clips = (split == "train", frozenset((clip.path, clip.start, clip.end, clip.box) for clip in listing.clips))
        if twice or clips not in seen:
            seen.add(clips)
            listings.append(listing)
    if not listings:
        raise DataError("; ".join(dict.fromkeys(why.partition(": ")[2] for why in absent)))
    return listings, absent


class _Inspector(Source):
    """Reads facts about files instead of clips; runs in the loader's worker processes, which outlive a decoder's death."""

    def __init__(self, clips: list[Clip], name: str, hashes: bool):
        self.clips, self.name, self.hashes, self.bad, self.classes = clips, name, hashes, 2.0, {}

    def __len__(self) -> int:
        return len(self.clips)

    def where(self, index: int) -> str:
        return self.clips[index].path

    def batch(self, keys, replace: bool = True) -> list[dict]:
        return [self._facts(index) for index, _ in keys]

    def _facts(self, index: int) -> dict:
        path = self.clips[index].path
        try:
            if index in self.avoid:
                raise ClipError(path, self.avoid[index].why)
            if self.watch is not None:
                self.watch.value = index
            return (_image_facts if is_image(path) else _video_facts)(path) | _file_facts(path, self.hashes)
        except ClipError as error:
            fault = {"fault": error.fault.why}
        except OSError as error:
            fault = {"fault": error.strerror or str(error)}
        try:
            return fault | _file_facts(path, self.hashes)
        except OSError:  # missing, or not to be opened
            return fault


def _video_facts(path: str) -> dict:
    with Video(path) as video:
        middle, last = video.read([video.frames // 2, video.frames - 1]).float().mean((1, 2, 3)).tolist()
        stream = video.stream
        return {
            "frames": video.frames,
            "fps": round(video.fps, 3),
            "seconds": round(float(video.times[-1]) if video.times is not None else video.frames / video.fps, 3) if video.fps else None,
            "width": stream.width,
            "height": stream.height,
            "container": stream.container.split(",")[0],
            "codec": stream.codec,
            "seekable": stream.seekable,
            "dark_end": last < 10 < middle - 20,
            "variable_rate": video.times is not None,
        }


def _image_facts(path: str) -> dict:
    height, width = read_image(path).shape[-2:]
    return {"frames": 1, "width": width, "height": height, "container": "image", "codec": Path(path).suffix[1:].lower()}


def _file_facts(path: str, hashes: bool) -> dict:
    facts = {"bytes": Path(path).stat().st_size}
    if hashes:
        with open(path, "rb") as file:
            facts["hash"] = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return facts


def _inspect(listings: list[Listing], root: Path, hashes: bool, workers: int, progress: bool) -> list[dict]:
    """The rows of the table; a file with many clips is opened once."""
    facts, rows = {}, []
    for listing in listings:
        files = {clip.path: clip for clip in listing.clips}
        new = [clip for path, clip in files.items() if path not in facts]
        found = _read(listing, new, hashes, workers, progress) if new else []
        facts |= dict(zip((clip.path for clip in new), found, strict=True))
        rows += [_row(listing, clip, root) | facts[clip.path] for clip in (files.values() if listing.multi else listing.clips)]
    return rows


def _read(listing: Listing, clips: list[Clip], hashes: bool, workers: int, progress: bool) -> list[dict]:
    source, facts = _Inspector(clips, listing.name, hashes), []
    keys = ([(index, 0) for index in range(first, min(first + CHUNK, len(clips)))] for first in range(0, len(clips), CHUNK))
    found = batches(source, keys, workers, replace=False, patience=120.0) if workers else (source.batch(chunk) for chunk in keys)
    with tqdm(total=len(clips), desc=f"{listing.name} [{listing.split}]", disable=not progress) as bar:
        for part in found:
            facts += part
            bar.update(len(part))
    return facts


def _row(listing: Listing, clip: Clip, root: Path) -> dict:
    path = Path(clip.path)
    row = {"path": str(path.relative_to(root) if path.is_relative_to(root) else path)}
    if listing.split != "all":
        row["split"] = listing.split
    if listing.multi:
        return row
    for label, names in listing.classes.items():
        number = clip.labels[label]
        row |= {"label": names[number], "label_id": number} if label == "class" else {label: names[number]}
    if clip.start is not None:
        row |= {"start": clip.start, "end": clip.end}
    return row | ({"group": clip.group} if clip.group else {})


def called_unreadable(report: Report) -> list[str]:
    """The files that a folder's own manifest calls unreadable, so that they are not even listed."""
    manifest = report.root / "manifest.csv"
    header, rows = header_and_rows(manifest) if report.name == "folder" and manifest.is_file() else ([], [])
    return (
        sorted({record["path"] for _, record in numbered_records(manifest, header, rows) if record["fault"]}) if "fault" in header else []
    )


def _judge_manifest(report: Report) -> None:
    """A manifest in the root decides what is read: say what it leaves out."""
    manifest = report.root / "manifest.csv"
    if not manifest.is_file():
        return
    listed = {os.path.abspath(clip.path) for clip in list_manifest(manifest, "all").clips}
    found = (path for path in report.root.rglob("*") if is_media(path) and path.name[0] != "." and path.is_file())
    stray = sorted(str(path.relative_to(report.root)) for path in found if os.path.abspath(path) not in listed)
    if stray:
        report.problems.append(
            f"{len(stray)} files are not read, because {manifest} does not list them or calls them unreadable, the first: {stray[0]}; "
            "remove the manifest to list the folders anew"
        )


def _judge_listing(report: Report, listing: Listing, official: int | None) -> None:
    """Counts, classes and balance of one split."""
    listed = len(listing.clips) + listing.missing
    if official is not None and listed != official:
        report.problems.append(f"{listing.split}: {listed} files listed, the official number is {official}")
    if listing.missing:
        report.problems.append(f"{listing.split}: {listing.missing} of {listed} listed files are missing")
    if not listing.classes:
        report.facts += [f"{listing.split}: {len(listing.clips)} clips", *(f"{listing.split}: {note}" for note in listing.notes)]
        return
    counts = Counter(listing.count())
    empty = [name for name, count in counts.items() if not count]
    largest, count = counts.most_common(1)[0]
    classes = f"{len(counts)} classes" + (f", {len(empty)} of them without a clip" if empty else "")
    report.facts.append(
        f"{listing.split}: {len(listing.clips)} clips, {classes}; always guessing {largest!r} is right for {count / len(listing.clips):.2%}"
    )
    report.facts += [f"{listing.split}: {note}" for note in listing.notes]


def _judge_files(report: Report) -> None:
    """Faults, duplicates, and what the files are like."""
    clips = report.table
    table = clips.drop_duplicates("path")
    faults = table[table["fault"].notna()] if "fault" in table else table[:0]
    report.problems += [f"unreadable: {row.path}: {row.fault}" for row in faults.head(20).itertuples()]
    if len(faults) > 20:
        report.problems.append(f"... and {len(faults) - 20} more unreadable files (column `fault` of the table)")
    if "hash" in table:
        parts = clips if "split" in clips else clips.assign(split="all")
        parts = parts.drop_duplicates(["path", "split"]).dropna(subset="hash")
        same = [group for _, group in parts.groupby("hash") if len(group) > 1]
        across = [group for group in same if group["split"].nunique() > 1]
        report.problems += [f"the same file in two splits: {', '.join(group['path'])}" for group in across[:5]]
        report.facts += [f"duplicates: {', '.join(group['path'].head(4))}" for group in same[:5] if group["split"].nunique() == 1]
        if len(same) > 5:
            report.facts.append(f"{len(same)} groups of duplicates in all")
    for column, unit in (("frames", "frames"), ("seconds", "s"), ("fps", "fps")):
        if column in table and table[column].notna().any():
            low, middle, high = table[column].quantile([0, 0.5, 1])
            report.facts.append(f"{column}: {low:g} to {high:g} {unit}, median {middle:g}")
    if "width" in table:
        sizes = table.dropna(subset="width").groupby(["width", "height"]).size().sort_values(ascending=False)
        report.facts.append(
            "sizes: " + ", ".join(f"{w:g}x{h:g} ({n})" for (w, h), n in sizes.head(4).items()) + (", ..." if len(sizes) > 4 else "")
        )
    if "codec" in table:
        report.facts.append("streams: " + ", ".join(f"{c} ({n})" for c, n in table["codec"].value_counts().items()))
    varying = table[table["variable_rate"].eq(True)] if "variable_rate" in table else table[:0]
    if len(varying):
        report.facts.append(
            f"{len(varying)} videos have a variable frame rate, the first: {varying['path'].iloc[0]}: start, end and fps= follow their "
            "timestamps, stride= counts frames"
        )
    dark = table["dark_end"].eq(True).sum() if "dark_end" in table else 0
    if dark:
        report.facts.append(f"{dark} videos end in a black frame: sampling that always takes the last frame would learn from that")
