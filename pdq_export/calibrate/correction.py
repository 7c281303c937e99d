"""Distribution correction: move a block's inputs until its activations have the statistics of the training data."""

import logging
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, fx

from pdq_export.numerics.moments import spatial_moments
from pdq_export.options import CalibrationOptions
from pdq_export.spec import ChannelStatistics

logger = logging.getLogger(__name__)

_PATIENCE, _FACTOR, _LOWEST_LR = 100, 0.1, 1e-5


def correct_distribution(
    layer_outputs: fx.GraphModule,
    statistics: Sequence[ChannelStatistics],
    x: Tensor,
    options: CalibrationOptions,
) -> Tensor:
    """Minimise sum (mean - mean_hw(z))^2 + (std - std_hw(z))^2 + |x_tilde - x|^2 / lambda_c over x_tilde.

    PD-Quant, section 3.3. ``layer_outputs`` maps the block's input [N, C, ...] to the layer outputs that
    ``statistics`` describe, one each; z is such an output in the units of the BatchNormalization's input. Squares are
    summed over channels and averaged over the rest. Returns x_tilde, of the shape of ``x``; a batch that leaves the
    domain of a function in the block (Sqrt of a Relu's output moved below 0) stays x.
    """
    targets = [tuple(torch.from_numpy(v.copy()).to(x.device) for v in (s.mean, s.std, s.gain)) for s in statistics]
    batches = x.split(options.batch_size)
    corrected = [_correct_batch(layer_outputs, targets, batch, options) for batch in batches]
    left = sum(batch is x_tilde for batch, x_tilde in zip(batches, corrected, strict=True))
    if left:
        logger.info("distribution correction meets numbers that are not finite: %d batches stay as they are", left)
    return torch.cat(corrected)


def _correct_batch(
    layer_outputs: fx.GraphModule,
    targets: Sequence[tuple[Tensor, ...]],
    x: Tensor,
    options: CalibrationOptions,
) -> Tensor:
    x_tilde = x.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([x_tilde], lr=options.correction_lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=_PATIENCE, factor=_FACTOR, min_lr=_LOWEST_LR
    )
    for _ in range(options.correction_iters):
        loss = _summed_over_channels((x_tilde - x).square()) / options.lambda_c
        for z, (mean, std, gain) in zip(layer_outputs(x_tilde), targets, strict=True):
            z_mean, z_std = spatial_moments(z)
            loss = loss + (((z_mean - mean) * gain).square() + ((z_std - std) * gain).square()).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step(loss.item())
    corrected = x_tilde.detach()
    with torch.no_grad():
        finite = all(torch.isfinite(z).all() for z in layer_outputs(corrected))
    return corrected if finite else x


def _summed_over_channels(squares: Tensor) -> Tensor:
    return squares.sum(1).mean() if squares.ndim > 1 else squares.mean()


@torch.no_grad()
def estimate_statistics(layer_outputs: fx.GraphModule, batches: Iterable[Sequence[Tensor]]) -> list[ChannelStatistics]:
    """Statistics of layer outputs [N, C, ...] over the calibration set, for files without BatchNormalization.

    Mean and standard deviation over images and positions, as BatchNormalization would have gathered; gain 1. Sums are
    kept in float64, one batch at a time.
    """
    sums: list[Tensor] = []
    for batch in batches:
        parts = []
        for z in layer_outputs(*batch):
            rows = z.transpose(0, 1).flatten(1).double()
            parts.append(torch.stack([torch.full_like(rows[:, 0], rows.shape[1]), rows.sum(1), rows.square().sum(1)]))
        sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
    result = []
    for count, total, squares in sums:
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        mean, std, gain = (v.float().cpu().numpy() for v in (mean, std, torch.ones_like(std)))
        result.append(ChannelStatistics(mean=mean, std=std, gain=gain))
    return result
