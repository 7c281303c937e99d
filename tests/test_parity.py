"""What is said where onnxruntime does not compute what the simulation did, and what becomes of the file then."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import pdq_export
import pdq_export.targets
from pdq_export.cli import app
from pdq_export.commands.quantize import Progress, Result
from pdq_export.data import ImageSet
from pdq_export.errors import OptionError, PdqError, ValidationError
from pdq_export.report import tell_parity
from pdq_export.validate import Comparison, DeviationMeter, OutputAgreement, Session, kernels_saturate
from pdq_export.validate.parity import Parity, judge_parity

from .cli.fakes import agreement, make_report
from .onnx_text import fill, parse

BODY = """a = Conv <pads=[1,1,1,1]> (image, w1) b = Relu(a) c = Conv <pads=[1,1,1,1]> (b, w2) d = Relu(c)
    p = GlobalAveragePool(d) f = Flatten(p) y = Gemm <transB=1> (f, w3)"""
WEIGHTS = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (4, 8)}
IMAGES = np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32)
LABELS = np.arange(40) % 4
Change = Callable[[float], None]


def model() -> onnx.ModelProto:
    return fill(parse(BODY), WEIGHTS)


def run(**options: Any) -> Result:
    return pdq_export.quantize(model(), bits="4/4", calib=IMAGES, method="nearest", device="cpu", **options)


@pytest.fixture
def off_by(monkeypatch: pytest.MonkeyPatch) -> Change:
    """Has files written whose output is that much too large."""

    def change(share: float) -> None:
        real = pdq_export.targets.export_model

        def export(*arguments: Any, **options: Any) -> onnx.ModelProto:
            file = real(*arguments, **options)
            (last,) = (node for node in file.graph.node if "y" in node.output)
            last.output[:] = ["right"]
            file.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1 + share), "too_much"))
            file.graph.node.append(onnx.helper.make_node("Mul", ["right", "too_much"], ["y"]))
            return file

        monkeypatch.setattr("pdq_export.targets.export_model", export)

    return change


def test_half_a_percent_is_nothing_to_tell(off_by: Change, caplog: pytest.LogCaptureFixture) -> None:
    off_by(0.005)
    report = run().report
    assert report.outputs[0].deviation == pytest.approx(0.005, rel=0.01)
    assert "off the simulation" not in caplog.text


def test_five_percent_are_told(off_by: Change, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    off_by(0.05)
    result = run(output=tmp_path / "y.onnx")
    assert result.report.saturated_layers == ()
    assert "output 'y': onnxruntime is 5.0 % off the simulation" in caplog.text
    assert "expected 1.0 % at most" in caplog.text
    assert os.listdir(tmp_path) == ["y.onnx"]


def test_running_it_again_shows_progress(off_by: Change) -> None:
    off_by(0.05)
    seen: list[Progress] = []
    run(progress=seen.append)
    again = [(at.images, at.total) for at in seen if at.stage == "rerun"]
    assert again == [(16, 40), (32, 40), (40, 40)]


def test_half_is_refused_and_the_file_kept(off_by: Change, tmp_path: Path) -> None:
    off_by(0.48)
    with pytest.raises(
        ValidationError, match=r"output 'y': onnxruntime is 48\.0 % off .* report this as a bug"
    ) as raised:
        run(output=tmp_path / "y.onnx", report=tmp_path / "r.json")
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} == {"y.onnx", "r.json"}
    assert f"kept as {folder / 'y.onnx'} and {folder / 'r.json'}" in str(raised.value)
    assert json.loads((folder / "r.json").read_text())["outputs"][0]["deviation"] == pytest.approx(0.48, rel=0.01)
    with pytest.raises(ValidationError, match=r"48\.0 % off"):
        run()  # without a file, too


def test_other_processors_get_their_file(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that saturate really, where there are such; with weights of 8 bits in the whole network."""
    if not kernels_saturate():
        pytest.skip("needs a processor whose kernels saturate")
    monkeypatch.undo()  # of the plan with a reduced range
    graph = model()
    for tensor in graph.graph.initializer:
        weight = np.abs(onnx.numpy_helper.to_array(tensor))
        tensor.CopyFrom(onnx.numpy_helper.from_array(weight / weight.max() * 0.1 + 0.1, tensor.name))
    images = np.abs(IMAGES) + 1
    result = pdq_export.quantize(graph, bits="8/8", calib=images, method="nearest", device="cpu")
    assert result.report.outputs[0].deviation is not None
    assert result.report.outputs[0].deviation > 0.1
    assert len(result.report.saturated_layers) == 3
    assert "so the file is right for processors with VNNI" in caplog.text
    assert "--reduce-range" in caplog.text
    if "or load it with this option" in caplog.text:
        way = {"session.x64quantprecision": "1"}
        (found,) = Session(result.model.SerializeToString(), config=way).run(images)
        (written,) = Session(result.model.SerializeToString(), optimize=False).run(images)
        np.testing.assert_allclose(found, written, rtol=0.02, atol=0.02)


