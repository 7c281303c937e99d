"""Feeds broken models and data to the tool in a process of its own: ``worker.py KIND FIRST COUNT``.

Every seed is printed before it runs, so that one that kills the process is known. Only `PdqError` may come out; memory
is limited, and a case that computes for longer than a few seconds fails; on a busy machine it may wait as well.
"""

import contextlib
import logging
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pdq_export.commands.convert import convert  # noqa: E402
from pdq_export.commands.quantize import quantize  # noqa: E402
from pdq_export.data import InputSpec, load_images  # noqa: E402
from pdq_export.errors import PdqError  # noqa: E402
from pdq_export.validate import latency  # noqa: E402
from tests.fuzz import converted, data, models  # noqa: E402

SECONDS = 10  # of CPU time
MEMORY = 3 * 2**30  # bytes on top of what the libraries take
NOTHING = {"samples": 2, "search_samples": 2}


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


class TooLongError(BaseException):
    """Not an Exception, so that nobody takes it for the model's fault."""


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooLongError

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def run_model(seed: int, folder: Path) -> str:
    path, what = models.write_case(seed, folder)
    print(what, end=": ", flush=True)
    images = np.random.default_rng(seed).normal(size=(2, 3, 8, 8)).astype(np.float32)
    quantize(path, bits="4/4", calib=images, method="nearest", options=NOTHING, device="cpu")
    return "quantized"


def run_data(seed: int, folder: Path) -> str:
    path, what = data.write_case(seed, folder)
    print(what, end=": ", flush=True)
    spec = InputSpec(name="x", shape=(None, 3, 8, 8))
    limit = (None, 1, 2)[seed % 3]
    images = load_images(path, expected=spec, limit=limit)
    assert np.isfinite(images.array(2)).all()
    assert not Path("harm-was-done").exists(), "a pickle was executed"
    return "read"


def run_converted(seed: int, folder: Path) -> str:
    path, what = converted.write_case(seed, folder)
    print(what, end=": ", flush=True)
    convert(path, ("native", "ort", "qcdq", "qonnx")[seed % 4])
    return "converted"


KINDS = {"models": run_model, "data": run_data, "converted": run_converted}


def main(kind: str, first: int, count: int) -> int:
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    limit_memory()
    latency.SECONDS = 0.0  # what is measured of a file is that it can be
    failures = 0
    for seed in range(first, first + count):
        print(f"{kind} seed {seed}: ", end="", flush=True)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="pdq-fuzz-") as folder:
            try:
                with deadline(SECONDS):
                    verdict = KINDS[kind](seed, Path(folder))
            except PdqError as error:
                verdict = f"{type(error).__name__}: {error}"
                if len(verdict) > 2000 or "\n" in verdict.strip():
                    verdict, failures = f"FAILED: a message of {len(verdict)} characters: {verdict!r}", failures + 1
            except BaseException as error:
                verdict, failures = f"FAILED: {type(error).__name__}: {error}\n{traceback.format_exc()}", failures + 1
        print(f"{verdict} [{time.perf_counter() - began:.2f} s]", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
