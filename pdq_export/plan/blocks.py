"""Cuts the graph into units of reconstruction from its dominators (PD-Quant, section 3.4; BRECQ, section 3.2)."""

import itertools
import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence

from onnx import NodeProto

from pdq_export import operators
from pdq_export.graph.lookup import GraphIndex, attribute
from pdq_export.plan.nodes import data_inputs
from pdq_export.plan.readers import tensors_before_layers
from pdq_export.spec import Block, Layer, Point, Role

# A region that no single tensor cuts (U-Net, FPN) is one block up to this many layers; a larger one is cut where the
# fewest tensors cross into pieces of up to as many, because a block is held and differentiated as a whole.
MAX_LAYERS = 12

# An inverted-residual unit in the letters of `_form`: expansion, depthwise convolution, gate, projection.
_INVERTED_RESIDUAL = re.compile("E?DG?P")


def find_blocks(
    index: GraphIndex,
    layers: Iterable[Layer],
    points: Mapping[str, Point],
    *,
    per_layer: bool,
    wide: Container[str] = (),
) -> tuple[Block, ...]:
    """Split the nodes into consecutive blocks, each with at least one layer.

    A block ends at a quantized tensor through which every path passes. A residual or inverted-residual unit is one
    block, a chain without branches is one block per layer. An inverted-residual unit without a skip is one block as
    well (`_join_inverted_residuals`). A region of more than `MAX_LAYERS` that no single tensor cuts, behind a skip over
    many layers say, is cut where the fewest tensors cross (`_refine`).

    ``per_layer``: every layer that ends at a learned point is a block; others, such as a projection before an Add, go
    with the layer after them. ``wide``: points that were learned ones until residuals became wide; blocks end there as
    before.
    """
    by_node = {layer.node: layer for layer in layers}
    nodes = [node for node in index.graph.node if data_inputs(index, node)]
    ends = {tensor for tensor in points if _ends_block(index, points[tensor], wide)}
    crossing = _crossing(index, nodes)
    cuts = [position for position, tensors in enumerate(crossing) if len(tensors) == 1 and tensors <= ends]
    regions = _merge_layerless(_split(nodes, cuts), by_node)
    if not per_layer:
        regions = _join_inverted_residuals(index, regions, by_node)
    feeds_layer = tensors_before_layers(index, by_node)
    ends.update(layer.output for layer in by_node.values() if layer.output not in feeds_layer)  # heads
    places = {
        node.name: tensors
        for node, tensors in zip(nodes, crossing, strict=True)
        if ends.intersection(node.output) and all(_can_be_kept(index, tensor) for tensor in tensors)
    }
    pieces = itertools.chain.from_iterable(
        _refine(region, by_node, _costs(index, region, places), per_layer=per_layer) for region in regions
    )
    return tuple(_block(index, piece, by_node) for piece in _merge_layerless(list(pieces), by_node))


def _crossing(index: GraphIndex, nodes: Sequence[NodeProto]) -> list[set[str]]:
    """For every node, the tensors alive after it: written up to it and read later."""
    last_read = {tensor: position for position, node in enumerate(nodes) for tensor in data_inputs(index, node)}
    alive = {tensor for tensor in index.inputs if tensor in last_read}
    crossing = []
    for position, node in enumerate(nodes):
        alive.update(tensor for tensor in node.output if tensor in last_read)
        alive = {tensor for tensor in alive if last_read[tensor] > position}
        crossing.append(set(alive))
    return crossing


def _can_be_kept(index: GraphIndex, tensor: str) -> bool:
    """Whether calibration can keep a tensor between blocks: float numbers, one row an image."""
    dtype = index.dtype(tensor)
    return (dtype is None or dtype.kind == "f") and begins_with_batch(index, tensor)


