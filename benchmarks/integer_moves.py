"""Which onnxruntime moves integers: every operator that `ort` leaves on UINT8, in versions that are installed.

    python -m benchmarks.integer_moves FOLDER...

FOLDER: of one version each, from ``pip install --target FOLDER onnxruntime==1.15.1 'numpy<2'``, for this Python. Each
operator is run in float, on UINT8, and in float between two pairs, on the same numbers, at every opset that the version
knows, with graph optimizations and without. Prints what fails or gives other numbers, by operator:
`pdq_export/export/runtimes.py` has that as a table.
"""

import collections
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from pdq_export import operators
from pdq_export.export.runtimes import newest_opset, parse_version

_OLDEST_OPSET, _NEWEST_OPSET = 13, 25
WHERE = ("float", "integers", "pairs")

# Runs in the version that is tried, which has numpy beside it and nothing else.
_WORKER = """
import json, sys
import numpy as np, onnxruntime as ort
print(json.dumps(ort.__version__))
ort.set_default_logger_severity(4)
for path in sys.stdin.read().split():
    found = {}
    for level in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL"):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        try:
            session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            shape = session.get_inputs()[0].shape
            x = (np.arange(np.prod(shape)) * 37 % 251).astype(np.float32).reshape(shape)
            found[level] = [y.astype(float).ravel().tolist() for y in session.run(None, {"x": x})]
        except Exception as error:
            found[level] = str(error)[:300]
    print(json.dumps(found))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A node on data of ``shape``: its constant inputs (None where one is left out) and attributes, from ``since`` on.

    ``until``: the last opset in which it is written so.
    """

    op_type: str
    inputs: Sequence[NDArray[Any] | None] = ()
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shape: Sequence[int] = (2, 8, 6, 6)
    since: int = _OLDEST_OPSET
    until: int = _NEWEST_OPSET
    outputs: int = 1


