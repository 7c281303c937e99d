"""Whether an imported network runs at any batch size: calibration draws batches of its own."""

import logging
from collections.abc import Sequence

import onnx
import torch
from torch import Tensor, fx

from pdq_export.errors import ModelError
from pdq_export.frontend.importer import import_model
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.passes import free_batch

logger = logging.getLogger(__name__)

# Of the largest magnitude. What is not mixed up differs by the order of sums.
_TOLERANCE = 0.01
_WRONG_SHAPES = (RuntimeError, IndexError, ValueError)


@torch.no_grad()
def check_batch(network: fx.GraphModule, model: onnx.ModelProto) -> None:
    """Raise ModelError where a network of a fixed batch size, and otherwise known input, does not run at another.

    ``network``: ``model`` freed of its batch size. Warn where images influence each other, as in ``model`` itself.
    """
    index, batch = GraphIndex(model), free_batch.fixed_batch(model)
    shapes = [shape for name in index.inputs if (shape := index.static_shape(name)) is not None]
    if batch is None or len(shapes) < len(index.inputs):
        return
    other = batch + 1
    images = [torch.zeros(other, *shape[1:]) for shape in shapes]
    reason = ""
    try:
        results = network(*images)
    except _WRONG_SHAPES as error:
        reason = " ".join(str(error).split())[:200]
    else:
        ends = [(name, len(y)) for name, y in zip(index.outputs, results, strict=True) if y.ndim]
        wrong = [name for name, size in ends if size != other and (index.shape(name) or [None])[0] == batch]
        reason = f"output {wrong[0]!r} keeps {batch} images" if wrong else ""
    if not reason and (mixed := _mixed_output(network, index, shapes, batch)) is not None:
        try:
            import_model(model)(*images)
        except _WRONG_SHAPES:  # so they were mixed up on the way to the freed network
            reason = f"output {mixed!r} mixes up the images"
        else:
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


def _mixed_output(
    network: fx.GraphModule, index: GraphIndex, shapes: Sequence[tuple[int, ...]], batch: int
) -> str | None:
    """An output whose values for some random images depend on one that is run with them; None where none does."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(batch + 1, *shape[1:], generator=generator) for shape in shapes]
    for x in images:
        x[batch:] = 4 * x[batch:] + 2  # noise has the same averages as other noise
    try:
        together, alone = network(*images), network(*(x[:batch] for x in images))
    except _WRONG_SHAPES:  # noise need not be what the network takes, such as indices
        return None
    ends = zip(index.outputs, together, alone, strict=True)
    return next((name for name, y, own in ends if y.ndim and _differ(y[:batch], own)), None)


def _differ(result: Tensor, expected: Tensor) -> bool:
    """Whether finite values are others; of shapes that are no images' nothing can be said."""
    if not expected.is_floating_point() or result.shape != expected.shape or not expected.numel():
        return False
    error = (result - expected).abs().nan_to_num(0.0, 0.0)
    return bool(error.max() > _TOLERANCE * expected.abs().nan_to_num(0.0, 0.0).max())