def judge(
    monkeypatch: pytest.MonkeyPatch,
    as_run: float,
    ways: Mapping[str, float],
    *,
    saturate: bool = True,
    few: Mapping[str, float] | None = None,
    amplified: float = 0.0,
) -> Parity:
    """What is made of an output that is that far off by default and so far in other ways, with layers that saturate.

    ``few``: how far in every way on the first images; as far as on all of them, if not given. ``amplified``: how far
    rounding moves it.
    """
    monkeypatch.setattr("pdq_export.validate.parity.kernels_saturate", lambda: saturate)
    output = OutputAgreement(
        name="y", quantized_float=agreement(), quantized_simulated=agreement(), simulated_float=None, deviation=as_run
    )
    on_all = {"by default": as_run, **ways}
    measured = {"few": few or on_all, "all": on_all}

    def measure(_: object, batches: Iterable[np.ndarray], *others: object) -> dict[str, dict[str, float]]:
        seen = sum(map(len, batches))
        return {way: {"y": found} for way, found in measured["all" if seen > len(IMAGES) else "few"].items()}

    monkeypatch.setattr("pdq_export.validate.parity.measure_ways", measure)
    monkeypatch.setattr("pdq_export.validate.parity.measure_amplified", lambda *_, **__: {"y": amplified})
    comparison = Comparison(original=b"", quantized=b"", batches=lambda: [IMAGES] * 3, simulate=lambda _: [])
    return judge_parity(make_report(outputs=(output,)), comparison, saturating=["c1", "y"], reducible=True)


OPTION = "with session.x64quantprecision=1"
WRITTEN = "without optimizations"


def test_saturation_is_the_reason_only_where_the_file_is_right_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parity = judge(monkeypatch, 0.3, {OPTION: 0.0, WRITTEN: 0.016})
    assert parity.saturated == ("c1", "y")
    tell_parity(parity)
    assert "30.0 % off the simulation: on this processor its kernels saturate" in caplog.text
    assert "('c1', 'y'); with session.x64quantprecision=1 it is 0.0 % off" in caplog.text
    assert "quantize with --reduce-range, or load it with this option" in caplog.text
    caplog.clear()
    tell_parity(judge(monkeypatch, 0.3, {WRITTEN: 0.016}))  # where the option does not load the file
    assert "without optimizations it is 1.6 % off" in caplog.text
    assert "load it with" not in caplog.text
    for ways in ({OPTION: 0.3, WRITTEN: 0.3}, {WRITTEN: 0.12}):
        parity = judge(monkeypatch, 0.3, ways)
        assert parity.saturated == ()
        with pytest.raises(ValidationError, match="report this as a bug"):
            tell_parity(parity)
    with pytest.raises(ValidationError, match="run it without graph optimizations, or use another version"):
        tell_parity(judge(monkeypatch, 0.3, {WRITTEN: 0.0}, saturate=False))


