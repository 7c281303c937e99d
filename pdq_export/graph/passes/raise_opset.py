"""A newer opset, by onnx's version converter."""

import onnx

from pdq_export.errors import ModelError
from pdq_export.graph.lookup import opset_version
from pdq_export.graph.messages import essential_line
from pdq_export.graph.passes import constants


def run(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Raise the default domain's opset to ``opset``; a model that has it or a newer one is returned as it is.

    Raises ModelError where onnx cannot convert an operator or its result is not valid.
    """
    current = opset_version(model)
    if opset <= current:
        return model
    try:
        converted = onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # RuntimeError and its own ConvertError
        raise _failure(model, opset, error) from error
    converted = constants.run(converted)
    converted.metadata_props.extend([] if converted.metadata_props else model.metadata_props)
    needed = onnx.helper.find_min_ir_version_for(list(converted.opset_import), ignore_unknown=True)
    converted.ir_version = max(converted.ir_version, needed)
    return converted


def _failure(model: onnx.ModelProto, opset: int, error: Exception) -> ModelError:
    return ModelError(f"model: {essential_line(error)}")
