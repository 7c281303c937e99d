"""The agreement of each part of an output that is several things in one tensor, a detector's boxes and scores say."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from pdq_export.spec import OutputPart, Place
from pdq_export.validate.compare import Agreement, AgreementMeter


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartAgreement:
    """How the quantized model and FP32 agree in one part of ``output``; ``name``: the part, as a slice of it."""

    output: str
    name: str
    quantized_float: Agreement


class PartMeters:
    """Adds up agreements over batches. ``parts``: by output; those of outputs that are not compared are left out.

    ``places``: of the images, by output, where that is not axis 0 alone.
    """

    def __init__(
        self,
        parts: Mapping[str, Sequence[OutputPart]],
        outputs: Sequence[str],
        places: Mapping[str, Place],
    ) -> None:
        self._meters = {
            (name, part.name(name)): (part, AgreementMeter(f"output {part.name(name)!r}", places.get(name)))
            for name in outputs
            for part in parts.get(name, ())
        }

    def update(self, reference: Mapping[str, NDArray[Any]], quantized: Mapping[str, NDArray[Any]]) -> None:
        """Add one batch, by output."""
        for (output, _), (part, meter) in self._meters.items():
            meter.update(part.of(reference[output]), part.of(quantized[output]))

    def result(self) -> tuple[PartAgreement, ...]:
        """The agreement over all batches so far, in the order of the outputs."""
        return tuple(
            PartAgreement(output=output, name=name, quantized_float=meter.result())
            for (output, name), (_, meter) in self._meters.items()
        )
