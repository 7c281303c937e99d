"""Where the time of calibration goes: shares of operator families, from a short profiled run.

    python -m benchmarks.profile_step model.onnx --calib calib.npz --bits 2/2 --threads 1

Runs a few steps of every block under torch's profiler, once with and once without the prediction difference; the
difference of the two is the rest of the network, forward and backward. What is in no operator is Python. On a GPU
these are the times of launching, not of computing.
"""

import argparse
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import markdown
from pdq_export.calibrate import calibrate
from pdq_export.config.method import choose_options
from pdq_export.data import load_images
from pdq_export.frontend import import_model
from pdq_export.graph.load import load_model
from pdq_export.graph.passes import free_batch
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan, network_family
from pdq_export.signature import input_specs

# The first family whose word is in the operator's name gets its time.
FAMILIES: Mapping[str, Sequence[str]] = {
    "convolution, backward": ("convolution_backward",),
    "convolution, forward": ("convolution",),
    "matrix products": ("mm", "linear"),
    "random masks": ("random_",),
    "fake quantization and mixing": ("FakeQuantize", "hardtanh", "round", "aten::dot", "lerp", "aten::div"),
    "copies and indexing": ("copy_", "index", "cat", "clone"),
    "scale search": ("histc", "pow_"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """Seconds of a short calibration: ``wall``, by operator family, and of optimizer steps with their operators."""

    wall: float
    shares: Mapping[str, float]
    optimizer: float


def profile_shares(arguments: argparse.Namespace, *, prediction_difference: bool) -> Profile:
    """Profile one short calibration."""
    prepared = prepare(load_model(arguments.model))
    plan = make_plan(prepared.model, PlanOptions.of(bits=arguments.bits))
    overrides: dict[str, Any] = {"iters": arguments.iters, "correction_iters": arguments.correction_iters}
    if not prediction_difference:
        overrides["prediction_difference"] = False
    family = network_family(prepared.index, plan.layers)
    options = choose_options(preset=arguments.preset, family=family, overrides=overrides)
    (spec,) = input_specs(prepared.index)
    images = load_images(arguments.calib, expected=spec, limit=arguments.samples)
    network = import_model(free_batch.run(prepared.model))
    inputs = [torch.from_numpy(images.array())]
    device = torch.device(arguments.device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    start = time.perf_counter()
    with profile(activities=activities) as profiler:
        calibrate(network, plan, prepared.statistics, inputs, options, device=device)
    wall = time.perf_counter() - start
    shares, optimizer = dict.fromkeys([*FAMILIES, "other operators"], 0.0), 0.0
    for event in profiler.key_averages():
        family = next((name for name, words in FAMILIES.items() if any(w in event.key for w in words)), "")
        shares[family or "other operators"] += event.self_cpu_time_total / 1e6
        if event.key.startswith("Optimizer.step"):
            optimizer += event.cpu_time_total / 1e6
    return Profile(wall=wall, shares=shares, optimizer=optimizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--bits", default="2/2")
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--iters", type=int, default=40)
    parser.add_argument("--correction-iters", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    whole = profile_shares(arguments, prediction_difference=True)
    without = profile_shares(arguments, prediction_difference=False)
    total = sum(whole.shares.values())
    rows = [[name, f"{seconds:.2f}", f"{100 * seconds / total:.0f} %"] for name, seconds in whole.shares.items()]
    print(markdown(["operators", "s", "share of operators"], rows))
    print(f"\noptimizer steps, whose operators are counted above: {whole.optimizer:.2f} s")
    print(f"not in operators (Python, waiting): {whole.wall - total:.1f} s")
    print(f"wall {whole.wall:.1f} s; without the prediction difference {without.wall:.1f} s")


if __name__ == "__main__":
    main()
