"""GENIE's swing convolution: of a layer with stride 2 every second row alone is the middle of a window.

Images that are learned through such layers show their grid. Where what they read is moved a little at each step, no row
is another than its neighbours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from pdq_export.frontend.ops.conv import conv


def swing(module: fx.GraphModule, random: torch.Generator) -> fx.GraphModule:
    """``module`` with what strided Convs read moved by less than their stride, by another distance at each call."""
    root, graph = nn.Module(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            setattr(root, node.target, getattr(module, node.target))
        copies[node] = copy = graph.node_copy(node, copies.__getitem__)
        strides = node.kwargs.get("strides") if node.target is conv else None
        if isinstance(strides, Sequence) and len(strides) == 2 and max(strides) > 1:
            name = f"swing_{len(copies)}"
            root.add_module(name, _Swing(strides, random))
            with graph.inserting_before(copy):
                moved = graph.call_module(name, (copy.args[0],))
            copy.args = (moved, *copy.args[1:])
    return fx.GraphModule(root, graph)


class _Swing(nn.Module):
    """Moves [N, C, H, W] along both axes; what comes in at an edge is its mirror image."""

    def __init__(self, strides: Sequence[int], random: torch.Generator) -> None:
        super().__init__()
        self._strides, self._random = tuple(strides), random

    def forward(self, x: Tensor) -> Tensor:
        for axis, stride in zip((2, 3), self._strides, strict=True):
            length = x.shape[axis]
            most = min(stride, length) - 1
            distance = int(torch.randint(-most, most + 1, (), generator=self._random))
            # Slices alone, whose gradients add up in one order on every device.
            if distance > 0:
                mirrored = x.narrow(axis, length - 1 - distance, distance).flip(axis)
                x = torch.cat([x.narrow(axis, distance, length - distance), mirrored], axis)
            elif distance < 0:
                mirrored = x.narrow(axis, 1, -distance).flip(axis)
                x = torch.cat([mirrored, x.narrow(axis, 0, length + distance)], axis)
        return x
