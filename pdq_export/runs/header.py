"""What a run is known by: the key, of all that its blocks depend on, and the file that says so."""

import dataclasses
import hashlib
import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval, Len

from pdq_export.spec.plain import from_text, to_text

HEADER = "pdq-export-run.json"  # its name alone marks a folder as ours
FOLDER_NAME = re.compile(r".+-w\d+a\d+-[0-9a-f]{12}")
_LONGEST = 1 << 22  # characters
_KINDS = ("pdq-export run", "pdq-export sensitivity", "pdq-export block")
_DIGITS = 12  # of the key, in the name of a folder
_LONGEST_STEM = 120  # bytes: the name of a folder may have 255
_LONGEST_VALUE = 40  # characters of a part in a message


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunKey:
    """All that the state of a block depends on, by name: the model, the data, every option, versions, the machine.

    Names and values are for people, too: two keys are told apart by them.
    """

    parts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of the parts, in hexadecimal."""
        return hashlib.sha256(json.dumps(dict(self.parts), sort_keys=True).encode()).hexdigest()

    def differences(self, other: "RunKey") -> list[str]:
        """What of ``other`` is not as here, for a message: ``iters (20, now 30)``, ``images``."""
        names = sorted(self.parts.keys() | other.parts.keys())
        found = [name for name in names if self.parts.get(name) != other.parts.get(name)]
        told = []
        for name in found:
            before, now = (_shown(key.parts.get(name)) for key in (other, self))
            told.append(f"{name} ({before}, now {now})" if before and now else name)
        return told


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run as its folder tells it; ``model``: its file's name, ``bits``: W/A, ``created``: ISO 8601, UTC.

    ``kind``: a calibration, block by block, or a sensitivity, which is kept as one block.
    """

    kind: Literal["pdq-export run", "pdq-export sensitivity"] = "pdq-export run"
    version: Literal[1] = 1
    model: str
    bits: str
    created: str
    blocks: Annotated[int, Interval(ge=0, lt=1 << 20)]
    digest: Annotated[str, Len(64, 64)]
    key: RunKey

    @property
    def folder_name(self) -> str:
        """A name that people recognize and that is the key's alone."""
        stem = re.sub(r"[^\w.-]+", "_", Path(self.model).stem).encode()[:_LONGEST_STEM].decode(errors="ignore")
        stem = stem.lstrip(".") or "model"
        weight, _, activation = self.bits.partition("/")
        return f"{stem}-w{weight}a{activation}-{self.short_digest}"

    @property
    def short_digest(self) -> str:
        """The digits of the key that tell folders apart."""
        return self.digest[:_DIGITS]


def write_header(run: Run) -> bytes:
    """The content of a run's header file."""
    return to_text(run).encode()


def read_header(folder: Path) -> Run:
    """The header of a run's folder. Raises ValueError where it is damaged, OSError where there is none."""
    try:
        text = read_bounded(folder / HEADER, 4 * _LONGEST).decode()
    except UnicodeDecodeError as error:
        raise ValueError(str(error)) from error
    return from_text(Run, text, longest=_LONGEST, what="the header of a run")


def is_regular(path: Path) -> bool:
    """Whether there is a regular file: no link, which may lead anywhere, and no pipe, which waits for ever."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def read_bounded(path: Path, longest: int) -> bytes:
    """A regular file of at most ``longest`` bytes. Raises ValueError for any other, OSError where there is none."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    if status.st_size > longest:
        raise ValueError(f"it has {status.st_size:,} bytes; expected at most {longest:,}")
    with path.open("rb") as file:
        return file.read(longest)


def of_other_version(text: bytes) -> bool:
    """Whether the JSON in ``text`` says that another version of pdq-export has written it."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return False
    ours = isinstance(content, dict) and content.get("kind") in _KINDS
    return ours and type(content.get("version")) is int and content["version"] != 1


def _shown(value: str | None) -> str:
    """A part for a message: nothing of a hash, which says nobody anything."""
    if value is None:
        return "not given"
    return "" if re.fullmatch(r"[0-9a-f]{64}", value) else value[:_LONGEST_VALUE]
