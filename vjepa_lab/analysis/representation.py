"""What each objective does to the representation: the measures of `geometry` for every block of frozen encoders, as rows; and a picture.

Axes: b batch, c colour, f y x frames and pixels, n clips, q views of a clip, t h w token grid, d channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from vjepa_lab import data
from vjepa_lab.analysis.changes import changes, one_encoder, over_seeds, shown
from vjepa_lab.analysis.geometry import Motion, alpha_req, cka, cross_correlation, lidar, participation_ratio, rankme
from vjepa_lab.analysis.subjects import Run, Subject, clip_size, subjects
from vjepa_lab.data.splits import still
from vjepa_lab.evaluation.features import coarse, device_for, passes
from vjepa_lab.evidence import results
from vjepa_lab.model import Encoder
from vjepa_lab.training.processes import exact

# ---------------------------------------------------------------------------------------------------------------- blocks of an encoder


@dataclass(frozen=True, eq=False)
class Block:
    """One block's output over a source: its mean over tokens [n d], and how its tokens move."""

    pooled: Tensor
    motion: Motion


def blocks_of(encoder: Encoder, clip: Tensor) -> list[Tensor]:
    """The output of every block for clip [b c f y x], normalised floats: [b t h w d] each.

    The last one is what a probe sees, through the encoder's own norm; the others are normalised over their channels without a gain.
    """
    grid = encoder.grid(clip)
    outputs = encoder.outputs(encoder.patchify(clip), grid, after=range(encoder.depth))
    last = encoder.norms[str(encoder.depth - 1)](outputs[-1])
    return [x.float().unflatten(1, grid) for x in (*(F.layer_norm(x, x.shape[-1:]) for x in outputs[:-1]), last)]


def observe(
    encoder: Encoder, source: data.Source, *, batch: int = 32, bf16: bool = False, device=None, workers: int = 0, progress=True
) -> list[Block]:
    """Every block of a frozen encoder over every clip of a source, in one pass. Raises ValueError where no clip can be read."""
    pooled, motions = [], [Motion() for _ in range(encoder.depth)]
    how = {"batch": batch, "bf16": bf16, "workers": workers, "device": device_for(device), "progress": progress}
    for _, outputs in passes(encoder, source, "blocks", lambda clip: blocks_of(encoder, clip), **how):
        for z, motion in zip(outputs, motions, strict=True):
            motion.add(z)
        pooled.append(torch.stack([z.mean((1, 2, 3)) for z in outputs]).cpu())  # [blocks b d]
    return [Block(z, motion) for z, motion in zip(torch.cat(pooled, dim=1), motions, strict=True)]


def views_of(
    encoder: Encoder, source: data.Source, frames: int, count: int = 10, *, batch: int = 16, bf16: bool = False, device=None, progress=True
) -> Tensor:
    """Features [blocks n q d] of up to `count` temporal crops of `frames` frames of every clip of `source`, whose clips are longer.

    Raises ValueError where no clip can be read."""

    def read(clip: Tensor) -> Tensor:
        room = clip.shape[2] - frames
        starts = torch.linspace(0, room, min(count, room + 1)).round().long().tolist()
        crops = torch.stack([clip[:, :, s : s + frames] for s in starts], 1).flatten(0, 1)
        return torch.stack([z.mean((1, 2, 3)).unflatten(0, (-1, len(starts))) for z in blocks_of(encoder, crops)]).cpu()

    how = {"batch": batch, "bf16": bf16, "device": device_for(device), "progress": progress}
    return torch.cat([part for _, part in passes(encoder, source, "views", read, **how)], dim=1)


# ------------------------------------------------------------------------------------------------------------------------ over runs

MEASURES = ("rankme", "rankme-uncentred", "lidar", "alpha-req", "participation-ratio", "temporal-variance", "straightness", "speed", "std")
"""The first five are of mean-pooled features over clips, the others of tokens: "std" is their channels' mean standard deviation over clips,
times and places (`geometry.Motion.std`); that of pooled features over clips is another (`evaluation.features.spread`)."""


