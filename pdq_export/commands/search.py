"""`--bits auto`: bits for every tensor that lose least within a budget, by what each was measured to do."""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from pdq_export.commands.costs import weight_costs
from pdq_export.commands.estimates import estimate_tensors
from pdq_export.errors import OptionError
from pdq_export.export.loading import choose_loading
from pdq_export.plan.freedom import find_freedom, rule_bits
from pdq_export.plan.rules import PlanOptions
from pdq_export.report.bits import Estimate, SearchReport
from pdq_export.report.tensor_losses import TensorLosses
from pdq_export.search.asked import Budget
from pdq_export.search.budget import Choices, Cost, Limit, Solution, Widths, solve
from pdq_export.search.made_up import left_after_learning
from pdq_export.spec import ALL_BITS, MAX_BITS, BitWidths, Plan, Point, Role
from pdq_export.spec.sensitivity import Sensitivity
from pdq_export.targets import find_target
from pdq_export.work import PlannedModel

logger = logging.getLogger(__name__)

# Of the first and last layers, which a few bits ruin though a sum of estimates may not say so.
LEAST_OUTERMOST = 4
_BETTER = 0.95  # of the estimated loss of uniform bits: what promises less gain is no reason to leave them
_RAISED = 1.25
_FRONTIER = 9  # budgets that are solved for the chart
_ROUNDS = 8
# A bias can take a byte more, and zero points be stored in another way, once scales are learned.
_SPARE = 0.001
_NEAR = 1.01  # of a size: what is estimated beyond is not written to see
_FEWER = "--allowed-bits with fewer to choose from lets it finish"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What was found: ``bits`` of every weight and learned activation, within a ``budget``, and how they compare.

    ``raised``: what would be found within a larger budget of what is not counted in bytes; None where bytes are.
    """

    bits: Widths
    budget: Budget
    report: SearchReport
    raised: Estimate | None = None


class Search:
    """What can be chosen for a model, what it costs, and what it loses.

    ``planned``: with 8 bits wherever no rule says otherwise. ``learns``: whether blocks learn, and make up for errors.
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
        self._planned, self._options, self._budget = planned, options, budget
        self._target = find_target(target)
        self._sensitivity = sensitivity
        index, plan = planned.index, planned.plan
        self._weights = {name for name, point in plan.points.items() if point.role is Role.WEIGHT}
        self._elements = {name: index.elements(name) for name in self._weights}
        self._choices = self._find_choices()
        core, prediction = planned.core, sensitivity.prediction
        losses = left_after_learning(sensitivity, plan.blocks, core.outputs) if learns else prediction
        self._loss = Cost(single={name: _falling(by_width) for name, by_width in losses.items()})
        self._size = self._size_cost(runtime, metadata)
        self._operations = operations() if operations is not None and budget.bit_ops is not None else None

    def find(self, *, size: Callable[[Widths], int]) -> Found:
        """The allotment of the least estimated loss that keeps the budget. Raises OptionError where none does.

        ``size``: of a file with these bits, written with placeholders; what it takes more than estimated the next
        solution has to spare. Equal bits that keep the budget are taken where nothing else does, or promises less loss.
        """
        try:
            solution, written = self._within(size)
        except OptionError:
            if (equal := self._best_uniform(size)) is None:
                raise
            logger.info("%s: no bits that differ were found within it; equal ones keep it", self._budget.told())
            return self._equal(equal, size(equal))
        uniform = self._best_uniform(size)
        if uniform is not None and self._loss.of(solution.bits) > _BETTER * self._loss.of(self._narrowed(uniform)):
            logger.info("bits that differ promise no less loss than equal ones: %s keeps them", self._budget.told())
            return self._equal(uniform, size(uniform))
        if solution.gap:
            logger.warning(
                "%s: the solver stopped at a part of all allotments; others could lose up to %.2g %% less by the sum "
                "of estimates; %s",
                self._budget.told(),
                100 * solution.gap,
                _FEWER,
            )
        return self._found(solution, written, uniform)

    def smallest(self, loss: float, *, size: Callable[[Widths], int]) -> Found:
        """The smallest allotment whose estimated loss is within ``loss``, or that of the least loss there is.

        Equal bits are taken where their file is no larger: the other says the bits of each tensor, too.
        """
        limit = Limit(option="--max-drop", cost=self._loss, most=loss)
        solution = solve(self._choices, self._size, [limit]) or solve(self._choices, self._loss)
        assert solution is not None  # nothing else is asked
        if solution.gap:
            logger.warning(
                "%s: the solver stopped at a part of all allotments; other files could be up to %.2g %% smaller; %s",
                self._budget.told(),
                100 * solution.gap,
                _FEWER,
            )
        written = size(solution.bits)
        uniform = next(iter(self._smallest_uniform([limit])), None)
        if uniform is not None and (equal := size(uniform)) <= written:
            return self._found(Solution(bits=uniform), equal, uniform)
        return self._found(solution, written, uniform)

    def _equal(self, uniform: Widths, written: int) -> Found:
        """Equal bits, whose file has ``written`` bytes with placeholders; told where it may be refused for its size."""
        most = self._budget.bytes(len(self._planned.original.content))
        if most is not None and written > most * (1 - _SPARE):
            logger.log(
                logging.WARNING if written > most else logging.INFO,
                "%s: equal bits are estimated to take %d bytes of the %d that are allowed; whether the file keeps them "
                "is known once scales are learned, and it is refused then if it does not; --max-size %d is sure to do",
                self._budget.told(),
                written,
                most,
                math.ceil(written / (1 - _SPARE)),
            )
        return self._found(Solution(bits=dict(uniform)), written, uniform)

    def _found(self, solution: Solution, written: int, uniform: Widths | None) -> Found:
        note = "" if self._budget.counts_activations else self._why_wide()
        if note:
            logger.info("%s", note)
        told = SearchReport(
            budget=self._budget.told(),
            chosen=dataclasses.replace(self._estimate("auto", solution), size=written),
            uniform=None if uniform is None else self._estimate(self._name(uniform), Solution(bits=dict(uniform))),
            frontier=self._frontier(),
            uniforms=tuple(self._estimate(str(widths), Solution(bits=bits)) for widths, bits in self._uniforms()),
            measure=self._sensitivity.measure,
            note=note,
            tensors=TensorLosses.of(self._sensitivity, solution.bits),
        )
        return Found(bits=solution.bits, budget=self._budget, report=told, raised=self._raised())

    def _raised(self) -> Estimate | None:
        """Within budgets of averages and operations that are larger by a quarter; its name are the options."""
        larger = self._budget.raised(_RAISED)
        if larger is None:
            return None
        solution = solve(self._choices, self._loss, self._limits(larger))
        return None if solution is None else self._estimate(larger.told(), solution)

    def _name(self, uniform: Widths) -> str:
        return next(str(widths) for widths, bits in self._uniforms() if bits == uniform)

    def _within(self, size: Callable[[Widths], int]) -> tuple[Solution, int]:
        """The best bits and the bytes of their file; what these are off the estimate, the next solution spares."""
        limits = self._limits()
        most = self._budget.bytes(len(self._planned.original.content))
        if most is None:
            found = solve(self._choices, self._loss, limits)
            if found is None:
                raise self._infeasible(limits)
            return found, size(found.bits)
        spared = most * (1 - _SPARE)
        if (best := self._best(size, spared, limits)) is not None:
            return best
        smallest = solve(self._choices, self._size, limits)
        if smallest is None:
            raise self._infeasible(limits)
        if (written := size(smallest.bits)) > spared:
            raise self._too_small(most, min([written, *map(size, self._smallest_uniform(limits))]))
        return self._between(size, spared, limits, smallest.bits) or (self._smallest(smallest), written)

    def _best(
        self, size: Callable[[Widths], int], spared: float, limits: Sequence[Limit]
    ) -> tuple[Solution, int] | None:
        """The best of those that keep the size, by estimates that are corrected by what is written, up or down."""
        aim, best, tried = spared, None, list[Widths]()
        for _ in range(_ROUNDS):
            found = solve(self._choices, self._loss, [*limits, self._size_limit(aim)])
            if found is None or found.bits in tried:
                break
            tried.append(found.bits)
            written = size(found.bits)
            if written <= spared and (best is None or self._loss.of(found.bits) < self._loss.of(best[0].bits)):
                best = found, written
            elif best is not None:
                break
            aim = self._size.of(found.bits) - (written - spared)
        return best

    def _between(
        self, size: Callable[[Widths], int], spared: float, limits: Sequence[Limit], smallest: Widths
    ) -> tuple[Solution, int] | None:
        """The best that keeps the size, of budgets halved towards that of the smallest; None where none does."""
        low, high, best = self._size.of(smallest), spared, None
        for _ in range(_ROUNDS):
            aim = (low + high) / 2
            found = solve(self._choices, self._loss, [*limits, self._size_limit(aim)])
            if found is not None and (written := size(found.bits)) <= spared:
                best, low = (found, written), aim
            else:
                high = aim
        return best

    def _smallest(self, solution: Solution) -> Solution:
        logger.warning(
            "%s: files are larger than estimated at every budget that was tried, so that the smallest is taken, which "
            "loses most; a larger --max-size may find one that loses less",
            self._budget.told(),
        )
        return Solution(bits=solution.bits)  # its gap is of the size

    def _too_small(self, most: int, written: int) -> OptionError:
        smallest, original = math.ceil(written / (1 - _SPARE)), len(self._planned.original.content)
        return OptionError(
            f"--max-size: {most} bytes are fewer than any bits that are allowed take; the smallest that can be kept is "
            f"{smallest} (× {math.ceil(1e4 * smallest / max(original, 1)) / 1e4:g} of FP32's)"
        )

    def _size_limit(self, most: float) -> Limit:
        return Limit(option="--max-size", cost=self._size, most=most)

    def _infeasible(self, limits: Sequence[Limit]) -> OptionError:
        """What to say where no bits keep these, which are not of the size: the fewest keep whatever can be kept."""
        fewest = {name: widths[0] for name, widths in self._choices.items()}
        limit = next(limit for limit in limits if not limit.holds(fewest))
        return OptionError(
            f"{limit.option}: {limit.most:g} is less than any bits that are allowed take; the smallest that can be "
            f"kept is {math.ceil(limit.cost.of(fewest) * 1e4 - 1e-4) / 1e4:g}"
        )

    def _limits(self, budget: Budget | None = None) -> list[Limit]:
        """But that on the size; of another ``budget`` of the same kind, where it is given."""
        budget, limits = budget or self._budget, []
        if budget.avg_weight is not None:
            limits.append(Limit(option="--avg-bits", cost=self._average(self._elements), most=budget.avg_weight))
        if budget.avg_activation is not None:
            activations = dict.fromkeys(self._choices.keys() - self._weights, 1)
            limits.append(Limit(option="--avg-bits", cost=self._average(activations), most=budget.avg_activation))
        if budget.bit_ops is not None:
            assert self._operations is not None
            limits.append(Limit(option="--max-bit-ops", cost=self._operations, most=budget.bit_ops))
        return limits

    def _average(self, sizes: Mapping[str, int]) -> Cost:
        total = max(sum(sizes.values()), 1)
        single = {name: {w: w * sizes[name] / total for w in ALL_BITS} for name in self._choices if name in sizes}
        return Cost(single=single)

    def _find_choices(self) -> Choices:
        planned, options, budget = self._planned, self._options, self._budget
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
        planned = self._planned
        fewest = self._with_weights(lambda name: self._choices[name][0])
        loading = choose_loading(planned.index, fewest, runtime=runtime, max_opset=planned.loading.max_opset)
        width = min((self._choices[name][0] for name in self._weights), default=MAX_BITS)
        equal = self._with_weights(lambda _: width)
        costs = weight_costs(planned.prepared, equal, self._target, loading=loading, metadata=metadata, at=self._at)
        return costs.cost

    def _with_weights(self, bits: Callable[[str], int]) -> Plan:
        """The plan with these bits of the weights, by name."""
        points = {
            name: self._at(point, bits(name)) if name in self._weights else point
            for name, point in self._planned.plan.points.items()
        }
        return dataclasses.replace(self._planned.plan, points=points)

    def _at(self, point: Point, bits: int) -> Point:
        """A weight as plans have it at a width: zero points of its own take bytes, which one of 8 bits has not."""
        reduced = self._options.section.reduce_range and bits == MAX_BITS - 1
        return point.with_bits(bits, symmetric=reduced or self._options.symmetric_weights)

    def _uniforms(self) -> Iterable[tuple[BitWidths, dict[str, int]]]:
        """Equal bits for all layers, as --bits W/A gives them, where every tensor may have them."""
        budget = self._budget
        activations = budget.activations if budget.counts_activations else budget.activations[-1:]
        for weight in budget.weights:
            for activation in activations:
                widths = BitWidths(weight, activation)
                bits = rule_bits(self._planned.index, self._planned.plan, self._options, widths)
                yield widths, bits | dict(self._options.tensor_bits)

    def _narrowed(self, bits: Widths) -> dict[str, int]:
        """As --reduce-range leaves bits that rules give."""
        most = MAX_BITS - 1 if self._options.section.reduce_range else MAX_BITS
        return {name: min(width, most) if name in self._weights else width for name, width in bits.items()}

    def _smallest_uniform(self, limits: Iterable[Limit]) -> list[dict[str, int]]:
        """Of equal bits that keep these those of the smallest file, by the estimate; none where none do."""
        limits = list(limits)
        kept = [bits for _, bits in self._uniforms() if all(limit.holds(self._narrowed(bits)) for limit in limits)]
        return sorted(kept, key=lambda bits: self._size.of(self._narrowed(bits)))[:1]

    def _best_uniform(self, size: Callable[[Widths], int]) -> dict[str, int] | None:
        """Of those that keep the budget the one that loses least; what their size is estimated wrong by is forgiven.

        A budget of exactly the bytes of their file would refuse them else: which bytes those are is known once scales
        are learned. `_equal` tells of it before, and `quantize` refuses a file that is too large.
        """
        most = self._budget.bytes(len(self._planned.original.content))
        limits, left = self._limits(), dict[float, dict[str, int]]()
        for _, bits in self._uniforms():
            narrowed = self._narrowed(bits)
            fits = most is None or self._size.of(narrowed) <= most * _NEAR
            if fits and all(limit.holds(narrowed) for limit in limits):
                left.setdefault(self._loss.of(narrowed), bits)
        for _, bits in sorted(left.items()):
            if most is None or size(bits) <= most * (1 + _SPARE):
                return bits
        return None

    def _frontier(self) -> tuple[Estimate, ...]:
        """The least loss at sizes from the smallest to the largest."""
        smallest, largest = (
            self._size.of(chosen)
            for chosen in (
                {name: widths[0] for name, widths in self._choices.items()},
                {name: widths[-1] for name, widths in self._choices.items()},
            )
        )
        found = []
        for number in range(_FRONTIER):
            most = smallest * (largest / smallest) ** (number / (_FRONTIER - 1)) * (1 + _SPARE)
            limits = [*self._limits(), self._size_limit(most)]
            solution = solve(self._choices, self._loss, limits)
            if solution is not None:
                found.append(self._estimate("frontier", solution))
        return tuple(found)

    def _estimate(self, name: str, solution: Solution) -> Estimate:
        bits = self._narrowed(solution.bits)
        weights = sum(self._elements[tensor] * bits[tensor] for tensor in self._weights)
        learned = [bits[tensor] for tensor in self._choices if tensor not in self._weights]
        return Estimate(
            name=name,
            size=round(self._size.of(bits)),
            loss=self._loss.of(bits),
            avg_weight=weights / max(sum(self._elements.values()), 1),
            avg_activation=sum(learned) / len(learned) if learned else None,
            gap=solution.gap,
        )

    def _why_wide(self) -> str:
        widest = self._budget.activations[-1]
        return (
            f"activations get {widest} bits: {self._budget.told()} does not count them, and the file's size does not "
            "depend on them; --max-bit-ops and --avg-bits W/A do"
        )


def _falling(losses: Mapping[int, float]) -> dict[int, float]:
    """By width; fewer bits are not estimated to lose less."""
    found, least = {}, 0.0
    for width in sorted(losses, reverse=True):
        least = max(least, losses[width])
        found[width] = least
    return found


def placeholder_size(planned: PlannedModel, target: str, metadata: Mapping[str, str]) -> int:
    """Bytes of the file of a plan, written with what calibration would learn, roughly."""
    tensors = estimate_tensors(planned.prepared, planned.plan)
    file = find_target(target).export(
        planned.prepared.model,
        planned.plan,
        tensors,
        metadata=metadata,
        packing=planned.loading.packing,
        max_opset=planned.loading.max_opset,
    )
    return int(file.ByteSize())
