"""One step of learning a block: tensors in, tensors out.

Nothing here waits for a device or reads a cache, and what differs between steps comes as a tensor or, where it decides
what is computed, as None: a step can be recorded once and played again.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pdq_export.calibrate.losses import prediction_difference, reconstruction_loss, size_of
from pdq_export.calibrate.quantizers import SoftRounding
from pdq_export.calibrate.relief import with_relief
from pdq_export.calibrate.rest import measured_in
from pdq_export.numerics.adam import Adam, clamp_each_
from pdq_export.numerics.affine import bernoulli_like
from pdq_export.numerics.rounding import rounding_regularizer
from pdq_export.ranks import ALONE, Ranks

# Of the targets of a prediction difference, see `size_of`; None where a batch is all there is.
Sizes = Sequence[tuple[Tensor, Tensor] | None] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of the images of a step, each [batch, ...], in the order of the block's inputs or outputs.

    ``wanted``: what the FP32 block puts out. ``bypass``: what the rest of the network reads beside the block;
    ``predictions``: what it is to predict. Both are empty in a step without the prediction difference.
    """

    quantized: Sequence[Tensor]
    corrected: Sequence[Tensor]
    wanted: Sequence[Tensor]
    bypass: Sequence[Tensor] = ()
    predictions: Sequence[Tensor] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepNumbers:
    """What changes from step to step, float32 [] each.

    ``prediction_weight``, and ``rounding_weight`` with its ``exponent``, are None where the term is left out. The
    rates are Adam's, over the bias of the first moment; ``root`` is that of the second moment's.
    """

    prediction_weight: Tensor | None
    rounding_weight: Tensor | None
    exponent: Tensor | None
    rounding_rate: Tensor
    scale_rates: Sequence[Tensor]
    root: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedScale:
    """A scale [] that stays between ``low`` and ``high`` [] and is learned as scale / ``unit`` would be."""

    scale: nn.Parameter
    unit: float
    low: Tensor
    high: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockModel:
    """What a block computes while it learns.

    ``student``: the block with soft ``weights`` and quantizers that drop at random. ``rest``: the FP32 network from the
    block's outputs, and what bypasses the block, to the predictions, whose classes lie along ``class_axes``; None
    without the prediction difference. ``masks``: draws what is dropped and mixed.
    """

    student: nn.Module
    rest: nn.Module | None
    class_axes: Sequence[int | None]
    weights: Sequence[SoftRounding]
    masks: torch.Generator

    @property
    def modules(self) -> list[nn.Module]:
        """All that a step runs."""
        return [self.student] if self.rest is None else [self.student, self.rest]


