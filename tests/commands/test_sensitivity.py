"""`pdq_export.sensitivity`: what it finds, that it is kept, and what is refused before any work."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pdq_export
from pdq_export.commands import sensitivity as command
from pdq_export.errors import DataError, OptionError, PdqError
from pdq_export.report.sensitivity import SensitivityReport
from pdq_export.runs import find_runs
from tests.calibrate.networks import residual
from tests.onnx_text import fill, parse

DEPTHWISE = """
    a = Conv <pads = [1, 1, 1, 1]> (image, w1)
    ra = Relu(a)
    b = Conv <pads = [1, 1, 1, 1], group = 8> (ra, w2)
    rb = Relu(b)
    c = Conv (rb, w3)
    p = GlobalAveragePool(c)
    f = Flatten(p)
    y = Gemm <transB = 1> (f, w4)
"""
SHAPES = {"w1": (8, 3, 3, 3), "w2": (8, 1, 3, 3), "w3": (4, 8, 1, 1), "w4": (5, 4)}


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return fill(parse(DEPTHWISE), SHAPES)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PDQ_EXPORT_CACHE", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The measurements that were made, which are few where what was kept is taken."""
    made: list[dict[str, Any]] = []
    measure = command.measure_sensitivity

    def noted(*arguments: Any, **options: Any) -> Any:
        made.append(options)
        return measure(*arguments, **options)

    monkeypatch.setattr(command, "measure_sensitivity", noted)
    return made


def run(model: onnx.ModelProto, images: np.ndarray, **options: Any) -> SensitivityReport:
    return pdq_export.sensitivity(model, calib=images, **{"samples": 32, "allowed_bits": (2, 4, 8), **options})


def test_the_worst_come_first(model: onnx.ModelProto, images: np.ndarray) -> None:
    report = run(model, images)
    assert report.widths == (2, 4, 8)
    assert {name for row in report.groups for name in row.tensors} == {"w1", "w2", "w3", "w4", "ra", "rb", "c"}
    at_two = [row.prediction[0] for row in report.groups]
    assert at_two == sorted(at_two, reverse=True)
    planned = {row.tensors[0]: row.planned_bits for row in report.groups}
    assert planned["w2"] == planned["ra"] == 4 < planned["w1"]
    assert report.sensitivity.images == 32


def test_what_was_found_is_kept(
    model: onnx.ModelProto, images: np.ndarray, root: Path, measurements: list[dict[str, Any]]
) -> None:
    first = run(model, images)
    assert run(model, images).sensitivity == first.sensitivity
    assert run(model, images[:32]).sensitivity == first.sensitivity  # of the images that are taken
    assert run(model, images, bits="2/8", first_last="4/4").sensitivity == first.sensitivity
    assert len(measurements) == 1
    (kept,) = find_runs(root)
    assert kept.run is not None
    assert (kept.run.kind, kept.done) == ("pdq-export sensitivity", 1)


@pytest.mark.parametrize(
    "changed",
    [{"samples": 16}, {"allowed_bits": (2, 4)}, {"seed": 1}, {"pairs": True}, {"weights": "symmetric"}],
    ids=lambda changed: "".join(changed),
)
def test_what_is_asked_otherwise_is_found_anew(
    model: onnx.ModelProto, images: np.ndarray, measurements: list[dict[str, Any]], changed: dict[str, Any]
) -> None:
    run(model, images)
    run(model, images, **changed)
    assert len(measurements) == 2


def test_what_is_damaged_is_found_again(
    model: onnx.ModelProto, images: np.ndarray, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = run(model, images)
    (path,) = root.rglob("block-*.jsonl")
    path.write_text(path.read_text(encoding="utf-8").replace("fisher", "guess"), encoding="utf-8")
    assert run(model, images).sensitivity == first.sensitivity
    assert "is found again" in caplog.text
    caplog.clear()
    assert run(model, images).sensitivity == first.sensitivity
    assert "is found again" not in caplog.text


def test_memory_changes_nothing(model: onnx.ModelProto, images: np.ndarray, tmp_path: Path) -> None:
    first = run(model, images)
    assert run(model, images, max_memory="8GB", work_dir=str(tmp_path / "other")).sensitivity == first.sensitivity


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"samples": 0}, "--samples 0"),
        ({"allowed_bits": ()}, "--allowed-bits"),
        ({"allowed_bits": (1, 4)}, r"--allowed-bits \(1, 4\): expected bits from 2 to 8"),
        ({"estimate": "exact"}, "--estimate 'exact'"),
        ({"estimate": "measured", "pairs": True}, "--pairs"),
        ({"target": "tensorrt", "allowed_bits": (2, 4)}, "expected 8 or more"),
        ({"preset": "fast"}, "preset"),
    ],
)
def test_wrong_options(model: onnx.ModelProto, images: np.ndarray, options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        run(model, images, **options)


def test_without_images(model: onnx.ModelProto) -> None:
    with pytest.raises(DataError, match="give calib"):
        pdq_export.sensitivity(model)


def test_images_are_not_made_here(model: onnx.ModelProto) -> None:
    with pytest.raises(DataError, match="expected images that there are"):
        pdq_export.sensitivity(model, calib="synthetic")


def test_a_target_has_the_widths_that_it_has(model: onnx.ModelProto, images: np.ndarray) -> None:
    report = run(model, images, target="tensorrt", bits="8/8", allowed_bits=(2, 4, 8))
    assert report.widths == (8,)


def test_measured_and_estimated_rank_alike(images: np.ndarray) -> None:
    model = residual().prepared.model
    reports = [run(model, images, estimate=estimate) for estimate in ("fisher", "measured")]
    tables = [report.sensitivity.prediction for report in reports]
    both = [[table[name][width] for name in tables[0] for width in (2, 4, 8)] for table in tables]
    ranks = np.argsort(np.argsort(both, axis=1), axis=1)
    assert np.corrcoef(ranks)[0, 1] > 0.9


def test_errors_are_ours(model: onnx.ModelProto, images: np.ndarray) -> None:
    with pytest.raises(PdqError, match="NaN"):
        run(model, np.full_like(images, np.nan))
