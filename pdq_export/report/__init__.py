"""Reports, composed from measurements: their data and schema, and what they mean."""

from pdq_export.report.report import ModelInfo, Report, versions
from pdq_export.report.verdict import tell_parity, tell_verdict, warn_lost_parts, warn_useless

__all__ = ["ModelInfo", "Report", "tell_parity", "tell_verdict", "versions", "warn_lost_parts", "warn_useless"]
