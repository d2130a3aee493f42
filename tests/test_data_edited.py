"""Real pixels with made dynamics: the labels say what was done, and a single frame does not."""

import numpy as np
import pytest
import torch

from vjepa_lab import data
from vjepa_lab.data.core import Sample, Source
from vjepa_lab.data.edited import EDITS, KenBurns, TimeEdit


class Counter(Source):
    """Clips whose pixels are their frame numbers."""

    name, fixed, classes = "counter", True, {"class": ["a", "b"]}

    def __init__(self, n=60, frames=16):
        self.n, self.frames = n, frames

    def __len__(self):
        return self.n

    def read(self, index, epoch=0):
        clip = torch.arange(self.frames, dtype=torch.uint8).view(1, -1, 1, 1).expand(3, -1, 4, 4)
        return Sample(clip, {"class": index % 2}, index)

    @property
    def labels(self):
        return {"class": torch.arange(self.n) % 2}


def test_time_edits_do_what_their_label_says():
    source, seen = TimeEdit(Counter()), set()
    for i in range(60):
        sample = source[i]
        numbers, edit = sample.clip[0, :, 0, 0].tolist(), EDITS[sample.labels["edit"]]
        seen.add(edit)
        assert {name: int(values[i]) for name, values in source.labels.items()} == sample.labels and sample.labels["action"] == i % 2
        steps = set(np.diff(numbers))
        assert {
            "forward": steps == {1},
            "reversed": steps == {-1},
            "frozen": steps == {0},
            "double": steps == {2},
            "shuffled": len(steps) > 1,
        }[edit]
        assert edit == "double" or (min(numbers) >= 4 and max(numbers) < 12)
    assert seen == set(EDITS)


def test_three_frames_are_the_fewest_that_can_be_shuffled():
    source = TimeEdit(Counter(frames=6))
    shuffled = [source[i].clip[0, :, 0, 0] for i in range(60) if EDITS[source.labels["edit"][i]] == "shuffled"]
    assert shuffled and all(len(set(clip.diff().tolist())) > 1 for clip in shuffled)
    with pytest.raises(data.DataError, match=r"3 frames or more after the edit, 6 before it; counter gives clips of 4"):
        TimeEdit(Counter(frames=4))[0]


def test_splits_of_any_name_have_edits_of_their_own():
    def edits(split):
        source = Counter()
        source.split = split
        return TimeEdit(source).labels["edit"].tolist()

    assert edits("fold1") != edits("fold2") and edits("fold1") == edits("fold1")
    expected = [int(np.random.default_rng((0, 2, index, 0xED17)).integers(len(EDITS))) for index in range(60)]
    assert edits("test") == expected  # the numbers of the known splits stay


def test_time_edits_of_real_videos(clips):
    source = data.open(f"time:{clips / 'ucf101_6cls_128p'}", "test", frames=4, size=32)
    batch = next(data.loader(source, 6, train=False))
    assert batch.clip.shape == (6, 3, 4, 32, 32) and len(source.classes["action"]) == 6


@pytest.mark.parametrize("name", ["right", "left", "down", "up", "cw", "ccw", "grow", "shrink"])
def test_the_camera_moves_the_picture_as_named(name):
    axis = torch.linspace(-1, 1, 128)
    blob = 255 * torch.exp(-((axis - 0.1)[:, None] ** 2 + axis**2 / 4) * 30)  # a lying ellipse, centred
    source = KenBurns(Counter(), frames=8, size=64)

    class Fixed:
        def random(self, n):
            return np.array([0.0, 0.0, 0.0, 0.4])

        def integers(self, n):
            return 0

        def uniform(self, low, high):
            return low

    clip = source.apply(blob.to(torch.uint8).expand(3, 1, -1, -1), name, Fixed()).float()[0]
    mass, place = clip.sum((1, 2)), torch.arange(64.0)
    x, y = (clip.sum(1) @ place) / mass, (clip.sum(2) @ place) / mass
    dx, dy = place[None] - x[:, None], place[None] - y[:, None]
    tilt = torch.einsum("fyx,fy,fx->f", clip, dy, dx)
    seen = {"right": x[1] - x[0], "down": y[1] - y[0], "cw": (tilt[1] - tilt[0]) / mass[0], "grow": (mass[1] - mass[0]) / mass[0] * 30}
    seen |= {other: -seen[way] for way, other in (("right", "left"), ("down", "up"), ("cw", "ccw"), ("grow", "shrink"))}
    assert max(seen, key=seen.get) == name and seen[name] > 0.5


def test_ken_burns_over_real_images(clips):
    source = data.open(f"kenburns:{clips / 'imagenet100_1perclass'}", "all", frames=4, size=32)
    sample = source[0]
    assert sample.clip.shape == (3, 4, 32, 32) and len(source) == 20 and set(source.classes) == {"class", "motion", "object"}
    assert torch.equal(source[0].clip, sample.clip) and sample.clip.float().std() > 10
    assert [int(v[3]) for v in source.labels.values()] == list(source[3].labels.values())
