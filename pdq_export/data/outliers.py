"""Single samples whose values are of another order of magnitude than those of all others: damaged, or scaled wrongly.

One such value among thousands sets the range of a tensor, and with it the resolution of all that is ordinary.
"""

import numpy as np
from numpy.typing import NDArray

from pdq_export.data.image_set import ImageSet
from pdq_export.data.input_set import InputSet

# Fewer samples do not tell what is ordinary; and what a tenth of them have is.
_FEWEST = 8
_ORDINARY = 0.9
# An outlier's largest magnitude is this many times that of ordinary samples, and of any that is none.
_FAR, _GAP = 10.0, 4.0


def find_outliers(samples: ImageSet | InputSet) -> list[int]:
    """Positions of samples with far larger magnitudes than the others.

    An input's largest magnitude in such a sample is ten times what nine of ten samples stay below, and at least a
    factor of 4 lies between these samples and all others. Data with heavy tails has no such gap and is left alone.
    """
    if isinstance(samples, ImageSet) and samples.pixels.dtype == np.uint8:
        return []  # bytes are bounded
    found = [_outliers(_magnitudes(array)) for array in samples.inputs()]
    return sorted({int(position) for positions in found for position in positions})


def _magnitudes(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest magnitude of each row, without a copy of all."""
    rows = array.reshape(len(array), -1)
    return np.asarray(np.maximum(rows.max(axis=1), -rows.min(axis=1)), np.float32)


def _outliers(sizes: NDArray[np.float32]) -> NDArray[np.intp]:
    nothing = np.empty(0, np.intp)
    if len(sizes) < _FEWEST:
        return nothing
    ordinary = np.quantile(sizes, _ORDINARY, method="lower")
    beyond = sizes > _FAR * ordinary
    if ordinary == 0 or not beyond.any() or sizes[beyond].min() < _GAP * sizes[~beyond].max():
        return nothing
    return np.flatnonzero(beyond)
