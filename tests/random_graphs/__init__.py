"""Small random graphs at 8/8, held against FP32; ``python -m tests.random_graphs SEED`` runs one again."""
