"""What kernels are chosen by: another choice adds in another order, so it belongs to the key of a run."""

import contextlib
import functools
import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from pdq_export.process import read_environment

# Libraries choose kernels, and how sums are split among threads, by these.
_STEERING = ("ONEDNN_", "DNNL_", "MKL_", "ATEN_", "TORCH_MKLDNN_", "OPENBLAS_", "NPY_", "KMP_", "OMP_", "GOMP_")
_STEERING_GPU = ("CUBLAS", "CUDNN", "NVIDIA_TF32", "TORCH_CUDNN", "TORCH_ALLOW_TF32", "PYTORCH_MIOPEN", "HIPBLAS")
# Of those, what only says where work runs, how long it waits and what is printed; threads are counted by themselves.
_IDLE = ("VERBOSE", "AFFINITY", "BLOCKTIME", "PLACES", "PROC_BIND", "DISPLAY", "WAIT_POLICY", "STACKSIZE", "WARNINGS")
_COUNTED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT")
_CHOSEN = ("cpu family", "model", "stepping", "CPU implementer", "CPU architecture", "CPU variant", "CPU part")
_FEATURES = ("flags", "Features")


def describe_machine(device: torch.device, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """All that kernels are chosen by on ``device``, by names that people understand; by default in this process."""
    environment = read_environment() if environment is None else environment
    parts = {
        "device": str(device),
        **_processor(),
        "threads": str(torch.get_num_threads()),
        "oneDNN in torch": _switch(torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)),
        "deterministic algorithms of torch": _switch(torch.are_deterministic_algorithms_enabled()),
        **_steering(_STEERING, environment),
    }
    if device.type != "cpu":
        parts |= {
            "device": f"{device.type} ({torch.cuda.get_device_name(device)})",
            "CUDA": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),
            "cuDNN in torch": _switch(torch.backends.cudnn.enabled),
            "deterministic cuDNN": _switch(torch.backends.cudnn.deterministic),
            "benchmarks of cuDNN": _switch(torch.backends.cudnn.benchmark),
            **_steering(_STEERING_GPU, environment),
        }
    return parts


def _steering(prefixes: tuple[str, ...], environment: Mapping[str, str]) -> dict[str, str]:
    return {
        f"environment variable {name}": value
        for name, value in sorted(environment.items())
        if name.startswith(prefixes) and name not in _COUNTED and not any(word in name for word in _IDLE)
    }


def _switch(on: bool) -> str:
    return "on" if on else "off"


@functools.cache
def _processor() -> Mapping[str, str]:
    text = ""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return processor_parts(text)


def processor_parts(cpuinfo: str) -> dict[str, str]:
    """The processor by name, number of its kind, and a digest of what it can; ``cpuinfo``: as Linux tells it, or ""."""
    found: dict[str, list[str]] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        values = found.setdefault(name.strip(), [])
        if value.strip() not in values:  # cores may be of several kinds
            values.append(value.strip())
    name = (found.get("model name") or [platform.processor()])[0]
    parts = {
        "processor": " ".join(filter(None, [platform.machine(), name, torch.backends.cpu.get_cpu_capability()])),
    }
    kinds = [f"{field} {'+'.join(sorted(found[field]))}" for field in _CHOSEN if field in found]
    if kinds:
        parts["kind of processor"] = ", ".join(kinds)
    features = {word for field in _FEATURES for value in found.get(field, ()) for word in value.split()}
    if features:
        parts["features of the processor"] = hashlib.sha256(" ".join(sorted(features)).encode()).hexdigest()
    return parts
