"""Figures: the numbers in a picture are the table's, marks and labels are there, print output embeds its fonts and fits its column."""

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vjepa_lab import plots, results
from vjepa_lab.plots import style

PAPER = Path(__file__).parents[1] / "data" / "paper"
BENCHMARKS = ["D-48", "IN-100", "SSv2"]


@pytest.fixture(scope="module")
def paper():
    return results.load(PAPER)


def make_runs(root: Path, variants, seeds: int, benchmarks=BENCHMARKS, regime="mixed", steps=30_000, n=2000) -> pd.DataFrame:
    """Run folders whose accuracies are drawn around 20 %, the variant shifting them by its position."""
    rng = np.random.default_rng(0)
    for shift, variant in enumerate(variants):
        for seed in range(seeds):
            folder = root / f"{variant}-{seed}"
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps({"variant": variant, "seed": seed, "regime": regime, "steps": steps}))
            probes = [(b, results.PROBES.get(b, "linear")) for b in benchmarks]
            results.append_rows(folder, [{"benchmark": b, "probe": p, "value": 20 + shift + rng.normal(), "n": n} for b, p in probes])
    return results.load(root)


def texts(figure) -> str:
    """Everything written in a matplotlib or plotly figure."""
    if hasattr(figure, "to_plotly_json"):
        return json.dumps(figure.to_plotly_json(), default=str, ensure_ascii=False)
    from matplotlib.text import Text

    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def assert_legible(figure, smallest: float = 5.0) -> None:
    """No text leaves the canvas, none is smaller than `smallest` points, tick labels of an axis do not overlap."""
    from matplotlib.text import Text

    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    undrawn = set()  # matplotlib keeps ticks beyond the limits and does not draw them
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        undrawn |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    inside = figure.bbox.padded(2)
    for text in figure.findobj(Text):
        if not text.get_text().strip() or not text.get_visible() or text in undrawn:
            continue
        box = text.get_window_extent(renderer)
        assert text.get_fontsize() >= smallest, text.get_text()
        assert inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1), f"{text.get_text()!r} leaves the figure"
    for ax in figure.axes:
        labels = [t for t in ax.get_yticklabels() if t.get_text() and min(ax.get_ylim()) <= t.get_position()[1] <= max(ax.get_ylim())]
        boxes = sorted((t.get_window_extent(renderer) for t in labels), key=lambda box: box.y0)
        assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes)), "tick labels overlap"


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
    assert "Paper, printed, one seed" in written and "This run, 3 seeds" in written and "95 % interval over 3 seed pairs" in written
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


def test_constant_predictors_and_untrained_encoders_are_marked(paper):
    for figure in (
        plots.tradeoffs(paper, regime="ucf101", benchmarks=BENCHMARKS),
        plots.tradeoffs(paper, regime="ucf101", benchmarks=BENCHMARKS, paper=True),
    ):
        written = texts(figure)
        assert (
            "not above a predictor that always names" in written and "Kin.-L1 (λ=1.0) ‡" in written and "never left its random" in written
        )
    unmarked = texts(plots.tradeoffs(paper, regime="mixed", benchmarks=["IN-100"], paper=True))
    assert "†" not in unmarked and "‡" not in unmarked


def test_same_seed_baseline_changes_the_released_figure(paper):
    figure = plots.tradeoffs(paper, regime="mixed", benchmarks=["IN-100", "SSv2"], sources=["released"], baseline_seed=239)
    bars = {trace.name: dict(zip(trace.y, np.round(trace.x, 2), strict=True)) for trace in figure.data if trace.type == "bar"}
    assert bars["IN-100"]["FWM-HW-LD"] == 9.52 and bars["SSv2"]["FWM-HW-LD"] == 4.98 and bars["SSv2"]["LD-JEPA"] == 6.79


def test_a_question_without_rows_is_answered_by_what_there_is(paper):
    with pytest.raises(ValueError, match=r"kinetics.*mixed"):
        plots.tradeoffs(paper, regime="kinetics")


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
