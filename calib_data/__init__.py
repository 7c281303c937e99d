"""Embedded example: a small Fashion-MNIST model and its calibration and evaluation images."""

from pathlib import Path


def path(name: str) -> Path:
    """Return the location of an embedded file: fashion_resnet.onnx, calib.npz or eval.npz."""
    file = Path(__file__).with_name(name)
    if not file.is_file():
        raise FileNotFoundError(f"no embedded file {name!r}")
    return file
