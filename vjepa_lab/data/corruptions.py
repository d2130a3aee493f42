"""Standard corruptions of video at five severities, on uint8 clips `[c f y x]`, on the CPU or a GPU.

Parameters are published ones, named in each docstring:
  A  Mini-Kinetics-C and Mini-SSV2-C: Yi et al., NeurIPS 2021 (arXiv:2110.06513), Newbeeyoung/Video-Corruption-Robustness
  B  UCF101-P and its kin: Schiappa et al., CVPR 2023 (arXiv:2207.01398), Maddy12/ActionRecognitionRobustnessEval
  C  ImageNet-C: Hendrycks and Dietterich, ICLR 2019
Lengths in pixels are meant for pictures 224 wide and scale with the width. Random draws are independent per frame, as in A, or one draw
for the whole clip (`per_frame=False`; fog and translate are always so, as in A and B), and depend on (name, severity, seed) alone.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as N
from torchvision.transforms.v2 import functional as F

from . import codecs
from .core import DataError, Derived, Sample, Source


@dataclass(frozen=True)
class Corruption:
    """A corruption: its kind (`appearance`, `temporal`, `camera`, `codec`) and whether a higher severity was published as a worse one."""

    apply: Callable[[_Draw, Tensor, int], Tensor]
    kind: str
    ordered: bool = True


@dataclass
class _Draw:
    """Random numbers for one clip: per frame, or one frame's for all."""

    generator: torch.Generator
    per_frame: bool

    def _many(self, clip: Tensor, draw, shape: tuple) -> Tensor:
        made = draw((*shape[:1], shape[1] if self.per_frame else 1, *shape[2:]), generator=self.generator, device=clip.device)
        return made.expand(shape)

    def normal(self, clip: Tensor) -> Tensor:
        return self._many(clip, torch.randn, clip.shape)

    def uniform(self, clip: Tensor, shape=None) -> Tensor:
        return self._many(clip, torch.rand, clip.shape if shape is None else shape)

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.generator.initial_seed())

    def order(self, n: int, device) -> Tensor:
        return torch.randperm(n, generator=self.generator, device=device)


CORRUPTIONS: dict[str, Corruption] = {}


def _corruption(kind: str, ordered: bool = True):
    def add(function):
        CORRUPTIONS[function.__name__] = Corruption(function, kind, ordered)
        return function

    return add


def corrupt(clip: Tensor, name: str, severity: int, seed: int = 0, per_frame: bool = True) -> Tensor:
    """`clip [c f y x]` uint8 -> the same shape and type, corrupted; severity 1 to 5. `CORRUPTIONS` lists the names."""
    if name not in CORRUPTIONS:
        raise DataError(f"unknown corruption {name!r}; one of {', '.join(CORRUPTIONS)}")
    if severity not in (1, 2, 3, 4, 5):
        raise DataError(f"severity is {severity}; it must be 1, 2, 3, 4 or 5")
    if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[0] != 3:
        raise DataError(f"a clip [3 f y x] of type uint8 is expected; got {clip.dtype} {list(clip.shape)}")
    generator = torch.Generator(clip.device).manual_seed(zlib.crc32(f"{name} {severity} {seed}".encode()))
    out = CORRUPTIONS[name].apply(_Draw(generator, per_frame), clip, severity)
    return out if out.dtype == torch.uint8 else out.round_().clamp_(0, 255).to(torch.uint8)


class Corrupted(Derived):
    """Every clip of a source, corrupted; the draw belongs to the clip's index, so two runs see the same corrupted clips."""

    def __init__(self, source: Source, name: str, severity: int, seed: int = 0, per_frame: bool = True):
        corrupt(torch.zeros(3, 2, 16, 16, dtype=torch.uint8), name, severity)  # refuse bad arguments here, not in a worker
        super().__init__(source)
        self.name, self.corruption, self.severity, self.seed = f"{source.name}/{name}-{severity}", name, severity, seed
        self.per_frame = per_frame

    def read(self, index: int, epoch: int = 0) -> Sample:
        sample = self.source.read(index, epoch).cut()
        clip = corrupt(sample.clip, self.corruption, self.severity, self.seed * len(self) + index, self.per_frame)
        return Sample(clip, sample.labels, sample.index, sample.still)


