"""A plan that somebody has changed: one ValueError that says what was found, whatever it is."""

import json
import re
from typing import Any

import pytest

from pdq_export.errors import OptionError
from pdq_export.export.stored_plan import VersionError, read_plan, write_plan


def plan(**changes: Any) -> str:
    content: dict[str, Any] = {
        "version": 2,
        "opsets": [17, None],
        "bits": "4/2",
        "points": [["w", "weight", 4, 0, False, None], ["y", "activation", 2, None, False, "relu"]],
        "passthrough": {"z": "y"},
        "layers": ["conv"],
        "excluded": [],
        "activations": {"y": [0.5, 3]},
        "zero_points": {"w": [0, 15]},
    }
    return json.dumps({name: value for name, value in {**content, **changes}.items() if value is not ...})


def test_what_a_plan_holds() -> None:
    found = read_plan(plan())
    assert (found.opsets, found.bits) == ((17, None), "4/2")
    points = found.plan_points()
    assert (points["w"].axis, points["y"].absorbed) == (0, "relu")
    assert (found.layers, found.excluded, found.tail) == (("conv",), (), ())
    assert (found.activations, found.zero_points) == ({"y": (0.5, 3)}, {"w": (0, 15)})
    assert write_plan(found) == json.dumps(json.loads(plan()), separators=(",", ":"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opsets": [10**9, None]}, "opsets[0] is 1000000000; expected at most 1000"),
        ({"opsets": [17]}, "opsets[1]: is missing"),
        ({"bits": "4/9"}, "activation bits are 9"),
        ({"runtime": "1.2"}, "runtime is '1.2'; expected 1.15 or newer"),
        ({"bits": 4}, "bits is 4; expected a valid string"),
        ({"points": [["w", "weight", 10**9, 0, False, None]]}, "points[0][2] is 1000000000; expected at most 8"),
        ({"points": [["w", "weight", True, 0, False, None]]}, "points[0][2] is True; expected a valid integer"),
        ({"points": [["w", "weight", 4.0, 0, False, None]]}, "points[0][2] is 4.0; expected a valid integer"),
        ({"points": [["w", "weight", 4, -1, False, None]]}, "points[0][3] is -1; expected at least 0"),
        ({"points": [["w", "weight", 4, 0, 0, None]]}, "points[0][4] is 0; expected a valid boolean"),
        ({"points": [["w", "heavy", 4, 0, False, None]]}, "points[0][1] is 'heavy'; expected 'weight', 'activation'"),
        ({"points": [["w", "weight", 4, 0, False, None]] * 2}, "a name is there twice"),
        ({"activations": {"y": [0.5, 4]}}, "tensor 'y': zero_point is 4; expected an integer from 0 to 3"),
        ({"activations": {"y": [0, 3]}}, "activations.y[0] is 0; expected greater than"),
        ({"activations": {"y": [1e39, 3]}}, "activations.y[0] is 1e+39; expected at most 34028234663852886"),
        ({"activations": {"y": [1e-46, 3]}}, "activations.y[0] is 1e-46; expected greater than"),  # 0 in float32
        ({"activations": {"y": ["0.5", 3]}}, "activations.y[0] is '0.5'; expected a valid number"),
        ({"activations": {"q": [0.5, 3]}}, "tensor 'q' has a zero_point, but is no point"),
        ({"zero_points": {"w": [0, -1]}}, "tensor 'w': zero_point is -1; expected an integer from 0 to 15"),
        ({"zero_points": {"w": [[0]]}}, "is a list; expected a valid integer"),
        ({"passthrough": {"z": ["y"]}}, "passthrough.z is a list; expected a valid string"),
        ({"layers": {}}, "layers is a dict; expected a valid list"),
        ({"layers": ...}, "layers: is missing"),
        ({"points": None}, "points is None; expected a valid list"),
        ({"more": 1}, "more: unknown"),
    ],
)
def test_what_is_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, OptionError), match=re.escape(message)):
        read_plan(plan(**changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10**6, "is nested too deeply"),
        ('{"version":' + "9" * 5000 + "}", "an integer of 5000 digits"),
        (plan().replace("0.5", "NaN"), "NaN in the plan; expected finite numbers"),
        (plan().replace("0.5", "-Infinity"), "-Infinity in the plan"),
        (plan().replace("0.5", "1e999"), "activations.y[0] is inf"),
        (plan()[:-1] + ', "layers": []}', "a name is there twice"),
        (" " * (1 << 24) + plan(), "expected at most 16,777,216"),
        ("[]", "the plan is a list; expected an object"),
        ("", "Expecting value"),
    ],
)
def test_what_a_parser_has_to_bear(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read_plan(text)


def test_another_version_is_told() -> None:
    with pytest.raises(VersionError) as caught:
        read_plan(plan(version=1))
    assert caught.value.found == "1"
