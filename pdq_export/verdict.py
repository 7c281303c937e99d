"""What a report means, told as warnings: outputs that are of no use."""

import logging

from pdq_export.samples import Data
from pdq_export.validate import Report

logger = logging.getLogger(__name__)

# Relative error of outputs that say nothing of FP32's any more.
_USELESS = 0.9


def warn_useless(report: Report, judged: Data) -> None:
    """Warn where an output is hardly nearer to FP32's than zeros are."""
    for output in report.outputs:
        if (error := output.quantized_float.relative_error) > _USELESS:
            logger.warning(
                "output %r: its error on %s is %.0f %% of FP32's output (zeros have 100 %%): the file is of no use; "
                "calibrate on images like those, or use more bits, images or steps",
                output.name,
                judged.source,
                100 * error,
            )
