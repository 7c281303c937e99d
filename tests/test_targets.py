"""Targets: what each asks of options and plans, and that a new one is one entry with its layout."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import GraphProto

import pdq_export
from pdq_export import targets
from pdq_export.commands.dry_run import dry_run
from pdq_export.commands.settle import settle
from pdq_export.config.config import options_of
from pdq_export.errors import OptionError, ValidationError
from pdq_export.export import qonnx
from pdq_export.export.constants import Weight
from pdq_export.export.layers import textbook_weight
from pdq_export.export.layouts import Layout, Quantized
from pdq_export.export.qdq import QdqGraph
from pdq_export.export.writer import GraphWriter
from pdq_export.graph.lookup import GraphIndex
from pdq_export.plan import PlanOptions
from pdq_export.plan.floating import FloatNode
from pdq_export.plan.planned import Planned
from pdq_export.report.table import report_rows
from pdq_export.spec import Plan, Point, Role
from pdq_export.targets import Target, find_target, register_target, target_names
from pdq_export.validate import Batch, check_runs_quantized
from pdq_export.work import prepare_and_plan

from .onnx_text import fill, name_nodes, parse

BODY = """c1 = Conv (image, w1) a1 = Relu(c1) c2 = Conv (a1, w2) a2 = Relu(c2) c3 = Conv (a2, w3) a3 = Relu(c3)
    p = GlobalAveragePool(a3) f = Flatten(p) y = Gemm <transB = 1> (f, w4)"""
WEIGHTS = {"w1": (4, 3, 3, 3), "w2": (4, 4, 1, 1), "w3": (4, 4, 3, 3), "w4": (5, 4)}


def model() -> onnx.ModelProto:
    return name_nodes(fill(parse(BODY), WEIGHTS))


def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)


class ToyGraph(QdqGraph):
    def container(self, point: Point) -> int:
        return 8

    def weight(self, out: GraphWriter, weight: Weight) -> list[str]:
        return textbook_weight(out, weight, 8, clip=False)

    def write(self) -> GraphProto:
        graph = super().write()
        graph.doc_string = "toy"
        return graph


def write(quantized: Quantized) -> GraphProto:
    return ToyGraph(quantized).write()


def pointwise_in_eight(planned: Planned) -> Planned:
    """The rule of the toy: 1x1 kernels have 8 bits."""
    points = dict(planned.plan.points)
    for name, point in points.items():
        if point.role is Role.WEIGHT and planned.index.constant(name).shape[2:] == (1, 1):
            points[name] = point.with_bits(8)
    return planned.with_points(points)


def only_pools(index: GraphIndex, plan: Plan) -> tuple[FloatNode, ...]:
    nodes = (node for node in index.graph.node if node.op_type == "GlobalAveragePool")
    return tuple(FloatNode(node=node.name, op_type=node.op_type, reason="toys do not pool") for node in nodes)


class Runtime:
    """Runs files in onnxruntime, and counts them."""

    def __init__(self) -> None:
        self.runs = 0

    def check(self, file: onnx.ModelProto, batch: Batch | None) -> None:
        self.runs += 1
        check_runs_quantized(file, batch)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Targets that a test registers go with it; the option's choices, a text for users, name theirs as well."""
    monkeypatch.setattr(targets, "_TARGETS", dict(targets._TARGETS))
    declared = options_of()["target"].declared
    before = declared.choices
    object.__setattr__(declared, "choices", (*before, "toy", "plain"))
    yield
    object.__setattr__(declared, "choices", before)


@pytest.fixture
def runtime(registry: None) -> Runtime:
    """What checks the target ``toy``, which is there while the test runs."""
    found = Runtime()
    register_target(
        Target(
            name="toy",
            layout=Layout(name="toy", required_opset=lambda plan: 18, write=write, for_onnxruntime=False),
            rules=(pointwise_in_eight,),
            weights=("symmetric",),
            fewest_bits=3,
            because="toys can count to eight",
            integer_bias=False,
            find_floating=only_pools,
            check_runs=found.check,
        )
    )
    return found


def test_a_new_target_is_planned_and_dry_run_as_it_asks(runtime: Runtime) -> None:
    options = find_target("toy").settle(PlanOptions.of("4/4"))
    prepared, plan, _ = prepare_and_plan(model(), options, target="toy")
    assert {name: plan.points[name].bits for name in WEIGHTS} == {"w1": 8, "w2": 8, "w3": 4, "w4": 8}
    assert all(plan.points[name].symmetric for name in WEIGHTS)
    assert not plan.integer_bias
    assert GraphIndex(prepared.model).opset == 18
    file = dry_run(prepared, plan, "toy").model
    assert (file.graph.doc_string, runtime.runs) == ("toy", 1)


