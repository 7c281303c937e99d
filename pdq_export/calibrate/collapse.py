"""Whether the finished network still says what FP32's does, and which block is at fault where it does not."""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from pdq_export.advice import remedies
from pdq_export.calibrate.context import Context
from pdq_export.calibrate.finished import Quantizers
from pdq_export.calibrate.prediction import images_first
from pdq_export.calibrate.subgraph import extract
from pdq_export.calibrate.watch import steepest_rise, warn_of_collapse

# Images at a time of the finished simulation, whose additions in float64 take three times FP32's memory.
_BATCH = 16


@torch.no_grad()
def look_for_collapse(
    context: Context, done: Quantizers, inputs: Sequence[str], outputs: Sequence[str], some: Sequence[Tensor]
) -> None:
    """Warn of graph outputs that have collapsed on ``some`` images, a tensor for each of the graph's ``inputs``.

    All ranks judge by the outputs for all of their images.
    """
    network, simulation = context.network, done.simulation(inputs, outputs)
    # Equal parts: a last one of a single image could have another shape.
    count = math.ceil(len(some[0]) / _BATCH)
    parts = list(zip(*(x.tensor_split(count) for x in some), strict=True))
    full, quantized = ([module(*part) for part in parts] for module in (network, simulation))
    for name, *pair in zip(outputs, zip(*full, strict=True), zip(*quantized, strict=True), strict=True):
        a, b = ([_images_first(network, name, x) for x in values] for values in pair)
        # Numbers without an image of their own, which need not even fit each other, have no spread over images.
        known = all(x.ndim and len(x) == len(part[0]) for x, part in zip(a, parts, strict=True))
        if all(context.ranks.gather(known)):  # shares, so parts, may differ by an image, and all have as many exchanges
            advise = functools.partial(_advise, context, done, inputs, outputs, parts)
            whole = [context.ranks.rows(torch.cat(x)) for x in (a, b)]
            warn_of_collapse(name, whole[0], whole[1], advise)


def _images_first(network: fx.GraphModule, name: str, x: Tensor) -> Tensor:
    place = network.meta.get("images", {}).get(name)
    return images_first(x, place.axis, place.outer, place.inner) if place and place.fits(x.shape) else x


def _advise(
    context: Context,
    done: Quantizers,
    inputs: Sequence[str],
    outputs: Sequence[str],
    parts: Sequence[Sequence[Tensor]],
) -> str:
    """What to do about a collapse, and where it happens."""
    handed_on = dict.fromkeys(name for block in context.plan.blocks for name in block.outputs)
    names = [name for name in handed_on if name not in outputs]
    full, quantized = extract(context.network, inputs, names), done.simulation(inputs, names)
    sums = torch.zeros(2, len(names), dtype=torch.float64)
    for part in parts:
        for number, (x, y) in enumerate(zip(full(*part), quantized(*part), strict=True)):
            sums[:, number] += torch.stack([(y - x).double().square().sum(), x.double().square().sum()]).cpu()
    (sums,) = context.ranks.sum_over(sums)
    errors = dict(zip(names, (sums[0] / sums[1].clamp(min=1e-30)).sqrt().tolist(), strict=True))
    where = f" ({steepest_rise(errors, context.plan.blocks)})" if names else ""
    return f"{remedies(context.plan.points.values(), context.options)}{where}"
