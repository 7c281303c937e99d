"""What calibration holds in memory at least, block by block, however much goes to files."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pdq_export.calibrate.forward import FORWARD_BATCH
from pdq_export.calibrate.hardening import rounding_bytes
from pdq_export.calibrate.subgraph import tensor_nodes
from pdq_export.config.method import CalibrationOptions
from pdq_export.spec import Block, Layer, Plan

# Tensors of the largest size that are there at one time, and not in a file: in a pass without gradients, in a step of
# a block (quantizers compute in six of them, gradients and what comes back from a file are more), and behind it.
_FORWARD_TENSORS, _STEP_TENSORS, _REST_TENSORS = 4, 8, 4
_BYTES_OF_WEIGHT = 24  # the soft rounding of a weight, its gradient and Adam's moments, and temporaries


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requirements:
    """Bytes: ``passes`` over images take at any time, ``steps`` by block, and ``rounding`` by block."""

    passes: int
    steps: Mapping[str, int]
    rounding: Mapping[str, int]

    @property
    def most(self) -> int:
        """What calibration takes where it takes most."""
        return max(self.passes, *self.steps.values(), *self.rounding.values())


def find_requirements(
    network: fx.GraphModule, plan: Plan, inputs: Sequence[Tensor], options: CalibrationOptions, count: int
) -> Requirements:
    """From the sizes of all tensors for the one image of ``inputs``; calibration has ``count`` of them."""
    found = _Tensors(network).of(*inputs)
    images, step_images = min(count, FORWARD_BATCH), min(count, options.batch_size)
    learns = options.iters > 0 and (options.learn_rounding or options.learn_scales)
    rounds = learns and options.learn_rounding and options.compensate_rounding
    steps, rounding = {}, {}
    behind = 0
    for block in reversed(plan.blocks):
        largest = max((found[name].nbytes for name in _names(network, block) if name in found), default=0)
        weights = sum(found[layer.weight].numel() for layer in block.layers if layer.weight in found)
        predicts = options.prediction_difference and behind > 0
        one = max(_STEP_TENSORS * largest * 2, _REST_TENSORS * behind) if predicts else _STEP_TENSORS * largest
        steps[block.name] = one * step_images + _BYTES_OF_WEIGHT * weights if learns else 0
        rounding[block.name] = max(
            (_rounding(network, plan, layer, found) for layer in block.layers if rounds), default=0
        )
        behind = max(behind, largest)
    largest = max((x.nbytes for x in found.values()), default=0)
    return Requirements(passes=_FORWARD_TENSORS * largest * images, steps=steps, rounding=rounding)


def _rounding(network: fx.GraphModule, plan: Plan, layer: Layer, found: Mapping[str, Tensor]) -> int:
    weight, output = found.get(layer.weight), found.get(layer.output)
    if weight is None or output is None:
        return 0
    channels = weight.shape[plan.points[layer.weight].axis or 0]
    groups: Any = tensor_nodes(network)[layer.output].kwargs.get("group", 1)
    return rounding_bytes(int(groups), weight.numel() // channels, weight.numel(), output.numel() // channels)


def _names(network: fx.GraphModule, block: Block) -> set[str]:
    nodes = (node for node in network.graph.nodes if "tensor" in node.meta)
    return {*block.inputs, *(node.meta["tensor"] for node in nodes if node.meta.get("onnx_node") in block.nodes)}


class _Tensors(fx.Interpreter):
    """Runs a network and notes the shapes and types of its tensors, by ONNX name, as tensors without data."""

    def of(self, *inputs: Tensor) -> dict[str, Tensor]:
        self.found: dict[str, Tensor] = {}
        with torch.no_grad():
            self.run(*inputs)
        return self.found

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if "tensor" in n.meta and isinstance(result, Tensor):
            self.found[n.meta["tensor"]] = torch.empty_like(result, device="meta")
        return result
