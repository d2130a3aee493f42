"""What a frozen encoder makes of every clip of a source, once, cached.

Axes: n clips, t h w token grid, d channels.
"""

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from vjepa_lab import data
from vjepa_lab.evaluation.layers import Layers
from vjepa_lab.evaluation.room import must_fit
from vjepa_lab.files import replacing
from vjepa_lab.model import Encoder
from vjepa_lab.training import provenance
from vjepa_lab.training.allocator import keep_freed_memory
from vjepa_lab.training.processes import device_of

Grid = tuple[int, int, int]

PASSING = ("Input/output", "Stale file", "timed out", "onnection", "took longer", "memory ran out")
"Words of faults that are a disk's, a network's or a machine's rather than the file's own."

COARSE = 0.05
"""Features whose deviation over clips is a smaller share of their magnitude are not read in bf16: under autocast the encoder's last norm is
rounded to 8 bits, by 0.001 to 0.0016 at values near 1. Encoders trained on the factor world, deviation (rounding): baseline .158 (.0015),
RankMe 12.2, read in bf16 12.7; fwm .0153 (.0011); baseline-no-ema .0135 (.0016); kin-l1 .00047 (.00097), RankMe 45.5, in bf16 89: noise."""

FINE = 0.002
"""Tokens whose deviation over clips is a smaller share of their magnitude lose by float16, which rounds them by 0.0002 of it: a stepwise
probe that reads 45 % from float32 reads 44 at a share of .001, 40 at .0005, 29 at .0001, where all tokens of a clip are alike."""


@dataclass(frozen=True, eq=False, repr=False)
class Features:
    """What a frozen encoder makes of every clip of a source.

    pooled: mean over tokens, float32 [n d].  tokens: float16 or float32 [n t*h*w d], or None.  grid: tokens (t, h, w).
    labels: by name, long [n], -1 where a clip has none.  classes: class names by label name.  index: each clip's place in the source [n].
    name, split, encoder: where they come from.  clips: segments and views of each file; the clips of one file share its index.
    blocks: of the encoder, whose tokens stand one after the other (`layers.Layers`); none: its output.
    bf16: whether the encoder ran under autocast.  limit: the most clips of the split that were to be read, where these are not all.
    read: how the clips were read where that is not as usual, such as ", 4 frames".
    recordings: of each place in the source, the number of the recording that its file was cut from; None where the set does not know.
    """

    pooled: Tensor
    labels: dict[str, Tensor]
    classes: dict[str, list[str]]
    index: Tensor
    tokens: Tensor | None = None
    grid: Grid | None = None
    name: str = ""
    split: str = ""
    encoder: str = ""
    clips: tuple[int, int] = (1, 1)
    blocks: tuple[int, ...] = ()
    bf16: bool = False
    limit: int | None = None
    read: str = ""
    recordings: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pooled)

    @property
    def origin(self) -> Tensor:
        """What each clip was cut from, by number [n]: its recording, or its file. Clips of one origin are alike."""
        return self.index if self.recordings is None else self.recordings[self.index]

    def named(self, probe: str) -> str:
        """What the rows call a probe of these clips, `named`."""
        return named(probe, self.clips, self.blocks) + self.read

    def benchmark(self, label: str = "class") -> str:
        """What the rows call a label of these clips: "ucf101", "synthetic/motion"; of a split of another name than "train" (what a list is
        opened as) or "test", or of a part of the clips, another measurement: "synthetic/motion, val", "ucf101, 600 clips"."""
        split = f", {self.split}" * (self.split not in ("", "train", "test"))
        return f"{self.name}{'' if label == 'class' else f'/{label}'}{split}{f', {self.limit} clips' if self.limit else ''}"

    def __repr__(self) -> str:
        tokens = "" if self.tokens is None else f", tokens {self.grid}"
        return f"Features({self.name} [{self.split}], {len(self)} clips, {self.pooled.shape[1]} channels{tokens}, encoder {self.encoder!r})"

    def subset(self, rows: Tensor) -> "Features":
        """The clips `rows` (indices or a bool mask)."""
        labels = {name: values[rows] for name, values in self.labels.items()}
        tokens = None if self.tokens is None else self.tokens[rows]
        return replace(self, pooled=self.pooled[rows], labels=labels, index=self.index[rows], tokens=tokens)

    def by_step(self) -> "Features":
        """The same clips, their mean over space at each time step side by side instead of their mean over all tokens: pooled [n t*d].

        Raises ValueError when only the mean was kept."""
        if self.tokens is None:
            raise ValueError(f"{self!r} holds the mean over all tokens only; extract(..., tokens=True)")
        some = self.tokens.split(256)  # not all tokens at once as float32
        steps = torch.cat([part.unflatten(1, (self.grid[0], -1)).float().mean(2) for part in some])  # [n t d]
        return replace(self, pooled=steps.flatten(1), tokens=None, grid=None)

    def labelled(self, label: str) -> "Features":
        """The clips that have this label. Raises ValueError when there is no such label, no clip with it, or several at once."""
        if label not in self.labels:
            raise ValueError(f"{self.name or 'these features'} have no label {label!r}; they have {', '.join(self.labels)}")
        if self.labels[label].ndim > 1:
            raise ValueError(f"{label!r} of {self.name} is several classes at once; a probe reads one class per clip")
        known = self.labels[label] >= 0
        if not known.any():
            raise ValueError(f"no clip of {self.name} [{self.split}] has the label {label!r}")
        return self if known.all() else self.subset(known)


