"""The stage of `--bits auto`: sensitivity on a run's samples, and bits found by it."""

import dataclasses
from collections.abc import Mapping

from pdq_export.commands.allotting import with_allotment
from pdq_export.commands.making import file_metadata, made_by, settings
from pdq_export.commands.operations import bit_operations, count_multiplications
from pdq_export.commands.progress import Tell
from pdq_export.commands.search import FileSize, Found, Search, placeholder_size
from pdq_export.commands.sensitivity import Asked, find_sensitivity
from pdq_export.commands.settle import choose, plan_options
from pdq_export.commands.space import Space
from pdq_export.config.config import Config
from pdq_export.config.method import CalibrationOptions
from pdq_export.data import sha256_by_input
from pdq_export.search.allotment import Allotment
from pdq_export.search.asked import Budget, parse_budget
from pdq_export.search.budget import Cost, Widths
from pdq_export.spec.sensitivity import Sensitivity
from pdq_export.targets import find_target
from pdq_export.work import PlannedModel, Work, find_couples


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
    def of(cls, work: Work, config: Config, chosen: CalibrationOptions, tell: Tell) -> "Finder":
        """With what the command `sensitivity` finds on the first samples of a run, measured now or kept from before.

        ``work``: with channels not equalized yet. Raises what `find_sensitivity` does.
        """
        asked = Asked.of(config)
        sensitivity = find_sensitivity(work, chosen, asked, tell)
        digests = sha256_by_input(work.samples.calibration, work.index.inputs)
        equalized = [pair.tensor for pair in find_couples(work)] if chosen.equalize_channels else []
        made = made_by(work.info, digests, str(asked.device), work.samples.synthesis, equalized)
        return cls(work=work, config=config, chosen=chosen, sensitivity=sensitivity, made=made)

    def find(self, budget: Budget | None = None) -> tuple[Config, Allotment, Found]:
        """The configuration that gives the bits, the bits by layer, and how they compare. Raises OptionError.

        ``budget``: by default the one that the configuration has.
        """
        found = self.search(budget).find(size=self._size)
        allotment = self._allotment(found.bits)
        return self._with(allotment), allotment, found

    def smallest(self, search: Search, loss: float) -> tuple[Config, Allotment, Found]:
        """The same for the smallest file whose estimated loss is within ``loss``."""
        found = search.smallest(loss, size=self._size)
        allotment = self._allotment(found.bits)
        return self._with(allotment), allotment, found

    def search(self, budget: Budget | None = None) -> Search:
        """What can be chosen, within a budget, by default the one that the configuration has."""
        asked = self.config.file
        options = plan_options(self.config, choose(self.config))
        space = Space(
            self.work,
            options,
            budget or parse_budget(self.config, fewest_bits=find_target(asked.target).fewest_bits),
            self.sensitivity,
            target=asked.target,
            runtime=asked.runtime,
            metadata=self._metadata(self.config),
            learns=self.chosen.iters > 0 and self.chosen.learn_rounding,
            operations=self._operations,
        )
        return Search(space)

    def _size(self, bits: Widths) -> FileSize:
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