def measures(
    runs: Iterable[Run],
    world: str = "synthetic",
    clips: int = 1000,
    views: tuple[int, int] = (200, 5),
    *,
    encoders: Sequence[str] = ("student", "teacher"),
    against: str = "baseline",
    shape: Mapping[str, int] | None = None,
    progress: bool = True,
    **how,
) -> pd.DataFrame:
    """Every measure of every block of each frozen encoder, and its likeness to others, as rows.

    world, clips  test clips that the encoders look at
    views         for LiDAR: (clips, temporal crops of each), cut from clips of twice the frames
    how           goes to `observe`: batch, device, workers

    Metrics: those in MEASURES; "cka-within" (to block `other` of the same encoder), "cka" (to the same block of the encoder `of`: the
    student of `against` with the same seed, a student's own teacher, and the student of another seed: what likeness the same objective
    reaches); and for the last block's halves "rankme", "temporal-variance" (part "app", "dyn"), "cka-halves", "correlation-halves".
    Columns beside the common ones: block (from 1), part, other, of.
    """
    found = subjects(runs, encoders)
    size = clip_size(found, shape)
    source = still(world, "test", size, clips)
    longer = still(world, "test", replace(size, frames=2 * size.frames), views[0])
    rows, seen = [], {}
    for subject in tqdm(found, desc="representation", unit="encoder", disable=not progress):
        about, encoder, bf16 = subject.about, subject.encoder(), subject.run.config["bf16"]
        blocks = observe(encoder, source, bf16=bf16, progress=progress, **how)
        if bf16 and coarse(blocks[-1].pooled, f"{subject.run.name}, {subject.name}", source):
            bf16, blocks = False, observe(encoder, source, progress=progress, **how)
        several = views_of(encoder, longer, size.frames, views[1], bf16=bf16, device=how.get("device"), progress=progress)
        own = [row for k, (b, v) in enumerate(zip(blocks, several, strict=True)) for row in _block_rows(b, v, k + 1)]
        rows += [about | row for row in (*own, *_half_rows(blocks[-1], len(blocks)), *_within(blocks))]
        seen[subject] = [block.pooled for block in blocks]
    rows += _between(seen, against)
    table = pd.DataFrame(rows).assign(probe="none", benchmark=source.name)
    table["n"] = table["n"].fillna(len(source))
    return results.tidy(table.reindex(columns=[*table.columns, *({"lo", "hi"} - set(table))]))


def _block_rows(block: Block, views: Tensor, number: int) -> list[dict]:
    z, motion, same = block.pooled, block.motion, {"block": number, "part": "all"}
    values = {
        "rankme": rankme(z),
        "rankme-uncentred": rankme(z, centre=False),
        "participation-ratio": participation_ratio(z),
        "temporal-variance": motion.temporal_variance(),
        "straightness": motion.straightness,
        "speed": motion.speed,
        "std": motion.std,
    }
    if min(z.shape[1], len(z) - 1) >= 14:
        values["alpha-req"] = alpha_req(z)
    rows = [{"metric": name, "value": value} | same for name, value in values.items()]
    return [*rows, {"metric": "lidar", "value": lidar(views), "n": len(views)} | same]