def named(probe: str, clips: tuple[int, int], blocks: tuple[int, ...] = ()) -> str:
    """What the rows call a probe on several segments and views of each file or several blocks, such as "attentive 4x3, blocks 2 5 8 11":
    another measurement than on one."""
    read = f", blocks {' '.join(map(str, blocks))}" if blocks else ""
    return probe + (f" {clips[0]}x{clips[1]}" if clips != (1, 1) else "") + read


def extract(
    encoder: nn.Module,
    source: data.Source,
    *,
    tokens: bool | torch.dtype = False,
    batch: int = 64,
    bf16: bool = False,
    settled: bool = False,
    workers: int = 0,
    device: torch.device | str | None = None,
    cache: str | Path | None = None,
    encoder_name: str = "",
    also: int = 0,
    progress: bool = True,
) -> Features:
    """Features of every readable clip of `source`, in order, by one pass of the frozen `encoder`.

    encoder: any module clip [b c f y x] (normalised floats) -> tokens [b n d], with `.grid(clip) -> (t, h, w)`; in eval mode meanwhile.
    tokens: keep all tokens (the attentive probe needs them), not only their mean; in float16, with a warning where they differ too little
      for it (`FINE`), or as torch.float32.
    bf16: run the encoder under autocast; features that differ too little for it (`COARSE`) are read once more in fp32, with a warning.
    settled: they are not, whatever their spread: a test split is to be read as the training split was (`Features.bf16`).
    cache: a folder; features of the same weights and clips, of files as they are, are read from there the next time; where a disk or a
      network failed to give some, nothing is kept.
    encoder_name: "student", "teacher", "random-init" ..., written into every row.
    also: clips whose features are to be held in memory beside these, such as those of further segments.

    Clips that cannot be read are left out, with a warning. Raises ValueError where no clip can be read, and after the first batch where the
    features will not fit in memory; DataError where too many clips cannot be read, ValueError for a device that is not there.
    """
    device = device_for(device)
    if cache is not None:
        key = fingerprint(encoder, source, tokens, bf16, bf16 and settled)
        path = Path(cache) / f"{source.name.replace('/', '-')}-{source.split}-{key}.pt"
        if path.is_file():
            return replace(Features(**torch.load(path)), encoder=encoder_name)
    tokens = torch.float16 if tokens is True else tokens
    how = {"tokens": tokens, "batch": batch, "workers": workers, "device": device, "encoder_name": encoder_name, "progress": progress}
    features = _extract(encoder, source, bf16=bf16, also=also, **how)
    if bf16 and not settled and coarse(features.pooled, encoder_name, source):
        del features  # the memory is needed
        features = _extract(encoder, source, also=also, **how)
    if tokens == torch.float16 and not settled:
        _warn_of_rounding(features)
    if cache is not None and not passing(source):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            torch.save(vars(features), part)
    return features


