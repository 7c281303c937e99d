"""Finds the weighted layers and the quantization points (docs/quantized.md)."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping

from onnx import NodeProto

from pdq_export import operators
from pdq_export.errors import ModelError
from pdq_export.graph.edit import output_axis
from pdq_export.graph.lookup import GraphIndex, is_layer, optional_input
from pdq_export.graph.scopes import module_path
from pdq_export.plan.expectations import without_expectations
from pdq_export.plan.nodes import (
    data_inputs,
    is_absorbable,
    is_join,
    is_passthrough,
)
from pdq_export.plan.outputs import Outer, read_unquantized
from pdq_export.plan.readers import (
    integer_joins,
    tensors_before_layers,
    tensors_read_as_integers,
    tensors_read_by_layers,
)
from pdq_export.plan.rules import LayerRules, PlanOptions
from pdq_export.spec import CARRIER_BITS, Layer, Point, Role


def find_layers(index: GraphIndex) -> tuple[Layer, ...]:
    """The nodes with a constant weight, in graph order, without those that take expectations.

    Raises ModelError if there is none.
    """
    weighted = [node for node in index.graph.node if is_layer(index, node)]
    layers = tuple(_layer(index, node) for node in without_expectations(index, weighted))
    if not layers:
        raise ModelError(
            "model: no Conv, ConvTranspose, Gemm or MatMul with a constant weight was found; there is nothing to "
            "quantize; expected a CNN"
        )
    return layers


def _layer(index: GraphIndex, node: NodeProto) -> Layer:
    bias = optional_input(node, 2)
    return Layer(
        node=node.name,
        op_type=node.op_type,
        input=node.input[0],
        weight=node.input[1],
        bias=bias if index.is_constant(bias) else None,
        output=node.output[0],
        owns_bias=bias is not None and index.sole_consumer(bias) is node,
        scope=module_path(node),
    )


def find_points(
    index: GraphIndex, layers: Iterable[Layer], options: PlanOptions, rules: LayerRules
) -> tuple[dict[str, Point], dict[str, str], dict[str, tuple[str, ...]]]:
    """Quantization points by tensor, in graph order, pass-through tensors with the point they carry, and what is read
    unquantized, by node.

    ``layers``: all of them, those that ``rules`` excludes too; which layer is the first or the last does not depend on
    the rules.
    """
    finder = _PointFinder(index, {layer.node: layer for layer in layers}, options, rules)
    for node in index.graph.node:
        finder.visit(node)
    finder.settle_last_inputs()
    # an operand of a merge is found there, perhaps long after it was written
    points = in_graph_order(index, finder.points)
    return points, *read_unquantized(index, finder.outer, points, finder.passthrough)


def in_graph_order(index: GraphIndex, points: Mapping[str, Point]) -> dict[str, Point]:
    """The points in the order in which their tensors are first written or read."""
    first: dict[str, int] = {}
    for number, node in enumerate(index.graph.node):
        for tensor in (*node.input, *node.output):
            first.setdefault(tensor, number)
    return {name: points[name] for name in sorted(points, key=first.__getitem__)}


class _PointFinder:
    """Walks the graph once in topological order."""

    def __init__(self, index: GraphIndex, layers: dict[str, Layer], options: PlanOptions, rules: LayerRules) -> None:
        self.index = index
        self.layers = layers
        self.options = options
        self.rules = rules
        self.points: dict[str, Point] = {}
        self.passthrough: dict[str, str] = {}
        self._after_layer: set[str] = set()  # tensors that depend on a weighted layer
        self._wanted: dict[str, int] = {}  # A of a layer that has its own, by the carriers on the way to its activation
        self._settled: set[str] = set()  # activations with such an A
        self._feeds_layer = tensors_before_layers(index, layers)
        self._read_by_layers = tensors_read_by_layers(index, layers, rules.excluded)
        self.outer = Outer(index, layers, self._feeds_layer)
        quantized = layers.keys() - rules.excluded
        near = integer_joins(index, quantized, rules.excluded)
        feeds_quantized = tensors_before_layers(index, quantized)
        outer = {node.name for node in index.graph.node if is_join(index, node) and self.outer.has(node)}
        averages = {name for name in near - outer if operators.get(index.nodes[name].op_type).averages}
        self._joins = averages | {n for n in near if feeds_quantized.intersection(index.nodes[n].output)}
        # Behind the last layers nothing is quantized for a join, but a convolution before it runs in integers.
        self._read_as_integers = tensors_read_as_integers(index, quantized, self._joins | outer, rules.excluded)

    def visit(self, node: NodeProto) -> None:
        inputs = data_inputs(self.index, node)
        first = not any(tensor in self._after_layer for tensor in inputs)
        if not inputs or not self._is_float(node.output[0]):
            return
        if node.name in self.rules.excluded:  # like any operator without integers: what reads its output quantizes it
            if node.name not in self.layers:
                self._hand_on(node, inputs)
        elif node.name in self.layers:
            self._visit_layer(node, self.layers[node.name], first=first)
        elif is_join(self.index, node):
            # Between float operators, and behind the last layers, as where a detector computes its boxes, in float.
            self._visit_join(node, inputs, first=first)
        elif self._passes(node) and self._source(inputs[0]) is not None:
            for tensor in node.output:
                self._pass(tensor, inputs[0])
        else:
            self._hand_on(node, inputs)
        if not first or node.name in self.layers:
            self._after_layer.update(node.output)

    def _visit_join(self, node: NodeProto, inputs: list[str], *, first: bool) -> None:
        if node.name not in self._joins:
            if node.output[0] in self._feeds_layer:
                self._hand_on(node, inputs)
        elif operators.get(node.op_type).averages:
            if self._source(inputs[0]) is not None:
                self._add(node.output[0], Role.CARRIER)
            else:
                self._hand_on(node, inputs)
        elif first:
            self._hand_on(node, inputs)
        elif operators.get(node.op_type).merges:
            self._carry(inputs, Role.CARRIER)
            self._quantize_result(node, max(map(self._handed, inputs)))
        else:
            self._carry(inputs, Role.ACTIVATION)
            self._add(node.output[0], Role.CARRIER, max(map(self._handed, inputs)))

    def _passes(self, node: NodeProto) -> bool:
        return is_passthrough(self.index, node) and node.name not in self.rules.excluded

    def _hand_on(self, node: NodeProto, inputs: Iterable[str]) -> None:
        """An operator in float, a normalization say: A of the layer before it is that of what comes behind."""
        for tensor in node.output:
            if tensor not in self.points:
                self._wanted[tensor] = max(map(self._handed, inputs))

    def _visit_layer(self, node: NodeProto, layer: Layer, *, first: bool) -> None:
        self._ensure_quantized(layer.input, first=first)
        last = not any(tensor in self._feeds_layer for tensor in node.output)
        own = self.rules.own.get(layer.node)
        bits = own or (self.options.first_last if first or last else self.options.bits)
        self._add_weight(layer, bits.weight)
        self._quantize_result(node, 0 if own is None else own.activation)

    def _add_weight(self, layer: Layer, bits: int) -> None:
        known = self.points.get(layer.weight)
        axis = output_axis(self.index, self.index.nodes[layer.node])
        if known is not None:
            if known.axis != axis:
                raise ModelError(
                    f"node {layer.node!r} ({layer.op_type}): its weight {layer.weight!r} is shared with a layer that "
                    "counts output channels along another axis; give each layer a weight of its own"
                )
            bits = max(bits, known.bits)
        point = Point(tensor=layer.weight, role=Role.WEIGHT, bits=bits, axis=axis)
        self.points[layer.weight] = point.with_bits(bits, symmetric=self.options.symmetric_weights)

    def _quantize_result(self, node: NodeProto, wanted: int) -> None:
        """Place the A-bit point after the node's activation, and an 8-bit one before it where it isn't absorbed.

        ``wanted``: A of the layers that end here, 0 for the usual one.
        """
        output = node.output[0]
        if not self._is_worth_quantizing(node):
            self._wanted[output] = wanted
            return
        seen, reader = self._passed_on(output)
        if reader is not None and reader.name in self.rules.excluded:
            reader = None
        if reader is None or not operators.get(reader.op_type).activation or reader.input[0] != seen:
            self._add(output, self._role(output), wanted)
            return
        result = reader.output[0]
        if seen == output and is_absorbable(self.index, reader):
            self._add(result, self._role(result), wanted, absorbed=reader.name)
        elif not self.outer.leaves_float(result) or seen != output:
            self._add(output, Role.CARRIER, wanted)
            if self._role(result) is Role.ACTIVATION:
                self._add(result, Role.ACTIVATION, wanted)

    def _passed_on(self, tensor: str) -> tuple[str, NodeProto | None]:
        """The tensor that pass-through nodes make of ``tensor``, one after the other, and who alone reads it."""
        reader = self.index.sole_consumer(tensor)
        while reader is not None and self._passes(reader) and len(reader.output) == 1:
            tensor = reader.output[0]
            reader = self.index.sole_consumer(tensor)
        return tensor, reader

    def _is_worth_quantizing(self, node: NodeProto) -> bool:
        """Not where only float operators read the result and the network ends there (the scores before a Softmax).

        Nor between the projections of attention and its products; but a convolution needs it to run in integers.
        """
        output = node.output[0]
        if output in self._read_as_integers:
            return True
        return output in self._feeds_layer and not operators.get(node.op_type).float_output

    def _role(self, tensor: str) -> Role:
        """What merges and operators in float, normalizations say, make of a carrier has A bits, not the carrier.

        Behind the last layers there are carriers alone: the network's outputs keep their precision.
        """
        learned = tensor in self._read_by_layers and tensor in self._feeds_layer and not self._is_gated(tensor)
        return Role.ACTIVATION if learned else Role.CARRIER

    def _is_gated(self, tensor: str) -> bool:
        """Whether squeeze and excitation pools and multiplies a tensor: no layer reads it but through the product.

        The product gets A bits; to round to A bits before it as well would cost accuracy for nothing.
        """
        kinds = {reader.op_type for reader in self.index.consumers(tensor)}
        others = kinds - {"Mul"}
        return others != kinds and bool(others) and all(operators.get(kind).pools for kind in others)

    def _carry(self, tensors: Iterable[str], role: Role) -> None:
        """Give every operand that has no integers yet a pair."""
        for tensor in tensors:
            if self._source(tensor) is None and self._is_float(tensor):
                self._add(tensor, role, self._handed(tensor))

    def _ensure_quantized(self, tensor: str, *, first: bool) -> None:
        """A layer's input is always quantized: to 8 bits where no layer comes before, else to A bits."""
        chain = [tensor]
        while self._source(chain[-1]) is None:
            node = self.index.producer.get(chain[-1])
            if node is None or not self._passes(node):
                self._add(chain[-1], Role.CARRIER if first else Role.ACTIVATION, self._handed(chain[-1]))
                break
            chain.append(node.input[0])
        for later, earlier in reversed(list(itertools.pairwise(chain))):
            for sibling in self.index.producer[later].output:  # of a Split; one that was found before stays
                if self._source(sibling) is None:
                    self._pass(sibling, earlier)

    def settle_last_inputs(self) -> None:
        """Give the inputs of the last layers the bits of ``first_last``.

        Their points are found through averages and pass-through nodes. A layer's own bits come before these.
        """
        pending = [layer.input for layer in self.layers.values() if layer.output not in self._feeds_layer]
        while pending:
            tensor = pending.pop()
            point = self.points.get(self._source(tensor) or "")
            if point is not None and point.role is Role.ACTIVATION:
                if point.tensor not in self._settled:
                    bits = self.options.first_last.activation
                    self.points[point.tensor] = dataclasses.replace(point, bits=bits)
                continue
            producer = self.index.producer.get(tensor if point is None else point.tensor)
            if producer is not None and (
                operators.get(producer.op_type).averages or (point is None and is_passthrough(self.index, producer))
            ):
                pending.extend(data_inputs(self.index, producer))

    def _handed(self, tensor: str) -> int:
        """A that a layer before ``tensor`` has for itself and that no activation has got yet, else 0."""
        source = self._source(tensor) or tensor
        settled = source in self.points and self.points[source].role is Role.ACTIVATION
        return 0 if settled else self._wanted.get(source, 0)

    def _source(self, tensor: str) -> str | None:
        return tensor if tensor in self.points else self.passthrough.get(tensor)

    def _is_float(self, tensor: str) -> bool:
        dtype = self.index.dtype(tensor)
        return dtype is None or dtype.kind == "f"

    def _add(self, tensor: str, role: Role, wanted: int = 0, absorbed: str | None = None) -> None:
        if tensor in self.points or self.outer.leaves_float(tensor):
            return
        bits = CARRIER_BITS
        if role is Role.CARRIER:
            self._wanted[tensor] = wanted
        else:
            bits = wanted or self.options.bits.activation
            self._settled.update([tensor] if wanted else [])
        self.points[tensor] = Point(tensor=tensor, role=role, bits=bits, absorbed=absorbed)

    def _pass(self, tensor: str, origin: str) -> None:
        source = self._source(origin)
        if source is not None and tensor:
            self.passthrough[tensor] = source
