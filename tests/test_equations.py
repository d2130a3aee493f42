"""Equations of terms and recipes: they are well formed, tell terms apart, and need nothing of a user's term."""

import re
from dataclasses import replace

import pytest
from laws import TERMS, ids

import vjepa_lab as vl
from vjepa_lab import equations, variants
from vjepa_lab.modifiers import Detached, Hard, Shuffled
from vjepa_lab.objective import Recipe, Term
from vjepa_lab.schedules import Cosine, Ramp, Schedule
from vjepa_lab.terms import JEPA, Context, Contrast, Delta, Dynamics, Hamiltonian, Kinematic, Orthogonal, Spectral, VelGate

SHUFFLED = [Shuffled(t) for t in (Delta(view="causal"), VelGate(on="app"), Hamiltonian(on="app"), Orthogonal(form="paper"))]
ROWS = [(name, edition) for edition in variants.EDITIONS for name in variants.names(edition)]


def drawn(latex):
    """Let matplotlib's TeX parser read it, which refuses what is not well formed; a few of LaTeX's words it does not know."""
    from matplotlib.mathtext import MathTextParser

    known = {r"\tfrac1N": r"\frac{1}{N}", r"\tfrac": r"\frac", r"\textstyle": "", r"\!": "", r"\lvert": "|", r"\rvert": "|"}
    for word, same in (known | {r"\lVert": r"\Vert", r"\rVert": r"\Vert", r"\left[": "[", r"\right]": "]"}).items():
        latex = latex.replace(word, same)
    return MathTextParser("path").parse(f"${latex}$")


@pytest.mark.parametrize("term", [*TERMS, Detached(Delta()), *SHUFFLED], ids=ids([*TERMS, 1, *SHUFFLED]))
def test_every_term_has_an_equation(term):
    latex = equations.tex(term)
    assert latex.count("{") == latex.count("}") and latex.count(r"\left") == latex.count(r"\right")
    assert drawn(latex).width > 10
    assert equations.tex.dispatch(type(term)) is not equations.tex.dispatch(Term)


@pytest.mark.parametrize(("name", "edition"), ROWS)
def test_every_row_has_an_equation(name, edition):
    recipe = variants.recipe(name, edition)
    latex = recipe._repr_latex_()
    assert latex.startswith("$") and latex.endswith("$")
    assert drawn(equations.equation(recipe.objective)).width > 10


def test_different_losses_read_differently():
    a = Delta()
    others = [Delta(on="dyn"), Delta(norm="raw"), Delta(view="visible"), Delta(view="causal"), Delta(reduce="sum"), Kinematic(), Hard(a)]
    assert len({equations.tex(t) for t in (a, *others)}) == 1 + len(others)
    assert equations.equation(JEPA() + a) != equations.equation(JEPA() + 0.5 * a)


def alike(*terms):
    return [(a, b) for i, a in enumerate(terms) for b in terms[:i] if equations.tex(a) == equations.tex(b)]


@pytest.mark.parametrize(
    "terms",
    [
        [JEPA(**o, distance=d) for d in (None, "seen") for o in ({}, {"p": 2.0}, {"p": 2.0, "reduce": "sum"}, {"reduce": "sum"})],
        [Context(), Context(p=2.0), Context(reduce="sum"), Context(p=2.0, reduce="sum"), JEPA(), JEPA(distance="seen")],
        [Kinematic(huber=h, reduce=r, order=o) for h in (None, 0.1, 0.2) for r in ("mean", "sum") for o in (1, 2)],
        [Hamiltonian(method=m, toward=to, dt=0.1) for m in Hamiltonian.METHODS for to in ("student", "teacher")],
        [Hamiltonian(**o) for o in ({}, {"on": "dyn"}, {"norm": "raw"}, {"view": "visible"}, {"view": "causal"}, {"dt": 0.1})],
        [Hamiltonian(method="consistency", **o) for o in ({}, {"conserve": 0.1}, {"reduce": "sum"}, {"dt": 0.1}, {"norm": "raw"})],
        [Orthogonal(form=form, centre=c) for form in Orthogonal.FORMS for c in ("batch", "clip", "position", "global", "none")],
        [Orthogonal(**o) for o in ({}, {"on": "dyn"}, {"on": "app"}, {"norm": "raw"}, {"view": "visible"}, {"norm": "half"})],
        [Dynamics(on=on, foretell=what) for on in ("app", "dyn") for what in ("all", "own")],
        [VelGate(gate=g, temperature=soft) for g in ("teacher", "pixels", "released") for soft in (0.0, 0.2)],
    ],
    ids=lambda terms: type(terms[0]).__name__,
)
def test_options_that_change_the_loss_change_the_equation(terms):
    assert not alike(*terms)
    for term in terms:
        assert drawn(equations.tex(term)).width > 10


