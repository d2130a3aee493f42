"""Objectives as equations: LaTeX of terms, sums and recipes, and the page that a notebook shows for a recipe.

A term of your own shows as its class's name and its arguments, until you say how it reads: `equations.tex.register(Mine)`, or a method
`latex(self)` in the class.
"""

from collections.abc import Sequence
from dataclasses import MISSING, fields
from functools import singledispatch
from html import escape

from vjepa_lab.modifiers import Detached, Hard, Shuffled
from vjepa_lab.objective import Objective, Recipe, Term, nested
from vjepa_lab.schedules import Cosine, Ramp, Schedule
from vjepa_lab.terms import (
    JEPA,
    Context,
    Contrast,
    Delta,
    Dynamics,
    Hamiltonian,
    Kinematic,
    Orthogonal,
    Pixels,
    SIGReg,
    Spectral,
    Straight,
    VelGate,
)

# ------------------------------------------------------------------------------------------------------------------------ weights


def number(x: float) -> str:
    """A number as LaTeX: 0.05, 10^{-5}, 2."""
    text = f"{x:.4g}"
    if "e" not in text:
        return text
    digits, power = text.split("e")
    return (rf"{digits} \cdot " if digits != "1" else "") + f"10^{{{int(power)}}}"


def weight(w: float | Schedule) -> str:
    """A weight as LaTeX, empty for 1; a schedule as its course over the share s of training."""
    match w:
        case Cosine(start, end):
            return rf"\lambda_{{\cos}}^{{{number(start)} \to {number(end)}}}"
        case Ramp(start, end, begin, until):
            span = "" if (begin, until) == (0.0, 1.0) else rf"_{{s \in [{number(begin)}, {number(until)}]}}"
            return rf"\lambda^{{{number(start)} \to {number(end)}}}{span}"
        case Schedule():
            return r"\lambda(s)"
    return "" if w == 1 else number(w)


# ------------------------------------------------------------------------------------------------------------------------- terms


def z(term: Term, at: str = "t") -> str:
    """The student's token that a term sees: at which time, which channels, through which view."""
    channels = {"all": "", "app": r"\mathrm{app}", "dyn": r"\mathrm{dyn}"}[term.on]
    norm = {"layer": "", "half": r"\mathrm{half}", "raw": r"\mathrm{raw}"}[term.norm]
    view = {"causal": r"\leq t", "visible": r"\mathrm{vis}"}.get(term.view, "")
    below, above = (r",\,".join(filter(None, marks)) for marks in ((at, channels), (norm, view)))
    return "z" + (f"_{{{below}}}" if below else "") + (f"^{{{above}}}" if above else "")


def dz(term: Term) -> str:
    return rf"\Delta {z(term)}"


def size(term: Term, x: str) -> str:
    """|x|, the mean over channels, or the 1-norm."""
    return rf"\lVert {x} \rVert_1" if getattr(term, "reduce", "mean") == "sum" else rf"\lvert {x} \rvert"


@singledispatch
def tex(term: Term) -> str:
    """A term's loss as LaTeX. Means over tokens, clips and mask kinds are written as <...>."""
    if callable(own := getattr(term, "latex", None)):
        return own()
    values = [repr(getattr(term, f.name)) for f in fields(term) if f.name not in ("view", "norm", "on") and _changed(term, f)]
    arguments = rf"({_text(', '.join(values))})" if values else ""
    where = "" if term.view == "hidden" else f"[{z(term)}]"
    return rf"\mathrm{{{_text(type(term).__name__)}}}{arguments}{where}"


def _changed(term: Term, f) -> bool:
    return f.default is MISSING or getattr(term, f.name) != f.default


def _text(words: str) -> str:
    return (
        words.replace("\\", r"\backslash ").replace("_", r"\_").replace("'", "").replace("%", r"\%").replace("#", r"\#").replace("&", r"\&")
    )


def mean(x: str) -> str:
    return rf"\langle {x} \rangle"


@tex.register
def _(term: JEPA) -> str:
    error = size(term, r"\hat z_i - h_i")
    error = error if term.p == 1 else rf"\tfrac{{1}}{{{number(term.p)}}} {error}^{{{number(term.p)}}}"
    return mean(error if term.distance is None else rf"d_i^{{-1/2}} {error}") + r"_{i \in \mathrm{hidden}}"


