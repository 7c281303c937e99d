"""What an error advises works: each remedy that can be followed on what is at hand is followed, and then all is well.

Remedies that ask for another export are followed where the file itself can be made so.
"""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from PIL import Image

from pdq_export import inspect_model
from pdq_export.commands.quantize import quantize
from pdq_export.data import InputSpec, read_data, read_samples
from pdq_export.errors import DataError, PdqError
from pdq_export.fidelity import Fidelity, Probe, UserFile
from pdq_export.graph.load import load_model

from .onnx_text import fill, name_nodes, parse

SHAPES = {"w": (4, 3, 3, 3), "v": (5, 4), "u": (4, 4, 1, 1), "e": (10, 4), "s": (4, 4)}
HEAD = "c = Conv(image, w) r = Relu(c) "
AVERAGE = HEAD + "z = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], ceil_mode = 1, count_include_pad = 1>(r) "
END = "p = GlobalAveragePool(z) f = Flatten(p) y = Gemm<transB = 1>(f, v)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """``broken``: a model. ``message``: what is said. ``mend``: follows the remedy; ``options`` follow one, too."""

    broken: Callable[[], onnx.ModelProto]
    message: Sequence[str]
    mend: Callable[[onnx.ModelProto, Path], onnx.ModelProto] = lambda model, _: model
    before: dict[str, Any] = dataclasses.field(default_factory=dict)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def problems(model: onnx.ModelProto | Path, options: dict[str, Any]) -> list[str]:
    try:
        found = inspect_model(model, **options)
    except PdqError as error:
        return [str(error)]
    return [*found.unsupported, *found.problems]


def make(body: str, **more: Any) -> onnx.ModelProto:
    return name_nodes(fill(parse(body, **more), SHAPES))


def with_constant(model: onnx.ModelProto, name: str, value: Any) -> onnx.ModelProto:
    """An initializer in place of the node or the input that gives a tensor."""
    for node in [node for node in model.graph.node if name in node.output]:
        model.graph.node.remove(node)
    for inp in [inp for inp in model.graph.input if inp.name == name]:
        model.graph.input.remove(inp)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
    return model


BRANCHES = """If(yes) <
    then_branch = a () => (float[N,4,6,6] t) { [inner] t = Conv(r, u) },
    else_branch = b () => (float[N,4,6,6] o) { o = Relu(r) }>
"""
BRIGHT = "m = ReduceMean<keepdims = 0>(image) yes = Greater(m, m) "


def inner_branches() -> onnx.ModelProto:
    body = "r = Relu(image) " + BRIGHT + f"z = {BRANCHES} y = GlobalAveragePool(z)"
    return make(body, inputs="float[N,4,6,6] image", outputs="float[N,4,1,1] y")


def mixed_branches() -> onnx.ModelProto:
    return make(HEAD + BRIGHT + f"z = {BRANCHES}" + END)


LOOP = """l = Loop(times, keep, r) <body = b (int64 i, bool k, float[N,4,6,6] state) => (bool k2, float[N,4,6,6] next) {
    k2 = Identity(k) [inner] next = Conv(state, u) }>
