"""BatchNormalization into the layer before it; what it knew about the layer's output is kept as statistics.

    y = gamma * (W x + b - mean) / sigma + beta,   sigma = sqrt(variance + epsilon)
      = (W * gamma / sigma) x + (b - mean) * gamma / sigma + beta

Over the training data y has mean beta and standard deviation |gamma| per channel.
"""

import dataclasses
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto

from pdq_export.errors import ModelError
from pdq_export.graph.lookup import GraphIndex, attribute, describe, optional_input
from pdq_export.spec import ChannelStatistics

TINY_GAMMA = 1e-6  # relative to the largest |gamma|: below it a channel is switched off and its gain means nothing


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchNorm:
    """Inference-time parameters in float64, all of shape [C]."""

    gamma: NDArray[np.float64]
    beta: NDArray[np.float64]
    mean: NDArray[np.float64]
    sigma: NDArray[np.float64]

    @property
    def factor(self) -> NDArray[np.float64]:
        """gamma / sigma."""
        return self.gamma / self.sigma

    @property
    def statistics(self) -> ChannelStatistics:
        """Mean beta, std |gamma|, gain sigma / |gamma| (0 where gamma is 0 or next to nothing)."""
        std = np.abs(self.gamma)
        alive = std > TINY_GAMMA * std.max(initial=0.0)
        gain = np.divide(self.sigma, std, out=np.zeros_like(std), where=alive)
        return ChannelStatistics(
            mean=self.beta.astype(np.float32), std=std.astype(np.float32), gain=gain.astype(np.float32)
        )


def run(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, ChannelStatistics]]:
    """Remove every BatchNormalization; return statistics by the output tensor of the layer it was folded into.

    Raises ModelError for a BatchNormalization in training mode or with parameters that are not constant.
    """
    statistics: dict[str, ChannelStatistics] = {}
    index = GraphIndex(model)
    for node in list(model.graph.node):
        if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
            continue
        norm = _read(index, node)
        layer = _foldable_layer(index, node, len(norm.gamma))
        if layer is None:
            _write_as_mul_add(index, node, norm)
        else:
            _fold(index, layer, norm)
            layer.output[0] = node.output[0]
            model.graph.node.remove(node)
            statistics[node.output[0]] = norm.statistics
        index = GraphIndex(model)
    return model, statistics


def _read(index: GraphIndex, node: NodeProto) -> BatchNorm:
    if attribute(node, "training_mode", 0) or any(node.output[1:]):
        raise ModelError(f"{describe(node)}: is in training mode; expected inference; export after model.eval()")
    values = [index.constant(name) for name in node.input[1:5]]
    for name, value in zip(node.input[1:5], values, strict=True):
        if value is None:
            raise ModelError(
                f"{describe(node)}: parameter {name!r} is computed at run time; expected a constant; "
                "re-export the model with constant BatchNormalization parameters"
            )
    gamma, beta, mean, variance = (np.asarray(value, dtype=np.float64).reshape(-1) for value in values)
    sigma = np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    if not np.all(sigma > 0):
        raise ModelError(
            f"{describe(node)}: variance {node.input[4]!r} plus epsilon is not positive "
            f"in channel {int(np.argmin(sigma > 0))}; expected running variances of at least 0; re-export the model"
        )
    return BatchNorm(gamma=gamma, beta=beta, mean=mean, sigma=sigma)


def _foldable_layer(index: GraphIndex, norm: NodeProto, channels: int) -> NodeProto | None:
    """The layer that alone feeds ``norm`` and has constant weights with ``channels`` outputs, or None."""
    layer = index.producer.get(norm.input[0])
    if layer is None or layer.op_type not in ("Conv", "ConvTranspose", "Gemm") or layer.domain not in ("", "ai.onnx"):
        return None
    if index.sole_consumer(norm.input[0]) is not norm:
        return None
    weight, bias = index.constant(layer.input[1]), optional_input(layer, 2)
    if weight is None or (bias is not None and index.constant(bias) is None):
        return None
    return layer if output_channels(layer, weight) == channels else None


