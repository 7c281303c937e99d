"""Which family of networks a graph belongs to: the paper's hyper-parameters differ by the kind of its convolutions."""

from collections.abc import Iterable

from pdq_export.graph.lookup import GraphIndex, attribute
from pdq_export.spec import Layer


def network_family(index: GraphIndex, layers: Iterable[Layer]) -> str:
    """Say "depthwise" where a Conv has one input channel a group, "grouped" where one has groups, else "plain"."""
    grouped = False
    for layer in layers:
        if layer.op_type != "Conv" or attribute(index.nodes[layer.node], "group", 1) == 1:
            continue
        if index.constant(layer.weight).shape[1] == 1:  # type: ignore[union-attr]
            return "depthwise"
        grouped = True
    return "grouped" if grouped else "plain"
