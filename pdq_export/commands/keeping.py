"""Finished blocks, kept while a run calibrates: the key that they belong to, and what is said about them."""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import GraphProto

import pdq_export
from pdq_export.calibrate.block_state import BlockRecord, BlockState
from pdq_export.calibrate.checkpoint import DiskCheckpoint
from pdq_export.commands.machine import describe_machine
from pdq_export.config.method import CalibrationOptions
from pdq_export.config.record import bits_word
from pdq_export.errors import CheckpointError, OptionError, StateError, counted
from pdq_export.exhaustion import is_exhaustion
from pdq_export.graph.prepare import PreparedModel
from pdq_export.ranks import ALONE, Ranks
from pdq_export.runs import InUseError, Run, RunFolder, RunKey, clear_runs, default_root, find_runs, open_run
from pdq_export.spec import Block, Plan
from pdq_export.spec.plain import to_text

logger = logging.getLogger(__name__)

_KEPT_FOR = datetime.timedelta(days=90)
_LEAST_BOUND = 64 << 20  # bytes
_MOST_NUMBERS = 6  # of a weight: integer, scale, zero_point, three statistics
_LIBRARIES = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy")


def describe_run(
    *,
    name: str,
    sha256: str,
    prepared: PreparedModel,
    plan: Plan,
    images: str,
    options: CalibrationOptions,
    asked: Mapping[str, Any],
    device: torch.device,
) -> Run:
    """The run that calibrates ``prepared`` (its weights as calibration sees them) on ``images``, see `digest_images`.

    ``name`` and ``sha256``: of the user's model. ``asked``: what was asked for besides ``options``, for messages: what
    it does is in the model and the plan. Everything that can change an integer is in the key; paths are not, nor is
    memory, which changes nothing.
    """
    settings = {**asked, **dataclasses.asdict(options)}
    parts = {"model": sha256, **run_parts(prepared, plan, images, settings, device)}
    return run_of(name, RunKey(parts=parts), plan, bits=bits_word({**asked, "bits": str(plan.bits)}))


def run_parts(
    prepared: PreparedModel,
    plan: Plan,
    images: str,
    settings: Mapping[str, Any],
    device: torch.device,
) -> dict[str, str]:
    """What a result depends on, for a key: images, see `digest_images`, graph, settings, versions and the machine."""
    return {
        "images": images,
        "graph": _digest_graph(prepared, plan),
        **{key: str(value) for key, value in settings.items()},
        "pdq-export": f"{pdq_export.__version__} ({digest_code()[:12]})",
        **{library: version for library in _LIBRARIES if (version := _version(library))},
        **describe_machine(device),
    }


def run_of(name: str, key: RunKey, plan: Plan, **others: Any) -> Run:
    """A run that begins now, of the model's ``name``; ``others``: fields of it."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    fields: dict[str, Any] = {"bits": str(plan.bits), "blocks": len(plan.blocks), **others}
    return Run(model=name, created=now, digest=key.digest, key=key, **fields)


class Unkept:
    """A checkpoint that keeps no states; ``records``: how the blocks were calibrated."""

    def __init__(self) -> None:
        self.records: dict[str, BlockRecord] = {}

    def load(self, position: int, block: Block) -> BlockState | None:
        """None: each block is yet to be calibrated."""
        return None

    def save(self, position: int, block: Block, state: BlockState, record: BlockRecord) -> None:
        """Remember how a block was calibrated."""
        self.records[block.name] = record


class _Shared:
    """A checkpoint of the first of several ranks, ``own``, which alone loads and saves, as each of them sees it.

    ``count``: of the blocks on the disk. ``kept``: how many there were when the first told last.
    """

    def __init__(self, own: DiskCheckpoint | Unkept, count: Callable[[], int], ranks: Ranks) -> None:
        self._own, self._count, self._ranks = own, count, ranks
        self.kept = ranks.done_by_first(count)

    @property
    def records(self) -> dict[str, BlockRecord]:
        """How the blocks were calibrated."""
        return self._own.records

    def load(self, position: int, block: Block) -> BlockState | None:
        """The state of a block, on the first rank."""
        return self._own.load(position, block)

    def save(self, position: int, block: Block, state: BlockState, record: BlockRecord) -> None:
        """Keep a block, on the first rank, and have all ranks know of it."""
        self._own.save(position, block, state, record)
        self.kept = self._ranks.done_by_first(self._count)


@contextlib.contextmanager
def kept_blocks(
    run: Run, prepared: PreparedModel, *, work_dir: str | None, resume: bool, ranks: Ranks = ALONE
) -> Iterator[_Shared]:
    """A context with a checkpoint for ``run`` in ``work_dir``, or in the user's cache folder; says what it finds.

    It keeps nothing where the cache folder cannot be written, or another run is at work in this one's place: a warning
    says so, and the run goes on without. Whatever ends it in between is told how to go on. Raises OptionError where a
    ``work_dir`` cannot be written, and CheckpointError where what is to be resumed is damaged or in use. Of several
    ``ranks`` the first keeps them, and whichever is interrupted tells of them.
    """
    folder = _open(work_dir, run, resume=resume) if ranks.is_first else None
    if folder is None:
        checkpoint = _Shared(Unkept(), lambda: 0, ranks)
        try:
            yield checkpoint
        except BaseException as error:
            _note_kept(checkpoint.kept, run, error)
            raise
        return
    if work_dir is None:
        _clear_old(folder.path.parent)
    largest = _largest_state(prepared)
    folder.longest = 2 * largest
    with folder:
        if resume:
            _tell_found(folder.path.parent, run, len(folder.found()))
        elif folder.stale:
            _tell_stale(run, folder.stale)
        on_disk = DiskCheckpoint(folder, largest)
        try:
            yield _Shared(on_disk, folder.count, ranks)
        except StateError as error:
            raise on_disk.refused(error) from error
        except CheckpointError:
            raise
        except BaseException as error:  # Ctrl-C above all
            with contextlib.suppress(OSError):
                _note_kept(folder.count(), run, error)
            raise


def _note_kept(kept: int, run: Run, error: BaseException) -> None:
    if not kept:
        return
    others = "takes them up" if kept == run.blocks else "goes on with the others"
    note = f"{kept} of {run.blocks} blocks are kept"
    if "--resume" not in str(error):
        note += f": the same command with --resume {others}"
    if is_exhaustion(error):
        note += ", with --max-memory as well, while other images, batches or devices start afresh"
    error.add_note(note)


def _open(work_dir: str | None, run: Run, *, resume: bool) -> RunFolder | None:
    try:
        root = default_root() if work_dir is None else Path(work_dir)
        return open_run(root, run, resume=resume)
    except InUseError as error:
        if resume:
            raise
        logger.warning("finished blocks are not kept: %s", error)
    except OptionError as error:
        if work_dir is not None:
            raise
        remedy = "" if "--work-dir" in str(error) else ", with --work-dir"
        logger.warning("finished blocks are not kept, so the run cannot be resumed: %s%s", error, remedy)
    return None


def _clear_old(root: Path) -> None:
    """Nobody looks into a cache folder; this run's own is in use, and stays."""
    with contextlib.suppress(OptionError, OSError):
        cleared = clear_runs(root, older_than=_KEPT_FOR)
        if cleared.removed:
            logger.info(
                "cleared %s that nothing has changed for %d days", counted(len(cleared.removed), "run"), _KEPT_FOR.days
            )


