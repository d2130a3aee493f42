"""Real pixels with dynamics that are known, because we make them: appearance and dynamics labels are independent by construction.

`TimeEdit` plays real videos forwards, backwards, frozen, shuffled or twice as fast; `KenBurns` moves a camera over real images. Both draw
the edit of a clip from (seed, split, index), whatever the clip shows.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import cached_property
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as N

from .core import DataError, Derived, Sample, Source
from .scenes import MOTIONS, SPEEDS

EDITS = ("forward", "reversed", "frozen", "shuffled", "double")
SPLITS = ("train", "val", "test", "all")


class _Edited(Derived):
    """A source whose clips are edited; labels: what the clip shows (`what`), if that is known, and what was done to it (also "class")."""

    def __init__(self, source: Source, name: str, what: str, edit: str, edits: tuple[str, ...], seed: int):
        super().__init__(source)
        self.seed, self.name, self._what, self._edit, self._edits = seed, f"{name}:{source.name}", what, edit, edits
        self.classes = {"class": list(edits), edit: list(edits)} | self._shown(source.classes)

    def subset(self, indices) -> _Edited:
        """Edits of some of the clips, drawn by their places among these."""
        part = copy(self)
        part.source, part.options = self.source.subset(indices), None
        for name in ("labels", "avoid", "_faults"):  # those of other indices
            part.__dict__.pop(name, None)
        return part

    def _rng(self, index: int) -> np.random.Generator:
        split = SPLITS.index(self.split) if self.split in SPLITS else crc32(self.split.encode())  # a manifest names its own
        return np.random.default_rng((self.seed, split, index, 0xED17))

    def read(self, index: int, epoch: int = 0) -> Sample:
        sample, rng = self.source.read(index, epoch).cut(), self._rng(index)
        edit = int(rng.integers(len(self._edits)))
        labels = {"class": edit, self._edit: edit} | self._shown(sample.labels)
        return Sample(self.apply(sample.clip, self._edits[edit], rng), labels, sample.index)

    def apply(self, clip: Tensor, edit: str, rng: np.random.Generator) -> Tensor:
        raise NotImplementedError

    @cached_property
    def labels(self) -> dict[str, Tensor]:
        edits = torch.tensor([int(self._rng(index).integers(len(self._edits))) for index in range(len(self))])
        return {"class": edits, self._edit: edits} | self._shown(self.source.labels)

    def _shown(self, labels: dict) -> dict:
        """What is said of the clip before the edit, under its name here; nothing of clips without a label."""
        return {self._what: labels["class"]} if "class" in labels else {}


class TimeEdit(_Edited):
    """Videos (a source of clips of an even number of frames, 2f) -> clips of f >= 3 frames, edited in time; labels `edit`, `action`."""

    def __init__(self, source: Source, seed: int = 0):
        super().__init__(source, "time", "action", "edit", EDITS, seed)

    def apply(self, clip: Tensor, edit: str, rng: np.random.Generator) -> Tensor:
        frames = clip.shape[1] // 2
        if frames < 3:  # two have no order but forwards and backwards
            raise DataError(
                f"time edits need 3 frames or more after the edit, 6 before it; {self.source.name} gives clips of {clip.shape[1]} frames: "
                "ask for frames=3 at least"
            )
        first = frames // 2  # the middle of the clip, so that only "double" sees its ends
        numbers = {
            "forward": first + np.arange(frames),
            "reversed": first + np.arange(frames)[::-1],
            "frozen": np.full(frames, first + rng.integers(frames)),
            "shuffled": first + _disorder(frames, rng),
            "double": np.arange(0, 2 * frames, 2),
        }[edit]
        return clip[:, torch.from_numpy(numbers.copy())]


def _disorder(n: int, rng: np.random.Generator) -> np.ndarray:
    """A permutation of three numbers or more that is neither the order nor its reverse."""
    while True:
        order = rng.permutation(n)
        if len(set(np.diff(order))) > 1:
            return order


class KenBurns(_Edited):
    """Images (a source of one-frame clips) -> clips of `frames` frames at `size`, a camera doing one of the eight motions over each.

    The image is mirrored without end, the camera's place, angle and log-zoom start uniformly on it and only the motion's axis moves, so one
    frame does not tell the motion. Named as the picture is seen to move. Labels `motion` and `object`.
    """

    def __init__(self, source: Source, frames: int = 8, size: int = 64, seed: int = 0):
        super().__init__(source, "kenburns", "object", "motion", tuple(MOTIONS), seed)
        self.frames, self.size = frames, size

    def apply(self, clip: Tensor, edit: str, rng: np.random.Generator) -> Tensor:
        axis, direction = MOTIONS[edit]
        phase, (low, high) = rng.random(4), list(SPEEDS.values())[rng.integers(len(SPEEDS))]
        path = np.tile(phase, (self.frames, 1))
        # Minus: as the camera moves, the picture is seen to move the other way.
        path[:, axis] -= direction * rng.uniform(low, high) * np.arange(self.frames) / self.frames
        x, y, angle, zoom = torch.from_numpy(path % 1).float().T
        half = 0.35 * 2**zoom  # of the view; the image spans -1 to 1 and its mirror images 4
        cos, sin = half * torch.cos(2 * torch.pi * angle), half * torch.sin(2 * torch.pi * angle)
        pose = torch.stack([cos, -sin, 4 * x, sin, cos, 4 * y], dim=-1).view(-1, 2, 3)
        grid = N.affine_grid(pose, [self.frames, 3, self.size, self.size], align_corners=False)
        image = clip[:, 0].float().expand(self.frames, -1, -1, -1)
        seen = N.grid_sample(image, grid, padding_mode="reflection", align_corners=False)  # [f c y x]
        return seen.round().clamp(0, 255).to(torch.uint8).movedim(1, 0).contiguous()


class Frozen(Derived):
    """The clips of a source stopped at one frame: all that appearance gives, and nothing moves.

    at: where in the clip the frame lies, from 0 (the first) to 1 (the last). The labels stay what they were.
    """

    def __init__(self, source: Source, at: float = 0.5):
        if not 0 <= at <= 1:
            raise DataError(f"a clip is stopped between its first frame (at=0) and its last (at=1); got at={at}")
        super().__init__(source)
        self.at, self.name = at, f"frozen:{source.name}"

    def read(self, index: int, epoch: int = 0) -> Sample:
        sample = self.source.read(index, epoch)
        frames = sample.clip.shape[1]
        frame = sample.clip[:, round(self.at * (frames - 1))]
        return replace(sample, clip=frame[:, None].expand(-1, frames, -1, -1).contiguous())

    def __repr__(self) -> str:
        return f"{super().__repr__()}, stopped at {self.at}"
