"""Shape arithmetic in calibration, where all images have one size: it becomes constant, but for how many there are.

Otherwise ``size = x.shape[-2:]`` in one block and ``interpolate(y, size)`` in another would carry integers, which no
block can learn to compute, from the one to the other.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pdq_export.frontend.constants import host_constant
from pdq_export.frontend.names import Names
from pdq_export.frontend.ops.shape import shape, size

_BATCHES = (2, 3, 4)  # two tell how a number grows with the images, the third whether it does so evenly
FOLDING_IMAGES = max(_BATCHES)
_SHAPE_LENGTH = 16  # elements up to which a vector is taken for a shape, which is read on the CPU


def fold_sizes(network: fx.GraphModule, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """A copy of ``network`` for images of the size of ``inputs``, one tensor [N, ...] per graph input.

    What is computed from sizes alone is a constant there, or where it grows with the images a `batch_sizes` of the
    first input. The network itself where it has no such nodes. Other constants are shared, not copied.
    """
    derived = _derived(network.graph)
    if not derived:
        return network
    runs = [_values(network, derived, [_rows(x, count) for x in inputs]) for count in _BATCHES]
    attributes = {str(n.target): getattr(network, str(n.target)) for n in network.graph.nodes if n.op == "get_attr"}
    names = Names(reserved=attributes)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in network.graph.nodes:
        values = [run[node] for run in runs] if node in derived else []
        if _is_constant(values):
            copy = _constant(graph, values[0], names.new(node.name), attributes)
        elif _is_linear(values):
            grows = values[1] - values[0]
            fixed = values[0] - _BATCHES[0] * grows
            first = next(iter(copies.values()))  # a graph begins with its inputs
            copy = graph.call_function(batch_sizes, (first, grows.tolist(), fixed.tolist(), grows.dtype))
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            continue
        copy.meta.update(node.meta, op_type="")  # what is folded is that operator no longer
        copies[node] = copy
    graph.eliminate_dead_code()
    folded = fx.GraphModule(attributes, graph, class_name="FoldedModel")
    folded.meta.update(network.meta)
    return folded


def batch_sizes(x: Tensor, per_image: Any, fixed: Any, dtype: torch.dtype) -> Tensor:
    """``per_image`` N + ``fixed``, numbers or lists of them, for a tensor x of N images; on the CPU, as shapes are."""
    return (torch.tensor(per_image) * len(x) + torch.tensor(fixed)).to(dtype)


def _derived(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that compute with the sizes of tensors and with constants alone."""
    constant: set[fx.Node] = set()
    derived: set[fx.Node] = set()
    for node in graph.nodes:
        if node.target in (shape, size):
            derived.add(node)
        elif node.op == "get_attr" or (node.op == "call_function" and constant.issuperset(node.all_input_nodes)):
            constant.add(node)
        elif node.op == "call_function" and (constant | derived).issuperset(node.all_input_nodes):
            derived.add(node)
    return derived


def _rows(x: Tensor, count: int) -> Tensor:
    return x[torch.arange(count, device=x.device) % len(x)]


@torch.no_grad()
def _values(network: fx.GraphModule, nodes: set[fx.Node], inputs: Sequence[Tensor]) -> dict[fx.Node, Any]:
    found: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n in nodes:
                found[n] = result
            return result

    Recorder(network).run(*inputs)
    return found


def _is_constant(values: Sequence[Any]) -> bool:
    return _are_alike(values) and all(torch.equal(values[0], value) for value in values)


def _is_linear(values: Sequence[Any]) -> bool:
    """Whether integers grow by the same with every image."""
    if not _are_alike(values) or values[0].is_floating_point() or values[0].dtype == torch.bool:
        return False
    return torch.equal(values[1] - values[0], values[2] - values[1])


def _are_alike(values: Sequence[Any]) -> bool:
    """Whether there are values, and tensors of one shape, not the tuples of a Split."""
    return bool(values) and all(isinstance(x, Tensor) and x.shape == values[0].shape for x in values)


def _constant(graph: fx.Graph, value: Tensor, name: str, attributes: dict[str, Any]) -> fx.Node:
    """A shape as a constant on the CPU, anything larger, as a grid of anchors, as a buffer beside the weights."""
    if value.ndim < 2 and value.numel() <= _SHAPE_LENGTH:
        return graph.call_function(host_constant, (value.tolist(), value.dtype))
    attributes[name] = value
    return graph.get_attr(name)
