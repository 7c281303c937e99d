"""A round-to-nearest quantizer and a slow simulation in numpy, to test the exporter against."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from pdq_export.export import has_integer_bias, round_bias
from pdq_export.graph.lookup import GraphIndex
from pdq_export.spec import Plan, Point, QuantizedTensor, Role

Array = NDArray[np.float32]


def observe(model: onnx.ModelProto, names: list[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The values of inner tensors, from onnxruntime."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {value.name for value in probe.graph.output}
    inner = [name for name in names if name not in known and name not in feeds]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = [name for name in names if name not in feeds]
    values = session.run(wanted, dict(feeds)) if wanted else []
    return {**feeds, **dict(zip(wanted, values, strict=True))}


def quantize_weight(point: Point, weight: Array) -> QuantizedTensor:
    """Min-max per channel, round to nearest."""
    others = tuple(axis for axis in range(weight.ndim) if axis != point.axis)
    low, high = np.minimum(weight.min(others), 0), np.maximum(weight.max(others), 0)
    if point.symmetric:
        scale = np.maximum(np.maximum(-low, high), 1e-6) / point.qmax
        zero_point = np.zeros(scale.shape, np.int32)
    else:
        scale = np.maximum(high - low, 1e-6) / point.qmax
        zero_point = np.rint(-low / scale).astype(np.int32)
    scale = scale.astype(np.float32)
    ratio = np.rint(weight / np.expand_dims(scale, others)) + np.expand_dims(zero_point, others)
    integers = np.clip(ratio, point.qmin, point.qmax).astype(np.int16)
    return QuantizedTensor(point=point, scale=scale, zero_point=zero_point, integers=integers)


def quantize_activation(point: Point, value: Array) -> QuantizedTensor:
    """Min-max of one tensor; a non-negative or a symmetric one gets zero_point 0."""
    low, high = min(float(value.min()), 0.0), max(float(value.max()), 0.0)
    if point.symmetric:
        scale = np.array(max(high, -low, 1e-6) / point.qmax, np.float32)
        return QuantizedTensor(point=point, scale=scale, zero_point=np.array(0, np.int32))
    scale = np.array(max(high - low, 1e-6) / point.qmax, np.float32)
    zero_point = np.array(np.rint(-low / scale), np.int32)
    return QuantizedTensor(point=point, scale=scale, zero_point=zero_point)


def quantized_tensor(point: Point, scale: float, zero_point: int) -> QuantizedTensor:
    return QuantizedTensor(point=point, scale=np.array(scale, np.float32), zero_point=np.array(zero_point, np.int32))


def calibrate(model: onnx.ModelProto, plan: Plan, feeds: Mapping[str, Array]) -> dict[str, QuantizedTensor]:
    """Quantized tensors for every point of the plan."""
    index = GraphIndex(model)
    values = observe(model, [t for t, point in plan.points.items() if not index.is_constant(t)], feeds)
    knees = {ramp.source: ramp.knee for ramp in plan.ramps.values()}
    tensors = {}
    for name, point in plan.points.items():
        if point.role is Role.WEIGHT:
            tensors[name] = quantize_weight(point, np.asarray(index.constant(name)))
        elif name in knees:
            tensors[name] = quantized_tensor(point, knees[name] / 40, 100)
        elif name in plan.ramps:
            tensors[name] = quantized_tensor(point, 0.5 / 40, 100 - 40)  # shares the integers of its source
        else:
            value = index.constant(name) if index.is_constant(name) else values[name]
            tensors[name] = quantize_activation(point, np.asarray(value))
    return tensors


def dequantized(quantized: QuantizedTensor) -> Array:
    """(q - zero_point) * scale of a weight."""
    assert quantized.integers is not None
    others = tuple(axis for axis in range(quantized.integers.ndim) if axis != quantized.point.axis)
    zero_point, scale = np.expand_dims(quantized.zero_point, others), np.expand_dims(quantized.scale, others)
    return ((quantized.integers - zero_point) * scale).astype(np.float32)


def fake_quantize(quantized: QuantizedTensor, value: Array) -> Array:
    """(clip(round_half_even(x / scale) + zero_point, qmin, qmax) - zero_point) * scale."""
    point, scale, zero_point = quantized.point, quantized.scale, int(quantized.zero_point)
    integers = np.clip(np.rint(value / scale) + zero_point, point.qmin, point.qmax)
    return ((integers - zero_point) * scale).astype(np.float32)


def simulate(
    model: onnx.ModelProto, plan: Plan, tensors: Mapping[str, QuantizedTensor], feeds: Mapping[str, Array]
) -> dict[str, Array]:
    """The graph outputs with exactly the plan's points quantized, node by node in float."""
    index = GraphIndex(model)
    layers = {layer.node: layer for layer in plan.layers}
    values = {name: np.asarray(index.constant(name)) for name in index.initializers}
    outputs: dict[str, Array] = {}

    def store(name: str, value: Array) -> None:
        if name in index.outputs:
            outputs[name] = value
        point = plan.points.get(name)
        quantize = point is not None and point.role is not Role.WEIGHT
        values[name] = fake_quantize(tensors[name], value) if quantize else value

    for name in [*feeds, *(t for t in index.initializers if t in plan.points)]:
        store(name, feeds[name] if name in feeds else values[name])
    for node in index.graph.node:
        inputs = {name: values[name] for name in node.input if name}
        layer = layers.get(node.name)
        if layer is not None and layer.weight in plan.points:
            weight = tensors[layer.weight]
            inputs[layer.weight] = dequantized(weight)
            if has_integer_bias(plan, layer):
                input_scale = np.float32(tensors[plan.source(layer.input)].scale)
                inputs[layer.bias] = round_bias(inputs[layer.bias], input_scale, weight.scale)
        single = onnx.helper.make_graph(
            [node],
            "node",
            [onnx.ValueInfoProto(name=name) for name in inputs],
            [onnx.ValueInfoProto(name=name) for name in node.output],
        )
        step = onnx.helper.make_model(single, opset_imports=model.opset_import, ir_version=10)
        for name, value in zip(node.output, run_node(step, inputs), strict=True):
            store(name, value)
    return outputs


def run_node(step: onnx.ModelProto, inputs: dict[str, Array]) -> list[Array]:
    """One node; the reference knows no groups in ConvTranspose, so onnxruntime computes that one."""
    if step.graph.node[0].op_type != "ConvTranspose":
        return ReferenceEvaluator(step).run(None, inputs)
    for value in (*step.graph.input, *step.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    session = onnxruntime.InferenceSession(step.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)
