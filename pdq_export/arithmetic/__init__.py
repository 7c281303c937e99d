"""Arithmetic that the files and their simulation share, in numpy: how biases and integer kernels round."""