def _i64(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def cases() -> Iterator[Case]:
    """Every way of moving that differs in its kernel, by operator."""
    square = {"kernel_shape": [2, 2], "strides": [2, 2]}
    yield Case(op_type="Expand", inputs=[_i64(3, 1, 8, 6, 6)], shape=(1, 8, 6, 6))
    yield Case(op_type="Gather", inputs=[_i64(2, 0)], attributes={"axis": 1})
    yield Case(op_type="Gather", inputs=[np.array(3, np.int32)], attributes={"axis": 1})
    yield Case(op_type="MaxPool", attributes=square)
    yield Case(op_type="MaxPool", attributes={**square, "ceil_mode": 1, "kernel_shape": [3, 3]})
    yield Case(op_type="MaxPool", attributes={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]})
    yield Case(op_type="MaxPool", attributes={"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"})
    yield Case(op_type="MaxPool", attributes={"kernel_shape": [2, 2], "dilations": [2, 2]})
    yield Case(op_type="MaxPool", attributes={"kernel_shape": [2]}, shape=(2, 8, 6))
    yield Case(op_type="MaxPool", attributes={"kernel_shape": [2, 2, 2]}, shape=(2, 4, 4, 4, 4))
    pads = _i64(0, 0, 1, 1, 0, 0, 1, 2)
    yield Case(op_type="Pad", inputs=[pads, np.array(7, np.uint8)])
    yield Case(op_type="Pad", inputs=[_i64(0, 0, 1, -1, 0, 0, -2, 2), np.array(7, np.uint8)])
    yield Case(op_type="Pad", inputs=[pads], attributes={"mode": "reflect"})
    yield Case(op_type="Pad", inputs=[pads], attributes={"mode": "edge"})
    yield Case(op_type="Pad", inputs=[pads], attributes={"mode": "wrap"}, since=19)
    yield Case(op_type="Pad", inputs=[_i64(1, 2), np.array(7, np.uint8), _i64(3)], since=18)
    for op_type in ("ReduceMax", "ReduceMin"):
        yield Case(op_type=op_type, attributes={"axes": [2, 3]}, until=17)
        yield Case(op_type=op_type, inputs=[_i64(2, 3)], since=18)
        yield Case(op_type=op_type, inputs=[_i64(1)], attributes={"keepdims": 0}, since=18)
    none = np.zeros(0, np.float32)
    for mode, nearest in (
        ("half_pixel", "round_prefer_floor"),
        ("asymmetric", "floor"),
        ("align_corners", "ceil"),
        ("pytorch_half_pixel", "round_prefer_ceil"),
    ):
        attributes = {"mode": "nearest", "coordinate_transformation_mode": mode, "nearest_mode": nearest}
        yield Case(op_type="Resize", inputs=[None, np.array([1, 1, 2, 2], np.float32)], attributes=attributes)
        yield Case(op_type="Resize", inputs=[none, np.array([1, 1, 2, 2], np.float32)], attributes=attributes)
        yield Case(op_type="Resize", inputs=[None, None, _i64(2, 8, 9, 13)], attributes=attributes)
        yield Case(
            op_type="Resize", inputs=[None, np.array([1, 1, 2], np.float32)], attributes=attributes, shape=(2, 8, 6)
        )
        yield Case(
            op_type="Resize",
            inputs=[None, np.array([1, 1, 2, 2, 2], np.float32)],
            attributes=attributes,
            shape=(1, 4, 4, 4, 4),
        )
    half = {"mode": "nearest", "axes": [2, 3]}
    yield Case(op_type="Resize", inputs=[None, np.array([2, 2], np.float32)], attributes=half, since=18)
    yield Case(
        op_type="Resize",
        inputs=[None, None, _i64(12, 20)],
        attributes={**half, "keep_aspect_ratio_policy": "not_larger"},
        since=18,
    )
    yield Case(op_type="Slice", inputs=[_i64(1), _i64(5), _i64(1), _i64(2)])
    yield Case(op_type="Slice", inputs=[_i64(-1), _i64(-99), _i64(3), _i64(-1)])
    yield Case(op_type="Split", inputs=[_i64(3, 5)], attributes={"axis": 1}, outputs=2)
    yield Case(op_type="Split", attributes={"axis": 1, "num_outputs": 2}, outputs=2, since=18)
    yield Case(op_type="Tile", inputs=[_i64(1, 2, 1, 3)])
    yield Case(op_type="DepthToSpace", attributes={"blocksize": 2})
    yield Case(op_type="DepthToSpace", attributes={"blocksize": 2, "mode": "CRD"})
    yield Case(op_type="SpaceToDepth", attributes={"blocksize": 2})
    yield Case(op_type="Flatten")
    yield Case(op_type="Identity")
    yield Case(op_type="Reshape", inputs=[_i64(0, -1)])
    yield Case(op_type="Reshape", inputs=[_i64(2, 8, 36)], attributes={"allowzero": 1}, since=14)
    yield Case(op_type="Squeeze", inputs=[_i64(2)], shape=(2, 8, 1, 6))
    yield Case(op_type="Transpose", attributes={"perm": [0, 2, 3, 1]})
    yield Case(op_type="Transpose", attributes={"perm": [3, 1, 0, 2]})
    yield Case(op_type="Unsqueeze", inputs=[_i64(1)])
    yield Case(op_type="Shape")
    yield Case(op_type="Shape", attributes={"start": 1}, since=15)
    yield Case(op_type="Size")
    yield Case(op_type="Clip", inputs=[np.array(3, np.uint8), np.array(15, np.uint8)])