@tex.register
def _(term: Context) -> str:
    error = size(term, r"\hat z_i - h_i")
    return mean(rf"d_i^{{-1/2}} {error}") + r"_{i \in \mathrm{seen}}"


@tex.register
def _(term: Kinematic) -> str:
    change = r"\Delta" + ("" if term.order == 1 else f"^{{{term.order}}}") + " " + z(term)
    return mean(size(term, change) if term.huber is None else rf"\mathrm{{Huber}}_{{{number(term.huber)}}}({change})")


@tex.register
def _(term: Straight) -> str:
    return mean(rf"1 - \cos(\Delta {z(term)}, \Delta {z(term, 't+1')})")


@tex.register
def _(term: Delta) -> str:
    return mean(size(term, rf"{dz(term)} - \Delta h_t"))


@tex.register
def _(term: Dynamics) -> str:
    return mean(size(term, rf"\mathrm{{Dyn}}({z(term)}) - \Delta h_t"))


@tex.register
def _(term: Spectral) -> str:
    gap = (
        rf"\lvert \mathcal{{F}} {z(term, '')} \rvert_f - \lvert \mathcal{{F}} h \rvert_f"
        if term.amplitude
        else rf"\mathcal{{F}} ({z(term, '')} - h)_f"
    )
    return mean(("" if term.weights == "uniform" else "w_f ") + size(term, gap))


@tex.register
def _(term: Contrast) -> str:
    own = z(term)
    if term.negatives == "all":
        share = rf"\mathrm{{softmax}}_s(\cos({own}, h_s) / {number(term.temperature)})_t"
        return mean(rf"-\log {share}")
    other = "h_{t+1}" if term.negatives == "next" else r"h_{t \pm 1}"
    return mean(rf"[{number(term.margin)} - \cos({own}, h_t) + \cos({own}, {other})]_+")


@tex.register
def _(term: Pixels) -> str:
    change = r"\Delta P_t" if term.target == "next" else r"\delta P_t"
    return mean(size(term, rf"\mathrm{{Act}}({z(term)}) - {change}"))


@tex.register
def _(term: VelGate) -> str:
    speed = {"teacher": r"\lvert \Delta h_t \rvert", "pixels": r"\lvert \Delta x_t \rvert", "released": r"\lVert \Delta h_t \rVert_2"}
    background = rf"{speed[term.gate]} \,\leq\, q_{{{number(term.quantile)}}}"
    if term.gate == "released":
        return mean(rf"[{background}] \, {size(term, dz(term))}")
    return mean(size(term, dz(term))) + rf"_{{{background}}}"


@tex.register
def _(term: Hamiltonian) -> str:
    if term.method == "energy":
        return mean(rf"\lvert \Delta H({z(term)}) \rvert")
    if term.method == "consistency":
        extra = rf" + {number(term.conserve)} (\Delta H)^2" if term.conserve else ""
        return mean(rf"\lVert \Phi_H(q_t, p_t)_q - \mathrm{{sg}}\,q_{{t+1}} \rVert^2{extra}")
    step = "" if term.dt == 1 else rf"{number(term.dt)}\, "
    q, p = size(term, rf"\Delta q - {step}\partial_p H"), size(term, rf"\Delta p + {step}\partial_q H")
    return mean(f"{q} + {p}")


@tex.register
def _(term: Orthogonal) -> str:
    cross = r"Z_{\mathrm{app}}^{\top} Z_{\mathrm{dyn}}"
    if term.form == "paper":
        return rf"\tfrac1N \lVert {cross} \rVert_F^2"
    inside = r"\mathrm{corr}(Z_{\mathrm{app}}, Z_{\mathrm{dyn}})^2" if term.form == "corr_mean" else rf"(\tfrac1N {cross})^2"
    return {"cov_sum": rf"\textstyle\sum {inside}", "vicreg": rf"\tfrac{{1}}{{d}} \textstyle\sum {inside}"}.get(term.form, mean(inside))


@tex.register
def _(term: SIGReg) -> str:
    x = z(term, "") if term.projector is None else rf"\mathrm{{proj}}({z(term, '')})"
    return rf"\mathrm{{SIGReg}}({x})"


@tex.register
def _(term: Hard) -> str:
    error = r"\tilde e" if term.standardise else "e"
    scale = "" if term.tau == 1 else f"/ {number(term.tau)}"
    return rf"\mathrm{{hard}}_{{{error}{scale}}}\!\left[{tex(term.term)}\right]"


