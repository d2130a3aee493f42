"""The reference study: every row of the paper and every control, five seeds each, at micro size on the plain factor world.

    python -m vjepa_lab study run studies/reference.py --collected data/reference    # without it, what is there is run again
    python -m vjepa_lab study collect studies/reference.py --to data/reference

About five minutes a run on an idle core of a 2-core Xeon with AMX. The rows of the paper's main question come first, with all their seeds;
then the other rows and controls; then the rows as the published code computes them. What is finished can be read at any time. The rows
that the published code evaluates untrained cost their probes only.
"""

from vjepa_lab import variants
from vjepa_lab.study import Benchmark, Regime, Study

FIRST = ("baseline", "random-init", "fwm-hw-ld", "ld", "hw", "fwm-ld", "hw-ld", "fwm", "fwm-hw", "kin-l1", "straighten")

study = Study(
    "reference",
    variants=variants.names("sound"),
    first=FIRST,
    without=("spectral-released-*-micro-*",),  # at this size the published term counts no place: these runs would be the baseline's
    editions=("sound", "released"),
    regimes=(Regime("plain", "synthetic:plain"),),
    benchmarks=(
        Benchmark("factors", labels=("motion", "speed", "shape", "texture")),
        Benchmark("order", data="synthetic:plain-order", labels=("order", "motion"), probe="stepwise"),
    ),
    seeds=range(5),
    preset="micro",
    keep="model",
    bf16=True,  # as the first runs were: what differs between two of them should not be precision
)
