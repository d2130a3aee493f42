"""vjepa_lab: an interactive kit for studying what auxiliary objectives do to a Video JEPA.

The names a notebook needs; each module loads when first used, so that `import vjepa_lab` is instant.
"""

import importlib
import os

# Idle OpenMP threads sleep instead of spinning: on a CPU that does anything else besides, spinning makes a training step several times
# slower. It must be set before torch is loaded; a value of the user's own is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_HOME = {
    "objective": "Term View ErrorMap Objective Loss Recipe diff",
    "schedules": "Cosine Ramp",
    "modifiers": "Hard",
    "terms": "JEPA Kinematic Delta Dynamics Orthogonal",
    "variants": "recipe",
    "masks": "MultiBlock Blocks Motion",
    "model": "Encoder Predictor VJEPA Latents",
    "presets": "Preset preset PRESETS",
    "train": "pretrain Run load_run",
    "evaluate": "probe",
    "weights": "encoder",
    "finetuning": "finetune",
    "planning": "plan",
    "yardsticks": "baselines",
}
_MODULES = [
    "objective",
    "terms",
    "modifiers",
    "equations",
    "schedules",
    "variants",
    "masks",
    "model",
    "presets",
    "train",
    "data",
    "probes",
    "weights",
    "ava",
    "results",
    "plots",
    "stats",
    "planning",
    "structure",
    "paper",
    "verdicts",
    "claims",
    "diagnose",
    "gradients",
    "alignment",
    "weighting",
    "toys",
    "throughput",
    "subjects",
    "motion",
    "retention",
    "geometry",
    "representation",
    "halves",
    "robustness",
    "openset",
    "transfer",
    "shifts",
    "readers",
    "bench",
    "widgets",
    "notebook",
]
_WHERE = {name: module for module, names in _HOME.items() for name in names.split()}
__all__ = [*_WHERE, *_MODULES]


def __getattr__(name: str):
    if name in _WHERE:
        value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
