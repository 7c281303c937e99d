"""The node tests that the onnx package ships, for everything whose operators are in the table.

The tests bring models, inputs and expected outputs, and the tolerances. An exclusion that is no longer needed fails.
"""

import fnmatch
import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.backend.test.case.test_case import TestCase as NodeTest

from pdq_export.frontend import OLDEST_OPSET, import_model, ops, supported_operators
from pdq_export.frontend.constants import to_torch
from pdq_export.frontend.registry import table

SMALL_TYPE = "an element type of 8 bits or fewer in which torch does not compute"
TRAINING = "training mode; refused with a message"
NO_TENSOR = "an input that is a sequence, optional or text, not a tensor of numbers; refused with a message"
LENGTH = (
    "divides by size * scale before it is rounded down; the operator's text and onnxruntime (which leaves this test "
    "out as well) divide by the length of the result"
)

EXCLUDED = {
    **{f"test_cast_*{small}*": SMALL_TYPE for small in ("FLOAT8", "FLOAT4", "INT4", "INT2")},
    **{f"test_castlike_*{small}*": SMALL_TYPE for small in ("FLOAT8", "FLOAT4", "INT4", "INT2")},
    "test_batchnorm_example_training_mode": TRAINING,
    "test_batchnorm_epsilon_training_mode": TRAINING,
    "test_training_dropout*": TRAINING,
    "test_equal_string*": NO_TENSOR,
    "test_identity_sequence": NO_TENSOR,
    "test_identity_opt": NO_TENSOR,
    "test_resize_downsample_scales_linear_align_corners": LENGTH,
    "test_resize_downsample_scales_cubic_align_corners": LENGTH,
}


def node_keys(model: onnx.ModelProto) -> set[tuple[str, str, int]] | None:
    """The (domain, operator, version) of every node, or None where the installed onnx does not know one of them."""
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    keys = set()
    for node in model.graph.node:
        try:
            schema = onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
        except (KeyError, onnx.defs.SchemaError):
            return None
        keys.add((node.domain, node.op_type, schema.since_version))
    return keys


@functools.cache
def node_tests() -> dict[str, NodeTest]:
    """All node tests whose operators are in the table, by name."""
    from onnx.backend.test.loader import load_model_tests

    ops.load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tests = load_model_tests(kind="node")
    found = {}
    for test in tests:
        keys = node_keys(test.model)
        opset = max((entry.version for entry in test.model.opset_import if entry.domain == ""), default=0)
        if keys is not None and keys <= set(table()) and opset >= OLDEST_OPSET:
            found[test.name] = test
    return found


def exclusion(name: str) -> str | None:
    return next((why for pattern, why in EXCLUDED.items() if fnmatch.fnmatchcase(name, pattern)), None)


def parameters() -> list[Any]:
    return [
        pytest.param(name, marks=pytest.mark.xfail(reason=why, strict=True) if (why := exclusion(name)) else ())
        for name in node_tests()
    ]


def as_tensor(value: Any) -> torch.Tensor:
    """A test's array or TensorProto; bfloat16 arrays are of a type that torch cannot read."""
    if isinstance(value, onnx.TensorProto):
        return to_torch(value)
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def relative_tolerance(test: NodeTest, expected: torch.Tensor) -> float:
    """The test's own, or where 16 bits are coarser one unit in the last place, four for a chain of operators."""
    if expected.dtype not in (torch.float16, torch.bfloat16):
        return float(test.rtol)
    return max(float(test.rtol), torch.finfo(expected.dtype).eps * (1 if len(test.model.graph.node) == 1 else 4))


@pytest.mark.parametrize("name", parameters())
def test_standard(name: str, record_property: Callable[[str, object], None]) -> None:
    test = node_tests()[name]
    module = import_model(test.model)
    for inputs, outputs in test.data_sets:
        found = module(*(as_tensor(value) for value in inputs))
        assert isinstance(found, tuple)
        assert len(found) == len(outputs)
        for ours, value in zip(found, outputs, strict=True):
            expected = as_tensor(value)
            assert ours.dtype == expected.dtype
            assert ours.shape == expected.shape
            rtol = relative_tolerance(test, expected)
            if expected.dtype == torch.bfloat16:
                ours, expected = ours.float(), expected.float()
            np.testing.assert_allclose(ours.numpy(), expected.numpy(), rtol=rtol, atol=test.atol)
    record_property("standard_operators", " ".join(node.op_type for node in test.model.graph.node))


def test_every_exclusion_names_a_test() -> None:
    unused = [pattern for pattern in EXCLUDED if not fnmatch.filter(node_tests(), pattern)]
    assert not unused


def test_every_operator_has_a_standard_test() -> None:
    run = [test for name, test in node_tests().items() if exclusion(name) is None]
    covered = {node.op_type for test in run for node in test.model.graph.node}
    # Xor's are of opset 7, Upsample's and GlobalLpPool's do not exist: test_old_versions.py has these.
    assert set(supported_operators()) - covered <= {"GlobalLpPool", "Xor", "Upsample"}


def test_every_version_of_a_known_operator_is_in_the_table() -> None:
    ops.load()
    reachable, deprecated = set(), set()
    for op_type in supported_operators():
        for opset in range(OLDEST_OPSET, onnx.defs.onnx_opset_version() + 1):
            try:
                schema = onnx.defs.get_schema(op_type, opset)
            except onnx.defs.SchemaError:
                continue
            (deprecated if schema.deprecated else reachable).add(("", op_type, schema.since_version))
    assert reachable <= set(table())
    assert set(table()) <= reachable | deprecated
