"""QONNX files in onnxruntime: what a Quant is, said in ONNX's own operators."""

import numpy as np
import onnx
from numpy.typing import NDArray

from pdq_export.errors import ModelError
from pdq_export.graph.lookup import opset_version
from pdq_export.operators import QONNX_DOMAIN
from pdq_export.validate.runtime import Batch, Session

_OLDEST_OPSET = 13  # of what a Quant is said in
_HALF_TO_EVEN = ("ROUND", "HALF_EVEN")  # two names of one mode
# As QONNX defines it: the bounds are clipped to before rounding, and signed integers alone have a narrow lower bound.
_QUANT = """<domain: "DOMAIN", opset_import: ["": OPSET]>
Quant <signed, narrow, rounding_mode> (x, scale, zeropt, bitwidth) => (y) {
    one = Constant <value_float: float = 1.0> ()
    two = Constant <value_float: float = 2.0> ()
    signed_number = Constant <value_int: int = @signed> ()
    narrow_number = Constant <value_int: int = @narrow> ()
    is_signed = Cast <to = 1> (signed_number)
    is_narrow = Cast <to = 1> (narrow_number)
    magnitude_bits = Sub (bitwidth, is_signed)
    magnitudes = Pow (two, magnitude_bits)
    lowest = Sub (is_narrow, magnitudes)
    low = Mul (is_signed, lowest)
    is_unsigned = Sub (one, is_signed)
    left_out = Mul (is_unsigned, is_narrow)
    highest = Sub (magnitudes, one)
    high = Sub (highest, left_out)
    scaled = Div (x, scale)
    shifted = Add (scaled, zeropt)
    clipped = Clip (shifted, low, high)
    rounded = Round (clipped)
    centered = Sub (rounded, zeropt)
    y = Mul (centered, scale)
}"""


def is_qonnx(model: onnx.ModelProto) -> bool:
    """Whether there is a node that QONNX defines, which onnxruntime does not know."""
    functions = {(function.domain, function.name) for function in model.functions}
    return any(
        node.domain == QONNX_DOMAIN and (node.domain, node.op_type) not in functions for node in model.graph.node
    )


def runnable(content: bytes) -> bytes:
    """A QONNX file, given as bytes, that onnxruntime runs, in float: with Quant as a function of the model.

    Raises ModelError for what that function does not say: other operators of QONNX, other rounding than half to even,
    one bit, which QONNX reads as a sign, and opsets below 13.
    """
    model = onnx.load_model_from_string(content)
    opset = opset_version(model)
    if opset < _OLDEST_OPSET:
        raise ModelError(
            f"a QONNX file of opset {opset}: expected {_OLDEST_OPSET} or newer; raise it with "
            "onnx.version_converter, or export the file anew"
        )
    _check_quants(model.graph)
    text = _QUANT.replace("DOMAIN", QONNX_DOMAIN).replace("OPSET", str(opset))
    model.functions.append(onnx.parser.parse_function(text))
    model.ir_version = max(model.ir_version, 8)  # the first with functions
    return bytes(model.SerializeToString())


def _check_quants(graph: onnx.GraphProto) -> None:
    numbers = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.domain != QONNX_DOMAIN:
            continue
        given = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        mode = given.get("rounding_mode", b"ROUND").decode()
        wrong = ""
        if node.op_type != "Quant":
            wrong = f"it is a {node.op_type} of QONNX"
        elif mode.upper() not in _HALF_TO_EVEN:
            wrong = f"its rounding_mode is {mode}"
        elif (bits := numbers.get(node.input[3])) is not None and (onnx.numpy_helper.to_array(bits) < 2).any():
            wrong = "it has fewer than 2 bits"
        if wrong:
            raise ModelError(
                f"node {node.name or node.output[0]!r}: {wrong}; expected Quant nodes of 2 bits or more that round "
                "half to even, ROUND; run the file with QONNX's own executor, qonnx-exec"
            )


def check_runs_qonnx(content: bytes, batch: Batch | None) -> list[NDArray[np.float32]] | None:
    """Load a written QONNX file; what it gives for ``batch``, if there is one.

    Raises ValidationError where it does not load or run.
    """
    session = Session(runnable(content))
    return None if batch is None else session.run(batch)
