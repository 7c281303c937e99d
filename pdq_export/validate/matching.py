"""Which tensors of a quantized file stand for which of the FP32 file, whoever wrote it: by name, or through the graph.

A tensor is sought under its own name, under that with what tools append to it, and behind the node of the same name.
Where the quantized file has neither the BatchNormalization nor the activation that follow in the FP32 file, they are
folded into the layer or into its quantizer, and the tensor stands for what comes behind them.
"""

import dataclasses
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Set

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from pdq_export import operators
from pdq_export.graph.lookup import GraphIndex

_APPENDED = re.compile(
    r"(_DequantizeLinear_Output(_\d+)?|_QuantizeLinear_Output|_dequantized|_quantized|_clipped|_output_quantized)$"
)
_NODE_APPENDED = re.compile(r"(_quant|_quantized)$")
_FOLDED = {"BatchNormalization": "norm", "Relu": "bound", "Clip": "bound", "Identity": "same", "Cast": "same"}
_NARROW: Mapping[int, tuple[int, int]] = {
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT2: (-2, 1),
    TensorProto.UINT2: (0, 3),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantizer:
    """Scale and zero_point of one tensor, and the integers ``qmin`` to ``qmax`` that it can have."""

    scale: float
    zero_point: int
    qmin: int
    qmax: int

    @property
    def levels(self) -> int:
        """How many integers there are."""
        return self.qmax - self.qmin + 1

    @property
    def bits(self) -> int:
        """The bits that hold them."""
        return (self.levels - 1).bit_length()

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest number that they stand for."""
        return (self.qmin - self.zero_point) * self.scale, (self.qmax - self.zero_point) * self.scale

    def integers(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """X / scale, rounded half to even, plus zero_point, clipped."""
        rounded = np.rint(x / np.float32(self.scale)) + np.float32(self.zero_point)
        clipped: NDArray[np.float32] = np.clip(rounded, self.qmin, self.qmax)
        return clipped

    def dequantize(self, integers: NDArray[np.float32]) -> NDArray[np.float32]:
        """What integers stand for."""
        x: NDArray[np.float32] = (integers - np.float32(self.zero_point)) * np.float32(self.scale)
        return x


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """``name``: a tensor of the FP32 file; ``quantized``: the one of the other file that stands for it.

    ``node``, ``op_type``: what makes it in the FP32 file. ``layers``: the FP32 file's weighted layers between this
    tensor and the nearest others that are matched. ``ends``: those whose result it is, behind an activation or an Add;
    ``--layer-bits`` of these rules its bits. ``quantizer``: None where it is in float, or has one for each channel.
    """

    name: str
    quantized: str
    node: str
    op_type: str
    layers: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    quantizer: Quantizer | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matching:
    """``cuts``: by tensor of the quantized file that other nodes read, the FP32 tensor that it stands for.

    ``matches``: in the order of the quantized file, one for each FP32 tensor. ``weights``: of the quantized file's
    layers by the FP32 file's name, the tensor that they read.
    """

    matches: tuple[Match, ...]
    cuts: Mapping[str, str]
    weights: Mapping[str, str]


def match_tensors(
    original: onnx.ModelProto, quantized: onnx.ModelProto, renamed: Mapping[str, str], *, changed: Container[str] = ()
) -> Matching:
    """Match the tensors of a quantized file, which has pairs and no integer operators, with those of the FP32 file.

    ``renamed``: what the second calls inputs and outputs that have another name in the first, by the first's.
    ``changed``: tensors of the first that the second has with other numbers, on purpose; layers around them are one.
    """
    first, second = (GraphIndex(onnx.shape_inference.infer_shapes(model)) for model in (original, quantized))
    return _Matcher(first, second, renamed).run(changed)


class _Matcher:
    def __init__(self, first: GraphIndex, second: GraphIndex, renamed: Mapping[str, str]) -> None:
        self.first, self.second = first, second
        self.known = {*first.producer, *(name for name in first.inputs if not first.is_constant(name))}
        self.names = {other: name for name, other in renamed.items()}
        self.fixed = _constant_tensors(second)
        self.fixed_first = _constant_tensors(first)
        self.layer_of = self._layers()

    def run(self, changed: Container[str]) -> Matching:
        cuts: dict[str, str] = {}
        quantizers: dict[str, Quantizer | None] = {}
        for tensor in self._tensors():
            name = self._stands_for(tensor)
            if name is not None and name not in changed:
                cuts[tensor] = name
                quantizers[tensor] = self._quantizer(tensor)
        matches: dict[str, Match] = {}
        for tensor, name in cuts.items():
            if name in matches:
                continue
            node = self._maker(name)
            matches[name] = Match(
                name=name,
                quantized=tensor,
                node=name if node is None else node.name or node.output[0],
                op_type="input" if node is None else node.op_type,
                layers=tuple(self._behind(tensor, cuts)),
                ends=tuple(self._ends(name)),
                quantizer=quantizers[tensor],
            )
        weights = {name: node.input[1] for key, name in self.layer_of.items() if (node := self.second.producer[key])}
        return Matching(matches=tuple(matches.values()), cuts=cuts, weights=weights)

    def _layers(self) -> dict[str, str]:
        """The FP32 file's name of each weighted layer of the second, by the tensor that it writes."""
        ours = [node for node in self.first.graph.node if _weighted(node, self.fixed_first)]
        theirs = [node for node in self.second.graph.node if _weighted(node, self.fixed)]
        by_name = {node.name or node.output[0]: node for node in ours}
        found = {}
        for node in theirs:
            name = _NODE_APPENDED.sub("", node.name)
            if node.name in by_name or name in by_name:
                found[node.output[0]] = node.name if node.name in by_name else name
        if not found and [node.op_type for node in ours] == [node.op_type for node in theirs]:  # all names are new
            found = {b.output[0]: a.name or a.output[0] for a, b in zip(ours, theirs, strict=True)}
        return found

    def _tensors(self) -> Iterator[str]:
        """The float tensors of the second that can stand for one: dequantized, or read by something but a quantizer."""
        for node in self.second.graph.node:
            for name in filter(None, node.output):
                dtype = self.second.dtype(name)
                counts = name in self.second.sized or (dtype is not None and dtype != np.float32)
                if name in self.fixed or node.op_type == "QuantizeLinear" or counts:
                    continue
                readers = self.second.consumers(name)
                quantized = bool(readers) and all(one.op_type == "QuantizeLinear" for one in readers)
                # What a layer gives before its activation is part of the layer, unless it is quantized.
                inner = len(readers) == 1 and readers[0].op_type in _FOLDED and node.op_type != "DequantizeLinear"
                if not (quantized or inner) or name in self.second.outputs:
                    yield name

    def _stands_for(self, tensor: str) -> str | None:
        for candidate in self._candidates(tensor):
            name = self.names.get(candidate, candidate)
            if name in self.known:
                return self._advance(name, tensor)
        return None

    def _candidates(self, tensor: str) -> Iterator[str]:
        yield tensor
        node = self.second.producer[tensor]
        source = tensor
        if node.op_type == "DequantizeLinear":
            integers = node.input[0]
            source = self._quantized_source(integers) or ""
            yield from (source, _APPENDED.sub("", tensor), _APPENDED.sub("", integers))
        if source in self.second.producer:
            made = self._without_bounds(self.second.producer[source])
            if made.output[0] in self.layer_of:
                yield self._layer_output(self.layer_of[made.output[0]])

    def _layer_output(self, layer: str) -> str:
        return str(next(n.output[0] for n in self.first.graph.node if layer in (n.name, n.output[0])))

    def _without_bounds(self, node: NodeProto) -> NodeProto:
        while node.op_type in _FOLDED and node.input[0] in self.second.producer:
            node = self.second.producer[node.input[0]]
        return node

    def _quantized_source(self, integers: str) -> str | None:
        """The float tensor that integers are made of, over a Clip of integers."""
        node = self.second.producer.get(integers)
        while node is not None and node.op_type == "Clip":
            node = self.second.producer.get(node.input[0])
        return node.input[0] if node is not None and node.op_type == "QuantizeLinear" else None

    def _advance(self, name: str, tensor: str) -> str:
        """What ``tensor`` stands for once nodes are passed that the second file has not."""
        while (reader := self.first.sole_consumer(name)) is not None and reader.op_type in _FOLDED:
            kind = _FOLDED[reader.op_type]
            following = {_FOLDED.get(node.op_type) for node in self.second.consumers(tensor)}
            if kind in following or (reader.op_type == "Cast" and not self._is_float(reader.output[0])):
                break
            if tensor in self.second.outputs and reader.output[0] not in self.first.outputs:
                break
            name = reader.output[0]
        return name

    def _is_float(self, name: str) -> bool:
        dtype = self.first.dtype(name)
        return dtype is None or dtype.kind == "f"

    def _maker(self, name: str) -> NodeProto | None:
        """The node of the first file that computes a tensor, before what is folded into it."""
        node = self.first.producer.get(name)
        while node is not None and node.op_type in _FOLDED and node.input[0] in self.first.producer:
            node = self.first.producer[node.input[0]]
        return node

    def _ends(self, name: str) -> Iterator[str]:
        """The layers that end in a tensor of the first file: behind an activation, or the Add they lead to."""
        node = self._maker(name)
        if node is None:
            return
        if node.op_type != "Add":
            yield from self._first_layer(node)
            return
        for read in node.input:
            while self.first.sole_consumer(read) is not None and (made := self.first.producer.get(read)) is not None:
                yield from self._first_layer(made)
                if _FOLDED.get(made.op_type) not in ("norm", "same"):
                    break
                read = made.input[0]

    def _first_layer(self, node: NodeProto) -> Iterator[str]:
        if _weighted(node, self.fixed_first):
            yield node.name or node.output[0]

    def _behind(self, tensor: str, ends: Iterable[str]) -> Iterator[str]:
        """The layers that a tensor is computed by from the nearest of ``ends``."""
        seen, stack = set(ends), [tensor]
        while stack:
            name = stack.pop()
            if name in self.layer_of:
                yield self.layer_of[name]
            node = self.second.producer.get(name)
            for read in () if node is None else node.input:
                if read and read not in seen and read not in self.fixed:
                    seen.add(read)
                    stack.append(read)

    def _quantizer(self, tensor: str) -> Quantizer | None:
        """Of a dequantized tensor with one scale."""
        node = self.second.producer[tensor]
        if node.op_type != "DequantizeLinear":
            return None
        scale = self.second.constant(node.input[1])
        if scale is None or scale.size != 1:
            return None
        given = self.second.initializers.get(node.input[2]) if len(node.input) > 2 else None
        kind = TensorProto.UINT8 if given is None else given.data_type
        zero_point = 0 if given is None else int(np.asarray(onnx.numpy_helper.to_array(given)).reshape(-1)[0])
        if kind in _NARROW:
            qmin, qmax = _NARROW[kind]
        elif (dtype := onnx.helper.tensor_dtype_to_np_dtype(kind)).kind in "iu":
            qmin, qmax = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        else:
            return None
        made = self.second.producer.get(node.input[0])
        if made is not None and made.op_type == "Clip":
            bounds = [self.second.constant(name) for name in (*made.input[1:], "", "")[:2]]
            qmin = qmin if bounds[0] is None else int(bounds[0])
            qmax = qmax if bounds[1] is None else int(bounds[1])
        return Quantizer(scale=float(scale.reshape(-1)[0]), zero_point=zero_point, qmin=qmin, qmax=qmax)


def _weighted(node: NodeProto, fixed: Set[str]) -> bool:
    weighted = operators.get(node.op_type).weighted and len(node.input) > 1
    return bool(weighted and node.input[1] in fixed and node.input[0] not in fixed)


def _constant_tensors(index: GraphIndex) -> set[str]:
    """Initializers, and what nodes compute from nothing else."""
    known = set(index.initializers)
    for node in index.graph.node:
        inner = any(item.HasField("g") or item.graphs for item in node.attribute)
        if not inner and known.issuperset(filter(None, node.input)):
            known.update(node.output)
    return known
