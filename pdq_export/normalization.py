"""Whether images are normalized as those of training were: the first BatchNormalization remembers what it was given.

It knows mean and standard deviation of each channel of the first layer's output. Images that are read in another way
than in training give others; where one of the usual ways gives what it knows, that is most likely the right one.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from pdq_export.data import ImageSet, InputSet
from pdq_export.frontend import compute_tensor
from pdq_export.spec import ChannelStatistics, Plan

logger = logging.getLogger(__name__)

Array = NDArray[np.float32]

_IMAGES, _FEWEST = 32, 16
_ALIVE = 1e-3  # of the largest standard deviation; what is below says nothing
# From what right and wrong images give on the networks of benchmarks/RESULTS.md. Distances are in standard deviations.
_FAR, _NEARER, _FITS, _ABSURD = 0.5, 0.6, 1.5, 3.0
_SHIFTED = 0.08
_EXCHANGED = "with red and blue exchanged"
_USUAL: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "as pixels of 0..1": ((0.0,), (1.0,)),
    "as pixels of 0..255": ((0.0,), (1 / 255,)),
    "with mean 0.5 and std 0.5": ((0.5,), (0.5,)),
    "with ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distance:
    """How far channels are from those expected.

    ``shift``: of means, root mean square, in expected standard deviations. ``spread``: of the logarithms of standard
    deviations, of the channel in the middle.
    """

    shift: float
    spread: float

    @property
    def total(self) -> float:
        """Both."""
        return math.hypot(self.shift, self.spread)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Distances at one layer: of the images as they are ``given``, and of the same images read in other ways.

    Of images that fit well only the one with channels exchanged is among the latter.
    """

    layer: str
    given: Distance
    others: Mapping[str, Distance]

    @property
    def better(self) -> str | None:
        """What to read the images as instead, None where they are best as they are; empty where nothing known fits."""
        name = min(
            self.others, key=lambda other: self.others[other].total + _SHIFTED * (_EXCHANGED in other), default=""
        )
        if name and self.given.total > _FAR and self.others[name].total < min(_NEARER * self.given.total, _FITS):
            return name
        exchanged = self.others.get(_EXCHANGED)
        if exchanged is not None and self.given.total < _ABSURD:
            closer = self.given.shift - exchanged.shift
            if closer > _SHIFTED and exchanged.shift < _NEARER * self.given.shift:
                return _EXCHANGED
        return "" if self.given.total > _ABSURD else None


def warn_of_normalization(
    network: fx.GraphModule, plan: Plan, statistics: Mapping[str, ChannelStatistics], images: ImageSet | InputSet
) -> None:
    """Warn where images fit what the first BatchNormalization expects worse than they would if read in another way.

    ``network``: FP32, imported from ONNX. Says nothing of models without statistics, of inputs that are no images, and
    of a few images, which do not tell.
    """
    fit = measure_fit(network, plan, statistics, images)
    if fit is None or (better := fit.better) is None:
        return
    off, otherwise, remedy = fit.given.total, "", "--mean, --std and --pixel-range (in folders preprocess.toml)"
    if better == _EXCHANGED:
        off = fit.given.shift
        otherwise = f", and {fit.others[better].shift:.2g} {better}"
        remedy = "whether the model takes RGB or BGR, --channel-order (in folders preprocess.toml)"
    elif better:
        otherwise = f", and {fit.others[better].total:.2g} {better}"
    logger.warning(
        "%s: images do not seem to be normalized as those of training were: behind %r their channels are %.2g standard "
        "deviations off what BatchNormalization expects%s; check %s, or how arrays were made; images that are all of "
        "one kind, as of one class, can be off without being wrong",
        *(images.source, fit.layer, off, otherwise, remedy),
    )


def read_alike(one: ImageSet | InputSet, other: ImageSet | InputSet) -> bool:
    """Whether both come from one place, with the same mean and std."""
    if isinstance(one, ImageSet) and isinstance(other, ImageSet):
        alike = np.array_equal(one.mean, other.mean) and np.array_equal(one.std, other.std)  # type: ignore[arg-type]
        return alike and one.source == other.source
    return one.source == other.source


