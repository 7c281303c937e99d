"""The section of bits that are found for every layer: budgets, what may be chosen, and files of what was."""

import dataclasses
from typing import Any

from pdq_export.config.adapt import path
from pdq_export.config.option import INSPECT, QUANTIZE, SENSITIVITY, option

_SEARCHED = (QUANTIZE, INSPECT)
_NUMBER = r"\d{1,15}(\.\d{1,15})?"
_LIST = r"[2-8](,[2-8]){0,6}"


def _text(value: Any) -> Any:
    """A number as text."""
    return str(value) if type(value) in (int, float) else value


def _listed(value: Any) -> Any:
    """Widths as one text: 2,3,4."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else _text(value)


def _budget(help: str, **declared: Any) -> Any:
    """A budget, which is not set by default; what files record are the bits that came of it."""
    return option(None, help, unset="none", recorded=False, commands=_SEARCHED, **declared)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSection:
    """What `--bits auto` keeps within, and where bits of layers are read and written."""

    max_size: str | None = _budget(
        "Budget of --bits auto: the file's size, in bytes or as a share of FP32's, for example 900kB or 0.12",
        metavar="SIZE|X",
        expects="a share of FP32's size up to 1, for example 0.12, or a size in bytes, for example 900kB",
        pattern=rf"(?i)\s*{_NUMBER}\s*([kmgt]i?)?b?\s*",
        adapt=_text,
    )
    avg_bits: str | None = _budget(
        "Budget of --bits auto: the average bits of all weights, and of all learned activations if given",
        metavar="W[/A]",
        expects="average bits of weights, or W/A, each from 2 to 8, for example 3.5 or 3.5/5",
        pattern=rf"\s*{_NUMBER}\s*(/\s*{_NUMBER}\s*)?",
        adapt=_text,
    )
    max_bit_ops: float | None = _budget(
        "Budget of --bits auto: the sum over layers of multiplications x W x A of the input, over that of 8/8",
        metavar="X",
        above=0,
    )
    allowed_bits: str | None = option(
        None,
        "Bits that --bits auto chooses from, and sensitivity tries, of weights and, behind a slash, of activations",
        metavar="W,W[/A,A]",
        expects="bits from 2 to 8 with commas, for example 2,3,4,8 or 2,4,8/4,8",
        pattern=rf"\s*{_LIST}\s*(/\s*{_LIST}\s*)?",
        unset="all from 2 to 8 that the target has",
        adapt=_listed,
        recorded=False,
        commands=(*_SEARCHED, SENSITIVITY),
    )
    bits_from: str | None = option(
        None,
        "Take the bits of every layer from a file, TOML or JSON, such as --bits auto writes",
        metavar="FILE",
        expects="the name of a file with bits of layers",
        is_path=True,
        unset="none",
        adapt=path,
        recorded=False,
        commands=_SEARCHED,
    )
    bits_to: str | None = option(
        None,
        "Write the bits of every layer to a file that --bits-from takes: TOML, or JSON if its name ends so",
        metavar="OUT.toml",
        expects="the name of a file to write",
        writes=True,
        unset="with --bits auto OUT.bits.toml beside the output; else none",
        adapt=path,
        recorded=False,
    )
