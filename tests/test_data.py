"""Loaders: the order of batches, resuming, workers and ranks, caches, and what happens to clips that cannot be read."""

import multiprocessing as mp
import os
import re
import signal
import time
from dataclasses import replace
from itertools import chain, islice

import numpy as np
import pytest
import torch
from PIL import Image

import vjepa_lab as vl
from vjepa_lab import data, plots
from vjepa_lab.__main__ import main
from vjepa_lab.data import video
from vjepa_lab.data.cache import STALE, Cache
from vjepa_lab.data.core import ClipError, Fault, Faults, Sample, Source
from vjepa_lab.data.edited import Frozen
from vjepa_lab.data.encode import write_video
from vjepa_lab.data.memory import Memory
from vjepa_lab.data.splits import still
from vjepa_lab.data.throughput import throughput
from vjepa_lab.presets import preset


class Toy(Source):
    """Clips that carry their index and epoch as pixels; some cannot be read."""

    name = "toy"

    def __init__(self, n=23, broken=(), fixed=False):
        self.n, self.broken, self.fixed, self.classes = n, set(broken), fixed, {"class": ["even", "odd"]}

    def __len__(self):
        return self.n

    def read(self, index, epoch=0):
        if index in self.broken:
            raise ClipError(f"{index}.mp4", "no such stream")
        return Sample(torch.full((3, 2, 4, 4), (index + 100 * epoch) % 256, dtype=torch.uint8), {"class": index % 2}, index)

    @property
    def labels(self):
        return {"class": torch.arange(self.n) % 2}


def take(source, count, batch=4, **options):
    return [(b.index.tolist(), b.clip[:, 0, 0, 0, 0].tolist()) for b in islice(data.loader(source, batch, **options), count)]


