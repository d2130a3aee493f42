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


def marked(letter: str, below: Sequence[str] = (), above: Sequence[str] = ()) -> str:
    """A letter with its subscripts and superscripts; empty ones are left out."""
    below, above = (r",\,".join(filter(None, marks)) for marks in (below, above))
    return letter + (f"_{{{below}}}" if below else "") + (f"^{{{above}}}" if above else "")


def channels(term: Term) -> str:
    return {"all": "", "app": r"\mathrm{app}", "dyn": r"\mathrm{dyn}"}[term.on]


def seen_as(term: Term) -> tuple[str, str]:
    """How the student's tokens come to a term: normalised how, through which view."""
    norm = {"layer": "", "half": r"\mathrm{half}", "raw": r"\mathrm{raw}"}[term.norm]
    return norm, {"causal": r"\leq t", "visible": r"\mathrm{vis}"}.get(term.view, "")


def z(term: Term, at: str = "t") -> str:
    """The student's token that a term sees: at which time, which channels, through which view."""
    return marked("z", (at, channels(term)), seen_as(term))


def h(term: Term, at: str = "t") -> str:
    """The teacher's token, cut to the term's channels."""
    return marked("h", (at, channels(term)))


def dz(term: Term) -> str:
    return rf"\Delta {z(term)}"


def size(term: Term, x: str, p: float = 1) -> str:
    """|x|^p, the mean over channels, or their sum: a norm."""
    summed = getattr(term, "reduce", "mean") == "sum"
    left, right = (r"\lVert", r"\rVert") if summed else (r"\lvert", r"\rvert")
    order = f"_{{{number(p)}}}^{{{number(p)}}}" if p != 1 else "_1" if summed else ""
    return f"{left} {x} {right}{order}"


def powers(term: JEPA | Context) -> str:
    """|prediction - teacher|^p / p of a token."""
    share = "" if term.p == 1 else rf"\tfrac{{1}}{{{number(term.p)}}} "
    return share + size(term, r"\hat z_i - h_i", term.p)


def nearness(places: str) -> str:
    """What a token weighs by its distance to the nearest of these places."""
    return rf"d_{{i,\,\mathrm{{{places}}}}}^{{-1/2}}"


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


def mean(x: str, over: str = "") -> str:
    return marked(rf"\langle {x} \rangle", (over,))


def weighed(weights: str, x: str, over: str = "") -> str:
    """The mean of x by weights that are divided by their own mean."""
    return rf"\frac{{{mean(f'{weights} {x}', over)}}}{{{mean(weights, over)}}}"


@tex.register
def _(term: JEPA) -> str:
    over = r"i \in \mathrm{hidden}"
    return mean(powers(term), over) if term.distance is None else weighed(nearness("seen"), powers(term), over)


@tex.register
def _(term: Context) -> str:
    return mean(f"{nearness('hidden')} {powers(term)}", r"i \in \mathrm{seen}")


@tex.register
def _(term: Kinematic) -> str:
    change = r"\Delta" + ("" if term.order == 1 else f"^{{{term.order}}}") + " " + z(term)
    if term.huber is None:
        return mean(size(term, change))
    error = rf"\mathrm{{Huber}}_{{{number(term.huber)}}}({change})"
    return mean(size(term, error) if term.reduce == "sum" else error)


@tex.register
def _(term: Straight) -> str:
    return mean(rf"1 - \cos(\Delta {z(term)}, \Delta {z(term, 't+1')})")


@tex.register
def _(term: Delta) -> str:
    return mean(size(term, rf"{dz(term)} - \Delta {h(term)}"))


@tex.register
def _(term: Dynamics) -> str:
    foretold = h(term) if term.foretell == "own" else "h_t"
    return mean(size(term, rf"\mathrm{{Dyn}}({z(term)}) - \Delta {foretold}"))


@tex.register
def _(term: Spectral) -> str:
    gap = (
        rf"\mathrm{{abs}}(\mathcal{{F}} {z(term, '')})_f - \mathrm{{abs}}(\mathcal{{F}} {h(term, '')})_f"
        if term.amplitude
        else rf"\mathcal{{F}} ({z(term, '')} - {h(term, '')})_f"
    )
    return mean(("" if term.weights == "uniform" else "w_f ") + size(term, gap))


@tex.register
def _(term: Contrast) -> str:
    own = z(term)
    if term.negatives == "all":
        share = rf"\mathrm{{softmax}}_s(\cos({own}, {h(term, 's')}) / {number(term.temperature)})_t"
        return mean(rf"-\log {share}")
    other = h(term, "t+1" if term.negatives == "next" else r"t \pm 1")
    return mean(rf"[{number(term.margin)} - \cos({own}, {h(term)}) + \cos({own}, {other})]_+")


