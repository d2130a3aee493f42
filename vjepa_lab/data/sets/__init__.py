"""Data sets in the form in which they are distributed. Each module reads one set's official files: `listing(root, split, ...) -> Listing`,
its `LAYOUT` in words, the `OFFICIAL` number of clips per split, and its number of `CLASSES`."""

from . import ava, diving48, hmdb51, imagenet100, kinetics, moments, ssv2, ucf101

SETS = {
    "ucf101": ucf101,
    "ssv2": ssv2,
    "diving48": diving48,
    "imagenet100": imagenet100,
    "hmdb51": hmdb51,
    "moments": moments,
    "ava": ava,
    "kinetics": kinetics,
}
"""What "NAME:ROOT" opens."""
