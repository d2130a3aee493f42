"""What persons do, read off an encoder's frozen tokens: the AVA v2.2 protocol with a linear probe on boxes.

The clip is the whole picture, squeezed to a square, so that boxes stay shares of it; of each person the token grid, averaged over time, is
cut out by RoIAlign and pooled, as in SlowFast's and VideoMAE's AVA heads; a linear map per action, sigmoid, tells what the person does.
Measured by `boxes.frame_map`, on the true boxes and, where a detector's table is given, on its boxes.

    ava.probe("runs/baseline-ucf101-base-s0", "data/ava", detections="ava_val_detections.csv")

Axes: b batch, n tokens, d channels, t h w token grid, m boxes, k actions.
"""

import math
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align
from torchvision.transforms.v2 import functional as V
from tqdm.auto import tqdm

from vjepa_lab.data.core import Sample, Source
from vjepa_lab.data.files import decode
from vjepa_lab.data.listing import Clip
from vjepa_lab.data.sampling import Sampling
from vjepa_lab.data.sets.ava import Copy, found
from vjepa_lab.evaluation.boxes import BOX, FRAME, FrameMap, average_precision, frame_map, persons, read_boxes
from vjepa_lab.evaluation.evaluate import Subject, subject_of
from vjepa_lab.evaluation.features import coarse, device_for, fingerprint, passes, passing, scaling
from vjepa_lab.evaluation.heads import LinearHead, StackedAdamW, stack
from vjepa_lab.evaluation.scoring import ProbeResult
from vjepa_lab.files import replacing

POOLS = ("max", "mean")


class KeyFrames(Source):
    """Clips of whole pictures around key frames `frames` (film, time), `seconds` long, squeezed to `size` square; no labels."""

    name, fixed = "ava", True

    def __init__(self, copy: Copy, split: str, keys: pd.DataFrame, frames: int, size: int, seconds: float = 2.0, bad: float = 0.05):
        self.copy, self.split, self.keys, self.size, self.bad, self.classes = copy, split, keys, size, bad, {}
        self.sampling, self.seconds = Sampling(frames, whole=True), seconds

    def __len__(self) -> int:
        return len(self.keys)

    def where(self, index: int) -> str:
        return f"{self.copy.films[self.keys['film'].iloc[index]]} at {self.keys['time'].iloc[index]} s"

    @property
    def labels(self) -> dict[str, Tensor]:
        return {}

    @cached_property
    def file_clips(self) -> list[Clip]:
        return [self._clip(film, time) for film, time in self.keys[FRAME].itertuples(index=False)]

    def _clip(self, film: str, time: float) -> Clip:
        """The part of a film around a key frame."""
        centre = time - self.copy.offset
        return Clip(str(self.copy.films[film]), {}, film, max(centre - self.seconds / 2, 0.0), centre + self.seconds / 2)

    def read(self, index: int, epoch: int = 0) -> Sample:
        frames = V.resize(decode(self.file_clips[index], self.sampling), [self.size, self.size], antialias=True)
        return Sample(frames.movedim(1, 0).contiguous(), {}, index)


def roi_features(tokens: Tensor, grid: tuple[int, int, int], boxes: list[Tensor], pool: str = "max", cells: int = 7) -> Tensor:
    """Features of boxes, a list with [m 4] (x1 y1 x2 y2, shares of the picture) for each clip of tokens [b n d] -> [sum of m, d].

    The grid is averaged over time; `cells` x `cells` bilinear samples of each box are pooled by their maximum or mean.
    """
    if pool not in POOLS:
        raise ValueError(f"pool={pool!r}: expected one of {', '.join(POOLS)}")
    _, h, w = grid
    maps = tokens.float().unflatten(1, grid).mean(1).movedim(-1, 1)  # [b d h w]
    scale = torch.tensor([w, h, w, h], dtype=torch.float32, device=tokens.device)
    cut = roi_align(maps, [each.to(maps).reshape(-1, 4) * scale for each in boxes], cells, aligned=True)  # [m d cells cells]
    return cut.amax((2, 3)) if pool == "max" else cut.mean((2, 3))


@dataclass(frozen=True, eq=False)
class People:
    """Boxes with what the encoder makes of them: table film, time, x1 ... y2; features [m d], by row, read in bf16 or not."""

    table: pd.DataFrame
    features: Tensor
    bf16: bool = False

    def __len__(self) -> int:
        return len(self.table)


