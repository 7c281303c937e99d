"""What a finished block leaves behind, in plain arrays, and who keeps it from one run to the next."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Protocol

from pdq_export.spec import Block, ChannelStatistics, Float32s, ListedFloat32s, QuantizedTensors
from pdq_export.spec.plain import to_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockState:
    """All that later blocks and the result take from a finished block; forward passes give the rest.

    ``tensors``: what was learned of the points that the block writes and of the weights that it is the first to read,
    by tensor. ``biases``: those that calibration has changed, in float32, by tensor, of their own shapes.
    ``statistics``: those that were estimated for want of BatchNormalization, by layer output.
    """

    tensors: QuantizedTensors
    biases: Mapping[str, Float32s]
    statistics: Mapping[str, ChannelStatistics]

    @functools.cached_property
    def text(self) -> str:
        """All of it in one line, made once: ranks compare it, and a checkpoint keeps it."""
        return to_text(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockRecord:
    """How a block was calibrated, for reports.

    ``losses``: the reconstruction error of every step, float32 [steps]; empty where nothing was learned. ``seconds`` of
    wall time by phase, in the order in which they began: ``scales``, ``correction``, ``teacher``, ``steps``,
    ``rounding``, ``carriers``; what a block does without is left out. ``warnings``: what was told of the block, which a
    run that takes it up tells again.
    """

    losses: ListedFloat32s
    seconds: Mapping[str, float]
    warnings: tuple[str, ...] = ()


class Checkpoint(Protocol):
    """Keeps the states of finished blocks; it answers for their belonging to this model, these data and options."""

    def load(self, position: int, block: Block) -> BlockState | None:
        """The state of the ``block`` at ``position`` of the plan; None where it is yet to be calibrated."""

    def save(self, position: int, block: Block, state: BlockState, record: BlockRecord) -> None:
        """Keep the state of a block that has just been calibrated; not called for those that were loaded."""
