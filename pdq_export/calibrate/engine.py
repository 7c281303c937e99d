"""PD-Quant over a whole network: scale search, correction, reconstruction, block by block."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from pdq_export.calibrate.correction import correct_distribution, estimate_statistics
from pdq_export.calibrate.integer import integer_nodes
from pdq_export.calibrate.losses import class_axis
from pdq_export.calibrate.prediction import find_prediction
from pdq_export.calibrate.quantizers import (
    ActivationQuantizer,
    BiasQuantizer,
    DroppingQuantizer,
    SoftRounding,
    WeightQuantizer,
    weight_qparams,
)
from pdq_export.calibrate.reconstruct import BlockProblem, reconstruct
from pdq_export.calibrate.subgraph import extract, reachable, tensor_nodes
from pdq_export.errors import CalibrationError
from pdq_export.export.bias import has_integer_bias
from pdq_export.numerics.search import QParams, choose_activation_qparams
from pdq_export.options import CalibrationOptions
from pdq_export.spec import Block, ChannelStatistics, Plan, Point, QuantizedTensor, QuantizedTensors, Role

logger = logging.getLogger(__name__)

# Batch for passes that need no gradient.
_PASS_BATCH = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockProgress:
    """Where calibration is: ``step`` of ``steps`` in block ``index`` (from 0) of ``count``; ``loss`` of that step."""

    block: str
    index: int
    count: int
    step: int
    steps: int
    loss: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What calibration gives.

    ``tensors``: what was learned. ``simulation``: the quantized network in torch, in the runtime's integer arithmetic;
    returns the graph's outputs in order.
    """

    tensors: QuantizedTensors
    simulation: fx.GraphModule


def calibrate(
    network: fx.GraphModule,
    plan: Plan,
    statistics: Mapping[str, ChannelStatistics],
    inputs: Sequence[Tensor],
    options: CalibrationOptions,
    *,
    device: torch.device,
    progress: Callable[[BlockProgress], None] | None = None,
) -> Calibrated:
    """Calibrate ``network`` (FP32, imported from ONNX) on ``inputs``, one tensor [N, ...] per graph input.

    ``statistics`` by layer output; layers without them get estimates over the calibration set. Raises
    CalibrationError where a loss diverges.
    """
    engine = _Engine(network.to(device), plan, statistics, options, device)
    with torch.random.fork_rng(devices=[]):
        return engine.run([x.to(device) for x in inputs], progress or (lambda _: None))


