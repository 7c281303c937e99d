"""Environments with one runtime each: made by pip and npm in a folder where they are kept, or taken from there."""

import dataclasses
import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pdq_export.errors import PdqError

PRESENT = "present"
NEWEST = "newest"
WEB = "web"
CHROMIUM = "chromium"
OPENVINO = "openvino"
OLDEST = "1.15.1"
RUNTIMES = (OLDEST, "1.17.3", "1.20.1", "1.22.1", "1.24.1", NEWEST, WEB, OPENVINO)
_HERE = Path(__file__).parent
_FIRST_WITH_NUMPY_2 = (1, 19)


class MissingRuntimeError(PdqError):
    """An environment that could not be made, or a browser that is not there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment:
    """What runs the probe with a runtime. ``folder``: where that is, None for the present interpreter."""

    runtime: str
    command: Sequence[str]
    folder: Path | None = None
    variables: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def is_web(self) -> bool:
        """Whether it is onnxruntime-web, in Node or in a browser."""
        return self.runtime in (WEB, CHROMIUM)


def check_name(runtime: str) -> str:
    """The runtime, where it is one that can be had. Raises ValueError otherwise."""
    if runtime not in (PRESENT, NEWEST, WEB, CHROMIUM, OPENVINO) and not re.fullmatch(r"\d+\.\d+(\.\d+)?", runtime):
        raise ValueError(f"{runtime!r}: expected a version of onnxruntime or one of {', '.join(RUNTIMES)}, {CHROMIUM}")
    return runtime


def prepare(runtime: str, folder: Path, *, python: str = sys.executable) -> Environment:
    """The environment of a runtime below ``folder``, which is made where it is missing.

    A folder can also be a virtual environment, or what `pip install --target` or `npm install` made. ``python`` runs
    those without an interpreter of their own. Raises MissingRuntimeError where it cannot be had, with what the
    installer said.
    """
    probe = str(_HERE / "probe.py")
    if runtime == PRESENT:
        return Environment(runtime=runtime, command=[sys.executable, probe])
    place = (folder / (WEB if runtime == CHROMIUM else runtime)).absolute()
    if not place.is_dir():
        _install(runtime, place, python)
    if runtime in (WEB, CHROMIUM):
        program = _find("node", "Node 20 or newer") if runtime == WEB else _find("chromium", "Chromium")
        return Environment(runtime=runtime, command=[program, str(_HERE / "probe.mjs")], folder=place)
    own = place / "bin" / "python"
    if own.exists():
        return Environment(runtime=runtime, command=[str(own), probe], folder=place)
    # -S: nothing of the interpreter's own packages
    command = [python, "-S", probe]
    return Environment(runtime=runtime, command=command, folder=place, variables={"PYTHONPATH": str(place)})


def environment_variables(environment: Environment) -> dict[str, str]:
    """Those of the process, without what would lend it packages of this one, and with its own."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return {**kept, "OMP_NUM_THREADS": "1", **environment.variables}


def _install(runtime: str, place: Path, python: str) -> None:
    """Install beside it and move: an installation that was interrupted is none."""
    unfinished = place.with_name(place.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if runtime in (WEB, CHROMIUM):
        (unfinished / "package.json").write_text('{"private": true}\n', encoding="utf-8")
        command = [_find("npm", "npm"), "install", "--no-audit", "--no-fund", "onnxruntime-web@latest"]
    else:
        pip = [
            *(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary", ":all:"),
            "--no-compile",  # of the modules few are imported, which are compiled then
        ]
        command = [*pip, "--target", str(unfinished), *_requirements(runtime)]
    done = subprocess.run(command, cwd=unfinished, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        hint = (
            " (old releases have no wheel for new versions of Python: --python takes another)" if "." in runtime else ""
        )
        raise MissingRuntimeError(f"{runtime}: {' '.join(command[:4])} failed{hint}: {said}")
    unfinished.rename(place)


def _requirements(runtime: str) -> list[str]:
    """Without dependencies but numpy: nothing else is imported by `import onnxruntime`."""
    if runtime == OPENVINO:
        return [OPENVINO]
    if runtime == NEWEST:
        return ["--no-deps", "onnxruntime", "numpy"]
    numpy = "numpy" if version_number(runtime) >= _FIRST_WITH_NUMPY_2 else "numpy<2"
    return ["--no-deps", f"onnxruntime=={runtime}", numpy]


def version_number(version: str) -> tuple[int, int]:
    """Major and minor, to be compared."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


@functools.cache
def _find(program: str, what: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise MissingRuntimeError(f"{program}: not found; expected {what} on the PATH")
    return found
