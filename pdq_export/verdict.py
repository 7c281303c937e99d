"""What a report means, told as warnings: outputs that are of no use."""

import logging

from pdq_export.advice import asked_for_fewer_bits, bits_or_float
from pdq_export.samples import Data
from pdq_export.validate import Agreement, Report

logger = logging.getLogger(__name__)

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
