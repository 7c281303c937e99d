"""What is asked of a plan: bits, and which layers get others or none."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence

from pdq_export.errors import OptionError
from pdq_export.plan.patterns import check_pattern, find_matches
from pdq_export.spec import CARRIER_BITS, BitWidths

Widths = str | BitWidths
_EIGHT = BitWidths(CARRIER_BITS, CARRIER_BITS)


WEIGHTS = ("asymmetric", "symmetric")
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
    """How a model is to be quantized; `PlanOptions.of` reads it from what users write.

    ``bits``: of weights and activations. ``first_last``: of the weights of the first and last layers, and of the last
    layers' inputs (of the activation before an average); carriers, such as the network's input, keep 8.
    ``layer_bits``: regular expressions over layers' node names and modules (`re.search`), each with bits. ``exclude``:
    regular expressions over those of all nodes; the layers and other nodes that match stay in float, and so do nodes of
    the operators ``exclude_op``. ``symmetric_weights``: zero_point 0 for all weights; None leaves that to the target.
    ``wide_residuals``: what Adds read keeps 8 bits, layers read A bits of it (`passes.wide_residuals`).
    ``reduce_range``: no weight is so wide that kernels of x86 processors without VNNI saturate (`passes.reduce_range`).
    ``per_layer``: every layer is a block of its own. ``tensor_bits``: bits of single weights and learned activations,
    by tensor name (`passes.assign_bits`).

    What wins: ``exclude`` and ``exclude_op``, then ``tensor_bits``, then ``layer_bits`` (the last one that matches),
    then ``first_last``, then ``bits``. W are the bits of a layer's weight. A are the bits of the activation that the
    layer ends in: behind its activation function, or behind the Add that it leads to (of two layers that lead to one
    Add, the larger A).
    """

    bits: BitWidths
    first_last: BitWidths = _EIGHT
    layer_bits: tuple[tuple[str, BitWidths], ...] = ()
    exclude: tuple[str, ...] = ()
    exclude_op: tuple[str, ...] = ()
    symmetric_weights: bool | None = None
    wide_residuals: bool = False
    reduce_range: bool = False
    per_layer: bool = False
    tensor_bits: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        for pattern, _ in self.layer_bits:
            check_pattern(pattern, "--layer-bits")
        for pattern in self.exclude:
            check_pattern(pattern, "--exclude")

    @classmethod
    def of(
        cls,
        bits: Widths,
        *,
        first_last: Widths = "8/8",
        layer_bits: Mapping[str, Widths] | Iterable[str] = (),
        exclude: str | Iterable[str] = (),
        exclude_op: str | Iterable[str] = (),
        weights: str | None = None,
        tensor_bits: Mapping[str, int] | None = None,
        **switches: bool,
    ) -> "PlanOptions":
        """From texts: ``W/A``, and ``layer_bits`` as {REGEX: W/A} or as texts ``REGEX=W/A``. Raises OptionError.

        ``weights``: asymmetric or symmetric; None stands for what accuracy wants and the target takes. ``switches``:
        the fields that are true or false.
        """
        if weights not in (None, *WEIGHTS):
            raise OptionError(f"--weights {weights!r}: expected {' or '.join(WEIGHTS)}")
        for name, value in switches.items():
            if not isinstance(value, bool):
                raise OptionError(f"{name} is {value!r}; expected True or False")
        if isinstance(layer_bits, Mapping):
            rules = tuple(layer_bits.items())
        else:
            rules = tuple(map(_split, [layer_bits] if isinstance(layer_bits, str) else layer_bits))
        return cls(
            bits=_widths(bits, "--bits"),
            first_last=_widths(first_last, "--first-last"),
            layer_bits=tuple((pattern, _widths(text, f"--layer-bits {pattern!r}:")) for pattern, text in rules),
            exclude=(exclude,) if isinstance(exclude, str) else tuple(exclude),
            exclude_op=(exclude_op,) if isinstance(exclude_op, str) else tuple(exclude_op),
            symmetric_weights=None if weights is None else weights == "symmetric",
            tensor_bits=tuple((tensor_bits or {}).items()),
            **switches,
        )

    def resolve(
        self, layers: Iterable[str], op_types: Mapping[str, str], others: Mapping[str, Sequence[str]] | None = None
    ) -> "LayerRules":
        """Apply the rules to a model: the names of its layers, and of all its nodes with their operators.

        ``others``: by name, what patterns match as well: the path of a node's module, the names of what it was made
        from. Raises OptionError for a pattern or an operator that matches nothing, and where no layer is left.
        """
        names = list(layers)
        excluded: set[str] = set()
        for pattern in self.exclude:
            excluded |= find_matches(pattern, list(op_types), "--exclude", others, what="nodes")
        for op_type in self.exclude_op:
            excluded |= _of_type(op_type, op_types)
        if names and excluded.issuperset(names):
            given = [("--exclude", [*map(repr, self.exclude)]), ("--exclude-op", [*self.exclude_op])]
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
        folded = {kind.lower(): kind for kind in known}
        near = difflib.get_close_matches(str(op_type).lower(), folded, n=1, cutoff=0.5)
        hint = f"did you mean {folded[near[0]]}? " if near else ""
        if op_type in _SPELLED_AS:
            hint = f"{op_type} is written as {_SPELLED_AS[op_type]} there, or folded into other nodes. "
        raise OptionError(
            f"--exclude-op {op_type!r}: the model, once prepared, has no such operator; {hint}It has {', '.join(known)}"
        )
    return found


def _split(text: str) -> tuple[str, str]:
    pattern, equals, bits = text.rpartition("=")
    if not equals or not pattern:
        raise OptionError(f"--layer-bits {text!r}: expected REGEX=W/A, for example '/layer1/=8/8'")
    return pattern, bits


def _widths(bits: Widths, option: str) -> BitWidths:
    return bits if isinstance(bits, BitWidths) else BitWidths.parse(bits, option=option)
