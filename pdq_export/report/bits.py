"""How bits that were found for every layer compare with others."""

import dataclasses

from pdq_export.report.tensor_losses import TensorLosses
from pdq_export.spec.step import Step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """An allotment: ``size``: bytes of the file, ``loss``: the sum of what its tensors are estimated to do.

    ``name``: auto, frontier, or W/A of all layers. ``gap``: the share by which the sum of others could be
    less, or of a smallest file its size: 0 where the solver proved that none is.
    """

    name: str
    size: int
    loss: float
    avg_weight: float
    avg_activation: float | None
    gap: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchReport:
    """What --bits auto found within its ``budget``; ``measure``: of losses, kl, mse or both.

    ``uniform``: equal bits for all layers that keep the budget, the best of them; None where none do. ``frontier``: the
    least loss at other sizes; ``uniforms``: what equal bits for all layers take and lose. ``note``: on activations.
    ``steps``: every calibration that was made for the smallest file that keeps a drop. ``tensors``: what each of them
    is estimated to lose, with the bits that were found.
    """

    budget: str
    measure: str
    chosen: Estimate
    uniform: Estimate | None
    frontier: tuple[Estimate, ...]
    uniforms: tuple[Estimate, ...]
    note: str
    steps: tuple[Step, ...] = ()
    tensors: TensorLosses | None = None
