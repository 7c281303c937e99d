"""Changes of a plan: each is a pass, which takes a `Planned` and gives one back; this is the order of all of them."""

from collections.abc import Iterable

from pdq_export.plan.passes import assign_bits, fit_accumulators, reduce_range, wide_residuals
from pdq_export.plan.planned import Pass, Planned

# Bits come before what depends on them, and what adds nodes comes last.
ORDER: tuple[Pass, ...] = (assign_bits.run, reduce_range.run, fit_accumulators.run, wide_residuals.run)


def run(planned: Planned, rules: Iterable[Pass] = ()) -> Planned:
    """Change a plan by the target's ``rules`` and then by `ORDER`; a pass that nothing asks for changes nothing.

    Raises OptionError or ModelError where a pass does.
    """
    for change in (*rules, *ORDER):
        planned = change(planned)
    return planned
