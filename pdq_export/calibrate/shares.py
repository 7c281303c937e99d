"""What each of several ranks has of a batch, and of the images that are searched on."""

from pdq_export.config.method import CalibrationOptions
from pdq_export.errors import OptionError
from pdq_export.ranks import Ranks


def check_enough(ranks: Ranks, options: CalibrationOptions, images: int) -> None:
    """Raise OptionError where there are ranks with nothing to do of so many calibration ``images``."""
    found = {"calibration images": images, "search_samples": options.search_samples}
    if options.iters:
        found["batch_size"] = options.batch_size
    name, least = min(found.items(), key=lambda item: item[1])
    if least < ranks.size:
        more = (
            "a --calib of more images, and --samples N where it is less"
            if name == "calibration images"
            else f"more of them (--set {name}=N)"
        )
        raise OptionError(
            f"{ranks.size} ranks: {name} is {least}, so some would have nothing to do; expected at least one for each; "
            f"take {more}, or start at most {least} ranks (torchrun --nproc-per-node {least})"
        )


def some_of(ranks: Ranks, count: int) -> int:
    """A process's share of ``count`` things, and one where there are more ranks: each has something to look at."""
    return max(ranks.share_of(count), 1)
