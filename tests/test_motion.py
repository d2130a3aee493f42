"""Table 6 and the factor-retention matrix: the controls control, the intervals are what they say, the verdicts follow from the rows."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import vjepa_lab as vl
from vjepa_lab import data, plots
from vjepa_lab.analysis import motion, readers, retention, subjects
from vjepa_lab.analysis.changes import changes, over_seeds, shown
from vjepa_lab.data.edited import Frozen
from vjepa_lab.evidence import results, stats

SMALL = {80: ("linear",)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A baseline and a run without EMA, of hardly any training."""
    folder = tmp_path_factory.mktemp("runs")
    source = data.open("synthetic", frames=8, size=32, n=24, cache="memory")
    return [vl.pretrain(name, source, "smoke", runs=folder, progress=False) for name in ("baseline", "kin-l1")]


def row(variant, value, n, **more):
    lo, hi = map(float, stats.wilson(value, n))
    same = {"run": f"{variant}-x-micro-s0", "encoder": "student", "seed": 0, "source": "run", "metric": "top1", "smoke": False}
    return same | {"variant": variant, "value": value, "n": n, "lo": lo, "hi": hi} | more


# ------------------------------------------------------------------------------------------------------------------ subjects, changes


def test_every_encoder_of_a_run_is_looked_at_once(runs):
    found = [(s.about["variant"], s.about["encoder"]) for s in subjects.subjects(runs, ("student", "teacher"))]
    assert found == [("baseline", "student"), ("baseline", "teacher"), ("kin-l1", "student"), ("random-init", "random-init")]
    assert subjects.finished(runs[0].path.parent) == runs
    with pytest.raises(ValueError, match="unknown encoder 'techer'"):
        subjects.subjects(runs, ("techer",))


def test_a_report_without_a_config_is_no_finished_run(runs, tmp_path):
    (tmp_path / "stray").mkdir()
    (tmp_path / "stray" / "report.json").write_text("{}")
    (tmp_path / "run").symlink_to(runs[0].path)
    assert [run.name for run in subjects.finished(tmp_path, "smoke")] == ["run"]


def test_runs_are_found_or_trained(runs):
    folder = runs[0].path.parent
    assert subjects.runs_of([], [0], preset="smoke", runs=folder) == runs
    with pytest.raises(ValueError, match="no finished run of size micro in this folder; name the variants"):
        subjects.runs_of([], [0], runs=folder)
    with pytest.raises(ValueError, match="no run to look at"):
        motion.table6([])


def test_clips_of_one_shape_are_shown_to_all(runs, tmp_path):
    source = data.open("synthetic", frames=8, size=16, n=8, cache="memory")
    other = vl.pretrain("baseline", source, "smoke", runs=tmp_path, steps=0, size=16, progress=False)
    with pytest.raises(ValueError, match=r"different shapes \(8 frames of 16 pixels, 8 frames of 32 pixels\)"):
        subjects.clip_size(subjects.subjects([runs[0], other]))
    assert subjects.clip_size(subjects.subjects(runs), {"size": 64}).size == 64
    source = data.open("synthetic", frames=8, size=32, n=8, cache="memory")
    deeper = vl.pretrain("ld", source, "smoke", runs=tmp_path, steps=0, depth=3, progress=False)
    with pytest.raises(ValueError, match=r"encoders of different sizes \(depth: 2 in .*, 3 in .*\); look at one size at a time"):
        subjects.clip_size(subjects.subjects([runs[0], deeper]), {"frames": 8, "size": 32})


def test_two_runs_that_tables_would_take_for_one_are_refused(runs, tmp_path):
    """A mean over two editions, or two data sets, under the name of one variant is a number of nothing."""
    twin = shutil.copytree(runs[0].path, tmp_path / "twin")
    config = json.loads((twin / "config.json").read_text())
    (twin / "config.json").write_text(json.dumps(config | {"edition": "released", "regime": "elsewhere"}))
    with pytest.raises(ValueError, match=r"and .*twin are both baseline of seed 0 \(they differ in edition, regime\); name the runs"):
        subjects.subjects([*runs, twin])
    (twin / "config.json").write_text(json.dumps(config))
    (twin / "recipe.txt").write_text("Recipe(JEPA() + 0.3*Delta())")
    with pytest.raises(ValueError, match=r"\(they differ in recipe\)"):
        subjects.subjects([runs[0], twin])
    assert len(subjects.subjects([runs[0], runs[0].path.absolute()], initial=False)) == 2, "the same run, twice asked for"
    (twin / "config.json").write_text(json.dumps(config | {"seed": 1}))
    assert [s.about["seed"] for s in subjects.subjects([*runs, twin], initial=False)] == [0, 0, 1]


