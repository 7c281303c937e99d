"""The sections of a page, one a module, in the order in which people read them.

A section is a function of a `Source` and `Plots` that gives a `Section` of blocks, or None where the source says
nothing of it. A new one is a module with such a function and a line here.
"""

from collections.abc import Callable

from pdq_export.report.html.blocks import Section
from pdq_export.report.html.plots import Plots
from pdq_export.report.html.sections.accuracy import accuracy
from pdq_export.report.html.sections.asked import asked
from pdq_export.report.html.sections.bits import bits
from pdq_export.report.html.sections.changed import changed
from pdq_export.report.html.sections.command import command
from pdq_export.report.html.sections.errors import errors
from pdq_export.report.html.sections.floating import floating
from pdq_export.report.html.sections.gates import gates
from pdq_export.report.html.sections.histograms import histograms
from pdq_export.report.html.sections.layers import layers
from pdq_export.report.html.sections.losses import losses
from pdq_export.report.html.sections.sensitivity import sensitivity
from pdq_export.report.html.sections.size import size
from pdq_export.report.html.sections.told import told
from pdq_export.report.html.sections.versions import versions
from pdq_export.report.html.source import Source

SECTIONS: tuple[Callable[[Source, Plots], Section | None], ...] = (
    asked,
    gates,
    accuracy,
    size,
    bits,
    sensitivity,
    layers,
    errors,
    losses,
    histograms,
    changed,
    floating,
    told,
    versions,
    command,
)
