"""What a report means, told as warnings: outputs that are of no use, kernels that saturate."""

import logging

from pdq_export.advice import asked_for_fewer_bits, bits_or_float
from pdq_export.errors import first_few
from pdq_export.plan.saturation import saturating_layers
from pdq_export.samples import Data
from pdq_export.spec import Plan
from pdq_export.validate import Report, kernels_saturate

logger = logging.getLogger(__name__)

# Of onnxruntime from the simulation, where all is well: rounding that differs in a few integers stays far below.
_LARGEST_DEVIATION = 0.01
# Relative error of outputs that say nothing of FP32's any more.
_USELESS = 0.9


def warn_useless(report: Report, judged: Data) -> None:
    """Warn where an output is hardly nearer to FP32's than zeros are."""
    for output in report.outputs:
        if (error := output.quantized_float.relative_error) > _USELESS:
            logger.warning(
                "output %r: its error on %s is %.0f %% of FP32's output (zeros have 100 %%): the file is of no use; "
                "calibrate on images like those, and on more, or %s",
                output.name,
                judged.source,
                100 * error,
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
