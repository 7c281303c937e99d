"""The file of an `Allotment`, as TOML or JSON."""

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdq_export.config.option import did_you_mean, shown
from pdq_export.config.toml import literal
from pdq_export.errors import OptionError
from pdq_export.nearby import near_path
from pdq_export.runs import read_bounded
from pdq_export.search.allotment import Allotment, LayerBits
from pdq_export.spec import MAX_BITS, MIN_BITS, BitWidths
from pdq_export.spec.plain import parse_json

_LONGEST = 4_000_000  # bytes
_HEAD = """\
# Bits of layers; pdq-export quantize and inspect take them with --bits-from.
# W: bits of a layer's weight. A: bits of the activation that the layer ends in, behind its activation function, or
# behind the Add that it leads to. What is not named here has the bits that "bits" says, but for the first and last
# layers, which have those of --first-last. Options for single layers, --exclude, --layer-bits and --first-last, come
# before what is said here.
"""
_SEAL = "# By this --overwrite knows that nobody has edited the file: "


def write_bits(allotment: Allotment, *, as_json: bool = False, beside: str = "") -> str:
    """The text of a file that `read_bits` reads; equal allotments, equal texts.

    ``beside``: the options under which the bits were found, which do not stand in it; TOML says them in a comment.
    """
    layers = {name: _given(bits) for name, bits in allotment.layers.items()}
    of = {name: value for name, value in (("model", allotment.model), ("sha256", allotment.sha256)) if value}
    if as_json:
        content = {"bits": str(allotment.bits), **of, "layers": layers, "tensors": dict(allotment.tensors)}
        return json.dumps({name: value for name, value in content.items() if value}, indent=2) + "\n"
    lines = [f"{name} = {literal(value)}\n" for name, value in {"bits": str(allotment.bits), **of}.items()]
    lines.append("\n[layers]\n")
    for name, given in layers.items():
        inside = ", ".join(f"{key} = {bits}" for key, bits in given.items())
        lines.append(f"{literal(name)} = {{ {inside} }}\n")
    if allotment.tensors:
        lines.append("\n[tensors]  # activations that no layer ends in\n")
        lines += [f"{literal(name)} = {bits}\n" for name, bits in allotment.tensors.items()]
    head = f"{_HEAD}# The options that these bits were chosen with: {beside}\n" if beside else _HEAD
    return _sealed(head + "".join(lines))


def is_edited(path: Path) -> bool:
    """Whether a file is not what `write_bits` has written as TOML, to the letter; one that cannot be read counts."""
    try:
        lines = read_bounded(path.resolve(), _LONGEST).decode().splitlines(keepends=True)
    except (OSError, ValueError):
        return True
    text = "".join(line.rstrip("\r\n") + "\n" for line in lines)  # version control may write ends of lines anew
    return text != _sealed("".join(text.splitlines(keepends=True)[:-1]))


def _sealed(text: str) -> str:
    return f"{text}{_SEAL}{hashlib.sha256(text.encode()).hexdigest()[:16]}\n"


def _given(bits: LayerBits) -> dict[str, int]:
    return {name: value for name, value in dataclasses.asdict(bits).items() if value is not None}


def read_bits(path: str | Path) -> Allotment:
    """Read a file of bits; one whose name ends in .json is JSON. Raises OptionError, with what is wrong where."""
    path = Path(path)
    where = f"--bits-from {path}"
    content = _parse(path, where)
    known = ("bits", "model", "sha256", "layers", "tensors")
    for key in content:
        if key not in known:
            raise OptionError(f"{where}: {key!r} is unknown; expected {', '.join(known)}{did_you_mean(key, known)}")
    if "bits" not in content:
        raise OptionError(f'{where}: bits is missing; expected W/A of all layers, such as bits = "4/8"')
    if not isinstance(content["bits"], str):
        raise OptionError(f'{where}: bits is {shown(content["bits"])}; expected W/A of all layers, such as "4/8"')
    of = {key: content.get(key, "") for key in ("model", "sha256")}
    for key, value in of.items():
        if not isinstance(value, str):
            raise OptionError(f"{where}: {key} is {shown(value)}; expected text")
    layers = {name: _layer(where, name, value) for name, value in _table(content, "layers", where).items()}
    tensors = _table(content, "tensors", where)
    for name, value in tensors.items():
        _check(value, f"{where}: tensor {name!r}")
    bits = BitWidths.parse(content["bits"], option=f"{where}: bits")
    return Allotment(bits=bits, layers=layers, tensors=tensors, **of)


def _parse(path: Path, where: str) -> Mapping[str, Any]:
    try:
        text = read_bounded(path.resolve(), _LONGEST).decode("utf-8-sig")
        if path.suffix.lower() == ".json":
            content = parse_json(text, longest=_LONGEST, what="the file")
        else:
            content = tomllib.loads(text)
    except OSError as error:
        near = near_path(path, ".toml", ".json") if isinstance(error, FileNotFoundError) else ""
        raise OptionError(
            f"{where}: cannot be read: {error.strerror}; expected a file that quantize --bits auto wrote{near}"
        ) from error
    except (ValueError, RecursionError) as error:  # no TOML, no JSON, no UTF-8
        kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
        raise OptionError(
            f"{where}: is not {kind}: {error}; expected a file that quantize --bits auto wrote"
        ) from error
    if not isinstance(content, dict):
        raise OptionError(f"{where}: is {shown(content)}; expected an object with bits and layers")
    return content


def _table(content: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = content.get(key, {})
    if not isinstance(value, dict):
        raise OptionError(f"{where}: {key} is {shown(value)}; expected names with their bits")
    return value


def _layer(where: str, name: str, value: Any) -> LayerBits:
    where = f"{where}: layer {name!r}"
    if not isinstance(value, dict) or not value or not value.keys() <= {"W", "A"}:
        raise OptionError(f"{where}: is {shown(value)}; expected bits of weight and activation, as in W = 4, A = 8")
    for bits in value.values():
        _check(bits, where)
    return LayerBits(**value)


def _check(bits: Any, where: str) -> None:
    if type(bits) is not int or not MIN_BITS <= bits <= MAX_BITS:
        raise OptionError(f"{where}: bits are {shown(bits)}; expected {MIN_BITS} to {MAX_BITS}")
