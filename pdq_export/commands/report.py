"""`report`: the page of a report that was written as JSON, or of what a run has kept."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pdq_export.calibrate.block_state import BlockState
from pdq_export.calibrate.checkpoint import read_kept
from pdq_export.errors import DataError
from pdq_export.files import check_writable, write_atomically
from pdq_export.nearby import near_path
from pdq_export.report import BlockCourse, KeptRun, LayerReport, Report, read_report, to_html
from pdq_export.report.reading import LONGEST
from pdq_export.report.sensitivity import WrittenSensitivity
from pdq_export.runs import HEADER, find_runs, read_bounded, read_header
from pdq_export.spec import QuantizedTensor
from pdq_export.validate.histograms import WeightHistogram

_LARGEST = 1 << 30  # bytes of a block's arrays
_BYTES = 4  # of a character, at most


def write_page(source: str | Path, output: str | Path, *, overwrite: bool = False) -> Path:
    """Write the page of ``source``: the JSON of a report, or the folder of a run. Returns where it is.

    Raises OptionError where ``output`` cannot be written or would replace what is read, DataError where ``source`` is
    no report, CheckpointError where a run's file is damaged.
    """
    source, output = Path(source), Path(output)
    check_writable(output, overwrite=overwrite, inputs=[source])
    told = read_run(source) if source.is_dir() else read_file(source)
    try:
        page = to_html(told)
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise _wrong(source, f"it cannot be shown ({type(error).__name__}: {error})") from error
    write_atomically(output, page, overwrite=overwrite)
    return output


def read_file(path: Path) -> Report | LayerReport | WrittenSensitivity:
    """The report in a JSON file. Raises DataError."""
    try:
        content = read_bounded(path.resolve(), _BYTES * LONGEST)
        return read_report(content.decode())
    except OSError as error:
        near = near_path(path, ".json", "") if isinstance(error, FileNotFoundError) else ""
        raise DataError(
            f"{path}: cannot be read: {error.strerror or error}; expected the JSON of a report{near}"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _wrong(path, f"is no JSON: it begins with {content[:20]!r}"[:80]) from error
    except ValueError as error:
        raise _wrong(path, error) from error


def read_run(folder: Path) -> KeptRun:
    """What the folder of a run tells. Raises DataError where it is none, CheckpointError where it is damaged."""
    try:
        run = read_header(folder)
    except FileNotFoundError as error:
        inside = [kept.path for kept in find_runs(folder)]
        remedy = f"; give {shlex.quote(str(inside[0]))}" if inside else ""
        if len(inside) > 1:
            listed = f"pdq-export cache --work-dir {shlex.quote(str(folder))}"
            remedy = f"; it keeps {len(inside)} runs: give one, such as {shlex.quote(str(inside[0]))} ({listed})"
        raise DataError(
            f"{folder}: has no {HEADER}; expected the folder of a run, as pdq-export cache lists them, or "
            f"the JSON of a report{remedy}"
        ) from error
    except (OSError, ValueError) as error:
        raise _wrong(folder / HEADER, error) from error
    blocks, weights, warnings = [], [], dict[str, None]()
    for block, record, state in read_kept(folder, _LARGEST):
        blocks.append(BlockCourse.of(block, record.losses.tolist(), record.seconds))
        weights += list(_weights(state))
        warnings |= dict.fromkeys(record.warnings)
    return KeptRun(
        model=run.model,
        bits=run.bits,
        created=run.created,
        count=run.blocks,
        blocks=tuple(blocks),
        weights=tuple(weights),
        warnings=tuple(warnings),
        parts=run.key.parts,
    )


def _weights(state: BlockState) -> Iterator[WeightHistogram]:
    for name, tensor in state.tensors.items():
        if tensor.integers is not None and tensor.integers.size and _within(tensor):
            yield WeightHistogram.of(name, tensor.integers, tensor.point.qmin, tensor.point.qmax)


def _within(tensor: QuantizedTensor) -> bool:
    assert tensor.integers is not None
    return bool(np.all((tensor.integers >= tensor.point.qmin) & (tensor.integers <= tensor.point.qmax)))


def _wrong(path: Path, what: object) -> DataError:
    told = " ".join(str(what).split())[:300]
    return DataError(f"{path}: {told}; expected a report as pdq-export wrote it, or the folder of a run")
