"""Latency of quantized files against FP32 and onnxruntime's own static INT8, interleaved in one run.

    python -m benchmarks.latency model.onnx model_4_4.onnx [more.onnx ...] --images calib.npz --own-int8

Every round times each model once, in turn, so that whatever else the machine does meets all of them alike. A
ratio is the median over the rounds of the ratio within a round; "spread" holds its quartiles.
"""

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import Array, markdown, noise, quantize_with_onnxruntime
from pdq_export.data import load_images
from pdq_export.validate import Timing, open_session, time_sessions

OWN_INT8 = "onnxruntime INT8"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(Timing):
    """The timing of one model."""

    name: str


def measure(models: Mapping[str, Path], batch: Array, *, threads: int, rounds: int, seconds: float) -> list[Row]:
    """Time all models on one batch, interleaved, with the session options that they need."""
    sessions = [open_session(path, threads=threads) for path in models.values()]
    timings = time_sessions(sessions, batch, threads=threads, rounds=rounds, least=seconds)
    return [Row(name=name, milliseconds=timing.milliseconds) for name, timing in zip(models, timings, strict=True)]


def table(rows: Sequence[Row], models: dict[str, Path]) -> str:
    """The rows as a Markdown table with ratios to FP32 (the first row) and to onnxruntime's INT8."""
    references = [("FP32", rows[0]), *(("INT8", row) for row in rows if row.name == OWN_INT8)]
    head = ["model", "kB", "median ms", *(f"x {name} (spread)" for name, _ in references)]
    lines = []
    for row in rows:
        cells = [row.name, f"{os.path.getsize(models[row.name]) / 1000:.0f}", f"{row.median:.3f}"]
        for _, reference in references:
            ratio = row.ratio(reference)
            cells.append(f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})")
        lines.append(cells)
    return markdown(head, lines)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("float_model", type=Path, help="the FP32 ONNX file")
    parser.add_argument("quantized", type=Path, nargs="*", help="files to compare with it")
    parser.add_argument("--images", type=Path, help=".npz, .npy or folder; noise where it is missing")
    parser.add_argument("--own-int8", action="store_true", help="add onnxruntime.quantization's static INT8 file")
    parser.add_argument("--samples", type=int, default=128, help="calibration images for --own-int8")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="batch sizes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--seconds", type=float, default=0.02, help="least time of one timing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    if options.images is None:
        images = noise(options.float_model, max(options.batch)).images
    else:
        images = load_images(options.images, limit=options.samples).images
    with tempfile.TemporaryDirectory() as folder:
        models = {"FP32": options.float_model}
        if options.own_int8:
            models[OWN_INT8] = quantize_with_onnxruntime(options.float_model, images, Path(folder))
        models.update({path.name: path for path in options.quantized})
        for size in options.batch:
            batch = np.resize(images, (size, *images.shape[1:]))
            rows = measure(models, batch, threads=options.threads, rounds=options.rounds, seconds=options.seconds)
            print(f"\nbatch {size}, {options.threads} thread(s), {options.rounds} rounds\n")
            print(table(rows, models))


if __name__ == "__main__":
    main()
