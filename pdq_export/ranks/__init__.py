"""Processes that calibrate together, each on a share of the images.

`alone`: what they exchange, and a process that is alone; `together`: how several do it; `joining`: how they meet.
"""

from pdq_export.ranks.alone import ALONE, Ranks

__all__ = ["ALONE", "Ranks"]