def passing(source: data.Source) -> bool:
    """Whether clips are missing for a reason that may pass, though their files, which a cache's key holds, stay as they are."""
    return any(word in why for why in source.faults.seen.values() for word in PASSING)


def _extract(encoder, source, *, tokens, batch, workers, device, encoder_name, progress, also=0, bf16=False) -> Features:
    """`extract` without its cache, in one precision."""
    pooled = kept = grid = None
    labels, index, done = [], [], 0

    def read(clip: Tensor) -> tuple[Tensor, Grid]:
        return encoder(clip).float(), tuple(encoder.grid(clip))

    how = {"batch": batch, "bf16": bf16, "workers": workers, "device": device, "progress": progress}
    with closing(passes(encoder, source, "features", read, **how)) as made:
        for part, (z, shape) in made:
            if pooled is None:
                grid = shape
                must_fit(f"{source.name} [{source.split}]", len(source) + also, *z.shape[1:], tokens or None)
                pooled = torch.empty(len(source), z.shape[-1])
                kept = torch.empty(len(source), *z.shape[1:], dtype=tokens) if tokens else None
            rows = slice(done, done := done + len(z))
            pooled[rows] = z.mean(1)
            if tokens:
                kept[rows] = z
            labels.append(part.labels)
            index.append(part.index)
    return Features(
        pooled=pooled[:done],
        labels={name: torch.cat([part[name] for part in labels]) for name in source.classes},
        classes=dict(source.classes),
        index=torch.cat(index),
        tokens=kept[:done] if tokens else None,
        grid=grid,
        name=source.name,
        split=source.split,
        encoder=encoder_name,
        bf16=bf16,
        recordings=None if source.recordings is None else torch.from_numpy(np.unique(source.recordings, return_inverse=True)[1]),
    )


def passes(
    encoder: nn.Module, source: data.Source, what: str, read: Callable[[Tensor], object], *, batch: int, bf16: bool = False,
    workers: int = 0, device: torch.device, progress: bool = True,
) -> Iterator[tuple[data.Batch, object]]:  # fmt: skip
    """Every batch of a source's readable clips, in order, with what `read` makes of its clips [b c f y x], normalised, on `device`.

    The encoder is there and in eval mode until the last one is drawn or the iterator is closed; `read` runs without gradients, with `bf16`
    under autocast. `what`: is read, for the bar. Warns of clips that could not be read and are left out.
    Raises ValueError where no clip can be read.
    """
    training, done = encoder.training, 0
    encoder.eval().to(device)
    if device.type == "cpu":
        keep_freed_memory()
    try:
        with clip_bar(source, what, progress) as bar:
            for part in data.loader(source, batch, train=False, workers=workers, pin=device.type == "cuda"):
                clip = data.normalize(part.clip.to(device, non_blocking=True))
                with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    made = read(clip)
                yield part, made
                done += len(part)
                bar.update(len(part))
    finally:
        encoder.train(training)
    if not done:
        raise ValueError(f"no clip of {source.name} [{source.split}] could be read")
    if done < len(source):
        _warn_of_missing(source, len(source) - done, what)


def _warn_of_missing(source: data.Source, count: int, what: str) -> None:
    """Warn of clips that could not be read: what is measured is measured on the others."""
    name, why = next(iter(source.faults.seen.items()), ("unknown", "unknown"))
    warnings.warn(
        f"{count} of {len(source)} clips of {source.name} [{source.split}] cannot be read and are left out of the {what}, the first of "
        f"them {name} ({why}); mend or replace the files, or take them off the list",
        stacklevel=3,
    )


def deviation(pooled: Tensor) -> float:
    """The channels' mean deviation over clips of features [n d], as a share of their mean magnitude; nan of a single clip."""
    return float(pooled.std(0).mean() / pooled.abs().mean()) if len(pooled) > 1 else float("nan")