"""


def loop(*, outside: bool) -> onnx.ModelProto:
    end = f"z = Relu(l) {END}" if outside else "y = GlobalAveragePool(l)"
    start = HEAD if outside else "r = Relu(image)"
    shape = "float[N,3,8,8] image" if outside else "float[N,4,6,6] image"
    outputs = "float[N,K] y" if outside else "float[N,4,1,1] y"
    model = make(start + LOOP + end, inputs=f"{shape}, int64 times", outputs=outputs)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "keep"))
    return with_constant(model, "times", np.int64(2))


def written_out(model: onnx.ModelProto, _: Path) -> onnx.ModelProto:
    """The two rounds of the loop as nodes."""
    (node,) = [node for node in model.graph.node if node.op_type == "Loop"]
    at = list(model.graph.node).index(node)
    model.graph.node.remove(node)
    model.graph.node.insert(at, helper.make_node("Conv", ["r", "u"], ["l1"], "first"))
    model.graph.node.insert(at + 1, helper.make_node("Conv", ["l1", "u"], ["l"], "second"))
    return model


def cut(model: onnx.ModelProto, folder: Path, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    """As the message has it, from file to file."""
    onnx.save(model, folder / "old.onnx")
    onnx.utils.extract_model(folder / "old.onnx", folder / "new.onnx", inputs, outputs)
    return load_model(folder / "new.onnx")


def with_weights(model: onnx.ModelProto, _: Path) -> onnx.ModelProto:
    del model.graph.input[1]
    return fill(model, SHAPES)


def replaced(model: onnx.ModelProto, _: Path) -> onnx.ModelProto:
    (node,) = [node for node in model.graph.node if node.op_type == "Bernoulli"]
    node.op_type = "Sigmoid"
    return model


CASES = {
    "all layers in branches": Case(
        broken=inner_branches,
        message=["node 'z' (If)", "then_branch ('inner')", "make its condition 'yes' a constant"],
        mend=lambda model, _: with_constant(model, "yes", True),
    ),
    "a branch between layers": Case(
        broken=mixed_branches,
        message=["node 'z' (If", "its then_branch holds 'inner'", "make its condition 'yes' a constant"],
        mend=lambda model, _: with_constant(model, "yes", True),
    ),
    "a branch between layers, excluded": Case(
        broken=mixed_branches, message=["leave the layers behind it in float (--exclude)"], options={"exclude": "^y$"}
    ),
    "all layers in a loop": Case(
        broken=lambda: loop(outside=False),
        message=["node 'l' (Loop)", "body ('inner')", "with the loop written out"],
        mend=written_out,
    ),
    "a loop between layers": Case(
        broken=lambda: loop(outside=True),
        message=["node 'l' (Loop", "its body holds 'inner'", "with the loop written out"],
        mend=written_out,
    ),
    "a loop between layers, excluded": Case(
        broken=lambda: loop(outside=True),
        message=["leave the layers behind it in float (--exclude)"],
        options={"exclude": "^y$"},
    ),
    "an unknown operator, excluded": Case(
        broken=lambda: make(HEAD + "z = Bernoulli(r)" + END),
        message=["(Bernoulli", "not supported; leave the layers behind it in float (--exclude)"],
        options={"exclude": "^y$"},
    ),
    "an unknown operator, replaced": Case(
        broken=lambda: make(HEAD + "z = Bernoulli(r)" + END),
        message=["or replace it by other operators in the exported model"],
        mend=replaced,
    ),
    "token ids": Case(
        broken=lambda: make(
            "t = Gather(e, ids) q = Transpose<perm = [0, 2, 1]>(t) z = Relu(q) " + END, inputs="int64[N,6] ids"
        ),
        message=["input 'ids': is int64", "onnx.utils.extract_model(old_path, new_path, ['t'], ['y'])"],
        mend=lambda model, folder: cut(model, folder, ["t"], ["y"]),
    ),
    "pixels behind a Cast": Case(
        broken=lambda: make("image = Cast<to = 1>(bytes) " + HEAD + "z = Relu(r)" + END, inputs="uint8[N,3,8,8] bytes"),
        message=["input 'bytes': is uint8", "onnx.utils.extract_model(old_path, new_path, ['image'], ['y'])"],
        mend=lambda model, folder: cut(model, folder, ["image"], ["y"]),
    ),
    "a switch among the inputs": Case(
        broken=lambda: make(HEAD + f"z = {BRANCHES}" + END, inputs="float[N,3,8,8] image, bool yes"),
        message=["make its condition 'yes' a constant"],
        mend=lambda model, _: with_constant(model, "yes", False),
    ),
    "a second input of integers": Case(
        broken=lambda: make(
            HEAD + "o = Cast<to = 1>(offset) z = Add(r, o)" + END, inputs="float[N,3,8,8] image, int64[N,4,6,6] offset"
        ),
        message=[
            "input 'offset': is int64",
            "['image', 'o'], ['y'])",
            "(an initializer 'offset' in place of the input)",
        ],
        mend=lambda model, _: with_constant(model, "offset", np.ones((1, 4, 6, 6), np.int64)),
    ),
    "weights among the inputs": Case(
        broken=lambda: parse(
            "c = Conv(image, w) y = GlobalAveragePool(c)", "float[N,3,8,8] image, float[4,3,3,3] w", "float[N,4,1,1] y"
        ),
        message=["nothing to quantize", "export the model with its weights in it, as initializers"],
        mend=with_weights,
    ),
    "a weight that is quantized and float": Case(
        broken=lambda: make(HEAD + "p = GlobalAveragePool(r) f = Flatten(p) a = Gemm(f, s) b = Relu(a) y = Gemm(b, s)"),
        message=["--exclude: node 'y' shares its weight 's' with 'a'", "exclude both or neither"],
        before={"exclude": "^y$"},
        options={"exclude": "^[ay]$"},
    ),
    "an opset that is older than the model's": Case(
        broken=lambda: make(HEAD + "z = Relu(r)" + END),
        message=["--opset 15: the model's own opset is 17", "export the model with opset 15"],
        before={"opset": 15, "bits": "8/8"},
        mend=lambda model, _: onnx.version_converter.convert_version(model, 15),
        options={"opset": 15, "bits": "8/8"},
    ),
    "an opset that a runtime does not know": Case(
        broken=lambda: make(HEAD + "z = Relu(r)" + END, opset=20),
        message=["--runtime 1.15: the model's own opset is 20", "export the model with opset 18"],
        before={"runtime": "1.15"},
        mend=lambda model, _: _with_opset(model, 18),
        options={"runtime": "1.15"},
    ),
    "an opset that a runtime does not know, and another runtime": Case(
        broken=lambda: make(HEAD + "z = Relu(r)" + END, opset=20),
        message=["or give --runtime 1.17"],
        before={"runtime": "1.15"},
        options={"runtime": "1.17"},
    ),
    "an average that a runtime computes wrongly": Case(
        broken=lambda: make(AVERAGE + END),
        message=["--runtime 1.15: node 'z' (AveragePool), which counts padding,", "export it with ceil_mode=0"],
        before={"runtime": "1.15"},
        mend=lambda model, _: _without_attribute(model, "ceil_mode"),
        options={"runtime": "1.15"},
    ),
    "an average that a runtime computes wrongly, at another opset": Case(
        broken=lambda: make(AVERAGE.replace("ceil_mode = 1, ", "") + END, opset=19),
        message=["node 'z' (AveragePool), which counts padding,", "export the model with opset 18"],
        before={"runtime": "1.16"},
        mend=lambda model, _: _with_opset(model, 18),
        options={"runtime": "1.16"},
    ),
    "two pairs that a runtime makes one of": Case(
        broken=lambda: make(HEAD + "z = Conv(r, u) " + END, outputs="float[N,4,6,6] c, float[N,K] y"),
        message=["--runtime 1.18: node 'r' (Relu) between two pairs needs onnxruntime 1.19", "--exclude '^r$'"],
        before={"runtime": "1.18"},
        options={"runtime": "1.18", "exclude": "^r$"},
    ),
    "a layout that a runtime does not know": Case(
        broken=lambda: make(HEAD + "z = Conv(r, u) " + END),
        message=["of UINT4 needs onnxruntime 1.31", "write it with --target ort"],
        before={"runtime": "1.23", "target": "native", "first_last": "4/4"},
        options={"runtime": "1.23", "target": "ort", "first_last": "4/4"},
    ),
    "a version of onnxruntime for another runtime": Case(
        broken=lambda: make(HEAD + "z = Relu(r)" + END),
        message=["--target tensorrt is for another runtime; leave the option out"],
        before={"runtime": "1.23", "target": "tensorrt", "bits": "8/8"},
        options={"target": "tensorrt", "bits": "8/8"},
    ),
    "a version of onnxruntime that was never tried": Case(
        broken=lambda: make(HEAD + "z = Relu(r)" + END),
        message=["--runtime '1.14': expected a version of onnxruntime as text, 1.15 or newer, such as 1.23"],
        before={"runtime": "1.14"},
        options={"runtime": "1.15"},
    ),
    "Hardmax of an old opset": Case(
        broken=lambda: make(HEAD + "z = Relu(r)" + END.replace("y =", "h =") + " y = Hardmax<axis = 1>(h)", opset=11),
        message=["opset 11 cannot be converted to 13", "export the model with opset 13"],
        mend=lambda model, _: _with_opset(model, 13),
    ),
    "an excluded whole": Case(
        broken=lambda: make(HEAD + "z = Relu(r)" + END),
        message=["matches all 2 layers; expected some that are left to quantize"],
        before={"exclude": "."},
        options={"exclude": "^c$"},
    ),
    "an operator of onnxruntime's optimizer": Case(
        broken=lambda: _optimized("ORT_ENABLE_EXTENDED"),
        message=["com.microsoft.FusedConv", "give the model as it was before onnxruntime optimized it"],
        mend=lambda *_: _optimized("ORT_ENABLE_BASIC"),
    ),
}


def _without_attribute(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    for node in model.graph.node:
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        del node.attribute[:]
        node.attribute.extend(kept)
    return model


def _with_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    model.opset_import[0].version = opset
    return model


def _optimized(level: str) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.optimized_model_filepath = f"{folder}/m.onnx"
        model = make("c = Conv(image, w) r = LeakyRelu(c) z = Identity(r) " + END)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(f"{folder}/m.onnx")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_of_models(case: Case, tmp_path: Path) -> None:
    model = case.broken()
    said = problems(model, case.before)
    assert said
    for part in case.message:
        assert any(part in text for text in said), said
    assert problems(case.mend(model, tmp_path), case.options) == []


def test_layers_in_branches_are_told_where_they_stay_float(caplog: pytest.LogCaptureFixture) -> None:
    """Behind the quantized part, where nothing is refused."""
    model = make(
        HEAD + "p = GlobalAveragePool(r) f = Flatten(p) q = Gemm<transB = 1>(f, v)" + BRIGHT + f"y = {BRANCHES}"
    )
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 6, 6]))
    second = model.graph.output.add()
    second.CopyFrom(helper.make_tensor_value_info("q", TensorProto.FLOAT, ["N", 5]))
    found = inspect_model(model)
    assert found.problems == ()
    (reason,) = [node.reason for node in found.floating if node.node == "y"]
    assert "its then_branch holds 'inner'" in reason
    images = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    quantize(model, calib=images, options={"iters": 2, "samples": 8, "correction_iters": 0}, device="cpu")
    assert "its then_branch holds 'inner'" in caplog.text


def test_float16_that_overflows() -> None:
    """Check how the images are scaled, and export in float32: each of them helps."""
    model = make(HEAD + "z = Relu(r)" + END)
    narrow = onnx.ModelProto()
    narrow.CopyFrom(model)
    for value in (*narrow.graph.input, *narrow.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in narrow.graph.initializer:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    images = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)

    def check(given: onnx.ModelProto, scale: float) -> None:
        Fidelity(UserFile.of(given), [Probe.of([images * scale], None, "images")], ["y"]).check_finite()

    with pytest.raises(PdqError, match="check how the images are scaled, and export a float16 model in float32"):
        check(narrow, 1e6)
    check(narrow, 1.0)
    check(model, 1e6)


SPEC = InputSpec(name="image", shape=(None, 3, 8, 8))
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), np.uint8)
FLOATS = PIXELS.astype(np.float32) / 255
HALF = np.full(3, 0.5, np.float32)


def npz(folder: Path, name: str = "data.npz", **arrays: np.ndarray) -> Path:
    np.savez(folder / name, **arrays)
    return folder / name


def npy(folder: Path, array: np.ndarray) -> Path:
    np.save(folder / "data.npy", array)
    return folder / "data.npy"


def pictures(folder: Path, size: int, settings: str = "", labels: str = "") -> Path:
    target = folder / "pictures"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for number in range(3):
        Image.fromarray(np.full((size, size, 3), 40 * number, np.uint8)).save(target / f"{number}.png")
    for name, text in (("preprocess.toml", settings), ("labels.csv", labels)):
        if text:
            (target / name).write_text(text)
    return target


VECTOR = InputSpec(name="features", shape=(None, 6))
DATA: dict[str, tuple[Callable[[Path], Any], str, Callable[[Path], Any], tuple[InputSpec, ...]]] = {
    "bytes without statistics": (
        lambda p: npz(p, images=PIXELS),
        "store them beside the images as arrays of one value a channel",
        lambda p: npz(p, images=PIXELS, mean=HALF, std=HALF),
        (SPEC,),
    ),
    "bytes in an .npy": (
        lambda p: npy(p, PIXELS),
        "store float32 images, or an .npz with arrays images, mean and std",
        lambda p: npy(p, FLOATS),
        (SPEC,),
    ),
    "bytes in an .npy, as .npz": (
        lambda p: npy(p, PIXELS),
        "store float32 images, or an .npz with arrays images, mean and std",
        lambda p: npz(p, images=PIXELS, mean=HALF, std=HALF),
        (SPEC,),
    ),
    "statistics of 0 to 255": (
        lambda p: npz(p, images=PIXELS, mean=HALF * 255, std=HALF * 255),
        "divide those for 0..255 by 255",
        lambda p: npz(p, images=PIXELS, mean=HALF, std=HALF),
        (SPEC,),
    ),
    "double": (
        lambda p: npz(p, images=FLOATS.astype(np.float64)),
        "convert normalized images with images.astype(np.float32)",
        lambda p: npz(p, images=FLOATS),
        (SPEC,),
    ),
    "one image": (
        lambda p: npy(p, FLOATS[0]),
        "one image needs N = 1 in front",
        lambda p: npy(p, FLOATS[:1]),
        (SPEC,),
    ),
    "channels behind": (
        lambda p: npy(p, FLOATS.transpose(0, 2, 3, 1)),
        "store images.transpose(0, 3, 1, 2)",
        lambda p: npy(p, FLOATS.transpose(0, 2, 3, 1).transpose(0, 3, 1, 2)),
        (SPEC,),
    ),
    "not finite": (
        lambda p: npy(p, np.where(FLOATS.max() == FLOATS, np.nan, FLOATS)),
        "remove or repair it",
        lambda p: npy(p, FLOATS[(FLOATS.max() > FLOATS).all(axis=(1, 2, 3))]),
        (SPEC,),
    ),
    "pictures of another size": (
        lambda p: pictures(p, 12),
        "for example resize = [8, 8]",
        lambda p: pictures(p, 12, "resize = [8, 8]"),
        (SPEC,),
    ),
    "pictures smaller than the crop": (
        lambda p: pictures(p, 6, "crop = 8"),
        "set resize in preprocess.toml",
        lambda p: pictures(p, 6, "crop = 8\nresize = 9"),
        (SPEC,),
    ),
    "pictures without labels": (
        lambda p: pictures(p, 8, labels="file,label\n0.png,1\n"),
        "no label for 2 images, first '1.png'; add them, or remove labels.csv",
        lambda p: pictures(p, 8),
        (SPEC,),
    ),
    "pictures for a model of two channels": (
        lambda p: pictures(p, 8),
        "store the images in an .npz",
        lambda p: npz(p, images=FLOATS[:, :2]),
        (InputSpec(name="image", shape=(None, 2, 8, 8)),),
    ),
    "images for features": (
        lambda p: npy(p, FLOATS),
        "expected",
        lambda p: npz(p, features=FLOATS[:, 0, 0, :6]),
        (VECTOR,),
    ),
    "one array for two inputs": (
        lambda p: npy(p, FLOATS),
        "expected an .npz with one float32 array for each of the model's inputs, 'image', 'features'",
        lambda p: npz(p, image=FLOATS, features=FLOATS[:, 0, 0, :6]),
        (SPEC, VECTOR),
    ),
}


@pytest.mark.parametrize(("broken", "message", "mended", "specs"), DATA.values(), ids=DATA)
def test_of_data(
    broken: Callable[[Path], Any],
    message: str,
    mended: Callable[[Path], Any],
    specs: tuple[InputSpec, ...],
    tmp_path: Path,
) -> None:
    with pytest.raises(DataError) as caught:
        read_data(broken(tmp_path), specs)
    assert message in str(caught.value)
    assert len(read_data(mended(tmp_path), specs)) > 0


def test_of_labels_and_batches(tmp_path: Path) -> None:
    model = make(HEAD + "z = Relu(r)" + END)
    options = {"iters": 2, "samples": 4, "correction_iters": 0}
    wrong, right = (npz(tmp_path, f"{n}.npz", images=FLOATS, labels=np.full(4, n)) for n in (7, 4))
    bare = npz(tmp_path, "bare.npz", images=FLOATS)
    with pytest.raises(DataError, match=r"expected 0 to 4.*; remap the labels, or leave the labels out"):
        quantize(model, calib=wrong, options=options, device="cpu")
    for mended in (right, bare):
        quantize(model, calib=mended, options=options, device="cpu")
    spec = (InputSpec(name="image", shape=(6, 3, 8, 8)),)
    with pytest.raises(DataError, match="4 samples; expected at least 6, the model's batch size"):
        read_samples(bare, None, spec, 8)
    more = npz(tmp_path, "more.npz", images=np.concatenate([FLOATS, FLOATS[::-1]]))
    assert len(read_samples(more, None, spec, 8).judged) == 6
