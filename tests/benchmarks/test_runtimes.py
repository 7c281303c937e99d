"""What is written, in the oldest and the newest onnxruntime: in CI, and where a folder for environments is named."""

import os

import pytest

from benchmarks.versions.__main__ import main
from benchmarks.versions.environments import NEWEST, OLDEST

RUNTIMES = "PDQ_EXPORT_RUNTIMES"


def test_oldest_and_newest_onnxruntime(capsys: pytest.CaptureFixture[str]) -> None:
    folder = os.environ.get(RUNTIMES)
    if not folder:
        pytest.skip(f"needs {RUNTIMES}, a folder for environments with other releases of onnxruntime; CI has one")
    command = ["--runtimes", OLDEST, NEWEST, "--environments", folder, "--images", "50", "--rounds", "0", "--check"]
    code = main([*command, "--networks", "depthwise", "--bits", "8/8", "3/4", "mixed", "--layouts", "ort", "qcdq"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    rows = [line.split(" | ") for line in printed.out.splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows] == [
        f"| `{layout}` {bits}" for bits in ("8/8", "3/4", "mixed") for layout in ("ort", "qcdq")
    ]
    assert all(cell.startswith("right") for row in rows for cell in row[2:])
