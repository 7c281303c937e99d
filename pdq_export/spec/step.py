"""One calibration on the way to the smallest file that keeps a drop of accuracy."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One calibration. ``size``: bytes expected of the file; ``loss``: estimated, the sum over its tensors.

    ``drop``: points of top-1 lost on ``images`` that were held back, with the ``error``, the standard one, but one
    image at least; ``bounds``: these are no more than a bound, the share of images whose class changes. ``held``:
    whether that keeps the limit. ``avg_weight``: average bits.
    """

    size: int
    loss: float
    avg_weight: float
    drop: float
    error: float
    images: int
    held: bool
    bounds: bool = False

    @property
    def points(self) -> str:
        """The drop in words, without its unit."""
        return f"{'at most ' * self.bounds}{self.drop:.2f}"
