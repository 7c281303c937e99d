"""How far the channels of a tensor are apart, for `graph.passes.equalize`."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from pdq_export.calibrate.cache import Source
from pdq_export.calibrate.forward import spread
from pdq_export.calibrate.subgraph import extract, input_tensors
from pdq_export.ranks import ALONE, Ranks

_IMAGES, _BATCH = 64, 8
_LARGEST = 16.0  # a channel that is quiet on these images may speak up on others


@torch.no_grad()
def channel_factors(
    network: fx.GraphModule, tensors: Sequence[str], inputs: Sequence[Tensor | Source], ranks: Ranks = ALONE
) -> dict[str, NDArray[np.float64]]:
    """By tensor the factors [C], 1 to 16, that bring its channels to the range of the largest.

    The range is the mean over 64 images of the largest magnitude in each, taken from all over the set. ``inputs``: a
    tensor [N, ...] for each graph input; ``ranks``: have a share of the images each.
    """
    probe = extract(network, input_tensors(network), tensors)
    sums: dict[str, Tensor] = {}
    some = spread(len(inputs[0]), ranks.share_of(_IMAGES))
    for batch in zip(*(x[some].split(_BATCH) for x in inputs), strict=True):
        for tensor, y in zip(tensors, probe(*batch), strict=True):
            largest = y.abs().flatten(2).amax(2).double().sum(0)
            sums[tensor] = sums[tensor] + largest if tensor in sums else largest
    ranges = ranks.sum_over(*sums.values())
    return {tensor: _factors(x) for tensor, x in zip(sums, ranges, strict=True)}


def _factors(ranges: Tensor) -> NDArray[np.float64]:
    wanted = ranges.max() / ranges
    known = torch.isfinite(wanted) & (ranges > 0)
    factors: NDArray[np.float64] = torch.where(known, wanted, 1.0).clamp(max=_LARGEST).numpy()
    return factors
