"""Shared fixtures. Real clips have no redistribution licence: they lie beside the repository or the tests that need them skip."""

from pathlib import Path

# Before torch, for which it sets how idle threads wait: spinning ones make the tests crawl on a machine that does anything else.
import vjepa_lab  # noqa: F401  # isort: skip
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


@pytest.fixture(scope="module")
def one_thread():
    """Sums in another number of threads differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
