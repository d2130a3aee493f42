"""Figures: the numbers in a picture are the table's, marks and labels are there, print output embeds its fonts and fits its column."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from vjepa_lab import collected, data, plots, variants
from vjepa_lab.evaluation.scoring import controls
from vjepa_lab.evidence import results
from vjepa_lab.modifiers import Hard
from vjepa_lab.objective import Term
from vjepa_lab.plots import clips, style
from vjepa_lab.plots.ablation import means
from vjepa_lab.structure import structure
from vjepa_lab.terms import JEPA, VelGate

PAPER = Path(__file__).parents[1] / "data" / "paper"
BENCHMARKS = ["D-48", "IN-100", "SSv2"]
CLASSES = 50
"Of the benchmarks of `make_runs`."


@pytest.fixture(scope="module")
def paper():
    return results.load(PAPER)


def make_runs(root: Path, variants, seeds: int, benchmarks=BENCHMARKS, regime="mixed", steps=30_000, n=2000) -> pd.DataFrame:
    """Run folders whose accuracies are drawn around 20 %, the variant shifting them by its position; beside them the constant predictors
    that every probe writes, here of equally large classes."""
    rng, labels = np.random.default_rng(0), torch.arange(n) % CLASSES
    for shift, variant in enumerate(variants):
        for seed in range(seeds):
            folder = root / f"{variant}-{seed}"
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps({"variant": variant, "seed": seed, "regime": regime, "steps": steps}))
            probes = [(b, results.PROBES.get(b, "linear")) for b in benchmarks]
            measured = [{"benchmark": b, "probe": p, "value": 20 + shift + rng.normal(), "n": n} for b, p in probes]
            constant = [row for b, _ in probes for row in controls(labels, labels, benchmark=b)]
            results.append_rows(folder, measured + constant)
    return results.load(root)


def texts(figure) -> str:
    """Everything written in a matplotlib or plotly figure."""
    if hasattr(figure, "to_plotly_json"):
        return json.dumps(figure.to_plotly_json(), default=str, ensure_ascii=False)
    from matplotlib.text import Text

    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def assert_legible(figure, smallest: float = 5.0) -> None:
    """No text leaves the canvas, none is smaller than `smallest` points, no two texts overlap."""
    from matplotlib.text import Text

    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    undrawn = set()  # matplotlib keeps ticks beyond the limits and does not draw them
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        undrawn |= {tick.label1 for tick in axis.get_major_ticks() if not (axis.axes.axison and low <= tick.get_loc() <= high)}
    inside = figure.bbox.padded(2)
    boxes = []
    for text in figure.findobj(Text):
        if not text.get_text().strip() or not text.get_visible() or text in undrawn:
            continue
        box = text.get_window_extent(renderer)
        assert text.get_fontsize() >= smallest, text.get_text()
        assert inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1), f"{text.get_text()!r} leaves the figure"
        boxes.append((box.x0 + 1, box.y0 + 2, box.x1 - 1, box.y1 - 2, text.get_text()))  # line spacing is not ink
    for a, b in combinations(boxes, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"{a[4]!r} and {b[4]!r} overlap"


# --- Figure 2 ---------------------------------------------------------------------------------------------------------


def test_interactive_bars_are_the_printed_deltas(paper):
    figure = plots.tradeoffs(paper, regime="mixed", benchmarks=BENCHMARKS)
    printed = pd.read_csv(PAPER / "printed" / "table4.csv").set_index("method")
    bars = {trace.name: dict(zip(trace.y, np.round(trace.x, 2), strict=True)) for trace in figure.data if trace.type == "bar"}
    for column, benchmark in (("d48", "D-48"), ("in100", "IN-100"), ("ssv2", "SSv2")):
        assert bars[benchmark] == printed[f"{column}_delta"].dropna().to_dict()
    order = list(figure.layout.yaxis.categoryarray)
    assert order[0] == "FWM-HW-LD" and order[-1] == "FAC-JEPA"
    assert {trace.name for trace in figure.data if trace.showlegend and trace.type == "bar"} == set(BENCHMARKS)


def test_print_bars_are_the_printed_deltas(paper):
    figure = plots.tradeoffs(paper, regime="mixed", benchmarks=BENCHMARKS, paper=True)
    printed = pd.read_csv(PAPER / "printed" / "table4.csv")
    drawn = sorted(round(patch.get_width(), 2) for patch in figure.axes[0].patches if patch.get_width())
    assert drawn == sorted(printed[["d48_delta", "in100_delta", "ssv2_delta"]].stack().dropna().tolist())


def test_every_note_of_the_interactive_figure_has_room(paper):
    for chosen in ({"regime": "mixed"}, {"sources": ["paper", "released"]}):
        layout = plots.tradeoffs(paper, **chosen).layout
        below = layout.annotations[-1]
        lines = below.text.count("<br>") + 1
        assert layout.margin.b >= -below.yshift + 1.2 * below.font.size * lines and not layout.yaxis.automargin


def test_bars_are_sorted_by_nothing_that_is_not_there(paper):
    with pytest.raises(ValueError, match=r"sort='valeu': expected one of mean, given, D-48, IN-100, SSv2"):
        plots.tradeoffs(paper, regime="mixed", sort="valeu")


def test_depth_counts_blocks_from_one():
    about = {"term": "auxiliaries", "metric": "cosine", "variant": "ld", "seed": 0, "progress": 0.0, "smoke": False}
    table = pd.DataFrame(
        [about | {"group": group, "value": 0.2, "lo": 0.1, "hi": 0.3} for group in ("patch_embed", "block 0", "block 1", "norm")]
    )
    figure = plots.by_depth(table.assign(micro_batches=8, clips=32), ["cosine"], paper=True)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["patch embed", "block 1", "block 2", "norm"]


def test_no_two_benchmarks_of_a_figure_look_the_same():
    names = [*BENCHMARKS, *(f"world/{k}" for k in range(9))]
    shades = style.colours(names)
    assert [shades[name] for name in BENCHMARKS] == [style.colours([name])[name] for name in BENCHMARKS]
    for hatch in (style.hatches(names), style.patterns(names)):
        assert len({(shades[name], hatch[name]) for name in names}) == len(names)
    values = {"baseline": {0: 40.0, 1: 41.0}, "hw": {0: 42.0, 1: 43.0}}
    several = pd.concat([own_rows(values, benchmark=name) for name in names])
    bars = [trace for trace in plots.tradeoffs(several).data if trace.type == "bar"]
    assert len({(bar.marker.color, bar.marker.pattern.shape) for bar in bars}) == len(bars) == len(names)
    assert_legible(plots.tradeoffs(several, paper=True))


def test_menus_of_the_figure_filter_and_sort_in_the_page(paper):
    figure = plots.tradeoffs(paper, regime="mixed", benchmarks=BENCHMARKS)
    rows = paper[paper["regime"].eq("mixed") & paper["source"].eq("paper")]
    known = rows.dropna(subset=["printed"]).drop_duplicates("printed").set_index("printed")["variant"]
    drawn = {name.removesuffix(" ‡"): name for name in figure.layout.yaxis.categoryarray}
    filters, *sorts, whiskers = figure.layout.updatemenus
    labels = [button.label for button in filters.buttons]
    full = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    several = [button.label for button in filters.buttons if len(button.args[0]["yaxis.categoryarray"]) > 1]
    assert 3 < len(several) < len(labels), "an objective that is alone has no menu that sorts it"
    assert len(sorts) == len(several) and [menu.visible for menu in sorts] == [True] + [False] * (len(sorts) - 1)
    assert labels[0] == "all objectives" and {"with Dynamics", "with Kinematic", "with masks"} <= set(labels)
    deltas = {trace.name: dict(zip(trace.y, trace.x, strict=True)) for trace in figure.data if trace.type == "bar"}
    for button in filters.buttons:
        (change,) = button.args
        part = button.label.removeprefix("with ")
        shown = [label for name, label in drawn.items() if button.label == labels[0] or part in variants.parts_of(known[name])]
        assert sorted(change["yaxis.categoryarray"]) == sorted(shown) and change["yaxis.range"] == [len(shown) - 0.5, -0.5]
        own = [k for k in range(1, len(sorts) + 1) if change[f"updatemenus[{k}].visible"]]
        assert own == ([several.index(button.label) + 1] if len(shown) > 1 else [])
        assert [key for key in change if key.endswith(".active")] == [f"updatemenus[{k}].active" for k in own]
        assert all(change[f"updatemenus[{k}].active"] == 0 for k in own) and change["height"] <= figure.layout.height
        rows = change["height"] - figure.layout.margin.t - change["margin.b"]
        assert rows / len(shown) == pytest.approx(full / len(drawn)), "bars keep their thickness"
        buttons = [by for k in own for by in sorts[k - 1].buttons]
        assert all(change["yaxis.categoryarray"] == by.args[0]["yaxis.categoryarray"] for by in buttons[:1])
        for by in buttons[1:]:
            order = [deltas[by.label.removeprefix("sorted by ")].get(name, -np.inf) for name in by.args[0]["yaxis.categoryarray"]]
            assert order == sorted(order, reverse=True) and len(order) == len(shown)
    assert filters.buttons[0].args[0]["height"] == figure.layout.height
    (switch,) = whiskers.buttons
    off, on = switch.args[0], switch.args2[0]
    assert off["error_x.visible"] is False and on["x"] == [list(trace.x) for trace in figure.data]
    assert on["error_x.visible"] == [trace.type == "bar" for trace in figure.data]
    for trace, ends in zip(figure.data, off["x"], strict=True):
        bare = [max(deltas[trace.legendgroup][name], 0) for name in trace.y] if trace.type == "scatter" else list(trace.x)
        assert ends == bare
    assert len(plots.tradeoffs(paper, regime="mixed", benchmarks=BENCHMARKS, intervals=False).layout.updatemenus) == len(sorts) + 1
    one = plots.tradeoffs(paper, regime="mixed", benchmarks=["SSv2"]).layout.updatemenus
    assert [menu.buttons[0].label for menu in one] == ["all objectives", "intervals on / off"], "nothing to sort by"
    given = plots.tradeoffs(paper, regime="mixed", benchmarks=["SSv2"], sort="given").layout.updatemenus[1]
    assert [button.label for button in given.buttons] == ["as given", "sorted by mean"]
    elsewhere = plots.tradeoffs(paper, regime="mixed", benchmarks=["SSv2", "D-48"], sort="IN-100").layout.updatemenus[1]
    assert elsewhere.buttons[0].label == "sorted by mean"
    alone = plots.tradeoffs(paper, regime="mixed", benchmarks=BENCHMARKS, variants=["ld"])
    assert [menu.buttons[0].label for menu in alone.layout.updatemenus] == ["intervals on / off"]


def own_rows(values: dict[str, dict[int, float]], **about) -> pd.DataFrame:
    rows = [{"variant": v, "seed": s, "value": x, "run": f"{v}-{s}"} for v, seeds in values.items() for s, x in seeds.items()]
    known = {"benchmark": "SSv2", "probe": "linear", "metric": "top1", "n": 2000, "source": "run", "regime": "r", "edition": "sound"}
    return results.tidy(pd.DataFrame(rows).assign(**known | about))


def test_panels_side_by_side_have_one_axis_of_names_that_the_menus_order(paper):
    figure = plots.tradeoffs(paper, regime="mixed", sources=["paper", "released"], benchmarks=BENCHMARKS)
    assert {trace.xaxis for trace in figure.data} == {"x", "x2"} and {trace.yaxis for trace in figure.data} == {"y"}
    assert not any(axis.matches for axis in figure.select_yaxes()) and "yaxis2" not in figure.layout
    assert [figure.layout[axis].anchor for axis in ("xaxis", "xaxis2")] == ["y", "y"]
    changed = {key for menu in figure.layout.updatemenus[:-1] for button in menu.buttons for key in button.args[0]}
    assert {key for key in changed if "axis" in key} == {"yaxis.categoryarray", "yaxis.range"}


def test_menus_filter_and_sort_panels_that_stand_one_above_the_other(paper):
    own = own_rows({"baseline": {0: 40, 1: 42}, "ld": {0: 41, 1: 44}, "mine": {0: 39, 1: 43}}, regime="mixed", probe="attentive")
    figure = plots.tradeoffs(pd.concat([paper, own]), regime="mixed", benchmarks=BENCHMARKS)
    assert {trace.yaxis for trace in figure.data} == {"y", "y2"}
    filters, first, *_ = figure.layout.updatemenus
    everything = {button.label: button.args[0] for button in filters.buttons}
    axes = {"yaxis": figure.layout.yaxis, "yaxis2": figure.layout.yaxis2}
    for name, axis in axes.items():
        whole = everything["all objectives"]
        assert list(whole[f"{name}.categoryarray"]) == list(axis.categoryarray) and list(whole[f"{name}.range"]) == list(axis.range)
        assert list(whole[f"{name}.domain"]) == list(axis.domain)
    assert [figure.layout.annotations[k].y for k in (0, 1)] == [axis.domain[1] for axis in axes.values()]
    margin = figure.layout.margin.t
    for label, change in everything.items():
        inside = change["height"] - margin - change["margin.b"]
        for k, name in enumerate(axes):
            low, high = change[f"{name}.domain"]
            rows = change[f"{name}.range"][0] + 0.5
            full = (axes[name].domain[1] - axes[name].domain[0]) * (figure.layout.height - margin - figure.layout.margin.b)
            assert (high - low) * inside / rows == pytest.approx(full / len(axes[name].categoryarray)), label
            assert change[f"annotations[{k}].y"] == high and rows == len(change[f"{name}.categoryarray"])
    assert everything["with Dynamics"]["yaxis.categoryarray"] == ["LD-JEPA"]
    assert everything["with Contrast"]["yaxis.categoryarray"] == [" "], "given no names at all, plotly shows those of others"
    assert "LD-JEPA" in everything["with Dynamics"]["yaxis2.categoryarray"]
    by = {button.label: button.args[0] for button in first.buttons}["sorted by SSv2"]
    assert set(by) == {f"{name}.{key}" for name in axes for key in ("categoryarray", "range")}


def test_what_was_not_measured_on_a_benchmark_comes_last_when_sorted_by_it():
    one, other = {"baseline": {0: 40}, "ld": {0: 41}, "hw": {0: 39}}, {"baseline": {0: 40}, "ld": {0: 41}, "fwm": {0: 60}, "hw": {0: 40}}
    rows = pd.concat([own_rows(one), own_rows(other, benchmark="D-48")])
    assert list(plots.tradeoffs(rows, sort="SSv2").layout.yaxis.categoryarray) == ["ld", "hw", "fwm"]
    assert list(plots.tradeoffs(rows).layout.yaxis.categoryarray) == ["fwm", "ld", "hw"]


def test_the_accuracy_of_the_baseline_is_told_whole():
    rows = own_rows({"baseline": {0: 40, 1: 50, 2: 60}, "ld": {0: 41, 1: 51}, "hw": {0: 42, 1: 52, 2: 62}})
    assert "SSv2 45.00 to 50.00 % as seeds pair up" in texts(plots.tradeoffs(rows))


def test_rows_without_a_regime_or_an_edition_have_a_panel_of_their_own():
    named = {"baseline": {0: 40, 1: 42, 2: 41}, "ld": {0: 41, 1: 44, 2: 43}}
    other = {"baseline": {0: 30, 1: 32, 2: 31}, "mine": {0: 31, 1: 35, 2: 33}}
    for lacking in ({"edition": None}, {"regime": None}, {"edition": None, "regime": None}):
        drawn = plots.tradeoffs(pd.concat([own_rows(named), own_rows(other, **lacking)]), plain=True)
        assert {name for trace in drawn["data"] for name in trace["y"]} == {"ld", "mine"}
        written = json.dumps(drawn["layout"])
        assert "Not drawn" not in written
        assert ("no edition named" in written) == ("edition" in lacking) and ("of unnamed pretraining" in written) == ("regime" in lacking)
    bare = texts(plots.tradeoffs(pd.concat([own_rows(named), own_rows({"mine": {0: 31}}, regime=None)])))
    assert "Not drawn: runs of unnamed pretraining, for want of a run of baseline there." in bare
    with pytest.raises(ValueError, match=r"one edition, there are \['sound', 'unnamed'\]"):
        plots.ablation(pd.concat([own_rows(named), own_rows(other, edition=None)]), regime="r")


def test_names_may_have_dollar_signs_and_formulas_stay_formulas():
    values = {"baseline": {0: 40.0, 1: 41.0}, "$x_$": {0: 42.0, 1: 43.0}, "$a$": {0: 42.0, 1: 41.0}}
    rows = pd.concat([own_rows(values, benchmark=name) for name in ("$y_$", "motion")])
    several = (plots.tradeoffs(rows, paper=True), plots.scatter(rows, paper=True), plots.audit(rows, regime="r", source="run", paper=True))
    for figure in several:
        figure.canvas.draw()
    labels = several[0].axes[0].get_yticklabels()
    assert any(label.get_text() == "$a$" and not label.get_parse_math() for label in labels)
    from matplotlib.text import Text

    formulas = [text for text in plots.diagram(structure(variants.recipe("ld"))).findobj(Text) if "$" in text.get_text()]
    assert formulas and all(text.get_parse_math() for text in formulas)


def test_an_interaction_of_two_factors_is_refused():
    rows = own_rows({"baseline": {0: 40, 1: 41}, "fwm": {0: 42, 1: 43}, "ld": {0: 41, 1: 44}})
    with pytest.raises(ValueError, match=r"factors \('fwm', 'ld'\): an interaction plot takes three"):
        plots.interaction(rows, regime="r", factors=("fwm", "ld"))


def aligned(progress_values: dict[float, float], seeds: int, **about) -> pd.DataFrame:
    known = {"term": "auxiliaries", "metric": "cosine", "variant": "ld", "group": "all", "smoke": False, "micro_batches": 8, "clips": 32}
    rows = [
        known | {"seed": seed, "progress": at, "value": value, "lo": value - 0.01, "hi": value + 0.01}
        for seed in range(seeds) for at, value in progress_values.items()
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**about)


@pytest.mark.parametrize(("seeds", "bold"), [(1, False), (3, True)])
def test_only_several_seeds_make_a_cell_of_depth_bold(seeds, bold):
    rows = aligned({0.0: 0.5, 1.0: -0.1}, seeds)
    rows["value"] += 0.01 * rows["seed"]
    figure = plots.by_depth(rows, ["cosine"], paper=True)
    (cell,) = figure.axes[0].texts
    assert cell.get_text().startswith("+") and (cell.get_fontweight() == "bold") == bold
    assert ("Bold, where there are several seeds" in texts(figure)) == bold


def test_energy_without_an_auxiliary_says_so():
    for draw in (plots.energy, plots.through_training):
        with pytest.raises(ValueError, match="no row of the term 'auxiliaries': a plain objective has no auxiliary to follow"):
            draw(aligned({0.0: 0.5}, 1, term="jepa", metric="help"))


@pytest.mark.parametrize("encoder", ["student", "teacher"])
def test_marks_of_retention_stand_at_the_encoder_that_was_compared(encoder):
    rows = [
        {"run": f"{v}-{s}", "variant": v, "encoder": e, "seed": s, "factor": "hue", "kind": "appearance", "value": x + s / 10}
        for v, x in (("baseline", 20.0), ("ld", 60.0)) for s in range(3) for e in ("teacher", encoder)
    ]  # fmt: skip
    rows = pd.DataFrame(rows).drop_duplicates().assign(lo=lambda t: t["value"] - 1, hi=lambda t: t["value"] + 1, n=500, smoke=False)
    figure = plots.retention(rows, paper=True)
    marked = [text.get_text() for text in figure.axes[0].texts if "▲" in text.get_text()]
    assert len(marked) == 1 and f"over the matrix ({encoder}s)." in texts(figure)


@pytest.mark.parametrize("column", ["single", "double"])
def test_long_names_of_benchmarks_stay_in_their_figure(column):
    names = [f"synthetic:plain{world}/{label}" for world in ("", "-order") for label in ("motion", "texture", "order")]
    values = {"baseline": {0: 40.0, 1: 41.0}, "hw": {0: 42.0, 1: 43.0}, "fwm": {0: 42.0, 1: 41.0}}
    rows = pd.concat([own_rows(values, benchmark=name) for name in names])
    assert_legible(plots.tradeoffs(rows, paper=True, column=column))
    how = {"regime": "r", "source": "run", "column": column}
    for figure in (draw(rows, paper=paper_print, **how) for draw in (plots.audit, plots.ablation) for paper_print in (True, False)):
        figure.canvas.draw()  # constrained layout settles
        titles = [box.get_window_extent() for ax in figure.axes if (box := ax.title).get_text()]
        assert not any(a.overlaps(b) for a, b in combinations(titles, 2))


def test_seeds_that_do_not_pair_up_are_not_called_pairs():
    unpaired = {"baseline": {0: 40, 1: 42, 2: 44}, "ld": {5: 41, 6: 44, 7: 43}}
    several = pd.concat([own_rows(unpaired, benchmark=name) for name in ("SSv2", "motion")])
    for figure in (plots.tradeoffs(several), plots.scatter(several), plots.scatter(several, paper=True)):
        assert "pairs" not in texts(figure)
    assert not any("pairs" in note for note in plots.result_table(several).notes)


def test_a_table_of_several_editions_is_refused():
    rows = pd.concat([own_rows({"baseline": {0: 40}, "ld": {0: 41}}, edition=edition) for edition in ("sound", "released")])
    with pytest.raises(ValueError, match=r"several editions \(released, sound\)"):
        plots.result_table(rows)


def test_the_interval_of_several_probe_seeds_holds_their_mean():
    rows = pd.concat([own_rows({"baseline": {0: x}}, n=1000, probe_seed=k, flag="") for k, x in enumerate((40.0, 60.0))])
    found = means(rows).iloc[0]
    assert found["value"] == 50 and found["lo"] < 50 < found["hi"]


@pytest.mark.parametrize("column", ["single", "double"])
@pytest.mark.parametrize("regime", ["mixed", "ucf101"])
def test_print_figures_are_legible_at_column_width(paper, column, regime):
    figure = plots.tradeoffs(paper, regime=regime, benchmarks=BENCHMARKS, paper=True, column=column)
    assert figure.get_size_inches()[0] == style.WIDTH[column] and figure.get_size_inches()[1] < 9
    assert_legible(figure)


@pytest.mark.parametrize("paper_print", [True, False])
def test_paper_and_own_runs_stand_together_and_are_labelled(paper, tmp_path, paper_print):
    own = make_runs(tmp_path, ["baseline", "fwm", "ld", "hw", "fwm-ld", "fwm-hw-ld", "hw-ld", "delta"], seeds=3)
    figure = plots.tradeoffs(pd.concat([paper, own]), regime="mixed", benchmarks=BENCHMARKS, paper=paper_print)
    written = texts(figure)
    assert "Paper, printed, one seed" in written and "Our runs, 3 seeds" in written and "95 % interval over 3 seed pairs" in written
    if paper_print:
        assert len(figure.axes) == 2 and figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
        assert_legible(figure)


@pytest.mark.parametrize("paper_print", [True, False])
def test_a_demonstration_is_never_shown_as_evidence(paper, tmp_path, paper_print):
    own = make_runs(tmp_path, ["baseline", "fwm-hw-ld", "mine"], seeds=1, benchmarks=["motion", "shape"], regime="synthetic", steps=50)
    figure = plots.tradeoffs(pd.concat([paper, own]), benchmarks=[*BENCHMARKS, "motion", "shape"], paper=paper_print)
    assert "demonstration size: not evidence" in texts(figure)
    if paper_print:
        assert_legible(figure)
    else:
        assert all(np.all(np.array(trace.marker.opacity) < 0.5) for trace in figure.data if trace.type == "bar" and trace.name == "motion")


def test_runs_without_a_baseline_are_named_not_dropped_in_silence(paper, tmp_path):
    own = make_runs(tmp_path, ["mine"], seeds=1, benchmarks=["motion"], regime="synthetic")
    both = pd.concat([paper[paper["regime"].eq("mixed")], own])
    for figure in (plots.tradeoffs(both, paper=True), plots.tradeoffs(both)):
        assert "Not drawn: runs pretrained on synthetic" in texts(figure)


def test_what_is_not_shown_is_said(paper, tmp_path):
    """Own runs under another probe than the paper's, and a benchmark that the chosen baseline lacks, do not vanish in silence."""
    own = make_runs(tmp_path, ["baseline", "ld"], seeds=2, benchmarks=["D-48"]).assign(probe="knn")
    both = pd.concat([paper[paper["regime"].eq("mixed")], own])
    says = "measured with another probe: our runs on D-48 (knn)"
    assert says in texts(plots.tradeoffs(both, regime="mixed", paper=True))
    assert any(says in note for note in plots.result_table(both, regime="mixed").notes)
    released = texts(plots.tradeoffs(paper, regime="mixed", sources=["released"], baseline_seed=239, paper=True))
    assert "Not drawn: D-48 of released results, where baseline with seed 239 was not measured" in released


