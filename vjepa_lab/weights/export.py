"""Our encoder, and its predictor, as a Hugging Face VJEPA2Model folder."""

from __future__ import annotations

import json
import math
from pathlib import Path

from vjepa_lab.model import Encoder, Predictor

from .files import WeightsError
from .keys import to_hf


def export(
    model, folder: str | Path, *, which: str | None = None, predictor: Predictor | None = None, size: int | None = None,
    frames: int | None = None,
) -> Path:  # fmt: skip
    """Write config.json and model.safetensors; `transformers.VJEPA2Model.from_pretrained(folder)` then computes the same.

    model   a run (or its folder) or an Encoder; `which` as `Run.encoder` takes it. A run's predictor goes along, as it was when the encoder
            was, unless it has several levels, which VJEPA2Model has not (from_pretrained then says that its predictor is new).
    size    pixels a side, frames per clip: what the run trained on; the exported model takes clips of this size alone, because it reads
            rows and columns off a token's number. Of a bare encoder they must be given.
    Only one level, the last, is written. Raises WeightsError for what VJEPA2Model cannot compute: fixed positions (V-JEPA 1) and the
    rotary style of V-JEPA 2.1, which is our default too; a run to be exported is one with `rope="vjepa2"`.
    """
    if not isinstance(model, Encoder):
        from vjepa_lab.training.runs import Run, load_run

        run = model if isinstance(model, Run) else load_run(model)
        size, frames = size or run.preset.size, frames or run.preset.frames
        which = which or run.config["probe"]
        model = run.encoder(which)
        predictor = predictor or run.model(trained=which != "initial").predictor
    if size is None or frames is None:
        raise WeightsError("export of a bare encoder needs size= (pixels) and frames=: the exported model is made for one size")
    if predictor is not None and predictor.proj_context is not None:
        predictor = None  # several levels, or a projection of its own for seen places: VJEPA2Model has neither
    _check(model, "an encoder", size, model.patch)
    if predictor is not None:
        _check(predictor, "a predictor", size, model.patch)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    last = max(map(int, model.norms))
    kept = {name: value for name, value in state.items() if not name.startswith("norms.") or name.startswith(f"norms.{last}.")}
    if model.patch_embed_img is not None:  # the mark of videos becomes part of the patches' bias; images go through the videos' patches
        kept["patch_embed.bias"] = kept["patch_embed.bias"] + kept["video_mod_embed"].flatten()
        kept = {name: value for name, value in kept.items() if not name.startswith("patch_embed_img.") and "mod_embed" not in name}
    named = to_hf(kept, predictor and predictor.state_dict(), last, (model.tubelet, model.patch, model.patch))

    from safetensors.torch import save_file

    from vjepa_lab.files import replacing

    with replacing(folder / "model.safetensors") as part:
        save_file(named, part, metadata={"format": "pt"})
    with replacing(folder / "config.json") as part:
        part.write_text(json.dumps(_config(model, predictor, size, frames), indent=1) + "\n")
    return folder


def _check(part: Encoder | Predictor, what: str, size: int, patch: int) -> None:
    if part.position != "rope" or part.rope != "vjepa2":
        kind = "fixed positions" if part.position != "rope" else f"the rotary style {part.rope!r}"
        raise WeightsError(
            f"VJEPA2Model cannot compute {what} with {kind}: it has V-JEPA 2's rotary style alone, which is another function;"
            ' train the run to be exported with rope="vjepa2"'
        )
    if part.rope_base_grid not in (None, size // patch):
        raise WeightsError(f"VJEPA2Model cannot stretch positions onto a grid of {part.rope_base_grid}")
    if size % patch:
        raise WeightsError(f"size={size} does not divide into patches of {patch}")


def _config(encoder: Encoder, predictor: Predictor | None, size: int, frames: int) -> dict:
    config = {
        "architectures": ["VJEPA2Model"], "model_type": "vjepa2", "patch_size": encoder.patch, "crop_size": size, "frames_per_clip": frames,
        "tubelet_size": encoder.tubelet, "hidden_size": encoder.dim, "num_attention_heads": encoder.heads,
        "num_hidden_layers": encoder.depth, "mlp_ratio": _ratio(encoder), "layer_norm_eps": 1e-6, "qkv_bias": True, "hidden_act": "gelu",
        "torch_dtype": "float32",
    }  # fmt: skip
    if predictor is None:  # VJEPA2Model always has one: a small one, that from_pretrained says is new
        return config | {"pred_num_hidden_layers": 1, "pred_num_mask_tokens": 1}
    return config | {
        "pred_hidden_size": predictor.dim, "pred_num_attention_heads": predictor.heads, "pred_num_hidden_layers": len(predictor.blocks),
        "pred_num_mask_tokens": len(predictor.mask_tokens), "pred_mlp_ratio": 4.0,
    }  # fmt: skip


def _ratio(encoder: Encoder) -> float:
    """Hidden width over width, such that int(width * ratio), which Hugging Face takes, is the hidden width."""
    hidden = encoder.blocks[0].mlp.fc1.out_features
    ratio = hidden / encoder.dim
    return ratio if int(encoder.dim * ratio) == hidden else math.nextafter(ratio, math.inf)
