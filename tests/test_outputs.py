"""The network's outputs are not quantized, wherever they are taken; simulation and file agree on them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from pdq_export.commands.convert import convert
from pdq_export.commands.quantize import Result, quantize
from pdq_export.graph.lookup import GraphIndex
from pdq_export.plan.outputs import separate_outputs
from pdq_export.validate import Session

from .graph.models import random
from .onnx_text import fill, name_nodes, parse

P = "<pads = [1, 1, 1, 1]>"
SHAPES = {
    "w0": (8, 3, 3, 3),
    "w1": (8, 8, 3, 3),
    "w2": (8, 8, 3, 3),
    "w3": (8, 8, 3, 3),
    "v": (5, 8),
    "h": (8, 4, 3, 3),
}
TRUNK = f"c0 = Conv {P} (image, w0) r0 = Relu(c0) c1 = Conv {P} (r0, w1) s = Relu(c1)"
REST = f"c2 = Conv {P} (z, w2) r2 = Relu(c2) p = GlobalAveragePool(r2) f = Flatten(p) y = Gemm <transB = 1> (f, v)"
CONSTANTS = {
    "flat": np.array([0, -1]),
    "half": np.array([4, 4]),
    "boxes": np.array([0, 8, -1]),
    "zero": np.array([0]),
    "five": np.array([5]),
    "one": np.array([1]),
    "sizes": np.array([1, 1, 2, 2], np.float32),
}


def model_of(body: str, outputs: Mapping[str, int]) -> onnx.ModelProto:
    """``outputs``: their ranks by name."""
    declared = ", ".join(
        f"float[{','.join(['N', 'A', 'B', 'C', 'D'][:rank])}] {name}" for name, rank in outputs.items()
    )
    model = name_nodes(fill(parse(body, "float[N,3,8,8] image", declared), SHAPES))
    read = {name for node in model.graph.node for name in node.input}
    for name, value in CONSTANTS.items():
        if name in read:
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return model


def quantized(model: onnx.ModelProto, bits: str = "8/2", **changes: Any) -> Result:
    arguments = {"method": "nearest", "options": {"samples": 16}, "device": "cpu", **changes}
    return quantize(model, bits=bits, calib=random(16, 3, 8, 8), **arguments)


def distinct(model: onnx.ModelProto) -> dict[str, int]:
    session = Session(model.SerializeToString())
    values = zip(session.outputs, session.run(random(8, 3, 8, 8, seed=1)), strict=True)
    return {name: len(np.unique(value)) for name, value in values}


def check(model: onnx.ModelProto, bits: str = "8/2", share: float = 0.5) -> Result:
    """Quantized: agrees with the simulation, and its outputs have about as many distinct values as FP32's."""
    result = quantized(model, bits)
    for output in result.report.outputs:
        assert output.quantized_simulated is not None
        assert output.quantized_simulated.relative_error < 1e-5, output
    before, after = distinct(model), distinct(result.model)
    assert {name: after[name] > share * before[name] for name in before} == dict.fromkeys(before, True), (before, after)
    assert convert(convert(result.model, "native"), "ort") == result.model
    return result


MOVED = {  # body between s and z, and the outputs besides y
    "transposed": ("t = Transpose <perm = [0, 2, 3, 1]> (s) z = Identity(s)", {"t": 4}),
    "flattened": ("t = Reshape(s, flat) z = Identity(s)", {"t": 2}),
    "pooled": ("t = MaxPool <kernel_shape = [2, 2]> (s) z = Identity(s)", {"t": 4}),
    "read by layers too": ("z = Transpose <perm = [0, 1, 3, 2]> (s)", {"z": 4}),
    "in several steps": ("z = MaxPool <kernel_shape = [2, 2]> (s) t = Reshape(z, flat)", {"z": 4, "t": 2}),
    "twice": ("t = Identity(s) u = Identity(s) z = Identity(s)", {"t": 4, "u": 4}),
    "a copy of a copy": ("t = Identity(s) u = Identity(t) z = Relu(u)", {"t": 4, "u": 4}),
    "the input": ("t = Identity(image) z = Identity(s)", {"t": 4}),
    "split": ("t, u = Split <axis = 1> (s, half) z = Concat <axis = 1> (u, u)", {"t": 4, "u": 4}),
    "sliced": ("t = Slice(s, zero, five, one) z = Identity(s)", {"t": 4}),
    "resized": ("z = Resize <mode = \"nearest\"> (s, , sizes)", {"z": 4}),
    "concatenated": (f"a = Conv {P} (s, w3) b = Relu(a) t = Concat <axis = 1> (s, b) z = Identity(b)", {"t": 4}),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVED)
