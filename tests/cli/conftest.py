"""Fixtures of the command line: a folder to work in, a runner, and a stand-in for the pipeline."""

import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pdq_export.cli import app

from .fakes import FakePipeline


@pytest.fixture(autouse=True)
def _logging_as_before(logging_as_before: None) -> None:
    """Every test here may run a command."""


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    fake = FakePipeline()
    module = types.ModuleType("pdq_export.commands.quantize")
    module.quantize = fake.quantize  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pdq_export.commands.quantize", module)
    return fake


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a model and images, and nothing else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"a model")
    np.save(tmp_path / "images.npy", np.zeros((1, 1, 2, 2), np.float32))
    np.savez(tmp_path / "eval.npz", images=np.zeros((1, 1, 2, 2), np.float32))
    return tmp_path


Run = Callable[..., Result]


@pytest.fixture
def run(folder: Path) -> Run:
    """Runs the command line in `folder`."""

    def run(*args: str | Path) -> Result:
        return CliRunner().invoke(app, [str(arg) for arg in args])

    return run
