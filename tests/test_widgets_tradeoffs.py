"""The trade-off explorer: what it compares, says where nothing can be, and keeps."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

import vjepa_lab as vl
from vjepa_lab import variants
from vjepa_lab.evidence import results
from vjepa_lab.widgets import tradeoffs


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
    keep(explorer)
    assert {path.suffix for path in tmp_path.iterdir()} == {".pdf", ".png", ".csv", ".py"}


def keep(explorer) -> str:
    """What "keep this view" says when it is pressed."""
    button, said = explorer.widget.children[-1].children
    button.click()
    return said.value


def measured(*variants: str, regime: str = "r", **about) -> pd.DataFrame:
    rows = [{"run": f"{regime}-{v}", "variant": v, "seed": 0, "value": 50.0 + len(v)} for v in variants]
    about = {"edition": "sound", "regime": regime, "benchmark": "SSv2", "probe": "attentive", "n": 2000, "source": "run"} | about
    return results.tidy(pd.DataFrame(rows).assign(**about))


@pytest.mark.parametrize(("variant", "said"), [("baseline", "nothing to compare with"), ("ld", "no baseline")])
def test_an_explorer_of_one_run_says_that_there_is_nothing_to_compare(variant, said, tmp_path):
    explorer = tradeoffs.tradeoff_explorer(rows=measured(variant), out=tmp_path)
    bundle = explorer._repr_mimebundle_()
    assert said in bundle["text/html"] and said in bundle["text/plain"] and "application/vnd.jupyter.widget-view+json" in bundle
    assert said in keep(explorer) and not list(tmp_path.iterdir())


def test_the_explorer_starts_where_something_can_be_compared(known):
    rows = pd.concat([measured("baseline", regime="alone"), measured("baseline", "ld", regime="both")])
    explorer = tradeoffs.tradeoff_explorer(rows=rows)
    assert explorer.controls["regime"].options == ("alone", "both") and explorer.values["regime"] == "both"
    assert explorer._repr_mimebundle_()["image/png"][:4] == b"\x89PNG"
    released = tradeoffs.tradeoff_explorer(rows=known.rows[known.rows["source"].eq("released")])
    assert released.values["sources"] == ("released",) and "image/png" in released._repr_mimebundle_()
    assert tradeoffs.tradeoff_explorer(rows=measured("baseline", "ld", regime=None)).figure().data


def test_the_explorer_of_nothing_says_what_to_do(tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text("{}")
    for paths in ((tmp_path,), (tmp_path / "begun", tmp_path)):
        with pytest.raises(ValueError, match=f"no top-1 rows in {tmp_path}.*; probe a run first"):
            tradeoffs.tradeoff_explorer(*paths)
    for rows in (pd.DataFrame(), measured("baseline", "ld", metric="rankme")):
        with pytest.raises(ValueError, match="no top-1 rows in the table"):
            tradeoffs.tradeoff_explorer(rows=rows)


def test_a_kept_view_is_made_again_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = measured("baseline", "ld", "hw", regime="synthetic:plain")
    (tmp_path / "runs").mkdir()
    rows.assign(value=rows["value"] / 2).to_csv("runs/others.csv", index=False)  # what the code must not load
    rows.to_csv("own.csv", index=False)
    for explorer in (tradeoffs.tradeoff_explorer(rows=rows, out="kept"), tradeoffs.tradeoff_explorer("own.csv", out="again")):
        said, drawn = keep(explorer), explorer.figure()
        (script,) = (tmp_path / said.rpartition("written: ")[2].split(",")[0]).parent.glob("*.py")
        monkeypatch.chdir("/")
        found: dict = {}
        exec(script.read_text(encoding="utf-8"), found)
        monkeypatch.chdir(tmp_path)
        values = [[tuple(t.x) for t in figure.data if t.type == "bar"] for figure in (drawn, found["figure"])]
        assert values[0] == values[1] != []
    assert {path.name for path in (tmp_path / "kept").glob("*.csv")} == {f"{script.stem}.csv", f"{script.stem}-rows.csv"}
    assert {path.name for path in (tmp_path / "again").glob("*.csv")} == {f"{script.stem}.csv"}


def test_an_impossible_view_is_not_kept_and_says_why(tmp_path):
    explorer = tradeoffs.tradeoff_explorer("data/paper", out=tmp_path)
    explorer.controls["sources"].value = ()
    assert "not kept: no rows for regime" in keep(explorer) and not list(tmp_path.iterdir())
    explorer.controls["sources"].value = ("paper",)
    assert "written: " in keep(explorer)
    (tmp_path / "file").touch()
    assert "not kept: " in keep(tradeoffs.tradeoff_explorer("data/paper", out=tmp_path / "file"))


def test_every_view_is_kept_under_a_name_of_its_own(known):
    first = {"regime": "mixed", "sources": ("paper",), "benchmarks": tuple(known.benchmarks), "baseline": "baseline", "parts": ()}
    first |= {"sort": "mean", "intervals": True}
    changes = [{}, {"sources": ("paper", "released")}, {"benchmarks": ("D-48",)}, {"baseline": "baseline, released seed 42"}]
    changes += [{"baseline": "ld"}, {"parts": ("Hard",)}, {"parts": ("Hard", "masks")}, {"sort": "SSv2"}, {"intervals": False}]
    changes += [{"regime": "synthetic:plain"}, {"regime": None}, {"parts": tuple(known.parts[1:])}, {"parts": tuple(known.parts[2:])}]
    names = [known.name(**first | change) for change in changes]
    assert names[:2] == ["view-mixed-sources-paper", "view-mixed-sources-paper-released"] and "against-ld" in names[4]
    assert len({name.lower() for name in names}) == len(names)
    assert all(name.startswith("view-") and name.replace("-", "").replace("_", "").isalnum() and len(name) <= 80 for name in names)


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


def test_the_explorers_figure_has_menus_that_start_with_what_its_controls_say(known):
    explorer = tradeoffs.tradeoff_explorer("data/paper")
    filters, first, *_ = explorer.figure().layout.updatemenus
    assert filters.buttons[0].label == "all objectives" and first.buttons[0].label == "sorted by mean"
    explorer.controls["sort"].value = "SSv2"
    figure = explorer.figure()
    labels = [button.label for button in figure.layout.updatemenus[1].buttons]
    assert labels[:2] == ["sorted by SSv2", "sorted by mean"] and len(labels) == len(set(labels))
    assert list(figure.layout.yaxis.categoryarray) == figure.layout.updatemenus[1].buttons[0].args[0]["yaxis.categoryarray"]
    explorer.controls["parts"].value = ("Dynamics",)
    assert len(explorer.figure().layout.updatemenus[0].buttons[0].args[0]["yaxis.categoryarray"]) == 4
    above, _, under, *_ = explorer.widget.children
    assert under.children == tuple(explorer.controls[name] for name in ("sort", "parts", "intervals"))
    assert {*above.children, *under.children} == set(explorer.controls.values())


def test_a_click_on_a_bar_shows_the_objective(known):
    explorer = tradeoffs.tradeoff_explorer("data/paper")
    figure = explorer.figure()
    notes = {(note.xclick, note.yclick): note for note in figure.layout.annotations if note.clicktoshow}
    bars = {(x, y) for trace in figure.data if trace.type == "bar" for x, y in zip(trace.x, trace.y, strict=True)}
    assert notes.keys() == bars
    assert not any(note.visible for note in notes.values())
    shown = {label: note.text.replace("<br>", " ").replace("&#x27;", "'") for (_, label), note in notes.items()}
    assert shown["FWM-HW-LD"] == f"edition paper: {vl.recipe('fwm-hw-ld', 'paper')!r}", "what is printed, not what we recommend"


def test_the_list_below_the_figure_tells_objectives_in_the_editions_that_were_measured(known):
    rows = pd.concat([measured("baseline", "ld"), measured("baseline", "ld", edition="released"), measured("baseline", "ld", edition=None)])
    explorer = tradeoffs.tradeoff_explorer(rows=rows)
    look, expression = explorer.widget.children[-2].children
    said = {}
    for label, value in look.options.items():
        look.value = value
        said[label] = expression.value.replace("&#x27;", "'")
    assert said["ld, edition released"] == f"<code>edition released: {vl.recipe('ld', 'released')!r}</code>"
    assert said["ld, edition sound"] == f"<code>edition sound: {vl.recipe('ld')!r}</code>"
    assert said["ld, no edition named"] == f"<code>no edition named: {vl.recipe('ld')!r}</code>"


def test_another_baseline_is_another_difference(known):
    choice = {"regime": "mixed", "sources": ("released",), "benchmarks": ("SSv2",), "parts": (), "sort": "mean", "intervals": True}
    first, second = (known.table(baseline=f"baseline, released seed {seed}", **choice).set_index("variant")["delta"] for seed in (42, 239))
    shift = first - second
    assert shift.abs().min() > 0.01 and np.allclose(shift, shift.iloc[0], atol=0.02)


def test_what_rows_are_made_of():
    assert set(variants.parts_of("fwm-hw-ld")) == {"Hard", "Kinematic", "Orthogonal", "Dynamics"}
    assert variants.parts_of("future") == ("masks",) and variants.parts_of("somebodys") == ("own",)


def test_a_released_baseline_is_compared_with_the_released_results(known):
    explorer = tradeoffs.tradeoff_explorer("data/paper")
    assert explorer.values["sources"] == ("paper",)
    explorer.controls["baseline"].value = "baseline, released seed 239"
    assert explorer.values["sources"] == ("released",), "the control shows what is compared"
    shift = {}
    for seed in (42, 239):
        explorer.controls["baseline"].value = f"baseline, released seed {seed}"
        shift[seed] = [tuple(trace.x) for trace in explorer.figure().data if trace.type == "bar"]
    assert shift[42] != shift[239]
    explorer.controls["sources"].value = ("paper",)
    assert "Printed numbers have no seed" in explorer.figure().to_json()
    explorer.controls["baseline"].value = "baseline"
    assert "Printed numbers have no seed" not in explorer.figure().to_json()
    both = tradeoffs.tradeoff_explorer(rows=pd.concat([measured("baseline", "ld", regime="own"), known.rows]))
    start = both.values
    assert start["regime"] == "own"
    both.controls["baseline"].value = "baseline, released seed 42"
    assert both.values["sources"] == ("released",) and both.figure().data
    both.controls["baseline"].value = "baseline, released seed 239"
    both.controls["baseline"].value = "baseline"
    assert both.values == start, "the way back"


def test_editions_of_own_runs_are_chosen_and_kept(tmp_path):
    rows = pd.concat([measured("baseline", "ld"), measured("baseline", "ld", "hw", edition="released").assign(run=["a", "b", "c"])])
    rows = pd.concat([rows, measured("baseline", "ld", benchmark="shape")])  # of the other edition only
    explorer = tradeoffs.tradeoff_explorer(rows=rows, out=tmp_path)
    assert explorer.controls["editions"].options == ("released", "sound") and len(explorer.figure().layout.xaxis2.title.text)
    explorer.controls["editions"].value = ("released",)
    figure = explorer.figure()
    assert {name for trace in figure.data if trace.type == "bar" for name in trace.y} == {"hw", "ld"}
    assert "xaxis2" not in figure.layout
    assert "Our runs, edition released, one seed" in figure.layout.annotations[0].text
    assert "Not drawn" not in figure.to_json()
    assert "editions=[&#x27;released&#x27;]" in keep(explorer)
    (table,) = (pd.read_csv(path) for path in tmp_path.glob("*editions*.csv") if "rows" not in path.name)
    assert set(table["edition"]) == {"released"} and set(table["variant"]) == {"ld", "hw"}
    assert "editions" not in tradeoffs.tradeoff_explorer(rows=measured("baseline", "ld")).controls


def test_a_bar_tells_whose_number_it_is(known):
    hover = [text for trace in tradeoffs.tradeoff_explorer("data/paper").figure().data if trace.type == "bar" for text in trace.customdata]
    assert hover and all("Paper, printed, pretrained on mixed<br>" in text for text in hover)
    own = tradeoffs.tradeoff_explorer(rows=measured("baseline", "ld", edition="released")).figure()
    (text,) = [text for trace in own.data if trace.type == "bar" for text in trace.customdata]
    assert "Our runs, edition released, pretrained on r<br>" in text and "1 seed, n = 2,000" in text


def test_a_long_name_stands_in_lines_and_is_still_its_objective():
    long = "my-objective-" + "with-many-words-" * 7 + "end"
    explorer = tradeoffs.tradeoff_explorer(rows=measured("baseline", "ld", long).assign(value=[50.0, 52.0, 53.0]))
    figure = explorer.figure()
    assert figure.layout.margin.l <= 320
    (label,) = [name for name in figure.layout.yaxis.categoryarray if name.startswith("my-")]
    assert "<br>" in label and label.replace("<br>", "") == long
    (note,) = [note for note in figure.layout.annotations if note.clicktoshow and note.yclick == label]
    assert "not a row of the paper" in note.text.replace("<br>", " ")
    buttons = [button.args[0] for button in figure.layout.updatemenus[0].buttons]
    assert any(label in change.get("yaxis.categoryarray", ()) for change in buttons)