def test_an_untrained_encoder_is_the_same_for_every_objective(runs):
    a, b = (subjects.Subject(run, "initial").encoder().state_dict() for run in runs)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_one_seed_keeps_its_own_interval_and_several_get_a_t_interval():
    one = over_seeds(pd.DataFrame([row("a", 60, 40)]), ["variant"]).iloc[0]
    assert (one["lo"], one["hi"]) == pytest.approx(tuple(map(float, stats.wilson(60, 40)))) and one["basis"] == "samples"
    many = over_seeds(pd.DataFrame([row("a", v, 40, seed=s) for s, v in enumerate((50, 60, 64))]), ["variant"]).iloc[0]
    assert (many["value"], many["lo"], many["hi"]) == pytest.approx(tuple(map(float, stats.t_interval([50, 60, 64])[:3])))
    assert many["seeds"] == 3 and many["basis"] == "seeds"
    agree = over_seeds(pd.DataFrame([row("a", 60, 40, seed=s) for s in range(3)]), ["variant"]).iloc[0]  # no certainty
    assert (agree["lo"], agree["hi"]) == pytest.approx((one["lo"], one["hi"])) and (agree["seeds"], agree["basis"]) == (3, "samples")


def test_a_teacher_beside_its_student_is_another_encoder():
    """Students are alike; the baseline's teacher is worse; a row without one must not look better for that."""
    rows = [row(v, 80 + s, 40, encoder="student", benchmark="x", seed=s) for v in ("baseline", "no-ema") for s in range(3)]
    rows += [row("baseline", 60 + s, 40, encoder="teacher", benchmark="x", seed=s) for s in range(3)]
    rows += [row("random-init", 20 + s, 40, encoder="random-init", benchmark="x", seed=s) for s in range(3)]
    rows = pd.DataFrame(rows)
    means = over_seeds(rows, ["variant"]).set_index("variant")["value"]
    assert means.to_dict() == pytest.approx({"baseline": 81, "no-ema": 81, "random-init": 21})
    assert set(over_seeds(rows, ["variant", "encoder"])["encoder"]) == {"student", "teacher", "random-init"}
    assert changes(rows).set_index("variant").loc["no-ema", "delta"] == 0
    answers = rows.assign(each=[np.arange(40) < 0.4 * value for value in rows["value"]])
    assert readers.differences(answers).set_index("variant").loc["no-ema", "delta"] == 0
    teachers = over_seeds(rows[rows["encoder"].ne("student")], ["variant"]).set_index("variant")["value"]
    assert teachers["baseline"] == 61, "teachers alone are what was asked for"
    asked = rows[rows["encoder"].eq("teacher") | rows["variant"].eq("no-ema")]  # a run without a momentum teacher has a student alone
    assert changes(asked).set_index("variant").loc["no-ema", "delta"] == 20


def test_with_one_seed_the_difference_of_two_accuracies_has_newcombes_interval():
    table = changes(pd.DataFrame([row("baseline", 27.5, 40, benchmark="x"), row("kin", 67.5, 40, benchmark="x")]))
    known = stats.newcombe(67.5, 40, 27.5, 40)
    assert tuple(table.loc[0, ["delta", "lo", "hi"]]) == pytest.approx((40, float(known.lo), float(known.hi)))
    assert table.loc[0, "significant"] and table.loc[0, "p"] < 0.01


def test_with_several_seeds_the_difference_is_paired_by_seed():
    rows = [row(v, x, 40, benchmark="x", seed=s) for s in range(3) for v, x in (("baseline", 20 + 9 * s), ("kin", 25 + 9 * s + s))]
    table = changes(pd.DataFrame(rows))
    assert tuple(table.loc[0, ["delta", "lo", "hi"]]) == pytest.approx(tuple(map(float, stats.t_interval([5, 6, 7])[:3])))
    agreed = [row(v, x, 40, benchmark="x", seed=s) for s in range(2) for v, x in (("baseline", 20.0), ("kin", 22.5))]
    lone = changes(pd.DataFrame(agreed))  # two seeds that happen to agree are not certain: what one seed with these clips would say
    assert not lone.loc[0, "significant"] and lone.loc[0, "lo"] < 0 < lone.loc[0, "hi"]
    with pytest.raises(ValueError, match="no 'base' to compare with"):
        changes(pd.DataFrame(rows), "base")


def test_a_seed_without_a_number_makes_no_pair():
    measured = {"baseline": (10, 40, 41), "ld": (np.nan, 50, 51.5)}
    rows = [row(v, x, 4000, seed=s, benchmark="x") for v, xs in measured.items() for s, x in enumerate(xs)]
    found = changes(pd.DataFrame(rows)).iloc[0]
    assert (found["seeds"], found["basis"]) == (2, "seeds")
    assert (found["delta"], found["base"]) == (pytest.approx(10.25), pytest.approx(40.5))


