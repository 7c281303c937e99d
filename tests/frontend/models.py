"""Small models, and the two ways to run them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pdq_export.frontend import import_model

Array = NDArray[Any]

ort.set_default_logger_severity(3)


def one_node(
    op_type: str,
    inputs: Sequence[Array | None],
    opset: int,
    attributes: Mapping[str, Any] | None = None,
    *,
    outputs: int = 1,
    constants: Sequence[int] = (),
) -> onnx.ModelProto:
    """A model of one node ``/layer/op`` with inputs x0, x1, ... and outputs y0, y1, ...

    The inputs numbered in ``constants`` are initializers; None is an optional input left out.
    """
    names = ["" if value is None else f"x{index}" for index, value in enumerate(inputs)]
    results = [f"y{index}" for index in range(outputs)]
    node = helper.make_node(op_type, names, results, name="/layer/op", **(attributes or {}))
    given = {name: value for name, value in zip(names, inputs, strict=True) if value is not None}
    fixed = {f"x{index}" for index in constants}
    graph = helper.make_graph(
        [node],
        "one_node",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in given.items()
            if name not in fixed
        ],
        [onnx.ValueInfoProto(name=name) for name in results],
        [numpy_helper.from_array(value, name) for name, value in given.items() if name in fixed],
    )
    return make_model(graph, opset)


def make_model(graph: onnx.GraphProto, opset: int) -> onnx.ModelProto:
    """The model with its output types inferred, in the oldest IR version that has the opset."""
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=imports)
    model.ir_version = max(helper.find_min_ir_version_for(imports), 4)  # 4: initializers need not be inputs
    return onnx.shape_inference.infer_shapes(model)


def feeds(model: onnx.ModelProto, inputs: Sequence[Array | None]) -> dict[str, Array]:
    """The arrays of ``one_node`` that the model takes at run time, by name."""
    wanted = {value.name for value in model.graph.input}
    return {f"x{i}": value for i, value in enumerate(inputs) if value is not None and f"x{i}" in wanted}


def run_onnxruntime(model: onnx.ModelProto, given: Mapping[str, Array]) -> list[Array]:
    """The outputs by onnxruntime on the CPU, without graph optimization."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results: list[Array] = session.run(None, dict(given))
    return results


def run_torch(model: onnx.ModelProto, given: Mapping[str, Array]) -> list[Array]:
    """The outputs of the imported model; fails if it changes its inputs."""
    module = import_model(model)
    names = [node.meta["tensor"] for node in module.graph.nodes if node.op == "placeholder"]
    tensors = [torch.from_numpy(np.array(given[name])) for name in names]
    copies = [tensor.clone() for tensor in tensors]
    results = module(*tensors)
    assert isinstance(results, tuple)
    for tensor, copy in zip(tensors, copies, strict=True):
        assert torch.equal(tensor, copy) or not torch.equal(copy, copy), "an input was changed"
    return [result.numpy() for result in results]


def assert_agree(
    model: onnx.ModelProto, given: Mapping[str, Array], *, rtol: float = 1e-4, atol: float = 1e-5
) -> list[Array]:
    """Both ways give the same shapes, types and (nearly) values; returns them."""
    expected = run_onnxruntime(model, given)
    found = run_torch(model, given)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)
    return found
