"""Transcode a data set once into small H.264 files with frequent key frames: seeking becomes exact, decoding cheaper (`bench loader`)."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from .check import Report
from .core import ClipError, DataError
from .encode import x264_options
from .video import is_image, probe


def prepare(
    report: Report, folder, *, side: int = 256, key_every: int = 30, quality: int = 20, workers: int = 1, progress: bool = True
) -> Path:
    """Write every readable file of a checked data set to `folder`, `workers` at once, and a manifest.csv; returns the folder to open.

    Videos: short side at most `side`, H.264, a key frame every `key_every` frames, CRF `quality`. Images are copied. What is there
    already is kept, so an interrupted run goes on where it stopped; files of other settings are refused (prepared.json says which they
    were). Files that fail are left out and named in faults.csv.
    """
    folder = Path(folder)
    if folder.resolve() == report.root.resolve():
        raise DataError(f"{folder} is the data set itself; prepare into another folder")
    if side < 16 or key_every < 1 or not 0 <= quality <= 51 or workers < 1:
        given = f"side={side}, key_every={key_every}, quality={quality}, workers={workers}"
        raise DataError(f"side is at least 16 pixels, key_every and workers at least 1, quality 0 (best) to 51; got {given}")
    _same_settings(folder, {"side": side, "key_every": key_every, "quality": quality})
    table = report.table[report.table["fault"].isna()] if "fault" in report.table else report.table

    def one(row: dict) -> dict:
        name = row["path"] if is_image(row["path"]) else str(Path(row["path"]).with_suffix(".mp4"))
        target = folder / name
        try:
            if not target.exists():
                _place(report.root / row["path"], target, side, key_every, quality)
            return row | {"path": name, "bytes": target.stat().st_size} | _new_facts(target)
        except ClipError as error:
            return {"path": row["path"], "why": error.fault.why}

    with ThreadPoolExecutor(workers) as pool:  # FFmpeg works outside the interpreter's lock
        done = pool.map(one, table.to_dict("records"))
        made = list(tqdm(done, total=len(table), desc=f"preparing {report.name}", disable=not progress))
    rows, faults = ([row for row in made if ("why" in row) == failed] for failed in (False, True))
    if not rows:
        raise DataError(f"none of the {len(table)} files of {report.root} could be prepared: {faults[0]['path']}: {faults[0]['why']}")
    pd.DataFrame(rows).drop(columns=["hash", "dark_end"], errors="ignore").to_csv(folder / "manifest.csv", index=False)
    if faults:
        pd.DataFrame(faults).to_csv(folder / "faults.csv", index=False)
    return folder


def _same_settings(folder: Path, settings: dict[str, int]) -> None:
    """Note the settings in the folder; raises DataError where its files were made with others."""
    file = folder / "prepared.json"
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
    """Re-encode a video frame by frame, none dropped or repeated; raises ClipError if it cannot be decoded."""
    import av
    import numpy as np

    stream = probe(str(source))
    shrink = min(1.0, side / min(stream.width, stream.height))
    width, height = (max(2, round(edge * shrink / 2) * 2) for edge in (stream.width, stream.height))
    try:
        with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
            rate = Fraction(stream.fps or 25).limit_denominator(1001)
            out = writer.add_stream("libx264", rate=rate)
            out.pix_fmt = "yuv420p"
            out.options = {"crf": str(quality), "g": str(key_every), "preset": "fast", **x264_options()}
            turns = None
            for count, frame in enumerate(reader.decode(reader.streams.video[0])):
                if turns is None:
                    turns = round(frame.rotation / 90) % 4
                    out.width, out.height = (height, width) if turns % 2 else (width, height)
                picture = frame.reformat(width, height, format="rgb24")
                if turns:
                    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.rot90(picture.to_ndarray(), turns)), format="rgb24")
                picture.pts, picture.time_base = count, 1 / rate
                writer.mux(out.encode(picture))
            if turns is None:
                raise ValueError("no frame can be decoded")
            writer.mux(out.encode())
    except Exception as error:
        raise ClipError(source, error) from error