def model(case: Case, opset: int, where: str) -> bytes:
    """The node in float alone, on the integers between a pair, or in float between two pairs.

    Data are whole numbers from 0 to 250 and pairs have scale 1: all three give the same.
    """
    integers = where == "integers"
    initializers = [
        numpy_helper.from_array(np.array(1, np.float32), "scale"),
        numpy_helper.from_array(np.array(0, np.uint8), "zero_point"),
    ]
    names = ["" if value is None else f"c{position}" for position, value in enumerate(case.inputs)]
    for name, value in zip(names, case.inputs, strict=True):
        if value is not None:
            stored = value.astype(np.float32) if value.dtype == np.uint8 and not integers else value
            initializers.append(numpy_helper.from_array(np.asarray(stored), name))
    nodes: list[NodeProto] = []

    def then(op_type: str, tensor: str) -> str:
        nodes.append(helper.make_node(op_type, [tensor, "scale", "zero_point"], [f"{tensor}_{op_type[0]}"]))
        return f"{tensor}_{op_type[0]}"

    data, outputs = "x", [f"y{position}" for position in range(case.outputs)]
    if where != "float":
        data = then("QuantizeLinear", data)
    if where == "pairs":
        data = then("DequantizeLinear", data)
    nodes.append(helper.make_node(case.op_type, [data, *names], outputs, name="node", **case.attributes))
    if not operators.get(case.op_type).reads_shape:
        if where == "pairs":
            outputs = [then("QuantizeLinear", tensor) for tensor in outputs]
        if where != "float":
            outputs = [then("DequantizeLinear", tensor) for tensor in outputs]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, case.shape)],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        initializers,
    )
    opsets = [helper.make_opsetid("", opset)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    made = onnx.shape_inference.infer_shapes(made, strict_mode=True)
    onnx.checker.check_model(made)
    content: bytes = made.SerializeToString()
    return content


def ask(folder: Path, paths: Sequence[Path]) -> tuple[str, list[Any]]:
    """Version of the onnxruntime in ``folder``, and what it makes of each file: numbers, or the error, by level."""
    result = subprocess.run(
        [sys.executable, "-S", "-c", _WORKER],
        input="\n".join(map(str, paths)),
        env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    version, *found = map(json.loads, result.stdout.splitlines())
    return version, found


def main(folders: Sequence[str]) -> None:
    """Print what does not move integers, by version and operator."""
    tried = [(case, opset) for case in cases() for opset in range(case.since, case.until + 1)]
    moving = {name for name, row in operators.OPERATORS.items() if row.moves and name != "Concat"}
    if left_out := moving - {case.op_type for case, _ in tried}:
        raise SystemExit(f"cases() has none for {', '.join(sorted(left_out))}; add them")
    with tempfile.TemporaryDirectory() as scratch:
        files = [[Path(scratch) / f"{number}.{where}.onnx" for where in WHERE] for number in range(len(tried))]
        for (case, opset), paths in zip(tried, files, strict=True):
            for where, path in zip(WHERE, paths, strict=True):
                path.write_bytes(model(case, opset, where))
        for folder in folders:
            report(Path(folder), tried, files)


def report(folder: Path, tried: Sequence[tuple[Case, int]], files: Sequence[Sequence[Path]]) -> None:
    """Print what the version in ``folder`` does not do, or does otherwise on integers than in float."""
    newest = newest_opset(parse_version(ask(folder, [])[0])) or _NEWEST_OPSET
    known = [position for position, (_, opset) in enumerate(tried) if opset <= newest]
    version, found = ask(folder, [path for position in known for path in files[position]])
    failed: dict[str, set[int]] = collections.defaultdict(set)
    for number, position in enumerate(known):
        case, opset = tried[position]
        plain, *others = found[number * len(WHERE) : (number + 1) * len(WHERE)]
        inputs = [None if value is None else value.tolist() for value in case.inputs]
        for where, levels in zip(WHERE, [plain, *others], strict=True):
            for level, values in levels.items():
                if isinstance(values, str) or values != plain[level]:
                    why = values if isinstance(values, str) else "other numbers than in float"
                    failed[f"{case.op_type} {dict(case.attributes)} {inputs}, {where}, {level}: {why}"].add(opset)
    print(f"onnxruntime {version}, opsets {_OLDEST_OPSET} to {newest}: {len(known)} cases, {len(failed)} fail")
    for what, opsets in failed.items():
        print(f"  opsets {', '.join(map(str, sorted(opsets)))}: {what}")


if __name__ == "__main__":
    main(sys.argv[1:])
