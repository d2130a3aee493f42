"""The factor world written out as files, in the layouts of real data sets, so that it goes through their very loaders."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tqdm.auto import tqdm

from .core import DataError, Source, known
from .encode import ENCODERS, write_video
from .listing import ORDER
from .synthetic import world

WNID = "n9{:07d}"
"""Made-up WordNet ids for exported image classes; no real one begins with n9."""


def export(
    folder,
    format: str = "folder",
    *,
    task: str = "",
    clips: dict[str, int] | None = None,
    frames: int = 16,
    size: int = 96,
    fps: float = 8,
    seed: int = 0,
    codec: str | None = None,
    progress: bool = True,
) -> Path:
    """Write the synthetic `task` below `folder` and return the folder to open.

    `folder`       <split>/<class>/*.mp4 with a manifest.csv of every factor's label (H.264)
    `ucf101`       UCF-101/<Class>/v_<Class>_gNN_cNN.avi (MPEG-4) and ucfTrainTestlist/
    `ssv2`         20bn-something-something-v2/<id>.webm (VP9) and labels/*.json
    `imagenet100`  {train,val}/<wnid>/*.JPEG and imagenet100.txt; a class is a shape in a hue

    `clips`: how many per split (default 240 train, 80 test). `frames` at `fps` show the whole motion, so a reader with stride 2 wants
    frames / 2. Raises DataError if the folder holds something already, or if the format cannot hold the task.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty; export into a new folder")
    if codec is not None:
        known("codec", codec, ENCODERS)
    if format not in WRITERS:
        raise DataError(f"unknown export format {format!r}; one of {', '.join(WRITERS)}")
    clips = clips or {"train": 240, "test": 80}
    frames = 1 if format == "imagenet100" else frames
    sources = _sources(task, clips, frames=frames, size=size, seed=seed)
    if format == "imagenet100" and not all({"shape", "hue"} <= set(source.classes) for source in sources.values()):
        raise DataError(f"the classes of imagenet100 are shapes in hues, which synthetic:{task} does not have; leave out task")
    if format in ("ucf101", "ssv2") and any(set(source.classes["class"]) == ORDER for source in sources.values()):
        raise DataError(
            f"{format} has no place for the two motions of synthetic:{task}, without which a flip's effect on their order is unknown; "
            "export with format='folder'"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=sum(map(len, sources.values())), desc=f"writing {folder.name} as {format}", disable=not progress) as bar:
        for _ in WRITERS[format](folder, sources, fps, codec):
            bar.update()
    return folder


def _sources(task: str, clips: dict[str, int], **options) -> dict[str, Source]:
    """So many clips of each split, no clip in two of them."""
    if not clips or min(clips.values()) < 1:
        raise DataError(f"clips={clips}: name at least one split, with one clip or more in each")
    if task == "dirs8":  # one numbered series, cut where the test begins
        if len(clips) != 2 or "train" not in clips:
            raise DataError(f"synthetic:dirs8 has a train and one held-out split; got clips={clips}")
        options |= {"n": sum(clips.values()), "train": clips["train"]}
        return {split: world(task, split, **options) for split in clips}
    return {split: world(task, split, n=n, **options) for split, n in clips.items()}


def _folder(root: Path, sources: dict[str, Source], fps: float, codec: str | None) -> Iterator[None]:
    rows, codec = [], codec or "h264"
    suffix = {"vp9": "webm", "mpeg4": "avi"}.get(codec, "mp4")
    for split, source in sources.items():
        for index in range(len(source)):
            sample = source[index]
            names = {name: source.classes[name][label] for name, label in sample.labels.items()}
            path = f"{split}/{names['class']}/{split}_{index:05d}.{suffix}"
            write_video(root / path, sample.clip, fps, codec)
            rows.append({"path": path, "split": split, **names})
            yield
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _ucf101(root: Path, sources: dict[str, Source], fps: float, codec: str | None) -> Iterator[None]:
    names = [name.title() for name in next(iter(sources.values())).classes["class"]]
    lists, made = {"train": [], "test": []}, Counter()
    for split, source in sources.items():
        part = "train" if split == "train" else "test"
        groups = range(8, 26) if part == "train" else range(1, 8)
        for index in range(len(source)):
            sample = source[index]
            label = sample.labels["class"]
            take, group = divmod(made[part, label], len(groups))
            made[part, label] += 1
            path = f"{names[label]}/v_{names[label]}_g{groups[group]:02d}_c{take + 1:02d}.avi"
            write_video(root / "UCF-101" / path, sample.clip, fps, codec or "mpeg4")
            lists[part].append(f"{path} {label + 1}" if part == "train" else path)
            yield
    folder = root / "ucfTrainTestlist"
    folder.mkdir()
    (folder / "classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    for number in (1, 2, 3):
        for part, lines in lists.items():
            (folder / f"{part}list{number:02d}.txt").write_text("".join(f"{line}\n" for line in sorted(lines)))


def _ssv2(root: Path, sources: dict[str, Source], fps: float, codec: str | None) -> Iterator[None]:
    names = next(iter(sources.values())).classes["class"]
    templates = [f"Moving [something] {name}" for name in names]
    order = sorted(range(len(names)), key=lambda i: templates[i])
    records, number = {"train": [], "validation": []}, 1
    for split, source in sources.items():
        part = "train" if split == "train" else "validation"
        for index in range(len(source)):
            sample = source[index]
            thing = _thing(source, sample)
            template = templates[sample.labels["class"]]
            write_video(root / "20bn-something-something-v2" / f"{number}.webm", sample.clip, fps, codec or "vp9")
            text = template.replace("[something]", thing).lower()
            records[part].append({"id": str(number), "label": text, "template": template, "placeholders": [thing]})
            number += 1
            yield
    labels = root / "labels"
    labels.mkdir()
    plain = {templates[i].replace("[", "").replace("]", ""): str(place) for place, i in enumerate(order)}
    (labels / "labels.json").write_text(json.dumps(plain))
    for part, rows in records.items():
        (labels / f"{part}.json").write_text(json.dumps(rows))


def _thing(source: Source, sample) -> str:
    """What is seen, in words."""
    return " ".join(source.classes[name][sample.labels[name]] for name in ("hue", "texture", "shape") if name in source.classes) or "thing"


def _imagenet100(root: Path, sources: dict[str, Source], fps: float, codec: str | None) -> Iterator[None]:
    from PIL import Image

    first = next(iter(sources.values()))
    hues = len(first.classes["hue"])
    (root / "imagenet100.txt").write_text("".join(f"{WNID.format(i)}\n" for i in range(hues * len(first.classes["shape"]))))
    held = 0  # splits that are not train share the folder val, and its numbers
    for split, source in sources.items():
        for index in range(len(source)):
            sample = source[index]
            wnid = WNID.format(sample.labels["shape"] * hues + sample.labels["hue"])
            held += split != "train"
            name = f"train/{wnid}/{wnid}_{index}" if split == "train" else f"val/{wnid}/ILSVRC2012_val_{held:08d}"
            path = root / f"{name}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sample.clip[:, 0].permute(1, 2, 0).numpy()).save(path, quality=92)
            yield


WRITERS = {"folder": _folder, "ucf101": _ucf101, "ssv2": _ssv2, "imagenet100": _imagenet100}
