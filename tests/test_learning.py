"""Does training teach anything? Without this, no comparison of objectives would mean anything."""

import numpy as np
import pytest

import vjepa_lab as vl

LABELS = ("motion", "shape", "texture")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_micro_baseline_beats_its_own_initial_encoder(tmp_path):
    """The plain baseline at micro size on the plain synthetic world: linear probes on its frozen encoder against the same encoder before
    training, for motion and for appearance, in each of three seeds."""
    gains = []
    for seed in range(3):
        run = vl.pretrain("baseline", "synthetic:plain", "micro", seed, runs=tmp_path, progress=False)
        trained, untrained = (vl.probe(run, labels=LABELS, encoder=which, progress=False) for which in ("student", "initial"))
        gains.append([a.value() - b.value() for a, b in zip(trained, untrained, strict=True)])
    gains = dict(zip(LABELS, np.transpose(gains), strict=True))
    assert gains["motion"].min() > 10, gains
    assert gains["texture"].mean() > 2, gains
    assert gains["shape"].mean() > 2, gains
