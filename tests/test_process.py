"""The library leaves its caller's process as it is: nobody's output is lost, and no setting changes, at any time."""

import gc
import locale
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pdq_export import calib_data, convert, inspect_model, process, quantize
from pdq_export.commands.warned import Warned

TINY = {"samples": 4, "search_samples": 4, "iters": 2, "correction_iters": 1}


def settings() -> dict[str, Any]:
    """What every thread of a process shares, but for the states of random generators."""
    mask = os.umask(0)
    os.umask(mask)
    loggers = (logging.getLogger(), logging.getLogger("pdq_export"), logging.getLogger("py.warnings"))
    return {
        "stdout": id(sys.stdout),
        "stderr": id(sys.stderr),
        "excepthook": id(sys.excepthook),
        "filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "loggers": [
            # What listens for the report of a run hears its thread alone, and hides nothing from others.
            (
                logger.level,
                [one for one in logger.handlers if not isinstance(one, Warned)],
                logger.propagate,
                logger.disabled,
            )
            for logger in loggers
        ],
        "logging.disable": logging.root.manager.disable,
        # onnxsim sets a variable of its own while it runs.
        "environment": {name: value for name, value in os.environ.items() if not name.startswith("ONNXSIM_")},
        "folder": os.getcwd(),
        "umask": mask,
        "recursion": sys.getrecursionlimit(),
        "digits": sys.get_int_max_str_digits(),
        "gc": (gc.isenabled(), gc.get_threshold()),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "locale": locale.setlocale(locale.LC_ALL),
        "print options": np.get_printoptions(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic),
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark),
        "matmul": torch.get_float32_matmul_precision(),
        "flush": float(np.float32(1e-45)),
    }


def of_the_thread() -> dict[str, Any]:
    """What belongs to one thread, and the states of random generators."""
    return {
        "errors": np.geterr(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002  (that of others is looked at)
        "random": random.getstate(),
    }


class Onlooker(threading.Thread):
    """Another thread of the caller: prints, draws no numbers, and looks at the settings all the time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.lines = 0
        self.seen: dict[str, Any] = {}
        self.before = settings()
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.002):
            print(f"line {self.lines}")
            self.lines += 1
            self.seen |= {name: now for name, now in settings().items() if now != self.before[name]}

    def stop(self) -> None:
        self._end.set()
        self.join()


def test_what_other_threads_see(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images, path = calib_data.path("fashion_resnet.onnx"), calib_data.path("calib.npz"), tmp_path / "q.onnx"
    quantize(model, calib=images, options=TINY)  # imports: those of torch change the filters of warnings
    monkeypatch.setattr(process.ctypes, "CDLL", _without_mallopt(process.ctypes.CDLL))
    capsys.readouterr()
    before, onlooker = of_the_thread(), Onlooker()
    onlooker.start()
    try:
        quantize(model, calib=images, options=TINY, preset="fast", output=path, max_memory="20GB")
        inspect_model(model)
        convert(path, "native")
    finally:
        onlooker.stop()
    assert onlooker.seen == {}
    assert settings() == onlooker.before
    assert of_the_thread() == before
    printed = capsys.readouterr()
    assert printed.out == "".join(f"line {number}\n" for number in range(onlooker.lines))
    assert printed.err == ""
    assert onlooker.lines > 20


def _without_mallopt(original: Any) -> Any:
    class Library:
        def __init__(self, name: str | None) -> None:
            self._library = original(name)

        def __getattr__(self, name: str) -> Any:
            assert name != "mallopt", "the library changes how memory is kept"
            return getattr(self._library, name)

    return Library


@pytest.mark.parametrize("limited", [False, True])
def test_the_owner_of_a_process_may_tune_it(monkeypatch: pytest.MonkeyPatch, limited: bool) -> None:
    calls: list[tuple[int, int]] = []

    class Library:
        def __init__(self, _: object) -> None: ...

        def mallopt(self, what: int, value: int) -> int:
            calls.append((what, value))
            return 1

    monkeypatch.setattr(process.ctypes, "CDLL", Library)
    monkeypatch.setattr(process.os, "environ", {})
    process.tune_process(limited=limited)
    assert [what for what, _ in calls] == [-3, -1]  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    assert (calls[0][1] > 2**30) is not limited


def test_threads_of_the_command_line_do_not_spin() -> None:
    """Before torch is there, since OpenMP reads it when it is loaded; and what the user has set stays."""
    code = (
        "import sys, os, pdq_export; pdq_export.tune_process(); "
        "print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'], os.environ['KMP_BLOCKTIME'])"
    )
    unset = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")}
    for environment, expected in (
        (unset, "False PASSIVE 0"),
        ({**unset, "OMP_WAIT_POLICY": "ACTIVE"}, "False ACTIVE 0"),
    ):
        found = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert found.stdout.strip() == expected


def test_threads_are_as_many_as_asked_for_even_where_torch_is_there() -> None:
    """As in a worker of a cluster, whose environment says something else."""
    code = (
        "import torch, os; from pdq_export.process import tune_process; tune_process(threads=2); "
        "print(torch.get_num_threads(), os.environ['OMP_NUM_THREADS'])"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "2 2"
