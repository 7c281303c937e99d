"""The benchmark of memory on a few images."""

import json
from pathlib import Path

import pytest

from benchmarks import memory


def test_both_stages_are_measured_and_held_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peaks = {64: 10**9, 100: 2 * 10**9}
    seen: list[tuple[str, int, int]] = []

    def apart(model: Path, folder: Path, few: Path, images: int, stage: str) -> dict[str, int]:
        assert model.exists()
        seen.append((stage, len(list(folder.glob("*.jpg"))), len(list(few.glob("*.jpg")))))
        return {stage: peaks[images]}

    monkeypatch.setattr(memory, "_apart", apart)
    monkeypatch.setattr(memory, "SIDE", 8)
    arguments = ["--images", "100", "--folder", str(tmp_path / "images")]
    assert memory.main([*arguments, "--limit", "1.1"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["stage"], line["beside"]) for line in lines] == [("calibration", 10**9), ("evaluation", 10**9)]
    assert seen[:2] == [("calibration", 64, 64), ("calibration", 100, 64)]
    assert memory.main([*arguments, "--limit", "0.9", "--stages", "evaluation"]) == 1


def test_a_run_has_a_peak_for_each_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SIDE", 16)
    memory.make_folder(tmp_path / "few", 4)
    model = tmp_path / "model.onnx"
    example = memory.torch.zeros(1, 3, 16, 16)
    model.write_bytes(memory.export_module(memory.network().eval(), example).SerializeToString())
    found = memory.measure(model, tmp_path / "few", tmp_path / "few", 4, "calibration")
    assert 10**7 < found["calibration"] <= found["evaluation"]