def test_every_clip_once_an_epoch_and_another_order_in_the_next():
    order = list(chain(*(index for index, _ in take(Toy(), 23, batch=4))))  # 4 epochs of 23
    epochs = [order[23 * e : 23 * e + 23] for e in range(4)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert take(Toy(), 5, seed=1) != take(Toy(), 5) == take(Toy(), 5, seed=0)


@pytest.mark.parametrize("start", [1, 5, 6, 40])
def test_resumes_exactly(start):
    assert take(Toy(), 50)[start:] == take(Toy(), 50 - start, start=start)


def test_same_batches_for_any_number_of_workers():
    source = data.open("synthetic", size=16, n=40)
    batches = [list(islice(data.loader(source, 8, workers=workers, start=3), 9)) for workers in (0, 1, 2)]
    for a, b in chain(*(zip(batches[0], other, strict=True) for other in batches[1:])):
        assert torch.equal(a.clip, b.clip) and torch.equal(a.labels["motion"], b.labels["motion"])


def test_ranks_share_the_batch_of_one():
    whole = take(Toy(), 12, batch=6)
    parts = [take(Toy(), 12, batch=3, rank=rank, world=2) for rank in (0, 1)]
    assert [index for index, _ in whole] == [a[0] + b[0] for a, b in zip(*parts, strict=True)]
    seen = chain(*(index for rank in (0, 1) for index, _ in take(Toy(), 99, batch=3, rank=rank, world=2, train=False)))
    assert sorted(seen) == list(range(23))


def test_evaluation_is_one_ordered_pass():
    batches = take(Toy(), 99, batch=5, train=False)
    assert [len(index) for index, _ in batches] == [5, 5, 5, 5, 3]
    assert list(chain(*(index for index, _ in batches))) == list(range(23))


def test_the_loader_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    for workers in (0, 1):
        next(data.loader(data.open("synthetic", size=16, n=8), 2, workers=workers))
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_clips_are_replaced_counted_and_reported(workers):
    source = Toy(60, broken={4, 9})
    batches = list(islice(data.loader(source, 10, workers=workers), 12))
    assert all(len(batch) == 10 for batch in batches)
    assert not {4, 9} & set(torch.cat([batch.index for batch in batches]).tolist())
    report = source.report()
    assert report["unreadable"] == 2 and report["files"] == {"4.mp4": "no such stream", "9.mp4": "no such stream"}
    again = list(islice(data.loader(Toy(60, broken={4, 9}), 10), 12))
    assert all(torch.equal(a.index, b.index) for a, b in zip(batches, again, strict=True))


def test_unreadable_clips_are_left_out_of_an_evaluation():
    source = Toy(30, broken={0, 1})
    index = torch.cat([batch.index for batch in data.loader(source, 2, train=False)])
    assert index.tolist() == list(range(2, 30)) and source.report()["unreadable"] == 2


@pytest.mark.parametrize("n, broken", [(40, range(0, 40, 4)), (4, (0, 1, 2)), (2, (0, 1))])
def test_too_many_unreadable_clips_stop_the_run(n, broken):
    with pytest.raises(data.DataError, match=r"too many to go on|in a row cannot be read") as error:
        list(islice(data.loader(Toy(n, broken), 4), 40))
    assert ".mp4: no such stream" in str(error.value)


@pytest.mark.parametrize(
    ("n", "bad", "allowed"), [(1000, 0.05, 50), (100, 0.29, 29), (20, 0.05, 2), (1000, 0.0, 2), (4, 0.05, 1), (2, 0.9, 0)]
)
def test_up_to_the_share_may_fail(n, bad, allowed):
    """At least 3 files stop a run, half of the source always does."""
    found = Faults(n, bad)
    found.record(Fault(f"{i}.mp4", "no such stream") for i in range(allowed))
    with pytest.raises(data.DataError, match=f"{allowed + 1} of {n} files cannot be read"):
        found.record([Fault("last.mp4", "no such stream")])


class Deadly(Toy):
    """Reading clip 5 kills the process; reading clip 11 never ends."""

    def read(self, index, epoch=0):
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 11:
            time.sleep(60)
        return super().read(index, epoch)


def test_a_decoder_that_dies_or_hangs_costs_one_clip():
    source = Deadly(200)
    batches = list(islice(data.loader(source, 8, workers=2, patience=1.0), 60))
    assert len(batches) == 60 and not {5, 11} & set(torch.cat([batch.index for batch in batches]).tolist())
    files = source.report()["files"]
    assert "SIGKILL" in files["toy[5]"] and "longer than 1 s" in files["toy[11]"] and len(files) == 2
    tame = Toy(200, broken={5, 11})
    for a, b in zip(batches, islice(data.loader(tame, 8), 60), strict=True):
        assert torch.equal(a.index, b.index) and torch.equal(a.clip, b.clip)
    left = torch.cat([batch.index for batch in data.loader(Deadly(40), 4, workers=2, patience=1.0, train=False)])
    assert sorted(left.tolist()) == [i for i in range(40) if i not in (5, 11)]


def test_an_error_in_a_worker_is_the_error_in_the_run():
    class Wrong(Toy):
        def read(self, index, epoch=0):
            raise KeyError("a bug, not a fault")

    with pytest.raises(KeyError, match="a bug") as error:
        next(data.loader(Wrong(), 4, workers=1))
    assert "in read" in error.value.__notes__[0]


def test_why_a_worker_cannot_start_is_said(monkeypatch):
    def start(process):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("multiprocessing.context.ForkProcess.start", start)
    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", start)
    source = data.open("synthetic", frames=4, size=16, n=8)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        next(iter(data.loader(source, 4, workers=2)))


def test_workers_end_with_the_loader():
    before = set(mp.active_children())
    loader = data.loader(Toy(), 4, workers=2)
    next(loader)
    assert len(set(mp.active_children()) - before) == 2
    loader.close()
    assert not set(mp.active_children()) - before


def mixture():
    return data.Mixture([Toy(50), Toy(7), Toy(1000)], [2, 6, 2])


def test_mixture_draws_by_weight():
    keys = chain(*islice(mixture().training_keys(100, seed=0), 200))  # 20,000 draws
    places = torch.tensor([mixture().place(index)[0] for index, _ in keys])
    counts, expected = torch.bincount(places).double(), torch.tensor([4000.0, 12000.0, 4000.0])
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # chi-square, 2 degrees of freedom, p = .001
    assert counts[1] != 12000 or counts[0] != 4000  # drawn, not dealt


def test_mixture_goes_through_each_source_in_epochs():
    source = mixture()
    keys = [source.place(index) for index, _ in chain(*islice(source.training_keys(10, seed=3), 300))]
    for which, length in enumerate((50, 7)):
        own = [inner for place, inner in keys if place == which]
        assert all(sorted(own[at : at + length]) == list(range(length)) for at in range(0, len(own) - length, length))


def test_mixture_is_the_same_resumed_on_ranks_and_workers():
    source = data.Mixture([Toy(50), data.open("synthetic", frames=2, size=8, n=20)], [1, 3])
    source.sources[0].read = lambda index, epoch=0: Sample(torch.zeros(3, 2, 8, 8, dtype=torch.uint8), {"class": 0}, index)
    whole = [torch.tensor([i for i, _ in keys]) for keys in islice(source.training_keys(8, seed=0), 2100)]  # past the first block of draws
    for rank in (0, 1):
        part = [b.index for b in islice(data.loader(source, 4, start=2080, rank=rank, world=2, workers=2), 20)]
        assert all(torch.equal(a[4 * rank : 4 * rank + 4], b) for a, b in zip(whole[2080:], part, strict=True))
    other = [b.index for b in islice(data.loader(source, 8, seed=1), 3)]
    assert not any(torch.equal(a, b) for a, b in zip(whole, other, strict=False))


def test_mixture_labels_replacements_and_text():
    source = data.Mixture([Toy(30, broken={0, 1}), data.open("synthetic", frames=2, size=4 * 2, n=20)], [1, 1])
    assert source.names == ["toy", "synthetic"] and {"source", "toy.class", "synthetic.motion"} <= set(source.classes)
    sample = source[0]
    assert sample.labels["source"] == 0 and source.place(sample.index)[1] not in (0, 1)  # replaced from the same source
    assert source.labels["toy.class"][30:].eq(-1).all() and len(source.labels["synthetic.motion"]) == 50
    named = data.open("0.3*synthetic + 0.7*synthetic:trs8", size=16, frames=4)
    assert named.weights == (0.3, 0.7) and next(data.loader(named, 6)).clip.shape == (6, 3, 4, 16, 16)
    with pytest.raises(data.DataError, match="'x' in the mixture"):
        data.open("x*synthetic + 1*synthetic")
    asked = data.open("0.3*synthetic + 0.7*synthetic:trs8", "test", size=16, frames=4, augment=False)
    assert asked.fixed and len(asked) == 2000
    with pytest.raises(data.DataError, match="synthetic has no option 'augment'"):
        data.open("synthetic", augment=True)
    for spec in ("0.5*synthetic + 0.5*synthetic:trs8", "time:synthetic"):  # of which other parts may be files
        assert len(data.open(spec, size=16, frames=4, augment=True))
    with pytest.raises(ValueError, match=r"limit=5: .* leave limit out"):
        still("synthetic + synthetic:trs8", "test", preset("smoke"), 5)
    assert len(still("synthetic + synthetic:trs8", "test", preset("smoke"), 0)) == 2000
    with pytest.raises(data.DataError, match="one positive weight per source"):
        data.Mixture([Toy()], [1, 2])


def test_a_limit_is_the_most_clips_that_are_taken():
    size = preset("smoke")
    worlds = {"synthetic": (4000, 1000), "synthetic:dirs8": (160, 40), "time:synthetic": (4000, 1000), "kenburns:synthetic": (4000, 1000)}
    for world, sides in worlds.items():
        whole = [still(world, split, size) for split in ("train", "test")]
        assert [len(source) for source in whole] == list(sides)
        for limit in (0, 9000):
            assert [len(still(world, split, size, limit)) for split in ("train", "test")] == list(sides)
        for source in whole:  # the clips are the set's own, on their own side of its split
            part = still(world, source.split, size, 5)
            assert len(part) == 5 and len(source) > 5 and torch.equal(part[4].clip, source[4].clip)
    with pytest.raises(ValueError, match=r"limit=-1: .* or 0 for all"):
        still("synthetic", "test", size, -1)


def test_a_part_has_the_first_clips_of_a_world_and_clips_from_all_over_a_listing(tmp_path):
    size, edits = preset("smoke"), ("time:", "kenburns:")
    for name in "abc":
        (tmp_path / name).mkdir()
        for i in range(8):
            pixels = np.random.default_rng((i, ord(name))).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    tasks = ["synthetic", *(f"synthetic:{task}" for task in ("trs8", "plain", "order", "compositional", "dirs8"))]
    edited = [edit + task for edit in edits for task in ("synthetic", "synthetic:plain", "synthetic:compositional", "synthetic:dirs8")]
    worlds = [*tasks, *edited, "time:synthetic:order", "time:kenburns:synthetic"]
    for spec in [*worlds, str(tmp_path), *(edit + str(tmp_path) for edit in edits)]:
        for split in ("train", "test"):
            whole, part = still(spec, split, size), still(spec, split, size, 3)
            files = str(tmp_path) in spec
            places = [i * len(whole) // 3 if files else i for i in range(3)]
            assert type(part) is type(whole) and repr(part).startswith(f"{whole.name} [{split}]: 3 clips") and part.spec == spec
            assert part.limit == 3 and whole.limit is None and still(part, split, size, 3) is part
            if files and spec != str(tmp_path):  # the edits are drawn by the place in the part
                assert [part.where(i) for i in range(3)] == [whole.where(place) for place in places]
                continue
            for i, place in enumerate(places):
                assert torch.equal(part[i].clip, whole[place].clip) and part[i].labels == whole[place].labels
                assert all(int(part.labels[name][i]) == int(whole.labels[name][place]) for name in whole.classes)
    twice = still(data.open("synthetic", "test", frames=2, size=16), "test", size, 10).subset([1, 7, 3])
    assert torch.equal(twice[1].clip, data.open("synthetic", "test", frames=2, size=16)[7].clip) and len(twice.labels["motion"]) == 3
    mixture = f"synthetic + {tmp_path}"
    said = f"limit=5: {still(mixture, 'test', size).name} (Mixture) gives all of its clips or none; "
    said += "name or limit what it is made of, or leave limit out"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        still(mixture, "test", size, 5)


class Several(Toy):
    """Clips of several classes at once."""

    name = "several"

    def read(self, index, epoch=0):
        return replace(super().read(index, epoch), labels={"class": self.labels["class"][index]})

    @property
    def labels(self):
        return {"class": torch.stack([torch.arange(self.n) % 2, torch.ones(self.n, dtype=torch.long)], 1)}


@pytest.mark.parametrize("first", [True, False])
def test_a_mixture_with_a_multi_label_part(first):
    parts = [Several(3, fixed=True), Toy(4, fixed=True)]
    source = data.Mixture(parts if first else parts[::-1], [1, 1])
    own, other = (slice(0, 3), slice(3, 7)) if first else (slice(4, 7), slice(0, 4))
    several, plain = source.labels["several.class"], source.labels["toy.class"]
    assert several.shape == (7, 2) and several[own].tolist() == [[0, 1], [1, 1], [0, 1]] and several[other].eq(-1).all()
    assert plain[other].tolist() == [0, 1, 0, 1] and plain[own].eq(-1).all()
    assert source.labels["source"][own].unique().tolist() == [0 if first else 1] and list(source.labels) == list(source.classes)
    keys = [(index, 0) for index in range(7)]
    read, kept = source.batch(keys).labels, Memory(source, progress=False).batch(keys).labels
    assert all(torch.equal(read[name], source.labels[name]) and torch.equal(kept[name], read[name]) for name in source.classes)
    assert "several.class: 2 classes" in plots.card(source, examples=1).text


def test_videos_and_still_images_come_as_parts():
    videos, images = (data.open("synthetic", frames=frames, size=16, n=40) for frames in (4, 1))
    batch = next(data.loader(data.Mixture([videos, images], [1, 1]), 16))
    assert isinstance(batch, data.Mixed) and len(batch) == 16 and {part.clip.shape[2] for part in batch.parts} == {4, 1}
    for part in batch.parts:
        assert part.still.all() == (part.clip.shape[2] == 1) and part.parts == (part,)
        own, other = ("synthetic2.shape", "synthetic1.shape") if part.still.all() else ("synthetic1.shape", "synthetic2.shape")
        assert part.labels[own].ge(0).all() and part.labels[other].eq(-1).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_cut_on_the_device_are_the_same_crops(tmp_path, workers):
    for number, size in enumerate([(40, 60), (60, 40), (48, 48)]):
        clip = torch.randint(0, 256, (3, 12, *size), dtype=torch.uint8)
        write_video(tmp_path / ("left", "right")[number % 2] / f"{number}.mp4", clip, 25)

    def loader(how):
        files = data.open(str(tmp_path), "train", frames=4, size=32, augment=how)
        return islice(data.loader(data.Mixture([files, data.open("synthetic", frames=4, size=32)], [3, 1]), 4, workers=workers), 3)

    for cut, uncut in zip(loader(True), loader("device"), strict=True):
        assert isinstance(cut, data.Batch) and not isinstance(uncut, data.Batch) and len(uncut) == 4
        made = uncut.to("cpu")
        assert torch.equal(made.clip, cut.clip) and torch.equal(made.index, cut.index)
        assert made.labels.keys() == cut.labels.keys() and all(torch.equal(made.labels[k], cut.labels[k]) for k in cut.labels)


def as_torch_pins(tensor):
    """What torch makes of a tensor in pinned memory, with or without a GPU: a copy of the same strides."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_whose_crops_are_cut_on_the_device_can_be_pinned(tmp_path, monkeypatch, workers):
    """Their frames are one in memory, which torch cannot copy onto; one is kept, moved and cut."""
    (tmp_path / "a").mkdir()
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / "a" / f"{i}.png")
    write_video(tmp_path / "a" / "video.mp4", torch.randint(0, 256, (3, 8, 40, 48), dtype=torch.uint8), 25)
    monkeypatch.setattr(torch.Tensor, "pin_memory", as_torch_pins)
    cut, uncut = (
        next(data.loader(data.open(tmp_path, frames=4, size=32, held_out=0, augment=how), 4, pin=True, workers=workers))
        for how in (True, "device")
    )
    assert isinstance(uncut, data.Uncut) and sorted(sample.clip.stride(1) == 0 for sample in uncut.samples) == [False, True, True, True]
    assert all(sample.distinct.untyped_storage().nbytes() == sample.distinct.numel() for sample in uncut.samples)
    made = uncut.to("cpu")
    assert torch.equal(made.clip, cut.clip) and torch.equal(made.index, cut.index) and torch.equal(made.still, cut.still)


def test_a_source_knows_what_it_was_opened_with(tmp_path):
    (tmp_path / "a").mkdir()
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / "a" / f"{i}.png")
    world = data.open("synthetic", n=3, noise=60.0, augment=False, cache="memory")
    assert world.options == {"split": "train", "n": 3, "noise": 60.0, "frames": 8, "size": 64, "seed": 0}
    assert Memory(data.open("synthetic", n=3), progress=False).spec == "synthetic"
    files = data.open(tmp_path, frames=4, size=16, images="still", cache=tmp_path / "kept")
    asked = {"split": "train", "images": "still", "frames": 4, "size": 16, "seed": 0, "stride": 2, "cache": str(tmp_path / "kept")}
    assert files.options == asked and files.clip_shape() == files[0].clip.shape[1:] == (1, 16, 16)
    assert [part.options for part in (data.Mixture([world], [1]), world.source.subset([0]), files.subset([0]), Frozen(world))] == [None] * 4
    shapes = data.Mixture([world, files], [1, 1])
    assert [shapes.clip_shape(i) for i in (0, 2, 3)] == [(8, 64, 64), (8, 64, 64), (1, 16, 16)]
    assert data.open(tmp_path, frames=4, size=16).clip_shape() == (4, 16, 16)


def test_a_cache_folder_keeps_what_is_not_the_caches(tmp_path):
    """Only its own half-written files of killed processes go: a hidden file of the user's stays, however old."""
    left = f".{'0a' * 16}.123"
    own, kept = [left], [".gitignore", ".env", f"{left}.bak", "notes.txt"]
    (tmp_path / ".git").mkdir()
    (tmp_path / f".{'0b' * 16}.123").mkdir()
    for name in own + kept:
        (tmp_path / name).write_text("x")
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 2 * STALE,) * 2)
    assert Cache(tmp_path).size() == 0
    assert {path.name for path in tmp_path.iterdir()} == {*kept, ".git", f".{'0b' * 16}.123"}


