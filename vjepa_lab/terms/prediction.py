"""Terms on what the predictor says: of hidden places, and of seen ones."""

from dataclasses import field

from vjepa_lab.objective import ErrorMap, Term
from vjepa_lab.terms.common import Distance, positive, token_distance
from vjepa_lab.values import check


class JEPA(Distance):
    """Predict the teacher at hidden places: |pred - h|^p / p (Eq. 1; vjepa2 app/vjepa/train.py with p = 1).

    distance  None: all hidden tokens alike, as Eq. 1 is printed and V-JEPA and V-JEPA 2 train; "seen": each weighs 1/sqrt(distance to
              the nearest seen token), normalised to mean 1, one reading of Table 1's "distance-weighted". V-JEPA 2.1 weighs by distance
              too, but in a loss on seen places: `Context`.
    """

    temporal = False
    p: float = 1.0
    distance: str | None = None
    view: str = field(default="hidden", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        _of_all_channels(self)
        check(self, distance=(None, "seen"))
        positive(self, "p")

    def error(self, view, head):  # [b m]
        gap = (view.pred - view.target).abs()
        error = self.over_channels(gap if self.p == 1 else gap**self.p / self.p)
        if self.distance is None:
            return error
        weight = token_distance(view, view.hidden, view.seen, view.mask.seen_valid).rsqrt()
        return ErrorMap(error, weight if view.valid is None else weight * view.valid)


class Context(Distance):
    """Predict the teacher at seen places too, the more the nearer they are to a hidden one: |context - h|^p / (p sqrt(distance))
    (V-JEPA 2.1, vjepa2 app/vjepa_2_1/train.py; its weight there ramps from 0 to 0.5 in the second half of training)."""

    temporal = False
    p: float = 1.0
    view: str = field(default="hidden", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        _of_all_channels(self)
        positive(self, "p")

    def error(self, view, head):  # [b k]
        target = view.h.flatten(1, 3).gather(1, view.seen.unsqueeze(-1).expand_as(view.context))
        error = self.over_channels((view.context - target).abs() ** self.p / self.p)
        nearness = token_distance(view, view.seen, view.hidden, view.mask.hidden_valid).rsqrt()
        return ErrorMap(error * nearness, view.mask.seen_valid)  # the distances are not normalised away, as upstream


def _of_all_channels(term: Term) -> None:
    """Refuse `on` and `norm` in a term that does not look at z, which is what they are about."""
    if (term.on, term.norm) != ("all", "layer"):
        raise ValueError(
            f"{term!r}: it compares the predictor's output with the teacher, on all channels, and does not look at z, which `on` and "
            "`norm` are about; leave them out"
        )
