"""`bench_models`: what is measured of which file, and what is refused. How long anything takes is never asserted."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pdq_export
from pdq_export.commands import bench, benchmark
from pdq_export.commands.bench import bench_models
from pdq_export.commands.benchmark import Benchmark
from pdq_export.errors import ModelError, OptionError, PdqError, ValidationError
from pdq_export.validate import Timing
from pdq_export.validate.fresh import Fresh


def write(path: Path, inputs: str = "float[N,3,8,8] x", body: str = "y = Relu(x)", output: str = "y") -> Path:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => (float[N,M] {output}) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / "a.onnx"), write(tmp_path / "b.onnx", body="z = Relu(x) y = Neg(z)")]


def measure(files: Any, **options: Any) -> Benchmark:
    return bench_models(files, **{"seconds": 0, "loads": 1} | options)


def test_every_file_beside_the_first(files: list[Path]) -> None:
    stages: list[str] = []
    found = measure(files, batch=[1, 4, 1], loads=2, progress=lambda at: stages.append(at.stage))
    assert stages == ["load", "time", "fresh"]
    assert [file.name for file in found.files] == ["a.onnx", "b.onnx"]
    first, second = found.files
    assert (first.size_ratio, second.size_ratio) == (1, second.size / first.size)
    assert second.size == files[1].stat().st_size
    for file in found.files:
        assert [latency.batch for latency in file.latency] == [1, 4]
        assert all((one.ratio is None) == (file is first) for one in file.latency)
        assert all(one.rounds == 3 and one.calls >= 3 and one.median_ms > 0 for one in file.latency)
        assert file.loading is not None
        assert (file.loading.batch, file.loading.processes) == (4, 2)
        assert (file.loading.cpu_ratio is None) == (file is first)
    assert found.inputs == ({"name": "x", "type": "tensor(float)", "shape": [None, 3, 8, 8], "chosen": False},)
    assert pdq_export.bench_models is bench_models


def test_json_is_what_is_documented(files: list[Path]) -> None:
    fields = json.loads(measure(files).to_json())
    schema = benchmark.__doc__ or ""
    levels = [fields, fields["machine"], fields["settings"], fields["inputs"][0], fields["files"][1]]
    levels += [
        fields["files"][1]["latency"][0],
        fields["files"][1]["loading"],
        fields["files"][1]["latency"][0]["ratio"],
    ]
    assert fields["schema_version"] == 1
    assert fields["settings"] == {"batch": [1], "seconds": 0, "loads": 1, "shapes": {}}
    assert [name for level in levels for name in level if name not in schema] == []


def test_figures_are_those_of_the_rounds(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up times: medians, percentile, throughput, and ratios within a round."""
    slow = Timing(milliseconds=(2.0, 4.0, 6.0), calls=tuple(float(n) for n in range(1, 22)))
    quick = Timing(milliseconds=(1.0, 4.0, 12.0), calls=(1.0, 3.0))
    monkeypatch.setattr(bench, "time_sessions", lambda *_, **__: [slow, quick])
    memory = iter([(10, 40), (20, 30), (10, 80), (30, 30)])

    def fresh(*_: Any, **__: Any) -> Fresh:
        load, peak = next(memory)
        return Fresh(onnxruntime="1", cpu=load / 1e3, wall=0.5, load_peak=load, after=1, peak=peak)

    monkeypatch.setattr(bench, "measure_fresh", fresh)
    a, b = measure(files, batch=8, loads=2).files
    assert (a.latency[0].median_ms, a.latency[0].p95_ms) == (11, 20)
    assert a.latency[0].samples_per_second == pytest.approx(8 * 21 / 0.231)
    assert (b.latency[0].median_ms, b.latency[0].p95_ms, b.latency[0].calls) == (2, None, 2)
    ratio = b.latency[0].ratio
    assert ratio is not None
    assert (ratio.median, ratio.low, ratio.high, ratio.spans_one) == (1, 0.75, 1.5, True)
    assert b.loading is not None
    assert (b.loading.cpu_ms, b.loading.load_peak, b.loading.peak) == (25, 25, 30)
    assert b.loading.load_peak_ratio is not None
    assert (b.loading.load_peak_ratio.median, b.loading.load_peak_ratio.spans_one) == (2.5, False)
    assert b.loading.peak_ratio is not None
    assert b.loading.peak_ratio.median == (30 / 40 + 30 / 80) / 2


def test_memory_that_is_not_told_is_null(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "measure_fresh", lambda *_, **__: Fresh(onnxruntime="1", cpu=1, wall=1))
    loading = measure(files).files[1].loading
    assert loading is not None
    assert (loading.load_peak, loading.peak, loading.peak_ratio) == (None, None, None)


