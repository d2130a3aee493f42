"""Explorers: the picture follows the controls, is the plain function's, and stays where there are no widgets."""

import json
import re
import shutil
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import vjepa_lab as vl
from vjepa_lab import data, plots
from vjepa_lab.masks import Blocks, Motion, MultiBlock
from vjepa_lab.plots import style
from vjepa_lab.plots.sheet import LEAST, sheet, tiles
from vjepa_lab.training import locks
from vjepa_lab.widgets import masks, monitor, recipes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return vl.pretrain("fwm-hw-ld", "synthetic:plain", "smoke", runs=tmp_path_factory.mktemp("runs"), progress=False)


def pixels(picture) -> np.ndarray:
    return np.asarray(picture.image)


def test_sheets_hold_every_picture_and_fit_the_width():
    frames = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
    made = sheet({"a": frames, "b\ntwo": frames[:2]}, width=400)
    assert made.image.width <= 400 and made._repr_png_()[:4] == b"\x89PNG"
    assert tiles({str(i): frames[0] for i in range(7)}, side=40, width=150).image.height > 3 * 40
    for draw in (sheet, tiles):
        with pytest.raises(ValueError, match="got none; name what to show"):
            draw({})


@pytest.mark.parametrize("label", ["W" * 110, "Hard(SomeTermWithAVeryLongName[order=2,dyn,visible])\n0.001 to 0.3" * 3])
def test_labels_of_any_length_leave_the_pictures_their_room(label):
    white, marked = np.full((2, 8, 8, 3), 255, np.uint8), np.zeros((8, 8, 8, 3), np.uint8)
    marked[..., 0] = 255
    red = lambda made: (pixels(made) == (255, 0, 0)).all(-1)
    long = sheet({"clip": marked, label: marked})
    wide, high = red(long).any(0).sum(), red(long).any(1).sum()
    assert long.image.width <= 960 and wide >= 0.7 * 960 and high >= 2 * (wide // 8)
    between = red(sheet({label: white, f"{label} ": marked})).any(1).argmax()
    assert between >= 14 * 4  # the label of the first row ends before the second row begins
    assert (pixels(sheet({label: white}))[0] == 255).all() and (pixels(sheet({label: white}))[-1] == 255).all()
    two = pixels(tiles({label: white[0], "clip": white[0]}, side=176, gap=8))
    assert (two[:, 178:184] == 255).all() and (two < 255).any()  # nothing reaches the next tile
    many = sheet({label: np.zeros((100, 8, 8, 3), np.uint8)})
    assert many.image.height >= LEAST and many.image.width >= 100 * LEAST


def test_labels_are_parted_where_a_reader_would():
    fits = lambda text: len(text) <= 12
    for name, said in {
        "motion: 100 %, guess 12 %": "motion:\n100 %, guess\n12 %", "synthetic:plain/motion": "synthetic:\nplain/motion",
        "W" * 30: "W" * 12 + "\n" + "W" * 12 + "\n" + "W" * 6, "a\nb": "a\nb", "": "", "kin_accel-micro-s0": "kin_accel-\nmicro-s0",
    }.items():  # fmt: skip
        assert style.parted(name, fits) == said


def test_the_least_picture_is_seen_whatever_the_width():
    made = sheet({"a": np.zeros((100, 8, 8, 3), np.uint8)}, width=400)
    assert made.image.size[1] >= LEAST


def test_names_of_runs_stay_in_the_figure_of_their_curves():
    steps = pd.DataFrame({"step": [0, 1], "loss": [1.0, 0.5], "std": [1.0, 1.0], "Hard(SomeTermWithALongName[order=2,dyn])": [1.0, 1.0]})
    for name in ("W" * 150, "a-run-of-some-folder/" * 9, "short"):
        figure = plots.curves({name: steps, f"{name}2": steps}, more=list(steps)[3:], title=name)
        figure.canvas.draw()
        boxes = [figure.legends[0].get_window_extent(), figure._suptitle.get_window_extent()]
        titles = [ax.title if ax.title.get_text() else ax._left_title for ax in figure.axes if ax.lines]
        boxes += [title.get_window_extent() for title in titles]
        assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
        assert all(ax.get_window_extent().height > 100 for ax in figure.axes if ax.lines)


def test_captions_are_text_and_no_html():
    shown = plots.Player(np.zeros((3, 2, 8, 8), np.uint8), caption='<b>"x"</b>')._repr_html_()
    assert "<b>" not in shown and shown.count("&lt;b&gt;&quot;x&quot;&lt;/b&gt;") == 2


def test_curves_refuse_a_column_that_no_run_logged():
    table = pd.DataFrame({"step": [0, 1], "loss": [1.0, 0.5], "rank": [2.0, 3.0]})
    assert plots.curves({"a": table, "b": table.drop(columns="rank")}, more="rank").axes
    with pytest.raises(ValueError, match=r"more: no logged column 'rnak'; did you mean rank\?"):
        plots.curves(table, more=("rnak",))
    with pytest.raises(ValueError, match="'JEPA'; expected one of step, loss, rank"):
        plots.curves({"a": table}, more=("JEPA",))


def test_the_mask_explorer_follows_its_controls():
    explorer = masks.mask_explorer(size="micro", clips=3)
    before = pixels(explorer.figure())
    assert np.array_equal(before, pixels(explorer.figure()))
    explorer.controls["clip"].value = 2
    other = pixels(explorer.figure())
    explorer.controls["masking"].value = "V-JEPA"
    assert not np.array_equal(before, other) and other.shape != pixels(explorer.figure()).shape  # two kinds instead of the preset's
    bundle = explorer._repr_mimebundle_()
    assert bundle["image/png"][:4] == b"\x89PNG" and "application/vnd.jupyter.widget-view+json" in bundle


@pytest.mark.parametrize(("size", "masking"), [("smoke", "V-JEPA"), ("micro", "preset micro")])
def test_the_mask_explorer_opens_on_the_masks_that_a_baseline_trains_with(size, masking):
    explorer, shape = masks.mask_explorer(size=size, clips=1), vl.preset(size)
    assert explorer.controls["masking"].value == masking
    assert masks.strategies(shape)[masking] == shape.masks_of(vl.recipe("baseline").masks)


def test_mask_kinds_have_one_name_wherever_they_are_drawn(monkeypatch):
    clip, seen = data.open("synthetic:plain", "train", frames=8, size=32, n=1)[0].clip, []
    for module in (masks, plots.clips):
        monkeypatch.setattr(module, "sheet" if module is masks else "strips", lambda rows, **_: seen.append(rows))
    one = MultiBlock((Blocks(1, 0.15),))
    for kinds, said in (
        (one, {"seen"}),
        (MultiBlock(), {"short", "long"}),
        (replace(one, kinds=one.kinds * 3), {f"kind {k}" for k in (1, 2, 3)}),
    ):
        masks.mask_view(clip, kinds, "smoke", draws=1)
        plots.masked(clip, kinds.draw(1, (4, 4, 4), seed=0, step=0), (4, 4, 4))
        for rows in seen[-2:]:
            assert {re.split("[:\n ](?![0-9]\n|[0-9]:)", label)[0] for label in rows if "seen" in label} == said
    plots.masked(clip, one.draw(1, (4, 4, 4), seed=0, step=0), (4, 4, 4), names=["mask"])
    assert list(seen[-1]) == ["clip", "mask: seen", "mask: predict"]


def test_hidden_shares_are_those_of_the_masks():
    share = masks.hidden_share(MultiBlock(truncate="padded"), (4, 4, 4), draws=8, batch=4)
    assert [s.shape for s in share] == [(4, 4, 4)] * 2 and all(0 <= s.min() <= s.max() <= 1 for s in share)
    late, early = (
        masks.hidden_share(MultiBlock(max_temporal_keep=0.5, full_complement=True), (4, 4, 4), 4, 4)[0][k].mean() for k in (3, 0)
    )
    assert late == 1.0 > early


def test_the_mask_explorer_draws_where_the_clip_moves():
    clip, guided = data.open("synthetic:plain", "train", frames=8, size=32, n=1)[0].clip, MultiBlock(where=Motion(strength=8.0))
    score = guided.where.score(clip[None], (4, 4, 4)).expand(2, -1, -1, -1)
    drawn = [guided.draw(2, (4, 4, 4), seed=1, step=step, clip=clip.expand(2, *clip.shape))[0].maps((4, 4, 4))[1] for step in range(3)]
    assert np.allclose(masks.hidden_share(guided, (4, 4, 4), 3, 2, score)[0], np.mean([m.float().mean(0) for m in drawn], axis=0))
    explorer = masks.mask_explorer(size="smoke", clips=1)
    before = pixels(explorer.figure())
    explorer.controls["strength"].value, explorer.controls["motion"].value = 10, "power"
    assert not np.array_equal(before, pixels(explorer.figure()))


def test_the_recipe_builder_writes_what_it_shows():
    explorer = recipes.recipe_builder(size="smoke")
    explorer.controls["start"].value = "fwm"
    explorer.controls["Straight.weight"].value = 0.25
    explorer.controls["Straight.on"].value = "dyn"
    explorer.controls["Dynamics.weight"].value = 1.0
    explorer.controls["Dynamics.hard"].value = True
    built = explorer.figure().recipe
    assert built == vl.recipe(repr(built)) and "0.25*Straight(on='dyn')" in repr(built) and "Hard(Dynamics())" in repr(built)
    assert built.objective.terms[: len(vl.recipe("fwm").objective.terms)] == vl.recipe("fwm").objective.terms
    explorer.controls["maps"].value = True
    page = explorer.figure()._repr_html_()
    assert re.findall(r"GFLOP per clip and step at (\w+)", page) == ["smoke"] and "x the baseline" in page
    assert page.count("baseline") == 1 and '<img alt="error map of each term" src="data:image/png;base64,' in page
    assert explorer.figure().picture.image.height > 100


@pytest.mark.parametrize("masking", ["preset micro", "amg"])
def test_motion_strength_is_used_or_out_of_reach(masking):
    """Every dial turns something: the strength is that of the masks' own motion too, and where blocks do not follow motion it is grey."""
    explorer = masks.mask_explorer(size="micro", clips=1)
    explorer.controls["masking"].value = masking
    guided = masking == "amg"
    weak, strong = (pixels(explorer.view(**explorer.values | {"strength": strength})) for strength in (0.5, 10))
    assert explorer.controls["strength"].disabled is np.array_equal(weak, strong) is not guided
    explorer.controls["motion"].value = "linear"
    assert explorer.controls["strength"].disabled
    explorer.controls["motion"].value = "softmax"
    assert not explorer.controls["strength"].disabled


def test_motion_strength_at_own_is_the_masks_own():
    amg = masks.strategies(vl.presets.preset("smoke"))["amg"]
    assert masks._where(amg, "its own", 0) == amg.where == Motion(strength=5.0, random_rate=0.0)
    assert masks._where(amg, "its own", 3) == Motion(strength=3, random_rate=0.0)
    assert masks._where(amg, "power", 0) == Motion(strength=5.0, random_rate=0.0, sampling="power")
    assert masks._where(MultiBlock(), "softmax", 0) == Motion() and masks._where(amg, "uniform", 3) == MultiBlock().where


@pytest.fixture(scope="module")
def builder():
    return recipes.recipe_builder(size="smoke")


@pytest.mark.parametrize("name", recipes.auxiliaries())
def test_every_term_of_the_builder_trains_at_its_default_dials(builder, name):
    built = builder.view(**builder.values | {f"{name}.weight": 0.5})
    assert built.recipe == vl.recipe(f"JEPA() + 0.5*{name}()") and name in built._repr_html_()


@pytest.mark.parametrize(
    ("name", "dials", "said"),
    [
        ("Context", {"view": "full"}, "Context: through view='full' there is no view.context"),
        ("SIGReg", {"hard": True}, r"Hard\(SIGReg\): scope='clip' weighs"),
        ("SIGReg", {"hard": True, "view": "visible"}, r"Hard\(SIGReg\): scope='clip' weighs"),
        ("Orthogonal", {"hard": True}, r"Hard\(Orthogonal\): scope='clip' weighs"),
    ],
)
@pytest.mark.parametrize("maps", [False, True])
def test_the_builder_says_what_cannot_train(builder, name, dials, said, maps):
    chosen = {f"{name}.weight": 0.5, "maps": maps} | {f"{name}.{key}": value for key, value in dials.items()}
    with pytest.raises(ValueError, match=said):
        builder.view(**builder.values | chosen)


def test_compose_refuses_what_it_does_not_know():
    for wrong, said in (
        ({"extra": {"Nope": {"weight": 1}}}, "unknown term 'Nope': expected one of Contrast, Delta"),
        ({"extra": {"Detla": {"weight": 1}}}, "unknown term 'Detla': did you mean Delta"),
        ({"extra": {"Delta": {"view": "visible"}}}, "Delta: no weight in {'view': 'visible'}; expected a number"),
        ({"extra": {"Delta": {"weight": 0.1, "veiw": "visible"}}}, "Delta: unknown key 'veiw'; did you mean view"),
        ({"extra": {"Delta": 0.1}}, "Delta: 0.1 is no dict"),
        ({"masking": "fture"}, "unknown masks 'fture': did you mean future"),
    ):
        with pytest.raises(ValueError) as caught:
            recipes.compose(**wrong)
        assert said in str(caught.value) and "\n" not in str(caught.value)
    visible = recipes.compose(extra={"Delta": {"weight": 0.1, "view": "visible"}, "Straight": {"weight": 0}}, masking="future")
    assert visible == vl.objective.Recipe(vl.recipe("JEPA() + 0.1*Delta(view='visible')").objective, masks=vl.recipe("future").masks)


def test_the_builder_takes_a_run_by_its_folder(run):
    assert recipes.recipe_builder("synthetic:plain", run=run).figure().size == run.preset
    explorer = recipes.recipe_builder("synthetic:plain", run=str(run.path))
    explorer.controls["maps"].value = True
    assert explorer.figure().size == run.preset and explorer.figure().picture is not None
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        recipes.recipe_builder(run=run.path.parent)


def test_the_feature_viewer_shows_both_halves_and_every_error(run):
    from vjepa_lab.widgets import features

    explorer = features.feature_viewer(run.path, clips=2)
    names = explorer.controls["shown"].options
    assert {"clip", "student", "Z_app", "Z_dyn", "teacher", "JEPA"} <= set(names)
    whole = pixels(explorer.figure())
    explorer.controls["shown"].value = ("clip", "student")
    assert pixels(explorer.figure()).size < whole.size
    clip = data.open("synthetic:plain", "test", frames=8, size=32, n=1)[0].clip
    found = features.panels(run, clip)
    assert all(frames.shape == (8, 32, 32, 3) and frames.dtype == np.uint8 for _, frames in found.values())
    assert np.array_equal(found["clip"][1], clip.permute(1, 2, 3, 0).numpy())


def test_the_feature_viewer_shows_where_an_attentive_probe_looks(run):
    from vjepa_lab.widgets import features

    result = vl.probe(run, labels="motion", probe="attentive", limit=24, save=False, epochs=2, progress=False)[0]
    clip = data.open("synthetic:plain", "test", frames=8, size=32, n=1)[0].clip
    scale, frames = features.panels(run, clip, probe=result)["attention"]
    assert scale.startswith(f"\nmotion: {result.value():.0f} %, guess") and frames.shape == (8, 32, 32, 3)
    share = result.head.attended(torch.randn(3, 64, result.head.query.shape[-1]))
    assert share.shape == (1, 3, 64) and torch.allclose(share.sum(-1), torch.ones(1, 3))
    assert "attention" in features.feature_viewer(run, clips=1, probe=result).controls["shown"].options
    with pytest.raises(ValueError, match="no query over tokens"):
        linear = vl.probe(run, labels="motion", limit=24, save=False, epochs=2, progress=False)[0]
        features.panels(run, clip, probe=linear)


def test_the_feature_viewer_names_its_panels_where_none_of_them_is_asked_for(run):
    from vjepa_lab.widgets import features

    clip = data.open("synthetic:plain", "test", frames=8, size=32, n=1)[0].clip
    for shown, frame in ((("teecher",), None), ((), None), ((), 0), (("clip", "teecher"), 0)):
        with pytest.raises(ValueError, match=r"shown=.*: expected one or more of clip, student, Z_app, Z_dyn, teacher, "):
            features.feature_view(run, clip, frame=frame, shown=shown)
    assert np.array_equal(*(pixels(features.feature_view(run, clip, shown=shown)) for shown in ("clip", ("clip",))))
    for frame in (1.5, -9):
        with pytest.raises(ValueError, match=f"frame={frame}: expected a whole number, 0 or more"):
            features.feature_view(run, clip, frame=frame)
    for clips in (0, 1.5):
        with pytest.raises(ValueError, match=f"clips={clips}: expected a whole number, 1 or more"):
            features.feature_viewer(run, clips=clips)
        with pytest.raises(ValueError, match=f"clips={clips}: expected a whole number, 1 or more"):
            masks.mask_explorer("synthetic", "smoke", clips=clips)


@pytest.mark.parametrize("wrong", [{"batch": 2.5}, {"batch": 0}, {"draws": 0}, {"draws": 1.5}, {"seed": 1.5}, {"seed": -1}, {"width": 9.5}])
def test_the_mask_view_refuses_what_is_no_whole_number(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value}: expected a whole number, "):
        masks.mask_view(torch.zeros(3, 8, 32, 32, dtype=torch.uint8), MultiBlock(), "smoke", **wrong)


def test_the_recipe_builder_names_a_clip_that_is_not_there():
    for clip in (1.5, -1):
        with pytest.raises(ValueError, match=f"clip={clip}: expected a whole number, 0 or more"):
            recipes.recipe_builder("synthetic", "smoke", clip=clip)
    source = data.open("synthetic", frames=8, size=32, n=3, cache="memory")
    with pytest.raises(ValueError, match=r"clip=3: synthetic \[train\] has 3 clips, counted from 0"):
        recipes.recipe_builder(source, "smoke", clip=3)


def test_the_monitor_names_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nope: no such folder"):
        monitor.monitor_view(tmp_path / "nope")


def test_the_feature_viewer_takes_clips_of_another_length_and_trains_its_probe_on_their_data(run, monkeypatch):
    from vjepa_lab.widgets import features

    source = data.open("synthetic:plain-order", "test", frames=16, size=32, n=2)
    asked = []
    monkeypatch.setattr(features.evaluate, "probe", lambda run, spec, label, **_: asked.append((spec, label)) or [None])
    explorer = features.feature_viewer(run, source, probe=True)
    assert asked == [("synthetic:plain-order", "class")]
    assert explorer.controls["frame"].max == explorer.widget.children[-1].max == 15
    before = pixels(explorer.figure())
    explorer.controls["frame"].value = 15
    assert not np.array_equal(before, pixels(explorer.figure()))
    source.spec = ""
    with pytest.raises(ValueError, match="probe='order': synthetic:plain-order was opened by no name"):
        features.feature_viewer(run, source, probe="order")


def test_the_monitor_tells_how_runs_stand(run):
    table = monitor.overview(run.path.parent)
    assert table["state"].tolist() == ["done"] and table["step"].tolist() == [4] and table["eta_s"].isna().all()
    (run.path / "metrics.jsonl").open("a").write('{"step": 9, "lo')  # a line that a kill cut short
    assert monitor.overview(run.path.parent)["step"].tolist() == [4]
    assert "4 / 4" in monitor.run_monitor(run.path.parent, every=0).figure()._repr_html_()
    with pytest.raises(ProcessLookupError, match="nobody trains it"):
        monitor.stop(run)
    with pytest.raises(FileNotFoundError, match="no run folder in it"):
        monitor.run_monitor(run.path / "predictions")


def test_the_monitor_tells_runs_of_one_name_apart_and_says_what_it_cannot_do(run, tmp_path):
    for folder in ("a", "b"):
        shutil.copytree(run.path, tmp_path / folder / run.name)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text((run.path / "config.json").read_text())
    assert monitor.overview(tmp_path)["run"].tolist() == [f"a/{run.name}", f"b/{run.name}", "begun"]
    explorer = monitor.run_monitor(tmp_path, every=0)
    explorer.controls["compare"].value = (f"b/{run.name}",)
    _, stop, _, said = explorer.widget.children[-1].children
    stop.click()
    assert "nobody trains it" in said.value
    shutil.rmtree(tmp_path / "b")
    stop.click()
    assert "is gone" in said.value and explorer.values["compare"] == ()
    assert monitor.monitor_view(tmp_path, ("begun",)).figure is None
    shutil.rmtree(tmp_path / "a")
    assert monitor.monitor_view(tmp_path).table["state"].tolist() == ["begun"]


def test_the_monitor_passes_over_what_is_no_run_and_tells_of_a_damaged_one(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "good")
    size = {"preset": {"name": "smoke"}, "variant": "x"}
    for name, found in {"export": {"architectures": []}, "tuned": {"variant": "x", "plan": {}}, "list": [1], "other": size}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(found))
    with pytest.raises(FileNotFoundError, match="no run folder in it"):
        monitor.run_monitor(tmp_path / "export")
    shutil.copytree(run.path, tmp_path / "bad")
    (tmp_path / "bad" / "config.json").write_text((run.path / "config.json").read_text()[:100])
    assert monitor.overview(tmp_path).set_index("run")["state"].to_dict() == {"bad": "damaged", "good": "done"}
    explorer = monitor.run_monitor(tmp_path, every=0)
    assert "damaged" in explorer.figure()._repr_html_() and "4 / 4" in explorer.figure()._repr_html_()
    _, _, go_on, said = explorer.widget.children[-1].children
    explorer.controls["compare"].value = ("bad",)
    go_on.click()
    assert "damaged, no JSON" in said.value and not (tmp_path / "bad" / "continued.log").exists()