def _half_rows(block: Block, number: int) -> list[dict]:
    d = block.pooled.shape[1]
    halves = {"app": slice(0, d // 2), "dyn": slice(d // 2, d)}
    app, dyn = (block.pooled[:, part] for part in halves.values())
    rows = [{"metric": "rankme", "value": rankme(block.pooled[:, part]), "part": name} for name, part in halves.items()]
    rows += [{"metric": "temporal-variance", "value": block.motion.temporal_variance(part), "part": name} for name, part in halves.items()]
    rows += [{"metric": "cka-halves", "value": cka(app, dyn)}, {"metric": "correlation-halves", "value": cross_correlation(app, dyn)}]
    return [{"part": "all", "block": number} | row for row in rows]


def _within(blocks: list[Block]) -> list[dict]:
    pairs = combinations(enumerate(blocks, start=1), 2)
    return [{"metric": "cka-within", "value": cka(a.pooled, b.pooled), "block": i, "other": j, "part": "all"} for (i, a), (j, b) in pairs]


def _between(seen: dict[Subject, list[Tensor]], against: str) -> list[dict]:
    """CKA per block of each encoder with those that it should be compared with."""
    rows, abouts = [], {subject: subject.about for subject in seen}
    for subject, mine in seen.items():
        a = abouts[subject]
        for other, theirs in seen.items():
            b = abouts[other]
            if subject is other or (of := _relation(a, b, against)) is None:
                continue
            pairs = zip(mine, theirs, strict=True)
            rows += [
                a | {"metric": "cka", "value": cka(x, y), "block": k, "part": "all", "of": of} for k, (x, y) in enumerate(pairs, start=1)
            ]
    return rows


def _relation(a: dict, b: dict, against: str) -> str | None:
    """What the encoder b is to the encoder a, if its likeness says something; each unordered pair once."""
    if b["variant"] == against and b["encoder"] == "student" and a["seed"] == b["seed"] and a["encoder"] in ("student", "random-init"):
        return against
    if a["run"] == b["run"] and (a["encoder"], b["encoder"]) == ("student", "teacher"):
        return "own teacher"
    same = all(a[key] == b[key] for key in ("variant", "edition", "encoder"))
    return "another seed" if same and a["encoder"] in ("student", "random-init") and a["seed"] < b["seed"] else None


# -------------------------------------------------------------------------------------------------------------------------- to look at


@torch.no_grad()
def feature_pca(encoders: Mapping[str, Encoder], clip: Tensor) -> dict[str, Tensor]:
    """The first three principal components of each encoder's tokens over one clip, as its red, green and blue: {name: uint8 [3 f y x]}.

    clip: uint8 [c f y x]. The components are fitted on this clip's tokens, every colour runs from the 2nd to the 98th percentile, and its
    sign is the one whose tail is on the bright side. What has one colour is one thing to the encoder; a colour that changes moves.
    """
    pictures = {}
    for name, encoder in encoders.items():
        x = data.normalize(clip[None])
        shades = pca_colours(encoder.eval()(x)[0]).T.unflatten(1, encoder.grid(x))  # [3 t h w]
        pictures[name] = (255 * F.interpolate(shades[None], size=clip.shape[1:], mode="nearest")[0]).round().to(torch.uint8)
    return pictures


def pca_colours(tokens: Tensor) -> Tensor:
    """Tokens [n d] -> their first three principal components as colours [n 3] from 0 to 1 (see `feature_pca`)."""
    z = exact(tokens)
    u, s, _ = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    parts = u[:, :3] * s[:3]
    parts = parts * torch.where(parts.pow(3).mean(0) < 0, -1.0, 1.0)  # a component without a tail keeps its colour
    low, high = parts.quantile(0.02, 0), parts.quantile(0.98, 0)
    return ((parts - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)


# --------------------------------------------------------------------------------------------------------------------------- verdict


def verdict(rows: pd.DataFrame, against: str = "baseline") -> str:
    """What the measures of the last block say of each objective against `against`, in one sentence, and what is left open.

    Of the students; of another encoder where a run has no rows of its student (`changes.one_encoder`), which is said.
    """
    last = one_encoder(rows[rows["block"].eq(rows["block"].max()) & rows["part"].eq("all")])
    others = sorted(set(last["encoder"].dropna()) - {"student", "random-init"})
    measured = last[last["metric"].isin(MEASURES)]
    table = changes(measured[measured["variant"].ne("random-init")], against, ("metric",))
    alike = over_seeds(last[last["metric"].eq("cka") & last["of"].eq(against)], ["variant"]).assign(hi=lambda t: t["hi"].clip(upper=1))
    closest = f"CKA with {against}: " + ", ".join(f"{r['variant']} {shown(r, 2)}" for _, r in alike.iterrows()) if len(alike) else ""
    null = last[last["metric"].eq("cka") & last["of"].eq("another seed") & last["variant"].eq(against)]["value"]
    ends = f"{null.min():.2f}" + f" to {null.max():.2f}" * (len(null) > 1)
    seed = f" ({against} with itself under another seed: {ends})" if len(null) else ""
    smoke = "Demonstration size, which decides nothing. " * bool(rows["smoke"].any())
    smoke += f"Where there is no student: {' and '.join(others)}. " * bool(others)
    if table.empty or table["p"].isna().all():
        ranks = measured[measured["metric"].eq("rankme")].groupby("variant", sort=False)["value"].mean()
        said = "No two objectives with several seeds, so no difference is decided; effective rank: " + ", ".join(
            f"{name} {value:.1f}" for name, value in ranks.items()
        )
    else:
        found = table[table["significant"]]
        said = f"Of {len(table)} differences from {against} in {table['metric'].nunique()} measures, {len(found)} stand after correction"
        said += (": " + "; ".join(f"{r.variant} {_named(r.metric)} {r.value:.3g} against {r.base:.3g}" for r in found.itertuples())) * bool(
            len(found)
        )
    return (
        f"{smoke}{said}. {closest}{seed}. The measures describe; whether a higher rank or a straighter path is better they do not decide."
    )


def _named(metric: str) -> str:
    """A measure in a sentence: a standard deviation says of what it is."""
    return "std of tokens" if metric == "std" else metric
