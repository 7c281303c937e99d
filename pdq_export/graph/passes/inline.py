"""Local functions in place of their calls, with the attributes that a call gives, passes on or leaves to a default.

onnx's inliner knows no defaults of attributes (``FunctionProto.attribute_proto``). So attributes are settled first,
from the outermost calls inwards: every call gets a copy of its function in which no attribute is left open, and copies
for equal attributes are shared. The inliner then has names to take care of, and nothing else.
"""

from collections.abc import Iterable, Mapping

import onnx
import onnx.inliner
from onnx import AttributeProto, FunctionProto, NodeProto

from pdq_export.errors import ModelError
from pdq_export.graph.lookup import describe, subgraphs
from pdq_export.graph.messages import essential_line

LARGEST = 1_000_000  # nodes; functions that call others twice, and so on, would make up any number
DEEPEST = 100  # functions within functions

Identity = tuple[str, str, str]  # domain, name, overload
Given = Mapping[str, AttributeProto]


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without functions; the model itself if it has none.

    Raises ModelError if a function calls itself or does not fit a call.
    """
    if not model.functions:
        return model
    settled = onnx.ModelProto()
    settled.CopyFrom(model)
    imports = [entry for function in settled.functions for entry in function.opset_import]
    _Settler(settled).run()
    try:
        inlined = onnx.inliner.inline_local_functions(settled, convert_version=True)
    except Exception as error:  # RuntimeError, ValueError, ... of its C++ core
        raise ModelError(
            f"model: its functions cannot be inlined ({essential_line(error)}); expected functions that fit their "
            "calls; export the model without functions"
        ) from error
    assert isinstance(inlined, onnx.ModelProto)
    known = {entry.domain for entry in inlined.opset_import}
    for entry in imports:  # of domains that only functions import
        if entry.domain not in known:
            known.add(entry.domain)
            inlined.opset_import.add().CopyFrom(entry)
    return inlined


class _Settler:
    """Replaces the functions of a model by copies without attributes, one for each set of values."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._functions = {_identity(f.domain, f.name, f.overload): f for f in model.functions}
        self._copies: dict[tuple[Identity, tuple[bytes, ...]], FunctionProto] = {}
        self._sizes: dict[str, int] = {}  # nodes of a copy with all that it calls
        self._calling: list[Identity] = []

    def run(self) -> None:
        self._settle(self._model.graph.node, {})
        del self._model.functions[:]
        self._model.functions.extend(self._copies.values())

    def _settle(self, nodes: Iterable[NodeProto], given: Given) -> int:
        """Settle the attributes of ``nodes`` in a function that was given some; how many nodes they become."""
        size = 0
        for node in nodes:
            _resolve(node, given)
            size += 1 + sum(self._settle(graph.node, given) for graph in subgraphs(node))
            identity = _identity(node.domain, node.op_type, node.overload)
            if identity in self._functions:
                copy = self._copy(node, identity)
                node.op_type, node.overload = copy.name, ""
                del node.attribute[:]
                size += self._sizes[copy.name]
            if size > LARGEST:
                raise ModelError(
                    f"model: its functions make up more than {LARGEST:,} nodes; expected fewer; export the model "
                    "without functions that call each other many times over"
                )
        return size

    def _copy(self, call: NodeProto, identity: Identity) -> FunctionProto:
        function = self._functions[identity]
        values = {a.name: a for a in function.attribute_proto} | {a.name: a for a in call.attribute}
        key = identity, tuple(values[name].SerializeToString(deterministic=True) for name in sorted(values))
        if key not in self._copies:
            if identity in self._calling or len(self._calling) == DEEPEST:
                raise ModelError(
                    f"{describe(call)}: is a call of a function that calls itself, or is more than {DEEPEST} functions "
                    "deep; expected functions that end; export the model without functions"
                )
            self._calling.append(identity)
            copy = FunctionProto()
            copy.CopyFrom(function)
            copy.name, copy.overload = f"{function.name}.{len(self._sizes)}", ""
            del copy.attribute[:], copy.attribute_proto[:]
            self._sizes[copy.name] = self._settle(copy.node, values)
            self._copies[key] = copy
            self._calling.pop()
        return self._copies[key]


def _identity(domain: str, name: str, overload: str) -> Identity:
    return "" if domain == "ai.onnx" else domain, name, overload


def _resolve(node: NodeProto, given: Given) -> None:
    """Put values where a node's attributes refer to those of its function; one without a value is left out."""
    settled = []
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            settled.append(attribute)
        elif (value := given.get(attribute.ref_attr_name)) is not None:
            copy = AttributeProto()
            copy.CopyFrom(value)
            copy.name = attribute.name
            settled.append(copy)
    del node.attribute[:]
    node.attribute.extend(settled)
