"""What every data set is made of: samples, batches, sources.

Axes: b batch, c colour (RGB), f y x frames/rows/columns of pixels.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .crops import Crop
from .faults import ClipError, DataError, Fault, Faults, listed

if TYPE_CHECKING:
    from .listing import Clip

NO_LABEL = -1
"""A sample's label when its source does not know that factor (an image has no motion)."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's channel mean and standard deviation for pixels in [0, 1]."""


def known(what: str, value, allowed):
    """`value`, if it is one of `allowed`; else DataError, naming them."""
    if value not in allowed:
        raise DataError(f"unknown {what} {value!r}; one of {', '.join(map(str, allowed))}")
    return value


def check_options(function, options: dict, what: str, also=()) -> None:
    """Raise DataError if `function` takes no argument of some option's name; says which it does take, nearest first."""
    known = [*inspect.signature(function).parameters, *also]
    for name in options:
        if name not in known:
            near = get_close_matches(name, known)
            takes = ", ".join(k for k in known if k not in ("self", "split", "root", "listing"))
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {takes}"
            raise DataError(f"{what} has no option {name!r}; {hint}")


@dataclass(frozen=True)
class Sample:
    """One clip `[c f y x]` uint8, its labels by name, its index in the source, and whether it is an image (perhaps repeated).

    `crop`: what is still to be cut out of the clip, and the size in pixels; None where that was done.
    """

    clip: Tensor
    labels: dict[str, int | Tensor]
    index: int
    still: bool = False
    crop: tuple[Crop, int] | None = None

    @property
    def distinct(self) -> Tensor:
        """The clip, or of an image whose frames are one in memory that one, `[c 1 y x]`: `expand_as(clip)` repeats it again."""
        return self.clip[:, :1] if self.clip.stride(1) == 0 else self.clip

    def cut(self, device=None) -> Sample:
        """The sample with its crop cut out, on a `device`."""
        clip = self.distinct if device is None else self.distinct.to(device, non_blocking=True)
        if self.crop is None:
            return replace(self, clip=clip.expand_as(self.clip))
        crop, size = self.crop
        made = crop.cut(clip.movedim(0, 1), size).movedim(0, 1)
        return replace(self, clip=made.expand(-1, self.clip.shape[1], -1, -1).contiguous(), crop=None)

    def pin_memory(self) -> Sample:
        """The sample in memory that a GPU reads by itself: frames that are one in memory stay one, as torch cannot copy onto such."""
        return replace(self, clip=self.distinct.pin_memory().expand_as(self.clip))

    def _about(self) -> str:
        """Its index and labels in one line; of several, such as a multi-hot one, the shape."""
        said = {name: list(v.shape) if isinstance(v, Tensor) and v.ndim else int(v) for name, v in self.labels.items()}
        return ", ".join([f"clip {self.index}", *(f"{name} {value}" for name, value in said.items())])

    def __repr__(self) -> str:
        return f"Sample({self._about()}, {str(self.clip.dtype).removeprefix('torch.')} {list(self.clip.shape)})"

    def _repr_html_(self) -> str:
        """The clip, playing, over its index and labels."""
        from vjepa_lab.plots import Player

        clip = self.cut().clip
        return Player(clip, zoom=max(1, round(192 / clip.shape[-1])), caption=self._about())._repr_html_()


