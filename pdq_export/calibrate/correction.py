"""Distribution correction: move a block's inputs until its activations have the statistics of the training data."""

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, fx

from pdq_export.config.method import CalibrationOptions
from pdq_export.numerics.adam import BETA1, BETA2, Adam
from pdq_export.numerics.moments import spatial_moments
from pdq_export.numerics.units import power_of_two, unit_of
from pdq_export.ranks import ALONE, Ranks
from pdq_export.spec import ChannelStatistics

logger = logging.getLogger(__name__)

# Of ReduceLROnPlateau, the last two its defaults.
_PATIENCE, _FACTOR, _LOWEST_LR, _THRESHOLD, _SMALLEST_CHANGE = 100, 0.1, 1e-5, 1e-4, 1e-8
# A channel less than this is measured in units of its own: its variance would be no normal float32.
_SMALLEST_CHANNEL = 2.0**-30
# Of batches that a GPU corrects together, if there is memory: a batch alone hardly keeps it busy in late blocks.
_AT_ONCE = 8
# A rate of 4e-3 moves values by some 0.04 in ten steps, which inputs below this would not survive.
_SMALLEST_INPUT = 0.25


def correct_distribution(
    layer_outputs: fx.GraphModule,
    statistics: Sequence[ChannelStatistics],
    x: Tensor,
    options: CalibrationOptions,
    *,
    at_once: int = 1,
) -> Tensor:
    """Minimise sum (mean - mean_hw(z))^2 + (std - std_hw(z))^2 + |x_tilde - x|^2 / lambda_c over x_tilde.

    PD-Quant, section 3.3. ``layer_outputs`` maps the block's input [N, C, ...] to the layer outputs that
    ``statistics`` describe, one each; z is such an output in the units of the BatchNormalization's input. Squares are
    summed over channels and averaged over the rest. Returns x_tilde, of the shape of ``x``; a batch that leaves the
    domain of a function in the block (Sqrt of a Relu's output moved below 0) stays x. Batches and channels that are
    very small or very large are measured in units of their own size. ``at_once``: so many batches, whose images know
    nothing of each other, are corrected together: only their launches are shared.
    """
    targets = [_Target.of(s, x.device) for s in statistics]
    whole = len(x) // options.batch_size * options.batch_size
    parts = (part.split(at_once * options.batch_size) for part in (x[:whole], x[whole:]) if len(part))
    pieces = itertools.chain.from_iterable(parts)
    found = [_correct_piece(layer_outputs, targets, piece, options) for piece in pieces]
    left = sum(len(finite) - sum(finite) for _, finite in found)
    if left:
        logger.info("distribution correction meets numbers that are not finite: %d batches stay as they are", left)
    return torch.cat([corrected for corrected, _ in found])


def batches_at_once(options: CalibrationOptions, device: torch.device) -> int:
    """How many batches are corrected together: on a CPU one, and one where its own loss decides on its rate."""
    return 1 if device.type == "cpu" or _watches_loss(options) else _AT_ONCE


def _watches_loss(options: CalibrationOptions) -> bool:
    # The first loss is the best so far, and the last changes no step.
    return options.correction_iters > _PATIENCE + 2


def _units_of_batches(batches: Sequence[Tensor]) -> Tensor | None:
    """By image [N] the unit that its batch is measured in, None where all of them are 1."""
    units = [_unit_of_input(batch) for batch in batches]
    if all(unit == 1.0 for unit in units):
        return None
    return torch.cat([batch.new_full((len(batch),), unit) for batch, unit in zip(batches, units, strict=True)])


