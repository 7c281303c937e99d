"""The operator table: which function converts which version of which operator."""

from collections.abc import Callable, Mapping

import onnx.defs

from pdq_export.errors import UnsupportedOperatorError, first_few
from pdq_export.frontend.node import Call, OnnxNode, describe_as
from pdq_export.graph.lookup import inner_layers

OLDEST_OPSET = 9
_EXCLUDE = "leave the layers behind it in float (--exclude)"

Converter = Callable[[OnnxNode], Call]
Key = tuple[str, str, int]  # domain, op_type, since_version

_TABLE: dict[Key, Converter] = {}


def converter(op_type: str, since_version: int | tuple[int, ...], domain: str = "") -> Callable[[Converter], Converter]:
    """Register the decorated function for the given versions of an operator.

    ``since_version``: the opsets in which the operator was changed (``onnx.defs``), all of those with the same meaning
    for the converter. Versions newer than the installed onnx package are left out. Raises ValueError for a version that
    does not exist or is registered already.
    """
    given = (since_version,) if isinstance(since_version, int) else since_version
    versions = [version for version in given if domain or version <= onnx.defs.onnx_opset_version()]

    def register(function: Converter) -> Converter:
        for version in versions:
            key = (domain, op_type, version)
            if key in _TABLE:
                raise ValueError(f"{op_type} version {version}: registered twice")
            if onnx.defs.get_schema(op_type, version, domain).since_version != version:
                raise ValueError(f"{op_type} has no version {version}")
            _TABLE[key] = function
        return function

    return register


def table() -> Mapping[Key, Converter]:
    """A copy of the operator table, by (domain, op_type, since_version)."""
    return dict(_TABLE)


def find_schema(name: str, domain: str, op_type: str, opset: int, outputs: tuple[str, ...]) -> onnx.defs.OpSchema:
    """The operator's definition in this opset. Raises UnsupportedOperatorError if ONNX has none."""
    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError as error:
        found = "not an operator of this ONNX opset"
        remedy = f"{_EXCLUDE}, or export the model with standard operators only"
        if domain == "com.microsoft":
            remedy = f"{_EXCLUDE}, or give the model as it was before onnxruntime optimized it"
        raise UnsupportedOperatorError(
            f"{describe_as(name, domain, op_type, opset, outputs)}: {found}; {remedy}", found=found
        ) from error


def find_converter(node: OnnxNode) -> Converter:
    """The converter of the node's operator and version.

    Raises UnsupportedOperatorError if there is none.
    """
    found = _TABLE.get((node.domain, node.op_type, node.since_version))
    if found is not None:
        return found
    known = sorted(version for domain, op, version in _TABLE if (domain, op) == (node.domain, node.op_type))
    if known:
        newer = [version for version in known if version > node.since_version]
        remedy = (
            f"convert the model to an opset from {newer[0]} on (onnx.version_converter)"
            if newer
            else f"export the model with an opset before {node.since_version}"
        )
        raise node.unsupported(f"version {node.since_version} of this operator is not supported", remedy)
    if node.op_type in ("If", "Loop", "Scan"):
        raise _control_flow(node)
    raise node.unsupported("not supported", f"{_EXCLUDE}, or replace it by other operators in the exported model")


def _control_flow(node: OnnxNode) -> UnsupportedOperatorError:
    layers = inner_layers(node.attributes, node.constants.keys())
    held = "".join(f", and its {name} holds {first_few(list(map(repr, nodes)))}" for name, nodes in layers.items())
    if node.op_type == "If":
        remedy = f"make its condition {node.inputs[0]!r} a constant, {_EXCLUDE}, or export the model without it"
    else:
        remedy = f"{_EXCLUDE}, or export the model with the loop written out, as torch.export or torch.jit.trace do"
    return node.unsupported(f"control flow is not supported{held}", remedy)
