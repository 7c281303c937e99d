"""Sums of products that INT32 does not hold: the plan has narrower weights there, and onnxruntime's sums are right."""

import numpy as np
import onnx
import pytest

import pdq_export
from pdq_export.errors import ModelError
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.plan.passes import fit_accumulators
from pdq_export.plan.planned import Planned

from ...onnx_text import fill, name_nodes, parse


def model(terms: int, bias: bool = False) -> onnx.ModelProto:
    side = terms // 4
    text = f"c = Conv (image, w1) f = Flatten(c) y = Gemm <transB = 1> (f, w2{', b2' if bias else ''})"
    graph = parse(text, inputs=f"float[N,1,1,{side}] image", outputs="float[N,3] y")
    return name_nodes(fill(graph, {"w1": (4, 1, 1, 1), "w2": (3, 4 * side), **({"b2": (3,)} if bias else {})}))


def planned_of(prepared: onnx.ModelProto, **options: str) -> Planned:
    chosen = PlanOptions.of("8/8", **options)  # type: ignore[arg-type]
    return Planned.of(prepared, make_plan(prepared, chosen), chosen)


@pytest.mark.parametrize(
    ("terms", "bias", "options", "expected"),
    [
        (66_308, False, {}, {}),  # 66,308 * 255 * 127 < 2^31
        (66_316, False, {}, {"y": 7}),
        (33_152, True, {}, {}),  # a bias may take 2^30
        (33_160, True, {}, {"y": 7}),
        (200_000, False, {}, {"y": 6}),
        (200_000, False, {"first_last": "4/8"}, {}),
        (66_316, False, {"weights": "symmetric"}, {"y": 7}),
    ],
)
def test_weights_are_as_wide_as_their_sums_allow(
    terms: int, bias: bool, options: dict[str, str], expected: dict[str, int]
) -> None:
    prepared = prepare(model(terms, bias)).model
    planned = planned_of(prepared, **options)
    fitted = fit_accumulators.run(planned)
    told = "".join(note.text for note in fitted.notes)
    assert all(f"{node!r} {bits}" in told for node, bits in expected.items())
    assert bool(told) == bool(expected)
    before, after = planned.plan.points, fitted.plan.points
    assert after["w2"].bits == expected.get("y", before["w2"].bits)
    assert after["w1"] == before["w1"]


def test_what_no_width_holds_is_refused() -> None:
    prepared = prepare(model(5_000_000)).model
    with pytest.raises(ModelError, match=r"node 'y' \(Gemm\): .* --exclude 'y'"):
        fit_accumulators.run(planned_of(prepared))


def test_the_file_is_right_where_eight_bits_would_wrap_around(caplog: pytest.LogCaptureFixture) -> None:
    """All weights and images are positive, so that the sums are as large as they can be."""
    wide = model(120_000)
    for tensor in wide.graph.initializer:
        values = np.abs(onnx.numpy_helper.to_array(tensor)) * 0 + (0.01 if tensor.name == "w2" else 1)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    images = np.random.default_rng(0).uniform(0.9, 1, (8, 1, 1, 30_000)).astype(np.float32)
    result = pdq_export.quantize(wide, bits="8/8", calib=images, method="nearest")
    assert "weights get fewer bits: 'y' 7" in caplog.text
    assert result.report.outputs[0].quantized_float.relative_error < 0.01
