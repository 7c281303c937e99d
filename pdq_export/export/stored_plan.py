"""The plan as a written file tells it, in JSON. Who wrote it is not known: types and ranges are checked here, once."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

from annotated_types import Interval

from pdq_export.export.layouts import FORM, OLDEST_FORM, Packing
from pdq_export.export.runtimes import OLDEST, parse_version
from pdq_export.export.runtimes import shown as shown_version
from pdq_export.spec import Axis, Bits, BitWidths, Plan, Point, Positive, Role
from pdq_export.spec.plain import from_text, parse_json, shown, to_text, unique

_LONGEST = 1 << 24  # characters; the plan of a network with 1,000 layers has some hundred thousand
_WHAT = "the plan"

Opset = Annotated[int, Interval(ge=1, le=1000)]
# tensor, role, bits, axis, symmetric, absorbed
PointRow = tuple[str, Role, Bits, Axis | None, bool, str | None]


class VersionError(ValueError):
    """The plan was written by another version; ``found`` says by which."""

    def __init__(self, found: object) -> None:
        super().__init__(f"version {str(found)[:40]}")
        self.found = str(found)[:40]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredPlan:
    """What the JSON holds; layers, excluded nodes and tail are node names, the rest is by tensor name.

    ``version``: of the graph, see `layouts.FORM`. ``opsets``: the user's model's own, and the newest to write.
    ``unquantized``: by node, the tensors that it reads as they are before quantization. ``activations``: scale and
    zero_point. ``zero_points``: those of weights, one or one a channel; what is not in it has 0. ``packing``: of the
    weights of ort. ``runtime``: the version of onnxruntime that was asked for. Raises ValueError where these do not fit
    one another.
    """

    version: int
    opsets: tuple[Opset, Opset | None]
    bits: str
    points: tuple[PointRow, ...]
    passthrough: Mapping[str, str]
    layers: tuple[str, ...]
    excluded: tuple[str, ...]
    tail: tuple[str, ...] = ()
    excluded_nodes: tuple[str, ...] = ()
    unquantized: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    activations: Mapping[str, tuple[Positive, int]]
    zero_points: Mapping[str, int | tuple[int, ...]]
    packing: Packing = Packing.BYTES
    runtime: str | None = None

    def __post_init__(self) -> None:
        BitWidths.parse(self.bits, option="bits")
        if self.runtime is not None and parse_version(self.runtime) < OLDEST:
            raise ValueError(f"runtime is {self.runtime[:40]!r}; expected {shown_version(OLDEST)} or newer")
        points = self.plan_points()
        for name, (_, zero_point) in self.activations.items():
            _check_zero_points(name, (zero_point,), points)
        for name, found in self.zero_points.items():
            _check_zero_points(name, (found,) if isinstance(found, int) else found, points)

    @classmethod
    def of(
        cls,
        plan: Plan,
        *,
        opsets: tuple[int, int | None],
        activations: Mapping[str, tuple[float, int]],
        zero_points: Mapping[str, int | tuple[int, ...]],
        packing: Packing,
        runtime: str | None,
    ) -> "StoredPlan":
        """What is to be stored of ``plan``."""
        return cls(
            version=FORM,
            opsets=opsets,
            bits=str(plan.bits),
            points=tuple((p.tensor, p.role, p.bits, p.axis, p.symmetric, p.absorbed) for p in plan.points.values()),
            passthrough=plan.passthrough,
            layers=tuple(layer.node for layer in plan.layers),
            excluded=tuple(layer.node for layer in plan.excluded),
            tail=tuple(plan.tail),
            excluded_nodes=plan.excluded_nodes,
            unquantized=plan.unquantized,
            activations=activations,
            zero_points=zero_points,
            packing=packing,
            runtime=runtime,
        )

    def plan_points(self) -> dict[str, Point]:
        """The plan's points by tensor."""
        return unique(
            [
                (tensor, Point(tensor=tensor, role=role, bits=bits, axis=axis, symmetric=symmetric, absorbed=absorbed))
                for tensor, role, bits, axis, symmetric, absorbed in self.points
            ]
        )


def write_plan(plan: StoredPlan) -> str:
    """The JSON that `read_plan` reads; what is empty and may be missing is left out."""
    return to_text(plan, defaults=False)


def read_plan(text: str) -> StoredPlan:
    """Read the JSON. Raises VersionError for that of another version, ValueError for whatever else is wrong."""
    content = parse_json(text, longest=_LONGEST, what=_WHAT)
    if not isinstance(content, dict):
        raise ValueError(f"{_WHAT} is {shown(content)}; expected an object")
    version = content.get("version")
    if type(version) is not int or not OLDEST_FORM <= version <= FORM:
        raise VersionError(version)
    return from_text(StoredPlan, text, longest=_LONGEST, what=_WHAT)


def _check_zero_points(name: str, found: tuple[int, ...], points: Mapping[str, Point]) -> None:
    if name not in points:
        raise ValueError(f"tensor {name[:100]!r} has a zero_point, but is no point of the plan")
    point = points[name]
    for zero_point in found:
        if not point.qmin <= zero_point <= point.qmax:
            raise ValueError(
                f"tensor {name[:100]!r}: zero_point is {zero_point}; expected an integer from {point.qmin} to "
                f"{point.qmax}"
            )
