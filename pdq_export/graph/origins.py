"""The node of the file that a made node comes from: a Sum of three is ``NAME/1`` and ``NAME``, and both are NAME's.

Whoever names NAME means all of them. What was made is known by its name, which begins with that of its origin and is
none of the file's; passes lose what is written at nodes, so that it is written anew at their end.
"""

import re
from collections.abc import Mapping

import onnx
from onnx import NodeProto

KEY = "pdq_export.origin"
_SEPARATOR = re.compile(r"[/.]")


def read(model: onnx.ModelProto) -> dict[str, str]:
    """By the name of every named node, the name of its origin; its own name if no pass has made it."""
    return {node.name: origin(node) for node in model.graph.node if node.name}


def find(model: onnx.ModelProto, known: Mapping[str, str]) -> dict[str, str]:
    """Origins by node name, after passes have made more nodes.

    ``known``: what `read` found before.
    """
    return {node.name: _find(node.name, known) for node in model.graph.node if node.name}


def write(model: onnx.ModelProto, origins: Mapping[str, str]) -> onnx.ModelProto:
    """Write the origin of every made node into its metadata, if that has none yet."""
    for node in model.graph.node:
        write_at(node, origins.get(node.name, node.name))
    return model


def write_at(node: NodeProto, name: str) -> None:
    """Write that a node comes from ``name``, if it has another name and no origin yet."""
    if name != node.name and all(entry.key != KEY for entry in node.metadata_props):
        node.metadata_props.add(key=KEY, value=name)


def origin(node: NodeProto) -> str:
    """The name of the file's node that a node comes from; its own name if no pass has made it."""
    text = next((entry.value for entry in node.metadata_props if entry.key == KEY), "")
    return text if text and _is_behind(node.name, text) else node.name  # a stranger's file can say anything


def names(node: NodeProto) -> tuple[str, ...]:
    """The names under which a node is known.

    These are its own, and from the longest on those of the nodes it was made from.
    """
    first = origin(node)
    parents = [name for name in _prefixes(node.name) if name == first or _is_behind(name, first)]
    return (node.name, *parents) if first != node.name else (node.name,)


def _find(name: str, known: Mapping[str, str]) -> str:
    if name in known:
        return known[name]
    return next((known[prefix] for prefix in _prefixes(name) if prefix in known), name)


def _prefixes(name: str) -> list[str]:
    """What a name begins with, up to each separator, the longest first."""
    return [name[: found.start()] for found in reversed(list(_SEPARATOR.finditer(name))) if found.start()]


def _is_behind(name: str, prefix: str) -> bool:
    return name.startswith((f"{prefix}/", f"{prefix}."))
