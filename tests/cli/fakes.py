"""A stand-in for the pipeline: what is tested here is all that happens around it."""

import dataclasses
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from pdq_export.config.config import Config, flatten, overrides
from pdq_export.config.method import CalibrationOptions
from pdq_export.graph.save import data_path
from pdq_export.report import ModelInfo, Report
from pdq_export.validate import Accuracy, Agreement, KernelCount, OutputAgreement


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeProgress:
    """Has the fields of `pdq_export.commands.quantize.Progress`."""

    stage: str
    block: "FakeBlock | None" = None
    images: int | None = None
    total: int | None = None
    unit: str = "images"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeBlock:
    """Has the fields of `pdq_export.calibrate.BlockProgress`."""

    block: str = "layer"
    index: int
    count: int
    step: int
    steps: int
    loss: float = 1.0
    phase: str = ""


def agreement(argmax: float | None = 0.95, sqnr: float | None = 21.34) -> Agreement:
    return Agreement(
        images=200,
        argmax_agreement=argmax,
        chance_agreement=None if argmax is None else 0.1,
        sqnr_db=sqnr,
        relative_error=0.1,
        median_relative_error=0.1,
        max_relative_error=0.2,
    )


def make_report(**changes: Any) -> Report:
    output = OutputAgreement(
        name="logits", quantized_float=agreement(), quantized_simulated=agreement(1.0, None), simulated_float=None
    )
    report = Report(
        model=ModelInfo(name="m.onnx", sha256="0", size=1_000_000),
        quantized=ModelInfo(name="q.onnx", sha256="1", size=175_000),
        images=200,
        float_accuracy=Accuracy(images=200, top1=0.931, top5=0.999),
        quantized_accuracy=Accuracy(images=200, top1=0.926, top5=1.0),
        simulated_accuracy=None,
        outputs=(output,),
        kernels=KernelCount(integer={"QLinearConv": 7, "QGemm": 1}, floating={}, floating_nodes=()),
        settings={"bits": "4/4", "evaluated_on_calibration_images": False},
    )
    return dataclasses.replace(report, **changes)


@dataclasses.dataclass
class FakePipeline:
    """Records the call of `quantize` and does what `act` says: raise, or report progress."""

    calls: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    report: Report = dataclasses.field(default_factory=make_report)
    act: Callable[[Callable[[FakeProgress], None]], None] = lambda _: None

    def quantize(self, model: Path, *, config: Config, progress: Any) -> Any:
        method = overrides(config)
        numbers = CalibrationOptions.__dataclass_fields__
        options = {name: value for name, value in flatten(config).items() if name not in numbers}
        self.calls.append({"model": model, "progress": progress, "options": method, **options})
        self.act(progress)
        output = Path(options["output"])
        files = (output, *([data_path(output)] if options["external_data"] else []))
        for path in files:
            path.write_bytes(b"quantized")
        for path in map(Path, options["report"]):
            path.write_text(self.report.to_json(), encoding="utf-8")
            files = (*files, path)
        return types.SimpleNamespace(model=onnx.ModelProto(), plan=None, tensors={}, report=self.report, files=files)
