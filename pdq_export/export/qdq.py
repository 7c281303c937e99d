"""The walk that every layout shares: the plan's points become QuantizeLinear -> DequantizeLinear pairs."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto

from pdq_export.errors import ExportError
from pdq_export.export.constants import Weight
from pdq_export.export.layers import ConstantsWriter, LayerWriter, float_inputs, without_folded_factors
from pdq_export.export.layouts import Quantized
from pdq_export.export.ranges import Ranges, integer_range
from pdq_export.export.storage import packed_tensor
from pdq_export.export.writer import GraphWriter
from pdq_export.graph.lookup import describe
from pdq_export.spec import Point, QuantizedTensor, Role


class QdqGraph:
    """Walks the nodes in order and writes pairs as textbooks have them.

    A tensor that carries integers has an integer name and, once it is read, a float one. Layouts say which containers
    they take and what is special.
    """

    signed: ClassVar[bool] = False  # whether activations are
    absorbs: ClassVar[bool] = False  # whether the integers' range stands for a Relu or Clip
    tells_bits: ClassVar[bool] = False  # whether a Clip says how many bits there are where nothing has to be clipped
    packs: ClassVar[bool] = False  # whether biases are stored in as few bytes as can be unpacked again

    def __init__(self, quantized: Quantized) -> None:
        self.index, self.plan, self.activations = quantized.index, quantized.plan, quantized.activations
        self.settled, self.form, self.packing = quantized.constants, quantized.form, quantized.packing
        self._excluded = {*(layer.node for layer in self.plan.excluded), *self.plan.excluded_nodes}
        self.out = GraphWriter(self.index.graph)
        # Who is asked for these by name gets them in float, under that name.
        self.visible = self.index.visible(self.plan.tail) | self.plan.read_unquantized
        self.integers: dict[str, str] = {}
        self.floats: dict[str, str] = {}
        self.ranges = Ranges(self.index, self.plan)
        self.unclipped: dict[str, tuple[str, int, int]] = {}  # integers before their Clip, and its bounds
        self._scales: dict[str, str] = {}
        self._layers = self.layer_writer()

    # What a layout decides

    def container(self, point: Point) -> int:
        """Bits of the type that holds an activation: 2, 4 or 8."""
        raise NotImplementedError

    def weight(self, out: GraphWriter, weight: Weight) -> list[str]:
        """Write a weight, as `layers.WriteWeight`."""
        raise NotImplementedError

    def layer_writer(self) -> ConstantsWriter:
        """What writes the constants of layers."""
        return LayerWriter(self.out, self.weight, packs=self.packs, form=self.form)

    def moves_integers(self, node: NodeProto) -> bool:
        """Whether a pass-through node runs on the integers instead of in float between two pairs."""
        return False

    # The walk

    def write(self) -> GraphProto:
        """The quantized graph."""
        for tensor in self.index.inputs:
            if self._is_activation(tensor):
                self._quantize(tensor, tensor, None)
        for node in self.index.graph.node:
            self.ranges.visit(node)
            self._node(node)
        return self.out.finish()

    def _is_activation(self, tensor: str) -> bool:
        return tensor in self.plan.points and self.plan.points[tensor].role is not Role.WEIGHT

    def _node(self, node: NodeProto) -> None:
        moved = [name for name in node.output if name in self.plan.passthrough and name not in self.plan.points]
        points = [name for name in node.output if self._is_activation(name)]
        if len(moved) == len([name for name in node.output if name]) and self.moves_integers(node):
            self._move(node, moved)
        elif not (points and self._absorb(node, points[0])):
            self._copy(node)
            for tensor in moved:
                self._quantize_moved(tensor)
        for tensor in points:
            if tensor not in self.integers:
                self._quantize(tensor, tensor, None)

    def _copy(self, node: NodeProto) -> None:
        if node.name in self.settled:
            constants = self._layers.constants(self.settled[node.name], self._known_scale(node.input[0]))
            copied = self.out.copy(node, [constants.get(name) or self.read(name) for name in node.input])
            without_folded_factors(copied, self.settled[node.name])
        elif node.name in self.plan.tail:
            self.out.copy(node, node.input)
        elif node.name in self._excluded and (read := [name in self.integers for name in node.input]).count(True):
            self.out.copy(node, float_inputs(self.out, node, self.read_all(node), read.index(True)))
        else:
            self.out.copy(node, self.read_all(node))

    def read_all(self, node: NodeProto) -> list[str]:
        """The names under which a copied node that is no layer reads its inputs."""
        plain = self.plan.unquantized.get(node.name, ())
        return [name if name in plain else self.read(name) for name in node.input]

    # Activations

    def _absorb(self, node: NodeProto, tensor: str) -> bool:
        """Let the integer range stand for the activation ``node``; False where its float output is needed."""
        absorbed = self.plan.points[tensor].absorbed
        if absorbed is None or tensor in self.visible or not self.absorbs:
            return False
        if absorbed != node.name:
            raise ExportError(
                f"tensor {tensor!r}: is to absorb node {absorbed!r}, but {describe(node)} writes it; plan again"
            )
        self._quantize(tensor, self.read(node.input[0]), node)
        return True

    def _quantize(self, tensor: str, float_name: str, absorbed: NodeProto | None) -> None:
        """QuantizeLinear and, where integers beyond their range can come, what keeps them in it.

        That is a Clip of integers where their type is known to Clip, 8 bits. Narrower ones are limited before, in
        float: a bound (q - zero_point) * scale is quantized to q exactly, and rounding is monotone.
        """
        quantized, bits = self.activation(tensor), self.container(self.plan.points[tensor])
        lo, hi = integer_range(self.index, quantized, absorbed)
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if self.signed else (0, (1 << bits) - 1)
        if self.form > 3 and not self.tells_bits:
            low, high = self.ranges.reachable(quantized, absorbed, (low, high))
        self.ranges.settle(quantized, (min(max(low, lo), hi), min(max(high, lo), hi)))
        if bits < 8:
            float_name = self._limit(quantized, float_name, lo if lo > low else None, hi if hi < high else None)
        integers = self._quantize_linear(tensor, float_name, tensor)
        if bits == 8 and (lo > low or hi < high):
            self.unclipped[tensor] = (integers, lo, hi)
            integers = self.clip(integers, lo, hi, tensor, name=f"{tensor}/Clip")
        self.integers[tensor] = integers

    def clip(self, integers: str, lo: int, hi: int, tensor: str, *, name: str) -> str:
        """Write a Clip of integers of 8 bits. Returns the name of those of ``tensor``."""
        inputs = [integers, *(self.out.integer(bound, 8, signed=self.signed) for bound in (lo, hi))]
        return self.out.node("Clip", inputs, f"{tensor}_clipped", name=name)

    def _limit(self, quantized: QuantizedTensor, float_name: str, lo: int | None, hi: int | None) -> str:
        """Max and Min with the bounds that there are; onnxruntime does not load a Clip before UINT4."""
        tensor, zero_point = quantized.point.tensor, int(quantized.zero_point)
        for op_type, bound in (("Max", lo), ("Min", hi)):
            if bound is not None:
                value = np.array((bound - zero_point) * np.float32(quantized.scale), np.float32)
                inputs = [float_name, self.out.constant(f"{tensor}_{op_type.lower()}", value)]
                float_name = self.out.node(op_type, inputs, f"{tensor}_limited", name=f"{tensor}/{op_type}")
        return float_name

    def _quantize_moved(self, tensor: str) -> None:
        """Quantize what a pass-through node has moved in float, as its source is."""
        self.integers[tensor] = self._quantize_linear(tensor, tensor, self.plan.passthrough[tensor])

    def _quantize_linear(self, tensor: str, float_name: str, point: str) -> str:
        inputs = [float_name, *self._parameters(point)]
        return self.out.node("QuantizeLinear", inputs, f"{tensor}_quantized", name=f"{tensor}/QuantizeLinear")

    def activation(self, tensor: str) -> QuantizedTensor:
        """The parameters of an activation, checked."""
        quantized = self.activations[tensor]
        scale, zero_point = np.asarray(quantized.scale), np.asarray(quantized.zero_point)
        if scale.size != 1 or zero_point.size != 1:
            raise ExportError(f"tensor {tensor!r}: scale has shape {list(scale.shape)}; expected one per tensor")
        if not (np.isfinite(scale).all() and scale.item() > 0):
            raise ExportError(f"tensor {tensor!r}: scale is {scale.item()}; expected a positive number")
        low, high = (0, 0) if self.signed else (0, (1 << self.container(quantized.point)) - 1)
        if quantized.point.symmetric != self.signed or not low <= zero_point.item() <= high:
            kind = "symmetric" if quantized.point.symmetric else "asymmetric"
            type_name = f"{'INT' if self.signed else 'UINT'}{self.container(quantized.point)}"
            expected = "symmetric with zero_point 0" if self.signed else f"asymmetric with {low} to {high}"
            raise ExportError(
                f"tensor {tensor!r}: zero_point is {zero_point.item()}, {kind}; expected {expected}, {type_name}"
            )
        return quantized

    def _known_scale(self, tensor: str) -> tuple[str, np.float32] | None:
        """Name and value of the scale of an activation; None for what is not quantized."""
        source = self.plan.source(tensor)
        if source is None or not self._is_activation(source):
            return None
        return self._parameters(source)[0], np.float32(self.activation(source).scale)

    def zero_point(self, point: str) -> str:
        """Name of the zero_point of an activation; equal ones are shared."""
        value = int(self.activation(point).zero_point)
        return self.out.integer(value, self.container(self.plan.points[point]), signed=self.signed)

    def _parameters(self, point: str) -> list[str]:
        """Names of the scale and zero_point of an activation; one scale initializer for all who need it."""
        if point not in self._scales:
            scale = np.asarray(self.activation(point).scale, np.float32).reshape(())
            self._scales[point] = self.out.constant(f"{point}_scale", scale)
        return [self._scales[point], self.zero_point(point)]

    def read(self, tensor: str) -> str:
        """The float name under which a node reads ``tensor``, which is dequantized if it carries integers."""
        if tensor in self.index.initializers and self._is_activation(tensor) and tensor not in self.integers:
            self._constant(tensor)
        if tensor not in self.integers:
            return tensor
        if tensor not in self.floats:
            source = self.plan.source(tensor)
            assert source is not None
            inputs = [self.integers[tensor], *self._parameters(source)]
            name = f"{tensor}/DequantizeLinear"
            self.floats[tensor] = self.out.node("DequantizeLinear", inputs, f"{tensor}_dequantized", name=name)
        return self.floats[tensor]

    def _constant(self, tensor: str) -> None:
        """A constant operand (of Add, Mul, Concat) that is a point: its integers become the initializer."""
        name, bits = self.out.tensor_name(f"{tensor}_quantized"), self.container(self.plan.points[tensor])
        packed = packed_tensor(name, self.constant_integers(tensor), bits, signed=self.signed)
        self.integers[tensor] = self.out.initializer(packed)

    def constant_integers(self, tensor: str) -> NDArray[np.int16]:
        """The integers of a constant operand that is a point."""
        quantized, value = self.activation(tensor), self.index.constant(tensor)
        assert value is not None
        ratio = np.rint(value.astype(np.float32) / np.float32(quantized.scale)).astype(np.float64)
        integers = np.clip(ratio + int(quantized.zero_point), quantized.point.qmin, quantized.point.qmax)
        self.ranges.settle(quantized, (quantized.point.qmin, quantized.point.qmax))
        return np.asarray(integers, np.int16)

    # Nodes that only move integers about

    def _move(self, node: NodeProto, moved: Sequence[str]) -> None:
        """Run a node on the integers; a graph output among its own is dequantized under its name."""
        source = self.plan.passthrough[moved[0]]
        inputs = self.move_inputs(node, [self._integers_of(node, name, source) for name in node.input], source)
        outputs = [self.out.tensor_name(f"{name}_quantized") if name in moved else name for name in node.output]
        self.out.copy(node, inputs, outputs)
        self.integers.update(zip(node.output, outputs, strict=True))
        for tensor in moved:
            if tensor in self.visible:
                inputs, name = [self.integers[tensor], *self._parameters(source)], f"{tensor}/DequantizeLinear"
                self.floats[tensor] = self.out.node_to("DequantizeLinear", inputs, tensor, name=name)

    def move_inputs(self, node: NodeProto, inputs: Sequence[str], source: str) -> list[str]:
        """The inputs of a node that runs on the integers of ``source``."""
        return list(inputs)

    def _integers_of(self, node: NodeProto, tensor: str, source: str) -> str:
        if not tensor or self.plan.source(tensor) is None:
            return tensor
        if self.plan.source(tensor) != source or tensor not in self.integers:
            raise ExportError(
                f"tensor {tensor!r}: {describe(node)} should pass on the integers of {source!r}, but "
                f"reads those of {self.plan.source(tensor)!r}; expected one source"
            )
        return self.integers[tensor]
