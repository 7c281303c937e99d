"""What a block learns from: its FP32 self, on inputs that were corrected towards the training data's statistics."""

import functools
import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pdq_export import operators
from pdq_export.calibrate.cache import Cache
from pdq_export.calibrate.context import Context
from pdq_export.calibrate.correction import batches_at_once, correct_distribution, estimate_statistics
from pdq_export.calibrate.forward import FORWARD_BATCH, run_forward
from pdq_export.calibrate.relief import with_relief
from pdq_export.calibrate.subgraph import extract
from pdq_export.config.method import CalibrationOptions
from pdq_export.spec import Block, ChannelStatistics

logger = logging.getLogger(__name__)


class Teacher:
    """Corrects inputs of blocks and computes their FP32 outputs; ``statistics`` by layer output, where they are known.

    ``estimated``: those that had to be estimated over the calibration set, by layer output.
    """

    def __init__(self, context: Context, statistics: Mapping[str, ChannelStatistics]) -> None:
        self._context, self._statistics = context, statistics
        self.estimated: dict[str, ChannelStatistics] = {}

    def correct(self, block: Block, inputs: Sequence[Cache], options: CalibrationOptions) -> list[Cache]:
        """Distribution correction of the block's only input; a block with several keeps its FP32 ``inputs``.

        What has one position an image (the layers of squeeze and excitation) has no distribution over positions.
        ``options``: the block's.
        """
        context = self._context
        if options.correction_iters == 0:
            return list(inputs)
        if len(inputs) != 1:
            logger.info("block %s: it has %d inputs, so none is corrected", block.name, len(inputs))
            return list(inputs)
        (x,) = inputs
        outputs = self._spread_out(block, x)
        self._estimate(block, x, [name for name in outputs if name not in self._statistics])
        if not outputs:
            return [x]
        layer_outputs = extract(context.network, block.inputs, outputs)
        statistics = [{**self.estimated, **self._statistics}[name] for name in outputs]
        told = context.journal.images("correction")
        corrected, at_once = context.store.new(x.shape, x.dtype), batches_at_once(options, x.device)
        size = at_once * options.batch_size

        def correct(start: int, stop: int) -> Tensor:
            # Looked up here: held in between, images would keep a cache's memory that makes way.
            images = x.slice(start, stop)
            return correct_distribution(layer_outputs, statistics, images, options, at_once=at_once)

        def correct_fewer() -> bool:
            nonlocal at_once
            before, at_once = at_once, max(at_once // 2, 1)
            return at_once < before

        for start in range(0, len(x), size):
            part = functools.partial(correct, start, min(start + size, len(x)))
            corrected.append(with_relief(part, [correct_fewer, context.store.evict]))
            told(len(corrected), len(x))
        return [corrected]

    def outputs(self, block: Block, inputs: Sequence[Cache], names: Sequence[str]) -> list[Cache]:
        """The tensors ``names`` of the FP32 block on ``inputs``."""
        module = extract(self._context.network, block.inputs, names)
        told = self._context.journal.images("FP32 outputs")
        return list(run_forward(module, inputs, names, self._context.store, told=told).values())

    @torch.no_grad()
    def _spread_out(self, block: Block, x: Cache) -> list[str]:
        """The outputs of the block's convolutions that have more than one position an image."""
        outputs = [layer.output for layer in block.layers if operators.get(layer.op_type).per_image]
        if not outputs:
            return []
        probed = extract(self._context.network, block.inputs, outputs)(x.slice(0, 1))
        return [name for name, z in zip(outputs, probed, strict=True) if z.ndim > 2 and z[0, 0].numel() > 1]

    def _estimate(self, block: Block, x: Cache, names: Sequence[str]) -> None:
        if names:
            probe = extract(self._context.network, block.inputs, names)
            batches = ((batch,) for batch in x.batches(FORWARD_BATCH))
            found = estimate_statistics(probe, batches, self._context.ranks)
            self.estimated.update(zip(names, found, strict=True))
