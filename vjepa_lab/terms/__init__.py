"""The terms, one equation each. Equation numbers are those of arXiv:2605.17165; where its text is silent, the docstring names the choice.

Every term about change is a differentiable zero on an image (t = 1) and leaves images among clips out. Means are over all entries of the
map unless a term says otherwise.
"""

from vjepa_lab.terms.change import Contrast, Delta, Dynamics, Kinematic, Pixels, Spectral, Straight, VelGate
from vjepa_lab.terms.common import mlp, positive, token_distance
from vjepa_lab.terms.physics import Hamiltonian
from vjepa_lab.terms.prediction import JEPA, Context
from vjepa_lab.terms.statistics import SIGREG, Orthogonal, SIGReg
from vjepa_lab.training.processes import over_processes
from vjepa_lab.values import check, whole

__all__ = [
    "JEPA",
    "SIGREG",
    "Context",
    "Contrast",
    "Delta",
    "Dynamics",
    "Hamiltonian",
    "Kinematic",
    "Orthogonal",
    "Pixels",
    "SIGReg",
    "Spectral",
    "Straight",
    "VelGate",
    "check",
    "mlp",
    "over_processes",
    "positive",
    "token_distance",
    "whole",
]
