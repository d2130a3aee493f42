"""The clips that an explorer looks through."""

from __future__ import annotations

from .. import data as video
from ..presets import whole


def opened(data, split: str, size, clips: int) -> video.Source:
    """`data` where it is a Source; else one split of what `data.open` takes by that name, without augmentation, `clips` of it at most.

    size  a preset. Raises ValueError for clips that are no whole number from 1 on
    """
    from ..data import still

    whole(1, clips=clips)
    return data if isinstance(data, video.Source) else still(data, split, size, clips)
