"""AVA's frame mAP against an independent computation and by hand; actions of boxes read off frozen tokens."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vjepa_lab.data.encode import x264_options
from vjepa_lab.evaluation import ava, boxes, evaluate
from vjepa_lab.evaluation.boxes import BOX, average_precision, frame_map, overlap, read_boxes
from vjepa_lab.evidence import results

A, B = (0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0)


def table(*rows, scored=True):
    """Rows (film, time, box, action[, score])."""
    found = [(film, time, *box, action, *rest) for film, time, box, action, *rest in rows]
    return pd.DataFrame(found, columns=["film", "time", *BOX, "action", *(["score"] if scored else [])])


def truth(*rows):
    return table(*rows, scored=False)


def value(true, guess, actions=(1,), **how):
    return frame_map(true, guess, dict.fromkeys(actions, "x"), **how).value


# -------------------------------------------------------------------------------------------------------------------- by hand


def test_precision_is_made_monotone_before_its_area_is_taken():
    """Hits at ranks 1, 3, 4 of 4: precisions 1, 1/2, 2/3, 3/4; monotone 1, 3/4, 3/4, 3/4; of 5 true boxes: (1 + 3/4 + 3/4) / 5."""
    assert average_precision(np.array([True, False, True, True]), 5) == pytest.approx(0.5)
    assert np.isnan(average_precision(np.array([False]), 0)) and average_precision(np.zeros(0, bool), 3) == 0
    assert average_precision(np.array([True, True]), 2) == 1


def test_a_true_box_is_found_once_and_its_copy_is_wrong():
    true = truth(("f", 902, A, 1), ("f", 902, B, 1))
    guess = table(("f", 902, A, 1, 0.9), ("f", 902, A, 1, 0.8), ("f", 902, B, 1, 0.7))
    # ranks: hit, copy, hit -> precisions 1, 1/2, 2/3; area (1 + 2/3) / 2
    assert value(true, guess) == pytest.approx(100 * 5 / 6)


def test_overlap_of_exactly_one_half_counts():
    half = (0.0, 0.0, 0.25, 0.5)
    less = (0.0, 0.0, 0.24, 0.5)
    assert overlap(np.array([half, less, B]), np.array([A, A, A])).tolist() == pytest.approx([0.5, 0.48, 0.0])
    true = truth(("f", 902, A, 1))
    assert value(true, table(("f", 902, half, 1, 0.9))) == 100
    assert value(true, table(("f", 902, less, 1, 0.9))) == 0


def test_a_box_may_take_only_the_true_box_that_it_overlaps_most():
    """Two guesses overlap the same true box most; the second may not fall back on the other one, which it overlaps by half as well."""
    left, right = (0.0, 0.0, 0.6, 1.0), (0.2, 0.0, 0.8, 1.0)
    guess = table(("f", 1, left, 1, 0.9), ("f", 1, (0.05, 0.0, 0.65, 1.0), 1, 0.8))
    assert overlap(np.array([(0.05, 0.0, 0.65, 1.0)]), np.array([right]))[0] > 0.5
    assert value(truth(("f", 1, left, 1), ("f", 1, right, 1)), guess) == pytest.approx(50)


def test_actions_frames_and_films_are_kept_apart():
    true = truth(("f", 1, A, 1), ("f", 2, A, 2), ("g", 1, A, 1))
    assert value(true, table(("f", 1, A, 2, 0.9), ("f", 2, A, 1, 0.8)), (1, 2)) == 0
    found = frame_map(true, table(("f", 1, A, 1, 0.9), ("g", 1, A, 1, 0.1), ("f", 2, A, 2, 0.5)), {1: "a", 2: "b", 3: "never"})
    assert found.value == 100 and found.per_action["n"].tolist() == [2, 1, 0]
    assert found.per_action["ap"].isna().tolist() == [False, False, True]
    assert (found.lo, found.hi) == (100, 100)


def test_excluded_frames_and_actions_that_are_not_evaluated_do_not_count():
    true = truth(("f", 1, A, 1), ("f", 2, A, 1), ("f", 1, A, 7))
    guess = table(("f", 1, A, 1, 0.5), ("f", 2, B, 1, 0.9), ("f", 1, B, 7, 0.99))
    assert value(true, guess) == pytest.approx(100 * 0.5 / 2)
    assert value(true, guess, excluded={("f", 2)}) == 100
    with pytest.raises(ValueError, match="no true box of the 1 evaluated actions"):
        value(true, guess, (5,))


def test_boxes_in_frames_without_truth_are_wrong():
    assert value(truth(("f", 1, A, 1)), table(("f", 1, A, 1, 0.5), ("f", 3, A, 1, 0.9))) == 50


def test_only_the_fifty_best_of_a_frame_count():
    crowd = [("f", 1, B, 1, 0.9)] * 50
    true = truth(("f", 1, A, 1))
    assert value(true, table(*crowd[:49], ("f", 1, A, 1, 0.1))) == pytest.approx(2)
    assert value(true, table(*crowd, ("f", 1, A, 1, 0.1))) == 0
    assert value(true, table(*[("f", 1, B, 9, 0.9)] * 50, ("f", 1, A, 1, 0.1))) == 100  # actions not evaluated take no place


# ------------------------------------------------------------------------------------------------------- an independent computation


def plain_map(true, guess, actions, excluded, capacity=50):
    """The official algorithm, box by box."""
    aps = []
    frames = {key for key in map(tuple, guess[["film", "time"]].to_numpy()) if key not in excluded}
    kept = {}
    for key in frames:
        own = guess[(guess.film == key[0]) & (guess.time == key[1]) & guess.action.isin(actions)]
        kept[key] = own.iloc[np.argsort(-own["score"].to_numpy(), kind="stable")[:capacity]]
    for action in actions:
        scored, positives = [], 0
        for key in {key for key in map(tuple, true[["film", "time"]].to_numpy()) if key not in excluded} | frames:
            there = true[(true.film == key[0]) & (true.time == key[1]) & (true.action == action)][BOX].to_numpy()
            positives += len(there)
            used = np.zeros(len(there), bool)
            for row in kept[key][kept[key].action == action].itertuples() if key in kept else ():
                right, ious = False, []
                for box in there:
                    w = min(row.x2, box[2]) - max(row.x1, box[0])
                    h = min(row.y2, box[3]) - max(row.y1, box[1])
                    shared = max(w, 0) * max(h, 0)
                    area = (row.x2 - row.x1) * (row.y2 - row.y1) + (box[2] - box[0]) * (box[3] - box[1])
                    ious.append(shared / (area - shared))
                if ious and max(ious) >= 0.5 and not used[int(np.argmax(ious))]:
                    right = used[int(np.argmax(ious))] = True
                scored.append((row.score, right))
        if not positives:
            continue
        scored.sort(key=lambda pair: -pair[0])
        hits = np.cumsum([right for _, right in scored])
        precision = np.concatenate([[0], hits / np.arange(1, len(hits) + 1), [0]]) if len(hits) else np.zeros(2)
        recall = np.concatenate([[0], hits / positives, [1]]) if len(hits) else np.array([0.0, 1.0])
        for i in range(len(precision) - 2, -1, -1):
            precision[i] = max(precision[i], precision[i + 1])
        steps = np.flatnonzero(recall[1:] != recall[:-1]) + 1
        aps.append(float(((recall[steps] - recall[steps - 1]) * precision[steps]).sum()))
    return 100 * float(np.mean(aps))


@pytest.mark.parametrize("seed", range(6))
def test_frame_map_is_the_official_algorithms(seed):
    rng = np.random.default_rng(seed)

    def box():
        x, y = rng.uniform(0, 0.5, 2)
        return (x, y, x + rng.uniform(0.2, 0.5), y + rng.uniform(0.2, 0.5))

    true, guess = [], []
    for film in "fgh":
        for time in range(900, 906):
            for _ in range(rng.integers(0, 4)):
                person, doing = box(), rng.choice(6, rng.integers(1, 4), replace=False)
                true += [(film, time, person, int(action)) for action in doing]
                for _ in range(rng.integers(0, 4)):
                    near = tuple(np.array(person) + rng.normal(0, 0.04, 4))
                    if near[2] > near[0] and near[3] > near[1]:
                        guess += [(film, time, near, action, float(rng.uniform())) for action in range(6)]
            guess += [(film, time, box(), int(rng.integers(6)), float(rng.uniform())) for _ in range(3)]
    excluded, actions = {("f", 902), ("h", 905)}, [0, 1, 2, 4, 9]
    found = frame_map(truth(*true), table(*guess), {action: str(action) for action in actions}, excluded=excluded)
    assert found.value == pytest.approx(plain_map(truth(*true), table(*guess), actions, excluded), abs=1e-9)
    assert found.lo < found.value < found.hi and 5 < found.value < 95


def test_drawing_a_film_twice_is_as_having_it_twice():
    hit = np.array([True, False, True, False, True])
    weight = np.array([2, 1, 0, 2, 1])
    again = np.repeat(hit, weight)
    assert average_precision(hit, np.array([7]), weight[None])[0] == pytest.approx(float(average_precision(again, 7)))


# ------------------------------------------------------------------------------------------------------------------------- files


def test_tables_are_read_and_bad_lines_named(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,80,1\nNA,0903,0.1,0.1,0.2,0.2,9,0\n")
    read = read_boxes(file)
    assert read["time"].tolist() == [902, 903] and read["action"].tolist() == [80, 9] and read["film"].tolist() == ["-5KQ66BBWC4", "NA"]
    file.write_text("f,0902,0.1,0.1,0.5,0.5,,0.95\nf,0902,0.1,0.1,0.5,0.5,,0.90\nf,0902,0.2,0.1,0.5,0.5,,0.3\n")
    detector = read_boxes(file, scored=True)
    assert detector["action"].tolist() == [-1, -1, -1] and len(boxes.persons(detector, 0.8)) == 1
    for bad in ("f,902,0.1,0.1,0.5,0.5,x,1", "f,902,0.1,0.1,0.05,0.5,3,1", "f,902,a,0.1,0.05,0.5,3,1", "f,902"):
        file.write_text("f,902,0.1,0.1,0.5,0.5,3,1\n" + bad + "\n")
        with pytest.raises(ValueError, match=r"a\.csv, line 2: expected video_id,timestamp"):
            read_boxes(file)


# ------------------------------------------------------------------------------------------------------------------- from the tokens


def test_a_boxs_features_are_those_of_its_part_of_the_grid():
    """A grid of 4 x 4 places, each with its own number; boxes along its borders pool those numbers and no others."""
    grid = (2, 4, 4)
    numbers = torch.arange(16.0).repeat(2)
    tokens = torch.stack([numbers, -numbers], -1)[None].expand(2, -1, -1)
    corner, middle, whole = (0.0, 0.0, 0.25, 0.25), (0.25, 0.25, 0.75, 0.75), (0.0, 0.0, 1.0, 1.0)
    boxes_ = [torch.tensor([corner, whole]), torch.tensor([middle])]
    found = ava.roi_features(tokens, grid, boxes_, "mean", cells=8)
    assert found.shape == (3, 2)
    torch.testing.assert_close(found[1], torch.tensor([7.5, -7.5]), atol=0.05, rtol=0)
    torch.testing.assert_close(found[2], torch.tensor([7.5, -7.5]), atol=0.05, rtol=0)
    assert found[0, 0] < 1.5
    top = ava.roi_features(tokens, grid, boxes_, "max", cells=8)
    assert top[1, 0] > 14 and top[0, 0] < 3 and 10 <= top[2, 0] <= 12.6
    assert ava.roi_features(tokens, grid, [torch.zeros(0, 4), torch.tensor([middle])]).shape == (1, 2)
    with pytest.raises(ValueError, match="pool='sum'"):
        ava.roi_features(tokens, grid, boxes_, "sum")


def test_time_is_averaged():
    tokens = torch.cat([torch.zeros(1, 16, 3), torch.ones(1, 16, 3)], 1)
    torch.testing.assert_close(ava.roi_features(tokens, (2, 4, 4), [torch.tensor([A])]), torch.full((1, 3), 0.5))


class Colours(nn.Module):
    """Tokens are the mean colours of their patches, on a grid of (frames / 2, 4, 4)."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Parameter(torch.eye(3))

    def grid(self, clip):
        return clip.shape[2] // 2, 4, 4

    def forward(self, clip):
        return F.adaptive_avg_pool3d(clip, self.grid(clip)).flatten(2).transpose(1, 2) @ self.mix


