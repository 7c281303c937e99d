"""Random inputs for a model of which no data are at hand, whatever sizes it leaves open."""

import math

import numpy as np
from numpy.typing import NDArray

from pdq_export.graph.lookup import GraphIndex

_OPEN = 64  # size of an axis that the model leaves open, other than the batch
_LARGEST = 2**24  # elements of all inputs


def noise(index: GraphIndex, generator: np.random.Generator, *, batch: int) -> tuple[NDArray[np.float32], ...] | None:
    """One array of standard normal float32 numbers for each input of a model; None if that is not possible.

    An open axis 0 gets ``batch`` and any other open axis 64, which need not suit the model. It is not possible if a
    rank is unknown, if an axis is empty, or if all arrays together are very large.
    """
    shapes = []
    for name in index.inputs:
        shape = index.shape(name)
        if shape is None:
            return None
        sizes = [size if isinstance(size, int) else _OPEN if axis else batch for axis, size in enumerate(shape)]
        shapes.append([batch, *sizes[1:]] if sizes and sizes[0] == 0 else sizes)
    if sum(map(math.prod, shapes)) > _LARGEST or any(0 in sizes for sizes in shapes):
        return None
    return tuple(np.asarray(generator.standard_normal(sizes), np.float32) for sizes in shapes)
