"""Fixtures of the command line: a folder to work in, a runner, and a stand-in for the pipeline."""

import logging
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pdq_export.cli import app

from .fakes import FakePipeline


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command sets up logging for its process; other tests of this process need it as it was."""
    loggers = [logging.getLogger(name) for name in ("pdq_export", "pdq_export.cli", "py.warnings")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    logging.captureWarnings(False)
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    fake = FakePipeline()
    module = types.ModuleType("pdq_export.pipeline")
    module.quantize = fake.quantize  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pdq_export.pipeline", module)
    return fake


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with a model and calibration images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"a model")
    np.save(tmp_path / "images.npy", np.zeros((1, 1, 2, 2), np.float32))
    return tmp_path


Run = Callable[..., Result]


@pytest.fixture
def run(folder: Path) -> Run:
    """Runs the command line in `folder`."""

    def run(*args: str | Path) -> Result:
        return CliRunner().invoke(app, [str(arg) for arg in args])

    return run
