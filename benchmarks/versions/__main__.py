"""Every layout, by bits, in every version of onnxruntime, onnxruntime-web and OpenVINO: loads, agrees, and how fast.

    python -m benchmarks.versions --environments FOLDER --json versions.json --check

Runtimes are installed into the folder, each in an environment of its own, unless they are there already. Two small
networks are calibrated by rounding to nearest, with a reduced range, so that no kernel saturates, and run on a few
images; outputs are compared with those of the present onnxruntime, which were held against the simulation. Times are
those of one image on one thread, interleaved in one process a runtime: ratios to FP32 and to `ort` 8/8, medians over
the rounds.
"""

import argparse
import dataclasses
import json
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnxruntime

from benchmarks.common import Array
from benchmarks.versions.environments import (
    CHROMIUM,
    NEWEST,
    OLDEST,
    OPENVINO,
    PRESENT,
    RUNTIMES,
    Environment,
    check_name,
    prepare,
    version_number,
)
from benchmarks.versions.files import (
    BITS,
    FLOAT,
    INT8,
    LAYOUTS,
    NETWORKS,
    File,
    Reference,
    float_model,
    images,
    own_format,
    reference,
    write_files,
)
from benchmarks.versions.job import DEFAULT, LEVELS, NO_LOW_PRECISION, NO_QDQ, NO_REUSE, Timing, time_files, try_files
from benchmarks.versions.table import Cell, cell, plain, ratios, tables
from pdq_export.errors import PdqError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """The files of a network, by what they are compared with."""

    network: str
    model: Path
    files: Sequence[File]
    references: dict[str, Reference]


def write(network: str, options: argparse.Namespace, batch: Array, folder: Path) -> Written:
    """All files of a network. Raises PdqError where ort cannot be written, or is not what its simulation is."""
    calibration, _ = images(1)
    model = float_model(network, folder)
    asked = {"layouts": {"ort", *options.layouts}, "bits": options.bits, "weights": options.weights}
    files = list(write_files(model, calibration, folder, **asked))
    references = {file.bits: reference(file.path, batch, folder) for file in files if file.layout == "ort"}
    if options.own_format:
        files += own_format([file for file in files if file.failure is None], folder)
    return Written(network=network, model=model, files=files, references=references)


def ways(environment: Environment, file: File) -> list[str]:
    """How a file is tried in a runtime: default options first, then what could be asked for."""
    if environment.runtime == OPENVINO:
        return [DEFAULT, NO_LOW_PRECISION]
    if not file.layout.startswith("native"):
        return [DEFAULT, *(() if file.is_own_format else LEVELS)]
    # onnxruntime-web waits for itself where onnxruntime is wrong, which takes its time
    return [DEFAULT] if environment.is_web else [DEFAULT, *LEVELS, NO_QDQ, NO_REUSE]


def run(environment: Environment, written: Written, batch: Array, timing: Timing | None) -> Iterator[Cell]:
    """Every file of a network in a runtime; onnxruntime's own format in the present version alone."""
    present = version_number(onnxruntime.__version__)
    files = [file for file in written.files if file.failure is None]
    if environment.runtime not in (PRESENT, NEWEST):
        files = [file for file in files if not file.is_own_format]
    found = try_files(environment, [(file.path, ways(environment, file)) for file in files], batch)
    cells = []
    for file, attempts in zip(files, found, strict=True):
        version = next((attempt.version for attempt in attempts if attempt.version), None)
        if file.is_own_format and version is not None and version_number(version) < present:
            continue
        means = written.references[file.bits]
        cells.append(
            cell(written.network, file, environment.runtime, attempts, says=means.says, openvino=means.openvino)
        )
    timed = {}
    if timing is not None:
        by_name = {file.name: file.path for file in files}
        running = {f"{one.layout} {one.bits}": one.right_way for one in cells if one.right_way is not None}
        asked = {FLOAT: (written.model, DEFAULT), **{name: (by_name[name], way) for name, way in running.items()}}
        timed = time_files(environment, asked, batch[:1], timing)
    for one in cells:
        yield dataclasses.replace(one, ratios=ratios(timed, f"{one.layout} {one.bits}"))


def conditions(options: argparse.Namespace) -> dict[str, object]:
    """What the figures depend on."""
    return {
        "command": "python -m benchmarks.versions",
        "images": options.images,
        "weights": options.weights,
        "rounds": options.rounds,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "present onnxruntime": onnxruntime.__version__,
    }


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with code 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--runtimes", nargs="+", type=check_name, default=list(RUNTIMES), help=f"also {PRESENT} and {CHROMIUM}"
    )
    parser.add_argument("--environments", type=Path, help="folder to keep them in; by default a temporary one")
    parser.add_argument(
        "--python", default=sys.executable, help=f"interpreter of the environments; {OLDEST} needs 3.11"
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--bits", nargs="+", choices=BITS, default=list(BITS))
    parser.add_argument("--weights", choices=("asymmetric", "symmetric"), default="asymmetric")
    parser.add_argument("--own-format", action="store_true", help="onnxruntime's own format as well, in both styles")
    parser.add_argument("--images", type=int, default=200, help="how many are run")
    parser.add_argument("--rounds", type=int, default=15, help="of timing; 0 for none")
    parser.add_argument("--seconds", type=float, default=0.02, help="least time of one timing")
    parser.add_argument("--json", type=Path, help="write every cell as JSON")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a cell does not hold that should")
    options = parser.parse_args(arguments)
    if options.rounds and INT8.split()[1] not in options.bits:
        parser.error("times are compared with those of 8/8: expected it in --bits, or --rounds 0")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 1 where an environment could not be had, or with --check where a cell does not hold."""
    options = parse_arguments(arguments)
    logging.getLogger("pdq_export").setLevel(logging.ERROR)
    _, batch = images(options.images)
    timing = Timing(rounds=options.rounds, seconds=options.seconds) if options.rounds else None
    cells: list[Cell] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        place = options.environments or Path(folder) / "environments"
        environments = []
        for runtime in options.runtimes:
            try:
                environments.append(prepare(runtime, place, python=options.python))
            except PdqError as error:
                failures.append(str(error))
        for network in options.networks:
            (Path(folder) / network).mkdir()
            written = write(network, options, batch, Path(folder) / network)
            failures += [
                f"{network} {file.name}: not written: {file.failure}" for file in written.files if file.failure
            ]
            for environment in environments:
                try:
                    cells += run(environment, written, batch, timing)
                except PdqError as error:
                    failures.append(str(error))
                print(f"{network}, {environment.runtime}: done", file=sys.stderr, flush=True)
    print(tables(cells))
    if options.json is not None:
        text = json.dumps({"conditions": conditions(options), "cells": plain(cells)}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    broken = [said for said in (one.broken for one in cells) if said is not None]
    for said in (*failures, *broken):
        print(said, file=sys.stderr)
    return 1 if failures or (options.check and broken) else 0


if __name__ == "__main__":
    sys.exit(main())
