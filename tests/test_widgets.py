"""Explorers: the picture follows the controls, is the plain function's, and stays where there are no widgets."""

import shutil

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

import vjepa_lab as vl
from vjepa_lab import data
from vjepa_lab.evidence import results
from vjepa_lab.masks import Motion, MultiBlock
from vjepa_lab.plots.sheet import sheet, tiles
from vjepa_lab.widgets import masks, monitor, recipes, tradeoffs


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


def test_the_mask_explorer_follows_its_controls():
    explorer = masks.mask_explorer(size="smoke", clips=3)
    before = pixels(explorer.figure())
    assert np.array_equal(before, pixels(explorer.figure()))
    explorer.controls["clip"].value = 2
    other = pixels(explorer.figure())
    explorer.controls["masking"].value = "V-JEPA multiblock"
    assert not np.array_equal(before, other) and other.shape != pixels(explorer.figure()).shape  # two kinds instead of the preset's
    bundle = explorer._repr_mimebundle_()
    assert bundle["image/png"][:4] == b"\x89PNG" and "application/vnd.jupyter.widget-view+json" in bundle


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
    assert "times the baseline" in explorer.figure()._repr_html_() and explorer.figure().picture.image.height > 100


def test_the_feature_viewer_shows_both_halves_and_every_error(run):
    from vjepa_lab.widgets import features

    explorer = features.feature_viewer(run, clips=2)
    names = explorer.controls["shown"].options
    assert {"clip", "student", "Z_app", "Z_dyn", "teacher", "JEPA"} <= set(names)
    whole = pixels(explorer.figure())
    explorer.controls["shown"].value = ("clip", "student")
    assert pixels(explorer.figure()).size < whole.size
    clip = data.open("synthetic:plain", "test", frames=8, size=32, n=1)[0].clip
    found = features.panels(run, clip)
    assert all(frames.shape[1:] == (32, 32, 3) and frames.dtype == np.uint8 for _, frames in found.values())
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


def test_curves_have_a_panel_for_each_term(run):
    drawn = monitor.monitor_view(run.path.parent).figure
    titles = {ax.get_title(loc="left") for ax in drawn.axes if ax.lines}
    assert {"loss", "gradient norm", "teacher's rank", "JEPA", "Orthogonal", "Hard(Dynamics[dyn])"} <= titles


@pytest.fixture(scope="module")
def known():
    return tradeoffs.Tradeoffs(results.load("data/paper"))


def test_the_tradeoff_explorer_draws_what_its_code_draws(known, tmp_path, monkeypatch):
    choice = {"regime": "mixed", "sources": ("paper",), "benchmarks": ("D-48", "SSv2"), "baseline": "baseline", "parts": ("Hard",)}
    choice |= {"sort": "SSv2", "intervals": False}
    figure = known.view(**choice)
    again = eval(known.code(("data/paper",), **choice), {"plots": vl.plots, "results": results})
    assert figure.to_json() == again.to_json()
    drawn = {trace.name for trace in figure.data if trace.name}
    assert drawn == {"D-48", "SSv2"}
    bars = next(trace for trace in figure.data if trace.name == "SSv2")
    assert set(known.table(**choice)["variant"]) == {"fwm-hw-ld", "hw", "hw-ld", "ac-hw", "combo"} and len(bars.x) == 5
    explorer = tradeoffs.tradeoff_explorer("data/paper", out=tmp_path)
    explorer.widget.children[-1].children[0].click()
    assert {path.suffix for path in tmp_path.iterdir()} == {".pdf", ".png", ".csv", ".py"}


def test_the_explorer_compares_one_metric_probe_and_encoder(tmp_path):
    rows = [
        {"run": f"{v}-s{s}", "variant": v, "seed": s, "encoder": e, "metric": m, "probe": p, "value": 50 + gain * (v == "ld") + s / 3}
        for v in ("baseline", "ld") for s in range(3)
        for e, m, p, gain in (
            ("student", "top1", "linear", 5), ("teacher", "top1", "linear", -20), ("student", "balanced_accuracy", "linear", 9),
            ("student", "top1", "knn", 7), ("student", "rankme", "none", 30),
        )
    ]  # fmt: skip
    about = {"edition": "sound", "regime": "r", "benchmark": "SSv2", "n": 2000, "source": "run"}
    own = tradeoffs.Tradeoffs(results.tidy(pd.DataFrame(rows).assign(**about)))
    choice = {"regime": "r", "sources": ("run",), "benchmarks": ("SSv2",), "baseline": "baseline", "parts": (), "sort": "mean"}
    (bars,) = [trace for trace in own.view(intervals=True, **choice).data if trace.type == "bar"]
    assert list(bars.y) == ["ld"] and bars.x[0] == pytest.approx(5)
    assert own.table(intervals=True, **choice)["delta"].tolist() == pytest.approx([5])
    assert own.benchmarks == ["SSv2"]


def test_the_plain_figure_is_the_figure(known):
    choice = {"regime": "mixed", "sources": ("paper", "released"), "benchmarks": ("D-48", "SSv2"), "baseline": "baseline"}
    choice |= {"parts": (), "sort": "SSv2", "intervals": True}
    assert go.Figure(known.view(plain=True, **choice)).to_json() == known.view(**choice).to_json()
    assert "updatemenus" not in known.view(plain=True, **choice | {"sort": "mean"})["layout"], "the explorer's control sorts"


def test_a_click_on_a_bar_shows_the_objective(known):
    explorer = tradeoffs.tradeoff_explorer("data/paper")
    figure = explorer.figure()
    notes = {(note.xclick, note.yclick): note for note in figure.layout.annotations if note.clicktoshow}
    bars = {(x, y) for trace in figure.data if trace.type == "bar" for x, y in zip(trace.x, trace.y, strict=True)}
    assert notes.keys() == bars and not figure.layout.updatemenus
    assert not any(note.visible for note in notes.values())
    shown = {label: note.text.replace("<br>", " ").replace("&#x27;", "'") for (_, label), note in notes.items()}
    assert shown["FWM-HW-LD"] == repr(vl.recipe("fwm-hw-ld"))


def test_controls_that_do_not_go_together_say_so(monkeypatch):
    explorer = masks.mask_explorer(size="smoke", clips=1)
    said, crowded = [], explorer.values | {"masking": "V-JEPA multiblock", "scale": 0.9, "batch": 32}
    monkeypatch.setattr("IPython.display.display", said.append)
    explorer._show(**crowded)
    assert len(said) == 1 and "fewer or smaller blocks" in said[0].data


def test_another_baseline_is_another_difference(known):
    choice = {"regime": "mixed", "sources": ("released",), "benchmarks": ("SSv2",), "parts": (), "sort": "mean", "intervals": True}
    first, second = (known.table(baseline=f"baseline, released seed {seed}", **choice).set_index("variant")["delta"] for seed in (42, 239))
    shift = first - second
    assert shift.abs().min() > 0.01 and np.allclose(shift, shift.iloc[0], atol=0.02)


def test_what_rows_are_made_of():
    assert set(tradeoffs.parts_of("fwm-hw-ld")) == {"Hard", "Kinematic", "Orthogonal", "Dynamics"}
    assert tradeoffs.parts_of("future") == ("masks",) and tradeoffs.parts_of("somebodys") == ("own",)