def extract(
    encoder: nn.Module, copy: Copy, split: str, people: pd.DataFrame, *, frames: int, size: int, seconds: float = 2.0, pool: str = "max",
    batch: int = 16, bf16: bool = False, settled: bool = False, workers: int = 0, device=None, cache: str | Path | None = None,
    encoder_name: str = "", progress: bool = True,
) -> People:  # fmt: skip
    """Features of every box of `people` (film, time, x1 ... y2) whose key frame can be read; one pass of the encoder per key frame.

    copy, split    the copy of AVA and its part, which says where the films lie
    frames, size   of a clip, `size` pixels a side, its frames spread over `seconds` around the key frame
    pool           how a box's samples become one, as `roi_features` takes it
    batch          key frames at a time
    The other arguments as in `features.extract`. Raises ValueError where the copy holds none of the films, or no key frame can be read.
    """
    people = people[people["film"].isin(list(copy.films))].reset_index(drop=True)
    if people.empty:
        raise ValueError(f"AVA [{split}]: {copy.videos} holds none of the films that these boxes are of")
    keys = people[FRAME].drop_duplicates(ignore_index=True)
    source, device = KeyFrames(copy, split, keys, frames, size, seconds), device_for(device)
    path = None
    if cache is not None:
        boxes = pd.util.hash_pandas_object(people, index=False).sum()
        options = seconds, pool, bf16, bf16 and settled, int(boxes)
        path = Path(cache) / f"ava-{split}-{fingerprint(encoder, source, *options)}.pt"
        if path.is_file():
            kept = torch.load(path)
            return People(people.iloc[kept["rows"].numpy()].reset_index(drop=True), kept["features"], kept["bf16"])
    how = {"pool": pool, "batch": batch, "workers": workers, "device": device, "progress": progress}
    rows, features = _extract(encoder, source, people, bf16=bf16, **how)
    if bf16 and not settled and coarse(features, encoder_name, source):
        bf16, (rows, features) = False, _extract(encoder, source, people, **how)
    if path is not None and not passing(source):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            torch.save({"rows": rows, "features": features, "bf16": bf16}, part)
    return People(people.iloc[rows.numpy()].reset_index(drop=True), features, bf16)


