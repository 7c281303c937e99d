"""What a network predicts: the tensor of scores behind each output, and its class axis."""

import dataclasses

from torch import fx

from pdq_export.calibrate.subgraph import tensor_nodes

# What networks put behind their scores: monotone or without a gradient, so that differences are seen before it.
_HEADS = frozenset("softmax log_softmax softmax_flat arg_extreme cast identity".split())


@dataclasses.dataclass(frozen=True)
class Prediction:
    """``tensor``: the scores behind a graph output. ``class_axis``: the axis its Softmax or ArgMax ran over, if any."""

    tensor: str
    class_axis: int | None


def find_prediction(module: fx.GraphModule, output: str) -> Prediction:
    """The scores behind the graph output ``output``: what its Softmax, LogSoftmax or ArgMax was applied to."""
    node, axis = tensor_nodes(module)[output], None
    while getattr(node.target, "__name__", "") in _HEADS and len(node.all_input_nodes) == 1:
        axis = node.kwargs.get("dim", node.kwargs.get("axis", axis))
        (node,) = node.all_input_nodes
    return Prediction(str(node.meta.get("tensor", output)), axis if isinstance(axis, int) else None)
