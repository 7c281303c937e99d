"""Small networks as ONNX text, with random weights."""

from collections.abc import Mapping

import numpy as np
import onnx

from ..onnx_text import fill

Shape = tuple[int, ...]


def network(text: str, weights: Mapping[str, Shape], *, opset: int = 21, seed: int = 0) -> onnx.ModelProto:
    """Parse a graph and add initializers. Nodes get names."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g {text}')
    fill(model, weights, seed=seed)
    for node in model.graph.node:
        node.name = node.name or f"{node.op_type}_{node.output[0]}"
    return onnx.shape_inference.infer_shapes(model)


def images(shape: Shape, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def chain(opset: int = 21) -> onnx.ModelProto:
    """Two convolutions with Relu, pooling, a linear layer."""
    return network(
        """(float[N,3,12,12] x) => (float[N,10] logits) {
            c0 = Conv <pads=[1,1,1,1]> (x, w0, b0)
            r0 = Relu(c0)
            p0 = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r0)
            c1 = Conv <pads=[1,1,1,1]> (p0, w1, b1)
            r1 = Relu(c1)
            g0 = GlobalAveragePool(r1)
            f0 = Flatten(g0)
            logits = Gemm <transB=1> (f0, w2, b2)
        }""",
        {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (16, 8, 3, 3), "b1": (16,), "w2": (10, 16), "b2": (10,)},
        opset=opset,
    )


def residual(opset: int = 21) -> onnx.ModelProto:
    """A residual block with a sliced and padded shortcut, ReLU6 and a projection-free identity block."""
    model = network(
        """(float[N,4,12,12] x) => (float[N,10] logits) {
            c0 = Conv <pads=[1,1,1,1]> (x, w0, b0)
            r0 = Clip(c0, zero, six)
            c1 = Conv <pads=[1,1,1,1]> (r0, w1, b1)
            r1 = Relu(c1)
            c2 = Conv <pads=[1,1,1,1]> (r1, w2, b2)
            a0 = Add(c2, r0)
            r2 = Relu(a0)
            c3 = Conv <pads=[1,1,1,1], strides=[2,2]> (r2, w3, b3)
            s0 = Slice(r2, starts, ends, axes, steps)
            s1 = Pad(s0, pads)
            a1 = Add(c3, s1)
            r3 = Relu(a1)
            g0 = GlobalAveragePool(r3)
            f0 = Flatten(g0)
            logits = Gemm <transB=1> (f0, w4, b4)
        }""",
        {
            "w0": (8, 4, 3, 3),
            "b0": (8,),
            "w1": (8, 8, 3, 3),
            "b1": (8,),
            "w2": (8, 8, 3, 3),
            "b2": (8,),
            "w3": (12, 8, 3, 3),
            "b3": (12,),
            "w4": (10, 12),
            "b4": (10,),
        },
        opset=opset,
    )
    values = {
        "zero": np.float32(0),
        "six": np.float32(6),
        "starts": np.array([0, 0]),
        "ends": np.array([100, 100]),
        "axes": np.array([2, 3]),
        "steps": np.array([2, 2]),
        "pads": np.array([0, 2, 0, 0, 0, 2, 0, 0]),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(v), k) for k, v in values.items())
    return onnx.shape_inference.infer_shapes(model)
