"""One file from a URL: with a bar, resumed where it stopped, checked."""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import shutil
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from urllib.parse import urlparse

import torch
from tqdm.auto import tqdm

from vjepa_lab.training import locks

from .files import WeightsError

CHUNK = 1 << 20
VOID_AFTER_S = 120.0
"""Silence after which a process of another machine has lost its download."""
LOST = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


def is_url(text: object) -> bool:
    return urlparse(str(text)).scheme in ("http", "https")


def fetch(
    url: str,
    sha256: str | None = None,
    folder: str | Path | None = None,
    *,
    attempts: int = 5,
    timeout: float = 30.0,
    progress: bool = True,
) -> Path:
    """The file at `url`, in `folder` (by default torch.hub's), downloaded unless it is there.

    A download that stops is resumed, up to `attempts` times in one call and by the next call; the file gets its name only when it is
    whole. Of several processes that want it one downloads, and the others wait for it. NAME.url beside the file says where it comes from;
    a file without it, put there by hand or by another program, is used as it is, with a warning unless `sha256` says that it is right.
    sha256  of the whole file, in hex; checked also where the file was there before
    Raises WeightsError when the server does not give the file, when the file is another one than `sha256` says, and, without it, when the
    file that is there came from another address.
    """
    folder = Path(folder) if folder else Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / (Path(urlparse(url).path).name or "weights")
    if not path.is_file():
        how = {"patience_s": math.inf, "void_after_s": VOID_AFTER_S, "option": "folder="}
        with locks.hold(folder, name=path.name + ".lock", **how) as held:
            if not path.is_file():  # which another process may have made by now
                _whole(url, path, sha256, attempts, timeout, progress, held)
                return path
    if sha256:
        check(path, sha256, url)
    else:
        _same_source(path, url)
    return path


def _same_source(path: Path, url: str) -> None:
    """Raise WeightsError unless a file that is there came from this address; warn where nothing says so."""
    try:
        known = _source(path).read_text().strip()
    except FileNotFoundError:
        warnings.warn(
            f"{path} is used as it is: nothing beside it says that it is {url}. "
            "weights.open(..., sha256=) checks it; or remove it to download it",
            stacklevel=3,
        )
        return
    if known != url:
        raise WeightsError(
            f"{path} comes from {known}, and not from {url}; name another folder with weights.open(..., folder=), or remove it"
        )


def _whole(url: str, path: Path, sha256: str | None, attempts: int, timeout: float, progress: bool, held: locks.Held) -> None:
    """Download, check, and give the file its name."""
    part = path.with_name(path.name + ".part")
    if _source(part).exists() and _source(part).read_text().strip() != url:
        _discard(part)
    for attempt in range(attempts):
        try:
            _go_on(url, part, timeout, progress, held)
            break
        except urllib.error.HTTPError as error:
            raise WeightsError(
                f"{url}: the server answers {error.code} ({error.reason}); check the address, or pass a local path"
            ) from None
        except LOST as error:
            if attempt + 1 == attempts:
                have = part.stat().st_size if part.exists() else 0
                reason = getattr(error, "reason", error)
                raise WeightsError(
                    f"{url}: the download stopped after {have:,} bytes ({reason}); the same call goes on from there"
                ) from None
    if sha256:
        check(part, sha256, url)
    held.check()
    _source(path).write_text(url + "\n")
    part.replace(path)
    _discard(part)


def digest(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path, sha256: str, name: str) -> None:
    """Raise WeightsError, and remove a partial file, unless the file has this checksum."""
    if (found := digest(path)) == sha256.lower():
        return
    if path.suffix == ".part":
        _discard(path)
        raise WeightsError(f"{name}: what came has sha256 {found}, expected {sha256}; it was thrown away")
    raise WeightsError(f"{path}: sha256 is {found}, expected {sha256}; remove the file to download it again")


def _tag(part: Path) -> Path:
    """Where the server's mark of the version that `part` is of is kept."""
    return part.with_name(part.name + ".json")


def _source(file: Path) -> Path:
    """Where the address that a file comes from is kept."""
    return file.with_name(file.name + ".url")


def _discard(part: Path) -> None:
    """Remove a partial file with what is kept beside it."""
    for file in (part, _tag(part), _source(part)):
        file.unlink(missing_ok=True)


def _go_on(url: str, part: Path, timeout: float, progress: bool, held: locks.Held) -> None:
    """Download what `part` lacks; all of it where the server cannot resume, or has another version by now."""
    have, version = part.stat().st_size if part.exists() else 0, None
    if have and _tag(part).exists():
        version = json.loads(_tag(part).read_text())
    request = urllib.request.Request(url, headers={"User-Agent": "vjepa_lab", "Accept-Encoding": "identity"})
    if version:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version)
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing lies beyond what is there: it is whole, or of another version
            raise
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
            return
        part.unlink()
        return _go_on(url, part, timeout, progress, held)
    with response:
        resumed = response.status == 206
        have = have if resumed else 0
        left = int(response.headers.get("Content-Length") or 0)
        _source(part).write_text(url + "\n")
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if version and not version.startswith("W/"):
            _tag(part).write_text(json.dumps(version))
        if left > shutil.disk_usage(part.parent).free:
            raise WeightsError(
                f"{part.parent} has too little space for the {left:,} bytes that {url} still needs; "
                "name another folder with weights.open(..., folder=)"
            )
        bar = tqdm(total=have + left or None, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=not progress)
        with bar, part.open("ab" if resumed else "wb") as file:
            got = 0
            while chunk := response.read(CHUNK):
                held.check()
                file.write(chunk)
                got += len(chunk)
                bar.update(len(chunk))
        if got < left:
            raise ConnectionError(f"{left - got:,} bytes are missing")
