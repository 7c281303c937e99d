"""ReduceMean over the spatial axes is planned like GlobalAveragePool."""

import itertools

import numpy as np
import onnx
import pytest

from pdq_export.graph.passes import spatial_mean, tidy
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.spec import BitWidths, Role

from .models import assert_same, build, node, operators, random

NEWEST = onnx.defs.onnx_opset_version()


def mean(axes: list[int] | None, *, keepdims: int, opset: int = 17, rank: int = 4) -> onnx.ModelProto:
    kept = "y" if keepdims else "y0"
    attributes = {"keepdims": keepdims, **({"axes": axes} if axes is not None and opset < 18 else {})}
    inputs = "x axes" if axes is not None and opset >= 18 else "x"
    return build(
        [node("ReduceMean", inputs, kept, "mean", **attributes), *([] if keepdims else [node("Relu", "y0", "y")])],
        inputs={"x": ["N", 3, 4, 5, 6][:rank]},
        outputs={"y": [None] * (rank if keepdims else rank - len(axes or range(rank)))},
        constants={"axes": np.array(axes)} if inputs == "x axes" else {},
        opset=opset,
    )


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    work = onnx.ModelProto.FromString(model.SerializeToString())
    return tidy.remove_unused(spatial_mean.run(tidy.infer_shapes(work)))


@pytest.mark.parametrize(("axes", "keepdims"), list(itertools.product([[2, 3], [-1, -2], [3, 2]], [0, 1])))
@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, NEWEST])
def test_spatial_axes(axes: list[int], keepdims: int, opset: int) -> None:
    if opset < 11 and min(axes) < 0:
        pytest.skip("negative axes came with opset 11")
    model = mean(axes, keepdims=keepdims, opset=opset)
    result = rewritten(model)
    assert operators(result) == (
        {"GlobalAveragePool": 1} if keepdims else {"GlobalAveragePool": 1, "Flatten": 1, "Relu": 1}
    )
    if opset < NEWEST:
        assert_same(model, result, x=random(2, 3, 4, 5))


@pytest.mark.parametrize(("rank", "axes"), [(3, [2]), (5, [2, 3, 4])])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_any_number_of_spatial_axes(rank: int, axes: list[int], keepdims: int) -> None:
    model = mean(axes, keepdims=keepdims, rank=rank)
    result = rewritten(model)
    assert "ReduceMean" not in operators(result)
    assert_same(model, result, x=random(*(2, 3, 4, 5, 6)[:rank]))


@pytest.mark.parametrize("axes", [None, [1], [2], [1, 2, 3], [0, 2, 3]])
def test_other_axes_are_left_alone(axes: list[int] | None) -> None:
    assert operators(rewritten(mean(axes, keepdims=1)))["ReduceMean"] == 1


def test_computed_axes_and_other_types_are_left_alone() -> None:
    computed = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> m (float[N,3,4,5] x, int64[2] axes) => (float[N,3,1,1] y)
        { y = ReduceMean(x, axes) }"""
    )
    double = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> m (double[N,3,4,5] x) => (double[N,3,1,1] y)
        { y = ReduceMean <axes = [2, 3]> (x) }"""
    )
    for model in (computed, double):
        assert operators(rewritten(model)) == {"ReduceMean": 1}


HEADS = {
    "p = GlobalAveragePool(r2) f = Flatten(p)": "p",
    "f = ReduceMean <axes = [2, 3], keepdims = 0> (r2)": "f.pooled",
    "p = ReduceMean <axes = [-2, -1]> (r2) f = Flatten(p)": "p",
}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_is_planned_like_with_global_average_pool(head: str) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> m (float[N,3,8,8] image) => (float[N,5] y) {{
            c1 = Conv <pads = [1, 1, 1, 1]> (image, w1) r1 = Relu(c1)
            c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2) r2 = Relu(c2) {head} y = Gemm <transB = 1> (f, w3) }}"""
    )
    for name, shape in {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "w3": (5, 4)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(random(*shape), name))
    prepared = prepare(model).model
    plan = make_plan(prepared, PlanOptions.of(BitWidths(4, 2)))
    assert_same(model, prepared, image=random(2, 3, 8, 8))
    assert {name: (p.role, p.bits) for name, p in plan.points.items() if p.role is not Role.WEIGHT} == {
        "image": (Role.CARRIER, 8),
        "r1": (Role.ACTIVATION, 2),
        "r2": (Role.ACTIVATION, 8),  # the last layer's input, through the average
        HEADS[head]: (Role.CARRIER, 8),
    }
    assert plan.passthrough == {"f": HEADS[head]}
    assert [block.outputs for block in plan.blocks] == [("r1",), ("r2",), ("y",)]
