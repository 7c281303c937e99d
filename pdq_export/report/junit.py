"""The gates of a report as JUnit XML, which CI systems show as tests."""

from xml.etree import ElementTree

from pdq_export.errors import printable
from pdq_export.report.report import Report


def to_junit(report: Report) -> bytes:
    """One test suite, named after the quantized file, with a test case for each gate; equal reports, equal bytes."""
    counts = {"tests": str(len(report.gates)), "failures": str(len(report.failed_gates)), "errors": "0"}
    suite = ElementTree.Element("testsuite", {"name": _text(report.quantized.name) or "model", **counts})
    properties = ElementTree.SubElement(suite, "properties")
    facts = {
        "model": f"{report.model.name} sha256:{report.model.sha256}",
        "quantized": f"{report.quantized.name} sha256:{report.quantized.sha256}",
        "images": str(report.images),
        **report.versions,
    }
    for name, value in facts.items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": _text(value)})
    for gate in report.gates:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "pdq-export", "name": _text(gate.option)})
        if not gate.passed:
            failure = ElementTree.SubElement(case, "failure", {"message": _text(str(gate)), "type": "gate"})
            failure.text = _text(str(gate))
        ElementTree.SubElement(case, "system-out").text = _text(str(gate))
    root = ElementTree.Element("testsuites", counts)
    root.append(suite)
    ElementTree.indent(root)
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def _text(text: str) -> str:
    """Without what XML has no characters for."""
    return printable(text)
