"""ONNX -> torch.fx, node by node."""

import operator
from typing import Any

import onnx
import onnx.helper
import torch
from onnx import TensorProto
from torch import fx, nn
from torch.fx.node import map_aggregate

from pdq_export import operators
from pdq_export.errors import ModelError, UnsupportedOperatorError
from pdq_export.frontend import ops
from pdq_export.frontend.constants import ELEMENT_TYPES, TORCH_DTYPES, host_constant, to_torch, type_name
from pdq_export.frontend.names import Names
from pdq_export.frontend.node import Call, OnnxNode, Ref, describe
from pdq_export.frontend.registry import OLDEST_OPSET, find_converter, find_schema
from pdq_export.graph.messages import essential_line
from pdq_export.graph.passes import inline

# Results of constant nodes are computed at import time up to this many elements: parameters are far smaller, and
# weights (which stay nodes, so that they can be replaced) need no second copy.
_FOLD_LIMIT = 1 << 12


def import_model(model: onnx.ModelProto) -> fx.GraphModule:
    """The model as a differentiable torch.fx graph: one ``call_function`` node for each ONNX node.

    Every fx node has ``meta["tensor"]``, the name of the ONNX tensor it computes, and ``meta["onnx_node"]``, the name
    of the ONNX node ('' for inputs and initializers); one that computes has ``meta["op_type"]``, that node's operator.
    An operator with several outputs is a node without ``meta["tensor"]`` followed by ``operator.getitem`` nodes that
    have it. Floating point constants are buffers, read by ``get_attr`` nodes; the module's ``meta["tensors"]`` maps
    buffer names to ONNX names. ``forward`` takes the graph's inputs in order and returns the tuple of its outputs.
    Nodes that contribute to no output are left out.

    Raises UnsupportedOperatorError for an operator, version or attribute that is not in the operator table and
    ModelError for anything else that cannot be expressed (element types, opsets, sparse constants).
    """
    ops.load()
    return _Importer(inline.run(model)).run()


def find_unsupported(model: onnx.ModelProto) -> dict[str, UnsupportedOperatorError]:
    """Everything that `import_model` would refuse about single nodes, by node name, in graph order.

    The nodes of ``model`` have distinct names. Raises ModelError as `import_model` does.
    """
    ops.load()
    return _Importer(inline.run(model)).find_unsupported()