def output_channels(layer: NodeProto, weight: NDArray[Any]) -> int:
    """Number of output channels of a Conv, ConvTranspose or Gemm."""
    if layer.op_type == "ConvTranspose":
        return int(weight.shape[1]) * int(attribute(layer, "group", 1))
    if layer.op_type == "Gemm":
        return int(weight.shape[0 if attribute(layer, "transB", 0) else 1])
    return int(weight.shape[0])


def _fold(index: GraphIndex, layer: NodeProto, norm: BatchNorm) -> None:
    weight = index.constant(layer.input[1])
    assert weight is not None
    bias = index.constant(optional_input(layer, 2))
    scaled = scale_outputs(layer, weight.astype(np.float64), norm.factor)
    beta_factor = attribute(layer, "beta", 1.0) if layer.op_type == "Gemm" else 1.0
    old_bias = 0.0 if bias is None else bias.astype(np.float64) * beta_factor
    new_bias = (old_bias - norm.mean) * norm.factor + norm.beta
    _drop_attribute(layer, "beta")
    bias_name = optional_input(layer, 2) or f"{layer.input[1]}.bias"
    layer.input[1] = set_constant(index, layer, layer.input[1], scaled.astype(weight.dtype))
    new_name = set_constant(index, layer, bias_name, new_bias.astype(weight.dtype))
    del layer.input[2:]
    layer.input.append(new_name)


def scale_outputs(layer: NodeProto, weight: NDArray[np.float64], factor: NDArray[np.float64]) -> NDArray[np.float64]:
    """Multiply each output channel of a weight by ``factor``, shape [C]."""
    if layer.op_type == "Conv":
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    if layer.op_type == "Gemm":
        return weight * (factor[:, None] if attribute(layer, "transB", 0) else factor)
    groups = int(attribute(layer, "group", 1))  # ConvTranspose: [C_in, C_out / groups, ...], groups along C_in
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    by_group = factor.reshape(groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
    return (grouped * by_group).reshape(weight.shape)


def set_constant(index: GraphIndex, reader: NodeProto, name: str, value: NDArray[Any]) -> str:
    """Store ``value`` for ``reader`` under ``name``, or under a fresh name where others use ``name``; return it."""
    tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
    shared = [node for node in index.consumers(name) if node is not reader] or list(reader.input).count(name) > 1
    if name in index.initializers and not shared and name not in index.outputs:
        index.initializers[name].CopyFrom(tensor)
        return name
    tensor.name = fresh_name(index, name)
    index.graph.initializer.append(tensor)
    return tensor.name


def fresh_name(index: GraphIndex, wish: str) -> str:
    """``wish``, or ``wish_1``, ``wish_2``, ... where a tensor of that name exists."""
    taken = {*index.initializers, *index.producer, *index.inputs}
    number, name = 0, wish
    while name in taken:
        number += 1
        name = f"{wish}_{number}"
    return name


def _drop_attribute(node: NodeProto, name: str) -> None:
    kept = [candidate for candidate in node.attribute if candidate.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


def _write_as_mul_add(index: GraphIndex, node: NodeProto, norm: BatchNorm) -> None:
    """Replace a BatchNormalization in place by Mul and Add with constants of shape [C, 1, ...]."""
    rank = index.rank(node.input[0])
    if rank is None:
        raise ModelError(f"{describe(node)}: the rank of its input {node.input[0]!r} is unknown; expected a known rank")
    dtype = index.constant(node.input[1]).dtype  # type: ignore[union-attr]
    shape = (-1, *[1] * (rank - 2))
    label = node.name or node.output[0]
    names = [fresh_name(index, f"{label}.{part}") for part in ("factor", "offset", "scaled")]
    offset = norm.beta - norm.mean * norm.factor
    for name, value in zip(names, (norm.factor, offset), strict=False):
        index.graph.initializer.append(onnx.numpy_helper.from_array(value.reshape(shape).astype(dtype), name))
    mul = onnx.helper.make_node("Mul", [node.input[0], names[0]], [names[2]], name=f"{label}.mul")
    add = onnx.helper.make_node("Add", [names[2], names[1]], [node.output[0]], name=f"{label}.add")
    position = next(i for i, candidate in enumerate(index.graph.node) if candidate is node)
    index.graph.node.remove(node)
    index.graph.node.insert(position, mul)
    index.graph.node.insert(position + 1, add)
