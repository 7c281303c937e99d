"""A job for the probe, and what comes back of every file in every way, whether or not it ends the process."""

import dataclasses
import json
import queue
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.versions import browser
from benchmarks.versions.environments import CHROMIUM, Environment, environment_variables

Values = NDArray[np.float64]
DEFAULT = "default"
LEVELS = ("disable_all", "basic", "extended")  # of onnxruntime's graph optimizations, all of them by default
NO_QDQ = "disable_quant_qdq"
NO_REUSE = "no_mem_reuse"
NO_LOW_PRECISION = "no_low_precision"  # OpenVINO
_PATIENCE = 60  # seconds without a line; onnxruntime-web does not only fail, it waits for itself
_PATIENCE_WITH_TIMES = 1200  # which are one line
_LATE = "said nothing for too long"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """A file in one way: its output [N, K], or why there is none. ``version``: of the runtime, None after a crash."""

    way: str
    version: str | None = None
    failure: str | None = None
    values: Values | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """How to time: rounds, least seconds of one timing."""

    rounds: int = 15
    seconds: float = 0.02


def try_files(
    environment: Environment, files: Sequence[tuple[Path, Sequence[str]]], images: NDArray[np.float32]
) -> list[list[Attempt]]:
    """Run each file in its ways on the images, one after the other in one process.

    What ends the process, and what fails in onnxruntime-web, is tried again in one of its own, since what ran before
    may have damaged the memory; where that ends too, its failure says so. The rest goes on in another process.
    """
    left = [(path, way) for path, ways in files for way in ways]
    found: list[Attempt] = []
    while left:
        attempts, ending = _attempts(environment, left, images)
        if environment.is_web and len(attempts) > 1 and attempts[-1].failure is not None:
            attempts.pop()
        if not attempts:
            attempts = [Attempt(way=left[0][1], failure=ending)]
        found += attempts
        left = left[len(attempts) :]
    return [[found.pop(0) for _ in ways] for _, ways in files]


def time_files(
    environment: Environment, files: Mapping[str, tuple[Path, str]], image: NDArray[np.float32], timing: Timing
) -> dict[str, list[float]]:
    """Milliseconds of one image, a number a round, of files in one way each, by name, interleaved in one process.

    None where the process ends before.
    """
    lines, _ = _probe(environment, "time", list(files.values()), image, dataclasses.asdict(timing))
    return dict(zip(files, lines[0]["milliseconds"], strict=True)) if lines else {}


def _attempts(
    environment: Environment, files: Sequence[tuple[Path, str]], images: NDArray[np.float32]
) -> tuple[list[Attempt], str]:
    lines, ending = _probe(environment, "try", files, images, {})
    return [_attempt(line, len(images)) for line in lines], ending


def _probe(
    environment: Environment,
    action: str,
    files: Sequence[tuple[Path, str]],
    images: NDArray[np.float32],
    fields: Mapping[str, Any],
) -> tuple[Sequence[Mapping[str, Any]], str]:
    """The lines of one process, and how it ended where some are missing."""
    with tempfile.TemporaryDirectory() as folder:
        images.tofile(Path(folder) / "images.bin")
        job = {
            "threads": 1,
            "images": str(Path(folder) / "images.bin"),
            "shape": images.shape,
            "package": str(environment.folder),
            "files": [{"path": str(path), "ways": [way]} for path, way in files],
            **fields,
        }
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        if environment.runtime == CHROMIUM:
            return browser.run(environment, path), ""
        process = subprocess.Popen(
            [*environment.command, str(path), action],
            env=environment_variables(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        out, error = _watched(process, _PATIENCE if action == "try" else _PATIENCE_WITH_TIMES)
    lines = [json.loads(line) for line in out if line.startswith("{") and line.endswith("}\n")]
    what = "crashed" if process.returncode < 0 and error != _LATE else "the probe ended"
    return lines, " ".join([f"{what} ({process.returncode})", *error.strip().splitlines()[-1:]])


def _watched(process: "subprocess.Popen[str]", patience: float) -> tuple[list[str], str]:
    """What a process says, and its errors; it is ended where it says nothing for too long."""
    lines: queue.Queue[str | None] = queue.Queue()
    errors: list[str] = []
    assert process.stdout is not None
    assert process.stderr is not None
    out, error = process.stdout, process.stderr

    def read() -> None:
        for line in out:
            lines.put(line)
        lines.put(None)

    readers = [threading.Thread(target=read), threading.Thread(target=lambda: errors.append(error.read()))]
    for reader in readers:
        reader.start()
    found: list[str] = []
    late = False
    while True:
        try:
            line = lines.get(timeout=patience)
        except queue.Empty:
            late = True
            process.kill()
            break
        if line is None:
            break
        found.append(line)
    process.wait()
    for reader in readers:
        reader.join()
    return found, _LATE if late else "".join(errors)


def _attempt(line: Mapping[str, Any], count: int) -> Attempt:
    values = line["values"]
    if values is not None:
        values = np.array([np.nan if value is None else value for value in values], np.float64).reshape(count, -1)
    return Attempt(way=line["way"], version=line["version"], failure=line["failure"], values=values)
