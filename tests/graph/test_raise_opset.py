"""Every operator that CNNs use, from the oldest to the newest form, to opset 21 and 25: onnxruntime sees no change."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pdq_export.errors import ModelError
from pdq_export.graph.passes import raise_opset

from ..installed import onnxruntime_is
from .models import build, node, random, run


@dataclasses.dataclass(frozen=True)
class Case:
    op_type: str
    constants: tuple[np.ndarray | None, ...] = ()
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    first: int = 9
    last: int = 20
    outputs: int = 1
    shape: tuple[int, ...] = (2, 4, 6, 6)

    def __str__(self) -> str:
        return "-".join([self.op_type, *(f"{k}={v}" for k, v in self.attributes.items()), f"{self.first}..{self.last}"])


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


PADS = [0, 0, 1, 1, 0, 0, 1, 1]
AXES = {"axes": [2, 3]}
# The first opset at which onnxruntime divides what ceil_mode adds by the right number (`export/runtimes.py`).
COUNTED = 10 if onnxruntime_is("1.29") else 19
POOL = {"kernel_shape": [3, 3], "strides": [2, 2]}
CASES = [
    Case("Upsample", (floats(1, 1, 2, 2),), {"mode": "nearest"}, 9, 9),
    Case("Upsample", (floats(1, 1, 1.7, 2.3),), {"mode": "nearest"}, 9, 9),
    Case("Upsample", (floats(1, 1, 2, 2),), {"mode": "linear"}, 9, 9),
    Case("Resize", (floats(1, 1, 1.5, 1.5),), {"mode": "nearest"}, 10, 10),
    Case("Resize", (floats(1, 1, 0.7, 0.7),), {"mode": "nearest"}, 10, 10),
    Case("Resize", (floats(1, 1, 2, 2),), {"mode": "linear"}, 10, 10),
    Case("Resize", (None, floats(1, 1, 1.5, 1.5)), {"mode": "nearest"}, 13, 20),
    Case("Resize", (None, None, ints(2, 4, 12, 12)), {"mode": "linear"}, 13, 20),
    Case("Pad", (), {"pads": PADS}, 9, 10),
    Case("Pad", (), {"pads": PADS, "value": 2.0}, 9, 10),
    Case("Pad", (), {"pads": PADS, "mode": "reflect"}, 9, 10),
    Case("Pad", (ints(*PADS), np.array(1.5, np.float32)), {}, 11, 20),
    Case("Clip", (), {"min": 0.0, "max": 6.0}, 9, 10),
    Case("Clip", (), {"min": 0.0}, 9, 10),
    Case("Clip", (), {}, 9, 10),
    Case("Clip", (np.array(0, np.float32), np.array(6, np.float32)), {}, 11, 20),
    Case("Squeeze", (), AXES, 9, 12, shape=(2, 4, 1, 1)),
    Case("Squeeze", (ints(2, 3),), {}, 13, 20, shape=(2, 4, 1, 1)),
    Case("Unsqueeze", (), {"axes": [0]}, 9, 12),
    Case("Split", (), {"axis": 1}, 9, 17, 2),
    Case("Split", (), {"axis": 1, "split": [1, 3]}, 9, 12, 2),
    Case("Split", (ints(1, 3),), {"axis": 1}, 13, 20, 2),
    *(Case(f"Reduce{name}", (), {**AXES, "keepdims": 0}, 9, 17) for name in ("Mean", "Max", "Min", "L2")),
    Case("ReduceMean", (), {}, 9, 17),
    Case("ReduceSum", (), AXES, 9, 12),
    Case("Dropout", (), {"ratio": 0.3}, 9, 11),
    Case("Dropout", (), {}, 9, 20),
    Case("Softmax", (), {}, 9, 12, shape=(2, 5)),
    Case("Softmax", (), {"axis": 1}, 9, 20),
    Case("Softmax", (), {"axis": -1}, 9, 20),
    Case("LogSoftmax", (), {"axis": 1}, 9, 20),
    Case("BatchNormalization", (random(4), random(4), random(4), random(4) ** 2), {}, 9, 20),
    Case("InstanceNormalization", (random(4), random(4)), {}, 9, 20),
    Case("Conv", (random(5, 4, 3, 3), random(5)), {"pads": [1, 1, 1, 1]}, 9, 20),
    Case("ConvTranspose", (random(4, 5, 2, 2),), {"strides": [2, 2]}, 9, 20),
    Case("Gemm", (random(5, 4), random(4)), {}, 9, 20, shape=(2, 5)),
    Case("MaxPool", (), {**POOL, "ceil_mode": 1}, 10, 20),
    Case("AveragePool", (), {**POOL, "pads": [1, 1, 1, 1]}, 9, 20),
    Case("AveragePool", (), {**POOL, "pads": [1] * 4, "ceil_mode": 1, "count_include_pad": 1}, COUNTED, 20),
    Case("GlobalAveragePool"),
    Case("Flatten"),
    Case("Reshape", (ints(2, -1),)),
    Case("Concat", (random(2, 4, 6, 6),), {"axis": 1}),
    Case("PRelu", (random(4, 1, 1),)),
    Case("LeakyRelu", (), {"alpha": 0.1}),
    Case("HardSigmoid"),
    Case("HardSwish", (), {}, 14, 20),
    Case("DepthToSpace", (), {"blocksize": 2}),
    Case("Slice", (), {"starts": [0, 1], "ends": [4, 5], **AXES}, 9, 9),
    Case("Slice", (ints(0, 1), ints(4, 5), ints(2, 3)), {}, 10, 20),
    Case("Pow", (np.array(2, np.float32),)),
    Case("Tile", (ints(1, 1, 2, 2),)),
    Case("GridSample", (random(2, 3, 3, 2) * np.float32(0.3),), {"mode": "bilinear"}, 16, 19),
]


def one_node_model(case: Case, opset: int, *, dynamic: bool) -> onnx.ModelProto:
    names = ["-" if value is None else f"c{i}" for i, value in enumerate(case.constants)]
    shape = ["N", *case.shape[1:-1], "W"] if dynamic else list(case.shape)
    outputs = [f"y{i}" for i in range(case.outputs)]
    graph = helper.make_graph(
        [node(case.op_type, " ".join(["x", *names]), " ".join(outputs), **case.attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(v, f"c{i}") for i, v in enumerate(case.constants) if v is not None],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = helper.find_min_ir_version_for(list(model.opset_import))
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_stay(case: Case) -> None:
    x = random(*case.shape)
    for opset in sorted({case.first, (case.first + case.last) // 2, case.last}):
        model = one_node_model(case, opset, dynamic=opset == case.last)
        before = run(model, x=x)
        for target in (21, 25):
            raised = raise_opset.run(model, target)
            assert [entry.version for entry in raised.opset_import] == [target]
            assert raised.ir_version == helper.find_min_ir_version_for(list(raised.opset_import))
            assert (raised.graph.input, raised.graph.output) == (model.graph.input, model.graph.output)
            assert "Constant" not in {n.op_type for n in raised.graph.node}
            onnx.checker.check_model(raised, full_check=True)
            for old, new in zip(before, run(raised, x=x), strict=True):
                np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)


def test_never_lower_and_never_more_than_asked() -> None:
    model = build([node("Relu", "x", "y")], inputs={"x": [1]}, outputs={"y": [1]}, opset=17)
    for asked in (9, 17):
        assert raise_opset.run(model, asked).opset_import[0].version == 17
    assert raise_opset.run(model, 19).opset_import[0].version == 19


def test_names_dynamic_axes_metadata_and_other_domains_stay() -> None:
    model = build([node("Relu", "x", "y", "act")], inputs={"x": ["N", 3]}, outputs={"y": ["N", 3]}, opset=11)
    model.graph.node.append(helper.make_node("Magic", ["y"], ["z"], domain="com.example", name="trick"))
    model.opset_import.append(helper.make_opsetid("com.example", 3))
    model.metadata_props.add(key="author", value="somebody")
    model.producer_name = "exporter"
    raised = raise_opset.run(model, 21)
    assert [(n.name, n.op_type, n.domain) for n in raised.graph.node] == [
        ("act", "Relu", ""),
        ("trick", "Magic", "com.example"),
    ]
    assert {(entry.domain, entry.version) for entry in raised.opset_import} == {("", 21), ("com.example", 3)}
    assert (raised.graph.input, raised.graph.output) == (model.graph.input, model.graph.output)
    assert raised.metadata_props == model.metadata_props
    assert raised.producer_name == "exporter"


def test_an_operator_that_cannot_be_converted_is_named() -> None:
    names = "y m v a b"
    model = build(
        [node("BatchNormalization", "x s s s s", names, "norm")],
        inputs={"x": [1, 3, 4, 4], "s": [3]},
        outputs={"y": [1, 3, 4, 4]},
        opset=13,
    )
    with pytest.raises(ModelError, match=r"node 'norm' \(BatchNormalization\): opset 13 cannot be converted to 21"):
        raise_opset.run(model, 21)


def test_hardmax_would_change_its_meaning() -> None:
    model = build([node("Hardmax", "x", "y", "h")], inputs={"x": [2, 3, 4]}, outputs={"y": [2, 3, 4]}, opset=12)
    with pytest.raises(ModelError, match=r"node 'h' \(Hardmax\): opset 12 cannot be converted to 21"):
        raise_opset.run(model, 21)


def test_a_result_that_is_not_valid_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build([node("Relu", "x", "y", "act")], inputs={"x": [1]}, outputs={"y": [1]}, opset=11)
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    broken.graph.node[0].input[0] = "nobody"
    monkeypatch.setattr(onnx.version_converter, "convert_version", lambda *_: broken)
    with pytest.raises(ModelError, match=r"opset 11 cannot be converted to 21 \(.*nobody"):
        raise_opset.run(model, 21)