def _unit_of_input(x: Tensor) -> float:
    """1 for a batch of ordinary size; otherwise near its root mean square, as in ordinary networks.

    The rate moves values by so many hundredths of a unit: in units of the largest value they would move several times
    as far as those of an ordinary batch, whose root mean square is about 1.
    """
    unit = unit_of(float(x.abs().amax()), _SMALLEST_INPUT)
    return unit if unit == 1.0 else unit * power_of_two(float((x / unit).square().mean().sqrt()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Target:
    """Statistics [C] of a layer output z in ``units`` of its channels, [C, 1, ...], None where all of them are 1."""

    mean: Tensor
    std: Tensor
    gain: Tensor
    units: Tensor | None

    @classmethod
    def of(cls, statistics: ChannelStatistics, device: torch.device) -> "_Target":
        sizes = np.maximum(np.abs(statistics.mean), statistics.std)
        units = np.array([unit_of(float(size), _SMALLEST_CHANNEL) for size in sizes])
        gain = statistics.gain * units  # float64
        # A channel that never varies has no size.
        gain = gain / unit_of(float(np.max(np.where(sizes > 0, gain * sizes / units, 0.0), initial=0.0)))
        mean, std, gain = (
            torch.from_numpy(np.asarray(v, np.float32)).to(device)
            for v in (statistics.mean / units, statistics.std / units, gain)
        )
        shaped = None if (units == 1.0).all() else torch.from_numpy(units.astype(np.float32)).to(device)
        return cls(mean=mean, std=std, gain=gain, units=shaped)

    def distance(self, z: Tensor) -> Tensor:
        """(mean - mean_hw(z))^2 + (std - std_hw(z))^2, summed over channels and averaged over images."""
        if self.units is not None:
            z = z / self.units.view(-1, *[1] * (z.ndim - 2))
        mean, std = spatial_moments(z)
        return (((mean - self.mean) * self.gain).square() + ((std - self.std) * self.gain).square()).sum(1).mean()


def _correct_piece(
    layer_outputs: fx.GraphModule,
    targets: Sequence[_Target],
    x: Tensor,
    options: CalibrationOptions,
) -> tuple[Tensor, list[bool]]:
    """One or several batches, corrected where all numbers stay finite, and by batch whether they do."""
    count = max(len(x) // options.batch_size, 1)
    units = _units_of_batches(x.tensor_split(count))
    unit = None if units is None else units.view(-1, *[1] * (x.ndim - 1))
    start = x if unit is None else x / unit
    x_tilde = start.clone().requires_grad_(True)
    adam, rate = Adam([[x_tilde]]), _Rate(options, x.device)
    roots = torch.tensor([(1 - BETA2 ** (step + 1)) ** 0.5 for step in range(options.correction_iters)]).to(x.device)
    for step in range(options.correction_iters):
        loss = _summed_over_channels((x_tilde - start).square()) / options.lambda_c
        moved = x_tilde if unit is None else x_tilde * unit
        for z, target in zip(layer_outputs(moved), targets, strict=True):
            loss = loss + target.distance(z)
        loss = loss if count == 1 else loss * count  # each batch's is the mean over its own images
        adam.step([torch.autograd.grad(loss, [x_tilde])], [rate.at(step)], roots[step])
        rate.tell(loss.detach())
    corrected = x_tilde.detach() if unit is None else x_tilde.detach() * unit
    with torch.no_grad():
        by_batch = [torch.isfinite(z).reshape(count, -1).all(1) for z in layer_outputs(corrected)]
        finite: list[bool] = torch.stack(by_batch).all(0).tolist()
    if not all(finite):
        parts = zip(corrected.tensor_split(count), x.tensor_split(count), finite, strict=True)
        corrected = torch.cat([part if good else as_is for part, as_is, good in parts])
    return corrected, finite


class _Rate:
    """Adam's rate, over the bias of its first moment, on a plateau of the loss a tenth of what it was.

    As torch's ReduceLROnPlateau has it, but no loss is waited for; and where there are too few steps for it to act,
    nothing is compared.
    """

    def __init__(self, options: CalibrationOptions, device: torch.device) -> None:
        biases = [1 - BETA1 ** (step + 1) for step in range(options.correction_iters)]
        self._watches = _watches_loss(options)
        if self._watches:
            self._biases = torch.tensor(biases, dtype=torch.float64).to(device)
            self._rate = torch.full((), options.correction_lr, dtype=torch.float64, device=device)
            self._best, self._bad = torch.full_like(self._rate, torch.inf), torch.zeros_like(self._rate)
        else:
            self._rates = torch.tensor([options.correction_lr / bias for bias in biases]).to(device)

    def at(self, step: int) -> Tensor:
        """The rate [] of the ``step``, counted from 0."""
        return (self._rate / self._biases[step]).float() if self._watches else self._rates[step]

    def tell(self, loss: Tensor) -> None:
        """Take in the loss [] of the last step."""
        if not self._watches:
            return
        loss = loss.double()
        better = loss < self._best * (1 - _THRESHOLD)
        self._best = torch.where(better, loss, self._best)
        self._bad = torch.where(better, 0.0, self._bad + 1)
        plateau = self._bad > _PATIENCE
        lower = (self._rate * _FACTOR).clamp(min=_LOWEST_LR)
        self._rate = torch.where(plateau & (self._rate - lower > _SMALLEST_CHANGE), lower, self._rate)
        self._bad = torch.where(plateau, 0.0, self._bad)


def _summed_over_channels(squares: Tensor) -> Tensor:
    return squares.sum(1).mean() if squares.ndim > 1 else squares.mean()


@torch.no_grad()
def estimate_statistics(
    layer_outputs: fx.GraphModule, batches: Iterable[Sequence[Tensor]], ranks: Ranks = ALONE
) -> list[ChannelStatistics]:
    """Statistics of layer outputs [N, C, ...] over the calibration set, for files without BatchNormalization.

    Mean and standard deviation over images and positions, as BatchNormalization would have gathered; gain 1. Sums are
    kept in float64, one batch at a time. ``ranks``: have a share of the batches each.
    """
    sums: list[Tensor] = []
    for batch in batches:
        parts = []
        for z in layer_outputs(*batch):
            rows = z.transpose(0, 1).flatten(1).double()
            parts.append(torch.stack([torch.full_like(rows[:, 0], rows.shape[1]), rows.sum(1), rows.square().sum(1)]))
        sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
    result = []
    for count, total, squares in ranks.sum_over(*sums):
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        mean, std, gain = (v.float().cpu().numpy() for v in (mean, std, torch.ones_like(std)))
        result.append(ChannelStatistics(mean=mean, std=std, gain=gain))
    return result
