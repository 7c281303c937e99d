"""Every tensor at every width, as calibration would have it: searched scales, and weights that make up for errors.

Weights rounded to nearest would tell of an error that calibration does not leave: learned rounding solves nearly the
problem that compensated rounding solves (`calibrate.hardening`), and takes a hundred times as long.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from pdq_export.calibrate.cache import Cache
from pdq_export.calibrate.context import Context
from pdq_export.calibrate.finished import Quantizers
from pdq_export.calibrate.forward import FORWARD_BATCH, run_probe, spread
from pdq_export.calibrate.hardening import Compensation, absorbs_error, hardening_bytes, inputs_of, is_product
from pdq_export.calibrate.live import advance, outputs_for
from pdq_export.calibrate.quantizers import ActivationQuantizer, SoftRounding, WeightQuantizer, weight_qparams
from pdq_export.calibrate.scores import Scores, score
from pdq_export.calibrate.subgraph import extract, tensor_nodes
from pdq_export.numerics.search import Histogram
from pdq_export.spec import Bits, Block, Layer, Point, Role
from pdq_export.spec.sensitivity import Group

_ELEMENTS = 2**22  # of an activation at a time
_ROWS = 2**12  # of a layer's inputs, of which moments are kept


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A tensor at one width; ``shift``: what the biases of a weight's layer take up of its error, [C], or None."""

    quantizer: ActivationQuantizer | WeightQuantizer
    shift: Tensor | None = None


Candidates = Mapping[str, Mapping[Bits, Candidate]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effect:
    """What quantizing a group does to the ``prediction`` and to what its ``block`` gives, as `Sensitivity` has it."""

    prediction: float
    block: float


def walk(context: Context, inputs: Mapping[str, Cache]) -> Iterator[tuple[Block, Sequence[Block], dict[str, Cache]]]:
    """Every block with those behind it, and the live FP32 tensors by name, which are computed once."""
    live = dict(inputs)
    for position, block in enumerate(context.plan.blocks):
        later = context.plan.blocks[position + 1 :]
        context.journal.begin(position, block)
        yield block, later, live
        module = extract(context.network, block.inputs, outputs_for(block, later))
        advance(live, module, block, later, context.store, {}, context.journal.images("FP32 pass"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """All that the groups of a network are tried with.

    ``done``: quantizers of the network, none finished. ``inputs``: of the graph, by name. ``units``: by tensor between
    blocks and of scores, the root mean square.
    """

    context: Context
    done: Quantizers
    inputs: Mapping[str, Cache]
    scores: Scores
    groups: Sequence[Group]
    candidates: Candidates
    units: Mapping[str, float]

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        context: Context,
        done: Quantizers,
        inputs: Mapping[str, Cache],
        groups: Sequence[Group],
        widths: Sequence[Bits],
        *,
        symmetric_weights: bool,
    ) -> "Trial":
        """Find the scores, and what each weight and each learned activation is at each width, on FP32 inputs."""
        images = len(next(iter(inputs.values())))
        chosen = spread(images, FORWARD_BATCH).to(context.store.device)
        scores = score(context, inputs, [x[chosen] for x in inputs.values()])
        finder = _Finder(context, done, widths, symmetric_weights)
        units = {name: root_mean_square(x) for name, x in scores.values.items()}
        for name, x in inputs.items():
            if (point := context.plan.points.get(name)) is not None and point.role is Role.ACTIVATION:
                finder.activation(point, x)
        for block, _, live in walk(context, inputs):
            units |= {name: root_mean_square(x) for name, x in live.items() if name not in units and name not in inputs}
            finder.block(block, [live[name] for name in block.inputs])
        return cls(
            context=context,
            done=done,
            inputs=inputs,
            scores=scores,
            groups=groups,
            candidates=finder.found,
            units=units,
        )


def root_mean_square(x: Cache) -> float:
    """Over all images and elements; sums are kept in float64."""
    total = sum(float(batch.double().square().sum()) for batch in x.batches(FORWARD_BATCH))
    return math.sqrt(total / max(math.prod(x.shape), 1))


class _Finder:
    def __init__(self, context: Context, done: Quantizers, widths: Sequence[Bits], symmetric_weights: bool) -> None:
        self._context, self._done, self._widths = context, done, widths
        self._symmetric = symmetric_weights
        self._nodes = tensor_nodes(context.network)
        self.found: dict[str, dict[Bits, Candidate]] = {}

    def block(self, block: Block, inputs: Sequence[Cache]) -> None:
        """Candidates of what the block settles."""
        points = [point for point in self._done.points(block) if point.role is Role.ACTIVATION]
        if points:
            self._context.journal.tell("activation scales")
            probe = extract(self._context.network, block.inputs, [point.tensor for point in points])
            samples = self._context.options.search_samples
            for point, x in zip(points, run_probe(probe, inputs, self._context.store, samples), strict=True):
                self.activation(point, x)
                x.close()
        for layer in block.layers:
            if layer.weight not in self.found:
                self._weight(block, layer, inputs)

    def activation(self, point: Point, x: Cache) -> None:
        """Scales searched on values ``x`` of any shape."""
        size = _ELEMENTS if len(x.shape) == 1 else FORWARD_BATCH
        histogram = Histogram.of(x.batches(size))
        self.found[point.tensor] = {}
        for width in self._widths:
            wide = point.with_bits(width)
            qparams = histogram.choose_qparams(width, symmetric=point.symmetric, quick=True)
            self.found[point.tensor][width] = Candidate(ActivationQuantizer(wide, qparams))

    def _weight(self, block: Block, layer: Layer, inputs: Sequence[Cache]) -> None:
        """All widths are rounded together: they have the moments of the layer's inputs in common."""
        self._context.journal.tell("weights")
        point, weight = self._context.plan.points[layer.weight], self._done.constants[layer.weight]
        points = [point.with_bits(width, symmetric=self._symmetric) for width in self._widths]
        soft = [SoftRounding(wide, weight, weight_qparams(weight, wide, quick=True)) for wide in points]
        node = self._nodes[layer.output]
        if self._done.is_shared(layer.weight) or not is_product(layer, node, soft[0]):
            rounded: list[tuple[WeightQuantizer, Tensor | None]] = [(one.harden(), None) for one in soft]
        else:
            store, count = self._context.store, len(soft)
            store.reserve(count * hardening_bytes(self._context.network, block, {layer.weight: soft[0]}))
            absorbs = absorbs_error(self._done, layer, node)
            before = inputs_of(self._done, block, layer, inputs)
            rounded = Compensation(node, soft[0], before, absorbs=absorbs, rows=_ROWS).round(soft)
            store.reserve(0)
        self.found[layer.weight] = {width: Candidate(*one) for width, one in zip(self._widths, rounded, strict=True)}


class Shifted(nn.Module):
    """A bias with what its weight's rounding makes of it."""

    value: Tensor

    def __init__(self, bias: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", bias.detach() + shift.view(bias.shape))

    def forward(self) -> Tensor:
        return self.value
