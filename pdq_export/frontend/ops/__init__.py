"""The converters, one module for each family of operators."""

import importlib

FAMILIES = (
    "activation",
    "arithmetic",
    "comparison",
    "constant",
    "conv",
    "gather",
    "linear",
    "normalize",
    "pad",
    "pool",
    "recurrent",
    "reduce",
    "resize",
    "shape",
    "softmax",
)


def load() -> None:
    """Import every family; its converters register themselves once."""
    for family in FAMILIES:
        importlib.import_module(f"pdq_export.frontend.ops.{family}")
