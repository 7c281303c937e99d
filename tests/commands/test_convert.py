"""`convert`: exact between layouts, and one clear message for what cannot be converted."""

import base64
import contextlib
import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from pdq_export.commands.convert import convert
from pdq_export.errors import ModelError, OptionError, PdqError
from pdq_export.export import Packing, export_model, read_blueprint
from pdq_export.graph.passes import hard_sigmoid
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.plan.passes.wide_residuals import widen
from pdq_export.plan.planned import Planned
from pdq_export.targets import find_target

from ..export import toy_networks as nets
from ..export.toy_quantizer import calibrate

TARGETS = ("ort", "native", "qcdq", "qonnx")
EVERY_PAIR = tuple(itertools.permutations(TARGETS, 2))
# In which each is read, and each written: what is read does not depend on what becomes of it.
CYCLE = tuple((TARGETS[number], TARGETS[number - 1]) for number in range(len(TARGETS)))


def gemm() -> onnx.ModelProto:
    """Factors that are folded, a shared weight, a bias that enlarges a scale, a constant operand."""
    model = nets.network(
        """(float[N,4,6,6] x) => (float[N,5] y) {
            c = Conv <pads=[1,1,1,1]> (x, w, b)
            r = Relu(c)
            e = Conv <pads=[1,1,1,1]> (r, w, b)
            a = Add(e, k)
            q = Relu(a)
            g = Conv <pads=[1,1,1,1]> (q, v, d)
            f = GlobalAveragePool(g)
            s = Reshape(f, shape)
            y = Gemm <alpha=0.5, beta=2.0> (s, m, n)
        }""",
        {"w": (4, 4, 3, 3), "b": (4,), "v": (4, 4, 3, 3), "d": (4,), "k": (1, 4, 6, 6), "m": (4, 5), "n": (5,)},
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, -1]), "shape"))
    large = next(t for t in model.graph.initializer if t.name == "d")
    large.CopyFrom(onnx.numpy_helper.from_array(np.array([1e6, 0, 1, -2], np.float32), "d"))
    return model


def named() -> onnx.ModelProto:
    """Layers with weights of their own, under the names of their outputs."""
    model = nets.network(
        """(float[N,4,6,6] x) => (float[N,5] y) {
            s = Conv <pads=[1,1,1,1]> (x, k, b)
            r = Relu(s)
            c = Conv <pads=[1,1,1,1]> (r, w, d)
            q = Relu(c)
            e = Conv <pads=[1,1,1,1]> (q, u)
            a = Add(e, r)
            z = Relu(a)
            g = GlobalAveragePool(z)
            f = Flatten(g)
            y = Gemm (f, m)
        }""",
        {**dict.fromkeys("kwu", (4, 4, 3, 3)), "b": (4,), "d": (4,), "m": (4, 5)},
    )
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def wide() -> onnx.ModelProto:
    """So many channels that one number a channel is stored in few bits."""
    return nets.network(
        """(float[N,3,6,6] x) => (float[N,5] y) {
            c = Conv (x, w, b)
            r = Relu(c)
            g = GlobalAveragePool(r)
            f = Flatten(g)
            y = Gemm (f, m)
        }""",
        {"w": (256, 3, 3, 3), "b": (256,), "m": (256, 5)},
    )


NETS: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[int, ...]]] = {
    "chain": (nets.chain, (2, 3, 12, 12)),
    "residual": (nets.residual, (2, 4, 12, 12)),
    "gemm": (gemm, (2, 4, 6, 6)),
    "named": (named, (2, 4, 6, 6)),
    "wide": (wide, (2, 3, 6, 6)),
    "wide residuals": (named, (2, 4, 6, 6)),
}