def test_print_figures_say_how_many_clips_were_tested(paper):
    own = paper[paper["regime"].eq("mixed") | paper["source"].eq("constant")]
    pair = lambda df, **how: plots.pareto(df, "IN-100", "SSv2", source="paper", **how)
    for draw in (plots.tradeoffs, plots.scatter, plots.ablation, plots.interaction, plots.effects, pair):
        assert "IN-100 5,000" in texts(draw(own, regime="mixed", paper=True))
    assert "†" in [t.get_text() for t in plots.interaction(own, paper=True).axes[0].texts]


def test_constant_predictors_and_untrained_encoders_are_marked(paper):
    for figure in (
        plots.tradeoffs(paper, regime="ucf101", benchmarks=BENCHMARKS),
        plots.tradeoffs(paper, regime="ucf101", benchmarks=BENCHMARKS, paper=True),
    ):
        written = texts(figure)
        assert "not above a predictor that always names" in written and "Kin.-L1 (λ=1.0) ‡" in written and "an untrained encoder" in written
    unmarked = texts(plots.tradeoffs(paper, regime="mixed", benchmarks=["IN-100"], paper=True))
    assert "†" not in unmarked and "‡" not in unmarked


def test_same_seed_baseline_changes_the_released_figure(paper):
    figure = plots.tradeoffs(paper, regime="mixed", benchmarks=["IN-100", "SSv2"], sources=["released"], baseline_seed=239)
    bars = {trace.name: dict(zip(trace.y, np.round(trace.x, 2), strict=True)) for trace in figure.data if trace.type == "bar"}
    assert bars["IN-100"]["FWM-HW-LD"] == 9.52 and bars["SSv2"]["FWM-HW-LD"] == 4.98 and bars["SSv2"]["LD-JEPA"] == 6.79