@dataclass(frozen=True)
class Batch:
    """Clips `[b c f y x]` uint8, labels by name `[b]` (-1: none; multi-label: `[b classes]`), indices in the source `[b]`, and the
    clips that could not be read. `still` `[b]`: which clips are images, repeated to fill the frames."""

    clip: Tensor
    labels: dict[str, Tensor]
    index: Tensor
    faults: tuple[Fault, ...] = ()
    still: Tensor | None = None

    def __len__(self) -> int:
        return len(self.clip)

    @property
    def parts(self) -> tuple[Batch, ...]:
        """The batch as batches of one clip shape each: itself."""
        return (self,)

    def _each(self, move) -> Batch:
        labels = {name: move(values) for name, values in self.labels.items()}
        still = None if self.still is None else move(self.still)
        return replace(self, clip=move(self.clip), labels=labels, still=still)

    def to(self, device, non_blocking: bool = True) -> Batch:
        """Clips and labels on another device; the indices stay."""
        return self._each(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._each(Tensor.pin_memory)


@dataclass(frozen=True)
class Mixed:
    """A batch whose clips differ in shape (videos, and images of one frame): batches of one shape each, together the samples drawn."""

    parts: tuple[Batch, ...]
    faults: tuple[Fault, ...] = ()

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def to(self, device, non_blocking: bool = True) -> Mixed:
        return replace(self, parts=tuple(part.to(device, non_blocking) for part in self.parts))

    def pin_memory(self) -> Mixed:
        return replace(self, parts=tuple(part.pin_memory() for part in self.parts))


@dataclass(frozen=True)
class Uncut:
    """A batch of whole pictures whose crops are cut out on the device that it is moved to (`augment="device"`)."""

    samples: tuple[Sample, ...]
    names: tuple[str, ...]
    faults: tuple[Fault, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device, non_blocking: bool = True) -> Batch | Mixed:
        made = stack([sample.cut(device) for sample in self.samples], self.names, self.faults)
        return made.to(device, non_blocking)

    def pin_memory(self) -> Uncut:
        return replace(self, samples=tuple(sample.pin_memory() for sample in self.samples))


def stack(samples: list[Sample], names, faults=()) -> Batch | Mixed | Uncut:
    """Samples -> one Batch with the labels `names`, Mixed where their shapes differ, Uncut where their crops are still to be cut."""
    if any(sample.crop for sample in samples):
        return Uncut(tuple(samples), tuple(names), tuple(faults))
    shapes = list(dict.fromkeys(sample.clip.shape for sample in samples))
    if len(shapes) > 1:
        parts = (stack([sample for sample in samples if sample.clip.shape == shape], names) for shape in shapes)
        return Mixed(tuple(parts), tuple(faults))
    return Batch(
        torch.stack([sample.clip for sample in samples]),
        {name: _column(samples, name) for name in names},
        torch.tensor([sample.index for sample in samples]),
        tuple(faults),
        torch.tensor([sample.still for sample in samples]),
    )


def _column(samples: list[Sample], name: str) -> Tensor:
    """One label of all samples, -1 where a sample lacks it."""
    known = [torch.as_tensor(sample.labels[name]) for sample in samples if name in sample.labels]
    blank = torch.full_like(known[0], NO_LABEL) if known else torch.tensor(NO_LABEL)
    return torch.stack([torch.as_tensor(sample.labels.get(name, blank)) for sample in samples])


@lru_cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `[c 1 1 1]`, brought to a device once: a copy in every step would make the host wait for it."""
    return tuple(torch.tensor(values, device=device).view(3, 1, 1, 1) for values in (MEAN, STD))


def normalize(clip: Tensor) -> Tensor:
    """uint8 `[... c f y x]` -> float32 with ImageNet's mean and standard deviation, what every model here takes."""
    mean, std = _statistics(clip.device)
    return torch.addcmul(-mean / std, clip.float(), 1 / (255 * std))


def denormalize(clip: Tensor) -> Tensor:
    """The inverse of `normalize`: float -> uint8 pixels, clamped."""
    mean, std = _statistics(clip.device)
    return ((clip.float() * std + mean) * 255).round_().clamp_(0, 255).to(torch.uint8)


class Source(Dataset):
    """Clips by index: a map-style data set, deterministic per (seed, index, epoch).

    `source[index]` or `source[(index, epoch)]` -> `Sample`. `classes` maps each label's name to its class names;
    `fixed` says that the epoch makes no difference, so clips can be kept; `spec` is what `open` was given, and `options` what else, so that
    a run can be probed and resumed from its folder (None: no name opens it). Subclasses write `read` and `__len__`.
    `ids`: the numbers of clips that are drawn by number, and so are in no order.  `limit`: the most that a part was to have (`limited`).
    `augment`: whether clips are cropped and flipped at random, as for training.
    """

    name: str = ""
    spec: str = ""
    options: dict | None = None
    split: str = "train"
    classes: dict[str, list[str]]
    fixed: bool = False
    augment: bool | str = False
    bad: float = 0.05
    ids: Sequence[int] | None = None
    limit: int | None = None
    watch = None  # in a worker process: shared memory that holds the number of the clip being read

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def files(self) -> int:
        """Files that clips come from, of which some may be unreadable."""
        return len(self)

    @property
    def made_of(self) -> Sequence[Source]:
        """The sources whose clips it gives, edited or mixed; none of one that reads its own."""
        return ()

    @property
    def file_clips(self) -> list[Clip]:
        """The clips of files that it is made of, before edits; none of a world that is drawn."""
        return [clip for source in self.made_of for clip in source.file_clips]

    @property
    def recordings(self) -> list[str] | None:
        """Of each file, the recording that it was cut from; None where the set does not know. Clips of one recording are alike."""
        return self.made_of[0].recordings if len(self.made_of) == 1 else None

    def read(self, index: int, epoch: int = 0) -> Sample:
        """The sample at `index`; raises ClipError if it cannot be read."""
        raise NotImplementedError

    @property
    def labels(self) -> dict[str, Tensor]:
        """Every label of every clip, `[n]` each, without reading a clip."""
        raise NotImplementedError

    def subset(self, places: Sequence[int]) -> Source:
        """The same source with only the files, or clips of no file, at these places."""
        if self.ids is None:
            raise NotImplementedError
        part = copy(self)
        part.ids, part.options = [self.ids[place] for place in places], None
        for name in ("labels", "avoid", "_faults"):  # those of other indices
            part.__dict__.pop(name, None)
        return part

    def few(self, most: int) -> list[int]:
        """The places of at most `most` clips that stand for all: spread evenly, as listings are sorted by class; of `ids` the first."""
        most = min(most, self.files)
        return [i * self.files // most if self.ids is None else i for i in range(most)]

    def limited(self, limit: int) -> Source:
        """A part of at most `limit` files, or clips of no file (`few`); the source itself where it has no more.

        Raises DataError where there are more, but a part of them cannot be had, as of a mixture.
        """
        if self.files <= limit:
            return self
        try:
            part = self.subset(self.few(limit))
        except NotImplementedError:
            raise DataError(
                f"limit={limit}: {self.name} ({type(self).__name__}) gives all of its clips or none; name or limit what it is made of, or "
                "leave limit out"
            ) from None
        part.limit = limit
        return part

    def where(self, index: int) -> str:
        """What a report calls clip `index`: its path, if it has one."""
        return f"{self.name}[{index}]"

    def clip_shape(self, index: int = 0) -> tuple[int, int, int]:
        """Frames, rows and columns of clip `index` as training gets it, its crop cut out. Raises DataError if it and its stand-ins cannot
        be read."""
        return tuple(self.read_or_replace(index, 0)[0].cut().clip.shape[1:])

    def training_keys(self, batch: int, seed: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[list[tuple[int, int]]]:
        """The endless batches of (index, epoch) that training reads, from batch `start` on."""
        from .loader import training_keys

        return training_keys(len(self), batch, seed, start, rank, world)

    def attempt(self, index: int, epoch: int) -> Sample:
        """`read`, except for clips that are known to kill the decoder; notes which clip is being read."""
        if index in self.avoid:
            raise ClipError(self.avoid[index].path, self.avoid[index].why)
        if self.watch is not None:
            self.watch.value = index
        return self.read(index, epoch)

    def spares(self, index: int, most: int) -> list[int]:
        """Which clips stand in for an unreadable one: always the same for the same index."""
        return random.Random(index).sample(range(len(self)), min(most, len(self)))

    def read_or_replace(self, index: int, epoch: int, attempts: int = 16) -> tuple[Sample, list[Fault]]:
        """Read a clip, or the first readable of its stand-ins; always the same one for the same index."""
        faults, places = [], [index]
        while places:
            try:
                return self.attempt(places.pop(), epoch), faults
            except ClipError as error:
                if not faults:
                    places = self.spares(index, attempts)
                faults.append(error.fault)
        raise DataError(f"{len(faults)} clips in a row cannot be read, too many to go on:\n" + listed(faults))

    def __getitem__(self, key) -> Sample:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        if not -len(self) <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        return self.read_or_replace(index % len(self), epoch)[0]

    def batch(self, keys, replace: bool = True) -> Batch | Mixed | Uncut:
        """Clips of the (index, epoch) pairs `keys`; an unreadable one is replaced, or left out (`replace=False`)."""
        samples, faults = [], []
        for index, epoch in keys:
            if replace:
                sample, bad = self.read_or_replace(index, epoch)
                samples.append(sample)
                faults += bad
                continue
            try:
                samples.append(self.attempt(index, epoch))
            except ClipError as error:
                faults.append(error.fault)
        if not samples:
            return Batch(torch.empty(0), {}, torch.empty(0, dtype=torch.long), tuple(faults))
        return stack(samples, self.classes, faults)

    @cached_property
    def avoid(self) -> dict[int, Fault]:
        """Clips that killed or stalled a decoder, by index."""
        return {}

    @property
    def faults(self) -> Faults:
        """What could not be read so far, as the loaders of this process have seen it."""
        if "_faults" not in self.__dict__:
            self._faults = Faults(self.files, self.bad)
        return self._faults

    def report(self) -> dict:
        """For the end of a run: how many files there are, how many could not be read, and which."""
        bad = dict(self.faults.seen)
        return {"source": self.name, "split": self.split, "clips": len(self), "unreadable": len(bad), "files": bad}

    def __repr__(self) -> str:
        names = ", ".join(f"{name} ({len(values)})" for name, values in self.classes.items()) or "none"
        return f"{self.name} [{self.split}]: {len(self)} clips, labels {names}"


class Derived(Source):
    """A source made from another clip for clip: size, labels, places and the order of training are the other's."""

    def __init__(self, source: Source):
        self.source, self.name, self.split, self.classes = source, source.name, source.split, source.classes
        self.fixed, self.augment, self.bad, self.limit = source.fixed, source.augment, source.bad, source.limit

    def __len__(self) -> int:
        return len(self.source)

    @property
    def files(self) -> int:
        return self.source.files

    @property
    def made_of(self) -> tuple[Source, ...]:
        return (self.source,)

    @property
    def labels(self) -> dict[str, Tensor]:
        return self.source.labels

    def few(self, most: int) -> list[int]:
        return self.source.few(most)

    def where(self, index: int) -> str:
        return self.source.where(index)

    def training_keys(self, batch: int, seed: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[list[tuple[int, int]]]:
        return self.source.training_keys(batch, seed, start, rank, world)  # a mixture's weights are in these

    def spares(self, index: int, most: int) -> list[int]:
        return self.source.spares(index, most)