def _ends_block(index: GraphIndex, point: Point, wide: Container[str]) -> bool:
    if not begins_with_batch(index, point.tensor):
        return False
    producer = index.producer.get(point.tensor)
    merged = producer is not None and producer.op_type == "Concat"
    return merged or point.role is Role.ACTIVATION or point.tensor in wide


def begins_with_batch(index: GraphIndex, tensor: str) -> bool:
    """Whether axis 0 counts images, as far as shapes are known.

    It does not in a tensor [N * T, C] of a token head.
    """
    shape, image = index.shape(tensor), index.shape(index.inputs[0])
    if not shape or not image:
        return True
    batch = f"{index.inputs[0]}.shape[0]" if image[0] is None else image[0]
    if isinstance(batch, str) and batch in shape[1:]:  # [T, N, C] around a recurrent layer
        return False
    return len(shape) > 2 if shape[0] is None else shape[0] == batch


def _split(nodes: Sequence[NodeProto], cuts: Sequence[int]) -> list[list[NodeProto]]:
    starts = [0, *(cut + 1 for cut in cuts)]
    ends = [*(cut + 1 for cut in cuts), len(nodes)]
    return [list(nodes[start:end]) for start, end in zip(starts, ends, strict=True) if start < end]


def _join_inverted_residuals(
    index: GraphIndex, pieces: Sequence[list[NodeProto]], layers: Mapping[str, Layer]
) -> list[list[NodeProto]]:
    """Join the layers of a unit that has no skip: [1x1,] depthwise[, squeeze and excitation], linear 1x1.

    What ends such a unit is its linear bottleneck (MobileNetV2, section 3.2): a 1x1 convolution without activation.
    MobileNetV1's pairs have none and stay one block per layer. Without the 1x1 in front the layers may be a unit
    (MobileNetV2) or part of a flat stem (MNASNet), which only the names of modules tell.
    """
    joined: list[list[NodeProto]] = []
    done = 0
    for match in _INVERTED_RESIDUAL.finditer("".join(_form(index, piece, layers) for piece in pieces)):
        start, end = match.span()
        unit = list(itertools.chain.from_iterable(pieces[start:end]))
        if match[0].startswith("E") or start == 0 or _is_module(unit, pieces[start - 1], layers):
            joined += [*pieces[done:start], unit]
            done = end
    return [*joined, *pieces[done:]]


def _form(index: GraphIndex, piece: Sequence[NodeProto], layers: Mapping[str, Layer]) -> str:
    """What a piece is in an inverted residual: E, D, G, P as in `_INVERTED_RESIDUAL`, or ``.``."""
    members = [node for node in piece if node.name in layers]
    shape = index.static_shape(members[0].input[1])
    gated = piece[-1].op_type == "Mul"
    if members[0].op_type != "Conv" or shape is None:
        return "G" if gated else "."
    node = members[0]
    outputs, inputs, *kernel = shape
    if attribute(node, "group", 1) > 1 and (gated or len(members) == 1):
        return "D" if inputs == 1 else "."  # with its gate, where it has one
    if len(members) > 1:
        return "G" if gated else "."
    if math.prod(kernel) > 1:
        return "."
    readers = index.consumers(node.output[0])
    if piece[-1] is node and readers and not any(operators.get(reader.op_type).activation for reader in readers):
        return "P"
    return "E" if outputs >= inputs else "."


def _is_module(unit: Iterable[NodeProto], before: Iterable[NodeProto], layers: Mapping[str, Layer]) -> bool:
    """Whether the layers of a unit are a module that does not hold the layer before, as far as names tell.

    PyTorch's exporter writes scopes, ``/features/features.1/conv/conv.0/Conv``; a name without a slash tells nothing.
    """
    *_, last = (node.name for node in before if node.name in layers)
    scopes = [node.name.split("/")[:-1] for node in unit if node.name in layers]
    outer = last.split("/")[:-1]
    if not all([outer, *scopes]):
        return True
    depth = len(list(itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*scopes, strict=False))))
    return outer[:depth] != scopes[0][:depth]


