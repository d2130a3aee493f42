"""Video files: frame numbers are right through both backends, and whatever is wrong with a file is named."""

import json
import multiprocessing as mp
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import islice

import av
import numpy as np
import pytest
import torch
from PIL import Image

import vjepa_lab as vl
from vjepa_lab import data
from vjepa_lab.data.cache import Cache
from vjepa_lab.data.check import check
from vjepa_lab.data.core import ClipError
from vjepa_lab.data.crops import random_crop, view_crop
from vjepa_lab.data.encode import write_video, x264_options
from vjepa_lab.data.files import decode
from vjepa_lab.data.listing import Clip, list_folder, list_manifest
from vjepa_lab.data.prepare import prepare, transcode
from vjepa_lab.data.sampling import Sampling
from vjepa_lab.data.splits import apart
from vjepa_lab.data.video import BACKENDS, Video, check_seek, probe, read_image

BITS = 8
KINDS = {
    "h264.mp4": ("h264", {}),
    "h264_short_gop.mkv": ("h264", {"g": 10}),
    "h264.avi": ("h264", {}),
    "vp9.webm": ("vp9", {}),
    "mpeg4.avi": ("mpeg4", {}),
    "mpeg4_b_frames.avi": ("mpeg4", {"bf": 2, "g": 12}),
    "mpeg4_b_frames.mp4": ("mpeg4", {"bf": 2, "g": 12}),
}


