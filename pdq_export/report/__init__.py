"""Reports, composed from measurements: their data and schema, and what they mean."""

from pdq_export.report.junit import to_junit
from pdq_export.report.markdown import to_markdown
from pdq_export.report.report import ModelInfo, Report, versions
from pdq_export.report.verdict import tell_parity, tell_verdict, warn_lost_parts, warn_useless

__all__ = [
    "ModelInfo",
    "Report",
    "tell_parity",
    "tell_verdict",
    "to_junit",
    "to_markdown",
    "versions",
    "warn_lost_parts",
    "warn_useless",
]
