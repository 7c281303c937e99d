"""Cuts a piece out of the imported graph and splices quantizers in at tensor names."""

import operator
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import fx, nn

from pdq_export.calibrate.sizes import batch_sizes


def extract(
    module: fx.GraphModule,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    quantizers: Mapping[str, nn.Module] | None = None,
    biases: Mapping[str, nn.Module] | None = None,
    nodes: Mapping[str, nn.Module] | None = None,
    unquantized: Mapping[str, Collection[str]] | None = None,
    whole: bool = False,
) -> fx.GraphModule:
    """The part of ``module`` that computes ``outputs`` from ``inputs`` (ONNX tensor names); returns a tuple.

    ``quantizers`` by tensor name: for an activation, a module applied to it before anyone reads it; for a constant, a
    module without arguments that stands in for it. ``biases`` by ONNX node name stand in for that node's third input,
    ``nodes`` for the node itself: they are called with its inputs that are not constant. ``unquantized`` by ONNX node
    name: the tensors that it reads as they are before quantization. Constants are shared, not copied. `batch_sizes`
    count the images in the first input. Inputs are taken as they come, since the part before has quantized them, and
    outputs are given quantized. With ``whole`` it is the other way round, as at a network's ends.
    """
    return _Extractor(module, quantizers or {}, biases or {}, nodes or {}, unquantized or {}, whole).run(
        inputs, outputs
    )


def input_tensors(module: fx.GraphModule) -> list[str]:
    """The ONNX tensors that ``module`` takes, in order."""
    return [node.meta["tensor"] for node in module.graph.nodes if node.op == "placeholder"]


def tensor_nodes(module: fx.GraphModule) -> dict[str, fx.Node]:
    """The fx node that computes each ONNX tensor."""
    return {node.meta["tensor"]: node for node in module.graph.nodes if "tensor" in node.meta}


def op_type(node: fx.Node) -> str:
    """The ONNX op type that an fx node computes, '' for inputs, constants and what calibration has put in."""
    return str(node.meta.get("op_type", ""))


def reachable(module: fx.GraphModule, inputs: Iterable[str], outputs: Iterable[str]) -> tuple[str, ...]:
    """Those of ``outputs`` that depend on one of ``inputs``."""
    known = tensor_nodes(module)
    marked = {known[name] for name in inputs}
    for node in module.graph.nodes:
        if any(argument in marked for argument in node.all_input_nodes):
            marked.add(node)
    return tuple(name for name in outputs if known[name] in marked)


class _Extractor:
    def __init__(
        self,
        module: fx.GraphModule,
        quantizers: Mapping[str, nn.Module],
        biases: Mapping[str, nn.Module],
        nodes: Mapping[str, nn.Module],
        unquantized: Mapping[str, Collection[str]],
        whole: bool,
    ) -> None:
        self.module = module
        self.quantizers = quantizers
        self.biases = biases
        self.nodes = nodes
        self.unquantized = unquantized
        self.whole = whole
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}  # as its readers see it: quantized where it is a point
        self.plain: dict[fx.Node, fx.Node] = {}  # before quantization

    def run(self, inputs: Sequence[str], outputs: Sequence[str]) -> fx.GraphModule:
        known = tensor_nodes(self.module)
        for position, name in enumerate(inputs):
            self.plain[known[name]] = self.copies[known[name]] = self.graph.placeholder(f"input_{position}")
        if self.whole:
            for name in inputs:
                if name in self.quantizers:
                    self.copies[known[name]] = self._call(self.quantizers[name], self.plain[known[name]])
        needed = self._needed([known[name] for name in outputs])
        for node in self.module.graph.nodes:
            if node in needed:
                self._copy(node)
        results = self.plain if self.whole else self.copies
        self.graph.output(tuple(results[known[name]] for name in outputs))
        return fx.GraphModule(self.root, self.graph)

    def _needed(self, outputs: Sequence[fx.Node]) -> set[fx.Node]:
        needed: set[fx.Node] = set()
        pending = [node for node in outputs if node not in self.copies]
        while pending:
            node = pending.pop()
            if node not in needed:
                needed.add(node)
                pending.extend(argument for argument in self._read(node) if argument not in self.copies)
        return needed

    def _read(self, node: fx.Node) -> list[fx.Node]:
        """What the copy of a node takes; a stand-in has the constants in itself, and sizes ask any input."""
        if node.target is batch_sizes:
            return []
        if node.meta.get("onnx_node", "") not in self.nodes:
            return node.all_input_nodes
        return [argument for argument in node.all_input_nodes if argument.op != "get_attr"]

    def _copy(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            raise ValueError(f"input {node.meta.get('tensor', node.name)!r} is needed but was not given")
        quantizer = self.quantizers.get(node.meta.get("tensor", ""))
        if node.op == "get_attr":
            self.copies[node] = self._call(quantizer) if quantizer is not None else self._attribute(node)
            self.plain[node] = self.copies[node]
            return
        stand_in = self.nodes.get(node.meta.get("onnx_node", ""))
        if node.target is batch_sizes:
            (_, *arguments), first = node.args, next(iter(self.copies.values()))
            copy = self.graph.call_function(batch_sizes, (first, *arguments))
        elif stand_in is not None:
            copy = self._call(stand_in, *(self.copies[argument] for argument in self._read(node)))
        else:
            plain = self.unquantized.get(node.meta.get("onnx_node", ""), ())
            copy = self.graph.node_copy(
                node, lambda argument: (self.plain if argument.meta.get("tensor") in plain else self.copies)[argument]
            )
        bias = self.biases.get(node.meta.get("onnx_node", ""))
        if bias is not None and stand_in is None and node.target is not operator.getitem:
            copy.args = (*copy.args[:2], self._call(bias, before=copy), *copy.args[3:])
        self.plain[node] = copy
        self.copies[node] = copy if quantizer is None else self._call(quantizer, copy)

    def _attribute(self, node: fx.Node) -> fx.Node:
        assert isinstance(node.target, str)
        value = getattr(self.module, node.target)
        if isinstance(value, torch.Tensor):
            self.root.register_buffer(node.target, value)
        else:
            setattr(self.root, node.target, value)
        return self.graph.get_attr(node.target)

    def _call(self, quantizer: nn.Module, *args: fx.Node, before: fx.Node | None = None) -> fx.Node:
        name = f"quantizer_{len(list(self.root.children()))}"
        self.root.add_module(name, quantizer)
        if before is None:
            return self.graph.call_module(name, args)
        with self.graph.inserting_before(before):
            return self.graph.call_module(name, args)
