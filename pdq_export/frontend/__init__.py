"""ONNX -> torch.fx: ``import_model`` and the operator table behind it."""

from pdq_export.frontend import ops
from pdq_export.frontend.batch import check_batch, find_batch_blockers, import_network
from pdq_export.frontend.importer import find_unsupported, import_model
from pdq_export.frontend.registry import OLDEST_OPSET, table
from pdq_export.frontend.trial import check_runs, compute_tensor, compute_tensors


def supported_operators() -> dict[str, tuple[int, ...]]:
    """The versions (opsets of change) of every operator that can be imported, by name.

    Operators of custom domains are called ``domain.name``.
    """
    ops.load()
    versions: dict[str, list[int]] = {}
    for domain, op_type, version in sorted(table()):
        versions.setdefault(f"{domain}.{op_type}" if domain else op_type, []).append(version)
    return {name: tuple(found) for name, found in versions.items()}


__all__ = [
    "OLDEST_OPSET",
    "check_batch",
    "check_runs",
    "compute_tensor",
    "compute_tensors",
    "find_batch_blockers",
    "find_unsupported",
    "import_model",
    "import_network",
    "supported_operators",
]
