"""Kill runs at random moments, resume them, and compare what they write with an uninterrupted run's file.

    python -m benchmarks.resume calib_data/fashion_resnet.onnx --calib calib_data/calib.npz --kills 10 -- --bits 4/4

What stands behind ``--`` are options of ``pdq-export quantize``. One line a kill: when it came, how many blocks there
were to resume, whether the file is the same byte for byte, and what temporary files were left. Exit code 1 where one
differs or leaves some.
"""

import argparse
import dataclasses
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """``seconds`` until the kill; ``resumed``: blocks that the first had finished; ``left``: temporary files."""

    seconds: float
    resumed: int
    equal: bool
    left: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the file is the same and nothing is left."""
        return self.equal and not self.left


def command(model: Path, calib: Path, folder: Path, options: Sequence[str]) -> list[str]:
    """A run that writes ``folder/out.onnx`` and keeps its blocks in ``folder/work``."""
    paths = ["--calib", str(calib), "--output", str(folder / "out.onnx"), "--work-dir", str(folder / "work")]
    return [sys.executable, "-m", "pdq_export", "quantize", str(model), *paths, *options]


def kill_and_resume(run: Sequence[str], folder: Path, expected: bytes, seconds: float) -> Trial:
    """Start ``run``, kill it after so many seconds, run it with --resume, and look at what there is."""
    started = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        started.wait(seconds)
    except subprocess.TimeoutExpired:
        started.send_signal(signal.SIGKILL)
        started.wait()
    kept = len(list(folder.glob("work/*/block-*.jsonl")))
    done = subprocess.run([*run, "--resume", "--overwrite"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the resumed run ended with {done.returncode}: {done.stderr[-2000:]}")
    return Trial(
        seconds=seconds,
        resumed=kept,
        equal=(folder / "out.onnx").read_bytes() == expected,
        left=left_over(folder),
    )


def left_over(folder: Path) -> tuple[str, ...]:
    """What should not lie in the folder of a finished run: neither its file, nor blocks, header and lock of runs."""
    kept = re.compile(r"out\.onnx|work/[^/]+/(lock|pdq-export-run\.json|block-\d+\.jsonl)")
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return tuple(sorted(name for name in names if not kept.fullmatch(name)))


def main() -> int:
    """Run the trials; returns the exit code."""
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args(arguments[:cut])
    generator = random.Random(given.seed)
    failed = 0
    with tempfile.TemporaryDirectory() as parent:
        whole = Path(parent) / "whole"
        whole.mkdir()
        start = time.monotonic()
        subprocess.run(command(given.model, given.calib, whole, arguments[cut + 1 :]), check=True)
        seconds = time.monotonic() - start
        expected = (whole / "out.onnx").read_bytes()
        print(f"uninterrupted: {seconds:.1f} s, {len(expected):,} bytes, {os.cpu_count()} cores")
        for number in range(1, given.kills + 1):
            folder = Path(parent) / str(number)
            folder.mkdir()
            run = command(given.model, given.calib, folder, arguments[cut + 1 :])
            trial = kill_and_resume(run, folder, expected, generator.uniform(0, seconds))
            failed += not trial.passed
            told = "the same bytes" if trial.equal else "ANOTHER FILE"
            left = f", left over: {', '.join(trial.left)}" if trial.left else ""
            print(
                f"{number}: killed after {trial.seconds:.1f} s, {trial.resumed} blocks resumed, {told}{left}",
                flush=True,
            )
    print(f"{given.kills - failed} of {given.kills} are the same")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
