"""How far the channels of a tensor are apart, for `graph.passes.equalize`, and what it makes of the network."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.nn import functional as F

from pdq_export.calibrate.forward import spread
from pdq_export.calibrate.shares import some_of
from pdq_export.calibrate.subgraph import extract, input_tensors, tensor_nodes
from pdq_export.calibrate.tiers import Source
from pdq_export.frontend.ops.activation import clip
from pdq_export.numerics.search import choose_channel_scales
from pdq_export.ranks import ALONE, Ranks

_IMAGES, _BATCH = 64, 8
_LARGEST = 16.0  # a channel that is quiet on these images may speak up on others
_LARGEST_OF_SCALES = 4.0  # likewise, where a channel loses what is beyond the scale that it would take by itself
_POSITIONS = 32  # of an image, on which scales are searched


@torch.no_grad()
def channel_factors(
    network: fx.GraphModule, tensors: Sequence[str], inputs: Sequence[Tensor | Source], ranks: Ranks = ALONE
) -> dict[str, NDArray[np.float64]]:
    """By tensor the factors [C], 1 to 16, that bring its channels to the range of the largest.

    The range is the mean over 64 images of the largest magnitude in each, taken from all over the set. ``inputs``: a
    tensor [N, ...] for each graph input; ``ranks``: have a share of the images each.
    """
    sums: dict[str, Tensor] = {}
    for tensor, y in _values(network, tensors, inputs, ranks):
        largest = y.abs().flatten(2).amax(2).double().sum(0)
        sums[tensor] = sums[tensor] + largest if tensor in sums else largest
    ranges = ranks.sum_over(*sums.values())
    return {tensor: _factors(x) for tensor, x in zip(sums, ranges, strict=True)}


@torch.no_grad()
def channel_factors_of_scales(
    network: fx.GraphModule, tensors: Mapping[str, int], inputs: Sequence[Tensor | Source], ranks: Ranks = ALONE
) -> dict[str, NDArray[np.float64]]:
    """By tensor the factors [C], 1 to 4, under which one scale is for every channel what its own would be.

    ``tensors``: without negative numbers, with the largest integer of each. Scales are searched at 32 positions of each
    of 64 images, of which ``ranks`` have a share each.
    """
    generator = torch.Generator().manual_seed(0)
    rows: dict[str, list[Tensor]] = {tensor: [] for tensor in tensors}
    for tensor, y in _values(network, list(tensors), inputs, ranks):
        places = y.flatten(2)
        chosen = torch.randperm(places.shape[2], generator=generator)[:_POSITIONS].to(y.device)
        rows[tensor].append(places[:, :, chosen].transpose(0, 1).flatten(1))
    factors = {}
    for tensor, qmax in tensors.items():
        scales = choose_channel_scales(ranks.rows(torch.cat(rows[tensor], 1).T).T, qmax)
        wanted = torch.where(scales > 0, scales.max() / scales, 1.0).clamp(1.0, _LARGEST_OF_SCALES)
        factors[tensor] = wanted.double().cpu().numpy()
    return factors


def _values(
    network: fx.GraphModule, tensors: Sequence[str], inputs: Sequence[Tensor | Source], ranks: Ranks
) -> Iterator[tuple[str, Tensor]]:
    """The tensors [N, C, ...] on 64 images from all over the set, a few images at a time; for none nothing is run."""
    if not tensors:
        return
    probe = extract(network, input_tensors(network), tensors)
    some = spread(len(inputs[0]), some_of(ranks, _IMAGES))
    for batch in zip(*(x[some].split(_BATCH) for x in inputs), strict=True):
        yield from zip(tensors, probe(*batch), strict=True)


def scaled_clip(x: Tensor, low: float, high: float, factor: Tensor) -> Tensor:
    """What Clip is for channels (axis 1) that were scaled by ``factor`` [C]: factor * clip(x / factor, low, high)."""
    factor = factor.view(-1, *[1] * (x.ndim - 2))
    return F.hardtanh(x / factor, low, high) * factor


def scale_clips(network: fx.GraphModule, factors: Mapping[str, NDArray[np.float64]]) -> None:
    """Have the Clips that write these tensors end every channel at its factor [C] times the bound, in place."""
    nodes = tensor_nodes(network)
    for number, (tensor, values) in enumerate(factors.items()):
        node = nodes[tensor]
        assert node.target is clip
        x, low, high = node.args
        name = f"channel_factors_{number}"
        network.register_buffer(name, torch.from_numpy(values.astype(np.float32)))
        with network.graph.inserting_before(node):
            factor = network.graph.get_attr(name)
        node.target, node.args = scaled_clip, (x, low, high, factor)
    network.recompile()


def largest_values(network: fx.GraphModule) -> dict[str, float]:
    """By tensor that a scaled Clip writes, the bound where integers have to end, or before."""
    return {
        tensor: float(node.args[2])  # type: ignore[arg-type]
        for tensor, node in tensor_nodes(network).items()
        if node.target is scaled_clip
    }


def _factors(ranges: Tensor) -> NDArray[np.float64]:
    wanted = ranges.max() / ranges
    known = torch.isfinite(wanted) & (ranges > 0)
    factors: NDArray[np.float64] = torch.where(known, wanted, 1.0).clamp(max=_LARGEST).numpy()
    return factors
