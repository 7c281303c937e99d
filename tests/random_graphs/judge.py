"""A graph at 8/8 held against FP32 in onnxruntime, on images that calibration did not see."""

import contextlib
import dataclasses
import logging
import re
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pdq_export.commands.quantize import quantize
from pdq_export.errors import PdqError
from pdq_export.validate import kernels_saturate

from .builder import Array, session
from .graphs import LAYERS, Case

LEAST = 20.0  # dB, of the written file
# What rounding every tensor of the FP32 graph to 8 bits over its range leaves, dB: below that, no method is asked more.
CONDITIONED = 24.0
# More distinct values than an 8-bit tensor can have; FP32 has more than twice as many where that can be told.
VALUES = 256
MOVES = set(
    "DepthToSpace Expand Flatten Gather Identity MaxPool Pad Reshape Slice SpaceToDepth Split Squeeze Tile Transpose "
    "Unsqueeze".split()
)
NOTHING = {"samples": 64, "search_samples": 64}
_SAYS = re.compile(r"output '?(?P<name>[^':]+)'?: ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """``wrong``: what is wrong, by output or for the whole; ``said``: what the run said instead of giving a good file.

    ``judged``: how many outputs that is about. ``left_out``: outputs of FP32 that 8 bits cannot give.
    """

    judged: int = 0
    wrong: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def judge(case: Case) -> Verdict:
    """Quantize the graph of a case and compare; no exception but PdqError is let pass."""
    reference = _run(case.model, case.judged)
    names = [value.name for value in case.model.graph.output]
    rounded = _rounded_snr(case, reference)
    fair = [name for name in names if rounded[name] >= CONDITIONED]
    left_out = tuple(name for name in names if name not in fair)
    if not fair:
        return Verdict(left_out=left_out)
    try:
        with _warnings() as warnings, tempfile.TemporaryDirectory(prefix="random-graph-") as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(case.model, path)
            written = quantize(
                path,
                bits="8/8",
                calib=case.calibration,
                method="nearest",
                options=NOTHING,
                device="cpu",
                reduce_range=kernels_saturate(),
            ).model
        found = _run(written, case.judged)
    except PdqError as error:
        return Verdict(said=(f"{type(error).__name__}: {error}",), judged=len(fair), left_out=left_out)
    except Exception as error:
        text = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        return Verdict(wrong=(text,), judged=len(fair), left_out=left_out)
    wrong, said = [], []
    integers = _integers(written)
    for name in fair:
        problem = _problem(reference[name], found.get(name), name in integers)
        told = [text for text in warnings if (match := _SAYS.match(text)) and match["name"] == name]
        if told:
            said.append(told[0])
        elif problem:
            wrong.append(f"output {name!r}: {problem} (rounding every tensor to 8 bits leaves {rounded[name]:.1f} dB)")
    return Verdict(wrong=tuple(wrong), said=tuple(said), judged=len(fair), left_out=left_out)


def snr(reference: Array, found: Array) -> float:
    """In dB; signal is what differs between images."""
    noise = np.square(found.astype(np.float64) - reference).sum()
    signal = np.square(reference - reference.mean(0, dtype=np.float64)).sum()
    return float(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30)))


def _problem(reference: Array, found: Array | None, integers: bool) -> str:
    if found is None or found.shape != reference.shape or found.dtype != reference.dtype:
        return (
            f"is {None if found is None else (found.dtype, found.shape)}; FP32 has {reference.dtype, reference.shape}"
        )
    if not np.isfinite(found).all():
        return "has NaN or infinity"
    if (left := snr(reference, found)) < LEAST:
        return f"{left:.1f} dB"
    values, expected = len(np.unique(found)), len(np.unique(reference))
    return f"{values} distinct values; FP32 has {expected}" if integers and values <= VALUES < expected / 2 else ""


def _integers(model: onnx.ModelProto) -> set[str]:
    """What is dequantized and moved about alone: 8 bits as they are.

    What a float operator computes of 8 bits, a Sigmoid at the end say, is declared (docs/quantized.md).
    """
    found: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" or (node.op_type in MOVES and node.input[0] in found):
            found.update(node.output)
    return found


def _rounded_snr(case: Case, reference: dict[str, Array]) -> dict[str, float]:
    """What is left by output when all that nodes compute with is rounded to 8 bits over its range in calibration.

    It is the graph as the user has it, in onnxruntime, and its functions stay as they are: nothing of ours.
    """
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    literals = [node for node in graph.node if node.op_type == "Constant"]
    constants |= {node.output[0]: numpy_helper.to_array(node.attribute[0].t) for node in literals}
    ranges = _ranges(case, sorted({name for node in graph.node for name in node.input if name} - set(constants)))
    for node in graph.node:
        if node.op_type in LAYERS and (weight := constants.get(node.input[1])) is not None:
            ranges[node.input[1]] = (-float(np.abs(weight).max()), float(np.abs(weight).max()))
    tensors = set(ranges)
    given = [*(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)]
    nodes = [node for name in given for node in _rounding(name, ranges)]
    for node in graph.node:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        copied.input[:] = [f"{name}_rounded" if name in tensors else name for name in node.input]
        nodes.append(copied)
        nodes += [each for name in node.output for each in _rounding(name, ranges)]
    del graph.node[:]
    graph.node.extend(nodes)
    found = _run(model, case.judged, optimize=False)
    return {name: snr(reference[name], found[name]) for name in reference}


def _rounding(name: str, ranges: dict[str, tuple[float, float]]) -> list[onnx.NodeProto]:
    if name not in ranges:
        return []
    low, high = ranges[name]
    scale = np.float32(max(high - low, 1e-12) / 255)
    values = (scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255)))
    parameters = [f"{name}_scale", f"{name}_zero"]
    return [
        *(
            helper.make_node("Constant", [], [parameter], value=numpy_helper.from_array(np.asarray(value)))
            for parameter, value in zip(parameters, values, strict=True)
        ),
        helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}_q"]),
        helper.make_node("DequantizeLinear", [f"{name}_q", *parameters], [f"{name}_rounded"]),
    ]


def _ranges(case: Case, tensors: list[str]) -> dict[str, tuple[float, float]]:
    """Of every tensor, 0 in it."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    del model.graph.output[:]
    inputs = {value.name for value in model.graph.input}
    inner = [name for name in tensors if name not in inputs]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner)
    values = {**case.calibration, **(_run(model, case.calibration, optimize=False) if inner else {})}
    return {name: (min(0.0, float(values[name].min())), max(0.0, float(values[name].max()))) for name in tensors}


def _run(model: onnx.ModelProto, feeds: dict[str, Array], *, optimize: bool = True) -> dict[str, Array]:
    """All outputs by name, over batches of the size that the model has."""
    runs = session(model, optimize=optimize)
    names = [value.name for value in runs.get_outputs()]
    fixed, count = runs.get_inputs()[0].shape[0], len(next(iter(feeds.values())))
    batch = fixed if isinstance(fixed, int) else count
    parts = [
        runs.run(None, {name: value[start : start + batch] for name, value in feeds.items()})
        for start in range(0, count, batch)
    ]
    return {name: np.concatenate(values) for name, values in zip(names, zip(*parts, strict=True), strict=True)}


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """The warnings of the library, as they come."""
    texts: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())

    handler = Keep(logging.WARNING)
    logger = logging.getLogger("pdq_export")
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)
