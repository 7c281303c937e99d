"""Reports as JUnit XML and Markdown: names out of files are text there, and equal reports give equal bytes."""

import dataclasses
from xml.etree import ElementTree

import junitparser
from hypothesis import given
from hypothesis import strategies as st

from pdq_export.advice import Remedy
from pdq_export.gates import Gate
from pdq_export.report import ModelInfo, Report, to_junit, to_markdown

from ..cli.fakes import make_report


def report(name: str = "q.onnx", told: str = "10.0 dB") -> Report:
    gates = tuple(
        Gate(option=option, value=1.0, limit=2.0, unit="dB", passed=passed, told=told)
        for option, passed in (("--min-sqnr", False), ("--min-metric iou", True))
    )
    return make_report(gates=gates, quantized=ModelInfo(name=name, sha256="0", size=1))


@given(name=st.text(), told=st.text())
def test_whatever_names_hold_is_text_in_xml(name: str, told: str) -> None:
    content = to_junit(report(name, told))
    assert content == to_junit(report(name, told))
    (suite,) = junitparser.JUnitXml.fromstring(content)
    first, second = suite
    assert (suite.tests, suite.failures, suite.errors) == (2, 1, 0)
    assert (first.name, first.is_passed, second.name, second.is_passed) == (
        *("--min-sqnr", False),
        *("--min-metric iou", True),
    )
    tags = {element.tag for element in ElementTree.fromstring(content).iter()}
    assert tags == {"testsuites", "testsuite", "properties", "property", "testcase", "failure", "system-out"}


@given(name=st.text(), told=st.text())
def test_whatever_names_hold_is_one_cell_in_markdown(name: str, told: str) -> None:
    lines = to_markdown(report(name, told)).split("\n")
    rows = [line for line in lines if line.startswith(("| ✅", "| ❌"))]
    assert len(rows) == 2
    for row in rows:
        assert row.replace("\\\\", "").replace("\\|", "").count("|") == 4


def test_markup_in_names_is_shown_as_it_is() -> None:
    text = to_markdown(report("<script>alert(1)</script>", "a | b `c` [d](e)"))
    assert "<script>" not in text
    assert r"\<script\>alert(1)\</script\>" in text
    assert r"a \| b \`c\` \[d\](e)" in text


def test_without_gates_markdown_has_the_figures() -> None:
    text = to_markdown(dataclasses.replace(report(), gates=()))
    assert text.startswith("### q.onnx\n")
    assert "| top-1 accuracy | 93.10 % | 92.60 % | -0.50 points |" in text


@given(line=st.text(alphabet=st.sampled_from("ab\\$|`'*^/ "), min_size=1).filter(lambda line: line.strip() == line))
def test_a_command_can_be_copied_out_of_markdown(line: str) -> None:
    text = to_markdown(dataclasses.replace(report(), loss="much", remedies=(Remedy(line=line),)))
    (row,) = (row for row in text.split("\n") if row.startswith("1. "))
    cell = row.removeprefix("1. ").removesuffix(": +0 bytes")
    fence = cell[: len(cell) - len(cell.lstrip("`"))]
    inner = cell[len(fence) : -len(fence)]
    assert fence
    assert cell == f"{fence}{inner}{fence}"
    assert fence not in inner
    assert inner.strip() == line


def test_times_that_nobody_took_are_not_told() -> None:
    assert b"time=" not in to_junit(report())
