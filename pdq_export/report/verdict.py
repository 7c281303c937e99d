"""What measurements mean, told as warnings: outputs that are of no use, or not what was calibrated."""

import logging

from pdq_export.advice import asked_for_fewer_bits, bits_or_float
from pdq_export.errors import ValidationError, first_few, percent
from pdq_export.report.report import Report
from pdq_export.validate import Agreement
from pdq_export.validate.parity import NOTICED, REFUSED, Deviation, Parity

logger = logging.getLogger(__name__)

# Relative error of outputs that say nothing of FP32's any more.
_USELESS = 0.9
# Of a part that is lost while the whole is well: of the detections that FP32 is sure of, half are others by then.
_LOST = 0.5


def tell_verdict(report: Report, parity: Parity, source: str) -> None:
    """Tell all that is to be said of a file, measured on ``source``. Raises ValidationError as `tell_parity` does."""
    warn_useless(report, source)
    warn_lost_parts(report, source)
    warn_slow(report)
    tell_parity(parity)


def warn_useless(report: Report, source: str) -> None:
    """Warn where an output is hardly nearer to FP32's than zeros are, or where its argmax is FP32's by chance alone.

    Nearer on half of the images: a sum over all of them may be one image's.
    """
    for output in report.outputs:
        if found := _useless(output.against_float, source):
            logger.warning(
                "output %r: %s: the file is of no use; calibrate on images like those, and on more, or %s",
                output.name,
                found,
                bits_or_float(asked_for_fewer_bits(report.settings)),
            )


def _useless(agreement: Agreement, source: str) -> str:
    """In what an output says nothing of FP32's; empty where it does."""
    error = agreement.median_relative_error
    if error is None:
        return f"FP32's output on {source} is zero throughout, and the file's is not"
    if error > _USELESS:
        return (
            f"its error on {source} is {percent(error, 0)} of FP32's output, or more, on half of the images (zeros "
            "have 100 %)"
        )
    if agreement.argmax_agreement is not None and agreement.chance_agreement is not None and agreement.is_chance:
        return (
            f"its argmax on {source} is FP32's {percent(agreement.argmax_agreement, 0)} of the time, as by chance "
            f"({percent(agreement.chance_agreement, 0)})"
        )
    return ""


def warn_lost_parts(report: Report, source: str) -> None:
    """Warn where a part of an output has gone though the whole output hardly shows it."""
    whole = {output.name: output.against_float for output in report.outputs}
    for part in report.parts:
        error, shown = (agreement.median_relative_error for agreement in (part.quantized_float, whole[part.output]))
        if error is not None and shown is not None and error > _LOST and shown <= _USELESS:
            logger.warning(
                "output %r: the error of its part %s on %s is %s of FP32's (zeros: 100 %%) or more on half of "
                "the images, that of the whole output %s: what the part holds, such as a detector's scores, is "
                "lost; take more images or steps, or %s",
                part.output,
                part.name,
                source,
                percent(error, 0),
                percent(shown, 0),
                bits_or_float(asked_for_fewer_bits(report.settings)),
            )


def warn_slow(report: Report) -> None:
    """Warn where onnxruntime takes longer for the file than for FP32, though it was made to be faster there."""
    if report.is_slower and report.latency_note is not None:
        logger.warning("%s", report.latency_note)


def tell_parity(parity: Parity) -> None:
    """Warn of every output that is off the simulation.

    Raises ValidationError where one is far off and nothing explains it.
    """
    worst = max(parity.steady, key=lambda deviation: deviation.as_run, default=None)
    if worst is not None and not parity.saturated and worst.as_run > REFUSED:
        raise ValidationError(
            f"output {worst.output!r}: onnxruntime is {percent(worst.as_run, 1)} off the simulation "
            f"({worst.way} {percent(worst.best, 1)}); expected {percent(REFUSED, 1)} at most; {_remedy(worst)}"
        )
    for deviation in parity.deviations:
        _warn(parity, deviation)


def _warn(parity: Parity, deviation: Deviation) -> None:
    found = f"output {deviation.output!r}: onnxruntime is {percent(deviation.as_run, 1)} off the simulation"
    other = f"{deviation.way} it is {percent(deviation.best, 1)} off"
    if deviation.chaotic:
        logger.warning(
            "%s: it amplifies rounding; changes of the images by a hundred-thousandth move it by %s in the float "
            "model, too; expect other numbers of it with every runtime and processor",
            found,
            percent(deviation.amplified, 1),
        )
        return
    if not parity.saturated:
        logger.warning(
            "%s (%s); expected %s at most; judge the file by its figures in onnxruntime",
            found,
            other,
            percent(NOTICED, 1),
        )
        return
    option = ", or load it with this option" if deviation.by_option and deviation.best <= NOTICED else ""
    logger.warning(
        "%s: on this processor its kernels saturate on weights of 8 bits, or asymmetric ones of 7, with 8-bit inputs "
        "(%s); %s, so the file is right for processors with VNNI%s",
        found,
        first_few([repr(layer) for layer in parity.saturated]),
        other,
        f"; for those like this one quantize with --reduce-range{option}" if parity.reducible else "",
    )


def _remedy(deviation: Deviation) -> str:
    if not deviation.cured:
        return "the file does not compute what was calibrated: please report this as a bug, with the model"
    if deviation.by_option:
        return "load it with this session option, or use another version of onnxruntime"
    return "run it without graph optimizations, or use another version of onnxruntime"