@pytest.mark.parametrize(
    ("term", "latex"),
    [
        (JEPA(), r"\langle \lvert \hat z_i - h_i \rvert \rangle_{i \in \mathrm{hidden}}"),
        (JEPA(p=2.0), r"\langle \tfrac{1}{2} \lvert \hat z_i - h_i \rvert_{2}^{2} \rangle_{i \in \mathrm{hidden}}"),
        (JEPA(p=2.0, reduce="sum"), r"\langle \tfrac{1}{2} \lVert \hat z_i - h_i \rVert_{2}^{2} \rangle_{i \in \mathrm{hidden}}"),
        (Context(p=2.0), r"d_{i,\,\mathrm{hidden}}^{-1/2} \tfrac{1}{2} \lvert \hat z_i - h_i \rvert_{2}^{2} \rangle_{i \in \mathrm{seen}}"),
        (JEPA(distance="seen"), r"\frac{\langle d_{i,\,\mathrm{seen}}^{-1/2} \lvert"),  # over the weights' own mean
        (JEPA(distance="seen"), r"{\langle d_{i,\,\mathrm{seen}}^{-1/2} \rangle_{i \in \mathrm{hidden}}}"),
        (Kinematic(huber=0.1), r"\langle \mathrm{Huber}_{0.1}(\Delta z_{t}) \rangle"),
        (Kinematic(huber=0.1, reduce="sum"), r"\langle \lVert \mathrm{Huber}_{0.1}(\Delta z_{t}) \rVert_1 \rangle"),
        (Hamiltonian(), r"\rangle_{(q,\,p)_t = z_{t},\; (q,\,p)_{t+1} = z_{t+1}}"),
        (Hamiltonian(), r"\lvert \Delta q_t - \partial_p H(q_t,\, p_{t+1}) \rvert"),
        (
            variants.recipe("hamiltonian", "released").objective.terms[-1][1],
            r"z_{t}^{\mathrm{raw},\,\mathrm{vis}},\; (q,\,p)_{t+1} = h_{t+1}}",
        ),
        (Hamiltonian(method="consistency"), r"\lvert \Phi_H(q_t,\, p_t)_q - \mathrm{sg}\,q_{t+1} \rvert_{2}^{2}"),
        (Orthogonal(), r"\tilde Z_{\mathrm{app}}^{\top} \tilde Z_{\mathrm{dyn}}"),
        (Orthogonal(centre="none"), r"(\tfrac1N Z_{\mathrm{app}}^{\top} Z_{\mathrm{dyn}})^2"),
        (Orthogonal(view="visible", centre="clip"), r"\tilde Z_{\mathrm{dyn}}^{\mathrm{vis},\,\mathrm{clip}}"),
        (Dynamics(on="dyn"), r"\Delta h_t \rvert"),
        (Dynamics(on="dyn", foretell="own"), r"\Delta h_{t,\,\mathrm{dyn}} \rvert"),
        (Delta(on="app"), r"\Delta z_{t,\,\mathrm{app}} - \Delta h_{t,\,\mathrm{app}}"),
        (Spectral(on="app"), r"\mathcal{F} (z_{\mathrm{app}} - h_{\mathrm{app}})_f"),
        (Contrast(on="app"), r"h_{t+1,\,\mathrm{app}}"),
    ],
    ids=str,
)
def test_an_equation_says_what_the_term_computes(term, latex):
    assert latex in equations.tex(term)


