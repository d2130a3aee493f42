"""A data set at a glance: clips that play, and how many there are of each class; and a run: its state, its recipe and its loss."""

from __future__ import annotations

import html

import numpy as np

from .clips import Player
from .style import PALETTE, embedded, look, new_figure

SIDE = 96
"Pixels of a playing clip, at least."


class Card:
    """A page that shows itself in a notebook."""

    def __init__(self, text: str):
        self.text = text

    def _repr_html_(self) -> str:
        return self.text


def card(source, *, examples: int = 6, most: int = 20) -> Card:
    """What is in a `data.Source`: its size, `examples` playing clips spread evenly over it, and the `most` frequent classes of every label
    with how many clips each has. Raises ValueError for no example or no class.
    """
    for name, value in {"examples": examples, "most": most}.items():
        if value < 1:
            raise ValueError(f"{name}={value}: expected 1 or more")
    picks = np.unique(np.linspace(0, len(source) - 1, min(examples, len(source))).round().astype(int))
    clips = [source[int(index)].cut().clip for index in picks]
    playing = "".join(Player(clip, zoom=-(-SIDE // clip.shape[-1]))._repr_html_() for clip in clips)
    notes = "<br>".join(html.escape(line.strip()) for line in repr(source).splitlines())
    labels = {name: np.asarray(values) for name, values in source.labels.items()}
    if any(name != "class" and np.array_equal(values, labels.get("class")) for name, values in labels.items()):
        labels.pop("class")  # it says what another label says
    bars = "".join(_bars(name, values, source.classes[name], most) for name, values in labels.items() if name in source.classes)
    return Card(f'<div style="font:13px sans-serif">{notes}<div style="margin:6px 0">{playing}</div>{bars}</div>')


def of_run(run) -> str | None:
    """A page about a `training.runs.Run`: its state, its recipe and the curve of its loss; None where fewer than two steps are logged."""
    from ..training import locks

    try:
        steps, recipe = run.metrics(), (run.path / "recipe.txt").read_text().strip()
    except (OSError, ValueError):
        return None
    if len(steps) < 2:
        return None
    with look(paper=False):
        figure, axes = new_figure(3, 1.5)
        axes[0][0].plot(steps["step"], steps["loss"], lw=1.1)
        axes[0][0].set(xlabel="step", ylabel="loss")
    try:
        said = run.recipe._repr_html_()
    except ValueError:  # a term defined elsewhere
        said = f"<code>{html.escape(recipe)}</code>"
    of, done = run.config["preset"]["steps"], (run.path / "report.json").exists()
    state = "done" if done else "training" if locks.holder(run.path) else "stopped"
    count = of if done else int(steps["step"].max()) + 1
    curve = embedded(figure._repr_png_(), "loss by step")
    return f"<div><b>{html.escape(run.name)}</b>: {state}, {count} of {of} steps</div>{said}{curve}"


def _bars(name: str, values: np.ndarray, classes, most: int) -> str:
    """A line per class, most clips first. values: class of each clip [n], or [n classes] of a label with several; -1: none."""
    counts = np.maximum(values, 0).sum(0) if values.ndim == 2 else np.bincount(values[values >= 0], minlength=len(classes))
    order = np.argsort(-counts, kind="stable")[:most]
    rows = "".join(
        f'<tr><td>{html.escape(str(classes[i]))}</td><td style="text-align:left"><span style="display:inline-block;height:10px;'
        f'background:{PALETTE[0]};width:{200 * counts[i] / max(1, counts.max()):.0f}px"></span> {counts[i]}</td></tr>'
        for i in order
    )
    more = f"<tr><td>{len(classes) - most} more</td></tr>" if len(classes) > most else ""
    return f"<details><summary>{html.escape(name)}: {len(classes)} classes</summary><table>{rows}{more}</table></details>"
