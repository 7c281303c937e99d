"""QONNX files in onnxruntime: what a Quant is, said in ONNX's own operators."""

import numpy as np
import onnx
from numpy.typing import NDArray

from pdq_export.validate.runtime import Batch, Session

_DOMAIN = "qonnx.custom_op.general"
# As QONNX defines it: the bounds are clipped to before rounding, and signed integers alone have a narrow lower bound.
_QUANT = """<domain: "qonnx.custom_op.general", opset_import: ["": OPSET]>
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


def runnable(content: bytes) -> bytes:
    """A QONNX file, given as bytes, that onnxruntime runs, in float: with Quant as a function of the model."""
    model = onnx.load_model_from_string(content)
    (opset,) = (known.version for known in model.opset_import if known.domain in ("", "ai.onnx"))
    model.functions.append(onnx.parser.parse_function(_QUANT.replace("OPSET", str(opset))))
    model.ir_version = max(model.ir_version, 8)  # the first with functions
    return bytes(model.SerializeToString())


def check_runs_qonnx(content: bytes, batch: Batch | None) -> list[NDArray[np.float32]] | None:
    """Load a written QONNX file; what it gives for ``batch``, if there is one.

    Raises ValidationError where it does not load or run.
    """
    session = Session(runnable(content))
    return None if batch is None else session.run(batch)
