"""Loads a file in onnxruntime and runs it: a program of its own, which imports nothing else; `fresh.py` starts it.

Its one argument is what `fresh.py` asks for, as JSON; it writes what `Fresh` holds. It runs in any Python that has
onnxruntime, this package or none.
"""

import json
import sys
import time
from typing import Any

import onnxruntime


def _memory(field: str) -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{field}:"))


def _begin_peak() -> int | None:
    """Resident bytes now, from where on the kernel keeps the peak; None where it does not tell."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        return _memory("VmRSS")
    except (OSError, StopIteration):
        return None


def _run(asked: dict[str, Any]) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    for key, value in asked["config"].items():
        options.add_session_config_entry(key, value)
    options.intra_op_num_threads, options.log_severity_level = asked["threads"], 3
    options.enable_mem_reuse = asked["reuse_memory"]
    feed = {}
    if asked["inputs"] is not None:
        import numpy as np  # not every folder with an onnxruntime that only loads has it

        with np.load(asked["inputs"]) as arrays:
            feed = {name: arrays[f"arr_{index}"] for index, name in enumerate(asked["names"])}
    before = _begin_peak()
    cpu, wall = time.process_time(), time.perf_counter()
    session = onnxruntime.InferenceSession(asked["model"], options, providers=["CPUExecutionProvider"])
    found: dict[str, Any] = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    if before is not None:
        found |= {"load_peak": _memory("VmHWM") - before, "after": _memory("VmRSS") - before}
    if asked["inputs"] is not None:
        for _ in range(2):  # the second with what the first has taught of its memory
            session.run(None, feed)
        if before is not None:
            found["peak"] = _memory("VmHWM") - before
    return {"onnxruntime": onnxruntime.__version__, **found}


if __name__ == "__main__":
    json.dump(_run(json.loads(sys.argv[1])), sys.stdout)
