"""Every version of an operator whose form or meaning differs from the newest one, against onnxruntime.

The node tests of the onnx package mostly use the newest opset. Where a parameter is an input, each case runs twice:
with the parameter as an initializer (baked at import) and as an input of the model (read at run time).
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from .models import Array, assert_agree, feeds, one_node

RNG = np.random.default_rng(0)


def f32(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def i64(*values: int) -> Array:
    return np.array(values, np.int64)


def scalar(value: Any, dtype: type = np.float32) -> Array:
    return np.array(value, dtype)


def bools(*shape: int) -> Array:
    return RNG.integers(0, 2, shape).astype(np.bool_)


@dataclasses.dataclass(frozen=True)
class Case:
    """``inputs[0]`` is data; those in ``parameters`` are baked in one run and read at run time in another."""

    op_type: str
    opsets: Sequence[int]
    inputs: Sequence[Array | None]
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parameters: Sequence[int] = ()
    outputs: int = 1


def cases() -> Iterator[Case]:
    yield from activation_cases()
    yield from shape_cases()
    yield from image_cases()
    yield from reduction_cases()
    yield from arithmetic_cases()
    yield from recurrent_cases()
    yield from index_cases()


def activation_cases() -> Iterator[Case]:
    x = f32(2, 3, 4) * 3
    yield Case("Clip", (9, 10), [x], {"min": -1.0, "max": 2.0})
    yield Case("Clip", (9, 10), [x], {"max": 0.5})
    for inputs in ([x, scalar(-1), scalar(1)], [x, None, scalar(1)], [x, scalar(0)], [x]):
        given = tuple(i for i in range(1, len(inputs)) if inputs[i] is not None)
        yield Case("Clip", (11, 12, 13), inputs, {}, given)
    for axis in (0, 1, 2):
        yield Case("Softmax", (9, 11, 12, 13), [x], {"axis": axis})
        yield Case("LogSoftmax", (9, 11, 12, 13), [x], {"axis": axis})
    yield Case("Softmax", (9, 11, 13), [x])  # the default axis changed from 1 to -1
    yield Case("LogSoftmax", (11, 12, 13), [x], {"axis": -2})
    yield Case("PRelu", (9, 16), [x, f32(3, 1)])
    yield Case("LeakyRelu", (9, 16), [x], {"alpha": 0.2})
    yield Case("ThresholdedRelu", (10, 22), [x], {"alpha": 0.7})
    yield Case("Celu", (12,), [x], {"alpha": 0.7})
    yield Case("Shrink", (9,), [x], {"bias": 0.3, "lambd": 0.6})
    yield Case("HardSwish", (14, 22), [x])
    yield Case("Gelu", (20,), [x], {"approximate": "tanh"})
    yield Case("Mish", (18,), [x])
    for op_type in ("Relu", "Elu", "Selu", "HardSigmoid", "Sigmoid", "Tanh", "Softplus", "Softsign", "Erf"):
        yield Case(op_type, (9, 13), [x])


def shape_cases() -> Iterator[Case]:
    x, thin = f32(2, 3, 4), f32(1, 3, 1, 4)
    yield Case("Slice", (9,), [x], {"starts": [0, -2], "ends": [1, 1000], "axes": [0, 2]})
    yield Case("Slice", (9,), [x], {"starts": [1, 1], "ends": [2, -1]})
    yield Case("Slice", (10, 11, 13), [x, i64(1, 0), i64(2, 3), i64(0, 2)], {}, (1, 2, 3))
    yield Case("Slice", (10, 11, 13), [x, i64(-1, 0), i64(-1000, 9), i64(2, 1), i64(-2, 2)], {}, (1, 2, 3, 4))
    yield Case("Slice", (13,), [x, i64(0), i64(2), None, i64(1)], {}, (1, 2, 4))
    yield Case("Squeeze", (9, 11, 12), [thin], {"axes": [0, 2]})
    yield Case("Squeeze", (11, 12), [thin], {"axes": [-2]})
    yield Case("Squeeze", (9, 11, 13, 21), [thin])
    yield Case("Squeeze", (13, 21), [thin, i64(-2, 0)], {}, (1,))
    yield Case("Unsqueeze", (9, 11), [x], {"axes": [0, 3]})
    yield Case("Unsqueeze", (11, 12), [x], {"axes": [-1, 1]})
    yield Case("Unsqueeze", (13, 21), [x, i64(4, 0)], {}, (1,))
    yield Case("Split", (9, 11, 12), [x], {"axis": 2, "split": [1, 3]}, (), 2)
    yield Case("Split", (9, 11, 13), [x], {"axis": 2}, (), 2)
    yield Case("Split", (13, 18), [x, i64(1, 2)], {"axis": -2}, (1,), 2)
    yield Case("Split", (18,), [f32(7, 2)], {"num_outputs": 4}, (), 4)
    yield Case("Reshape", (9, 13, 14), [x, i64(0, -1)], {}, (1,))
    yield Case("Reshape", (14, 19), [np.zeros((0, 3), np.float32), i64(3, 0)], {"allowzero": 1}, (1,))
    yield Case("Flatten", (9, 11, 13), [x], {"axis": 2})
    yield Case("Flatten", (11, 13), [x], {"axis": -1})
    yield Case("Transpose", (9, 13), [x])
    yield Case("Concat", (9, 11, 13), [x, x], {"axis": 1})
    yield Case("Expand", (9, 13), [f32(3, 1), i64(2, 1, 4)], {}, (1,))
    yield Case("Tile", (9, 13), [x, i64(1, 2, 3)], {}, (1,))
    yield Case("Shape", (9, 13), [x])
    yield Case("Shape", (15, 19), [x], {"start": -2, "end": -1})
    yield Case("Size", (9, 13), [x])
    yield Case("ConstantOfShape", (9, 20), [i64(2, 3)], {}, (0,))
    yield Case("Dropout", (9, 10), [x], {"ratio": 0.4})
    yield Case("Dropout", (12, 13), [x, scalar(0.4)], {}, (), 2)
    yield Case("Range", (11,), [scalar(2, np.int64), scalar(-5, np.int64), scalar(-3, np.int64)], {}, (0, 1, 2))
    yield Case("Trilu", (14,), [f32(4, 4), scalar(-1, np.int64)], {"upper": 0}, (1,))


def image_cases() -> Iterator[Case]:
    x = f32(2, 4, 6, 5)
    for mode in ("constant", "reflect", "edge"):
        both = {"mode": mode, "pads": [0, 0, 1, 2, 0, 0, 2, 1]}
        yield Case("Pad", (9, 10), [x], both | ({"value": 1.5} if mode == "constant" else {}))
        yield Case("Pad", (11, 13, 18), [x, i64(*both["pads"])], {"mode": mode}, (1,))
    yield Case("Pad", (9,), [x], {"pads": [0, 0, -1, 2, 0, 0, 1, -2]})
    yield Case("Pad", (11, 13), [x, i64(0, 1, -1, 2, 0, 0, 1, -2), scalar(0.5)], {}, (1, 2))
    yield Case("Pad", (18, 19), [x, i64(1, 2, 0, 1), None, i64(-1, 1)], {}, (1, 3))
    yield Case("Pad", (19,), [x, i64(0, 0, 3, 1, 0, 0, 1, 2)], {"mode": "wrap"}, (1,))
    norm = [f32(4), f32(4), f32(4), np.abs(f32(4)) + 0.1]
    yield Case("BatchNormalization", (9, 14, 15), [x, *norm], {"epsilon": 1e-3})
    yield Case("BatchNormalization", (9, 15), [f32(3, 4), *norm])
    yield Case("InstanceNormalization", (9,), [x, f32(4), f32(4)])
    yield Case("LRN", (9, 13), [x], {"size": 3, "alpha": 0.1, "bias": 0.5})
    yield Case("MeanVarianceNormalization", (9, 13), [x])
    yield Case("LpNormalization", (9,), [x], {"axis": 1, "p": 1})
    yield Case("LayerNormalization", (17,), [x, f32(5), f32(5)], {"axis": -1}, (), 3)
    yield Case("DepthToSpace", (9, 11, 13), [x], {"blocksize": 2})
    yield Case("DepthToSpace", (11, 13), [x], {"blocksize": 2, "mode": "CRD"})
    yield Case("SpaceToDepth", (9, 13), [f32(1, 2, 4, 6)], {"blocksize": 2})
    for op_type in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
        yield Case(op_type, (9,), [x], {"p": 3} if op_type == "GlobalLpPool" else {})
    yield Case("AveragePool", (9, 10, 11), [x], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]})
    yield Case("AveragePool", (10, 11), [x], {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1})
    yield Case("MaxPool", (9, 10), [x], {"kernel_shape": [2, 2], "storage_order": 1}, (), 2)
    yield Case("LpPool", (9,), [x], {"kernel_shape": [2, 2]})
    gemm = [f32(4, 3), f32(5, 4), f32(3, 5)]
    yield Case("Gemm", (9, 11, 13), gemm, {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0})
    yield Case("Gemm", (9, 13), [f32(3, 4), f32(4, 5), f32(5)])
    yield Case("Gemm", (11, 13), [f32(3, 4), f32(4, 5)])
    yield Case("MatMul", (9, 13), [f32(2, 3, 4), f32(4, 5)])
    yield Case("Einsum", (12,), [f32(2, 3, 4), f32(2, 4, 5)], {"equation": "bij, bjk -> bik"})
    scales = np.array([1, 1, 2, 1.5], np.float32)
    for mode in ("nearest", "linear"):
        yield Case("Upsample", (9,), [x, scales], {"mode": mode}, (1,))
        yield Case("Resize", (10,), [x, scales], {"mode": mode}, (1,))
        yield Case("Resize", (10,), [x, np.array([1, 1, 0.5, 0.8], np.float32)], {"mode": mode}, (1,))


def reduction_cases() -> Iterator[Case]:
    x = np.abs(f32(2, 3, 4)) + 0.1
    kinds = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
    for kind in kinds:
        last_attribute = 12 if kind == "Sum" else 17
        as_input = (13,) if kind == "Sum" else (18, 20) if kind in ("Max", "Min") else (18,)
        yield Case(f"Reduce{kind}", (9, 11, last_attribute), [x], {"axes": [1, 2], "keepdims": 0})
        yield Case(f"Reduce{kind}", (11, last_attribute), [x], {"axes": [-2]})
        yield Case(f"Reduce{kind}", (9, 13), [x])
        yield Case(f"Reduce{kind}", as_input, [x, i64(-1, 0)], {"keepdims": 0}, (1,))
        yield Case(f"Reduce{kind}", as_input, [x], {"keepdims": 0})
        yield Case(f"Reduce{kind}", as_input, [x, i64()], {"noop_with_empty_axes": 1}, (1,))
    yield Case("ReduceMean", (9, 13, 18), [np.arange(-9, 9, dtype=np.int32).reshape(3, 6)])
    ties = np.array([[1, 3, 3], [2, 2, 0]], np.float32)
    for op_type in ("ArgMax", "ArgMin"):
        yield Case(op_type, (9, 11, 12, 13), [ties], {"axis": 1, "keepdims": 0})
        yield Case(op_type, (12, 13), [ties], {"axis": -1, "select_last_index": 1})
    yield Case("CumSum", (11, 14), [x, scalar(1, np.int64)], {"reverse": 1, "exclusive": 1}, (1,))


def arithmetic_cases() -> Iterator[Case]:
    x, y = f32(2, 3), f32(3)
    whole, divisor = np.array([7, -7, 8], np.int32), np.array([2, 2, -3], np.int32)
    for op_type in ("Add", "Sub", "Mul", "Div"):
        yield Case(op_type, (9, 13, 14), [x, y])
        yield Case(op_type, (9, 13, 14), [whole, divisor])
    yield Case("Pow", (9, 12, 13, 15), [np.abs(x), y])
    yield Case("Pow", (9, 12, 15), [x, scalar(2)], {}, (1,))
    yield Case("Pow", (12, 15), [x, scalar(3, np.int64)], {}, (1,))
    yield Case("Mod", (10, 13), [whole, divisor])
    yield Case("Mod", (10, 13), [x, y], {"fmod": 1})
    for op_type in ("Min", "Max", "Sum", "Mean"):
        yield Case(op_type, (9, 13), [x, y, f32(2, 1)])
    for op_type in ("Equal", "Greater", "Less"):
        yield Case(op_type, (9, 11, 13), [whole, np.abs(whole)])
    for op_type in ("GreaterOrEqual", "LessOrEqual"):
        yield Case(op_type, (12, 16), [x, y])
    for op_type in ("And", "Or", "Xor"):
        yield Case(op_type, (9,), [bools(2, 3), bools(3)])
    yield Case("Not", (9,), [bools(4)])
    yield Case("Where", (9, 16), [bools(2, 1), x, y])
    for op_type in ("Abs", "Neg", "Sign", "Exp", "Floor", "Ceil", "Sin", "Cos", "Reciprocal"):
        yield Case(op_type, (9, 13), [x])
    for op_type in ("Sqrt", "Log"):
        yield Case(op_type, (9, 13), [np.abs(x)])
    yield Case("Round", (11,), [np.array([0.5, 1.5, -2.5, 0.4], np.float32)])
    special = np.array([np.nan, np.inf, -np.inf, 1], np.float32)
    yield Case("IsNaN", (9, 13), [special])
    yield Case("IsInf", (10,), [special], {"detect_negative": 0})
    for to in (6, 7, 9, 10, 11):  # int32, int64, bool, float16, double
        yield Case("Cast", (9, 13, 19), [x * 5], {"to": to})


def recurrent_cases() -> Iterator[Case]:
    lengths = np.array([4, 2], np.int32)
    for kind, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        for directions, name in ((1, "forward"), (1, "reverse"), (2, "bidirectional")):
            weights = f32(directions, gates * 3, 5), f32(directions, gates * 3, 3), f32(directions, gates * 6)
            states = [f32(directions, 2, 3), f32(directions, 2, 3), f32(directions, 9)][: 3 if kind == "LSTM" else 1]
            options, outputs = {"direction": name, "hidden_size": 3}, 3 if kind == "LSTM" else 2
            yield Case(kind, (9, 14), [f32(4, 2, 5), *weights[:2]], options, (), outputs)
            yield Case(kind, (9, 14), [f32(4, 2, 5), *weights, lengths, *states], options, (1, 5), outputs)
            if kind == "GRU":
                reset = {**options, "linear_before_reset": 1}
                yield Case(kind, (9, 14), [f32(4, 2, 5), *weights], reset, (), outputs)


def index_cases() -> Iterator[Case]:
    x = f32(3, 4)
    yield Case("Gather", (9, 11, 13), [x, np.array([[0, 2], [1, 3]], np.int64)], {"axis": 1}, (1,))
    yield Case("Gather", (11, 13), [x, np.array([-1, 0], np.int32)], {}, (1,))
    yield Case("Gather", (9, 13), [x, scalar(2, np.int64)], {"axis": 1}, (1,))
    yield Case("GatherElements", (11, 13), [x, np.array([[-1, 0]], np.int64)], {"axis": 1}, (1,))
    yield Case("GatherND", (11, 12, 13), [x, np.array([[0, 1], [2, -1]], np.int64)], {}, (1,))
    yield Case("GatherND", (12, 13), [x, np.array([[0], [2], [1]], np.int64)], {"batch_dims": 1}, (1,))
    yield Case("TopK", (9,), [x], {"k": 2}, (), 2)
    yield Case("TopK", (10, 11), [x, i64(3)], {"axis": 0}, (1,), 2)
    yield Case("TopK", (11,), [x, i64(2)], {"largest": 0}, (1,), 2)


def runs() -> list[Any]:
    found = []
    for number, case in enumerate(cases()):
        for opset in case.opsets:
            for baked in (True, False) if case.parameters else (True,):
                name = f"{case.op_type}-{opset}-{number}{'' if baked else '-run-time'}"
                found.append(pytest.param(case, opset, baked, id=name))
    return found


@pytest.mark.parametrize(("case", "opset", "baked"), runs())
def test_agrees_with_onnxruntime(case: Case, opset: int, baked: bool) -> None:
    model = one_node(
        case.op_type,
        case.inputs,
        opset,
        case.attributes,
        outputs=case.outputs,
        constants=case.parameters if baked else (),
    )
    assert_agree(model, feeds(model, case.inputs))
