"""The rows of the paper's Tables 3 and 4 as values, one line each and in its order, in up to three editions; and the controls it lacks.

sound      what we recommend to run (the default): latents normalised before an auxiliary sees them, Orthogonal as a mean over channel
           pairs, hard weights on standardised errors, an online teacher behind its stop-gradient, the student evaluated
paper      as printed, with the defaults of each term where the text is silent. Two statements of its JEPA loss differ: Eq. 1 and
           Algorithm 1 have no weights, Table 1 says "distance-weighted prediction loss". This edition follows the table, by the nearest
           reading of it, 1/sqrt(distance of a hidden token to the nearest seen one) at mean 1; the other reading is the edition sound.
           The hard-weighted copy stays unweighted, since Eq. 9 defines its errors without weights. The 1-norms of Eq. 5 and Eq. 9 are
           means over channels in every edition, this one too; Eq. 8's Frobenius norm is here the sum that is printed
released   as the paper's published code computes it, including what it does not compute: four-level targets and a context loss that sets in
           half-way (V-JEPA 2.1), positions stretched onto 16 x 16 tokens, a learning rate that stays at its peak, auxiliaries on the
           visible tokens' raw latents, the hard-weighted LD without gradient, and without EMA a target that carries gradient and an
           evaluated encoder that never trained; images repeated to fill the frames count in every term; motion for masks divided, at
           step t of every clip, by the peak of clip t of its eight (as many as there are steps), so that an image there makes step t
           count a million times in all eight (see `masks.motion_score`). Left out: V-JEPA 2.1's mark of the modality, which where every
           clip is a video is one learned vector added to all tokens, as the bias of the patch embedding is already; one mask token for
           all mask kinds (V-JEPA 2 and 2.1 number the tokens by the clips' length), where each kind has its own here, which differs
           where there are two, as in V-JEPA's masks, not in the preset micro's; and N - 1 for N in covariances of thousands of tokens.
           Data and probes are arguments elsewhere: images repeated to 16 frames (`images="repeat"`), a stride by frame rate on UCF-101,
           probes on one mean vector

All editions, `paper` and `released` too, cut masks to the shortest row of the whole batch, whatever the number of processes; the published
code cuts those of each GPU, 8 of the 32 clips, by themselves. On 8 x 14 x 14 tokens its student sees 421 of them under V-JEPA's mask of
many small blocks and 142 under that of two large ones; here, over 32 clips, it sees 354 and 92 (means of 1,000 steps).

Where an edition equals another, it is the same object. The weights that the text does not give (Accel, Huber, Split) are 0.1; the controls
kin-accel-1.0, kin-huber-1.0, kin-split-1.0 have the other one that it uses. Eq. 12 keeps the JEPA loss beside its hard-weighted copy; where
Sec. 3.8 reads as if the copy stood in its place, the controls hw-replace and fwm-hw-ld-replace do that.

Where the text leaves a choice, the choice is an argument of the term, the masks or the recipe, but for two: halves of the channels that are
learned (random ones are `Shuffled`), and motion measured before the augmentation.
"""

import html
import sys
import types
from dataclasses import replace
from functools import lru_cache

from vjepa_lab import masks
from vjepa_lab.arguments import suggest
from vjepa_lab.modifiers import Detached, Hard, Modifier, Shuffled
from vjepa_lab.objective import Objective, Recipe, Term, as_recipe, nested
from vjepa_lab.schedules import Cosine, Ramp
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
from vjepa_lab.values import read
from vjepa_lab.weighting import GradientRatio

EDITIONS = ("sound", "paper", "released")
TABLE3 = (
    *("baseline", "motion-guided", "kin-l1", "kin-l1-weak", "kin-accel", "kin-huber", "kin-split", "kin-anneal", "sigreg", "sigreg-no-ema"),
    *("hamiltonian", "velgate", "future", "motion-future"),
)
TABLE4 = (
    *("baseline", "fwm-hw-ld", "ld", "fwm", "ac-hw", "amg", "hw", "hw-ld", "fwm-ld", "combo", "delta", "ac", "fac", "ltc", "spectral"),
)

# ------------------------------------------------------------------------------------------------------------------------ sound


def hard(term: Term) -> Hard:
    """Hard weights that mean something at temperature 1."""
    return Hard(term, standardise=True)


jepa, static, orthogonal = JEPA(), Kinematic(on="app"), Orthogonal()
fwm = 0.05 * static + 0.01 * orthogonal

