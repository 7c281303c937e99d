"""What onnxruntime makes of a Quant is what its specification says."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from pdq_export.errors import ModelError, ValidationError
from pdq_export.validate import check_runs_qonnx
from pdq_export.validate.qonnx import is_qonnx, runnable
from pdq_export.validate.runtime import Session

from ..quant_reference import quant

DOMAIN = "qonnx.custom_op.general"


def model(bits: int, signed: int, narrow: int, zeropt: list[float], domain: str = DOMAIN) -> bytes:
    zeros = ", ".join(map(str, zeropt))
    text = f"""<ir_version: 8, opset_import: ["": 13, "{DOMAIN}": 1]>
        g (float[N,3] x) => (float[N,3] y)
        <float[3] scale = {{0.5, 0.25, 2}}, float[3] zeropt = {{{zeros}}}, float bits = {{{bits}}}>
        {{ y = {domain}.Quant <signed={signed}, narrow={narrow}, rounding_mode="ROUND"> (x, scale, zeropt, bits) }}"""
    return onnx.parser.parse_model(text).SerializeToString()


@pytest.mark.parametrize(("signed", "narrow"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("bits", range(2, 9))
def test_scale_shift_clip_round_and_back(bits: int, signed: int, narrow: int) -> None:
    """Halves included, which are rounded to the even integer after the zero point was added."""
    zeropt = [0.0, 1.0, float(2**bits - 1)]
    x = np.arange(-1200, 1200, dtype=np.float32).reshape(-1, 3) / 8
    (found,) = Session(runnable(model(bits, signed, narrow, zeropt))).run(x)
    scale = np.array([0.5, 0.25, 2], np.float32)
    assert (found == quant(x, scale, np.float32(zeropt), bits, signed=signed, narrow=narrow)).all()
    assert len(np.unique(found[:, 0])) == 2**bits - narrow


def test_a_file_that_does_not_run_is_refused() -> None:
    check_runs_qonnx(model(4, 0, 0, [0, 0, 0]), np.zeros((2, 3), np.float32))
    with pytest.raises(ValidationError, match="does not load"):
        check_runs_qonnx(model(4, 0, 0, [0, 0, 0], "elsewhere"), None)
    with pytest.raises(ValidationError, match="fails on a batch of shape"):
        check_runs_qonnx(model(4, 0, 0, [0, 0, 0]), np.zeros((2, 4), np.float32))


def _set_rounding(changed: onnx.ModelProto, mode: str) -> None:
    next(item for item in changed.graph.node[0].attribute if item.name == "rounding_mode").s = mode.encode()


def _rename(changed: onnx.ModelProto, op_type: str) -> None:
    changed.graph.node[0].op_type = op_type


def _set_bits(changed: onnx.ModelProto, bits: str) -> None:
    (tensor,) = (tensor for tensor in changed.graph.initializer if tensor.name == "bits")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(bits, np.float32), "bits"))


def _set_opset(changed: onnx.ModelProto, version: str) -> None:
    changed.opset_import[0].version = int(version)


@pytest.mark.parametrize(
    ("change", "to", "words"),
    [
        (_set_rounding, "FLOOR", "node 'y': its rounding_mode is FLOOR; expected Quant nodes"),
        (_rename, "Trunc", "node 'y': it is a Trunc of QONNX; expected Quant nodes"),
        (_set_bits, "1", "node 'y': it has fewer than 2 bits; expected Quant nodes"),
        (_set_opset, "11", "a QONNX file of opset 11: expected 13 or newer"),
    ],
)
def test_what_the_function_does_not_say_is_refused(
    change: Callable[[onnx.ModelProto, str], None], to: str, words: str
) -> None:
    changed = onnx.load_model_from_string(model(4, 1, 0, [0, 0, 0]))
    change(changed, to)
    with pytest.raises(ModelError, match=words):
        runnable(changed.SerializeToString())


def test_half_even_is_another_name_of_round() -> None:
    changed = onnx.load_model_from_string(model(4, 1, 0, [0, 0, 0]))
    _set_rounding(changed, "HALF_EVEN")
    assert is_qonnx(changed)
    (found,) = Session(runnable(changed.SerializeToString())).run(np.full((1, 3), 0.75, np.float32))
    assert found.tolist() == [[1.0, 0.75, 0.0]]
    assert not is_qonnx(onnx.load_model_from_string(runnable(changed.SerializeToString())))
