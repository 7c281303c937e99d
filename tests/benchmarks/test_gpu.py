"""The session on a GPU, proven on the CPU with tiny budgets: every part gives its figures, and none is run twice."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import MODES, PARTS, main
from pdq_export.calibrate import captured
from tests.tape import Tape


@pytest.fixture
def small_embedded(small: Path, small_images: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the embedded network one of a few small layers."""
    assert all(path.is_file() for path in gpu.embedded())
    monkeypatch.setattr(gpu, "embedded", lambda: (small, *small_images))


@pytest.fixture
def two_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of those of calibration, which take seconds to import, two where those lie."""
    folder = tmp_path / "tests" / "calibrate"
    folder.mkdir(parents=True)
    texts = [path.read_text(encoding="utf-8") for path in (gpu.ROOT / "tests" / "calibrate").rglob("test_*.py")]
    for selected in ("def test_what_the_device", 'pytest.param("cuda"'):
        assert any(selected in text for text in texts)
    (folder / "test_device.py").write_text("def test_what_the_device_has(): pass\ndef test_other(): assert 0\n")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)


@pytest.mark.usefixtures("short_search", "small_embedded", "two_tests")
def test_every_part_runs_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tapes: list[Tape] = []

    def tape(device: torch.device, generator: torch.Generator) -> Tape:
        tapes.append(Tape(device, generator))
        return tapes[-1]

    monkeypatch.setitem(captured.RECORDERS, "cpu", tape)
    output = tmp_path / "gpu.json"
    command = ["--output", str(output), "--device", "cpu", "--tiny"]
    assert main(command) == 0
    found = json.loads(output.read_text())
    assert all(found[name]["rows"] for name in PARTS)
    assert [row["equal"] for row in found["bytes"]["rows"]] == [True]
    modes = {row["mode"]: row for row in found["modes"]["rows"]}
    assert modes.keys() == MODES.keys()
    assert {row["mode"] for row in found["steps"]["rows"]} == {"as it is", "captured"}
    assert any(one.played for one in tapes)
    assert modes["as it is"]["same integers"]
    assert modes["captured"]["same integers"]
    assert modes["captured, bfloat16"]["top-1"] > 0
    assert "prediction_precision: tf32 is a precision of NVIDIA's GPUs" in modes["captured, tf32"]["refused"]
    assert not [row for row in modes.values() if "told" in row]
    assert [row["bits"] for row in found["accuracy"]["rows"]] == ["2/2"]
    assert found["steps"]["rows"][0]["FP32 step, ms"] > 0
    assert [(row["preset"], row["method"]) for row in found["runs"]["rows"]] == [("paper", "pd-quant")]
    assert "1 passed, 1 deselected" in found["tests"]["rows"][0]["last lines"][-1]
    printed = capsys.readouterr()
    assert all(f"## {name}" in printed.out for name in PARTS)
    assert main(command) == 0
    assert not capsys.readouterr().err  # where parts are told as they are run
    assert json.loads(output.read_text()) == found


def test_a_part_that_fails_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "gpu.json"
    command = ["--output", str(output), "--device", "cpu", "--tiny", "--parts", "steps", "bytes"]

    def fails(_: object) -> gpu.Rows:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    parts = {"steps": gpu.Part(run=fails, seconds=0), "bytes": gpu.Part(run=lambda _: [{}], seconds=0)}
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "PARTS", {**PARTS, **parts})
        assert main(command) == 1
    found = json.loads(output.read_text())
    assert "illegal memory access" in found["steps"]["failed"]
    assert found["bytes"]["rows"] == [{}]
    monkeypatch.setattr(gpu, "PARTS", {**PARTS, "steps": gpu.Part(run=lambda _: [{"a": 1.0}], seconds=0)})
    assert main(command) == 0


def test_what_there_is_no_time_for_is_left_for_the_next_call(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    assert main(["--output", str(output), "--device", "cpu", "--seconds", "1", "--parts", "runs"]) == 1
    assert "240 are needed" in json.loads(output.read_text())["runs"]["left out"]


def test_a_device_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--output", str(tmp_path / "gpu.json"), "--device", "cuda:99"])
    assert ended.value.code == 2
    assert "argument --device: --device 'cuda:99': torch sees" in capsys.readouterr().err
