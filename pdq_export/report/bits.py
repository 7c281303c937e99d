"""How bits that were found for every layer compare with others."""

import dataclasses

from pdq_export.report.tensor_losses import TensorLosses
from pdq_export.spec.step import Step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """An allotment: ``size``: bytes of the file, ``loss``: the sum of what its tensors are estimated to do.

    ``name``: auto, frontier, or W/A of all layers. ``gap``: the share by which the sum of others could be
    less, or of a smallest file its size: 0 where the solver proved that none is. ``bit_ops``: over those of 8/8, where
    a budget counts them.
    """

    name: str
    size: int
    loss: float
    avg_weight: float
    avg_activation: float | None
    gap: float = 0.0
    bit_ops: float | None = None


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

    @property
    def equal(self) -> Estimate | None:
        """The equal bits that what was found is held against: those that keep the same budget.

        Where the goal was a drop of accuracy, which is not known of them, the best that take no more bytes.
        """
        if not self.steps or (self.uniform is not None and self.uniform.loss == self.chosen.loss):
            return self.uniform
        held = (one for one in self.uniforms if one.size <= self.chosen.size)
        return min(held, key=lambda one: one.loss, default=None)

    @property
    def within(self) -> str:
        """What `equal` keeps, in words."""
        return "of as many bytes or fewer" if self.steps else "within the same budget"
