"""The benchmark of PP-OCR's networks on a few images: what it prints, and that nothing is run twice."""

import json
from pathlib import Path

import pytest

from benchmarks import ocr
from benchmarks.ocr import main
from benchmarks.text_images import SPLITS
from pdq_export.errors import DataError


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LINES": 40, "BATCH": 20, "PAGES": 12, "PAGE": (96, 128)}.items():
        monkeypatch.setattr(ocr, name, value)
    monkeypatch.setattr(ocr, "latency_ratios", lambda *_: {"1": [0.5, 0.4, 0.6], "8": [0.7, 0.6, 0.8]})


@pytest.fixture
def fonts() -> None:
    try:
        for split in SPLITS.values():
            split.find()
    except DataError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("few_images", "fonts")
def test_both_networks(
    shared_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "ocr.jsonl"
    models = [
        *("--classifier", str(shared_models / "ch_ppocr_mobile_v2.0_cls_infer.onnx")),
        *("--detector", str(shared_models / "ch_PP-OCRv4_det_infer.onnx")),
    ]
    budget = ["--method", "nearest", "--bits", "8/8", "--samples", "32", "--pages", "4", "--page-size", "96"]
    assert main([*models, *budget, "--output", str(output)]) == 0
    classifier, detector = (json.loads(line) for line in output.read_text().splitlines())
    assert classifier["agreement"] >= 0.9
    assert classifier["float_accuracy"] >= 0.9
    assert detector["mean_difference"] < 0.02
    assert detector["text_share"] > 0.01
    for line in (classifier, detector):
        assert len({tuple(shape[2:]) for shape in line["shapes"]}) == 3
        assert {shape[0] for shape in line["shapes"]} == {1, 2}
        assert line["between_pairs"].get("HardSigmoid", 0) <= 4, "most are a Clip of integers"
    assert str(tmp_path) not in output.read_text()

    monkeypatch.setattr(ocr, "perform", lambda model, run: pytest.fail("it was run again"))
    capsys.readouterr()
    assert main([*models, *budget, "--output", str(output)]) == 0
    assert main(["--output", str(output), "--table"]) == 0
    printed = capsys.readouterr().out
    assert "classifier 8/8: there already" in printed
    assert (
        printed.count(f"| 8/8 | nearest | balanced | 32 | 0 | evaluation | {100 * classifier['agreement']:.1f} % |")
        == 2
    )
    assert printed.count(f"| {detector['mean_difference']:.4f} |") == 2


def test_a_command_line_without_a_model() -> None:
    with pytest.raises(SystemExit):
        main(["--output", "ocr.jsonl"])