def test_a_new_target_is_inspected_quantized_and_converted_like_others(runtime: Runtime) -> None:
    inspection = pdq_export.inspect_model(model(), bits="4/4", target="toy")
    assert [node.reason for node in inspection.floating] == ["toys do not pool"]
    assert (inspection.settings["target"], inspection.settings["weights"]) == ("toy", "symmetric")
    result = pdq_export.quantize(model(), bits="4/4", target="toy", calib=images(), method="nearest", device="cpu")
    assert result.model.graph.doc_string == "toy"
    assert result.report.settings["weights"] == "symmetric"
    assert [node["node"] for node in result.report.to_dict()["floating"]] == ["p"]
    metadata = {entry.key for entry in result.model.metadata_props}
    assert not metadata & {"pdq_export.source", "pdq_export.min_onnxruntime"}  # its plan is its own, and so its runtime
    with pytest.raises(OptionError, match="is a toy file; expected one of native, ort, qcdq, qonnx"):
        pdq_export.convert(result.model, "ort")
    assert runtime.runs == 2


def test_what_a_new_target_does_not_take_is_refused_before_calibration(runtime: Runtime) -> None:
    with pytest.raises(OptionError, match="--weights asymmetric: --target toy takes symmetric weights only; leave"):
        settle(None, {"bits": "4/4", "weights": "asymmetric", "target": "toy"})
    message = (
        "--target toy: tensor 'a1' is to have 2 bits; expected 3 or more, as toys can count to eight; use --bits 3/3, "
        "leave the layer in float with --exclude, or choose another --target: ort, native, qcdq, qonnx$"
    )
    with pytest.raises(OptionError, match=message):
        pdq_export.quantize(model(), bits="4/2", target="toy", calib=images(), method="nearest", device="cpu")
    assert runtime.runs == 0


class OtherRuntime:
    """A runtime that knows the operators of ``elsewhere``, which onnxruntime does not; it can refuse written files."""

    def __init__(self) -> None:
        self.seen: list[bool] = []
        self.refuses_after = 100

    def check(self, content: bytes, batch: Batch | None) -> None:
        file = onnx.load_model_from_string(content)
        assert "elsewhere" in {node.domain for node in file.graph.node}
        self.seen.append(batch is not None)
        if len(self.seen) > self.refuses_after:
            raise ValidationError("elsewhere does not load it")


def write_elsewhere(quantized: Quantized) -> GraphProto:
    graph = ToyGraph(quantized).write()
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            node.domain = "elsewhere"
    return graph


@pytest.fixture
def elsewhere(registry: None) -> OtherRuntime:
    """What checks the target ``plain``, whose files onnxruntime cannot load."""
    found = OtherRuntime()
    layout = Layout(
        name="plain",
        required_opset=lambda plan: 18,
        write=write_elsewhere,
        for_onnxruntime=False,
        domains={"elsewhere": 1},
    )
    register_target(Target(name="plain", layout=layout, check_runs=found.check, in_onnxruntime=False))
    return found


FAST = {"bits": "4/4", "target": "plain", "method": "nearest", "device": "cpu"}


def test_files_that_onnxruntime_does_not_run_are_inspected_written_and_measured_by_their_simulation(
    elsewhere: OtherRuntime,
) -> None:
    with pytest.raises(ValidationError, match=r"onnxruntime .* does not load"):
        check_runs_quantized(_written(elsewhere).SerializeToString(), None)
    inspection = pdq_export.inspect_model(model(), bits="4/4", target="plain")
    assert (inspection.problems, inspection.kernels, inspection.saturating) == ((), None, ())
    assert inspection.to_dict()["kernels"] is None
    assert inspection.quantized_size is not None

    elsewhere.seen.clear()
    pixels = np.random.default_rng(1).normal(size=(40, 3, 8, 8)).astype(np.float32)
    some = {
        "calib": pdq_export.ImageSet(pixels=pixels, labels=np.arange(40) % 5, source="toys"),
        "simulated_images": 32,
    }
    result = pdq_export.quantize(model(), **some, **FAST)
    assert elsewhere.seen == [True, True]  # placeholders before calibration, the written file afterwards
    found = result.report.to_dict()
    assert (found["kernels"], found["min_onnxruntime"], found["session_config"], found["parts"]) == (None, None, {}, [])
    (output,) = found["outputs"]
    assert [name for name in output if output[name] is None] == [
        *("quantized_float", "quantized_simulated", "deviation", "quantized_name"),
    ]
    assert output["simulated_float"]["images"] == found["images"] == 24  # of three batches the first and the last
    assert found["accuracy"]["quantized"] is None
    rows = {row[0] for row in report_rows(result.report)}
    assert {"top-1 accuracy, simulated", "argmax agrees with FP32, simulated", "size"} <= rows
    assert "layers run as integers in onnxruntime" not in rows

    same = pdq_export.quantize(model(), **some, **{**FAST, "target": "ort"}).report
    assert (same.float_where_simulated, same.simulated_accuracy) == (
        result.report.float_accuracy,
        result.report.simulated_accuracy,
    )
    assert same.outputs[0].simulated_float == result.report.outputs[0].simulated_float