def coarse(pooled: Tensor, encoder_name: str, source: data.Source) -> bool:
    """Whether bf16's rounding would hide what tells clips apart in features [n d], read with it; warns where it would."""
    if not (share := deviation(pooled)) < COARSE:
        return False
    warnings.warn(
        f"{encoder_name or 'the encoder'}: its features differ over the clips of {source.name} [{source.split}] by {share:.2g} of their "
        f"magnitude, less than {COARSE}; bf16, which rounds them by about 0.001 of it, would be read as noise, so they are read in fp32",
        stacklevel=3,
    )
    return True


def _warn_of_rounding(features: Features) -> None:
    """Warn where float16 hides much of what tells the clips apart in their tokens; 64 clips tell."""
    some = features.tokens[:: math.ceil(len(features) / 64)].float()
    if (share := deviation(some)) < FINE:
        warnings.warn(
            f"{features.encoder or 'the encoder'}: its tokens differ over the clips of {features.name} [{features.split}] by {share:.2g} "
            f"of their magnitude, less than {FINE}; float16 rounds much of that away: keep them exact (probe(exact=True), or "
            "extract(tokens=torch.float32), which takes twice the memory)",
            stacklevel=3,
        )


def clip_bar(source: data.Source, what: str, progress: bool) -> tqdm:
    return tqdm(total=len(source), desc=f"{source.name} [{source.split}] {what}", unit="clip", disable=not progress, leave=False)


