"""What all tests share: one torch thread a worker, and the models and data that are not part of the project."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Each pytest-xdist worker is a process of its own; more threads than one would only fight over the cores.
torch.set_num_threads(1)

# No deadlines: a busy machine is not a failure. In CI the same examples every time.
settings.register_profile("pdq_export", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("pdq_export")


@pytest.fixture
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales from the range alone: the search, which has tests of its own, takes minutes on millions of weights."""
    monkeypatch.setattr("pdq_export.numerics.search.FRACTIONS", 1)
    monkeypatch.setattr("pdq_export.numerics.search._MAX_ENUMERATED_BITS", 0)


_SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder `shared` beside the checkout; a test that asks for it is skipped without it."""
    if not (_SHARED / "models").is_dir():
        pytest.skip("needs the folder ../shared (models and data that are not part of the project)")
    return _SHARED


@pytest.fixture(scope="session")
def shared_models(shared_dir: Path) -> Path:
    """``shared/models``."""
    return shared_dir / "models"


@pytest.fixture(scope="session")
def shared_data(shared_dir: Path) -> Path:
    """``shared/data``."""
    return shared_dir / "data"
