"""Names and layouts of the same weights in three places: upstream's checkpoints, Hugging Face's VJEPA2Model, and here. All maps are exact.

Upstream's names are the common tongue: Hugging Face's are translated to them, and they to ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .files import State, WeightsError

HF_NAMES = (  # Hugging Face -> upstream, after `encoder.` or `predictor.`
    (r"^encoder\.embeddings\.patch_embeddings\.proj\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"^encoder\.layernorm\.", "norm."),
    (r"^predictor\.embeddings\.mask_tokens$", "mask_tokens"),
    (r"^predictor\.embeddings\.predictor_embeddings\.", "predictor_embed."),
    (r"^predictor\.layer\.", "predictor_blocks."),
    (r"^predictor\.layernorm\.", "predictor_norm."),
    (r"^predictor\.proj\.", "predictor_proj."),
)
PREDICTOR_NAMES = (  # upstream -> ours
    ("predictor_embed.", "embed."),
    ("predictor_blocks.", "blocks."),
    ("predictor_norm.", "norm."),
    ("predictor_proj_context.", "proj_context."),
    ("predictor_proj.", "proj."),
)


def upstream_of(state: State, folder: Path) -> tuple[State, State | None]:
    """A Hugging Face state -> encoder's and predictor's in upstream's names: query, key and value stacked into one map."""
    named, parts = {}, {}
    for name, value in state.items():
        for pattern, upstream in HF_NAMES:
            name, hits = re.subn(pattern, upstream, name)
            if hits:
                break
        name = name.replace(".attention.", ".attn.")
        if found := re.fullmatch(r"(.+\.attn)\.(query|key|value)\.(weight|bias)", name):
            parts.setdefault(f"{found[1]}.qkv.{found[3]}", {})[found[2]] = value
        else:
            named[name] = value
    for name, three in parts.items():
        if lacking := {"query", "key", "value"} - set(three):
            raise WeightsError(f"{folder}: {name.replace('.qkv.', '.{query,key,value}.')} lacks {' and '.join(sorted(lacking))}")
        named[name] = torch.cat([three[part] for part in ("query", "key", "value")])
    predictor = {name: value for name, value in named.items() if name.startswith(("predictor", "mask_tokens"))}
    return {name: value for name, value in named.items() if name not in predictor}, predictor or None


def our_encoder(state: State, after: Sequence[int]) -> State:
    """Upstream's names -> our Encoder's; `after`: the blocks that its norms follow. A stored position table is left out."""
    ours = {}
    for name, value in state.items():
        if name == "pos_embed":
            continue
        if name.startswith("norm."):
            name = f"norms.{after[-1]}.{name.removeprefix('norm.')}"
        elif found := re.fullmatch(r"norms_block\.(\d+)\.(\w+)", name):
            name = f"norms.{after[int(found[1])]}.{found[2]}" if int(found[1]) < len(after) else name
        elif found := re.fullmatch(r"(patch_embed|patch_embed_img)\.proj\.(\w+)", name):
            name = f"{found[1]}.{found[2]}"
            value = value.flatten(1) if found[2] == "weight" else value
        ours[name] = value
    return ours


def our_predictor(state: State) -> State:
    """Upstream's names -> our Predictor's; mask tokens stacked, the mark of videos folded into what every token begins with.

    V-JEPA 2.1 adds a learned mark to all of the predictor's tokens, one for videos, another for images; the sum with the videos' mark is
    the same when it goes into the embedding's bias and the mask tokens. The images' mark is left out.
    """
    ours, tokens = {}, {}
    for name, value in state.items():
        if found := re.fullmatch(r"mask_tokens\.(\d+)", name):
            tokens[int(found[1])] = value
        elif name not in ("predictor_pos_embed", "video_mod_embed", "img_mod_embed"):
            upstream, own = next(((a, b) for a, b in PREDICTOR_NAMES if name.startswith(a)), ("", ""))
            ours[own + name.removeprefix(upstream)] = value
    if tokens:
        ours["mask_tokens"] = torch.stack([tokens[i] for i in sorted(tokens)])
    if (mark := state.get("video_mod_embed")) is not None and "mask_tokens" in ours:
        bias = next(name for name in ("embed.2.bias", "embed.bias") if name in ours)
        ours[bias] = ours[bias] + mark.flatten().to(ours[bias])
        ours["mask_tokens"] = ours["mask_tokens"] + mark.to(ours["mask_tokens"])
    return ours


def to_hf(encoder: State, predictor: State | None, last: int, patch: tuple[int, int, int]) -> State:
    """Our states -> Hugging Face's names; `patch` (frames, rows, columns) of a token, `last` the block before the final norm."""
    found: State = {}

    def put(prefix: str, name: str, value: Tensor) -> None:
        name = re.sub(r"^blocks\.", "layer.", name).replace(".attn.", ".attention.")
        if ".qkv." in name:
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[prefix + name.replace("qkv", part)] = piece
        else:
            found[prefix + name] = value

    for name, value in encoder.items():
        if name.startswith("patch_embed."):
            value = value.unflatten(1, (3, *patch)) if name.endswith("weight") else value
            put("encoder.embeddings.patch_embeddings.proj.", name.removeprefix("patch_embed."), value)
        elif name.startswith(f"norms.{last}."):
            put("encoder.layernorm.", name.removeprefix(f"norms.{last}."), value)
        else:
            put("encoder.", name, value)
    for name, value in (predictor or {}).items():
        if name.startswith("embed."):
            put("predictor.embeddings.predictor_embeddings.", name.removeprefix("embed."), value)
        elif name == "mask_tokens":
            put("predictor.embeddings.", name, value)
        else:
            put("predictor.", re.sub(r"^norm\.", "layernorm.", name), value)
    return {name: value.detach().cpu().contiguous().clone() for name, value in found.items()}


def fill(module: nn.Module, state: State, where: str) -> None:
    """Load exactly this state, in fp32, in memory of its own; raises WeightsError that lists missing, foreign and misshapen keys."""
    own = module.state_dict()
    odd = {
        "missing": [name for name in own if name not in state],
        "foreign": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {list(state[name].shape)} instead of {list(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    }
    if any(odd.values()):
        said = [f"{len(names)} {what} ({_some(names)})" for what, names in odd.items() if names]
        kind = type(module).__name__.lower()
        raise WeightsError(f"{where} does not fit the {kind} of {len(own)} tensors that it was taken for: {'; '.join(said)}")
    module.load_state_dict({name: value.detach().to(torch.float32, copy=True) for name, value in state.items()}, assign=True)


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
