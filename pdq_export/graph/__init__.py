"""ONNX to ONNX: read a model, check it and bring it into the form that every later stage relies on."""
