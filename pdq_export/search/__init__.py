"""Where bits count: what quantizing single tensors does to a network, and how bits are allotted by it."""