def test_memory_gives_the_same_batches():
    source = data.open("synthetic", size=16, n=50)
    kept = data.open("synthetic", size=16, n=50, cache="memory")
    for a, b in zip(islice(data.loader(source, 8), 10), islice(data.loader(kept, 8), 10), strict=True):
        assert torch.equal(a.clip, b.clip) and torch.equal(a.index, b.index)
        assert all(torch.equal(a.labels[name], b.labels[name]) for name in source.classes)


def test_memory_refuses_what_it_would_falsify_or_cannot_hold():
    with pytest.raises(data.DataError, match="new views every epoch"):
        Memory(Toy())
    with pytest.raises(data.DataError, match="GiB in memory"):
        Memory(Toy(fixed=True), limit=100)


def test_memory_keeps_bad_clips_out_of_an_evaluation():
    kept = Memory(Toy(60, broken={7}, fixed=True), progress=False)
    assert 7 not in torch.cat([batch.index for batch in data.loader(kept, 8, train=False)])
    assert kept.report()["files"] == {"7.mp4": "no such stream"}


def test_memory_keeps_a_mixtures_weights():
    how = {"size": 8, "frames": 2, "n": 40}
    plain, kept = (data.open("0.9*synthetic + 0.1*synthetic:trs8", cache=cache, **how) for cache in (None, "memory"))
    keys = [list(chain(*islice(source.training_keys(20, seed=1), 100))) for source in (plain, kept)]
    assert keys[0] == keys[1] and 0.87 < sum(index < 40 for index, _ in keys[1]) / 2000 < 0.93


