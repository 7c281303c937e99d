"""How far onnxruntime is off the simulation, as it runs a file by default and as it can be made to run it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdq_export.errors import ValidationError
from pdq_export.validate.runtime import Batch, Session

Simulate = Callable[[Batch], Sequence[NDArray[np.float32]]]

# onnxruntime's option for x86 processors without VNNI: weights become UINT8, whose slower kernels do not saturate.
WITHOUT_SATURATION: Mapping[str, str] = {"session.x64quantprecision": "1"}


class DeviationMeter:
    """Adds up one number over batches: the relative error of floats, of integers and booleans the share that differs.

    An index has no size: two classes apart are no larger a difference than one.
    """

    def __init__(self) -> None:
        self._difference = self._size = 0.0
        self._counted = False

    def update(self, expected: NDArray[Any], found: NDArray[Any]) -> None:
        """Add one batch of equal shapes."""
        self._counted = found.dtype.kind != "f"
        if self._counted:
            self._difference += float(np.count_nonzero(expected != found))
            self._size += found.size
        else:
            wide = expected.astype(np.float64)
            self._difference += float(np.square(found - wide).sum())
            self._size += float(np.square(wide).sum())

    def result(self) -> float:
        """Of everything so far."""
        share = self._difference / max(self._size, float(np.finfo(np.float64).tiny))
        return share if self._counted else float(np.sqrt(share))


def measure_otherwise(
    quantized: bytes,
    batches: Iterable[Batch],
    simulate: Simulate,
    names: Sequence[str],
    config: Mapping[str, str],
) -> Iterator[tuple[str, dict[str, float]]]:
    """The deviation of every output where onnxruntime runs the file in other ways, and what the way is called.

    Without saturation, where the file loads that way, and without any optimization, in float arithmetic as the graph is
    written. ``names``: of the outputs, in the order of the simulation's.
    """
    expected = [(batch, [np.asarray(output) for output in simulate(batch)]) for batch in batches]
    ways: tuple[tuple[str, Mapping[str, str], bool], ...] = (
        ("with " + "".join(f"{key}={value}" for key, value in WITHOUT_SATURATION.items()), WITHOUT_SATURATION, True),
        ("without optimizations", {}, False),
    )
    for name, options, optimize in ways:
        try:
            session = Session(quantized, config={**config, **options}, optimize=optimize)
        except ValidationError:  # a bug of onnxruntime's option; the other way tells enough
            continue
        meters = {output: DeviationMeter() for output in names}
        for batch, simulated in expected:
            found = dict(zip(session.outputs, session.run(batch), strict=True))
            for output, outputs in zip(names, simulated, strict=True):
                meters[output].update(outputs, found[output])
        yield name, {output: meter.result() for output, meter in meters.items()}
