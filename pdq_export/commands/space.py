"""What `--bits auto` chooses from: the bits that every tensor may have, what they cost, and what they lose."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from pdq_export.commands.costs import weight_costs
from pdq_export.errors import OptionError
from pdq_export.export.loading import choose_loading
from pdq_export.plan.freedom import find_freedom, rule_bits
from pdq_export.plan.rules import PlanOptions
from pdq_export.report.bits import Estimate
from pdq_export.search.asked import Budget
from pdq_export.search.budget import Choices, Cost, Limit, Solution, Widths
from pdq_export.search.made_up import left_after_learning
from pdq_export.spec import ALL_BITS, MAX_BITS, BitWidths, Plan, Point, Role
from pdq_export.spec.sensitivity import Sensitivity
from pdq_export.targets import find_target
from pdq_export.work import PlannedModel

# Of the first and last layers, which a few bits ruin though a sum of estimates may not say so.
LEAST_OUTERMOST = 4


class Space:
    """What can be chosen for a model within a ``budget``, what it costs, and what it loses.

    ``planned``: with 8 bits wherever no rule says otherwise. ``learns``: whether blocks learn, and make up for errors.
    ``choices``: bits by tensor. ``weights``: names of those that are weights. ``loss``, ``size``: estimates, as sums.
    ``most``: bytes that the file may have; None where they are not limited.
    """

    def __init__(
        self,
        planned: PlannedModel,
        options: PlanOptions,
        budget: Budget,
        sensitivity: Sensitivity,
        *,
        target: str,
        runtime: str | None,
        metadata: Mapping[str, str],
        learns: bool,
        operations: Callable[[], Cost] | None = None,
    ) -> None:
        self.planned, self.budget, self.sensitivity = planned, budget, sensitivity
        self._options, self._target = options, find_target(target)
        index, plan = planned.index, planned.plan
        self.weights = {name for name, point in plan.points.items() if point.role is Role.WEIGHT}
        self._elements = {name: index.elements(name) for name in self.weights}
        self.choices = self._find_choices()
        core, prediction = planned.core, sensitivity.prediction
        losses = left_after_learning(sensitivity, plan.blocks, core.outputs) if learns else prediction
        self.loss = Cost(single={name: _falling(by_width) for name, by_width in losses.items()})
        self.size = self._size_cost(runtime, metadata)
        self.most = budget.bytes(len(planned.original.content))
        self._operations = operations() if operations is not None and budget.bit_ops is not None else None

    def limits(self, budget: Budget | None = None) -> list[Limit]:
        """Those of the budget, but for the size; of another ``budget`` of the same kind, where it is given."""
        budget, limits = budget or self.budget, []
        if budget.avg_weight is not None:
            weights = self._average(self._elements)
            limits.append(Limit(option="--avg-bits, of weights", cost=weights, most=budget.avg_weight))
        if budget.avg_activation is not None:
            activations = self._average(dict.fromkeys(self.choices.keys() - self.weights, 1))
            limits.append(Limit(option="--avg-bits, of activations", cost=activations, most=budget.avg_activation))
        if budget.bit_ops is not None:
            assert self._operations is not None
            limits.append(Limit(option="--max-bit-ops", cost=self._operations, most=budget.bit_ops))
        return limits

    def infeasible(self, limits: Sequence[Limit]) -> OptionError:
        """What to say where no bits keep these, which are not of the size: the fewest keep whatever can be kept."""
        fewest = {name: widths[0] for name, widths in self.choices.items()}
        missed = [
            f"{limit.option}: {limit.most:g} is less than any bits that are allowed take; the smallest that can be "
            f"kept is {math.ceil(limit.cost.of(fewest) * 1e4 - 1e-4) / 1e4:g}"
            for limit in limits
            if not limit.holds(fewest)
        ]
        return OptionError(
            f"{'; '.join(missed)} (as --allowed-bits and rules such as --layer-bits are; without --first-last the "
            f"first and last layers have {LEAST_OUTERMOST} bits or more)"
        )

    def uniforms(self) -> Iterable[tuple[BitWidths, dict[str, int]]]:
        """Equal bits for all layers, as --bits W/A gives them, where every tensor may have them."""
        budget = self.budget
        activations = budget.activations if budget.counts_activations else budget.activations[-1:]
        for weight in budget.weights:
            for activation in activations:
                widths = BitWidths(weight, activation)
                bits = rule_bits(self.planned.index, self.planned.plan, self._options, widths)
                yield widths, bits | dict(self._options.tensor_bits)

    def narrowed(self, bits: Widths) -> dict[str, int]:
        """As --reduce-range leaves bits that rules give."""
        most = MAX_BITS - 1 if self._options.section.reduce_range else MAX_BITS
        return {name: min(width, most) if name in self.weights else width for name, width in bits.items()}

    def estimate(self, name: str, solution: Solution) -> Estimate:
        """Size, loss and averages of an allotment."""
        bits = self.narrowed(solution.bits)
        weights = sum(self._elements[tensor] * bits[tensor] for tensor in self.weights)
        learned = [bits[tensor] for tensor in self.choices if tensor not in self.weights]
        return Estimate(
            name=name,
            size=round(self.size.of(bits)),
            loss=self.loss.of(bits),
            avg_weight=weights / max(sum(self._elements.values()), 1),
            avg_activation=sum(learned) / len(learned) if learned else None,
            gap=solution.gap,
            bit_ops=None if self._operations is None else self._operations.of(bits),
        )

    def _average(self, sizes: Mapping[str, int]) -> Cost:
        total = max(sum(sizes.values()), 1)
        single = {name: {w: w * sizes[name] / total for w in ALL_BITS} for name in self.choices if name in sizes}
        return Cost(single=single)

    def _find_choices(self) -> Choices:
        planned, options, budget = self.planned, self._options, self.budget
        free = find_freedom(planned.index, planned.plan, options)
        given = dict(options.tensor_bits)
        choices: dict[str, Sequence[int]] = {}
        for name, point in planned.plan.points.items():
            if point.role is Role.CARRIER:
                continue
            if name in given or name not in free.tensors:
                choices[name] = (point.bits,)
                continue
            widths = budget.weights if point.role is Role.WEIGHT else budget.activations
            widths = tuple(width for width in widths if width >= free.least[name]) or (free.least[name],)
            if name in free.outermost:
                widths = tuple(width for width in widths if width >= LEAST_OUTERMOST) or widths[-1:]
            if point.role is Role.ACTIVATION and not budget.counts_activations:
                widths = widths[-1:]
            if point.role is Role.WEIGHT and options.section.reduce_range:  # of 8 bits it would have 7
                widths = tuple(sorted({min(width, MAX_BITS - 1) for width in widths}))
            choices[name] = widths
        return choices

    def _size_cost(self, runtime: str | None, metadata: Mapping[str, str]) -> Cost:
        """With weights packed as they are at the fewest bits of which the file may consist.

        It is exact for equal bits of all weights, whose tables all of them use.
        """
        planned = self.planned
        fewest = self._with_weights(lambda name: self.choices[name][0])
        loading = choose_loading(planned.index, fewest, runtime=runtime, max_opset=planned.loading.max_opset)
        width = min((self.choices[name][0] for name in self.weights), default=MAX_BITS)
        equal = self._with_weights(lambda _: width)
        costs = weight_costs(planned.prepared, equal, self._target, loading=loading, metadata=metadata, at=self._at)
        return costs.cost

    def _with_weights(self, bits: Callable[[str], int]) -> Plan:
        """The plan with these bits of the weights, by name."""
        points = {
            name: self._at(point, bits(name)) if name in self.weights else point
            for name, point in self.planned.plan.points.items()
        }
        return dataclasses.replace(self.planned.plan, points=points)

    def _at(self, point: Point, bits: int) -> Point:
        """A weight as plans have it at a width: zero points of its own take bytes, which one of 8 bits has not."""
        reduced = self._options.section.reduce_range and bits == MAX_BITS - 1
        return point.with_bits(bits, symmetric=reduced or self._options.symmetric_weights)


def _falling(losses: Mapping[int, float]) -> dict[int, float]:
    """By width; fewer bits are not estimated to lose less."""
    found, least = {}, 0.0
    for width in sorted(losses, reverse=True):
        least = max(least, losses[width])
        found[width] = least
    return found
