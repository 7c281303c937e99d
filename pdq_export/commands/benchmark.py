"""What `bench` has measured of files, as frozen dataclasses and as JSON.

Schema, version 1 (null stands for "not measured")::

    schema_version  1
    machine         {processor, cores, onnxruntime, threads, clock, saturates, load_before, load_after}: clock: "cpu" or
                    "wall", of latency; saturates: whether integer kernels saturate here, as without VNNI; load: average
                    of the last minute, null where the system does not tell
    settings        {batch: [size], seconds, loads, shapes: {input: [size]}}
    inputs          [{name, type, shape, chosen}]  of the first file, random; null in a shape: the batch; chosen: sizes
                    that no file and no option gives
    files           one per file, in order: {name, sha256, size, size_ratio, config, latency, loading,
                    renamed}; size in bytes, with external data; config: session options without which it does not
                    load; renamed: inputs that it calls otherwise, by the first file's names
    files.latency   one per batch size: {batch, median_ms, p95_ms, samples_per_second, calls, rounds, ratio}; p95_ms:
                    null for fewer than 20 calls
    files.loading   {cpu_ms, wall_ms, load_peak, after, peak, batch, processes, cpu_ratio, wall_ratio, load_peak_ratio,
                    peak_ratio}: medians over fresh processes; bytes of memory over those before loading: load_peak
                    while loading, after it, peak of loading and running the largest batch; null where nothing was
                    loaded
    *ratio          to the first file: {median, low, high, within_spread}, over the rounds, of which each has all files;
                    within_spread: 1 lies between the quartiles, so that no difference is shown; null for the first
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from pdq_export.validate import Spread

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """What calls of one file take on ``batch`` samples; ``ratio``: to the first file's, None for that one."""

    batch: int
    median_ms: float
    p95_ms: float | None
    samples_per_second: float
    calls: int
    rounds: int
    ratio: Spread | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loading:
    """What one file takes in fresh processes, in medians; ratios to the first file's. See the module's docstring."""

    cpu_ms: float
    wall_ms: float
    load_peak: float | None
    after: float | None
    peak: float | None
    batch: int
    processes: int
    cpu_ratio: Spread | None
    wall_ratio: Spread | None
    load_peak_ratio: Spread | None
    peak_ratio: Spread | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchedFile:
    """One file: ``size`` in bytes with its external data; ``latency`` by batch size; ``config``: session options.

    ``renamed``: inputs that it calls otherwise, by the first file's names.
    """

    name: str
    sha256: str
    size: int
    size_ratio: float
    config: Mapping[str, str]
    renamed: Mapping[str, str]
    latency: tuple[Latency, ...]
    loading: Loading | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Files beside the first of them, and what they were measured on; the schema is in the module's docstring."""

    files: tuple[BenchedFile, ...]
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    inputs: tuple[Mapping[str, Any], ...]

    def to_json(self) -> str:
        """The result as JSON."""
        fields = {"schema_version": SCHEMA_VERSION, **_plain(self)}
        return json.dumps(fields, indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return {**dataclasses.asdict(value), "within_spread": value.spans_one}
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
