"""Whether onnxruntime computes what the simulation did, and whose fault it is where it does not."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence

from pdq_export.errors import ValidationError, first_few
from pdq_export.plan.saturation import saturating_layers
from pdq_export.spec import Plan
from pdq_export.validate import (
    BY_DEFAULT,
    WITHOUT_SATURATION,
    Batch,
    Report,
    Simulate,
    kernels_saturate,
    measure_amplified,
    measure_ways,
)

logger = logging.getLogger(__name__)

# Of onnxruntime from the simulation. Where all is well, rounding that differs in a few integers stays far below the
# first; beyond the second the file is not what was calibrated.
_NOTICED = 0.01
_REFUSED = 0.1


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
        return self.here >= self.as_run / 2 and self.best <= min(_REFUSED, self.here / 2)

    @property
    def chaotic(self) -> bool:
        """Whether rounding makes as much."""
        return self.as_run <= 2 * self.amplified


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """``deviations``: of the outputs that are off. ``saturated``: the layers that explain all that rounding does not.

    ``reducible``: whether --reduce-range changes any of these.
    """

    deviations: tuple[Deviation, ...]
    saturated: tuple[str, ...]
    reducible: bool = True

    def tell(self) -> None:
        """Warn of every output that is off. Raises ValidationError where one is far off and nothing explains it."""
        steady = [deviation for deviation in self.deviations if not deviation.chaotic]
        worst = max(steady, key=lambda deviation: deviation.as_run, default=None)
        if worst is not None and not self.saturated and worst.as_run > _REFUSED:
            raise ValidationError(
                f"output {worst.output!r}: onnxruntime is {_percent(worst.as_run)} off the simulation "
                f"({worst.way} {_percent(worst.best)}); expected {_percent(_REFUSED)} at most; {_remedy(worst)}"
            )
        for deviation in self.deviations:
            self._warn(deviation)

    def _warn(self, deviation: Deviation) -> None:
        found = f"output {deviation.output!r}: onnxruntime is {_percent(deviation.as_run)} off the simulation"
        other = f"{deviation.way} it is {_percent(deviation.best)} off"
        if deviation.chaotic:
            logger.warning(
                "%s: it amplifies rounding; changes of the images by a hundred-thousandth move it by %s in the float "
                "model, too; expect other numbers of it with every runtime and processor",
                found,
                _percent(deviation.amplified),
            )
            return
        if not self.saturated:
            logger.warning(
                "%s (%s); expected %s at most; judge the file by its figures in onnxruntime",
                found,
                other,
                _percent(_NOTICED),
            )
            return
        option = ", or load it with this option" if _is_option(deviation.way) and deviation.best <= _NOTICED else ""
        logger.warning(
            "%s: on this processor its kernels saturate on weights of more than 7 bits with 8-bit inputs (%s); %s, so "
            "the file is right for processors with VNNI%s",
            found,
            first_few([repr(layer) for layer in self.saturated]),
            other,
            f"; for those like this one quantize with --reduce-range{option}" if self.reducible else "",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is run again where an output is off.

    ``quantized``: the file, and ``floating``, what it was compared with, both with the outputs of the report;
    ``optimize``: whether onnxruntime may optimize the latter. ``few``, ``simulated``: images, and all that the
    simulation has seen.
    """

    quantized: bytes
    floating: bytes
    optimize: bool
    few: Sequence[Batch]
    simulated: Iterable[Batch]
    simulate: Simulate


def judge_parity(report: Report, plan: Plan, evidence: Evidence) -> Parity:
    """Compare what onnxruntime and the simulation gave, and where they differ run the file in other ways.

    Kernels that saturate are the reason only where a way without them is much nearer, on the same images.
    """
    off = {
        output.name: output.deviation
        for output in report.outputs
        if output.deviation is not None and output.deviation > _NOTICED
    }
    if not off:
        return Parity(deviations=(), saturated=())
    names = [output.name for output in report.outputs]
    deviations = _compare_ways(off, names, report, evidence, evidence.few)
    if any(deviation.here < deviation.as_run / 2 for deviation in deviations):  # only other images show it
        deviations = _compare_ways(off, names, report, evidence, evidence.simulated)
    if any(d.as_run > _REFUSED for d in deviations) and not all(d.cured for d in deviations):
        moved = measure_amplified(evidence.floating, evidence.few, names, optimize=evidence.optimize)
        deviations = [d if d.cured else dataclasses.replace(d, amplified=moved[d.output]) for d in deviations]
    layers = report.kernels.as_integers(saturating_layers(plan, signed=True)) if kernels_saturate() else ()
    steady = [deviation for deviation in deviations if not deviation.chaotic]
    return Parity(
        deviations=tuple(deviations),
        saturated=layers if steady and all(deviation.cured for deviation in steady) else (),
        reducible=bool(saturating_layers(plan)),
    )


def _compare_ways(
    off: Mapping[str, float], names: Sequence[str], report: Report, evidence: Evidence, images: Iterable[Batch]
) -> list[Deviation]:
    ways = measure_ways(evidence.quantized, images, evidence.simulate, names, report.session_config)
    here = ways.pop(BY_DEFAULT)
    nearest = {name: min(ways, key=lambda way: ways[way][name]) for name in off}
    return [
        Deviation(output=name, as_run=as_run, here=here[name], best=ways[nearest[name]][name], way=nearest[name])
        for name, as_run in off.items()
    ]


def _remedy(deviation: Deviation) -> str:
    if not deviation.cured:
        return "the file does not compute what was calibrated: please report this as a bug, with the model"
    if _is_option(deviation.way):
        return "load it with this session option, or use another version of onnxruntime"
    return "run it without graph optimizations, or use another version of onnxruntime"


def _is_option(way: str) -> bool:
    return any(key in way for key in WITHOUT_SATURATION)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
