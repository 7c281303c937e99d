"""The files that are tried: two networks, calibrated by rounding to nearest, by bits and layout, and what they mean."""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import pdq_export
from benchmarks.common import open_session
from pdq_export.data import ImageSet, load_images
from pdq_export.errors import PdqError, ValidationError
from pdq_export.graph.save import save_model
from pdq_export.validate import Session

_DATA = Path(__file__).resolve().parents[2] / "calib_data"
EMBEDDED = "embedded"
DEPTHWISE = "depthwise"
NETWORKS = (EMBEDDED, DEPTHWISE)
LAYOUTS = ("ort", "native", "qcdq")
BITS = ("8/8", "4/4", "3/4", "2/2", "4/8", "mixed", "5/5", "6/6", "7/7")
FLOAT, INT8 = "FP32", "ort 8/8"
_ONLY_ORT = ("5/5", "6/6", "7/7")
_MIXED = {"conv1|expand": "2/3", "conv2|depthwise": "3/6", "shortcut|project": "5/4"}
_SAMPLES = 64
ORT_FORMAT = {"Fixed": ".ort", "Runtime": ".with_runtime_opt.ort"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class File:
    """A written file. ``layout``: ort, native, qcdq, or ort with a style of onnxruntime's own format.

    ``runtime``: the lowest onnxruntime that it names for itself. ``failure``: why there is none.
    """

    layout: str
    bits: str
    path: Path
    runtime: str = ""
    failure: str | None = None

    @property
    def name(self) -> str:
        """Layout and bits."""
        return f"{self.layout} {self.bits}"

    @property
    def is_own_format(self) -> bool:
        """Whether it is in onnxruntime's own format, which other runtimes do not read."""
        return self.path.suffix == ".ort"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """Outputs [N, K] by bits: ``says``, what the files say, as integer kernels compute it.

    ``openvino``: the same without the rounding that OpenVINO leaves out, see `without_rounding`.
    """

    says: NDArray[np.float64]
    openvino: NDArray[np.float64]


def float_model(network: str, folder: Path) -> Path:
    """The FP32 file of a network."""
    if network == EMBEDDED:
        return _DATA / "fashion_resnet.onnx"
    path = folder / f"{network}.onnx"
    model = depthwise_network()
    # The mean of the scores is taken off, or all images would be of one class whatever a runtime makes of them.
    scores = Session(model.SerializeToString()).run(load_images(_DATA / "calib.npz", limit=_SAMPLES).images)[0]
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "fc.bias")
    bias.CopyFrom(numpy_helper.from_array(-scores.mean(axis=0), "fc.bias"))
    onnx.save(model, path)
    return path


def images(count: int) -> tuple[ImageSet, NDArray[np.float32]]:
    """Images to calibrate with, and ``count`` others to run."""
    calibration = load_images(_DATA / "calib.npz", limit=_SAMPLES)
    return calibration, load_images(_DATA / "eval.npz", limit=count).images


def write_files(
    model: Path, calibration: ImageSet, folder: Path, *, layouts: Sequence[str], bits: Sequence[str], weights: str
) -> Iterator[File]:
    """One calibration for each of ``bits``, then each layout; ort is always among them, to be compared with.

    Weights have a reduced range, so that no processor saturates. Raises ValidationError where the file in the present
    onnxruntime is not what the simulation computes.
    """
    for name in bits:
        stem = name.replace("/", "-")
        path = folder / f"ort-{stem}.onnx"
        asked = {"bits": "4/4", "layer_bits": _MIXED} if name == "mixed" else {"bits": name}
        made = pdq_export.quantize(
            model,
            calib=calibration,
            method="nearest",
            reduce_range=True,
            weights=weights,
            device="cpu",
            output=path,
            **asked,
        )
        (output,) = made.report.outputs
        if output.quantized_simulated is None or output.quantized_simulated.argmax_agreement != 1:
            raise ValidationError(f"{path.name}: the present onnxruntime does not compute what the simulation does")
        for layout in LAYOUTS:
            if layout not in layouts or (layout != "ort" and name in _ONLY_ORT):
                continue
            written, failure = made.model, None
            if layout != "ort":
                path = folder / f"{layout}-{stem}.onnx"
                try:
                    written = pdq_export.convert(made.model, layout)
                    save_model(path, written)
                except PdqError as error:
                    failure = str(error)
            named = {entry.key: entry.value for entry in written.metadata_props}["pdq_export.min_onnxruntime"]
            yield File(layout=layout, bits=name, path=path, runtime=named, failure=failure)


