"""What quantizing one group does, against onnxruntime running the FP32 model with exactly that group quantized."""

import dataclasses
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from scipy.special import log_softmax

from pdq_export.calibrate.context import Context
from pdq_export.calibrate.finished import Quantizers
from pdq_export.calibrate.journal import Journal
from pdq_export.calibrate.store import Store
from pdq_export.calibrate.subgraph import input_tensors
from pdq_export.config.method import CalibrationOptions
from pdq_export.search.candidates import Candidate, Trial
from pdq_export.search.groups import find_groups
from pdq_export.search.sensitivity import measure_sensitivity
from pdq_export.spec import Role
from pdq_export.spec.sensitivity import Group, Sensitivity
from tests.calibrate.networks import Example, residual

OPTIONS = CalibrationOptions()
CPU = torch.device("cpu")
WIDTHS = (2, 4, 8)


@pytest.fixture(scope="module")
def example() -> Example:
    return residual(images=192)


@pytest.fixture(scope="module")
def measured(example: Example) -> Sensitivity:
    return sensitivity(example, estimate="measured")


def groups_of(example: Example) -> tuple[Group, ...]:
    return find_groups(example.prepared.index, example.plan)


def sensitivity(example: Example, **options: Any) -> Sensitivity:
    return measure_sensitivity(
        *(example.network, example.plan, groups_of(example), [example.images], OPTIONS),
        **{"device": CPU, "widths": WIDTHS, **options},
    )


def candidates_of(example: Example) -> dict[str, dict[int, Candidate]]:
    journal, store = Journal(example.plan.blocks), Store(CPU)
    context = Context(network=example.network, plan=example.plan, options=OPTIONS, store=store, journal=journal)
    inputs = {name: store.adopt(example.images) for name in input_tensors(example.network)}
    done = Quantizers(example.network, example.plan, example.network)
    trial = Trial.of(context, done, inputs, groups_of(example), WIDTHS, symmetric_weights=False)
    return {name: dict(by_width) for name, by_width in trial.candidates.items()}


def with_weight(example: Example, candidate: Candidate) -> onnx.ModelProto:
    """The FP32 model with one weight dequantized from its integers, and the bias that takes up the mean error."""
    model = onnx.ModelProto()
    model.CopyFrom(example.prepared.model)
    name = candidate.quantizer.point.tensor
    (layer,) = (layer for layer in example.plan.layers if layer.weight == name)
    values = {name: candidate.quantizer().numpy()}
    if candidate.shift is not None:
        assert layer.bias is not None
        (bias,) = (one for one in model.graph.initializer if one.name == layer.bias)
        values[layer.bias] = numpy_helper.to_array(bias) + candidate.shift.numpy()
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return model


def with_activation(example: Example, candidate: Candidate) -> onnx.ModelProto:
    """The FP32 model in which one activation is rounded, by plain ONNX operators."""
    model = onnx.ModelProto()
    model.CopyFrom(example.prepared.model)
    quantizer = candidate.quantizer
    name = quantizer.point.tensor
    for node in model.graph.node:
        node.input[:] = [f"{name}_q" if tensor == name else tensor for tensor in node.input]
    numbers = {"scale": quantizer.scale.item(), "low": quantizer.low, "high": quantizer.high}
    for what, value in numbers.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), f"{name}_{what}"))
    steps = [
        ("Div", [name, f"{name}_scale"], f"{name}_1"),
        ("Round", [f"{name}_1"], f"{name}_2"),
        ("Clip", [f"{name}_2", f"{name}_low", f"{name}_high"], f"{name}_3"),
        ("Mul", [f"{name}_3", f"{name}_scale"], f"{name}_q"),
    ]
    (position,) = (number for number, node in enumerate(model.graph.node) if name in node.output)
    for offset, (op_type, inputs, output) in enumerate(steps, 1):
        model.graph.node.insert(position + offset, helper.make_node(op_type, inputs, [output]))
    return model


def outputs_of(model: onnx.ModelProto, names: tuple[str, ...], images: torch.Tensor) -> list[NDArray[Any]]:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.output[:]
    made.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(names), {"image": images.numpy()})