def measure_fit(
    network: fx.GraphModule, plan: Plan, statistics: Mapping[str, ChannelStatistics], images: ImageSet | InputSet
) -> Fit | None:
    """How images fit the statistics of the first layer that has some; None where that cannot be told."""
    layer = next((layer for layer in plan.layers if layer.output in statistics), None)
    if layer is None or not isinstance(images, ImageSet) or len(images) < _FEWEST:
        return None
    chosen = np.linspace(0, len(images) - 1, min(_IMAGES, len(images))).round().astype(int)
    some = images.take(chosen.tolist())
    known = statistics[layer.output]

    def measure(x: Array) -> Distance | None:
        found = compute_tensor(network, [torch.from_numpy(np.ascontiguousarray(x))], layer.output)
        return None if found is None else _distance(found, known)

    given = measure(some.array())
    if given is None:
        return None
    others = {}
    for name, x in _readings(some):
        if name == _EXCHANGED or given.total > _FAR:  # else nothing would be said of them
            distance = measure(x())
            assert distance is not None  # like the one of what is given
            others[name] = distance
    return Fit(layer=layer.node, given=given, others=others)


def _distance(found: Array, known: ChannelStatistics) -> Distance | None:
    axes = (0, *range(2, found.ndim))
    alive = known.std > _ALIVE * known.std.max(initial=0.0)
    if found.ndim < 2 or found.shape[1] != len(alive) or not alive.any():
        return None
    mean, std = found.mean(axes, dtype=np.float64)[alive], found.std(axes, dtype=np.float64)[alive]
    shift = float(np.sqrt(np.mean(((mean - known.mean[alive]) / known.std[alive]) ** 2)))
    ratio = np.maximum(std, np.finfo(np.float64).tiny) / known.std[alive]
    return Distance(shift=shift, spread=float(np.median(np.abs(np.log(ratio)))))


def _readings(images: ImageSet) -> Iterator[tuple[str, Callable[[], Array]]]:
    """The same images in other usual ways, normalized in each."""
    x = images.array()
    axis = 3 if images.layout == "NHWC" else 1
    channels = x.shape[axis]
    used = _statistics_of(images, x, axis)
    if used is None:
        if channels == 3:
            yield _EXCHANGED, lambda: np.flip(x, axis)
        yield "multiplied by 255", lambda: x * np.float32(255)
        yield "divided by 255", lambda: x / np.float32(255)
        return
    pixels = _pixels(x, *used, axis)
    exchanged = np.flip(pixels, axis)
    if channels == 3:
        yield _EXCHANGED, lambda: _normalized(exchanged, *used, axis)
    for name, (mean, std) in _USUAL.items():
        if len(mean) in (1, channels):
            yield name, partial(_normalized, pixels, mean, std, axis)
            if channels == 3:
                yield f"{name}, {_EXCHANGED}", partial(_normalized, exchanged, mean, std, axis)


def _statistics_of(images: ImageSet, x: Array, axis: int) -> tuple[Sequence[float], Sequence[float]] | None:
    """Mean and std that images were normalized with; of floats, those usual ones that fill the range 0..1 best."""
    if images.mean is not None and images.std is not None:
        return images.mean.tolist(), images.std.tolist()
    best, nearest = None, 0.3
    for mean, std in _USUAL.values():
        if len(mean) not in (1, x.shape[axis]):
            continue
        pixels = _pixels(x, mean, std, axis)
        low, high = float(pixels.min()), float(pixels.max())
        if low > -0.02 and high < 1.02 and abs(low) + abs(high - 1) < nearest:
            best, nearest = (mean, std), abs(low) + abs(high - 1)
    return best


def _pixels(x: Array, mean: Sequence[float], std: Sequence[float], axis: int) -> Array:
    return x * _along(std, axis) + _along(mean, axis)


def _normalized(pixels: Array, mean: Sequence[float], std: Sequence[float], axis: int) -> Array:
    return (pixels - _along(mean, axis)) / _along(std, axis)


def _along(values: Sequence[float], axis: int) -> Array:
    shape = [1, 1, 1, 1]
    shape[axis] = len(values)
    return np.asarray(values, np.float32).reshape(shape)