def _tell_stale(run: Run, count: int) -> None:
    """Whoever has forgotten --resume can still end the run before the first of its blocks is finished."""
    logger.log(
        logging.WARNING if count < run.blocks else logging.INFO,
        "%d of %d blocks were finished by an earlier run with the same plan; they are discarded as soon as this one "
        "has finished its first; --resume takes them up instead",
        count,
        run.blocks,
    )


def _tell_found(root: Path, run: Run, found: int) -> None:
    if found:
        logger.info("%d of %d blocks are finished; the run goes on with the others", found, run.blocks)
        return
    others = [
        kept.run
        for kept in find_runs(root)
        if kept.run is not None
        and kept.run.kind == run.kind
        and kept.run.digest != run.digest
        and (kept.run.model == run.model or kept.run.key.parts.get("model") == run.key.parts["model"])
    ]
    if not others:
        logger.warning("--resume: there is nothing of this run in %s; it starts afresh", root)
        return
    nearest = min(others, key=lambda other: len(run.key.differences(other.key)))
    differences = run.key.differences(nearest.key)
    if len(differences) > 1 and "graph" in differences:
        differences.remove("graph")  # which the others have changed
    logger.warning(
        "--resume: the run starts afresh, for what is kept of %s differs in %s", run.model, ", ".join(differences)
    )


def _largest_state(prepared: PreparedModel) -> int:
    """Bytes that the arrays of a block can take at most: a few numbers for every weight, and then some."""
    elements: int = sum(math.prod(tensor.dims) for tensor in prepared.model.graph.initializer)
    return _LEAST_BOUND + 8 * _MOST_NUMBERS * elements


def _digest_graph(prepared: PreparedModel, plan: Plan) -> str:
    """Of the graph and weights that are calibrated, the plan and the statistics."""
    graph = prepared.model.graph
    skeleton = GraphProto(node=graph.node, input=graph.input, output=graph.output)
    opsets = onnx.ModelProto(opset_import=prepared.model.opset_import, functions=prepared.model.functions)
    digest = hashlib.sha256(skeleton.SerializeToString(deterministic=True))
    digest.update(opsets.SerializeToString(deterministic=True))
    for tensor in graph.initializer:  # one by one: together they may be more than protobuf takes
        digest.update(tensor.SerializeToString(deterministic=True))
    digest.update(to_text(plan).encode())
    for name, statistics in sorted(prepared.statistics.items()):
        digest.update(f"{name} {to_text(statistics)}".encode())
    return digest.hexdigest()


@functools.cache
def digest_code() -> str:
    """Of our own modules: a clone changes without a new version."""
    root = Path(pdq_export.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""
