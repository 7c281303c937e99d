"""Which family of networks a graph belongs to: the paper's hyper-parameters differ by the kind of its convolutions."""

from collections.abc import Iterable

from pdq_export.graph.lookup import GraphIndex, attribute
from pdq_export.spec import Layer

# MobileNets have a depthwise convolution in every third layer; a blur or a separable head does not make one.
_SHARE = 0.15


def network_family(index: GraphIndex, layers: Iterable[Layer]) -> str:
    """The family of a network: "depthwise", "grouped" or "plain".

    It is one of the first two if at least 15 % of the layers are such convolutions. A depthwise convolution has one
    input channel a group.
    """
    layers = list(layers)
    groups = [
        index.constant(layer.weight).shape[1]  # type: ignore[union-attr]
        for layer in layers
        if layer.op_type == "Conv" and attribute(index.nodes[layer.node], "group", 1) > 1
    ]
    fewest = max(_SHARE * len(layers), 1)
    if groups.count(1) >= fewest:
        return "depthwise"
    return "grouped" if len(groups) >= fewest else "plain"
