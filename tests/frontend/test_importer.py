"""The graph that import_model builds: names, constants, shape arithmetic, copies."""

import copy
import operator

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx

from pdq_export.frontend import import_model
from pdq_export.frontend.constants import host_constant
from pdq_export.frontend.names import Names

from .models import assert_agree, make_model, run_torch


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def tensors(module: fx.GraphModule) -> dict[str, fx.Node]:
    return {node.meta["tensor"]: node for node in module.graph.nodes if "tensor" in node.meta}


NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
network (float[N, 2, H, W] image) => (float[N, D] "out.features", float[N, 4, H, W] act)
<float[4, 2, 1, 1] weight = {1, 2, 3, 4, 5, 6, 7, 8}, float[4] "layer.1/bias" = {0, 1, 2, 3},
 int64[1] first = {0}, int64[1] rest = {-1}, float[1] unused = {7}>
{
    conv = Conv (image, weight, "layer.1/bias")
    act = Relu (conv)
    shape = Shape (act)
    zero = Constant <value_int = 0> ()
    batch = Gather (shape, zero)
    axes = Constant <value_ints = [0]> ()
    batch1 = Unsqueeze (batch, axes)
    target = Concat <axis = 0> (batch1, rest)
    nowhere = Exp (conv)
    "out.features" = Reshape (act, target)
}
"""


def test_structure() -> None:
    model = parse(NETWORK)
    for number, node in enumerate(model.graph.node):
        node.name = f"/net/{number}"
    before = model.SerializeToString()
    module = import_model(model)
    assert model.SerializeToString() == before
    found = tensors(module)
    assert [node.meta["tensor"] for node in module.graph.nodes if node.op == "placeholder"] == ["image"]
    assert found["weight"].op == found["layer.1/bias"].op == "get_attr"
    assert [argument.meta["tensor"] for argument in found["conv"].args] == ["image", "weight", "layer.1/bias"]
    assert found["conv"].op == found["act"].op == "call_function"
    assert found["conv"].meta["onnx_node"] == "/net/0"
    assert found["image"].meta["onnx_node"] == ""
    assert [found[name].meta["op_type"] for name in ("conv", "act")] == ["Conv", "Relu"]
    assert not any("op_type" in found[name].meta for name in ("image", "weight"))
    assert [output.meta["tensor"] for output in next(iter(reversed(module.graph.nodes))).args[0]] == [
        "out.features",
        "act",
    ]
    assert "nowhere" not in found  # contributes to no output
    assert sorted(module.meta["tensors"].values()) == ["layer.1/bias", "weight"]
    assert {name for name, _ in module.named_buffers()} == set(module.meta["tensors"])


def test_runs_for_any_batch_and_size() -> None:
    module = import_model(parse(NETWORK))
    for shape in ((1, 2, 3, 3), (4, 2, 5, 2)):
        features, act = module(torch.randn(shape))
        assert features.shape == (shape[0], 4 * shape[2] * shape[3])
        assert act.shape == (shape[0], 4, *shape[2:])
    assert_agree(parse(NETWORK), {"image": np.ones((2, 2, 3, 3), np.float32)})


def test_shape_arithmetic_stays_on_the_cpu() -> None:
    """No integer of a shape is a buffer, which would move to the accelerator with the module."""
    module = import_model(parse(NETWORK))
    assert all(buffer.is_floating_point() for buffer in module.buffers())
    assert tensors(module)["rest"].target is host_constant
    meta = module.to("meta")  # a device that cannot be read: shapes must not need it
    features, _ = meta(torch.empty(3, 2, 4, 4, device="meta"))
    assert features.shape == (3, 64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_runs_on_cuda() -> None:
    x = torch.randn(3, 2, 5, 4)
    module = import_model(parse(NETWORK))
    expected = module(x)
    for ours, theirs in zip(module.to("cuda")(x.to("cuda")), expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs)


def test_multiple_outputs_are_items_of_a_tuple() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 13]>
    g (float[4] x) => (float[2] b, float[2] a) { a, b = Split (x) }
    """
    model = parse(text)
    model.graph.node[0].name = "cut"
    module = import_model(model)
    found = tensors(module)
    assert found["a"].target is found["b"].target is operator.getitem
    source = found["a"].args[0]
    assert source is found["b"].args[0]
    assert "tensor" not in source.meta
    assert source.meta["onnx_node"] == found["a"].meta["onnx_node"] == "cut"
    assert source.meta["op_type"] == found["a"].meta["op_type"] == "Split"
    b, a = module(torch.arange(4.0))
    assert (a.tolist(), b.tolist()) == ([0, 1], [2, 3])


