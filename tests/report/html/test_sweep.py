"""The page of a sweep: every run in it, as text, and a plot for each model that has figures."""

import dataclasses
import re
from typing import Any

import pytest

from pdq_export.report.sweep import Finished, SweepTable

EVIL = "<script>alert(1)</script>.onnx"


def run(model: str, bits: str, top1: float | None, size: int = 1000, **other: Any) -> Finished:
    accuracy = {} if top1 is None else {"float": {"top1": 0.9}, "simulated": {"top1": top1}}
    report = {"accuracy": accuracy, "quantized": {"size": size}, "size_ratio": size / 5000, **other}
    return Finished(key=f"{model}{bits}", model=model, varied={"bits": bits}, change="", report=report)


FAILED = Finished(key="f", model="a.onnx", varied={"bits": "1/1"}, change="", error="bits 1/1: <b>too few</b>")
RUNS = (run("a.onnx", "8/8", 0.875, 2000), run("a.onnx", "4/4", 0.75), run(EVIL, "4/4", None))


def test_each_run_is_a_row_and_each_model_with_figures_a_plot() -> None:
    page = SweepTable(runs=RUNS).to_html().decode()
    assert page.count("<tr><td") == 3
    assert 'data-value="0.875"' in page
    assert page.count("<svg") == page.count("<figure>") == 1
    assert "a.onnx: top-1, % against the size of the file" in page
    assert "best top-1" in page
    assert EVIL not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.onnx" in page


def test_why_there_is_no_result_and_which_gate_failed() -> None:
    gate = {"option": "--max-drop", "told": "2 points, at most 1", "passed": False}
    lost = run("a.onnx", "2/2", 0.5, gates=[gate])
    page = SweepTable(runs=(lost, FAILED)).to_html().decode()
    assert "Without a result" in page
    assert "bits 1/1: &lt;b&gt;too few&lt;/b&gt;" in page
    assert "--max-drop 2 points, at most 1" in page
    assert page.count("<svg") == 1  # of the run that has a file


def test_runs_that_are_yet_to_come_are_counted() -> None:
    assert ">3 of 4</span>" in SweepTable(runs=RUNS, count=4).to_html().decode()
    assert ">3</span>" in SweepTable(runs=RUNS, count=3).to_html().decode()


@pytest.mark.parametrize("runs", [(), (FAILED,)])
def test_a_page_without_results(runs: tuple[Finished, ...]) -> None:
    page = SweepTable(runs=runs).to_html().decode()
    assert "<svg" not in page
    assert not re.search("best top-1|smallest", page)


def test_the_same_runs_give_the_same_page() -> None:
    again = tuple(dataclasses.replace(run) for run in RUNS)
    assert SweepTable(runs=RUNS).to_html() == SweepTable(runs=again).to_html()
