"""The finished network in integer arithmetic, rounding where onnxruntime's fused kernels round.

Fake quantization in floating point and the integer kernels differ in the last bit of a float, which at 8 bits moves an
integer in about one image of four. These modules stand in for layers, additions and averages, so that simulation and
runtime can be compared to the bit. `pdq_export.arithmetic.integer` states the same rules in numpy, tested against
onnxruntime.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx, nn

from pdq_export import operators
from pdq_export.calibrate.precision import exact_sums
from pdq_export.calibrate.quantizers import ActivationQuantizer, BiasQuantizer, WeightQuantizer
from pdq_export.calibrate.subgraph import op_type, tensor_nodes
from pdq_export.numerics.affine import per_channel
from pdq_export.numerics.search import QParams
from pdq_export.spec import Layer, Plan

_EXACT = 2**24  # float32 holds every integer up to here


class IntegerLayer(nn.Module):
    """round_half_even(accumulator * (s_x * s_w / s_y)) * s_y, every step in float32, as QLinearConv computes it.

    Integers are kept in float32 where no sum of them, whatever the input, can leave what it holds exactly, and in
    float64 elsewhere. Without an ``output`` quantizer the result is accumulator * (s_x * s_w), as QGemm has it.
    """

    _weight: Tensor
    _factor: Tensor

    def __init__(
        self,
        function: Callable[..., Tensor],
        source: ActivationQuantizer,
        weight: WeightQuantizer,
        bias: BiasQuantizer | None,
        output: ActivationQuantizer | None,
        channels_last: bool,
    ) -> None:
        super().__init__()
        self._function = function
        self._source, self._output = source, output
        rank = weight.q.ndim
        product = source.scale.detach() * weight.scale
        distances = weight.q - per_channel(weight.zero_point, weight.point.axis, rank)
        added = None if bias is None else _bias_integers(bias, product)
        dtype = torch.float32 if _largest_sum(distances, weight.point.axis, source, added) < _EXACT else torch.float64
        self.register_buffer("_weight", distances.to(dtype))
        self.register_buffer("_bias", None if added is None else added.to(dtype))
        factor = product if output is None else product / output.scale.detach()
        self.register_buffer("_factor", factor if channels_last else factor.view(-1, *[1] * (rank - 2)))

    def forward(self, x: Tensor) -> Tensor:
        integers = torch.round(x / self._source.scale).to(self._weight.dtype)
        with exact_sums(x.device):
            result: Tensor = self._function(integers, self._weight, self._bias).float() * self._factor
        return result if self._output is None else torch.round(result) * self._output.scale


def _bias_integers(bias: BiasQuantizer, product: Tensor) -> Tensor:
    if bias.exact is None or bias.exact.numel() != bias.value.numel():
        return torch.round(bias.value / product)
    return torch.round(bias.exact.view(bias.value.shape) / product.double())


def _largest_sum(weight: Tensor, axis: int | None, source: ActivationQuantizer, bias: Tensor | None) -> float:
    """A bound on the size of every partial sum. ``weight``: q - zero_point, output channels along ``axis``."""
    assert axis is not None
    per_output = weight.abs().movedim(axis, 0).flatten(1).sum(1, dtype=torch.float64)
    largest = float(per_output.max()) * max(-source.low, source.high)
    return largest + (0.0 if bias is None else float(bias.abs().max()))


class IntegerAdd(nn.Module):
    """QLinearAdd: round_half_even(fma(a, r_a, fma(b, r_b, z_y - fma(r_a, z_a, r_b z_b)))), ratios r = s / s_y."""

    def __init__(self, a: ActivationQuantizer, b: ActivationQuantizer, output: ActivationQuantizer) -> None:
        super().__init__()
        self._a, self._b, self._output = a, b, output

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        scale, zero_point = self._output.scale, self._output.zero_point
        ratio_a, ratio_b = self._a.scale / scale, self._b.scale / scale
        # float64 holds the product of 8 bits and a float32 exactly: rounding its sum is the fused operation.
        zeros = (ratio_a.double() * self._a.zero_point + (ratio_b * self._b.zero_point).double()).float()
        fixed = zero_point - zeros
        inner = _wide(b, self._b).mul_(ratio_b.double()).add_(fixed.double()).float()
        total = (_wide(a, self._a).mul_(ratio_a.double()) + inner).float()
        return total.round_().sub_(zero_point).mul_(scale)


def _wide(x: Tensor, quantizer: ActivationQuantizer) -> Tensor:
    """The integers of ``x`` in float64."""
    return torch.round(x / quantizer.scale).double().add_(quantizer.zero_point)


class IntegerAverage(nn.Module):
    """QLinearGlobalAveragePool: round_half_even(sum * (s_x / (s_y * count))) * s_y, every step in float32.

    The sum of a few small integers hits the middle between two often, so a mean in float rounds many of them otherwise.
    """

    def __init__(self, source: ActivationQuantizer, output: ActivationQuantizer) -> None:
        super().__init__()
        self._source, self._output = source, output

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.ndim))
        total = torch.round(x / self._source.scale).sum(axes, keepdim=True)
        factor = self._source.scale / (self._output.scale * math.prod(x.shape[2:]))
        return torch.round(total * factor) * self._output.scale


class IntegerIdentity(nn.Module):
    """Another scale for the same values, which the runtime computes as the QLinearAdd of a 0 with zero_point 0."""

    def __init__(self, source: ActivationQuantizer, output: ActivationQuantizer) -> None:
        super().__init__()
        one = torch.ones_like(source.scale)
        nothing = ActivationQuantizer(source.point, QParams(scale=one, zero_point=torch.zeros_like(one)))
        self._add = IntegerAdd(source, nothing, output)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self._add(x, x.new_zeros(()))
        return result


# Stand-ins by op type, layers aside, and how many quantized operands they have.
_STAND_INS: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "Add": (IntegerAdd, 2),
    "GlobalAveragePool": (IntegerAverage, 1),
    "Identity": (IntegerIdentity, 1),
}


def integer_nodes(
    network: fx.GraphModule,
    plan: Plan,
    activations: Mapping[str, ActivationQuantizer],
    weights: Mapping[str, WeightQuantizer],
    biases: Mapping[str, BiasQuantizer],
) -> dict[str, nn.Module]:
    """Stand-ins by ONNX node name for every node that onnxruntime runs in integers and rounds by a rule above."""
    stand_ins: dict[str, nn.Module] = {}
    known = tensor_nodes(network)
    (end,) = (node for node in network.graph.nodes if node.op == "output")
    outputs = {argument.meta["tensor"] for argument in end.all_input_nodes}
    visible = outputs | plan.read_unquantized  # what is needed in float
    absorbing = {point.absorbed: activations[name] for name, point in plan.points.items() if point.absorbed}

    def output_of(tensor: str) -> ActivationQuantizer | None:
        if tensor in visible:
            return None
        if tensor in activations:
            return activations[tensor]
        users = [user for user in known[tensor].users if user.meta.get("tensor") not in visible]
        readers = [absorbing.get(user.meta.get("onnx_node", "")) for user in users]
        return readers[0] if len(readers) == 1 else None

    for layer in plan.layers:
        output = output_of(layer.output)
        if sum(argument.op != "get_attr" for argument in known[layer.output].all_input_nodes) > 1:
            continue  # a computed bias: it runs in float
        if layer.bias is not None and layer.node not in biases:
            continue  # a bias that stays float: so does the sum
        operator = operators.get(layer.op_type)
        if operator.integer_kernel and (operator.float_output or output is not None):
            source = activations[str(plan.source(layer.input))]
            function = _function(known[layer.output], layer)
            stand_ins[layer.node] = IntegerLayer(
                function,
                source,
                weights[layer.weight],
                biases.get(layer.node),
                output,
                channels_last=not operator.per_image,
            )
    for tensor, node in known.items():
        make, count = _STAND_INS.get(op_type(node), (None, 0))
        if make is None or not node.meta.get("onnx_node") or tensor in plan.passthrough:
            continue
        operands = [plan.source(argument.meta["tensor"]) for argument in node.all_input_nodes]
        output = output_of(tensor)
        if output is not None and len(operands) == count and all(name in activations for name in operands):
            stand_ins[node.meta["onnx_node"]] = make(*(activations[str(name)] for name in operands), output)
    return stand_ins


def _function(node: fx.Node, layer: Layer) -> Callable[..., Tensor]:
    target, kwargs = node.target, dict(node.kwargs)
    assert callable(target), layer
    if layer.op_type == "MatMul":
        return lambda x, weight, bias: target(x, weight, **kwargs)
    return lambda x, weight, bias: target(x, weight, bias, **kwargs)
