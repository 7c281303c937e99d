"""Tensors that a quantized file has with a factor for each channel, which the next layer's weights take back.

Cross-layer equalization does that. Such a tensor is no error, and it stands for none of the FP32 file's.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from pdq_export.validate.layers import Array
from pdq_export.validate.matching import Matching

_EXPLAINED = 10.0  # by how much less error there has to be with factors
_NOTICED = 0.01  # of the signal's power


def find_scaled(reference: Mapping[str, Array], whole: Mapping[str, Array]) -> set[str]:
    """The tensors whose error in the quantized network is a factor for each channel (axis 1) for the most part."""
    return {name for name, x in reference.items() if name in whole and _is_scaled(x, whole[name])}


def _is_scaled(reference: Array, whole: Array) -> bool:
    if reference.shape != whole.shape or reference.ndim < 3:
        return False
    axes = (0, *range(2, reference.ndim))
    ref, other = reference.astype(np.float64), whole.astype(np.float64)
    powers = (ref * ref).sum(axis=axes, keepdims=True)
    factors = (ref * other).sum(axis=axes, keepdims=True) / np.maximum(powers, np.finfo(np.float64).tiny)
    error, left = (float(np.square(other - x).sum()) for x in (ref, ref * factors))
    return error > _NOTICED * float(powers.sum()) and error > _EXPLAINED * left


def taken_back(
    names: Iterable[str],
    apart: Matching,
    errors_apart: Mapping[str, float],
    together: Matching,
    errors_together: Mapping[str, float],
) -> set[str]:
    """Those of the scaled tensors without which the layers behind them have much less error of their own.

    ``apart``, ``together``: the matching with and without them, and the errors of its tensors.
    """
    layers = {match.name: set(match.layers) for match in apart.matches}
    behind = {name: [match.name for match in together.matches if layers[name] & set(match.layers)] for name in names}
    return {
        name
        for name, readers in behind.items()
        if readers and all(errors_together[one] * _EXPLAINED < errors_apart[one] for one in readers)
    }
