"""PD-Quant over a whole network: scale search, correction, reconstruction, block by block."""

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from pdq_export.advice import remedies
from pdq_export.calibrate.cache import Cache, Store
from pdq_export.calibrate.correction import correct_distribution, estimate_statistics
from pdq_export.calibrate.fitting import ActivationFitter
from pdq_export.calibrate.hardening import harden_block, hardening_bytes
from pdq_export.calibrate.losses import class_axis
from pdq_export.calibrate.memory import STEP_IMAGES, step_bytes, trim_heap
from pdq_export.calibrate.passes import PASS_BATCH, run_pass, run_probe, spread
from pdq_export.calibrate.precision import settled_torch
from pdq_export.calibrate.prediction import find_predictions, images_first, put_images_first
from pdq_export.calibrate.quantizers import (
    ActivationQuantizer,
    DroppingQuantizer,
    SoftRounding,
    WeightQuantizer,
    weight_qparams,
)
from pdq_export.calibrate.reconstruct import BlockProblem, reconstruct
from pdq_export.calibrate.requirements import find_requirements
from pdq_export.calibrate.schedule import batch_generator, draw_batches, mask_generator
from pdq_export.calibrate.sizes import FOLDING_IMAGES, fold_sizes
from pdq_export.calibrate.state import Quantizers
from pdq_export.calibrate.subgraph import extract, input_tensors, reachable, tensor_nodes
from pdq_export.calibrate.watch import steepest_rise, warn_of_collapse
from pdq_export.config.method import CalibrationOptions
from pdq_export.errors import CalibrationError
from pdq_export.numerics.search import choose_activation_qparams
from pdq_export.spec import Block, ChannelStatistics, Plan, Point, QuantizedTensors, Role

logger = logging.getLogger(__name__)

