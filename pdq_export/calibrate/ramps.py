"""Which ramps of a plan calibration has found numbers for."""

import dataclasses

from pdq_export.numerics.ramp import ramp_qparams
from pdq_export.spec import Plan, QuantizedTensors, Ramp


def with_fitted_ramps(plan: Plan, tensors: QuantizedTensors) -> Plan:
    """The plan without the ramps for which calibration has found no scale of their source."""

    def fits(ramp: Ramp) -> bool:
        source = tensors[ramp.source]
        return ramp_qparams(float(source.scale), int(source.zero_point), ramp.knee) is not None

    return dataclasses.replace(plan, ramps={name: ramp for name, ramp in plan.ramps.items() if fits(ramp)})
