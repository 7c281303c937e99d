"""The benchmark of bits by budget on a few images: what it makes, takes and refuses, and its figures."""

from pathlib import Path

import numpy as np
import pytest

import pdq_export
from benchmarks import mixed
from benchmarks.mixed import Measured, compare, main, read_known, table, views

BUDGET = ["--reduce-range", "--set", "samples=8", "iters=1", "correction_iters=1", "batch_size=4", "method=adaround"]


def test_views() -> None:
    images = np.arange(2 * 3 * 2 * 8, dtype=np.float32).reshape(2, 3, 2, 8)
    plain, mirrored, right, left = views(images)
    assert (plain == images).all()
    assert (mirrored[..., ::-1] == images).all()
    assert (right[..., 3:] == images[..., :5]).all()
    assert (right[..., :3] == images[..., :1]).all()
    assert (left[..., :5] == images[..., 3:]).all()
    assert (left[..., 5:] == images[..., 7:]).all()


def test_figures() -> None:
    sure = np.log([[0.9, 0.1], [0.1, 0.9]])
    other = np.log([[0.6, 0.4], [0.6, 0.4]])
    found = compare([sure] * 4, [sure, sure, sure, other], np.asarray([0, 0]))
    assert found["agreeing"] == (4, 3)
    expected = 0.9 * np.log(0.9 / 0.6) + 0.1 * np.log(0.1 / 0.4) + 0.1 * np.log(0.1 / 0.6) + 0.9 * np.log(0.9 / 0.4)
    assert found["kl"] == pytest.approx(expected / 8)
    assert (found["top1"], found["float_top1"]) == (0.5, 0.5)


def test_the_table_pairs_images_of_the_same_seeds() -> None:
    def one(kind: str, seed: int, agreeing: tuple[int, ...]) -> Measured:
        return Measured(
            key=f"{kind}{seed}",
            point="3/8",
            kind=kind,
            seed=seed,
            file="x.onnx",
            size=1000,
            bit_operations=0.4,
            agreeing=agreeing,
            kl=0.1,
            top1=None,
            float_top1=None,
        )

    lines = table([one("u", 0, (4, 2)), one("u", 1, (0, 0)), one("a", 0, (4, 4))]).splitlines()
    assert "| 3/8 | 1,000 | 0.4000 | 37.50 (0.00–75.00) |" in lines[2]
    assert "| auto at 3/8 | 1,000 | 0.4000 | 100.00 | +25.00 ± 25.00 |" in lines[3]


def test_makes_measures_and_takes(
    small: Path,
    small_images: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "mixed"
    calib, judged = map(str, small_images)
    command = [str(small), "--name", "fr", "--calib", calib, "--eval", judged, "--folder", str(folder)]
    assert main([*command, "--points", "3/8", "4/4", *BUDGET]) == 0
    first = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in first.splitlines()[2:]] == [
        "| 3/8",
        "| auto at 3/8",
        "| 4/4",
        "| auto at 4/4",
    ]
    assert (folder / "fr.md").read_text() == first
    assert not list((folder / "unfinished").iterdir())
    found = {Path(one.file).stem: one for one in read_known(folder / "fr.json").values()}
    assert found.keys() == {"fr-3-8-u", "fr-3-8-a", "fr-4-4-u", "fr-4-4-a"}
    assert found["fr-3-8-a"].size <= found["fr-3-8-u"].size == (folder / "fr-3-8-u.onnx").stat().st_size
    assert found["fr-4-4-a"].bit_operations <= found["fr-4-4-u"].bit_operations * (1 + 1e-9) < 1
    assert all(len(one.agreeing) == 20 and one.top1 is not None for one in found.values())
    report = pdq_export.validate_models(small, folder / "fr-3-8-u.onnx", data=judged)
    assert report.quantized_accuracy is not None
    assert found["fr-3-8-u"].top1 == pytest.approx(report.quantized_accuracy.top1)

    def fails(*_: object, **__: object) -> None:
        pytest.fail("it was made or measured again")

    monkeypatch.setattr(pdq_export, "quantize", fails)
    with monkeypatch.context() as patched:
        patched.setattr(mixed, "run_views", fails)
        assert main([*command, "--points", "3/8", "4/4", *BUDGET]) == 0
    assert capsys.readouterr().out == first
    (folder / "fr.json").unlink()  # measured again, from the files
    assert main([*command, "--points", "3/8", *BUDGET]) == 0
    assert capsys.readouterr().out.splitlines() == first.splitlines()[:4]
    assert main([*command, "--points", "3/8", *BUDGET, "iters=2"]) == 2
    assert "fr-3-8-u.onnx: was made with iters 1, not 2; expected what is asked here" in capsys.readouterr().err
    shared = [str(small), "--calib", judged, "--eval", judged, "--folder", str(folder), *BUDGET]
    assert main(shared) == 2
    assert "8 of its 20 images are among the 8 of --calib" in capsys.readouterr().err
