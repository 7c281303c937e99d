"""What tests of calibration share: where they compute, and temporary files."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pdq_export.calibrate import spill

from .networks import Where


@pytest.fixture(scope="module")
def calibrates_on(device: torch.device) -> Iterator[torch.device]:
    """What tests calibrate by way of `networks` is calibrated there: on the CPU, and on a GPU where there is one."""
    Where.device = device
    yield device
    Where.device = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, empty."""
    monkeypatch.setattr(spill.tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def small_tensors_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step moves tensors of any size out of memory."""
    monkeypatch.setattr("pdq_export.calibrate.offload._SMALLEST", 1)
