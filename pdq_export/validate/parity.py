"""Whether onnxruntime computes what the simulation did, and whose fault it is where it does not."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from pdq_export.validate.deviation import (
    BY_DEFAULT,
    WITHOUT_SATURATION,
    measure_amplified,
    measure_ways,
)
from pdq_export.validate.measure import Comparison, Measurements
from pdq_export.validate.runtime import Batch, batch_size, kernels_saturate, with_outputs

# Of onnxruntime from the simulation. Where all is well, rounding that differs in a few integers stays far below the
# first; beyond the second the file is not what was calibrated.
NOTICED = 0.01
REFUSED = 0.1
_LOOKED_AT_AGAIN = 64  # images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deviation:
    """How far an output is off the simulation by default, and in the ``way`` of running the file that is nearest.

    ``as_run``: on all images that were simulated; ``here``, also by default, and ``best``: on those that the ways were
    compared on. ``amplified``: how far rounding of the images moves the output in the float file, once it was asked.
    """

    output: str
    as_run: float
    here: float
    best: float
    way: str
    amplified: float = 0.0

    @property
    def cured(self) -> bool:
        """Whether the way is much nearer than the default, on images on which the default is off."""
        return self.here >= self.as_run / 2 and self.best <= min(REFUSED, self.here / 2)

    @property
    def chaotic(self) -> bool:
        """Whether rounding makes as much."""
        return self.as_run <= 2 * self.amplified

    @property
    def by_option(self) -> bool:
        """Whether the way is a session option."""
        return any(key in self.way for key in WITHOUT_SATURATION)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """``deviations``: of the outputs that are off. ``saturated``: the layers that explain all that rounding does not.

    ``reducible``: whether --reduce-range changes any of these.
    """

    deviations: tuple[Deviation, ...]
    saturated: tuple[str, ...]
    reducible: bool = True

    @property
    def steady(self) -> tuple[Deviation, ...]:
        """The deviations that rounding does not make."""
        return tuple(deviation for deviation in self.deviations if not deviation.chaotic)


def judge_parity(
    measured: Measurements,
    comparison: Comparison,
    *,
    saturating: Sequence[str],
    reducible: bool,
    progress: Callable[[int, int], None] | None = None,
) -> Parity:
    """Compare what onnxruntime and the simulation gave, and where they differ run the file in other ways.

    ``measured``: of this ``comparison``. ``saturating``: the layers whose integer kernels can saturate; ``reducible``:
    whether --reduce-range changes any of them. ``progress`` is told how many images, of how many, have been run
    again. Kernels that saturate are the reason only where a way without them is much nearer, on the same images.
    """
    off = {
        output.name: output.deviation
        for output in measured.outputs
        if output.deviation is not None and output.deviation > NOTICED
    }
    if not off:
        return Parity(deviations=(), saturated=())
    names = [output.name for output in measured.outputs]
    tell = progress or (lambda done, total: None)
    few = list(_first(comparison.batches(), _LOOKED_AT_AGAIN))
    deviations = _compare_ways(off, names, measured, comparison, _counted(few, sum(map(batch_size, few)), tell))
    if any(deviation.here < deviation.as_run / 2 for deviation in deviations):  # only other images show it
        total = max(o.quantized_simulated.images for o in measured.outputs if o.quantized_simulated is not None)
        simulated = _counted(comparison.simulated_batches(), total, tell)
        deviations = _compare_ways(off, names, measured, comparison, simulated)
    if any(d.as_run > REFUSED for d in deviations) and not all(d.cured for d in deviations):
        content = with_outputs(comparison.original, comparison.compared)
        moved = measure_amplified(content, few, names, optimize=comparison.optimize)
        deviations = [d if d.cured else dataclasses.replace(d, amplified=moved[d.output]) for d in deviations]
    parity = Parity(deviations=tuple(deviations), saturated=(), reducible=reducible)
    cured = bool(parity.steady) and all(deviation.cured for deviation in parity.steady)
    kernels = measured.kernels if cured and kernels_saturate() else None
    layers = () if kernels is None else kernels.as_integers(saturating)
    return dataclasses.replace(parity, saturated=layers)


def _first(batches: Iterable[Batch], images: int) -> Iterator[Batch]:
    """So many whole batches as hold at most that many images, but one at least."""
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        return
    yield first
    yield from itertools.islice(batches, max(images // batch_size(first), 1) - 1)


def _compare_ways(
    off: Mapping[str, float],
    names: Sequence[str],
    measured: Measurements,
    comparison: Comparison,
    batches: Iterable[Batch],
) -> list[Deviation]:
    assert comparison.simulate is not None  # else nothing is known to be off
    assert comparison.quantized is not None  # likewise
    content = with_outputs(comparison.quantized, comparison.compared)
    ways = measure_ways(content, batches, comparison.simulate, names, measured.session_config)
    here = ways.pop(BY_DEFAULT)
    nearest = {name: min(ways, key=lambda way: ways[way][name]) for name in off}
    return [
        Deviation(output=name, as_run=as_run, here=here[name], best=ways[nearest[name]][name], way=nearest[name])
        for name, as_run in off.items()
    ]


def _counted(batches: Iterable[Batch], total: int, tell: Callable[[int, int], None]) -> Iterator[Batch]:
    """The batches; whenever the next one is asked for it is told how many images are done."""
    done = 0
    for batch in batches:
        yield batch
        done += batch_size(batch)
        tell(done, total)
