"""Pieces of the imported graph compute what the whole computes, and quantizers are spliced in at tensor names."""

import pytest
import torch
from torch import nn

from pdq_export.calibrate.subgraph import extract, reachable

from .networks import residual


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


class Constant(nn.Module):
    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self) -> torch.Tensor:
        return self.get_buffer("value")


def test_head_and_tail_make_the_whole() -> None:
    example = residual()
    (whole,) = example.network(example.images)
    for cut in ("a1", "a3"):
        head = extract(example.network, ["image"], [cut])
        rest = extract(example.network, [cut], ["y"])
        torch.testing.assert_close(rest(*head(example.images))[0], whole, rtol=0, atol=0)


def test_a_quantizer_acts_on_everyone_who_reads_the_tensor() -> None:
    example = residual()
    plain = extract(example.network, ["image"], ["a1", "a2"])
    spliced = extract(example.network, ["image"], ["a1", "a2"], quantizers={"a1": Double()})
    a1 = plain(example.images)[0]
    again = extract(example.network, ["a1"], ["a2"])
    torch.testing.assert_close(spliced(example.images)[0], 2 * a1)
    torch.testing.assert_close(spliced(example.images)[1], again(2 * a1)[0])


def test_inputs_are_quantized_only_at_the_ends_of_the_network() -> None:
    example = residual()
    piece = extract(example.network, ["a1"], ["a3"], quantizers={"a1": Double()})
    plain = extract(example.network, ["a1"], ["a3"])
    x = torch.rand(2, 6, 8, 8)
    torch.testing.assert_close(piece(x)[0], plain(x)[0])
    whole = extract(example.network, ["a1"], ["a3"], quantizers={"a1": Double(), "a3": Double()}, whole=True)
    torch.testing.assert_close(whole(x)[0], plain(2 * x)[0])


def test_weights_and_biases_are_replaced() -> None:
    example = residual()
    layer = example.plan.layers[-1]
    weight, bias = torch.ones(5, 6), torch.arange(5.0)
    piece = extract(
        example.network,
        [layer.input],
        [layer.output],
        quantizers={layer.weight: Constant(weight)},
        biases={layer.node: Constant(bias)},
    )
    x = torch.rand(3, 6)
    torch.testing.assert_close(piece(x)[0], x @ weight.T + bias)


def test_a_missing_input_is_named() -> None:
    with pytest.raises(ValueError, match="'image'"):
        extract(residual().network, ["a2"], ["a3"])


def test_reachable_outputs() -> None:
    network = residual().network
    assert reachable(network, ["a1"], ["a2", "y"]) == ("a2", "y")
    assert reachable(network, ["a2"], ["a1", "y"]) == ("y",)
