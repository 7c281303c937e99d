"""Scales under which y = clip(x / (2 knee) + 1/2, 0, 1) (HardSigmoid) maps integers to themselves, clipped.

With knee = k * scale for a whole k, x = (q - z) * scale gives y = (q - (z - k)) * 1/(2k) before clipping: the integers
of x are those of y at scale 1/(2k) and zero_point z - k. That is exact, whereas an 8-bit scale of y's own rounds.
"""

import torch

from pdq_export.numerics.search import QParams

# How far a searched scale may be stretched so that x reaches -knee (a third of a bit), and how far it may then be moved
# to hit a whole k. Beyond, x loses more than y gains, and y gets a scale of its own.
LARGEST_STRETCH = 1.25
LARGEST_MOVE = 0.05


def align_to_ramp(qparams: QParams, knee: float, qmax: int, *, alone: bool) -> QParams:
    """The nearest UINT qparams of x (scale and zero_point []) with knee = k * scale and zero_point >= k.

    If their scale would change by too much, they are ``qparams`` themselves. ``alone``: only y reads x, so that its
    integers are all for [-knee, knee].
    """
    if alone:
        return _like(qparams, knee / (qmax // 2), qmax // 2)
    scale, zero_point = float(qparams.scale), float(qparams.zero_point)
    low, high = max(zero_point * scale, knee), (qmax - zero_point) * scale
    stretched = (low + high) / qmax
    k = max(1, round(knee / stretched))
    aligned = knee / k
    if stretched > LARGEST_STRETCH * scale or abs(aligned / stretched - 1) > LARGEST_MOVE:
        return qparams
    return _like(qparams, aligned, min(max(round(low / aligned), k), qmax))


def _like(qparams: QParams, scale: float, zero_point: int) -> QParams:
    return QParams(
        scale=torch.full_like(qparams.scale, scale), zero_point=torch.full_like(qparams.zero_point, zero_point)
    )


def ramp_qparams(scale: float, zero_point: int, knee: float) -> QParams | None:
    """The qparams of y that share the integers of x, or None if `align_to_ramp` could not fit x."""
    k = round(knee / scale)
    if k < 1 or zero_point < k or abs(k * scale / knee - 1) > 1e-6:
        return None
    return QParams(scale=torch.tensor(0.5 / k), zero_point=torch.tensor(float(zero_point - k)))