SOUND = {
    "baseline": Recipe(jepa),
    "motion-guided": Recipe(jepa, masks.MOTION_GUIDED),
    "kin-l1": Recipe(jepa + Kinematic(), teacher="online"),
    "kin-l1-weak": Recipe(jepa + 0.1 * Kinematic(), teacher="online"),
    "kin-accel": Recipe(jepa + 0.1 * Kinematic(order=2), teacher="online"),
    "kin-huber": Recipe(jepa + 0.1 * Kinematic(huber=1.0), teacher="online"),
    "kin-split": Recipe(jepa + 0.1 * Kinematic(order=2, on="app"), teacher="online"),
    "kin-anneal": Recipe(jepa + Cosine(1.0, 0.0) * Kinematic(), teacher="online"),
    "sigreg": Recipe(jepa + 0.1 * SIGReg()),
    "sigreg-no-ema": Recipe(jepa + 0.1 * SIGReg(), teacher="online"),
    "hamiltonian": Recipe(jepa + 0.1 * Hamiltonian()),
    # Sec. 3.2 disables EMA in "our UCF-101 kinematic runs", which may or may not mean VelGate; the published configuration leaves it on.
    "velgate": Recipe(jepa + 0.1 * VelGate()),
    "future": Recipe(jepa, masks.FUTURE),
    "motion-future": Recipe(jepa, masks.MOTION_FUTURE),
    "fwm-hw-ld": Recipe(jepa + hard(jepa) + fwm + hard(Dynamics(on="dyn"))),
    "ld": Recipe(jepa + Dynamics()),
    "fwm": Recipe(jepa + fwm),
    "ac-hw": Recipe(jepa + Pixels() + 0.3 * hard(jepa)),
    "amg": Recipe(jepa, masks.AMG),
    "hw": Recipe(jepa + 0.3 * hard(jepa)),
    "hw-ld": Recipe(jepa + hard(jepa) + hard(Dynamics())),
    "fwm-ld": Recipe(jepa + fwm + Dynamics(on="dyn")),
    "combo": Recipe(jepa + 0.5 * Delta() + 0.3 * hard(jepa), masks.AMG),
    "delta": Recipe(jepa + 0.5 * Delta()),
    "ac": Recipe(jepa + Pixels()),
    "fac": Recipe(jepa + fwm + Pixels(on="dyn")),
    "ltc": Recipe(jepa + 0.5 * Contrast()),
    "spectral": Recipe(jepa + Spectral()),
}

# ------------------------------------------------------------------------------------------------------------------------ paper


def raw(term: Objective | Term) -> Objective | Term:
    """The same with auxiliaries on the encoder's output as it is, which is how the paper writes z."""
    if isinstance(term, Objective):
        return Objective(tuple((w, raw(t)) for w, t in term))
    if isinstance(term, Modifier):
        return replace(term, term=raw(term.term))
    return term if term.view == "hidden" else replace(term, norm="raw")


def printed(recipe: Recipe) -> Recipe:
    """The same with the distance-weighted prediction loss of Table 1."""
    swapped = ((w, JEPA(distance="seen") if term == jepa else term) for w, term in recipe.objective)
    return replace(recipe, objective=Objective(tuple(swapped)))


fwm_printed = raw(0.05 * static + 0.01 * Orthogonal(form="paper"))

# The kinematic rows keep the normalised latents: Eq. 2 is written with h.
PAPER = SOUND | {
    "hamiltonian": Recipe(raw(jepa + 0.1 * Hamiltonian())),
    "velgate": Recipe(raw(jepa + 0.1 * VelGate())),
    "fwm-hw-ld": Recipe(jepa + Hard(jepa) + fwm_printed + raw(Hard(Dynamics(on="dyn")))),
    "ld": Recipe(raw(jepa + Dynamics())),
    "fwm": Recipe(jepa + fwm_printed),
    "ac-hw": Recipe(raw(jepa + Pixels() + 0.3 * Hard(jepa))),
    "hw": Recipe(jepa + 0.3 * Hard(jepa)),
    "hw-ld": Recipe(raw(jepa + Hard(jepa) + Hard(Dynamics()))),
    "fwm-ld": Recipe(jepa + fwm_printed + raw(Dynamics(on="dyn"))),
    "combo": Recipe(raw(jepa + 0.5 * Delta() + 0.3 * Hard(jepa)), masks.AMG),
    "delta": Recipe(raw(jepa + 0.5 * Delta())),
    "ac": Recipe(raw(jepa + Pixels())),
    "fac": Recipe(jepa + fwm_printed + raw(Pixels(on="dyn"))),
    "ltc": Recipe(raw(jepa + 0.5 * Contrast())),
    "spectral": Recipe(raw(jepa + Spectral())),
}
PAPER = {name: printed(row) for name, row in PAPER.items()}

# --------------------------------------------------------------------------------------------------------------------- released

