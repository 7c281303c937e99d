"""One block, from searched scales to integers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from pdq_export.calibrate.block_state import BlockRecord
from pdq_export.calibrate.cache import Cache
from pdq_export.calibrate.captured import Capture
from pdq_export.calibrate.context import Context
from pdq_export.calibrate.finished import Quantizers
from pdq_export.calibrate.hardening import harden_block, hardening_bytes
from pdq_export.calibrate.initialize import Initializer
from pdq_export.calibrate.live import Live, read_by
from pdq_export.calibrate.memory import STEP_IMAGES, step_bytes, trim_heap
from pdq_export.calibrate.quantizers import ActivationQuantizer, DroppingQuantizer, SoftRounding
from pdq_export.calibrate.reconstruct import BlockProblem, BlockRows, reconstruct
from pdq_export.calibrate.schedule import batch_generator, draw_batches, mask_generator
from pdq_export.calibrate.scores import Scores
from pdq_export.calibrate.step import BlockModel
from pdq_export.calibrate.subgraph import extract
from pdq_export.calibrate.teacher import Teacher
from pdq_export.config.method import CalibrationOptions
from pdq_export.spec import MAX_BITS, Block, Point, Role


class BlockCalibrator:
    """Calibrates blocks in their order; what they leave behind goes into ``done``.

    ``least``: by block, bytes that its steps take whatever goes to a file.
    """

    def __init__(
        self,
        context: Context,
        done: Quantizers,
        live: Live,
        scores: Scores,
        teacher: Teacher,
        initializer: Initializer,
        least: Mapping[str, int],
    ) -> None:
        self._context, self._done, self._live, self._scores = context, done, live, scores
        self._teacher, self._initializer, self._least = teacher, initializer, least
        self._capture = Capture(context.store.device) if context.options.capture_step else None

    def options(self, block: Block) -> CalibrationOptions:
        """The options of the ``block``, with its own numbers of steps."""
        return self._context.options.for_block(self.fewest_bits(block))

    def fewest_bits(self, block: Block) -> int:
        """Of the block's weights and learned activations."""
        weights = [self._context.plan.points[layer.weight] for layer in block.layers]
        return min((point.bits for point in [*weights, *self._learned_activations(block)]), default=MAX_BITS)

    def calibrate(self, position: int, block: Block, later: Sequence[Block]) -> BlockRecord:
        """Finish the ``block`` at ``position`` of the plan, which ``later`` ones follow."""
        timed, options = self._context.journal.timed, self._context.options
        inputs = [self._live.quantized[name] for name in block.inputs]
        with timed("scales"):
            self._initializer.activations(block, inputs)
            soft = self._initializer.weights(block)
        learned = self._learned_activations(block) if options.learn_scales else []
        scales = [self._done.activations[point.tensor] for point in learned]
        losses = torch.zeros(0)
        if options.iters and (soft or scales):
            losses = self._learn(position, block, later, soft, scales)
            self._context.store.reserve(0)
        with timed("rounding"):
            self._harden(block, soft, inputs)
        with timed("carriers"):
            self._done.round_biases(block)
            self._initializer.carriers(block, inputs)
            self._done.round_biases(block)  # a carrier may be a layer's input
        journal = self._context.journal
        return BlockRecord(losses=losses.cpu().numpy(), seconds=dict(journal.seconds), warnings=tuple(journal.warnings))

    def _learned_activations(self, block: Block) -> list[Point]:
        """The activations that the block writes, without carriers."""
        return [point for point in self._done.points(block) if point.role is Role.ACTIVATION]

    def _learn(
        self,
        position: int,
        block: Block,
        later: Sequence[Block],
        soft: Mapping[str, SoftRounding],
        scales: Sequence[ActivationQuantizer],
    ) -> Tensor:
        """Learn soft weights and scales on what the FP32 block gives; the error of every step."""
        context = self._context
        options = self.options(block)
        problem = self._problem(position, block, later, soft, scales)
        ranks = context.ranks
        images, generator = len(problem.rows.wanted[0]), batch_generator(options.seed, position, ranks.rank)
        batches = draw_batches(images, context.batch_size, options.iters, generator)
        trim_heap()  # what was freed so far lies in holes that the tensors of a step do not fit into
        with context.journal.timed("steps"), context.store.step(problem.model.modules):
            journal, relief = context.journal, [context.store.evict]
            return reconstruct(problem, options, batches, journal.step, journal.warn, relief, ranks, self._capture)

    def _problem(
        self,
        position: int,
        block: Block,
        later: Sequence[Block],
        soft: Mapping[str, SoftRounding],
        scales: Sequence[ActivationQuantizer],
    ) -> BlockProblem:
        """What there is to learn, and all that it is learned from; caches make way for the steps first."""
        context, live, scores = self._context, self._live, self._scores
        outputs = scores.compared(block, later)
        ends = scores.behind(context.network, outputs) if context.options.prediction_difference else ()
        beside = [name for name in read_by(later) if name in live.full and name not in outputs] if ends else []
        self._done.round_biases(block, soft)
        masks = mask_generator(context.options.seed, position, context.store.device, context.ranks.rank)
        model = BlockModel(
            student=self._student(block, outputs, soft, masks),
            rest=extract(context.network, [*outputs, *beside], ends) if ends else None,
            class_axes=[scores.class_axes[name] for name in ends],
            weights=list(soft.values()),
            masks=masks,
        )
        inputs, bypass = [live.quantized[name] for name in block.inputs], [live.full[name] for name in beside]
        if context.store.limited and len(inputs[0]) > STEP_IMAGES:
            # With masks of its own, so that the block draws the same whether it is measured or not.
            measured = self._student(block, outputs, soft, torch.Generator(context.store.device))
            self._leave_room(block, measured, model.rest, inputs, bypass)
        with context.journal.timed("correction"):
            corrected = self._teacher.correct(block, [live.full[name] for name in block.inputs], self.options(block))
        with context.journal.timed("teacher"):
            wanted = self._teacher.outputs(block, corrected, outputs)
        predictions = [scores.values[name] for name in ends]
        rows = BlockRows(quantized=inputs, corrected=corrected, wanted=wanted, bypass=bypass, predictions=predictions)
        return BlockProblem(name=block.name, model=model, rows=rows, scales=scales)

    def _student(
        self, block: Block, outputs: Sequence[str], soft: Mapping[str, SoftRounding], masks: torch.Generator
    ) -> fx.GraphModule:
        """The block while it learns: soft weights, and activations that drop their quantization at random."""
        keep = self._context.options.keep_probability
        quantizers: dict[str, nn.Module] = {**self._done.weights, **soft}
        for point in self._done.points(block):
            quantizer = self._done.activations[point.tensor]
            drops = point.role is Role.ACTIVATION and keep > 0
            quantizers[point.tensor] = DroppingQuantizer(quantizer, keep, masks) if drops else quantizer
        return extract(self._context.network, block.inputs, outputs, quantizers=quantizers, biases=self._done.biases)

    def _leave_room(
        self,
        block: Block,
        student: nn.Module,
        rest: nn.Module | None,
        inputs: Sequence[Cache],
        bypass: Sequence[Cache],
    ) -> None:
        """Let caches make way for what a step needs."""
        few, beside = ([x.slice(0, STEP_IMAGES) for x in caches] for caches in (inputs, bypass))
        needed = step_bytes(student, rest, few, beside, self._context.batch_size)
        least = self._least.get(block.name, 0)
        self._context.store.reserve(needed + least, least=least)

    def _harden(self, block: Block, soft: Mapping[str, SoftRounding], inputs: Sequence[Cache]) -> None:
        """Integers for the block's soft weights."""
        if not soft or not self._context.options.compensate_rounding:
            self._done.weights.update((name, weight.harden()) for name, weight in soft.items())
            return
        store = self._context.store
        store.reserve(hardening_bytes(self._context.network, block, soft))
        self._done.round_biases(block, soft)
        self._context.journal.tell("compensated rounding")
        harden_block(self._context.network, self._done, block, soft, inputs, self._context.ranks)
        store.reserve(0)
