"""Names that the exporter adds, which repeat short names and abbreviate paths of modules."""

import numpy as np
import onnx
import pytest

from pdq_export.commands.convert import convert
from pdq_export.commands.dry_run import dry_run
from pdq_export.export import writer
from pdq_export.export.writer import GraphWriter
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.spec import BitWidths

from ..graph.models import build, node, random

SCOPE = "/backbone/stages.0/stages.0.0/layer"


def scoped() -> onnx.ModelProto:
    return build(
        [
            node("Conv", f"x w {SCOPE}.bias", f"{SCOPE}/Conv_output_0", f"{SCOPE}/Conv"),
            node("Relu", f"{SCOPE}/Conv_output_0", f"{SCOPE}/Relu_output_0", f"{SCOPE}/Relu"),
            node("Conv", f"{SCOPE}/Relu_output_0 v", f"{SCOPE}/Conv_1_output_0", f"{SCOPE}/Conv_1"),
            node("Relu", f"{SCOPE}/Conv_1_output_0", f"{SCOPE}.2/Relu_output_0", f"{SCOPE}.2/Relu"),
            node("Conv", f"{SCOPE}.2/Relu_output_0 u", "y", f"{SCOPE}.2/Conv_2"),
        ],
        inputs={"x": ["N", 4, 4, 4]},
        outputs={"y": ["N", 4, 4, 4]},
        constants={**{name: random(4, 4, 1, 1) for name in "wvu"}, f"{SCOPE}.bias": random(4)},
        opset=21,
    )


def written() -> onnx.ModelProto:
    prepared = prepare(scoped())
    plan = make_plan(prepared.model, PlanOptions.of(BitWidths(4, 4)))
    return dry_run(prepared, plan, "ort", metadata={"pdq_export.target": "ort"}).model


def test_paths_are_abbreviated_and_what_is_the_users_stays() -> None:
    graph = written().graph
    own = {name for item in scoped().graph.node for name in (item.name, *item.output)}
    added = {item.name for item in graph.node} | {name for item in graph.node for name in item.output}
    added |= {tensor.name for tensor in graph.initializer}
    added -= own
    assert not [name for name in added if "/backbone" in name]
    assert {
        "Relu/QuantizeLinear",
        "Relu.1/QuantizeLinear",
        "Relu_scale",
        "Relu.1_scale",
        "Relu_clipped",
        "w_scale",
    } <= added
    names = [item.name for item in graph.node]
    assert [name for name in names if name in own] == [f"{SCOPE}/Conv", f"{SCOPE}/Conv_1", f"{SCOPE}.2/Conv_2"]
    assert len(set(filter(None, names))) == len(list(filter(None, names)))


def test_a_file_with_other_names_is_converted_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As earlier versions wrote it, each name repeated in full; and the file is smaller now."""
    new = written()
    monkeypatch.setattr(writer, "_LONGEST_REPEATED", 1000)
    old = written()
    monkeypatch.undo()
    assert f"{SCOPE}/Relu_output_0/QuantizeLinear" in {item.name for item in old.graph.node}
    assert new.ByteSize() < 0.85 * old.ByteSize()
    there = convert(old, "native")
    assert convert(there, "ort").SerializeToString(deterministic=True) == new.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("short_scale", "short_scale"),
        ("/a/long/path/of/Relu_output_0_scale", "Relu_scale"),
        ("/a/long/path/of/Relu_output_0/Clip", "Relu/Clip"),
        ("a.long.path.of.conv1.weight_scale", "conv1.weight_scale"),
        ("/a/long/path/of/Relu", "/a/long/path/of/Relu_1"),  # a name of the old graph's own is only told apart
        ("/somewhere/else/entirely_scale", "/somewhere/else/entirely_scale"),
    ],
)
def test_short_names(wanted: str, name: str) -> None:
    graph = build(
        [node("Relu", "short", "/a/long/path/of/Relu_output_0", "/a/long/path/of/Relu")],
        inputs={"short": [1]},
        outputs={"/a/long/path/of/Relu_output_0": [1]},
        constants={"a.long.path.of.conv1.weight": np.ones(1, np.float32)},
    ).graph
    out = GraphWriter(graph)
    assert out.node("Relu", ["short"], "y", name=wanted) == "y"
    assert out._nodes[-1].name == name