def test_what_is_moved_to_an_output_is_float(name: str) -> None:
    body, outputs = MOVED[name]
    result = check(model_of(f"{TRUNK} {body} {REST}", {**outputs, "y": 2}))
    assert result.report.kernels.integer["QLinearConv"] >= 2 - (name == "concatenated")


@pytest.mark.parametrize(
    "body",
    [
        "t = AveragePool <kernel_shape = [3, 3]> (s)",
        'k = Resize <mode = "linear"> (s, , sizes) t = Identity(k)',
        f"a = Conv {P} (s, w3) t = Add(a, s)",
        "t = Softmax <axis = 1> (s)",
    ],
)
def test_what_is_computed_for_an_output_reads_no_few_bits(body: str) -> None:
    model = model_of(f"{TRUNK} {body} z = Identity(s) {REST}", {"t": 4, "y": 2})
    model.opset_import[0].version = 19  # of which AveragePool rounds as later ones do
    check(model, share=0.25)  # a convolution beside an Add keeps its 8 bits
    wide = quantized(model, "8/8")
    assert not wide.plan.unquantized  # 8 bits are enough, and s's layer runs in integers
    assert not wide.report.kernels.floating


def test_a_sum_with_the_input_takes_it_as_it_is() -> None:
    model = model_of(f"{TRUNK} c2 = Conv {P} (s, k) y = Add(c2, image)", {"y": 4})
    model.graph.initializer.append(onnx.numpy_helper.from_array(random(3, 8, 3, 3), "k"))
    result = quantized(model, "8/8")
    assert result.plan.unquantized == {"y": ("image",)}
    assert not result.report.kernels.floating


def test_heads_that_are_put_together_are_float_and_those_computed_with_are_not() -> None:
    heads = f"""a = Conv {P} (s, w2) b = Conv {P} (s, w3) d = Reshape(a, boxes) e = Reshape(b, boxes)
        t = Concat <axis = 2> (d, e)"""
    assert check(model_of(f"{TRUNK} {heads}", {"t": 3}), "4/4").report.kernels.floating == {"Conv": 2}
    sums = quantized(model_of(f"{TRUNK} {heads} u = Mul(t, t)", {"u": 3}), "4/4").report.kernels
    assert not sums.floating
    assert sums.integer["QLinearConv"] == 4


def test_nodes_are_there_twice_only_where_they_have_to_be() -> None:
    model = model_of(f"{TRUNK} z = Transpose(s) {REST}", {"y": 2})
    assert separate_outputs(model) is model
    model = model_of(f"{TRUNK} k = Transpose(s) t = Flatten(k) z = Transpose(k) {REST}", {"t": 2, "y": 2})
    separated = separate_outputs(model)
    index = GraphIndex(separated)
    assert [node.op_type for node in index.consumers("s")] == ["Transpose", "Transpose"]
    assert index.producer["t"].input[0] == "k"
    assert index.producer["z"].input[0] == "k_inner"
    before, after = (Session(m.SerializeToString()).run(random(2, 3, 8, 8)) for m in (model, separated))
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


STEPS = [  # each makes the next tensor of the last one, x; all keep 8 channels and 8 x 8 pixels
    "{y} = Transpose <perm = [0, 1, 3, 2]> ({x})",
    "{y} = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> ({x})",
    "{y} = Identity({x})",
    "{y}u, {y}v = Split <axis = 1> ({x}, half) {y} = Concat <axis = 1> ({y}v, {y}u)",
    "{y}c = Conv <pads = [1, 1, 1, 1]> ({x}, w1) {y} = Relu({y}c)",
    "{y}c = Conv <pads = [1, 1, 1, 1]> ({x}, w2) {y}r = Relu({y}c) "
    "{y} = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> ({y}r)",
    "{y} = Conv <pads = [1, 1, 1, 1]> ({x}, w3)",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_outputs_anywhere_in_random_networks(seed: int) -> None:
    generator = np.random.default_rng(seed)
    body, tensors = TRUNK, ["s"]
    for number in range(8):
        start = tensors[-1] if generator.random() < 0.8 else str(generator.choice(tensors))
        body += " " + str(generator.choice(STEPS)).format(x=start, y=f"t{number}")
        tensors.append(f"t{number}")
    outputs = generator.choice(tensors, 3, replace=False)
    body += f" z = Identity({tensors[-1]}) {REST}"
    check(model_of(body, {**{str(name): 4 for name in outputs}, "y": 2}))
