"""From a data set's name to its clips."""

from __future__ import annotations

import inspect
import os
from difflib import get_close_matches
from pathlib import Path

from .core import DataError, Source, check_options
from .listing import list_folder, list_manifest


def is_synthetic(spec) -> bool:
    """Whether a name is that of a synthetic world, "synthetic" or "synthetic:...", so that `open` reads no files; not so of a mixture."""
    return isinstance(spec, str | Path) and str(spec).partition(":")[0] == "synthetic" and " + " not in str(spec)


def open(
    spec,
    split: str = "train",
    *,
    frames: int = 8,
    size: int = 64,
    stride: int = 2,
    seed: int = 0,
    cache=None,
    **options,
) -> Source:
    """The source that `spec` names, one split of it.

    synthetic            the factor world; also synthetic:trs8, synthetic:dirs8, synthetic:compositional, synthetic:spurious
    FOLDER               one folder per class, with videos, images or both
    FILE.csv, FILE.txt   lines of `path label`, or a table with a header
    WEIGHT*SPEC + ...    a mixture of any of these, every sample drawn by weight: "0.2*ucf101:A + 0.6*ssv2:B + 0.2*imagenet100:C"
    NAME:ROOT            a data set as it is distributed: ucf101, ssv2, diving48, imagenet100, hmdb51, moments, ava, kinetics

    time:SPEC            any videos, played forwards, backwards, frozen, shuffled or at double speed: dynamics known, appearance real
    kenburns:SPEC        any images under a camera that does one of eight motions

    `frames` a clip (1: images), `size` pixels square, every `stride`-th frame of a video (a synthetic clip fills its frames exactly).
    `options` go to the set's listing, to `Files` or to the synthetic world. `cache="memory"` keeps the clips of a fixed source in memory;
    `cache=FOLDER` keeps decoded videos there, at a short side of 8/7 of `size` (a `Cache` sets its own).
    A `Source` is given back as it is. Raises DataError when there is nothing to open under that name, or an option is unknown.
    """
    if isinstance(spec, Source):
        return spec
    if not isinstance(spec, str | Path) or not str(spec).strip():
        raise DataError(f"data={spec!r}: expected a name such as 'synthetic', a folder, a manifest, a mixture or a Source")
    name, _, rest = str(spec).partition(":")
    pace = [f"{option}={options[option]}" for option in ("fps", "whole") if options.get(option)]
    if is_synthetic(spec) and pace:
        said = f"{', '.join(pace)}: clips of {spec} are drawn as long as they are, frames are chosen of videos only; leave it out"
        raise DataError(said)
    if is_synthetic(spec) and options.get("augment") is False:  # its clips never are
        del options["augment"]
    options |= {"frames": frames, "size": size, "seed": seed}
    files = {"stride": stride, **_disk(cache, size)}
    given = {"split": split, **options}
    if not is_synthetic(spec):  # a world knows neither
        given |= {"stride": stride} | ({"cache": str(cache) if isinstance(cache, Path) else cache} if "cache" in files else {})
    if " + " in str(spec) and not Path(spec).exists():
        source = _mixture(str(spec), split, **options, **files)
    elif name in ("time", "kenburns") and rest:
        source = _edited(name, rest, split, **options, **files)
    elif is_synthetic(spec):
        from .synthetic import world

        source = world(rest, split, **options)
    else:
        source = _files(str(spec), split, {**options, **files})
    if cache == "memory":
        from .memory import Memory

        source = Memory(source)
    source.spec, source.options = str(spec), given
    return source


def _disk(cache, size: int) -> dict:
    """The disk cache that `cache` asks for, as an option of `Files`."""
    if cache is None or cache == "memory":
        return {}
    from .cache import Cache

    return {"cache": cache if isinstance(cache, Cache) else Cache(cache, side=-(-size * 8 // 7))}


def _edited(name: str, spec: str, split: str, frames: int, size: int, seed: int, **options) -> Source:
    """Real pixels with made dynamics; the inner source gives the frames or the image that they are made from."""
    from .edited import KenBurns, TimeEdit

    if name == "time":
        return TimeEdit(_part(spec, split, frames=2 * frames, size=size, seed=seed, **options), seed)
    image = _part(spec, split, frames=1, size=2 * size, seed=seed, **{"augment": False, **options})
    return KenBurns(image, frames, size, seed)


def _mixture(spec: str, split: str, **options) -> Source:
    """A mixture from its written form; a part without a weight has 1. Options go to every part."""
    from .mixture import Mixture

    sources, weights = [], []
    for part in spec.split(" + "):
        weight, star, rest = part.partition("*")
        try:
            weights.append(float(weight) if star else 1.0)
        except ValueError as error:
            raise DataError(f"{weight!r} in the mixture {spec!r} is no weight; write WEIGHT*SPEC + WEIGHT*SPEC") from error
        sources.append(_part((rest if star else part).strip(), split, **options))
    return Mixture(sources, weights, split)


def _part(spec: str, split: str, **options) -> Source:
    """A part of a whole whose options go to all parts: whether clips are to be augmented is nothing to a world."""
    if is_synthetic(spec):
        options.pop("augment", None)
    return open(spec, split, **options)


def _files(spec: str, split: str, options: dict) -> Source:
    """A source of files; options that its listing takes go there, the rest to `Files`."""
    from .files import Files

    lister, root = lister_of(spec)
    check_options(Files, options, spec, also=inspect.signature(lister).parameters)
    own = {name: options.pop(name) for name in inspect.signature(lister).parameters if name in options}
    return Files(lister(root, split, **own), **options)


def lister_of(spec: str):
    """The function that lists what `spec` names, and the path to give it; a leading ~ is one's home, also after the colon, where shells
    leave it."""
    spec = os.path.expanduser(spec)
    name, _, root = spec.partition(":")
    root = os.path.expanduser(root)
    if Path(spec).is_dir():
        return list_folder, spec
    if Path(spec).is_file():
        return list_manifest, spec
    from .sets import SETS

    if name in SETS and root:
        return SETS[name].listing, root
    near = get_close_matches(name, SETS) if root else []
    hint = (
        f"did you mean {near[0]}:{root}?"
        if near
        else f"the parts of a mixture stand apart: {' + '.join(part.strip() for part in spec.split('+'))}"
        if "+" in spec and "*" in spec
        else "a weight is for the parts of a mixture; leave it out here"
        if "*" in spec
        else f"use synthetic, a folder, a manifest file, or NAME:ROOT with NAME one of {', '.join(SETS)}"
    )
    raise DataError(f"no data set is called {spec!r}, and no such file or folder exists; {hint}")
