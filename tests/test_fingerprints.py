"""Classes of one's own that a recipe is made of: an edited one makes another run, and a run of them is not read back without them."""

import json

import pytest

import vjepa_lab as vl
from vjepa_lab import masks, schedules, weighting
from vjepa_lab.masks import MultiBlock
from vjepa_lab.modifiers import Hard
from vjepa_lab.objective import Recipe, Term
from vjepa_lab.terms import JEPA, Delta
from vjepa_lab.training.runs import own_terms

QUICK = {"preset": "smoke", "progress": False, "log_every": 1}


@pytest.fixture(scope="module")
def world():
    """A little of the synthetic world, in memory."""
    return vl.data.open("synthetic", frames=8, size=32, n=24, cache="memory")


class Quiet(Term):
    def error(self, view, head):
        return view.z.abs().mean(-1)


def planned(text: str) -> Recipe:
    """A recipe whose schedule, weighting and masks are of classes as a notebook defines them."""
    space = {name: value for module in (masks, schedules, weighting) for name, value in vars(module).items()} | {"__name__": "nowhere"}
    exec(text, space)
    blocks = MultiBlock(kinds=(space["Tubes"](1, 0.3),), where=space["Somewhere"]())
    return Recipe(JEPA() + Hard(Quiet()) + space["Wave"](1.0, 0.0) * Delta(), masks=blocks, weighting=space["Gate"]())


PLANNED = """
class Wave(Schedule):
    def __call__(self, progress):
        return self.end + (self.start - self.end) * progress

class Gate(Weighting):
    def weights(self, gram, own, solver=None):
        return own * (gram[0] > 0)

class Tubes(Blocks):
    def size(self, grid, generator):
        return Size(grid[0], 1, 1)

class Somewhere(Uniform):
    def corners(self, score, shape, size, grid, generator):
        return super().corners(score, shape, size, grid, generator) * 0
"""


@pytest.mark.parametrize(("kind", "edit"), [
    ("Wave", ("* progress", "* progress**2")), ("Gate", ("> 0", ">= 0")), ("Tubes", ("1, 1)", "2, 2)")), ("Somewhere", ("* 0", "* 1")),
])  # fmt: skip
def test_every_class_of_ones_own_in_a_recipe_is_known_by_its_source(kind, edit):
    before, same, after = (own_terms(planned(text)) for text in (PLANNED, PLANNED, PLANNED.replace(*edit)))
    assert set(before) == {"Quiet", "Wave", "Gate", "Tubes", "Somewhere"} and same == before
    assert {name for name in before if before[name] != after[name]} == {kind}
    assert own_terms(vl.recipe("fwm-hw-ld")) == own_terms(vl.recipe("kin-anneal").objective) == {}


def test_an_edited_schedule_is_another_run(world, tmp_path):
    first, second = (planned(text).objective for text in (PLANNED, PLANNED.replace("* progress", "* progress**2")))
    run = vl.pretrain(first, world, out=tmp_path, **QUICK)
    with pytest.raises(ValueError, match=r"own_terms.Wave: '\w+' there"):
        vl.pretrain(second, world, out=tmp_path, **QUICK)
    with pytest.raises(ValueError, match=r"uses .*Wave, defined elsewhere; pass recipe="):
        _ = run.recipe


def test_a_recipe_that_cannot_be_read_says_what_to_do(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"own_terms": {}}))
    (tmp_path / "recipe.txt").write_text("Recipe(JEPA() + Wave(1.0, 0.0)*Delta())\n")
    with pytest.raises(ValueError, match=r"recipe.txt: cannot read 'Wave.*; if it uses a class defined elsewhere, pass recipe="):
        _ = vl.load_run(tmp_path).recipe
