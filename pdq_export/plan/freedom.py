"""Which bits rules leave open: what is allotted to layers, by budget or from a file, counts where no rule does."""

import dataclasses
from collections.abc import Mapping

from pdq_export.graph.lookup import GraphIndex
from pdq_export.plan import make_plan
from pdq_export.plan.rules import PlanOptions
from pdq_export.spec import MAX_BITS, MIN_BITS, BitWidths, Plan, Role

_WIDEST, _NARROWEST = BitWidths(MAX_BITS, MAX_BITS), BitWidths(MIN_BITS, MIN_BITS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Freedom:
    """The weights and learned activations, by tensor name, whose bits no rule for layers has.

    ``usual``: those that get the bits of all layers. ``outermost``: those of the first and last layers, where nobody
    asked for bits of these. ``least``: the fewest bits of each, which are more where a rule has one of several layers
    that share it: of these the larger bits count.
    """

    usual: frozenset[str]
    outermost: frozenset[str]
    least: Mapping[str, int]

    @property
    def tensors(self) -> frozenset[str]:
        """All of them."""
        return self.usual | self.outermost


def find_freedom(index: GraphIndex, plan: Plan, options: PlanOptions) -> Freedom:
    """What is open in a ``plan`` that was made of a prepared model with these options, before any pass widens it."""
    asked = options.section.first_last is not None
    outer = BitWidths.parse(str(options.first_last))
    before = rule_bits(index, plan, options, _WIDEST, outer if asked else _WIDEST)
    usual = _changed(before, rule_bits(index, plan, options, _NARROWEST, outer if asked else _WIDEST))
    outermost = frozenset() if asked else _changed(before, rule_bits(index, plan, options, _WIDEST, _NARROWEST))
    least = rule_bits(index, plan, options, _NARROWEST, outer if asked else _NARROWEST)
    return Freedom(usual=usual, outermost=outermost, least={name: least[name] for name in usual | outermost})


def rule_bits(
    index: GraphIndex, plan: Plan, options: PlanOptions, bits: BitWidths, first_last: BitWidths | None = None
) -> dict[str, int]:
    """The bits that rules and ``bits`` of all layers give to every weight and learned activation of a plan.

    ``first_last``: of the first and last layers, by default as the options have them.
    """
    section = dataclasses.replace(
        options.section, bits=str(bits), first_last=str(first_last or options.first_last), tensor_bits=()
    )
    made = make_plan(
        index, PlanOptions(section=section, per_layer=options.per_layer), plan.tail, integer_bias=plan.integer_bias
    )
    return {name: point.bits for name, point in made.points.items() if point.role is not Role.CARRIER}


def _changed(before: Mapping[str, int], after: Mapping[str, int]) -> frozenset[str]:
    return frozenset(name for name, bits in before.items() if after[name] != bits)
