"""The key of a run of a sweep: SHA-256 of all that decides what comes of it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from pdq_export.commands.keeping import digest_code
from pdq_export.commands.written import metric_function
from pdq_export.config.config import options_of
from pdq_export.config.sweep import OWN, SweepRun, settled
from pdq_export.data import check_exists, names_function
from pdq_export.data.function import user_function
from pdq_export.data.synthetic import asks_synthetic
from pdq_export.errors import ModelError, OptionError
from pdq_export.graph.external import external_locations
from pdq_export.graph.load import read_structure
from pdq_export.report import ModelInfo
from pdq_export.report.report import versions
from pdq_export.user_code import UserFunction

_DATA = ("calib", "eval")


class Keys:
    """Keys of runs, in hexadecimal; what several runs read is digested once. ``threads``: that each calibrates with."""

    def __init__(self, *, threads: int) -> None:
        self._threads = threads
        self._versions = {**versions(), "code": digest_code()}
        self._digests: dict[tuple[str, str], str] = {}

    def of(self, run: SweepRun) -> str:
        """The key of a run. Raises PdqError for files that are missing or cannot be read.

        The paths are part of it: the report says the model's, and the written file that of the images.
        """
        options = settled(run.config)
        read = [name for name, one in options_of().items() if one.declared.is_path and name not in OWN]
        parts = {
            "model": run.model,
            "content": self._digest("model", run.model, _digest_model),
            "files": {name: self._digest_option(name, options[name]) for name in read},
            "metrics": [self._digest("metric", text, _digest_metric) for text in options["metric"]],
            "options": {**options, "max_memory": None},
            "threads": self._threads,
            "versions": self._versions,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _digest_option(self, name: str, given: str | None) -> str | None:
        if given is None or (name == "calib" and asks_synthetic(given)):
            return None
        return self._digest("data", given, _digest_data) if name in _DATA else self._digest(name, given, _digest_file)

    def _digest(self, kind: str, given: str, of: Callable[[str], str]) -> str:
        if (kind, given) not in self._digests:
            self._digests[kind, given] = of(given)
        return self._digests[kind, given]


def _digest_model(model: str) -> str:
    path = Path(model)
    structure = read_structure(path)
    try:
        return ModelInfo.of_files(path, *(path.parent / name for name in external_locations(structure))).sha256
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error


def _digest_data(given: str) -> str:
    """Of a file its content; of a folder names, sizes and times of its files; of a function the code of its module."""
    check_exists(given)
    if names_function(given):
        return _digest_module(user_function(given))
    path = Path(given)
    if not path.is_dir():
        return _digest_file(given)
    found = ((file, file.stat()) for file in sorted(path.rglob("*")) if file.is_file())
    listed = [[file.relative_to(path).as_posix(), status.st_size, status.st_mtime_ns] for file, status in found]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _digest_metric(text: str) -> str:
    named = metric_function(text)
    named.find()
    return _digest_module(named)


def _digest_module(named: UserFunction) -> str:
    """Of the file that the function is in, or of all code of the package; not of what else they import or read."""
    digest = hashlib.sha256()
    for root in named.files():
        for file in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            digest.update(f"{file.relative_to(root.parent).as_posix()} {_digest_file(str(file))}\n".encode())
    return digest.hexdigest()


def _digest_file(given: str) -> str:
    try:
        with Path(given).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise OptionError(f"{given}: cannot be read: {error.strerror or error}; expected a file") from error
