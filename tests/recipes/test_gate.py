"""The recipe for CI."""

import os
import subprocess
from pathlib import Path

GATE = Path(__file__).parents[2] / "recipes" / "ci" / "gate.sh"


def test_verdicts_of_an_earlier_run_go_first(tmp_path: Path) -> None:
    """Where a model cannot be judged there is none, and the exit code is the command's."""
    for name in ("gates.xml", "gates.md", "gates.json"):
        (tmp_path / name).write_text("passed")
    command = tmp_path / "bin" / "pdq-export"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\nexit 2\n")
    command.chmod(0o755)
    found = subprocess.run(
        ["sh", str(GATE), "a.onnx", "b.onnx", "c.npz", "--max-drop", "1"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert "could not be judged" in found.stderr
    assert not list(tmp_path.glob("gates.*"))
