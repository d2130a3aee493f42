"""A data set as probes read it: no augmentation, a training and a test split that share nothing, the labels that are asked for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence

from .core import DataError, Source
from .listing import Clip
from .sources import open

SHAPE = ("frames", "size", "stride", "fps", "whole")
"What of a clip shape `open` takes; the last two are in place of the stride."


def pair(data, splits: Sequence[str], labels: Sequence[str], shape, limits: int | Sequence[int | None] | None = None) -> list[Source]:
    """The training and the test split that a probe reads: both `still`, `apart`, and with these labels. No clip is read.

    data: a name as `open` takes it; or a pair, of names or of Sources.  limits: at most so many clips of each split, or of either its own.
    Raises ValueError for a label that a split lacks; DataError, a ValueError, for splits that share clips, for a Source that is augmented,
    and for one alone.
    """
    if isinstance(data, Source):
        raise DataError(f"{data.name} [{data.split}] is one split; give a pair of Sources, (train, test), or the set's name")
    parts = data if isinstance(data, tuple | list) else (data, data)
    limits = limits if isinstance(limits, tuple | list) else (limits, limits)
    sources = [still(part, split, shape, limit) for part, split, limit in zip(parts, splits, limits, strict=True)]
    apart(*sources)
    labelled(sources, labels)
    return sources


def still(spec, split: str, shape, limit: int | None = None) -> Source:
    """One split of a data set for probing: no augmentation, at most `limit` clips (None or 0: all), chosen as `Source.limited` does.

    spec: as `data.open` takes it; of a Source, a part.  shape: a preset, or what has frames, size, stride, and maybe fps or whole; a Source
    has its own.
    Raises ValueError for a limit below 0, and for one on a mixture, which gives all of its clips or none; DataError, a ValueError, for a
    Source that is augmented.
    """
    if limit is not None and limit < 0:
        raise ValueError(f"limit={limit}: expected at most so many clips of each split, 1 or more, or 0 for all")
    asked = {name: value for name in SHAPE if (value := getattr(shape, name, None)) is not None and value is not False}
    source = unaugmented(open(spec, split, augment=False, **asked))
    return source.limited(limit) if limit else source


def unaugmented(source: Source) -> Source:
    """The source. Raises DataError for one whose clips are cropped and flipped at random: they would be others each time that one asks."""
    if source.augment:
        raise DataError(
            f"{source.name} [{source.split}] is opened for training: its clips are cropped and flipped at random; open it with "
            "augment=False, or give its name"
        )
    return source


def labelled(sources: Iterable[Source], labels: Sequence[str]) -> None:
    """Raises ValueError where a source lacks one of these labels: before anything is read."""
    for source in sources:
        if unknown := [label for label in labels if label not in source.classes]:
            raise ValueError(f"{source.name} [{source.split}] has no label {unknown[0]!r}; it has {', '.join(source.classes) or 'none'}")


FRAME_S = 1 / 24
"Seconds that two clips may share: times are rounded, and one frame teaches nothing about the rest."


def apart(train: Source, test: Source) -> None:
    """Raise DataError if two splits share clips of files, which overlap in time (and in place, where both have boxes).

    Links count as the files that they lead to; edits, corruptions and mixtures as the files that they are made of; clips of no file, such
    as a synthetic world's, are never shared. One and the same source given as both is taken as it is: its caller knows."""
    if train is test:
        return
    taught: dict[str, list[Clip]] = {}
    learnt, asked = train.file_clips, test.file_clips
    files = _files(clip.path for clip in (*learnt, *asked))
    for clip in learnt:
        taught.setdefault(files[clip.path], []).append(clip)
    shared = [clip for clip in asked if any(_overlap(clip, other) for other in taught.get(files[clip.path], ()))]
    if shared:
        what = f"are the same {len(asked)} clips" if len(shared) == len(asked) else f"share {len(shared)} of {len(asked)} test clips"
        raise DataError(
            f"{test.name}: the splits {train.split} and {test.split} {what} ({shared[0].path}, ...), so what was taught would be asked; "
            "add a `split` column to the list, or give a list for each: data=(TRAIN, TEST)"
        )


def _files(paths: Iterable[str]) -> dict[str, str]:
    """Path -> the file that it leads to. A folder is resolved once, a file only if it is a link: sets have many files in few folders."""
    folders: dict[str, str] = {}
    files: dict[str, str] = {}
    for path in paths:
        if path not in files:
            folder, name = os.path.split(path)
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            file = os.path.join(folders[folder], name)
            files[path] = os.path.realpath(file) if os.path.islink(file) else file
    return files


def _overlap(a: Clip, b: Clip) -> bool:
    """Whether two clips of one file share more than a frame of time, and a place where both are cut out of it."""
    until = min(math.inf if clip.end is None else clip.end for clip in (a, b))
    since = max(clip.start or 0 for clip in (a, b))
    if a.box is not None and b.box is not None:
        (left, top, right, bottom), (x, y, u, v) = a.box, b.box
        if min(right, u) <= max(left, x) or min(bottom, v) <= max(top, y):
            return False
    return until - since > FRAME_S
