"""What is asked of a plan: bits, and which layers get others or none."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pdq_export.config.config import make_section
from pdq_export.config.sections import AUTO, PlanSection
from pdq_export.errors import OptionError
from pdq_export.nearby import near_names
from pdq_export.plan.patterns import check_pattern, find_matches
from pdq_export.spec import MAX_BITS, BitWidths

Widths = str | BitWidths
_WIDEST = BitWidths(MAX_BITS, MAX_BITS)
# What preparation writes operators as that --exclude-op then does not find (`graph.passes`).
_SPELLED_AS = {
    "BatchNormalization": "Mul and Add",
    "GlobalMaxPool": "ReduceMax",
    "HardSwish": "HardSigmoid and Mul",
    "Max": "Clip or Relu",
    "Mean": "Add and Mul",
    "Min": "Clip",
    "PRelu": "LeakyRelu",
    "ReduceMean": "GlobalAveragePool",
    "Sum": "Add",
    "Swish": "Sigmoid and Mul",
    "ThresholdedRelu": "Relu",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What is asked of a plan: the options of the configuration, and what is derived from them.

    ``section``: the options themselves; passes and rules read those that they are about, so that a new one is known to
    them alone. ``bits``: of weights and activations; ``first_last`` and ``layer_bits`` are the section's, read.
    ``per_layer``: every layer is a block of its own, which the method decides. ``tensor_bits``: bits of single weights
    and learned activations, by tensor name (`passes.assign_bits`). Bits that are yet to be found, auto, are 8/8 here.

    What wins: ``exclude`` and ``exclude_op``, then ``tensor_bits``, then ``layer_bits`` (the last one that matches),
    then ``first_last``, then ``bits``. W are the bits of a layer's weight. A are the bits of the activation that the
    layer ends in: behind its activation function, or behind the Add that it leads to (of two layers that lead to one
    Add, the larger A). Carriers, such as the network's input, keep 8 bits.
    """

    section: PlanSection
    per_layer: bool = False
    bits: BitWidths = dataclasses.field(init=False)
    first_last: BitWidths = dataclasses.field(init=False)
    layer_bits: tuple[tuple[str, BitWidths], ...] = dataclasses.field(init=False)
    tensor_bits: tuple[tuple[str, int], ...] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        """Raises OptionError for bits and regular expressions that cannot be read."""
        asked = self.section
        derived = {
            "bits": _WIDEST if asked.bits == AUTO else BitWidths.parse(asked.bits, option="--bits"),
            "first_last": _WIDEST
            if asked.first_last is None
            else BitWidths.parse(asked.first_last, option="--first-last"),
            "layer_bits": tuple(map(_read_rule, asked.layer_bits)),
            "tensor_bits": tuple(map(_read_tensor_bits, asked.tensor_bits)),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)  # the instance is frozen
        for pattern, _ in self.layer_bits:
            check_pattern(pattern, "--layer-bits")
        for pattern in asked.exclude:
            check_pattern(pattern, "--exclude")

    @classmethod
    def of(
        cls,
        bits: Widths,
        *,
        per_layer: bool = False,
        kind: type[PlanSection] = PlanSection,
        **fields: Any,
    ) -> "PlanOptions":
        """From options by name, as Python callers like to give them. Raises OptionError.

        ``kind``: the section that has the options ``fields``.
        """
        section: PlanSection = make_section({"bits": bits, **fields}, kind)
        return cls(section=section, per_layer=per_layer)

    @property
    def symmetric_weights(self) -> bool:
        """Whether all weights have zero_point 0; where nothing was asked for, the target decides (`Target.settle`)."""
        return self.section.weights == "symmetric"

    def resolve(
        self, layers: Iterable[str], op_types: Mapping[str, str], others: Mapping[str, Sequence[str]] | None = None
    ) -> "LayerRules":
        """Apply the rules to a model: the names of its layers, and of all its nodes with their operators.

        ``others``: by name, what patterns match as well: the path of a node's module, the names of what it was made
        from. Raises OptionError for a pattern or an operator that matches nothing, and where no layer is left.
        """
        names = list(layers)
        excluded: set[str] = set()
        exclude, exclude_op = self.section.exclude, self.section.exclude_op
        for pattern in exclude:
            excluded |= find_matches(pattern, list(op_types), "--exclude", others, what="nodes")
        for op_type in exclude_op:
            excluded |= _of_type(op_type, op_types)
        if names and excluded.issuperset(names):
            given = [("--exclude", [*map(repr, exclude)]), ("--exclude-op", [*exclude_op])]
            asked = " ".join(" ".join((option, *values)) for option, values in given if values)
            raise OptionError(f"{asked}: matches all {len(names)} layers; expected some that are left to quantize")
        own: dict[str, BitWidths] = {}
        for pattern, bits in self.layer_bits:
            own |= dict.fromkeys(find_matches(pattern, names, "--layer-bits", others), bits)
        return LayerRules(own=own, excluded=frozenset(excluded))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerRules:
    """`PlanOptions` applied to a model, by node name: bits of ``own``, layers and other nodes that stay in float."""

    own: Mapping[str, BitWidths]
    excluded: frozenset[str]


def _of_type(op_type: str, op_types: Mapping[str, str]) -> set[str]:
    found = {name for name, kind in op_types.items() if kind == op_type}
    if not found:
        known = sorted(set(op_types.values()))
        near = near_names(op_type, known, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        if op_type in _SPELLED_AS:
            hint = f"{op_type} is written as {_SPELLED_AS[op_type]} there, or folded into other nodes. "
        raise OptionError(
            f"--exclude-op {op_type!r}: the model, once prepared, has no such operator; {hint}It has {', '.join(known)}"
        )
    return found


def _read_rule(text: str) -> tuple[str, BitWidths]:
    pattern, equals, bits = text.rpartition("=")
    if not equals or not pattern:
        raise OptionError(f"--layer-bits {text!r}: expected REGEX=W/A, for example '/layer1/=8/8'")
    return pattern, BitWidths.parse(bits, option=f"--layer-bits {pattern!r}:")


def _read_tensor_bits(text: str) -> tuple[str, int]:
    tensor, equals, bits = text.rpartition("=")
    if not equals or not tensor or not bits.strip().isdecimal() or len(bits) > 2:
        raise OptionError(f"--tensor-bits {text!r}: expected TENSOR=BITS, for example conv1.weight=4")
    return tensor, int(bits)
