"""vjepa_lab: an interactive kit for studying what auxiliary objectives do to a Video JEPA.

The names a notebook needs; each module loads when first used, so that `import vjepa_lab` is instant.
"""

import importlib
import os

# Idle OpenMP threads sleep instead of spinning, which on a CPU that does anything else besides keeps others, the step's own among them,
# from working. Both must be set before torch is loaded; values of the user's own are kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Huge pages for large tensors on a CPU, where Linux offers them: the system hands out memory page by page, and a step's is gigabytes.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

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
_MODULES = {
    "": (
        "objective terms modifiers equations schedules variants masks model presets train data weights plots structure "
        "weighting bench widgets notebook study"
    ),
    "training": "checkpoint health launch locks logbook loop meters processes provenance runs trainer",
    "evaluation": "ava boxes classifier evaluate features finetuning heads layers multiview pixels probes scoring yardsticks",
    "analysis": (
        "alignment changes collected diagnose ends foretelling geometry gradients halves motion openset readers representation retention "
        "robustness shifts subjects throughput toys transfer"
    ),
    "plots": "paper",
    "evidence": "claims elementwise factorials intervals planning predicates results stats verdicts worlds",
}
_PLACE = {module: f"{folder}.{module}".strip(".") for folder, modules in _MODULES.items() for module in modules.split()}
_WHERE = {name: module for module, names in _HOME.items() for name in names.split()}
__all__ = [*_WHERE, *_PLACE]


def _module(name: str):
    return importlib.import_module(f"{__name__}.{_PLACE.get(name, name)}")


def __getattr__(name: str):
    if name in _WHERE:
        value = getattr(_module(_WHERE[name]), name)
    elif name in _PLACE:
        value = _module(name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
