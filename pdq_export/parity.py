"""Whether onnxruntime computes what the simulation did, and whose fault it is where it does not."""

import dataclasses
import logging
from collections.abc import Iterable

from pdq_export.errors import ValidationError, first_few
from pdq_export.plan.saturation import saturating_layers
from pdq_export.spec import Plan
from pdq_export.validate import WITHOUT_SATURATION, Batch, Report, Simulate, kernels_saturate, measure_otherwise

logger = logging.getLogger(__name__)

# Of onnxruntime from the simulation. Where all is well, rounding that differs in a few integers stays far below the
# first; beyond the second the file is not what was calibrated.
_NOTICED = 0.01
_REFUSED = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deviation:
    """How far an output is off the simulation by default, and in the ``way`` of running the file that is nearest."""

    output: str
    as_run: float
    best: float
    way: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """``deviations``: of the outputs that are off. ``saturated``: the layers that explain all of them, or none.

    ``reducible``: whether --reduce-range changes any of these.
    """

    deviations: tuple[Deviation, ...]
    saturated: tuple[str, ...]
    reducible: bool = True

    def tell(self) -> None:
        """Warn of every output that is off. Raises ValidationError where one is far off and nothing explains it."""
        worst = max(self.deviations, key=lambda deviation: deviation.as_run, default=None)
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


def judge_parity(report: Report, plan: Plan, quantized: bytes, images: Iterable[Batch], simulate: Simulate) -> Parity:
    """Compare what onnxruntime and the simulation gave, and where they differ run the file in other ways.

    ``quantized``: the file, with the outputs of the report; ``images``: a few. Kernels that saturate are the reason
    only where a way without them is much nearer.
    """
    off = {
        output.name: output.deviation
        for output in report.outputs
        if output.deviation is not None and output.deviation > _NOTICED
    }
    if not off:
        return Parity(deviations=(), saturated=())
    names = [output.name for output in report.outputs]
    ways = list(measure_otherwise(quantized, images, simulate, names, report.session_config))
    deviations = []
    for name, as_run in off.items():
        way, found = min(ways, key=lambda measured: measured[1][name])
        deviations.append(Deviation(output=name, as_run=as_run, best=found[name], way=way))
    layers = report.kernels.as_integers(saturating_layers(plan, signed=True)) if kernels_saturate() else ()
    explained = all(d.best <= min(_REFUSED, d.as_run / 2) for d in deviations)
    return Parity(
        deviations=tuple(deviations),
        saturated=layers if explained else (),
        reducible=bool(saturating_layers(plan)),
    )


def _remedy(deviation: Deviation) -> str:
    if deviation.best > min(_REFUSED, deviation.as_run / 2):
        return "the file does not compute what was calibrated: please report this as a bug, with the model"
    if _is_option(deviation.way):
        return "load it with this session option, or use another version of onnxruntime"
    return "run it without graph optimizations, or use another version of onnxruntime"


def _is_option(way: str) -> bool:
    return any(key in way for key in WITHOUT_SATURATION)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
