"""`pdq-export example`: copies of the embedded files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from pdq_export import calib_data

Run = Callable[..., Result]


def test_copies_and_says_how_to_go_on(run: Run, folder: Path) -> None:
    result = run("example")
    assert result.exit_code == 0, result.output
    assert "pdq-export quantize calib_data/fashion_resnet.onnx --bits 4/8" in result.stdout
    for name in ("fashion_resnet.onnx", "calib.npz", "eval.npz"):
        assert (folder / "calib_data" / name).read_bytes() == calib_data.path(name).read_bytes()
    assert (folder / "calib_data" / "README.md").exists()
    with np.load(folder / "calib_data" / "calib.npz") as archive:
        assert "images" in archive


def test_another_folder(run: Run, folder: Path) -> None:
    result = run("example", "new/place")
    assert (folder / "new" / "place" / "calib_data" / "calib.npz").exists()
    assert "cd new/place && pdq-export quantize" in result.stdout


@pytest.mark.parametrize("name", ["calib.npz", "README.md"])
def test_nothing_is_replaced(run: Run, folder: Path, name: str) -> None:
    (folder / "calib_data").mkdir()
    (folder / "calib_data" / name).write_text("precious")
    result = run("example")
    assert result.exit_code == 2
    assert result.stderr == (
        f"pdq-export: error: calib_data/{name}: exists already; choose another folder: pdq-export example DIR\n"
    )
    assert [path.name for path in (folder / "calib_data").iterdir()] == [name]
    assert (folder / "calib_data" / name).read_text() == "precious"


def test_a_file_in_the_way(run: Run, folder: Path) -> None:
    (folder / "calib_data").write_text("precious")
    result = run("example")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "cannot be created" in result.stderr or "calib_data" in result.stderr
