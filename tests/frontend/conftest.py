"""Says at the end of a run how many of ONNX's own node tests passed."""

import pytest


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter") -> None:  # pytest 8.4 names it
    passed, operators = 0, set()
    for report in terminalreporter.stats.get("passed", []):
        covered = dict(getattr(report, "user_properties", ())).get("standard_operators")
        if covered is not None and report.when == "call":
            passed += 1
            operators.update(covered.split())
    if passed:
        terminalreporter.write_line(f"standard node tests: {passed} passed for {len(operators)} operators")
