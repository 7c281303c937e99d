"""Calibration without data, from the command line, files and Python: what is made, told, and refused."""

import json
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from pdq_export.cli import app
from pdq_export.commands import quantize as stages
from pdq_export.commands import synthetic
from pdq_export.commands.quantize import Progress, Result, quantize, quantize_together
from pdq_export.commands.show_config import show_config
from pdq_export.config.config import make_config
from pdq_export.config.record import MADE_BY
from pdq_export.data import ImageSet, Samples
from pdq_export.errors import DataError, ModelError, OptionError, RankError
from pdq_export.synthesis.learn import Learned
from pdq_export.torch_module import export_module

from ..onnx_text import fill
from ..synthesis.networks import MEAN, SIDE, STD, normalized, photographs, seen
from ..thread_ranks import on_ranks
from .test_quantize import content

OPTIONS: dict[str, Any] = {"samples": 16, "iters": 4, "correction_iters": 1, "batch_size": 8, "search_samples": 16}
PIXELS = photographs(64)
MODULE = seen(normalized(PIXELS))
MODEL = export_module(MODULE, normalized(PIXELS)[:1])
NORMALIZATION = {"mean": MEAN, "std": STD}
STEPS = 20
UNSEEN = (255 * photographs(40, seed=9)).numpy().astype(np.uint8)
JUDGED = ImageSet.from_array(UNSEEN, mean=MEAN, std=STD)


def run(model: Any = MODEL, **arguments: Any) -> Result:
    given: dict[str, Any] = {"calib": "synthetic", "bits": (8, 8), "options": OPTIONS, "device": "cpu", **arguments}
    return quantize(model, **given)


