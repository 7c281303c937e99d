"""Cross-layer equalization before depthwise layers: a factor a channel, which the weights on both sides take up.

One scale for all channels of an activation has few levels for those with a small range. Between a layer and a depthwise
Conv with nothing but Relu or LeakyRelu the factors cost nothing, since the weights of both have a scale a channel. The
scaling is that of Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (ICCV 2019),
section 4.1; there the factors follow from the ranges of weights, here from those of the activations.
"""

import dataclasses
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto

from pdq_export import operators
from pdq_export.graph.edit import foldable_layer, scale_outputs, with_constants
from pdq_export.graph.lookup import GraphIndex, attribute
from pdq_export.spec import ChannelStatistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Couple:
    """Two layers around a tensor, by the names of nodes.

    The layer ``writer`` leads to ``tensor``, the depthwise Conv ``reader`` reads it.
    """

    tensor: str
    writer: str
    reader: str


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
        writer = _writer(index, tensor, reader)
        if writer is None or writer.name not in layers or reader.name not in layers:
            continue
        if all(_is_private(index, layer) for layer in (writer, reader)):
            couples.append(Couple(tensor=tensor, writer=writer.name, reader=reader.name))
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
