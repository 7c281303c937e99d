"""The float tail: what lies behind the quantized part and cannot be computed in calibration stays in float as it is.

Detectors end so: NonMaxSuppression and what reads it, a Loop over boxes, an If around a Squeeze. The graph without the
tail ends where the tail begins; calibration, simulation and the agreement that is reported end there too.
"""

from collections.abc import Iterable, Mapping, Sequence

import onnx
from onnx import NodeProto

from pdq_export import operators
from pdq_export.graph.lookup import GraphIndex, reads
from pdq_export.graph.passes import tidy
from pdq_export.plan.blocks import begins_with_batch
from pdq_export.spec import Layer


def find_tail(index: GraphIndex, unsupported: Mapping[str, str], layers: Iterable[Layer]) -> dict[str, str]:
    """The nodes to leave as they are, with the reason; none if nothing would be left to compare.

    ``unsupported``: by node name, why calibration cannot compute it. ``layers``: those to be quantized.

    The tail begins with the unsupported nodes that no layer depends on. All nodes that depend on these belong to it. So
    do nodes that lead to them with integers or with tensors without an axis of images, as the squeezed boxes of a
    single image.
    """
    before = _before(index, {layer.node for layer in layers}) if unsupported else set()
    behind = [node for node in index.graph.node if node.name not in before]
    reason = "{}, and no quantized layer depends on it"
    tail = {node.name: reason.format(unsupported[node.name]) for node in behind if node.name in unsupported}
    size = 0
    while size < len(tail):
        size = len(tail)
        _extend_down(behind, tail)
        _extend_up(index, behind, tail)
    return tail if core_outputs(index, tail) else {}


def without_tail(model: onnx.ModelProto, tail: Mapping[str, str]) -> onnx.ModelProto:
    """The part of a model before its tail, which ends at `core_outputs`; the model itself if it has no tail."""
    if not tail:
        return model
    declared = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    core = onnx.ModelProto()
    core.CopyFrom(model)
    del core.graph.node[:], core.graph.output[:]
    core.graph.node.extend(node for node in model.graph.node if node.name not in tail)
    core.graph.output.extend(declared[name] for name in core_outputs(GraphIndex(model), tail))
    return tidy.remove_unused(core)


def core_outputs(index: GraphIndex, tail: Mapping[str, str]) -> list[str]:
    """The outputs of the graph without its tail, in order.

    These are the graph's outputs that the tail does not compute, then the tensors that the tail reads and that can be
    compared.
    """
    members = [node for node in index.graph.node if node.name in tail]
    computed = {name for node in members for name in node.output}
    read = dict.fromkeys(name for node in members for name in reads(node) if name in index.producer)
    ends = [name for name in read if name not in computed and _is_float(index, name)]
    ends = [name for name in ends if begins_with_batch(index, name)] or ends
    return list(dict.fromkeys([*(name for name in index.outputs if name not in computed), *ends]))


def _before(index: GraphIndex, layers: set[str]) -> set[str]:
    """The layers and the nodes that one of them depends on."""
    before: set[str] = set()
    needed: set[str] = set()
    for node in reversed(index.graph.node):
        if node.name in layers or needed.intersection(node.output):
            before.add(node.name)
            needed.update(reads(node))
    return before


def _extend_down(behind: Sequence[NodeProto], tail: dict[str, str]) -> None:
    computed: dict[str, str] = {}
    for node in behind:
        source = next((computed[name] for name in reads(node) if name in computed), None)
        if source is not None:
            tail.setdefault(node.name, f"reads what {source!r} computes")
        if node.name in tail:
            computed.update(dict.fromkeys(node.output, node.name))


def _extend_up(index: GraphIndex, behind: Sequence[NodeProto], tail: dict[str, str]) -> None:
    reader: dict[str, str] = {}
    for node in reversed(behind):
        found = [name for name in node.output if name in reader]
        comparable = all(_is_float(index, name) and begins_with_batch(index, name) for name in found)
        if not comparable and not operators.get(node.op_type).reads_shape:
            reason = f"what it computes for {reader[found[0]]!r} is no float tensor with an axis of images"
            tail.setdefault(node.name, reason)
        if node.name in tail:
            reader.update(dict.fromkeys(reads(node), node.name))


def _is_float(index: GraphIndex, tensor: str) -> bool:
    """Whether a tensor is known to be float and no scalar."""
    dtype = index.dtype(tensor)
    return dtype is not None and dtype.kind == "f" and index.rank(tensor) != 0
