"""Reconstruction of one block: one loop for single layers and residual units alike (PD-Quant, algorithm 1)."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from pdq_export.calibrate.cache import Rows
from pdq_export.calibrate.losses import prediction_difference, reconstruction_loss
from pdq_export.calibrate.quantizers import ActivationQuantizer, SoftRounding
from pdq_export.calibrate.watch import WATCHED, warn_of_divergence
from pdq_export.errors import CalibrationError
from pdq_export.numerics.affine import bernoulli_like
from pdq_export.numerics.rounding import rounding_regularizer
from pdq_export.options import CalibrationOptions

Report = Callable[[int, float], None]

# Adam's step is absolute: on a network with small activations the paper's rate would carry a scale below zero.
_LARGEST_STEP = 0.01
_LARGEST_CHANGE = 2.0
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


def reconstruct(problem: BlockProblem, options: CalibrationOptions, generator: torch.Generator, report: Report) -> None:
    """Learn the block's weight rounding and activation scales in place.

    Each step draws a batch of quantized inputs and mixes them with distribution-corrected FP32 inputs; the mixed half
    is compared with the FP32 block's output, the quantized half runs on to a prediction. Raises CalibrationError
    where the loss stops being finite.
    """
    for quantizer in problem.scales:
        quantizer.scale.requires_grad_(True)
    initial = [quantizer.scale.item() for quantizer in problem.scales]
    optimizers, schedulers = _optimizers(problem, options)
    count = len(problem.targets[0])
    errors: list[Tensor] = []
    powers: list[Tensor] = []
    for step in range(options.iters):
        chosen = torch.randperm(count, generator=generator, device=generator.device)[: options.batch_size]
        error, loss = _reconstruction_terms(problem, chosen, step, options, generator)
        errors.append(error.detach())
        if step >= options.iters - WATCHED:
            powers.append(_power(problem, chosen))
        loss = loss + _rounding_term(problem.weights, step, options)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        _bound(problem.scales, initial)
        for scheduler in schedulers:
            scheduler.step()
        if step % _REPORTED == 0 or step + 1 == options.iters:
            _check_finite(loss, problem.name, step)
            report(step + 1, torch.stack(errors[-_REPORTED:]).mean().item())
    for quantizer in problem.scales:
        quantizer.scale.requires_grad_(False)
    if errors:
        points = [*(weight.point for weight in problem.weights), *(scale.point for scale in problem.scales)]
        warn_of_divergence(problem.name, errors, powers, points)


def _optimizers(
    problem: BlockProblem, options: CalibrationOptions
) -> tuple[list[torch.optim.Optimizer], list[torch.optim.lr_scheduler.LRScheduler]]:
    optimizers: list[torch.optim.Optimizer] = []
    schedulers: list[torch.optim.lr_scheduler.LRScheduler] = []
    if problem.weights:
        optimizers.append(torch.optim.Adam([w.alpha for w in problem.weights], lr=options.rounding_lr))
    if problem.scales:
        groups = [
            {"params": [q.scale], "lr": min(options.scale_lr, _LARGEST_STEP * q.scale.item())} for q in problem.scales
        ]
        optimizers.append(torch.optim.Adam(groups, lr=options.scale_lr))
        schedulers.append(torch.optim.lr_scheduler.CosineAnnealingLR(optimizers[-1], T_max=max(options.iters, 1)))
    return optimizers, schedulers


@torch.no_grad()
def _bound(scales: Sequence[ActivationQuantizer], initial: Sequence[float]) -> None:
    for quantizer, start in zip(scales, initial, strict=True):
        quantizer.scale.clamp_(start / _LARGEST_CHANGE, start * _LARGEST_CHANGE)


def _reconstruction_terms(
    problem: BlockProblem, chosen: Tensor, step: int, options: CalibrationOptions, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Error of the reconstruction, and the same with the prediction difference."""
    tail = problem.tail if step % options.prediction_interval == 0 else None
    inputs = []
    for quantized, corrected in zip(problem.quantized_inputs, problem.corrected_inputs, strict=True):
        x_q, x_c = quantized[chosen], corrected[chosen]
        mixed = x_c.lerp_(x_q, bernoulli_like(x_q, options.mix_probability, generator))
        inputs.append(mixed if tail is None else torch.cat([mixed, x_q]))
    outputs = problem.student(*inputs)
    count = len(chosen)
    pairs = zip(outputs, problem.targets, strict=True)
    error = torch.stack([reconstruction_loss(output[:count], target[chosen]) for output, target in pairs]).sum()
    loss = error
    if tail is not None:
        predictions = tail(*(output[count:] for output in outputs), *(x[chosen] for x in problem.bypass))
        wanted = [prediction[chosen] for prediction in problem.predictions]
        difference = prediction_difference(predictions, wanted, problem.class_axes, options.temperature)
        loss = loss + difference * (options.prediction_interval / options.lambda_r)
    return error, loss


def _power(problem: BlockProblem, chosen: Tensor) -> Tensor:
    """The mean square of the targets, counted as the error is."""
    targets = [target[chosen] for target in problem.targets]
    return torch.stack([reconstruction_loss(target, torch.zeros_like(target)) for target in targets]).sum()


def _rounding_term(weights: Sequence[SoftRounding], step: int, options: CalibrationOptions) -> Tensor | float:
    start = options.warmup * options.iters
    if step < start:
        return 0.0
    progress = (step - start) / max(options.iters - start, 1)
    exponent = options.exponent_start + (options.exponent_end - options.exponent_start) * progress
    terms = [rounding_regularizer(weight.h(), exponent) for weight in weights]
    return options.rounding_weight * torch.stack(terms).sum() if terms else 0.0


def _check_finite(loss: Tensor, name: str, step: int) -> None:
    value = loss.item()
    if not math.isfinite(value):
        raise CalibrationError(
            f"block {name!r}: the loss is {value} at step {step + 1}; expected a finite number; lower the learning "
            "rates or leave the block's layers at more bits"
        )