def test_a_question_without_rows_is_answered_by_what_there_is(paper):
    with pytest.raises(ValueError, match=r"kinetics.*mixed"):
        plots.tradeoffs(paper, regime="kinetics")


# --- Figure 3 ---------------------------------------------------------------------------------------------------------

CELLS = ["baseline", "fwm", "ld", "hw", "fwm-ld", "fwm-hw", "hw-ld", "fwm-hw-ld"]


def heights(ax) -> list[float]:
    return [round(patch.get_height(), 2) for patch in ax.patches if patch.get_facecolor()[3] > 0]


def test_the_ablation_shows_the_printed_cells_and_the_one_that_was_not_run(paper):
    figure = plots.ablation(paper, paper=True)
    printed = pd.read_csv(PAPER / "printed" / "table5.csv")
    hw = {"D-48": 8.98, "IN-100": 18.46, "SSv2": 6.30}  # the row of Table 4 that Table 5 leaves out
    for ax, column in zip(figure.axes, ("d48", "in100", "ssv2"), strict=True):
        assert sorted(heights(ax)) == sorted([0.0, hw[ax.get_title()], *printed[column]])
        assert "not run" in [text.get_text() for text in ax.texts]
    assert "HW alone has weight 0.3" in texts(figure)


@pytest.mark.parametrize("column", ["single", "double"])
@pytest.mark.parametrize("draw", [plots.ablation, plots.interaction, plots.effects])
def test_factorial_figures_are_legible(paper, draw, column):
    figure = draw(paper, paper=True, column=column)
    assert_legible(figure)
    assert figure.get_size_inches()[0] == style.WIDTH[column]


