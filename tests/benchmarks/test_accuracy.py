"""The accuracy benchmark on a few images: what is run, what a row leaves out, and that nothing is run twice."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks import accuracy
from benchmarks.accuracy import ABLATION, ROWS, main, overrides, parse_arguments, plan_runs, prepare
from benchmarks.results import Run, Work, read
from pdq_export.config.method import METHODS, PRESETS, choose_options
from pdq_export.errors import CalibrationError, DataError, OptionError

BUDGET = ["--samples", "8", "--set", "iters=1", "correction_iters=1", "batch_size=4"]


def work(**values: str) -> Work:
    return Work(
        model="m.onnx",
        model_sha256="0",
        family="plain",
        calib="calib.npz",
        calib_sha256="1",
        eval="eval.npz",
        eval_sha256="2",
        eval_images=20,
        preset="fast",
        weights="asymmetric",
        samples=8,
        iters=1,
        correction_iters=1,
        overrides=values,
        threads=1,
        device="cpu",
        versions={},
    )


def arguments(model: Path, images: tuple[Path, Path], output: Path, *more: str) -> list[str]:
    calib, judged = images
    return [str(model), "--calib", str(calib), "--eval", str(judged), "--output", str(output), *BUDGET, *more]


def test_what_is_deterministic_comes_once() -> None:
    runs = list(plan_runs(work(), ROWS, ["8/8", "2/2"], [0, 1]))
    assert len({run.key for run in runs}) == len(runs)
    assert [(r.bits, r.seed) for r in runs if r.row == "fp32"] == [(None, None)]
    assert [(r.bits, r.seed) for r in runs if r.row == "onnxruntime"] == [("8/8", None)]
    assert [(r.bits, r.seed) for r in runs if r.row == "nearest"] == [("8/8", None), ("2/2", None)]
    assert sorted((r.bits, r.seed) for r in runs if r.row == "qdrop") == [
        ("2/2", 0),
        ("2/2", 1),
        ("8/8", 0),
        ("8/8", 1),
    ]


@pytest.mark.parametrize("row", [*METHODS, *list(ABLATION)[1:]])
def test_options_of_all_rows_do_not_switch_on_what_one_leaves_out(row: str) -> None:
    seed = None if row == "nearest" else 1
    settings = work(iters="7", temperature="2", lambda_c="0.5", correction_iters="3")
    method, parts = ("pd-quant", ABLATION[row]) if row in ABLATION else (row, {})
    without, chosen = (
        choose_options(method=method, preset="fast", overrides=given)
        for given in (parts, overrides(settings, row, seed))
    )
    for name in ("prediction_difference", "keep_probability", "mix_probability", "learn_scales", "learn_rounding"):
        assert getattr(chosen, name) == getattr(without, name)
    assert (chosen.correction_iters > 0) is (without.correction_iters > 0)
    assert chosen.iters == (0 if row == "nearest" else 7)
    assert (chosen.samples, chosen.seed) == (8, seed or 0)


def test_whatever_changes_a_result_is_in_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    (before,) = plan_runs(work(), ["qdrop"], ["2/2"], [0])
    assert before.options == dataclasses.asdict(
        choose_options(method="qdrop", preset="fast", overrides={"samples": 8, "seed": 0})
    )
    monkeypatch.setattr(
        "pdq_export.config.method.PRESETS", {**PRESETS, "fast": {**PRESETS["fast"], "rounding_lr": 0.2}}
    )
    (after,) = plan_runs(work(), ["qdrop"], ["2/2"], [0])
    grouped = dataclasses.replace(work(), family="grouped")
    newer = dataclasses.replace(work(), versions={"pdq-export": "1.2.3"})
    others = [run for settings in (grouped, newer) for run in plan_runs(settings, ["qdrop"], ["2/2"], [0])]
    assert len({run.key for run in (before, after, *others)}) == 4


def test_every_part_of_the_ablation_is_off_alone() -> None:
    full = dataclasses.asdict(choose_options())
    for row, parts in ABLATION.items():
        chosen = dataclasses.asdict(choose_options(overrides=parts))
        assert {name for name in full if full[name] != chosen[name]} == set(parts), row


def test_runs_and_goes_on_where_it_was(
    model: Path,
    images: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "results.jsonl"
    command = arguments(model, images, output, "--bits", "8/8", "--seeds", "0", "--methods")
    assert main([*command, "fp32", "onnxruntime", "nearest"]) == 0
    first = output.read_text()
    assert first.count("\n") == 3
    wide = tmp_path / "wide.jsonl"
    plans = ("--wide-residuals", "--reduce-range")
    assert main([*arguments(model, images, wide, "--bits", "4/4", "--methods", "nearest"), *plans]) == 0
    (run,) = read(wide)
    assert run.run.work.wide_residuals
    assert run.run.work.reduce_range
    assert ", wide residuals, reduced range" in str(run.run.work)
    output.write_text(first + '{"run": ')  # an interrupted write

    assert main([*command, "fp32", "pd-quant"]) == 0
    assert output.read_text().startswith(first)
    found = {outcome.run.row: outcome for outcome in read(output)}
    assert list(found) == ["fp32", "onnxruntime", "nearest", "pd-quant"]
    assert found["fp32"].top1 > 0.8
    assert found["pd-quant"].top1 > 0.8
    assert found["pd-quant"].agreement == 1.0
    assert found["pd-quant"].run.options["iters"] == 1
    assert found["pd-quant"].run.options["lambda_c"] == 0.02  # the family's
    assert found["onnxruntime"].run.options == {}
    assert found["pd-quant"].wall_seconds is not None
    assert str(tmp_path) not in output.read_text()
    assert "fp32  seed None: there already" in capsys.readouterr().out

    monkeypatch.setattr(accuracy, "perform", lambda task, run: pytest.fail("it was run again"))
    assert main([*command, "fp32", "onnxruntime", "nearest", "pd-quant"]) == 0
    assert main(["--output", str(output), "--table"]) == 0
    assert f"| pd-quant | {100 * found['pd-quant'].top1:.2f} |" in capsys.readouterr().out


def test_a_failed_run_does_not_stop_the_others(
    model: Path, images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    perform = accuracy.perform

    def fail_below_eight_bits(task: accuracy.Task, run: Run) -> accuracy.Outcome:
        if run.bits != "8/8":
            raise CalibrationError("the loss is nan") if run.bits == "2/2" else ZeroDivisionError("of another tool")
        return perform(task, run)

    monkeypatch.setattr(accuracy, "perform", fail_below_eight_bits)
    output = tmp_path / "results.jsonl"
    command = arguments(model, images, output, "--bits", "2/2", "4/4", "8/8", "--methods", "nearest")
    assert main(command) == 1
    assert [(found.run.bits, found.error) for found in read(output)] == [
        ("2/2", "CalibrationError: the loss is nan"),
        ("4/4", "ZeroDivisionError: of another tool"),
        ("8/8", None),
    ]
    monkeypatch.setattr(accuracy, "perform", perform)
    assert main(command) == 0
    assert all(found.top1 is not None for found in read(output))


def test_what_cannot_be_measured_is_refused(model: Path, images: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    with pytest.raises(OptionError, match="the same"):
        prepare(parse_arguments(arguments(model, (images[1], images[1]), output)))
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
            prepare(parse_arguments(arguments(model, (images[0], tmp_path / "mixed.npz"), output)))
    with pytest.raises(OptionError, match="is unknown"):
        prepare(parse_arguments(arguments(model, images, output, "--set", "itres=2")))
    assert main(arguments(model, images, output, "--set", "itres=2")) == 2
    with pytest.raises(SystemExit):
        parse_arguments(["--output", str(output)])
