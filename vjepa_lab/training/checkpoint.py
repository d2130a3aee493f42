"""Checkpoints: put in place whole or not at all, checked when they are read, the ones before kept."""

import hashlib
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from vjepa_lab.files import replacing


class DamagedCheckpoint(ValueError):
    """A checkpoint that cannot be read, or whose content is not what was written."""


def kept(path: Path, keep: int) -> list[Path]:
    """The file and the ones before it, newest first: last.pt, last-1.pt, ..."""
    return [path, *(path.with_name(f"{path.stem}-{age}{path.suffix}") for age in range(1, keep))]


def save(state: dict, path: Path, keep: int = 1) -> None:
    """Write a state with its checksum; of the older ones `keep` - 1 stay. Raises OSError, with the old ones as they were, if it cannot."""
    state = to_cpu(state)
    try:
        with replacing(path) as part:
            with part.open("wb") as file:
                torch.save(state | {"checksum": checksum(state)}, file)
                file.flush()
                os.fsync(file.fileno())  # a disk may say only now that it is full, and nothing is to be moved before that
            _rotate(kept(path, keep))
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        why = cause.strerror if isinstance(cause, OSError) else str(error)
        raise OSError(
            f"{path}: the checkpoint cannot be written ({why}); the one before is intact. Make room, then the same call goes on from it"
        ) from error


def _rotate(names: list[Path]) -> None:
    """Each file becomes the one before it. The newest stays in place as well, where links exist, until it is replaced."""
    for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
        if not newer.exists():
            continue
        older.unlink(missing_ok=True)
        try:
            os.link(newer, older)
        except OSError:
            newer.replace(older)


def load(path: Path, device: torch.device | str = "cpu") -> dict:
    """A state as it was saved; only tensors and plain values are read. Raises FileNotFoundError; DamagedCheckpoint, naming the file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        told = state.pop("checksum", None)  # files of other programs have none
    except FileNotFoundError:
        raise
    except Exception as error:  # what a reader of pickles says of bytes that are none has no end
        raise DamagedCheckpoint(f"{path}: damaged, or no checkpoint ({str(error).splitlines()[0] if str(error) else error!r})") from error
    if told is not None and told != checksum(state):
        raise DamagedCheckpoint(f"{path}: damaged, its content does not match its checksum")
    return _each(state, lambda x: x.to(device))


def newest(path: Path, keep: int = 100) -> tuple[Path, dict] | None:
    """The newest readable of `path` and the ones before it, with its state; None if there is none at all.

    Warns of each damaged one, by name. Raises DamagedCheckpoint if all of them are.
    """
    there, broken = [name for name in kept(path, keep) if name.exists()], None
    for name in there:
        try:
            return name, load(name)
        except DamagedCheckpoint as error:
            broken = error
            warnings.warn(f"{error}; going back to the checkpoint before it", stacklevel=2)
    if broken is not None:
        raise DamagedCheckpoint(f"{broken}; no older one is readable. Remove {path.parent} to start again") from broken
    return None


def checksum(state) -> str:
    """sha256 of a nested state: its keys, its plain values and the bytes of its tensors, whatever the layout of the file."""
    digest = hashlib.sha256()

    def add(value) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                digest.update(f"{key!r}:".encode())
                add(inner)
        elif isinstance(value, list | tuple):
            digest.update(f"[{len(value)}".encode())
            for inner in value:
                add(inner)
        elif isinstance(value, Tensor):
            flat = value.detach().cpu().contiguous()
            digest.update(f"{flat.dtype} {tuple(flat.shape)}".encode())
            digest.update(flat.flatten().view(torch.uint8).numpy())
        else:
            digest.update(repr(value).encode())

    add(state)
    return digest.hexdigest()


def to_cpu(state):
    return _each(state, lambda x: x.detach().cpu())


def _each(value, change):
    """A nested state with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each(inner, change) for key, inner in value.items()}
    return type(value)(_each(inner, change) for inner in value) if isinstance(value, list | tuple) else value
