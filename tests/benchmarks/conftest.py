"""A model and a few images, so that a benchmark takes seconds."""

from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).resolve().parents[2] / "calib_data"


@pytest.fixture
def model() -> Path:
    """The embedded network."""
    return DATA / "fashion_resnet.onnx"


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    """Eight calibration images and twenty evaluation images, labelled."""
    return _head("calib.npz", 8, tmp_path), _head("eval.npz", 20, tmp_path)


def _head(name: str, count: int, folder: Path) -> Path:
    with np.load(DATA / name) as data:
        arrays = {key: data[key][:count] if key in ("images", "labels") else data[key] for key in data}
    np.savez(folder / name, **arrays)
    return folder / name
