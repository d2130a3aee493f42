"""Transcode a data set once into small H.264 files with frequent key frames: seeking becomes exact, decoding cheaper (`bench loader`)."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from .check import Report
from .core import ClipError, DataError
from .encode import x264_options
from .listing import keep_classes
from .video import is_image, probe

FAULTS = "faults.csv"
"""Which files are left out of a prepared copy, and why."""
DISK = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS") if hasattr(errno, name)}
"""Errors of the disk that is written to: not the clip's fault, and the next clip would fare no better."""


def prepare(
    report: Report, folder, *, side: int = 256, key_every: int = 30, quality: int = 20, workers: int = 1, progress: bool = True
) -> Path:
    """Write every readable file of a checked data set to `folder`, `workers` at once, and a manifest.csv; returns the folder to open.

    Videos: short side at most `side`, H.264, a key frame every `key_every` frames, CRF `quality`. Images are copied. What is there
    already is kept, so an interrupted run goes on where it stopped; files of other settings are refused (prepared.json says which they
    were). Files that fail are left out and named in faults.csv, which is there only then. Raises DataError for a multi-label set and where
    no file can be read, OSError when the disk is full or fails: the same call goes on.
    """
    folder = Path(folder)
    if report.multi:
        raise DataError(
            f"{report.name}: a clip has several classes and a box, which the manifest of a prepared copy cannot hold; open "
            f"{report.name}:{report.root} itself, with cache=FOLDER to keep decoded frames"
        )
    if folder.resolve() == report.root.resolve():
        raise DataError(f"{folder} is the data set itself; prepare into another folder")
    if side < 16 or key_every < 1 or not 0 <= quality <= 51 or workers < 1:
        given = f"side={side}, key_every={key_every}, quality={quality}, workers={workers}"
        raise DataError(f"side is at least 16 pixels, key_every and workers at least 1, quality 0 (best) to 51; got {given}")
    table = report.table[report.table["fault"].isna()] if "fault" in report.table else report.table
    if table.empty:
        raise DataError(f"none of the {report.table['path'].nunique()} files of {report.root} can be read; `data check` says why")
    _same_settings(folder, {"side": side, "key_every": key_every, "quality": quality})
    names = _names(report.root, table["path"])

    def one(name: str, path: str) -> dict:
        target = folder / name
        try:
            if not target.exists():
                _place(report.root / path, target, side, key_every, quality)
            return {"path": name, "bytes": target.stat().st_size} | _new_facts(target)
        except ClipError as error:
            return {"path": path, "why": error.fault.why}

    jobs = {name: path for path, name in names.items()}  # a file may have many clips, and a path many spellings
    with ThreadPoolExecutor(workers) as pool:  # FFmpeg works outside the interpreter's lock
        done = tqdm(pool.map(one, jobs, jobs.values()), total=len(jobs), desc=f"preparing {report.name}", disable=not progress)
        made = dict(zip(jobs, done, strict=True))
    faults = [facts for facts in made.values() if "why" in facts]
    rows = [row | made[names[row["path"]]] for row in table.to_dict("records") if "why" not in made[names[row["path"]]]]
    if not rows:
        raise DataError(f"none of the {len(jobs)} files of {report.root} could be prepared: {faults[0]['path']}: {faults[0]['why']}")
    pd.DataFrame(rows).drop(columns=["hash", "dark_end"], errors="ignore").to_csv(folder / "manifest.csv", index=False)
    keep_classes(folder / "manifest.csv", report.classes)
    if faults:
        pd.DataFrame(faults).to_csv(folder / FAULTS, index=False)
    else:
        (folder / FAULTS).unlink(missing_ok=True)
    return folder


def _names(root: Path, paths) -> dict[str, str]:
    """Path in the table -> the name of its copy below the folder, one for each file: sources whose names would become one keep their suffix
    (x.avi.mp4), those that lie outside the root go to outside/."""
    files = {path: os.path.abspath(root / path) for path in paths}
    inside = {file: _inside(file, os.path.abspath(root)) for file in files.values()}
    whole: set[str] = set()
    while True:
        names = {
            file: name if is_image(name) else f"{name}.mp4" if file in whole else str(Path(name).with_suffix(".mp4"))
            for file, name in inside.items()
        }
        counts = Counter(names.values())
        shared = {file for file, name in names.items() if counts[name] > 1} - whole
        if not shared:
            return {path: names[file] for path, file in files.items()}
        whole |= shared


