"""The paper, regenerated: every printed number is in its table, own runs stand beside, and what is not there is said."""

import json
import re

import pandas as pd
import pytest
from test_plots import CELLS, assert_legible, make_runs, texts

from vjepa_lab import plots
from vjepa_lab.evidence import claims, results, verdicts
from vjepa_lab.plots import paper


@pytest.fixture(scope="module")
def none():
    return paper.own(None)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_runs(folder, CELLS, seeds=3)
    for run in folder.iterdir():
        (run / "report.json").write_text(json.dumps({"steps": 30_000, "wall_s": 1800.0}))
        (run / "recipe.txt").write_text("Recipe(JEPA() + 0.2*Dynamics(hidden=64))\n")
    return paper.own(folder)


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(1, 9))
def test_every_table_holds_what_the_paper_prints(none, number):
    made = paper.table(number, none)
    shown = made.to_csv()
    for cell in pd.read_csv(paper.FOLDER / "printed" / f"table{number}.csv", dtype=str, keep_default_na=False).to_numpy().ravel():
        if re.fullmatch(r"\d+\.\d+", cell) and number in (3, 4, 5, 6):
            assert f"{float(cell):.2f}" in shown, cell
    assert made.caption.startswith(f"Table {number}.") and paper.NONE in made.notes


def test_the_ablation_has_the_cell_that_the_paper_lacks(none, own):
    bare, full = paper.table(5, none), paper.table(5, own)
    assert len(bare.cells) == len(full.cells) == 8
    assert set(bare.cells.loc["FWM-HW"]) == {"not run"}
    assert full.cells.loc["FWM-HW"].tolist()[:3] == ["not run"] * 3 and all("[" in cell for cell in full.cells.loc["FWM-HW"].iloc[3:])


def test_own_runs_fill_the_tables_of_words(own):
    assert paper.table(7, own).cells[("", "our runs")].loc[["λ_d (LD)", "LD hidden dim"]].tolist() == ["0.2", "64"]
    compute = paper.table(8, own).cells[("", "our runs")]
    assert compute["Number of training runs"] == "24" and compute["Total pretraining GPU-h"] == "0 GPU-h, 12 CPU-h"
    assert "our runs: 24, n = 2,000" in paper.table(2, own).to_csv()
    assert not any(paper.NONE in paper.table(number, own).notes for number in (2, 4, 5, 7, 8))


def test_hyperparameters_are_read_off_the_recipes(none):
    table = paper.table(7, none).cells[("", "this package, as printed")]
    assert (table["λ_s (static)"], table["λ_o (orth.)"], table["λ_HW"], table["LD hidden dim"]) == ("0.05", "0.01", "0.3 / 1", "256")


def test_another_edition_or_regime_is_no_evidence_for_a_table(tmp_path):
    make_runs(tmp_path, ["baseline", "ld"], seeds=2, regime="elsewhere")
    assert not paper.own(tmp_path).has(4) and paper.own(tmp_path, mixed="elsewhere").has(4)
    for run in tmp_path.iterdir():
        rows = pd.read_csv(run / "rows.csv").assign(edition="released")
        rows.to_csv(run / "rows.csv", index=False)
    assert not paper.own(tmp_path, mixed="elsewhere").has(4) and paper.own(tmp_path, mixed="elsewhere", edition="released").has(4)


def test_runs_of_several_sizes_are_chosen_by_name(tmp_path):
    make_runs(tmp_path, ["baseline", "ld"], seeds=2)
    for run in tmp_path.iterdir():
        about = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(
            json.dumps(about | {"preset": {"name": "base" if run.name[-1] == "0" else "micro", "steps": 5000}})
        )
    with pytest.raises(ValueError, match="'mixed, base', 'mixed, micro'"):
        paper.own(tmp_path)
    assert paper.own(tmp_path, mixed="mixed, base").has(4)


def test_runs_of_smoke_size_are_no_evidence(tmp_path):
    make_runs(tmp_path, ["baseline", "ld"], seeds=2, steps=4)
    own = paper.own(tmp_path)
    assert not own.has(4) and "12 of them too small" in repr(own)
    assert "Our runs: 4 runs on 'mixed', but" in (note := paper.table(4, own).notes[-1]) and "large enough to be evidence" in note
    assert set(paper.claims_table(own).cells[("", "our runs")]) == {"no evidence"}