class Step:
    """A forward and a backward pass, after which weights and scales are a step further.

    ``units``: what each output is measured in, powers of two. ``mix_probability``, ``temperature`` and ``precision``,
    of predictions: see `CalibrationOptions`. ``relief``: what else frees memory of the device where that runs out, see
    `with_relief`. ``ranks``: take the same steps, each on a part of every batch; ``weight``: what this one's loss
    counts of 1.
    """

    def __init__(
        self,
        model: BlockModel,
        scales: Sequence[LearnedScale],
        units: Sequence[float],
        *,
        mix_probability: float,
        temperature: float,
        precision: str = "float32",
        relief: Sequence[Callable[[], bool]] = (),
        ranks: Ranks = ALONE,
        weight: float = 1.0,
    ) -> None:
        self._ranks, self._weight = ranks, weight
        self._model, self._scales, self._units = model, scales, units
        self._mix_probability, self._temperature, self._precision = mix_probability, temperature, precision
        # On a CPU nothing is tried: a result must not depend on what else runs there.
        self._seeks_relief = model.masks.device.type != "cpu"
        self._relief, self._first_relief = relief, list[Callable[[], bool]]()
        self._pieces = self._images = 1
        self._alphas = [weight.alpha for weight in model.weights]
        self._learned = [learned.scale for learned in scales]
        self._adam = Adam([self._alphas, self._learned])

    def __call__(self, batch: Batch, numbers: StepNumbers) -> tuple[Tensor, Tensor]:
        """The reconstruction error and the whole loss, [] each, before the step."""
        # Not in what is repeated where memory runs out: all ranks have as many exchanges.
        sizes = None if self._ranks.is_alone else self._sizes(batch)
        found = self._gradients(batch, numbers, sizes)
        return self._taken(self._ranks.average(found, self._weight), numbers)

    def once(self, batch: Batch, numbers: StepNumbers) -> tuple[Tensor, Tensor]:
        """The same of one rank, and not again where memory runs out: a device can record what it is asked for here."""
        return self._taken(self._computed(batch, numbers, None), numbers)

    def _taken(self, found: Sequence[Tensor | None], numbers: StepNumbers) -> tuple[Tensor, Tensor]:
        """Error and loss, once the step along the gradients behind them is taken."""
        error, loss, *gradients = found
        self._update(gradients, numbers)
        assert error is not None
        assert loss is not None
        return error, loss

    def try_first(self, measure: Callable[[], bool]) -> None:
        """Where memory runs out, have what ``measure`` frees before all else, as `with_relief` asks it."""
        self._first_relief.append(measure)

    @property
    def is_cut(self) -> bool:
        """Whether memory has run out, so that the rest of the network runs on few images at a time."""
        return self._pieces > 1

    def _gradients(self, batch: Batch, numbers: StepNumbers, sizes: Sizes) -> list[Tensor | None]:
        """Error, loss and gradients. Where a device's memory runs out, again after what ``relief`` offers."""
        if not self._seeks_relief:
            return self._computed(batch, numbers, sizes)
        masks = self._model.masks
        drawn = masks.get_state()

        def compute() -> list[Tensor | None]:
            masks.set_state(drawn)
            return self._computed(batch, numbers, sizes)

        return with_relief(compute, [*self._first_relief, self.cut_rest, *self._relief])

    def _computed(self, batch: Batch, numbers: StepNumbers, sizes: Sizes) -> list[Tensor | None]:
        error, loss = self._objective(batch, numbers, sizes)
        gradients = torch.autograd.grad(loss, [*self._alphas, *self._learned], allow_unused=True)
        return [error.detach(), loss.detach(), *gradients]

    def cut_rest(self) -> bool:
        """Have the rest of the network run on half as many images at a time; False where it is one already.

        What it keeps for the backward pass is computed again there, piece by piece.
        """
        if self._model.rest is None or self._pieces >= self._images:
            return False
        self._pieces = min(2 * self._pieces, self._images)
        return True

    def _predict(self, rest: nn.Module, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        if self._pieces == 1:
            predictions: Sequence[Tensor] = rest(*inputs)
            return predictions
        parts = zip(*(x.tensor_split(self._pieces) for x in inputs), strict=True)
        found = [checkpoint(rest, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        return [torch.cat(values) for values in zip(*found, strict=True)]

    def power(self, wanted: Sequence[Tensor]) -> Tensor:
        """The mean square [] of what the block is to put out, counted as the error is."""
        parts = zip(wanted, self._units, strict=True)
        return self._mean(_sum([reconstruction_loss(y, torch.zeros_like(y), unit) for y, unit in parts]))

    def _sizes(self, batch: Batch) -> Sizes:
        """Of targets without classes, in all of a batch."""
        pairs = zip(batch.predictions, self._model.class_axes, strict=True) if batch.predictions else ()
        return [size_of(x, self._mean) if axis is None else None for x, axis in pairs]

    def _mean(self, value: Tensor) -> Tensor:
        """The mean of a number [] over all of a batch, of which this is the mean over a part."""
        (mean,) = self._ranks.average([value], self._weight)
        assert mean is not None
        return mean

    def _objective(self, batch: Batch, numbers: StepNumbers, sizes: Sizes) -> tuple[Tensor, Tensor]:
        model, weight = self._model, numbers.prediction_weight
        outputs = model.student(*self._inputs(batch, doubled=weight is not None))
        images = len(batch.wanted[0])
        parts = zip(outputs, batch.wanted, self._units, strict=True)
        error = _sum([reconstruction_loss(y[:images], wanted, unit) for y, wanted, unit in parts])
        loss = error
        if model.rest is not None and weight is not None:
            self._images = images
            inputs = [*(output[images:] for output in outputs), *batch.bypass]
            loss = loss + self._difference(model.rest, inputs, batch.predictions, sizes) * weight
        if model.weights and numbers.rounding_weight is not None and numbers.exponent is not None:
            terms = [rounding_regularizer(soft.take_h(), numbers.exponent) for soft in model.weights]
            loss = loss + numbers.rounding_weight * _sum(terms)
        return error, loss

    def _difference(self, rest: nn.Module, inputs: Sequence[Tensor], targets: Sequence[Tensor], sizes: Sizes) -> Tensor:
        axes = self._model.class_axes

        def compute(given: Sequence[Tensor]) -> Tensor:
            predictions = [x.float() for x in self._predict(rest, given)]
            return prediction_difference(predictions, targets, axes, self._temperature, sizes)

        return measured_in(self._precision, compute, inputs)

    def _inputs(self, batch: Batch, *, doubled: bool) -> list[Tensor]:
        """Mixed inputs; ``doubled``: with the quantized ones behind them, whose outputs run on to a prediction."""
        inputs = []
        for x_q, x_c in zip(batch.quantized, batch.corrected, strict=True):
            mixed = torch.lerp(x_c, x_q, bernoulli_like(x_q, self._mix_probability, self._model.masks))
            inputs.append(torch.cat([mixed, x_q]) if doubled else mixed)
        return inputs

    @torch.no_grad()
    def _update(self, gradients: Sequence[Tensor | None], numbers: StepNumbers) -> None:
        weights = len(self._alphas)
        of_scales = [
            g if g is None or learned.unit == 1.0 else g * learned.unit
            for g, learned in zip(gradients[weights:], self._scales, strict=True)
        ]
        rates: list[Tensor | Sequence[Tensor]] = [numbers.rounding_rate, numbers.scale_rates]
        self._adam.step([gradients[:weights], of_scales], rates, numbers.root)
        if self._scales:
            low, high = ([getattr(learned, name) for learned in self._scales] for name in ("low", "high"))
            clamp_each_(self._learned, low, high)


def _sum(terms: Sequence[Tensor]) -> Tensor:
    return terms[0] if len(terms) == 1 else torch.stack(list(terms)).sum()