def test_a_complete_factorial_has_its_eighth_cell_and_seed_intervals(tmp_path):
    own = make_runs(tmp_path, CELLS, seeds=3)
    figure = plots.ablation(own, paper=True)
    assert all(len(heights(ax)) == 8 and not ax.texts for ax in figure.axes)
    assert "Our runs, 3 seeds; 95 % interval over 3 seeds" in texts(figure)
    assert "FWM × LD × HW" in texts(plots.effects(own, paper=True))
    with pytest.raises(ValueError, match="no variant of the factorial"):
        plots.ablation(own.assign(variant="other-" + own["variant"]), paper=True)


# --- trade-off views --------------------------------------------------------------------------------------------------


def test_the_scatter_says_how_the_printed_deltas_correlate(paper):
    figure = plots.scatter(paper, regime="mixed", paper=True)
    assert "Spearman +0.81" in texts(figure) and "Spearman −0.14" in texts(figure) and "Spearman −0.21" in texts(figure)
    interactive = plots.scatter(paper, regime="mixed")
    assert [len(trace.x) for trace in interactive.data] == [14, 14, 14]
    points = dict(zip(interactive.data[2].customdata, zip(interactive.data[2].x, interactive.data[2].y, strict=True), strict=True))
    (ld,) = [xy for text, xy in points.items() if "LD-JEPA" in text and "HW" not in text and "FWM" not in text]
    assert ld == pytest.approx((-2.06, 5.02))
    with pytest.raises(ValueError, match="choose one regime"):
        plots.scatter(paper)


