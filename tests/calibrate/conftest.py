"""What tests of memory share."""

from pathlib import Path

import pytest

from pdq_export.calibrate import spill


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, empty."""
    monkeypatch.setattr(spill.tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def small_tensors_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step moves tensors of any size out of memory."""
    monkeypatch.setattr("pdq_export.calibrate.offload._SMALLEST", 1)