def test_saturation_is_judged_on_images_that_show_the_deviation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only later images are off, in every way or by saturation; the first are right in every way."""
    right = {"by default": 0.001, OPTION: 0.0, WRITTEN: 0.0}
    with pytest.raises(ValidationError, match="report this as a bug"):
        tell_parity(judge(monkeypatch, 0.3, {OPTION: 0.3, WRITTEN: 0.3}, few=right))
    parity = judge(monkeypatch, 0.3, {OPTION: 0.0, WRITTEN: 0.0}, few=right)
    assert parity.saturated == ("c1", "y")
    tell_parity(parity)
    # Between 1 % and 10 %, a way is held against the default on the same images.
    assert judge(monkeypatch, 0.08, {WRITTEN: 0.03}, few={"by default": 0.05, WRITTEN: 0.03}).saturated == ()


def test_what_amplifies_rounding_is_told_and_not_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parity = judge(monkeypatch, 1.4, {WRITTEN: 1.4}, amplified=1.3)
    assert parity.saturated == ()
    tell_parity(parity)
    assert "output 'y': onnxruntime is 140.0 % off the simulation: it amplifies rounding" in caplog.text
    assert "move it by 130.0 % in the float model" in caplog.text
    with pytest.raises(ValidationError, match="report this as a bug"):
        tell_parity(judge(monkeypatch, 1.4, {WRITTEN: 1.4}, amplified=0.3))


CHAOS = BODY + " s = Softmax(y) m = Mul(s, large) z = Sin(m)"


def chaotic() -> onnx.ModelProto:
    graph = fill(parse(CHAOS, outputs="float[N,4] y, float[N,4] z"), WEIGHTS)
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(3e7), "large"))
    return graph


def quantize_chaotic() -> Result:
    return pdq_export.quantize(chaotic(), bits="4/4", calib=IMAGES, method="nearest", device="cpu")


def test_a_chaotic_output_beside_a_right_one_is_written(caplog: pytest.LogCaptureFixture) -> None:
    outputs = {output.name: output.deviation or 0.0 for output in quantize_chaotic().report.outputs}
    assert outputs["y"] < 0.01
    assert outputs["z"] > 0.1
    assert "output 'z': onnxruntime is" in caplog.text
    assert "it amplifies rounding" in caplog.text
    assert "output 'y': onnxruntime is" not in caplog.text


def test_a_wrong_output_beside_a_chaotic_one_is_refused(off_by: Change) -> None:
    off_by(0.48)
    with pytest.raises(ValidationError, match=r"output 'y': onnxruntime is 48\.0 % off"):
        quantize_chaotic()


def test_a_fault_that_later_images_show_is_no_saturation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is wrong in every way, but on bright images only, which are none of the first."""
    monkeypatch.setattr("pdq_export.validate.parity.kernels_saturate", lambda: True)
    monkeypatch.setattr("pdq_export.commands.evaluate.saturating_layers", lambda plan, signed=False: ["c1"])
    real = pdq_export.targets.export_model
    wrong = """<ir_version: 8, opset_import: ["": 17]> g (float[N,3,8,8] image, float[N,4] right) => (float[N,4] y) {
        top = GlobalMaxPool(image) flat = Flatten(top) bright = Greater(flat, fifty) share = Cast <to = 1> (bright)
        more = MatMul(share, half) factor = Add(more, one) y = Mul(right, factor) }"""

    def export(*arguments: Any, **options: Any) -> onnx.ModelProto:
        file = real(*arguments, **options)
        (last,) = (node for node in file.graph.node if "y" in node.output)
        last.output[:] = ["right"]
        file.graph.node.extend(onnx.parser.parse_model(wrong).graph.node)
        values = {"fifty": np.float32(50), "one": np.float32(1), "half": np.full((3, 4), 0.5, np.float32)}
        file.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in values.items())
        return file

    monkeypatch.setattr("pdq_export.targets.export_model", export)
    images = np.concatenate([IMAGES, IMAGES, IMAGES])
    images[80:, :, 0, 0] = 100
    with pytest.raises(ValidationError, match=r"output 'y'.*report this as a bug"):
        run(eval=images)


def test_nothing_is_run_again_where_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    parity = judge(monkeypatch, 0.01, {})
    assert parity == Parity(deviations=(), saturated=())
    tell_parity(parity)