def _scaled(pixels: float, clip: Tensor) -> float:
    return pixels * clip.shape[-1] / 224


# appearance: noise


@_corruption("appearance")
def gaussian_noise(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """B, C: normal noise of standard deviation .08 .12 .18 .26 .38."""
    return clip + 255 * (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1] * draw.normal(clip)


@_corruption("appearance")
def shot_noise(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """A, C: Poisson counts of 60 25 12 5 3 photons for white."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    rate = clip.float() / 255 * photons
    if draw.per_frame:
        return torch.poisson(rate, generator=draw.generator) * 255 / photons
    return (rate + rate.sqrt() * draw.normal(clip)) * 255 / photons  # one draw for all frames: the normal limit


@_corruption("appearance")
def impulse_noise(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """B, C: a share .03 .06 .09 .17 .27 of all values becomes black or white."""
    share, u = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1], draw.uniform(clip)
    return torch.where(u < share / 2, 0, torch.where(u < share, 255, clip))


@_corruption("appearance")
def speckle_noise(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """B, C: noise in proportion to the value, .15 .2 .25 .3 .35."""
    return clip * (1 + (0.15, 0.2, 0.25, 0.3, 0.35)[severity - 1] * draw.normal(clip))


# appearance: blur


@_corruption("appearance")
def defocus_blur(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """C: a disc of radius 3 4 6 8 10 pixels."""
    radius = max(_scaled((3, 4, 6, 8, 10)[severity - 1], clip), 0.6)
    reach = math.ceil(radius)
    offset = torch.arange(-reach, reach + 1, device=clip.device)
    disc = (radius + 0.5 - torch.hypot(*torch.meshgrid(offset.float(), offset.float(), indexing="ij"))).clamp(0, 1)
    return _filtered(clip, disc / disc.sum())


@_corruption("appearance")
def zoom_blur(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """C: the mean over zooms from 1 to 1.1 1.15 1.2 1.25 1.3, in steps of .01 (the last three: .02, .02, .03)."""
    far, step = ((1.1, 0.01), (1.15, 0.01), (1.2, 0.02), (1.25, 0.02), (1.3, 0.03))[severity - 1]
    zooms = torch.arange(1, far + step / 2, step).tolist()
    frames = clip.movedim(1, 0).float()
    return (sum(_zoomed(frames, zoom) for zoom in zooms) / len(zooms)).movedim(0, 1)


@_corruption("temporal")
def motion_blur(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """A, for SSV2: the mean over 1 2 3 4 6 frames on either side, fewer at the ends."""
    reach = (1, 2, 3, 4, 6)[severity - 1]
    near = (torch.arange(clip.shape[1])[:, None] - torch.arange(clip.shape[1])).abs() <= reach
    weight = (near / near.sum(1, keepdim=True)).to(clip.device)
    return torch.einsum("gf,cfyx->cgyx", weight, clip.float())


def _filtered(clip: Tensor, kernel: Tensor) -> Tensor:
    """Every channel of every frame, convolved with one kernel; edges are reflected as far as they go."""
    reach_y, reach_x = kernel.shape[0] // 2, kernel.shape[1] // 2
    x = clip.flatten(0, 1)[:, None].float()
    mode = "reflect" if reach_y < clip.shape[-2] and reach_x < clip.shape[-1] else "replicate"
    x = N.pad(x, (reach_x, reach_x, reach_y, reach_y), mode=mode)
    return N.conv2d(x, kernel[None, None]).view(clip.shape)


def _zoomed(frames: Tensor, zoom: float) -> Tensor:
    height, width = frames.shape[-2:]
    inner = [max(1, round(height / zoom)), max(1, round(width / zoom))]
    return F.resize(F.center_crop(frames, inner), [height, width], antialias=False)


# appearance: weather


@_corruption("appearance")
def fog(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """A, C: one bright fractal for the clip, of amplitude 1.5 2 2.5 2.5 3, its octaves decaying by 2 2 1.7 1.5 1.4; the maximum stays."""
    amplitude, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[severity - 1]
    cloud = 0
    for octave in range(1, max(2, int(math.log2(clip.shape[-1]))) + 1):
        coarse = draw.uniform(clip, (1, 1, 2**octave, 2**octave))
        cloud = cloud + N.interpolate(coarse, size=clip.shape[-2:], mode="bilinear") * decay**-octave
    cloud = cloud - cloud.amin((-2, -1), keepdim=True)
    cloud = amplitude * cloud / cloud.amax((-2, -1), keepdim=True)
    most = clip.float().amax((0, 2, 3), keepdim=True) / 255
    return (clip / 255 + cloud) * most / (most + amplitude) * 255


@_corruption("appearance")
def rain(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """Slanted bright streaks in a dimmed picture (our parameters; A draws similar ones): .2 .35 .5 .7 1 % drops, 12 to 28 pixels long."""
    share, length = ((0.002, 12), (0.0035, 16), (0.005, 20), (0.007, 24), (0.01, 28))[severity - 1]
    reach = max(1, round(_scaled(length, clip) / 2))
    drops = (draw.uniform(clip, (1, *clip.shape[1:])) < share).float()
    slant = 0.3 * (2 * torch.rand((), generator=draw.generator, device=clip.device) - 1)
    y = torch.arange(-reach, reach + 1, device=clip.device)
    kernel = torch.zeros(2 * reach + 1, 2 * reach + 1, device=clip.device)
    kernel[y + reach, (y * slant).round().long() + reach] = 1
    streaks = _filtered(drops, kernel).clamp(0, 1)
    return clip * (1 - 0.06 * severity) * (1 - 0.7 * streaks) + 0.7 * 210 * streaks


# appearance: light and colour


@_corruption("appearance")
def contrast(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """A: distances from each frame's mean colour shrink to .5 .4 .3 .2 .1."""
    mean = clip.float().mean((-2, -1), keepdim=True)
    return mean + (0.5, 0.4, 0.3, 0.2, 0.1)[severity - 1] * (clip - mean)


@_corruption("appearance")
def brightness(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """A, C: the HSV value rises by .1 .2 .3 .4 .5."""
    value = clip.amax(0, keepdim=True).float()
    raised = (value + 25.5 * severity).clamp(max=255)
    return torch.where(value > 0, clip * (raised / value.clamp(min=1)), raised)


@_corruption("appearance")
def saturate(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """A, C: the HSV saturation s becomes .3s, .1s, 2s, 5s + .1, 20s + .2 (grey stays grey)."""
    factor, offset = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[severity - 1]
    value, least = clip.amax(0, keepdim=True).float(), clip.amin(0, keepdim=True).float()
    spread = value - least
    old = spread / value.clamp(min=1)
    new = (factor * old + offset).clamp(0, 1)
    return value - (value - clip) * torch.where(spread > 0, new / old.clamp(min=1e-6), 1.0)


# camera


@_corruption("camera")
def static_rotate(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """B: all frames turned by 7.5 15 30 45 90 degrees."""
    return F.rotate(clip.movedim(1, 0), (7.5, 15, 30, 45, 90)[severity - 1], F.InterpolationMode.BILINEAR).movedim(0, 1)


@_corruption("camera")
def rotate(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """B: frames turned by U(-a, a) degrees each, a = 7 13 19 25 31."""
    turns = (2 * draw.uniform(clip, (1, clip.shape[1]))[0] - 1) * (6 * severity + 1)
    return torch.stack(
        [F.rotate(frame, turn, F.InterpolationMode.BILINEAR) for frame, turn in zip(clip.unbind(1), turns.tolist(), strict=True)], 1
    )


@_corruption("camera")
def translate(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """B: the clip shifted by up to 8 16 24 32 40 pixels. Either way and wrapping around, where B moves its crop over a larger picture."""
    reach = max(1, round(_scaled(8 * severity, clip)))
    shift = ((2 * draw.uniform(clip, (2, 1))[:, 0] - 1) * (reach + 0.5)).round().int().tolist()
    return clip.roll(shift, (-2, -1))


# time


@_corruption("temporal")
def frame_rate(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """A, for Kinetics: as if filmed at 20 16 12 9 6 frames a second instead of 25; frames are held."""
    rate = (20, 16, 12, 9, 6)[severity - 1] / 25
    shown = [int(int(frame * rate + 1e-9) / rate + 1 - 1e-9) for frame in range(clip.shape[1])]
    return clip[:, [min(frame, clip.shape[1] - 1) for frame in shown]]


@_corruption("temporal")
def freeze(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """B: of T frames, .4T .2T .1T max(.05T, 2) 1 random ones are shown, each until the next."""
    frames = clip.shape[1]
    kept = max(1, round((0.4 * frames, 0.2 * frames, 0.1 * frames, max(0.05 * frames, 2), 1)[severity - 1]))
    shown = torch.zeros(frames, dtype=torch.long, device=clip.device)
    chosen = draw.order(frames, clip.device)[:kept]
    shown[chosen] = chosen
    shown = shown.cummax(0).values
    return clip[:, torch.where(shown < chosen.min(), chosen.min(), shown)]


@_corruption("temporal", ordered=False)
def reverse(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """B at stride 1: backwards. Every severity is the same (B's strides are a matter of sampling)."""
    return clip.flip(1)


@_corruption("temporal", ordered=False)
def jumble(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """B: frames shuffled within segments of 32 16 8 4 2 (at most the clip). Severity 5 is the mildest, as published: not an order."""
    length = min((32, 16, 8, 4, 2)[severity - 1], clip.shape[1])
    parts = torch.arange(clip.shape[1], device=clip.device).split(length)
    return clip[:, torch.cat([part[draw.order(len(part), clip.device)] for part in parts])]


@_corruption("temporal", ordered=False)
def box_jumble(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """B: segments of 4 9 16 25 36 of 128 frames shuffled, in proportion to the clip's length. Longer ones disturb less: not an order."""
    length = max(1, round((severity + 1) ** 2 * clip.shape[1] / 128))
    parts = torch.arange(clip.shape[1], device=clip.device).split(length)
    return clip[:, torch.cat([parts[at] for at in draw.order(len(parts), clip.device).tolist()])]


# codecs


@_corruption("codec")
def jpeg(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """B, C: every frame through JPEG at quality 25 18 15 10 7."""
    return codecs.jpeg(clip, (25, 18, 15, 10, 7)[severity - 1])


@_corruption("codec")
def h264_crf(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """A: through H.264 at CRF 23 30 37 44 51 (25 frames a second)."""
    return codecs.h264(clip, crf=(23, 30, 37, 44, 51)[severity - 1])


@_corruption("codec")
def h265_crf(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """A: through H.265 at CRF 27 33 39 45 51 (25 frames a second)."""
    return codecs.h265(clip, crf=(27, 33, 39, 45, 51)[severity - 1])


@_corruption("codec")
def h264_abr(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """A: through H.264 at 1/2 1/4 1/8 1/16 1/32 of the bit rate, which is here what the clip takes at CRF 23."""
    return codecs.h264(clip, b=max(1000, codecs.bit_rate(clip) >> severity))


@_corruption("codec")
def h265_abr(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """A: through H.265 at 1/2 1/4 1/8 1/16 1/32 of the bit rate, which is here what the clip takes as H.264 at CRF 23."""
    return codecs.h265(clip, bitrate=max(1, (codecs.bit_rate(clip) >> severity) // 1000))


@_corruption("codec")
def bit_error(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """A: one bit flipped in 100 50 30 20 10 thousand bytes of H.264, one at least.

    A clip at model size has few bytes, so errors are counted per frame, as if one took 2,000 bytes: .02 .04 .067 .1 .2 a frame.
    """
    return codecs.h264(clip, codecs.bit_errors(draw.rng(), (0.02, 0.04, 0.067, 0.1, 0.2)[severity - 1]), crf=23, slices=4)


@_corruption("codec")
def packet_loss(draw: _Draw, clip: Tensor, severity: int) -> Tensor:
    """As A's, our rates: 2 5 10 20 40 % of H.264's slices, four a picture, are lost (none of the first picture); the decoder conceals."""
    return codecs.h264(clip, codecs.losses(draw.rng(), (0.02, 0.05, 0.1, 0.2, 0.4)[severity - 1]), crf=23, slices=4)
