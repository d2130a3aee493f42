"""Released weights by name or path, as our Encoder and Predictor.

vl.encoder("vjepa2-vitl", path="vitl.pt")        frozen, in eval mode
vl.encoder("vjepa2-vitl:vitl.pt")                the same in one word, as commands and notebooks take it
vl.encoder("facebook/vjepa2-vitl-fpc64-256")     a Hugging Face folder on disk
weights.open("vjepa2.1-vitg:g.pt").predictor()
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from vjepa_lab.arguments import suggest
from vjepa_lab.model import VJEPA, Encoder, Grid, Predictor
from vjepa_lab.rope import positions

from .download import digest, fetch, is_url
from .files import Checkpoint, State, WeightsError, read
from .keys import fill, our_encoder, our_predictor

HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 22, 1664: 26}
"""Attention heads by width (vit_tiny ... vit_gigantic_xformers): checkpoints do not state them."""
SIZES = {"vitb": (768, 12), "vitl": (1024, 24), "vith": (1280, 32), "vitg": (1408, 40), "vitG": (1664, 48)}
"""Width and depth."""
ALIASES = {"target_encoder": "teacher", "ema_encoder": "teacher", "encoder": "student"}


@dataclass(frozen=True)
class Release:
    """One family of released models, or one member of it. crop, frames: what it saw last in training, in pixels and frames."""

    name: str
    family: str
    size: str = ""
    url: str = ""
    crop: int = 256
    frames: int = 64


HOST = "https://dl.fbaipublicfiles.com"
RELEASES = {
    release.name: release
    for release in (
        Release("vjepa", "vjepa", crop=224, frames=16),
        Release("vjepa-vitl", "vjepa", "vitl", f"{HOST}/jepa/vitl16/vitl16.pth.tar", 224, 16),
        Release("vjepa-vith", "vjepa", "vith", f"{HOST}/jepa/vith16/vith16.pth.tar", 224, 16),
        Release("vjepa-vith-384", "vjepa", "vith", f"{HOST}/jepa/vith16-384/vith16-384.pth.tar", 384, 16),
        Release("vjepa2", "vjepa2"),
        Release("vjepa2-vitl", "vjepa2", "vitl", f"{HOST}/vjepa2/vitl.pt"),
        Release("vjepa2-vith", "vjepa2", "vith", f"{HOST}/vjepa2/vith.pt"),
        Release("vjepa2-vitg", "vjepa2", "vitg", f"{HOST}/vjepa2/vitg.pt"),
        Release("vjepa2-vitg-384", "vjepa2", "vitg", f"{HOST}/vjepa2/vitg-384.pt", 384),
        Release("vjepa2.1", "vjepa2.1", crop=384),
        Release("vjepa2.1-vitb", "vjepa2.1", "vitb", f"{HOST}/vjepa2/vjepa2_1_vitb_dist_vitG_384.pt", 384),
        Release("vjepa2.1-vitl", "vjepa2.1", "vitl", f"{HOST}/vjepa2/vjepa2_1_vitl_dist_vitG_384.pt", 384),
        Release("vjepa2.1-vitg", "vjepa2.1", "vitg", f"{HOST}/vjepa2/vjepa2_1_vitg_384.pt", 384),
        Release("vjepa2.1-vitG", "vjepa2.1", "vitG", f"{HOST}/vjepa2/vjepa2_1_vitG_384.pt", 384),
    )
}
"""What a name stands for; a family alone ("vjepa2:FILE") fits any size. Addresses as in the READMEs of facebookresearch/jepa and vjepa2."""


@dataclass(frozen=True)
class Weights:
    """Released weights, opened: their structure is known and checked, their values are still on the disk.

    checkpoint  what was read.  release  the family and, if named, the member.
    options     arguments of `Encoder`; predictor_options of `Predictor`, None where there is none that ours can be
    no_predictor  why not
    """

    checkpoint: Checkpoint
    release: Release
    options: dict
    predictor_options: dict | None
    no_predictor: str = ""

    @property
    def name(self) -> str:
        """The release's."""
        return self.release.name

    @property
    def crop(self) -> int:
        """Pixels a side that the weights saw last in training."""
        return (self.checkpoint.config or {}).get("crop_size", self.release.crop)

    @property
    def slots(self) -> dict[str, str]:
        """ "teacher" and "student", those that are there -> upstream's slot."""
        return {ALIASES[slot]: slot for slot in reversed(self.checkpoint.encoders)}

    def state(self, which: str | None = None) -> State:
        """Our encoder's state of the "teacher" (by default, where there is one) or the "student"."""
        slot = self.slots.get(which) if which else next(iter(self.checkpoint.encoders))
        if slot is None:
            raise WeightsError(f"{self.checkpoint.path} has no {which}; it has {', '.join(self.slots)}")
        return our_encoder(self.checkpoint.encoders[slot], after_of(self.options))

    def encoder(self, which: str | None = None, seed: int = 0) -> Encoder:
        """The encoder, frozen and in eval mode: the "teacher" where there is one, as upstream's evaluations take it, else the "student".

        "initial" is one of the same build that was never trained, drawn from `seed`: the weights that upstream began with are not known.
        """
        if which == "initial":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return Encoder(**self.options).eval().requires_grad_(False)
        with torch.device("meta"):
            encoder = Encoder(**self.options)
        fill(encoder, self.state(which), f"{self.checkpoint.path} [{which or 'encoder'}]")
        return encoder.eval().requires_grad_(False)

    def predictor(self) -> Predictor:
        """The predictor, frozen and in eval mode. Raises WeightsError where there is none, or one of another build."""
        if self.predictor_options is None:
            raise WeightsError(f"{self.checkpoint.path}: {self.no_predictor}")
        with torch.device("meta"):
            predictor = Predictor(**self.predictor_options)
        fill(predictor, our_predictor(self.checkpoint.predictor), f"{self.checkpoint.path} [predictor]")
        return predictor.eval().requires_grad_(False)

    @cached_property
    def about(self) -> dict:
        """For config.json: which weights these are."""
        path = self.checkpoint.path
        about = {"name": self.release.name, "path": str(path.absolute()), "heads": self.options["heads"]}
        about |= {"pred_heads": self.predictor_options["heads"]} if self.predictor_options else {}
        return about | ({"sha256": digest(path)} if path.is_file() else {})

    @property
    def places(self) -> dict:
        """What `VJEPA.build` needs beside a preset, as JSON-like data: the encoder's options that no preset has."""
        kept = {name: value for name, value in self.options.items() if name not in PRESET_FIELDS and value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items() if name != "levels"}

    @property
    def fields(self) -> dict:
        """The fields of a preset that the weights decide."""
        found = {name: self.options[name] for name in PRESET_FIELDS}
        return found | {f"pred_{name}": self.predictor_options[name] for name in ("dim", "depth", "heads") if self.predictor_options}

    def at_levels(self, levels: int) -> Weights:
        """The same encoder with one level (the last) or four. Raises WeightsError where there is only one."""
        if levels == self.options["levels"]:
            return self
        if levels != 1:
            raise WeightsError(f"{self.checkpoint.path} has norms for one level; {levels} levels need weights of V-JEPA 2.1")
        last = f"norms_block.{self.options['levels'] - 1}."
        encoders = {
            slot: {n.replace(last, "norm."): value for n, value in state.items() if n.startswith(last) or "norms_block" not in n}
            for slot, state in self.checkpoint.encoders.items()
        }
        checkpoint = replace(self.checkpoint, encoders=encoders)
        return replace(self, checkpoint=checkpoint, options=self.options | {"levels": 1, "after": None})

    def predictor_for(self, model: VJEPA) -> tuple[State | None, str]:
        """The predictor's state as this model takes it, and "loaded"; or None, and why the model keeps its own.

        V-JEPA 2 has in effect one mask token, the first: every kind begins with it.
        """
        if self.predictor_options is None:
            return None, f"fresh: {self.no_predictor}"
        state = our_predictor(self.checkpoint.predictor)
        kinds, tokens = len(model.predictor.mask_tokens), state["mask_tokens"]
        state["mask_tokens"] = tokens[[i % len(tokens) if self.release.family == "vjepa" else 0 for i in range(kinds)]]
        own = model.predictor.state_dict()
        if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in state.items()}:
            return None, "fresh: the file's predictor is built otherwise (pred_dim, pred_depth, levels or outputs)"
        if self.predictor_options["heads"] != model.predictor.heads:
            return None, f"fresh: the file's predictor has {self.predictor_options['heads']} attention heads"
        return state, "loaded"

    def begin(self, model: VJEPA) -> VJEPA:
        """Start a model of our own from these weights: student, teacher, and the predictor where it is built alike.

        A missing student begins as the teacher and the other way round.
        """
        for name, encoder in (("student", model.student), ("teacher", model.teacher)):
            if encoder is not None:
                fill(encoder, self.state(name if name in self.slots else None), f"{self.checkpoint.path} [{name}]")
        if model.teacher is not None:
            model.teacher.requires_grad_(False)
        state, _ = self.predictor_for(model)
        if state is not None:
            fill(model.predictor, state, f"{self.checkpoint.path} [predictor]")
        return model