# Images at a time of the finished simulation, whose additions in float64 take three times FP32's memory.
_COLLAPSE_BATCH = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockProgress:
    """Where calibration is: ``step`` of ``steps`` in block ``index`` (from 0) of ``count``; ``loss`` of that step.

    ``phase``: what is done before and after the steps, with how far it is; empty while they are taken.
    """

    block: str
    index: int
    count: int
    step: int
    steps: int
    loss: float
    phase: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What calibration gives.

    ``tensors``: what was learned. ``biases``: those that it has changed, by tensor. ``simulation``: the quantized
    network in torch, in the runtime's integer arithmetic; returns the graph's outputs in order. ``predictions``: by
    output, the tensors at which its prediction difference was measured; empty where it was not.
    """

    tensors: QuantizedTensors
    biases: Mapping[str, NDArray[np.float32]]
    simulation: fx.GraphModule
    predictions: Mapping[str, Sequence[str]]


@settled_torch()
def calibrate(
    network: fx.GraphModule,
    plan: Plan,
    statistics: Mapping[str, ChannelStatistics],
    inputs: Sequence[Tensor],
    options: CalibrationOptions,
    *,
    device: torch.device,
    max_memory: int | None = None,
    progress: Callable[[BlockProgress], None] | None = None,
) -> Calibrated:
    """Calibrate ``network`` (FP32, imported from ONNX) on ``inputs``, one tensor [N, ...] per graph input.

    ``statistics`` by layer output; layers without them get estimates over the calibration set. ``max_memory``: bytes
    of host memory that the whole process shall keep to; block inputs and outputs beyond it go to files, and the result
    stays the same bit for bit. Raises CalibrationError where a loss diverges or the disk has no room, OptionError
    where ``max_memory`` cannot hold what a pass or a step takes.
    """
    network = network.to(device)
    store = Store.of_process(device, max_memory)
    try:
        folded = fold_sizes(network, [x[:FOLDING_IMAGES].to(device) for x in inputs])
        engine = _Engine(folded, network, plan, statistics, options, store)
        engine.progress = progress or engine.progress
        return engine.run([store.adopt(x) for x in inputs])
    finally:
        store.close()
        trim_heap()


class _Engine:
    """Holds what passes from block to block: finished quantizers and the tensors that later blocks read.

    ``network``: for images of the calibration's size. ``any_size``: the same for others, which may be evaluated on.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        any_size: fx.GraphModule,
        plan: Plan,
        statistics: Mapping[str, ChannelStatistics],
        options: CalibrationOptions,
        store: Store,
    ) -> None:
        self.network = network
        self.plan = plan
        self.statistics = dict(statistics)
        self.options = options
        self.store = store
        self.done = Quantizers(network, plan, any_size)
        self.fitter = ActivationFitter(plan, self.done)
        self.full: dict[str, Cache] = {}  # FP32 values of live tensors
        self.quantized: dict[str, Cache] = {}  # the same tensors in the network whose earlier blocks are quantized
        self.predictions: dict[str, Cache] = {}
        self.graph_inputs = input_tensors(network)
        self.graph_outputs = _output_tensors(network)
        self.prediction_of: dict[str, list[str]] = {}  # by graph output
        self.class_axes: dict[str, int | None] = {}
        self.least: Mapping[str, int] = {}  # bytes that the steps of a block take whatever goes to a file
        self.progress: Callable[[BlockProgress], None] = lambda _: None
        self.place = BlockProgress(
            block=plan.blocks[0].name if plan.blocks else "",
            index=0,
            count=len(plan.blocks),
            step=0,
            steps=options.iters,
            loss=0.0,
        )

    def _tell(self, phase: str) -> None:
        self.progress(dataclasses.replace(self.place, phase=phase))

    def run(self, inputs: Sequence[Cache]) -> Calibrated:
        chosen = spread(len(inputs[0]), PASS_BATCH).to(self.store.device)
        some = [x[chosen] for x in inputs]
        if self.store.limited:
            needed = find_requirements(self.network, self.plan, [x[:1] for x in some], self.options, len(inputs[0]))
            self.store.require(needed.most, needed.passes, self.options.batch_size)
            self.least = needed.steps
        self._find_predictions(some)
        self._begin(inputs)
        blocks = self.plan.blocks
        for position, block in enumerate(blocks):
            logger.info("block %d of %d: %s", position + 1, len(blocks), block.name)
            self.place = dataclasses.replace(self.place, block=block.name, index=position)
            self._calibrate_block(position, block, blocks[position + 1 :], self._report)
            self._advance(block, blocks[position + 1 :])
        simulation = self.done.simulation(self.graph_inputs, self.graph_outputs)
        self._look_for_collapse(simulation, some)
        biases = {name: bias.cpu().numpy() for name, bias in self.done.shifted.items()}
        predictions = self.prediction_of if self.options.prediction_difference else {}
        return Calibrated(tensors=self.done.tensors(), biases=biases, simulation=simulation, predictions=predictions)

    def _told_of_images(self, what: str) -> Callable[[int, int], None]:
        return lambda done, count: self._tell(f"{what}, {done} of {count} images")

    def _report(self, step: int, loss: float) -> None:
        self.progress(dataclasses.replace(self.place, step=step, loss=loss))

    @torch.no_grad()
    def _look_for_collapse(self, simulation: fx.GraphModule, some: Sequence[Tensor]) -> None:
        # Equal parts: a last one of a single image could have another shape.
        count = math.ceil(len(some[0]) / _COLLAPSE_BATCH)
        parts = list(zip(*(x.tensor_split(count) for x in some), strict=True))
        full, quantized = ([module(*part) for part in parts] for module in (self.network, simulation))
        for name, *pair in zip(self.graph_outputs, zip(*full, strict=True), zip(*quantized, strict=True), strict=True):
            a, b = ([self._images_first(name, x) for x in values] for values in pair)
            # Numbers without an image of their own, which need not even fit each other, have no spread over images.
            if all(x.ndim and len(x) == len(part[0]) for x, part in zip(a, parts, strict=True)):
                warn_of_collapse(name, torch.cat(a), torch.cat(b), functools.partial(self._advise, parts))

    def _images_first(self, name: str, x: Tensor) -> Tensor:
        place = self.network.meta.get("images", {}).get(name)
        return images_first(x, place.axis, place.outer, place.inner) if place and place.fits(x.shape) else x

    def _advise(self, parts: Sequence[Sequence[Tensor]]) -> str:
        """What to do about a collapse, and where it happens."""
        handed_on = dict.fromkeys(name for block in self.plan.blocks for name in block.outputs)
        names = [name for name in handed_on if name not in self.graph_outputs]
        full, quantized = (
            extract(self.network, self.graph_inputs, names),
            self.done.simulation(self.graph_inputs, names),
        )
        sums = torch.zeros(2, len(names), dtype=torch.float64)
        for part in parts:
            for number, (x, y) in enumerate(zip(full(*part), quantized(*part), strict=True)):
                sums[:, number] += torch.stack([(y - x).double().square().sum(), x.double().square().sum()]).cpu()
        errors = dict(zip(names, (sums[0] / sums[1].clamp(min=1e-30)).sqrt().tolist(), strict=True))
        where = f" ({steepest_rise(errors, self.plan.blocks)})" if names else ""
        return f"{remedies(self.plan.points.values(), self.options)}{where}"

    def _find_predictions(self, some: Sequence[Tensor]) -> None:
        found = {
            name: [put_images_first(self.network, prediction) for prediction in predictions]
            for name, predictions in find_predictions(self.network, [x[:1] for x in some], self.plan.parts).items()
        }
        self.prediction_of = {name: [p.tensor for p in predictions] for name, predictions in found.items()}
        # of two outputs with the same scores, one of them behind an ArgMax, that one knows the axis
        by_axis = sorted(itertools.chain.from_iterable(found.values()), key=lambda p: p.class_axis is not None)
        self.class_axes = {prediction.tensor: prediction.class_axis for prediction in by_axis}

    def _begin(self, inputs: Sequence[Cache]) -> None:
        names = list(dict.fromkeys(itertools.chain.from_iterable(self.prediction_of.values())))
        network = extract(self.network, self.graph_inputs, names)
        values = run_pass(network, inputs, names, self.store, told=self._told_of_images("FP32 network"))
        self.predictions = values
        if self.options.prediction_difference:
            self.class_axes = {
                name: class_axis(self.options.output_loss, self.class_axes[name], x.shape, name)
                for name, x in self.predictions.items()
            }
        for name, x in (*zip(self.graph_inputs, inputs, strict=True), *self.predictions.items()):
            if not all(torch.isfinite(batch).all() for batch in x.batches(PASS_BATCH)):
                raise CalibrationError(
                    f"tensor {name!r}: it holds NaN or infinity on the calibration images, before any quantization; "
                    "expected finite numbers; check the images and their normalization"
                )
            if len(x) != len(inputs[0]):
                raise CalibrationError(
                    f"tensor {name!r}: its first axis has {len(x)} rows for {len(inputs[0])} images; expected one an "
                    "image; export the network so that axis 0 of what it predicts counts images, or without the nodes "
                    "that move or merge it"
                )
        for name, x in zip(self.graph_inputs, inputs, strict=True):
            self.full[name] = self.quantized[name] = x
            if name in self.plan.points:
                point = self.plan.points[name]
                head = x.batches(PASS_BATCH, self.options.search_samples)
                quantizer = ActivationQuantizer(
                    point, choose_activation_qparams(head, point.bits, symmetric=point.symmetric)
                )
                self.done.activations[name] = quantizer
                self.quantized[name] = self.store.new(x.shape, x.dtype, quantizer)
                with torch.no_grad():
                    for batch in x.batches(PASS_BATCH):
                        self.quantized[name].append(quantizer(batch))

    def _calibrate_block(
        self, position: int, block: Block, later: Sequence[Block], report: Callable[[int, float], None]
    ) -> None:
        quantized = [self.quantized[name] for name in block.inputs]
        points = self._points_inside(block)
        self._initialize_activations(block, points, quantized)
        soft = self._initialize_weights(block)
        learned = [self.done.activations[p.tensor] for p in points if p.role is Role.ACTIVATION]
        scales = learned if self.options.learn_scales else []
        if self.options.iters and (soft or scales):
            self._reconstruct(position, block, later, points, soft, scales, report)
            self.store.reserve(0)
        if soft and self.options.compensate_rounding:
            self.store.reserve(hardening_bytes(self.network, block, soft))
            self.done.round_biases(block, soft)
            self._tell("compensated rounding")
            harden_block(self.network, self.done, block, soft, quantized)
            self.store.reserve(0)
        else:
            self.done.weights.update((name, weight.harden()) for name, weight in soft.items())
        self.done.round_biases(block)
        self._settle_carriers(block, points, quantized)
        self.done.round_biases(block)  # a carrier may be a layer's input

    def _points_inside(self, block: Block) -> list[Point]:
        known = tensor_nodes(self.network)
        written = {
            name for name, node in known.items() if node.op == "call_function" and _onnx_node(node) in block.nodes
        }
        return [point for point in self.plan.points.values() if point.tensor in written]

    def _initialize_activations(self, block: Block, points: Sequence[Point], quantized: Sequence[Cache]) -> None:
        self._tell("activation scales")
        probe = extract(self.network, block.inputs, [point.tensor for point in points])
        values = run_probe(probe, quantized, self.store, self.options.search_samples)
        for point, x in zip(points, values, strict=True):
            self.done.activations[point.tensor] = self.fitter.fit(x, point)

    def _initialize_weights(self, block: Block) -> dict[str, SoftRounding]:
        """Scale search for the block's weights; those whose rounding is to be learned are returned."""
        soft: dict[str, SoftRounding] = {}
        for number, layer in enumerate(block.layers, 1):
            if layer.weight in self.done.weights or layer.weight in soft:
                continue  # shared with an earlier layer
            self._tell(f"weight scales, layer {number} of {len(block.layers)}")
            point, weight = self.plan.points[layer.weight], self.done.constants[layer.weight]
            qparams = weight_qparams(weight, point)
            if self.options.learn_rounding and self.options.iters:
                soft[layer.weight] = SoftRounding(point, weight, qparams)
            else:
                self.done.weights[layer.weight] = WeightQuantizer.nearest(point, weight, qparams)
        return soft

    def _correct(self, block: Block, full: Sequence[Cache]) -> list[Cache]:
        """Distribution correction of the block's only input; a block with several keeps its FP32 inputs.

        What has one position an image (the layers of squeeze and excitation) has no distribution over positions.
        """
        if self.options.correction_iters == 0:
            return list(full)
        if len(full) != 1:
            logger.info("block %s: it has %d inputs, so none is corrected", block.name, len(full))
            return list(full)
        outputs = [layer.output for layer in block.layers if layer.op_type in ("Conv", "ConvTranspose")]
        with torch.no_grad():
            probed = extract(self.network, block.inputs, outputs)(full[0].slice(0, 1)) if outputs else ()
        outputs = [name for name, z in zip(outputs, probed, strict=True) if z.ndim > 2 and z[0, 0].numel() > 1]
        missing = [name for name in outputs if name not in self.statistics]
        if missing:
            batches = zip(*(x.batches(PASS_BATCH) for x in full), strict=True)
            probe = extract(self.network, block.inputs, missing)
            self.statistics.update(zip(missing, estimate_statistics(probe, batches), strict=True))
        if not outputs:
            return list(full)
        layer_outputs = extract(self.network, block.inputs, outputs)
        statistics = [self.statistics[name] for name in outputs]
        told = self._told_of_images("correction")
        corrected = self.store.new(full[0].shape, full[0].dtype)
        for batch in full[0].batches(self.options.batch_size):
            corrected.append(correct_distribution(layer_outputs, statistics, batch, self.options))
            told(len(corrected), len(full[0]))
        return [corrected]

    def _reconstruct(
        self,
        position: int,
        block: Block,
        later: Sequence[Block],
        points: Sequence[Point],
        soft: Mapping[str, SoftRounding],
        scales: Sequence[ActivationQuantizer],
        report: Callable[[int, float], None],
    ) -> None:
        outputs = self._compared(block, later)
        tail = None
        ends = reachable(self.network, outputs, list(self.predictions))
        names = [name for name in _read_by(later) if name in self.full and name not in outputs]
        if self.options.prediction_difference and ends:
            tail = extract(self.network, [*outputs, *names], ends)
        self.done.round_biases(block, soft)
        masks = mask_generator(self.options.seed, position, self.store.device)
        student = self._student(block, outputs, points, soft, masks)
        quantized = [self.quantized[name] for name in block.inputs]
        bypass = [self.full[name] for name in names]
        if self.store.limited and len(quantized[0]) > STEP_IMAGES:
            # with masks of its own, so that the block draws the same whether it is measured or not
            measured = self._student(block, outputs, points, soft, torch.Generator(self.store.device))
            self._leave_room(block, measured, tail, quantized, bypass)
        corrected = self._correct(block, [self.full[name] for name in block.inputs])
        target = extract(self.network, block.inputs, outputs)
        targets = run_pass(target, corrected, outputs, self.store, told=self._told_of_images("targets"))
        problem = BlockProblem(
            name=block.name,
            student=student,
            tail=tail,
            quantized_inputs=quantized,
            corrected_inputs=corrected,
            targets=list(targets.values()),
            bypass=bypass,
            predictions=[self.predictions[name] for name in ends],
            class_axes=[self.class_axes[name] for name in ends],
            weights=list(soft.values()),
            scales=scales,
        )
        images, generator = len(problem.targets[0]), batch_generator(self.options.seed, position)
        batches = draw_batches(images, self.options.batch_size, self.options.iters, generator)
        trim_heap()  # what was freed so far lies in holes that the tensors of a step do not fit into
        with self.store.step([student] if tail is None else [student, tail]):
            reconstruct(problem, self.options, batches, masks, report)

    def _leave_room(
        self,
        block: Block,
        student: fx.GraphModule,
        tail: fx.GraphModule | None,
        quantized: Sequence[Cache],
        bypass: Sequence[Cache],
    ) -> None:
        """Let caches make way for what a step needs."""
        inputs, beside = ([x.slice(0, STEP_IMAGES) for x in caches] for caches in (quantized, bypass))
        needed = step_bytes(student, tail, inputs, beside, self.options.batch_size)
        least = self.least.get(block.name, 0)
        self.store.reserve(needed + least, least=least)

    def _compared(self, block: Block, later: Sequence[Block]) -> list[str]:
        """The outputs whose error counts; for a graph output that nobody reads, what lies before its Softmax."""
        read = _read_by(later)
        names = ([name] if name in read else self.prediction_of.get(name, [name]) for name in block.outputs)
        return list(dict.fromkeys(itertools.chain.from_iterable(names)))

    def _student(
        self,
        block: Block,
        outputs: Sequence[str],
        points: Iterable[Point],
        soft: Mapping[str, SoftRounding],
        masks: torch.Generator,
    ) -> fx.GraphModule:
        """The block while it learns: soft weights, and activations that drop their quantization at random."""
        quantizers: dict[str, nn.Module] = {**self.done.weights, **soft}
        for point in points:
            quantizer = self.done.activations[point.tensor]
            drops = point.role is Role.ACTIVATION and self.options.keep_probability > 0
            quantizers[point.tensor] = (
                DroppingQuantizer(quantizer, self.options.keep_probability, masks) if drops else quantizer
            )
        return extract(self.network, block.inputs, outputs, quantizers=quantizers, biases=self.done.biases)

    def _settle_carriers(self, block: Block, points: Sequence[Point], quantized: Sequence[Cache]) -> None:
        """Fit the 8-bit pairs to the finished block, one after the other, since each changes what the next one sees."""
        settled = {p.tensor: self.done.activations[p.tensor] for p in points if p.role is Role.ACTIVATION}
        for point in points:
            if point.role is not Role.CARRIER:
                continue
            probe = self.done.block(block, [point.tensor], settled)
            (x,) = run_probe(probe, quantized, self.store, self.options.search_samples)
            self.done.activations[point.tensor] = self.fitter.fit(x, point)
            settled[point.tensor] = self.done.activations[point.tensor]

    def _advance(self, block: Block, later: Sequence[Block]) -> None:
        """Compute what later blocks read of the outputs, in one network after the other, and forget the rest."""
        needed = _read_by(later)
        outputs = [name for name in block.outputs if name in needed]
        plain = extract(self.network, block.inputs, outputs)
        finished = self.done.block(block, outputs)
        for live, module, quantizers in ((self.full, plain, {}), (self.quantized, finished, self.done.activations)):
            inputs = [live[name] for name in block.inputs]
            if outputs:
                live.update(run_pass(module, inputs, outputs, self.store, quantizers=quantizers))
            del inputs
            for name in set(live) - set(needed):
                del live[name]


def _read_by(blocks: Sequence[Block]) -> dict[str, None]:
    """Everything that one of the blocks reads from outside, in order."""
    return dict.fromkeys(name for block in blocks for name in block.inputs)


def _onnx_node(node: fx.Node) -> str:
    return str(node.meta.get("onnx_node", ""))


def _output_tensors(network: fx.GraphModule) -> list[str]:
    (output,) = (node for node in network.graph.nodes if node.op == "output")
    return [argument.meta["tensor"] for argument in output.args[0]]
