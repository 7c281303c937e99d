"""Cross-layer equalization before depthwise layers: a factor a channel, which the weights on both sides take up.

One scale for all channels of an activation has few levels for those with a small range. Between a layer and a depthwise
Conv with nothing but Relu or LeakyRelu the factors cost nothing, since the weights of both have a scale a channel. The
scaling is that of Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (ICCV 2019),
section 4.1; there the factors follow from the ranges of weights, here from those of the activations.

A Clip at 0 and a bound (ReLU6) would have to end at factor times its bound in every channel, which Clip cannot. It
stays as it is: with factors of 1 and more, integers that end at the bound, or before, end every channel there anyway.
So the scaled model computes what the model does once it is quantized; before, `exact` says what it stands for.
"""

import dataclasses
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto

from pdq_export import operators
from pdq_export.graph.edit import (
    add_constant,
    foldable_layer,
    fresh_name,
    replace_node,
    scale_outputs,
    with_constants,
)
from pdq_export.graph.lookup import GraphIndex, attribute, optional_input
from pdq_export.spec import ChannelStatistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Couple:
    """Two layers around a tensor, by the names of nodes.

    The layer ``writer`` leads to ``tensor``, the depthwise Conv ``reader`` reads it. ``bound``: of the Clip that writes
    ``tensor``, the upper one, in which case factors have to be 1 or more; None without a Clip.
    """

    tensor: str
    writer: str
    reader: str
    bound: float | None = None


def find_couples(model: onnx.ModelProto, tensors: Container[str], layers: Container[str]) -> list[Couple]:
    """The couples of ``layers`` around ``tensors`` that can be scaled.

    Nobody else reads their constants. Nodes have to have distinct names.
    """
    index = GraphIndex(model)
    couples = []
    for reader in index.graph.node:
        if not _is_depthwise(index, reader) or reader.input[0] not in tensors:
            continue
        tensor = reader.input[0]
        bound = _upper_bound(index, tensor, reader)
        clip = None if bound is None else index.producer[tensor]
        writer = _writer(index, tensor, reader) if clip is None else _writer(index, clip.input[0], clip)
        if writer is None or writer.name not in layers or reader.name not in layers:
            continue
        if all(_is_private(index, layer) for layer in (writer, reader)):
            couples.append(Couple(tensor=tensor, writer=writer.name, reader=reader.name, bound=bound))
    return couples


def run(
    model: onnx.ModelProto,
    statistics: Mapping[str, ChannelStatistics],
    couples: Sequence[Couple],
    factors: Mapping[str, NDArray[np.float64]],
) -> tuple[onnx.ModelProto, dict[str, ChannelStatistics]]:
    """Multiply the tensors of ``couples`` by ``factors`` [C], above 0; what the network computes stays.

    Returns a copy of the model, and the statistics of layer outputs that fit it.
    """
    index = GraphIndex(model)
    constants: dict[str, NDArray[Any]] = {}
    adapted = dict(statistics)

    def current(name: str) -> NDArray[np.float64]:
        value = constants.get(name, index.constant(name))
        assert value is not None
        return value.astype(np.float64)

    for couple in couples:
        factor, writer, reader = factors[couple.tensor], index.nodes[couple.writer], index.nodes[couple.reader]
        constants[writer.input[1]] = scale_outputs(writer, current(writer.input[1]), factor).astype(np.float32)
        if len(writer.input) > 2 and writer.input[2]:
            constants[writer.input[2]] = (current(writer.input[2]) * factor).astype(np.float32)
        weight = current(reader.input[1])  # [C * multiplier, 1, ...], the outputs of a channel side by side
        back = np.repeat(1 / factor, len(weight) // len(factor))
        constants[reader.input[1]] = scale_outputs(reader, weight, back).astype(np.float32)
        if (known := adapted.get(writer.output[0])) is not None:
            adapted[writer.output[0]] = known.transformed(factor)
    return with_constants(model, constants), adapted


def exact(
    model: onnx.ModelProto, couples: Sequence[Couple], factors: Mapping[str, NDArray[np.float64]]
) -> onnx.ModelProto:
    """A copy of a ``model`` from `run` in which every channel behind a Clip ends at its factor times the bound."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    index = GraphIndex(result)
    for couple in couples:
        if couple.bound is None:
            continue
        clip, reader = index.producer[couple.tensor], index.nodes[couple.reader]
        rank = len(index.initializers[reader.input[1]].dims) - 2
        bounds = (couple.bound * factors[couple.tensor]).astype(np.float32).reshape(-1, *[1] * rank)
        limit = add_constant(index, f"{couple.tensor}/bounds", bounds)
        rectified = fresh_name(index, f"{couple.tensor}/rectified")
        relu = onnx.helper.make_node("Relu", clip.input[:1], [rectified], f"{clip.name}/Relu")
        least = onnx.helper.make_node("Min", [rectified, limit], clip.output, clip.name)
        replace_node(result.graph, clip, [relu, least])
    return result


def _upper_bound(index: GraphIndex, tensor: str, reader: NodeProto) -> float | None:
    """That of the Clip from 0 on that writes ``tensor`` for ``reader`` alone; None for anything else."""
    node = index.producer.get(tensor)
    if node is None or node.op_type != "Clip" or index.sole_consumer(tensor) is not reader:
        return None
    if index.opset < 11:
        bounds = [attribute(node, "min", -np.inf), attribute(node, "max", np.inf)]
    else:
        known = [index.constant(optional_input(node, position)) for position in (1, 2)]
        bounds = [np.nan if value is None or value.size != 1 else value.item() for value in known]
    low, high = bounds
    return float(high) if low == 0 < high < np.inf else None


def _is_depthwise(index: GraphIndex, node: NodeProto) -> bool:
    if node.op_type != "Conv" or not index.is_constant(node.input[1]):
        return False
    return int(attribute(node, "group", 1)) > 1 and index.initializers[node.input[1]].dims[1] == 1


def _writer(index: GraphIndex, tensor: str, reader: NodeProto) -> NodeProto | None:
    """The Conv or ConvTranspose that alone decides what ``reader`` sees in ``tensor``.

    Not a ConvTranspose with groups, which share the scales of their weights.
    """
    node = index.producer.get(tensor)
    while node is not None and operators.get(node.op_type).homogeneous:
        if index.sole_consumer(tensor) is not reader:
            return None
        tensor, reader = node.input[0], node
        node = index.producer.get(tensor)
    layer = foldable_layer(index, tensor, reader)
    shared = layer is not None and layer.op_type == "ConvTranspose" and int(attribute(layer, "group", 1)) > 1
    return None if shared else layer


def _is_private(index: GraphIndex, layer: NodeProto) -> bool:
    constants = [name for name in layer.input[1:] if name]
    return all(index.consumers(name) == [layer] and name not in index.outputs for name in constants)
