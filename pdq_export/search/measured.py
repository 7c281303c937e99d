"""The real thing: each tensor quantized alone, and the rest of the network run to the end, from the tensor's block on."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pdq_export.calibrate.cache import Cache
from pdq_export.calibrate.context import Context
from pdq_export.calibrate.finished import Quantizers
from pdq_export.calibrate.live import read_by
from pdq_export.calibrate.losses import prediction_difference
from pdq_export.calibrate.scores import Scores
from pdq_export.calibrate.subgraph import extract
from pdq_export.search.candidates import Candidate, Candidates, Shifted, walk
from pdq_export.search.effect import Effect
from pdq_export.spec import Bits, Block
from pdq_export.spec.sensitivity import Group

_BATCH = 32
Told = Callable[[int, int], None]


@torch.no_grad()
def measure(
    context: Context,
    done: Quantizers,
    inputs: Mapping[str, Cache],
    scores: Scores,
    groups: Sequence[Group],
    candidates: Candidates,
    units: Mapping[str, float],
    told: Told,
) -> Mapping[tuple[str, Bits], Effect]:
    """What each group does at each width, by its name.

    ``units``: by tensor, its root mean square. ``told``: of how many are done.
    """
    found: dict[tuple[str, Bits], Effect] = {}
    total = sum(len(candidates[group.name]) for group in groups)
    for block, later, live in walk(context, inputs):
        for group in (group for group in groups if group.block == block.name):
            runner = _Runner(context, scores, units, group, block, later, live)
            for width in candidates[group.name]:
                quantizers = {name: candidates[name][width] for name in group.tensors}
                found[group.name, width] = runner.run(quantizers, _biases(done, quantizers, context))
                told(len(found), total)
    return found


def _biases(done: Quantizers, chosen: Mapping[str, Candidate], context: Context) -> dict[str, nn.Module]:
    """By node, the biases that take up an error."""
    shifts = {name: one.shift for name, one in chosen.items() if one.shift is not None}
    return {
        layer.node: Shifted(done.constants[layer.bias], shifts[layer.weight])
        for layer in context.plan.layers
        if layer.weight in shifts and layer.bias is not None
    }


class _Runner:
    """Runs a group's block and all behind it, quantized and not."""

    def __init__(
        self,
        context: Context,
        scores: Scores,
        units: Mapping[str, float],
        group: Group,
        block: Block,
        later: Sequence[Block],
        live: Mapping[str, Cache],
    ) -> None:
        self._context, self._scores, self._units, self._live = context, scores, units, live
        compared = scores.compared(block, later)
        beside = [name for name in read_by(later) if name in live and name not in block.inputs]
        self._inputs = [*block.inputs, *beside]
        self._ends = scores.behind(context.network, [*compared, *(name for name in group.tensors if name in live)])
        self._outputs = list(dict.fromkeys([*compared, *self._ends]))
        self._compared = compared
        self._plain = extract(context.network, self._inputs, compared)

    def run(self, chosen: Mapping[str, Candidate], biases: Mapping[str, nn.Module]) -> Effect:
        quantizers = {name: one.quantizer for name, one in chosen.items()}
        plan = self._context.plan
        module = extract(
            self._context.network,
            self._inputs,
            self._outputs,
            quantizers=quantizers,
            biases=biases,
            unquantized=plan.unquantized,
        )
        images, prediction = 0, 0.0
        errors, squares = torch.zeros(len(self._compared)).double(), torch.zeros(len(self._compared)).double()
        batches = (self._live[name].batches(_BATCH) for name in self._inputs)
        for batch in zip(*batches, strict=True):
            count = len(batch[0])
            given = [quantizers[n](x) if n in quantizers else x for n, x in zip(self._inputs, batch, strict=True)]
            outputs = dict(zip(self._outputs, module(*given), strict=True))
            wanted = [self._scores.values[name].slice(images, images + count) for name in self._ends]
            prediction += count * self._prediction([outputs[name] for name in self._ends], wanted)
            for number, (name, y) in enumerate(zip(self._compared, self._plain(*batch), strict=True)):
                errors[number] += (outputs[name] - y).double().square().sum().cpu()
                squares[number] += y.double().square().sum().cpu()
            images += count
        shares = torch.where(squares > 0, errors / squares, 0.0)
        return Effect(prediction=prediction / images, block=float(shares.sum()))

    def _prediction(self, outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
        """KL divergence, and squared error over the mean square of all images, summed over outputs."""
        total = 0.0
        for name, output, target in zip(self._ends, outputs, wanted, strict=True):
            axis = self._scores.class_axes[name]
            if axis is not None:
                total += float(prediction_difference([output], [target], [axis], 1.0))
            else:
                unit = self._units[name]
                total += float((output - target).double().div(unit).square().mean()) if unit else 0.0
        return total
