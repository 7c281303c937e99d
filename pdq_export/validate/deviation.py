"""How far onnxruntime is off the simulation, as it runs a file by default and as it can be made to run it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdq_export.errors import ValidationError
from pdq_export.validate.equivalence import DRAWS, FLOAT32, disturbed
from pdq_export.validate.runtime import Batch, Session

Simulate = Callable[[Batch], Sequence[NDArray[np.float32]]]

BY_DEFAULT = "by default"
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


def measure_ways(
    quantized: bytes,
    batches: Iterable[Batch],
    simulate: Simulate,
    names: Sequence[str],
    config: Mapping[str, str],
    *,
    inputs: Sequence[str] = (),
) -> dict[str, dict[str, float]]:
    """The deviation of every output in each way in which onnxruntime runs the file, by what the way is called.

    `BY_DEFAULT`; without saturation, where the file loads that way; and without any optimization, in float arithmetic
    as the graph is written. ``names``: of the outputs, in the order of the simulation's. ``inputs``: in
    the order of the batches, where that is another than the file's.
    """
    ways: tuple[tuple[str, Mapping[str, str], bool], ...] = (
        (BY_DEFAULT, {}, True),
        ("with " + "".join(f"{key}={value}" for key, value in WITHOUT_SATURATION.items()), WITHOUT_SATURATION, True),
        ("without optimizations", {}, False),
    )
    sessions: dict[str, Session] = {}
    for way, options, optimize in ways:
        try:
            sessions[way] = Session(quantized, config={**config, **options}, optimize=optimize)
        except ValidationError:  # a bug of onnxruntime's option; the other way tells enough
            continue
        sessions[way].inputs = tuple(inputs) or sessions[way].inputs
    meters = {way: {name: DeviationMeter() for name in names} for way in sessions}
    for batch in batches:
        simulated = [np.asarray(output) for output in simulate(batch)]
        for way, session in sessions.items():
            found = session.run_by_name(batch)
            for name, output in zip(names, simulated, strict=True):
                meters[way][name].update(output, found[name])
    return {way: {name: meter.result() for name, meter in found.items()} for way, found in meters.items()}


def measure_amplified(
    model: bytes, batches: Iterable[Batch], names: Sequence[str], *, optimize: bool
) -> dict[str, float]:
    """How far a change of the inputs as small as float rounding moves every output of ``model``; the larger of a few.

    What it moves far, no two ways of computing agree on. ``optimize``: whether onnxruntime may.
    """
    session = Session(model, optimize=optimize)
    meters = {name: [DeviationMeter() for _ in range(DRAWS)] for name in names}
    for batch in batches:
        inputs = batch if isinstance(batch, tuple) else (batch,)
        expected = session.run_by_name(inputs)
        for draw in range(DRAWS):
            moved = session.run_by_name(disturbed(inputs, FLOAT32.rounding, seed=draw))
            for name in names:
                if moved[name].shape == expected[name].shape:
                    meters[name][draw].update(expected[name], moved[name])
    return {name: max(meter.result() for meter in drawn) for name, drawn in meters.items()}
