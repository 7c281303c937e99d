"""`pdq-export quantize`: defaults, paths, messages and exit codes, around a stand-in for the pipeline."""

import dataclasses
import errno
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from pdq_export.errors import CalibrationError, ModelError, OptionError
from pdq_export.report import ModelInfo
from pdq_export.spec import BitWidths
from pdq_export.validate import Accuracy, LatencyPair, Spread

from .fakes import FakeBlock, FakePipeline, FakeProgress, agreement, make_report

Run = Callable[..., Result]
GIVEN = {"model.onnx", "images.npy", "eval.npz"}  # what the fixture `folder` makes


def failure(result: Result) -> str:
    """The one line on stderr of a command that failed because of its user."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("pdq-export: error: ")
    return lines[0]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_defaults(run: Run, pipeline: FakePipeline, folder: Path) -> None:
    result = run("quantize", "model.onnx", "--calib", "images.npy")
    assert result.exit_code == 0, result.output
    (call,) = pipeline.calls
    call.pop("progress")
    assert call == {
        "model": Path("model.onnx"),
        "bits": "4/4",
        "calib": "images.npy",
        "eval": None,
        "output": "model-w4a4.onnx",
        "report": (),
        "overwrite": False,
        "target": "ort",
        "opset": None,
        "runtime": None,
        "external_data": False,
        "method": "pdq",
        "preset": "balanced",
        "weights": None,
        "wide_residuals": False,
        "reduce_range": False,
        "layer_bits": (),
        "exclude": (),
        "exclude_op": (),
        "first_last": None,
        "tensor_bits": (),
        **dict.fromkeys(("max_size", "avg_bits", "max_bit_ops", "allowed_bits", "bits_from", "bits_to")),
        "options": {},
        "device": "auto",
        "deterministic": False,
        "max_memory": None,
        "work_dir": None,
        "resume": False,
        "simulated_images": 1024,
        **dict.fromkeys(("metric", "min_metric", "max_metric", "max_metric_drop", "max_metric_rise"), ()),
        **dict.fromkeys(("max_drop", "min_agreement", "min_sqnr", "max_size_ratio", "max_latency_ratio")),
        **dict.fromkeys(("confidence", "junit", "markdown")),
        "no_float_layers": False,
        "no_labels": False,
        **dict.fromkeys(["mean", "std", "pixel_range", "channel_order", "layout", "interpolation"]),
        **dict.fromkeys(["resize", "crop", "crop_fraction", "letterbox", "padding"]),
    }
    assert (folder / "model-w4a4.onnx").exists()
    assert "wrote model-w4a4.onnx" in result.stdout


def test_every_option_arrives(run: Run, pipeline: FakePipeline, folder: Path) -> None:
    result = run(
        *("quantize", "model.onnx", "--bits", "2/3", "--calib", "images.npy", "--eval", "eval.npz"),
        *("--output", "out.onnx", "--samples", "7", "--iters", "5", "--correction-iters", "0", "--seed", "3"),
        *("--method", "qdrop", "--preset", "fast", "--weights", "symmetric", "--set", "scale-lr=0.1"),
        *("--layer-bits", "a=2/2", "--layer-bits", "b=c=3/3", "--exclude", "x", "--first-last", "6/6"),
        *("--exclude-op", "Pow", "--exclude-op", "Add"),
        *("--device", "cuda:1", "--target", "native", "--opset", "21", "--report", "out.json", "--overwrite"),
        *("--max-memory", "4GB", "--wide-residuals", "--reduce-range"),
    )
    assert result.exit_code == 0, result.output
    (call,) = pipeline.calls
    assert call["wide_residuals"] is True
    assert call["reduce_range"] is True
    assert call["options"] == {"samples": 7, "iters": 5, "correction_iters": 0, "seed": 3, "scale_lr": 0.1}
    assert (call["method"], call["preset"], call["weights"]) == ("qdrop", "fast", "symmetric")
    assert call["max_memory"] == "4GB"
    assert (call["bits"], call["eval"], call["output"]) == ("2/3", "eval.npz", "out.onnx")
    assert (call["layer_bits"], call["exclude"]) == (("a=2/2", "b=c=3/3"), ("x",))
    assert call["exclude_op"] == ("Pow", "Add")
    assert call["first_last"] == "6/6"
    assert (call["device"], call["target"], call["opset"], call["overwrite"]) == ("cuda:1", "native", 21, True)
    assert json.loads((folder / "out.json").read_text())["images"] == 200
    assert "wrote out.json" in result.stdout


def test_json_is_the_report(run: Run, pipeline: FakePipeline, folder: Path) -> None:
    result = run("quantize", "model.onnx", "--calib", "images.npy", "--json", "--report", "out.json")
    assert result.exit_code == 0
    assert result.stdout == (folder / "out.json").read_text(encoding="utf-8")
    pipeline.act = chatter
    again = run("quantize", "model.onnx", "--calib", "images.npy", "--json", "--overwrite")
    assert again.stdout == result.stdout
    assert "pdq-export: calibrating" in again.stderr


def test_the_report_replaces_no_weights(run: Run, pipeline: FakePipeline, folder: Path) -> None:
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Add(x, w) }'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
    onnx.save(model, folder / "large.onnx", save_as_external_data=True, location="large.data", size_threshold=0)
    arguments = ("quantize", "large.onnx", "--calib", "images.npy", "--overwrite", "-o", "out.onnx", "--report")
    assert "is the same file as the input" in failure(run(*arguments, "large.data"))
    for more in ((), ("--external-data",)):  # a large file gets a second one unasked
        assert "both --report and --output" in failure(run(*arguments, "out.onnx.data", *more))
    assert not pipeline.calls


def test_external_data_are_named(run: Run, pipeline: FakePipeline) -> None:
    result = run("quantize", "model.onnx", "--calib", "images.npy", "--external-data")
    assert pipeline.calls[0]["external_data"] is True
    assert "wrote model-w4a4.onnx.data" in result.stdout


def test_a_session_option_is_named(run: Run, pipeline: FakePipeline) -> None:
    pipeline.report = make_report(session_config={"session.disable_quant_qdq": "1"})
    result = run("quantize", "model.onnx", "--calib", "images.npy", "--target", "native")
    assert "session option session.disable_quant_qdq=1" in result.stdout


def test_the_table(run: Run, pipeline: FakePipeline) -> None:
    result = run("quantize", "model.onnx", "--calib", "images.npy", "--eval", "eval.npz")
    table = [line.split() for line in result.stdout.splitlines()]
    assert result.stdout.startswith("200 images of eval.npz")
    assert ["FP32", "4/4"] in table
    assert "top-1 accuracy 93.10 % 92.60 % -0.50 points".split() in table
    assert "top-5 accuracy 99.90 % 100.00 % +0.10 points".split() in table
    assert "argmax agrees with FP32 95.00 %".split() in table
    assert "SQNR against FP32 21.3 dB".split() in table
    assert "argmax agrees with simulation 100.00 %".split() in table
    assert "layers run as integers in onnxruntime 8 of 8".split() in table
    assert "size 1,000 kB 175 kB × 0.175".split() in table


def test_the_table_without_labels_and_with_several_outputs(run: Run, pipeline: FakePipeline) -> None:
    output = pipeline.report.outputs[0]
    maps = type(output)(
        name="maps", quantized_float=agreement(None, None), quantized_simulated=None, simulated_float=None
    )
    pipeline.report = make_report(
        float_accuracy=None,
        quantized_accuracy=None,
        outputs=(output, maps),
        settings={"evaluated_on_calibration_images": True},
    )
    result = run("quantize", "model.onnx", "--calib", "images.npy")
    assert "top-1" not in result.stdout
    assert "used for calibration too" in result.stdout
    assert "SQNR against FP32 (maps)" in result.stdout
    assert "equal" in result.stdout
    assert "argmax agrees with FP32 (logits)" in result.stdout
    assert "argmax agrees with FP32 (maps)" not in result.stdout


def test_the_simulation_is_shown_where_kernels_saturate(run: Run, pipeline: FakePipeline) -> None:
    simulated = Accuracy(images=200, top1=0.93, top5=None)
    pipeline.report = make_report(simulated_accuracy=simulated)
    command = ("quantize", "model.onnx", "--calib", "images.npy", "--eval", "eval.npz")
    assert "simulated" not in run(*command).stdout
    floating = Accuracy(images=200, top1=0.931, top5=None)
    saturated = {"simulated_accuracy": simulated, "float_where_simulated": floating, "saturated_layers": ("stem",)}
    pipeline.report = make_report(**saturated)
    table = [line.split() for line in run(*command, "--overwrite").stdout.splitlines()]
    assert "top-1 accuracy, simulated 93.10 % 93.00 % -0.10 points".split() in table
    fewer = {name: Accuracy(images=20, top1=top1, top5=None) for name, top1 in (("f", 0.9), ("s", 0.85))}
    pipeline.report = make_report(
        **{**saturated, "simulated_accuracy": fewer["s"], "float_where_simulated": fewer["f"]}
    )
    table = [line.split() for line in run(*command, "--overwrite").stdout.splitlines()]
    assert "top-1 of 20 images, simulated 90.00 % 85.00 % -5.00 points".split() in table


def test_latency_is_a_row_and_what_bits_cost_in_onnxruntime_is_told(run: Run, pipeline: FakePipeline) -> None:
    ratio, cost = Spread(median=0.812, low=0.8, high=0.82), Spread(median=1.114, low=1.1, high=1.12)
    latency = LatencyPair(batch=1, threads=1, float_ms=1.043, quantized_ms=0.847, ratio=ratio)
    pipeline.report = make_report(latency=latency, settings={**make_report().settings, "bits": "4/4"})
    command = ("quantize", "model.onnx", "--calib", "images.npy", "--eval", "eval.npz", "--overwrite")
    result = run(*command)
    row = "latency at batch 1, one thread 1.04 ms 0.847 ms × 0.81 (0.80–0.82)".split()
    assert row in [line.split() for line in result.stdout.splitlines()]
    assert "activations below 8 bits" not in result.stdout
    pipeline.report = dataclasses.replace(
        pipeline.report, latency=dataclasses.replace(latency, float_ms=1043.2, clips=24, clip_ratio=cost)
    )
    result = run(*command)
    assert "1,043 ms" in result.stdout
    told = "cost 11 % more time (24 Clips) and gain none in onnxruntime: where it is all that the file is for, take"
    assert f"activations below 8 bits {told} --bits 4/8" in " ".join(result.stdout.split())


def test_the_name_of_the_file_tells_the_layout(run: Run, pipeline: FakePipeline, folder: Path) -> None:
    assert run("quantize", "model.onnx", "--calib", "images.npy", "--target", "qcdq", "--bits", "2/8").exit_code == 0
    assert (folder / "model-w2a8-qcdq.onnx").exists()


def test_sizes_share_a_unit(run: Run, pipeline: FakePipeline) -> None:
    large, small = (ModelInfo(name="", sha256="", size=size) for size in (18_800_000, 4_964_000))
    pipeline.report = make_report(model=large, quantized=small)
    result = run("quantize", "model.onnx", "--calib", "images.npy")
    assert "size 18.8 MB 5.0 MB × 0.264".split() in [line.split() for line in result.stdout.splitlines()]


def test_images_are_found_in_calib_data_and_named(run: Run, pipeline: FakePipeline, folder: Path) -> None:
    (folder / "calib_data" / "eval").mkdir(parents=True)
    (folder / "calib_data" / "calib.npz").touch()
    result = run("quantize", "model.onnx")
    assert result.exit_code == 0
    assert "calibration images: calib_data/calib.npz (found" in result.stderr
    assert "evaluation images: calib_data/eval (found" in result.stderr
    assert pipeline.calls[0]["calib"] == "calib_data/calib.npz"
    assert pipeline.calls[0]["eval"] == "calib_data/eval"


def test_images_of_calib_data_do_not_mix_with_others(run: Run, pipeline: FakePipeline, folder: Path) -> None:
    (folder / "calib_data" / "eval").mkdir(parents=True)
    run("quantize", "model.onnx", "--calib", "images.npy")
    assert pipeline.calls[0]["eval"] is None


def test_no_images_at_all(run: Run, folder: Path) -> None:
    message = failure(run("quantize", "model.onnx"))
    assert f"no calibration images: --calib is not given, and {folder / 'calib_data'} has no calib.npz" in message
    assert "pdq-export example" in message


def test_images_that_are_ambiguous(run: Run, folder: Path) -> None:
    (folder / "calib_data" / "calib").mkdir(parents=True)
    (folder / "calib_data" / "calib.npz").touch()
    assert "calib.npz, calib: expected one of them" in failure(run("quantize", "model.onnx"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["quantize"], "Missing argument 'MODEL.onnx'. See pdq-export quantize --help"),
        (["quantize", "missing.onnx"], "missing.onnx: no such file; expected an ONNX model"),
        (["quantize", "."], ".: is a folder; expected an ONNX model"),
        (["quantize", "model.onnx", "--bits", "9/1"], "--bits 9/1: weight bits are 9; expected 2 to 8"),
        (["quantize", "model.onnx", "--bits", "four"], "--bits 'four': expected W/A"),
        (["quantize", "model.onnx", "--bits", "4/1", "-o", "x.onnx"], "--bits 4/1: activation bits are 1"),
        (["quantize", "model.onnx", "--samples", "many"], "'many' is not a valid integer. See pdq-export quantize"),
        (["quantize", "model.onnx", "--samples", "0"], "--samples 0: expected 1 or more"),
        (["quantize", "model.onnx", "--iters", "-1"], "--iters -1: expected 0 or more"),
        (["quantize", "model.onnx", "--seed", "-1"], "--seed -1: expected 0 or more"),
        (["quantize", "model.onnx", "--method", "pdquant"], "--method 'pdquant': expected one of pdq, pd-quant"),
        (["quantize", "model.onnx", "--preset", "best"], "--preset 'best': expected one of fast"),
        (
            ["quantize", "model.onnx", "--method", "nearest", "--iters", "9"],
            "iters is given, but it has no effect: nothing is learned (learn_rounding, learn_scales), with method",
        ),
        (
            ["quantize", "model.onnx", "--method", "qdrop", "--set", "lambda_r=1"],
            "there is no prediction difference (pred",
        ),
        (["quantize", "model.onnx", "--output-loss", "l1"], "--output-loss 'l1': expected one of auto, kl, mse"),
        (["quantize", "model.onnx", "--set", "temprature=1"], "did you mean temperature?"),
        (["quantize", "model.onnx", "--set", "temperature=hot"], "temperature is 'hot'; expected a number"),
        (["quantize", "model.onnx", "--set", "temperature"], "--set 'temperature': expected NAME=VALUE"),
        (["quantize", "model.onnx", "--seed", "1", "--set", "seed=2"], "--set 'seed=2': seed is set twice"),
        (["quantize", "model.onnx", "--layer-bits", "stem"], "--layer-bits 'stem': expected REGEX=W/A"),
        (["quantize", "model.onnx", "--layer-bits", "stem=1/4"], "--layer-bits 'stem': 1/4: weight bits are 1"),
        (["quantize", "model.onnx", "--exclude", "a("], "--exclude 'a(': is not a regular expression"),
        (["quantize", "model.onnx", "--first-last", "8"], "--first-last '8': expected W/A"),
        (["quantize", "model.onnx", "--biits", "4/4"], "No such option"),
        (["quantize", "model.onnx", "--quiet", "--verbose"], "--quiet and --verbose contradict each other"),
        (["quantize", "model.onnx", "-o", "model.onnx"], "model.onnx: is the same file as the input"),
        (["quantize", "model.onnx", "-o", "images.npy"], "images.npy: is the same file as the input"),
        (["quantize", "model.onnx", "-o", "."], ".: is a folder; expected the name of a file to write"),
        (["quantize", "model.onnx", "--target", "no/ort"], "--target 'no/ort': expected one of"),
        (
            ["quantize", "model.onnx", "--target", "tensorrt", "--weights", "asymmetric"],
            "--weights asymmetric: --target tensorrt takes symmetric",
        ),
        (["quantize", "model.onnx", "--eval", "missing.npz"], "missing.npz: no such file or folder; expected images"),
        (
            ["quantize", "model.onnx", "--eval", "model.onnx"],
            "model.onnx: suffix '.onnx' is not known",
        ),
        (["quantize", "model.onnx", "--eval", "/dev/null"], "/dev/null: not a regular file; expected images"),
        (["quantize", "model.onnx", "-o", "sub/"], "sub/: is a folder; expected the name of a file to write"),
        (["quantize", "model.onnx", "--report", "-"], "-: nothing is written to the standard output"),
        (["quantize", "model.onnx", "-o", "no/a.onnx"], "no/a.onnx: cannot be written: there is no folder 'no'"),
        (["quantize", "model.onnx", "--report", "no/a.json"], "no/a.json: cannot be written"),
        (["quantize", "model.onnx", "--report", "model.onnx"], "model.onnx: is the same file as the input"),
        (["quantize", "model.onnx", "-o", "a", "--report", "a"], "a: is both --report and --output"),
        (["quantise"], "No such command 'quantise'"),
        (["--nonsense"], "No such option"),
    ],
)
def test_what_is_refused_before_any_work(
    run: Run, pipeline: FakePipeline, folder: Path, args: list[str], message: str
) -> None:
    if args[0] == "quantize":
        args = [*args, "--calib", "images.npy"]
    assert message in failure(run(*args))
    assert pipeline.calls == []
    assert names(folder) == GIVEN
    assert (folder / "model.onnx").read_bytes() == b"a model"


@pytest.mark.parametrize("option", ["--output", "--report"])
def test_existing_files_are_replaced_only_when_asked(
    run: Run, pipeline: FakePipeline, folder: Path, option: str
) -> None:
    (folder / "old.onnx").write_bytes(b"precious")
    args = ("quantize", "model.onnx", "--calib", "images.npy", option, "old.onnx")
    assert "old.onnx: exists already; choose another name, or replace it with --overwrite" in failure(run(*args))
    assert (folder / "old.onnx").read_bytes() == b"precious"
    assert run(*args, "--overwrite").exit_code == 0
    assert (folder / "old.onnx").read_bytes() != b"precious"


def raising(error: BaseException) -> Callable[[Any], None]:
    def act(_: Any) -> None:
        raise error

    return act


@pytest.mark.parametrize(
    "error",
    [
        ModelError("model.onnx: node 'a' (Gelu, opset 20): not supported"),
        OptionError("--device 'tpu': expected auto, cpu, cuda or cuda:N"),
        CalibrationError("block 'b':\nthe loss is not finite"),
    ],
)
def test_errors_of_the_pipeline(run: Run, pipeline: FakePipeline, folder: Path, error: Exception) -> None:
    pipeline.act = raising(error)
    result = run("quantize", "model.onnx", "--calib", "images.npy", "--report", "r.json")
    assert failure(result) == f"pdq-export: error: {' '.join(str(error).split())}"
    assert names(folder) == GIVEN


def test_an_error_of_ours(run: Run, pipeline: FakePipeline, folder: Path) -> None:
    pipeline.act = raising(ZeroDivisionError("division by zero"))
    args = ("quantize", "model.onnx", "--calib", "images.npy")
    result = run(*args)
    assert result.exit_code == 3
    expected = "internal error: ZeroDivisionError: division by zero; re-run with --verbose for the traceback"
    assert result.stderr == f"pdq-export: {expected}\n"
    assert "Traceback (most recent call last)" in run(*args, "--verbose").stderr
    assert names(folder) == GIVEN


def test_verbose_shows_where_an_error_was_raised(run: Run, pipeline: FakePipeline) -> None:
    pipeline.act = raising(ModelError("wrong"))
    result = run("quantize", "model.onnx", "--calib", "images.npy", "-v")
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("pdq-export: error: wrong\n")


def test_interruption(run: Run, pipeline: FakePipeline, folder: Path) -> None:
    pipeline.act = raising(KeyboardInterrupt())
    result = run("quantize", "model.onnx", "--calib", "images.npy", "--quiet")
    assert result.exit_code == 130
    assert result.stderr.split() == ["pdq-export:", "interrupted"]
    assert names(folder) == GIVEN


def test_a_reader_that_has_gone(run: Run, pipeline: FakePipeline) -> None:
    pipeline.act = raising(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    result = run("quantize", "model.onnx", "--calib", "images.npy", "--quiet")
    assert (result.exit_code, result.stderr) == (141, "")


def chatter(progress: Callable[[FakeProgress], None]) -> None:
    progress(FakeProgress(stage="load"))
    progress(FakeProgress(stage="calibrate"))
    for block in range(2):
        for step in range(1, 4):
            progress(
                FakeProgress(
                    stage="calibrate", block=FakeBlock(block=f"b{block}", index=block, count=2, step=step, steps=3)
                )
            )
    progress(FakeProgress(stage="validate"))
    logging.getLogger("pdq_export.data").warning("a.jpg: skipped [red]damaged[/red]")
    logging.getLogger("pdq_export.calibrate").info("details")


def test_without_a_terminal_progress_is_a_few_lines(run: Run, pipeline: FakePipeline) -> None:
    pipeline.act = chatter
    result = run("quantize", "model.onnx", "--calib", "images.npy")
    assert result.stderr.splitlines() == [
        "pdq-export: reading the model",
        "pdq-export: calibrating",
        "pdq-export: calibrating: block 1/2, step 3/3, loss 1, 0:00 left, b0",
        "pdq-export: calibrating: block 2/2, step 3/3, loss 1, 0:00 left, b1",
        "pdq-export: validating in onnxruntime",
        "pdq-export: warning: a.jpg: skipped [red]damaged[/red]",
    ]


def test_quiet_leaves_warnings(run: Run, pipeline: FakePipeline) -> None:
    pipeline.act = chatter
    result = run("quantize", "model.onnx", "--calib", "images.npy", "--quiet")
    assert result.stdout == ""
    assert result.stderr == "pdq-export: warning: a.jpg: skipped [red]damaged[/red]\n"


def test_verbose_logs_everything(run: Run, pipeline: FakePipeline) -> None:
    pipeline.act = chatter
    result = run("quantize", "model.onnx", "--calib", "images.npy", "--verbose")
    assert "pdq-export: details" in result.stderr


@given(text=st.text(max_size=8))
def test_bits_that_do_not_parse_are_an_error_of_ours(text: str) -> None:
    try:
        bits = BitWidths.parse(text)
    except OptionError as error:
        assert "--bits" in str(error)  # noqa: PT017
    else:
        assert 2 <= bits.weight <= 8
        assert 2 <= bits.activation <= 8


@given(weight=st.integers(-1, 99), activation=st.integers(-1, 99))
def test_bits_from_two_to_eight(weight: int, activation: int) -> None:
    text = f"{weight}/{activation}"
    if 2 <= weight <= 8 and 2 <= activation <= 8:
        assert str(BitWidths.parse(text)) == text
    else:
        with pytest.raises(OptionError):
            BitWidths.parse(text)


def test_images_given_twice_are_refused(run: Run) -> None:
    result = run("quantize", "model.onnx", "--calib", "images.npy", "--calib", "eval.npz")
    assert result.exit_code == 2
    assert "--calib images.npy and --calib eval.npz: --calib is given 2 times; expected it once" in result.stderr


def test_a_name_that_is_no_onnx_file_is_refused(run: Run) -> None:
    result = run("quantize", "model.onnx", "--calib", "images.npy", "--output", "o.pt")
    assert result.exit_code == 2
    assert "--output o.pt: what is written is an ONNX file; expected a name that ends in .onnx" in result.stderr