@pytest.mark.parametrize("column", ["single", "double"])
def test_names_in_a_crowded_scatter_do_not_overlap(paper, column):
    assert_legible(plots.scatter(paper, regime="mixed", paper=True, column=column))
    assert_legible(plots.pareto(paper, "IN-100", "SSv2", regime="mixed", paper=True, column=column))


def test_a_crowded_scatter_names_what_the_table_beside_it_tells_from_the_baseline():
    study = collected.load(PAPER.with_name("reference"))
    rows, found = collected.comparable(study), collected.differences(study)
    rows = rows[rows["variant"].ne(collected.UNTRAINED)]
    names = lambda table: {
        text for text in texts(plots.scatter(rows, benchmarks=["motion", "texture"], tested=table, paper=True)).split("\n")
    }
    told = found.assign(significant=found["variant"].eq("amg") & found["benchmark"].eq("texture"))
    assert names(told) - names(found.assign(significant=False)) == {"amg"}
    assert not names(found.assign(significant=False)) & {"kin-l1", "amg"} and "kin-l1" in names(found)


def test_the_pareto_front_of_the_printed_accuracies(paper):
    figure = plots.pareto(paper, "IN-100", "SSv2", regime="mixed", paper=True)
    (front,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 1]
    assert list(front.get_xdata()) == [22.80, 30.78] and list(front.get_ydata()) == [13.41, 11.60]


