"""The loss curve of each block, and where calibration's time went."""

from pdq_export.report.course import BlockCourse
from pdq_export.report.html.blocks import Block, Card, Cards, Cell, Fold, Section, Table, Text, number
from pdq_export.report.html.plots import Plots
from pdq_export.report.html.source import Source

_MOST = 200
_SHOWN = 0.005  # seconds, of which the table has two digits


def losses(source: Source, plots: Plots) -> Section | None:
    """A card for each block; in the order of the network."""
    blocks = source.blocks
    if not blocks:
        return None
    curves = [block for block in blocks if block.losses][:_MOST]
    made: list[Block] = []
    if curves:
        steps = max(block.steps for block in curves)
        text = f"The error of each block's output while it learned, from 0 up, over up to {steps:,} steps."
        made += [
            Text(text=text, tone="muted"),
            Cards(cards=[_card(block, plots) for block in curves], searched="Filter blocks"),
        ]
    else:
        made.append(Text(text="Nothing was learned: scales and rounding are what was searched.", tone="muted"))
    return Section(anchor="losses", title="How blocks were learned", blocks=[*made, _times(blocks)])


def _card(block: BlockCourse, plots: Plots) -> Card:
    lines = [f"{block.losses[0]:.3g} → {block.losses[-1]:.3g}"]
    return Card(title=block.block, svg=plots.curve(block.losses), lines=lines)


def _times(blocks: tuple[BlockCourse, ...]) -> Fold:
    # Phases that took no time to be told have no column.
    spent = (phase for block in blocks for phase, time in block.seconds.items() if time >= _SHOWN)
    phases = list(dict.fromkeys(spent))[:20]
    rows = [
        [Cell(text=block.block), *(number(block.seconds.get(phase), "{:.2f}") for phase in phases)] for block in blocks
    ]
    table = Table(head=("block", *(f"{phase}, s" for phase in phases)), rows=rows, numeric=range(1, len(phases) + 1))
    total = sum(time for block in blocks for time in block.seconds.values())
    return Fold(summary=f"Seconds by phase ({total:,.0f} s altogether)", blocks=[table])