def brute_force(example: Example, group: Group, candidate: Candidate) -> tuple[float, float]:
    """KL to FP32, and the relative error of the block's output, by onnxruntime."""
    made = (with_weight if group.role is Role.WEIGHT else with_activation)(example, candidate)
    (block,) = (block for block in example.plan.blocks if block.name == group.block)
    (end,) = block.outputs
    quantized_end = f"{end}_q" if group.name == end else end
    target, wanted = outputs_of(example.prepared.model, ("y", end), example.images)
    scores, found = outputs_of(made, ("y", quantized_end), example.images)
    p, q = (log_softmax(z.astype(np.float64), 1) for z in (target, scores))
    error = np.square((found - wanted).astype(np.float64)).sum() / np.square(wanted.astype(np.float64)).sum()
    return float((np.exp(p) * (p - q)).sum(1).mean()), float(error)


def test_what_is_measured_is_what_onnxruntime_gives(example: Example, measured: Sensitivity) -> None:
    candidates = candidates_of(example)
    for group in groups_of(example):
        for width in WIDTHS:
            prediction, block = brute_force(example, group, candidates[group.name][width])
            assert measured.prediction[group.name][width] == pytest.approx(prediction, rel=2e-2, abs=2e-7)
            assert measured.block[group.name][width] == pytest.approx(block, rel=1e-3, abs=1e-9)


def test_the_estimate_is_near_what_is_measured(example: Example, measured: Sensitivity) -> None:
    """With many probes what is left is what the second order does not see: little where the error is small."""
    estimated = sensitivity(example, probes=32)
    for group in groups_of(example):
        for width, share in ((8, 0.25), (4, 0.25), (2, 0.8)):
            wanted = measured.prediction[group.name][width]
            assert estimated.prediction[group.name][width] == pytest.approx(wanted, rel=share, abs=2e-7)
            assert estimated.block[group.name][width] == pytest.approx(measured.block[group.name][width], rel=0.5)


def test_fewer_bits_cost_more(measured: Sensitivity) -> None:
    for group in measured.groups:
        losses = [measured.prediction[group.name][width] for width in WIDTHS]
        assert losses == sorted(losses, reverse=True)


def test_the_same_twice(example: Example) -> None:
    assert sensitivity(example) == sensitivity(example)


def test_pairs_are_what_both_do_beyond_the_sum(example: Example) -> None:
    """Of an error and itself it is twice what it does alone, and half of the rest of (a + b)^2 / 2."""
    found = sensitivity(example, pairs=True)
    inside = {group.name: group.block for group in found.groups}
    assert found.pairs
    for (first, second), by_width in found.pairs.items():
        assert inside[first] == inside[second]
        assert set(by_width) == {(v, w) for v in WIDTHS for w in WIDTHS}
        for (v, w), together in by_width.items():
            alone = found.prediction[first][v], found.prediction[second][w]
            assert abs(together) <= 2 * np.sqrt(alone[0] * alone[1]) * (1 + 1e-9)


def test_squared_errors_of_what_is_no_classifier(example: Example) -> None:
    options = dataclasses.replace(OPTIONS, output_loss="mse")
    given = (example.network, example.plan, groups_of(example), [example.images], options)
    by_estimate = [
        measure_sensitivity(*given, device=CPU, widths=(8,), estimate=estimate, probes=32)
        for estimate in ("fisher", "measured")
    ]
    assert {found.measure for found in by_estimate} == {"mse"}
    candidates = candidates_of(example)
    for group in groups_of(example):
        made = (with_weight if group.role is Role.WEIGHT else with_activation)(example, candidates[group.name][8])
        (target,), (scores,) = (outputs_of(m, ("y",), example.images) for m in (example.prepared.model, made))
        wanted = np.square((scores - target).astype(np.float64)).mean() / np.square(target.astype(np.float64)).mean()
        estimated, measured = (found.prediction[group.name][8] for found in by_estimate)
        assert measured == pytest.approx(wanted, rel=2e-2)
        assert estimated == pytest.approx(wanted, rel=0.25)
