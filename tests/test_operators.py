"""The table of operators, held against onnxruntime, and that no other module keeps one of its own."""

import ast
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from pdq_export import operators
from pdq_export.operators import OPERATORS, Operator

from .installed import onnxruntime_is

Array = NDArray[Any]
PACKAGE = Path(operators.__file__).parent
SHAPE = (3, 4, 6, 6)


def i64(*values: int) -> Array:
    return np.array(values, np.int64)


def f32(*shape: int) -> Array:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def having(name: str, **others: bool) -> list[str]:
    """The operators that have a property, and ``others`` as given."""
    rows = {op: dataclasses.asdict(row) for op, row in OPERATORS.items()}
    return [op for op, row in rows.items() if row[name] and all(row[key] == value for key, value in others.items())]


# By operator: constant inputs behind the data, and attributes, for data of SHAPE. Others have neither.
SAMPLES: dict[str, tuple[Sequence[Array], dict[str, Any]]] = {
    "Conv": ([f32(2, 4, 3, 3), f32(2)], {}),
    "ConvTranspose": ([f32(4, 2, 3, 3), f32(2)], {}),
    "Gemm": ([f32(6, 2), f32(2)], {}),
    "MatMul": ([f32(6, 5)], {}),
    "Concat": ([], {"axis": 1}),
    "Expand": ([i64(2, 3, 4, 6, 6)], {}),
    "Gather": ([i64(2, 0)], {"axis": 1}),
    "MaxPool": ([], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "Pad": ([i64(0, 0, 1, 1, 0, 0, 1, 1)], {}),
    "ReduceMax": ([i64(2, 3)], {}),
    "ReduceMin": ([i64(1)], {}),
    "Resize": ([np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)], {"mode": "nearest"}),
    "Slice": ([i64(1), i64(3), i64(1)], {}),
    "Split": ([i64(1, 3)], {"axis": 1}),
    "Tile": ([i64(1, 2, 1, 1)], {}),
    "DepthToSpace": ([], {"blocksize": 2}),
    "Reshape": ([i64(0, -1)], {}),
    "SpaceToDepth": ([], {"blocksize": 2}),
    "Transpose": ([], {"perm": [0, 2, 3, 1]}),
    "Unsqueeze": ([i64(1)], {}),
    "Clip": ([np.float32(-0.5), np.float32(0.5)], {}),
    "PRelu": ([f32(4, 1, 1)], {}),
    "ThresholdedRelu": ([], {"alpha": -0.5}),
    "ArgMax": ([], {"axis": 1}),
    "ArgMin": ([], {"axis": 1}),
    "Cast": ([], {"to": onnx.TensorProto.DOUBLE}),
    "LogSoftmax": ([], {"axis": 1}),
    "Softmax": ([], {"axis": 1}),
    "AveragePool": ([], {"kernel_shape": [6, 6]}),
    "ReduceMean": ([i64(2, 3)], {}),
    "BatchNormalization": ([f32(4), f32(4), f32(4), np.ones(4, np.float32)], {}),
    "GroupNormalization": ([f32(4), f32(4)], {"num_groups": 2}),
    "InstanceNormalization": ([f32(4), f32(4)], {}),
    "LRN": ([], {"size": 3}),
    "LpPool": ([], {"kernel_shape": [2, 2]}),
}
OPSETS = {"Swish": 24, "GlobalLpPool": 21}  # where onnxruntime has them; others in 22


def data(op_type: str, *, dtype: Any = np.float32, seed: int = 0, shape: Sequence[int] = SHAPE) -> Array:
    """Data that an operator takes: for UINT8, and for a move in float, all elements differ and are above 0."""
    if op_type in ("Squeeze", "Gemm"):
        shape = (*shape[:1], 6) if op_type == "Gemm" else (*shape[:2], 1, shape[2])
    if dtype == np.uint8:
        count = int(np.prod(shape))
        return (np.random.default_rng(seed).permutation(count) % 255 + 1).astype(np.uint8).reshape(shape)
    x = np.random.default_rng(seed).normal(size=shape).astype(dtype)
    return np.abs(x) if op_type == "Sqrt" else x


def model_of(op_type: str, inputs: Sequence[Array]) -> onnx.ModelProto:
    constants, attributes = SAMPLES.get(op_type, ([], {}))
    names = [f"x{position}" for position in range(len(inputs))]
    fixed = [f"c{position}" if value.size else "" for position, value in enumerate(map(np.asarray, constants))]
    outputs = [f"y{position}" for position in range(len(constants[0]) if op_type == "Split" else 1)]
    node = onnx.helper.make_node(op_type, [*names, *fixed], outputs, **attributes)
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in zip(names, inputs, strict=True)
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(c), name) for name, c in zip(fixed, constants, strict=True) if name],
    )
    opset = OPSETS.get(op_type, 22)
    return onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", opset)])


