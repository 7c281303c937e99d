"""How good and fast a written file is: it is run beside the user's and the simulation, and again where it is off."""

import dataclasses
import functools
import logging
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pdq_export.calibrate import Calibrated
from pdq_export.calibrate.device import computing_on
from pdq_export.calibrate.precision import settled_torch
from pdq_export.commands.judging import Observed
from pdq_export.commands.progress import Tell
from pdq_export.data import Data
from pdq_export.fidelity import Reference, as_seen
from pdq_export.plan.saturation import saturating_layers
from pdq_export.ranks import ALONE, Ranks
from pdq_export.targets import Target
from pdq_export.validate import (
    BATCH_SIZE,
    Batch,
    Comparison,
    DeviationMeter,
    LatencyPair,
    Measurements,
    Metric,
    Share,
    Simulate,
    help_validate,
    try_latency,
    validate,
)
from pdq_export.validate.parity import NOTICED, Parity, judge_parity
from pdq_export.work import Work

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A file, ``content``, that is measured on all samples to judge on, and on some of them against the simulation.

    ``device``: of the simulation, which sees at most ``simulated_images``, evenly spread; ``deterministic`` there as in
    calibration. Where the ``target`` is no file for onnxruntime, what checks its files runs the first samples, which
    are held against the simulation where it gives outputs, and the simulation alone is measured. ``ranks``: measure it
    together, a share of the batches each, of which the first has the figures.
    """

    work: Work
    calibrated: Calibrated
    content: bytes
    reference: Reference
    target: Target
    device: torch.device
    deterministic: bool = False
    simulated_images: int
    ranks: Ranks = ALONE

    def comparison(self) -> Comparison:
        """What is run, by this process of all or as its share."""
        work, judged, ranks = self.work, self.work.samples.judged, self.ranks
        size = work.batch or BATCH_SIZE
        mine = ranks.mine(math.ceil(len(judged) / size))
        share = Share(
            mine=mine,
            batches=lambda: judged.batches(size, first=mine.start, every=mine.step),
            to_first=ranks.to_first,
        )
        return Comparison(
            original=self.reference.content(work.prepared.model),
            quantized=self.content if self.target.in_onnxruntime else None,
            batches=lambda: judged.batches(size),
            labels=judged.labels,
            compared=work.compared if work.plan.tail else (),
            parts=work.plan.parts,
            places=work.network.meta["images"],
            simulate=_simulator(work, self.calibrated, self.device, deterministic=self.deterministic),
            simulate_every=math.ceil(len(judged) / size / max(self.simulated_images // size, 1)),
            optimize=self.reference.optimize,
            share=None if ranks.is_alone else share,
            threads=None if ranks.is_alone else torch.get_num_threads(),  # others share the machine
        )


def evaluate(
    evaluation: Evaluation, *, metrics: Sequence[Metric] = (), tell: Tell
) -> tuple[Measurements, Parity, Observed]:
    """Measure a file; ``metrics`` see what is measured. Of several ranks the first does, see `help_evaluate`.

    Raises ValidationError where the file does not load or run, or its outputs are not comparable.
    """
    work, target = evaluation.work, evaluation.target
    judged = work.samples.judged
    observed = Observed(metrics, judged.labels, work.compared[0])
    comparison = dataclasses.replace(evaluation.comparison(), observe=observed)
    if not target.in_onnxruntime:
        _check_first(target, evaluation.content, comparison)
        logger.info("files for --target %s do not run in onnxruntime: the figures are the simulation's", target.name)
    measured = validate(comparison, progress=lambda done: tell.images("validate", done, len(judged)))
    parity = judge_parity(
        measured,
        comparison,
        saturating=saturating_layers(work.plan, signed=True),
        reducible=bool(saturating_layers(work.plan)),
        progress=functools.partial(tell.images, "rerun"),
    )
    return measured, parity, observed


def help_evaluate(evaluation: Evaluation) -> None:
    """Run what is this process's of an evaluation, whose figures the first of the ranks has."""
    help_validate(evaluation.comparison())


def measure_simulation(
    work: Work,
    calibrated: Calibrated,
    reference: Reference,
    data: Data,
    *,
    device: torch.device,
    deterministic: bool,
    tell: Tell,
) -> Measurements:
    """What the simulation of a file that is not written yet does on ``data``, beside FP32."""
    size = work.batch or BATCH_SIZE
    comparison = Comparison(
        original=reference.content(work.prepared.model),
        quantized=None,
        batches=lambda: data.batches(size),
        labels=data.labels,
        compared=work.compared if work.plan.tail else (),
        places=work.network.meta["images"],
        simulate=_simulator(work, calibrated, device, deterministic=deterministic),
        optimize=reference.optimize,
    )
    return validate(comparison, progress=lambda done: tell.images("validate", done, len(data)))


def time_beside(work: Work, content: bytes, reference: Reference, *, target: Target) -> LatencyPair | None:
    """What onnxruntime takes for a file, ``content``, beside the user's: a batch of one, or as many as that wants.

    None where the ``target`` is no file for onnxruntime, and, with a warning, where one of them does not run so.
    """
    if not target.in_onnxruntime:
        return None
    batches: Iterable[Batch] = work.samples.judged.batches(work.batch or 1)
    original = reference.content(work.prepared.model)
    return try_latency(original, content, next(iter(batches)), optimize=reference.optimize)


def _check_first(target: Target, content: bytes, comparison: Comparison) -> None:
    """Run the first samples, and warn where an output is off the simulation; whoever reads the file sees the same."""
    batch = next(iter(comparison.batches()))
    found = target.check_runs(content, batch)
    if found is None or comparison.compared or comparison.simulate is None:
        return
    for number, (output, simulated) in enumerate(zip(found, comparison.simulate(batch), strict=True)):
        meter = DeviationMeter()
        meter.update(simulated, output)
        if meter.result() > NOTICED:
            logger.warning(
                "output %d: what the file says is %.1f %% off the simulation on the first samples; expected %.1f %% at "
                "most, which rounding makes; run it in the tool that it is for before relying on the report",
                number,
                100 * meter.result(),
                100 * NOTICED,
            )


def _simulator(work: Work, calibrated: Calibrated, device: torch.device, *, deterministic: bool) -> Simulate:
    index = work.index

    @torch.no_grad()
    def simulate(batch: Batch) -> list[NDArray[np.float32]]:
        inputs = as_seen(batch if isinstance(batch, tuple) else (batch,), index)
        with settled_torch(), computing_on(device, deterministic=deterministic):
            outputs = calibrated.simulation(*(x.to(device) for x in inputs))
            return [output.cpu().numpy() for output in outputs]

    return simulate
