"""The plan as a written file tells it, in JSON. Who wrote it is not known: types and ranges are checked here, once."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from pdq_export.export.layouts import FORM, OLDEST_FORM
from pdq_export.spec import MAX_BITS, MIN_BITS, BitWidths, Point, Role

_LONGEST = 1 << 24  # characters; the plan of a network with 1,000 layers has some hundred thousand
_MOST_AXES = 8
_MOST_DIGITS = 10  # of an integer
_MOST_OPSET = 1000


class VersionError(ValueError):
    """The plan was written by another version; ``found`` says by which."""

    def __init__(self, found: object) -> None:
        super().__init__(f"version {str(found)[:40]}")
        self.found = str(found)[:40]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredPlan:
    """What the JSON holds; layers, excluded nodes and tail are node names, the rest is by tensor name.

    ``form``: of the graph, see `layouts.FORM`. ``unquantized``: by node, the tensors that it reads as they are before
    quantization. ``activations``: scale and zero_point. ``zero_points``: those of weights, one or one a channel; what
    is not in it has 0.
    """

    form: int
    own_opset: int
    max_opset: int | None
    bits: BitWidths
    points: Mapping[str, Point]
    passthrough: Mapping[str, str]
    layers: tuple[str, ...]
    excluded: tuple[str, ...]
    excluded_nodes: tuple[str, ...]
    tail: tuple[str, ...]
    unquantized: Mapping[str, tuple[str, ...]]
    activations: Mapping[str, tuple[float, int]]
    zero_points: Mapping[str, int | list[int]]


def read_plan(text: str) -> StoredPlan:
    """Read the JSON. Raises VersionError for that of another version, ValueError for whatever else is wrong."""
    content = _mapping("the plan", _parse(text))
    form = content.get("version")
    if type(form) is not int or not OLDEST_FORM <= form <= FORM:
        raise VersionError(form)
    own_opset, max_opset = _items("opsets", content.get("opsets"), 2)
    points = _points(content.get("points"))
    return StoredPlan(
        form=form,
        own_opset=_integer("opset", own_opset, 1, _MOST_OPSET),
        max_opset=None if max_opset is None else _integer("opset", max_opset, 1, _MOST_OPSET),
        bits=BitWidths.parse(_text("bits", content.get("bits"))),
        points=points,
        passthrough={
            k: _text("passthrough", v) for k, v in _mapping("passthrough", content.get("passthrough")).items()
        },
        layers=_names("layers", content.get("layers")),
        excluded=_names("excluded", content.get("excluded")),
        excluded_nodes=_names("excluded_nodes", content.get("excluded_nodes", [])),
        tail=_names("tail", content.get("tail", [])),
        unquantized={
            node: _names("unquantized", names)
            for node, names in _mapping("unquantized", content.get("unquantized", {})).items()
        },
        activations=_activations(content.get("activations"), points),
        zero_points=_zero_points(content.get("zero_points"), points),
    )


def _parse(text: str) -> Any:
    if len(text) > _LONGEST:
        raise ValueError(f"the plan has {len(text):,} characters; expected at most {_LONGEST:,}")
    try:
        return json.loads(text, parse_int=_parse_int, parse_constant=_refuse, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("the plan is nested too deeply") from error


def _parse_int(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits; expected at most {_MOST_DIGITS}")
    return int(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} in the plan; expected finite numbers")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice; expected each once")
    return found


def _points(value: Any) -> dict[str, Point]:
    points = [_point(entry) for entry in _items("points", value)]
    return _unique([(point.tensor, point) for point in points])


def _point(value: Any) -> Point:
    tensor, role, bits, axis, symmetric, absorbed = _items("a point", value, 6)
    if not isinstance(symmetric, bool):
        raise ValueError(f"symmetric is {_shown(symmetric)}; expected true or false")
    return Point(
        tensor=_text("a point's tensor", tensor),
        role=Role(_text("a role", role)),
        bits=_integer("bits", bits, MIN_BITS, MAX_BITS),
        axis=None if axis is None else _integer("axis", axis, 0, _MOST_AXES - 1),
        symmetric=symmetric,
        absorbed=None if absorbed is None else _text("an absorbed node", absorbed),
    )


def _activations(value: Any, points: Mapping[str, Point]) -> dict[str, tuple[float, int]]:
    found = {}
    for name, entry in _mapping("activations", value).items():
        scale, zero_point = _items("an activation", entry, 2)
        found[name] = _scale(scale), _zero_point(zero_point, _known(name, points))
    return found


def _zero_points(value: Any, points: Mapping[str, Point]) -> dict[str, int | list[int]]:
    found: dict[str, int | list[int]] = {}
    for name, entry in _mapping("zero_points", value).items():
        point = _known(name, points)
        several = isinstance(entry, list)
        found[name] = [_zero_point(item, point) for item in entry] if several else _zero_point(entry, point)
    return found


def _known(name: str, points: Mapping[str, Point]) -> Point:
    if name not in points:
        raise ValueError(f"tensor {name[:100]!r} has a zero_point, but is no point of the plan")
    return points[name]


def _zero_point(value: Any, point: Point) -> int:
    return _integer("zero_point", value, point.qmin, point.qmax)


def _scale(value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 < value <= float(np.finfo(np.float32).max):
        raise ValueError(f"scale is {_shown(value)}; expected a finite float32 above 0")
    if np.float32(value) == 0:
        raise ValueError(f"scale is {_shown(value)}, 0 in float32; expected more")
    return float(value)


def _integer(what: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} is {_shown(value)}; expected an integer from {low} to {high}")
    return value


def _names(what: str, value: Any) -> tuple[str, ...]:
    return tuple(_text(what, item) for item in _items(what, value))


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what}: {_shown(value)}; expected text")
    return value


def _mapping(what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what}: {_shown(value)}; expected an object")
    return value


def _items(what: str, value: Any, count: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (count is not None and len(value) != count):
        raise ValueError(f"{what}: {_shown(value)}; expected a list{'' if count is None else f' of {count}'}")
    return value


def _shown(value: Any) -> str:
    """A value for a message: containers by their kind, since they may be large."""
    return f"a {type(value).__name__}" if isinstance(value, list | dict) else repr(value)[:60]
