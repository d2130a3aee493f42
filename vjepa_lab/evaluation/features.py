"""What a frozen encoder makes of every clip of a source, once, cached.

Axes: n clips, t h w token grid, d channels.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from vjepa_lab import data
from vjepa_lab.training.allocator import keep_freed_memory
from vjepa_lab.training.checkpoint import replacing
from vjepa_lab.training.processes import device_of

Grid = tuple[int, int, int]


@dataclass(frozen=True, eq=False, repr=False)
class Features:
    """What a frozen encoder makes of every clip of a source.

    pooled: mean over tokens, float32 [n d].  tokens: float16 [n t*h*w d], or None.  grid: tokens (t, h, w).
    labels: by name, long [n], -1 where a clip has none.  classes: class names by label name.  index: each clip's place in the source [n].
    name, split, encoder: where they come from.  clips: segments and views of each file; the clips of one file share its index.
    blocks: of the encoder, whose tokens stand one after the other (`layers.Layers`); none: its output.
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

    def __len__(self) -> int:
        return len(self.pooled)

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
        steps = self.tokens.unflatten(1, (self.grid[0], -1)).float().mean(2)  # [n t d]
        return replace(self, pooled=steps.flatten(1), tokens=None, grid=None)

    def labelled(self, label: str) -> "Features":
        """The clips that have this label. Raises ValueError when there is no such label, or no clip with it."""
        if label not in self.labels:
            raise ValueError(f"{self.name or 'these features'} have no label {label!r}; they have {', '.join(self.labels)}")
        known = self.labels[label] >= 0
        if not known.any():
            raise ValueError(f"no clip of {self.name} [{self.split}] has the label {label!r}")
        return self if known.all() else self.subset(known)


def extract(
    encoder: nn.Module,
    source: data.Source,
    *,
    tokens: bool = False,
    batch: int = 64,
    bf16: bool = False,
    workers: int = 0,
    device: torch.device | str | None = None,
    cache: str | Path | None = None,
    encoder_name: str = "",
    progress: bool = True,
) -> Features:
    """Features of every readable clip of `source`, in order, by one pass of the frozen `encoder`.

    encoder: any module clip [b c f y x] (normalised floats) -> tokens [b n d], with `.grid(clip) -> (t, h, w)`; in eval mode meanwhile.
    tokens: keep all tokens (the attentive probe needs them), not only their mean.  bf16: run the encoder under autocast.
    cache: a folder; features of the same weights and clips are read from there the next time.
    encoder_name: "student", "teacher", "random-init" ..., written into every row.
    """
    device = device_for(device)
    if cache is not None:
        path = Path(cache) / f"{source.name.replace('/', '-')}-{source.split}-{fingerprint(encoder, source, tokens, bf16)}.pt"
        if path.is_file():
            return replace(Features(**torch.load(path)), encoder=encoder_name)
    features = _extract(encoder, source, tokens, batch, bf16, workers, device, encoder_name, progress)
    if cache is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            torch.save(vars(features), part)
    return features


@torch.no_grad()
def _extract(encoder, source, tokens, batch, bf16, workers, device, encoder_name, progress) -> Features:
    pooled = kept = grid = None
    labels, index, done = [], [], 0
    training = encoder.training
    encoder.eval().to(device)
    if device.type == "cpu":
        keep_freed_memory()
    try:
        with clip_bar(source, "features", progress) as bar:
            for part in data.loader(source, batch, train=False, workers=workers, pin=device.type == "cuda"):
                clip = data.normalize(part.clip.to(device, non_blocking=True))
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    z = encoder(clip).float()
                if pooled is None:
                    grid = tuple(encoder.grid(clip))
                    pooled = torch.empty(len(source), z.shape[-1])
                    kept = torch.empty(len(source), *z.shape[1:], dtype=torch.float16) if tokens else None
                rows = slice(done, done := done + len(z))
                pooled[rows] = z.mean(1)
                if tokens:
                    kept[rows] = z
                labels.append(part.labels)
                index.append(part.index)
                bar.update(len(z))
    finally:
        encoder.train(training)
    if pooled is None:
        raise ValueError(f"no clip of {source.name} [{source.split}] could be read")
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
    )


def clip_bar(source: data.Source, what: str, progress: bool) -> tqdm:
    return tqdm(total=len(source), desc=f"{source.name} [{source.split}] {what}", unit="clip", disable=not progress, leave=False)


def fingerprint(encoder: nn.Module, source: data.Source, *options) -> str:
    """Of the weights, of the source's first and last clip and of the options: what decides the features."""
    digest = hashlib.sha256(repr((repr(source), len(source), options)).encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for place in (0, len(source) - 1):
        digest.update(source[place].clip.contiguous().numpy())
    return digest.hexdigest()[:16]


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
    features: the exponential of the entropy of the singular values, 1 to d) and "std" (the channels' mean deviation over clips)."""
    centred = features.pooled.double() - features.pooled.double().mean(0)
    share = torch.linalg.svdvals(centred)
    share = share / share.sum().clamp_min(1e-12) + 1e-7
    about = {"benchmark": features.name, "probe": "none", "n": len(features), "encoder": features.encoder}
    measured = {"rankme": float(torch.exp(-(share * share.log()).sum())), "std": float(centred.std(0).mean())}
    return [about | {"metric": metric, "value": value} for metric, value in measured.items()]


def rank_in_class(y: Tensor, seed: int) -> Tensor:
    """Each sample's place in a random order of its class [n]."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    order = order[y[order].argsort(stable=True)]  # grouped by class, random inside
    first = torch.bincount(y).cumsum(0) - torch.bincount(y)
    return torch.empty_like(y).scatter_(0, order, torch.arange(len(y)) - first[y[order]])


def scaling(x: Tensor) -> tuple[Tensor, Tensor]:
    """What standardises features [n d]: their mean and the inverse of their deviation per channel, 0 for a channel that is constant."""
    std, mean = torch.std_mean(x, dim=0, correction=0)
    return mean, torch.where(std > 1e-6 * std.max().clamp_min(1e-12), 1 / std, 0.0)


def device_for(device: torch.device | str | None) -> torch.device:
    """Where features and probes are computed: as `device_of`, but on Apple's MPS only when it is named."""
    return device_of(device, mps=False)
