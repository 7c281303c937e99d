"""What a run calibrates on and what it judges on, read and checked against each other."""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pdq_export.data.image_set import ImageSet
from pdq_export.data.input_set import InputSet
from pdq_export.data.input_spec import InputSpec
from pdq_export.data.load import DataSource, read_data
from pdq_export.data.outliers import find_outliers
from pdq_export.data.overlap import all_equal, count_shared, image_digests
from pdq_export.data.preprocess import Preprocess
from pdq_export.errors import DataError, first_few

logger = logging.getLogger(__name__)

Data = ImageSet | InputSet
MOST_HELD = 2048  # images that are read beyond those of calibration, to be held back


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """What is calibrated on and what is judged on; ``shared``: how many of the latter calibration sees.

    ``left_out``: positions of samples given for calibration that calibration does not see. ``synthesis``: how images to
    calibrate on were made, where they were. ``held``: what neither calibration nor judgement sees, to choose by.
    """

    calibration: Data
    judged: Data
    shared: int
    left_out: tuple[int, ...] = ()
    synthesis: Mapping[str, Any] | None = None
    held: Data | None = None

    def settings(self) -> dict[str, Any]:
        """What the report says of them."""
        return {
            "calibration": str(self.calibration),
            "calibration_outliers": list(self.left_out),
            "evaluation": str(self.judged),
            "evaluated_on_calibration_images": self.shared == len(self.judged),
            "evaluation_images_seen_in_calibration": self.shared,
            **({} if self.synthesis is None else {"synthesis": dict(self.synthesis)}),
            **({} if self.held is None else {"held_back": str(self.held)}),
        }


def read_samples(
    calib: DataSource,
    eval: DataSource | None,
    specs: Sequence[InputSpec],
    limit: int,
    told: Callable[[int, int], None] = lambda *_: None,
    labels: Any = None,
    preprocess: Preprocess | None = None,
    hold_back: bool = False,
) -> Samples:
    """At most ``limit`` samples to calibrate on, and those to judge on, in whole batches: ``eval``, or else the same.

    ``told``: of how many images of a folder are read, one folder after the other. ``labels``: of the samples that are
    judged on; False leaves out all that there are. ``preprocess``: as in `read_data`, of both. ``hold_back``: keep some
    of ``calib`` from calibration, see `split_held`. Warns as `pair_samples` does.
    """
    of_calibration = labels if eval is None or labels is False else None
    spare = MOST_HELD if hold_back else 0
    calibration = read_data(
        calib, specs, limit=limit + spare, labels=of_calibration, told=told, preprocess=preprocess, spare=spare
    )
    judged = None if eval is None else read_data(eval, specs, labels=labels, told=told, preprocess=preprocess)
    if not hold_back:
        return pair_samples(calibration, judged, specs)
    calibration, held = split_held(calibration, judged, limit)
    held = whole_batches(held, specs[0].shape[0] or 1)
    return dataclasses.replace(pair_samples(calibration, judged, specs), held=held)


def split_held(given: Data, judged: Data | None, limit: int) -> tuple[Data, Data]:
    """What of the ``given`` calibrates, the first ``limit`` or fewer, and what is held back: a quarter or more.

    No image is held back that calibration or judgement sees. Raises DataError where none is left.
    """
    count = min(limit, len(given) - math.ceil(len(given) / 4))
    calibration, rest = given.head(count), given.take(range(count, len(given)))
    sets = (calibration, rest) if judged is None else (calibration, rest, judged)
    seen, found, *others = image_digests(*sets) if count else [[], []]
    known = set(seen).union(*others)
    kept = [number for number, digest in enumerate(found) if digest not in known]
    if not kept:
        raise DataError(
            f"{given.source}: {len(given)} images, of which none can be held back that neither calibration nor "
            "evaluation sees; expected a quarter of them, to choose bits by; give other images to judge by (--eval), "
            "or more to calibrate on"
        )
    return calibration, rest if len(kept) == len(rest) else rest.take(kept)


def pair_samples(
    calibration: Data, judged: Data | None, specs: Sequence[InputSpec], *, synthesis: Mapping[str, Any] | None = None
) -> Samples:
    """What is calibrated on and judged on, in whole batches: ``judged``, or else the same.

    Warns of samples that are all the same, left over, or in both, and of single ones far out of the others' range,
    which calibration does not see. ``synthesis``: as in `Samples`.
    """
    given, judged = judged, calibration if judged is None else judged
    judged = whole_batches(judged, specs[0].shape[0] or 1)
    if all_equal(calibration):
        logger.warning("%s: all %d images are the same; expected different ones", calibration.source, len(calibration))
    outliers = find_outliers(calibration)
    if outliers:
        logger.warning(
            "%s: calibration leaves out %d of the %d images, whose values are far beyond those of all others and would "
            "set the scales alone: number %s, counted from 0; check them and their normalization",
            calibration.source,
            len(outliers),
            len(calibration),
            first_few([str(position) for position in outliers]),
        )
        calibration = calibration.take(sorted(set(range(len(calibration))) - set(outliers)))
    shared = len(judged) if given is None else _tell_shared(calibration, judged)
    return Samples(calibration=calibration, judged=judged, shared=shared, left_out=tuple(outliers), synthesis=synthesis)


def classes_of(data: Data) -> tuple[str, ...] | None:
    """The names of the classes, in order, where folders tell them."""
    return data.classes if isinstance(data, ImageSet) else None


def _tell_shared(calibration: Data, judged: Data) -> int:
    """How many evaluation images calibration sees, with a warning where it sees any."""
    shared = count_shared(calibration, judged)
    if shared:
        logger.warning(
            "%s: %d of the %d evaluation images are among the %d of calibration, which makes figures look better than "
            "they are; leave them out",
            judged.source,
            shared,
            len(judged),
            len(calibration),
        )
    return shared


def whole_batches(samples: Data, batch: int, *, whose: str = "the model's") -> Data:
    """Without the samples that do not fill a batch, where a model or files fix its size; a warning says how many.

    Raises DataError where they do not fill one.
    """
    left_over = len(samples) % batch
    if left_over == len(samples):
        raise DataError(f"{samples.source}: {len(samples)} samples; expected at least {batch}, {whose} batch size")
    if left_over:
        logger.warning("%s batch size is %d: the last %d samples are left out", whose, batch, left_over)
    return samples.head(len(samples) - left_over)
