"""Bits of layers, as people read, edit and commit them: W and A by the name of the layer."""

import dataclasses
from collections.abc import Iterable, Mapping

from pdq_export.errors import OptionError, first_few
from pdq_export.graph.lookup import GraphIndex
from pdq_export.nearby import near_names
from pdq_export.plan.freedom import find_freedom, rule_bits
from pdq_export.plan.rules import PlanOptions
from pdq_export.plan.summary import ending
from pdq_export.spec import BitWidths, Layer, Plan, Role


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerBits:
    """W: of the layer's weight. A: of the learned activation that the layer ends in. None: what others give them."""

    W: int | None = None
    A: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allotment:
    """Bits of single layers, and the ``bits`` of all others.

    ``layers``: by node name. ``tensors``: by tensor name, of learned activations that no layer ends in. ``model``,
    ``sha256``: of the file that they are for; empty where nobody knows.
    """

    bits: BitWidths
    layers: Mapping[str, LayerBits]
    tensors: Mapping[str, int] = dataclasses.field(default_factory=dict)
    model: str = ""
    sha256: str = ""

    @classmethod
    def of(
        cls, index: GraphIndex, plan: Plan, tensors: Mapping[str, int], *, model: str = "", sha256: str = ""
    ) -> "Allotment":
        """From the bits of every weight and learned activation of a plan.

        The bits of all others are the averages, rounded, over weights and over the activations that there are.
        """
        layers, named = {}, set[str]()
        for layer in plan.layers:
            end = _end(index, plan, layer)
            layers[layer.node] = LayerBits(W=tensors[layer.weight], A=None if end is None else tensors[end])
            named |= {layer.weight, *([] if end is None else [end])}
        sizes = {layer.weight: index.elements(layer.weight) for layer in plan.layers}
        weight = sum(sizes[name] * tensors[name] for name in sizes) / max(sum(sizes.values()), 1)
        learned = [tensors[name] for name, point in plan.points.items() if point.role is Role.ACTIVATION]
        activation = sum(learned) / len(learned) if learned else 8
        return cls(
            bits=BitWidths(round(weight), round(activation)),
            layers=layers,
            tensors={name: bits for name, bits in tensors.items() if name not in named},
            model=model,
            sha256=sha256,
        )

    def tensor_bits(self, index: GraphIndex, plan: Plan, options: PlanOptions, *, where: str) -> dict[str, int]:
        """By tensor what differs from what rules and `bits` give; what a rule has it keeps, whatever is said here.

        ``plan``: of the prepared model with 8 bits throughout, made with these ``options``. ``where``: begins messages.
        Raises OptionError for a layer or tensor that the plan does not have, with the nearest, and for one activation
        or weight that two layers have other bits for.
        """
        free = find_freedom(index, plan, options)
        usual = rule_bits(index, plan, options, self.bits)
        wanted = {
            name: max(bits, free.least[name])
            for name, bits in self._by_tensor(index, plan, where).items()
            if name in free.tensors
        }
        return {name: wanted[name] for name in usual if name in wanted and wanted[name] != usual[name]}

    def _by_tensor(self, index: GraphIndex, plan: Plan, where: str) -> dict[str, int]:
        found: dict[str, int] = {}
        givers: dict[str, str] = {}
        known = {layer.node: layer for layer in plan.layers}
        floating = {layer.node for layer in plan.excluded}
        _check_names(self.layers, [*known, *floating], where, "layer")
        for name, bits in self.layers.items():
            if name in floating:
                continue
            layer = known[name]
            end = _end(index, plan, layer)
            if bits.A not in (None, 8) and end is None:
                raise OptionError(
                    f"{where}: layer {name!r} has A = {bits.A}, and ends in no learned activation, whose bits could be "
                    "chosen; leave A out"
                )
            for tensor, given in ((layer.weight, bits.W), (end, bits.A)):
                if tensor is None or given is None:
                    continue
                if found.setdefault(tensor, given) != given:
                    raise OptionError(
                        f"{where}: layers {givers[tensor]!r} and {name!r} share {tensor!r}, with {found[tensor]} and "
                        f"{given} bits; expected the same for both"
                    )
                givers.setdefault(tensor, name)
        learned = [name for name, point in plan.points.items() if point.role is not Role.CARRIER]
        _check_names(self.tensors, learned, where, "tensor")
        for name, given in self.tensors.items():
            if found.setdefault(name, given) != given:
                raise OptionError(
                    f"{where}: tensor {name!r} has {given} bits, and {found[name]} with layer {givers[name]!r}; "
                    "expected the same"
                )
        return found


def _end(index: GraphIndex, plan: Plan, layer: Layer) -> str | None:
    end = ending(index, plan, layer.output)
    return None if end is None or end.role is not Role.ACTIVATION else end.tensor


def _check_names(names: Iterable[str], known: list[str], where: str, what: str) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        near = near_names(unknown[0], known)
        raise OptionError(
            f"{where}: the model has no quantized {what} {first_few([repr(name) for name in unknown])}"
            + (f"; did you mean {near[0]!r}?" if near else f"; expected names such as {first_few(known)}")
        )