def _extract(
    encoder: nn.Module, source: KeyFrames, people: pd.DataFrame, *, pool: str, device: torch.device, **how
) -> tuple[Tensor, Tensor]:
    """Places in `people` of the boxes that were read [m], and their features [m d]."""
    place = people.merge(source.keys.reset_index(names="_frame"), on=FRAME, how="left")["_frame"].to_numpy()
    order = np.argsort(place, kind="stable")
    first = np.searchsorted(place[order], np.arange(len(source) + 1))
    corners = torch.tensor(people[BOX].to_numpy(np.float32))
    rows, features = [], []

    def read(clip: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        return encoder(clip), tuple(encoder.grid(clip))

    with closing(passes(encoder, source, "boxes", read, device=device, **how)) as made:
        for part, (tokens, grid) in made:
            own = [torch.from_numpy(order[first[i] : first[i + 1]]) for i in part.index.tolist()]
            features.append(roi_features(tokens, grid, [corners[each].to(device) for each in own], pool).cpu())
            rows += own
    return torch.cat(rows), torch.cat(features)


def targets(people: People, truth: pd.DataFrame, actions: list[int]) -> Tensor:
    """What each person does, 0/1 [m k]: the actions of its very box in the annotations."""
    key = [*FRAME, *BOX]
    rows = people.table[key].reset_index(names="_row").merge(truth[truth["action"].isin(actions)], on=key)
    hot = torch.zeros(len(people), len(actions))
    place = {action: i for i, action in enumerate(actions)}
    column = [place[action] for action in rows["action"]]
    hot[torch.tensor(rows["_row"].tolist(), dtype=torch.long), torch.tensor(column, dtype=torch.long)] = 1
    return hot


def scored_boxes(people: People, probability: Tensor, actions: list[int]) -> pd.DataFrame:
    """Probabilities [m k] -> a table with a row per box and action, as `boxes.frame_map` takes it."""
    table = people.table[[*FRAME, *BOX]]
    long = table.loc[table.index.repeat(len(actions))].reset_index(drop=True)
    return long.assign(action=np.tile(actions, len(table)), score=probability.double().flatten().numpy())


def probe(
    run,
    root: str | Path,
    *,
    encoder: str | None = None,
    detections: str | Path | None = None,
    least: float = 0.8,
    frames: int | None = None,
    size: int | None = None,
    seconds: float = 2.0,
    offset: float | None = None,
    pool: str = "max",
    lrs: tuple[float, ...] = (1e-3, 3e-3, 1e-2),
    wds: tuple[float, ...] = (0.01, 0.1, 1.0),
    epochs: int = 30,
    batch: int = 256,
    val: float = 0.2,
    seed: int = 0,
    workers: int = 0,
    device: str | None = None,
    cache: str | Path | None = None,
    save: bool = True,
    out: str | Path | None = None,
    progress: bool = True,
) -> list[ProbeResult]:
    """Frame mAP at IoU .5 on AVA's validation part: on the true boxes, and on a detector's where `detections` are given.

    run         a run, released weights or an encoder, as `vl.probe` takes them
    root        the copy of AVA v2.2 (see data/README.md)
    detections  a table of person boxes of the validation part, video_id,timestamp,x1,y1,x2,y2,,score; those with a score of `least` count
    seconds     length of a clip; its `frames` are spread evenly over it
    offset      seconds that the files lack at the front (by default 900 in videos_15min, else 0)
    pool        "max" or "mean" of a box's samples
    val         share of the training films on which the learning rate and decay are chosen, by mean average precision; then the chosen head
                is trained on all of them

    The test part is used for nothing but the final count. Raises ValueError, DataError for what is missing.
    """
    subject = subject_of(run, encoder, out, device).shaped(frames, size, 1)
    parts = {split: found(root, split, offset) for split in ("train", "test")}
    actions = list(parts["train"].actions)
    how = {"frames": subject.frames, "size": subject.size, "seconds": seconds, "pool": pool, "workers": workers}
    how |= {"device": device, "cache": cache, "encoder_name": subject.name, "progress": progress}
    truth = {split: _annotated(copy) for split, copy in parts.items()}

    def seen(split: str, people: pd.DataFrame, bf16: bool, settled: bool = False) -> People:
        return extract(subject.encoder, parts[split], split, people, bf16=bf16, settled=settled, **how)

    train = seen("train", truth["train"][[*FRAME, *BOX]].drop_duplicates(), subject.bf16)
    y = targets(train, truth["train"], actions)
    mean, scale = scaling(train.features)
    x = (train.features - mean) * scale
    fit = {"epochs": epochs, "batch": batch, "seed": seed, "device": device_for(device), "progress": progress}
    selected, search = choose(x, y, train.table["film"], list(product(lrs, wds)), val, **fit)
    head = train_heads(x, y, [(selected["lr"], selected["wd"])], **fit)

    tested = {"roi": truth["test"][[*FRAME, *BOX]].drop_duplicates()}
    if detections is not None:
        tested["roi, detected boxes"] = _outside(persons(read_boxes(detections, scored=True), least), parts["test"])
    results = []
    for name, people in tested.items():
        guessed = seen("test", people, train.bf16, settled=True)
        probability = _sigmoid(head, (guessed.features - mean) * scale, fit["device"])[0]
        unread = set(people["film"]) - set(guessed.table["film"])  # a film in which nobody was detected counts: its persons were missed
        here = truth["test"][~truth["test"]["film"].isin(unread)]
        measured = frame_map(here, scored_boxes(guessed, probability, actions), parts["test"].actions, seed=seed)
        results.append(_result(measured, name, guessed, probability, actions, subject, selected, search, seed))
    if save and subject.folder:
        subject.introduce()
        for result in results:
            result.save(subject.folder)
    return results


def _annotated(copy: Copy) -> pd.DataFrame:
    """Every annotated box of the films that are here, outside of excluded key frames; also those of actions that are not evaluated."""
    table = read_boxes(copy.table)
    return _outside(table[table["film"].isin(list(copy.films))], copy)


def _outside(table: pd.DataFrame, copy: Copy) -> pd.DataFrame:
    excluded = {(film, int(time)) for film, time in copy.excluded}
    keep = [key not in excluded for key in zip(table["film"], table["time"], strict=True)]
    return table[keep].reset_index(drop=True)


def _result(
    measured: FrameMap, name: str, people: People, probability: Tensor, actions: list[int], subject: Subject, selected: dict,
    search: list[dict], seed: int,
) -> ProbeResult:  # fmt: skip
    about = {"benchmark": "AVA", "probe": name, "metric": "mAP", "n": len(people)}
    row = about | {"value": measured.value, "lo": measured.lo, "hi": measured.hi, "encoder": subject.name, "probe_seed": seed}
    # Boxes scored at random have, for each action, about its share of the boxes as average precision.
    chance = measured.per_action.query("n > 0")["n"].mean() / max(len(people), 1)
    control = about | {"source": "constant", "variant": "chance", "probe": "constant", "value": 100 * min(chance, 1.0)}
    scores = pd.DataFrame(probability.float().numpy(), columns=[str(action) for action in actions])
    table = pd.concat([people.table[[*FRAME, *BOX]], scores], axis=1).assign(benchmark="AVA", probe=name, encoder=subject.name)
    return ProbeResult([row], measured.per_action, table, selected, pd.DataFrame(search), [control])


# -------------------------------------------------------------------------------------------------------------------------- training


def choose(
    x: Tensor, y: Tensor, films: pd.Series, candidates: list[tuple[float, float]], val: float, seed: int, **fit
) -> tuple[dict, list[dict]]:
    """The (lr, wd) with the best mean average precision on a share `val` of the films, trained on the others; and all scores."""
    names = np.random.default_rng(seed).permutation(sorted(set(films)))
    held = torch.tensor(films.isin(names[: round(val * len(names))]).tolist())
    if len(candidates) == 1:
        return dict(zip(("lr", "wd"), candidates[0], strict=True)), []
    if not held.any() or held.all():
        raise ValueError(
            f"{len(names)} training films leave none to choose among {len(candidates)} candidates on (val={val}); pass one lr and wd"
        )
    head = train_heads(x[~held], y[~held], candidates, seed=seed, **fit)
    probability, true = _sigmoid(head, x[held], fit["device"]), y[held].bool().numpy()
    scores = [mean_average_precision(each.numpy(), true) for each in probability]
    search = [{"lr": lr, "wd": wd, "val_mAP": score} for (lr, wd), score in zip(candidates, scores, strict=True)]
    return max(search, key=lambda row: row["val_mAP"]) | {"val_n": int(held.sum())}, search


def mean_average_precision(probability: np.ndarray, true: np.ndarray) -> float:
    """Mean over the actions that occur of the average precision of boxes ranked by probability, [m k] both; in percent, 0 if not finite."""
    if not np.isfinite(probability).all():
        return 0.0
    order = np.argsort(-probability, axis=0, kind="stable")
    hits = np.take_along_axis(true, order, 0).T
    return 100 * float(np.mean([average_precision(hit, hit.sum()) for hit in hits if hit.any()] or [0.0]))


def train_heads(
    x: Tensor, y: Tensor, candidates: list[tuple[float, float]], *, epochs: int, batch: int, seed: int, device: torch.device,
    progress: bool = True,
) -> nn.Module:  # fmt: skip
    """One linear head per (lr, wd) on features [m d] against 0/1 targets [m k], by AdamW with a cosine on binary cross-entropy."""
    generator = torch.Generator().manual_seed(seed)
    head = stack(LinearHead(1, x.shape[1], y.shape[1], generator), len(candidates)).to(device)
    with torch.no_grad():  # begin at each action's share: most are rare
        head.head.bias += torch.logit(y.mean(0).clamp(1e-4, 1 - 1e-4)).to(device)
    optimiser, steps = StackedAdamW(head, candidates), math.ceil(len(x) / batch)
    for epoch in tqdm(range(epochs), desc="AVA probe", unit="epoch", disable=not progress, leave=False):
        for i, rows in enumerate(torch.randperm(len(x), generator=generator).split(batch)):
            logits, target = head(x[rows].to(device)), y[rows].to(device)
            F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="sum").div(len(rows)).backward()
            optimiser.step(0.5 * (1 + math.cos(math.pi * (epoch + i / steps) / epochs)))
    return head


@torch.no_grad()
def _sigmoid(head: nn.Module, x: Tensor, device: torch.device) -> Tensor:
    """Probabilities [g m k], on the CPU."""
    return torch.cat([head(part.to(device)).sigmoid().cpu() for part in x.split(4096)], 1)
