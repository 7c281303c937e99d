"""Mul, Div, Add and Sub by per-channel constants into the layer before them; MatMul + bias becomes Gemm.

A factor behind an Add of layers, as Mean of tensors has it, goes into all of them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto

from pdq_export import operators
from pdq_export.graph import edit
from pdq_export.graph.lookup import GraphIndex
from pdq_export.spec import ChannelStatistics

Affine = tuple[NDArray[np.float64], NDArray[np.float64]]


def run(
    model: onnx.ModelProto, statistics: Mapping[str, ChannelStatistics]
) -> tuple[onnx.ModelProto, dict[str, ChannelStatistics]]:
    """Fold what can be folded into layers.

    A layer takes over the name of the folded node's output. Statistics are adapted to it.
    """
    result = dict(statistics)
    for node in [node for node in model.graph.node if operators.get(node.op_type).merges and not node.domain]:
        index = GraphIndex(model)
        operand = next((i for i, name in enumerate(node.input) if index.is_constant(name)), None)
        if operand is None or all(map(index.is_constant, node.input)):
            continue
        tensor, value = node.input[1 - operand], index.constant(node.input[operand])
        assert value is not None
        if _matmul_to_gemm(index, tensor, node, value):
            index = GraphIndex(model)
        layers = _layers_behind(index, tensor, node)
        affines = [_affine(index, layer, node, operand, value) for layer in layers]
        known = [affine for affine in affines if affine is not None]
        if not known or len(known) < len(layers) or (len(layers) > 1 and any(offset.any() for _, offset in known)):
            continue
        for layer, affine in zip(layers, known, strict=True):
            _fold(GraphIndex(model), layer, affine, result)
        _take_name(index, result, tensor, node.output[0])
        edit.replace_node(model.graph, node, [])
    return model, result


def _layers_behind(index: GraphIndex, tensor: str, reader: NodeProto) -> list[NodeProto]:
    """The layer that writes ``tensor``, or those whose sum it is, for ``reader`` alone; none where there is more."""
    layer = edit.foldable_layer(index, tensor, reader)
    if layer is not None:
        return [layer]
    node = index.producer.get(tensor)
    if node is None or node.op_type != "Add" or node.domain or index.sole_consumer(tensor) is not reader:
        return []
    parts = [_layers_behind(index, name, node) for name in node.input]
    return [layer for part in parts for layer in part] if all(parts) else []


def _fold(index: GraphIndex, layer: NodeProto, affine: Affine, statistics: dict[str, ChannelStatistics]) -> None:
    edit.scale_and_shift(index, layer, *affine)
    if layer.output[0] in statistics:
        statistics[layer.output[0]] = statistics[layer.output[0]].transformed(*affine)


def _take_name(index: GraphIndex, statistics: dict[str, ChannelStatistics], old: str, new: str) -> None:
    """Let the layer or Add that writes ``old`` write ``new`` instead."""
    index.producer[old].output[0] = new
    if old in statistics:
        statistics[new] = statistics.pop(old)


def _affine(index: GraphIndex, layer: NodeProto, node: NodeProto, operand: int, value: NDArray[Any]) -> Affine | None:
    """Factor and offset, float64 [C], that ``node`` applies to the layer's output; None if not per channel."""
    channels = edit.output_channels(index, layer)
    vector = _per_channel(value, len(index.initializers[layer.input[1]].dims), channels)
    if vector is None:
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type == "Add":
        return one, vector
    if node.op_type == "Sub":
        return (one, -vector) if operand == 1 else (-one, vector)
    if node.op_type == "Mul":
        return vector, zero
    return (1 / vector, zero) if operand == 1 and np.all(vector != 0) else None


def _per_channel(value: NDArray[Any], rank: int, channels: int) -> NDArray[np.float64] | None:
    """``value`` as [C] where it broadcasts against [N, C, ...] of ``rank`` along axis 1 alone, else None."""
    if value.ndim > rank:
        return None
    shape = (*[1] * (rank - value.ndim), *value.shape)
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1) or shape[1] not in (1, channels):
        return None
    return np.broadcast_to(value.astype(np.float64).reshape(-1), (channels,)).copy()


def _matmul_to_gemm(index: GraphIndex, tensor: str, reader: NodeProto, value: NDArray[Any]) -> bool:
    """Turn the MatMul of a matrix and a constant matrix that only ``reader`` (an Add of a bias) reads into a Gemm."""
    node = index.producer.get(tensor)
    if node is None or node.op_type != "MatMul" or node.domain or index.sole_consumer(tensor) is not reader:
        return False
    weight = index.constant(node.input[1])
    if reader.op_type != "Add" or weight is None or weight.ndim != 2 or index.rank(node.input[0]) != 2:
        return False
    if _per_channel(value, 2, weight.shape[1]) is None:
        return False
    node.op_type = "Gemm"
    return True
