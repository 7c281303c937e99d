"""What the stages share, to plain types and back; and what is refused of a text that somebody else may have written."""

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pdq_export.calibrate.block_state import BlockRecord
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.spec import (
    BitWidths,
    Block,
    ChannelStatistics,
    Layer,
    OutputPart,
    Place,
    Plan,
    Point,
    QuantizedTensor,
    Ramp,
    Role,
)
from pdq_export.spec.plain import from_text, to_plain, to_text

EMBEDDED = Path(__file__).parents[2] / "calib_data" / "fashion_resnet.onnx"
POINT = Point(tensor="w", role=Role.WEIGHT, bits=4, axis=0)
LAYER = Layer(node="n", op_type="Conv", input="x", weight="w", bias=None, output="y")
TENSOR = QuantizedTensor(
    point=POINT,
    scale=np.array([0.1, 1e-30, 3e38], np.float32),
    zero_point=np.array([0, 7, 15], np.int32),
    integers=np.arange(6, dtype=np.int16).reshape(3, 2),
)


def read(kind: type[Any], text: str) -> Any:
    return from_text(kind, text, longest=1 << 20)


@pytest.mark.parametrize(
    "value",
    [
        BitWidths(2, 4),
        POINT,
        LAYER,
        Block(name="b", inputs=("x",), outputs=("y",), nodes=("n", "m"), layers=(LAYER,)),
        Place(axis=1, outer=3),
        Ramp(source="x", knee=3.0, alone=True),
        OutputPart(tensor="t", axis=1, start=0, stop=4),
        Plan(
            bits=BitWidths(4, 2),
            points={"w": POINT},
            passthrough={"z": "y"},
            layers=(LAYER,),
            blocks=(Block(name="b", inputs=("x",), outputs=("y",), nodes=("n",), layers=(LAYER,)),),
            ramps={"r": Ramp(source="x", knee=3.0, alone=False)},
            tail={"nms": "unknown"},
            unquantized={"n": ("x", "y")},
            integer_bias=False,
            parts={"out": (OutputPart(tensor="t", axis=1, start=0, stop=4),)},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_round_trip_gives_the_same(value: Any) -> None:
    for defaults in (True, False):
        text = to_text(value, defaults=defaults)
        assert read(type(value), text) == value
        assert to_text(read(type(value), text), defaults=defaults) == text
    json.dumps(to_plain(value))


def test_a_whole_plan() -> None:
    plan = make_plan(prepare(onnx.load(EMBEDDED)).model, PlanOptions.of("4/2"))
    assert read(Plan, to_text(plan)) == plan


def test_arrays_keep_every_bit() -> None:
    found = read(QuantizedTensor, to_text(TENSOR))
    for name in ("scale", "zero_point", "integers"):
        before, after = getattr(TENSOR, name), getattr(found, name)
        assert (after.dtype, after.shape, after.tobytes()) == (before.dtype, before.shape, before.tobytes())
    special = np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)
    statistics = ChannelStatistics(mean=special, std=special[::-1], gain=np.zeros(0, np.float32))
    again = read(ChannelStatistics, to_text(statistics))
    assert again.mean.tobytes() == special.tobytes()
    assert again.std.tobytes() == special[::-1].tobytes()
    assert again.gain.shape == (0,)
    scalar = QuantizedTensor(point=POINT, scale=np.float32(2).reshape(()), zero_point=np.zeros((), np.int32))
    assert read(QuantizedTensor, to_text(scalar)).scale.shape == ()


def test_numbers_that_are_looked_at_are_a_list() -> None:
    losses = np.array([0.1, 1e-30, np.nan, np.inf], np.float32)
    text = to_text(BlockRecord(losses=losses, seconds={"steps": 1.5}))
    assert text == '{"losses":[0.1,1e-30,null,null],"seconds":{"steps":1.5},"warnings":[]}'
    assert np.array_equal(read(BlockRecord, text).losses, [*losses[:2], np.nan, np.nan], equal_nan=True)
    with pytest.raises(ValueError, match=re.escape("losses[1] is '0'; expected a valid number")):
        read(BlockRecord, '{"losses":[0.1,"0"],"seconds":{}}')


def test_an_array_of_another_type_is_not_written() -> None:
    with pytest.raises(Exception, match="an array of float64; expected float32"):
        to_text(ChannelStatistics(mean=np.zeros(1), std=np.zeros(1), gain=np.zeros(1)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("point.bits", 9, "point.bits is 9; expected at most 8"),
        ("point.bits", True, "point.bits is True; expected a valid integer"),
        ("point.bits", "4", "point.bits is '4'; expected a valid integer"),
        ("point.axis", 8, "point.axis is 8; expected less than 8"),
        ("point.role", "heavy", "point.role is 'heavy'; expected 'weight', 'activation' or 'carrier'"),
        ("point.tensor", None, "point.tensor is None; expected a valid string"),
        ("point.symmetric", 1, "point.symmetric is 1; expected a valid boolean"),
        ("point.kind", 1, "point.kind: unknown"),
        ("point", [], "point is a list; expected"),
        ("scale", [1.0], "scale is a list; expected an array: dtype, shape and data"),
        ("scale.dtype", "float64", "scale is a dict; expected an array of float32"),
        ("scale.dtype", "object", "scale is a dict; expected an array of float32"),
        ("scale.shape", [4], "an array's data are not the 16 bytes"),
        ("scale.shape", [2], "an array's data are not the 8 bytes"),
        ("scale.shape", [-3], "expected a shape of at most 8 sizes"),
        ("scale.shape", [True, 3], "expected a shape of at most 8 sizes"),
        ("scale.shape", [1] * 9, "expected a shape of at most 8 sizes"),
        ("scale.shape", [10**9, 10**9], "expected at most 2,147,483,648"),
        ("scale.data", 3, "expected an array's data as text"),
        ("scale.data", "!", "an array's data cannot be unpacked"),
        ("scale.data", base64.b64encode(b"no zlib").decode(), "an array's data cannot be unpacked"),
        ("scale.data", base64.b64encode(zlib.compress(bytes(12))[:-5]).decode(), "an array's data are not the 12"),
        ("scale.data", base64.b64encode(zlib.compress(bytes(1 << 24))).decode(), "an array's data are not the 12"),
    ],
)
def test_what_is_refused(path: str, value: Any, message: str) -> None:
    plain = to_plain(TENSOR)
    *folders, name = path.split(".")
    inner = plain
    for folder in folders:
        inner = inner[folder]
    inner[name] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        read(QuantizedTensor, json.dumps(plain))