# --------------------------------------------------------------------------------------------------------------------------- Table 6


def test_a_frozen_clip_is_one_frame_over_and_over():
    source = data.open("synthetic", "test", frames=8, size=32, n=6)
    for at, place in ((0.0, 0), (0.5, 4), (1.0, 7)):
        frozen = Frozen(source, at)
        clip = frozen[3].clip
        assert torch.equal(clip, source[3].clip[:, [place]].expand_as(clip)) and frozen[3].labels == source[3].labels
    assert repr(Frozen(source, 0.0)) != repr(Frozen(source, 1.0))  # features are cached by this
    with pytest.raises(data.DataError, match=r"got at=1\.5"):
        Frozen(source, 1.5)


def test_the_stream_of_the_released_task_is_the_released_one():
    size = vl.preset("smoke")
    clips = motion.stream("dirs8", 200, size)
    train, test = (data.open("synthetic:dirs8", part, n=200, frames=size.frames, size=size.size) for part in ("train", "test"))
    assert len(clips) == 200 and torch.equal(clips[0].clip, train[0].clip) and torch.equal(clips[160].clip, test[0].clip)
    assert motion.benchmark("dirs8", 200, "last frame") == "dirs8 160/40, last frame"


def test_the_printed_task_shares_no_clip_with_pretraining():
    assert motion.stream("trs8", 80, vl.preset("smoke")).split == "test"


@pytest.mark.parametrize(
    ("task", "clips", "message"), [("dirs8", 90, "multiple of 20"), ("dirs8", 40, "at least 80"), ("dirs", 200, "'dirs'")]
)
def test_a_task_that_cannot_be_split_is_refused(task, clips, message):
    with pytest.raises(ValueError, match=message):
        motion.stream(task, clips, vl.preset("smoke"))


def test_table6_has_every_control_with_an_interval(runs, tmp_path):
    rows = motion.table6(runs, ("dirs8",), SMALL, progress=False)
    own = rows[rows["source"].eq("run")]
    assert set(own["variant"]) == {"baseline", "kin-l1", "random-init", "mean-frame", "frame-difference"}
    assert set(own.loc[own["view"].ne("clip"), "variant"]) == {"random-init", "baseline"}
    assert set(rows.loc[rows["source"].eq("constant"), "variant"]) >= {"chance", "majority-train"}
    assert (own["lo"] <= own["value"]).all() and (own["value"] <= own["hi"]).all() and own["n"].eq(16).all()
    assert not own.duplicated(["variant", "encoder", "benchmark", "probe"]).any()
    results.append_rows(tmp_path / "motion.csv", rows)
    assert len(results.load(tmp_path / "motion.csv")) == len(rows)
    printed = results.load("data/paper/table6.csv")
    table = motion.side_by_side(rows, printed)
    assert table.loc[("baseline", "student", "clip"), "Table 6, printed"] == "27.5 [16.1, 42.8]"
    assert table.loc[("mean-frame", "mean-frame", "clip"), "dirs8 64/16, linear"]
    assert motion.verdict(rows, printed).startswith("Demonstration size")
    assert plots.motion(rows, printed, paper=True).axes


@pytest.mark.parametrize(("untrained", "word"), [(65.0, "cannot be told"), (12.5, "can be told")])
def test_the_verdict_holds_the_print_against_an_untrained_encoder(untrained, word):
    task = {"task": "dirs8", "clips": 200, "view": "clip", "probe": "attentive-released", "benchmark": "dirs8 160/40"}
    rows = pd.DataFrame([row("random-init", untrained, 40, **task), row("baseline", 27.5, 40, **task)])
    said = motion.verdict(rows, results.load("data/paper/table6.csv"))
    assert f"the printed 67.5 and 72.5 % {word}" in said and f"{untrained} [" in said
    assert "Not decided: what another seed would change" in said
    for run, asked in (("ld-mixed-base-s0", False), ("my-base-line-plain-micro-s0", True)):
        said = motion.verdict(rows.assign(run=run), results.load("data/paper/table6.csv"))
        assert ("how encoders of the paper's size and training differ" in said) is asked


def test_the_verdict_names_which_printed_number_can_be_told():
    task = {"task": "dirs8", "clips": 200, "view": "clip", "probe": "attentive-released", "benchmark": "dirs8 160/40"}
    printed = pd.DataFrame({"variant": ["kin-l1", "kin-l1-ema"], "value": [72.5, 67.5], "lo": [80.0, 52.0], "hi": [85.0, 80.0]})
    said = motion.verdict(pd.DataFrame([row("random-init", 60.0, 40, **task)]), printed)
    assert "from which the printed 72.5 % can be told, 67.5 % cannot" in said