def test_ranks_and_correlations_are_legible_and_state_their_numbers(paper, tmp_path):
    own = make_runs(tmp_path, CELLS, seeds=4)
    figure = plots.ranks(own, paper=True)
    assert_legible(figure)
    assert texts(figure).count("Kendall’s W") == 3
    both = plots.correlations(pd.concat([paper, own]), regime="mixed", paper=True)
    assert_legible(both)
    assert "our runs, 7 variants" in texts(both) and "paper, printed, 14 variants" in texts(both)
    with pytest.raises(ValueError, match="no rows"):
        plots.ranks(paper, paper=True)


# --- audit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["single", "double"])
def test_the_audit_draws_both_baselines_the_untrained_encoder_and_the_constant(paper, column):
    figure = plots.audit(paper, paper=True, column=column)
    assert_legible(figure)
    written = texts(figure)
    for words in ("baseline, seed 239", "baseline, seed 42", "random-init encoder", "3.60 points (IN-100), 1.77 points (SSv2)", "13.66 %"):
        assert words in written
    in100 = next(ax for ax in figure.axes if ax.get_title() == "IN-100")
    lines = {round(float(line.get_xdata()[0]), 2) for line in in100.lines if len(set(line.get_xdata())) == 1}
    assert {21.26, 24.86, 1.0} <= lines and any(abs(line - 13.655) < 0.01 for line in lines)
    with pytest.raises(ValueError, match="no 'run' rows"):
        plots.audit(paper, source="run")


@pytest.mark.parametrize(("seeds", "said"), [(4, "baseline, seed 3"), (5, "baseline, 5 seeds")])
def test_the_audit_draws_own_runs_of_many_seeds(seeds, said):
    rows = own_rows({"baseline": {k: 40.0 + k for k in range(seeds)}, "ld": {0: 60.0}})
    assert said in texts(plots.audit(rows, regime="r", source="run", paper=True))


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_result_table_holds_the_printed_cells_in_order(paper):
    table = plots.result_table(paper, "Table 4", regime="mixed", benchmarks=BENCHMARKS, sources=["paper"])
    printed = pd.read_csv(PAPER / "printed" / "table4.csv").set_index("method")
    assert list(table.cells.index) == list(printed.index)
    cell = table.cells.loc["FWM-HW-LD"].tolist()
    assert cell == ["8.38† (−0.30)", "30.78 (+5.92)", "11.60 (+3.21)"]
    assert table.bold.sum().tolist() == [0, 1, 1]  # nobody is best on D-48: no row is above the constant predictor
    assert "‡" in plots.result_table(paper, regime="ucf101", benchmarks=BENCHMARKS, sources=["paper"]).to_html()


