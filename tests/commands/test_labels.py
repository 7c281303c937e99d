"""Labels that do not fit a model: refused before it runs, and left out where that is asked for."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import pdq_export
from pdq_export.commands import quantize as command
from pdq_export.errors import DataError, OptionError
from pdq_export.validate.runtime import Session
from tests.onnx_text import fill, parse

NETWORK = "c = Conv(image, w) p = GlobalAveragePool(c) y = Flatten(p)"
QUICK: dict[str, Any] = {"samples": 4, "method": "nearest", "device": "cpu"}
SPAN = r"labels span \[0, 9\]; expected 0 to 4, .* leave the labels out with --no-labels"


@pytest.fixture
def model() -> onnx.ModelProto:
    return fill(parse(NETWORK, outputs="float[N,5] y"), {"w": (5, 3, 3, 3)})


def folder(place: Path, rows: str) -> Path:
    place.mkdir()
    for number in range(4):
        Image.fromarray(np.full((8, 8, 3), 50 * number, np.uint8)).save(place / f"{number}.png")
    (place / "labels.csv").write_text(f"file,label\n{rows}")
    return place


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    return folder(tmp_path / "wrong", "".join(f"{n}.png,{3 * n}\n" for n in range(4)))


def no_run(*_: Any, **__: Any) -> None:
    raise AssertionError("the network is run")


def test_quantize_refuses_them_before_the_network_runs(
    model: onnx.ModelProto, wrong: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "import_planned", no_run)
    with pytest.raises(DataError, match=SPAN):
        pdq_export.quantize(model, calib=wrong, **QUICK)
    with pytest.raises(DataError, match=SPAN):
        pdq_export.quantize(model, calib=np.zeros((4, 3, 8, 8), np.float32), eval=wrong, **QUICK)


def test_validate_refuses_them_before_the_network_runs(
    model: onnx.ModelProto, wrong: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "run_by_name", no_run)
    with pytest.raises(DataError, match=SPAN):
        pdq_export.validate_models(model, model, data=wrong)


@pytest.mark.parametrize("left_out", [{"no_labels": True}, {"labels": False}], ids=str)
@pytest.mark.parametrize("rows", ["0.png,9\n1.png,0\n2.png,0\n3.png,0\n", "gone.png,1\n"], ids=["too large", "broken"])
def test_they_can_be_left_out(model: onnx.ModelProto, tmp_path: Path, rows: str, left_out: dict[str, Any]) -> None:
    data = folder(tmp_path / "data", rows)
    made = pdq_export.quantize(model, calib=data, **QUICK, **left_out)
    assert made.report.float_accuracy is None
    assert pdq_export.validate_models(model, made.model, data=data, **left_out).float_accuracy is None


@pytest.mark.parametrize("form", ["npz", "pair", "items", "classes"])
def test_they_are_left_out_of_whatever_has_them(model: onnx.ModelProto, tmp_path: Path, form: str) -> None:
    x, y = np.zeros((4, 3, 8, 8), np.float32), np.full(4, 9)
    np.savez(tmp_path / "x.npz", images=x, labels=y)
    (tmp_path / "c" / "one").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "c" / "one" / "a.png")
    items = [(image, int(label)) for image, label in zip(x, y, strict=True)]
    data = {"npz": tmp_path / "x.npz", "pair": (x, y), "items": items, "classes": tmp_path / "c"}[form]
    with pytest.raises(DataError, match="--no-labels"):
        pdq_export.validate_models(model, model, data=data)
    assert pdq_export.validate_models(model, model, data=data, no_labels=True).float_accuracy is None


def test_what_needs_them_is_refused(model: onnx.ModelProto, wrong: Path) -> None:
    with pytest.raises(OptionError, match="labels are given as well"):
        pdq_export.validate_models(model, model, data=wrong, labels=[0] * 4, no_labels=True)
    with pytest.raises(OptionError, match="--max-drop 1: it is judged by labels, and --no-labels leaves them out"):
        pdq_export.validate_models(model, model, data=wrong, max_drop=1, no_labels=True)
