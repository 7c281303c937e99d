"""What became of each file in each runtime: judged, checked and told as tables."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.common import markdown
from benchmarks.versions.environments import CHROMIUM, OPENVINO, WEB, version_number
from benchmarks.versions.files import FLOAT, INT8, File
from benchmarks.versions.job import DEFAULT, LEVELS, Attempt, Values

# Of the largest output. Where convolutions are computed in float, integers that lie in the middle round the other way
# now and then, and a step of 6 bits moves an output of the depthwise network by 4.8 %. A file that is wrong without a
# word was off by 40 % and more.
MOST_ERROR = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """A file in one way: share of images with the class of the reference, largest error over the largest output."""

    way: str
    failure: str | None = None
    agreement: float | None = None
    error: float | None = None

    @classmethod
    def of(cls, attempt: Attempt, reference: Values) -> "Judged":
        """Against the outputs that there should be."""
        if attempt.values is None:
            return cls(way=attempt.way, failure=attempt.failure)
        if attempt.values.shape != reference.shape or not np.isfinite(attempt.values).all():
            return cls(way=attempt.way, failure="outputs of another shape, or not finite")
        same = attempt.values.argmax(axis=1) == reference.argmax(axis=1)
        error = np.abs(attempt.values - reference).max() / np.abs(reference).max()
        return cls(way=attempt.way, agreement=float(same.mean()), error=float(error))

    @property
    def is_right(self) -> bool:
        """Whether every class is that of the reference, and every output near it."""
        return self.agreement == 1 and self.error is not None and self.error <= MOST_ERROR


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A file in a runtime. ``version``: of the runtime. ``needs``: the lowest onnxruntime that the file names.

    ``ways``: default first. ``classes``: share of the file's classes that OpenVINO gives, which rounds less than the
    file says. ``ratios``: of the time of one image to that of FP32 and of ort 8/8 in the same runtime, medians.
    """

    network: str
    layout: str
    bits: str
    runtime: str
    version: str | None
    needs: str
    ways: Sequence[Judged]
    classes: float | None = None
    ratios: Sequence[float] = ()

    @property
    def right_way(self) -> str | None:
        """The first way that is right but for onnxruntime's levels of optimization, None where there is none."""
        return next((tried.way for tried in self.ways if tried.is_right and tried.way not in LEVELS), None)

    @property
    def is_promised(self) -> bool:
        """Whether the file says that this runtime computes it, or README does: ort everywhere, qcdq in OpenVINO."""
        if self.layout == "ort":
            return True
        if self.layout == "native" and self.runtime in (WEB, CHROMIUM):
            return False
        if self.version is None:
            return True
        if self.runtime == OPENVINO:
            return self.layout == "qcdq"
        return version_number(self.version) >= version_number(self.needs)

    @property
    def broken(self) -> str | None:
        """What does not hold although it is promised."""
        if not self.is_promised:
            return None
        wrong = [tried for tried in self.ways if not tried.is_right and tried.way in (DEFAULT, *LEVELS)]
        if (self.layout == "native" or self.runtime == OPENVINO) and self.right_way not in (None, DEFAULT):
            return None  # they may ask for an option, which README names
        if not wrong:
            return None
        said = [
            f"{tried.way}: {tried.failure or f'{tried.agreement:.1%} of classes, error {tried.error:.1e}'}"
            for tried in wrong
        ]
        return f"{self.network} {self.layout} {self.bits} in {self.runtime} {self.version}: {'; '.join(said)}"

    def told(self) -> str:
        """The cell of a table."""
        default, way = self.ways[0], self.right_way
        if way is None:
            if default.failure is not None:
                return "**crashed**" if "crashed" in default.failure else "not loaded"
            return f"**wrong**, {default.agreement:.0%}, {default.error:.0%}"
        if way != DEFAULT:
            words = f"right with `{way}`"
        else:
            words = "right" if self.classes in (None, 1) else f"right but for sums, {self.classes:.0%}"
        return ", ".join([words, *(f"{ratio:.2f}" for ratio in self.ratios)])


def cell(
    network: str,
    file: File,
    runtime: str,
    attempts: Sequence[Attempt],
    *,
    says: Values,
    openvino: Values,
) -> Cell:
    """A file's attempts in a runtime, judged: OpenVINO's also against what it makes of sums on purpose."""
    own = runtime == OPENVINO
    judged = [Judged.of(attempt, says) for attempt in attempts]
    if own and not judged[0].is_right:
        judged[0] = Judged.of(attempts[0], openvino)
    first = attempts[0].values
    return Cell(
        network=network,
        layout=file.layout,
        bits=file.bits,
        runtime=runtime,
        version=next((attempt.version for attempt in attempts if attempt.version), None),
        needs=file.runtime,
        ways=judged,
        classes=float((first.argmax(1) == says.argmax(1)).mean()) if own and first is not None else None,
    )


def ratios(milliseconds: Mapping[str, Sequence[float]], name: str) -> list[float]:
    """Medians over the rounds of the ratio within a round, to FP32 and to ort 8/8; none where one was not timed."""
    if any(wanted not in milliseconds for wanted in (name, FLOAT, INT8)):
        return []
    references = (milliseconds[FLOAT], milliseconds[INT8])
    return [statistics.median(np.divide(milliseconds[name], other).tolist()) for other in references]


def tables(cells: Sequence[Cell]) -> str:
    """A table a network: a row a file, a column a runtime; and a line on the rest."""
    found = []
    for network in dict.fromkeys(cell.network for cell in cells):
        here = [cell for cell in cells if cell.network == network]
        versions = {cell.runtime: cell.version for cell in here if cell.version}
        runtimes = list(dict.fromkeys(cell.runtime for cell in here))
        heads = [_heading(runtime, versions.get(runtime)) for runtime in runtimes]
        by_place = {(cell.layout, cell.bits, cell.runtime): cell for cell in here}
        rows = []
        for layout, bits in dict.fromkeys((cell.layout, cell.bits) for cell in here):
            of_row = [by_place.get((layout, bits, runtime)) for runtime in runtimes]
            needs = next(cell.needs for cell in of_row if cell is not None)
            rows.append([f"`{layout}` {bits}", needs, *("–" if cell is None else cell.told() for cell in of_row)])
        found.append(f"{network}\n\n{markdown(['file', 'names', *heads], rows)}\n\n{_levels(here)}")
    return "\n\n".join(found)


def _heading(runtime: str, version: str | None) -> str:
    names = {OPENVINO: "OpenVINO", WEB: "web, Node", CHROMIUM: "web, Chromium"}
    return " ".join([name for name in (names.get(runtime), version) if name]) or runtime


def _levels(cells: Sequence[Cell]) -> str:
    """How far the levels of onnxruntime's optimizations differ where a file is right, and the largest error."""
    right = [tried for cell in cells if cell.right_way == DEFAULT for tried in cell.ways]
    errors = {way: [tried for tried in right if tried.way == way] for way in (DEFAULT, *LEVELS)}
    told = []
    for way, found in errors.items():
        if found:
            largest = max(tried.error or 0 for tried in found)
            told.append(f"{way} {sum(tried.is_right for tried in found)} of {len(found)}, error up to {largest:.1e}")
    return "Right, where default options are: " + "; ".join(told) + "."


def plain(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The cells as plain types."""
    return [dataclasses.asdict(cell) for cell in cells]