class _Importer:
    """Builds the graph; ``_fx`` holds the fx node of every tensor, ``_constants`` the values that are known."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._opsets = _opsets(model)
        self._root = nn.Module()
        self._graph = fx.Graph()
        self._attribute_names = Names(reserved=dir(fx.GraphModule(nn.Module(), fx.Graph())))
        self._tensors: dict[str, str] = {}  # attribute name -> ONNX name
        self._fx: dict[str, fx.Node] = {}
        self._constants: dict[str, torch.Tensor] = {}
        self._constant_nodes: dict[str, str] = {}  # tensor -> the node that computes this constant
        self._host: set[str] = set()  # tensors of shape arithmetic: always on the CPU

    def find_unsupported(self) -> dict[str, UnsupportedOperatorError]:
        self._begin()
        found = {}
        for proto in self._model.graph.node:
            try:
                self._node(self._decode(proto))
            except UnsupportedOperatorError as error:
                found[proto.name] = error
                for name in proto.output:
                    self._fx[name] = self._graph.placeholder(_node_name(name))  # for those who read it
        return found

    def _begin(self) -> None:
        graph = self._model.graph
        if graph.sparse_initializer:
            raise ModelError(
                f"constant {graph.sparse_initializer[0].values.name!r} is sparse; expected dense initializers only"
            )
        for initializer in graph.initializer:
            self._constants[initializer.name] = to_torch(initializer)
        self._placeholders()

    def run(self) -> fx.GraphModule:
        graph = self._model.graph
        self._begin()
        for proto in graph.node:
            self._node(self._decode(proto))
        self._graph.output(tuple(self._read(output.name, host=False) for output in graph.output))
        self._graph.eliminate_dead_code()
        self._graph.lint()
        used = {node.target for node in self._graph.nodes if node.op == "get_attr"}
        for attribute in [attribute for attribute in self._tensors if attribute not in used]:
            delattr(self._root, attribute)
            del self._tensors[attribute]
        module = fx.GraphModule(self._root, self._graph, class_name="ImportedModel")
        module.meta["tensors"] = dict(self._tensors)
        return module

    def _placeholders(self) -> None:
        names = Names(reserved=("self",))
        for value in self._model.graph.input:
            if value.name in self._constants:
                continue  # before IR version 4 initializers had to be inputs as well
            _check_input(value)
            node = self._graph.placeholder(names.new(value.name))
            node.meta.update(tensor=value.name, onnx_node="")
            self._fx[value.name] = node

    def _decode(self, proto: onnx.NodeProto) -> OnnxNode:
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        opset = self._opsets.get(domain, 0)
        outputs = tuple(proto.output)
        schema = find_schema(proto.name, domain, proto.op_type, opset, outputs)
        attributes: dict[str, Any] = {
            name: _attribute_value(attribute.default_value)
            for name, attribute in schema.attributes.items()
            if attribute.default_value.name
        }
        attributes |= {attribute.name: _attribute_value(attribute) for attribute in proto.attribute}
        return OnnxNode(
            name=proto.name,
            domain=domain,
            op_type=proto.op_type,
            opset=opset,
            since_version=schema.since_version,
            inputs=tuple(proto.input),
            outputs=outputs,
            attributes=attributes,
            constants=self._constants,
        )

    def _node(self, node: OnnxNode) -> None:
        call = find_converter(node)(node)
        inputs = [name for name in node.inputs if name]
        if all(name in self._constants for name in inputs) and self._fold(node, call, inputs):
            return
        # A node that computes with shapes reads its constants on the CPU, where the shapes are.
        host = any(name in self._host for name in inputs) and all(
            name in self._host or name in self._constants for name in inputs
        )
        if host or operators.get(node.op_type).reads_shape:
            self._host.update(node.outputs)
        self._emit(node, call, host)

    def _fold(self, node: OnnxNode, call: Call, inputs: list[str]) -> bool:
        """Evaluate a node that reads constants only; True where the results replace the node.

        A node that reads a floating point constant stays in the graph even though its result is known, so that
        replacing the constant by name (a weight, say) has its effect.
        """
        weighty = any(self._constants[name].is_floating_point() for name in inputs)
        if weighty and max(self._constants[name].numel() for name in inputs) > _FOLD_LIMIT:
            return False
        args, kwargs = map_aggregate(
            (tuple(call.args), dict(call.kwargs)),
            lambda value: self._constants[value.tensor] if isinstance(value, Ref) else value,
        )
        try:
            result = call.function(*args, **kwargs)
        except Exception as error:  # whatever torch raises for shapes that do not fit
            raise ModelError(
                f"{describe(node)}: its constant inputs do not fit each other ({essential_line(error)}); expected a "
                "node that can be computed; check the file in onnxruntime"
            ) from error
        for name, value in zip(node.outputs, result if call.outputs else [result], strict=False):
            if name:
                self._constants[name] = value
                self._constant_nodes[name] = node.name
        return not weighty

    def _emit(self, node: OnnxNode, call: Call, host: bool) -> None:
        args, kwargs = map_aggregate(
            (tuple(call.args), dict(call.kwargs)),
            lambda value: self._read(value.tensor, host) if isinstance(value, Ref) else value,
        )
        first = next((name for name in node.outputs if name), "")
        result = self._graph.create_node("call_function", call.function, args, kwargs, name=_node_name(first))
        result.meta.update(onnx_node=node.name, op_type=node.op_type)
        if not call.outputs:
            result.meta["tensor"] = first
            self._fx[first] = result
            return
        for index, name in enumerate(node.outputs):
            if name:
                item = self._graph.create_node("call_function", operator.getitem, (result, index))
                item.meta.update(tensor=name, onnx_node=node.name, op_type=node.op_type)
                self._fx[name] = item

    def _read(self, tensor: str, host: bool) -> fx.Node:
        """The fx node of a tensor; a constant gets one when it is first read."""
        if tensor in self._fx:
            return self._fx[tensor]
        if tensor not in self._constants:
            raise ModelError(f"tensor {tensor!r} is read before any node computes it; check the model's node order")
        host = host and self._constants[tensor].numel() <= _FOLD_LIMIT
        key = f"{tensor}\0host" if host else tensor  # no ONNX name has a NUL
        if key not in self._fx:
            node = self._host_constant(tensor) if host else self._buffer(tensor)
            node.meta.update(tensor=tensor, onnx_node=self._constant_nodes.get(tensor, ""))
            self._fx[key] = node
        return self._fx[key]

    def _buffer(self, tensor: str) -> fx.Node:
        name = self._attribute_names.new(tensor)
        self._tensors[name] = tensor
        self._root.register_buffer(name, self._constants[tensor])
        return self._graph.create_node("get_attr", name, name=_node_name(name))

    def _host_constant(self, tensor: str) -> fx.Node:
        """A constant of shape arithmetic, baked: a buffer would move to the accelerator with the module."""
        value = self._constants[tensor]
        args = (value.tolist(), value.dtype)
        return self._graph.create_node("call_function", host_constant, args, name=_node_name(tensor))


def _node_name(tensor: str) -> str:
    return Names(reserved=("self",)).new(tensor)  # fx itself makes node names unique


def _opsets(model: onnx.ModelProto) -> dict[str, int]:
    opsets = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
    newest = onnx.defs.onnx_opset_version()
    opset = opsets.get("", newest)
    if not OLDEST_OPSET <= opset <= newest:
        raise ModelError(
            f"the model has opset {opset}; expected {OLDEST_OPSET} to {newest}: convert it with onnx.version_converter"
        )
    return opsets


def _check_input(value: onnx.ValueInfoProto) -> None:
    if not value.type.HasField("tensor_type"):
        raise ModelError(f"input {value.name!r} is not a tensor; expected tensor inputs only")
    if value.type.tensor_type.elem_type not in TORCH_DTYPES:
        found = type_name(value.type.tensor_type.elem_type)
        raise ModelError(f"input {value.name!r}: element type {found}; expected {ELEMENT_TYPES}")


def _attribute_value(attribute: onnx.AttributeProto) -> Any:
    """Text decoded, number lists as lists, tensors as torch tensors, everything else as it is."""
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, TensorProto):
        return to_torch(value)
    if isinstance(value, (list, tuple)) or hasattr(value, "append"):
        return [item.decode("utf-8", errors="replace") if isinstance(item, bytes) else item for item in value]
    return value