def test_own_rows_are_beside_the_paper_s_and_constants_are_no_rows(tmp_path):
    make_runs(tmp_path, ["baseline", "ld", "mine"], seeds=2)
    own = paper.own(tmp_path)
    assert "chance" in set(own.rows["variant"]) and "6 runs of the edition 'sound', 18 measurements" in repr(own)
    cells = paper.table(4, own).cells
    ours = [name for name, row in cells.iterrows() if any("+" in cell or "−" in cell for cell in row.iloc[3:])]
    assert ours == ["LD-JEPA", "mine"] and cells.index[-1] == "mine"
    assert "ucf101" in paper.table(3, own).notes[-1]
    there = paper.own(tmp_path, ucf101="mixed", mixed="elsewhere")
    assert "mine" in paper.table(3, there).cells.index and "mine" not in paper.table(4, there).cells.index


def test_an_unknown_edition_is_refused(tmp_path):
    for folder in (None, tmp_path):
        with pytest.raises(ValueError, match=r"unknown edition 'sund': did you mean sound\?"):
            paper.own(folder, edition="sund")


def test_what_no_own_run_has_is_said_by_name(tmp_path):
    nowhere = paper.own(tmp_path / "nowhere")
    assert repr(nowhere) == f"{paper.NONE} Looked in {tmp_path / 'nowhere'}, which is not there." == paper.table(8, nowhere).notes[-1]
    make_runs(tmp_path / "runs", ["baseline", "ld"], seeds=1, regime="synthetic:plain")
    own = paper.own(tmp_path / "runs", mixed="synthetic:plin")
    says = "none on 'synthetic:plin', but 2 runs on 'synthetic:plain': name the one that stands for the paper's in `mixed`"
    assert says in repr(own)
    assert all(f"Our runs: {says}." in paper.table(number, own).notes for number in (4, 5))
    for number, name in ((3, "ucf101"), (6, "ucf101")):
        note = paper.table(number, own).notes[-1]
        assert f"none on '{name}', but 2 runs on 'synthetic:plain'" in note and f"`{name}`" in note
    assert "none on 'mixed' or 'ucf101', but 2 runs on 'synthetic:plain'" in repr(paper.own(tmp_path / "runs"))
    right = paper.own(tmp_path / "runs", mixed="synthetic:plain")
    assert "none on" not in repr(right) and "none on 'ucf101', but 2 runs on 'synthetic:plain'" in paper.table(3, right).notes[-1]


def test_runs_of_another_edition_are_named(tmp_path):
    make_runs(tmp_path, ["baseline", "ld"], seeds=1)
    for run in tmp_path.iterdir():
        (run / "config.json").write_text(json.dumps(json.loads((run / "config.json").read_text()) | {"edition": "released"}))
    assert repr(paper.own(tmp_path)) == f"Our runs: none of the edition 'sound' in {tmp_path}, but 2 runs of the edition 'released'."


def test_the_released_results_stand_against_both_baselines(none):
    made = paper.against_seeds(none)
    row = made.cells.loc["FWM-HW-LD"]
    assert (
        row[("Released, against seed 42", "IN-100")] == "30.78 (+5.92)" and row[("Released, against seed 239", "IN-100")] == "30.78 (+9.52)"
    )
    assert ("Released, against seed 239", "IN-100") in made.cells and "without Diving-48" in made.notes[-1]


def test_claims_stand_side_by_side(none):
    cells = paper.claims_table(none).cells
    assert len(cells) == 35 and set(cells[("", "our runs")]) == {"no runs yet"}
    judged = {item["id"]: item["verdict"] for item in claims.evaluate("released@239")}
    assert cells[("", "released, seed 239")].to_dict() == judged


def test_an_unknown_table_is_refused(none):
    with pytest.raises(ValueError, match="tables 1 to 8, not 9"):
        paper.table(9, none)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_every_figure_is_legible_at_both_widths(none, own):
    assert set(paper.figures(none)) < set(paper.figures(own))
    assert {"fig2-runs", "fig3-runs", "fig3-interaction-runs", "fig3-effects-runs"} <= set(paper.figures(own))
    for name, draw in paper.figures(own).items():
        for column in ("single", "double") if not name.startswith("fig1") else ("",):
            figure = draw(paper=True, column=column) if column else draw(paper=True)
            assert_legible(figure)


