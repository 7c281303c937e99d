"""Activation quantizers for values of the calibration images: searched, or following from another tensor's."""

import math
from collections.abc import Mapping

import torch

from pdq_export.calibrate.cache import Cache
from pdq_export.calibrate.finished import Quantizers
from pdq_export.calibrate.quantizers import ActivationQuantizer
from pdq_export.errors import CalibrationError
from pdq_export.numerics.ramp import align_to_ramp, ramp_qparams
from pdq_export.numerics.search import QParams, choose_activation_qparams
from pdq_export.ranks import Ranks
from pdq_export.spec import Plan, Point

# Elements at a time of a scale search.
_ELEMENTS = 2**22


class ActivationFitter:
    """Makes quantizers from elements, which are given up. Raises CalibrationError where they are not finite.

    ``ranks``: have a share of the elements each. ``largest``: by tensor, a number that its last integer has to stand
    for.
    """

    def __init__(self, plan: Plan, done: Quantizers, ranks: Ranks, largest: Mapping[str, float]) -> None:
        self._done, self._ranks, self._largest = done, ranks, largest
        self._ramps = plan.ramps
        self._ramp_of = {ramp.source: ramp for ramp in plan.ramps.values()}

    def fit(self, x: Cache, point: Point) -> ActivationQuantizer:
        """A quantizer for elements [numel]: searched, or what follows from the source of a ramp."""
        if (ramp := self._ramps.get(point.tensor)) is not None:
            source = self._done.activations[ramp.source]
            shared = ramp_qparams(source.scale.item(), source.zero_point, ramp.knee)
            if shared is not None:
                x.close()
                shared = QParams(scale=shared.scale.to(source.scale.device), zero_point=shared.zero_point)
                return ActivationQuantizer(point, shared)
        if not all(torch.isfinite(part).all() for part in x.batches(_ELEMENTS)):
            raise CalibrationError(
                f"tensor {point.tensor!r}: it holds NaN or infinity once the blocks before it are quantized; expected "
                "finite numbers; give these blocks more bits"
            )
        parts = x.batches(_ELEMENTS)
        qparams = choose_activation_qparams(parts, point.bits, symmetric=point.symmetric, ranks=self._ranks)
        x.close()
        if (ramp := self._ramp_of.get(point.tensor)) is not None:
            qparams = align_to_ramp(qparams, ramp.knee, point.qmax, alone=ramp.alone)
        return ActivationQuantizer(point, qparams, self._largest.get(point.tensor, math.inf))
