"""What quantizing a group does, as both ways of finding it out say it."""

import dataclasses
import math

from pdq_export.calibrate.cache import Cache

_BATCH = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effect:
    """To the ``prediction`` and to what the ``block`` gives, as `Sensitivity` has them."""

    prediction: float
    block: float


def root_mean_square(x: Cache) -> float:
    """Over all images and elements; sums are kept in float64."""
    total = sum(float(batch.double().square().sum()) for batch in x.batches(_BATCH))
    return math.sqrt(total / max(math.prod(x.shape), 1))
