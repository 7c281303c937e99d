"""Reports, composed from measurements: their data and schema, and what they mean."""

from pdq_export.report.course import BlockCourse
from pdq_export.report.html import KeptRun, to_html
from pdq_export.report.junit import to_junit
from pdq_export.report.layers import LayerReport
from pdq_export.report.loss import find_loss, saturation_costs, saturation_remedy
from pdq_export.report.markdown import to_markdown
from pdq_export.report.reading import read_report
from pdq_export.report.report import ModelInfo, Report, versions
from pdq_export.report.verdict import tell_parity, tell_verdict, warn_lost_parts, warn_useless

__all__ = [
    "BlockCourse",
    "KeptRun",
    "LayerReport",
    "ModelInfo",
    "Report",
    "find_loss",
    "read_report",
    "saturation_costs",
    "saturation_remedy",
    "tell_parity",
    "tell_verdict",
    "to_html",
    "to_junit",
    "to_markdown",
    "versions",
    "warn_lost_parts",
    "warn_useless",
]
