"""Corruptions: type, range, determinism, order of severities, and what each is supposed to do."""

import pickle
import sys

import pytest
import torch

from vjepa_lab import data
from vjepa_lab.data import codecs, isolated
from vjepa_lab.data.corruptions import CORRUPTIONS, Corrupted, corrupt
from vjepa_lab.data.encode import x264_options
from vjepa_lab.data.memory import Memory

ORDERED = [name for name, corruption in CORRUPTIONS.items() if corruption.ordered]


@pytest.fixture(scope="module")
def clips():
    source = data.open("synthetic", frames=16, size=48)
    return [source[i].clip for i in range(6)]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_thousand_calls_keep_shape_type_and_input(name, clips):
    shapes = [(16, 48, 48), (8, 37, 53), (1, 16, 16), (5, 64, 32)]
    for call in range(50):
        frames, height, width = shapes[call % 4] if call < 8 else (4, 16, 16)
        clip = torch.randint(0, 256, (3, frames, height, width), dtype=torch.uint8)
        before = clip.clone()
        out = corrupt(clip, name, call % 5 + 1, seed=call, per_frame=call % 2 == 0)
        assert out.shape == clip.shape and out.dtype == torch.uint8 and torch.equal(clip, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_seed_decides(name, clips):
    first, again = (corrupt(clips[0], name, 3, seed=5) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, clips[0])


@pytest.mark.parametrize("name", ORDERED)
def test_severity_five_is_further_from_the_original_than_one(name, clips):
    def distance(severity):
        return sum((corrupt(clip, name, severity, seed=i).float() - clip.float()).abs().mean() for i, clip in enumerate(clips))

    assert distance(5) > distance(1) > 0


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "rain", "rotate"])
def test_one_draw_per_frame_or_one_for_the_clip(name, clips):
    still = clips[0][:, :1].expand(-1, 4, -1, -1).contiguous()
    each, one = (corrupt(still, name, 3, per_frame=per_frame) for per_frame in (True, False))
    assert not torch.equal(each[:, 0], each[:, 1]) and torch.equal(one[:, 0], one[:, 3])


@pytest.mark.parametrize("name", ["fog", "translate"])
def test_fog_and_shifts_stay_the_same_all_through_a_clip(name, clips):
    still = clips[0][:, :1].expand(-1, 4, -1, -1).contiguous()
    out = [corrupt(still, name, 3, seed=seed) for seed in range(4)]
    assert all(torch.equal(clip[:, 0], clip[:, 3]) for clip in out) and not torch.equal(out[0], out[1])


