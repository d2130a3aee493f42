"""Data sets in their distributed form, on miniature trees in the genuine formats, and the traps that each is known for."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vjepa_lab import data
from vjepa_lab.data.check import check
from vjepa_lab.data.crops import view_crop
from vjepa_lab.data.encode import write_video
from vjepa_lab.data.files import decode
from vjepa_lab.data.listing import Clip, list_folder, list_manifest, mirrors
from vjepa_lab.data.prepare import prepare
from vjepa_lab.data.sampling import Sampling
from vjepa_lab.data.scenes import MOTIONS
from vjepa_lab.data.sets import SETS, diving48
from vjepa_lab.data.splits import pair
from vjepa_lab.data.video import Video
from vjepa_lab.presets import PRESETS
from vjepa_lab.train import beside_the_name


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """One short real video file, to be linked to under many names."""
    moving = torch.arange(24 * 32, dtype=torch.uint8).view(1, 24, 1, 32).expand(3, 24, 32, 32)
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", moving, 12)


def put(source, *paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(source)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))


def load(spec, split="train", **options):
    """Open a set and decode all of it once."""
    source = data.open(spec, split, frames=4, size=16, **options)
    shapes = {tuple(source[i].clip.shape) for i in range(len(source))}
    assert shapes == {(3, 4, 16, 16)} and not source.report()["unreadable"]
    return source


@pytest.fixture
def ucf101(tmp_path, clip):
    lists = tmp_path / "ucfTrainTestlist"
    train = ["Archery/v_Archery_g08_c01.avi 1", "HandstandPushups/v_HandStandPushups_g09_c01.avi 2"]
    test = ["Archery/v_Archery_g01_c01.avi", "HandstandPushups/v_HandStandPushups_g02_c01.avi", "Archery/v_Archery_g07_c03.avi"]
    write(lists / "classInd.txt", "1 Archery\r\n2 HandstandPushups\r\n")
    write(lists / "trainlist01.txt", "\r\n".join(train) + "\r\n")
    write(lists / "testlist01.txt", "\r\n".join(test) + "\r\n\r\n")
    put(clip, *(tmp_path / "UCF-101" / row.split()[0] for row in train + test))
    return tmp_path


def test_ucf101(ucf101):
    train, test = load(f"ucf101:{ucf101}"), load(f"ucf101:{ucf101}", "test")
    assert train.classes["class"] == ["Archery", "HandstandPushups"]
    assert train.labels["class"].tolist() == [0, 1] and test.labels["class"].tolist() == [0, 1, 0]
    assert [c.group for c in test.listing.clips] == ["Archery/g01", "HandStandPushups/g02", "Archery/g07"]
    assert "no validation part" in repr(data.open(f"ucf101:{ucf101}", "val"))


def test_ucf101_refuses_lists_that_leak_groups(ucf101):
    with (ucf101 / "ucfTrainTestlist" / "trainlist01.txt").open("a") as file:
        file.write("Archery/v_Archery_g07_c01.avi 1\n")
    with pytest.raises(data.DataError, match="1 groups lie in both lists"):
        data.open(f"ucf101:{ucf101}")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_each_official_split_has_a_name_of_its_own(ucf101, number):
    """Rows go by it: under one name the splits would overwrite each other."""
    for side in ("train", "test"):
        if number != 1:
            shutil.copy(ucf101 / "ucfTrainTestlist" / f"{side}list01.txt", ucf101 / "ucfTrainTestlist" / f"{side}list0{number}.txt")
    source = data.open(f"ucf101:{ucf101}", frames=4, size=16, number=number)
    assert source.name == ("ucf101" if number == 1 else f"ucf101-{number}")
    beside = beside_the_name(source, replace(PRESETS["smoke"], frames=4, size=16), 0)
    assert data.open(source.spec, frames=4, size=16, **beside).name == source.name


def test_ucf101_says_what_is_missing(ucf101):
    (ucf101 / "UCF-101" / "Archery" / "v_Archery_g07_c03.avi").unlink()
    test = data.open(f"ucf101:{ucf101}", "test")
    assert len(test) == 2 and test.listing.missing == 1 and "1 of 3 listed files are missing" in repr(test)
    shutil.rmtree(ucf101 / "UCF-101" / "Archery")
    shutil.rmtree(ucf101 / "UCF-101" / "HandstandPushups")
    with pytest.raises(data.DataError, match=r"(?s)none of the 2 listed files is here.*UCF-101/<Class>/v_<Class>"):
        data.open(f"ucf101:{ucf101}")


def test_genuine_ucf101_lists(clips):
    train, test = (data.open(f"ucf101:{clips / 'ucf101'}", split, frames=4, size=32) for split in ("train", "test"))
    assert len(train) + train.listing.missing == 9537 and len(test) + test.listing.missing == 3783 and len(train.classes["class"]) == 101
    assert train.classes["class"][train[0].labels["class"]] == "Archery" and train[0].clip.shape == (3, 4, 32, 32)


def ssv2_tree(root, clip):
    templates = ["Pulling [something] from left to right", "Pulling [something] from right to left", "Throwing [something]"]
    names = [name.replace("[", "").replace("]", "") for name in templates]
    write(root / "labels" / "labels.json", {name: str(i) for i, name in enumerate(names)})
    rows = [{"id": str(70 + i), "label": "x", "template": templates[i % 3], "placeholders": ["cup"]} for i in range(6)]
    write(root / "labels" / "train.json", rows[:4])
    write(root / "labels" / "validation.json", rows[4:])
    write(root / "labels" / "test.json", [{"id": "90"}])
    write(root / "labels" / "test-answers.csv", "90;Throwing something\n")
    put(clip, *(root / "20bn-something-something-v2" / f"{number}.webm" for number in [*range(70, 76), 90]))


def test_ssv2(tmp_path, clip):
    ssv2_tree(tmp_path, clip)
    train = load(f"ssv2:{tmp_path}")
    assert train.labels["class"].tolist() == [0, 1, 2, 0]
    assert load(f"ssv2:{tmp_path}", "val").labels["class"].tolist() == [1, 2]
    assert load(f"ssv2:{tmp_path}", "test").labels["class"].tolist() == [2]
    assert train.listing.mirrored == {"class": {0: 1, 1: 0}}


def test_ssv2_flips_swap_left_and_right(tmp_path, clip):
    ssv2_tree(tmp_path, clip)
    always, never = (data.open(f"ssv2:{tmp_path}", frames=4, size=16, flips=p, scale=(0.99, 1.0)) for p in (1.0, 0.0))
    assert [always[i].labels["class"] for i in range(3)] == [1, 0, 2] and [never[i].labels["class"] for i in range(3)] == [0, 1, 2]
    assert torch.equal(always[0].clip.flip(-1), never[0].clip)


def test_ssv2_official_flip_pairs(clips):
    names = json.loads((clips / "ssv2" / "labels" / "labels.json").read_text())
    pairs = mirrors(sorted(names, key=lambda name: int(names[name])))
    assert pairs == {86: 87, 87: 86, 93: 94, 94: 93, 166: 167, 167: 166}
    source = data.open(f"ssv2:{clips / 'ssv2'}", "val", frames=16, size=32)  # 16 x stride 2 is longer than some of these clips
    assert len(source) == 3 and len(source.classes["class"]) == 174 and source[0].clip.shape == (3, 16, 32, 32)


def test_ssv2_without_test_labels_names_the_split_to_ask_for(tmp_path, clip):
    ssv2_tree(tmp_path, clip)
    (tmp_path / "labels" / "test-answers.csv").unlink()
    with pytest.raises(data.DataError, match=r'(?s)labels has no test-answers.csv; expected.*validation split.*splits=\("train", "val"\)'):
        data.open(f"ssv2:{tmp_path}", "test")


def test_diving48(tmp_path, clip):
    rows = [{"vid_name": f"-m_q_{i:05d}", "label": label, "start_frame": 0, "end_frame": 24} for i, label in enumerate([0, 2, 2])]
    write(tmp_path / "Diving48_train.json", rows)
    with pytest.raises(data.DataError, match="V1 labels, which are wrong"):
        data.open(f"diving48:{tmp_path}")
    write(tmp_path / "Diving48_V2_train.json", rows)
    write(tmp_path / "Diving48_V2_test.json", rows[:1])
    write(
        tmp_path / "Diving48_vocab.json",
        [["Back", "15som", "05Twis", "FREE"], ["Forward", "Dive", "NoTwis", "STR"], ["Inward", "x", "y", "z"]],
    )
    put(clip, *(tmp_path / "rgb" / f"{row['vid_name']}.mp4" for row in rows))
    train = load(f"diving48:{tmp_path}")
    assert train.labels["class"].tolist() == [0, 2, 2] and train.classes["class"][0] == "Back+15som+05Twis+FREE"
    assert train.listing.count() == {"Back+15som+05Twis+FREE": 1, "Forward+Dive+NoTwis+STR": 0, "Inward+x+y+z": 2}
    assert "classes without a clip in this part: 1" in repr(train) and train.listing.clips[0].group == "-m_q"
    says = "Diving-48 has no validation part: val is the test part"
    assert says in repr(load(f"diving48:{tmp_path}", "val")) and says not in repr(load(f"diving48:{tmp_path}", "test"))


def test_genuine_diving48_labels(tmp_path, clips, clip, monkeypatch):
    for path in (clips / "diving48").iterdir():
        (tmp_path / path.name).symlink_to(path)
    names = [row["vid_name"] for row in json.loads((tmp_path / "Diving48_V2_test.json").read_text())[:3]]
    put(clip, *(tmp_path / "rgb" / f"{name}.mp4" for name in names))
    with monkeypatch.context() as patched:
        patched.setattr(diving48, "present", lambda listing, layout: listing)
        assert [len(set(data.open(f"diving48:{tmp_path}", split).recordings)) for split in ("train", "test")] == [58, 26]
    test = load(f"diving48:{tmp_path}", "test")
    assert len(test) + test.listing.missing == SETS["diving48"].OFFICIAL["test"] == 1970 and "part: 30" in repr(test)
    for suffix in (".csv", ".parquet"):  # 48 classes, of which the manifest's clips show three at most
        manifest = check("diving48", tmp_path, splits=("test",), progress=False).write(tmp_path / f"kept{suffix}")
        again = data.open(str(manifest), "test")
        assert again.classes == test.classes and len(again.classes["class"]) == 48
        assert again.labels["class"].tolist() == test.labels["class"].tolist()


def test_hmdb51(tmp_path, clip):
    for name in ("brush_hair", "wave"):
        lines = "".join(f"{name}_{i}.avi {flag} \n" for i, flag in enumerate((1, 1, 2, 0)))
        write(tmp_path / "testTrainMulti_7030_splits" / f"{name}_test_split1.txt", lines)
        put(clip, *(tmp_path / "hmdb51_org" / name / f"{name}_{i}.avi" for i in range(4)))
    assert load(f"hmdb51:{tmp_path}").labels["class"].tolist() == [0, 0, 1, 1]
    assert len(load(f"hmdb51:{tmp_path}", "test")) == 2
    says = "HMDB-51 has no validation part: val is the test part"
    assert says in repr(load(f"hmdb51:{tmp_path}", "val")) and says not in repr(load(f"hmdb51:{tmp_path}", "test"))
    with pytest.raises(data.DataError, match=r"has no \*_test_split2.txt"):
        data.open(f"hmdb51:{tmp_path}", number=2)
    for name in ("brush_hair", "wave"):
        write(tmp_path / "testTrainMulti_7030_splits" / f"{name}_test_split3.txt", f"{name}_3.avi 1\n")
    assert data.open(f"hmdb51:{tmp_path}").name == "hmdb51" and data.open(f"hmdb51:{tmp_path}", number=3).name == "hmdb51-3"


def test_imagenet100_finds_its_classes_in_every_layout(tmp_path, clips):
    image = next((clips / "imagenet100_1perclass").rglob("*.JPEG"))
    for name in ("n01440764", "n01558993", "n01692333"):  # the first is no class of the list
        put(image, tmp_path / "1k" / "train" / name / f"{name}_1.JPEG", tmp_path / "1k" / "val" / name / "ILSVRC2012_val_00000001.JPEG")
    full = load(f"imagenet100:{tmp_path / '1k'}")
    assert full.classes["class"][:2] == ["n01558993", "n01692333"] and len(full.classes["class"]) == 100
    assert full.labels["class"].tolist() == [0, 1] and "98 of 100 classes are not in this copy" in repr(full)
    write(tmp_path / "list.txt", "n01440764\nn01558993\n")
    assert load(f"imagenet100:{tmp_path / '1k'}", "val", classes=tmp_path / "list.txt").classes["class"] == ["n01440764", "n01558993"]
    put(image, *(tmp_path / "numbered" / "train" / str(i) / "a.JPEG" for i in range(12)))
    assert load(f"imagenet100:{tmp_path / 'numbered'}").classes["class"][10] == "10"
    put(image, tmp_path / "flat" / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(data.DataError, match="has no class folders; sort the images"):
        data.open(f"imagenet100:{tmp_path / 'flat'}", "val")


def test_moments(tmp_path, clip):
    for part, files in (("training", ["adult+female+singing/a.mp4", "clapping/b.mp4"]), ("validation", ["clapping/c.mp4"])):
        write(tmp_path / f"{part}Set.csv", "".join(f"{file},{file.split('/')[0]},3,1\n" for file in files))
        put(clip, *(tmp_path / part / file for file in files))
    write(tmp_path / "moments_categories.txt", "clapping,0\nadult+female+singing,1\n")
    assert load(f"moments:{tmp_path}").labels["class"].tolist() == [1, 0] and load(f"moments:{tmp_path}", "val").labels[
        "class"
    ].tolist() == [0]
    (tmp_path / "trainingSet.csv").unlink()
    assert load(f"moments:{tmp_path}").classes["class"] == ["adult+female+singing", "clapping"]


def test_ava(tmp_path, clip):
    rows = [
        "-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,80,1",
        "-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,9,1",
        "-5KQ66BBWC4,0902,0.332,0.194,0.481,0.891,12,2",
        "-5KQ66BBWC4,0903,0.332,0.194,0.481,0.891,2,2",  # not evaluated
        "-5KQ66BBWC4,0904,0.332,0.194,0.481,0.891,9,2",  # excluded
        "gone,0904,0.332,0.194,0.481,0.891,9,2",
    ]
    write(tmp_path / "ava_train_v2.2.csv", "\n".join(rows))
    write(tmp_path / "ava_train_excluded_timestamps_v2.2.csv", "-5KQ66BBWC4,0904\n\n")
    actions = ((9, "martial art"), (12, "stand"), (80, "watch (a person)"))
    write(
        tmp_path / "ava_action_list_v2.2_for_activitynet_2019.pbtxt",
        "".join(f'item {{\n  name: "{n}"\n  id: {i}\n}}\n' for i, n in actions),
    )
    put(clip, tmp_path / "videos_15min" / "-5KQ66BBWC4.mp4")
    source = load(f"ava:{tmp_path}", offset=902.0)
    assert source.labels["class"].tolist() == [[1, 0, 1], [0, 1, 0]] and "1 listed films are missing" in repr(source)
    x1, _, x2, _ = source.listing.clips[0].box
    assert abs((x2 - x1) / (0.283 - 0.077) - 1.2) < 1e-6 and source.listing.clips[0].end - source.listing.clips[0].start == 2
    batch = next(data.loader(source, 2, train=False))
    assert batch.labels["class"].shape == (2, 3) and source.listing.count() == {"martial art": 1, "stand": 1, "watch (a person)": 1}


def test_kinetics(tmp_path, clip):
    write(tmp_path / "train.csv", "label,youtube_id,time_start,time_end,split\nair drumming,abc-_x,1,11,train\nyoga,gone,0,10,train\n")
    put(clip, tmp_path / "train" / "air_drumming" / "abc-_x_000001_000011.mp4")
    source = load(f"kinetics:{tmp_path}")
    assert len(source) == 1 and source.classes["class"] == ["air drumming", "yoga"] and source.listing.missing == 1
    write(tmp_path / "train.csv", "name,label\na,b\n")
    with pytest.raises(data.DataError, match="expected the columns label,youtube_id"):
        data.open(f"kinetics:{tmp_path}")


@pytest.mark.parametrize("lists", [True, False])
def test_kinetics_without_a_test_part_is_tested_on_its_validation_part(tmp_path, clip, lists):
    for part in ("train", "validate"):
        if lists:
            rows = "".join(f"{label},{part}_{label},0,10,{part}\n" for label in "ab")
            write(tmp_path / f"{part}.csv", "label,youtube_id,time_start,time_end,split\n" + rows)
        for label in "ab":  # not links to one file, which would be in both splits
            (tmp_path / part / label).mkdir(parents=True)
            shutil.copy(clip, tmp_path / part / label / f"{part}_{label}_000000_000010.mp4")
    if lists:
        put(clip, tmp_path / "test" / "without_a_list.mp4")
    val, test = (data.open(f"kinetics:{tmp_path}", split) for split in ("val", "test"))
    assert (val.split, test.split) == ("val", "test") and test.listing.clips == val.listing.clips and "/validate/" in test.where(0)
    assert [len(part) for part in pair(f"kinetics:{tmp_path}", ("train", "test"), ["class"], PRESETS["smoke"])] == [2, 2]


def test_clips_of_one_video_are_of_one_recording_whatever_their_class(tmp_path, clip):
    write(tmp_path / "train.csv", "label,youtube_id,time_start,time_end,split\na,x,0,10,train\nb,x,9,19,train\nb,y,0,10,train\n")
    put(clip, *(tmp_path / "train" / name for name in ("a/x_000000_000010.mp4", "b/x_000009_000019.mp4", "b/y_000000_000010.mp4")))
    assert data.open(f"kinetics:{tmp_path}").recordings == ["x", "x", "y"]
    rows = ["v_A_g01_c01.avi", "v_A_g01_c02.avi", "v_B_g01_c01.avi"]
    write(tmp_path / "bare.txt", "".join(f"{name} {name[2]}\n" for name in rows))
    write(tmp_path / "table.csv", "path,label,group\n" + "".join(f"{name},{name[2]},g01\n" for name in rows))  # as older tables have it
    write(tmp_path / "own.csv", "path,label,group\np.mp4,a,tape 1\nq.mp4,b,tape 1\n")
    for name in ("bare.txt", "table.csv"):
        assert data.open(tmp_path / name).recordings == ["A/g01", "A/g01", "B/g01"]
    assert data.open(tmp_path / "own.csv").recordings == ["tape 1", "tape 1"]


@pytest.mark.parametrize("name, suffix", [("ssv2", ".mp4"), ("kinetics", ".mkv"), ("diving48", ".MP4")])
def test_copies_with_another_suffix_are_found(tmp_path, clip, name, suffix):
    if name == "ssv2":
        ssv2_tree(tmp_path, clip)
    elif name == "kinetics":
        write(tmp_path / "train.csv", "label,youtube_id,time_start,time_end,split\na,x,0,10,train\na,z,0,10,train\n")
        put(clip, tmp_path / "train" / "a" / "x_000000_000010.mp4")
    else:
        write(tmp_path / "Diving48_V2_train.json", [{"vid_name": f"d_{i}", "label": 0} for i in range(2)])
        write(tmp_path / "Diving48_vocab.json", [["Back"]])
        put(clip, *(tmp_path / "rgb" / f"d_{i}.mp4" for i in range(2)))
    for file in [*tmp_path.rglob("*.webm"), *tmp_path.rglob("*.mp4")]:
        file.rename(file.with_suffix(suffix))
        file.with_suffix(".json").touch()
    source = load(f"{name}:{tmp_path}")
    assert {path.suffix for path in map(Path, map(source.where, range(len(source))))} == {suffix}
    assert (len(source), source.listing.missing) == {"ssv2": (4, 0), "kinetics": (1, 1), "diving48": (2, 0)}[name]


def test_a_tilde_after_the_colon_is_ones_home(ucf101, clip, monkeypatch):
    monkeypatch.setenv("HOME", str(ucf101.parent))
    assert len(load(f"ucf101:~/{ucf101.name}")) == len(load(f"1*ucf101:~/{ucf101.name} + 1*ucf101:{ucf101}")) / 2 == 2
    put(clip, ucf101 / "plain" / "a" / "1.mp4")
    assert len(load(f"~/{ucf101.name}/plain", "all")) == 1


@pytest.mark.parametrize("name", SETS)
def test_wrong_layouts_say_what_was_expected_and_found(name, tmp_path):
    (tmp_path / "something_else").mkdir()
    with pytest.raises(data.DataError, match=r"(?s)expected\n.*found something_else/"):
        data.open(f"{name}:{tmp_path}")
    with pytest.raises(data.DataError, match="no folder"):
        data.open(f"{name}:{tmp_path / 'nowhere'}")


@pytest.mark.parametrize("name", ["ucf101", "ssv2", "imagenet100"])
def test_the_exported_world_is_read_by_the_real_sets_code(name, tmp_path):
    root = data.export(tmp_path / name, name, clips={"train": 24, "test": 8}, size=48, frames=8, progress=False)
    train, test = load(f"{name}:{root}"), load(f"{name}:{root}", "val")
    assert (len(train), len(test)) == (24, 8) and len(train.classes["class"]) == {"imagenet100": 20}.get(name, 8)
    assert len(set(train.labels["class"].tolist())) > 4


def test_unknown_names_and_options_suggest_near_ones(ucf101):
    with pytest.raises(data.DataError, match=f"did you mean ucf101:{ucf101}"):
        data.open(f"ufc101:{ucf101}")
    with pytest.raises(data.DataError, match="did you mean 'segments'"):
        data.open(f"ucf101:{ucf101}", segment=2)
    with pytest.raises(data.DataError, match="did you mean 'frames'"):
        data.open("synthetic", frame=2)


@pytest.mark.parametrize("names, twins", [
    (["Pulling something from left to right", "Pulling something from right to left"], {0: 1, 1: 0}),
    (["ccw", "cw", "left", "right", "up"], {0: 1, 1: 0, 2: 3, 3: 2}),
    (["Counter-clockwise", "Clockwise", "pan_left", "pan_right"], {0: 1, 1: 0, 2: 3, 3: 2}),
    (["N", "NE", "E", "SE", "S", "SW", "W", "NW"], {1: 7, 2: 6, 3: 5, 5: 3, 6: 2, 7: 1}),
    (["E", "W", "X"], {}),  # letters, not directions
    (["pulling it right out", "Brightness", "cleft"], {}),
])  # fmt: skip
def test_classes_that_a_flip_swaps(names, twins):
    assert mirrors(names) == twins


@pytest.mark.parametrize("name", ["folder", "ucf101", "ssv2"])
def test_flips_of_the_exported_world_swap_its_motions(name, tmp_path):
    root = data.export(tmp_path / "set", name, clips={"train": 80, "test": 1}, size=16, frames=2, progress=False)
    always, never = (data.open(root if name == "folder" else f"{name}:{root}", frames=2, size=16, flips=p) for p in (1.0, 0.0))
    seen = set()
    for flipped, plain in zip(always, never, strict=True):
        for label in {"class", "motion"} & set(always.classes):
            pair = [always.classes[label][s.labels[label]].lower().split()[-1] for s in (plain, flipped)]
            swap = {"left": "right", "right": "left", "cw": "ccw", "ccw": "cw"}
            assert pair[1] == swap.get(pair[0], pair[0])
            seen.add(pair[0])
    assert {"left", "cw"} & seen and len(seen) > 4


def test_flips_swap_left_and_right_in_a_manifest_and_a_prepared_copy_too(tmp_path, clip):
    ssv2_tree(tmp_path, clip)
    report = check("ssv2", tmp_path, progress=False, workers=0)
    small = prepare(report, tmp_path / "small", side=16, progress=False)
    for spec in (report.write(tmp_path / "manifest.csv"), small):
        always = data.open(spec, frames=4, size=16, flips=1.0)
        assert [always[i].labels["class"] for i in range(3)] == [1, 0, 2]


def test_the_exported_directions_share_no_clip_between_splits(tmp_path):
    root = data.export(tmp_path / "set", task="dirs8", clips={"train": 24, "test": 12}, size=160, frames=2, progress=False)
    train, test = (data.open(root, split, frames=1, size=32, augment=False) for split in ("train", "test"))
    assert (len(train), len(test)) == (24, 12)
    assert not any(torch.equal(a.clip, b.clip) for a in train for b in test)
    with pytest.raises(data.DataError, match="one held-out split"):
        data.export(tmp_path / "three", task="dirs8", clips={"train": 8, "val": 8, "test": 8}, progress=False)
    with pytest.raises(data.DataError, match="shapes in hues"):
        data.export(tmp_path / "images", "imagenet100", task="dirs8", progress=False)


def test_a_class_has_one_number_in_every_split(tmp_path, clip):
    put(clip, *(tmp_path / "folder" / file for file in ("train/a/1.mp4", "train/b/2.mp4", "train/c/3.mp4", "val/a/4.mp4", "val/c/5.mp4")))
    train, val = (data.open(tmp_path / "folder", split, frames=2, size=16) for split in ("train", "val"))
    assert train.classes == val.classes and val.labels["class"].tolist() == [0, 2] and "1 of 3 classes have no clip" in repr(val)
    kinetics = tmp_path / "kinetics"
    for part, labels in (("train", "abc"), ("val", "ac")):
        rows = "".join(f"{label},{label}x,0,10,{part}\n" for label in labels)
        write(kinetics / f"{part}.csv", "label,youtube_id,time_start,time_end,split\n" + rows)
        put(clip, *(kinetics / part / label / f"{label}x_000000_000010.mp4" for label in labels))
    assert load(f"kinetics:{kinetics}", "val").labels["class"].tolist() == [0, 2]
    moments = tmp_path / "moments"
    for part, labels in (("training", "abc"), ("validation", "ac")):
        write(moments / f"{part}Set.csv", "".join(f"{label}/1.mp4,{label}\n" for label in labels))
        put(clip, *(moments / part / label / "1.mp4" for label in labels))
    assert load(f"moments:{moments}", "val").labels["class"].tolist() == [0, 2]
    write(moments / "moments_categories.txt", "a,0\nb,1\nc,3\n")
    with pytest.raises(data.DataError, match="3 classes numbered from 0 without gaps; found 0 a, 1 b, 3 c"):
        data.open(f"moments:{moments}")


def test_ucf101_refuses_a_class_list_with_gaps(ucf101):
    for text, message in (("1 Archery\n3 HandstandPushups\n", "numbered from 1 without gaps"), ("Archery\n", "line 1: expected `number")):
        write(ucf101 / "ucfTrainTestlist" / "classInd.txt", text)
        with pytest.raises(data.DataError, match=message):
            data.open(f"ucf101:{ucf101}")


def test_a_clip_that_begins_after_its_file_ends_is_named(tmp_path, clip):
    """AVA's times count from the film's beginning; of a copy that was cut there would be nothing but its last frame."""
    put(clip, tmp_path / "a.mp4")
    write(tmp_path / "cut.csv", "path,label,start,end\na.mp4,0,1,2\na.mp4,0,900,902\n")
    source = data.open(tmp_path / "cut.csv", frames=4, size=16, augment=False, stride=1)
    assert [(c.start, c.end) for c in source.listing.clips] == [(1.0, 2.0), (900.0, 902.0)]
    whole = data.open(tmp_path / "cut.csv", frames=24, size=16, augment=False, stride=1).read(0).clip
    with Video(tmp_path / "a.mp4") as video:
        assert video.frames == 24 and whole.shape[1] == 24
        truth = view_crop(video.read(12 + Sampling(4, 1).numbers(12)), 16).movedim(1, 0)
    assert torch.equal(source.read(0).clip, truth)
    with pytest.raises(data.ClipError, match="begins at 900 s, the video ends at 2 s"):
        source.read(1)


# ------------------------------------------------------------------------------------------- what check and prepare leave as it was


def told(spec, split):
    """The clips of a split, without the folders of their files, and with class names."""
    listing = (list_folder if spec.is_dir() else list_manifest)(spec, split)
    return [(c.path.split("/")[-1], listing.classes["class"][c.labels["class"]], c.start, c.end) for c in listing.clips]


@pytest.fixture
def listed(tmp_path, clip):
    """A folder and a function that gives it a manifest written by hand."""
    root = tmp_path / "listed"
    put(clip, *(root / f"{i}.mp4" for i in range(4)))

    def by_hand(text):
        write(root / "manifest.csv", text)
        return root

    return by_hand


def kept(root, splits, tmp_path):
    """Check and prepare a folder: its manifest stays, and theirs tell the same of every split. Returns the report."""
    text = (root / "manifest.csv").read_text()
    report = check("folder", root, workers=0, progress=False)
    found, small = report.write(), prepare(report, tmp_path / "small", side=16, progress=False)
    assert found == root / "checked.csv" and "manifest.csv is kept as it is" in str(report) and (root / "manifest.csv").read_text() == text
    for split in splits:
        truth = told(root, split)
        assert told(found, split) == truth and told(small, split) == truth and truth
    return report


def test_segments_of_one_film_keep_their_labels_and_times(listed, tmp_path):
    root = listed("path,label,split,start,end\n0.mp4,jump,train,0,1\n0.mp4,run,train,1,2\n1.mp4,run,train,,\n1.mp4,jump,test,1,\n")
    report = kept(root, ("train", "test"), tmp_path)
    assert told(root / "checked.csv", "train") == [("0.mp4", "jump", 0, 1), ("0.mp4", "run", 1, 2), ("1.mp4", "run", None, None)]
    assert "2 files are not read" in str(report) and "0.mp4, 0.mp4" not in str(report)
    assert len(list((tmp_path / "small").glob("*.mp4"))) == 2


def test_splits_of_a_manifest_keep_their_names(listed, tmp_path):
    root = listed("path,label,split\n0.mp4,a,train\n1.mp4,b,train\n2.mp4,a,fold1\n3.mp4,b,fold1\n")
    report = kept(root, ("train", "fold1"), tmp_path)
    assert report.table["split"].tolist() == ["train", "train", "fold1", "fold1"] and "not read" not in str(report)


def test_a_manifest_without_splits_gets_none(listed, tmp_path):
    root = listed("path,label\n0.mp4,a\n1.mp4,b\n2.mp4,a\n3.mp4,b\n")
    report = kept(root, ("all",), tmp_path)
    assert len(report.table) == 4 and "split" not in report.table and "in two splits" not in str(report)


def test_a_manifest_is_not_overwritten_by_name_either(listed, tmp_path, clip):
    root = listed("path,label\n0.mp4,a\n1.mp4,b\n")
    report = check("folder", root, workers=0, progress=False)
    with pytest.raises(data.DataError, match="is not overwritten; name another place"):
        report.write(root / "manifest.csv")
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine" / "manifest.csv", "path,label\nx.mp4,a\n")
    with pytest.raises(data.DataError, match=r"holds a manifest\.csv that no preparation wrote"):
        prepare(report, tmp_path / "mine", progress=False)
    put(clip, tmp_path / "new" / "a" / "1.mp4")
    first, again = (check("folder", tmp_path / "new", workers=0, progress=False).write().name for _ in range(2))
    assert (first, again) == ("manifest.csv", "checked.csv")


def test_prepared_files_of_one_stem_stay_apart(tmp_path):
    names = {
        "val/a/x.avi": (200, "mpeg4"),
        "val/a/x.webm": (20, "vp9"),
        "train/a/x.avi": (100, "mpeg4"),
        "train/a/x.avi.avi": (60, "mpeg4"),
    }
    names["train/a/x.mp4"] = (150, "h264")
    for name, (grey, codec) in names.items():
        write_video(tmp_path / "set" / name, torch.full((3, 3, 32, 32), grey, dtype=torch.uint8), 25, codec)
    report = check("folder", tmp_path / "set", workers=0, progress=False)
    small = prepare(report, tmp_path / "small", progress=False)
    shown = {}
    for split in ("train", "val"):
        source = data.open(small, split, frames=2, size=16, augment=False)
        shown |= {c.path.split("small/")[1]: source[i].clip.float().mean().item() for i, c in enumerate(source.listing.clips)}
    assert len(shown) == 5
    for name, (grey, _) in names.items():
        assert shown[f"{name}.mp4"] == pytest.approx(grey, abs=3)


def test_prepared_files_stay_in_their_folder(tmp_path, clip):
    far, root = tmp_path / "far", tmp_path / "set"
    for name in ("p.avi", "q.mp4"):
        far.mkdir(exist_ok=True)
        shutil.copy(clip, far / name)
    put(clip, root / "r.mp4")
    write(root / "manifest.csv", f"path,label,split\n{far}/p.avi,a,train\n../far/q.mp4,b,train\nr.mp4,a,train\n../set/r.mp4,b,train\n")
    small = prepare(check("folder", root, workers=0, progress=False), tmp_path / "small", side=16, progress=False)
    assert sorted(path.name for path in far.iterdir()) == ["p.avi", "q.mp4"]
    paths = [c.path for c in list_folder(small).clips]
    assert [path.split("_")[-1] for path in paths[:2]] == ["p.mp4", "q.mp4"] and paths[2] == paths[3] == str(small / "r.mp4")
    assert all(path.startswith(f"{small}/outside/") for path in paths[:2])
    with Video(paths[1]) as video:
        assert video.stream.height == 16


def test_a_prepared_copy_keeps_classes_without_a_clip(tmp_path, clip):
    put(clip, *(tmp_path / "set" / name for name in ("train/a/1.mp4", "train/c/2.mp4", "test/a/3.mp4")))
    for name in "bd":
        (tmp_path / "set" / "train" / name).mkdir()
    report = check("folder", tmp_path / "set", workers=0, progress=False)
    small = data.open(prepare(report, tmp_path / "small", side=16, progress=False), frames=2, size=16)
    assert small.classes == {"class": ["a", "b", "c", "d"]} and small.labels["class"].tolist() == [0, 2]


@pytest.fixture
def ava(tmp_path, clip):
    rows = [("f1", 902, 1), ("f1", 902, 3), ("f1", 904, 3)]
    write(tmp_path / "ava_train_v2.2.csv", "".join(f"{film},{time:04d},0.1,0.1,0.9,0.9,{action},1\n" for film, time, action in rows))
    write(tmp_path / "ava_action_list_v2.2_for_activitynet_2019.pbtxt", 'item { name: "a" id: 1 }\nitem { name: "b" id: 3 }\n')
    film = torch.arange(150, dtype=torch.uint8).view(1, 150, 1, 1).expand(3, 150, 32, 32)
    (tmp_path / "videos_15min").mkdir()
    write_video(tmp_path / "videos_15min" / "f1.mp4", film, 25, crf=1)
    return tmp_path


def test_what_no_manifest_holds_is_not_written_as_one(ava, tmp_path):
    report = check("ava", ava, splits=("train",), workers=0, progress=False)
    assert report.write() == ava / "checked.csv" and len(report.table) == 1 and f"open ava:{ava} itself" in str(report)
    with pytest.raises(data.DataError, match=f"several classes and a box.*open ava:{ava} itself"):
        prepare(report, tmp_path / "small", progress=False)


@pytest.mark.parametrize("seconds, first, last", [(2, 25, 74), (4, 0, 99), (6, 0, 124), (9, 0, 149)])
def test_a_window_that_begins_before_its_film_is_cut_there(ava, seconds, first, last):
    """Around second 2 of a film of 6 s at 25 frames a second that shows its frame numbers."""
    source = data.open(f"ava:{ava}", frames=last - first + 1, size=16, seconds=seconds, stride=1, augment=False)
    assert source.listing.clips[0].start == 2 - seconds / 2
    shown = source.read(0).clip.float().mean((0, 2, 3))
    assert (shown - torch.arange(first, last + 1)).abs().max() < 4


def test_a_clip_begins_at_the_frame_that_its_time_names(ava):
    film = str(ava / "videos_15min" / "f1.mp4")
    with Video(film) as video:
        every = video.read(list(range(video.frames)))
    for number in (29, 57, 58, 112):  # times 25 each is a little less in floats
        start = round(number * 0.04, 2)
        assert torch.equal(decode(Clip(film, {}, start=start), Sampling(1, whole=True))[0], every[(number + 150) // 2]), number
        assert torch.equal(decode(Clip(film, {}, start=start, end=start), Sampling(1))[0], every[number]), number


# --------------------------------------------------------------------------------------------------------------------- lists


def test_split_folders_in_capitals_are_split_folders(tmp_path, clip):
    put(clip, *(tmp_path / name for name in ("Train/cat/1.mp4", "Train/dog/2.mp4", "Test/cat/3.mp4")))
    train, test = (list_folder(tmp_path, split) for split in ("train", "test"))
    assert train.classes == test.classes == {"class": ["cat", "dog"]} and (len(train.clips), len(test.clips)) == (2, 1)


def test_a_folder_without_a_validation_part_says_what_its_val_is(tmp_path, clip):
    put(clip, *(tmp_path / "two" / name for name in ("train/cat/1.mp4", "Test/cat/2.mp4")))
    put(clip, *(tmp_path / "three" / name for name in ("train/cat/1.mp4", "val/cat/2.mp4", "test/cat/3.mp4")))
    put(clip, *(tmp_path / "held" / name for name in ("train/cat/1.mp4", "val/cat/2.mp4")))
    put(clip, *(tmp_path / "dealt" / f"cat/{i}.mp4" for i in range(8)))
    write(tmp_path / "listed" / "manifest.csv", "path,label,split\na.mp4,cat,train\nb.mp4,cat,test\n")
    says = {
        (name, split): f"{name} has no validation part: val is the test part" in list_folder(tmp_path / name, split).notes
        for name in ("two", "three", "held", "dealt", "listed")
        for split in ("train", "val", "test")
    }
    assert {key for key, said in says.items() if said} == {("two", "val"), ("dealt", "val"), ("listed", "val")}


def test_a_stray_file_leaves_the_groups_apart(tmp_path, clip):
    names = [f"v_Archery_g{group:02d}_c{take:02d}.avi" for group in range(1, 10) for take in (1, 2)]
    put(clip, *(tmp_path / "Archery" / name for name in (*names, "extra.mp4", "more.mp4")))
    train, test = (list_folder(tmp_path, split) for split in ("train", "test"))
    assert {c.group for c in test.clips} - {""} == {f"Archery/g{i:02d}" for i in range(1, 8)}
    assert {c.group for c in train.clips} - {""} == {"Archery/g08", "Archery/g09"} and len(train.clips) + len(test.clips) == 20
    assert "2 files of other names" in test.notes[0]
    with pytest.raises(data.DataError, match="a random split of UCF-101 leaks"):
        list_folder(tmp_path, "test", random=True)


def test_a_manifest_and_options_that_deal_folders_exclude_each_other(listed):
    root = listed("path,label,split\n0.mp4,a,train\n1.mp4,b,test\n")
    for options in ({"held_out": 0.5}, {"random": True}, {"leak": True}):
        with pytest.raises(data.DataError, match=f"{root}/manifest.csv decides what is read there; leave them out"):
            data.open(root, "test", **options)


@pytest.mark.parametrize("text", [
    "path, label, split\na.mp4, cat, train\nb.mp4,cat,train\n c.mp4 ,dog , train \n",
    "path\tlabel\tsplit\tstart\tend\na.mp4\tcat\ttrain\t\t\nb.mp4\tcat\ttrain\t\t\nc.mp4\tdog\ttrain\t\t\n",
    "path,label,split,,\na.mp4,cat,train,,\nb.mp4,cat,train,,\nc.mp4,dog,train,,,\n",
])  # fmt: skip
def test_blanks_and_empty_cells_around_a_tables_values(tmp_path, text):
    write(tmp_path / "list.csv", text)
    assert told(tmp_path / "list.csv", "train") == [
        ("a.mp4", "cat", None, None),
        ("b.mp4", "cat", None, None),
        ("c.mp4", "dog", None, None),
    ]


@pytest.mark.parametrize("text, message", [
    ("my clip.mp4,0\nyour clip.mp4,1\n", r"line 1: expected `path label`, found 'my clip.mp4,0'; a table with commas needs a header"),
    ("my clip.mp4, 0\n", "a table with commas needs a header"),
    ("path,label,start,end\na.mp4,cat,5,2\n", "a.mp4 starts at '5' and ends at '2'; expected seconds, start <= end"),
    ("path,label,start,end\na.mp4,cat,nan,2\n", "a.mp4 starts at 'nan'"),
    ("path,label,label_id\na.mp4,cat,0\nb.mp4,dog,\n", "line 3: label_id is ''; expected a class number"),
])  # fmt: skip
def test_lists_that_cannot_mean_what_they_say(tmp_path, text, message):
    write(tmp_path / "list.csv", text)
    with pytest.raises(data.DataError, match=message):
        list_manifest(tmp_path / "list.csv")


def test_quotes_keep_the_commas_of_a_path(tmp_path):
    write(tmp_path / "list.txt", "'a, b' 0\na, b.mp4 1\n")
    assert [c.path for c in list_manifest(tmp_path / "list.txt").clips] == [str(tmp_path / "a, b"), str(tmp_path / "a, b.mp4")]


# ----------------------------------------------------------------------------------------------------------------- the exported world


def test_a_flip_turns_the_order_of_mirrored_motions_around(tmp_path):
    root = data.export(tmp_path / "order", task="order", clips={"train": 120}, size=16, frames=2, progress=False)
    always, never = (data.open(root, frames=2, size=16, flips=p) for p in (1.0, 0.0))
    order, turned = list(MOTIONS), 0
    for flipped, plain in zip(always, never, strict=True):
        first, then, said = (always.classes[name][flipped.labels[name]] for name in ("motion", "then", "order"))
        assert (
            said
            == ("backward" if order.index(first) > order.index(then) else "forward")
            == always.classes["class"][flipped.labels["class"]]
        )
        turned += flipped.labels["order"] != plain.labels["order"]
    assert turned > 3
    for name in ("ucf101", "ssv2"):
        with pytest.raises(data.DataError, match=f"{name} has no place for the two motions.*format='folder'"):
            data.export(tmp_path / name, name, task="order", clips={"train": 8}, size=16, frames=2, progress=False)


def test_held_out_splits_of_exported_images_share_no_file(tmp_path):
    root = data.export(tmp_path / "images", "imagenet100", clips={"train": 5, "val": 60, "test": 60}, size=16, progress=False)
    assert len(list((root / "val").rglob("*.JPEG"))) == 120 and len(data.open(f"imagenet100:{root}", "val", size=16)) == 120
