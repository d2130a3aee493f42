"""Released attentive classifiers, V-JEPA 2's and V-JEPA's probes, as our own head over an encoder's tokens.

Axes: b batch, n tokens, d channels, k classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from vjepa_lab.model import Encoder

from .files import State, WeightsError, clean, state_of, unpickled
from .keys import fill
from .load import depth_of

if TYPE_CHECKING:
    from vjepa_lab.evaluation.classifier import Classifier

CROSS = "cross_attention_block."
UNUSED = f"{CROSS}xattn.proj."  # stored with V-JEPA's probes, and read by nothing since facebookresearch/jepa took its use back


def classifier(path: str | Path, encoder: Encoder, *, heads: int = 16, which: int = 0, layers: Sequence[int] = ()) -> Classifier:
    """An encoder and the attentive classifier that was released for it: clip [b c f y x], normalised -> logits [b k]. Frozen, in eval mode.

    path     a file with `classifiers` (V-JEPA 2: ssv2-vitl-16x2x3.pt, say; of V-JEPA 2.1 alike) or `classifier` (V-JEPA's *-probe.pth.tar)
    heads    attention heads, which the file does not state: 16 in all released ones but of V-JEPA's smaller models
    which    of several classifiers in the file
    layers   blocks of the encoder whose tokens it reads together, where not the last one's: 17 19 21 23 for diving48-vitl-256.pt
    Published accuracies read the tokens of several segments together: `.head(tokens [b n d])[0]` on those of
    `evaluation.multiview.extract_views(..., merge="tokens")`. Classes are numbered as the file's own data set was.
    Raises WeightsError for another kind of file (EPIC-Kitchens' anticipation), missing or foreign keys, and an encoder of another width.
    Upstream: evals/video_classification_frozen/eval.py, src/models/attentive_pooler.py.
    """
    from vjepa_lab.evaluation.classifier import Classifier
    from vjepa_lab.evaluation.heads import AttentiveHead
    from vjepa_lab.evaluation.layers import Layers

    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    state = stored(path, which)
    width, classes = _shape(state, "query_tokens", 3, path)[-1], _shape(state, "linear.weight", 2, path)[0]
    if width != encoder.dim:
        raise WeightsError(f"{path} was trained on tokens of {width} channels; this encoder gives {encoder.dim}")
    if heads < 1 or width % heads:
        raise WeightsError(f"{path}: {width} channels do not divide into heads={heads}")
    with torch.device("meta"):
        head = AttentiveHead(1, width, classes, Generator("cpu"), heads=heads, depth=1 + depth_of(state, "blocks"))
    fill(head, ours(state, width), f"{path} [classifier]")
    made = Classifier(encoder, classes, head)
    if layers:
        made.encoder = Layers(encoder, layers)
    return made.eval().requires_grad_(False)


def stored(path: Path, which: int) -> State:
    """The state of one classifier in a file, in upstream's names without the pooler's own."""
    found = unpickled(path)
    several = found.get("classifiers", [found["classifier"]] if "classifier" in found else None) if isinstance(found, dict) else None
    if not isinstance(several, list) or not several:
        names = ", ".join(map(str, list(found)[:8])) if isinstance(found, dict) else type(found).__name__
        raise WeightsError(f"{path} holds {names}; expected classifiers, as V-JEPA 2's released probes do, or classifier")
    if not 0 <= which < len(several):
        raise WeightsError(f"{path} holds {len(several)} classifiers; which={which} is none of 0 to {len(several) - 1}")
    state = clean(state_of(several[which], path, "classifiers"))
    return {name.removeprefix("pooler."): value for name, value in state.items() if not name.startswith(f"pooler.{UNUSED}")}


def _shape(state: State, name: str, axes: int, path: Path) -> list[int]:
    if name not in state or state[name].ndim != axes:
        raise WeightsError(f"{path}: no {name} of {axes} axes among its {len(state)} keys ({', '.join(list(state)[:5])}, ...)")
    return list(state[name].shape)


def ours(state: State, width: int) -> State:
    """Upstream's names -> `AttentiveHead`'s, maps transposed to [1 in out]; the keys' bias is left out (see `heads.Query`)."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        name, value = re.sub(r"\.attn\.", ".", name), value.mT[None] if name.endswith("weight") and value.ndim == 2 else value[None]
        if name == "query_tokens":
            found["query"] = value[0, 0]
        elif name.startswith("linear."):
            found[name.replace("linear", "head")] = value
        elif name.startswith(f"{CROSS}xattn.q."):
            found[name.replace(f"{CROSS}xattn.q", "cross.query")] = value
        elif name.startswith(f"{CROSS}xattn.kv."):
            if name.endswith("weight"):
                found["cross.key"] = value[..., :width]
            found[name.replace(f"{CROSS}xattn.kv", "cross.value")] = value[..., width:]
        else:
            found[name.removeprefix(CROSS)] = value
    return found
