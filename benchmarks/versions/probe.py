"""Runs files in the runtime that this interpreter has, onnxruntime or OpenVINO, with nothing else but numpy.

    python probe.py JOB.json try     every file of the job in each of its ways: a JSON line for each
    python probe.py JOB.json time    every file of the job in its first way, interleaved: a JSON line

It is run in environments of their own, so it imports nothing of the project; `job.py` beside it writes the job. A way
in which a file does not load or run has a line with ``failure``; a crash ends the process, and the caller knows by the
lines that are missing.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Run = Callable[[Any], Any]

# By name: the level of onnxruntime's graph optimizations, entries of the session, attributes of its options.
_LEVELS = {"disable_all": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED"}
_ENTRIES = {"disable_quant_qdq": {"session.disable_quant_qdq": "1"}}
_ATTRIBUTES = {"no_mem_reuse": {"enable_mem_reuse": False}}
_OPENVINO = {"no_low_precision": {"LP_TRANSFORMS_MODE": "NO"}}


def _open_in_onnxruntime(path: str, way: str, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if way in _LEVELS:
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[way])
    for key, value in _ENTRIES.get(way, {}).items():
        options.add_session_config_entry(key, value)
    for name, asked in _ATTRIBUTES.get(way, {}).items():
        setattr(options, name, asked)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    taken = session.get_inputs()[0].name
    return lambda batch: session.run(None, {taken: batch})[0]


def _open_in_openvino(path: str, way: str, threads: int) -> Run:
    import openvino  # type: ignore[import-not-found]

    config = {"INFERENCE_NUM_THREADS": threads, **_OPENVINO.get(way, {})}
    request = openvino.Core().compile_model(path, "CPU", config).create_infer_request()
    return lambda batch: request.infer([batch])[0]


def _runtime() -> tuple[str, Callable[[str, str, int], Run]]:
    """The version, and what opens a file."""
    try:
        import onnxruntime
    except ImportError:
        import openvino

        return openvino.__version__.split("-")[0], _open_in_openvino
    return onnxruntime.__version__, _open_in_onnxruntime


def _try(job: dict[str, Any], images: Any) -> None:
    version, open_file = _runtime()
    for file in job["files"]:
        for way in file["ways"]:
            line: dict[str, Any] = {"version": version, "way": way, "failure": None, "values": None}
            try:
                values = np.asarray(open_file(file["path"], way, job["threads"])(images), np.float64)
                line["values"] = [value if np.isfinite(value) else None for value in values.ravel().tolist()]
            except Exception as error:  # runtimes' own errors have no common base class
                line["failure"] = " ".join(str(error).split())[:300] or type(error).__name__
            print(json.dumps(line), flush=True)


def _time(job: dict[str, Any], images: Any) -> None:
    """CPU time of the process on one thread, which leaves out when others had the core."""
    clock = time.process_time if job["threads"] == 1 else time.perf_counter
    _, open_file = _runtime()
    batch = images[:1]
    calls = [open_file(file["path"], file["ways"][0], job["threads"]) for file in job["files"]]
    repeats = []
    for call in calls:
        for _ in range(3):
            call(batch)
        start = clock()
        for _ in range(3):
            call(batch)
        repeats.append(max(1, round(job["seconds"] / max((clock() - start) / 3, 1e-6))))
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(job["rounds"]):
        for number, call in enumerate(calls):
            start = clock()
            for _ in range(repeats[number]):
                call(batch)
            times[number].append((clock() - start) / repeats[number] * 1e3)
    print(json.dumps({"milliseconds": times}), flush=True)


def main(job_path: str, action: str) -> None:
    """Print the lines of all files, or their times."""
    with open(job_path, encoding="utf-8") as file:
        job = json.load(file)
    images = np.fromfile(job["images"], np.float32).reshape(job["shape"])
    (_time if action == "time" else _try)(job, images)


if __name__ == "__main__":
    main(*sys.argv[1:])
