"""What all tests share: one torch thread a worker, and the models and data that are not part of the project."""

from pathlib import Path

import pytest
import torch

# Each pytest-xdist worker is a process of its own; more threads than one would only fight over the cores.
torch.set_num_threads(1)

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