LEFT, RIGHT = (0.0, 0.25, 0.5, 0.75), (0.5, 0.25, 1.0, 0.75)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Films of 10 s from second 900 on: a red person stands (12), a green one runs (10); everyone also does 2, which is not evaluated."""
    av = pytest.importorskip("av")
    root, rng = tmp_path_factory.mktemp("ava"), np.random.default_rng(0)
    (root / "videos_15min").mkdir()
    rows = {"train": [], "val": []}
    for part, films in (("train", "abcde"), ("val", "xyz")):
        for film in films:
            red = rng.integers(0, 2, (10, 2))  # second, side
            with av.open(str(root / "videos_15min" / f"{film}.mp4"), "w") as file:
                stream = file.add_stream("libx264", rate=8, options={"crf": "5", "g": "1", **x264_options()})
                stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
                for number in range(80):
                    second = min(int(number / 8 + 0.5), 9)
                    picture = np.full((48, 64, 3), 90, np.uint8)
                    for side in range(2):
                        picture[12:36, 32 * side : 32 * side + 32] = (220, 30, 30) if red[second, side] else (30, 220, 30)
                    file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                file.mux(stream.encode())
            for second in range(1, 9):
                for side, box in enumerate((LEFT, RIGHT)):
                    corners = ",".join(f"{x:.3f}" for x in box)
                    for action in (12 if red[second, side] else 10, 2):
                        rows[part].append(f"{film},{900 + second:04d},{corners},{action},{side}")
    for part, lines in rows.items():
        (root / f"ava_{part}_v2.2.csv").write_text("\n".join(lines) + "\n")
        (root / f"ava_{part}_excluded_timestamps_v2.2.csv").write_text("x,0901\na,0905\n")
    names = "".join(f'item {{\n  name: "{n}"\n  id: {i}\n}}\n' for i, n in ((10, "run"), (12, "stand"), (74, "swim")))
    (root / "ava_action_list_v2.2_for_activitynet_2019.pbtxt").write_text(names)
    persons = [
        f"{film},{second:04d},{x1 + 0.03:.3f},{y1:.3f},{x2:.3f},{y2:.3f},,{score}"
        for film in "xyz"
        for second in range(901, 909)
        for (x1, y1, x2, y2), score in ((LEFT, 0.95), (RIGHT, 0.9), ((0.3, 0.0, 0.7, 0.2), 0.4))
    ]
    (root / "detections.csv").write_text("\n".join(persons) + "\n")
    return root


HOW = {"frames": 4, "size": 32, "seconds": 0.9, "progress": False, "epochs": 20}


def test_what_persons_do_is_read_off_their_boxes(copy, tmp_path):
    true, detected = ava.probe(Colours(), copy, detections=copy / "detections.csv", out=tmp_path / "mine", cache=tmp_path / "cache", **HOW)
    assert true.rows[0]["value"] == pytest.approx(100) and true.rows[0]["n"] == 2 * (8 + 8 + 7)  # one key frame is excluded
    assert detected.rows[0]["value"] == pytest.approx(100) and detected.rows[0]["n"] == 46  # without those of score .4
    assert true.per_class["name"].tolist() == ["run", "stand", "swim"] and true.per_class["n"].sum() == 46
    assert set(true.search.columns) == {"lr", "wd", "val_mAP"} and len(true.search) == 9 and true.selected["val_mAP"] > 95
    assert len(true.predictions) == 46 and {"film", "time", "10", "12", "74"} <= set(true.predictions)
    rows = results.read_run(tmp_path / "mine")
    own = rows.query("source == 'run'")
    assert own["probe"].tolist() == ["roi", "roi, detected boxes"] and set(own["metric"]) == {"mAP"} and set(own["benchmark"]) == {"AVA"}
    chance = rows.query("source == 'constant'")["value"].iloc[0]
    assert chance == pytest.approx(50) and "mAP" in repr(true)
    kept = sorted((tmp_path / "cache").iterdir())
    again = ava.probe(Colours(), copy, detections=copy / "detections.csv", cache=tmp_path / "cache", save=False, **HOW)
    assert [r.rows[0]["value"] for r in again] == [100.0, 100.0] and sorted((tmp_path / "cache").iterdir()) == kept and len(kept) == 3


def test_boxes_that_bf16_would_round_away_are_read_in_fp32(copy, tmp_path, monkeypatch):
    class Pale(Colours):
        def forward(self, clip):
            return 1 + 0.01 * super().forward(clip)

    flat = Pale()
    monkeypatch.setattr(evaluate, "fast_bf16", lambda device: True)
    read, true = [], ava._extract
    monkeypatch.setattr(ava, "_extract", lambda *a, **k: read.append(k.get("bf16", False)) or true(*a, **k))
    with pytest.warns(UserWarning, match=r"ava \[train\].*read in fp32"):
        (result,) = ava.probe(flat, copy, cache=tmp_path, **HOW)
    assert read == [True, False, False] and result.rows[0]["value"] == pytest.approx(100)
    ava.probe(flat, copy, cache=tmp_path, **HOW)
    assert len(read) == 3


def test_persons_of_a_film_without_detections_were_missed(copy, tmp_path):
    lines = [line for line in (copy / "detections.csv").read_text().splitlines() if not line.startswith("y")]
    (tmp_path / "two-films.csv").write_text("\n".join(lines) + "\n")
    _, detected = ava.probe(Colours(), copy, detections=tmp_path / "two-films.csv", save=False, **HOW)
    assert detected.per_class["n"].sum() == 46 and detected.rows[0]["value"] == pytest.approx(100 * 2 / 3, abs=8)


def test_an_encoder_that_sees_nothing_is_at_chance(copy):
    blind = Colours()
    with torch.no_grad():
        blind.mix.zero_()
    (result,) = ava.probe(blind, copy, **HOW)
    assert result.rows[0]["value"] < 75 and result.rows[0]["lo"] < result.rows[0]["value"] < result.rows[0]["hi"]


def test_test_labels_change_no_score(copy, tmp_path):
    import shutil

    shutil.copytree(copy, tmp_path / "other")
    file = tmp_path / "other" / "ava_val_v2.2.csv"
    file.write_text(file.read_text().replace(",12,", ",99,").replace(",10,", ",12,").replace(",99,", ",10,"))
    (honest,), (swapped,) = (ava.probe(Colours(), root, **HOW) for root in (copy, tmp_path / "other"))
    assert honest.predictions.equals(swapped.predictions) and honest.selected == swapped.selected
    assert honest.rows[0]["value"] > 99 > 70 > swapped.rows[0]["value"]


def test_key_frames_are_whole_pictures_and_bad_films_are_left_out(copy, tmp_path):
    import shutil

    from vjepa_lab.data.sets.ava import found

    part = found(copy, "test")
    keys = pd.DataFrame({"film": ["x", "y"], "time": [903, 904]})
    source = ava.KeyFrames(part, "test", keys, 4, 32)
    assert source[0].clip.shape == (3, 4, 32, 32) and "x.mp4 at 903 s" in source.where(0)
    shutil.copytree(copy, tmp_path / "part")
    (tmp_path / "part" / "videos_15min" / "z.mp4").write_bytes(b"broken")
    (tmp_path / "part" / "videos_15min" / "a.mp4").unlink()
    (result,) = ava.probe(Colours(), tmp_path / "part", **HOW)
    assert result.rows[0]["n"] == 2 * (8 + 7) and set(result.predictions["film"]) == {"x", "y"}


def test_the_command_reads_an_exported_encoder(copy, tmp_path, capsys, monkeypatch):
    pytest.importorskip("transformers")
    from vjepa_lab import __main__ as cli
    from vjepa_lab import weights
    from vjepa_lab.model import Encoder

    monkeypatch.chdir(tmp_path)
    weights.export(Encoder(48, 2, 2, 8, rope="vjepa2"), tmp_path / "hf", size=32, frames=4)
    words = ["ava", "hf", str(copy), "--frames", "4", "--seconds", "0.9", "--epochs", "3", "--no-progress"]
    assert cli.main(words) == 0
    assert "mAP" in capsys.readouterr().out
    rows = results.read_run(tmp_path / "runs" / "vjepa2").query("source == 'run'")
    assert rows["variant"].tolist() == ["vjepa2"] and rows["n"].tolist() == [46]
