"""Small trained-looking networks for calibration tests, from ONNX text to the imported graph."""

import dataclasses
from typing import Any

import numpy as np
import onnx
import torch
from torch import fx

from pdq_export.calibrate import Calibrated, calibrate
from pdq_export.config.method import CalibrationOptions
from pdq_export.frontend import import_model
from pdq_export.graph.prepare import PreparedModel, prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.spec import Plan

RESIDUAL = """<ir_version: 8, opset_import: ["": 17]>
m (float[N,3,8,8] image) => (float[N,K] y) {
    c1 = Conv <pads = [1, 1, 1, 1]> (image, w1)
    n1 = BatchNormalization (c1, g1, b1, m1, v1)
    a1 = Relu(n1)
    c2 = Conv <pads = [1, 1, 1, 1]> (a1, w2)
    n2 = BatchNormalization (c2, g2, b2, m2, v2)
    a2 = Relu(n2)
    c3 = Conv <pads = [1, 1, 1, 1]> (a2, w3)
    n3 = BatchNormalization (c3, g3, b3, m3, v3)
    s = Add(n3, a1)
    a3 = Relu(s)
    p = GlobalAveragePool(a3)
    f = Flatten(p)
    y = Gemm <transB = 1> (f, w4, b4)
}"""
WIDTH, CLASSES = 6, 5


@dataclasses.dataclass(frozen=True)
class Example:
    """A prepared residual network, its plan and import, and images [64, 3, 8, 8]."""

    prepared: PreparedModel
    plan: Plan
    network: fx.GraphModule
    images: torch.Tensor


class Where:
    """The device that tests calibrate on, which the fixture `calibrates_on` sets."""

    device = torch.device("cpu")


def calibrate_there(network: fx.GraphModule, *arguments: Any, **keywords: Any) -> Calibrated:
    """`calibrate` on the device of the tests; network and simulation are on the CPU afterwards."""
    found = calibrate(network, *arguments, device=Where.device, **keywords)
    network.to("cpu")
    return dataclasses.replace(found, simulation=found.simulation.to("cpu"))


def calibrate_example(example: Example, options: CalibrationOptions, **keywords: Any) -> Calibrated:
    """Calibrate on the example's own images and statistics, on the device of the tests."""
    return calibrate_there(
        example.network, example.plan, example.prepared.statistics, [example.images], options, **keywords
    )


def residual(bits: str = "4/4", seed: int = 0, images: int = 64) -> Example:
    """conv - residual block - linear, BatchNormalization with random statistics."""
    model = onnx.parser.parse_model(RESIDUAL)
    generator = np.random.default_rng(seed)

    def add(name: str, value: np.ndarray) -> None:
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))

    for k, inputs in (("1", 3), ("2", WIDTH), ("3", WIDTH)):
        add(f"w{k}", generator.normal(size=(WIDTH, inputs, 3, 3)) / np.sqrt(9 * inputs))
        add(f"g{k}", generator.uniform(0.5, 1.5, WIDTH))
        add(f"b{k}", generator.normal(size=WIDTH) * 0.3)
        add(f"m{k}", generator.normal(size=WIDTH) * 0.2)
        add(f"v{k}", generator.uniform(0.5, 1.5, WIDTH))
    add("w4", generator.normal(size=(CLASSES, WIDTH)))
    add("b4", generator.normal(size=CLASSES))
    prepared = prepare(model)
    x = generator.normal(size=(images, 3, 8, 8)).astype(np.float32)
    plan = make_plan(prepared.model, PlanOptions.of(bits))
    return Example(prepared, plan, import_model(prepared.model), torch.from_numpy(x))


def chain(depth: int, images: int = 48) -> Example:
    """``depth`` times conv - relu at one size, then a linear layer; every conv a block, no BatchNormalization."""
    nodes = ["c0 = Conv <pads = [1, 1, 1, 1]> (image, w0)", "a0 = Relu(c0)"]
    for k in range(1, depth):
        nodes += [f"c{k} = Conv <pads = [1, 1, 1, 1]> (a{k - 1}, w{k})", f"a{k} = Relu(c{k})"]
    nodes += [f"p = GlobalAveragePool(a{depth - 1})", "f = Flatten(p)", "y = Gemm <transB = 1> (f, w)"]
    body = "\n    ".join(nodes)
    header = '<ir_version: 8, opset_import: ["": 17]>'
    model = onnx.parser.parse_model(f"{header}\nm (float[N,{WIDTH},8,8] image) => (float[N,K] y) {{\n    {body}\n}}")
    generator = np.random.default_rng(0)
    shapes = {f"w{k}": (WIDTH, WIDTH, 3, 3) for k in range(depth)} | {"w": (CLASSES, WIDTH)}
    for name, shape in shapes.items():
        value = generator.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
    prepared = prepare(model)
    plan = make_plan(prepared.model, PlanOptions.of("4/4"))
    x = generator.normal(size=(images, WIDTH, 8, 8)).astype(np.float32)
    return Example(prepared, plan, import_model(prepared.model), torch.from_numpy(x))
