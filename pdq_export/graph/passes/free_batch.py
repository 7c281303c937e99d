"""Make a model with a fixed batch size run at any: Reshape keeps the batch axis instead of naming its size."""

import numpy as np
import onnx

from pdq_export.graph import edit
from pdq_export.graph.lookup import GraphIndex, attribute


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which constant Reshape shapes that begin with the fixed batch size begin with 0 (keep).

    For calibration only, which draws batches of its own; the exported file keeps the batch size that the user gave.
    """
    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    index = GraphIndex(freed)
    sizes = {shape[0] for name in index.inputs if (shape := index.shape(name))}
    batch = sizes.pop() if len(sizes) == 1 else None
    if not isinstance(batch, int):
        return freed
    for node in freed.graph.node:
        if node.op_type != "Reshape" or node.domain or attribute(node, "allowzero", 0):
            continue
        wanted, shape = index.constant(node.input[1]), index.shape(node.input[0])
        if wanted is not None and wanted.size and shape and wanted[0] == batch == shape[0]:
            name = edit.add_constant(index, f"{node.input[1]}.batch", np.array([0, *wanted[1:]], dtype=np.int64))
            node.input[1] = name
    return freed
