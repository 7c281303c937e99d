"""Gates: limits that a file has to hold, judged on what was measured, with the statistical error of each figure."""

from pdq_export.gates.asked import NO_LABELS, Limits, check_outputs, flag, parse_limits
from pdq_export.gates.judge import Gate, judge

__all__ = ["NO_LABELS", "Gate", "Limits", "check_outputs", "flag", "judge", "parse_limits"]
