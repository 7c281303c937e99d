"""After the last block: scales and biases of the whole network, learned together by the prediction difference.

Blocks are reconstructed one by one, each with an FP32 network behind it, so that what is left of one block's error is
never weighed against another's. Here the integers of the weights stay and what they are multiplied with is learned, as
in the second phase of EfficientQAT (Chen et al., 2024, section 3.3), and the biases. There are a few thousand of these
numbers, too few to learn a calibration set by heart, as millions of roundings do. Not in the PD-Quant paper.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from pdq_export.calibrate.augment import random_views
from pdq_export.calibrate.cache import Cache
from pdq_export.calibrate.losses import prediction_difference
from pdq_export.calibrate.passes import PASS_BATCH, spread
from pdq_export.calibrate.quantizers import ActivationQuantizer, WeightQuantizer
from pdq_export.calibrate.state import Quantizers
from pdq_export.calibrate.subgraph import extract
from pdq_export.errors import CalibrationError
from pdq_export.numerics.affine import fake_quantize_affine, per_channel
from pdq_export.options import CalibrationOptions
from pdq_export.spec import Layer, Plan, Role

logger = logging.getLogger(__name__)

# The paper's T flattens predictions where each block's part in them is to be seen; here they are what counts.
_TEMPERATURE = 1.0
# Elements of the inputs that run at a time; their gradients are added up. Memory is that of so many, with the same
# result whatever its limit, and on a CPU large tensors only leave the caches.
_ELEMENTS = 2**20
_WARMUP = 0.1  # share of the steps over which the rate rises; it falls to zero by a cosine
_BETAS = (0.9, 0.99)
_LARGEST_CHANGE = 2.0  # of a scale
_JUDGED = 256  # images on which the result has to be better than what was there
_UNIT_IMAGES = 4
_MOST_CHANNELS = 4  # of an image: grey, colours, an alpha channel
_REPORTED = 5  # steps between reports


class _ScaledActivation(nn.Module):
    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.factor = nn.Parameter(torch.ones_like(quantizer.scale))

    def forward(self, x: Tensor) -> Tensor:
        quantizer = self.quantizer
        return fake_quantize_affine(x, quantizer.scale * self.factor, quantizer.low, quantizer.high)


class _ScaledWeight(nn.Module):
    def __init__(self, quantizer: WeightQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.factor = nn.Parameter(torch.ones_like(quantizer.scale))

    def forward(self) -> Tensor:
        weight: Tensor = self.quantizer()
        return weight * per_channel(self.factor, self.quantizer.point.axis, weight.ndim)


class _ShiftedBias(nn.Module):
    """``bias`` + ``unit`` * shift, the unit being how far the layer's outputs spread."""

    def __init__(self, bias: Tensor, unit: float) -> None:
        super().__init__()
        self.bias, self.unit = bias, unit
        self.shift = nn.Parameter(torch.zeros_like(bias))

    def forward(self) -> Tensor:
        return self.bias + self.unit * self.shift


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndToEnd:
    """The quantized network with what can be learned of it, and the FP32 network that it is to predict like.

    ``student`` and ``teacher`` give the predictions; their ``class_axes`` and ``powers`` (mean squares over all images)
    are those of `losses.prediction_difference`. Factors of scales and shifts of biases are the parameters.
    """

    student: fx.GraphModule
    teacher: fx.GraphModule
    class_axes: Sequence[int | None]
    powers: Sequence[float]
    scaled: Sequence[_ScaledActivation | _ScaledWeight]
    shifted: Mapping[str, _ShiftedBias]  # by ONNX node

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is learned, in units that one learning rate fits."""
        return [*(module.factor for module in self.scaled), *(module.shift for module in self.shifted.values())]


def prepare_end_to_end(
    network: fx.GraphModule,
    plan: Plan,
    done: Quantizers,
    inputs: Mapping[str, Cache],
    predictions: Mapping[str, Cache],
    class_axes: Mapping[str, int | None],
    *,
    learn_scales: bool,
) -> EndToEnd:
    """Splice learnable scales and biases into the finished network.

    ``inputs`` by graph input. ``predictions`` of the FP32 network and their ``class_axes``, by tensor. Without
    ``learn_scales`` activations keep theirs, as carriers always do.
    """
    weights = {name: _ScaledWeight(weight) for name, weight in done.weights.items()}
    activations = {
        name: _ScaledActivation(quantizer)
        for name, quantizer in done.activations.items()
        if learn_scales and plan.points[name].role is Role.ACTIVATION
    }
    shifted = _shifted_biases(network, plan, done, inputs)
    student = extract(
        network,
        list(inputs),
        list(predictions),
        quantizers={**done.activations, **weights, **activations},
        biases={**done.biases, **shifted},
        whole=True,
    )
    return EndToEnd(
        student=student,
        teacher=extract(network, list(inputs), list(predictions), whole=True),
        class_axes=[class_axes[name] for name in predictions],
        powers=[_power(x) for x in predictions.values()],
        scaled=[*weights.values(), *activations.values()],
        shifted=shifted,
    )


@torch.no_grad()
def _shifted_biases(
    network: fx.GraphModule, plan: Plan, done: Quantizers, inputs: Mapping[str, Cache]
) -> dict[str, _ShiftedBias]:
    layers = [layer for layer in plan.layers if done.can_shift_bias(layer)]
    outputs = extract(network, list(inputs), [layer.output for layer in layers], whole=True)(
        *(x[spread(len(x), _UNIT_IMAGES).to(x.device)] for x in inputs.values())
    )
    return {
        layer.node: _ShiftedBias(done.constants[_bias(layer)].detach(), output.std(correction=0).item())
        for layer, output in zip(layers, outputs, strict=True)
    }


def learn_end_to_end(
    problem: EndToEnd,
    plan: Plan,
    done: Quantizers,
    inputs: Sequence[Cache],
    options: CalibrationOptions,
    generator: torch.Generator,
    report: Callable[[int, float], None],
) -> None:
    """Learn scales and biases and put them into ``done``, where the predictions have come closer to FP32's.

    Each step draws a batch of the calibration images, with ``options.augment`` random views of them. Raises
    CalibrationError where the loss stops being finite.
    """
    draw = functools.partial(_draw, inputs, generator if _has_views(options, inputs) else None)
    judged = generator.get_state()
    before = _judge(problem, inputs, draw, options.batch_size)
    optimizer = torch.optim.Adam(problem.parameters, lr=options.end_to_end_lr, betas=_BETAS)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, options.end_to_end_iters))
    losses: list[float] = []
    for step in range(options.end_to_end_iters):
        chosen = torch.randperm(len(inputs[0]), generator=generator, device=generator.device)[: options.batch_size]
        optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for part in _parts(chosen, inputs, options.batch_size):
            difference = _difference(problem, draw(part)) * (len(part) / len(chosen))
            difference.backward()
            loss += difference.item()
        if not math.isfinite(loss):
            raise CalibrationError(
                f"end-to-end learning: the loss is {loss} at step {step + 1}; expected a finite number; lower "
                "end_to_end_lr or switch it off (--set end_to_end_iters=0)"
            )
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            for module in problem.scaled:
                module.factor.clamp_(1 / _LARGEST_CHANGE, _LARGEST_CHANGE)
        losses.append(loss)
        if (step + 1) % _REPORTED == 0 or step + 1 == options.end_to_end_iters:
            report(step + 1, sum(losses[-_REPORTED:]) / len(losses[-_REPORTED:]))
    generator.set_state(judged)  # the same views again
    after = _judge(problem, inputs, draw, options.batch_size)
    if after < before:
        logger.info("end to end: the prediction difference is %.4g, it was %.4g", after, before)
        _settle(problem, plan, done)
    else:
        logger.info("end to end: predictions are not closer to FP32's (%.4g, %.4g before): left alone", after, before)


def _settle(problem: EndToEnd, plan: Plan, done: Quantizers) -> None:
    with torch.no_grad():
        for module in problem.scaled:
            module.quantizer.scale.mul_(module.factor)
        for layer in plan.layers:
            if layer.node in problem.shifted:
                bias = problem.shifted[layer.node]
                done.shift_bias(layer, bias.unit * bias.shift.detach())
    for block in plan.blocks:
        done.round_biases(block)


def weight_bytes(problem: EndToEnd) -> int:
    """What a step keeps of the weights, whatever the images: dequantized, and times their factors."""
    return sum(8 * module.quantizer.q.numel() for module in problem.scaled if isinstance(module, _ScaledWeight))


def _power(x: Cache) -> float:
    total = sum(batch.square().sum(dtype=torch.float64).item() for batch in x.batches(PASS_BATCH))
    return total / max(math.prod(x.shape), 1)


def part_images(inputs: Sequence[Cache], batch_size: int) -> int:
    """Images that run at a time in a step on ``batch_size`` of them."""
    return max(2, min(batch_size, _ELEMENTS // max(1, sum(math.prod(x.shape[1:]) for x in inputs))))


def _parts(chosen: Tensor, inputs: Sequence[Cache], batch_size: int) -> Sequence[Tensor]:
    """``chosen`` in equal parts, none of a single image, which could take other ways through operators."""
    return chosen.tensor_split(max(1, len(chosen) // part_images(inputs, batch_size)))


def _has_views(options: CalibrationOptions, inputs: Sequence[Cache]) -> bool:
    """Whether there are views to draw: of one input of images [N, 1 to 4, H, W].

    Views of several inputs would not belong together, and more channels are no colours: they may be another axis.
    """
    shapes = [x.shape for x in inputs]
    if not options.augment or len(shapes) != 1 or len(shapes[0]) != 4:
        return False
    _, channels, height, width = shapes[0]
    return channels <= _MOST_CHANNELS < min(height, width)


def _draw(inputs: Sequence[Cache], generator: torch.Generator | None, chosen: Tensor) -> list[Tensor]:
    """The ``chosen`` images, with a generator random views of them."""
    batch = [x[chosen] for x in inputs]
    return batch if generator is None else [random_views(x, generator) for x in batch]


def _difference(problem: EndToEnd, batch: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        targets = problem.teacher(*batch)
    return prediction_difference(problem.student(*batch), targets, problem.class_axes, _TEMPERATURE, problem.powers)


@torch.no_grad()
def _judge(
    problem: EndToEnd, inputs: Sequence[Cache], draw: Callable[[Tensor], list[Tensor]], batch_size: int
) -> float:
    """The prediction difference on images from all over the set, drawn as for steps.

    Of images as they are, which is all there is without views, blocks have learned their roundings: there it only
    tells of learning that has failed.
    """
    chosen = spread(len(inputs[0]), _JUDGED).to(inputs[0].device)
    parts = _parts(chosen, inputs, batch_size)
    return sum(_difference(problem, draw(part)).item() * len(part) for part in parts) / len(chosen)


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / max(_WARMUP * steps, 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _bias(layer: Layer) -> str:
    assert layer.bias is not None
    return layer.bias
