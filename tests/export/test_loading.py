"""What loading a file takes is what its graph computes of constants, and decides how its weights are packed."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from pdq_export.errors import OptionError
from pdq_export.export import Packing, export_model
from pdq_export.export.loading import choose_loading, packable, unpacking_bytes
from pdq_export.export.packing import Packable
from pdq_export.export.runtimes import check_opset
from pdq_export.graph.lookup import GraphIndex
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.spec import Plan, Role

from . import toy_networks as nets
from .toy_quantizer import calibrate

TEXT = """(float[N,3,12,12] x) => (float[N,8,A,B] y) {
    c = Conv <pads=[1,1,1,1]> (x, w, b) r = Relu(c) d = Conv <group=24> (r, g, b) e = Relu(d) f = Conv(e, v)
    h = Relu(f) t = ConvTranspose <strides=[2,2]> (h, t0) k = Relu(t) y = Conv(k, z) }"""
WEIGHTS = {
    "w": (24, 3, 3, 3),
    "b": (24,),
    "g": (24, 1, 3, 3),
    "v": (31, 24, 3, 3),
    "t0": (31, 12, 2, 2),
    "z": (8, 12, 1, 1),
}


def network(opset: int) -> onnx.ModelProto:
    model = nets.network(TEXT, WEIGHTS)
    model.opset_import[0].version = opset
    return model


def weights_of(index: GraphIndex, plan: Plan) -> list[Packable]:
    return [packable(index, point) for point in plan.points.values() if point.role is Role.WEIGHT]


def computed_of_weights(model: onnx.ModelProto, stems: Sequence[str]) -> int:
    """Bytes of all tensors that the nodes between the initializers of weights and their DequantizeLinear give."""
    known = {tensor.name for tensor in model.graph.initializer}
    of_weights = {name for name in known if any(name.startswith(f"{stem}_quantized") for stem in stems)}
    assert of_weights
    nodes = []
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" and known.issuperset(node.input):
            nodes.append(node)
            known.update(node.output)
            if of_weights.intersection(node.input):
                of_weights.update(node.output)
    outputs = [name for node in nodes for name in node.output if name in of_weights]
    if not outputs:
        return 0
    alone = onnx.helper.make_graph(nodes, "constants", [], [], model.graph.initializer)
    alone.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    file = onnx.helper.make_model(alone, opset_imports=model.opset_import, ir_version=model.ir_version)
    return sum(value.nbytes for value in ReferenceEvaluator(file).run(None, {}))


@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize("weights", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_the_estimate_is_what_the_written_graph_computes(
    bits: int, weights: str, packing: Packing, small_weights_are_packed: None
) -> None:
    model = network(25)
    plan = make_plan(model, PlanOptions.of(f"{bits}/4", weights=weights))
    tensors = calibrate(model, plan, {"x": nets.images((2, 3, 12, 12))})
    exported = export_model(model, plan, tensors, metadata={}, packing=packing)
    found = weights_of(GraphIndex(model), plan)
    assert computed_of_weights(exported, list(WEIGHTS)) == unpacking_bytes(found, packing, 25)


def big(bits: str, opset: int = 17, weights: str = "asymmetric") -> tuple[GraphIndex, Plan]:
    """Three layers of 2,048 x 2,048 weights between two small ones."""
    text = """(float[N,16] x) => (float[N,5] y) {
        a = Gemm(x, w0) b = Relu(a) c = Gemm(b, w1) d = Relu(c) e = Gemm(d, w2) f = Relu(e) g = Gemm(f, w3) h = Relu(g)
        y = Gemm(h, w4) }"""
    model = nets.network(text, {"w0": (16, 2048), "w4": (2048, 5)}, opset=opset)
    for name in ("w1", "w2", "w3"):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((2048, 2048), np.float32), name))
    return GraphIndex(model), make_plan(model, PlanOptions.of(bits, weights=weights))


def test_every_onnxruntime_loads_what_takes_little(monkeypatch: pytest.MonkeyPatch) -> None:
    index, plan = big("4/4")
    chosen = choose_loading(index, plan, runtime=None, max_opset=None)
    count = 3 * 2048**2
    # UINT4: Cast, Sub. Bytes: Cast and Add in INT32 of half as many, Gather, Reshape, Transpose.
    assert (chosen.packing, chosen.unpacking) == (Packing.BYTES, chosen.portable)
    assert (chosen.runtime, chosen.note, chosen.max_opset) == ((1, 15), "", None)
    monkeypatch.setattr("pdq_export.export.loading.PORTABLE_LIMIT", 5 * count - 1)
    lean = choose_loading(index, plan, runtime=None, max_opset=None)
    assert (lean.portable, lean.packing, lean.runtime) == (chosen.portable, Packing.TYPES, (1, 23))
    assert (lean.unpacking >= 2 * count, lean.portable - lean.unpacking) == (True, 5 * count)
    assert "onnxruntime 1.23 and newer load" in lean.note
    assert "63 MB more at the peak of loading (8" in lean.note
    assert "--runtime 1.15" in lean.note


@pytest.mark.parametrize(
    ("bits", "runtime", "max_opset", "packing", "lowest"),
    [
        ("4/4", "1.15", None, Packing.BYTES, (1, 15)),
        ("4/4", "1.22.1", None, Packing.BYTES, (1, 15)),
        ("4/4", "1.23", None, Packing.TYPES, (1, 23)),
        ("4/4", "1.23", 20, Packing.BYTES, (1, 15)),
        ("4/4", "1.24", 21, Packing.TYPES, (1, 23)),
        ("2/2", "1.23", None, Packing.BYTES, (1, 15)),
        ("2/2", "1.24", None, Packing.TYPES, (1, 24)),
        ("2/2", "1.31", 24, Packing.BYTES, (1, 15)),
        ("3/3", "1.31", None, Packing.BYTES, (1, 15)),
        ("8/8", "1.31", None, Packing.BYTES, (1, 15)),
    ],
)
def test_a_runtime_that_is_named_gets_what_takes_the_least_memory_there(
    bits: str, runtime: str, max_opset: int | None, packing: Packing, lowest: tuple[int, int]
) -> None:
    index, plan = big(bits)
    chosen = choose_loading(index, plan, runtime=runtime, max_opset=max_opset)
    assert (chosen.packing, chosen.runtime, chosen.note) == (packing, lowest, "")


def test_the_newest_opset_is_that_of_the_runtime_too() -> None:
    index, plan = big("4/4")
    caps = [("1.15", None, 18), ("1.23", None, 23), ("1.24", 21, 21), ("1.25", None, None), ("1.30", 17, 17)]
    for runtime, max_opset, expected in caps:
        assert choose_loading(index, plan, runtime=runtime, max_opset=max_opset).max_opset == expected
    check_opset(20, "1.17")
    check_opset(26, "1.25")
    with pytest.raises(
        OptionError, match=r"--runtime 1\.16: the model's own opset is 20, which needs onnxruntime 1\.17"
    ):
        check_opset(20, "1.16")
