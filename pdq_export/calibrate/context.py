"""What all blocks of a calibration share and none of them changes."""

import dataclasses

from torch import fx

from pdq_export.calibrate.journal import Journal
from pdq_export.calibrate.shares import some_of
from pdq_export.calibrate.store import Store
from pdq_export.config.method import CalibrationOptions
from pdq_export.ranks import ALONE, Ranks
from pdq_export.spec import Plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """The FP32 ``network`` for images of the calibration's size, its ``plan`` and the ``options`` of the method.

    ``store``: where tensors over all images lie. ``journal``: whom to tell what is done. ``ranks``: the processes among
    which images are divided; ``search_samples`` of the ``options`` is this one's share.
    """

    network: fx.GraphModule
    plan: Plan
    options: CalibrationOptions
    store: Store
    journal: Journal
    ranks: Ranks = ALONE

    @property
    def batch_size(self) -> int:
        """Images a step that this process has."""
        return some_of(self.ranks, self.options.batch_size)
