"""Weights as they are released, read without running anything that is in them."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

State = dict[str, Tensor]
ENCODERS = ("target_encoder", "ema_encoder", "encoder")
"""The slots of a released checkpoint that hold an encoder: teacher (of V-JEPA 2.1's distilled models: its average), student."""


class WeightsError(ValueError):
    """Weights that cannot be used; the message says what was found, what was expected and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file or folder holds, by upstream's names.

    encoders: state by slot (see ENCODERS).  predictor: its state, if there is one.  config: of a Hugging Face folder.
    """

    path: Path
    encoders: dict[str, State]
    predictor: State | None = None
    config: dict | None = None


def read(path: str | Path) -> Checkpoint:
    """A released `.pt` or `.pth.tar` file, a bare state dict of an encoder, or a Hugging Face VJEPA2Model folder.

    Raises WeightsError for anything else, and for pickles that hold more than tensors and plain values.
    """
    path = Path(path)
    if path.is_dir():
        return read_folder(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file or folder")
    if path.suffix == ".safetensors":
        raise WeightsError(f"{path}: give the folder with its config.json, which says how many attention heads there are")
    found = unpickled(path)
    if not isinstance(found, dict) or not found:
        raise WeightsError(f"{path} holds {type(found).__name__}; expected a checkpoint with {', '.join(ENCODERS)}, predictor")
    if all(isinstance(value, Tensor) for value in found.values()):
        return Checkpoint(path, {"encoder": clean(found)})
    encoders = {slot: clean(state_of(found[slot], path, slot)) for slot in ENCODERS if slot in found}
    if not encoders:
        names = ", ".join(map(str, list(found)[:8]))
        raise WeightsError(f"{path} holds {names}; expected one of {', '.join(ENCODERS)}, as the released V-JEPA checkpoints do")
    predictor = clean(state_of(found["predictor"], path, "predictor")) if "predictor" in found else None
    return Checkpoint(path, encoders, predictor)


def unpickled(path: Path):
    """torch.load of tensors and plain values alone, mapped from the disk where the file allows it: optimiser states are never read."""
    zipped = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        detail = error.__context__ or error  # torch's own text is advice to load it nevertheless
        if found := re.search(r"GLOBAL (\S+)|unrecognized function (\S+)|unsupported class (\S+)", str(error)):
            name = next(filter(None, found.groups()))
            raise WeightsError(
                f"{path} holds Python objects ({name}), which can run code when they are loaded; it is refused. Ask for the tensors alone,"
                " best as safetensors"
            ) from None
        raise WeightsError(f"{path} is no torch checkpoint, or a damaged one ({_first(detail)}); download it again") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} is no torch checkpoint, or a damaged one ({_first(error)}); download it again") from None


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def state_of(value, path: Path, slot: str) -> State:
    if not isinstance(value, dict) or not value or not all(isinstance(each, Tensor) for each in value.values()):
        raise WeightsError(f"{path}: its {slot!r} is no state dict of tensors")
    return value


def clean(state: State) -> State:
    """Names without the wrappers' `module.` and `backbone.`, wherever they stand (as vjepa2's hub does)."""
    return {name.replace("module.", "").replace("backbone.", ""): value for name, value in state.items()}


def read_folder(folder: Path) -> Checkpoint:
    """A Hugging Face folder: config.json, model.safetensors or its shards; also a video classifier's, whose head is left out."""
    from .keys import upstream_of

    config = read_config(folder)
    state = {}
    for file in shards(folder):
        state |= tensors(file)
    state = {name.removeprefix("vjepa2."): value for name, value in state.items() if not name.startswith(("pooler.", "classifier."))}
    encoder, predictor = upstream_of(state, folder)
    return Checkpoint(folder, {"encoder": encoder}, predictor, config)


def read_config(folder: Path) -> dict:
    """What config.json says; raises WeightsError where it is missing, damaged, or of another model."""
    path = folder / "config.json"
    if not path.is_file():
        raise WeightsError(f"{folder} has no config.json; expected a Hugging Face VJEPA2Model folder")
    config = read_object(path, "the description of a Hugging Face VJEPA2Model")
    if config.get("model_type") != "vjepa2":
        raise WeightsError(f"{path}: model_type is {config.get('model_type')!r}, expected 'vjepa2'")
    return config


def read_object(path: Path, expected: str) -> dict:
    """A JSON object; raises WeightsError, saying what was `expected`, for a file that holds none."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise WeightsError(f"{path} is not valid JSON ({_first(error)}); expected {expected}: download it again") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{path} holds {type(found).__name__}; expected {expected}, a JSON object: download it again")
    return found


def shards(folder: Path) -> list[Path]:
    """model.safetensors, or the files that its index names; raises WeightsError for missing ones and for an index that names none."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not index.is_file():
        raise WeightsError(f"{folder} has no model.safetensors and no {index.name}; pickled weights (.bin) are not read from folders")
    expected = "an index with weight_map, the file of every tensor"
    found = read_object(index, expected)
    places = found.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        names = ", ".join(list(found)[:8]) or "nothing"
        raise WeightsError(f"{index} has no usable weight_map (it holds {names}); expected {expected}: download it again")
    files = [folder / name for name in sorted(set(places.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise WeightsError(f"{folder} lacks {len(missing)} of {len(files)} files that {index.name} names: {', '.join(missing[:5])}")
    return files


def tensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is no safetensors file, or a damaged one ({error}); download it again") from None
