"""BatchNormalization into the layer before it; what it knew about the layer's output is kept as statistics.

    y = gamma * (W x + b - mean) / sigma + beta,   sigma = sqrt(variance + epsilon)
      = (W * gamma / sigma) x + (b - mean) * gamma / sigma + beta

Over the training data y has mean beta and standard deviation |gamma| per channel.
"""

import dataclasses

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto

from pdq_export.errors import ModelError
from pdq_export.graph import edit
from pdq_export.graph.checks import check_normalizes
from pdq_export.graph.lookup import GraphIndex, attribute, describe
from pdq_export.spec import ChannelStatistics

TINY_GAMMA = 1e-6  # relative to the largest |gamma|: below it a channel is switched off and its gain means nothing


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchNorm:
    """Inference-time parameters in float64, all of shape [C]."""

    gamma: NDArray[np.float64]
    beta: NDArray[np.float64]
    mean: NDArray[np.float64]
    sigma: NDArray[np.float64]

    @property
    def factor(self) -> NDArray[np.float64]:
        """Gamma / sigma."""
        return self.gamma / self.sigma

    @property
    def offset(self) -> NDArray[np.float64]:
        """Beta - mean * gamma / sigma."""
        return self.beta - self.mean * self.factor

    @property
    def statistics(self) -> ChannelStatistics:
        """Mean beta, std |gamma|, gain sigma / |gamma| (0 where gamma is 0 or next to nothing)."""
        std = np.abs(self.gamma)
        alive = std > TINY_GAMMA * std.max(initial=0.0)
        gain = np.divide(self.sigma, std, out=np.zeros_like(std), where=alive)
        return ChannelStatistics(
            mean=self.beta.astype(np.float32), std=std.astype(np.float32), gain=gain.astype(np.float32)
        )


def run(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, ChannelStatistics]]:
    """Remove every BatchNormalization and return statistics by the output tensor of the layer it was folded into.

    The layer takes over the name of the BatchNormalization's output, so that graph outputs keep their names. Without a
    layer to fold it into, a BatchNormalization becomes Mul and Add and has no statistics. Raises ModelError if one is
    in training mode or has parameters that are not constant.
    """
    statistics: dict[str, ChannelStatistics] = {}
    for node in [node for node in model.graph.node if node.op_type == "BatchNormalization" and not node.domain]:
        index = GraphIndex(model)
        norm = _read(index, node)
        layer = edit.foldable_layer(index, node.input[0], node)
        if layer is None or edit.output_channels(index, layer) != len(norm.gamma):
            _write_as_mul_add(index, node, norm)
            continue
        edit.scale_and_shift(index, layer, norm.factor, norm.offset)
        layer.output[0] = node.output[0]
        statistics[node.output[0]] = norm.statistics
        edit.replace_node(model.graph, node, [])
    return model, statistics


def _read(index: GraphIndex, node: NodeProto) -> BatchNorm:
    check_normalizes(node)
    values = []
    for name in node.input[1:5]:
        value = index.constant(name)
        if value is None:
            raise ModelError(
                f"{describe(node)}: parameter {name!r} is computed at run time; expected a constant; "
                "re-export the model with constant BatchNormalization parameters"
            )
        values.append(value.astype(np.float64))
    shapes = [value.shape for value in values]
    if len(values) != 4 or len(set(shapes)) != 1 or len(shapes[0]) != 1:
        raise ModelError(
            f"{describe(node)}: parameters have shapes {shapes}; expected four of shape [C]; re-export the model"
        )
    gamma, beta, mean, variance = values
    with np.errstate(invalid="ignore"):
        sigma = np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    if not np.all(sigma > 0):
        raise ModelError(
            f"{describe(node)}: variance {node.input[4]!r} plus epsilon is not positive in channel "
            f"{int(np.argmin(sigma > 0))}; expected running variances of at least 0; re-export the model"
        )
    return BatchNorm(gamma=gamma, beta=beta, mean=mean, sigma=sigma)


def _write_as_mul_add(index: GraphIndex, node: NodeProto, norm: BatchNorm) -> None:
    """Replace a BatchNormalization by Mul and Add with constants of shape [1, C, 1, ...]."""
    rank = index.rank(node.input[0])
    if rank is None or rank < 2:
        raise ModelError(
            f"{describe(node)}: its input {node.input[0]!r} has {'an unknown' if rank is None else 'a low'} rank; "
            "expected [N, C, ...]; re-export the model with shapes"
        )
    parameters = index.initializers[node.input[1]]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(parameters.data_type)
    shape = (1, -1, *[1] * (rank - 2))
    label = node.name or node.output[0]
    factor = edit.add_constant(index, f"{label}.factor", norm.factor.reshape(shape).astype(dtype))
    offset = edit.add_constant(index, f"{label}.offset", norm.offset.reshape(shape).astype(dtype))
    scaled = edit.fresh_name(index, f"{label}.scaled")
    mul = onnx.helper.make_node("Mul", [node.input[0], factor], [scaled], name=f"{label}.mul")
    add = onnx.helper.make_node("Add", [scaled, offset], [node.output[0]], name=f"{label}.add")
    edit.replace_node(index.graph, node, [mul, add])
