"""What a report means, told as warnings: outputs that are of no use, kernels that saturate."""

import logging

from pdq_export.advice import asked_for_fewer_bits, bits_or_float
from pdq_export.errors import first_few
from pdq_export.plan.saturation import saturating_layers
from pdq_export.samples import Data
from pdq_export.spec import Plan
from pdq_export.validate import Agreement, Report, kernels_saturate

logger = logging.getLogger(__name__)

# Of onnxruntime from the simulation, where all is well: rounding that differs in a few integers stays far below.
_LARGEST_DEVIATION = 0.01
# Relative error of outputs that say nothing of FP32's any more.
_USELESS = 0.9
# Of a part that is lost while the whole is well: of the detections that FP32 is sure of, half are others by then.
_LOST = 0.5


def warn_useless(report: Report, judged: Data) -> None:
    """Warn where an output is hardly nearer to FP32's than zeros are, or where its argmax is FP32's by chance alone.

    Nearer on half of the images: a sum over all of them may be one image's.
    """
    for output in report.outputs:
        if found := _useless(output.quantized_float, judged.source):
            logger.warning(
                "output %r: %s: the file is of no use; calibrate on images like those, and on more, or %s",
                output.name,
                found,
                bits_or_float(asked_for_fewer_bits(report.settings)),
            )


def _useless(agreement: Agreement, source: str) -> str:
    """In what an output says nothing of FP32's; empty where it does."""
    if (error := agreement.median_relative_error) > _USELESS:
        return (
            f"its error on {source} is {100 * error:.0f} % of FP32's output, or more, on half of the images (zeros "
            "have 100 %)"
        )
    if agreement.argmax_agreement is not None and agreement.chance_agreement is not None and agreement.is_chance:
        return (
            f"its argmax on {source} is FP32's {100 * agreement.argmax_agreement:.0f} % of the time, as by chance "
            f"({100 * agreement.chance_agreement:.0f} %)"
        )
    return ""


def warn_lost_parts(report: Report, judged: Data) -> None:
    """Warn where a part of an output has gone though the whole output hardly shows it."""
    whole = {output.name: output.quantized_float for output in report.outputs}
    for part in report.parts:
        error, shown = (agreement.median_relative_error for agreement in (part.quantized_float, whole[part.output]))
        if error > _LOST and shown <= _USELESS:
            logger.warning(
                "output %r: the error of its part %s on %s is %.0f %% of FP32's (zeros: 100 %%) or more on half of "
                "the images, that of the whole output %.0f %%: what the part holds, such as a detector's scores, is "
                "lost; take more images or steps, or %s",
                part.output,
                part.name,
                judged.source,
                100 * error,
                100 * shown,
                bits_or_float(asked_for_fewer_bits(report.settings)),
            )


def saturated_layers(report: Report, plan: Plan) -> tuple[str, ...]:
    """Where onnxruntime's results are not the simulation's and its kernels saturate on this processor, with a warning.

    Empty where results are the simulation's.
    """
    differing = [
        (output.name, output.quantized_simulated.relative_error)
        for output in report.outputs
        if output.quantized_simulated is not None and output.quantized_simulated.relative_error > _LARGEST_DEVIATION
    ]
    layers = report.kernels.as_integers(saturating_layers(plan)) if differing else ()
    if not layers or not kernels_saturate():
        return ()
    for name, error in differing:
        logger.warning(
            "output %r: onnxruntime is %.1f %% off the simulation: on this processor its kernels saturate on "
            "weights of more than 7 bits with 8-bit inputs (%s); quantize with --reduce-range for processors like it",
            name,
            100 * error,
            first_few([repr(layer) for layer in layers]),
        )
    return layers
