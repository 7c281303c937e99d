"""What latency means: when bits cost time in onnxruntime and gain nothing there."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pdq_export.advice import with_wide_activations
from pdq_export.errors import percent
from pdq_export.validate import KernelCount, LatencyPair

_NOTICED = 1.02  # less is within what repeating a measurement moves it by


def latency_note(
    latency: LatencyPair,
    settings: Mapping[str, Any],
    kernels: KernelCount | None = None,
    layers: Sequence[Mapping[str, Any]] = (),
) -> str | None:
    """What to do about time that is lost in onnxruntime; None where none is.

    ``settings``, ``layers``: of the run, as a report has them. ``kernels``: of the file.
    """
    target, notes = settings.get("target", "ort"), []
    slower, ratio = is_slower(latency), latency.ratio
    time = f"× {ratio.median:.2f} of FP32's time (quartiles {ratio.low:.2f} to {ratio.high:.2f})"
    if slower:
        notes.append(
            f"onnxruntime takes {time} for the file at batch {latency.batch}"
            f"{'' if target == 'ort' else '; --target ort writes what is fast there'}"
        )
    elif ratio.low > 1 and latency.is_disturbed:
        notes.append(
            f"whether the file is slower than FP32 is not known: {time} was measured while the machine was busy (load "
            f"{latency.load:.1f} of {latency.cores} cores); pdq-export bench measures it again"
        )
    cost = latency.clip_ratio
    if cost is not None and cost.median >= _NOTICED and cost.low > 1 and not latency.is_disturbed:
        notes.append(
            f"activations below 8 bits cost {percent(cost.median - 1, 0)} more time ({latency.clips} Clips) and gain "
            f"none in onnxruntime: where it is all that the file is for, take {with_wide_activations(settings)}"
        )
    if slower and kernels is not None and (told := _in_float(kernels)):
        notes.append(f"{told} run in float between integers, and are converted to and fro")
    if slower and target == "ort" and (option := _first_in_float(layers)):
        notes.append(f"try the first layer in float, which has too few channels to gain by integers: {option}")
    return "; ".join(notes) or None


def is_slower(latency: LatencyPair | None) -> bool:
    """Whether a file takes longer than FP32: in three quarters of the rounds, on a machine that had a core for it."""
    return latency is not None and latency.ratio.low > 1 and not latency.is_disturbed


def _first_in_float(layers: Sequence[Mapping[str, Any]]) -> str | None:
    """The option that leaves a network's first convolution in float; None where it is, or where there is none."""
    if not layers or layers[0].get("op_type") != "Conv" or not isinstance(layers[0].get("weight_bits"), int):
        return None
    name = re.escape(str(layers[0].get("node", "")))
    return f"--exclude {shlex.quote(f'^{name}$')}"


def _in_float(kernels: KernelCount) -> str:
    """The layers and other nodes of a file that do not run as integers."""
    counts = {**kernels.between_pairs, **kernels.floating}
    return ", ".join(f"{count} {op_type}" for op_type, count in counts.items())
