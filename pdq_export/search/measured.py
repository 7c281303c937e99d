"""The real thing: each group quantized alone, and the network run from its block to the end."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pdq_export.calibrate.cache import Cache
from pdq_export.calibrate.live import read_by
from pdq_export.calibrate.losses import prediction_difference
from pdq_export.calibrate.subgraph import extract
from pdq_export.search.candidates import Candidate, Effect, Shifted, Trial, walk
from pdq_export.spec import Bits, Block
from pdq_export.spec.sensitivity import Group

_BATCH = 32
Told = Callable[[int, int], None]


@torch.no_grad()
def measure(trial: Trial, told: Told) -> Mapping[tuple[str, Bits], Effect]:
    """What each group does at each width, by its name; ``told``: of how many are done."""
    found: dict[tuple[str, Bits], Effect] = {}
    total = sum(len(trial.candidates[group.name]) for group in trial.groups)
    for block, later, live in walk(trial.context, trial.inputs):
        for group in (group for group in trial.groups if group.block == block.name):
            runner = _Runner(trial, group, block, later, live)
            for width in trial.candidates[group.name]:
                found[group.name, width] = runner.run({name: trial.candidates[name][width] for name in group.tensors})
                told(len(found), total)
    return found


def _biases(trial: Trial, chosen: Mapping[str, Candidate]) -> dict[str, nn.Module]:
    """By node, the biases that take up an error."""
    shifts = {name: one.shift for name, one in chosen.items() if one.shift is not None}
    return {
        layer.node: Shifted(trial.done.constants[layer.bias], shifts[layer.weight])
        for layer in trial.context.plan.layers
        if layer.weight in shifts and layer.bias is not None
    }


class _Runner:
    """Runs a group's block and all behind it, quantized and not."""

    def __init__(
        self, trial: Trial, group: Group, block: Block, later: Sequence[Block], live: Mapping[str, Cache]
    ) -> None:
        self._trial, self._live = trial, live
        network, scores = trial.context.network, trial.scores
        beside = [name for name in read_by(later) if name in live and name not in block.inputs]
        self._inputs = [*block.inputs, *beside]
        self._compared = scores.compared(block, later)
        self._ends = scores.behind(network, [*self._compared, *(name for name in group.tensors if name in live)])
        self._outputs = list(dict.fromkeys([*self._compared, *self._ends]))
        self._plain = extract(network, self._inputs, self._compared)

    def run(self, chosen: Mapping[str, Candidate]) -> Effect:
        """With these candidates, by tensor, and all else in float."""
        quantizers = {name: one.quantizer for name, one in chosen.items()}
        module = extract(
            self._trial.context.network,
            self._inputs,
            self._outputs,
            quantizers=quantizers,
            biases=_biases(self._trial, chosen),
            unquantized=self._trial.context.plan.unquantized,
        )
        images, prediction = 0, 0.0
        errors, squares = torch.zeros(2, len(self._compared), dtype=torch.float64)
        batches = (self._live[name].batches(_BATCH) for name in self._inputs)
        for batch in zip(*batches, strict=True):
            count = len(batch[0])
            given = [quantizers[n](x) if n in quantizers else x for n, x in zip(self._inputs, batch, strict=True)]
            outputs = dict(zip(self._outputs, module(*given), strict=True))
            prediction += count * self._prediction(outputs, images, images + count)
            for number, (name, y) in enumerate(zip(self._compared, self._plain(*batch), strict=True)):
                errors[number] += (outputs[name] - y).double().square().sum().cpu()
                squares[number] += y.double().square().sum().cpu()
            images += count
        shares = torch.where(squares > 0, errors / squares, 0.0)
        return Effect(prediction=prediction / images, block=float(shares.sum()))

    def _prediction(self, outputs: Mapping[str, Tensor], start: int, stop: int) -> float:
        """KL divergence, and squared error over the mean square of all images, summed over outputs."""
        total = 0.0
        for name in self._ends:
            output, target = outputs[name], self._trial.scores.values[name].slice(start, stop)
            axis, unit = self._trial.scores.class_axes[name], self._trial.units[name]
            if axis is not None:
                total += float(prediction_difference([output], [target], [axis], 1.0))
            elif unit:
                total += float(((output - target).double() / unit).square().mean())
        return total
