"""Loaders: the order of batches, resuming, workers and ranks, caches, and what happens to clips that cannot be read."""

from itertools import chain, islice

import pytest
import torch

from vjepa_lab import data
from vjepa_lab.data.core import ClipError, Sample, Source
from vjepa_lab.data.memory import Memory


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
        return Sample(torch.full((3, 2, 4, 4), index + 100 * (epoch % 2), dtype=torch.uint8), {"class": index % 2}, index)

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


def test_normalize_has_imagenet_statistics_and_an_inverse():
    clip = torch.randint(0, 256, (2, 3, 4, 8, 8), dtype=torch.uint8)
    x = data.normalize(clip)
    expected = (clip / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1, 1)
    assert x.dtype == torch.float32 and torch.allclose(x, expected, atol=1e-5)
    assert torch.equal(data.denormalize(x), clip) and data.normalize(clip[0]).shape == clip[0].shape


def test_clear_errors():
    with pytest.raises(data.DataError, match="no data set is called 'nowhere'"):
        data.open("nowhere")
    with pytest.raises(data.DataError, match="batch is 0"):
        data.loader(Toy(), 0)
    with pytest.raises(data.DataError, match="cache='disc'"):
        data.open("synthetic", cache="disc")