def _inside(file: str, root: str) -> str:
    name = os.path.relpath(file, root)
    if Path(name).parts[0] != "..":
        return name
    return f"outside/{hashlib.blake2b(file.encode(), digest_size=6).hexdigest()}_{Path(file).name}"


def _same_settings(folder: Path, settings: dict[str, int]) -> None:
    """Note the settings in the folder; raises DataError where its files were made with others, or its manifest by others."""
    file = folder / "prepared.json"
    if (folder / "manifest.csv").exists() and not file.is_file():
        raise DataError(f"{folder} holds a manifest.csv that no preparation wrote; name another folder")
    there = json.loads(file.read_text()) if file.is_file() else settings
    if there != settings:
        raise DataError(f"{folder} was prepared with {there}, not {settings}; name another folder, or remove this one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror}); name another folder") from error


def _new_facts(path: Path) -> dict:
    if is_image(path):
        return {}
    stream = probe(str(path))
    return {"width": stream.width, "height": stream.height, "container": "mov", "codec": stream.codec, "seekable": stream.seekable}


def _place(source: Path, target: Path, side: int, key_every: int, quality: int) -> None:
    """Write beside the target, then rename: a target that exists is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        if is_image(source):
            shutil.copyfile(source, part)
        else:
            transcode(source, part, side, key_every, quality)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def transcode(source, target, side: int = 256, key_every: int = 30, quality: int = 20) -> None:
    """Re-encode a video frame by frame, none dropped or repeated, at its own times where its rate varies.

    Raises ClipError if it cannot be decoded, OSError if the disk is full.
    """
    import av
    import numpy as np

    stream = probe(str(source))
    shrink = min(1.0, side / min(stream.width, stream.height))
    width, height = (max(2, round(edge * shrink / 2) * 2) for edge in (stream.width, stream.height))
    try:
        with av.open(str(target), "w") as writer:
            rate = Fraction(stream.fps or 25).limit_denominator(1001)
            out = writer.add_stream("libx264", rate=rate)
            out.pix_fmt = "yuv420p"
            if stream.times is not None:
                out.codec_context.time_base = CLOCK
            out.options = {"crf": str(quality), "g": str(key_every), "preset": "fast", **x264_options()}
            turns, last = None, -1
            for count, frame in enumerate(_frames(source)):
                if turns is None:
                    turns = round(frame.rotation / 90) % 4
                    out.width, out.height = (height, width) if turns % 2 else (width, height)
                picture = frame.reformat(width, height, format="rgb24")
                if turns:
                    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.rot90(picture.to_ndarray(), turns)), format="rgb24")
                picture.pts, picture.time_base = (count, 1 / rate) if stream.times is None else (_clock(stream.times, count), CLOCK)
                last = picture.pts = max(picture.pts, last + 1)  # an encoder refuses two frames at one time
                writer.mux(out.encode(picture))
            if turns is None:
                raise ValueError("no frame can be decoded")
            writer.mux(out.encode())
    except ClipError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK:
            why = f"cannot be written ({os.strerror(error.errno)}); make room, then the same call goes on"
            raise OSError(error.errno, why, str(target)) from error
        raise ClipError(source, error) from error


CLOCK = Fraction(1, 90_000)
"""The unit of frames' times in copies of a variable rate, MPEG's."""


def _clock(times, count: int) -> int:
    """When frame `count` is shown; frames beyond the known ones follow by a millisecond."""
    known = min(count, len(times) - 1)
    return round(float(times[known]) / CLOCK) + 90 * (count - known)


def _frames(source):
    """The frames of a video. Raises ClipError, also where the disk that it lies on fails."""
    import av

    try:
        with av.open(str(source)) as reader:
            yield from reader.decode(reader.streams.video[0])
    except Exception as error:
        raise ClipError(source, error) from error
