"""What a file takes in a process that has done nothing else: time of loading, and memory of loading and running."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdq_export.errors import ValidationError
from pdq_export.leftovers import temporary_folder

_PROGRAM = Path(__file__).with_name("fresh_process.py")
_LONGEST_MESSAGE = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fresh:
    """A file loaded once by ``onnxruntime`` of this version: ``cpu`` and ``wall`` seconds of making the session.

    Bytes of resident memory over those before it: ``load_peak`` while it is made, ``after`` it, ``peak`` of making and
    running it. None where the system does not tell, or nothing was run.
    """

    onnxruntime: str
    cpu: float
    wall: float
    load_peak: int | None = None
    after: int | None = None
    peak: int | None = None


def measure_fresh(
    model: Path,
    *,
    feed: Mapping[str, NDArray[Any]] | None = None,
    threads: int = 1,
    config: Mapping[str, str] | None = None,
    reuse_memory: bool = True,
    python: Sequence[str] = (sys.executable,),
    environment: Mapping[str, str] | None = None,
) -> Fresh:
    """Load a file in a fresh process, and run it on ``feed`` where there is one.

    ``config``: session options; ``reuse_memory``: see `may_reuse_memory`. ``python``: the interpreter with its options;
    ``environment``: its variables, by default those of this process. Raises ValidationError where it fails, with what
    it said last.
    """
    with temporary_folder() as folder:
        inputs = None
        if feed is not None:
            inputs = str(folder / "inputs.npz")
            np.savez(inputs, *feed.values())
        asked = {
            "model": str(model),
            "names": list(feed or ()),
            "inputs": inputs,
            "threads": threads,
            "config": dict(config or {}),
            "reuse_memory": reuse_memory,
        }
        # -P: modules that lie beside the program are none of its own.
        command = [*python, "-P", str(_PROGRAM), json.dumps(asked)]
        done = subprocess.run(
            command, env=environment, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    if done.returncode:
        raise ValidationError(f"{model}: fails in a fresh process: {_last_words(done)}")
    return Fresh(**json.loads(done.stdout))


def _last_words(done: "subprocess.CompletedProcess[str]") -> str:
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}, as where memory runs out"
    *_, last = ["", *done.stderr.strip().splitlines()]
    return last[-_LONGEST_MESSAGE:] or f"exit code {done.returncode}"