def test_what_is_made_from_memory_never_shows_a_clip_that_could_not_be_read():
    kept = Memory(Toy(60, broken={7}, fixed=True), progress=False)
    with pytest.raises(ClipError, match="no such stream"):
        kept.read(7)
    for source in (Frozen(kept), data.Mixture([kept, Toy(20)], [1, 1])):
        assert source[7].index != 7 and 7 not in torch.cat([batch.index for batch in data.loader(source, 8, train=False)])


class Slow(Toy):
    """No clip takes long, a batch of them does."""

    def read(self, index, epoch=0):
        time.sleep(0.15)
        return super().read(index, epoch)


def test_a_slow_batch_is_not_a_stuck_clip():
    source = Slow(60)
    assert len(next(data.loader(source, 8, workers=1, patience=0.5))) == 8 and not source.report()["unreadable"]


def test_normalize_has_imagenet_statistics_and_an_inverse():
    clip = torch.randint(0, 256, (2, 3, 4, 8, 8), dtype=torch.uint8)
    x = data.normalize(clip)
    expected = (clip / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1, 1)
    assert x.dtype == torch.float32 and torch.allclose(x, expected, atol=1e-5)
    assert torch.equal(data.denormalize(x), clip) and data.normalize(clip[0]).shape == clip[0].shape


