"""Gradients of finished runs: the same numbers as of runs that were watched while they trained."""

import pandas as pd
import pytest

import vjepa_lab as vl
from vjepa_lab import __main__ as cli
from vjepa_lab import alignment, ends
from vjepa_lab.objective import Recipe, Term
from vjepa_lab.terms import JEPA, Dynamics, Kinematic

HOW = {"preset": "smoke", "progress": False}
RECIPE = Recipe(JEPA() + 0.5 * Dynamics(hidden=8) + 0.1 * Kinematic())
DATA = "synthetic"


@pytest.fixture(scope="module")
def probe():
    size = vl.preset("smoke")
    train, test = (vl.data.open(DATA, split, frames=size.frames, size=size.size) for split in ("train", "test"))
    return alignment.ProbeSet.of(train, test, ["motion"], clips=24, fit=24)


def test_both_ends_are_what_watching_measures(probe, tmp_path):
    watched = vl.pretrain(RECIPE, DATA, out=tmp_path / "watched", probe=alignment.Watch(probe, at=(0, 1)), seed=3, **HOW)
    plain = vl.pretrain(RECIPE, DATA, out=tmp_path / "plain", seed=3, **HOW)
    found = ends.align([tmp_path / "plain"], ["motion"], clips=24, fit=24)
    seen = pd.read_csv(watched.path / alignment.FILE).query("metric != 'adam'")
    keys = ["step", "term", "group", "metric"]
    one, two = (table.set_index(keys).sort_index()[["value", "lo", "hi"]] for table in (seen, pd.read_csv(plain.path / alignment.FILE)))
    pd.testing.assert_frame_equal(one, two)
    assert list(one.index.unique("step")) == [0, plain.preset.steps] and len(one) > 20
    assert set(found["variant"]) == {plain.config["variant"]} and set(found["run"]) == {"plain"}


def test_what_is_measured_stays_and_what_cannot_be_is_passed_over(tmp_path):
    for name in ("ld", "random-init"):
        vl.pretrain(name, DATA, runs=tmp_path, **HOW)
    (tmp_path / "notes").mkdir()
    ends.align([str(tmp_path)], clips=24)
    (run,) = ends.finished([tmp_path])
    (run.path / alignment.FILE).write_text((run.path / alignment.FILE).read_text().replace("cosine", "kept"))
    assert {"kept", "plain kept"} <= set(ends.align([str(tmp_path)], clips=24)["metric"])
    with pytest.raises(FileNotFoundError, match="notes: no finished run there"):
        ends.align([str(tmp_path / "notes")])


def test_what_cannot_be_rebuilt_is_passed_over_by_name(probe, tmp_path):
    class Still(Term):
        def error(self, view, head):
            return view.z.square().mean(-1)

    own = Recipe(JEPA() + 0.1 * Still())
    mine = vl.pretrain(own, DATA, out=tmp_path / "mine", **HOW)
    bare, plain = (vl.pretrain(name, DATA, out=tmp_path / name, **HOW) for name in ("ld", "straighten"))
    (bare.path / "last.pt").unlink()
    with pytest.warns(UserWarning) as told:
        found = ends.align([tmp_path], clips=24)
    assert set(found["run"]) == {"straighten"} and (plain.path / alignment.FILE).exists()
    said = " ".join(str(each.message) for each in told)
    assert "mine uses Still, defined elsewhere" in said and "ld: its weights were deleted" in said
    assert alignment.TOGETHER in set(ends.ends(mine, probe, recipe=own)["term"])
    with pytest.raises(ValueError, match=r"no run can be measured; .*mine uses Still"):
        ends.align([mine])


def test_a_recipe_is_measured_with_the_masks_that_it_trained_with(probe, tmp_path):
    """A size may have masks of its own, which the recipe does not name."""
    run = vl.pretrain("ld", DATA, out=tmp_path / "ld", masks=vl.preset("micro").masks, **HOW)
    written = vl.variants.recipe("ld")
    assert written.masks != run.recipe.masks
    pd.testing.assert_frame_equal(ends.ends(run, probe, recipe=written), ends.ends(run, probe))


def test_the_command(tmp_path, capsys):
    vl.pretrain("ld", DATA, runs=tmp_path, **HOW)
    assert cli.main(["align", str(tmp_path), "--labels", "motion", "--clips", "24", "--fit", "24"]) == 0
    out = capsys.readouterr().out
    assert "utility/motion" in out and "norm ratio" in out and "means over seeds (1 runs in all)" in out
    (run,) = ends.finished([tmp_path])
    table = pd.read_csv(run.path / alignment.FILE).query("group == 'all' and metric == 'utility/motion'").set_index(["term", "progress"])
    for term in (alignment.MAIN, alignment.TOGETHER):  # each its own, not their mean
        (line,) = (line for line in out.splitlines() if f" {term} " in line and " 0.0 " in line)
        assert f"{table.loc[(term, 0.0), 'value']:.3f}".rstrip("0") in line
    assert cli.main(["align", str(tmp_path / "none")]) == 1
    assert "none: no finished run there" in capsys.readouterr().err