@pytest.mark.parametrize(("cells", "told"), [(("baseline", "ld"), False), ([name for name in CELLS if name != "fwm-hw"], True)])
def test_effects_are_drawn_where_the_cells_tell_them_apart(tmp_path, cells, told):
    make_runs(tmp_path, cells, seeds=2)
    own = paper.own(tmp_path)
    drawn = paper.figures(own)
    assert {"fig2-runs", "fig3-runs", "fig3-interaction-runs"} <= set(drawn) and ("fig3-effects-runs" in drawn) == told
    for name in (name for name in drawn if name.startswith("fig3") and name.endswith("-runs")):
        assert_legible(drawn[name](paper=True))


def test_runs_that_share_no_benchmark_are_no_evidence(tmp_path):
    make_runs(tmp_path, ["baseline"], seeds=1, benchmarks=["D-48"])
    make_runs(tmp_path, ["ld"], seeds=1, benchmarks=["SSv2"])
    own = paper.own(tmp_path)
    assert not own.has(4) and not own.has(5) and "but no baseline and variant of this table" in paper.table(5, own).notes[-1]


def test_screen_and_print_show_the_same_numbers(own):
    draw = paper.figures(own)["fig3-runs"]
    heights = [round(p.get_height(), 6) for ax in draw(paper=True).axes for p in ax.patches if p.get_facecolor()[3] > 0]
    bars = [round(float(y), 6) for trace in draw(interactive=True).data for y in trace.y]
    assert heights == bars


def test_save_writes_every_table_and_figure_and_a_page_of_them(none, tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "figures", lambda own: {"fig1": lambda paper: _diagram()})
    files = paper.save(none, tmp_path)
    names = {file.name for file in files}
    assert {f"table{n}.{kind}" for n in range(1, 9) for kind in ("html", "csv", "tex")} <= names
    assert {"fig1.pdf", "fig1.png", "fig1.html", "claims.tex", "table4-seeds.csv", "index.html"} <= names
    page, drawing = (tmp_path / "index.html").read_text(), (tmp_path / "fig1.html").read_text()
    assert page.count("<table>") == 10 and 'src="fig1.png"' in page and "no runs yet" in page
    assert "<svg" in drawing and not re.search(r'(src|href)="http', drawing)


def _diagram():
    from vjepa_lab import plots

    return plots.diagram({"terms": [{"label": "JEPA", "reads": ["pred", "h"]}]}, paper=True)


# --- verdicts ---------------------------------------------------------------------------------------------------------


def cells(effects: dict[str, float], seeds: int = 4, noise: float = 0.3) -> pd.DataFrame:
    """Rows of a factorial whose means are sums of the effects of the parts named."""
    import numpy as np

    rng = np.random.default_rng(0)
    rows = [
        {"variant": v, "seed": s, "value": 30 + sum(x for part, x in effects.items() if set(part.split("-")) <= set(v.split("-")))
         + rng.normal(0, noise)}
        for v in CELLS for s in range(seeds)
    ]  # fmt: skip
    about = {"benchmark": "motion", "probe": "linear", "metric": "top1", "n": 2000, "source": "run", "regime": "mixed", "edition": "sound"}
    return results.tidy(pd.DataFrame(rows).assign(**about))


def test_a_verdict_names_the_interaction_that_was_planted_and_no_other():
    says = verdicts.factorial(verdicts.fits(cells({"fwm": 3.0, "fwm-hw": 6.0})))
    assert "do not simply add up on motion (FWM × HW +3" in says and "LD" not in says.split(".")[0].split("FWM × HW")[1]
    quiet = verdicts.factorial(verdicts.fits(cells({"fwm": 3.0, "ld": -2.0})))
    assert "no interaction can be told from zero" in quiet and "adjusted (Holm) over 7 effects" in quiet