def test_indices_have_no_size() -> None:
    meter = DeviationMeter()
    meter.update(np.array([[1, 2, 3, 4]]), np.array([[1, 2, 3, 900]]))
    meter.update(np.array([[1, 2, 3, 4]]), np.array([[1, 2, 3, 4]]))
    assert meter.result() == 1 / 8
    meter = DeviationMeter()
    meter.update(np.array([[3.0, 4.0]], np.float32), np.array([[3.0, 4.5]], np.float32))
    assert meter.result() == pytest.approx(0.1)


def test_interrupting_the_validation_loses_nothing(tmp_path: Path) -> None:
    def interrupt(at: Progress) -> None:
        if at.stage == "validate" and at.images is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        run(output=tmp_path / "y.onnx", report=tmp_path / "r.json", external_data=True, progress=interrupt)
    (folder,) = tmp_path.iterdir()
    assert str(folder / "y.onnx") in str(raised.value.__notes__)
    found = Session(folder / "y.onnx").run(IMAGES[:2])  # it is whole
    expected = run(output=tmp_path / "y.onnx")
    np.testing.assert_array_equal(found[0], Session(expected.model.SerializeToString()).run(IMAGES[:2])[0])


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def appear(at: Progress) -> None:
        if at.stage == "validate":
            (tmp_path / "r.json").write_text("precious")

    paths = {"output": tmp_path / "y.onnx", "report": tmp_path / "r.json"}
    with pytest.raises(OptionError, match=r"r\.json: exists already; .*kept as .*y\.onnx and .*r\.json"):
        run(**paths, progress=appear)
    assert (tmp_path / "r.json").read_text() == "precious"
    assert not (tmp_path / "y.onnx").exists()
    result = run(**paths, overwrite=True)
    assert result.files == (tmp_path / "y.onnx", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["quantized"]["name"] == "y.onnx"


def test_progress_counts_images_and_the_simulation_sees_some() -> None:
    seen: list[Progress] = []
    images = ImageSet.from_array(np.repeat(IMAGES, 4, axis=0), labels=np.tile(LABELS, 4))
    report = run(eval=images, simulated_images=40, progress=seen.append).report
    validating = [(at.images, at.total) for at in seen if at.stage == "validate"]
    assert validating == [(None, None), *((done, 160) for done in range(16, 161, 16))]
    assert report.outputs[0].quantized_float.images == 160
    assert report.outputs[0].quantized_simulated is not None
    assert report.outputs[0].quantized_simulated.images == 32  # two batches, the first and the sixth
    accuracies = report.to_dict()["accuracy"]
    assert {name: found["images"] for name, found in accuracies.items()} == {
        "float": 160,
        "quantized": 160,
        "simulated": 32,
        "float_where_simulated": 32,
        "quantized_where_simulated": 32,
    }
    with pytest.raises(OptionError, match="--simulated-images 0: expected 1 or more"):
        run(simulated_images=0)


def test_names_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of no encoding in every path; the report tells them by JSON's escapes."""
    folder = tmp_path / os.fsdecode(b"f\xff")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("the file system takes no such names")
    monkeypatch.chdir(folder)
    names = {key: os.fsdecode(b"n\xff." + end) for key, end in (("m", b"onnx"), ("c", b"npy"), ("o", b"q.onnx"))}
    report = os.fsdecode(b"r\xff.json")
    onnx.save(model(), names["m"])
    np.save(names["c"], IMAGES)
    paths = (names["m"], "--calib", names["c"], "-o", names["o"], "--report", report)
    result = CliRunner().invoke(app, ["quantize", *paths, "--method", "nearest", "--quiet"])
    assert result.exit_code == 0, result.output
    read = json.loads(Path(report).read_text(encoding="utf-8"))
    assert (read["model"]["name"], read["quantized"]["name"]) == (names["m"], names["o"])
    assert set(os.listdir()) == {*names.values(), report}
    loud = CliRunner().invoke(app, ["quantize", *paths, "--method", "nearest", "--overwrite"])
    assert loud.exit_code == 0, loud.output
    assert "wrote 'n\\udcff.q.onnx'" in loud.stdout
    with pytest.raises(OptionError, match="its name is not UTF-8"):
        run(output=names["o"], external_data=True, overwrite=True)
    assert issubclass(OptionError, PdqError)
    assert logging.getLogger("pdq_export").handlers  # the command's
