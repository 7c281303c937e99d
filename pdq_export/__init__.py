"""Low-bit post-training quantization of ONNX CNNs with PD-Quant, written for ONNX Runtime."""

__version__ = "0.1.0"