def test_inputs_constants_and_repeats_as_outputs() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 13]>
    g (float[2] x) => (float[2] x, float[2] w, float[2] y, float[2] y) <float[2] w = {1, 2}> { y = Add (x, w) }
    """
    x, w, y, again = import_model(parse(text))(torch.ones(2))
    assert (x.tolist(), w.tolist(), y.tolist(), again.tolist()) == ([1, 1], [1, 2], [2, 3], [2, 3])


def test_names_of_any_kind() -> None:
    """Names that are no identifiers, differ only in what is replaced, or collide with the module's own."""
    names = [
        "/a/b",
        "a.b",
        "a b",
        "größe",
        "图",
        "0",
        "class",
        "self",
        "training",
        "forward",
        "graph",
        "x",
        "_",
        "meta",
    ]
    for special in (names, names[::-1]):
        nodes = []
        for number, name in enumerate(special):
            nodes.append(helper.make_node("Add", [f"in{name}", name], [f"out{name}"], name=f"/{name}:{number}"))
        graph = helper.make_graph(
            nodes,
            "names",
            [helper.make_tensor_value_info(f"in{name}", TensorProto.FLOAT, [1]) for name in special],
            [helper.make_tensor_value_info(f"out{name}", TensorProto.FLOAT, [1]) for name in special],
            [numpy_helper.from_array(np.array([i], np.float32), name) for i, name in enumerate(special)],
        )
        module = import_model(make_model(graph, 13))
        results = module(*(torch.full((1,), 100.0 * i) for i in range(len(special))))
        assert [result.item() for result in results] == [101.0 * i for i in range(len(special))]
        assert set(module.meta["tensors"].values()) == set(special)
        for attribute, name in module.meta["tensors"].items():
            assert attribute.isidentifier()
            assert getattr(module, attribute).item() == special.index(name)


def test_inputs_of_any_name() -> None:
    names = ["in/put", "in.put", "class", "1", "输入", "torch", "self", "None"]
    graph = helper.make_graph(
        [helper.make_node("Sum", names, ["y"])],
        "names",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in names],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    module = import_model(make_model(graph, 13))
    assert [node.meta["tensor"] for node in module.graph.nodes if node.op == "placeholder"] == names
    assert module(*(torch.full((1,), 2.0**i) for i in range(len(names))))[0].item() == 255


def test_names_are_valid_and_unique() -> None:
    names = Names(reserved=["x"])
    found = [names.new(name) for name in ("x", "x", "/x/", "", "", "für", "1", "1", "if", "x_1")]
    assert len(set(found)) == len(found)
    assert "x" not in found
    assert all(name.isidentifier() and name.isascii() for name in found)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_element_types_are_kept(dtype: int) -> None:
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "types",
        [helper.make_tensor_value_info("x", dtype, [3])],
        [helper.make_tensor_value_info("y", dtype, [3])],
        [helper.make_tensor("w", dtype, [3], [0.5, -2.0, 3.0])],
    )
    module = import_model(make_model(graph, 13))
    (weight,) = module.buffers()
    assert weight.tolist() == [0.5, -2.0, 3.0]
    (y,) = module(torch.ones(3, dtype=weight.dtype))
    assert y.dtype == weight.dtype
    assert weight.dtype == {10: torch.float16, 16: torch.bfloat16, 11: torch.float64}[dtype]


def test_constant_nodes_and_initializers_among_the_inputs() -> None:
    """As old exporters write it: weights by Constant nodes, initializers listed as inputs."""
    text = """
    <ir_version: 3, opset_import: ["" : 9]>
    g (float[1, 2] x, float[2, 2] w) => (float[1, 2] y) <float[2, 2] w = {1, 0, 0, 1}>
    {
        bias = Constant <value = float[2] {10, 20}> ()
        mm = MatMul (x, w)
        y = Add (mm, bias)
    }
    """
    module = import_model(parse(text))
    found = tensors(module)
    assert [node.meta["tensor"] for node in module.graph.nodes if node.op == "placeholder"] == ["x"]
    assert found["w"].op == found["bias"].op == "get_attr"
    assert module(torch.tensor([[1.0, 2.0]]))[0].tolist() == [[11, 22]]


