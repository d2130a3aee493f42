"""The clips that an explorer looks through."""

from __future__ import annotations

from .. import data as video


def opened(data, split: str, size, clips: int) -> video.Source:
    """`data` where it is a Source; else one split of what `data.open` takes by that name, without augmentation, `clips` of it at most.

    size  a preset. Raises ValueError for less than one clip
    """
    from ..data import still

    if clips < 1:
        raise ValueError(f"clips={clips}: expected 1 clip to look at, or more")
    return data if isinstance(data, video.Source) else still(data, split, size, clips)
