"""1,000 broken models, data sets and quantized files: only the project's own errors, within bounds of time and memory.

The inputs are the same every time. Each kind runs in a process of its own (`tests/fuzz/worker.py`), which a crash in
native code would end; the message of a failure names its seed, and ``worker.py KIND SEED 1`` runs it again,
``worker.py KIND 0 5000`` many.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "fuzz" / "worker.py"
KINDS = {"models": 500, "data": 250, "converted": 250}


@pytest.mark.parametrize(("kind", "count"), KINDS.items())
def test_only_errors_of_our_own(kind: str, count: int, tmp_path: Path) -> None:
    command = [sys.executable, str(WORKER), kind, "0", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with (tmp_path / "log").open("w+", errors="replace") as log:
        found = subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=600, check=False
        )
        log.seek(0)
        text = log.read()
    seeds = [line for line in text.splitlines() if line.startswith(f"{kind} seed ")]
    wrong = [part for part in text.split(f"\n{kind} seed ") if "FAILED" in part]
    assert found.returncode == 0, f"exit code {found.returncode}; last: {seeds[-1:]}\n" + "\n".join(wrong)[:5000]
    assert len(seeds) == count
