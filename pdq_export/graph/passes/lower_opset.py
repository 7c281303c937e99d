"""An older opset, where the operators of a graph mean the same in it."""

import onnx


def run(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Declare ``opset`` as the opset of the default domain.

    Between 13 and 25 operators gained types, inputs and attributes. `onnx.checker` has to say whether the graph is
    valid in the lower opset.
    """
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    return model
