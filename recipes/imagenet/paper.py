"""What the paper says: hyper-parameters and ImageNet top-1 (PD-Quant, CVPR 2023, and its published code)."""

import dataclasses
from collections.abc import Mapping

FULL_PRECISION = "32/32"
BITS = ("4/4", "2/4", "4/2", "2/2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """One network: the method's hyper-parameters, and top-1 in percent by bits W/A."""

    temperature: float
    lambda_c: float
    rounding_weight: float
    lambda_r: float = 0.1
    top1: Mapping[str, float]


def _top1(*figures: float) -> dict[str, float]:
    return dict(zip((FULL_PRECISION, *BITS), figures, strict=True))


PAPER = {
    "resnet18": Published(
        temperature=4.0, lambda_c=0.02, rounding_weight=0.01, top1=_top1(71.01, 69.30, 65.07, 58.65, 53.08)
    ),
    "resnet50": Published(
        temperature=4.0, lambda_c=0.02, rounding_weight=0.01, top1=_top1(76.63, 75.09, 70.92, 64.18, 56.98)
    ),
    "mobilenetv2": Published(
        temperature=1.0, lambda_c=0.005, rounding_weight=0.1, top1=_top1(72.62, 68.33, 55.27, 20.40, 14.17)
    ),
    "regnetx_600m": Published(
        temperature=4.0, lambda_c=0.01, rounding_weight=0.01, top1=_top1(73.52, 71.04, 64.00, 51.29, 40.92)
    ),
    "regnetx_3200m": Published(
        temperature=4.0, lambda_c=0.01, rounding_weight=0.01, top1=_top1(78.46, 76.57, 72.43, 62.76, 55.13)
    ),
    "mnasnet": Published(
        temperature=1.0, lambda_c=0.001, rounding_weight=0.2, top1=_top1(76.52, 73.30, 63.33, 38.89, 28.03)
    ),
}