def test_the_monitor_compares_one_name_or_several_and_refuses_unknown_ones(run):
    one, several = (monitor.monitor_view(run.path.parent, compare) for compare in (run.name, [run.name]))
    assert one.figure is not None and len(one.figure.axes) == len(several.figure.axes)
    for compare in ("nope", ("nope",), (run.name, "nope")):
        with pytest.raises(ValueError, match=f"compare: no run 'nope' below .*; expected one of {run.name}"):
            monitor.monitor_view(run.path.parent, compare)


def test_the_monitor_shows_runs_that_begin_later_until_others_are_chosen(run, tmp_path):
    begin = lambda name: shutil.copytree(run.path, tmp_path / name)
    begin("b")
    explorer = monitor.run_monitor(tmp_path, every=0)
    again, compare = explorer.widget.children[-1].children[0], explorer.controls["compare"]
    for name, shown in (("a", {"a", "b"}), ("c", {"a", "b", "c"}), ("d", {"a", "c", "d"})):
        begin(name)
        again.click()
        assert set(compare.value) == shown
    compare.value = ("b",)
    begin("e")
    again.click()
    assert compare.value == ("b",) and "e" in compare.options


def test_the_monitor_does_not_go_on_with_a_run_that_is_being_trained(run, tmp_path, monkeypatch):
    shutil.copytree(run.path, tmp_path / "a")
    begun = []
    monkeypatch.setattr(monitor.subprocess, "Popen", lambda command, **_: begun.append(command))
    explorer = monitor.run_monitor(tmp_path, every=0)
    _, _, go_on, said = explorer.widget.children[-1].children
    with locks.hold(tmp_path / "a"):
        go_on.click()
    assert "trained by process" in said.value and not begun
    config = tmp_path / "a" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"own_terms": {"Mine": "0"}}))
    go_on.click()
    assert "repeat the call that began it" in said.value and not begun
    shutil.copy(run.path / "config.json", config)
    go_on.click()
    assert not said.value and [command[-2:] for command in begun] == [["resume", str(tmp_path / "a")]]


