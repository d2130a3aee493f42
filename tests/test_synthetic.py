"""The factor world: determinism, the torus rule, its splits, and the released eight-direction task."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from vjepa_lab import data
from vjepa_lab.data.dirs8 import Dirs8
from vjepa_lab.data.scenes import CAMERAS, FACTORS, MOTIONS, SIZES, render
from vjepa_lab.data.shapes import SHAPES, TEXTURES, distance, unit
from vjepa_lab.data.synthetic import APPEARANCE, LAWS, FactorMotion


def pixels(source, frames=slice(None)):
    """Standardised pixel features `[n p]` of some frames."""
    x = torch.stack([source[i].clip[:, frames] for i in range(len(source))]).flatten(1).float()
    return (x - x.mean(0)) / (x.std(0) + 1)


def ridge(train, labels, test, classes, weight=1e3):
    """Class predictions of a ridge regression onto one-hot labels, in its dual form."""
    target = torch.nn.functional.one_hot(labels, classes).float() - 1 / classes
    dual = torch.linalg.solve(train @ train.T + weight * torch.eye(len(train)), target)
    return (test @ train.T @ dual).argmax(1)


def test_a_clip_is_fixed_by_seed_split_and_index():
    clip = data.open("synthetic", size=32)[7].clip
    assert clip.shape == (3, 8, 32, 32) and clip.dtype == torch.uint8
    assert torch.equal(clip, data.open("synthetic", size=32)[(7, 5)].clip)
    others = data.open("synthetic", size=32, seed=1), data.open("synthetic", "val", size=32), data.open("synthetic:spurious", size=32)
    assert not any(torch.equal(clip, other[7].clip) for other in others)


def test_size_and_frames_change_the_sampling_not_the_scene():
    small, large = (data.open("synthetic", size=size)[3].clip.float() for size in (32, 64))
    pooled = torch.nn.functional.avg_pool2d(large.flatten(0, 1), 2).view_as(small)
    assert (pooled - small).abs().mean() < 8
    coarse, fine = (data.open("synthetic", frames=frames, size=32)[3].clip for frames in (8, 16))
    assert torch.equal(coarse, fine[:, ::2])


def test_labels_match_samples_and_are_uniform():
    source = data.open("synthetic", size=16)
    assert all(int(source.labels[name][i]) == label for i in (0, 11, 3999) for name, label in source[i].labels.items())
    for name, values in source.classes.items():
        counts = torch.bincount(source.labels[name], minlength=len(values)).float()
        expected = len(source) / len(values)
        assert ((counts - expected) ** 2 / expected).sum() < 30, name  # chi-square, at most 7 degrees of freedom


@pytest.mark.parametrize("frame", [0, 4, 7])
def test_torus_rule_every_frame_is_uniform_under_every_motion(frame):
    source = FactorMotion(n=4000, size=8)
    scenes = [source.scene(i) for i in range(len(source))]
    state = np.array([scene.path(8)[frame] for scene in scenes])
    motion = np.array([scene.labels["motion"] for scene in scenes])
    for value in range(8):
        points = np.sort(state[motion == value], axis=0)
        gap = np.abs(points - (np.arange(len(points))[:, None] + 0.5) / len(points)).max(0)  # Kolmogorov-Smirnov
        assert (gap * np.sqrt(len(points)) < 1.95).all()  # p = .001


def test_motion_is_in_the_change_and_not_in_a_frame():
    train, test = FactorMotion(n=1500, size=16), FactorMotion("test", n=600, size=16)
    y, truth = train.labels["motion"], test.labels["motion"]
    one = ridge(pixels(train, slice(3, 4)), y, pixels(test, slice(3, 4)), 8)
    assert (one == truth).float().mean() < 0.125 + 3 * (0.125 * 0.875 / 600) ** 0.5
    hue = ridge(pixels(train, slice(3, 4)), train.labels["tint"], pixels(test, slice(3, 4)), 4)
    assert (hue == test.labels["tint"]).float().mean() > 0.8


@pytest.mark.parametrize("name", MOTIONS)
def test_the_motion_that_is_named_is_the_motion_that_is_seen(name):
    source = FactorMotion(n=400)
    wanted = FACTORS["motion"].index(name), FACTORS["texture"].index("plain")
    scene = next(s for s in map(source.scene, range(400)) if (s.labels["motion"], s.labels["texture"]) == wanted)
    scene = replace(scene, phase=np.array([0.5, 0.5, 0.1, 0.3]), colour=np.ones(3), tint=np.zeros(3))
    cover = torch.from_numpy(render(scene, 8, 64)).float().mean(0) / 255  # [f y x], black ground
    area, axis = cover.sum((1, 2)), torch.arange(64.0)
    x, y = (cover.sum(1) @ axis) / area, (cover.sum(2) @ axis) / area
    seen = {"x": x[1] - x[0], "y": y[1] - y[0], "area": (area[1] - area[0]) / 10}
    if name in ("cw", "ccw"):
        degrees = 360 * abs(scene.velocity[2]) / 8
        turn = {"cw": -degrees, "ccw": degrees}  # torchvision turns counter-clockwise
        errors = {way: (F.rotate(cover[None, 0], by, F.InterpolationMode.BILINEAR)[0] - cover[1]).abs().mean() for way, by in turn.items()}
        assert min(errors, key=errors.get) == name and all(abs(value) < 0.5 for value in seen.values())
    else:
        axis = {"right": "x", "left": "x", "down": "y", "up": "y"}.get(name, "area")
        sign = 1 if name in ("right", "down", "grow") else -1
        assert sign * seen.pop(axis) > 1 and all(abs(value) < 0.5 for value in seen.values())


def test_dials_leave_the_plain_scene_alone():
    plain = FactorMotion(n=20, size=32)
    for dials in ({"camera": True}, {"clutter": 3}, {"noise": 10.0}, {"events": 2}, {"contrast": 0.4}):
        hard = FactorMotion(n=20, size=32, **dials)
        assert all(hard.scene(i).labels | plain.scene(i).labels == hard.scene(i).labels for i in range(20))
        assert not all(torch.equal(hard[i].clip, plain[i].clip) for i in range(20)) and torch.equal(hard[3].clip, hard[3].clip)
        assert "unknown factor" not in repr(hard) and all(hard.labels[name].max() < len(values) for name, values in hard.classes.items())


def test_two_events_and_their_order():
    source = data.open("synthetic:order", n=400, size=16)
    first, then, order = (source.labels[name] for name in ("motion", "then", "order"))
    assert source.classes["class"] == ["forward", "backward"] and (first != then).all() and torch.equal(order, (first > then).long())
    assert 0.4 < order.float().mean() < 0.6
    path = source.scene(0).path(16)
    moved = [np.flatnonzero(np.abs(np.diff(path[half], axis=0)).max(0)).tolist() for half in (slice(0, 9), slice(8, 16))]
    assert moved == [[MOTIONS[FACTORS["motion"][int(which[0])]][0]] for which in (first, then)]


def test_the_camera_moves_the_whole_picture():
    source = FactorMotion(n=60, size=64, camera=True)
    for i in range(60):
        scene = source.scene(i)
        name = FACTORS["camera"][scene.labels["camera"]]
        shift = np.multiply(scene.camera, 4 * 64 / 8)
        still = replace(scene, velocity=np.zeros(4), phase=np.array([0.5, 0.5, 0.1, 0.3]))
        clip = torch.from_numpy(render(still, 8, 64)).double()
        spectrum = torch.fft.fft2(clip[:, 4]) * torch.fft.fft2(clip[:, 0]).conj()  # phase correlation
        peak = torch.fft.ifft2(spectrum / spectrum.abs().clamp(min=1e-9)).real.mean(0).argmax()
        y, x = ((int(v) + 32) % 64 - 32 for v in divmod(int(peak), 64))
        assert abs(x - shift[0]) < 1 and abs(y - shift[1]) < 1 and tuple(np.sign((x, y))) == CAMERAS[name]


def test_compositional_split_holds_out_a_latin_square():
    train, test = (FactorMotion(split, law="compositional", n=2000) for split in ("train", "test"))
    cells = [set(zip(s.labels["shape"].tolist(), s.labels["motion"].tolist(), strict=True)) for s in (train, test)]
    assert len(cells[0]) == 32 and len(cells[1]) == 8 and not cells[0] & cells[1]
    assert {motion for _, motion in cells[1]} == set(range(8))


def test_spurious_split_misleads_in_training_only():
    for split, share in (("train", 0.9), ("test", 0.2)):
        labels = FactorMotion(split, law="spurious", n=2000).labels
        agree = (labels["shape"] == labels["motion"] % 5).float().mean()
        assert abs(agree - share) < 4 * (share * (1 - share) / 2000) ** 0.5


def test_images_know_appearance_only():
    source = data.open("synthetic", frames=1, size=32)
    assert source[0].clip.shape == (3, 1, 32, 32) and set(source.classes) == {"class", *APPEARANCE}
    assert source.classes["class"] == list(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_have_unit_area_no_rotational_symmetry_and_fit_the_torus(name):
    axis = np.linspace(-1.6, 1.6, 321, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    inside = distance(name, u, v) < 0
    assert abs(inside.mean() * 3.2**2 - 1) < 0.02 and unit(name)[0] > 0
    assert np.hypot(u, v)[inside].max() * SIZES[1] < 0.5  # even the largest never meets itself around the torus
    for turn in np.arange(1, 12) * np.pi / 6:
        turned = distance(name, np.cos(turn) * u + np.sin(turn) * v, np.cos(turn) * v - np.sin(turn) * u) < 0
        assert (inside != turned).mean() * 3.2**2 > 0.15


def test_textures_are_painted_on_the_object():
    scene = replace(FactorMotion().scene(0), colour=np.ones(3), tint=np.zeros(3))
    shades = []
    for value in range(len(TEXTURES)):
        clip = render(replace(scene, labels=scene.labels | {"texture": value}), 1, 64)
        shades.append((clip > 200).sum() / (clip > 0).sum())
    assert shades[0] > 0.7 > shades[1] and len(set(shades)) == 3


def test_directions_task_is_the_released_one():
    train, test = data.open("synthetic:dirs8", size=160), data.open("synthetic:dirs8", "test", size=160)
    assert (len(train), len(test)) == (160, 40) and test.labels["class"].tolist() == [i % 8 for i in range(160, 200)]
    clip = train[2].clip.numpy()  # heads east
    rng = np.random.default_rng(42 + 2)
    assert clip.shape == (3, 8, 160, 160)
    low = rng.integers(0, 80, size=3, dtype=np.uint8)
    corner = clip[:, 0, 0, 0].astype(int) - low
    assert (corner == corner[0]).all() and 0 <= corner[0] < 30  # flat colour plus grey noise
    columns = [np.flatnonzero((frame >= 120).any(0)) for frame in clip.max(0)]
    assert all(b[0] - a[0] == 4 or b[-1] == 159 for a, b in pairwise(columns))
    assert data.open("synthetic:dirs8", size=64)[0].clip.shape == (3, 8, 64, 64)


def test_clear_errors():
    with pytest.raises(data.DataError, match="unknown split 'trian'; one of train"):
        data.open("synthetic", "trian")
    with pytest.raises(data.DataError, match="unknown synthetic task 'trs9'"):
        data.open("synthetic:trs9")
    with pytest.raises(data.DataError, match="frames >= 2"):
        data.open("synthetic:trs8", frames=1)
    with pytest.raises(data.DataError, match="32 frames"):
        Dirs8(frames=33)
    with pytest.raises(data.DataError, match=f"one of {', '.join(LAWS)}"):
        FactorMotion(law="x")
