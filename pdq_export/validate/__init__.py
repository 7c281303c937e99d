"""Measures files in onnxruntime: against FP32 and against the simulation. What it means is told elsewhere."""

import onnx

from pdq_export.validate.compare import Accuracy, AccuracyMeter, Agreement, AgreementMeter, Top1Changes
from pdq_export.validate.deviation import DeviationMeter, Simulate
from pdq_export.validate.kernels import KernelCount
from pdq_export.validate.latency import LatencyPair, Spread, Timing, measure_latency, time_files, try_latency
from pdq_export.validate.measure import (
    BATCH_SIZE,
    Comparison,
    Course,
    Measurements,
    OutputAgreement,
    Share,
    help_validate,
    run_course,
    validate,
)
from pdq_export.validate.metrics import Metric, MetricMeter, MetricValue, compare_metrics
from pdq_export.validate.pair import Pair, open_pair
from pdq_export.validate.parts import PartAgreement
from pdq_export.validate.qonnx import check_runs_qonnx, is_qonnx, runnable
from pdq_export.validate.runtime import (
    Batch,
    Outputs,
    Session,
    Value,
    check_runs_quantized,
    count_kernels,
    kernels_saturate,
    may_reuse_memory,
    min_onnxruntime,
    needed_config,
    open_counted,
    open_session,
    with_outputs,
)

__all__ = [
    "BATCH_SIZE",
    "Accuracy",
    "AccuracyMeter",
    "Agreement",
    "AgreementMeter",
    "Batch",
    "Comparison",
    "Course",
    "DeviationMeter",
    "KernelCount",
    "LatencyPair",
    "Measurements",
    "Metric",
    "MetricMeter",
    "MetricValue",
    "OutputAgreement",
    "Outputs",
    "Pair",
    "PartAgreement",
    "Session",
    "Share",
    "Simulate",
    "Spread",
    "Timing",
    "Top1Changes",
    "Value",
    "check_loads",
    "check_runs_qonnx",
    "check_runs_quantized",
    "compare_metrics",
    "count_kernels",
    "help_validate",
    "is_qonnx",
    "kernels_saturate",
    "may_reuse_memory",
    "measure_latency",
    "min_onnxruntime",
    "needed_config",
    "open_counted",
    "open_pair",
    "open_session",
    "run_course",
    "runnable",
    "time_files",
    "try_latency",
    "validate",
    "with_outputs",
]


def check_loads(model: onnx.ModelProto) -> None:
    """Raise ValidationError where onnxruntime loads ``model`` with no session options that `needed_config` knows."""
    needed_config(model.SerializeToString())
