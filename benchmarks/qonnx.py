"""QONNX's executor against our simulation: argmax and largest difference, by model and bits.

    python -m benchmarks.qonnx calib_data/fashion_resnet.onnx --calib calib_data/calib.npz --eval calib_data/eval.npz

Each model is calibrated for `ort`, measured against its simulation on the images by `pdq_export.quantize` itself, and
converted to `qonnx`; that file is cleaned up and run by the package's executor on the same images. Needs the package:
pip install --no-deps -r tests/qonnx.txt. On processors whose kernels saturate the range is reduced, so that
onnxruntime computes what the simulation does.
"""

import argparse
import dataclasses
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

import pdq_export
from benchmarks.common import Array, markdown
from pdq_export.data import ImageSet, load_images
from pdq_export.validate import Session, kernels_saturate

BITS = ("2/2", "3/4", "4/4")
BATCH = 50
# The executor makes a model of each node, in the newest format of onnx, which may be newer than onnxruntime knows.
IR_VERSION = 10
CLOSE = 1e-5  # of the largest output


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """``simulated``: share of images on which `ort` and simulation agree, and their relative error. ``equal``: share on
    which the executor and `ort` agree. ``largest``: difference of the two, by the largest output; ``moved``: images on
    which it is more than `CLOSE`. ``sizes``: of the `qonnx` and the FP32 file, in bytes.
    """

    bits: str
    images: int
    simulated: tuple[float, float]
    equal: float
    largest: float
    moved: int
    seconds: float
    sizes: tuple[int, int]


def execute(model: onnx.ModelProto, images: Array) -> Array:
    """The first output of the cleaned-up model in QONNX's executor, a batch at a time."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.util.cleanup import cleanup_model

    cleaned = cleanup_model(ModelWrapper(model), override_inpsize=BATCH)
    name, output = cleaned.graph.input[0].name, cleaned.graph.output[0].name
    parts = [execute_onnx(cleaned, {name: images[i : i + BATCH]})[output] for i in range(0, len(images), BATCH)]
    return np.concatenate(parts)


def measure(model: Path, images: ImageSet, bits: str, arguments: argparse.Namespace) -> Row:
    """Calibrate, convert and run both."""
    result = pdq_export.quantize(
        model,
        bits=bits,
        calib=arguments.calib,
        eval=images,
        simulated_images=len(images),
        reduce_range=kernels_saturate(),
        method=arguments.method,
        preset=arguments.preset,
        samples=arguments.samples,
        **({} if arguments.iters is None else {"iters": arguments.iters}),
        weights=arguments.weights,
        device="cpu",
    )
    written, pixels = pdq_export.convert(result.model, "qonnx"), images.array()
    session = Session(result.model.SerializeToString(), threads=1)
    expected = np.concatenate([session.run(pixels[i : i + BATCH])[0] for i in range(0, len(pixels), BATCH)])
    began = time.perf_counter()
    found = execute(written, pixels)
    seconds = time.perf_counter() - began
    differences = np.abs(found - expected).reshape(len(found), -1).max(1) / np.abs(expected).max()
    agreement = result.report.outputs[0].quantized_simulated
    assert agreement is not None, "the simulation sees every image"
    return Row(
        bits=bits,
        images=len(pixels),
        simulated=(agreement.argmax_agreement or 0.0, agreement.relative_error),
        equal=float((found.argmax(1) == expected.argmax(1)).mean()),
        largest=float(differences.max()),
        moved=int((differences > CLOSE).sum()),
        seconds=seconds,
        sizes=(written.ByteSize(), model.stat().st_size),
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    head = (
        "bits",
        "images",
        "`ort`, argmax as simulated",
        "relative error",
        "executor, argmax as `ort`",
        "largest difference / largest output",
        f"images above {CLOSE:.0e}",
        "size / FP32",
        "seconds",
    )
    return markdown(
        head,
        [
            (
                row.bits,
                str(row.images),
                f"{row.simulated[0]:.2%}",
                f"{row.simulated[1]:.1e}",
                f"{row.equal:.2%}",
                f"{row.largest:.1e}",
                str(row.moved),
                f"{row.sizes[0] / row.sizes[1]:.2f}",
                f"{row.seconds:.0f}",
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
    parser.add_argument("--images", type=int, default=1000, help=f"to compare, in batches of {BATCH}")
    parser.add_argument("--method", default="pd-quant")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--iters", type=int)
    parser.add_argument("--weights", default="asymmetric")
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")  # of the package's transformations
    onnx.IR_VERSION = min(onnx.IR_VERSION, IR_VERSION)
    images = load_images(given.eval, limit=given.images)
    rows = []
    for bits in given.bits:
        rows.append(measure(given.model, images, bits, given))
        print(rows[-1], file=sys.stderr, flush=True)
    print(table(rows))
    return int(any(row.equal < 1 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