coded = jepa + Ramp(0.0, 0.5, begin=0.5) * Context()  # the context loss sets in at step 15 000 of 30 000
trained = {"levels": 4, "lr": "constant", "rope_grid": 16, "images": "in"}


def released(auxiliary: Objective | Term | None = None, mask: masks.MultiBlock = masks.MULTIBLOCK) -> Recipe:
    """A row as coded: auxiliaries on visible tokens and raw four-level latents; the EMA teacher is what its scripts evaluate."""
    objective = coded if auxiliary is None else coded + raw(auxiliary).seen_as("visible")
    return Recipe(objective, mask, probe="teacher", **trained)


def without_ema(auxiliary: Objective | Term) -> Recipe:
    """As coded with `disable_ema`: targets carry gradient, and the evaluated copy keeps the weights it was born with."""
    return Recipe(coded + auxiliary, teacher="online", stop_grad=False, probe="initial", **trained)


fwm_coded = 0.05 * static + 0.01 * orthogonal
sigreg_coded = raw(SIGReg(n_scale=True, most=0, kinds="together")).seen_as("visible")

RELEASED = {
    "baseline": released(),
    "motion-guided": released(mask=masks.MOTION_GUIDED_RELEASED),
    "kin-l1": without_ema(Kinematic()),
    "kin-l1-weak": without_ema(0.1 * Kinematic()),
    "kin-accel": without_ema(0.1 * Kinematic(order=2)),
    "kin-huber": without_ema(0.1 * Kinematic(huber=0.1)),
    "kin-split": without_ema(0.1 * Kinematic(order=2, on="app")),
    "kin-anneal": without_ema(Cosine(0.1, 0.0) * Kinematic(order=2)),
    "sigreg": released(sigreg_coded),
    "sigreg-no-ema": without_ema(sigreg_coded),
    "hamiltonian": released(Hamiltonian(method="released", dt=0.1, layers=2, toward="teacher")),
    "velgate": released(VelGate(gate="released", within="step")),
    "future": released(mask=masks.FUTURE_RELEASED),
    "motion-future": released(mask=masks.MOTION_FUTURE_RELEASED),
    "fwm-hw-ld": released(Hard(jepa) + fwm_coded + Detached(Hard(Dynamics(on="dyn"), scope="mask"))),
    "ld": released(Dynamics()),
    "fwm": released(fwm_coded),
    "ac-hw": released(Pixels() + 0.3 * Hard(jepa)),
    "amg": released(mask=masks.AMG_RELEASED),
    "hw": released(0.3 * Hard(jepa)),
    "hw-ld": released(Hard(jepa) + Detached(Hard(Dynamics(), scope="mask"))),
    "fwm-ld": released(fwm_coded + Dynamics(on="dyn")),
    "combo": released(0.5 * Delta() + 0.3 * Hard(jepa), masks.AMG_RELEASED),
    "delta": released(0.5 * Delta()),
    "ac": released(Pixels()),
    "fac": released(fwm_coded + Pixels(on="dyn")),
    "ltc": released(0.5 * Contrast()),
    "spectral": released(Spectral(weights="released")),
}

# --------------------------------------------------------------------------------------------------------------------- controls

CONTROLS = {
    "random-init": Recipe(jepa, probe="initial"),  # an encoder that never trained
    "baseline-no-ema": Recipe(jepa, teacher="online"),  # what the kinematic rows change besides their term
    "kin-l1-ema": Recipe(jepa + Kinematic()),  # their term without that change
    "jepa-x2": Recipe(2 * jepa),  # AdamW hardly sees the scale of a lone loss: a second baseline run
    "hw-uniform": Recipe(jepa + 0.3 * Hard(jepa, tau=1e9)),  # hard weights that are all 1
    "hw-1.0": Recipe(jepa + hard(jepa)),  # the weight that the combinations use
    "hw-replace": Recipe(hard(jepa)),  # the hard-weighted copy in place of the JEPA loss, as Sec. 3.8 can be read
    "fwm-hw-ld-replace": Recipe(hard(jepa) + fwm + hard(Dynamics(on="dyn"))),  # the same in Eq. 12
    "kin-accel-1.0": Recipe(jepa + Kinematic(order=2), teacher="online"),  # the other weight, where the paper gives none
    "kin-huber-1.0": Recipe(jepa + Kinematic(huber=1.0), teacher="online"),
    "kin-split-1.0": Recipe(jepa + Kinematic(order=2, on="app"), teacher="online"),
    "fwm-hw": Recipe(jepa + hard(jepa) + fwm),  # the eighth cell of the ablation
    "fwm-random-split": Recipe(jepa + 0.05 * Shuffled(static) + 0.01 * Shuffled(orthogonal)),  # halves of random channels
    "ld-full-in-fwm": Recipe(jepa + hard(jepa) + fwm + hard(Dynamics())),  # the full method without the slice of its dynamics head
    "aux-gradnorm": replace(SOUND["fwm-hw-ld"], weighting=GradientRatio()),  # every auxiliary at one gradient ratio
    "straighten": Recipe(jepa + 0.1 * Straight()),  # the scale-free cousin of kin-accel
}

