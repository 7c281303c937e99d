"""What a page is made from: a report, the errors of layers alone, sensitivities, or what a run has kept."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pdq_export.config.record import bits_word
from pdq_export.report.course import BlockCourse
from pdq_export.report.layers import LayerReport
from pdq_export.report.report import Report
from pdq_export.report.sensitivity import WrittenSensitivity
from pdq_export.report.tensor_losses import TensorLosses
from pdq_export.validate.histograms import WeightHistogram


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptRun:
    """What a run's folder tells: ``blocks`` that are finished of so many; ``parts``: of its key, by name."""

    model: str
    bits: str
    created: str
    count: int
    blocks: tuple[BlockCourse, ...]
    weights: tuple[WeightHistogram, ...]
    warnings: tuple[str, ...]
    parts: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """``pictures``: data URIs by number of the sample."""

    report: Report | None = None
    layer_errors: LayerReport | None = None
    run: KeptRun | None = None
    sensitivity: WrittenSensitivity | None = None
    pictures: Mapping[int, str] = dataclasses.field(default_factory=dict)

    @property
    def settings(self) -> Mapping[str, Any]:
        """As the report has them."""
        return {} if self.report is None else self.report.settings

    @property
    def bits(self) -> str:
        """Those of the file, in one word."""
        return bits_word(self.settings)

    @property
    def validates(self) -> bool:
        """Whether the report is of a file that was only judged."""
        return self.settings.get("command") == "validate"

    @property
    def blocks(self) -> tuple[BlockCourse, ...]:
        """How blocks were calibrated."""
        return self.run.blocks if self.run is not None else () if self.report is None else self.report.blocks

    @property
    def weights(self) -> tuple[WeightHistogram, ...]:
        """Of layers."""
        if self.run is not None:
            return self.run.weights
        return self.report.weights if self.report is not None else self.errors.weights if self.errors else ()

    @property
    def errors(self) -> LayerReport | None:
        """Where the error arises."""
        return self.layer_errors if self.report is None else self.report.layer_errors

    @property
    def tensors(self) -> TensorLosses | None:
        """What quantizing single tensors does."""
        if self.report is not None and self.report.search is not None:
            return self.report.search.tensors
        return self.sensitivity

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was warned of."""
        return self.run.warnings if self.run is not None else () if self.report is None else self.report.warnings
