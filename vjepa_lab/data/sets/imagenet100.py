"""ImageNet-100: 100 classes of ImageNet-1k, about 126,689 training and 5,000 validation images.

There is no single definition. This is the list of Tian et al., "Contrastive Multiview Coding" (HobbitLong/CMC @7b227be, imagenet100.txt),
used by most self-supervised work; a file imagenet100.txt beside the data, or `classes=FILE`, takes its place. Labels follow the sorted
ids, as torchvision's ImageFolder numbers them, not the order of the list.
"""

from __future__ import annotations

from pathlib import Path

from ..core import DataError
from ..listing import Clip, Listing
from ..video import is_image
from .common import choose, need, read_lines

LAYOUT = """  train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, of ImageNet-1k or of the 100 classes alone (also folders 0..99)
  imagenet100.txt (optional: one wnid per line)"""
OFFICIAL = {"train": 126689, "val": 5000}
CLASSES = 100

CMC = """
n02869837 n01749939 n02488291 n02107142 n13037406 n02091831 n04517823 n04589890 n03062245 n01773797 n01735189 n07831146
n07753275 n03085013 n04485082 n02105505 n01983481 n02788148 n03530642 n04435653 n02086910 n02859443 n13040303 n03594734
n02085620 n02099849 n01558993 n04493381 n02109047 n04111531 n02877765 n04429376 n02009229 n01978455 n02106550 n01820546
n01692333 n07714571 n02974003 n02114855 n03785016 n03764736 n03775546 n02087046 n07836838 n04099969 n04592741 n03891251
n02701002 n03379051 n02259212 n07715103 n03947888 n04026417 n02326432 n03637318 n01980166 n02113799 n02086240 n03903868
n02483362 n04127249 n02089973 n03017168 n02093428 n02804414 n02396427 n04418357 n02172182 n01729322 n02113978 n03787032
n02089867 n02119022 n03777754 n04238763 n02231487 n03032252 n02138441 n02104029 n03837869 n03494278 n04136333 n03794056
n03492542 n02018207 n04067472 n03930630 n03584829 n02123045 n04229816 n02100583 n03642806 n04336792 n03259280 n02116738
n02108089 n03424325 n01855672 n02090622
""".split()  # noqa: SIM905


def listing(root, split: str = "train", classes: str | None = None) -> Listing:
    """The images of the 100 classes; "test" is the validation part (ImageNet's test labels are not public)."""
    part = choose("ImageNet-100", split, {"train": "train", "val": "val", "test": "val"})
    base = need("ImageNet-100", root, part, layout=LAYOUT)
    folders = {path.name for path in base.iterdir() if path.is_dir()}
    if not folders:
        raise DataError(f"ImageNet-100: {base} has no class folders; sort the images into {part}/<wnid>/ first (the devkit says which)")
    names, note = _classes(Path(root), classes, folders)
    absent = [name for name in names if name not in folders]
    if len(absent) == len(names):
        raise DataError(f"ImageNet-100: {base} has none of the {len(names)} classes ({note}); found {', '.join(sorted(folders)[:5])}")
    notes = (note,) + ((f"{len(absent)} of {len(names)} classes are not in this copy: {', '.join(absent[:5])}",) if absent else ())
    clips = [
        Clip(str(path), {"class": label})
        for label, name in enumerate(names)
        if name in folders
        for path in sorted((base / name).iterdir())
        if is_image(path) and path.name[0] != "."
    ]
    return Listing("imagenet100", split, clips, {"class": names}, notes)


def _classes(root: Path, given: str | None, folders: set[str]) -> tuple[list[str], str]:
    """Class ids in label order, and where they come from."""
    file = Path(given) if given else root / "imagenet100.txt"
    if given or file.is_file():
        return sorted(line.split()[0] for line in read_lines(file)), f"classes of {file.name}"
    if folders == {str(i) for i in range(len(folders))}:
        return [str(i) for i in range(len(folders))], "folders are numbered, labels are those numbers"
    return sorted(CMC), "classes of the CMC list"
