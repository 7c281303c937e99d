"""Every error a user can meet, and what messages share. The command line makes one message and exit code 2 of them.

A message says where, what was found, what was expected and what to do about it.
"""

from collections.abc import Sequence


class PdqError(Exception):
    """Base of all errors raised on purpose by pdq-export."""


class ModelError(PdqError):
    """The ONNX file cannot be read, is not valid, or is not something that can be quantized."""


class UnsupportedOperatorError(ModelError):
    """A node has an operator, a version or an attribute that pdq-export does not know; ``found`` says which."""

    def __init__(self, message: str, *, found: str = "") -> None:
        super().__init__(message)
        self.found = found


class DataError(PdqError):
    """Calibration or evaluation data cannot be read or do not fit the model's input."""


class OptionError(PdqError):
    """An option's value is out of range or options contradict each other."""


class CalibrationError(PdqError):
    """Calibration failed: a loss diverged or produced values that are not finite."""


class CheckpointError(PdqError):
    """What an earlier run has kept is damaged, or another run is at work on it."""


class StateError(CalibrationError):
    """What an earlier run has kept of a block is no state of it."""


class ExportError(PdqError):
    """The quantized graph cannot be written in the requested layout."""


class ValidationError(PdqError):
    """The written file does not load in onnxruntime or does not agree with the simulation."""


class ResourceError(PdqError):
    """Memory ran out, of the machine or of its GPU."""


class RankError(PdqError):
    """Processes that work together cannot go on: one of them has ended, or has found something else."""


# What a run that ends early can be told to do.
RESUME = "the same command with --resume goes on with the blocks that are finished, on any number of ranks"


def counted(count: int, what: str) -> str:
    """So many of ``what``, which has a plural in s."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def first_few(texts: Sequence[str]) -> str:
    """Three of the texts at most, with what says that there are more, for messages."""
    return ", ".join([*texts[:3], *(["..."] if len(texts) > 3 else [])])


def percent(share: float, decimals: int | None = None) -> str:
    """A share as messages and tables tell it: with so many decimals, or in two digits and never with an exponent."""
    if decimals is not None:
        return f"{100 * share:.{decimals}f} %"
    return f"{float(f'{100 * share:.2g}'):.10g} %"


def printable(text: str) -> str:
    """``text`` with control and other invisible characters written as escapes: names in files may move the cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
