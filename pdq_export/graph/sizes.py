"""How large the tensors that a graph computes become; checked before anything computes them."""

import math

import onnx

from pdq_export.errors import ModelError
from pdq_export.graph.passes import tidy

LARGEST = 2**31  # elements of one tensor for one image: 8 GiB in float32


def check_tensor_sizes(model: onnx.ModelProto) -> None:
    """Raise ModelError if a tensor is known to be larger than any network needs.

    Absurd pads, shapes or repeats make such tensors. Dynamic axes count as 1. A model whose shapes cannot be inferred
    is left to later checks, which tell why.
    """
    try:
        skeleton = tidy.without_weights(model)
        inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except Exception:  # RuntimeError, ValueError or its own InferenceError
        return
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if math.prod(max(size, 1) for size in sizes) > LARGEST:
            raise ModelError(
                f"tensor {value.name[:200]!r}: has shape {sizes}, more than {LARGEST:,} elements for one image; "
                "expected what fits into memory; check pads, shapes and repeats of the node that computes it"
            )
