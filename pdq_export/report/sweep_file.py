"""The file that keeps what came of a run of a sweep. Somebody else may have written it: nothing in it is trusted."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

from pdq_export.report.reading import LONGEST, read_report
from pdq_export.report.report import Report
from pdq_export.report.sweep import Finished
from pdq_export.spec.plain import from_text

KIND = "pdq-export sweep run"
_DIGITS = 20  # of an integer: seeds have as many


@dataclasses.dataclass(frozen=True, kw_only=True)
class _File:
    """A `Finished` as it is written."""

    kind: Literal["pdq-export sweep run"]
    version: Literal[1]
    key: str
    model: str
    varied: Mapping[str, Any]
    change: str
    report: Mapping[str, Any] | None
    error: str | None
    calibration_seconds: float | None
    calibration_cpu_seconds: float | None


def write_finished(finished: Finished) -> bytes:
    """The file of a run."""
    content = {"kind": KIND, "version": 1, **dataclasses.asdict(finished)}
    return (json.dumps(content, indent=1, ensure_ascii=True) + "\n").encode()


def parse_finished(text: str, key: str) -> Finished:
    """What `write_finished` wrote of the run with this key.

    Raises ValueError, which says where in it what was found and what was expected.
    """
    found = from_text(_File, text, longest=LONGEST, what="the run", digits=_DIGITS)
    if found.key != key:
        raise ValueError("it is of another run")
    if (found.report is None) == (found.error is None):
        raise ValueError("expected a report or an error")
    fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(Finished)}
    return Finished(**{**fields, "report": None if found.report is None else _plain_report(found.report)})


def _plain_report(content: Mapping[str, Any]) -> dict[str, Any]:
    report = read_report(json.dumps(content))
    if not isinstance(report, Report):
        raise ValueError("report: expected one of quantize")
    plain: dict[str, Any] = json.loads(report.to_json())
    return plain
