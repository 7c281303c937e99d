"""Where learning starts: scales of activations and weights, searched on what the finished blocks give."""

from collections.abc import Mapping, Sequence

from pdq_export.calibrate.cache import Cache
from pdq_export.calibrate.context import Context
from pdq_export.calibrate.equalization import largest_values
from pdq_export.calibrate.finished import Quantizers
from pdq_export.calibrate.fitting import ActivationFitter
from pdq_export.calibrate.forward import FORWARD_BATCH, run_probe
from pdq_export.calibrate.quantizers import ActivationQuantizer, SoftRounding, WeightQuantizer, weight_qparams
from pdq_export.calibrate.subgraph import extract
from pdq_export.numerics.search import choose_activation_qparams
from pdq_export.spec import Block, Role


class Initializer:
    """Puts searched quantizers into ``done``; searches look at the first ``options.search_samples`` images."""

    def __init__(self, context: Context, done: Quantizers) -> None:
        self._context, self._done = context, done
        self._fitter = ActivationFitter(context.plan, done, context.ranks, largest_values(context.network))

    def graph_inputs(self, inputs: Mapping[str, Cache]) -> None:
        """Quantizers of the graph's inputs, by tensor, that are points."""
        for name, x in inputs.items():
            if (point := self._context.plan.points.get(name)) is not None:
                images = x.batches(FORWARD_BATCH, self._context.options.search_samples)
                qparams = choose_activation_qparams(
                    images, point.bits, symmetric=point.symmetric, ranks=self._context.ranks
                )
                self._done.activations[name] = ActivationQuantizer(point, qparams)

    def activations(self, block: Block, inputs: Sequence[Cache]) -> None:
        """Quantizers of the points that the block writes, from its FP32 layers on the quantized ``inputs``."""
        self._context.journal.tell("activation scales")
        points = self._done.points(block)
        probe = extract(self._context.network, block.inputs, [point.tensor for point in points])
        values = run_probe(probe, inputs, self._context.store, self._context.options.search_samples)
        for point, x in zip(points, values, strict=True):
            self._done.activations[point.tensor] = self._fitter.fit(x, point)

    def weights(self, block: Block) -> dict[str, SoftRounding]:
        """Search scales of the block's weights; those whose rounding is to be learned are returned, by tensor.

        The others are rounded to nearest and finished.
        """
        soft: dict[str, SoftRounding] = {}
        options = self._context.options
        for number, layer in enumerate(block.layers, 1):
            if layer.weight in self._done.weights or layer.weight in soft:
                continue  # shared with an earlier layer
            self._context.journal.tell(f"weight scales, layer {number} of {len(block.layers)}")
            point, weight = self._context.plan.points[layer.weight], self._done.constants[layer.weight]
            qparams = weight_qparams(weight, point, ranks=self._context.ranks)
            if options.learn_rounding and options.iters:
                soft[layer.weight] = SoftRounding(point, weight, qparams)
            else:
                self._done.weights[layer.weight] = WeightQuantizer.nearest(point, weight, qparams)
        return soft

    def carriers(self, block: Block, inputs: Sequence[Cache]) -> None:
        """Fit the 8-bit pairs to the finished block, one after the other, since each changes what the next one sees."""
        points = self._done.points(block)
        settled = {p.tensor: self._done.activations[p.tensor] for p in points if p.role is Role.ACTIVATION}
        for point in points:
            if point.role is not Role.CARRIER:
                continue
            probe = self._done.block(block, [point.tensor], settled)
            (x,) = run_probe(probe, inputs, self._context.store, self._context.options.search_samples)
            self._done.activations[point.tensor] = settled[point.tensor] = self._fitter.fit(x, point)
