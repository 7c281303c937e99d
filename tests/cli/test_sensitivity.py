"""`pdq-export sensitivity`: the table, JSON, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result

from tests.calibrate.networks import residual

Run = Callable[..., Result]


@pytest.fixture
def asked(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command on a small network and images of the current folder."""
    monkeypatch.setenv("PDQ_EXPORT_CACHE", str(folder / "runs"))
    example = residual(images=32)
    onnx.save(example.prepared.model, folder / "net.onnx")
    np.save(folder / "calib.npy", example.images.numpy())
    return lambda *arguments: run("sensitivity", "net.onnx", "--calib", "calib.npy", "--samples", "16", *arguments)


def test_the_table(asked: Run) -> None:
    result = asked("--allowed-bits", "2,4", "--pairs")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("16 images of calib.npy")
    assert lines[0].endswith("7 tensors, worst first")
    assert "KL divergence" in lines[1]
    rows = [line.split() for line in lines if any(f" {role} " in line for role in "WA")]
    assert len(rows) == 7
    losses = [float(row[-2]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert any("beside" in line for line in lines)


def test_json(asked: Run) -> None:
    result = asked("--allowed-bits", "8,2", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["schema_version"], found["widths"], found["measure"]) == (1, [2, 8], "kl")
    assert (found["images"], found["estimate"], found["pairs"]) == (16, "fisher", [])
    for group in found["groups"]:
        assert group["prediction"][0] > group["prediction"][1] >= 0
        assert len(group["block_error"]) == 2
    assert asked("--allowed-bits", "2,8", "--json").stdout == result.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--allowed-bits", "two"], "--allowed-bits 'two': expected bits from 2 to 8"),
        (["--allowed-bits", "9"], "--allowed-bits '9': expected bits from 2 to 8"),
        (["--samples", "0"], "--samples 0: expected a whole number"),
        (["--estimate", "measured", "--pairs"], "expected --estimate fisher"),
        (["--target", "tensorrt", "--bits", "8/8", "--allowed-bits", "4"], "--target tensorrt has none of them"),
    ],
)
def test_wrong_options(asked: Run, arguments: list[str], told: str) -> None:
    result = asked(*arguments)
    assert result.exit_code == 2
    assert told in result.stderr


def test_without_images(run: Run) -> None:
    result = run("sensitivity", "model.onnx")
    assert result.exit_code == 2
    assert "no calibration images" in result.stderr