@pytest.mark.usefixtures("elsewhere")
def test_gates_of_files_that_onnxruntime_does_not_run_judge_their_simulation() -> None:
    pixels = np.random.default_rng(1).normal(size=(40, 3, 8, 8)).astype(np.float32)
    judged = pdq_export.ImageSet(pixels=pixels, labels=np.arange(40) % 5, source="toys")

    def seen(outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
        (scores,) = outputs.values()
        return {"images": len(scores), "right": float((scores.argmax(1) == labels).mean())}

    report = pdq_export.quantize(
        model(), calib=images(), eval=judged, simulated_images=32, metrics=[seen], max_drop=100, min_agreement=0, **FAST
    ).report
    assert [gate.passed for gate in report.gates] == [True, True]
    assert report.top1_changes is not None
    assert report.top1_changes.images == report.images == 24
    number, right = report.metrics
    assert (number.float_value, number.quantized_value) == (24, 24)
    assert report.simulated_accuracy is not None
    assert report.float_accuracy is not None
    assert (right.float_value, right.quantized_value) == (report.float_accuracy.top1, report.simulated_accuracy.top1)
    for gate in ({"no_float_layers": True}, {"max_latency_ratio": 2}):
        with pytest.raises(OptionError, match="files for --target plain do not run in onnxruntime"):
            pdq_export.quantize(model(), calib=images(), **gate, **FAST)


def _written(runtime: OtherRuntime) -> onnx.ModelProto:
    return pdq_export.quantize(model(), calib=images(), **FAST).model


def test_files_that_onnxruntime_does_not_run_are_converted(elsewhere: OtherRuntime) -> None:
    ort = pdq_export.quantize(model(), calib=images(), **{**FAST, "target": "ort"}).model
    there = pdq_export.convert(ort, "plain")
    assert there.graph == _written(elsewhere).graph
    assert pdq_export.convert(there, "ort") == ort


@pytest.mark.parametrize("bits", ["8/8", "4/4", "2/2"])
def test_qonnx_files_are_held_against_the_simulation(
    bits: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"bits": bits, "target": "qonnx", "calib": images(), "method": "nearest", "device": "cpu"}
    result = pdq_export.quantize(model(), **arguments)
    assert "off the simulation" not in caplog.text
    assert result.report.simulated_accuracy is None
    found = result.report.to_dict()
    assert (found["kernels"], found["min_onnxruntime"]) == (None, None)
    assert result.model.graph == pdq_export.convert(pdq_export.convert(result.model, "ort"), "qonnx").graph

    def wrong(quantized: Quantized) -> GraphProto:
        graph = qonnx.write(quantized)
        scale = next(tensor for tensor in graph.initializer if tensor.name == "w3_scale")
        doubled = 2 * onnx.numpy_helper.to_array(scale)
        scale.CopyFrom(onnx.numpy_helper.from_array(doubled, scale.name))
        return graph

    layout = dataclasses.replace(qonnx.LAYOUT, write=wrong)
    monkeypatch.setitem(targets._TARGETS, "qonnx", dataclasses.replace(find_target("qonnx"), layout=layout))
    pdq_export.quantize(model(), **arguments)
    assert "output 0: what the file says is" in caplog.text


def test_a_written_file_that_its_own_runtime_refuses_is_refused(elsewhere: OtherRuntime, tmp_path: Path) -> None:
    elsewhere.refuses_after = 1
    with pytest.raises(ValidationError, match="elsewhere does not load it"):
        pdq_export.quantize(model(), calib=images(), output=tmp_path / "q.onnx", **FAST)
    assert not (tmp_path / "q.onnx").exists()


@pytest.mark.usefixtures("registry")
def test_a_new_layout_alone_can_be_converted_to_and_from() -> None:
    register_target(Target(name="plain", layout=Layout(name="plain", required_opset=lambda plan: 18, write=write)))
    # Symmetric, since older onnxruntime wants one zero_point for all channels of a textbook weight.
    some = {"bits": "4/4", "weights": "symmetric", "method": "nearest", "device": "cpu"}
    make = functools.partial(pdq_export.quantize, model(), calib=images(), **some)
    files = {target: make(target=target).model for target in ("ort", "plain")}
    for source, target in itertools.permutations(files, 2):
        assert pdq_export.convert(files[source], target).graph == files[target].graph


def test_a_target_registers_once_and_an_unknown_one_names_the_known() -> None:
    assert target_names() == ("native", "ort", "qcdq", "qonnx", "tensorrt")
    with pytest.raises(ValueError, match="'ort' is registered twice"):
        register_target(dataclasses.replace(find_target("ort")))
    with pytest.raises(OptionError, match="'tpu': unknown; expected one of native, ort, qcdq, qonnx, tensorrt"):
        find_target("tpu")


def test_options_are_settled_by_the_target_and_only_once() -> None:
    for name, default in (("ort", "asymmetric"), ("tensorrt", "symmetric")):
        target = find_target(name)
        settled = target.settle(PlanOptions.of("8/8"))
        assert settled.symmetric_weights == (default == "symmetric")
        assert target.settle(settled) == settled
        assert target.settle(PlanOptions.of("8/8", weights="symmetric")).symmetric_weights
    assert [name for name in target_names() if find_target(name).convertible] == ["native", "ort", "qcdq", "qonnx"]