def test_own_runs_stand_beside_with_intervals_and_seeds(paper, tmp_path):
    own = make_runs(tmp_path / "runs", ["baseline", "ld", "mine"], seeds=3)
    small = make_runs(tmp_path / "small", ["fwm"], seeds=1, n=20)
    table = plots.result_table(pd.concat([paper, own, small]), regime="mixed", benchmarks=BENCHMARKS)
    assert table.cells.columns.get_level_values(0).unique().tolist() == ["Paper, printed, one seed", "Our runs, 3 seeds"]
    assert re.fullmatch(r"\d+\.\d\d \([+−]\d+\.\d\d \[[+−]\d+\.\d, [+−]\d+\.\d\]\)", table.cells.loc["mine"].iloc[-1])
    assert table.cells.loc["FWM-JEPA"].iloc[-1] == "" and "3 measurements of runs too small" in " ".join(table.notes)
    assert "our runs D-48 2,000" in table.notes[-1]


def test_tables_are_saved_in_three_forms(paper, tmp_path):
    files = plots.result_table(paper, "100 % of & λ_kin", regime="mixed", sources=["paper"]).save(tmp_path / "table4")
    page, csv, tex = (file.read_text() for file in files)
    assert pd.read_csv(files[1]).shape == (15, 4) and "Baseline" in csv
    assert page.count("<tr>") == 17 and "<caption>100 % of &amp; λ<sub>kin</sub>" in page
    assert (
        r"\toprule" in tex and r"\caption{100 \% of \& $\lambda_{\mathrm{kin}}$}" in tex and tex.count(r"\begin") == tex.count(r"\end") == 2
    )
    assert all(line.count("&") == 3 for line in tex.splitlines() if "JEPA" in line)


