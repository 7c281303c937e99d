"""Small models with random constants, and onnxruntime as the oracle."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto, helper

ort.set_default_logger_severity(3)

Shape = Sequence[int | str | None]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def build(
    nodes: Sequence[NodeProto],
    *,
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    constants: Mapping[str, np.ndarray] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """A checked model; float32 inputs and outputs."""

    def values(shapes: Mapping[str, Shape]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, list(s)) for n, s in shapes.items()]

    initializers = [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "g", values(inputs), values(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = helper.find_min_ir_version_for(list(model.opset_import))
    onnx.checker.check_model(model)
    return model


def node(op_type: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> NodeProto:
    """``node("Conv", "x w b", "y")``; ``-`` leaves an input out."""
    names = ["" if item == "-" else item for item in inputs.split()]
    return helper.make_node(op_type, names, outputs.split(), name=name, **attributes)


def norm_constants(channels: int, prefix: str = "n", seed: int = 1) -> dict[str, np.ndarray]:
    """gamma, beta, mean and variance named ``{prefix}.g`` and so on."""
    gamma, beta, mean, deviation = random(4, channels, seed=seed)
    return {f"{prefix}.g": gamma, f"{prefix}.b": beta, f"{prefix}.m": mean, f"{prefix}.v": deviation**2 + 0.1}


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def assert_same(
    before: onnx.ModelProto, after: onnx.ModelProto, *, rtol: float = 1e-4, atol: float = 1e-5, **inputs: np.ndarray
) -> None:
    """Same outputs in onnxruntime, and a valid model with the same interface."""
    onnx.checker.check_model(after, full_check=True)
    assert [value.name for value in before.graph.output] == [value.name for value in after.graph.output]
    for old, new in zip(run(before, **inputs), run(after, **inputs), strict=True):
        assert old.shape == new.shape
        np.testing.assert_allclose(new, old, rtol=rtol, atol=atol)


def operators(model: onnx.ModelProto) -> dict[str, int]:
    return dict(Counter(n.op_type for n in model.graph.node))
