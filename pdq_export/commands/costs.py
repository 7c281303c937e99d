"""What each weight costs in the file at every width, without writing one: what bits by budget are chosen by."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping

import onnx

from pdq_export.commands.estimates import estimate_tensors, estimate_weights
from pdq_export.errors import OptionError
from pdq_export.export.cost import ConstantBytes, constant_bytes
from pdq_export.export.loading import Loading
from pdq_export.graph.prepare import PreparedModel, at_opset
from pdq_export.search.budget import Cost
from pdq_export.spec import ALL_BITS, Plan, Point, QuantizedTensors, Role
from pdq_export.targets import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightCosts:
    """Bytes of a file by the bits of its weights, as a sum: what a solver can take.

    ``weights``: bytes by weight and bits. ``shared``: by weights and bits, bytes of what is once in a file where any of
    these weights has its bits, such as tables that unpack a width. ``rest``: by bits, all else where every weight has
    them. ``channels``: of each weight, over which the rest is divided, since what it tells of zero points is all of
    it that changes. ``planned``: the bits of the plan; ``size``: of its file.
    """

    weights: Mapping[str, Mapping[int, int]]
    shared: Mapping[frozenset[tuple[str, int]], int]
    rest: Mapping[int, int]
    channels: Mapping[str, int]
    planned: Mapping[str, int]
    size: int

    def predict(self, bits: Mapping[str, int]) -> int:
        """Bytes of the file where the weights that are named have other bits than planned.

        As planned it is exact; else within what is spent on a width, about 1 kB for each that few weights have: those
        are stored with more bits where that takes less, and equal zero points are stored once. Raises OptionError for
        a weight or bits without costs.
        """
        for name, width in bits.items():
            if width not in self.weights.get(name, {}):
                raise OptionError(
                    f"weight {name!r}, {width} bits: has no costs; expected a planned weight with bits of "
                    f"{', '.join(map(str, sorted(self.rest)))}"
                )
        return round(self.cost.of({**self.planned, **bits}))

    @functools.cached_property
    def cost(self) -> Cost:
        """The same as a sum that a solver takes."""
        channels = sum(self.channels.values())
        single = {
            name: {width: own + self.channels[name] * self.rest[width] / channels for width, own in by_width.items()}
            for name, by_width in self.weights.items()
        }
        relative = Cost(single=single, shared=self.shared)
        return dataclasses.replace(relative, constant=self.size - relative.of(self.planned))


def weight_costs(
    prepared: PreparedModel,
    plan: Plan,
    target: Target,
    *,
    loading: Loading | None = None,
    metadata: Mapping[str, str] | None = None,
    known: QuantizedTensors | None = None,
    widths: Iterable[int] = ALL_BITS,
    at: Callable[..., Point] = Point.with_bits,
) -> WeightCosts:
    """The costs of every quantized weight at each of the ``widths`` that the target has, and at all planned ones.

    ``loading``: how ort packs them. ``metadata``: what the file says besides. ``known``: tensors that calibration has
    found, activations and weights at whichever of the widths; what is not known is estimated, so that a bias may take a
    byte a channel more or less. ``at``: a weight at a width.
    """
    how = loading or Loading()

    def write(plan: Plan, tensors: QuantizedTensors, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
        needed = target.required_opset(plan, how.max_opset, how.packing)
        raised = at_opset(prepared, needed) if needed > prepared.index.opset else prepared
        return target.export(raised.model, plan, tensors, metadata=metadata or {}, packing=how.packing)

    tensors = {**estimate_tensors(prepared, plan), **(known or {})}
    planned = {name: point.bits for name, point in plan.points.items() if point.role is Role.WEIGHT}
    found, rest = {}, {}
    for width in sorted({*planned.values(), *(width for width in widths if width >= target.fewest_bits)}):
        file = write(*_at_width(prepared, plan, tensors, known or {}, functools.partial(at, bits=width)))
        found[width] = constant_bytes(file.graph, plan.layers)
        rest[width] = file.ByteSize() - sum(entry.size for entry in found[width].entries.values())
    weights, shared = _by_users(found, planned)
    return WeightCosts(
        weights=weights,
        shared=shared,
        rest=rest,
        channels={name: tensors[name].scale.size for name in planned},
        planned=planned,
        size=write(plan, tensors, metadata).ByteSize(),
    )


def _by_users(
    found: Mapping[int, ConstantBytes], names: Iterable[str]
) -> tuple[dict[str, dict[int, int]], dict[frozenset[tuple[str, int]], int]]:
    """Bytes by weight and width, and of what weights share, at one width or at several, by weights and widths.

    What is cut into parts is shared but for its numbers: one weight alone needs as many nodes as ten.
    """
    weights = {name: dict.fromkeys(found, 0) for name in names}
    users: dict[bytes, set[tuple[str, int]]] = {}
    sizes: dict[bytes, int] = {}
    for width, constants in found.items():
        for entry in constants.entries.values():
            data = entry.data if entry.is_divided else 0
            for name, size in entry.divide(data).items() if data else ():
                weights[name][width] += size
            users.setdefault(entry.content, set()).update((name, width) for name in entry.parts)
            sizes[entry.content] = entry.size - data
    shared: dict[frozenset[tuple[str, int]], int] = {}
    for content, given in users.items():
        if len({name for name, _ in given}) > 1:
            shared[frozenset(given)] = shared.get(frozenset(given), 0) + sizes[content]
            continue
        for name, width in given:
            weights[name][width] += sizes[content]
    return weights, shared


def _at_width(
    prepared: PreparedModel,
    plan: Plan,
    tensors: QuantizedTensors,
    known: QuantizedTensors,
    at: Callable[[Point], Point],
) -> tuple[Plan, QuantizedTensors]:
    """The plan with all weights at one width, and tensors for it."""
    points = {name: at(point) if point.role is Role.WEIGHT else point for name, point in plan.points.items()}
    found = {name: known[name] for name, point in points.items() if name in known and known[name].point == point}
    left = [point for name, point in points.items() if point.role is Role.WEIGHT and name not in found]
    changed = {**tensors, **found, **estimate_weights(prepared.index, left)}
    return dataclasses.replace(plan, points=points), changed