def test_parameters_computed_from_constants_are_baked() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 13]>
    g (float[1, 2] x) => (float[1, 4] y) <int64[1] two = {2}, int64[2] shape = {4, 0}>
    {
        twice = Mul (two, two)
        count = ConstantOfShape <value = int64[1] {1}> (two)
        pads = Concat <axis = 0> (count, count)
        wide = Cast <to = 1> (twice)
        narrow = Cast <to = 7> (wide)
        half = Div (narrow, two)
        zero = Sub (half, two)
        mask = Concat <axis = 0> (zero, half)
        repeats = Div (mask, two)
        one = Constant <value_ints = [1]> ()
        last = Concat <axis = 0> (one, half)
        y = Tile (x, last)
    }
    """
    module = import_model(parse(text))
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    assert len(calls) == 1
    assert list(calls[0].args[1]) == [1, 2]
    assert not list(module.buffers())


def test_weights_are_not_folded_away() -> None:
    """What is computed from a floating point constant stays computed, so that replacing the constant has its effect."""
    text = """
    <ir_version: 8, opset_import: ["" : 13]>
    g (float[1, 2] x) => (float[1, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
    { same = Identity (w)
      wt = Transpose (same)
      y = MatMul (x, wt) }
    """
    module = import_model(parse(text))
    (name,) = module.meta["tensors"]
    getattr(module, name).zero_()
    assert module(torch.ones(1, 2))[0].tolist() == [[0, 0]]


def test_a_constant_bound_of_a_clip_is_a_number_even_if_infinite() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 13]>
    g (float[3] x) => (float[3] y) <float low = {0}, float[1] six = {6}>
    { high = Reciprocal (low)
      clipped = Clip (x, low, high)
      y = Clip (clipped, , six) }
    """
    module = import_model(parse(text))
    assert module(torch.tensor([-1.0, 5.0, 7.0]))[0].tolist() == [0, 5, 6]
    assert tensors(module)["y"].args[1:] == (None, 6.0)


def test_floating_point_shape_arithmetic() -> None:
    """As exporters of old opsets write a resize to twice the size."""
    text = """
    <ir_version: 8, opset_import: ["" : 11]>
    g (float[1, 1, H, W] x) => (float[1, 1, H2, W2] y)
    <float two = {2}, int64[1] zero = {0}, int64[1] two_i = {2}, int64[1] four = {4}, float[0] none = {}>
    {
        shape = Shape (x)
        head = Slice (shape, zero, two_i)
        tail = Slice (shape, two_i, four)
        float = Cast <to = 1> (tail)
        twice = Mul (float, two)
        floor = Floor (twice)
        sizes = Cast <to = 7> (floor)
        all = Concat <axis = 0> (head, sizes)
        y = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">
            (x, none, none, all)
    }
    """
    model = parse(text)
    module = import_model(model)
    assert not list(module.buffers())
    x = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
    assert_agree(model, {"x": x})
    assert module(torch.zeros(1, 1, 4, 5))[0].shape == (1, 1, 8, 10)


def test_functions_are_inlined() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
    g (float[2] x) => (float[2] y) { y = mine.twice (x) }
    <opset_import: ["" : 17], domain: "mine">
    twice (a) => (b) { b = Add (a, a) }
    """
    assert import_model(parse(text))(torch.tensor([1.0, 3.0]))[0].tolist() == [2, 6]


def test_optional_inputs_left_out_in_the_middle() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 13]>
    g (float[4] x, int64[1] starts, int64[1] ends, int64[1] steps) => (float[2] y)
    { y = Slice (x, starts, ends, , steps) }
    """
    given = {
        "x": np.arange(4, dtype=np.float32),
        "starts": np.array([-1]),
        "ends": np.array([-5]),
        "steps": np.array([-2]),
    }
    assert_agree(parse(text), given)


def test_copies() -> None:
    module = import_model(parse(NETWORK))
    x = torch.randn(2, 2, 3, 3)
    for other in (copy.deepcopy(module), fx.GraphModule(module, module.graph)):
        for ours, theirs in zip(other(x), module(x), strict=True):
            assert torch.equal(ours, theirs)
    assert copy.deepcopy(module).meta["tensors"] == module.meta["tensors"]


def test_a_pass_can_put_a_function_on_any_tensor() -> None:
    """Every ONNX tensor is one fx node, so that whatever reads it can be made to read something else."""
    module = import_model(parse(NETWORK))
    conv = tensors(module)["conv"]
    with module.graph.inserting_after(conv):
        doubled = module.graph.call_function(torch.mul, (conv, 2.0))
    conv.replace_all_uses_with(doubled, delete_user_cb=lambda user: user is not doubled)
    x = torch.rand(1, 2, 2, 2)
    expected = [2 * value for value in import_model(parse(NETWORK))(x)]
    module.recompile()
    for ours, theirs in zip(module(x), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_integers_beside_data_are_buffers() -> None:
    """Indices into data have to be where the data are."""
    text = """
    <ir_version: 8, opset_import: ["" : 13]>
    g (float[3] x) => (float[2] y) <int64[2] where = {2, 0}> { y = Gather (x, where) }
    """
    model = parse(text)
    assert list(import_model(model).meta["tensors"].values()) == ["where"]
    assert run_torch(model, {"x": np.array([1, 2, 3], np.float32)})[0].tolist() == [3, 1]


def test_convolutions_read_contiguous_tensors() -> None:
    """What a strided 1x1 convolution of torch's does to memory in its backward pass otherwise ends the process."""
    model = parse(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        network (float[N, 4, 4, 3] image) => (float[N, 2, 2, 2] y)
        <float[2, 3, 1, 1] weight = {1, 2, 3, 4, 5, 6}>
        {
            channels_first = Transpose <perm = [0, 3, 1, 2]> (image)
            y = Conv <strides = [2, 2]> (channels_first, weight)
        }
        """
    )
    image = np.random.default_rng(0).standard_normal((5, 4, 4, 3)).astype(np.float32)
    assert_agree(model, {"image": image})
    (y,) = import_model(model)(torch.from_numpy(image).requires_grad_())
    assert y.is_contiguous()  # laid out as what the convolution has read
