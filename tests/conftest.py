"""Shared fixtures. Real clips have no redistribution licence: they lie beside the repository or the tests that need them skip."""

from pathlib import Path

import pytest
import torch

CLIPS = Path(__file__).resolve().parents[2] / "shared" / "clips"


@pytest.fixture(scope="session")
def clips() -> Path:
    """Folder of real video clips beside the repository."""
    if not CLIPS.is_dir():
        pytest.skip("the real clips (../shared/clips) are not on this machine")
    return CLIPS


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same torch seed; a test that wants another sets it."""
    torch.manual_seed(0)