def own_format(files: Sequence[File], folder: Path) -> Iterator[File]:
    """The files in onnxruntime's own format, in both styles, as the present onnxruntime's tool writes them."""
    for style, suffix in ORT_FORMAT.items():
        tool = [sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", "--optimization_style", style]
        for file in files:
            place = folder / style.lower() / file.path.stem
            place.mkdir(parents=True)
            done = subprocess.run(
                [*tool, "--output_dir", str(place), str(file.path)], capture_output=True, text=True, check=False
            )
            path = place / (file.path.stem + suffix)
            failure = None if path.is_file() else " ".join((done.stderr or done.stdout).strip().splitlines()[-1:])
            yield dataclasses.replace(file, layout=f"{file.layout}, {style}", path=path, failure=failure)


def reference(ort_file: Path, batch: NDArray[np.float32], folder: Path) -> Reference:
    """What an ort file says. The present onnxruntime, which was held against the simulation, computes it."""
    name = open_session(ort_file, 1).get_inputs()[0].name
    says = open_session(ort_file, 1).run(None, {name: batch})[0]
    path = folder / f"{ort_file.stem}-unrounded.onnx"
    onnx.save(without_rounding(onnx.load(ort_file)), path)
    unrounded = Session(path, optimize=False).run(batch)
    return Reference(says=np.asarray(says, np.float64), openvino=np.asarray(unrounded[0], np.float64))


def without_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the pair between a Conv and an Add, the first operand's where both have one.

    Where a Conv and the Add behind it are one kernel with a quantization at its end, OpenVINO's CPU plugin leaves the
    rounding in the middle out, on purpose: it computes the sum more finely than the file says.
    """
    made = {output: node for node in model.graph.node for output in node.output}
    uses: dict[str, int] = {}
    for node in model.graph.node:
        for tensor in node.input:
            uses[tensor] = uses.get(tensor, 0) + 1
    for node in model.graph.node:
        if node.op_type != "Add":
            continue
        for position, tensor in enumerate(node.input):
            pair = [made.get(tensor)]
            while pair[-1] is not None and pair[-1].op_type in ("DequantizeLinear", "QuantizeLinear"):
                pair.append(made.get(pair[-1].input[0]))
            kinds = [found.op_type for found in pair if found is not None]
            if kinds == ["DequantizeLinear", "QuantizeLinear", "Conv"] and uses[tensor] == 1:
                node.input[position] = pair[-1].output[0]  # type: ignore[union-attr]
                break
    return model


def depthwise_network() -> onnx.ModelProto:
    """Inverted residual units with ReLU6 on 1 x 28 x 28, with random weights (seeded)."""
    generator = np.random.default_rng(0)
    nodes, constants = [], []

    def conv(
        source: str, name: str, into: int, out: int, *, size: int, stride: int = 1, group: int = 1, six: bool
    ) -> str:
        fan = size * size * into // group
        weight = generator.normal(0, (2 / fan) ** 0.5, (out, into // group, size, size))
        constants.append(numpy_helper.from_array(_float(weight), f"{name}.weight"))
        constants.append(numpy_helper.from_array(_float(generator.normal(0, 0.1, out)), f"{name}.bias"))
        pads = [size // 2] * 4
        tensors = [source, f"{name}.weight", f"{name}.bias"]
        nodes.append(
            helper.make_node("Conv", tensors, [name], f"/{name}/Conv", pads=pads, strides=[stride] * 2, group=group)
        )
        if six:
            nodes.append(helper.make_node("Clip", [name, "zero", "six"], [f"{name}_6"], f"/{name}/Clip"))
        return f"{name}_6" if six else name

    tensor, channels = conv("image", "stem", 1, 16, size=3, stride=2, six=True), 16
    for unit, (out, stride) in enumerate([(16, 1), (24, 2), (24, 1), (32, 1)]):
        into, name = tensor, f"unit{unit}"
        tensor = conv(into, f"{name}.expand", channels, 4 * channels, size=1, six=True)
        tensor = conv(
            tensor, f"{name}.depthwise", 4 * channels, 4 * channels, size=3, stride=stride, group=4 * channels, six=True
        )
        tensor = conv(tensor, f"{name}.project", 4 * channels, out, size=1, six=False)
        if out == channels and stride == 1:
            nodes.append(helper.make_node("Add", [into, tensor], [f"{name}.sum"], f"/{name}/Add"))
            tensor = f"{name}.sum"
        channels = out
    tensor = conv(tensor, "head", channels, 64, size=1, six=True)
    nodes.append(helper.make_node("GlobalAveragePool", [tensor], ["averages"], "/GlobalAveragePool"))
    nodes.append(helper.make_node("Flatten", ["averages"], ["features"], "/Flatten"))
    constants.append(numpy_helper.from_array(_float(generator.normal(0, 0.2, (64, 10))), "fc.weight"))
    constants.append(numpy_helper.from_array(np.zeros(10, np.float32), "fc.bias"))
    nodes.append(helper.make_node("Gemm", ["features", "fc.weight", "fc.bias"], ["logits"], "/fc/Gemm"))
    constants += [numpy_helper.from_array(_float(value), name) for name, value in (("zero", 0), ("six", 6))]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 28, 28])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])
    graph = helper.make_graph(nodes, "depthwise", [image], [logits], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def _float(values: object) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)