def export(
    name: str,
    bits: str,
    target: str,
    max_opset: int | None = None,
    exclude: Sequence[str] = (),
    weights: str = "asymmetric",
    packing: Packing = Packing.BYTES,
    tensor_bits: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    make, shape = NETS[name]
    model, options = make(), PlanOptions.of(bits, exclude=exclude, weights=weights, tensor_bits=tensor_bits or {})
    chosen = find_target(target)
    model.opset_import[0].version = chosen.required_opset(chosen.plan(model, options).plan, max_opset, packing)
    plan = chosen.plan(model, options).plan
    if name == "wide residuals":
        widened = widen(Planned.of(model, plan, options))
        model, plan = widened.model, widened.plan
    tensors = calibrate(model, plan, {"x": nets.images(shape)})
    metadata = {"pdq_export.version": "1", "pdq_export.target": target}
    onnx.helper.set_model_props(model, {"author": "someone"})
    return chosen.export(model, plan, tensors, metadata=metadata, own_opset=13, max_opset=max_opset, packing=packing)


def content(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


# Every width in every opset of two networks; of the others, whose nodes matter, each of them once.
FORMS = list(itertools.product(["8/8", "6/5", "4/4", "3/3", "2/2"], [None, 21, 13]))
FEW = [("8/8", 13), ("4/4", 21), ("2/2", None)]


@pytest.mark.parametrize(
    ("name", "bits", "max_opset"),
    [(name, *form) for name in NETS for form in (FORMS if name in ("residual", "gemm") else FEW)],
)
def test_converting_gives_what_exporting_would_have_and_back_again(name: str, bits: str, max_opset: int | None) -> None:
    pairs = EVERY_PAIR if (bits, max_opset) in FEW else CYCLE
    check_round_trips({target: export(name, bits, target, max_opset) for target in TARGETS}, pairs)


@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize("bits", [f"{bits}/{bits}" for bits in range(2, 9)])
@pytest.mark.parametrize(("name", "weights"), [("residual", "asymmetric"), ("gemm", "symmetric")])
def test_every_width_of_every_form_comes_back(
    name: str, bits: str, weights: str, packing: Packing, small_weights_are_packed: None
) -> None:
    check_round_trips({target: export(name, bits, target, weights=weights, packing=packing) for target in TARGETS})


@settings(max_examples=4)
@given(bits=st.fixed_dictionaries(dict.fromkeys(("k", "w", "u", "m", "r", "q", "z"), st.integers(2, 8))))
@pytest.mark.parametrize("packing", Packing)
def test_tensors_with_bits_of_their_own(bits: dict[str, int], packing: Packing) -> None:
    files = {target: export("named", "8/8", target, packing=packing, tensor_bits=bits) for target in TARGETS}
    check_round_trips(files)
    for file in files.values():
        points = read_blueprint(file).quantized.plan.points
        assert {name: points[name].bits for name in bits} == bits


def check_round_trips(files: Mapping[str, onnx.ModelProto], pairs: Sequence[tuple[str, str]] = CYCLE) -> None:
    """Each file becomes others, in CYCLE one other, and itself again from that one.

    Of EVERY_PAIR that one stands for all, which have its graph by then.
    """
    for source, target in pairs:
        converted = convert(files[source], target)
        assert converted.graph == files[target].graph
        assert converted.opset_import == files[target].opset_import
        if (source, target) in CYCLE:
            assert content(convert(converted, source)) == content(files[source])


@pytest.mark.parametrize("exclude", ["^c$", "^e$", "^[ce]$"])
@pytest.mark.parametrize("bits", ["4/4", "2/2"])
def test_excluded_layers_stay_so(bits: str, exclude: str) -> None:
    files = {target: export("named", bits, target, exclude=exclude) for target in TARGETS}
    weights = [t for t in NETS["named"][0]().graph.initializer if t.name in {"^c$": "w", "^e$": "u"}.get(exclude, "wu")]
    for source, target in CYCLE:
        found = read_blueprint(files[source]).quantized.plan.excluded
        assert [layer.node for layer in found] == [name for name in "ce" if name in exclude]
        converted = convert(files[source], target)
        assert converted.graph == files[target].graph
        assert all(weight in converted.graph.initializer for weight in weights)
        assert content(convert(converted, source)) == content(files[source])


def test_several_inputs() -> None:
    body = "(float[N,4,12,12] x, float[N,4,12,12] z) => (float[N,O] y)"
    model = nets.network(
        f"""{body} {{
            c = Conv <pads=[1,1,1,1]> (x, w)
            a = Add(c, z)
            r = Relu(a)
            e = Conv <pads=[1,1,1,1]> (r, u)
            g = GlobalAveragePool(e)
            f = Flatten(g)
            y = Gemm (f, m)
        }}""",
        {"w": (4, 4, 3, 3), "u": (4, 4, 3, 3), "m": (4, 5)},
    )
    plan = make_plan(model, PlanOptions.of("4/4"))
    tensors = calibrate(model, plan, {"x": nets.images((2, 4, 12, 12)), "z": nets.images((2, 4, 12, 12), 2)})
    file = export_model(model, plan, tensors, metadata={"pdq_export.target": "ort"}, own_opset=21)
    for target in TARGETS[1:]:
        assert content(convert(convert(file, target), "ort")) == content(file)


def test_from_ort_through_all_others_to_ort() -> None:
    first = last = export("residual", "4/3", "ort")
    for target in ("native", "qonnx", "qcdq", "ort"):
        last = convert(last, target)
    assert content(last) == content(first)


def test_metadata_stay_and_name_the_new_target() -> None:
    converted = convert(export("chain", "4/4", "ort"), "native")
    properties = {entry.key: entry.value for entry in converted.metadata_props}
    assert properties["author"] == "someone"
    assert properties["pdq_export.target"] == "native"


def test_another_opset() -> None:
    file = export("residual", "2/2", "ort")
    for target, opset in (("native", 21), ("ort", 13), ("native", 25), ("qcdq", 13)):
        converted = convert(file, target, opset=opset)
        assert converted.opset_import[0].version == opset
        assert content(convert(converted, "ort")) == content(file)
    raised = convert(export("residual", "2/2", "ort", 13), "native", opset=25)
    assert raised.opset_import[0].version == 25
    assert TensorProto.UINT2 in {tensor.data_type for tensor in raised.graph.initializer}


def with_activation(op_type: str) -> onnx.ModelProto:
    model = nets.chain()
    model.graph.node[1].op_type = op_type
    model = hard_sigmoid.run(model)
    plan = make_plan(model, PlanOptions.of("4/4"))
    tensors = calibrate(model, plan, {"x": nets.images((2, 3, 12, 12))})
    return export_model(model, plan, tensors, metadata={"pdq_export.target": "ort"}, own_opset=21)


def test_a_hard_sigmoid_is_a_clip_of_integers_in_one_layout_alone() -> None:
    file = with_activation("HardSwish")
    converted = convert(file, "qcdq")
    assert [sum(node.op_type == "HardSigmoid" for node in m.graph.node) for m in (file, converted)] == [0, 1]
    assert content(convert(converted, "ort")) == content(file)


def test_an_opset_that_the_graph_does_not_know() -> None:
    file = with_activation("Mish")  # since 18
    assert convert(file, "qcdq").opset_import[0].version == 21
    with pytest.raises(OptionError, match="--opset 13: the graph is of opset 21 and cannot be expressed in 13"):
        convert(file, "qcdq", opset=13)
    with pytest.raises(OptionError, match="--opset 12: expected at least 13"):
        convert(file, "qcdq", opset=12)


@pytest.mark.parametrize("what", ["offsets", "plane", "scale", "node", "source", "cut", "garbage", "zeros", "points"])
def test_a_file_that_was_changed_is_refused(what: str, small_weights_are_packed: None) -> None:
    file = export("residual", "4/4", "ort")
    entry = next(e for e in file.metadata_props if e.key == "pdq_export.source")
    match what:
        case "offsets":
            tensor = next(t for t in file.graph.initializer if t.name == "int4_zeros")
            tensor.raw_data = bytes(len(tensor.raw_data))
        case "plane":
            tensor = next(t for t in file.graph.initializer if t.name == "w1_quantized")
            tensor.raw_data, tensor.dims[0] = tensor.raw_data[: len(tensor.raw_data) // 2], tensor.dims[0] // 2
        case "scale":
            tensor = next(t for t in file.graph.initializer if t.name == "r1_scale")
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(1, np.float32), "r1_scale"))
        case "node":
            del file.graph.node[3]
        case "source":
            file.metadata_props.remove(entry)
        case "cut":
            entry.value = entry.value[:100]
        case "garbage":
            entry.value = "ñ?"
        case "zeros":
            entry.value = ""
        case "points":
            other = next(e for e in export("chain", "4/4", "ort").metadata_props if e.key == "pdq_export.source")
            entry.value = other.value
    with pytest.raises(ModelError, match="quantize the float model again") as info:
        convert(file, "native")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("what", ["planes", "product", "shape", "scale"])
def test_what_would_take_more_than_the_file_holds_is_not_computed(what: str, small_weights_are_packed: None) -> None:
    """Chains that double at every node, and shapes that broadcast to a square."""
    file = export("residual", "4/4", "ort")
    graph = file.graph
    end = next(n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[1] == "w1_scale")
    gather = next(n for n in graph.node if n.op_type == "Gather" and n.output[0] == "w1_row")
    many = onnx.numpy_helper.from_array(np.ones((40_000, 1), np.int8), "many")
    more: list[onnx.NodeProto] = []
    match what:
        case "planes":
            index = base = gather.input[1]
            for n in range(40):
                more.append(onnx.helper.make_node("Gather", [gather.input[0], index], [f"g{n}"]))
                more.append(onnx.helper.make_node("Add", [base, f"g{n}"], [f"m{n}"]))
                more.append(onnx.helper.make_node("Add", [f"m{n}", f"g{n}"], [f"n{n}"]))
                index = f"n{n}"
            gather.input[1] = index
        case "product":
            scale = end.input[1]
            for n in range(40):
                more.append(onnx.helper.make_node("Mul", [scale, scale], [f"s{n}"]))
                scale = f"s{n}"
            end.input[1] = scale
        case "shape":
            end.input[0] = "many"
        case "scale":
            square = onnx.numpy_helper.from_array(np.ones((1, 40_000), np.float32), "wide")
            graph.initializer.append(square)
            more.append(onnx.helper.make_node("Mul", ["many", "wide"], ["square"]))
            end.input[1] = "square"
    graph.initializer.append(many)
    nodes = [*more, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    with pytest.raises(ModelError, match="in its metadata does not fit its graph"):
        convert(file, "native")


def test_inferred_shapes_do_not_matter() -> None:
    file = export("chain", "4/4", "ort")
    assert content(convert(onnx.shape_inference.infer_shapes(file), "native")) == content(convert(file, "native"))


def test_a_float_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    path.write_bytes(content(nets.chain()))
    with pytest.raises(ModelError, match=r"float.onnx: is a float model; expected a file that .* quantize it first"):
        convert(path, "native")


def test_what_is_no_model_is_named() -> None:
    with pytest.raises(ModelError, match=r"bytes given as model; expected a path or an onnx\.ModelProto"):
        convert(b"model", "native")  # type: ignore[arg-type]


@pytest.mark.wide_weights
def test_tensorrt_is_another_calibration() -> None:
    with pytest.raises(OptionError, match="--target tensorrt: a finished file cannot be converted"):
        convert(export("chain", "8/8", "ort"), "tensorrt")
    with pytest.raises(OptionError, match="is a tensorrt file; expected one of native, ort, qcdq, qonnx"):
        convert(export("chain", "8/8", "tensorrt"), "ort")


def test_unknown_targets_are_named() -> None:
    with pytest.raises(OptionError, match="--target 'tpu': unknown"):
        convert(export("chain", "8/8", "ort"), "tpu")


@pytest.mark.parametrize("seed", range(40))
def test_damaged_descriptions_give_one_error(seed: int) -> None:
    """Bytes of the description are changed after decompression, too."""
    file, rng = export("chain", "4/4", "ort"), np.random.default_rng(seed)
    entry = next(e for e in file.metadata_props if e.key == "pdq_export.source")
    data = bytearray(zlib.decompress(base64.b85decode(entry.value)))
    for position in rng.integers(0, len(data), 3):
        data[position] = rng.integers(0, 256)
    entry.value = base64.b85encode(zlib.compress(bytes(data))).decode()
    with contextlib.suppress(PdqError):
        assert convert(file, "native").graph.node


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("written_for", ["ort", "native", "qcdq"])
@pytest.mark.parametrize("form", [2, 3])
def test_files_of_former_forms_are_written_anew(form: int, written_for: str, target: str) -> None:
    """In form 2 biases have no zero_point, and in qcdq asymmetric weights theirs; in 3, ort has UINT2 and UINT4."""
    path = Path(__file__).parent / "former" / f"form{form}-{written_for}.onnx"
    converted = convert(path, target)
    assert {entry.key: entry.value for entry in converted.metadata_props}["pdq_export.target"] == target
    inputs = {len(node.input) for node in converted.graph.node if node.op_type in ("DequantizeLinear", "Quant")}
    assert inputs == ({4} if target == "qonnx" else {3})
    again = convert(converted, target)
    assert again.SerializeToString(deterministic=True) == converted.SerializeToString(deterministic=True)


def test_a_relu6_of_form_3_is_no_clip_of_floats_any_more() -> None:
    former = onnx.load(Path(__file__).parent / "former" / "form3-relu6-qcdq.onnx")
    kinds = [[n.op_type for n in f.graph.node if n.output[0] == "r0"] for f in (former, convert(former, "qcdq"))]
    assert kinds == [["Clip"], ["Relu"]]


def test_a_file_of_a_former_form_gets_the_opset_of_its_model_back() -> None:
    """Which UINT2 had raised to 25."""
    former = onnx.load(Path(__file__).parent / "former" / "form3-ort.onnx")
    converted = convert(former, "ort")
    assert [file.opset_import[0].version for file in (former, converted)] == [25, 17]
    types = [{tensor.data_type for tensor in file.graph.initializer} for file in (former, converted)]
    assert [TensorProto.UINT2 in found for found in types] == [True, False]


@pytest.mark.parametrize("form", [2, 3])
def test_a_changed_file_of_a_former_form_is_refused(form: int) -> None:
    model = onnx.load(Path(__file__).parent / "former" / f"form{form}-ort.onnx")
    next(node for node in model.graph.node if node.op_type == "Clip").op_type = "Max"
    with pytest.raises(ModelError, match="not the one that its metadata describes"):
        convert(model, "native")