def test_clear_errors():
    with pytest.raises(data.DataError, match="no data set is called 'nowhere'"):
        data.open("nowhere")
    with pytest.raises(data.DataError, match=r"stand apart: 0.2\*a \+ 0.8\*b"):
        data.open("0.2*a+0.8*b")
    for spec in (None, "", 3):
        with pytest.raises(data.DataError, match="expected a name such as"):
            data.open(spec)
    for weight in (float("nan"), float("inf"), 0):
        with pytest.raises(data.DataError, match="one positive weight"):
            data.Mixture([Toy()], [weight])
    with pytest.raises(data.DataError, match="workers is -1"):
        data.loader(Toy(), 4, workers=-1)
    with pytest.raises(data.DataError, match="batch is 0"):
        data.loader(Toy(), 0)


def test_throughput_measures_every_kind_of_source():
    table = throughput(frames=2, size=16, seconds=0.05, length=12, progress=False)
    assert len(table) == 14 and (table["clips_per_s_per_core"] > 0).all()
    cost = table.set_index("reader")["ms_per_clip"]
    assert cost["gathered"] < cost["memory map"] < cost["decord, 1 thread"].max()


def test_throughput_without_decord(monkeypatch):
    """It is installed on x86-64 Linux only; the rest is measured all the same."""
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="'decord' is not installed: its rows are left out"):
        table = throughput(frames=2, size=16, seconds=0.01, length=6, progress=False)
    assert len(table) == 7 and not table["reader"].str.contains("decord").any()


