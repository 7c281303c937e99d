"""Reconstruction of one block: one loop for single layers and residual units alike (PD-Quant, algorithm 1)."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from pdq_export.calibrate.cache import Rows
from pdq_export.calibrate.losses import prediction_difference, reconstruction_loss
from pdq_export.calibrate.quantizers import ActivationQuantizer, SoftRounding
from pdq_export.calibrate.schedule import cosine_decay
from pdq_export.calibrate.watch import WATCHED, warn_of_divergence
from pdq_export.config.method import CalibrationOptions
from pdq_export.errors import CalibrationError
from pdq_export.numerics.affine import bernoulli_like
from pdq_export.numerics.rounding import rounding_regularizer
from pdq_export.numerics.units import power_of_two, unit_of

Report = Callable[[int, float], None]

# Adam's step is absolute: on a network with small activations the paper's rate would carry a scale below zero.
_LARGEST_STEP = 0.01
_LARGEST_CHANGE = 2.0
# And with large ones it would never move. A scale outside of these is learned as one near 1/64 is.
_SMALLEST_SCALE, _LARGEST_SCALE, _TYPICAL_SCALE = 2.0**-20, 2.0**6, 2.0**-6
# Steps between reports, which give the mean reconstruction error since the last.
_REPORTED = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockProblem:
    """What the loop needs of a block; tensors are lists in the order of the block's inputs or outputs, [N, ...].

    ``student``: the block with soft weights and dropping quantizers. ``tail``: the FP32 rest of the network from the
    block's outputs, and the FP32 tensors that ``bypass`` the block, to the ``predictions``; None where the prediction
    difference is off.
    """

    name: str
    student: fx.GraphModule
    tail: fx.GraphModule | None
    quantized_inputs: Sequence[Rows]
    corrected_inputs: Sequence[Rows]
    targets: Sequence[Rows]
    bypass: Sequence[Rows]
    predictions: Sequence[Rows]
    class_axes: Sequence[int | None]
    weights: Sequence[SoftRounding]
    scales: Sequence[ActivationQuantizer]


def reconstruct(
    problem: BlockProblem, options: CalibrationOptions, batches: Tensor, masks: torch.Generator, report: Report
) -> None:
    """Learn the block's weight rounding and activation scales in place.

    ``batches`` [iters, batch]: the images of every step. ``masks`` draws which elements of inputs are mixed. Each step
    takes its batch of quantized inputs and mixes them with distribution-corrected FP32 inputs; the mixed half
    is compared with the FP32 block's output, the quantized half runs on to a prediction. Targets that are very small
    or very large are compared in units of their own size. Raises CalibrationError where the loss stops being finite.
    """
    initial = [quantizer.scale.item() for quantizer in problem.scales]
    units = [_scale_unit(scale) for scale in initial]
    hooks = [_learn_in_units(quantizer.scale, unit) for quantizer, unit in zip(problem.scales, units, strict=True)]
    optimizers, rates = _optimizers(problem, units, options)
    sizes = [unit_of(_size(target, options.batch_size)) for target in problem.targets]
    errors: list[Tensor] = []
    powers: list[Tensor] = []
    for step, chosen in enumerate(batches):
        error, loss = _reconstruction_terms(problem, sizes, chosen, step, options, masks)
        errors.append(error.detach())
        if step >= options.iters - WATCHED:
            powers.append(_power(problem, sizes, chosen))
        loss = loss + _rounding_term(problem.weights, step, options)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group, rate in rates:
            group["lr"] = rate * cosine_decay(step, options.iters)
        for optimizer in optimizers:
            optimizer.step()
        _bound(problem.scales, initial)
        if step % _REPORTED == 0 or step + 1 == options.iters:
            _check_finite(loss, problem.name, step)
            report(step + 1, torch.stack(errors[-_REPORTED:]).mean().item())
    for quantizer, hook in zip(problem.scales, hooks, strict=True):
        hook.remove()
        quantizer.scale.requires_grad_(False)
    if errors:
        points = [*(weight.point for weight in problem.weights), *(scale.point for scale in problem.scales)]
        warn_of_divergence(problem.name, errors, powers, points)


def _size(target: Rows, images: int) -> float:
    """The largest magnitude in the first images."""
    first = target[torch.arange(min(images, len(target)))]
    return float(first.abs().amax()) if first.numel() else 0.0


def _scale_unit(scale: float) -> float:
    return 1.0 if _SMALLEST_SCALE <= scale <= _LARGEST_SCALE else power_of_two(scale) / _TYPICAL_SCALE


def _learn_in_units(scale: nn.Parameter, unit: float) -> RemovableHandle:
    """Let the gradient be that to scale / unit."""
    scale.requires_grad_(True)
    hook: RemovableHandle = scale.register_hook(lambda gradient: gradient if unit == 1.0 else gradient * unit)
    return hook


def _optimizers(
    problem: BlockProblem, units: Sequence[float], options: CalibrationOptions
) -> tuple[list[torch.optim.Optimizer], list[tuple[dict[str, Any], float]]]:
    """Optimizers, and the groups of parameters whose rate decays with the rate that they begin with."""
    optimizers: list[torch.optim.Optimizer] = []
    if problem.weights:
        optimizers.append(torch.optim.Adam([w.alpha for w in problem.weights], lr=options.rounding_lr))
    if not problem.scales:
        return optimizers, []
    rates = [
        min(options.scale_lr * unit, _LARGEST_STEP * q.scale.item())
        for q, unit in zip(problem.scales, units, strict=True)
    ]
    groups = [{"params": [q.scale]} for q in problem.scales]
    optimizers.append(torch.optim.Adam(groups, lr=options.scale_lr))
    return optimizers, list(zip(optimizers[-1].param_groups, rates, strict=True))


@torch.no_grad()
def _bound(scales: Sequence[ActivationQuantizer], initial: Sequence[float]) -> None:
    for quantizer, start in zip(scales, initial, strict=True):
        quantizer.scale.clamp_(start / _LARGEST_CHANGE, start * _LARGEST_CHANGE)


def _reconstruction_terms(
    problem: BlockProblem,
    sizes: Sequence[float],
    chosen: Tensor,
    step: int,
    options: CalibrationOptions,
    masks: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Error of the reconstruction, and the same with the prediction difference."""
    tail = problem.tail if step % options.prediction_interval == 0 else None
    inputs = []
    for quantized, corrected in zip(problem.quantized_inputs, problem.corrected_inputs, strict=True):
        x_q, x_c = quantized[chosen], corrected[chosen]
        mixed = x_c.lerp_(x_q, bernoulli_like(x_q, options.mix_probability, masks))
        inputs.append(mixed if tail is None else torch.cat([mixed, x_q]))
    outputs = problem.student(*inputs)
    count = len(chosen)
    parts = zip(outputs, problem.targets, sizes, strict=True)
    error = torch.stack([reconstruction_loss(y[:count], target[chosen], size) for y, target, size in parts]).sum()
    loss = error
    if tail is not None:
        predictions = tail(*(output[count:] for output in outputs), *(x[chosen] for x in problem.bypass))
        wanted = [prediction[chosen] for prediction in problem.predictions]
        difference = prediction_difference(predictions, wanted, problem.class_axes, options.temperature)
        loss = loss + difference * (options.prediction_interval / options.lambda_r)
    return error, loss


def _power(problem: BlockProblem, sizes: Sequence[float], chosen: Tensor) -> Tensor:
    """The mean square of the targets, counted as the error is."""
    targets = [target[chosen] for target in problem.targets]
    parts = zip(targets, sizes, strict=True)
    return torch.stack([reconstruction_loss(y, torch.zeros_like(y), size) for y, size in parts]).sum()


def _rounding_term(weights: Sequence[SoftRounding], step: int, options: CalibrationOptions) -> Tensor | float:
    start = options.warmup * options.iters
    if step < start:
        return 0.0
    progress = (step - start) / max(options.iters - start, 1)
    exponent = torch.tensor(options.exponent_start + (options.exponent_end - options.exponent_start) * progress)
    terms = [rounding_regularizer(weight.h(), exponent) for weight in weights]
    return options.rounding_weight * torch.stack(terms).sum() if terms else 0.0


def _check_finite(loss: Tensor, name: str, step: int) -> None:
    value = loss.item()
    if not math.isfinite(value):
        raise CalibrationError(
            f"block {name!r}: the loss is {value} at step {step + 1}; expected a finite number; lower the learning "
            "rates or leave the block's layers at more bits"
        )