def fingerprint(encoder: nn.Module, source: data.Source, *options) -> str:
    """A hash of what decides the features: the weights and how they are used, every clip's place, labels and recording, how clips are cut
    from files, these files' sizes and dates, the first and the last clip's pixels, the options, and of an encoder that is not just ours
    what it makes of the first clip: its attributes are not known here."""
    known = [part for part in encoder.modules() if isinstance(part, Encoder)]
    built = [type(encoder).__qualname__, *map(options_of, known), *([source.recordings] if source.recordings else [])]
    digest = hashlib.sha256(repr((repr(source), len(source), clips_of(source), files_of(source), built, options)).encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for place in (0, len(source) - 1):
        digest.update(source[place].clip.contiguous().numpy())
    if type(encoder.encoder if type(encoder) is Layers else encoder) is not Encoder:
        digest.update(_of_first_clip(encoder, source).contiguous().numpy())
    return digest.hexdigest()[:16]


@torch.no_grad()
def _of_first_clip(encoder: nn.Module, source: data.Source) -> Tensor:
    """What an encoder makes of a source's first clip, where it lies, [n d] on the CPU."""
    training, device = encoder.training, next((p.device for p in encoder.parameters()), torch.device("cpu"))
    try:
        return encoder.eval()(data.normalize(source[0].clip[None].to(device)))[0].float().cpu()
    finally:
        encoder.train(training)


def clips_of(source: data.Source) -> str:
    """`provenance.fingerprint`, or name and length of a source that tells its labels only clip by clip; with times and boxes of clips of
    files."""
    cut = [(clip.start, clip.end, clip.box) for clip in source.file_clips]
    try:
        known = provenance.fingerprint(source)
    except NotImplementedError:
        known = f"{source.name} [{source.split}] {len(source)}"
    return f"{known} {hashlib.sha256(repr(cut).encode()).hexdigest()[:16]}" if any(map(any, cut)) else known


def files_of(source: data.Source) -> str:
    """A hash of how a source, and what it is made of, cuts its clips from files, and of the size and date of each file; of no files: of
    nothing."""
    if source.made_of:
        return " ".join(map(files_of, source.made_of))
    digest = hashlib.sha256(repr([getattr(source, name, None) for name in ("sampling", "images")]).encode())
    for path in dict.fromkeys(clip.path for clip in source.file_clips):
        digest.update(_state(path).encode())
    return digest.hexdigest()[:16]


def _state(path: str) -> str:
    """Size and date of a file, as `data.Cache` has them; a dash for one that is not there."""
    try:
        stat = os.stat(path)
    except OSError:
        return "-"
    return f"{stat.st_size} {stat.st_mtime_ns},"


def options_of(encoder: Encoder) -> dict:
    """The arguments that build this encoder again, as JSON-like data."""
    names = ("dim", "depth", "heads", "patch", "tubelet", "rope", "rope_base_grid", "position", "sincos_grid", "levels")
    found = {name: getattr(encoder, name) for name in names}
    found |= {"mlp_ratio": encoder.blocks[0].mlp.fc1.out_features / encoder.dim, "after": [int(i) for i in encoder.norms]}
    return found | {"sincos_grid": found["sincos_grid"] and list(found["sincos_grid"]), "image_path": encoder.patch_embed_img is not None}


def few_shot(features: Features, shots: int, label: str = "class", seed: int = 0) -> Features:
    """`shots` random clips of each class; nested, so that more shots with the same seed contain the fewer.

    Raises ValueError naming the first class that has fewer clips.
    """
    features = features.labelled(label)
    y, names = features.labels[label], features.classes[label]
    count = torch.bincount(y, minlength=len(names))
    short = [f"{names[i]} ({int(count[i])})" for i in range(len(names)) if 0 < count[i] < shots]
    if short:
        raise ValueError(f"{shots} shots of {label!r} are not there for: {', '.join(short[:5])}")
    return features.subset(rank_in_class(y, seed) < shots)


def spread(features: Features) -> list[dict]:
    """Rows that say how much of its space a frozen encoder uses, by the clips' pooled features: "rankme" (Garrido et al. 2023, of centred
    features: the exponential of the entropy of the singular values, 1 to d), "std" (the channels' mean deviation over clips) and "bf16" (1
    where they were read in it, 0 in float32: rounding adds to the rank of features that hardly differ)."""
    centred = features.pooled.double() - features.pooled.double().mean(0)
    share = torch.linalg.svdvals(centred)
    share = share / share.sum().clamp_min(1e-12) + 1e-7
    about = {"benchmark": features.benchmark(), "probe": features.named("none"), "n": len(features), "encoder": features.encoder}
    measured = {"rankme": float(torch.exp(-(share * share.log()).sum())), "std": float(centred.std(0).mean()), "bf16": float(features.bf16)}
    return [about | {"metric": metric, "value": value} for metric, value in measured.items()]


def rank_in_class(y: Tensor, seed: int) -> Tensor:
    """Each sample's place in a random order of its class [n]."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    order = order[y[order].argsort(stable=True)]  # grouped by class, random inside
    first = torch.bincount(y).cumsum(0) - torch.bincount(y)
    return torch.empty_like(y).scatter_(0, order, torch.arange(len(y)) - first[y[order]])


def held_out(y: Tensor, share: float, seed: int, least: int = 0) -> Tensor:
    """A stratified `share` of the samples, as a bool mask [n]; a class too small to give one away gives `least`, but never its last."""
    count = torch.bincount(y)
    return rank_in_class(y, seed) < (share * count).floor().clamp_min(least).minimum((count - 1).clamp_min(0))[y]


def origins_held_out(y: Tensor, origin: Tensor, share: float, seed: int) -> Tensor:
    """As `held_out`, of files or recordings: the clips of one `origin` lie on one side, since they are alike. A class with two or more
    recordings of several clips each gives one at least, where their share would be none; where recordings hold several classes, a share
    of all is held out, one at least and never the last."""
    places, back = origin.unique(return_inverse=True)
    if len(places) == len(y):
        return held_out(y, share, seed)
    kind = torch.empty_like(places).scatter_(0, back, y)
    if bool((kind[back] != y).any()):
        kind = torch.zeros_like(kind)
    return held_out(kind, share, seed, least=1)[back]


def scaling(x: Tensor) -> tuple[Tensor, Tensor]:
    """What standardises features [n d]: their mean and the inverse of their deviation per channel, 0 for a channel that is constant."""
    std, mean = torch.std_mean(x, dim=0, correction=0)
    return mean, inverse(std)


def inverse(std: Tensor) -> Tensor:
    """Of deviations per channel [d], with 0 for a channel that is constant: that varies by no more than a millionth of the liveliest."""
    return torch.where(std > 1e-6 * std.max().clamp_min(1e-12), 1 / std, 0.0)


def device_for(device: torch.device | str | None) -> torch.device:
    """Where features and probes are computed: as `device_of`, but on Apple's MPS only when it is named."""
    return device_of(device, mps=False)
