"""`--bits auto`: bits for every tensor that lose least within a budget, by what each was measured to do."""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx

from pdq_export.commands.estimates import estimate_tensors
from pdq_export.commands.space import Space
from pdq_export.errors import OptionError
from pdq_export.graph.edit import with_constants
from pdq_export.report.bits import Estimate, SearchReport
from pdq_export.report.tensor_losses import TensorLosses
from pdq_export.search.asked import Budget
from pdq_export.search.budget import Limit, Solution, Widths, solve
from pdq_export.targets import find_target
from pdq_export.work import PlannedModel

logger = logging.getLogger(__name__)

_BETTER = 0.95  # of the estimated loss of uniform bits: what promises less gain is no reason to leave them
_RAISED = 1.25
_FRONTIER = 9  # budgets that are solved for the chart
_ROUNDS = 8
# Zero points can be stored in another way once scales are learned.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSize:
    """Bytes of a file: as it is ``written`` with placeholders, and what it may ``become`` once scales are learned."""

    written: int
    become: int


Sizing = Callable[[Widths], FileSize]


class Search:
    """Finds bits in a `Space`, the best by its estimates within its budget."""

    def __init__(self, space: Space) -> None:
        self._space, self._budget, self._most = space, space.budget, space.most
        self._choices, self._loss, self._size = space.choices, space.loss, space.size

    def find(self, *, size: Sizing) -> Found:
        """The allotment of the least estimated loss that keeps the budget. Raises OptionError where none does.

        ``size``: of a file with these bits; what it takes more than estimated the next solution has to spare. Bits that
        differ keep a budget of bytes with what it may become. Equal bits that keep the budget are taken where
        nothing else does, or promises less loss.
        """
        uniform = self._best_uniform(size)
        try:
            solution, sized = self._within(size)
        except OptionError:
            if uniform is None:
                raise
            logger.info("%s: no bits that differ were found within it; equal ones keep it", self._budget.told())
            return self._equal(*uniform)
        if uniform is not None:
            equal, _ = uniform
            if self._loss.of(solution.bits) > _BETTER * self._loss.of(self._space.narrowed(equal)):
                logger.info("bits that differ promise no less loss than equal ones: %s keeps them", self._budget.told())
                return self._equal(*uniform)
        if solution.gap:
            logger.warning(
                "%s: the solver stopped at a part of all allotments; others could lose up to %.2g %% less by the sum "
                "of estimates; %s",
                self._budget.told(),
                100 * solution.gap,
                _FEWER,
            )
        return self._found(solution, sized.written, None if uniform is None else uniform[0])

    def smallest(self, loss: float, *, size: Sizing) -> Found:
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
        written = size(solution.bits).written
        uniform = next(iter(self._smallest_uniform([limit])), None)
        if uniform is not None and (equal := size(uniform).written) <= written:
            return self._found(Solution(bits=uniform), equal, uniform)
        return self._found(solution, written, uniform)

    def _equal(self, uniform: Widths, sized: FileSize) -> Found:
        """Equal bits; told where their file may be refused for its size."""
        most, written = self._most, sized.written
        if most is not None and sized.become > most * (1 - _SPARE):
            logger.log(
                logging.WARNING if written > most else logging.INFO,
                "%s: equal bits are estimated to take %d bytes of the %d that are allowed; whether the file keeps them "
                "is known once scales are learned, and it is refused then if it does not; --max-size %d should do",
                self._budget.told(),
                written,
                most,
                math.ceil(sized.become / (1 - _SPARE)),
            )
        return self._found(Solution(bits=dict(uniform)), written, uniform)

    def _found(self, solution: Solution, written: int, uniform: Widths | None) -> Found:
        space = self._space
        note = "" if self._budget.counts_activations else self._why_wide()
        if note:
            logger.info("%s", note)
        told = SearchReport(
            budget=self._budget.told(),
            chosen=dataclasses.replace(space.estimate("auto", solution), size=written),
            uniform=None if uniform is None else space.estimate(self._name(uniform), Solution(bits=dict(uniform))),
            frontier=self._frontier(),
            uniforms=tuple(space.estimate(str(widths), Solution(bits=bits)) for widths, bits in space.uniforms()),
            measure=space.sensitivity.measure,
            note=note,
            tensors=TensorLosses.of(space.sensitivity, solution.bits),
        )
        return Found(bits=solution.bits, budget=self._budget, report=told, raised=self._raised())

    def _raised(self) -> Estimate | None:
        """Within budgets of averages and operations that are larger by a quarter; its name are the options."""
        larger = self._budget.raised(_RAISED)
        if larger is None:
            return None
        solution = solve(self._choices, self._loss, self._space.limits(larger))
        return None if solution is None else self._space.estimate(larger.told(), solution)

    def _name(self, uniform: Widths) -> str:
        return next(str(widths) for widths, bits in self._space.uniforms() if bits == uniform)

    def _within(self, size: Sizing) -> tuple[Solution, FileSize]:
        """The best bits and the size of their file; what that is off the estimate, the next solution spares."""
        limits, most = self._space.limits(), self._most
        if most is None:
            found = solve(self._choices, self._loss, limits)
            if found is None:
                raise self._space.infeasible(limits)
            return found, size(found.bits)
        spared = most * (1 - _SPARE)
        if (best := self._best(size, spared, limits)) is not None:
            return best
        smallest = solve(self._choices, self._size, limits)
        if smallest is None:
            raise self._space.infeasible(limits)
        if (sized := size(smallest.bits)).become > spared:
            equal = [size(bits).become for bits in self._smallest_uniform(limits)]
            raise self._too_small(most, min([sized.become, *equal]))
        return self._between(size, spared, limits, smallest.bits) or (self._smallest(smallest), sized)

    def _best(self, size: Sizing, spared: float, limits: Sequence[Limit]) -> tuple[Solution, FileSize] | None:
        """The best of those that keep the size, by estimates that are corrected by what is written, up or down."""
        aim, best, tried = spared, None, list[Widths]()
        for _ in range(_ROUNDS):
            found = solve(self._choices, self._loss, [*limits, self._size_limit(aim)])
            if found is None or found.bits in tried:
                break
            tried.append(found.bits)
            sized = size(found.bits)
            if sized.become <= spared and (best is None or self._loss.of(found.bits) < self._loss.of(best[0].bits)):
                best = found, sized
            elif best is not None:
                break
            aim = self._size.of(found.bits) - (sized.become - spared)
        return best

    def _between(
        self, size: Sizing, spared: float, limits: Sequence[Limit], smallest: Widths
    ) -> tuple[Solution, FileSize] | None:
        """The best that keeps the size, of budgets halved towards that of the smallest; None where none does."""
        low, high, best = self._size.of(smallest), spared, None
        for _ in range(_ROUNDS):
            aim = (low + high) / 2
            found = solve(self._choices, self._loss, [*limits, self._size_limit(aim)])
            if found is not None and (sized := size(found.bits)).become <= spared:
                best, low = (found, sized), aim
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
        smallest, original = math.ceil(written / (1 - _SPARE)), len(self._space.planned.original.content)
        return OptionError(
            f"--max-size: {most} bytes are fewer than any bits that are allowed take; the smallest that can be kept is "
            f"{smallest} (× {math.ceil(1e4 * smallest / max(original, 1)) / 1e4:g} of FP32's)"
        )

    def _size_limit(self, most: float) -> Limit:
        return Limit(option="--max-size", cost=self._size, most=most)

    def _smallest_uniform(self, limits: Iterable[Limit]) -> list[dict[str, int]]:
        """Of equal bits that keep these those of the smallest file, by the estimate; none where none do."""
        limits, space = list(limits), self._space
        kept = [bits for _, bits in space.uniforms() if all(limit.holds(space.narrowed(bits)) for limit in limits)]
        return sorted(kept, key=lambda bits: self._size.of(space.narrowed(bits)))[:1]

    def _best_uniform(self, size: Sizing) -> tuple[dict[str, int], FileSize] | None:
        """Of those that keep the budget the one that loses least; what its size is estimated wrong by is forgiven.

        A budget of exactly the bytes of their file would refuse them else: which bytes those are is known once scales
        are learned. `_equal` tells of it before, and `quantize` refuses a file that is too large.
        """
        most = self._most
        limits, left = self._space.limits(), dict[float, dict[str, int]]()
        for _, bits in self._space.uniforms():
            narrowed = self._space.narrowed(bits)
            fits = most is None or self._size.of(narrowed) <= most * _NEAR
            if fits and all(limit.holds(narrowed) for limit in limits):
                left.setdefault(self._loss.of(narrowed), bits)
        for _, bits in sorted(left.items()):
            sized = size(bits)
            if most is None or sized.written <= most * (1 + _SPARE):
                return bits, sized
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
            limits = [*self._space.limits(), self._size_limit(most)]
            solution = solve(self._choices, self._loss, limits)
            if solution is not None:
                found.append(self._space.estimate("frontier", solution))
        return tuple(found)

    def _why_wide(self) -> str:
        widest = self._budget.activations[-1]
        return (
            f"activations get {widest} bits: {self._budget.told()} does not count them, and the file's size does not "
            "depend on them; --max-bit-ops and --avg-bits W/A do"
        )


def placeholder_size(planned: PlannedModel, target: str, metadata: Mapping[str, str]) -> FileSize:
    """Of the file of a plan, written with what calibration would learn, roughly.

    What it may come to is counted with biases as they are and twice as large, as they are in half of the scales.
    """
    tensors = estimate_tensors(planned.prepared, planned.plan)

    def write(model: onnx.ModelProto) -> int:
        loading = planned.loading
        file = find_target(target).export(
            model, planned.plan, tensors, metadata=metadata, packing=loading.packing, max_opset=loading.max_opset
        )
        return int(file.ByteSize())

    model, index = planned.prepared.model, planned.prepared.index
    biases = {layer.bias: index.constant(layer.bias) for layer in planned.plan.layers if layer.bias is not None}
    largest = np.finfo(np.float32).max / 2
    doubled = {name: 2 * value.clip(-largest, largest) for name, value in biases.items() if value is not None}
    written = write(model)
    return FileSize(written=written, become=max(written, write(with_constants(model, doubled))))
