"""Whether an imported network runs at any batch size: calibration draws batches of its own."""

import onnx
import torch
from torch import fx

from pdq_export.errors import ModelError
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.passes import free_batch


# Of the largest magnitude. What is not mixed up differs by the order of sums.
_TOLERANCE = 0.01


@torch.no_grad()
def check_batch(network: fx.GraphModule, model: onnx.ModelProto) -> None:
    """Raise ModelError where a network of a fixed batch size, and otherwise known input, does not run at another.

    Or where it runs, but mixes up the images. They are random.
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
        reason = next((f"output {name!r} keeps {batch} images" for name, y, _ in ends if len(y) != other), "")
        reason = reason or next((f"output {name!r} mixes them up" for name, y, own in ends if _differ(y, own)), "")
    if reason:
        raise ModelError(
            f"model: its batch size is fixed at {batch}, and it does not run at {other} ({reason}); expected a network "
            "that treats images alike; export it with a dynamic batch axis"
        )


def _differ(result: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether the first images' results are others than those of these images alone, where both are finite."""
    error = (result[: len(expected)] - expected).abs() if expected.is_floating_point() else torch.zeros(1)
    return bool(error.nan_to_num(0.0, 0.0).max() > _TOLERANCE * expected.abs().nan_to_num(0.0, 0.0).max())
