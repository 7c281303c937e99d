"""Whether an imported network runs at any batch size: calibration draws batches of its own."""

import onnx
import torch
from torch import fx

from pdq_export.errors import ModelError
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.passes import free_batch


@torch.no_grad()
def check_batch(network: fx.GraphModule, model: onnx.ModelProto) -> None:
    """Raise ModelError where a network of a fixed batch size, and otherwise known input, does not run at another."""
    index, batch = GraphIndex(model), free_batch.fixed_batch(model)
    shapes = [index.static_shape(name) for name in index.inputs]
    if batch is None or None in shapes:
        return
    other = batch + 1
    reason = ""
    try:
        results = network(*(torch.zeros(other, *shape[1:]) for shape in shapes if shape is not None))
    except (RuntimeError, IndexError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
    else:
        ends = [(name, len(y)) for name, y in zip(index.outputs, results, strict=True) if y.ndim]
        wrong = [name for name, size in ends if size != other and (index.shape(name) or [None])[0] == batch]
        reason = f"output {wrong[0]!r} keeps {batch} images" if wrong else ""
    if reason:
        raise ModelError(
            f"model: its batch size is fixed at {batch}, and it does not run at {other} ({reason}); expected a network "
            "that treats images alike; export it with a dynamic batch axis"
        )