def test_a_verdict_says_in_what_else_the_cells_differ(own):
    rows = cells({"fwm": 3.0})
    at_03 = verdicts.factorial(verdicts.fits(rows))
    assert "HW alone has weight 0.3, in the other cells 1.0" in at_03 and "LD is not one treatment" in at_03
    control = rows[rows["variant"].eq("hw")].assign(variant="hw-1.0")
    at_1 = verdicts.factorial(verdicts.fits(pd.concat([rows, control])))
    assert "0.3" not in at_1 and "HW alone is the control hw-1.0" in at_1 and "beside FWM the dynamic half" in at_1
    assert verdicts.treatments(["baseline", "fwm", "ld"]) == [] == verdicts.treatments(["baseline", "hw"])
    (says,) = verdicts.treatments(["ld", "hw-ld"])
    assert "hard-weighted" in says and "FWM" not in says
    for draw in (plots.ablation, plots.interaction, plots.effects):
        drawn = texts(draw(rows, paper=True))
        assert "HW alone has weight 0.3" in drawn and "LD is not one treatment" in drawn.replace("\n", " ")
        figure = draw(pd.concat([rows, control.assign(value=control["value"] + 9)]), paper=True)
        assert "HW alone is the control hw-1.0" in texts(figure).replace("\n", " ")
        assert_legible(figure)
    shown = plots.ablation(pd.concat([rows.assign(value=50.0), control.assign(value=60.0)]), paper=True).axes[0]
    heights = [patch.get_height() for patch in shown.patches if patch.get_facecolor()[3] > 0]
    assert sorted(heights) == [50.0] * 7 + [60.0]  # the control stands where HW alone did
    spans = [segment[:, 1] for lines in shown.collections for segment in lines.get_segments()]
    assert all(high > low for low, high in spans)  # all seeds agree, and the interval still has a width


def test_what_one_of_two_motions_tells_of_their_order():
    from vjepa_lab.data import synthetic

    pairs = [(a, b) for a in range(8) for b in range(8) if a != b]
    best = sum(max(sum(a > b for a, b in pairs if a == m), sum(a < b for a, b in pairs if a == m)) for m in range(8))
    assert verdicts.one_event() == pytest.approx(100 * best / len(pairs)) == pytest.approx(100 * 11 / 14)
    assert verdicts.one_event(2) == 100 and len(synthetic.MOTIONS) == 8
    labels = synthetic.world("plain-order", "test", n=1000).labels
    assert bool((labels["order"] == (labels["motion"] > labels["then"])).all()) and bool((labels["motion"] != labels["then"]).all())
    for known in ("motion", "then"):
        counts = pd.crosstab(labels[known].numpy(), labels["order"].numpy())
        assert counts.max(axis=1).sum() / 10 == pytest.approx(verdicts.one_event(), abs=4)


def test_the_limits_of_order_stand_beside_chance():
    rows = [
        {"run": f"r{k}", "variant": f"v{k}", "benchmark": name, "value": value, "probe": "linear", "seed": 0}
        for k in range(4) for name, value in (("order", 50 + 10 * k), ("order/motion", 20 + 15 * k))
    ]  # fmt: skip
    table = results.tidy(pd.DataFrame(rows).assign(n=1000, source="run", regime="plain", edition="sound", metric="top1"))
    says = verdicts.order(table)
    assert says.startswith("order: chance is 50 %, one of the two motions alone tells 78.6 %. Over 4 runs") and "correlation 1.00" in says
    assert verdicts.order(table[table["benchmark"].eq("order/motion")]) == ""
    assert "Over" not in verdicts.order(table[table["benchmark"].eq("order")])


def test_a_verdict_on_one_seed_and_seven_cells_says_what_is_open(none):
    rows = none.printed[none.printed["source"].eq("paper") & none.printed["regime"].eq("mixed")]
    says = verdicts.factorial(verdicts.fits(rows))
    assert "FWM-HW" in says and "taken as zero" in says and "another seed" in says
    with pytest.raises(ValueError, match="one edition"):
        verdicts.fits(pd.concat([cells({}), cells({}).assign(edition="paper")]))


def test_trade_off_verdicts_follow_the_interval(none):
    rows = none.printed[none.printed["source"].eq("paper") & none.printed["regime"].eq("mixed")]
    assert "they rise and fall together" in verdicts.tradeoff(rows, "IN-100", "SSv2")
    assert "neither" in verdicts.tradeoff(rows, "IN-100", "D-48")
    turned = rows.assign(value=rows["value"].where(rows["benchmark"].ne("SSv2"), 50 - rows["value"]))
    assert "a trade-off across variants" in verdicts.tradeoff(turned, "IN-100", "SSv2")
    assert "too few" in verdicts.tradeoff(rows[rows["variant"].isin(["baseline", "ld", "fwm"])], "IN-100", "SSv2")


def test_texts_of_the_diagrams_name_what_was_published():
    drawn = [texts(draw(paper=True)) for name, draw in paper.figures(paper.own(None)).items() if name.startswith("fig1")]
    assert "Eq. 12" in drawn[0] and "no gradient, head" in drawn[1]