class Two(Schedule):
    def __call__(self, progress):
        return 2.0


def test_weights():
    assert [equations.weight(w) for w in (1, 1.0, 0.05, 1e-5, 2.5e6)] == ["", "", "0.05", "10^{-5}", r"2.5 \cdot 10^{6}"]
    assert r"1 \to 0" in equations.weight(Cosine(1.0, 0.0))
    assert r"[0.5, 1]" in equations.weight(Ramp(0.0, 0.5, begin=0.5))
    assert equations.weight(Two(0, 1)) == r"\lambda(s)"


class Swift_1(Term):
    sharpness: float = 4.0

    def error(self, view, head):
        return view.z.abs().mean(-1)


class Written(Term):
    def latex(self):
        return r"\langle \lvert z_t \rvert \rangle"

    def error(self, view, head):
        return view.z.abs().mean(-1)


def test_a_users_term_shows_as_its_class_or_as_it_says():
    assert equations.tex(Swift_1()) == r"\mathrm{Swift\_1}[z_{t}]"
    assert "(2.0)" in equations.tex(Swift_1(2.0, on="app"))
    assert equations.tex(Written()) in equations.tex(Hard(Written()))
    drawn(equations.tex(Swift_1(2.0)).replace(r"\_", ""))
    assert "Swift_1" in (JEPA() + 0.1 * Swift_1())._repr_latex_().replace("\\", "")


def test_a_page_says_what_a_recipe_is():
    recipe = vl.recipe("fwm-hw-ld")
    page = recipe._repr_html_()
    text = re.sub(r"<[^>]+>", " ", page)
    assert page.count("<tr>") == 1 + len(recipe.objective.terms)
    for words in ("fwm-hw-ld", "edition sound", "0.05", "Kinematic(on=&#x27;app&#x27;)", "295,936", "EMA teacher", "MultiBlock()"):
        assert words in text, words
    assert f"{recipe.cost().total:.0f} GFLOP" in text and f"{recipe.cost().ratio:.2f} x the baseline" in text
    odd = replace(vl.recipe("kin-l1", "released"), objective=JEPA() + 0.1 * Swift_1())
    for words in ("targets with gradient", "initial encoder", "4 levels", "constant learning rate", "grid of 16", "a recipe of its own"):
        assert words in odd._repr_html_(), words


def test_a_page_tells_the_costs_and_the_masks_of_the_size_that_is_asked_for():
    recipe, micro = vl.recipe("fwm-hw-ld"), vl.preset("micro")
    page, base = equations.page(recipe, micro), equations.page(recipe)
    assert page == equations.page(recipe, "micro") and "at micro <code>MultiBlock(" in page and "<code>MultiBlock()</code>" in page
    assert "at base <code>" not in base
    for name, gflop in {**recipe.cost(micro).passes, "total": recipe.cost(micro).total}.items():
        assert f"{gflop:.0f}" in page if gflop >= 10 else f"{gflop:.2g}" in page, name
    assert not re.search(r"[ >]0(\.0)?[ <,)]", re.sub(r"<code>.*?</code>|\\\(.*?\\\)", "", page))


def test_a_page_escapes_what_is_not_its_own():
    class Sharp(Term):
        words: str = ""

        def error(self, view, head):
            return view.z.abs().mean(-1)

    page = Recipe(JEPA() + Sharp("<script>"))._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_the_table_of_variants_shows_every_cell_in_full():
    table = vl.variants("paper", preset="smoke")
    assert list(table.columns) == ["where", "objective", "masks", "teacher", "view", "cost"] and table.index.name == "name"
    for shown in (repr(table), re.sub(r"&#x27;", "'", table._repr_html_())):
        for name in variants.names("paper"):
            assert name in shown and repr(variants.recipe(name, "paper").objective) in shown
        assert "..." not in shown
    assert table.loc["baseline", "where"] == "Table 3 and Table 4" and table.loc["baseline", "cost"] == 1.0
    assert table.loc["amg", "masks"] == "amg" and table.loc["kin-l1", "teacher"] == "online"
