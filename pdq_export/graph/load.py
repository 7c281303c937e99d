"""Read an ONNX file."""

from pathlib import Path

import onnx

from pdq_export.errors import ModelError


def load_model(path: str | Path) -> onnx.ModelProto:
    """Read an ONNX file with its external data. Raises ModelError."""
    try:
        return onnx.load(path)
    except Exception as error:
        raise ModelError(f"{path}: {error}") from error
