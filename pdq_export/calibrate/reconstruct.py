"""Reconstruction of one block: one loop for single layers and residual units alike (PD-Quant, algorithm 1)."""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pdq_export.calibrate.cache import Cache
from pdq_export.calibrate.captured import Capture
from pdq_export.calibrate.quantizers import ActivationQuantizer
from pdq_export.calibrate.schedule import Schedule
from pdq_export.calibrate.step import Batch, BlockModel, LearnedScale, Step
from pdq_export.calibrate.tiers import Chosen
from pdq_export.calibrate.watch import WATCHED, warn_of_divergence
from pdq_export.config.method import CalibrationOptions
from pdq_export.errors import CalibrationError, ResourceError
from pdq_export.exhaustion import is_exhaustion
from pdq_export.numerics.units import power_of_two, unit_of
from pdq_export.ranks import ALONE, Ranks

logger = logging.getLogger(__name__)

Report = Callable[[int, float], None]

# Adam's step is absolute: on a network with small activations the paper's rate would carry a scale below zero.
_LARGEST_STEP = 0.01
_LARGEST_CHANGE = 2.0
# And with large ones it would never move. A scale outside of these is learned as one near 1/64 is.
_SMALLEST_SCALE, _LARGEST_SCALE, _TYPICAL_SCALE = 2.0**-20, 2.0**6, 2.0**-6
# Steps between reports, which give the mean reconstruction error since the last.
_REPORTED = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockRows:
    """The tensors over all images that the fields of a `Batch` are rows of, [N, ...] each."""

    quantized: Sequence[Cache]
    corrected: Sequence[Cache]
    wanted: Sequence[Cache]
    bypass: Sequence[Cache] = ()
    predictions: Sequence[Cache] = ()

    def read(self, chosen: Chosen, *, predicts: bool) -> Batch:
        """The rows ``chosen`` [batch]; ``predicts``: with those that the prediction difference takes."""
        return Batch(
            quantized=[x[chosen] for x in self.quantized],
            corrected=[x[chosen] for x in self.corrected],
            wanted=[x[chosen] for x in self.wanted],
            bypass=[x[chosen] for x in self.bypass] if predicts else (),
            predictions=[x[chosen] for x in self.predictions] if predicts else (),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockProblem:
    """What the loop learns, the weights of the ``model`` and the ``scales``, and from which ``rows``."""

    name: str
    model: BlockModel
    rows: BlockRows
    scales: Sequence[ActivationQuantizer]


def reconstruct(
    problem: BlockProblem,
    options: CalibrationOptions,
    batches: Tensor,
    report: Report,
    warn: Callable[[str], None] = logger.warning,
    relief: Sequence[Callable[[], bool]] = (),
    ranks: Ranks = ALONE,
    capture: Capture | None = None,
) -> Tensor:
    """Learn the block's weight rounding and activation scales in place; the error [steps] of every step is returned.

    ``warn``: told where the loss diverged. ``relief``: what frees memory of a device, see `with_relief`. ``ranks``:
    learn the same together, each on its part of every batch. ``capture``: has a device record the steps.

    ``batches`` [steps, batch]: the images of every step, `options.iters` of them, on the CPU. Quantized inputs are
    mixed with distribution-corrected FP32 inputs; the mixed half is compared with the FP32 block's output, the
    quantized half runs on to a prediction. Outputs that are very small or very large are compared in units of their
    own size. Raises CalibrationError where the loss stops being finite, ResourceError where a step does not fit into a
    GPU.
    """
    model, rows = problem.model, problem.rows
    initial = [quantizer.scale.item() for quantizer in problem.scales]
    learned = [_learned(quantizer, start) for quantizer, start in zip(problem.scales, initial, strict=True)]
    rates = [_rate(options, *each) for each in zip(problem.scales, learned, initial, strict=True)]
    device = rows.wanted[0].device
    schedule = Schedule.of(options, rates, predicts=model.rest is not None, device=device)
    units = [unit_of(max(ranks.gather(_size(wanted, options.batch_size)))) for wanted in rows.wanted]
    step = Step(
        model,
        learned,
        units,
        mix_probability=options.mix_probability,
        temperature=options.temperature,
        precision=options.prediction_precision,
        relief=relief,
        ranks=ranks,
        weight=batches.shape[1] / sum(ranks.gather(batches.shape[1])),
    )
    take = step if capture is None else capture.of(step, model.masks, warn)
    errors = torch.zeros(len(schedule), device=device)
    powers: list[Tensor] = []
    for number, chosen in enumerate(zip(batches, batches.to(device), strict=True)):
        numbers = schedule.numbers(number)
        batch = rows.read(Chosen(*chosen), predicts=numbers.prediction_weight is not None)
        try:
            errors[number], loss = take(batch, numbers)
        except Exception as failed:
            if device.type != "cpu" and is_exhaustion(failed):
                raise _too_large(problem.name, len(chosen[0]), ranks.size, failed) from None
            raise
        if number >= len(schedule) - WATCHED:
            powers.append(step.power(batch.wanted))
        del batch  # or it would live on beside the next one
        if number % _REPORTED == 0 or number + 1 == len(schedule):
            value, error = torch.stack([loss, errors[: number + 1][-_REPORTED:].mean()]).tolist()
            _check_finite(value, problem.name, number)
            report(number + 1, error)
    for quantizer in problem.scales:
        quantizer.scale.requires_grad_(False)
    if powers:
        points = [*(weight.point for weight in model.weights), *(scale.point for scale in problem.scales)]
        warn_of_divergence(problem.name, list(errors[-WATCHED:]), powers, points, warn, _rates(problem, options))
    return errors


def _rates(problem: BlockProblem, options: CalibrationOptions) -> list[str]:
    """The learning rates that the block's steps have gone by, as options are named."""
    of_scales = "range_lr" if options.range_lr else "scale_lr"
    return ["rounding_lr"] * bool(problem.model.weights) + [of_scales] * bool(problem.scales)


def _rate(options: CalibrationOptions, quantizer: ActivationQuantizer, learned: LearnedScale, start: float) -> float:
    """Of the first step of a scale, which is ``start`` now."""
    rate = options.scale_lr * learned.unit
    if options.range_lr:
        rate = options.range_lr * start / max(quantizer.high, -quantizer.low)
    return min(rate, _LARGEST_STEP * start)


def _learned(quantizer: ActivationQuantizer, start: float) -> LearnedScale:
    """Let gradients flow to the quantizer's scale, which is ``start`` now."""
    scale = quantizer.scale.requires_grad_(True)
    ordinary = _SMALLEST_SCALE <= start <= _LARGEST_SCALE
    return LearnedScale(
        scale=quantizer.scale,
        unit=1.0 if ordinary else power_of_two(start) / _TYPICAL_SCALE,
        low=scale.detach() / _LARGEST_CHANGE,
        high=(scale.detach() * _LARGEST_CHANGE).clamp(max=quantizer.largest_scale),
    )


def _size(wanted: Cache, images: int) -> float:
    """The largest magnitude in the first images."""
    first = wanted[torch.arange(min(images, len(wanted)))]
    return float(first.abs().amax()) if first.numel() else 0.0


def _check_finite(value: float, name: str, step: int) -> None:
    if not math.isfinite(value):
        raise CalibrationError(
            f"block {name!r}: the loss is {value} at step {step + 1}; expected a finite number; lower the learning "
            "rates or leave the block's layers at more bits"
        )


def _too_large(name: str, images: int, ranks: int, error: BaseException) -> ResourceError:
    detail = " ".join(str(error).split())[:120].rstrip(".")
    most = images // 2 * ranks
    fewer = f"at most {most} images a step (--set batch_size={most})" if most else "smaller images"
    return ResourceError(
        f"block {name!r}: a step on {images} images does not fit into the GPU's memory ({detail}), with predictions "
        f"made of one image at a time and all cached tensors on the host; take {fewer}, end what else uses the "
        "GPU, or give --device cpu"
    )