@tex.register
def _(term: Detached) -> str:
    return rf"\mathrm{{sg}}\!\left[{tex(term.term)}\right]"


@tex.register
def _(term: Shuffled) -> str:
    return rf"{tex(term.term)}_{{\text{{random channels}}}}"


def equation(objective: Objective | Term) -> str:
    """The whole loss as LaTeX, without dollar signs."""
    terms = objective if isinstance(objective, Objective) else Objective(((1.0, objective),))
    return r"\mathcal{L} = " + " + ".join(rf"{weight(w)}\, {tex(t)}".removeprefix(r"\, ") for w, t in terms)


# -------------------------------------------------------------------------------------------------------------------------- page

SIGNS = (
    r"\(\hat z\) prediction, \(h\) teacher, \(z\) student, \(\Delta\) change to the next token time, \(\langle\cdot\rangle\) mean, "
    r"\(\lvert\cdot\rvert\) mean over channels"
)
CELL = 'style="text-align:left;padding:2px 12px 2px 0;vertical-align:top"'


def grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of cells that are HTML already."""
    head = "".join(f"<th {CELL}>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td {CELL}>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def head_of(term: Term, dim: int) -> str:
    """The trainable head that a term makes, by its parameters."""
    import torch

    with torch.device("meta"):
        head = term.head(dim)
    return "" if head is None else f"{sum(p.numel() for p in head.parameters()):,}"


def _amount(x: float, digits: int) -> str:
    """A positive number with so many decimals, or with two significant digits where these are more."""
    return f"{x:.{digits}f}" if x >= 10 ** (1 - digits) else f"{x:.2g}"


def page(recipe: Recipe, preset="base") -> str:
    """A recipe as HTML: its equation, a table of its terms, and what surrounds them. Costs and masks are those at `preset`, a name or a
    Preset.
    """
    from vjepa_lab import cost, variants
    from vjepa_lab.presets import preset as sized

    size = sized(preset)
    named, spent = variants.name_of(recipe), recipe.cost(size)
    extra, dim = cost.of_terms(recipe, size), size.dim * recipe.levels
    drawn = size.masks_of(recipe.masks)
    rows = []
    for (w, term), name, gflop in zip(recipe.objective, recipe.objective.names, extra, strict=True):
        *_, inner = nested(term)
        here = [
            inner.view,
            "" if inner.view == "hidden" else inner.norm,
            head_of(term, dim),
            _amount(gflop, 1) if gflop else "",
        ]
        rows.append([escape(repr(w)), f"<code>{escape(repr(term))}</code>", rf"\({escape(tex(term))}\)", *here, escape(name)])
    teacher = {"ema": "EMA teacher", "online": "online teacher (no EMA)", "frozen": "frozen teacher"}[recipe.teacher]
    around = [
        f"masks <code>{escape(repr(recipe.masks))}</code>"
        + (f", at {escape(size.name)} <code>{escape(repr(drawn))}</code>" if drawn != recipe.masks else ""),
        teacher + ("" if recipe.stop_grad else ", targets with gradient"),
        f"the {recipe.probe} encoder is evaluated",
        *([f"{recipe.levels} levels"] if recipe.levels > 1 else []),
        *([f"weights by <code>{escape(repr(recipe.weighting))}</code>"] if recipe.weighting else []),
        *(["constant learning rate"] if recipe.lr == "constant" else []),
        *(["repeated images count as clips"] if recipe.images == "in" else []),
        *([f"positions on a grid of {recipe.rope_grid}"] if recipe.rope_grid else []),
        f"{_amount(spent.total, 0)} GFLOP per clip and step at {escape(spent.preset)}, {spent.ratio:.2f} x the baseline "
        f"({', '.join(f'{escape(name)} {_amount(value, 0)}' for name, value in spent.passes.items())})",
    ]
    title = f"<b>{escape(named[0])}</b>, edition {escape(named[1])}" if named else "<b>a recipe of its own</b>"
    columns = ("weight", "term", "equation", "view", "norm", "head (parameters)", "own GFLOP", "name in logs")
    return (
        f"<div>{title}<div style='overflow-x:auto;padding:4px 0'>\\(\\displaystyle {escape(equation(recipe.objective))}\\)</div>"
        f"{grid(columns, rows)}<div>{'; '.join(around)}</div><div style='opacity:.65'>{SIGNS}</div></div>"
    )
