"""The section of gates: what a file has to hold, for commands that judge one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pdq_export.config.adapt import path, texts
from pdq_export.config.option import INSPECT, QUANTIZE, VALIDATE, option

JUDGED = (QUANTIZE, VALIDATE)


def _gate(help: str, **declared: Any) -> Any:
    """A limit that is not set by default, for commands that judge a file."""
    return option(None, help, **{"unset": "none", "recorded": False, "commands": JUDGED, **declared})


def _metric_gate(help: str) -> Any:
    """Limits by the names that metrics give their numbers."""
    return option(
        (),
        help,
        metavar="NAME=VALUE",
        expects="a list of limits NAME=VALUE",
        adapt=_limits,
        recorded=False,
        commands=JUDGED,
    )


def _limits(value: Any) -> Any:
    """Limits of metrics: {NAME: VALUE}, one text NAME=VALUE, or several of them."""
    if isinstance(value, Mapping):
        return tuple(f"{name}={limit}" for name, limit in value.items())
    return texts(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatesSection:
    """What a file has to hold. A gate that fails is exit code 1; what was asked for is written all the same."""

    max_drop: float | None = _gate(
        "Fail where top-1 accuracy falls by more points than this; --bits auto without a budget finds the smallest "
        "file that keeps it",
        metavar="POINTS",
        least=0,
        most=100,
        commands=(*JUDGED, INSPECT),  # which says what of the goal it cannot know
    )
    min_agreement: float | None = _gate(
        "Fail where argmax agrees with FP32's on a smaller share, in percent", metavar="PERCENT", least=0, most=100
    )
    min_sqnr: float | None = _gate(
        "Fail where the signal-to-noise ratio of an output against FP32's is lower", metavar="DB"
    )
    max_size_ratio: float | None = _gate(
        "Fail where the file is larger than so many times FP32's", metavar="X", above=0
    )
    max_latency_ratio: float | None = _gate(
        "Fail where a call at batch 1 on one thread takes longer than so many times FP32's", metavar="X", above=0
    )
    no_float_layers: bool = option(
        False,
        "Fail where onnxruntime runs a Conv, Gemm or another layer with a weight in float, and where there is no layer",
        recorded=False,
        commands=JUDGED,
    )
    confidence: float | None = _gate(
        "Let the gates of accuracy fail only on what is significantly beyond the limit at this confidence, in percent",
        more="see [Gates](gates.md)",
        metavar="PERCENT",
        least=50,
        most=99.9999,
    )
    metric: tuple[str, ...] = option(
        (),
        "A function of yours, called with (outputs, labels) of each file, which returns a number or {name: number}",
        more="see [Gates](gates.md)",
        metavar="MODULE:FUNCTION",
        expects="a list of functions MODULE:FUNCTION",
        adapt=texts,
        recorded=False,
        commands=JUDGED,
    )
    min_metric: tuple[str, ...] = _metric_gate("Fail where a number of --metric is smaller")
    max_metric: tuple[str, ...] = _metric_gate("Fail where a number of --metric is larger")
    max_metric_drop: tuple[str, ...] = _metric_gate("Fail where a number of --metric is smaller than FP32's by more")
    max_metric_rise: tuple[str, ...] = _metric_gate("Fail where a number of --metric is larger than FP32's by more")
    junit: str | None = option(
        None,
        "Write the gates as JUnit XML, a test case each",
        metavar="OUT.xml",
        expects="the name of a file to write",
        writes=True,
        unset="none",
        recorded=False,
        adapt=path,
        commands=JUDGED,
    )
    markdown: str | None = option(
        None,
        "Write a summary with the gates as Markdown",
        metavar="OUT.md",
        expects="the name of a file to write",
        writes=True,
        unset="none",
        recorded=False,
        adapt=path,
        commands=JUDGED,
    )
