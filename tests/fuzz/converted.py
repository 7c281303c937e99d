"""Quantized files whose description of themselves, or whose graph, somebody has changed."""

import base64
import functools
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pdq_export.commands.quantize import quantize
from pdq_export.export import packing
from tests.fuzz import models
from tests.fuzz.models import Generator

_KEY = "pdq_export.source"
_TARGETS = ("ort", "native", "qcdq", "qonnx")
_NUMBERS = [*models.NUMBERS, *models.FLOATS, 10**30, 1e-46, 1e39, 4, 8, 9]
_OTHERS: list[Any] = [None, True, "", "x", "é" * 300, "4/99", "99/4", "weight", [], {}, [[]], [1, 2], {"a": 1}]


@functools.cache
def base(number: int) -> bytes:
    """A valid file, the same every time."""
    images = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    result = quantize(
        models.base(number // len(_TARGETS)),
        bits=("4/4", "2/2", "3/8")[number % 2],
        calib=images,
        method="nearest",
        options={"samples": 2, "search_samples": 2},
        target=_TARGETS[number % len(_TARGETS)],
        device="cpu",
    )
    return result.model.SerializeToString()


def _pick(generator: Generator, items: Any) -> Any:
    return items[int(generator.integers(len(items)))]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key in a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    found = [(value, key) for key in keys]
    return found + [place for key in keys for place in _places(value[key])]


def plan_value(text: str, generator: Generator) -> str:
    """One value of the plan is absurd, gone or twice there."""
    plan = json.loads(text)
    for _ in range(_pick(generator, [1, 1, 2])):
        owner, key = _pick(generator, _places(plan))
        match int(generator.integers(8)):
            case 0 | 1 | 2:
                owner[key] = _pick(generator, _NUMBERS)
            case 3 | 4:
                owner[key] = _pick(generator, _OTHERS)
            case 5:
                del owner[key]
            case 6 if isinstance(owner, list):
                owner.append(owner[key])
            case _:
                other, place = _pick(generator, _places(plan))
                owner[key] = json.loads(json.dumps(other[place]))
    return json.dumps(plan)


def plan_text(text: str, generator: Generator) -> str:
    """What a parser of JSON has to bear: depth, digits, constants, repeated names, any byte."""
    place = int(generator.integers(len(text)))
    match int(generator.integers(6)):
        case 0:
            return "[" * _pick(generator, [100, 10_000, 10**6])
        case 1:
            return text.replace('"layers":', '"layers":' + "[" * 10**5 + "]" * 10**5 + ',"layers":', 1)
        case 2:
            return text.replace("0,", "9" * _pick(generator, [20, 400, 5000]) + ",", 1)
        case 3:
            return text.replace("0.0", _pick(generator, ["NaN", "Infinity", "-Infinity", "1e999"]), 1)
        case 4:
            return text[:-1] + ',"points":[],"tail":' + _pick(generator, ["[]", "5", '["y"]', "null"]) + "}"
        case _:
            return text[:place] + chr(int(generator.integers(32, 255))) + text[place + 1 :]


# In the process of these tests, small weights are packed in bytes as well: planes are read back.
packing.UNPACKING_NODE_BYTES = packing.TABLE_BYTES = 0

Change = Callable[[str, Generator], str]
_PLAN: list[Change] = [plan_value, plan_value, plan_value, plan_text]


def write_case(seed: int, folder: Path) -> tuple[Path, str]:
    """The file of a seed, and what was done to it."""
    generator = np.random.default_rng([3, seed])
    file = onnx.ModelProto.FromString(base(int(generator.integers(9))))
    entry = next(e for e in file.metadata_props if e.key == _KEY)
    skeleton = onnx.ModelProto.FromString(zlib.decompress(base64.b85decode(entry.value)))
    match int(generator.integers(8)):
        case 0:
            what = _mutate(file, generator)
        case 1:
            what = f"described: {_mutate(skeleton, generator)}"
        case 2:
            what = "both graphs alike"
            mutation = _pick(generator, models.MUTATIONS)
            for model in (file, skeleton):
                _try(mutation, model, np.random.default_rng(seed))
        case _:
            change = _pick(generator, _PLAN)
            plan = next(e for e in skeleton.metadata_props if e.key == "plan")
            plan.value, what = change(plan.value, generator), change.__name__
    data = skeleton.SerializeToString()
    if what != "bytes" and generator.random() < 0.1:
        data, what = models.mutated_bytes(data, generator), f"{what}, bytes"
    entry = next((e for e in file.metadata_props if e.key == _KEY), entry)
    entry.value = base64.b85encode(zlib.compress(data, 1)).decode()
    path = folder / "m.onnx"
    path.write_bytes(file.SerializeToString())
    return path, what


def _mutate(model: onnx.ModelProto, generator: Generator) -> str:
    mutation = _pick(generator, models.MUTATIONS)
    _try(mutation, model, generator)
    return str(mutation.__name__)


def _try(mutation: models.Mutation, model: onnx.ModelProto, generator: Generator) -> None:
    try:
        mutation(model, generator)
    except Exception:
        return  # there is nothing in this file to do this to
