"""The command that makes it again."""

from collections.abc import Iterator, Mapping
from typing import Any

from pdq_export.config.words import option_words, word
from pdq_export.report.html.blocks import Block, Command, Section, Text
from pdq_export.report.html.plots import Plots
from pdq_export.report.html.source import Source
from pdq_export.report.report import Report


def command(source: Source, plots: Plots) -> Section | None:
    """With the options that have influence on the file, or the gates that were judged."""
    report = source.report
    if report is None:
        return None
    words = _validate(report, source.settings) if source.validates else _quantize(report, source.settings)
    line = " ".join(words)
    note = (
        "Put in the data; the files are named as they were."
        if source.validates
        else "With the same calibration data it makes the same file, byte for byte on the same machine; data for "
        "--eval, gates and what is written beside are yours to add."
    )
    blocks: list[Block] = [Command(text=line), Text(text=note, tone="muted")]
    return Section(anchor="command", title="The command that makes it again", blocks=blocks)


def _quantize(report: Report, settings: Mapping[str, Any]) -> Iterator[str]:
    yield from ("pdq-export", "quantize", word(report.model.name or "MODEL.onnx"))
    asked = settings.get("asked")
    given = dict(asked) if isinstance(asked, Mapping) else {}
    given.setdefault("bits", settings.get("bits"))
    yield from option_words(given)
    if given.get("calib") is None:  # arrays, or what lay in the folder
        yield from ("--calib", "PATH")
    yield from ("--output", word(report.quantized.name or "QUANT.onnx"))


def _validate(report: Report, settings: Mapping[str, Any]) -> Iterator[str]:
    yield from ("pdq-export", "validate", word(report.model.name or "FP32.onnx"))
    yield from (word(report.quantized.name or "QUANT.onnx"), "--data", "PATH")
    for gate in report.gates:
        yield from map(word, gate.asked.split(" "))
    if isinstance(confidence := settings.get("confidence"), int | float):
        yield from ("--confidence", f"{confidence:g}")
