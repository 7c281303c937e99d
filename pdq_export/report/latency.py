"""What latency means: when bits cost time in onnxruntime and gain nothing there."""

from collections.abc import Mapping
from typing import Any

from pdq_export.advice import with_wide_activations
from pdq_export.errors import percent
from pdq_export.validate import LatencyPair

_NOTICED = 1.02  # less is within what repeating a measurement moves it by


def latency_note(latency: LatencyPair, settings: Mapping[str, Any]) -> str | None:
    """What to do about time that is lost in onnxruntime; None where none is.

    ``settings``: of the run, as a report has them.
    """
    target, notes = settings.get("target", "ort"), []
    if target != "ort" and latency.ratio.low > 1:
        notes.append("onnxruntime takes longer for it than for FP32; --target ort writes what is fast there")
    cost = latency.clip_ratio
    if cost is not None and cost.median >= _NOTICED:
        notes.append(
            f"activations below 8 bits cost {percent(cost.median - 1, 0)} more time ({latency.clips} Clips) and gain "
            f"none in onnxruntime: where it is all that the file is for, take {with_wide_activations(settings)}"
        )
    return "; ".join(notes) or None