def test_tables_are_written_as_utf8_whatever_the_machine_prefers(tmp_path):
    code = (
        "import pandas as pd; from vjepa_lab.plots import text_table; "
        f"text_table(pd.DataFrame([['a', 'lambda -> tau']], columns=['x', 'y'])).save({str(tmp_path / 't')!r})"
    )
    latin = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code], check=True, env=latin)
    assert "λ → τ" in (tmp_path / "t.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [1, 2, 7, 8])
def test_tables_of_words_keep_every_cell(number):
    frame = pd.read_csv(PAPER / "printed" / f"table{number}.csv")
    table = plots.text_table(frame)
    assert table.cells.shape == (len(frame), frame.shape[1] - 1)
    assert "nan" not in table.to_html() and not re.search(r"(?<!\\)[%&#_](?![^$]*\$)", re.sub(r" & |\$[^$]*\$", "", table.to_latex()))


# --- Figure 1 ---------------------------------------------------------------------------------------------------------

HEADLINE = [
    {"label": "JEPA", "reads": ["pred", "target"]},
    {"label": "JEPA", "hard": True, "reads": ["pred", "target"]},
    {"label": "Static", "weight": "0.05", "reads": ["z.app"]},
    {"label": "Orthogonal", "weight": "0.01", "reads": ["z.app", "z.dyn"]},
    {"label": "Dynamics", "hard": True, "reads": ["z.dyn", "h"], "head": "MLP 256"},
]


def arrows(figure) -> int:
    return sum(text.arrow_patch is not None for text in figure.axes[0].texts if hasattr(text, "arrow_patch"))


def test_the_diagram_draws_only_what_the_terms_read():
    baseline = plots.diagram({"title": "baseline", "terms": HEADLINE[:1]}, paper=True)
    headline = plots.diagram({"title": "Eq. 12", "terms": HEADLINE}, paper=True)
    assert "full clip" not in texts(baseline) and "full clip" in texts(headline)
    assert "Hard Dynamics" in texts(headline) and "0.05 × Static" in texts(headline) and "head: MLP 256" in texts(headline)
    assert arrows(baseline) == 6 + 2 and arrows(headline) == 6 + 4 + sum(len(term["reads"]) for term in HEADLINE)
    for figure in (baseline, headline):
        assert_legible(figure)


@pytest.mark.parametrize(("teacher", "reads"), list(product(["ema", "online", "frozen"], [["visible", "h"], ["z", "pixels"]])))
def test_every_structure_can_be_drawn(teacher, reads):
    assert_legible(plots.diagram({"teacher": teacher, "terms": [*HEADLINE, {"label": "Other", "reads": reads}]}, paper=True))


def test_a_structure_that_cannot_be_drawn_is_named():
    with pytest.raises(ValueError, match=r"reads q; known: pred"):
        plots.diagram({"terms": [{"label": "x", "reads": ["q"]}]})
    with pytest.raises(ValueError, match="teacher 'none'"):
        plots.diagram({"teacher": "none", "terms": HEADLINE})


def test_a_recipe_becomes_the_structure_that_its_terms_have():
    """What a term reads is tried out, so a term of one's own and every modifier need no declaration."""
    read = lambda recipe: [(term["label"], term["reads"]) for term in structure(recipe)["terms"]]
    assert read("fwm-hw-ld") == [
        ("JEPA", ["pred", "h"]), ("JEPA", ["pred", "h"]), ("Kinematic[app]", ["z.app"]), ("Orthogonal", ["z.app", "z.dyn"]),
        ("Dynamics[dyn]", ["z.dyn", "h"]),
    ]  # fmt: skip
    assert read("ld")[1] == ("Dynamics", ["z", "h"]) and read("ac")[1] == ("Pixels", ["z", "pixels"])
    assert read(JEPA() + VelGate(gate="pixels", on="dyn"))[1] == ("VelGate[dyn]", ["z.dyn", "pixels"])

    class Backwards(Term):
        def error(self, view, head):
            return (view.z.flip(1) - view.h).abs().mean(-1)

    assert read(JEPA() + Hard(Backwards()))[1] == ("Backwards", ["z", "h"])


def test_every_recipe_of_every_edition_is_drawn_from_itself():
    for edition in variants.EDITIONS:
        for name in ("fwm-hw-ld", "kin-anneal", "velgate", "combo"):
            made = structure(variants.recipe(name, edition))
            assert len(made["terms"]) == len(list(variants.recipe(name, edition).objective))
            assert_legible(plots.diagram(made, paper=True))
    released = structure(variants.recipe("fwm-hw-ld", "released"))
    assert [term["label"] for term in released["terms"] if term["idle"]] == ["Dynamics[dyn]"]
    assert "no gradient, head: MLP 256" in texts(plots.diagram(released, paper=True))
    assert "the student, with gradient" in texts(plots.diagram(structure(variants.recipe("kin-l1", "released")), paper=True))


# --- style ------------------------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """CIE L* of a hex colour."""
    rgb = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return float(116 * np.cbrt(y) - 16)


def test_palette_keeps_neighbours_apart_in_grey():
    steps = np.diff([luminance(colour) for colour in style.PALETTE])
    assert (np.abs(steps) >= 14).all()


def test_saved_figures_embed_truetype_fonts_and_repeat_byte_for_byte(paper, tmp_path):
    files = []
    for name in ("a", "b"):
        figure = plots.tradeoffs(paper, regime="mixed", benchmarks=BENCHMARKS, paper=True, column="single")
        files.append(plots.save(figure, tmp_path / name))
    (pdf, png), (pdf_again, png_again) = files
    assert pdf.read_bytes() == pdf_again.read_bytes() and png.read_bytes() == png_again.read_bytes()
    fonts = set(re.findall(rb"/BaseFont /(\S+)", pdf.read_bytes()))
    assert fonts and all(b"STIXGeneral" in font for font in fonts)
    assert b"/FontFile2" in pdf.read_bytes() and b"/Type3" not in pdf.read_bytes()


def test_saved_html_needs_no_network(paper, tmp_path):
    (file,) = plots.save(plots.tradeoffs(paper, regime="mixed", benchmarks=BENCHMARKS), tmp_path / "figure")
    page = file.read_text()
    assert not re.search(r"<script[^>]+src=", page) and "FWM-HW-LD" in page


def test_a_span_is_one_number_where_its_ends_print_the_same():
    assert (style.span(3, 5), style.span(3, 3), style.span(12.04, 12.01, ".1f"), style.span(900, 1000, ",.0f")) == (
        "3 to 5", "3", "12.0", "900 to 1,000",
    )  # fmt: skip
    assert style.smoke_note(pd.DataFrame({"smoke": [False, True]})) and not style.smoke_note(pd.DataFrame({"smoke": [False]}))


def test_figures_need_no_torch():
    check = "import sys, vjepa_lab.plots; assert not {'torch', 'torchvision', 'matplotlib', 'plotly'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=120)


# --- clips ------------------------------------------------------------------------------------------------------------


def test_each_token_lies_over_its_own_pixels_whatever_axes_follow():
    tokens = np.arange(2 * 3 * 4 * 3).reshape(2, 3, 4, 3)
    expected = tokens.repeat(2, 0).repeat(8, 1).repeat(8, 2)
    assert np.array_equal(clips.enlarge(tokens, (4, 24, 32)), expected)
    assert np.array_equal(clips.enlarge(tokens[..., 0], (4, 24, 32)), expected[..., 0])
    assert clips.enlarge(tokens, (5, 25, 33)).shape == (5, 25, 33, 3)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_error_of_a_change_stands_at_the_step_that_it_leads_to(order):
    frames, steps = np.full((16, 8, 8, 3), 200, np.uint8), 8
    error = np.zeros((steps - order, 2, 2))
    error[-1] = 1  # at the clip's last step
    scale, shown = clips.mapped(frames, error, steps)
    none, dark, bright = shown[: 2 * order], shown[2 * order : 14], shown[14:]
    assert shown.shape == frames.shape and scale == "0 to 1" and bright.min() > dark.max()
    assert (none == 0.6 * 200 + 90).all(), "no error before the first change"


def test_a_lone_map_of_change_is_laid_over_the_grids_steps():
    clip = torch.randint(0, 256, (3, 16, 8, 8), dtype=torch.uint8)
    error = np.random.default_rng(0).random((7, 2, 2))
    figure = plots.error_maps(clip, {"Delta": error}, every=1)
    _, shown = clips.mapped(clips.frames_of(clip), error, 8)
    drawn = [np.asarray(ax.images[0].get_array()) for ax in figure.axes[16:]]
    assert len(drawn) == 16 and all(np.array_equal(a, b) for a, b in zip(drawn, shown, strict=True))
    assert len([ax for ax in plots.error_maps(clip, {"x": error[:3]}, steps=4, every=1).axes if ax.images]) == 32
    with pytest.raises(ValueError, match=r"an error map of 7 time steps over steps=4 of tokens; give the token grid's"):
        plots.error_maps(clip, {"Delta": error}, steps=4)


def test_the_card_of_a_data_set_counts_its_classes():
    source = data.open("synthetic", frames=4, size=16, n=50)
    text = plots.card(source, examples=2)._repr_html_()
    assert text.count("<img") == 2 and "motion: 8 classes" in text and "class: 8" not in text and "50 clips" in text
    most = torch.bincount(source.labels["hue"]).max().item()
    assert f" {most}</td>" in text and "<td>6 more</td>" in plots.card(source, examples=1, most=2).text
    with pytest.raises(ValueError, match="examples=0: expected 1 or more"):
        plots.card(source, examples=0)


def test_the_card_counts_labels_of_several_classes_and_unknown_ones():
    bars = import_module("vjepa_lab.plots.card")._bars  # the function of the same name hides the module
    for values, counts in ([[1, 0], [1, 1], [-1, -1]], ["2", "1"]), ([0, 0, -1, 0], ["3", "0"]):
        assert re.findall(r"(\d+)</td>", bars("label", np.array(values), ["a", "b"], 20)) == counts
