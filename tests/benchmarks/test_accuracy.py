"""The accuracy benchmark on a few images: what is run, what a row leaves out, and that nothing is run twice."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks import accuracy
from benchmarks.accuracy import ABLATION, check_images, main, parse_arguments, sweep_of
from pdq_export.commands import sweep as sweeps
from pdq_export.config.method import FOLLOWING, METHODS, choose_options
from pdq_export.errors import DataError, OptionError

pytestmark = pytest.mark.usefixtures("short_search")

BUDGET = ["--samples", "8", "--set", "iters=1", "correction_iters=1", "batch_size=4", "--reduce-range"]


def arguments(model: Path, images: tuple[Path, Path], folder: Path, *more: str) -> list[str]:
    calib, judged = images
    return [str(model), "--calib", str(calib), "--eval", str(judged), "--folder", str(folder), *BUDGET, *more]


def tables_of(printed: str) -> tuple[dict[str, str], dict[str, str]]:
    """The first cell of each row, in the table of top-1 and in that of images of FP32's class."""
    *_, top1, title, agreement, _, _ = printed.strip().split("\n\n")
    assert title.startswith("Images of FP32's class in %")
    first, second = ([line.strip("| ").split(" | ") for line in t.splitlines()[2:]] for t in (top1, agreement))
    return {cells[0]: cells[1] for cells in first}, {cells[0]: cells[1] for cells in second}


def test_what_is_deterministic_comes_once(model: Path, images: tuple[Path, Path], tmp_path: Path) -> None:
    options = parse_arguments(arguments(model, images, tmp_path, "--bits", "8/8", "2/2", "--seeds", "0", "1"))
    runs = sweep_of(options).runs()
    told = [(run.varied["method"], run.varied["bits"], run.varied.get("seed")) for run in runs]
    assert len(set(told)) == len(told) == 2 + 4 * len(METHODS.keys() - {"nearest"})
    assert [run for run in told if run[0] == "nearest"] == [("nearest", "8/8", None), ("nearest", "2/2", None)]
    assert all(run.config.calibration.correction_iters == 1 for run in runs if run.varied["method"] == "pdq")


def test_every_part_of_the_ablation_is_off_alone(model: Path, images: tuple[Path, Path], tmp_path: Path) -> None:
    full = dataclasses.asdict(choose_options())
    for row, parts in ABLATION.items():
        if row in METHODS:
            assert parts == {"method": row}
            continue
        chosen = dataclasses.asdict(choose_options(overrides=parts))
        follows = {FOLLOWING[name][0] for name in parts if name in FOLLOWING}
        assert set(parts) <= {name for name in full if full[name] != chosen[name]} <= {*parts, *follows}, row
    command = arguments(model, images, tmp_path, "--bits", "2/2", "--seeds", "0")
    options = parse_arguments([*command, "--ablation"])
    runs = sweep_of(options).runs()
    # A number of steps is given, so that all blocks take it.
    assert [run.change for run in runs] == ["", *(row for row in ABLATION if row != "all steps at 4 bits")]
    assert [run.config.calibration.method for run in runs[-2:]] == ["qdrop", "pd-quant"]
    options = parse_arguments([*command, "--ablation", "drops off", "qdrop"])
    assert [run.change for run in sweep_of(options).runs()] == ["", "drops off", "qdrop"]


def test_runs_and_goes_on_where_it_was(
    model: Path,
    images: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "results"
    command = arguments(model, images, folder, "--bits", "8/8", "--seeds", "0", "--methods")
    assert main([*command, "fp32", "nearest"]) == 0
    capsys.readouterr()
    rows = ["fp32", "onnxruntime", "nearest", "pdq"]
    assert main([*command, *rows]) == 0
    first = capsys.readouterr()
    assert "2 of 2: fashion_resnet.onnx, bits 8/8, method pdq, seed 0: " in first.err
    top1, agreement = tables_of(first.out)
    assert list(top1) == rows
    assert list(agreement) == rows[1:]
    assert all(float(cell.split()[0]) > 80 for cell in (*top1.values(), *agreement.values()))
    assert ", reduced range" in first.out

    monkeypatch.setattr(sweeps, "perform", lambda *_: pytest.fail("it was run again"))
    monkeypatch.setattr(accuracy, "quantize_with_onnxruntime", lambda *_: pytest.fail("it was run again"))
    assert main([*command, *rows]) == 0
    assert capsys.readouterr().out == first.out


def test_the_ablation_is_told_beside_the_whole(
    small: Path, small_images: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(small, small_images, tmp_path / "results", "--bits", "8/8", "--seeds", "0")
    assert main([*command, "--ablation", "drops off"]) == 0
    top1, agreement = tables_of(capsys.readouterr().out)
    assert list(top1) == ["fp32", "pdq", "drops off"]
    assert list(agreement) == ["pdq", "drops off"]
    for table in (top1, agreement):
        assert [row for row, cell in table.items() if "[" in cell] == ["drops off"]


def test_a_failed_run_does_not_stop_the_others(
    model: Path,
    images: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    perform = sweeps.perform

    def fails(job: sweeps.Job, *others: object) -> object:
        return job.ended(error="the loss is nan") if job.run.varied["bits"] == "2/2" else perform(job)

    monkeypatch.setattr(sweeps, "perform", fails)
    command = arguments(model, images, tmp_path / "results", "--bits", "2/2", "8/8", "--methods", "nearest")
    assert main(command) == 1
    found = capsys.readouterr()
    assert "the loss is nan" in found.err
    assert found.out.splitlines()[6].endswith("| failed |")
    monkeypatch.setattr(sweeps, "perform", perform)
    assert main(command) == 0
    assert "failed" not in capsys.readouterr().out


def test_what_cannot_be_measured_is_refused(model: Path, images: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "results"
    with pytest.raises(OptionError, match="the same"):
        check_images(parse_arguments(arguments(model, (images[1], images[1]), folder)))
    with np.load(images[0]) as calib, np.load(images[1]) as judged:
        mixed = {
            **{name: np.concatenate([judged[name], calib[name][:3]]) for name in ("images", "labels")},
            **{name: judged[name] for name in ("mean", "std")},
        }
        floats = {
            "images": (mixed["images"] / np.float32(255) - mixed["mean"]) / mixed["std"],
            "labels": mixed["labels"],
        }
    for stored in (mixed, floats):
        np.savez(tmp_path / "mixed.npz", **stored)
        with pytest.raises(DataError, match="3 of its 23 images are among the 8 of --calib"):
            check_images(parse_arguments(arguments(model, (images[0], tmp_path / "mixed.npz"), folder)))
    assert main(arguments(model, images, folder, "--set", "itres=2")) == 2
    assert not folder.exists()