def test_what_each_does():
    ramp = torch.arange(16, dtype=torch.uint8).view(1, 16, 1, 1).expand(3, 16, 8, 8) * 10
    shown = {
        name: (corrupt(ramp, name, 5)[0, :, 0, 0] // 10).tolist() for name in ("reverse", "freeze", "jumble", "box_jumble", "frame_rate")
    }
    assert shown["reverse"] == list(range(15, -1, -1)) and len(set(shown["freeze"])) == 1
    assert sorted(shown["jumble"]) == sorted(shown["box_jumble"]) == list(range(16))
    assert all(abs(a - b) <= 1 for a, b in zip(shown["jumble"], range(16), strict=True))  # only neighbours change places
    assert shown["frame_rate"] == [0, 0, 0, 0, 0, 5, 5, 5, 5, 9, 9, 9, 9, 13, 13, 13]
    assert len(set((corrupt(ramp, "freeze", 1)[0, :, 0, 0]).tolist())) in (5, 6)
    blurred = corrupt(ramp, "motion_blur", 1)[0, :, 0, 0].tolist()
    assert blurred[1:15] == [10 * i for i in range(1, 15)] and blurred[0] == 5
    grey = torch.full((3, 2, 16, 16), 100, dtype=torch.uint8)
    assert torch.equal(corrupt(grey, "contrast", 5), grey) and torch.equal(corrupt(grey, "saturate", 5), grey)
    assert corrupt(grey, "brightness", 2).unique().tolist() == [151]
    noise = corrupt(torch.full((3, 16, 64, 64), 128, dtype=torch.uint8), "gaussian_noise", 1).float()
    assert abs(noise.std() - 20.4) < 0.5 and abs(noise.mean() - 128) < 0.5
    shot = corrupt(torch.full((3, 16, 64, 64), 128, dtype=torch.uint8), "shot_noise", 1).float()
    assert abs(shot.mean() - 128) < 1 and abs(shot.std() - (128 / 255 / 60) ** 0.5 * 255) < 1
    impulse = corrupt(grey, "impulse_noise", 5)
    assert 0.2 < ((impulse == 0) | (impulse == 255)).float().mean() < 0.34
    dot = torch.zeros(3, 1, 33, 33, dtype=torch.uint8)
    dot[:, 0, 16, 16] = 255
    assert corrupt(dot, "defocus_blur", 5)[0, 0].gt(0).sum() == 9 and corrupt(dot, "static_rotate", 5)[0, 0, 16, 16] > 200


def test_a_lost_slice_spoils_only_what_comes_after_it():
    ramp = data.open("synthetic", frames=12, size=128)[0].clip
    packets = codecs.encode(ramp, "libx264", {"crf": "23", "slices": "4", **x264_options()})
    whole = codecs.decode(packets, "h264", 12)
    arrived = [*packets[:6], b"", *packets[7:]]
    damaged = codecs.decode(arrived, "h264", 12)
    assert len(packets) == 12 and torch.equal(damaged[:, :6], whole[:, :6]) and not torch.equal(damaged[:, 7:], whole[:, 7:])
    assert [len(codecs._slices(packet)) for packet in packets] == [4] * 12
    assert (whole.float() - ramp.float()).abs().mean() < 6


def test_a_corrupted_source_gives_each_clip_its_own_draw():
    source = data.open("synthetic", frames=4, size=16, n=10)
    bad = Corrupted(source, "gaussian_noise", 3)
    assert len(bad) == 10 and bad.name == "synthetic/gaussian_noise-3" and bad[3].labels == source[3].labels
    assert torch.equal(bad[3].clip, bad[3].clip)
    assert not torch.equal(bad[3].clip.int() - source[3].clip, bad[4].clip.int() - source[4].clip)
    memory = Memory(bad, progress=False)
    assert torch.equal(memory[2].clip, bad[2].clip)


def test_an_encoder_that_dies_is_started_again(clips):
    other = isolated._Isolated()
    pictures = clips[0].permute(1, 2, 3, 0).contiguous().numpy()
    first = other.encode(pictures, "libx264", x264_options())
    other.child.kill()
    assert other.encode(pictures, "libx264", x264_options()) == first
    with pytest.raises(RuntimeError, match=r"the nosuch encoder does not take a clip of .16, 48, 48, 3.: .*nosuch"):
        other.encode(pictures, "nosuch", {})
    assert other.encode(pictures, "libx264", x264_options()) == first
    other.end()
    crashes = isolated._Isolated((sys.executable, "-c", "import os; os.abort()"))
    with pytest.raises(RuntimeError, match=r"the libx265 encoder crashed 3 times on a clip of .16, 48, 48, 3."):
        crashes.encode(pictures, "libx265", {})


def test_an_interrupted_encoder_does_not_answer_the_next_clip_with_the_last(clips, monkeypatch):
    other = isolated._Isolated()
    pictures = clips[0].permute(1, 2, 3, 0).contiguous().numpy()
    load, whole = pickle.load, other.encode(pictures, "libx264", x264_options())

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(isolated.pickle, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        other.encode(pictures[:2], "libx264", x264_options())
    monkeypatch.setattr(isolated.pickle, "load", load)
    assert other.encode(pictures, "libx264", x264_options()) == whole
    other.end()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_on_a_gpu(name, clips):
    out = corrupt(clips[0].cuda(), name, 3)
    assert out.is_cuda and out.dtype == torch.uint8 and out.shape == clips[0].shape


def test_clear_errors(clips):
    with pytest.raises(data.DataError, match="unknown corruption 'snow'"):
        corrupt(clips[0], "snow", 1)
    with pytest.raises(data.DataError, match="severity is 6"):
        corrupt(clips[0], "fog", 6)
    with pytest.raises(data.DataError, match="uint8 is expected"):
        corrupt(clips[0].float(), "fog", 1)
