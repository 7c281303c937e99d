"""Calibration data of the tests of sweeps, a user's own module: once it ends its process, as a machine that fails."""

import os
import signal
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FALLEN = "fallen"  # the file that says that a process has ended, in the current folder


def images() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)


def images_after_a_fall() -> NDArray[np.float32]:
    try:
        Path(FALLEN).touch(exist_ok=False)
    except FileExistsError:
        return images()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError
