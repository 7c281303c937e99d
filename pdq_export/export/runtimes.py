"""The lowest onnxruntime that computes what a written file says, as measured, and the one that it is written for.

Measured in onnxruntime itself: ``python -m benchmarks.integer_moves`` (operators on UINT8) and benchmarks/RESULTS.md.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

import onnx
from onnx import GraphProto, NodeProto, TensorProto

from pdq_export import operators
from pdq_export.errors import OptionError
from pdq_export.graph.lookup import attribute, describe, opset_version

KEY = "pdq_export.min_onnxruntime"

Version = tuple[int, int]  # major and minor

OLDEST: Version = (1, 15)  # that was tried
# The newest opset that each version implements as a whole.
_OPSETS: Mapping[Version, int] = {
    (1, 15): 18,
    (1, 16): 19,
    (1, 17): 20,
    (1, 18): 21,
    (1, 21): 22,
    (1, 23): 23,
    (1, 24): 25,
}
_NEWER: Version = (1, 25)
# Operators that move integers, by when they do so with UINT8; the others of `pdq_export.operators` always have.
_MOVES_SINCE: Mapping[str, Version] = {"DepthToSpace": (1, 21), "SpaceToDepth": (1, 28)}
_INT8_ARITHMETIC: Version = (1, 22)  # Add and Sub of INT8 and UINT8
_FOUR, _TWO = ((1, 20), (1, 23)), ((1, 24), (1, 24))  # DequantizeLinear and Cast of types of 4 and 2 bits
_NARROW: Mapping[int, tuple[Version, Version]] = {
    TensorProto.INT4: _FOUR,
    TensorProto.UINT4: _FOUR,
    TensorProto.INT2: _TWO,
    TensorProto.UINT2: _TWO,
}
# By their bits, weights in types of their own that a Cast makes INT8.
TYPED_SINCE: Mapping[int, Version] = {4: _FOUR[1], 2: _TWO[1]}
# Up to 1.30 the memory of a 4-bit tensor is used again for one of 8 bits: wrong values, or a crash.
_NARROW_ACTIVATIONS: Version = (1, 31)
# Before, onnxruntime divides by the wrong number where an average counts its padding: below opset 19 in the windows
# that ceil_mode adds, from it on in others as well.
_COUNTED_PADDING: tuple[Version, Version] = ((1, 29), (1, 25))
# Before, two pairs with nothing but a Relu or Clip in between become one: a rounding is left out.
_PAIRS_IN_A_ROW: Version = (1, 19)
_BYTES = (TensorProto.INT8, TensorProto.UINT8)


def parse_version(text: str) -> Version:
    """Major and minor of a version, as in 1.23.2."""
    major, minor, *_ = text.split(".")
    return int(major), int(minor)


def shown(version: Version) -> str:
    """As text, 1.23."""
    return ".".join(map(str, version))


def newest_opset(version: Version) -> int | None:
    """The newest opset that ``version`` implements as a whole; None for versions newer than those that were tried."""
    if version >= _NEWER:
        return None
    return max(opset for since, opset in _OPSETS.items() if since <= version)


def check_opset(opset: int, runtime: str) -> None:
    """Raise OptionError for a model whose opset ``runtime`` does not know."""
    known = newest_opset(parse_version(runtime))
    if known is not None and opset > known:
        needed = shown(_of_opset(opset, OLDEST).version)
        raise OptionError(
            f"--runtime {runtime}: the model's own opset is {opset}, which needs onnxruntime {needed}; expected what "
            f"{runtime} runs; export the model with opset {known}, or give --runtime {needed} and try the file with "
            f"`pdq-export convert FILE --target ort --runtime {runtime}`"
        )


def moves_integers(op_type: str, version: Version) -> bool:
    """Whether ``version`` runs an operator that moves (`pdq_export.operators`) on UINT8."""
    return version >= _MOVES_SINCE.get(op_type, OLDEST)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Need:
    """The lowest version that runs something in a file: ``what``, and the ``remedy`` for those with an older one."""

    version: Version
    what: str
    remedy: str


def min_onnxruntime(model: onnx.ModelProto) -> str:
    """The lowest version of onnxruntime that runs a model, major and minor, as in 1.23.

    It follows from the opset, from types of 8 bits and fewer and the nodes that have them, and from averages that some
    versions compute wrongly. Newer operators among the nodes that are copied as they are may ask for more.
    """
    return shown(_greatest(model, OLDEST).version)


def check_runtime(model: onnx.ModelProto, runtime: str, where: str = "") -> None:
    """Raise OptionError where a written ``model`` needs a newer onnxruntime than ``runtime``, with what needs it.

    ``where``: what the message begins with, by default the option.
    """
    need = _greatest(model, parse_version(runtime))
    if need.version > parse_version(runtime):
        raise OptionError(
            f"{where or f'--runtime {runtime}'}: {need.what} needs onnxruntime {shown(need.version)}; expected what "
            f"{runtime} runs; {need.remedy}, or give --runtime {shown(need.version)}"
        )


def _greatest(model: onnx.ModelProto, runtime: Version) -> Need:
    """Of several of one version the first: the opset is the last, since types bring theirs along."""
    needs = (
        *_of_averages(model),
        *_of_pairs(model.graph),
        *_of_types(model.graph),
        _of_opset(opset_version(model), runtime),
    )
    return max(needs, key=lambda need: need.version)


def _of_opset(opset: int, runtime: Version) -> Need:
    version = next((since for since, newest in _OPSETS.items() if opset <= newest), _NEWER)
    return Need(version=version, what=f"opset {opset}", remedy=f"export the model with opset {newest_opset(runtime)}")


def _of_averages(model: onnx.ModelProto) -> Iterator[Need]:
    """What an AveragePool needs that counts padding, and has some."""
    opset = opset_version(model)
    for node in model.graph.node:
        if node.op_type != "AveragePool" or not attribute(node, "count_include_pad", 0):
            continue
        pads = any(attribute(node, "pads", ())) or str(attribute(node, "auto_pad", "NOTSET")).startswith("SAME")
        what = f"{describe(node)}, which counts padding,"
        if attribute(node, "ceil_mode", 0):
            remedy = "export it with ceil_mode=0 or count_include_pad=0"
            yield Need(version=_COUNTED_PADDING[opset >= 19], what=what, remedy=remedy)
        elif pads and opset >= 19:
            yield Need(version=_COUNTED_PADDING[True], what=what, remedy="export the model with opset 18")


def _of_pairs(graph: GraphProto) -> Iterator[Need]:
    """What a Relu or Clip needs that alone reads what a pair gives, and is alone read by another pair."""
    readers = collections.Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    producers = {node.output[0]: node for node in graph.node if readers[node.output[0]] == 1}

    def before(node: NodeProto, *op_types: str) -> NodeProto | None:
        found = producers.get(node.input[0])
        return found if found is not None and found.op_type in op_types else None

    for last in graph.node:
        between = before(last, "Relu", "Clip") if last.op_type == "QuantizeLinear" else None
        first = between and before(between, "DequantizeLinear")
        if between is not None and first is not None and before(first, "QuantizeLinear"):
            yield Need(
                version=_PAIRS_IN_A_ROW,
                what=f"{describe(between)} between two pairs",
                remedy=f"leave it in float with --exclude '^{re.escape(between.name)}$'",
            )


def _of_types(graph: GraphProto) -> Iterator[Need]:
    """What nodes need that have types of 8 bits and fewer among their inputs, as far as these follow from constants."""
    types: dict[str, int] = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        kinds = [types.get(name, TensorProto.UNDEFINED) for name in node.input]
        for version, kind in _of_inputs(node.op_type, kinds):
            name = TensorProto.DataType.Name(kind)
            yield Need(version=version, what=f"{describe(node)} of {name}", remedy="write it with --target ort")
        types.update(dict.fromkeys(node.output, _result(node, kinds)))


def _of_inputs(op_type: str, kinds: Sequence[int]) -> Iterator[tuple[Version, int]]:
    for kind in set(kinds) & _NARROW.keys():
        dequantized, cast = _NARROW[kind]
        yield {"Cast": cast, "QuantizeLinear": _NARROW_ACTIVATIONS}.get(op_type, dequantized), kind
    if kinds and kinds[0] in _BYTES:
        arithmetic = {"Add": _INT8_ARITHMETIC, "Sub": _INT8_ARITHMETIC}
        yield arithmetic.get(op_type, _MOVES_SINCE.get(op_type, OLDEST)), kinds[0]


def _result(node: NodeProto, kinds: Sequence[int]) -> int:
    """The type of what a node gives, where it is one of 8 bits or fewer."""
    match node.op_type:
        case "Cast":
            return int(attribute(node, "to"))
        case "QuantizeLinear":
            return kinds[2] if len(kinds) > 2 else TensorProto.UINT8
        case "ConstantOfShape":
            value = attribute(node, "value")
            return TensorProto.FLOAT if value is None else value.data_type
        case "DequantizeLinear":
            return TensorProto.FLOAT
        case op_type:
            return TensorProto.INT64 if operators.get(op_type).reads_shape else next(iter(kinds), TensorProto.UNDEFINED)
