"""What calibration sees of a run's images, and whether all of the ranks that share a run have read the same."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Self

import torch

from pdq_export.calibrate import Source
from pdq_export.calibrate.forward import spread
from pdq_export.commands.keeping import run_parts
from pdq_export.commands.machine import describe_machine
from pdq_export.commands.request import Request
from pdq_export.config.method import CalibrationOptions
from pdq_export.data import Data, Samples
from pdq_export.errors import RankError
from pdq_export.ranks import ALONE, Ranks
from pdq_export.runs import RunKey
from pdq_export.work import PlannedModel, Work, calibration_inputs, share_of_inputs

_DIGESTED = 64  # images at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What calibration sees of a run's images.

    ``inputs``: the share that this process has, for each of the graph's inputs. ``digest``: of all images.
    """

    inputs: Sequence[torch.Tensor | Source]
    digest: str

    @classmethod
    def of(cls, work: Work, ranks: Ranks) -> Self:
        """Of the work's calibration images, which all ``ranks`` have read, see `check_alike`."""
        whole = calibration_inputs(work)
        return cls(inputs=share_of_inputs(whole, ranks), digest=digest_images(whole, ranks))


def digest_images(inputs: Sequence[torch.Tensor | Source], ranks: Ranks = ALONE) -> str:
    """SHA-256 of what calibration sees, of which each of the ``ranks`` goes over a part."""
    digest = hashlib.sha256()
    for x in inputs:
        digest.update(f"{x.dtype} {list(x.shape)}".encode())
        starts = range(0, len(x), _DIGESTED)
        own = {n: _digest(x[starts[n] : starts[n] + _DIGESTED]) for n in ranks.mine(len(starts))}
        found = {n: part for parts in ranks.gather(own) for n, part in parts.items()}
        digest.update("".join(found[n] for n in range(len(starts))).encode())
    return digest.hexdigest()


def _digest(images: torch.Tensor) -> str:
    return hashlib.sha256(images.contiguous().cpu().numpy().data).hexdigest()


def check_alike(request: Request, planned: PlannedModel, chosen: CalibrationOptions, samples: Samples) -> None:
    """Raise RankError where another rank has read, or was asked for, something else; machines may differ.

    To be called as soon as samples are read: what ranks exchange afterwards fits together where this passes.
    """
    ranks = request.ranks
    if ranks.is_alone:
        return
    key = RunKey(parts=_alike(request, planned, chosen, samples))
    keys = ranks.gather(key)
    for rank, other in enumerate(keys):
        if differences := other.differences(keys[0]):
            raise RankError(
                f"rank {rank} of {ranks.size}: its run differs from that of rank 0 in {', '.join(differences)}; "
                "expected the same on every rank; give all of them the same model, options, images and versions, and "
                "images of a function or folder in one order (shuffle=False, or a seed)"
            )


def _alike(request: Request, planned: PlannedModel, chosen: CalibrationOptions, samples: Samples) -> dict[str, str]:
    """What has to be the same on all ranks, by names that people understand."""
    file, how = request.config.file, request.config.run
    settings = {
        **vars(request.planning.section),
        **dataclasses.asdict(chosen),
        "target": file.target,
        "opset": file.opset,
        "runtime": file.runtime,
        "deterministic": how.deterministic,
        "simulated_images": how.simulated_images,
    }
    judged = samples.judged
    parts = run_parts(planned.prepared, planned.plan, "", settings, request.device)
    machine = describe_machine(request.device)
    return {
        "model": planned.original.sha256,
        **{name: part for name, part in parts.items() if name not in machine},
        "calibration images": _digest_some(samples.calibration),
        "number of calibration images": str(len(samples.calibration)),
        "evaluation images": _digest_some(judged),
        "number of evaluation images": str(len(judged)),
        "evaluation labels": "none" if judged.labels is None else _digest(torch.from_numpy(judged.labels)),
    }


def _digest_some(data: Data) -> str:
    """Of images from all over a set: what is read in another order differs in some of them."""
    some = data.take(spread(len(data), _DIGESTED).tolist()).inputs()
    told = " ".join(f"{x.dtype} {list(x.shape)} {_digest(torch.from_numpy(x))}" for x in some)
    return hashlib.sha256(told.encode()).hexdigest()
