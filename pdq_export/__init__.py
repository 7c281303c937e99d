"""Low-bit post-training quantization of ONNX CNNs with PD-Quant, written for ONNX Runtime.

What is named here is the public API; tests/public_api.txt has its parameters and fields. Other modules may change.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Benchmark",
    "BitWidths",
    "CalibrationOptions",
    "Config",
    "ImageSet",
    "InputSet",
    "Inspection",
    "LayerReport",
    "PdqError",
    "Plan",
    "Progress",
    "Report",
    "Result",
    "SensitivityReport",
    "__version__",
    "bench_models",
    "compare_models",
    "convert",
    "inspect_model",
    "quantize",
    "sensitivity",
    "tune_process",
    "validate_models",
]

if TYPE_CHECKING:
    from pdq_export.commands.bench import bench_models
    from pdq_export.commands.benchmark import Benchmark
    from pdq_export.commands.compare import compare_models
    from pdq_export.commands.convert import convert
    from pdq_export.commands.finishing import Result
    from pdq_export.commands.inspect import Inspection, inspect_model
    from pdq_export.commands.progress import Progress
    from pdq_export.commands.quantize import quantize
    from pdq_export.commands.sensitivity import sensitivity
    from pdq_export.commands.validate import validate_models
    from pdq_export.config.config import Config
    from pdq_export.config.method import CalibrationOptions
    from pdq_export.data import ImageSet, InputSet
    from pdq_export.errors import PdqError
    from pdq_export.process import tune_process
    from pdq_export.report.layers import LayerReport
    from pdq_export.report.report import Report
    from pdq_export.report.sensitivity import SensitivityReport
    from pdq_export.spec import BitWidths, Plan

_HOMES = {
    "Benchmark": "pdq_export.commands.benchmark",
    "BitWidths": "pdq_export.spec",
    "CalibrationOptions": "pdq_export.config.method",
    "Config": "pdq_export.config.config",
    "ImageSet": "pdq_export.data",
    "InputSet": "pdq_export.data",
    "Inspection": "pdq_export.commands.inspect",
    "LayerReport": "pdq_export.report.layers",
    "PdqError": "pdq_export.errors",
    "Plan": "pdq_export.spec",
    "Progress": "pdq_export.commands.progress",
    "Report": "pdq_export.report.report",
    "Result": "pdq_export.commands.finishing",
    "SensitivityReport": "pdq_export.report.sensitivity",
    "bench_models": "pdq_export.commands.bench",
    "compare_models": "pdq_export.commands.compare",
    "convert": "pdq_export.commands.convert",
    "inspect_model": "pdq_export.commands.inspect",
    "quantize": "pdq_export.commands.quantize",
    "sensitivity": "pdq_export.commands.sensitivity",
    "tune_process": "pdq_export.process",
    "validate_models": "pdq_export.commands.validate",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: torch takes seconds, `pdq-export --help` shall not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
