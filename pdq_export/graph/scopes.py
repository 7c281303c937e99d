"""The module of a network that a node belongs to, which torch's exporter writes into the node's metadata.

Its default exporter calls nodes ``node_conv2d_3`` and writes the path of modules besides: name_scopes is the text of a
list, ``['', 'layer1', 'layer1.0', 'layer1.0.conv1', 'conv2d_3']``, from the network down to the operator. The text is a
stranger's: what has another form or is long counts as none.
"""

import re
from collections.abc import Mapping

import onnx
from onnx import NodeProto

KEY = "pkg.torch.onnx.name_scopes"
LONGEST = 4096  # of the list
_LIST = re.compile(r"\[('[^'\\]*'(, '[^'\\]*')*)?\]")
_ITEM = re.compile(r"'([^']*)'")
_LONGEST_PATH = 500


def module_path(node: NodeProto) -> str:
    """The path of the module that a node belongs to, ``layer1.0.conv1``.

    It is empty if nothing is known or if the network itself computes the node.
    """
    text = next((entry.value for entry in node.metadata_props if entry.key == KEY), "")
    if len(text) > LONGEST or not _LIST.fullmatch(text):
        return ""
    modules = _ITEM.findall(text)[:-1]  # the last one is the operator
    path = modules[-1] if modules else ""
    return path if len(path) <= _LONGEST_PATH and path.isprintable() else ""


def read(model: onnx.ModelProto) -> dict[str, str]:
    """By the name of every node that tells a module, its metadata."""
    return {
        node.name: entry.value
        for node in model.graph.node
        if node.name and module_path(node)
        for entry in node.metadata_props
        if entry.key == KEY
    }


def restore(model: onnx.ModelProto, known: Mapping[str, str]) -> onnx.ModelProto:
    """Give nodes back what they said about their modules, and nothing besides.

    Simplifying and converting lose it.
    """
    for node in model.graph.node:
        del node.metadata_props[:]
        if node.name in known:
            node.metadata_props.add(key=KEY, value=known[node.name])
    return model


def without_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model without metadata of nodes; the model itself if there is none."""
    if not any(node.metadata_props for node in model.graph.node):
        return model
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    return restore(bare, {})