def counter_clip(frames: int, size: int = 64) -> torch.Tensor:
    """`[c f y x]` whose frame t shows the bits of t as bright and dark blocks."""
    bits = (torch.arange(frames)[:, None] >> torch.arange(BITS)) & 1
    rows = bits.view(frames, 2, 4).repeat_interleave(size // 2, 1).repeat_interleave(size // 4, 2)
    return (40 + 170 * rows).to(torch.uint8).expand(3, -1, -1, -1)


def numbers_shown(frames: torch.Tensor) -> list[int]:
    """The numbers that frames `[f c y x]` show."""
    cells = torch.nn.functional.adaptive_avg_pool2d(frames.float().mean(1), (2, 4)).flatten(1)
    return ((cells > 125).long() << torch.arange(BITS)).sum(1).tolist()


@pytest.fixture(scope="module")
def counters(tmp_path_factory):
    """One video of 150 counted frames per kind of stream."""
    folder = tmp_path_factory.mktemp("counters")
    for name, (codec, options) in KINDS.items():
        write_video(folder / name, counter_clip(150), 25, codec, **options)
    return folder


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", KINDS)
def test_frame_numbers_are_right(counters, name, backend):
    for numbers in ([0], [149], [7, 9, 11, 13], [140, 3, 3, 77], list(range(20, 52, 2)), np.linspace(0, 149, 8).astype(int).tolist()):
        with Video(counters / name, backend) as video:
            assert video.frames == 150 and abs(video.fps - 25) < 0.01
            assert numbers_shown(video.read(numbers)) == numbers
            assert numbers_shown(video.read([12, 4])) == [12, 4]


@pytest.mark.parametrize("name", KINDS)
def test_backends_give_the_same_pixels(counters, name):
    frames = []
    for backend in BACKENDS:
        with Video(counters / name, backend) as video:
            frames.append(video.read([5, 60, 100]).float())
    assert (frames[0] - frames[1]).abs().max() <= 1


def open_groups(folder):
    """H.265 as x265 writes it: pictures that are shown before a key frame are stored after it."""
    with av.open(str(folder / "open.mp4"), "w") as container:
        stream = container.add_stream("libx265", rate=25)
        stream.width = stream.height = 128
        stream.pix_fmt, stream.options = "yuv420p", {"g": "25", "crf": "20", "preset": "veryfast", "x265-params": "log-level=none:pools=1"}
        for picture in counter_clip(100, 128).permute(1, 2, 3, 0).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return folder / "open.mp4"


@pytest.mark.parametrize("backend", [*BACKENDS, None])
def test_open_groups_of_pictures(tmp_path, backend):
    path = open_groups(tmp_path)
    assert probe(str(path)).seekable and not probe(str(path)).plain
    for number in range(15, 55):  # decord's own seek lands four frames off before key frames
        with Video(path, backend) as video:
            assert numbers_shown(video.read([number])) == [number]


def uneven(path):
    """2 s at 5 frames a second, then 4 s at 30: 10 + 120 counted frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = 64
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "18", "preset": "veryfast", **x264_options()}
        stream.codec_context.time_base = Fraction(1, 900)
        for i, picture in enumerate(counter_clip(130).permute(1, 2, 3, 0).contiguous().numpy()):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (i * 180 if i < 10 else 1800 + (i - 10) * 30), Fraction(1, 900)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_seconds_of_a_variable_rate_follow_the_timestamps(tmp_path, name):
    path = str(uneven(tmp_path / name))

    def shown(sampling, start=None, end=None, cache=None, path=path):
        return numbers_shown(decode(Clip(path, {}, start=start, end=end), sampling, cache=cache))

    store = Cache(tmp_path / "store", side=64)
    for cache in (None, store, store, Cache(tmp_path / "store", side=64)):  # decoded, kept, found, found by another process
        assert shown(Sampling(10, 1), 0, 2, cache) == list(range(10))
        assert shown(Sampling(30, 1), 3, 4, cache) == list(range(40, 70))
        assert shown(Sampling(10, 1), 1.1, cache=cache)[0] >= 5
        assert shown(Sampling(6, fps=2), 0, 3, cache) == [1, 4, 6, 9, 17, 32]  # every half second, from 0.25 s on
        assert shown(Sampling(4, whole=True), 2, 6, cache) == [25, 55, 85, 115]
    with pytest.raises(ClipError, match=r"begins at 6\.5 s, the video ends at 6 s"):
        shown(Sampling(2), 6.5)
    transcode(path, tmp_path / "copy.mp4", side=64)
    assert shown(Sampling(30, 1), 3, 4, path=str(tmp_path / "copy.mp4")) == list(range(40, 70))


def test_facts_about_files_of_a_cache_that_does_not_tell_times(tmp_path):
    path, store = str(uneven(tmp_path / "a.mp4")), Cache(tmp_path / "store", side=64)
    store.open(path)
    facts = next((tmp_path / "store").glob("*.json"))
    told = json.loads(facts.read_text())
    assert len(told.pop("times")) == 131
    facts.write_text(json.dumps(told))
    assert store.open(path).times[10] == pytest.approx(2)


def test_check_tells_of_variable_rates(tmp_path, counters):
    (tmp_path / "set" / "x").mkdir(parents=True)
    uneven(tmp_path / "set" / "x" / "b.mp4")
    for name in KINDS:
        shutil.copy(counters / name, tmp_path / "set" / "x" / name)
    report = check("folder", tmp_path / "set", splits=("all",), workers=0, progress=False)
    assert "1 videos have a variable frame rate, the first: x/b.mp4" in str(report)
    assert data.open(report.write(), "all").classes == {"class": ["x"]}


@pytest.mark.parametrize("backend", [*BACKENDS, None])
def test_frames_that_an_edit_list_hides(tmp_path, backend):
    """A file cut at frame 40 without re-encoding begins at the key frame before, 30."""
    whole = write_video(tmp_path / "whole.mp4", counter_clip(120), 25, g=30, **{"x264-params": "scenecut=0"})
    with av.open(str(whole)) as reader, av.open(str(tmp_path / "cut.mp4"), "w") as writer:
        video = reader.streams.video[0]
        out, frame = writer.add_stream_from_template(video), round(1 / (25 * video.time_base))
        packets = [packet for packet in reader.demux(video) if packet.dts is not None]
        first = next(i for i, packet in enumerate(packets) if packet.is_keyframe and packet.pts == 30 * frame)
        for packet in packets[first:]:
            packet.pts, packet.dts, packet.stream = packet.pts - 40 * frame, packet.dts - 40 * frame, out
            writer.mux(packet)
    with Video(tmp_path / "cut.mp4", backend) as video:
        assert video.frames == 80
        assert numbers_shown(video.read(range(80))) == list(range(40, 120))
    for number in (0, 5, 21, 79):
        with Video(tmp_path / "cut.mp4", backend) as video:
            assert numbers_shown(video.read([number])) == [40 + number]


def test_what_decord_cannot_read_pyav_is_asked_for(tmp_path):
    path = write_video(tmp_path / "narrow.mp4", counter_clip(30, 48), 25)
    with pytest.raises(ClipError, match="size must exactly match"), Video(path, "decord") as video:
        video.read([3, 7])
    with Video(path) as video:
        assert numbers_shown(video.read([3, 7, 29])) == [3, 7, 29]


def test_a_seek_check_tells_exact_streams(counters):
    assert all(check_seek(counters / "h264.mp4", backend) for backend in BACKENDS)
    assert probe(str(counters / "h264.mp4")).seekable and not probe(str(counters / "mpeg4_b_frames.avi")).seekable


def test_a_file_that_is_written_anew_is_read_anew(tmp_path):
    path = write_video(tmp_path / "a.mp4", counter_clip(10), 25)
    with Video(path) as video:
        assert video.frames == 10
    write_video(path, counter_clip(40), 25)
    with Video(path) as video:
        assert video.frames == 40 and numbers_shown(video.read([0, 39])) == [0, 39]


def test_real_clips_agree_between_backends(clips):
    files = [*sorted((clips / "ucf101").rglob("*.avi"))[::9], *sorted((clips / "ssv2").rglob("*.webm"))[::4]]
    files += [clips / "edge" / "rot90_3frames.mov"]
    for path in files:
        frames = []
        for backend in BACKENDS:
            with Video(path, backend) as video:
                frames.append(video.read(np.linspace(0, video.frames - 1, 4).astype(int)).float())
        assert frames[0].shape == frames[1].shape and (frames[0] - frames[1]).abs().mean() < 0.5, path.name


@pytest.mark.parametrize("options, numbers", [
    ({"stride": 2}, [42, 44, 46, 48, 50, 52, 54, 56]),
    ({"stride": 5}, [32, 37, 42, 47, 52, 57, 62, 67]),
    ({"fps": 12.5}, [42, 44, 46, 48, 50, 52, 54, 56]),
    ({"fps": 10}, [40, 43, 45, 48, 50, 53, 55, 58]),
    ({"fps": 50}, [47, 48, 48, 49, 49, 50, 50, 51]),
    ({"whole": True}, [6, 18, 31, 43, 56, 68, 81, 93]),
])  # fmt: skip
def test_centre_clips(options, numbers):
    assert Sampling(8, **options).numbers(100, 25.0).tolist() == numbers


def test_sampling_reads_the_frames_it_says(counters):
    for options in ({"stride": 3}, {"fps": 10}, {"whole": True}, {"segments": 3, "stride": 2}):
        sampling = Sampling(6, **options)
        for segment in range(sampling.segments):
            numbers = sampling.numbers(150, 25.0, segment)
            with Video(counters / "h264.mp4") as video:
                assert numbers_shown(video.read(numbers)) == numbers.tolist()


def test_random_clips_stay_inside_and_reach_everywhere():
    rng = np.random.default_rng(0)
    drawn = np.array([Sampling(4, 3).numbers(20, rng=rng) for _ in range(400)])
    assert (np.diff(drawn) == 3).all() and set(drawn[:, 0]) == set(range(11))
    parts = [Sampling(4, 2, segments=3).numbers(60, segment=s, rng=rng) for s in range(3) for _ in range(50)]
    assert {(int(p[0]) // 20, int(p[-1]) // 20) for p in parts} == {(0, 0), (1, 1), (2, 2)}


def test_short_videos_hold_their_last_frame_or_loop():
    assert Sampling(8, 2).numbers(5).tolist() == [0, 2, 4, 4, 4, 4, 4, 4]
    assert Sampling(8, 2, short="loop").numbers(5).tolist() == [0, 2, 4, 1, 3, 0, 2, 4]
    assert Sampling(4, whole=True).numbers(1).tolist() == [0, 0, 0, 0]
    assert Sampling(4, 2, segments=3).numbers(2, segment=2).max() <= 1


@pytest.mark.parametrize("options", [{"stride": 2}, {"fps": 12.5}, {"fps": 10.3}, {"stride": 2, "short": "loop"}], ids=str)
def test_segments_shorter_than_the_clip_still_show_the_video(options):
    """The clip begins before its segment rather than hold the last frame."""
    sampling, rng = Sampling(16, segments=4, **options), np.random.default_rng(0)
    for segment in range(4):
        for numbers in (sampling.numbers(40, 25.0, segment), sampling.numbers(40, 25.0, segment, rng)):
            assert (np.diff(numbers) >= 2).all() and 0 <= numbers[0] <= 10 * segment and numbers[-1] < 40
    assert sampling.numbers(40, 25.0, 3)[-1] >= 39 - (options.get("fps") == 10.3)
    assert sampling.numbers(40, 25.0, 0)[0] == 0


def test_whole_video_sampling_avoids_the_last_frame():
    assert all(Sampling(16, whole=True).numbers(n)[-1] < n - 1 for n in (48, 100, 333))


def test_one_crop_for_all_frames_within_the_stated_area():
    ramp = torch.arange(200, dtype=torch.uint8).expand(3, 3, 150, 200)  # [f c y x]: the value is the column
    for seed in range(30):
        out = random_crop(150, 200, np.random.default_rng(seed)).cut(ramp, 32).float()
        assert out.shape == (3, 3, 32, 32) and torch.equal(out[0], out[2])
        width = (out[0, 0, 0, -1] - out[0, 0, 0, 0]) * 32 / 31
        assert 0.3 * 0.7 * 150 * 0.85 < width**2 / 1.35 < 200 * 150 * 1.5
    assert random_crop(3, 200, np.random.default_rng(0)).width == 4  # no crop of such a shape fits: the centre


def test_views_cover_the_long_side():
    ramp = torch.arange(200, dtype=torch.uint8).expand(1, 3, 100, 200)
    left, centre, right = (view_crop(ramp, 100, view, 3)[0, 0, 0].float() for view in range(3))
    assert left[0] == 0 and left[-1] == 99 and centre[0] == 50 and right[-1] == 199
    single = view_crop(ramp, 50)[0, 0, 0].float()
    assert 56 <= single[0] <= 58 and 141 <= single[-1] <= 143  # 7/8 of the short side


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The factor world as a folder of real videos."""
    return data.export(tmp_path_factory.mktemp("world") / "folder", clips={"train": 24, "test": 8}, size=64, frames=12, progress=False)


def test_exported_world_reads_back(tree):
    train, test = (data.open(tree, split, frames=6, size=32, augment=False) for split in ("train", "test"))
    assert (len(train), len(test)) == (24, 8) and set(train.classes) == {"class", "shape", "hue", "texture", "tint", "motion", "speed"}
    world = data.open("synthetic", frames=12, size=64)
    order = [clip.path.rsplit("_", 1)[1] for clip in train.listing.clips]
    for place, name in enumerate(order[:4]):
        truth = world[int(name[:5])]
        with Video(train.listing.clips[place].path) as video:
            shown = video.read(range(12)).movedim(1, 0)
        assert (shown.float() - truth.clip.float()).abs().mean() < 6
        labels = {key: train.classes[key][value] for key, value in train[place].labels.items()}
        assert labels == {key: world.classes[key][value] for key, value in truth.labels.items()}


def test_a_run_remembers_where_an_opened_source_came_from(tree, tmp_path):
    """Its folder alone is enough to probe it, whatever the working directory was called."""
    source = data.open(tree, frames=8, size=32)
    run = vl.pretrain("baseline", source, "smoke", out=tmp_path / "run", steps=2, warmup=0, batch=4, progress=False)
    assert run.config["spec"] == str(tree) and run.config["data"] == "folder"
    (found,) = vl.probe(tmp_path / "run", labels=["motion"], probe="knn")
    assert len(found.predictions) == 8


def test_augmented_clips_depend_on_seed_index_epoch_only(tree):
    source = data.open(tree, frames=4, size=32)
    assert torch.equal(source[(3, 2)].clip, data.open(tree, frames=4, size=32)[(3, 2)].clip)
    assert not torch.equal(source[(3, 2)].clip, source[(3, 3)].clip)
    assert not torch.equal(source[(3, 2)].clip, data.open(tree, frames=4, size=32, seed=1)[(3, 2)].clip)
    batches = [list(islice(data.loader(source, 6, workers=workers), 6)) for workers in (0, 2)]
    assert all(torch.equal(a.clip, b.clip) for a, b in zip(*batches, strict=True))


def test_evaluation_views_share_their_files_index(tree):
    source = data.open(tree, "test", frames=4, size=16, segments=2, views=3)
    assert len(source) == 8 * 6 and source[7].index == 1 and source.labels["class"].shape == (48,)
    assert torch.equal(source.labels["motion"][:6], source.labels["motion"][:1].expand(6))
    with pytest.raises(data.DataError, match="are for evaluation"):
        data.open(tree, views=3)


def test_images_fill_the_frames_or_stay_still(tmp_path):
    root = data.export(tmp_path / "images", "imagenet100", clips={"train": 12, "val": 4}, size=32, progress=False)
    repeated, still = (data.open(root, frames=4, size=16, images=images)[0].clip for images in ("repeat", "still"))
    assert repeated.shape == (3, 4, 16, 16) and torch.equal(repeated[:, 0], repeated[:, 3])
    assert still.shape == (3, 1, 16, 16) and len(data.open(root, "val", size=16)) == 4


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_an_animation_is_no_still_image(tmp_path, kind):
    pictures = [Image.fromarray(frame) for frame in counter_clip(10, 32).permute(1, 2, 3, 0).contiguous().numpy()]
    pictures[3].save(tmp_path / f"still.{kind}")
    assert read_image(tmp_path / f"still.{kind}").shape == (1, 3, 32, 32)
    pictures[0].save(tmp_path / f"moving.{kind}", save_all=True, append_images=pictures[1:], duration=40)
    with pytest.raises(ClipError, match=rf"moving\.{kind}: an animation of 10 frames, not a still image; convert it to a video") as error:
        read_image(tmp_path / f"moving.{kind}")
    assert error.value.fault.path == str(tmp_path / f"moving.{kind}")


def test_a_photograph_with_a_preview_is_a_still_image(tmp_path):
    """Cameras write a second picture into a JPEG, and scanners further pages into a TIFF: the first is the image."""
    for name, kind in (("photo.jpg", "MPO"), ("scan.tif", "TIFF")):
        first, second = (Image.new("RGB", (32, 24), colour) for colour in ("red", "blue"))
        first.save(tmp_path / name, kind, save_all=True, append_images=[second])
        frame = read_image(tmp_path / name)
        assert frame.shape == (1, 3, 24, 32) and frame[0, 0].min() > 200 > 50 > frame[0, 2].max()


def test_cache_gives_the_same_clips_as_decoding(tree, tmp_path):
    plain, kept = data.open(tree, frames=4, size=56), data.open(tree, frames=4, size=56, cache=tmp_path)
    assert all(torch.equal(plain[(i, e)].clip, kept[(i, e)].clip) for i in range(4) for e in range(2))
    assert len(list(tmp_path.glob("*.npy"))) == 4 and not list(tmp_path.glob(".*"))
    batches = [next(data.loader(source, 24, workers=workers)) for source, workers in ((plain, 0), (kept, 2))]
    assert torch.equal(batches[0].clip, batches[1].clip) and len(list(tmp_path.glob("*.npy"))) == 24


def test_cache_is_bounded_heals_and_fills(tree, tmp_path):
    files = [clip.path for clip in list_folder(tree).clips]
    small = Cache(tmp_path / "small", side=32, limit=200_000)  # 12 frames of 32 x 32 are 36,864 bytes
    assert small.fill(files, progress=False) == {} and len(list((tmp_path / "small").glob("*.npy"))) == 5
    with small.open(files[-1]) as video:
        assert video.read([3]).shape == (1, 3, 64, 64)  # not kept: decoded
    store = Cache(tmp_path / "store", side=32)
    with store.open(files[0]) as video:
        truth = video.read([0, 5])
    assert truth.shape == (2, 3, 32, 32)
    kept = next((tmp_path / "store").glob("*.npy"))
    raw = bytearray(kept.read_bytes())
    raw[-100] ^= 255
    kept.write_bytes(raw)
    with Cache(tmp_path / "store", side=32).open(files[0]) as video:
        assert torch.equal(video.read([0, 5]), truth)
    (tmp_path / "bad.mp4").write_text("no video")
    assert list(store.fill([str(tmp_path / "bad.mp4")], progress=False)) == [str(tmp_path / "bad.mp4")]


@pytest.mark.parametrize("first", BACKENDS)
def test_vp9_is_written_beside_decord_or_says_what_to_do(tmp_path, first):
    """PyAV and decord bring a libvpx each; where decord's came first, PyAV's encoder may meet it."""
    pytest.importorskip("decord")
    imports = "import av, decord" if first == "pyav" else "import decord, av"
    write = "import torch; from vjepa_lab.data.encode import write_video; clip = torch.zeros(3, 4, 32, 32).byte()\n"
    write += f"write_video(r'{tmp_path / 'a.webm'}', clip, 8, 'vp9')"
    done = subprocess.run([sys.executable, "-c", f"{imports}\n{write}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 or (first == "decord" and "`import av` first" in done.stderr), done.stderr


def test_check_counts_judges_and_writes_a_manifest(tree, tmp_path):
    root = data.export(tmp_path / "ucf", "ucf101", clips={"train": 20, "test": 8}, size=64, frames=8, progress=False)
    train = sorted((root / "UCF-101").rglob("v_*_g08_*.avi"))
    test = sorted((root / "UCF-101").rglob("v_*_g01_*.avi"))
    train[0].unlink()
    train[1].write_bytes(b"")
    test[0].write_bytes(train[2].read_bytes())
    report = check("ucf101", root, progress=False, workers=1)
    text = str(report)
    assert not report.ok and len(report.table) == 27 and "train: 20 files listed, the official number is 9537" in text
    assert "1 of 20 listed files are missing" in text and "the file is empty" in text and "the same file in two splits" in text
    assert {"path", "split", "label", "frames", "fps", "width", "height", "bytes", "hash", "seekable", "group"} <= set(report.table)
    for name in ("manifest.csv", "manifest.parquet"):
        source = data.open(report.write(tmp_path / name), "train", frames=4, size=16)
        assert len(source) == 18 and source[0].clip.shape == (3, 4, 16, 16)
        direct = data.open(f"ucf101:{root}", "train")
        assert source.labels["class"].tolist() == [c.labels["class"] for c in direct.listing.clips if c.path != str(train[1])]
    assert check("folder", tree, progress=False, hashes=False).ok


def test_check_outlives_a_decoder_that_dies(tree, monkeypatch):
    from vjepa_lab.data import check as module

    facts = module._video_facts
    victim = list_folder(tree).clips[3].path
    monkeypatch.setattr(module, "_video_facts", lambda path: os.kill(os.getpid(), 9) if path == victim else facts(path))
    report = check("folder", tree, progress=False, workers=1)
    assert len(report.table) == 32 and report.table["fault"].notna().sum() == 1 and "SIGKILL" in str(report)


def test_prepare_transcodes_resumes_and_loads(counters, tmp_path):
    for name in ("mpeg4_b_frames.avi", "vp9.webm"):
        (tmp_path / "set" / "train" / "thing").mkdir(parents=True, exist_ok=True)
        shutil.copy(counters / name, tmp_path / "set" / "train" / "thing" / name)
    report = check("folder", tmp_path / "set", progress=False)
    out = prepare(report, tmp_path / "out", side=48, key_every=10, progress=False)
    files = sorted(out.rglob("*.mp4"))
    dates = [file.stat().st_mtime_ns for file in files]
    prepare(report, out, side=48, key_every=10, progress=False)
    assert [file.stat().st_mtime_ns for file in files] == dates and len(files) == 2
    for file in files:
        with Video(file) as video:
            assert video.stream.seekable and video.frames == 150 and video.stream.height == 48
            assert numbers_shown(video.read([3, 77, 149])) == [3, 77, 149]
    assert len(data.open(out, frames=4, size=16)) == 2
    with pytest.raises(data.DataError, match=r"was prepared with .*'side': 48"):
        prepare(report, out, side=64, key_every=10, progress=False)
    with pytest.raises(data.DataError, match="side is at least 16 pixels"):
        prepare(report, tmp_path / "none", side=0, progress=False)


def damage(tree, folder):
    """A folder of 200 good clips and one of each fault; returns the faulty files' names."""
    good = sorted(tree.rglob("*.mp4"))[0]
    place = folder / "train" / "thing"
    place.mkdir(parents=True)
    for i in range(200):
        (place / f"good_{i:02d}.mp4").symlink_to(good)
    whole = good.read_bytes()
    (place / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (place / "empty.mp4").write_bytes(b"")
    (place / "text.mp4").write_text("this is no video\n" * 100)
    (place / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    (place / "gone.mp4").symlink_to(folder / "nowhere.mp4")
    return {"truncated.mp4", "empty.mp4", "text.mp4", "broken.jpg"}


def test_bad_files_are_named_counted_and_skipped(tree, tmp_path):
    faulty = damage(tree, tmp_path)
    source = data.open(tmp_path, frames=4, size=16)
    for batch in islice(data.loader(source, 32, workers=2), 7):
        assert len(batch) == 32
    report = source.report()
    assert {path.rsplit("/", 1)[1] for path in report["files"]} == faulty and report["unreadable"] == 4
    why = {path.rsplit("/", 1)[1]: text for path, text in report["files"].items()}
    assert why["empty.mp4"] == "the file is empty" and all(len(text) > 8 and "\n" not in text for text in why.values())


def test_mostly_bad_folders_stop_the_run(tree, tmp_path):
    (tmp_path / "thing").mkdir()
    for i in range(6):
        (tmp_path / "thing" / f"{i}.mp4").write_text("this is no video")
    with pytest.raises(data.DataError, match=r"(?s)too many to go on.*\d\.mp4: "):
        next(data.loader(data.open(tmp_path, frames=4, size=16), 4))


def test_wrong_extension_single_frame_and_odd_sizes_load(tmp_path):
    place = tmp_path / "thing"
    write_video(place / "matroska.mkv", counter_clip(20), 12, "vp9")
    shutil.move(place / "matroska.mkv", place / "really_matroska.mp4")
    write_video(place / "single.mp4", counter_clip(1), 12)
    write_video(place / "odd.mp4", torch.randint(0, 255, (3, 9, 37, 53), dtype=torch.uint8), 12)
    source = data.open(tmp_path, "all", frames=4, size=16)
    assert [source[i].clip.shape for i in range(3)] == [(3, 4, 16, 16)] * 3 and not source.report()["unreadable"]


def test_a_hundred_damaged_videos_are_all_accounted_for(counters):
    rng, outcomes = random.Random(0), {"read": 0, "refused": 0}
    names = ["h264.mp4", "mpeg4.avi", "vp9.webm"]
    for i in range(100):
        raw = bytearray((counters / names[i % 3]).read_bytes())
        if i % 2:
            del raw[rng.randrange(len(raw)) :]
        else:
            for _ in range(40):
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        bad = counters / f"bad_{i}{names[i % 3][-5:]}"
        bad.write_bytes(raw)
        try:
            with Video(bad, BACKENDS[i % 4 // 2]) as video:
                assert video.read(Sampling(8, 2).numbers(video.frames)).shape[0] == 8
            outcomes["read"] += 1
        except ClipError as error:
            assert bad.name in str(error)
            outcomes["refused"] += 1
        bad.unlink()
    assert sum(outcomes.values()) == 100 and min(outcomes.values()) > 5


@pytest.mark.parametrize("name, kind", [("a.png", np.uint16), ("a.tif", np.uint16), ("big.tif", ">u2"), ("wide.tif", np.int32)])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, name, kind):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    if kind == ">u2":
        Image.frombytes("I;16B", (256, 256), ramp.astype(kind).tobytes()).save(tmp_path / name)
    else:
        Image.fromarray(ramp.astype(kind)).save(tmp_path / name)
    found = read_image(tmp_path / name)
    assert np.array_equal(found.numpy(), np.broadcast_to(np.rint(ramp / 257).astype(np.uint8), (1, 3, 256, 256)))


@pytest.mark.parametrize("pixels, message", [
    (np.linspace(0, 1, 256, dtype=np.float32), "floating-point pixels from 0 to 1, .*expected 8 or 16 bits"),
    (np.linspace(0, 70000, 256).astype(np.int32), "32-bit pixels from 0 to 70000"),
    (np.linspace(-5, 100, 256).astype(np.int32), "32-bit pixels from -5 to 100"),
])  # fmt: skip
def test_pixels_of_an_unknown_range_are_refused(tmp_path, pixels, message):
    Image.fromarray(pixels.reshape(16, 16)).save(tmp_path / "a.tif")
    with pytest.raises(ClipError, match=message):
        read_image(tmp_path / "a.tif")


def test_manifest_lines(tmp_path):
    lines = ["a.mp4 0", '"with blanks.mp4" 2', "more blanks here.mp4 1", "colons.mp4::1", "/abs/x.avi 0", "", "'single quoted.mp4' 2"]
    (tmp_path / "list.csv").write_text("\r\n".join(lines))
    listing = list_manifest(tmp_path / "list.csv")
    assert [clip.path.removeprefix(f"{tmp_path}/") for clip in listing.clips] == [
        "a.mp4", "with blanks.mp4", "more blanks here.mp4", "colons.mp4", "/abs/x.avi", "single quoted.mp4",
    ]  # fmt: skip
    assert [clip.labels["class"] for clip in listing.clips] == [0, 2, 1, 1, 0, 2] and listing.classes["class"] == ["0", "1", "2"]
    (tmp_path / "names.txt").write_text("a.mp4 run\nb.mp4 jump\n")
    assert list_manifest(tmp_path / "names.txt").classes["class"] == ["jump", "run"]


def test_folders_without_splits_say_how_they_were_dealt(clips):
    train, test = (list_folder(clips / "ucf101_6cls_128p", split) for split in ("train", "test"))
    assert {clip.group.partition("/")[2] for clip in test.clips} <= {f"g{i:02d}" for i in range(1, 8)} and "groups 1-7" in train.notes[0]
    assert not {clip.path for clip in train.clips} & {clip.path for clip in test.clips} and len(train.clips) + len(test.clips) == 182
    train, test = (list_folder(clips / "tennis7_160p", split) for split in ("train", "test"))
    assert list(test.count().values()) == [2] * 7 and list(train.count().values()) == [4] * 7 and "both sides" in test.notes[0]


@pytest.mark.parametrize("content, message", [
    ("", "is empty; expected lines"),
    ("a.mp4 1\nb.mp4\n", r"line 2: expected `path label`, found 'b.mp4'"),
    ("path,label,split\na.mp4,1\n", r"line 2: 2 values for 3 columns"),
    ("path,label\na.mp4,1\nb.mp4,\n", r"line 3: nothing in the column 'label'"),
    ("a.mp4,1\n", "needs a header with a column `path`"),
    ("path,label,start,end\na.mp4,1,x,2\n", "start of a.mp4 is 'x'; expected seconds"),
    ("path,label,split\na.mp4,1,train\n", "no split 'test'; it has train"),
])  # fmt: skip
def test_bad_manifests(tmp_path, content, message):
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(data.DataError, match=message):
        data.open(tmp_path / "list.csv", "test")


def test_a_list_without_splits_is_no_training_and_test_set(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4 0\nb.mp4 1\n")
    (tmp_path / "split.csv").write_text("path,label,split\na.mp4,0,train\nb.mp4,1,test\n")
    whole, split = ([data.open(tmp_path / name, part) for part in ("train", "test")] for name in ("list.txt", "split.csv"))
    with pytest.raises(data.DataError, match=r"splits train and test are the same 2 clips.*add a `split` column"):
        apart(*whole)
    apart(*split)


def test_spans_and_crops_of_one_film_are_apart_where_they_do_not_meet(tmp_path):
    def cut(name, *spans, box=None):
        (tmp_path / name).write_text("path,label,start,end\n" + "".join(f"film.mp4,0,{span}\n" for span in spans))
        source = data.open(tmp_path / name, "train" if name == "a.csv" else "test")
        source.listing.clips[:] = [replace(clip, box=box) for clip in source.listing.clips]
        return source

    taught = cut("a.csv", "0,5.01", box=(0, 0, 0.5, 1))
    apart(taught, cut("b.csv", "5,9"))  # 10 ms: less than a frame
    apart(taught, cut("c.csv", "0,5", box=(0.5, 0, 1, 1)))  # the other half of the picture
    with pytest.raises(data.DataError, match=r"share 1 of 2 test clips \(.*film.mp4"):
        apart(taught, cut("d.csv", "4,9", "6,9", box=(0.4, 0, 1, 1)))


def test_links_to_one_file_are_one_clip(tmp_path, counters):
    (tmp_path / "files").mkdir()
    for name in "abc":
        shutil.copy(counters / "h264.mp4", tmp_path / "files" / f"{name}.mp4")
    for split, name in (("train", "a"), ("train", "b"), ("test", "c")):
        (tmp_path / "apart" / split / "x").mkdir(parents=True, exist_ok=True)
        (tmp_path / "apart" / split / "x" / f"{name}.mp4").symlink_to(tmp_path / "files" / f"{name}.mp4")
    apart(*(data.open(tmp_path / "apart", split) for split in ("train", "test")))
    (tmp_path / "apart" / "test" / "x" / "again.mp4").symlink_to(tmp_path / "apart" / "train" / "x" / "a.mp4")
    with pytest.raises(data.DataError, match=r"share 1 of 2 test clips \(.*again.mp4"):
        apart(*(data.open(tmp_path / "apart", split) for split in ("train", "test")))
    (tmp_path / "whole" / "train").mkdir(parents=True)
    (tmp_path / "whole" / "test").mkdir()
    (tmp_path / "whole" / "train" / "x").symlink_to(tmp_path / "files")
    (tmp_path / "whole" / "test" / "x").symlink_to(tmp_path / "files")
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"path,label\nwhole/{split}/x/a.mp4,x\n")
    with pytest.raises(data.DataError, match="are the same 1 clips"):
        apart(data.open(tmp_path / "train.csv"), data.open(tmp_path / "test.csv", "test"))


def test_bad_folders(tmp_path, tree):
    with pytest.raises(data.DataError, match="no video or image files below"):
        data.open(tmp_path)
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(data.DataError, match="no folder for the split 'test'; it has train"):
        data.open(tmp_path, "test")
    with pytest.raises(data.DataError, match="unknown video backend 'cv2'; one of decord, pyav"):
        data.open(tree, backend="cv2")[0]
    with pytest.raises(data.DataError, match="is not empty"):
        data.export(tree)


def test_a_random_split_of_ucf101_is_refused_unless_the_leak_is_asked_for(clips):
    folder = clips / "ucf101_6cls_128p"
    with pytest.raises(data.DataError, match=r"leaks: the clips of a group.*95 % instead of 65 %.*leak=True"):
        list_folder(folder, "test", random=True)
    train, test = (list_folder(folder, split, random=True, leak=True) for split in ("train", "test"))
    both = lambda listing: {(clip.labels["class"], clip.group) for clip in listing.clips}
    assert both(train) & both(test) and "LEAKS" in test.notes[0]
    fair = [both(list_folder(folder, split)) for split in ("train", "test")]
    assert not fair[0] & fair[1]


def fill_with_others(folder, files, limit):
    torch.set_num_threads(1)  # as in a loader's worker: the threads of the process that forked are not there
    Cache(folder, side=32, limit=limit).fill(files, progress=False)


def test_a_cache_shared_by_processes_stays_within_its_limit(tree, tmp_path):
    files = [clip.path for clip in list_folder(tree).clips]
    jobs = [mp.get_context("fork").Process(target=fill_with_others, args=(tmp_path, files[i::3], 200_000)) for i in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    kept = sum(path.stat().st_size for path in tmp_path.glob("*.npy"))
    assert 100_000 < kept <= 200_000 and all(job.exitcode == 0 for job in jobs)


def test_a_cache_outlives_what_happens_to_disks(tree, tmp_path, monkeypatch):
    file = list_folder(tree).clips[0].path
    with Cache(tmp_path, side=32).open(file) as video:
        truth = video.read([0, 5])
    kept, facts = next(tmp_path.glob("*.npy")), next(tmp_path.glob("*.json"))
    for path, text in ((kept, ""), (facts, ""), (facts, "{}"), (facts, "[")):  # a machine that lost its power
        path.write_text(text)
        with Cache(tmp_path, side=32).open(file) as video:
            assert torch.equal(video.read([0, 5]), truth)
    left = tmp_path / f".{'0a' * 16}.123"
    left.write_text("of a process that was killed")
    assert Cache(tmp_path).size() > 0 and left.exists()
    os.utime(left, (0, 0))
    assert Cache(tmp_path).size() == kept.stat().st_size and not left.exists()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.warns(UserWarning, match="keeps no more videos.*No space left"), Cache(tmp_path, side=16).open(file) as video:
        assert video.read([0]).shape == (1, 3, 64, 64)
    (tmp_path / "file").write_text("")
    with pytest.raises(data.DataError, match=r"cache folder .* cannot be made"):
        Cache(tmp_path / "file" / "cache")


def test_fractional_steps_stay_inside_their_segment():
    rng = np.random.default_rng(0)
    for rate in (25.0, 29.97, 23.976):
        for segment in range(3):
            drawn = np.array([Sampling(5, fps=8, segments=3).numbers(60, rate, segment, rng) for _ in range(300)])
            assert drawn.min() >= 20 * segment and drawn.max() <= 20 * segment + 19


def test_check_names_files_that_may_not_be_opened(tree, monkeypatch):
    from vjepa_lab.data import check as module

    facts, victim = module._file_facts, list_folder(tree).clips[3].path

    def denied(path, hashes):
        if path == victim:
            raise PermissionError(13, "Permission denied", path)
        return facts(path, hashes)

    monkeypatch.setattr(module, "_file_facts", denied)
    report = check("folder", tree, progress=False, workers=0)
    assert report.table["fault"].dropna().tolist() == ["Permission denied"] and len(report.table) == 32


def test_check_tells_what_a_manifest_leaves_out(tree, tmp_path):
    place = tmp_path / "thing"
    place.mkdir()
    for i in range(8):
        shutil.copy(sorted(tree.rglob("*.mp4"))[i], place / f"{i}.mp4")
    (place / "0.mp4").write_bytes(b"")
    check("folder", tmp_path, progress=False, workers=0).write()
    assert len(data.open(tmp_path, "all", frames=2, size=16)) == 7  # the manifest says that 0.mp4 cannot be read
    shutil.copy(place / "1.mp4", place / "new.mp4")
    text = str(check("folder", tmp_path, progress=False, workers=0))
    assert "2 files are not read" in text and "thing/0.mp4; remove the manifest" in text


@pytest.mark.parametrize("text", ["path\tlabel\na b.mp4\t1\nc.mp4\t0\n", "path label\na b.mp4 1\nc.mp4 0\n", "a b.mp4\t1\nc.mp4\t0\n"])
def test_tabs_and_headers_of_blank_separated_lists(tmp_path, text):
    (tmp_path / "list.txt").write_text(text)
    listing = list_manifest(tmp_path / "list.txt")
    assert [clip.labels["class"] for clip in listing.clips] == [1, 0] and listing.clips[0].path == str(tmp_path / "a b.mp4")


def test_a_column_of_numbers_that_are_no_classes(tmp_path):
    (tmp_path / "list.csv").write_text("path,label,id\na.mp4,1,99999999999\nb.mp4,0,7\n")
    assert list_manifest(tmp_path / "list.csv").classes == {"class": ["0", "1"], "id": ["7", "99999999999"]}
