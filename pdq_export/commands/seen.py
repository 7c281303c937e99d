"""What calibration sees of a run's images, and whether all of the ranks that share them see the same."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Self

import torch

from pdq_export.calibrate import Source
from pdq_export.calibrate.forward import spread
from pdq_export.commands.machine import describe_machine
from pdq_export.errors import RankError
from pdq_export.ranks import ALONE, Ranks
from pdq_export.runs import Run, RunKey
from pdq_export.work import Work, calibration_inputs, share_of_inputs

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
        """Of the work's calibration images. Raises RankError where one of the ``ranks`` has read others."""
        whole = calibration_inputs(work)
        if not ranks.is_alone:  # each reads its own, of which a few will do
            few = [f"{list(x.shape)} {_digest(x[spread(len(x), _DIGESTED)])}" for x in whole]
            ranks.check_same("the calibration images", " ".join(few), "give them the same, in the same order")
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


def check_alike(run: Run, device: torch.device, ranks: Ranks) -> None:
    """Raise RankError where the run of another of the ``ranks`` is not this one; machines may differ."""
    if ranks.is_alone:
        return
    machine = describe_machine(device)
    keys = ranks.gather(RunKey(parts={name: part for name, part in run.key.parts.items() if name not in machine}))
    for rank, key in enumerate(keys):
        if differences := keys[0].differences(key):
            raise RankError(
                f"rank {rank} of {ranks.size}: its run differs from that of rank 0 in {', '.join(differences)}; "
                "expected the same on every machine; give all of them the same model, options and versions"
            )