class _Engine:
    """Holds what passes from block to block: finished quantizers and the tensors that later blocks read."""

    def __init__(
        self,
        network: fx.GraphModule,
        plan: Plan,
        statistics: Mapping[str, ChannelStatistics],
        options: CalibrationOptions,
        device: torch.device,
    ) -> None:
        self.network = network
        self.plan = plan
        self.statistics = dict(statistics)
        self.options = options
        self.generator = torch.Generator(device).manual_seed(options.seed)
        self.activations: dict[str, ActivationQuantizer] = {}
        self.weights: dict[str, WeightQuantizer] = {}
        self.biases: dict[str, BiasQuantizer] = {}
        self.full: dict[str, Tensor] = {}  # FP32 values of live tensors
        self.quantized: dict[str, Tensor] = {}  # the same tensors in the network whose earlier blocks are quantized
        self.predictions: dict[str, Tensor] = {}
        self.graph_inputs = [n.meta["tensor"] for n in network.graph.nodes if n.op == "placeholder"]
        self.graph_outputs = _output_tensors(network)
        found = {name: find_prediction(network, name) for name in self.graph_outputs}
        self.prediction_of = {name: prediction.tensor for name, prediction in found.items()}
        self.class_axes = {prediction.tensor: prediction.class_axis for prediction in found.values()}
        self.constants = {
            name: getattr(network, str(node.target))
            for name, node in tensor_nodes(network).items()
            if node.op == "get_attr"
        }

    def run(self, inputs: Sequence[Tensor], progress: Callable[[BlockProgress], None]) -> Calibrated:
        self._begin(inputs)
        blocks = self.plan.blocks
        for position, block in enumerate(blocks):
            logger.info("block %d of %d: %s", position + 1, len(blocks), block.name)

            def report(step: int, loss: float, block: Block = block, position: int = position) -> None:
                progress(
                    BlockProgress(
                        block=block.name,
                        index=position,
                        count=len(blocks),
                        step=step,
                        steps=self.options.iters,
                        loss=loss,
                    )
                )

            self._calibrate_block(block, blocks[position + 1 :], report)
            self._advance(block, blocks[position + 1 :])
        return Calibrated(tensors=self._tensors(), simulation=self._simulation())

    def _begin(self, inputs: Sequence[Tensor]) -> None:
        names = list(dict.fromkeys(self.prediction_of.values()))
        values = _run(extract(self.network, self.graph_inputs, names), inputs)
        self.predictions = {n: v for n, v in zip(names, values, strict=True) if v.is_floating_point()}
        if self.options.prediction_difference:
            self.class_axes = {
                name: class_axis(self.options.output_loss, self.class_axes[name], x.shape, name)
                for name, x in self.predictions.items()
            }
        for name, x in (*zip(self.graph_inputs, inputs, strict=True), *self.predictions.items()):
            if not torch.isfinite(x).all():
                raise CalibrationError(
                    f"tensor {name!r}: it holds NaN or infinity on the calibration images, before any quantization; "
                    "expected finite numbers; check the images and their normalization"
                )
        for name, x in zip(self.graph_inputs, inputs, strict=True):
            self.full[name] = self.quantized[name] = x
            if name in self.plan.points:
                point = self.plan.points[name]
                self.activations[name] = ActivationQuantizer(point, self._search(x, point))
                with torch.no_grad():
                    self.quantized[name] = self.activations[name](x)

    def _search(self, x: Tensor, point: Point) -> QParams:
        return choose_activation_qparams(x[: self.options.search_samples], point.bits, symmetric=point.symmetric)

    def _calibrate_block(self, block: Block, later: Sequence[Block], report: Callable[[int, float], None]) -> None:
        full = [self.full[name] for name in block.inputs]
        quantized = [self.quantized[name] for name in block.inputs]
        points = self._points_inside(block)
        self._initialize_activations(block, points, quantized)
        soft = self._initialize_weights(block)
        learned = [self.activations[p.tensor] for p in points if p.role is Role.ACTIVATION]
        scales = learned if self.options.learn_scales else []
        if self.options.iters and (soft or scales):
            corrected = self._correct(block, full)
            self._reconstruct(block, later, points, soft, scales, quantized, corrected, report)
        for name, weight in soft.items():
            self.weights[name] = weight.harden()
        self._round_biases(block)
        self._settle_carriers(block, points, quantized)
        self._round_biases(block)  # a carrier may be a layer's input

    def _points_inside(self, block: Block) -> list[Point]:
        known = tensor_nodes(self.network)
        written = {
            name for name, node in known.items() if node.op == "call_function" and _onnx_node(node) in block.nodes
        }
        return [point for point in self.plan.points.values() if point.tensor in written]

    def _initialize_activations(self, block: Block, points: Sequence[Point], quantized: Sequence[Tensor]) -> None:
        probe = extract(self.network, block.inputs, [point.tensor for point in points])
        head = [x[: self.options.search_samples] for x in quantized]
        for point, x in zip(points, _run(probe, head), strict=True):
            self.activations[point.tensor] = ActivationQuantizer(point, self._search(x, point))

    def _initialize_weights(self, block: Block) -> dict[str, SoftRounding]:
        """Scale search for the block's weights; those whose rounding is to be learned are returned."""
        soft: dict[str, SoftRounding] = {}
        for layer in block.layers:
            if layer.weight in self.weights or layer.weight in soft:
                continue  # shared with an earlier layer
            point, weight = self.plan.points[layer.weight], self.constants[layer.weight]
            qparams = weight_qparams(weight, point)
            if self.options.learn_rounding and self.options.iters:
                soft[layer.weight] = SoftRounding(point, weight, qparams)
            else:
                self.weights[layer.weight] = WeightQuantizer.nearest(point, weight, qparams)
        return soft

    def _correct(self, block: Block, full: Sequence[Tensor]) -> list[Tensor]:
        """Distribution correction of the block's only input; a block with several keeps its FP32 inputs."""
        if self.options.correction_iters == 0 or len(full) != 1:
            return list(full)
        outputs = [layer.output for layer in block.layers if layer.op_type in ("Conv", "ConvTranspose")]
        missing = [name for name in outputs if name not in self.statistics]
        if missing:
            batches = zip(*(x.split(_PASS_BATCH) for x in full), strict=True)
            probe = extract(self.network, block.inputs, missing)
            self.statistics.update(zip(missing, estimate_statistics(probe, batches), strict=True))
        if not outputs:
            return list(full)
        layer_outputs = extract(self.network, block.inputs, outputs)
        return [correct_distribution(layer_outputs, [self.statistics[name] for name in outputs], full[0], self.options)]

    def _reconstruct(
        self,
        block: Block,
        later: Sequence[Block],
        points: Sequence[Point],
        soft: Mapping[str, SoftRounding],
        scales: Sequence[ActivationQuantizer],
        quantized: Sequence[Tensor],
        corrected: Sequence[Tensor],
        report: Callable[[int, float], None],
    ) -> None:
        outputs = self._compared(block, later)
        targets = _run(extract(self.network, block.inputs, outputs), corrected)
        tail = None
        ends = reachable(self.network, outputs, list(self.predictions))
        bypass = [name for name in _read_by(later) if name in self.full and name not in outputs]
        if self.options.prediction_difference and ends:
            tail = extract(self.network, [*outputs, *bypass], ends)
        self._round_biases(block, soft)
        problem = BlockProblem(
            name=block.name,
            student=self._student(block, outputs, points, soft),
            tail=tail,
            quantized_inputs=quantized,
            corrected_inputs=corrected,
            targets=targets,
            bypass=[self.full[name] for name in bypass],
            predictions=[self.predictions[name] for name in ends],
            class_axes=[self.class_axes[name] for name in ends],
            weights=list(soft.values()),
            scales=scales,
        )
        reconstruct(problem, self.options, self.generator, report)

    def _compared(self, block: Block, later: Sequence[Block]) -> list[str]:
        """The outputs whose error counts; for a graph output that nobody reads, what lies before its Softmax."""
        read = _read_by(later)
        return list(
            dict.fromkeys(name if name in read else self.prediction_of.get(name, name) for name in block.outputs)
        )

    def _student(
        self, block: Block, outputs: Sequence[str], points: Iterable[Point], soft: Mapping[str, SoftRounding]
    ) -> fx.GraphModule:
        """The block while it learns: soft weights, and activations that drop their quantization at random."""
        quantizers: dict[str, nn.Module] = {**self.weights, **soft}
        for point in points:
            quantizer = self.activations[point.tensor]
            drops = point.role is Role.ACTIVATION and self.options.keep_probability > 0
            quantizers[point.tensor] = (
                DroppingQuantizer(quantizer, self.options.keep_probability, self.generator) if drops else quantizer
            )
        return extract(self.network, block.inputs, outputs, quantizers=quantizers, biases=self.biases)

    def _round_biases(self, block: Block, soft: Mapping[str, SoftRounding] | None = None) -> None:
        for layer in block.layers:
            if has_integer_bias(self.plan, layer):
                assert layer.bias is not None
                source = self.activations[str(self.plan.source(layer.input))]
                known = soft[layer.weight].qparams if soft and layer.weight in soft else self.weights[layer.weight]
                self.biases[layer.node] = BiasQuantizer(self.constants[layer.bias], source.scale, known.scale)

    def _settle_carriers(self, block: Block, points: Sequence[Point], quantized: Sequence[Tensor]) -> None:
        """Fit the 8-bit pairs to the finished block, one after the other, since each changes what the next one sees."""
        settled = {p.tensor: self.activations[p.tensor] for p in points if p.role is Role.ACTIVATION}
        for point in points:
            if point.role is not Role.CARRIER:
                continue
            probe = self._quantized_block(block, settled, [point.tensor])
            (x,) = _run(probe, [v[: self.options.search_samples] for v in quantized])
            self.activations[point.tensor] = ActivationQuantizer(point, self._search(x, point))
            settled[point.tensor] = self.activations[point.tensor]

    def _quantized_block(
        self, block: Block, activations: Mapping[str, nn.Module], outputs: Sequence[str]
    ) -> fx.GraphModule:
        return extract(
            self.network,
            block.inputs,
            outputs,
            quantizers={**self.weights, **activations},
            biases=self.biases,
        )

    def _advance(self, block: Block, later: Sequence[Block]) -> None:
        """Compute the block's outputs in both networks and forget what no later block reads."""
        full = [self.full[name] for name in block.inputs]
        quantized = [self.quantized[name] for name in block.inputs]
        plain = extract(self.network, block.inputs, block.outputs)
        finished = self._quantized_block(block, self.activations, block.outputs)
        self.full.update(zip(block.outputs, _run(plain, full), strict=True))
        self.quantized.update(zip(block.outputs, _run(finished, quantized), strict=True))
        needed = _read_by(later)
        for store in (self.full, self.quantized):
            for name in set(store) - set(needed):
                del store[name]

    def _simulation(self) -> fx.GraphModule:
        return extract(
            self.network,
            self.graph_inputs,
            self.graph_outputs,
            quantizers={**self.weights, **self.activations},
            biases=self.biases,
            nodes=integer_nodes(self.network, self.plan, self.activations, self.weights, self.biases),
            whole=True,
        )

    def _tensors(self) -> dict[str, QuantizedTensor]:
        result = {}
        for name, point in self.plan.points.items():
            owner = self.weights[name] if point.role is Role.WEIGHT else self.activations[name]
            integers = owner.q.to(torch.int16).cpu().numpy() if isinstance(owner, WeightQuantizer) else None
            result[name] = QuantizedTensor(
                point=point,
                scale=_array(owner.scale).astype(np.float32),
                zero_point=_array(owner.zero_point).astype(np.int32),
                integers=integers,
            )
        return result


def _read_by(blocks: Sequence[Block]) -> dict[str, None]:
    """Everything that one of the blocks reads from outside, in order."""
    return dict.fromkeys(name for block in blocks for name in block.inputs)


def _array(value: Tensor | int) -> NDArray[Any]:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.array(value)


def _onnx_node(node: fx.Node) -> str:
    return str(node.meta.get("onnx_node", ""))


def _output_tensors(network: fx.GraphModule) -> list[str]:
    (output,) = (node for node in network.graph.nodes if node.op == "output")
    return [argument.meta["tensor"] for argument in output.args[0]]


@torch.no_grad()
def _run(module: fx.GraphModule, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs of ``module`` over the whole first axis, batch by batch."""
    batches = zip(*(x.split(_PASS_BATCH) for x in inputs), strict=True)
    results = [module(*batch) for batch in batches]
    return [torch.cat(parts) for parts in zip(*results, strict=True)]
