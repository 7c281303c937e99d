"""QONNX's executor against the simulation, on images: classes and the largest difference, by model and bits.

    python -m benchmarks.qonnx MODEL.onnx --calib CALIB.npz --eval EVAL.npz --iters 20

Each model is calibrated for `qonnx`; the written file is cleaned up and run by the package's executor, which makes a
session of every node, on large batches, and its outputs are held against those that the simulation gives for the same
images. onnxruntime runs the float model alone, so that it does not matter whether its kernels saturate. Needs the
package: pip install --no-deps -r tests/qonnx.txt.
"""

import argparse
import dataclasses
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

import pdq_export
from benchmarks.common import Array, markdown
from pdq_export.data import ImageSet, load_images
from pdq_export.validate import BATCH_SIZE

BITS = ("2/2", "3/4", "4/4")
BATCH = 250
# The executor makes a model of each node, in the newest format of onnx, which may be newer than onnxruntime knows.
IR_VERSION = onnx.IR_VERSION_2024_3_25  # 10
CLOSE = 1e-5  # of the largest output


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """``agreement``: of the simulation's classes with FP32's. ``equal``: images whose class the executor and the
    simulation agree on. ``largest``: difference of the two, by the largest output; ``moved``: images on which it is
    more than `CLOSE`. ``seconds``: of calibration and of the executor. ``sizes``: of the file and the FP32 one, bytes.
    """

    bits: str
    images: int
    agreement: float
    equal: int
    largest: float
    moved: int
    seconds: tuple[float, float]
    sizes: tuple[int, int]


class Last:
    """A metric that measures nothing and keeps the outputs of the file that it is called with last: the quantized."""

    def __init__(self) -> None:
        self.outputs: list[Array] = []

    def __call__(self, outputs: Mapping[str, Array], labels: object) -> float:
        self.outputs = list(outputs.values())
        return 0.0


def execute(model: onnx.ModelProto, images: Array, batch: int = BATCH) -> Array:
    """The first output of the cleaned-up model in QONNX's executor, a batch at a time; the last may be filled up."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.util.cleanup import cleanup_model

    cleaned = cleanup_model(ModelWrapper(model), override_inpsize=batch)
    name, output = cleaned.graph.input[0].name, cleaned.graph.output[0].name
    filled = images[np.arange(-(-len(images) // batch) * batch) % len(images)]
    parts = [execute_onnx(cleaned, {name: filled[i : i + batch]})[output] for i in range(0, len(filled), batch)]
    return np.concatenate(parts)[: len(images)]


def measure(model: Path, images: ImageSet, bits: str, arguments: argparse.Namespace) -> Row:
    """Calibrate and run both."""
    began, last = time.perf_counter(), Last()
    result = pdq_export.quantize(
        model,
        bits=bits,
        target="qonnx",
        calib=arguments.calib,
        eval=images,
        simulated_images=len(images) + BATCH_SIZE,  # all
        metrics=[last],
        method=arguments.method,
        preset=arguments.preset,
        samples=arguments.samples,
        **({} if arguments.iters is None else {"iters": arguments.iters}),
        weights=arguments.weights,
        device="cpu",
    )
    calibrated = time.perf_counter()
    expected, found = last.outputs[0], execute(result.model, images.array())
    executed = time.perf_counter()
    differences = np.abs(found - expected).reshape(len(found), -1).max(1) / np.abs(expected).max()
    return Row(
        bits=bits,
        images=len(expected),
        agreement=result.report.outputs[0].against_float.argmax_agreement or 0.0,
        equal=int((found.argmax(1) == expected.argmax(1)).sum()),
        largest=float(differences.max()),
        moved=int((differences > CLOSE).sum()),
        seconds=(calibrated - began, executed - calibrated),
        sizes=(result.model.ByteSize(), model.stat().st_size),
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    head = (
        "bits",
        "images",
        "simulation, classes as FP32",
        "executor, classes as the simulation",
        "largest difference / largest output",
        f"images above {CLOSE:.0e}",
        "size / FP32",
        "seconds of calibration, of the executor",
    )
    return markdown(
        head,
        [
            (
                row.bits,
                str(row.images),
                f"{row.agreement:.1%}",
                str(row.equal),
                f"{row.largest:.1e}",
                str(row.moved),
                f"{row.sizes[0] / row.sizes[1]:.2f}",
                f"{row.seconds[0]:.0f}, {row.seconds[1]:.0f}",
            )
            for row in rows
        ],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a class differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.qonnx", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--bits", nargs="+", default=BITS)
    parser.add_argument("--images", type=int, default=1000, help="to compare")
    parser.add_argument("--method", default="pdq")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--iters", type=int, help="steps a block; 20 are enough that classes mean something at 2/2")
    parser.add_argument("--weights", default="asymmetric")
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")  # of the package's transformations
    onnx.IR_VERSION = IR_VERSION
    images = load_images(given.eval, limit=given.images)
    rows = []
    for bits in given.bits:
        rows.append(measure(given.model, images, bits, given))
        print(rows[-1], file=sys.stderr, flush=True)
    print(table(rows))
    return int(any(row.equal < row.images for row in rows))


if __name__ == "__main__":
    sys.exit(main())
