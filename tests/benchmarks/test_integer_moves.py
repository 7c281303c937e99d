"""Which onnxruntime moves integers: every operator has its cases, and the table says what the installed one does."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benchmarks.integer_moves import WHERE, ask, cases, model
from pdq_export.export.runtimes import moves_integers, parse_version
from pdq_export.operators import OPERATORS

OPSET = 17


def test_every_operator_that_moves_is_tried() -> None:
    tried = {case.op_type for case in cases()}
    assert {name for name, row in OPERATORS.items() if row.moves and name != "Concat"} <= tried


@pytest.mark.parametrize("op_type", ["DepthToSpace", "SpaceToDepth", "Transpose", "MaxPool", "Resize"])
def test_the_table_is_what_the_installed_version_does(op_type: str, tmp_path: Path) -> None:
    tried = [case for case in cases() if case.op_type == op_type and case.since <= OPSET <= case.until]
    paths = [tmp_path / f"{number}.{where}.onnx" for number in range(len(tried)) for where in WHERE]
    for number, case in enumerate(tried):
        for place, where in enumerate(WHERE):
            paths[number * len(WHERE) + place].write_bytes(model(case, OPSET, where))
    version, found = ask(Path(onnxruntime.__file__).parents[1], paths)
    assert version == onnxruntime.__version__
    runs = moves_integers(op_type, parse_version(version))
    for plain, integers, pairs in zip(*(found[place :: len(WHERE)] for place in range(len(WHERE))), strict=True):
        assert plain == pairs
        assert (integers == plain) == runs
        assert np.ptp(plain["ORT_ENABLE_ALL"][0]) > 0
