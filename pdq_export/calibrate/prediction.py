"""What a network predicts: the tensor of scores behind each output, and its class axis."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pdq_export import operators
from pdq_export.calibrate.subgraph import op_type, tensor_nodes
from pdq_export.spec import OutputPart, Place

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """``tensor``: the scores behind a graph output. ``class_axis``: the axis its Softmax or ArgMax ran over, if any."""

    tensor: str
    class_axis: int | None  # 0 where it is known that there is none


def find_predictions(
    module: fx.GraphModule, inputs: Sequence[Tensor], parts: Mapping[str, Sequence[OutputPart]]
) -> dict[str, list[Prediction]]:
    """By graph output: the scores behind it, what its Softmax, LogSoftmax or ArgMax was applied to.

    Of an output that has ``parts``, those of each part, so that boxes in pixels do not outweigh scores.

    Where these have no gradient (a comparison, rounding, indices), the last tensors before them that have, said so in
    a warning; an empty list where nothing before the output depends on the inputs. ``inputs``: one image each.
    """
    alive = _differentiable(module, inputs)
    (end,) = (node for node in module.graph.nodes if node.op == "output")
    found: dict[str, list[Prediction]] = {}
    for argument in end.args[0]:
        name = argument.meta["tensor"]
        tensors = dict.fromkeys([part.tensor for part in parts.get(name, ())] or [name])
        found[name] = [prediction for tensor in tensors for prediction in _predictions(module, tensor, alive)]
    return found


def put_images_first(module: fx.GraphModule, prediction: Prediction) -> Prediction:
    """The same with an axis of images in front, which ``module``'s graph gets a node for; itself where it has one.

    [T, N, K] of a text recogniser becomes [N, T, K]. ``module.meta["images"]`` tells where images lie.
    """
    place = module.meta.get("images", {}).get(prediction.tensor)
    if place is None:
        return prediction
    name, nodes = f"{prediction.tensor}.images_first", tensor_nodes(module)
    if name not in nodes:
        source = nodes[prediction.tensor]
        with module.graph.inserting_after(source):
            node = module.graph.call_function(images_first, (source, place.axis, place.outer, place.inner))
        node.meta.update(tensor=name, onnx_node="")
    return Prediction(name, _moved_axis(prediction.class_axis, place))


def images_first(x: Tensor, axis: int, outer: int, inner: int) -> Tensor:
    """[..., outer * N * inner, ...] as [N, ..., outer, inner, ...], without an outer or inner of 1."""
    split = x.unflatten(axis, (outer, -1, inner)).movedim(axis + 1, 0)
    kept = [size for size in (outer, inner) if size > 1]
    result: Tensor = split.reshape(len(split), *x.shape[:axis], *kept, *x.shape[axis + 1 :])
    return result


def _moved_axis(axis: int | None, place: Place) -> int | None:
    """``axis`` after `images_first`; 0, that there is none, and one counted from the end stay."""
    if not axis or axis < 0:
        return axis
    if axis == place.axis:
        return 0
    return axis + 1 if axis < place.axis else axis + (place.outer > 1) + (place.inner > 1)


def _predictions(module: fx.GraphModule, output: str, alive: set[fx.Node]) -> list[Prediction]:
    node, axis = tensor_nodes(module)[output], None
    while operators.get(op_type(node)).head and len(node.all_input_nodes) == 1:
        axis = node.kwargs.get("dim", node.kwargs.get("axis", axis))
        (node,) = node.all_input_nodes
    if op_type(node) == "Sigmoid":
        axis = 0  # probabilities that do not add up to 1: no axis of classes
    if node in alive:
        return [Prediction(str(node.meta.get("tensor", output)), axis if isinstance(axis, int) else None)]
    points = _last_alive(node, alive)
    if points:
        logger.warning(
            "output %r cannot be differentiated: the prediction difference is measured at %s, the last point that can",
            output,
            " and ".join(map(repr, points)),
        )
    return [Prediction(tensor, None) for tensor in points]


def _last_alive(node: fx.Node, alive: set[fx.Node]) -> list[str]:
    """The differentiable tensors that ``node`` is computed from without a gradient; not the graph's inputs."""
    found: dict[str, None] = {}
    pending, seen = [node], {node}
    while pending:
        for argument in pending.pop().all_input_nodes:
            if argument in alive and argument.op != "placeholder":
                found[str(argument.meta["tensor"])] = None
            elif argument not in seen and argument not in alive:
                pending.append(argument)
            seen.add(argument)
    return list(found)


def _differentiable(module: fx.GraphModule, inputs: Sequence[Tensor]) -> set[fx.Node]:
    """The fx nodes through whose result a gradient flows back to the inputs."""
    found: set[fx.Node] = set()

    class Probe(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor) and result.requires_grad:
                found.add(n)
            return result

    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    with torch.enable_grad():
        Probe(module).run(*leaves)
    return found
