"""Whether an imported network runs at any batch size: calibration draws batches of its own."""

import logging

import onnx
import torch
from torch import fx

from pdq_export.errors import ModelError
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.passes import free_batch

logger = logging.getLogger(__name__)

# Of the largest magnitude. What is not mixed up differs by the order of sums.
_TOLERANCE = 0.01


@torch.no_grad()
def check_batch(network: fx.GraphModule, model: onnx.ModelProto) -> None:
    """Raise ModelError where a network of a fixed batch size, and otherwise known input, does not run at another.

    Warn where it does, but random images influence each other.
    """
    index, batch = GraphIndex(model), free_batch.fixed_batch(model)
    shapes = [index.static_shape(name) for name in index.inputs]
    if batch is None or None in shapes:
        return
    other = batch + 1
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(other, *shape[1:], generator=generator) for shape in shapes if shape is not None]
    reason = ""
    try:
        results = network(*images)
        expected = network(*(x[:batch] for x in images))
    except (RuntimeError, IndexError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
    else:
        ends = [
            (name, y, own)
            for name, y, own in zip(index.outputs, results, expected, strict=True)
            if y.ndim and (index.shape(name) or [None])[0] == batch
        ]
        wrong = next((name for name, y, _ in ends if len(y) != other), None)
        reason = "" if wrong is None else f"output {wrong!r} keeps {batch} images"
        mixed = next((name for name, y, own in ends if _differ(y, own)), None) if wrong is None else None
        if mixed is not None:
            logger.warning(
                "output %r: images that are run together influence each other; calibration runs many at a time, and "
                "may learn the wrong thing; expected a network that treats images alike",
                mixed,
            )
    if reason:
        raise ModelError(
            f"model: its batch size is fixed at {batch}, and it does not run at {other} ({reason}); expected a network "
            "that treats images alike; export it with a dynamic batch axis"
        )


def _differ(result: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether the first images' results are others than those of these images alone, where both are finite."""
    error = (result[: len(expected)] - expected).abs() if expected.is_floating_point() else torch.zeros(1)
    return bool(error.nan_to_num(0.0, 0.0).max() > _TOLERANCE * expected.abs().nan_to_num(0.0, 0.0).max())