def _costs(
    index: GraphIndex, region: Iterable[NodeProto], places: Mapping[str, set[str]]
) -> dict[str, tuple[bool, int]]:
    """What a cut behind a node costs, for those behind which a block may end: how many tensors cross, ``places``.

    Whatever that is, one in the middle of a residual unit costs more: where the same older tensors pass by further
    down and fewer nodes are still to read them, as after the unit's Add.
    """
    passing: list[tuple[str, set[str], set[tuple[str, str]]]] = []
    read: set[tuple[str, str]] = set()
    for node in region:
        read.update((tensor, node.name) for tensor in node.input)
        if node.name in places:
            older = places[node.name].difference(node.output)
            reads = {(tensor, reader.name) for tensor in older for reader in index.consumers(tensor)} - read
            passing.append((node.name, older, reads))
    costs = {}
    for position, (name, older, reads) in enumerate(passing):
        inside = any(others == older and fewer < reads for _, others, fewer in passing[position + 1 :])
        costs[name] = inside, len(places[name])
    return costs


def _refine(
    region: list[NodeProto], layers: Mapping[str, Layer], costs: Mapping[str, tuple[bool, int]], *, per_layer: bool
) -> list[list[NodeProto]]:
    """Cut a region of too many layers into pieces that have no more, where that costs least, all cuts together.

    ``costs`` by node behind which a block may end. Every cut costs, so pieces are as large as may be: layers that learn
    together make up for each other's errors. Of equal costs the earliest cuts count. Only a piece without a node to cut
    behind is larger.
    """
    before = [0, *itertools.accumulate(node.name in layers for node in region)]
    if before[-1] <= (1 if per_layer else MAX_LAYERS):
        return [region]
    places = [place for place, node in enumerate(region[:-1]) if node.name in costs]
    if per_layer:
        return _split(region, places)
    best: dict[int, tuple[int, int, list[int]]] = {0: (0, 0, [])}  # by end: what the cuts cost, and the cuts
    for last, place in itertools.pairwise([-1, *places, len(region) - 1]):
        inside, crossing = costs.get(region[place].name, (False, 0))
        best[place + 1] = min(
            (units + inside, tensors + crossing, [*cuts, place])
            for start, (units, tensors, cuts) in best.items()
            if start == last + 1 or before[place + 1] - before[start] <= MAX_LAYERS
        )
    return _split(region, best[len(region)][-1])


def _merge_layerless(pieces: list[list[NodeProto]], layers: Mapping[str, Layer]) -> list[list[NodeProto]]:
    """Nodes without a layer join the block after them, trailing ones the block before."""
    merged: list[list[NodeProto]] = []
    pending: list[NodeProto] = []
    for piece in pieces:
        pending = pending + piece
        if any(node.name in layers for node in piece):
            merged.append(pending)
            pending = []
    merged[-1].extend(pending)
    return merged


def _block(index: GraphIndex, nodes: Sequence[NodeProto], layers: Mapping[str, Layer]) -> Block:
    inside = {node.name for node in nodes}
    written = {tensor for node in nodes for tensor in node.output}
    read = dict.fromkeys(tensor for node in nodes for tensor in data_inputs(index, node))
    members = tuple(layers[node.name] for node in nodes if node.name in layers)

    def is_read_outside(tensor: str) -> bool:
        readers = (reader for reader in index.consumers(tensor) if tensor in data_inputs(index, reader))
        return tensor in index.outputs or any(reader.name not in inside for reader in readers)

    outputs = (tensor for node in nodes for tensor in node.output if tensor and is_read_outside(tensor))
    return Block(
        name=members[0].label if len(members) == 1 else f"{members[0].label} .. {members[-1].label}",
        inputs=tuple(tensor for tensor in read if tensor not in written),
        outputs=tuple(outputs),
        nodes=tuple(node.name for node in nodes),
        layers=members,
    )
