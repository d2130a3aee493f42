"""Figure 1: a recipe drawn from its structure: what sees the clip, what each term reads, what carries no gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .style import INK, PALETTE, WIDTH, look, maths, new_figure

STATES = {  # what a term may read, from top to bottom
    "pred": "$\\hat z$", "visible": "visible $z$", "z": "$z$", "z.app": "$Z_{\\mathrm{app}}$", "z.dyn": "$Z_{\\mathrm{dyn}}$",
    "pixels": "pixels", "h": "$h$",
}  # fmt: skip
SAME = {"target": "h"}
TEACHERS = {"ema": "EMA of the student", "online": "the student, no gradient", "frozen": "first weights, frozen"}
NAVY, ORANGE = PALETTE[:2]
FILL = {
    "input": "#f3f1ec", "student": "#dde6f0", "teacher": "#f9e6d6", "state": "#ffffff", "loss": "#e6f4ee",
    "idle": "#eeeeee", "sum": "#ffffff",
}  # fmt: skip


@dataclass(frozen=True)
class Box:
    """A labelled box: centre and size in figure units of the drawing (width 100)."""

    x: float
    y: float
    width: float
    height: float
    text: str
    kind: str

    @property
    def left(self) -> tuple[float, float]:
        return self.x - self.width / 2, self.y

    @property
    def right(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y


def diagram(structure: Mapping, *, paper: bool = False):
    """Draw a recipe: clip, masks, student, predictor, teacher, and one box per term with arrows from what it reads.

    structure: as `structure.structure(recipe)` makes it: `{"title": str, "masks": str, "teacher": "ema" | "online" | "frozen",
    "stop_grad": bool, "levels": int, "terms": [{"label": str, "weight": str, "reads": [..], "hard": bool, "idle": bool, "head": str},
    ...]}` with reads among `pred target h z z.app z.dyn visible pixels`.
    The student's full-clip pass is drawn only if a term reads z, its halves only if a term reads one of them. Solid arrows carry gradient,
    dashed ones do not; a grey term gives none. Double-column width; returns a matplotlib Figure. Raises ValueError naming an unknown read
    or teacher.
    """
    terms = list(structure["terms"])
    reads = {SAME.get(name, name) for term in terms for name in term["reads"]}
    if unknown := reads - set(STATES):
        raise ValueError(f"a term reads {', '.join(sorted(unknown))}; known: {', '.join([*STATES, *SAME])}")
    teacher = structure.get("teacher", "ema")
    if teacher not in TEACHERS:
        raise ValueError(f"teacher {teacher!r}: expected one of {', '.join(TEACHERS)}")
    states = [name for name in STATES if name in reads or name in ("pred", "h")]
    tall = 10.5 * max(len(terms), len(states), 2) + 5
    leaking = teacher == "online" and not structure.get("stop_grad", True)
    says = "the student, with gradient" if leaking else TEACHERS[teacher]
    boxes = _network(states, tall, says, structure.get("masks", "multiblock"), structure.get("levels", 1))
    free = ("pixels",) if leaking else ("h", "pixels")
    losses = [_loss(term, 4 + (tall - 4) * (1 - (k + 0.5) / len(terms))) for k, term in enumerate(terms)]
    total = Box(96.5, 4 + (tall - 4) / 2, 6, 6.5, "$\\mathcal{L}$", "sum")
    with look(paper), maths():
        fig, axes = new_figure(WIDTH["double"], WIDTH["double"] * tall / 100 + 0.15)
        ax = axes[0, 0]
        ax.set(xlim=(0, 100), ylim=(0, tall))
        ax.axis("off")
        _wire(ax, boxes, free)
        for term, box in zip(terms, losses, strict=True):
            sources = sorted((SAME.get(name, name) for name in term["reads"]), key=lambda name: -boxes[name].y)
            for name, entry in zip(sources, _entries(box, len(sources)), strict=True):
                _arrow(ax, boxes[name].right, entry, name not in free and not term.get("idle"))
            ax.plot(*zip(box.right, total.left, strict=True), color="#999999", linewidth=0.8, zorder=1)
        for box in [*boxes.values(), *losses, total]:
            _draw(ax, box)
        ax.set_title(structure.get("title", ""), fontsize=8, pad=2)
        ax.text(0.5, 0.4, "solid: carries gradient; dashed: no gradient", fontsize=6.2, color="#555555", va="bottom")
    return fig


def _network(states: Sequence[str], tall: float, teacher: str, masks: str, levels: int) -> dict[str, Box]:
    """The boxes by name. What terms read stands in one column, evenly spaced; each network stands at the height of what it makes."""
    step = (tall - 4) / len(states)
    at = {name: 4 + (tall - 4) - (k + 0.5) * step for k, name in enumerate(states)}
    boxes = {name: Box(64, at[name], 8.5, 6.4, STATES[name], "state") for name in states}
    boxes |= {
        "seen": Box(20, at["pred"], 13, 8, f"seen tokens\n{masks}", "state"),
        "student": Box(36, at["pred"], 12, 8, "student $f_\\theta$" + f"\n{levels} levels" * (levels > 1), "student"),
        "predictor": Box(51, at["pred"], 12, 8, "predictor $g_\\phi$", "student"),
        "teacher": Box(36, at["h"], 18, 8, f"teacher $\\bar f$\n{teacher}", "teacher"),
    }
    halves = [at[name] for name in ("z", "z.app", "z.dyn") if name in at]
    if halves:
        middle = sum(halves) / len(halves)
        boxes["full"] = Box(36, middle, 12, 8, "student $f_\\theta$\nfull clip", "student")
        if halves != [at.get("z")]:
            boxes["latents"] = Box(52, middle, 5, 6, "$z$", "state")
    boxes["clip"] = Box(6, boxes["full"].y if halves else (at["pred"] + at["h"]) / 2, 9, 8, "clip", "input")
    return boxes


def _wire(ax, boxes: Mapping[str, Box], free: Sequence[str]) -> None:
    """Arrows between the networks."""
    link = lambda a, b, gradient: _arrow(ax, boxes[a].right, boxes[b].left, gradient)
    link("clip", "seen", False)
    link("clip", "teacher", False)
    for a, b in (("seen", "student"), ("student", "predictor"), ("predictor", "pred")):
        link(a, b, True)
    link("teacher", "h", "h" not in free)
    if "full" in boxes:
        link("clip", "full", False)
        makes = [name for name in ("z", "z.app", "z.dyn") if name in boxes]
        if "latents" in boxes:
            link("full", "latents", True)
        for name in makes:
            link("latents" if "latents" in boxes else "full", name, True)
    for name, start in (("visible", "student"), ("pixels", "clip")):
        if name in boxes:
            below = (boxes[start].x, boxes[start].y - boxes[start].height / 2)
            _arrow(ax, below, boxes[name].left, name not in free, "angle,angleA=-90,angleB=180,rad=4")


def _loss(term: Mapping, y: float) -> Box:
    weight = str(term.get("weight", "1"))
    name = ("" if weight in ("1", "1.0") else f"{weight} × ") + ("Hard " if term.get("hard") else "") + term["label"]
    head, idle = term.get("head"), term.get("idle")
    below = ", ".join(["no gradient"] * bool(idle) + [f"head: {head}"] * bool(head))
    return Box(83, y, 18, 7.8, f"{name}\n{below}".strip(), "idle" if idle else "loss")


def _entries(box: Box, count: int) -> list[tuple[float, float]]:
    """Entry points down the left edge of a box."""
    return [(box.left[0], box.y + box.height * 0.9 * (0.5 - (k + 1) / (count + 1))) for k in range(count)]


def _arrow(ax, start, end, gradient: bool, path: str = "") -> None:
    bend = 0.0 if abs(start[1] - end[1]) < 0.5 else np.sign(end[1] - start[1]) * 0.06
    style = {"arrowstyle": "-|>,head_length=0.28,head_width=0.13", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0.5}
    style |= {"color": NAVY, "linestyle": "-"} if gradient else {"color": ORANGE, "linestyle": (0, (3, 2))}
    ax.annotate("", xy=end, xytext=start, arrowprops=style | {"connectionstyle": path or f"arc3,rad={bend}"}, zorder=1)


def _draw(ax, box: Box) -> None:
    from matplotlib.patches import FancyBboxPatch

    corner = (box.x - box.width / 2, box.y - box.height / 2)
    patch = FancyBboxPatch(
        corner,
        box.width,
        box.height,
        boxstyle="round,pad=0,rounding_size=1.2",
        facecolor=FILL[box.kind],
        edgecolor=INK,
        linewidth=0.7,
        zorder=2,
    )
    ax.add_patch(patch)
    lines = box.text.split("\n")
    ax.text(
        box.x, box.y + (1.6 if len(lines) > 1 else 0), lines[0], fontsize=_fitting(lines[0], box, 7.2), ha="center", va="center", zorder=3
    )
    for line in lines[1:]:
        ax.text(box.x, box.y - 1.9, line, fontsize=_fitting(line, box, 6), ha="center", va="center", color="#444444", zorder=3)


def _fitting(text: str, box: Box, most: float) -> float:
    """Font size in points at which a line fits into its box, at least 5."""
    room = 0.93 * box.width / 100 * WIDTH["double"] * 72
    return most if "$" in text else max(5.0, min(most, room / (0.47 * max(len(text), 1))))
