"""The quantizers that calibration has finished, and what follows from them: tensors, blocks, the simulation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from pdq_export.arithmetic.bias import has_integer_bias
from pdq_export.calibrate.integer import integer_nodes
from pdq_export.calibrate.quantizers import ActivationQuantizer, BiasQuantizer, SoftRounding, WeightQuantizer
from pdq_export.calibrate.subgraph import extract, tensor_nodes
from pdq_export.spec import Block, Layer, Plan, Point, QuantizedTensor, Role


class Quantizers:
    """``activations`` and ``weights`` by tensor, ``biases`` by ONNX node; ``constants``: the network's, by tensor.

    Blocks are cut out of ``network``, the simulation is of ``any_size``.

    ``shifted``: biases that calibration has changed, in float32, by tensor; they are in ``constants`` too.
    """

    def __init__(self, network: fx.GraphModule, plan: Plan, any_size: fx.GraphModule) -> None:
        self._network, self._plan, self._any_size = network, plan, any_size
        self.activations: dict[str, ActivationQuantizer] = {}
        self.weights: dict[str, WeightQuantizer] = {}
        self.biases: dict[str, BiasQuantizer] = {}
        self.shifted: dict[str, Tensor] = {}
        self._first_reader: dict[str, str] = {}  # by weight, the name of the block that learns it
        for block in plan.blocks:
            for layer in block.layers:
                self._first_reader.setdefault(layer.weight, block.name)
        self.constants: dict[str, Tensor] = {
            name: getattr(network, str(node.target))
            for name, node in tensor_nodes(network).items()
            if node.op == "get_attr"
        }

    def points(self, block: Block) -> list[Point]:
        """The points that the block writes, in the plan's order."""
        written = {
            name
            for name, node in tensor_nodes(self._network).items()
            if node.op == "call_function" and node.meta.get("onnx_node", "") in block.nodes
        }
        return [point for point in self._plan.points.values() if point.tensor in written]

    def round_biases(self, block: Block, soft: Mapping[str, SoftRounding] | None = None) -> None:
        """Round the block's biases for the scales as they are now; ``soft``: weights that are being learned."""
        for layer in block.layers:
            self.round_bias(layer, soft)

    def round_bias(self, layer: Layer, soft: Mapping[str, SoftRounding] | None = None) -> None:
        """Round the layer's bias, if it has one, likewise."""
        if has_integer_bias(self._plan, layer):
            assert layer.bias is not None
            source = self.activations[str(self._plan.source(layer.input))]
            known = soft[layer.weight].qparams if soft and layer.weight in soft else self.weights[layer.weight]
            self.biases[layer.node] = BiasQuantizer(self.constants[layer.bias], source.scale, known.scale)

    def can_shift_bias(self, layer: Layer) -> bool:
        """Whether the layer has an INT32 bias per channel that nothing else reads."""
        if not has_integer_bias(self._plan, layer) or layer.bias is None or not layer.owns_bias:
            return False
        channels = self.constants[layer.weight].shape[self._plan.points[layer.weight].axis or 0]
        shape = self.constants[layer.bias].shape
        return shape.numel() == channels == shape[-1]

    def is_shared(self, weight: str) -> bool:
        """Whether several layers read this weight tensor."""
        return sum(layer.weight == weight for layer in self._plan.layers) > 1

    def shift_bias(self, layer: Layer, shift: Tensor) -> None:
        """Add ``shift`` [C] to the layer's bias, which `round_bias` then rounds."""
        assert layer.bias is not None
        bias = self.constants[layer.bias].detach()
        self.shifted[layer.bias] = self.constants[layer.bias] = bias + shift.view(bias.shape)

    def block(
        self, block: Block, outputs: Sequence[str], activations: Mapping[str, nn.Module] | None = None
    ) -> fx.GraphModule:
        """The finished block up to ``outputs``, with all activations quantized or with those given."""
        quantizers = {**self.weights, **(self.activations if activations is None else activations)}
        return extract(self._network, block.inputs, outputs, quantizers=quantizers, biases=self.biases)

    def simulation(self, inputs: Sequence[str], outputs: Sequence[str]) -> fx.GraphModule:
        """The whole network in the runtime's integer arithmetic, for images of any size."""
        return extract(
            self._any_size,
            inputs,
            outputs,
            quantizers={**self.weights, **self.activations},
            biases=self.biases,
            nodes=integer_nodes(self._any_size, self._plan, self.activations, self.weights, self.biases),
            unquantized=self._plan.unquantized,
            whole=True,
        )

    def tensors(self) -> dict[str, QuantizedTensor]:
        """What was learned, for every point of the plan in its order."""
        return {name: self.tensor(point) for name, point in self._plan.points.items()}

    def settled_by(self, block: Block) -> list[Point]:
        """The points whose quantization the block settles: those it writes, and weights that no earlier block reads."""
        weights = dict.fromkeys(
            layer.weight for layer in block.layers if self._first_reader[layer.weight] == block.name
        )
        return [*self.points(block), *(self._plan.points[name] for name in weights)]

    def tensor(self, point: Point) -> QuantizedTensor:
        """What was learned of a finished point."""
        owner = (self.weights if point.role is Role.WEIGHT else self.activations)[point.tensor]
        integers = owner.q.to(torch.int16).cpu().numpy() if isinstance(owner, WeightQuantizer) else None
        return QuantizedTensor(
            point=point,
            scale=_array(owner.scale).astype(np.float32),
            zero_point=_array(owner.zero_point).astype(np.int32),
            integers=integers,
        )


def _array(value: Tensor | int) -> NDArray[Any]:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.array(value)
