"""Models as ONNX text, with random weights."""

import math
from collections.abc import Mapping

import numpy as np
import onnx

from pdq_export.graph.lookup import reads


def parse(
    body: str, inputs: str = "float[N,3,8,8] image", outputs: str = "float[N,K] y", *, opset: int = 17
) -> onnx.ModelProto:
    """The nodes of ``body`` between ``inputs`` and ``outputs``."""
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> m ({inputs}) => ({outputs}) {{ {body} }}'
    )


def classifier(side: int, classes: int, batch: int | str = "N") -> onnx.ModelProto:
    """Two convolutions and a Gemm, ``x`` [N, 3, side, side] -> ``scores`` [N, classes], without w1, w2 and w3."""
    return parse(
        """
        a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w1) b = Relu(a)
        c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(b, w2) d = Relu(c)
        pooled = GlobalAveragePool(d) flat = Flatten(pooled) scores = Gemm(flat, w3)
        """,
        f"float[{batch},3,{side},{side}] x",
        f"float[{batch},{classes}] scores",
    )


def fill(
    model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], *, scale: float = 1.0, seed: int = 0
) -> onnx.ModelProto:
    """The model with those of the weights, by name and shape, that it reads: normal, of variance scale² / fan-in."""
    generator = np.random.default_rng(seed)
    read = {name for node in model.graph.node for name in reads(node)}
    for name, shape in shapes.items():
        value = generator.normal(size=shape) * (scale / math.sqrt(math.prod(shape[1:])))
        if name in read:
            model.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
    return model


def name_nodes(model: onnx.ModelProto, names: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """The model with nodes called after their first output, or what ``names`` has for that."""
    for node in model.graph.node:
        node.name = (names or {}).get(node.output[0], node.output[0])
    return model
