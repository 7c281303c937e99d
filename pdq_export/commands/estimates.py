"""What calibration would learn, roughly, before there are samples: scales and zero points, for the size of a file.

How many bytes a bias takes follows from the scales of its layer's input and weight, and what a file tells of the zero
points from their values. Both are searched here as calibration does it, activations on noise and of each channel's
weights a few: enough to tell one byte from two, and no more. Integers are zeros.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from pdq_export.errors import ValidationError
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.noise import noise
from pdq_export.graph.prepare import PreparedModel
from pdq_export.numerics.search import QParams, choose_activation_qparams, choose_weight_qparams
from pdq_export.plan.nodes import is_nonnegative
from pdq_export.spec import Plan, Point, QuantizedTensor, Role
from pdq_export.validate import Session

_OF_A_CHANNEL = 96  # weights that are looked at
_PATCH = 8  # pixels that are alike
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
    kinds: dict[tuple[int, int], dict[str, tuple[Point, NDArray[np.float32]]]] = {}
    for point in points:
        weight = index.constant(point.tensor)
        assert weight is not None
        kinds.setdefault((point.qmin, point.qmax), {})[point.tensor] = (point, weight)
    return {
        name: tensor
        for (qmin, qmax), weights in kinds.items()
        for name, tensor in _search_together(weights, qmin, qmax).items()
    }


def _search_together(
    weights: Mapping[str, tuple[Point, NDArray[np.float32]]], qmin: int, qmax: int
) -> dict[str, QuantizedTensor]:
    """The channels of all weights are rows of one search, each weight in units of its largest number."""
    units = [max(float(np.abs(weight).max(initial=0)), _SMALLEST) for _, weight in weights.values()]
    rows = [_some_of(weight, point) / unit for unit, (point, weight) in zip(units, weights.values(), strict=True)]
    qparams = choose_weight_qparams(torch.tensor(np.concatenate(rows)), qmin, qmax)
    sizes = [len(channels) for channels in rows]
    parts = zip(qparams.scale.split(sizes), qparams.zero_point.split(sizes), units, weights.items(), strict=True)
    return {
        name: _quantized(
            point, QParams(scale=scale, zero_point=zero_point).times(unit), np.zeros(weight.shape, np.int16)
        )
        for scale, zero_point, unit, (name, (point, weight)) in parts
    }


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


def _some_of(weight: NDArray[np.float32], point: Point) -> NDArray[np.float32]:
    """[C, K]: of each channel's weights the smallest, the largest, and some from all over it."""
    assert point.axis is not None
    rows = np.moveaxis(weight, point.axis, 0).reshape(weight.shape[point.axis], -1)
    places = np.linspace(0, rows.shape[1] - 1, _OF_A_CHANNEL - 2).astype(int)
    return np.column_stack([rows.min(1), rows.max(1), rows[:, places]])


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
        return known | _run(prepared.model, computed, given)
    except ValidationError:
        return known


def _smooth(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Noise that is alike over patches, as images are: filters of edges see little of it, others much."""
    if x.ndim != 4:
        return x
    patches = x[:, :, ::_PATCH, ::_PATCH].repeat(_PATCH, 2).repeat(_PATCH, 3)[:, :, : x.shape[2], : x.shape[3]]
    return np.asarray(patches * np.float32(0.95) + x * np.float32(0.3), np.float32)


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
