"""The named rows of the paper's Tables 3 and 4 as values, one line each, in up to three editions.

sound      what we recommend to run (the default): latents normalised before an auxiliary sees them, Orthogonal as a mean over channel
           pairs, hard weights on standardised errors, an online teacher behind its stop-gradient, the student evaluated
paper      as printed
released   as the paper's published code computes it, including what it does not compute (added with the audit)
"""

import difflib
from dataclasses import replace

from vjepa_lab.objective import Objective, Recipe, Term, as_recipe
from vjepa_lab.terms import JEPA, Dynamics, Hard, Kinematic, Orthogonal
from vjepa_lab.values import read

EDITIONS = ("sound", "paper")


def raw(objective: Objective | Term) -> Objective:
    """The same objective with auxiliaries on the encoder's output as it is, as the paper writes them."""
    return Objective(tuple((w, t if isinstance(t, Hard) or t.view == "hidden" else replace(t, norm="raw")) for w, t in objective))


def hard(term: Term) -> Hard:
    return Hard(term, standardise=True)


FWM = 0.05 * Kinematic(on="app") + 0.01 * Orthogonal()
FWM_PAPER = raw(0.05 * Kinematic(on="app") + 0.01 * Orthogonal(form="paper"))

SOUND = {
    "baseline": Recipe(JEPA()),
    "kin-l1": Recipe(JEPA() + Kinematic(), teacher="online"),
    "kin-l1-weak": Recipe(JEPA() + 0.1 * Kinematic(), teacher="online"),
    "fwm-hw-ld": Recipe(JEPA() + hard(JEPA()) + FWM + hard(Dynamics(on="dyn"))),
    "ld": Recipe(JEPA() + Dynamics()),
    "fwm": Recipe(JEPA() + FWM),
    "hw": Recipe(JEPA() + 0.3 * hard(JEPA())),
    "hw-ld": Recipe(JEPA() + hard(JEPA()) + hard(Dynamics())),
    "fwm-ld": Recipe(JEPA() + FWM + Dynamics(on="dyn")),
}

PAPER = SOUND | {
    "fwm-hw-ld": Recipe(JEPA() + Hard(JEPA()) + FWM_PAPER + Hard(Dynamics(on="dyn", norm="raw"))),
    "ld": Recipe(JEPA() + Dynamics(norm="raw")),
    "fwm": Recipe(JEPA() + FWM_PAPER),
    "hw": Recipe(JEPA() + 0.3 * Hard(JEPA())),
    "hw-ld": Recipe(JEPA() + Hard(JEPA()) + Hard(Dynamics(norm="raw"))),
    "fwm-ld": Recipe(JEPA() + FWM_PAPER + Dynamics(on="dyn", norm="raw")),
}

BY_EDITION = {"sound": SOUND, "paper": PAPER}


def names() -> tuple[str, ...]:
    """Names of all rows, in the paper's order."""
    return tuple(SOUND)


def recipe(name: str | Recipe | Objective | Term, edition: str = "sound") -> Recipe:
    """A recipe by the name of its row, from an expression such as "JEPA() + 0.1*Kinematic()", or from a value.

    Raises ValueError for an unknown name (with the near ones), an unknown edition, or an expression of anything but this package's values.
    """
    if not isinstance(name, str):
        return as_recipe(name)
    if edition not in BY_EDITION:
        raise ValueError(f"unknown edition {edition!r}: expected one of {', '.join(BY_EDITION)}")
    rows = BY_EDITION[edition]
    if name in rows:
        return rows[name]
    if "(" in name:
        return as_recipe(read(name))
    near = difflib.get_close_matches(name, rows, cutoff=0.4) or list(rows)
    raise ValueError(f"unknown variant {name!r}: did you mean {' or '.join(near)}? (an expression such as 'JEPA() + Dynamics()' works too)")


def name_of(value: Recipe) -> tuple[str, str] | None:
    """(name, edition) of a recipe that equals a named one, else None."""
    for edition, rows in BY_EDITION.items():
        for name, row in rows.items():
            if row == value:
                return name, edition
    return None
