"""Quantization arithmetic as pure torch functions, in ONNX names and ONNX order of operations."""
