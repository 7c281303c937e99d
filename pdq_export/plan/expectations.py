"""Weighted nodes that are no layers: the mean of constants under the probabilities of a Softmax.

So a detector reads a distance from a distribution over bins (DFL), a keypoint its place from a heat map (soft-argmax).
The weight is a ruler, one number or a pair of coordinates for each probability, and what precedes the Softmax is the
network's last layer.
"""

from collections.abc import Sequence

from onnx import NodeProto

from pdq_export import operators
from pdq_export.graph.edit import output_channels
from pdq_export.graph.lookup import GraphIndex
from pdq_export.plan.readers import tensors_before_layers

_COORDINATES = 2


def without_expectations(index: GraphIndex, layers: Sequence[NodeProto]) -> list[NodeProto]:
    """``layers`` without those that take an expectation.

    One that another layer depends on stays. If none were left, all stay.
    """
    before = tensors_before_layers(index, {node.name for node in layers})
    kept = [node for node in layers if node.output[0] in before or not _is_expectation(index, node)]
    return kept or list(layers)


def _is_expectation(index: GraphIndex, node: NodeProto) -> bool:
    source = index.producer.get(node.input[0])
    while source is not None and operators.get(source.op_type).rearranges:
        source = index.producer.get(source.input[0])
    return source is not None and source.op_type == "Softmax" and output_channels(index, node) <= _COORDINATES
