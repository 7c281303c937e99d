"""Tables of made-up runs."""

import dataclasses

import pytest

from benchmarks.results import Outcome, Run, Work, tables

WORK = Work(
    model="m.onnx",
    calib="calib.npz",
    eval="eval.npz",
    eval_images=10_000,
    preset="fast",
    weights="asymmetric",
    samples=256,
    iters=200,
    correction_iters=20,
    easy_iters=200,
    easy_correction_iters=20,
    overrides={"iters": "200", "temperature": "2"},
    threads=1,
    device="cpu",
    versions={"pdq-export": "1.2.3"},
)
ROWS = ("fp32", "nearest", "pdq", "drops off")


def outcome(row: str, bits: str | None, seed: int | None, top1: float, seconds: float | None = None) -> Outcome:
    run = Run(work=WORK, row=row, bits=bits, seed=seed)
    agreement = None if seconds is None else top1 + 0.1
    return Outcome(run=run, top1=top1, agreement=agreement, wall_seconds=seconds, cpu_seconds=seconds)


@pytest.fixture
def outcomes() -> list[Outcome]:
    return [
        outcome("fp32", None, None, 0.9),
        outcome("nearest", "2/2", None, 0.3, 4.0),
        outcome("pdq", "2/2", 0, 0.69, 100.0),
        outcome("pdq", "2/2", 1, 0.67, 120.0),
        outcome("pdq", "8/8", 0, 0.9, 110.0),
        outcome("drops off", "2/2", 0, 0.68, 99.0),
        outcome("drops off", "2/2", 1, 0.68, 99.0),
    ]


def test_tables(outcomes: list[Outcome]) -> None:
    title, head, accuracy, _, agreement, _, seconds = tables(outcomes, ROWS[:3]).split("\n\n")
    assert "m.onnx: 10,000 images of eval.npz; calibrated on 256 of calib.npz, preset fast, 200 steps a block" in title
    assert "200 steps a block and 20 of correction, asymmetric weights" in title
    assert "temperature=2" in title
    easy = dataclasses.replace(WORK, easy_iters=50)
    assert "200 steps a block and 20 of correction (50 and 20 where nothing has fewer than 4 bits)," in str(easy)
    assert "iters=" not in title
    assert title.endswith("pdq-export 1.2.3; seeds 0, 1**")
    assert head == "Top-1 in %, mean (lowest–highest):"
    assert accuracy.splitlines() == [
        "| row | 8/8 | 2/2 |",
        "|---|---|---|",
        "| fp32 | 90.00 | 90.00 |",
        "| nearest |  | 30.00 |",
        "| pdq | 90.00 (1 of 2 seeds) | 68.00 (67.00–69.00) |",
    ]
    assert agreement.splitlines()[2:] == [
        "| nearest |  | 40.00 |",
        "| pdq | 100.00 (1 of 2 seeds) | 78.00 (77.00–79.00) |",
    ]
    assert seconds.splitlines()[2:] == ["| nearest |  | 4.0 / 4.0 |", "| pdq | 110 / 110 | 110 / 110 |"]


def test_rows_are_compared_with_one_of_them_by_seed(outcomes: list[Outcome]) -> None:
    _, head, accuracy, _, agreement, _, seconds = tables(outcomes[2:], ROWS, against="pdq").split("\n\n")
    assert head.endswith("; in brackets the points to pdq with the same seed, mean (lowest–highest):")
    assert accuracy.splitlines()[2:] == [
        "| pdq | 90.00 (1 of 2 seeds) | 68.00 (67.00–69.00) |",
        "| drops off |  | 68.00 (68.00–68.00) [+0.00 (-1.00 to +1.00)] |",
    ]
    assert agreement.splitlines()[3:] == ["| drops off |  | 78.00 (78.00–78.00) [+0.00 (-1.00 to +1.00)] |"]
    assert seconds.splitlines()[3:] == ["| drops off |  | 99 / 99 |"]
    one = tables([outcomes[0], outcomes[2], outcomes[5]], ROWS, against="pdq")
    assert "Top-1 in %, one seed; in brackets the points to pdq with the same seed:" in one
    assert one.split("\n\n")[2].splitlines()[2:] == [
        "| fp32 | 90.00 |",
        "| pdq | 69.00 |",
        "| drops off | 68.00 [-1.00] |",
    ]


def test_pieces_of_work_are_told_apart(outcomes: list[Outcome]) -> None:
    other = dataclasses.replace(WORK, weights="symmetric")
    moved = [dataclasses.replace(o, run=dataclasses.replace(o.run, work=other)) for o in outcomes]
    assert tables([*outcomes, *moved], ROWS).count("Top-1") == 2
    assert tables([], ROWS) == ""


def test_failed_runs_are_shown_and_not_counted(outcomes: list[Outcome]) -> None:
    failed = [
        dataclasses.replace(
            outcomes[position], top1=None, agreement=None, wall_seconds=None, cpu_seconds=None, error="OSError: full"
        )
        for position in (1, 2)
    ]
    found = tables([outcomes[0], *failed, *outcomes[3:]], ROWS, against="pdq")
    accuracy, agreement, seconds = found.split("\n\n")[2::2]
    assert accuracy.splitlines()[3:] == [
        "| nearest |  | failed |",
        "| pdq | 90.00 (1 of 2 seeds) | 67.00 (1 of 2 seeds) |",
        "| drops off |  | 68.00 (68.00–68.00) [+1.00] |",
    ]
    assert agreement.splitlines()[2] == "| nearest |  | failed |"
    assert seconds.splitlines()[2:] == ["| pdq | 110 / 110 | 120 / 120 |", "| drops off |  | 99 / 99 |"]
