"""What is left of errors once blocks have learned: those behind make up for what weights before them have lost."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from pdq_export.spec import Bits, Block, Role
from pdq_export.spec.sensitivity import Group, Sensitivity

# Of what an activation's rounding loses alone: at 4 bits all of it where all together lose little (ResNet-20,
# EfficientNet-Lite0), a third where they would lose much (mobilenetv2_dogs). Half is at most half a bit off.
_OF_ACTIVATIONS = 0.5


def left_after_learning(
    sensitivity: Sensitivity, blocks: Sequence[Block], outputs: Iterable[str]
) -> dict[str, dict[Bits, float]]:
    """By group and width what it does to the prediction where every block of ``blocks`` learns, in their order.

    A block learns to give what it gives in FP32, on what the quantized ones before it hand on. So an error of weights
    counts for no more than the same share of error of the blocks that read it: its loss is at most its
    `Sensitivity.block` times the most that one of those behind loses of the prediction for such an error, summed over
    those that read it side by side. Where nothing is behind, or one of ``outputs`` is written, it is as it was. The
    expansion around FP32 alone has early layers of depthwise networks lose a hundred times what they do in the end.

    The rounding of an activation is another one in every image: no weight behind takes it back, but the blocks behind
    learn to pass less of it on, and half of what it loses alone is left. Where there are none, all of it is.
    """
    most = _most_behind(sensitivity, blocks, frozenset(outputs))

    def left(group: Group, width: Bits, loss: float) -> float:
        bound = most[group.block]
        if not math.isfinite(bound):
            return loss
        if group.role is not Role.WEIGHT:
            return _OF_ACTIVATIONS * loss
        return min(loss, sensitivity.block[group.name][width] * bound)

    return {
        group.name: {width: left(group, width, loss) for width, loss in sensitivity.prediction[group.name].items()}
        for group in sensitivity.groups
    }


def _most_behind(sensitivity: Sensitivity, blocks: Sequence[Block], outputs: frozenset[str]) -> dict[str, float]:
    """By block what an error of its outputs can lose, over its share of them."""
    rates = _rates(sensitivity)
    most: dict[str, float] = {}
    for block in reversed(blocks):
        written = set(block.outputs)
        behind = [other.name for other in blocks if other.name in most and written & set(other.inputs)]
        if not behind or written & outputs:
            most[block.name] = math.inf
        else:
            most[block.name] = sum(min(rates.get(name, math.inf), most[name]) for name in behind)
    return most


def _rates(sensitivity: Sensitivity) -> Mapping[str, float]:
    """By block what its own errors lose of the prediction over what they are of its outputs, the median."""
    found: dict[str, list[float]] = {}
    for group in sensitivity.groups:
        errors = sensitivity.block[group.name]
        for width, loss in sensitivity.prediction[group.name].items():
            if errors[width] > 0:
                found.setdefault(group.block, []).append(loss / errors[width])
    return {name: statistics.median(rates) for name, rates in found.items()}
