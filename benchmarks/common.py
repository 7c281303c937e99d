"""What the benchmarks share: sessions, onnxruntime's static quantization, noise images, a clock, lines and tables."""

import argparse
import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pdq_export.commands.quantize import Progress
from pdq_export.data import ImageSet
from pdq_export.errors import ValidationError
from pdq_export.graph.messages import essential_line

Array = NDArray[np.float32]


class StageClock:
    """A progress callback that notes when each stage of `pdq_export.quantize` begins, in wall and CPU seconds."""

    def __init__(self) -> None:
        self.start = self.now()
        self._marks: dict[str, tuple[float, float]] = {}

    def __call__(self, at: Progress) -> None:
        """Take in one report of `pdq_export.quantize`."""
        self._marks.setdefault(at.stage, self.now())

    def until(self, stage: str) -> tuple[float, float]:
        """Wall and CPU seconds (of all threads) from the creation of the clock to the beginning of ``stage``."""
        wall, cpu = self._marks[stage]
        return wall - self.start[0], cpu - self.start[1]

    @staticmethod
    def now() -> tuple[float, float]:
        """Wall and CPU seconds, to be subtracted from each other."""
        return time.perf_counter(), time.process_time()


def open_session(path: Path, threads: int, config: Mapping[str, str] | None = None) -> onnxruntime.InferenceSession:
    """The file in onnxruntime on the CPU, each operator on ``threads`` threads; ``config``: session options.

    Raises ValidationError where it does not load.
    """
    options = onnxruntime.SessionOptions()
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own have no base class of theirs
        raise ValidationError(f"{path.name}: onnxruntime does not load it ({essential_line(error)})") from error


def quantize_with_onnxruntime(
    model: Path, images: Array, folder: Path, batch: int = 32, *, reduce_range: bool = False
) -> Path:
    """Quantize statically with onnxruntime: QDQ, per channel, INT8 weights, min-max over the images.

    ``reduce_range``: weights of 7 bits, which no kernel saturates on.
    """
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
        reduce_range=reduce_range,
    )
    return quantized


def noise(model: Path, count: int, *, seed: int = 0) -> ImageSet:
    """Uniform noise in the model's shape, a byte a pixel as images have it; dynamic spatial axes as 224."""
    shape = open_session(model, 1).get_inputs()[0].shape[1:]
    sizes = [size if isinstance(size, int) and size > 0 else 224 for size in shape]
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *sizes), np.uint8)
    return ImageSet.from_array(pixels, mean=[0.5] * sizes[0], std=[0.25] * sizes[0], source="noise")


def digest(*contents: bytes) -> str:
    """Tells files and images apart, whatever they are called."""
    return hashlib.sha256(b"".join(contents)).hexdigest()[:12]


def parse_setting(text: str) -> tuple[str, str]:
    """NAME=VALUE of a command line."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE")
    return name, value


def append_line(path: Path, line: str) -> None:
    """Add a line to the file at once; one that an interrupted process left unfinished is closed first."""
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + line + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line, without unfinished lines; none where there is no file."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])
