"""What quantizing single tensors does, as a table for people and programs, and its JSON schema.

``{"schema_version": 1, "model": {"name", "sha256", "size"}, "calibration", "images", "measure", "estimate", "widths",
"groups": [...], "pairs": [...]}``. ``measure``: kl, in nats, mse, over the mean square, or "kl and mse", of several
outputs. ``estimate``: fisher or measured. A group: ``tensors``, ``role`` (weight, activation), ``layers``, ``block``,
``planned_bits``, and by width, as lists beside ``widths``, ``prediction`` and ``block_error``; the worst first, by the
prediction at the fewest bits. A pair: ``tensors`` of both groups, and ``prediction`` [width of the first][width of the
second], beyond the sum; only where they were asked for.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from pdq_export.report.report import ModelInfo
from pdq_export.report.tensor_losses import SensitivityRow, TensorLosses
from pdq_export.spec import Bits, Plan
from pdq_export.spec.sensitivity import Sensitivity

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenSensitivity(TensorLosses):
    """What the JSON of a `SensitivityReport` says, without pairs."""

    model: ModelInfo
    calibration: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SensitivityReport:
    """What `pdq_export.sensitivity` has found: ``groups``, worst first, and the ``sensitivity`` that they are of.

    ``calibration``: the images. ``labels``: how people know a layer, by its node.
    """

    model: ModelInfo
    calibration: str
    widths: tuple[Bits, ...]
    groups: tuple[SensitivityRow, ...]
    sensitivity: Sensitivity
    labels: Mapping[str, str]

    @classmethod
    def of(cls, sensitivity: Sensitivity, plan: Plan, *, model: ModelInfo, calibration: str) -> "SensitivityReport":
        """Compose it. ``plan``: has the bits that are planned."""
        found = TensorLosses.of(sensitivity, {name: point.bits for name, point in plan.points.items()})
        return cls(
            model=model,
            calibration=calibration,
            widths=found.widths,
            groups=found.groups,
            sensitivity=sensitivity,
            labels={layer.node: layer.label for layer in plan.layers},
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain types, of which the module's docstring is the schema."""
        found = self.sensitivity
        pairs = [
            {
                "tensors": list(names),
                "prediction": [[together[v, w] for w in self.widths] for v in self.widths],
            }
            for names, together in found.pairs.items()
        ]
        return {
            "schema_version": SCHEMA_VERSION,
            "model": dataclasses.asdict(self.model),
            "calibration": self.calibration,
            "images": found.images,
            "measure": found.measure,
            "estimate": found.estimate,
            "widths": list(self.widths),
            "groups": [dataclasses.asdict(row) for row in self.groups],
            "pairs": pairs,
        }

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"
