"""What calibration would learn, roughly, before there are samples: scales and zero points, for the size of a file.

How many bytes a bias takes follows from the scales of its layer's input and weight, and what a file tells of the zero
points from their values. Both are searched here as calibration does it, activations on noise, and in large networks a
few of each channel's weights: enough to tell one byte from two, and no more. Integers are zeros. What noise becomes in
a network tells little of what images become; where BatchNormalization kept that, channels are brought to its mean and
deviation.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from pdq_export import operators
from pdq_export.errors import ValidationError
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.noise import noise
from pdq_export.graph.prepare import PreparedModel
from pdq_export.numerics.search import QParams, choose_activation_qparams, choose_weight_qparams
from pdq_export.plan.nodes import is_nonnegative
from pdq_export.spec import Plan, Point, QuantizedTensor, Role
from pdq_export.validate import Session

_OF_A_CHANNEL, _OF_ALL = 96, 1 << 19  # weights that are looked at, at least and at most
_PATCH = 8  # pixels that are alike
_FEWEST = 16  # pixels that have a deviation worth the name
_SMALLEST = float(np.finfo(np.float32).tiny)


def estimate_tensors(prepared: PreparedModel, plan: Plan) -> dict[str, QuantizedTensor]:
    """One for each of the plan's points; the same for equal arguments."""
    weights = [point for point in plan.points.values() if point.role is Role.WEIGHT]
    return {**estimate_activations(prepared, plan), **estimate_weights(prepared.index, weights)}


def estimate_activations(prepared: PreparedModel, plan: Plan) -> dict[str, QuantizedTensor]:
    """One for each of the plan's points that is no weight, by tensor."""
    seen = _activations(prepared, plan)
    return {
        name: _estimate_activation(prepared.index, point, seen.get(name))
        for name, point in plan.points.items()
        if point.role is not Role.WEIGHT
    }