def run(op_type: str, *inputs: Array) -> list[Array]:
    model = model_of(op_type, inputs)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, {f"x{position}": x for position, x in enumerate(inputs)})
    return found


def others(op_type: str, dtype: Any = np.float32) -> list[Array]:
    """More data for an operator that takes several tensors."""
    if op_type == "GridSample":
        return [np.random.default_rng(2).uniform(-1, 1, (SHAPE[0], 5, 5, 2)).astype(np.float32)]
    if op_type == "Where":
        return [data(op_type, seed=3), data(op_type, seed=4)]
    if op_type == "Concat" or (operators.get(op_type).broadcasts and op_type != "PRelu"):
        return [data(op_type, dtype=dtype, seed=3)]
    return []


def arguments(op_type: str) -> list[Array]:
    """All the data that an operator takes, of types that it takes."""
    first, *more = data(op_type), *others(op_type)
    match op_type:
        case "And" | "Or" | "Xor":
            return [x > 0 for x in (first, *more)]
        case "Where":
            return [first > 0, *more]
        case "Pow":
            return [np.abs(first), *more]
        case "Mod" | "Equal":
            return [(np.abs(x) * 3 + 1).astype(np.int32) for x in (first, *more)]
        case _:
            return [first, *more]


@pytest.mark.parametrize("op_type", having("moves"))
def test_what_moves_hands_on_elements_of_its_input_and_does_so_with_integers(op_type: str) -> None:
    if op_type == "SpaceToDepth" and not onnxruntime_is("1.31"):
        pytest.skip("older ones, such as 1.24, have no SpaceToDepth of UINT8; where it matters the dry run says so")
    x = data(op_type, dtype=np.uint8)
    more = others(op_type, np.uint8)
    outputs = run(op_type, x, *more)  # raises where onnxruntime has no kernel for UINT8
    known = {0, *x.ravel().tolist()}.union(*(value.ravel().tolist() for value in more))
    for output in outputs:
        assert output.dtype == np.uint8
        assert set(output.ravel().tolist()) <= known


@pytest.mark.parametrize("op_type", having("moves"))
def test_what_rearranges_has_every_element_in_one_place(op_type: str) -> None:
    x = data(op_type)
    outputs = run(op_type, x, *others(op_type))
    same = len(outputs) == 1 and outputs[0].size == x.size and (np.sort(outputs[0], None) == np.sort(x, None)).all()
    assert same == operators.get(op_type).rearranges


@pytest.mark.parametrize("op_type", [op for op in having("activation") if op != "PRelu"])  # its slope is a tensor
def test_homogeneous_are_the_activations_that_scaling_passes_through(op_type: str) -> None:
    x = data(op_type) * 3
    (y,), (z,) = run(op_type, x), run(op_type, x * 4)
    assert (z == y * 4).all() == operators.get(op_type).homogeneous