BY_EDITION = {"sound": SOUND | CONTROLS, "paper": PAPER, "released": RELEASED}


def names(edition: str = "sound") -> tuple[str, ...]:
    """Names of an edition's rows in the paper's order; the sound edition has the controls too."""
    return tuple(_rows(edition))


def recipe(name: str | Recipe | Objective | Term, edition: str = "sound") -> Recipe:
    """A recipe by the name of its row, from an expression such as "JEPA() + 0.1*Kinematic()", or from a value.

    Raises ValueError for an unknown name (with the near ones), an unknown edition, or an expression of anything but this package's values.
    """
    rows = _rows(edition)
    if not isinstance(name, str):
        return as_recipe(name)
    if name in rows:
        return rows[name]
    if "(" in name:
        return as_recipe(read(name))
    if name in CONTROLS:
        raise ValueError(f"{name!r} is a control of ours: it has the edition 'sound' only, not {edition!r}")
    raise ValueError(f"unknown variant {name!r}: {suggest(name.lower(), rows)} (an expression such as 'JEPA() + Dynamics()' works too)")


def parts_of(name: str) -> tuple[str, ...]:
    """What a named row is made of beside JEPA: its terms and modifiers, "masks" and "no EMA"; ("own",) for a name that is no row."""
    try:
        made = recipe(name)
    except ValueError:
        return ("own",)
    found = [type(part).__name__ for _, term in made.objective for part in nested(term)]
    masks = ("masks",) if made.masks != recipe("baseline").masks else ()
    ema = ("no EMA",) if made.teacher != "ema" else ()
    return tuple(dict.fromkeys(part for part in found if part != "JEPA")) + masks + ema


def name_of(value: Recipe) -> tuple[str, str] | None:
    """(name, edition) of a recipe that equals a named one, else None."""
    for edition, rows in BY_EDITION.items():
        for name, row in rows.items():
            if row == value:
                return name, edition
    return None


def _rows(edition: str) -> dict[str, Recipe]:
    if edition not in BY_EDITION:
        raise ValueError(f"unknown edition {edition!r}: expected one of {', '.join(BY_EDITION)}")
    return BY_EDITION[edition]


def table(edition: str = "sound", preset: str = "base"):
    """Every row of an edition, a pandas table that shows itself in full in a terminal and in a notebook.

    name (index), where in the paper, objective as an expression, masks, teacher, views of the auxiliaries, and the cost: GFLOP of a
    training step at `preset` against the baseline's.
    """
    rows = []
    for name, value in _rows(edition).items():
        places = [f"Table {number}" for number, rows_ in ((3, TABLE3), (4, TABLE4)) if name in rows_]
        seen = {t.view for _, t in value.objective} - {"hidden"}
        rows.append(
            {
                "name": name,
                "where": " and ".join(places) or "control",
                "objective": repr(value.objective),
                "masks": next((k.lower() for k, v in vars(masks).items() if v == value.masks), repr(value.masks)),
                "teacher": value.teacher,
                "view": ", ".join(sorted(seen)),
                "cost": round(value.cost(preset).ratio, 2),
            }
        )
    return _in_full()(rows).set_index("name")


@lru_cache
def _in_full() -> type:
    """A pandas table whose cells are never cut short."""
    import pandas as pd

    class Table(pd.DataFrame):
        @property
        def _constructor(self):
            return Table

        def __repr__(self) -> str:
            return self.to_string(float_format="%.2f")

        def _repr_html_(self) -> str:
            from vjepa_lab.equations import grid

            cells = [
                [html.escape(f"{cell:.2f}" if isinstance(cell, float) else str(cell)) for cell in row]
                for row in self.reset_index().itertuples(index=False)
            ]
            names = [self.index.name or "", *map(str, self.columns)]
            written = {i for i, name in enumerate(names) if name in ("objective", "masks")}
            return grid(names, [[f"<code>{cell}</code>" if i in written else cell for i, cell in enumerate(row)] for row in cells])

    return Table


class _Callable(types.ModuleType):
    """`vl.variants()` shows the table, `vl.variants.recipe(...)` and the like stay what they are."""

    def __call__(self, edition: str = "sound", preset: str = "base"):
        return table(edition, preset)


sys.modules[__name__].__class__ = _Callable
