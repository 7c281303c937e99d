"""What passes over a plan take and give back: the plan with the model it is of, and what was asked for."""

import dataclasses
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, NamedTuple

import onnx

from pdq_export.graph.lookup import GraphIndex
from pdq_export.plan.blocks import find_blocks
from pdq_export.plan.ramps import find_ramps
from pdq_export.plan.rules import PlanOptions
from pdq_export.plan.tail import without_tail
from pdq_export.spec import Layer, Plan, Point


class Note(NamedTuple):
    """What a pass has to tell the user, with its level as `logging` has it."""

    level: int
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """A prepared model and its plan.

    ``index``: of the model; ``core``: of what calibration sees, the model without the plan's tail. ``options``: what
    was asked for. ``notes``: what passes have done, or could not do, in words.
    """

    index: GraphIndex
    core: GraphIndex
    plan: Plan
    options: PlanOptions
    notes: tuple[Note, ...] = ()

    @classmethod
    def of(cls, model: onnx.ModelProto | GraphIndex, plan: Plan, options: PlanOptions) -> "Planned":
        """A prepared model with the plan that `make_plan` made of it."""
        index = GraphIndex.of(model)
        core = GraphIndex(without_tail(index.model, plan.tail)) if plan.tail else index
        return cls(index=index, core=core, plan=plan, options=options)

    @property
    def model(self) -> onnx.ModelProto:
        """The prepared model; a pass that adds nodes has made a copy of it."""
        return self.index.model

    def told(self, level: int, text: str) -> "Planned":
        """The same with one more note."""
        return dataclasses.replace(self, notes=(*self.notes, Note(level, text)))

    def with_points(self, points: Mapping[str, Point]) -> "Planned":
        """The same with other bits: which tensors are quantized and which blocks there are stays as it is."""
        return dataclasses.replace(self, plan=dataclasses.replace(self.plan, points=points))

    def replanned(
        self,
        points: Mapping[str, Point],
        passthrough: Mapping[str, str],
        *,
        layers: Iterable[Layer] | None = None,
        wide: Container[str] = (),
        **others: Any,
    ) -> "Planned":
        """The same with other tensors quantized, and the blocks and ramps that follow from them.

        ``wide``: as `find_blocks` takes it. ``others``: further fields of the plan.
        """
        kept = self.plan.layers if layers is None else tuple(layers)
        plan = dataclasses.replace(
            self.plan,
            points=points,
            passthrough=passthrough,
            layers=kept,
            blocks=find_blocks(self.core, kept, points, per_layer=self.options.per_layer, wide=wide),
            ramps=find_ramps(self.core, points, self.plan.excluded_nodes),
            **others,
        )
        return dataclasses.replace(self, plan=plan)


Pass = Callable[[Planned], Planned]
