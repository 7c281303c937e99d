"""The bar, its plain substitute, and the time that is left."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pdq_export.cli.progress import ProgressDisplay, describe, format_time, fraction

from .fakes import FakeProgress


def at(index: int, step: int, **more: object) -> FakeProgress:
    return FakeProgress(stage="calibrate", block_index=index, block_count=4, step=step, step_count=10, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (9.4, "0:09"), (59.6, "1:00"), (750, "12:30"), (3723, "1:02:03")]
)
def test_format_time(seconds: float, text: str) -> None:
    assert format_time(seconds) == text


def test_describe() -> None:
    assert describe(at(0, 0), 0.0) == "block 1/4, step 0/10"
    progress = at(1, 10, block="layer1.0", loss=0.012345)
    assert describe(progress, 60.0) == "block 2/4, step 10/10, loss 0.01235, 1:00 left, layer1.0"
    assert describe(at(0, 0, loss=1.0), 60.0) == "block 1/4, step 0/10, loss 1"
    assert describe(FakeProgress(stage="calibrate"), 5.0) == ""


@given(index=st.integers(0, 3), step=st.integers(0, 12))
def test_fraction_stays_within_bounds_and_grows(index: int, step: int) -> None:
    assert 0 <= fraction(at(index, step)) <= fraction(at(index, step + 1)) <= fraction(at(index + 1, 0)) + 1e-9 <= 1.1


def test_a_terminal_gets_a_bar() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    clock = iter(range(0, 1000, 10))
    with ProgressDisplay(console, clock=lambda: next(clock)) as display:
        display(FakeProgress(stage="plan"))
        display(at(0, 0))
        display(at(1, 0, block="[b]layer", loss=1.5))
    text = stream.getvalue()
    assert "calibrating" in text
    assert "block 2/4, step 0/10, loss 1.5, 1:00 left, [b]layer" in text


def test_without_a_terminal_lines_are_rare(caplog: pytest.LogCaptureFixture) -> None:
    console = Console(file=io.StringIO())
    seconds = 0.0
    display = ProgressDisplay(console, clock=lambda: seconds)
    with caplog.at_level("INFO", logger="pdq_export.cli"), display:
        for step in range(100):
            seconds = float(step)
            display(at(step // 25, step % 10))
    assert 3 <= len(caplog.records) <= 5