def test_live_curves_end_with_the_last_record(monkeypatch):
    from IPython.core.events import EventManager

    events, drawn = EventManager(None, {"post_run_cell": None}), []
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(events=events))
    monkeypatch.setattr(plots, "curves", lambda table, **_: drawn.append(len(table)))
    live = vl.widgets.LiveCurve(every=1000.0)
    for step in range(5):
        live({"step": step, "loss": 1.0})
    assert drawn == [2]
    events.trigger("post_run_cell", None)
    events.trigger("post_run_cell", None)
    assert drawn == [2, 5]


def test_drawing_live_curves_leaves_the_time_to_training(monkeypatch):
    """On a clock that goes on by one second a record: a drawing of 4 s is not repeated for two minutes, a quick one every 3 s."""
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    for cost, redraws in ((4.0, 3), (0.0, 83)):
        clock, drawn = [100.0], []

        def draw(table, clock=clock, drawn=drawn, cost=cost, **_):
            clock[0] += cost
            drawn.append(len(table))

        monkeypatch.setattr("vjepa_lab.widgets.live.time", SimpleNamespace(monotonic=lambda clock=clock: clock[0]))
        monkeypatch.setattr(plots, "curves", draw)
        live = vl.widgets.LiveCurve()
        for step in range(250):
            clock[0] += 1
            live({"step": step, "loss": 1.0})
        assert len(drawn) == redraws


def test_curves_have_a_panel_for_each_term(run):
    drawn = monitor.monitor_view(run.path.parent).figure
    titles = {ax.get_title(loc="left") for ax in drawn.axes if ax.lines}
    assert {"loss", "gradient norm", "teacher's rank", "JEPA", "Orthogonal", "Hard(Dynamics[dyn])"} <= titles


def test_controls_that_do_not_go_together_say_so(monkeypatch):
    explorer = masks.mask_explorer(size="smoke", clips=1)
    said, crowded = [], explorer.values | {"masking": "V-JEPA", "scale": 0.9, "batch": 32}
    monkeypatch.setattr("IPython.display.display", said.append)
    explorer._show(**crowded)
    assert len(said) == 1 and "fewer or smaller blocks" in said[0].data
