"""onnxsim: folds constants and the exporters' shape arithmetic, keeps BatchNormalization."""

import logging

import onnx
import onnxsim

logger = logging.getLogger(__name__)


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """Simplify with onnxsim; where it fails or changes the model's interface, warn and keep the model as it is."""
    try:
        simplified, _ = onnxsim.simplify(model, skip_fuse_bn=True, certify=False)
    except Exception as error:  # onnxsim raises whatever its C++ core throws
        logger.warning("onnxsim failed (%s); going on with the model as it is", _first_line(error))
        return model
    difference = interface_difference(model, simplified)
    if difference is not None:
        logger.warning("onnxsim changed %s; going on with the model as it is", difference)
        return model
    return simplified


def interface_difference(before: onnx.ModelProto, after: onnx.ModelProto) -> str | None:
    """What differs between the inputs, outputs and opsets of two models, in words; None for nothing."""
    for what, old, new in (
        ("the inputs", before.graph.input, after.graph.input),
        ("the outputs", before.graph.output, after.graph.output),
    ):
        if [value.name for value in old] != [value.name for value in new]:
            return f"the names of {what}"
        for left, right in zip(old, new, strict=True):
            if left.type != right.type:
                return f"the type or shape of {left.name!r}"
    if {(e.domain, e.version) for e in before.opset_import} != {(e.domain, e.version) for e in after.opset_import}:
        return "the opsets"
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
