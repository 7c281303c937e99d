"""The terms of PD-Quant's objective."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pdq_export.errors import OptionError


def reconstruction_loss(output: Tensor, target: Tensor, unit: float = 1.0) -> Tensor:
    """|output - target|^2, summed over channels (axis 1) and averaged over the rest (BRECQ, equation 10).

    ``unit``: what both are measured in, a power of two.
    """
    difference = output - target
    squares = (difference if unit == 1.0 else difference / unit).square()
    return squares.sum(1).mean() if squares.ndim > 1 else squares.mean()


def prediction_difference(
    outputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    axes: Sequence[int | None],
    temperature: float,
    sizes: Sequence[tuple[Tensor, Tensor] | None] | None = None,
) -> Tensor:
    """How far predictions are from the FP32 network's, summed over outputs (PD-Quant, equation 5).

    An output with a class axis in ``axes``: KL(softmax(target / T) || softmax(output / T)), summed over classes and
    averaged over the rest. Any other: squared error over the target's mean square, whatever its size. ``sizes``: of the
    targets, see `size_of`, where they are parts of larger ones.
    """
    losses = []
    for number, (output, target, axis) in enumerate(zip(outputs, targets, axes, strict=True)):
        if axis is not None:
            logs = F.log_softmax(output / temperature, dim=axis)
            wanted = F.log_softmax(target / temperature, dim=axis)
            losses.append((wanted.exp() * (wanted - logs)).sum(axis).mean())
        else:
            unit, power = (sizes[number] if sizes else None) or size_of(target)
            losses.append(F.mse_loss(output / unit, target / unit) / power.clamp(min=1e-12))
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def size_of(target: Tensor, average: Callable[[Tensor], Tensor] = lambda x: x) -> tuple[Tensor, Tensor]:
    """A unit [] for ``target``, a power of two, and the mean square [] in this unit.

    ``average``: of a number over all parts, where ``target`` is one of several.
    """
    unit = _unit(average(target.detach().abs().amax()))
    return unit, average((target / unit).square().mean())


def _unit(largest: Tensor) -> Tensor:
    """The power of two [] next below the largest magnitude, without waiting for a device; 1 where all is zero."""
    exponent = torch.where(largest > 0, torch.frexp(largest).exponent - 1, 0)
    return torch.ldexp(torch.ones_like(largest), exponent)


def class_axis(output_loss: str, found: int | None, shape: Sequence[int], name: str) -> int | None:
    """The axis of classes of a prediction of ``shape`` [N, ...], None where squared error is to be taken.

    ``output_loss``: "kl", "mse" or "auto", which takes the axis ``found`` in the graph, else axis 1 of [N, K] and
    [N, K, H, W] with K > 1; "kl" takes axis 1 of all but [N, K, L], where nobody can tell K from a length. Raises
    OptionError for "kl" where no axis has classes.
    """
    if output_loss == "mse":
        return None
    axes = len(shape)
    known = axes in (2, 4) or (output_loss == "kl" and axes > 4)
    axis = found % axes if found is not None and axes else 1 if known else None
    if axis is not None and 0 < axis < axes and shape[axis] > 1:
        return axis
    if output_loss == "kl":
        raise OptionError(
            f"--output-loss kl: output {name!r} of shape {list(shape)} has no known axis of classes; expected a "
            "Softmax at its end, [N, K] or [N, K, H, W] with K > 1; use --output-loss mse"
        )
    return None