@tex.register
def _(term: Pixels) -> str:
    change = r"\Delta P_t" if term.target == "next" else r"\delta P_t"
    return mean(size(term, rf"\mathrm{{Act}}({z(term)}) - {change}"))


@tex.register
def _(term: VelGate) -> str:
    speed = {"teacher": r"\lvert \Delta h_t \rvert", "pixels": r"\lvert \Delta x_t \rvert", "released": r"\lVert \Delta h_t \rVert_2"}
    limit, error = rf"q_{{{number(term.quantile)}}}", size(term, dz(term))
    if term.temperature:
        soft = rf"\sigma((1 - {speed[term.gate]} / {limit}) / {number(term.temperature)})"
        return mean(f"{soft} {error}") if term.gate == "released" else weighed(soft, error)
    background = rf"{speed[term.gate]} \,\leq\, {limit}"
    return mean(rf"[{background}] \, {error}") if term.gate == "released" else mean(error, background)


@tex.register
def _(term: Hamiltonian) -> str:
    later = z(term, "t+1") if term.toward == "student" else h(term, "t+1")
    if term.method == "energy":
        return mean(rf"\lvert \Delta H({z(term)}) \rvert" if term.toward == "student" else rf"\lvert H({later}) - H({z(term)}) \rvert")
    halves = rf"(q,\,p)_t = {z(term)},\; (q,\,p)_{{t+1}} = {later}"
    return mean((_flow if term.method in ("leapfrog", "consistency") else _residual)(term), halves)


def _flow(term: Hamiltonian) -> str:
    """How far one leapfrog step misses the next q and p, or the next q alone."""
    flow = marked(r"\Phi_H", above=("" if term.dt == 1 else number(term.dt),)) + r"(q_t,\, p_t)"
    if term.method == "leapfrog":
        return " + ".join(size(term, rf"{x}_{{t+1}} - {flow}_{x}") for x in "qp")
    extra = rf" + {number(term.conserve)}\, (H({flow}) - \mathrm{{sg}}\,H(q_t,\, p_t))^2" if term.conserve else ""
    return size(term, rf"{flow}_q - \mathrm{{sg}}\,q_{{t+1}}", 2) + extra


def _residual(term: Hamiltonian) -> str:
    """What an explicit step leaves of the changes of q and p."""
    step = "" if term.dt == 1 else rf"{number(term.dt)}\, "
    at = r"q_t,\, p_{t+1}" if term.method == "symplectic" else r"q_t,\, p_t"
    drift = rf"{step}\partial_p H({at})"
    at = rf"q_t + {drift},\, p_t" if term.method == "released" else at
    return size(term, rf"\Delta q_t - {drift}") + " + " + size(term, rf"\Delta p_t + {step}\partial_q H({at})")


@tex.register
def _(term: Orthogonal) -> str:
    letter = "Z" if term.centre == "none" else r"\tilde Z"
    marks = r",\,".join(filter(None, (*seen_as(term), "" if term.centre in ("batch", "none") else rf"\mathrm{{{term.centre}}}")))
    turn = rf"{marks}\,\top" if marks else r"\top"
    halves = (("app", marks), ("dyn", marks), ("app", turn))
    app, dyn, turned = (marked(letter, (channels(term), rf"\mathrm{{{half}}}"), (above,)) for half, above in halves)
    if term.form == "paper":
        return rf"\tfrac1N \lVert {turned} {dyn} \rVert_F^2"
    inside = rf"\mathrm{{corr}}({app}, {dyn})^2" if term.form == "corr_mean" else rf"(\tfrac1N {turned} {dyn})^2"
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
    return rf"{{{tex(term.term)}}}_{{\text{{random channels}}}}"  # in braces: a mean has a subscript already


def equation(objective: Objective | Term) -> str:
    """The whole loss as LaTeX, without dollar signs."""
    terms = objective if isinstance(objective, Objective) else Objective(((1.0, objective),))
    return r"\mathcal{L} = " + " + ".join(rf"{weight(w)}\, {tex(t)}".removeprefix(r"\, ") for w, t in terms)


# -------------------------------------------------------------------------------------------------------------------------- page

SIGNS = (
    r"\(\hat z\) prediction, \(h\) teacher, \(z\) student, \(\Delta\) change to the next token time, \(\langle\cdot\rangle\) mean, "
    r"\(\lvert\cdot\rvert\) mean over channels and \(\lvert\cdot\rvert_p^p\) that of \(p\)-th powers, \(d_{i,\,\mathrm{seen}}\) distance "
    r"to the nearest seen token, \(\tilde Z\) tokens less their mean (the batch's, or as marked), \(q, p\) halves of a token, "
    r"\(\Phi_H\) a leapfrog step"
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
