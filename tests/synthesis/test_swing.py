"""What strided layers read is moved, and mirrored at the edges."""

import torch
import torch.nn.functional as F

from pdq_export.frontend.ops.conv import conv
from pdq_export.synthesis.swing import swing


def network(strides: list[int]) -> torch.fx.GraphModule:
    root, graph = torch.nn.Module(), torch.fx.Graph()
    root.register_buffer("weight", torch.randn(2, 3, 3, 3))
    x, weight = graph.placeholder("x"), graph.get_attr("weight")
    graph.output((graph.call_function(conv, (x, weight, None), {"strides": strides, "pads": [1, 1, 1, 1]}),))
    return torch.fx.GraphModule(root, graph)


def test_a_layer_without_strides_is_as_it_was() -> None:
    module, x = network([1, 1]), torch.randn(2, 3, 6, 7)
    assert torch.equal(swing(module, torch.Generator())(x)[0], module(x)[0])


def test_every_distance_below_the_stride_comes_up() -> None:
    module, x = network([2, 3]), torch.randn(2, 3, 6, 7)
    # The same by padding with the mirror image and cutting out.
    padded = F.pad(x, (2, 2, 1, 1), mode="reflect")
    expected = [module(padded[:, :, top : top + 6, left : left + 7])[0] for top in range(3) for left in range(5)]
    moving = swing(module, torch.Generator().manual_seed(0))
    found = [moving(x)[0] for _ in range(200)]
    seen = {next(n for n, y in enumerate(expected) if torch.equal(one, y)) for one in found}
    assert seen == set(range(15))
    again = swing(module, torch.Generator().manual_seed(0))
    assert all(torch.equal(again(x)[0], one) for one in found)


def test_an_axis_shorter_than_the_stride() -> None:
    module, x = network([4, 4]), torch.randn(1, 3, 1, 2)
    moving = swing(module, torch.Generator())
    assert all(moving(x)[0].shape == module(x)[0].shape for _ in range(9))
