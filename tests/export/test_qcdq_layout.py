"""Layout rules of `qcdq`, on graphs that are small enough to read."""

import numpy as np
import onnx
import pytest

from pdq_export.export import read_blueprint
from pdq_export.graph.lookup import GraphIndex

from .test_layouts_agree import NETS, export

EIGHT_BITS = {onnx.TensorProto.UINT8, onnx.TensorProto.INT8}


@pytest.mark.parametrize("bits", ["8/8", "5/5", "4/4", "2/2"])
@pytest.mark.parametrize("name", ["chain", "residual", "transposed"])
def test_opset_13_and_8_bit_containers(name: str, bits: str) -> None:
    model = export(name, bits, "qcdq")
    assert model.opset_import[0].version == 13
    known = {onnx.TensorProto.FLOAT, onnx.TensorProto.INT32, onnx.TensorProto.INT64, *EIGHT_BITS}
    assert {tensor.data_type for tensor in model.graph.initializer} <= known


@pytest.mark.parametrize("name", NETS)
def test_every_narrow_tensor_is_quantized_clipped_and_dequantized(name: str) -> None:
    index = GraphIndex(export(name, "4/3", "qcdq"))
    bounds = set()
    for node in index.graph.node:
        if node.op_type == "Clip" and index.dtype(node.input[1]) == np.uint8:
            (reader,) = index.consumers(node.output[0])
            assert reader.op_type == "DequantizeLinear"
            writer = index.producer.get(node.input[0])
            assert writer is None or writer.op_type == "QuantizeLinear"
            bounds.add((index.constant(node.input[1]).item(), index.constant(node.input[2]).item(), writer is None))
    assert bounds <= {(0, 15, True), (0, 7, False)}
    assert (0, 7, False) in bounds or name == "concat"  # whose tensors are all carriers


def test_asymmetric_weights_are_int8_less_their_zero_points() -> None:
    index, ort = (GraphIndex(export("residual", "4/4", target)) for target in ("qcdq", "ort"))
    dequantize = index.producer[index.nodes["Conv_c1"].input[1]]
    zero_point = index.constant(dequantize.input[2])
    assert (zero_point.dtype, zero_point.shape) == (np.int8, (8,))
    assert not zero_point.any()
    clip = index.producer[dequantize.input[0]]
    integers, low, high = (index.constant(name) for name in clip.input)
    assert (integers == ort.constant(ort.producer[ort.nodes["Conv_c1"].input[1]].input[0])).all()
    learned = read_blueprint(ort.model).quantized.constants["Conv_c1"].weight.zero_point
    assert learned.any()
    assert (low, high) == (-learned.max(), 15 - learned.min())


def test_symmetric_weights_are_int8() -> None:
    index = GraphIndex(export("residual", "4/4", "qcdq", symmetric=True))
    clip = index.producer[index.producer[index.nodes["Conv_c1"].input[1]].input[0]]
    assert [index.constant(name).item() for name in clip.input[1:]] == [-8, 7]
    assert index.constant(clip.input[0]).dtype == np.int8
