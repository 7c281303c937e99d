"""The paths of modules that torch's default exporter writes beside the names of nodes."""

import onnx
import pytest

from pdq_export.commands.dry_run import dry_run
from pdq_export.commands.inspect import inspect_model
from pdq_export.graph import scopes
from pdq_export.graph.prepare import at_opset, prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.spec import BitWidths

from .models import build, node, random


def scoped(**names: str) -> onnx.ModelProto:
    """Convolution, Sum, Conv; with a list of scopes for some nodes."""
    model = build(
        [
            node("Conv", "x v", "a", "node_conv2d"),
            node("Relu", "a", "r", "node_relu"),
            node("Conv", "r w", "b", "node_conv2d_1"),
            node("Sum", "b r", "s", "node_add"),
            node("Conv", "s u", "y", "node_conv2d_2"),
        ],
        inputs={"x": ["N", 4, 4, 4]},
        outputs={"y": ["N", 4, 4, 4]},
        constants={"v": random(4, 4, 1, 1), "w": random(4, 4, 1, 1, seed=1), "u": random(4, 4, 1, 1, seed=2)},
    )
    for item in model.graph.node:
        item.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File ...")
        if item.name in names:
            item.metadata_props.add(key=scopes.KEY, value=names[item.name])
    return model


NAMES = {
    "node_conv2d": "['', 'stem', 'stem.0', 'conv2d']",
    "node_conv2d_1": "['', 'layer1', 'layer1.0', 'layer1.0.conv1', 'conv2d_1']",
    "node_add": "['', 'layer1', 'layer1.0', 'add']",
}


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("['', 'layer1', 'layer1.0', 'conv2d_1']", "layer1.0"),
        ("['', 'linear', 'linear']", "linear"),
        ("['', 'relu']", ""),
        ("['relu']", ""),
        ("[]", ""),
        ("", ""),
        ("['', 'a', 'b'", ""),
        ("['', __import__('os'), 'b']", ""),
        (b"['', 'a\\x1b[2J', 'b']".decode("unicode_escape"), ""),
        ("['', 'tab\there', 'b']", ""),
        ("['', '" + 501 * "a" + "', 'b']", ""),
        ("['', 'a', '" + 5000 * "a" + "']", ""),
    ],
)
def test_what_counts_as_a_path(text: str, path: str) -> None:
    model = scoped(node_relu=text)
    assert scopes.module_path(model.graph.node[1]) == path


@pytest.mark.parametrize("opset", [None, 21])
def test_paths_survive_the_preparation_and_nothing_besides(opset: int | None) -> None:
    prepared = prepare(scoped(**NAMES))
    if opset:
        prepared = at_opset(prepared, opset)
    found = {item.name: scopes.module_path(item) for item in prepared.model.graph.node}
    assert found == {
        "node_conv2d": "stem.0",
        "node_relu": "",
        "node_conv2d_1": "layer1.0.conv1",
        "node_add": "layer1.0",  # a Sum that is an Add now
        "node_conv2d_2": "",
    }
    assert {entry.key for item in prepared.model.graph.node for entry in item.metadata_props} == {scopes.KEY}


def test_layers_and_blocks_are_known_by_their_modules() -> None:
    found = inspect_model(scoped(**NAMES), exclude="^node_conv2d_2$", layer_bits=[r"layer1\.0=3/3"], first_last="5/5")
    assert [(layer.node, layer.scope, layer.weight_bits) for layer in found.layers] == [
        ("node_conv2d", "stem.0", 5),
        ("node_conv2d_1", "layer1.0.conv1", 3),
        ("node_conv2d_2", "", None),
    ]
    assert found.to_dict()["layers"][1]["scope"] == "layer1.0.conv1"
    assert [block.name for block in found.plan.blocks] == ["stem.0", "layer1.0.conv1"]


def test_a_written_file_is_the_same_with_and_without() -> None:
    files = []
    for model in (scoped(**NAMES), scoped()):
        prepared = prepare(model)
        plan = make_plan(prepared.model, PlanOptions.of(BitWidths(8, 8)))
        files.append(dry_run(prepared, plan, "ort").model)
    assert files[0] == files[1]
