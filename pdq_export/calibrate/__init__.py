"""PD-Quant: block reconstruction with learned rounding and scales, guided by the network's prediction."""

from pdq_export.calibrate.engine import BlockProgress, Calibrated, calibrate
from pdq_export.calibrate.options import CalibrationOptions

__all__ = ["BlockProgress", "Calibrated", "CalibrationOptions", "calibrate"]
