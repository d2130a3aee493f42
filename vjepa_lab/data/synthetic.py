"""A procedural world of known factors: one object, drawn from independent appearance factors, doing one of eight motions.

Torus rule: position, angle and log-size each live on a torus, start anywhere on it with equal chance, and only the motion's own axis
moves. Every single frame then looks alike under every motion: motion can be read from change alone, appearance from any frame.
A clip is fully determined by (seed, split, law, index), at any number of frames and any size.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .core import DataError, Sample, Source, check_options, known
from .dirs8 import Dirs8
from .scenes import CAMERAS, FACTORS, HUES, MOTIONS, SIZES, SPEEDS, TINTS, Scene, render
from .shapes import SHAPES, rgb

APPEARANCE, DYNAMICS = ("shape", "hue", "texture", "tint"), ("motion", "speed")
CLIPS = {"train": 4000, "val": 500, "test": 1000}
LAWS = ("iid", "compositional", "spurious")


class FactorMotion(Source):
    """The factor world: shape 5 x hue 4 x texture 3 x background tint 4, and motion 8 x speed 3, all independent.

    `law` says how shape and motion go together:
    `iid`            independent, in every split;
    `compositional`  a fifth of the shape x motion cells (a Latin square) occurs in the test split only, and nothing else does there;
    `spurious`       shape tells the motion in 90 % of the training and validation clips, and nothing about it in the test split.
    With one frame there is no motion, so an image has appearance labels only. "class" is the motion (with two events their order, of an
    image the shape).

    Dials that make it harder; none changes what the plain world would draw:
    `events=2`   another motion in the second half (labels `then`, and `order`, which no bag of motions tells: whether the first
                 motion's index is the greater). Two limits: one of the two motions alone tells it in 11/14 = 78.6 % of the clips
                 (chance is 50 %), and it is a function of both, so who reads motions better reads `order` better;
    `camera`     the picture pans or tilts (label `camera`);
    `clutter`    so many bystanders, which do not move by themselves;
    `contrast`   of the object to the ground, down from 1;  `noise` of the sensor, standard deviation of 255.
    And dials that make it easier, so that a small model learns in minutes:
    `sizes`      of the object, smallest and largest, as a share of the picture;  `ground` strength of its pattern, 0: flat;
    `colours=False`  one hue and one tint for all (and no such labels): nothing that is the same in all tokens of a clip can be guessed.
    """

    fixed = True

    def __init__(
        self,
        split: str = "train",
        *,
        frames: int = 8,
        size: int = 64,
        seed: int = 0,
        n: int | None = None,
        law: str = "iid",
        factors: tuple[str, ...] | None = None,
        events: int = 1,
        camera: bool = False,
        clutter: int = 0,
        contrast: float = 1.0,
        noise: float = 0.0,
        sizes: tuple[float, float] = SIZES,
        ground: float = 1.0,
        colours: bool = True,
    ):
        self.split, self.name = known("split", split, CLIPS), "synthetic"
        self.law, self.frames, self.size, self.seed = known("law", law, LAWS), frames, size, seed
        self.ids = range(CLIPS[split] if n is None else n)
        if frames < 1 or size < 8 or not self.ids:
            raise DataError(f"synthetic clips need frames >= 1, size >= 8 and n >= 1; got frames={frames}, size={size}, n={n}")
        if events not in (1, 2) or clutter < 0 or noise < 0 or not 0 < contrast <= 1:
            dials = f"events={events}, clutter={clutter}, contrast={contrast}, noise={noise}"
            raise DataError(f"a synthetic clip has 1 or 2 events, clutter >= 0, noise >= 0 and contrast in (0, 1]; got {dials}")
        if not 0 < sizes[0] <= sizes[1] <= 1 or not 0 <= ground <= 1:
            raise DataError(f"sizes are (smallest, largest) in (0, 1], ground lies in [0, 1]; got sizes={sizes}, ground={ground}")
        self.events, self.camera, self.clutter, self.contrast, self.noise = events, camera, clutter, contrast, noise
        self.sizes, self.ground, self.colours = tuple(sizes), ground, colours
        seen = APPEARANCE if colours else tuple(name for name in APPEARANCE if name not in ("hue", "tint"))
        drawn = seen + DYNAMICS + ("then", "order") * (events == 2) + ("camera",) * camera
        names = [known("factor", name, drawn) for name in factors or drawn if frames > 1 or name in APPEARANCE]
        if not names:
            raise DataError(f"{', '.join(factors)} cannot be seen in one frame; it needs frames >= 2")
        self._main = "shape" if frames == 1 else "order" if events == 2 else "motion"
        self.classes = {"class": FACTORS[self._main], **{name: FACTORS[name] for name in names}}

    def __len__(self) -> int:
        return len(self.ids)

    def scene(self, index: int) -> Scene:
        """Draw the factors of clip `index`."""
        rng = np.random.default_rng((self.seed, list(CLIPS).index(self.split), LAWS.index(self.law), self.ids[index]))
        u = rng.random(20)
        labels = {name: int(x * len(FACTORS[name])) for name, x in zip(APPEARANCE + DYNAMICS, u, strict=False)}
        labels["shape"] = self._shape(labels["shape"], labels["motion"], u[6], u[7])
        if not self.colours:
            labels |= {"hue": 2, "tint": 0}
        hue = HUES[FACTORS["hue"][labels["hue"]]] + 0.06 * (u[9] - 0.5)
        tint = rgb(TINTS[FACTORS["tint"][labels["tint"]]] + 0.06 * (u[10] - 0.5), 0.3 + 0.2 * u[17], 1.0)
        ground = tint * np.float32(90 / 255)
        scene = Scene(
            labels,
            phase=u[11:15],
            velocity=_velocity(labels["motion"], labels["speed"], u[8]),
            colour=ground + np.float32(self.contrast) * (rgb(hue, 0.75 + 0.25 * u[15], 0.85 + 0.15 * u[16]) - ground),
            tint=tint,
            seed=int(u[18] * 2**32),
            noise=self.noise,
            sizes=self.sizes,
            ground=self.ground,
        )
        return self._complicated(scene, rng, u[8])

    def _complicated(self, scene: Scene, rng: np.random.Generator, pace: float) -> Scene:
        """The scene with what the dials add; its own draws come after the plain scene's, which they leave as it is."""
        u = rng.random(4)
        labels, then, camera = dict(scene.labels), None, (0.0, 0.0)
        if self.events == 2:
            labels["then"] = (labels["motion"] + 1 + int(u[0] * (len(MOTIONS) - 1))) % len(MOTIONS)
            labels["order"] = int(labels["motion"] > labels["then"])
            then = _velocity(labels["then"], labels["speed"], pace)
        if self.camera:
            labels["camera"] = int(u[1] * len(CAMERAS))
            camera = np.multiply(CAMERAS[FACTORS["camera"][labels["camera"]]], 0.1 + 0.15 * u[2])
        things = tuple(self._thing(rng, camera) for _ in range(self.clutter))
        return replace(scene, labels=labels, then=then, camera=camera, clutter=things)

    @staticmethod
    def _thing(rng: np.random.Generator, camera) -> Scene:
        """A bystander: any object, anywhere, which does not move by itself."""
        u = rng.random(9)
        labels = {"shape": int(u[0] * len(SHAPES)), "texture": int(u[1] * len(FACTORS["texture"]))}
        return Scene(labels, u[2:6], np.zeros(4), rgb(u[6], 0.6 + 0.4 * u[7], 0.5 + 0.5 * u[8]), np.zeros(3), 0, camera=camera)

    def _shape(self, shape: int, motion: int, u: float, v: float) -> int:
        shapes = len(SHAPES)
        if self.law == "compositional":  # the held-out cells are the diagonal of the square
            return motion % shapes if self.split == "test" else (motion + 1 + int(u * (shapes - 1))) % shapes
        if self.law == "spurious" and self.split != "test":
            return motion % shapes if u < 0.9 else (motion + 1 + int(v * (shapes - 1))) % shapes
        return shape

    def _labels(self, scene: Scene) -> dict[str, int]:
        return {name: scene.labels[self._main if name == "class" else name] for name in self.classes}

    def read(self, index: int, epoch: int = 0) -> Sample:
        scene = self.scene(index)
        return Sample(torch.from_numpy(render(scene, self.frames, self.size)), self._labels(scene), index, self.frames == 1)

    @cached_property
    def labels(self) -> dict[str, Tensor]:
        rows = [self._labels(self.scene(index)) for index in range(len(self))]
        return {name: torch.tensor([row[name] for row in rows]) for name in self.classes}


def _velocity(motion: int, speed: int, u: float) -> np.ndarray:
    """`[4]` torus lengths per clip."""
    axis, direction = MOTIONS[FACTORS["motion"][motion]]
    low, high = SPEEDS[FACTORS["speed"][speed]]
    velocity = np.zeros(4)
    velocity[axis] = direction * (low + (high - low) * u)
    return velocity


TASKS = {
    "": (FactorMotion, {}),
    "trs8": (FactorMotion, {"factors": ("motion",)}),
    "dirs8": (Dirs8, {}),
    "plain": (FactorMotion, {"sizes": (0.35, 0.65), "ground": 0.0, "colours": False}),
    "order": (FactorMotion, {"events": 2, "factors": ("order", "motion", "then")}),
    "plain-order": (FactorMotion, {"sizes": (0.35, 0.65), "ground": 0.0, "colours": False, "events": 2}),
    "compositional": (FactorMotion, {"law": "compositional"}),
    "spurious": (FactorMotion, {"law": "spurious"}),
}
"""What "synthetic:NAME" opens: trs8 is the factor world with the motion (translation, rotation, scaling) as its only label, plain
has a larger object of one colour on a flat ground, order asks for that of two events, plain-order does so in the plain world."""


def world(task: str = "", split: str = "train", **options) -> Source:
    """The synthetic source that `synthetic:task` names."""
    if task not in TASKS:
        raise DataError(f"unknown synthetic task {task!r}; one of {', '.join(filter(None, TASKS))}, or none for the whole factor world")
    make, preset = TASKS[task]
    check_options(make, options, f"synthetic:{task}" if task else "synthetic")
    source = make(split, **preset, **options)
    source.name = f"synthetic:{task}" if task else "synthetic"
    return source


def export(folder, format: str = "folder", **options):
    """Write the world out as files in a real data set's layout; see `layouts.export`, which this calls."""
    from .layouts import export

    return export(folder, format, **options)
