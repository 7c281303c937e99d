"""A report as Markdown, for the summary of a CI job."""

import re
from collections.abc import Iterable, Iterator, Sequence

from pdq_export.errors import printable
from pdq_export.report.report import Report
from pdq_export.report.table import images_of, report_rows

_MEANT = re.compile(r"([\\`*_\[\]#|<>&~$])")


def to_markdown(report: Report) -> str:
    """The verdict, the gates, and the figures in a table; names out of files are shown as they are."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    failed = len(report.failed_gates)
    verdict = "" if not report.gates else f": {failed} of {len(report.gates)} gates failed" if failed else ": passed"
    yield f"### {_escaped(report.quantized.name or 'quantized model')}{verdict}"
    yield ""
    if report.gates:
        rows = [("✅" if gate.passed else "❌", gate.asked, gate.told) for gate in report.gates]
        yield from markdown_table(("", "gate", "found"), rows)
        yield ""
    evaluation = report.settings.get("evaluation", "")
    yield _escaped(images_of(report.images, evaluation))
    yield ""
    yield from markdown_table(("", "FP32", "quantized", "difference"), report_rows(report))
    yield ""
    if report.remedies:
        yield f"{_escaped(report.loss or '')}. What to try next, what helps most for its cost first:"
        yield ""
        for number, remedy in enumerate(report.remedies, 1):  # in no table, in whose cells a | would be escaped
            yield f"{number}. {_code(remedy.line)}: {_escaped(remedy.told)}"
        yield ""
    yield ", ".join(f"{name} {version}" for name, version in report.versions.items())


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table; what stands in its cells is shown as it is."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(_escaped, row))} |"


def _code(text: str) -> str:
    """A span of code, in which nothing is escaped, so that it can be copied."""
    text = printable(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    inner = f" {text} " if text.startswith("`") or text.endswith("`") else text
    return f"{fence}{inner}{fence}" if text else ""


def _escaped(text: str) -> str:
    return _MEANT.sub(r"\\\1", printable(text))