def test_all_files_get_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matched by name in another order, and as integers."""
    inputs = ["float[N,3] x", "int64[N] i"]
    body = "f = Cast <to = 1> (i) u = Flatten(f) y = Add(x, u)"
    files = [
        write(tmp_path / "a.onnx", inputs=", ".join(inputs), body=body),
        write(tmp_path / "b.onnx", inputs=", ".join(reversed(inputs)), body=body),
    ]
    seen: list[dict[str, np.ndarray]] = []

    def fresh(*_: Any, feed: dict[str, np.ndarray], **__: Any) -> Fresh:
        seen.append(feed)
        return Fresh(onnxruntime="1", cpu=1, wall=1)

    monkeypatch.setattr(bench, "measure_fresh", fresh)
    measure(files, batch=2)
    assert all(np.array_equal(seen[0][name], seen[1][name]) for name in ("x", "i"))
    assert seen[0]["i"].dtype == np.int64


def test_inputs_are_matched_by_position_where_names_differ(tmp_path: Path) -> None:
    other = write(tmp_path / "b.onnx", inputs="float[N,3,8,8] image", body="y = Relu(image)")
    found = measure([write(tmp_path / "a.onnx"), other])
    assert [file.renamed for file in found.files] == [{}, {"x": "image"}]


def test_free_axes(tmp_path: Path) -> None:
    file = write(tmp_path / "a.onnx", inputs="float[N,3,H,W] x")
    found = measure([file], shapes={"x": (1, 3, 6, 5)}, batch=3, loads=0)
    assert found.inputs[0]["shape"] == [None, 3, 6, 5]
    assert found.files[0].loading is None
    assert [one.batch for one in measure([file], shapes={"x": (4, 3, 6, 5)}, loads=0).files[0].latency] == [4]
    with pytest.raises(OptionError, match=r"--batch 1: the batch size is fixed to 4, by --shape or by a file"):
        measure([file], shapes={"x": (4, 3, 6, 5)}, batch=1)


def test_files_that_fix_their_batch(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.onnx"), write(tmp_path / "b.onnx", inputs="float[2,3,8,8] x")]
    assert [one.batch for one in measure(files, loads=0).files[0].latency] == [2]
    with pytest.raises(OptionError, match=r"--batch 8: the batch size is fixed to 2"):
        measure(files, batch=[2, 8])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("float[N,3,9,8] x", r"b\.onnx beside .*a\.onnx: the inputs of the two files do not fit"),
        ("float[N,3,8,8] x, float[N] z", r"b\.onnx beside .*a\.onnx: the inputs of the two files do not fit"),
        ("uint8[N,3,8,8] x", r"b\.onnx beside .*a\.onnx: input 'x' \(tensor\(uint8\) .* is 'x' \(tensor\(float\)"),
    ],
)
def test_files_with_other_inputs_are_refused_by_name(tmp_path: Path, inputs: str, message: str) -> None:
    a = write(tmp_path / "a.onnx")
    b = write(tmp_path / "b.onnx", inputs=inputs, body="f = Cast <to = 1> (x) y = Relu(f)")
    with pytest.raises(ModelError, match=message):
        measure([a, b])
    measure([b], loads=0)


def test_another_fixed_batch_is_refused_by_name(tmp_path: Path) -> None:
    one, two = (write(tmp_path / f"{n}.onnx", inputs=f"float[{n},3,8,8] x") for n in (1, 2))
    with pytest.raises(ModelError, match=r"2\.onnx beside .*1\.onnx: input 'x' .* expected the same shape"):
        measure([one, two])


def test_a_file_that_fails_on_the_shape_is_named_and_the_remedy_works(tmp_path: Path) -> None:
    body = "s = Constant <value = int64[2] {-1, 96}> () y = Reshape(x, s)"
    files = [write(tmp_path / "a.onnx", inputs="float[N,3,H,W] x")]
    files.append(write(tmp_path / "b.onnx", inputs="float[N,3,H,W] x", body=body))
    with pytest.raises(ValidationError, match=r"b\.onnx: onnxruntime fails .* of shape x=1x3x7x7; give others with"):
        measure(files, shapes={"x": (1, 3, 7, 7)})
    measure(files, shapes={"x": (1, 3, 8, 4)}, loads=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "--threads 0: expected a whole number, 1 or more"),
        ({"loads": -1}, "--loads -1: expected a whole number, 0 or more"),
        ({"loads": True}, "--loads True: expected"),
        ({"seconds": math.nan}, "--seconds nan: expected a number, 0 or more"),
        ({"seconds": "1"}, "--seconds '1': expected"),
        ({"batch": 0}, "--batch 0: expected a whole number, 1 or more"),
        ({"batch": [1.5]}, "--batch 1.5: expected"),
        ({"shapes": {"z": (1,)}}, r"--shape z=\.\.\.: no input of that name; expected one of x"),
    ],
)
def test_wrong_options(files: list[Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        measure(files, **options)


def test_no_files(files: list[Path]) -> None:
    given: list[Any] = [[], files[0], str(files[0])]
    for none in given:
        with pytest.raises(OptionError, match="no list of ONNX files is given to bench"):
            measure(none)


def test_what_is_no_model(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(PdqError, match=r"text\.onnx: is not an ONNX file: it is text that begins with"):
        measure([*files, tmp_path / "text.onnx"])


def test_external_data_counts(tmp_path: Path) -> None:
    model = onnx.load(write(tmp_path / "a.onnx", body="y = Add(x, w)"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((3, 8, 8), np.float32), "w"))
    onnx.save(model, tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    (file,) = measure([tmp_path / "e.onnx"]).files
    assert file.size == sum((tmp_path / name).stat().st_size for name in ("e.onnx", "e.data"))
