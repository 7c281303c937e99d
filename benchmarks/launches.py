"""Kernels that calibration asks a device for, counted on a CPU: by phase, and in a step of each block.

    python -m benchmarks.launches model.onnx --calib calib.npz --bits 2/2

Every operator of torch that computes something counts as one, as it is in eager mode on a GPU up to what cuDNN and
cuBLAS add; views and empty tensors do not. Steps are those after the warm-up, with and without the prediction
difference.
"""

import argparse
import collections
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import markdown
from pdq_export.calibrate import calibrate, teacher
from pdq_export.calibrate.correction import batches_at_once
from pdq_export.calibrate.journal import Journal
from pdq_export.calibrate.step import Step
from pdq_export.config.method import choose_options
from pdq_export.data import load_images
from pdq_export.frontend import import_model
from pdq_export.graph.load import load_model
from pdq_export.graph.passes import free_batch
from pdq_export.graph.prepare import prepare
from pdq_export.numerics import search
from pdq_export.plan import PlanOptions, make_plan, network_family
from pdq_export.signature import input_specs

# What only changes how a tensor is looked at, or makes one without data: no kernel runs.
FREE = frozenset(
    "view _unsafe_view as_strided _reshape_alias expand permute transpose t movedim unfold diagonal alias detach "
    "select slice split split_with_sizes unsafe_split chunk unbind squeeze unsqueeze lift_fresh set_ resize_ "
    "is_same_size empty empty_like empty_strided new_empty new_empty_strided".split()
)


class Launches(TorchDispatchMode):
    """Counts operators in ``found``, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in FREE:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted:
    """Launches by ``phases`` of the journal, and ``steps`` by block: with the prediction difference and without."""

    phases: Mapping[str, int]
    steps: Mapping[str, tuple[int, int]]


def count(model: Path, calib: Path, bits: str, options: Mapping[str, Any]) -> Counted:
    """Calibrate with so few steps that each kind occurs, and count."""
    prepared = prepare(load_model(model))
    plan = make_plan(prepared.model, PlanOptions.of(bits=bits))
    chosen = choose_options(family=network_family(prepared.index, plan.layers), overrides=dict(options))
    (spec,) = input_specs(prepared.index)
    images = torch.from_numpy(load_images(calib, expected=spec, limit=chosen.samples).array())
    phases: collections.Counter[str] = collections.Counter()
    steps: dict[str, dict[bool, int]] = {}
    launches = Launches()
    timed, call = Journal.timed, Step.__call__

    @contextlib.contextmanager
    def counted_phase(self: Journal, phase: str) -> Iterator[None]:
        before = launches.found.total()
        with timed(self, phase):
            yield
        phases[phase] += launches.found.total() - before

    def counted_step(self: Step, batch: Any, numbers: Any) -> Any:
        before = launches.found.total()
        result = call(self, batch, numbers)
        if numbers.exponent is not None:
            open_blocks[-1][numbers.prediction_weight is not None] = launches.found.total() - before
        return result

    open_blocks: list[dict[bool, int]] = []
    cuda = torch.device("cuda")
    begin = Journal.begin

    def begun(self: Journal, position: int, block: Any, count: int = 0) -> None:
        begin(self, position, block, count)
        open_blocks.append(steps.setdefault(block.name, {}))

    with (
        mock.patch.object(Journal, "timed", counted_phase),
        mock.patch.object(Journal, "begin", begun),
        mock.patch.object(Step, "__call__", counted_step),
        # As many candidates, and batches, at once as on a GPU.
        mock.patch.object(search, "_ELEMENTS_ON_CPU", search._ELEMENTS),
        mock.patch.object(teacher, "batches_at_once", lambda options, _: batches_at_once(options, cuda)),
        launches,
    ):
        network = import_model(free_batch.run(prepared.model))
        calibrate(network, plan, prepared.statistics, [images], chosen, device=torch.device("cpu"))
    phases["all"] = launches.found.total()
    return Counted(
        phases=phases, steps={name: (kinds.get(True, 0), kinds.get(False, 0)) for name, kinds in steps.items()}
    )


BUDGET: Mapping[str, Any] = {
    "samples": 32,
    "batch_size": 16,
    "iters": 8,
    "prediction_interval": 2,  # in all blocks: steps of both kinds
    "correction_iters": 4,
    "search_samples": 32,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--bits", default="2/2")
    arguments = parser.parse_args()
    found = count(arguments.model, arguments.calib, arguments.bits, BUDGET)
    rows = [[name, str(with_), str(without)] for name, (with_, without) in found.steps.items()]
    print(markdown(["block", "launches a step", "without the prediction difference"], rows))
    print()
    print(markdown(["phase", "launches"], [[name, f"{number:,}"] for name, number in found.phases.items()]))


if __name__ == "__main__":
    main()
