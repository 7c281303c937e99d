"""The stage of `--bits auto`: sensitivity measured on a run's samples, and bits found by it."""

import dataclasses
from collections.abc import Mapping, Sequence

import torch

from pdq_export.calibrate import Source
from pdq_export.commands.allotting import with_allotment
from pdq_export.commands.making import file_metadata, made_by, settings
from pdq_export.commands.operations import bit_operations, count_multiplications
from pdq_export.commands.progress import Tell
from pdq_export.commands.search import Found, Search, placeholder_size
from pdq_export.commands.settle import choose, plan_options
from pdq_export.config.config import Config
from pdq_export.config.method import CalibrationOptions
from pdq_export.data import sha256_by_input
from pdq_export.search.allotment import Allotment
from pdq_export.search.asked import Budget, parse_budget
from pdq_export.search.budget import Cost, Widths
from pdq_export.search.groups import find_groups
from pdq_export.search.sensitivity import measure_sensitivity
from pdq_export.spec.sensitivity import Sensitivity
from pdq_export.work import PlannedModel, Work, equalize_channels

MOST_IMAGES = 128  # that sensitivity is measured on


def measure(
    work: Work,
    inputs: Sequence[torch.Tensor | Source],
    chosen: CalibrationOptions,
    *,
    symmetric_weights: bool,
    device: torch.device,
    max_memory: int | None,
    tell: Tell,
) -> Sensitivity:
    """What every weight and learned activation does at every width, on the first of a run's calibration samples."""
    some: list[torch.Tensor | Source] = [x[:MOST_IMAGES] for x in inputs]
    if chosen.equalize_channels:
        work, _ = equalize_channels(work, some)
    return measure_sensitivity(
        work.network,
        work.plan,
        find_groups(work.core, work.plan),
        some,
        chosen,
        device=device,
        symmetric_weights=symmetric_weights,
        max_memory=max_memory,
        told=lambda done, total: tell.images("search", done, total),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finder:
    """Finds bits for a model, planned with 8 bits wherever no rule says otherwise, by what was measured.

    ``config``: that asks for them; ``chosen``: the numbers of the method; ``made``: what a file of the run says of its
    making.
    """

    work: Work
    config: Config
    chosen: CalibrationOptions
    sensitivity: Sensitivity
    made: Mapping[str, object]

    @classmethod
    def of(
        cls, work: Work, config: Config, chosen: CalibrationOptions, sensitivity: Sensitivity, device: torch.device
    ) -> "Finder":
        """With what a file of the run says of its making."""
        digests = sha256_by_input(work.samples.calibration, work.index.inputs)
        made = made_by(work.info, digests, str(device))
        return cls(work=work, config=config, chosen=chosen, sensitivity=sensitivity, made=made)

    def find(self, budget: Budget | None = None) -> tuple[Config, Allotment, Found]:
        """The configuration that gives the bits, the bits by layer, and how they compare. Raises OptionError.

        ``budget``: by default the one that the configuration has.
        """
        asked = self.config.file
        options = plan_options(self.config, choose(self.config))
        search = Search(
            self.work,
            options,
            budget or parse_budget(self.config),
            self.sensitivity,
            target=asked.target,
            runtime=asked.runtime,
            metadata=self._metadata(self.config),
            operations=self._operations,
        )
        found = search.find(size=self._size)
        allotment = self._allotment(found.bits)
        return self._with(allotment), allotment, found

    def _size(self, bits: Widths) -> int:
        """Of the file with these bits, with placeholders."""
        changed = self._with(self._allotment(bits))
        options = plan_options(changed, choose(changed))
        planned = PlannedModel.of(self.work.original, options, changed.file, told=False)
        return placeholder_size(planned, changed.file.target, self._metadata(changed))

    def _allotment(self, bits: Widths) -> Allotment:
        work = self.work
        return Allotment.of(work.index, work.plan, bits, model=work.original.name, sha256=work.original.sha256)

    def _with(self, allotment: Allotment) -> Config:
        return with_allotment(self.config, self.work, allotment, where="--bits auto")

    def _metadata(self, config: Config) -> dict[str, str]:
        told = settings(config, plan_options(config, choose(config)), self.chosen, self.work.family)
        return file_metadata(config, told, self.made)

    def _operations(self) -> Cost:
        work = self.work
        inputs = work.samples.calibration.head(work.batch or 1).inputs()
        counts = count_multiplications(work.prepared, work.plan.layers, inputs)
        return bit_operations(work.plan, counts)
