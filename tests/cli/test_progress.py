"""The bar, its plain substitute, and the time that is left."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from pdq_export.cli.progress import ProgressDisplay, describe, format_time, fraction, shorten

from .fakes import FakeBlock, FakeProgress


def at(index: int, step: int, **more: object) -> FakeBlock:
    return FakeBlock(index=index, count=4, step=step, steps=10, **more)  # type: ignore[arg-type]


def calibrating(index: int, step: int, **more: object) -> FakeProgress:
    return FakeProgress(stage="calibrate", block=at(index, step, **more))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (9.4, "0:09"), (59.6, "1:00"), (750, "12:30"), (3723, "1:02:03")]
)
def test_format_time(seconds: float, text: str) -> None:
    assert format_time(seconds) == text


def test_describe() -> None:
    assert describe(at(0, 0), 0.0) == "block 1/4, step 0/10, loss 1, layer"
    progress = at(1, 10, block="layer1.0", loss=0.012345)
    assert describe(progress, 60.0) == "block 2/4, step 10/10, loss 0.01235, 1:00 left, layer1.0"
    assert describe(at(0, 0, block="a\x1b[2J"), 60.0) == "block 1/4, step 0/10, loss 1, a\\x1b[2J"


@given(index=st.integers(0, 3), step=st.integers(0, 12))
def test_fraction_stays_within_bounds_and_grows(index: int, step: int) -> None:
    assert 0 <= fraction(at(index, step)) <= fraction(at(index, step + 1)) <= fraction(at(index + 1, 0)) + 1e-9 <= 1.1


def test_a_terminal_gets_a_bar() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    clock = iter(range(0, 1000, 10))
    with ProgressDisplay(console, clock=lambda: next(clock)) as display:
        display(FakeProgress(stage="plan"))
        display(calibrating(0, 0))
        display(calibrating(1, 0, block="[b]layer", loss=1.5))
    text = stream.getvalue()
    assert "calibrating" in text
    assert "block 2/4, step 0/10, loss 1.5, 0:30 left, [b]layer" in text


def test_validation_counts_images() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    clock = iter(range(0, 1000, 10))
    with ProgressDisplay(console, clock=lambda: next(clock)) as display:
        display(FakeProgress(stage="validate"))
        display(FakeProgress(stage="validate", images=2500, total=10000))
    text = stream.getvalue()
    assert "validating" in text
    assert "2,500/10,000 images, 0:30 left" in text


def test_making_images_counts_steps(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    clock = iter(range(0, 1000, 10))
    with ProgressDisplay(Console(file=io.StringIO()), clock=lambda: next(clock)) as display:
        display(FakeProgress(stage="synthesize"))
        for step in (25, 50, 75):
            display(FakeProgress(stage="synthesize", images=step, total=100, unit="steps"))
    assert "making images: 75/100 steps, 0:10 left" in caplog.text


def test_without_a_terminal_there_is_a_line_a_block_and_one_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    console = Console(file=io.StringIO())
    seconds = 0.0
    display = ProgressDisplay(console, clock=lambda: seconds)
    with caplog.at_level("INFO", logger="pdq_export.cli"), display:
        display(FakeProgress(stage="calibrate"))
        for block, duration in enumerate((4.0, 4.0, 70.0, 4.0)):
            for step in range(1, 11):
                seconds += duration / 10
                display(calibrating(block, step))
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(", loss")[0] for line in lines] == [
        "calibrating",
        "calibrating: block 1/4, step 10/10",
        "calibrating: block 2/4, step 10/10",
        "calibrating: block 3/4, step 5/10",
        "calibrating: block 3/4, step 10/10",
        "calibrating: block 4/4, step 10/10",
    ]
    assert "0:12 left" in lines[1]  # preparing the first block counts as well


@pytest.mark.parametrize("width", [40, 60, 79, 80, 100, 120, 160, 200])
@pytest.mark.parametrize("name", ["/layer4/layer4.1/conv2/Conv_" * 12, "fc", "名前" * 60])
def test_the_bar_is_there_at_every_width(width: int, name: str) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, color_system=None)
    with ProgressDisplay(console) as display:
        display(calibrating(1, 5, block=name))
        display._bar.refresh()
        display(calibrating(1, 0, block=name, phase="correction, 64 of 1024 images"))
        display._bar.refresh()
    lines = [
        line
        for line in re.split(r"[\n\r]+", re.sub(r"\x1b\[[0-9?;]*[a-zA-Z]", "", stream.getvalue()))
        if "block" in line
    ]
    assert len(lines) >= 2
    for line in lines:
        bar, _, _ = line.partition("block")
        assert len(bar) == len("⠋ calibrating  ") + (24 if width >= 80 else 8)
        assert "━" in bar
        assert cell_len(line) <= width
        assert width < 60 or "block 2/4, " in line
    assert any("correction, 64" in line for line in lines) or width < 80


@pytest.mark.parametrize("length", [1, 40, 41, 400])
def test_long_names_lose_their_middle(length: int) -> None:
    name = "".join(chr(ord("a") + i % 26) for i in range(length))
    short = shorten(name)
    assert len(short) == min(length, 40)
    if length > 40:
        first, last = short.split("…")
        assert name.startswith(first)
        assert name.endswith(last)
        assert len(last) > len(first) > 10


def test_a_phase_takes_the_place_of_the_step(caplog: pytest.LogCaptureFixture) -> None:
    assert (
        describe(at(1, 0, phase="weight scales, layer 2 of 3"), 0.0)
        == "block 2/4, weight scales, layer 2 of 3, 0:00 left, layer"
    )
    seconds = 0.0
    display = ProgressDisplay(Console(file=io.StringIO()), clock=lambda: seconds)
    with caplog.at_level("INFO", logger="pdq_export.cli"), display:
        display(FakeProgress(stage="calibrate"))
        for done in range(10):
            seconds += 10
            display(
                FakeProgress(
                    stage="calibrate", block=FakeBlock(index=0, count=4, step=0, steps=0, phase=f"pass {done}")
                )
            )
    assert len(caplog.records) == 4  # one in 30 seconds, where there are no steps to finish, either


def test_the_time_left_counts_from_the_beginning_of_each_round() -> None:
    """Of images for calibration and for evaluation, which are one stage."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    clock = iter((0.0, 100.0, 200.0, 210.0))
    with ProgressDisplay(console, clock=lambda: next(clock)) as display:
        display(FakeProgress(stage="read"))
        for done, total in ((1000, 1000), (1, 10000), (5000, 10000)):
            display(FakeProgress(stage="read", images=done, total=total))
    assert "reading images" in stream.getvalue()
    assert "5,000/10,000 images, 0:10 left" in stream.getvalue()
