"""The doctor tries things instead of looking them up, and says what to do about what does not work."""

import json
import shutil

import pytest
import torch

from vjepa_lab import doctor
from vjepa_lab.data import layouts, video
from vjepa_lab.data.encode import write_video
from vjepa_lab.doctor import Finding
from vjepa_lab.training.trainer import fast_bf16


def test_examine_all(tmp_path, capsys):
    """Everything that the default suite needs works here; the report and its JSON hold the same findings."""
    found = doctor.examine([tmp_path])
    assert [f for f in found if f.state == "fail"] == []
    areas = list(dict.fromkeys(f.area for f in found))
    assert areas[:3] == ["versions", "processor", "accelerators"] and "video" in areas and areas[-1] == "data"
    assert any(f.what == "h264 by pyav" and f.detail == "every frame right" for f in found)
    assert any(f.what == "execution" and f.state == "ok" for f in found)
    text = doctor.report(found)
    assert all(f.what in text and f.detail in text and f.advice in text for f in found)


def test_the_state_decides_the_exit(monkeypatch, capsys):
    bad = Finding("video", "h264 by decord", "fail", "wrong frames: [3]", "use pyav")
    monkeypatch.setattr(doctor, "examine", lambda roots: [Finding("versions", "Python", "ok", "3.12"), bad])
    assert doctor.main() == 1
    text = capsys.readouterr().out
    assert "FAIL  h264 by decord: wrong frames: [3]\n        -> use pyav" in text
    assert text.endswith("1 of 2 checks failed: h264 by decord (video)\n")
    doctor.main(as_json=True)
    assert json.loads(capsys.readouterr().out)[1]["advice"] == "use pyav"
    monkeypatch.setattr(doctor, "examine", lambda roots: [Finding("versions", "torch", "note", "2.11", "tested with 2.15")])
    assert doctor.main() == 0 and "works; 1 notes" in capsys.readouterr().out


@pytest.mark.parametrize(("tiles", "products"), [(True, True), (True, False), (False, True), (False, False)])
def test_training_in_bf16_is_where_the_processor_multiplies_it(monkeypatch, tiles, products):
    """Either kind of instruction; the doctor says what training does."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: products)
    assert fast_bf16(torch.device("cpu")) == (tiles or products) and not fast_bf16(torch.device("mps"))
    found = next(f for f in doctor.processor() if f.what == "bf16")
    assert (found.state, bool(found.advice)) == (("ok", False) if tiles or products else ("note", True))


def test_a_check_that_breaks_is_a_finding(tmp_path, monkeypatch):
    def broken():
        raise OSError("no such library")

    for name in ("versions", "processor", "space", "decoders", "notebooks"):
        monkeypatch.setattr(doctor, name, list)
    monkeypatch.setattr(doctor, "accelerators", broken)
    failed = [f for f in doctor.examine([tmp_path]) if f.state == "fail"]
    assert len(failed) == 1 and failed[0].area == "accelerators" and "no such library" in failed[0].detail


@pytest.mark.parametrize("backend", video.BACKENDS)
def test_wrong_frames_are_seen(tmp_path, monkeypatch, backend):
    if backend not in video.backends():
        pytest.skip(f"{backend} is not installed")
    clip = doctor.stripes()
    path = write_video(tmp_path / "clip.mp4", clip, fps=8)
    assert doctor.read_wrong(path, backend, clip) == []
    right = video.Video.read
    monkeypatch.setattr(video.Video, "read", lambda self, numbers: right(self, [max(n - (n > 8), 0) for n in numbers]))
    assert doctor.read_wrong(path, backend, clip) == list(range(9, 16))


def test_versions_that_differ_from_the_tested_ones(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ["torch", "timm", "no-such-package", "decord"])
    monkeypatch.setattr(doctor, "constraints", lambda: {"torch": "0.1", "timm": doctor.version("timm")})
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: real("no-such-decord" if name == "decord" else name))
    found = {f.what: f for f in doctor.versions()}
    assert found["torch"].state == "note" and found["torch"].advice == "tested with 0.1"
    assert found["timm"].state == "ok"
    assert found["no-such-package"].state == "fail" and "pip install" in found["no-such-package"].advice
    assert found["decord"].state == "note" and "PyAV" in found["decord"].advice


def test_constraints_name_versions_only():
    tested = doctor.constraints()
    assert {"torch", "torchvision", "pytest", "ruff", "papermill"} <= set(tested)
    assert all(v[0].isdigit() and "/" not in v for v in tested.values())


def test_data_sets(tmp_path):
    """A set is known by its files, wherever it lies in the root; a part of one is called a part."""
    layouts.export(tmp_path / "sets" / "mine", "ucf101", clips={"train": 16, "test": 8}, size=32, frames=8, progress=False)
    (found,) = doctor.data_sets([tmp_path])
    assert found.what == f"ucf101:{tmp_path / 'sets' / 'mine'}" and found.state == "note"
    assert found.detail == "16 train, 8 test" and "9537 train" in found.advice and "data check ucf101" in found.advice


def test_a_copy_that_lacks_a_split_is_found(tmp_path):
    layouts.export(tmp_path / "mine", "ssv2", clips={"train": 4, "val": 2}, size=32, frames=8, progress=False)
    (found,) = doctor.data_sets([tmp_path])  # the export has no test part
    assert found.what == f"ssv2:{tmp_path / 'mine'}" and found.state == "note"
    assert found.detail == "4 train, 2 val, test absent" and "27157 test" in found.advice
    shutil.rmtree(tmp_path / "mine" / "20bn-something-something-v2")
    (none,) = doctor.data_sets([tmp_path])
    assert none.what == "data sets" and none.detail.startswith("none in")


def test_numbered_folders_of_images_are_no_data_set(tmp_path):
    for k in range(3):
        (tmp_path / "train" / str(k)).mkdir(parents=True)
        (tmp_path / "train" / str(k) / "1.png").touch()
    layouts.export(tmp_path / "ucf101", "ucf101", clips={"train": 16, "test": 8}, size=32, frames=8, progress=False)
    assert [found.what for found in doctor.data_sets([tmp_path])] == [f"ucf101:{tmp_path / 'ucf101'}"]


def test_a_split_whose_clips_are_all_absent(tmp_path):
    for part, number in (("train", 1), ("test", 2)):
        rows = [{"vid_name": f"a_{number}", "label": 0}]
        (tmp_path / f"Diving48_V2_{part}.json").write_text(json.dumps(rows))
    (tmp_path / "Diving48_vocab.json").write_text('[["Back", "15som", "05Twis", "FREE"]]')
    (tmp_path / "rgb").mkdir()
    (tmp_path / "rgb" / "a_1.mp4").touch()
    (found,) = doctor.data_sets([tmp_path])
    assert found.what == f"diving48:{tmp_path}" and found.detail == "1 train, test absent" and "1970 test" in found.advice


def test_no_data_sets(tmp_path):
    missing, none = doctor.data_sets([tmp_path / "nowhere"])
    assert "no such folder" in missing.detail and "synthetic" in none.advice
    assert "not looked for, having no official counts: moments, ava, kinetics" in none.advice


def test_real_data_sets(clips):
    found = [f.what.partition(":")[0] for f in doctor.data_sets([clips])]
    assert "ucf101" in found
