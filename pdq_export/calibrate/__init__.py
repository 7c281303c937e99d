"""PD-Quant: block reconstruction with learned rounding and scales, guided by the network's prediction."""

from pdq_export.calibrate.block_state import BlockRecord, BlockState, Checkpoint
from pdq_export.calibrate.engine import Calibrated, calibrate
from pdq_export.calibrate.journal import BlockProgress
from pdq_export.calibrate.tiers import Source

__all__ = ["BlockProgress", "BlockRecord", "BlockState", "Calibrated", "Checkpoint", "Source", "calibrate"]