def encoder(spec: str | Path, path: str | Path | None = None, *, which: str | None = None, **options) -> Encoder:
    """A released encoder as ours, frozen and in eval mode: clip [b c f y x], normalised as everywhere here -> tokens [b n d].

    spec   a name ("vjepa2-vitl"; a family alone, "vjepa2", fits any size), "NAME:PATH", or a path or URL whose kind shows by itself
    path   a released file, a Hugging Face folder, or a URL; without one the name's own address is downloaded
    which  "teacher" (by default, where there is one) or "student"
    options  heads, pred_heads, sha256, folder, progress: see `open`
    Raises WeightsError, a ValueError, with what was found and what was expected.
    """
    return open(spec, path, **options).encoder(which)


def open(
    spec: str | Path,
    path: str | Path | None = None,
    *,
    heads: int | None = None,
    pred_heads: int | None = None,
    sha256: str | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Weights:
    """Released weights with their structure found and checked; nothing is copied yet.

    spec, path   as `encoder` takes them
    heads        attention heads, of sizes that were never released; pred_heads of the predictor
    sha256       checksum of the file, in hex
    folder       where downloads go; by default torch.hub's folder
    Raises WeightsError.
    """
    release, place = parse(spec, path)
    if is_url(place):
        place = fetch(str(place), sha256, folder, progress=progress)
    elif sha256 and Path(place).is_file() and (found := digest(Path(place))) != sha256.lower():
        raise WeightsError(f"{place}: sha256 is {found}, expected {sha256}")
    checkpoint = read(place)
    state = next(iter(checkpoint.encoders.values()))
    release = recognised(release, state, checkpoint)
    options = structure(state, release, checkpoint, heads)
    predictor, why = predictor_structure(checkpoint, release, options, pred_heads)
    return Weights(checkpoint, release, options, predictor, why)


def again(about: dict) -> Weights:
    """The weights that `about` in a config.json speaks of. Raises WeightsError where the file is gone, or another one by now."""
    how = {name: about.get(name) for name in ("heads", "pred_heads", "sha256")}
    return open(f"{about['name']}:{about['path']}", **how)


def parse(spec: str | Path, path: str | Path | None = None) -> tuple[Release | None, str | Path]:
    """The release that `spec` names, if it names one, and the path or URL."""
    if not isinstance(spec, str | Path):
        raise WeightsError(f"{spec!r}: expected a released model's name, NAME:PATH, a path or a URL")
    name, colon, rest = str(spec).partition(":")
    if name in RELEASES and (not colon or rest):
        release = RELEASES[name]
        if colon and path is not None:
            raise WeightsError(f"{spec!r} names a path, and path={str(path)!r} another one")
        place = at_home(rest if colon else path or release.url)
        if not place:
            raise WeightsError(f"{name!r} is a family of models; give one of its files: {name}:PATH")
        return release, place
    if path is not None:
        raise WeightsError(f"no released model is called {str(spec)!r}: {suggest(str(spec), RELEASES)}")
    place = at_home(spec)
    if not is_url(place) and not Path(place).exists():
        raise WeightsError(f"{str(spec)!r} is neither a path that exists nor a released model; {suggest(name, RELEASES)}")
    return None, place


def at_home(place: str | Path) -> str | Path:
    """A path with a leading ~ as one in the home folder, which shells leave after NAME:; anything else as it is."""
    return os.path.expanduser(place) if str(place).startswith("~") else place


def are_weights(place: object) -> bool:
    """Whether `place` speaks of released weights rather than of a run: a release's name, a URL, a file, a Hugging Face folder.

    A folder whose config.json is damaged is a run's where it has a recipe.txt; whoever reads it then raises an error that names the file.
    """
    if str(place).partition(":")[0] in RELEASES or is_url(place):
        return True
    place = Path(at_home(place))
    if place.is_file():
        return True
    config = place / "config.json"
    if not config.is_file():
        return False
    try:
        found = json.loads(config.read_text())
    except ValueError:
        found = None
    return "model_type" in found if isinstance(found, dict) else not (place / "recipe.txt").is_file()


def recognised(release: Release | None, state: State, checkpoint: Checkpoint) -> Release:
    """The family that the keys show, checked against the one named. Raises WeightsError where they disagree or leave it open."""
    path = checkpoint.path
    if "patch_embed.proj.weight" not in state:
        names = ", ".join(list(state)[:5])
        raise WeightsError(
            f"{path}: no patch_embed.proj.weight among its {len(state)} keys ({names}, ...); expected a V-JEPA encoder:"
            " patch_embed.proj.*, blocks.N.{norm1,attn.qkv,attn.proj,norm2,mlp.fc1,mlp.fc2}.*, norm.* or norms_block.N.*"
        )
    if state["patch_embed.proj.weight"].ndim != 5:
        shape = list(state["patch_embed.proj.weight"].shape)
        raise WeightsError(f"{path}: patch_embed.proj.weight is {shape}, expected [channels, 3, frames, rows, columns] of a video model")
    if "norms_block.0.weight" in state:
        family = "vjepa2.1"
    elif checkpoint.config is not None or "pos_embed" not in state:
        family = "vjepa2"
    elif release is None:
        raise WeightsError(f"{path} stores a position table, as V-JEPA 1 and some files of V-JEPA 2 do; say vjepa:PATH or vjepa2:PATH")
    else:
        family = release.family if release.family != "vjepa2.1" else "vjepa or vjepa2"
    if release is None:
        return RELEASES[family]
    if family != release.family:
        raise WeightsError(f"{path} was named as {release.name}, but its keys are those of {family}")
    if release.size:
        there, asked = (state["patch_embed.proj.weight"].shape[0], depth_of(state, "blocks")), SIZES[release.size]
        if there != asked:
            raise WeightsError(f"{path}: width {there[0]} and depth {there[1]}; {release.name} has {asked[0]} and {asked[1]}")
    return release


def depth_of(state: State, prefix: str) -> int:
    return 1 + max((int(name.split(".")[1]) for name in state if name.startswith(f"{prefix}.")), default=-1)


def after_of(options: dict) -> list[int]:
    """The blocks whose outputs are normalised."""
    levels, depth = options["levels"], options["depth"]
    return list(options["after"] or [(i + 1) * depth // levels - 1 for i in range(levels)])


def heads_of(width: int, given: int | None, path: Path, name: str) -> int:
    if (heads := given or HEADS.get(width)) is None:
        raise WeightsError(
            f"{path}: no released model is {width} wide, and the file does not state the attention heads; say them with "
            f"weights.open(..., {name}=) and pass what it gives"
        )
    return heads


def structure(state: State, release: Release, checkpoint: Checkpoint, heads: int | None) -> dict:
    """Arguments of `Encoder` that fit this state."""
    path, config = checkpoint.path, checkpoint.config or {}
    width, _, tubelet, patch, _ = state["patch_embed.proj.weight"].shape
    if "blocks.0.mlp.fc1.weight" not in state:
        raise WeightsError(f"{path}: no blocks.0.mlp.fc1.weight; expected transformer blocks, blocks.N.*")
    depth, levels = depth_of(state, "blocks"), sum(name.startswith("norms_block.") and name.endswith(".weight") for name in state) or 1
    options = {
        "dim": width, "depth": depth, "heads": heads_of(width, heads or config.get("num_attention_heads"), path, "heads"),
        "patch": patch, "tubelet": tubelet, "mlp_ratio": len(state["blocks.0.mlp.fc1.weight"]) / width,
        "levels": levels, "after": None,
    }  # fmt: skip
    if release.family == "vjepa":
        return options | {"position": "sincos", "sincos_grid": table_grid(state["pos_embed"], path)}
    if release.family == "vjepa2":
        return options | {"rope": "vjepa2"}
    if depth == 48:  # 2.1's gigantic model takes 37, where every quarter would be 35 (vjepa2 app/vjepa_2_1/models/vision_transformer.py)
        options["after"] = (11, 23, 37, 47)
    base = (252 if patch == 14 else 256) // patch
    return options | {"rope": "interleaved", "rope_base_grid": base, "image_path": "patch_embed_img.proj.weight" in state}


def table_grid(table: torch.Tensor, path: Path) -> Grid:
    """The token grid that a stored position table [1 n d] was made for; raises WeightsError if it is not V-JEPA's sine-cosine table."""
    n, d = table.shape[-2:]
    for t in range(1, n + 1):
        side = math.isqrt(n // t)
        if t * side * side == n and torch.allclose(table[0].float(), positions((t, side, side), d), atol=1e-5):
            return t, side, side
    raise WeightsError(f"{path}: pos_embed [{n} {d}] is not the sine-cosine table of any grid with square frames (uniform_power)")


def predictor_structure(checkpoint: Checkpoint, release: Release, encoder: dict, heads: int | None) -> tuple[dict | None, str]:
    """Arguments of `Predictor` that fit the state, or None and why there are none."""
    state = checkpoint.predictor
    if state is None:
        return None, "it holds no predictor"
    if "predictor_proj.weight" not in state or not any(name.startswith("mask_tokens") for name in state):
        return None, f"its predictor is of another kind ({', '.join(list(state)[:3])}, ...): no mask tokens, no predictor_proj"
    levels = encoder["levels"] if "predictor_embed.2.weight" in state else 1
    out, dim = state["predictor_proj.weight"].shape
    stated = (checkpoint.config or {}).get("pred_num_attention_heads")
    usual = encoder["heads"] if release.family == "vjepa" else 12  # V-JEPA 1: as many as the encoder (jepa app/vjepa/utils.py)
    options = {name: encoder.get(name, default) for name, default in PLACES.items()}
    kinds = len(state["mask_tokens"]) if "mask_tokens" in state else sum(name.startswith("mask_tokens.") for name in state)
    return options | {
        "width": encoder["dim"], "dim": dim, "depth": depth_of(state, "predictor_blocks"), "heads": heads or stated or usual,
        "levels": levels, "kinds": kinds, "out": out, "context": "predictor_proj_context.weight" in state,
    }, ""  # fmt: skip


PRESET_FIELDS = ("dim", "depth", "heads", "patch", "tubelet")
PLACES = {"rope": "interleaved", "rope_base_grid": None, "position": "rope", "sincos_grid": None}
"""What encoder and predictor share about positions, with its defaults."""
