"""What the benchmarks share: sessions, onnxruntime's own static quantization, noise images, a clock, Markdown."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pdq_export.pipeline import Progress

Array = NDArray[np.float32]


class StageClock:
    """A progress callback that notes when each stage of `pdq_export.quantize` begins, in wall and CPU seconds."""

    def __init__(self) -> None:
        self._start = self._now()
        self._marks: dict[str, tuple[float, float]] = {}

    def __call__(self, at: Progress) -> None:
        self._marks.setdefault(at.stage, self._now())

    def until(self, stage: str) -> tuple[float, float]:
        """Wall and CPU seconds (of all threads) from the creation of the clock to the beginning of ``stage``."""
        wall, cpu = self._marks[stage]
        return wall - self._start[0], cpu - self._start[1]

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """The file in onnxruntime on the CPU, each operator on ``threads`` threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def quantize_with_onnxruntime(model: Path, images: Array, folder: Path, batch: int = 32) -> Path:
    """Quantize statically with onnxruntime: QDQ, per channel, INT8 weights, min-max over the images."""
    from onnxruntime import quantization
    from onnxruntime.quantization import shape_inference

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._name = open_session(model, 1).get_inputs()[0].name
            self._batches: Iterator[int] = iter(range(0, len(images), batch))

        def get_next(self) -> dict[str, Array] | None:
            start = next(self._batches, None)
            return None if start is None else {self._name: images[start : start + batch]}

    prepared, quantized = folder / "prepared.onnx", folder / "int8.onnx"
    shape_inference.quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared),
        str(quantized),
        Images(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return quantized


def random_images(model: Path, count: int = 32) -> Array:
    """Noise in the model's shape, dynamic spatial axes as 224; always the same."""
    shape = open_session(model, 1).get_inputs()[0].shape[1:]
    sizes = [size if isinstance(size, int) and size > 0 else 224 for size in shape]
    return np.random.default_rng(0).standard_normal((count, *sizes), dtype=np.float32)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])