def made_by(model: onnx.ModelProto) -> dict[str, Any]:
    made: dict[str, Any] = json.loads({entry.key: entry.value for entry in model.metadata_props}[MADE_BY])
    return made


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images as they are after a few steps, which tests of learning do not look at."""
    monkeypatch.setattr("pdq_export.synthesis.learn._FEWEST_STEPS", STEPS)


@pytest.fixture  # plans are those of the single test
def result() -> Result:
    return run(eval=UNSEEN, **NORMALIZATION)


def test_the_file_is_near_to_one_of_real_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdq_export.synthesis.learn._FEWEST_STEPS", 100)
    result = run(eval=UNSEEN, **NORMALIZATION)
    real = run(calib=(255 * PIXELS).numpy().astype(np.uint8), eval=UNSEEN, **NORMALIZATION)
    made, given = (one.report.outputs[0].against_float.sqnr_db for one in (result, real))
    assert made is not None
    assert given is not None
    assert made > given - 6


def test_report_and_metadata_tell_how_images_were_made(result: Result) -> None:
    synthesis = result.report.settings["synthesis"]
    assert synthesis == {"method": "GENIE-D", "images": 16, "steps": STEPS, "layers": 2, "loss": synthesis["loss"]}
    assert 0 < synthesis["loss"] < 1
    assert result.report.settings["calibration"].startswith("synthetic: 16 images")
    assert result.report.settings["asked"]["calib"] == "synthetic"
    assert not result.report.settings["evaluated_on_calibration_images"]
    assert made_by(result.model)["synthesis"] == synthesis
    assert "synthesis" not in made_by(run(calib=JUDGED, eval=JUDGED).model)


def test_the_same_command_gives_the_same_bytes(result: Result) -> None:
    assert content(run(eval=UNSEEN, **NORMALIZATION).model) == content(result.model)
    assert (
        made_by(run(seed=1, eval=UNSEEN, **NORMALIZATION).model)["calibration"] != made_by(result.model)["calibration"]
    )


def test_an_interrupted_run_goes_on_to_the_same_file(
    result: Result, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class StopError(Exception):
        pass

    def stop(at: Progress) -> None:
        if at.block is not None and at.block.index == 1:
            raise StopError

    with pytest.raises(StopError):
        run(eval=UNSEEN, work_dir=tmp_path, progress=stop, **NORMALIZATION)
    caplog.set_level(logging.INFO)
    assert content(run(eval=UNSEEN, work_dir=tmp_path, resume=True, **NORMALIZATION).model) == content(result.model)
    assert "1 of 3 blocks are finished" in caplog.text


def test_progress_counts_steps() -> None:
    at: list[Progress] = []
    run(progress=at.append)
    steps = [one for one in at if one.stage == "synthesize" and one.images is not None]
    assert [one.images for one in steps] == list(range(1, STEPS + 1))
    assert {(one.total, one.unit) for one in steps} == {(STEPS, "steps")}


def test_without_evaluation_images_no_accuracy_is_told(caplog: pytest.LogCaptureFixture) -> None:
    result = run()
    assert "no accuracy" in caplog.text
    assert result.report.quantized_accuracy is None
    assert result.report.settings["evaluated_on_calibration_images"]


def test_pixels_of_known_normalization_are_bytes(result: Result) -> None:
    assert "(uint8)" in result.report.settings["calibration"]
    assert "(float32)" in run().report.settings["calibration"]


def test_wrong_normalization_is_told(caplog: pytest.LogCaptureFixture) -> None:
    run(eval=UNSEEN, pixel_range="0..255")
    assert "do not come near" in caplog.text


def test_a_module_of_torch_and_channels_behind() -> None:
    """The remedy where a file has no statistics."""
    assert run(MODULE, example_input=normalized(PIXELS)[:1]).report.settings["synthesis"]["layers"] == 2


LAST = """<ir_version: 8, opset_import: ["": 17]>
m (float[N,16,12,3] image) => (float[N,5] y) {
    x = Transpose <perm = [0, 3, 1, 2]> (image)
    c = Conv <pads = [1, 1, 1, 1]> (x, w1)
    n = BatchNormalization (c, g, b, m, v)
    a = Relu(n)
    p = GlobalAveragePool(a)
    f = Flatten(p)
    y = Gemm <transB = 1> (f, w2)
}"""


FIRST = LAST.replace("16,12,3", "3,16,12").replace("x = Transpose <perm = [0, 3, 1, 2]> (image)", "x = Identity(image)")


def test_channels_may_come_last() -> None:
    """The same images in the other layout are as near."""
    shapes: dict[str, tuple[int, ...]] = {"w1": (4, 3, 3, 3), "w2": (5, 4), **dict.fromkeys("gbmv", (4,))}
    found = []
    for text in (LAST, FIRST):
        model = fill(onnx.parser.parse_model(text), shapes)
        for tensor in model.graph.initializer:
            if tensor.name in "gv":
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(4, np.float32), tensor.name))
        found.append(run(model, **NORMALIZATION).report.settings)
    last, first = found
    assert "16 images 16 x 12 x 3" in last["calibration"]
    assert last["synthesis"] == first["synthesis"]


def test_a_dynamic_size_is_asked_for() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(MODEL)
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    with pytest.raises(DataError, match=r"no fixed height and width; .*give --crop HxW"):
        run(model)
    assert "3 x 24 x 16" in run(model, crop=(24, 16)).report.settings["calibration"]


TWO = """<ir_version: 8, opset_import: ["": 17]>
m (float[N,3,8,8] image, float[N,3,8,8] other) => (float[N,4,8,8] y) {
    s = Add(image, other)
    y = Conv <pads = [1, 1, 1, 1]> (s, w)
}"""


def test_what_cannot_be_made_is_refused_with_the_reason() -> None:
    folded = export_module(seen(normalized(PIXELS), normalizes=False), normalized(PIXELS)[:1])
    with pytest.raises(DataError, match=r"no BatchNormalization statistics behind its 3 layers.*example_input"):
        run(folded)
    with pytest.raises(DataError, match=r"takes input 'image'.*one input N x C x H x W.*--calib DATA.npz"):
        run(fill(onnx.parser.parse_model(TWO), {"w": (4, 3, 3, 3)}))
    with pytest.raises(DataError, match=r"labels are given.*give eval"):
        run(labels=[0] * 16)
    with pytest.raises(DataError, match="--crop is given, and has no influence on images that are made"):
        run(crop=SIDE)
    with pytest.raises(DataError, match="std is missing"):
        run(mean=MEAN)
    with pytest.raises(DataError, match="for --calib alone"):
        run(calib=JUDGED, eval="synthetic")
    with pytest.raises((DataError, OptionError, ModelError), match="3"):
        run(mean=(0.5, 0.5), std=(0.5, 0.5))


def test_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"\./synthetic: no such file"):
        run(calib="./synthetic")
    Path("synthetic").mkdir()
    with pytest.raises(DataError, match="synthetic: no image"):
        run(calib=Path("synthetic"))
    run()
    assert "the file of this name in the current folder is ./synthetic" in caplog.text


def test_the_command_line_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(MODEL, "model.onnx")
    np.savez("eval.npz", images=UNSEEN, mean=np.array(MEAN, np.float32), std=np.array(STD, np.float32))
    budget = ["--samples", "16", "--iters", "4", "--correction-iters", "1", "--device", "cpu", "--bits", "8/8"]
    budget += ["--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD)), "--work-dir", "work"]

    def command(*arguments: str) -> Any:
        finished = CliRunner().invoke(app, ["quantize", "model.onnx", *budget, *arguments])
        assert finished.exit_code == 0, finished.output
        return finished

    command("--calib", "synthetic", "--eval", "eval.npz", "-o", "first.onnx")
    Path("run.toml").write_text('[data]\ncalib = "synthetic"\neval = "eval.npz"\n')
    command("--config", "run.toml", "-o", "second.onnx")
    assert Path("first.onnx").read_bytes() == Path("second.onnx").read_bytes()
    Path("again.toml").write_text(show_config("first.onnx"))
    finished = CliRunner().invoke(app, ["quantize", "model.onnx", "--config", "again.toml", "-o", "third.onnx"])
    assert finished.exit_code == 0, finished.output
    assert Path("first.onnx").read_bytes() == Path("third.onnx").read_bytes()
    alone = command("--calib", "synthetic", "-o", "alone.onnx")
    assert "agreement on them is no accuracy" in alone.output


def test_memory_that_holds_no_step_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer images a step would be other images: the same command gives the same file under any --max-memory."""
    free = run(eval=UNSEEN, max_memory="100GB", **NORMALIZATION)
    assert content(free.model) == content(run(eval=UNSEEN, **NORMALIZATION).model)
    monkeypatch.setattr("pdq_export.commands.synthetic.process_budget", lambda most: 1)
    with pytest.raises(OptionError, match=r"--max-memory 4\.0 GB: .* images at once takes .*; give --max-memory "):
        run(max_memory="4GB", **NORMALIZATION)


def test_ranks_have_the_images_that_the_first_has_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines of two kinds would learn others."""
    onnx.save(MODEL, tmp_path / "model.onnx")
    learned: list[int] = []
    seen, both = list[NDArray[np.float32]](), threading.Barrier(2)

    def learn(*_: Any, **others: Any) -> Learned:
        learned.append(1)
        return Learned(images=torch.randn(16, 3, SIDE, SIDE), steps=1, layers=1, distance=0.0)

    def stop(request: Any, planned: Any, chosen: Any, samples: Samples) -> None:
        seen.append(samples.calibration.inputs()[0])
        both.wait(60)
        raise RankError("enough")

    monkeypatch.setattr(synthetic, "learn_images", learn)
    monkeypatch.setattr(stages, "check_alike", stop)
    config = make_config({"calib": "synthetic", "samples": 16, "device": "cpu"})
    with pytest.raises(RankError, match="enough"):
        on_ranks(2, lambda ranks: quantize_together(ranks, tmp_path / "model.onnx", config=config, progress=None))
    assert len(learned) == 1
    np.testing.assert_array_equal(*seen)