def estimate_weights(index: GraphIndex, points: Iterable[Point]) -> dict[str, QuantizedTensor]:
    """One for each of the points, which are weights, by tensor."""
    weights = [(point, _channels(index, point)) for point in points]
    most = max(_OF_A_CHANNEL, _OF_ALL // max(sum(len(channels) for _, channels in weights), 1))
    kinds: dict[tuple[int, int, int], list[tuple[Point, NDArray[np.float32]]]] = {}
    for point, channels in weights:
        kinds.setdefault((point.qmin, point.qmax, min(channels.shape[1], most)), []).append((point, channels))
    return {
        point.tensor: _quantized(point, qparams, np.zeros(_weight(index, point).shape, np.int16))
        for (qmin, qmax, count), together in kinds.items()
        for (point, _), qparams in zip(together, _search_together(together, qmin, qmax, count), strict=True)
    }


def _search_together(
    weights: Sequence[tuple[Point, NDArray[np.float32]]], qmin: int, qmax: int, count: int
) -> Iterator[QParams]:
    """The channels of all weights are rows of one search, each weight in units of its largest number."""
    units = [max(float(np.abs(channels).max(initial=0)), _SMALLEST) for _, channels in weights]
    rows = [_some_of(channels, count) / unit for unit, (_, channels) in zip(units, weights, strict=True)]
    found = choose_weight_qparams(torch.tensor(np.concatenate(rows)), qmin, qmax)
    sizes = [len(channels) for channels in rows]
    for scale, zero_point, unit in zip(found.scale.split(sizes), found.zero_point.split(sizes), units, strict=True):
        yield QParams(scale=scale, zero_point=zero_point).times(unit)


def _estimate_activation(index: GraphIndex, point: Point, seen: NDArray[np.float32] | None) -> QuantizedTensor:
    seen = seen[np.isfinite(seen)] if seen is not None else np.empty(0, np.float32)  # noise can leave a domain
    if not seen.size:
        seen = np.array([-1, 1], np.float32)
    # With zero_point 0, which what is never negative gets, onnxruntime drops a Relu before the pair.
    if point.absorbed or is_nonnegative(index, point.tensor):
        seen = np.maximum(seen, 0)
    qparams = choose_activation_qparams(torch.tensor(seen), point.bits, symmetric=point.symmetric)
    return _quantized(point, qparams, None)


def _quantized(point: Point, qparams: QParams, integers: NDArray[np.int16] | None) -> QuantizedTensor:
    return QuantizedTensor(
        point=point,
        scale=qparams.scale.numpy(),
        zero_point=qparams.zero_point.numpy().astype(np.int32),
        integers=integers,
    )


def _weight(index: GraphIndex, point: Point) -> NDArray[np.float32]:
    weight = index.constant(point.tensor)
    assert weight is not None
    return weight


def _channels(index: GraphIndex, point: Point) -> NDArray[np.float32]:
    """A weight as [C, K]."""
    assert point.axis is not None
    rows = np.moveaxis(_weight(index, point), point.axis, 0)
    return rows.reshape(len(rows), -1)


def _some_of(channels: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """[C, count]: of each channel's weights the smallest, the largest, and some from all over it."""
    if channels.shape[1] <= count:
        return channels
    places = np.linspace(0, channels.shape[1] - 1, count - 2).astype(int)
    return np.column_stack([channels.min(1), channels.max(1), channels[:, places]])


def _activations(prepared: PreparedModel, plan: Plan) -> Mapping[str, NDArray[np.float32]]:
    """What the points that are no weights are on noise; nothing where the model does not run on that."""
    wanted = [name for name, point in plan.points.items() if point.role is not Role.WEIGHT]
    given = noise(prepared.index, np.random.default_rng(0), batch=1)
    if given is None:
        return {}
    given = tuple(map(_smooth, given))
    known = dict(zip(prepared.index.inputs, given, strict=True))
    computed = [name for name in wanted if name not in known]
    try:
        return known | _run(_as_on_images(prepared), computed, given)
    except ValidationError:
        return known


def _smooth(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Noise that is alike over patches, as images are: filters of edges see little of it, others much."""
    if x.ndim != 4:
        return x
    patches = x[:, :, ::_PATCH, ::_PATCH].repeat(_PATCH, 2).repeat(_PATCH, 3)[:, :, : x.shape[2], : x.shape[3]]
    return np.asarray(patches * np.float32(0.95) + x * np.float32(0.3), np.float32)


def _as_on_images(prepared: PreparedModel) -> onnx.ModelProto:
    """The model with every channel that BatchNormalization has statistics of brought to them, image by image."""
    changed = onnx.ModelProto()
    changed.CopyFrom(prepared.model)
    del changed.graph.node[:]
    for node in prepared.model.graph.node:
        changed.graph.node.append(node)
        statistics = prepared.statistics.get(node.output[0]) if node.output else None
        if statistics is None or not operators.get(node.op_type).weighted:
            continue
        name = node.output[0]
        sizes = (prepared.index.shape(name) or ())[2:]
        known = [size for size in sizes if isinstance(size, int)]
        if len(known) == len(sizes) and math.prod(known) < _FEWEST:
            continue
        inputs = [f"{name}/{what}" for what in ("on_noise", "deviation", "mean")]
        changed.graph.node[-1].output[0] = inputs[0]
        for tensor, value in zip(inputs[1:], (statistics.std, statistics.mean), strict=True):
            changed.graph.initializer.append(onnx.numpy_helper.from_array(value, tensor))
        changed.graph.node.append(onnx.helper.make_node("InstanceNormalization", inputs, [name], epsilon=_SMALLEST))
    return changed


def _run(
    model: onnx.ModelProto, tensors: Sequence[str], given: tuple[NDArray[np.float32], ...]
) -> dict[str, NDArray[np.float32]]:
    """Tensors of a model by name, those that have a float type. Raises ValidationError where it does not run."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    outputs = {value.name for value in shown.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in outputs)
    found = Session(shown.SerializeToString()).run_by_name(given)
    return {name: found[name] for name in tensors if name in found}
