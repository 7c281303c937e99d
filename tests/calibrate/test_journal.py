"""What is told of a calibration, and the times of its phases."""

import pytest

from pdq_export.calibrate import BlockProgress
from pdq_export.calibrate.journal import Journal
from pdq_export.spec import Block

BLOCKS = [Block(name=name, inputs=(), outputs=(), nodes=(), layers=()) for name in ("stem", "head")]


def test_what_is_told() -> None:
    told: list[BlockProgress] = []
    journal = Journal(BLOCKS, told.append)
    journal.images("FP32 network")(3, 8)
    journal.begin(1, BLOCKS[1], steps=50)
    journal.step(20, 0.5)
    before, step = told
    assert (before.block, before.index, before.count, before.phase) == ("stem", 0, 2, "FP32 network, 3 of 8 images")
    assert (step.block, step.index, step.step, step.steps, step.loss, step.phase) == ("head", 1, 20, 50, 0.5, "")


def test_phases_add_up_until_the_next_block(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 10.0, 12.0, 20.0, 24.0])
    monkeypatch.setattr("pdq_export.calibrate.journal.time.perf_counter", lambda: next(now))
    journal = Journal(BLOCKS)
    journal.begin(0, BLOCKS[0])
    for phase in ("scales", "steps", "scales"):
        with journal.timed(phase):
            pass
    assert journal.seconds == {"scales": 5.0, "steps": 2.0}
    journal.begin(1, BLOCKS[1])
    assert journal.seconds == {}


def test_the_time_of_a_phase_that_fails_counts_too() -> None:
    journal = Journal(BLOCKS)
    with pytest.raises(ValueError, match="halfway"), journal.timed("steps"):
        raise ValueError("halfway")
    assert journal.seconds["steps"] >= 0.0