def test_what_appearance_gives_away_is_one_probes_number():
    task = {"task": "dirs8", "clips": 200, "view": "last frame", "benchmark": "dirs8 160/40, last frame"}
    rows = pd.DataFrame([row("baseline", value, 40, **task, probe=probe) for probe, value in (("released", 10.0), ("linear", 30.0))])
    assert "appearance alone gives away dirs8 30.0 [" in motion._still(rows, 200)


def test_the_verdict_takes_the_kinematic_term_apart_from_the_ema():
    task = {"task": "trs8", "clips": 2000, "view": "clip", "probe": "linear", "benchmark": "trs8 1600/400"}
    values = {"baseline": 50.0, "kin-l1-ema": 60.0, "baseline-no-ema": 40.0, "kin-l1": 35.0}
    said = motion.verdict(pd.DataFrame([row(name, value, 400, **task) for name, value in values.items()]))
    assert "With EMA on the kinematic term changes the student's accuracy (400 test clips, linear probe) by trs8 +10.0" in said
    assert "with EMA off the kinematic term changes the student's accuracy (400 test clips, linear probe) by trs8 -5.0" in said


# -------------------------------------------------------------------------------------------------------------------------- retention


def test_places_are_where_the_scenes_have_them():
    source = data.open("synthetic", "test", frames=8, size=32, n=5)
    found = retention.places(source)
    path = source.scene(2).path(8)[4]
    assert found["angle"][2].tolist() == pytest.approx([np.cos(2 * np.pi * path[2]), np.sin(2 * np.pi * path[2])])
    assert found["size"][2].item() == pytest.approx(path[3])
    assert torch.allclose(found["place x"].norm(dim=1), torch.ones(5, dtype=torch.float64))


def test_retention_is_0_for_guessing_and_100_for_all_there_is():
    class Found:
        rows = ({"metric": "top1", "value": 25.0, "lo": 20.0, "hi": 100.0, "n": 100, "probe": "linear"},)

    row = retention.class_row(Found, "hue", 4)
    assert (row["value"], row["hi"], row["kind"]) == (0, 100, "appearance") and row["lo"] == pytest.approx(-100 / 15)
    assert retention.class_row(Found, "speed", 4)["kind"] == "dynamics"


def test_the_matrix_has_a_cell_for_every_factor_and_objective(runs):
    rows = retention.retention(runs, clips=(120, 80), progress=False)
    counts = rows.groupby("variant")["factor"].nunique()
    assert counts.to_dict() == {"baseline": 10, "kin-l1": 10, "random-init": 10}
    assert (rows["lo"] <= rows["value"]).all() and (rows["value"] <= rows["hi"]).all()
    assert rows.loc[rows["factor"].eq("tint"), "value"].min() > 50  # the ground's colour fills the picture: any encoder has it
    assert plots.retention(rows, paper=True).axes and len(plots.retention(rows).data) == 1
    assert retention.verdict(rows).startswith("Demonstration size")
    with pytest.raises(ValueError, match="synthetic:dirs8: retention needs the factor world"):
        retention.retention(runs, "synthetic:dirs8", clips=(80, 80))


def test_the_verdict_names_the_factors_that_differ():
    rows = [row("baseline", 50, 1000, factor=f, kind="place") for f in ("hue", "motion")]
    rows += [row("fwm", value, 1000, factor=f, kind="place") for f, value in (("hue", 51), ("motion", 70))]
    said = retention.verdict(pd.DataFrame(rows))
    assert "Of 2 differences from baseline" in said and "1 stand after correction: fwm: motion +20." in said and "The other 1" in said


def test_an_interval_is_written_when_it_is_known():
    assert shown({"value": 65.04, "lo": 49.51, "hi": 77.9}) == "65.0 [49.5, 77.9]"
    assert shown({"delta": 1.0, "lo": -2.0, "hi": 4.0}, sign=True) == "+1.0 [-2.0, +4.0]"
    assert shown({"value": 1.0, "lo": np.nan, "hi": np.nan}) == "1.0"


def test_sizes_are_refused_before_anything_is_trained():
    with pytest.raises(ValueError, match="clips=40: expected a multiple of 20"):
        motion.sizes({40: ("linear",)})
    with pytest.raises(ValueError, match="unknown probe 'linaer'"):
        motion.sizes({200: ("linaer",)})
    assert motion.sizes({200: ["linear"]}) == {200: ("linear",)}
