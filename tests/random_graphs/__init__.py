"""Small random graphs, quantized at 8/8 and held against FP32; ``python -m tests.random_graphs SEED`` runs one again."""