@pytest.mark.parametrize("op_type", having("activation"))
def test_activations_go_element_by_element(op_type: str) -> None:
    x = data(op_type)
    (y,), (z,) = run(op_type, x), run(op_type, x[..., ::-1].copy())
    np.testing.assert_allclose(z, y[..., ::-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op_type", [*having("activation"), "Abs", "Exp", "Sqrt", "Softmax", "LogSoftmax"])
def test_nonnegative_are_those_without_negative_results(op_type: str) -> None:
    results = run(op_type, data(op_type) * 5)
    assert all((result >= 0).all() for result in results) == operators.get(op_type).nonnegative


@pytest.mark.parametrize("op_type", [*having("activation"), "Abs", "Exp", "Sqrt", "Softmax", "LogSoftmax"])
def test_bounded_are_those_without_results_beyond_one(op_type: str) -> None:
    results = run(op_type, data(op_type) * 50)
    within = op_type != "Clip" and all(  # whose bounds are inputs
        (np.abs(result) <= 1).all() for result in results
    )
    assert within == operators.get(op_type).bounded


@pytest.mark.parametrize("op_type", having("averages"))
def test_averages_are_linear_and_keep_constants(op_type: str) -> None:
    a, b = data(op_type), data(op_type, seed=1)
    (of_a,), (of_b,), (of_sum,), (of_ones,) = (run(op_type, x) for x in (a, b, a + b, np.ones_like(a)))
    np.testing.assert_allclose(of_sum, of_a + of_b, atol=1e-5)
    np.testing.assert_allclose(of_ones, 1, rtol=1e-6)


@pytest.mark.parametrize("op_type", having("pools"))
def test_pools_make_one_number_of_a_channel(op_type: str) -> None:
    (y,) = run(op_type, data(op_type))
    assert y.shape == (*SHAPE[:2], 1, 1)


@pytest.mark.parametrize("op_type", having("merges"))
def test_merges_are_linear_in_their_first_operand(op_type: str) -> None:
    x, step, other = data(op_type), data(op_type, seed=1), data(op_type, seed=2)
    (a,), (b,), (c,) = (run(op_type, x + count * step, other) for count in range(3))
    np.testing.assert_allclose(c - b, b - a, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("op_type", having("head"))
def test_heads_see_only_the_order_of_scores(op_type: str) -> None:
    x = data(op_type)
    (y,), (z,) = run(op_type, x), run(op_type, x * 2 + x**3 / 9)
    assert (np.argsort(y, axis=1) == np.argsort(z, axis=1)).all()


@pytest.mark.parametrize("op_type", OPERATORS)
def test_only_what_reads_shapes_does_not_see_values(op_type: str) -> None:
    if operators.get(op_type).quantized or operators.get(op_type).recurrent or _is_kernel_alone(op_type):
        pytest.skip("needs more than data")
    inputs = arguments(op_type)
    first, *more = inputs
    results = zip(run(op_type, *inputs), run(op_type, first[::-1].copy(), *more), strict=True)
    same = all(np.array_equal(a, b) for a, b in results)
    assert same == operators.get(op_type).reads_shape


@pytest.mark.parametrize("op_type", [*having("per_image"), *having("broadcasts", activation=False)])
def test_images_along_axis_0_do_not_see_each_other(op_type: str) -> None:
    inputs = arguments(op_type)
    together = run(op_type, *inputs)
    for image in range(len(inputs[0])):
        alone = run(op_type, *(x[image : image + 1] for x in inputs))
        for one, all_of_them in zip(alone, together, strict=True):
            np.testing.assert_allclose(one, all_of_them[image : image + 1], rtol=1e-4, atol=1e-5)


def test_broadcasting_is_numpys() -> None:
    for op_type in having("broadcasts", activation=False):
        inputs = arguments(op_type)
        inputs[-1] = inputs[-1][:1, :, :1]
        wide = [*inputs[:-1], np.broadcast_to(inputs[-1], SHAPE).copy()]
        np.testing.assert_array_equal(run(op_type, *inputs)[0], run(op_type, *wide)[0], err_msg=op_type)


def test_a_bias_is_the_third_input_of_those_that_take_one() -> None:
    for op_type in having("weighted"):
        schema = onnx.defs.get_schema(op_type)
        assert OPERATORS[op_type].takes_bias == (len(schema.inputs) > 2), op_type
        constants = SAMPLES[op_type][0]
        if OPERATORS[op_type].takes_bias:
            with_bias, without = run(op_type, data(op_type))[0], onnx.ModelProto()
            without.CopyFrom(model_of(op_type, [data(op_type)]))
            del without.graph.node[0].input[2:]
            session = onnxruntime.InferenceSession(without.SerializeToString())
            (plain,) = session.run(None, {"x0": data(op_type)})
            axis = 1 if OPERATORS[op_type].per_image else -1
            shape = [-1 if place == axis % plain.ndim else 1 for place in range(plain.ndim)]
            np.testing.assert_allclose(with_bias - plain, constants[1].reshape(shape) + 0 * plain, atol=1e-5)


def _is_kernel_alone(op_type: str) -> bool:
    return not onnx.defs.has(op_type)


# Integer kernels ------------------------------------------------------------------------------------------------------


def between_pairs(op_type: str, *, quantized: bool) -> onnx.ModelProto:
    """The operator between DequantizeLinear of 8 bits and, if ``quantized``, QuantizeLinear."""
    inputs = arguments(op_type)
    model = model_of(op_type, inputs)
    node = model.graph.node[0]
    made: list[onnx.NodeProto] = []
    model.graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(np.float32(0.03), "scale"),
            onnx.numpy_helper.from_array(np.uint8(128), "zero_point"),
            onnx.numpy_helper.from_array(np.int8(0), "zero"),
        ]
    )

    def pair(name: str) -> str:
        made.append(onnx.helper.make_node("QuantizeLinear", [name, "scale", "zero_point"], [f"{name}_q"]))
        made.append(onnx.helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero_point"], [f"{name}_dq"]))
        return f"{name}_dq"

    for position in range(len(inputs)):
        node.input[position] = pair(node.input[position])
    if operators.get(op_type).weighted:
        for initializer in list(model.graph.initializer):
            if initializer.name == "c0":
                value = onnx.numpy_helper.to_array(initializer)
                initializer.CopyFrom(onnx.numpy_helper.from_array((value * 30).clip(-60, 60).astype(np.int8), "c0"))
                made.append(onnx.helper.make_node("DequantizeLinear", ["c0", "scale", "zero"], ["weight"]))
                node.input[1] = "weight"
        del node.input[2:]
    made.append(node)
    output = pair(node.output[0]) if quantized else node.output[0]
    model.graph.ClearField("node")
    model.graph.node.extend(made)
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    return model


@functools.cache
def optimized(op_type: str, *, quantized: bool, folder: str) -> tuple[str, ...]:
    """The op types that onnxruntime's optimization leaves."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = f"{folder}/{op_type}.{quantized}.onnx"
    options.log_severity_level = 4
    onnxruntime.InferenceSession(between_pairs(op_type, quantized=quantized).SerializeToString(), options)
    return tuple(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


# Relu and Clip go into the integers of what is before them; booleans and indices are no floats.
COMPUTES_FLOATS = [
    op
    for op, row in OPERATORS.items()
    if not (row.moves and op != "Concat") and not row.quantized and not row.recurrent and not row.reads_shape
    if not _is_kernel_alone(op) and op not in ("Relu", "Clip", "Cast", "ArgMax", "ArgMin")
    if op not in ("And", "Or", "Xor", "Where", "Mod", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
]


@pytest.mark.parametrize("op_type", COMPUTES_FLOATS)
def test_integer_kernels_are_those_that_onnxruntime_puts_in(op_type: str, tmp_path: Path) -> None:
    left = optimized(op_type, quantized=True, folder=str(tmp_path))
    in_integers = any(name.startswith(("QLinear", "QGemm")) for name in left)
    assert in_integers == operators.get(op_type).integer_kernel, left


@pytest.mark.parametrize("op_type", having("weighted"))
def test_float_outputs_are_those_that_need_no_pair_behind(op_type: str, tmp_path: Path) -> None:
    left = optimized(op_type, quantized=False, folder=str(tmp_path))
    assert any(operators.get(name).kernel == "integer" for name in left) == operators.get(op_type).float_output, left
    assert any(operators.get(name).kernel == "float" for name in left) != operators.get(op_type).float_output, left


def test_every_operator_is_one_that_onnx_or_onnxruntime_has() -> None:
    own = {op for op in OPERATORS if _is_kernel_alone(op)}
    assert all(OPERATORS[op].quantized or OPERATORS[op].kernel for op in own)
    assert not {op for op, row in OPERATORS.items() if row == Operator()}


# Nobody else ----------------------------------------------------------------------------------------------------------

# Collections that say what one module does with operators, not what they are, and the reason.
OWN = {
    "export/native.py": "the two halves of a Clip",
    "export/tensorrt_rules.py": "the two halves of a pair",
    "frontend": "converters are registered by op type and version",
    "graph/batch_axis.py": "rules for the axis of images",
    "graph/passes": "patterns that a pass rewrites",
    "plan/parts.py": "what leaves axes in their places, or makes one of several",
    "validate/runtime.py": "the two halves of a pair",
    "validate/weights.py": "what stands between a weight's pair and its layer",
}


def collections_of_operators(tree: ast.AST) -> Iterator[tuple[int, frozenset[str]]]:
    """Line and content of every set, list or tuple of two op types or more, also one that is split from text."""
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()} | OPERATORS.keys()
    for node in ast.walk(tree):
        names: list[Any] = []
        if isinstance(node, ast.Set | ast.List | ast.Tuple):
            names = [element.value for element in node.elts if isinstance(element, ast.Constant)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = node.value.split()
        if len(names) > 1 and all(isinstance(name, str) and name in known for name in names):
            yield node.lineno, frozenset(names)


def test_nobody_else_says_what_operators_are() -> None:
    properties = [field.name for field in dataclasses.fields(Operator) if field.name != "kernel"]
    kinds = {name: frozenset(having(name)) for name in properties}
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        where = file.relative_to(PACKAGE).as_posix()
        if where == "operators.py":
            continue
        for line, found in collections_of_operators(ast.parse(file.read_text(encoding="utf-8"))):
            same = [name for name, kind in kinds.items() if kind == found]
            if same:
                wrong.append(f"{where}:{line} repeats operators.{same[0]}: {sorted(found)}")
            elif not any(where == own or where.startswith(f"{own}/") for own in OWN):
                wrong.append(f"{where}:{line} {sorted(found)}: a property for the table, or an exception with a reason")
    assert not wrong, "\n".join(wrong)


def test_collections_are_found_however_they_are_written() -> None:
    lines = [
        'A = frozenset("Relu Clip".split())',
        'B = {"Conv", "Gemm"}',
        'C = ("Add", *B, "Mul")',
        'x in ["Relu", "Elu"]',
    ]
    text = "\n".join([*lines, '"a b"', '["Relu", x]'])
    assert sorted(line for line, _ in collections_of_operators(ast.parse(text))) == [1, 2, 3, 4]