def test_only_the_name_of_a_world_is_synthetic(tmp_path):
    assert all(map(data.is_synthetic, ("synthetic", "synthetic:plain", "synthetic:trs8")))
    for other in ("synthetic_clips", "synthetic-2/train.csv", "0.5*synthetic + 0.5*clips", "synthetic + clips", "clips", None, 3, tmp_path):
        assert not data.is_synthetic(other)


@pytest.mark.parametrize("frames", [8, 1])
def test_a_sample_plays_in_a_notebook_and_is_one_line_in_a_console(frames):
    sample = data.open("synthetic:plain", frames=frames, size=32, n=4)[1]
    said = ", ".join(f"{name} {int(value)}" for name, value in sample.labels.items())
    assert said and repr(sample) == f"Sample(clip 1, {said}, uint8 [3, {frames}, 32, 32])"
    page = sample._repr_html_()
    assert "data:image/webp;base64," in page and f"clip 1, {said}</figcaption>" in page and 'width="192"' in page
    several = replace(sample, labels={"actions": torch.tensor([1, 0, 1])})
    assert "actions [3]" in repr(several) and "actions [3]" in several._repr_html_()


@pytest.mark.parametrize("how", ["a folder of clips", "a list of paths"])
def test_clips_without_labels_are_there_to_pretrain_on(how, tmp_path):
    """Neither a folder for each class nor a label column: training needs none, and who asks for a label is told what is missing."""
    made = data.export(tmp_path / "made", clips={"train": 8, "test": 2}, size=32, frames=12, progress=False)
    (tmp_path / "flat").mkdir()
    for file in made.rglob("train_*.mp4"):
        file.rename(tmp_path / "flat" / file.name)
    root = tmp_path / "flat"
    if how == "a list of paths":
        root = tmp_path / "list.csv"
        root.write_text("path\n" + "\n".join(f"flat/{file.name}" for file in sorted((tmp_path / "flat").iterdir())))
    source = data.open(root, frames=8, size=32)
    assert (source.classes, source.labels) == ({}, {}) and len(source) == (6 if root.is_dir() else 8)
    assert "no labels: clips to pretrain on" in repr(source) and "labels none" in repr(source)
    run = vl.pretrain("baseline", root, "smoke", steps=1, warmup=0, batch=2, out=tmp_path / "run", progress=False)
    assert run.steps_done == 1
    edited = data.open(f"time:{root}", frames=8, size=32)
    assert set(edited.classes) == {"class", "edit"} and set(edited[0].labels) == {"class", "edit"}, "what was done is known of any clip"
    if root.is_dir():
        with pytest.raises(ValueError, match=r"has no label 'class'; it has none"):
            vl.probe(run, labels=("class",))
        assert data.open(root, "test", frames=8, size=32).listing.clips
        assert main(["data", "check", "folder", str(root), "--no-progress"]) == 0 and len(data.open(root, frames=8, size=32)) == 6, (
            "its manifest says no more"
        )
