"""What a written file says about its own making, in its metadata: what was asked for, what it came to, and on what.

``pdq_export.config`` holds the options that were given and have influence on the file, by name, as JSON, and the path
of the calibration data as it was given; ``pdq_export.options`` every option as it was settled, where ``opset`` is the
limit that was asked for; ``pdq_export.made_by`` model, data, the device that was used, threads and versions.
Bits of single tensors stand in the first alone. Files that were written before there was the first have the second
alone.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pdq_export import __version__
from pdq_export.config.config import Config, flatten, make_config, options_of, recorded
from pdq_export.config.method import FOLLOWING, CalibrationOptions, choose_options, with_effect
from pdq_export.config.option import did_you_mean
from pdq_export.errors import ModelError, OptionError, PdqError

ASKED, SETTLED, MADE_BY = "pdq_export.config", "pdq_export.options", "pdq_export.made_by"
MIXED = "mixed"
_ONCE = "tensor_bits"  # settled as it was asked for
EQUALIZED = "equalized_tensors"  # in the last
_VERSION = "pdq_export.version"
_NOT_SETTLED = ("data", "preprocess", "run")  # sections that are about data, and how the run goes about it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What a file says: ``asked`` and ``settled`` are options by name, ``made_by`` is empty in files from before."""

    asked: Mapping[str, Any]
    settled: Mapping[str, Any]
    made_by: Mapping[str, Any]
    version: str


def settings(config: Config, options: CalibrationOptions, **settled: Any) -> dict[str, Any]:
    """Options as they were settled, in plain types, for metadata and report, but for those of `_NOT_SETTLED`.

    ``settled``: what else was.
    """
    flat = flatten(config)
    given = {
        name: plain(flat[name])
        for name, one in options_of(type(config)).items()
        if one.declared.recorded and one.path[0] not in _NOT_SETTLED and flat[name] is not None
    }
    return {**given, **dataclasses.asdict(options), **settled}


def bits_word(settings: Mapping[str, Any]) -> str:
    """The bits of a run with these settings: W/A, or ``mixed`` where single tensors have bits of their own."""
    return MIXED if settings.get(_ONCE) else str(settings.get("bits", ""))


def plain(value: Any) -> Any:
    """The same in the types that JSON has."""
    return list(value) if isinstance(value, tuple) else value


def asked(config: Config) -> dict[str, Any]:
    """What was given and has influence on the file, by name, in plain types."""
    return {name: plain(value) for name, value in recorded(config).items()}


def metadata(config: Config, settled: Mapping[str, Any], made_by: Mapping[str, Any], *, version: str) -> dict[str, str]:
    """The entries of a file's metadata; equal runs, equal entries."""
    given = asked(config)
    return {
        _VERSION: version,
        "pdq_export.bits": bits_word(settled),
        "pdq_export.target": settled["target"],
        "pdq_export.seed": str(settled["seed"]),
        ASKED: json.dumps(given, sort_keys=True),
        SETTLED: json.dumps({k: v for k, v in settled.items() if k != _ONCE or k not in given}, sort_keys=True),
        MADE_BY: json.dumps(made_by, sort_keys=True),
    }


def retargeted(properties: Mapping[str, str], **fields: Any) -> dict[str, str]:
    """The metadata as if these ``fields``, such as the target, had been others; what is None is left as it is.

    What cannot be read is left as it is, too: a file is not made from it.
    """
    changed = dict(properties)
    fields = {name: value for name, value in fields.items() if value is not None}
    defaults = {name: one.default for name, one in options_of().items()}
    for key in (ASKED, SETTLED):
        try:
            values = {**json.loads(properties[key]), **fields}
        except (LookupError, ValueError, TypeError, RecursionError):
            continue
        if key == ASKED:
            values = {name: value for name, value in values.items() if value != defaults.get(name)}
        changed[key] = json.dumps(values, sort_keys=True)
    if "target" in fields:
        changed["pdq_export.target"] = fields["target"]
    return changed


def read_record(properties: Mapping[str, str], where: str) -> Record:
    """What the metadata of a file says. Raises ModelError, which starts with ``where``, where that is of no use."""
    if ASKED not in properties and SETTLED not in properties:
        raise ModelError(
            f"{where}: says nothing of its making (no {ASKED} in its metadata); expected a file that pdq-export "
            "quantize wrote"
        )
    settled = _object(properties, SETTLED, where)
    asked = _object(properties, ASKED, where)
    if SETTLED in properties and _ONCE in asked:
        settled = {_ONCE: asked[_ONCE], **settled}
    version = properties.get(_VERSION, "")
    try:
        given = _of_its_time(asked, settled) if ASKED in properties else _guessed(settled)
        unknown = given.keys() - options_of().keys()
        if unknown:
            name = sorted(unknown)[0]
            raise OptionError(f"option {name!r} is unknown to this version{did_you_mean(name, options_of())}")
        config = make_config({name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})
    except (PdqError, LookupError, TypeError, ValueError, RecursionError) as error:
        advice = "" if version in ("", __version__) else f"; it says that it is of version {version!r}: take that one"
        raise ModelError(
            f"{where}: its metadata cannot be read as options ({error}); expected them as pdq-export writes "
            f"them{advice}"
        ) from error
    made_by = _object(properties, MADE_BY, where) if MADE_BY in properties else {}
    return Record(asked=recorded(config), settled=settled, made_by=made_by, version=version)


def _object(properties: Mapping[str, str], key: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(properties.get(key, "{}"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where}: {key} in its metadata is not JSON; expected it as pdq-export wrote it") from error
    if not isinstance(content, dict):
        raise ModelError(f"{where}: {key} in its metadata is no object; expected it as pdq-export wrote it")
    return content


def _of_its_time(asked: Mapping[str, Any], settled: Mapping[str, Any]) -> Mapping[str, Any]:
    """The default method was called pd-quant once, which it was with the preset of the paper, and is pdq elsewhere."""
    if "method" not in asked and settled.get("method") == "pd-quant" and asked.get("preset") == "paper":
        return {**asked, "method": "pd-quant"}
    return asked


def _guessed(settled: Mapping[str, Any]) -> dict[str, Any]:
    """What must have been asked for to come to this, in files that say only what was settled."""
    known = options_of()
    numbers = CalibrationOptions.__dataclass_fields__
    chosen: Sequence[str] = ("method", "preset", "family")
    parts = {name: settled[name] for name in chosen if name in settled}
    usual = dataclasses.asdict(choose_options(**parts))
    decided = set()  # by numbers that had nothing to follow them yet
    for name, (follows, off) in FOLLOWING.items():
        if follows not in settled and usual[follows] != off:
            decided.add(name)
        elif settled.get(name, usual[name]) != usual[name]:
            usual[follows] = off
    given = {name: value for name, value in settled.items() if name in known and name not in numbers}
    for name, usually in {"weights": "asymmetric", "first_last": "8/8"}.items():
        if given.get(name) == usually:
            del given[name]
    differ = (name for name in numbers if name in settled and (name in decided or settled[name] != usual[name]))
    # What has an effect: a method, or what differs, may leave all of it out.
    return given | with_effect({name: settled[name] for name in differ}, **parts)
