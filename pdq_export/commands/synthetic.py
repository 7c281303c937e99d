"""Calibration without data: images learned from the model's own statistics, and what can be said on them."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from pdq_export.calibrate.memory import STEP_IMAGES, enough, format_size, process_budget, step_bytes
from pdq_export.calibrate.sizes import fold_sizes
from pdq_export.commands.progress import Tell
from pdq_export.commands.request import Request
from pdq_export.data import ImageSet, InputSpec, Preprocess, Samples, pair_samples, read_data
from pdq_export.data.preprocess import unused
from pdq_export.data.synthetic import SYNTHETIC, hides_file
from pdq_export.errors import DataError, OptionError
from pdq_export.synthesis import Distance, Learned, Range, batch_images, learn_images, usable
from pdq_export.work import PlannedModel, check_known_labels

logger = logging.getLogger(__name__)

_WHERE = f"--calib {SYNTHETIC}"
_FEW = 0.5  # share of layers with statistics, below which images are hardly determined
_MOST_DISTANT = 0.3  # squared, in standard deviations: images of 0..255 for 0..1 have 1 and more


def make_samples(request: Request, planned: PlannedModel, network: fx.GraphModule, count: int, tell: Tell) -> Samples:
    """``count`` images learned from the statistics of ``network``, and the samples to judge on.

    Raises DataError where there are no statistics, or the input takes no images, before anything is read.
    """
    shape, layout = _shape_of_images(request, planned.inputs)
    _check_statistics(planned)
    _check_unused(request, fixed_size=None not in planned.inputs[0].size(layout))
    if hides_file(request.calib):
        logger.warning("%s: images are made; the file of this name in the current folder is ./%s", _WHERE, SYNTHETIC)
    judged = None
    if request.eval is not None:
        told = _told(tell, "read")
        judged = read_data(
            request.eval, planned.inputs, labels=request.labels, told=told, preprocess=request.preprocess
        )
        check_known_labels(planned, judged)
    else:
        logger.warning(
            "%s without --eval: the report tells how the file agrees with FP32 on the images that were made, which is "
            "no accuracy and says little of real images; --eval gives it some",
            _WHERE,
        )

    def learn() -> tuple[ImageSet, Mapping[str, Any]]:
        images, learned = _learn(request, planned, network, count, shape, layout, tell)
        return images, learned.to_dict()

    images, synthesis = request.ranks.done_by_first(learn)  # machines of several kinds would learn others
    return pair_samples(images, judged, planned.inputs, synthesis=synthesis)


def _told(tell: Tell, stage: str) -> Any:
    return lambda done, total: tell.images(stage, done, total)


def _shape_of_images(request: Request, specs: tuple[InputSpec, ...]) -> tuple[tuple[int, int, int], str]:
    """Channels, height and width, and the layout. Raises DataError where they cannot be known."""
    first, *others = specs
    if others or not first.takes_images:
        raise DataError(
            f"{_WHERE}: the model takes {', '.join(map(str, specs))}; images can be made for one input N x C x H x W, "
            "float32, alone; give data by input name: --calib DATA.npz"
        )
    preprocess = request.preprocess
    layout = preprocess.layout or first.layout
    channels = first.channels(layout) or (3 if preprocess.mean is None else len(preprocess.mean))
    asked = preprocess.letterbox or preprocess.crop or preprocess.resize
    known = asked if isinstance(asked, tuple) else (None, None)
    height, width = (own or given for own, given in zip(first.size(layout), known, strict=True))
    if height is None or width is None:
        raise DataError(
            f"{_WHERE}: the model's {first} has no fixed height and width; expected the size to make images in: give "
            "--crop HxW"
        )
    return (channels, height, width), layout


def _check_statistics(planned: PlannedModel) -> None:
    layers, statistics = planned.plan.layers, planned.prepared.statistics
    told = {layer.output for layer in layers} & set(usable(statistics))
    if not told:
        raise DataError(
            f"{_WHERE}: {planned.original.name or 'the model'} has no BatchNormalization statistics behind its "
            f"{len(layers)} layers, from which images could be learned: exporters fold BatchNormalization by default; "
            "export the model with it kept (quantize(module, example_input=...) in Python does, or torch.onnx.export "
            "with dynamo=False, do_constant_folding=False and training=TrainingMode.PRESERVE), or give images: "
            "--calib PATH"
        )
    if len(told) < _FEW * len(layers):
        logger.warning(
            "%s: only %d of %d layers have BatchNormalization statistics; images that are learned from so few can be "
            "far from real ones: judge the file on --eval",
            _WHERE,
            len(told),
            len(layers),
        )


def _check_unused(request: Request, *, fixed_size: bool) -> None:
    """Raise DataError for what is given and would not count."""
    if request.eval is not None:
        return
    if request.labels is not None:
        raise DataError(f"{_WHERE}: labels are given, and there is nothing that they are of; give eval, too")
    given = request.preprocess.of_files()
    counted = () if fixed_size else ("letterbox", "crop", "resize")
    if left := [name for name in given if name not in counted]:
        raise unused(_WHERE, left[0], "has no influence on images that are made")


def _learn(
    request: Request,
    planned: PlannedModel,
    network: fx.GraphModule,
    count: int,
    shape: tuple[int, int, int],
    layout: str,
    tell: Tell,
) -> tuple[ImageSet, Learned]:
    last = layout == "NHWC"
    channels, height, width = shape
    seen = (1, height, width, channels) if last else (1, *shape)
    normalization = _normalization(request.preprocess, channels)
    on_device = network.to(request.device)
    try:
        folded = fold_sizes(on_device, [torch.zeros(seen, device=request.device)])
        distance = Distance.of(folded, planned.prepared.statistics, channels_last=last)
        tell.stage("synthesize")
        learned = learn_images(
            distance,
            count,
            shape,
            known=None if normalization is None else _range(*normalization),
            batch=_batch(request, distance, count, shape),
            seed=request.options(planned.family).seed,
            device=request.device,
            told=lambda done, total: tell.steps("synthesize", done, total),
        )
    finally:
        network.to("cpu")
    logger.info(
        "%d images are learned from the statistics of %d layers; they are %.2g standard deviations off",
        count,
        learned.layers,
        learned.distance**0.5,
    )
    if learned.distance > _MOST_DISTANT:
        logger.warning(
            "%s: the images do not come near to what BatchNormalization expects (%.2g standard deviations off); check "
            "--mean, --std and --pixel-range, and judge the file on --eval",
            _WHERE,
            learned.distance**0.5,
        )
    return _image_set(learned.images.numpy(), normalization, layout), learned


def _normalization(preprocess: Preprocess, channels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Mean and std of pixels of 0..1, where they are given."""
    return preprocess.checked(_WHERE).statistics(_WHERE, channels) if preprocess.takes_bytes else None


def _range(mean: NDArray[np.float32], std: NDArray[np.float32]) -> Range:
    return Range(low=torch.from_numpy((0 - mean) / std), high=torch.from_numpy((1 - mean) / std))


def _batch(request: Request, distance: Distance, count: int, shape: tuple[int, int, int]) -> int:
    """Images a step, the same under any --max-memory. Raises OptionError where it does not hold a step."""
    batch, most = batch_images(count, shape[1:]), request.max_memory
    if most is None or request.device.type != "cpu":
        return batch
    room, one = process_budget(most), step_bytes(distance, None, [torch.zeros(STEP_IMAGES, *shape)], [], 1)
    if batch * one <= room:
        return batch
    raise OptionError(
        f"--max-memory {format_size(most)}: the process holds {format_size(most - room)}, and learning {batch} images "
        f"at once takes {format_size(batch * one)}; give --max-memory {enough(most - room + batch * one)} or more"
    )


def _image_set(
    images: NDArray[np.float32], normalization: tuple[NDArray[np.float32], NDArray[np.float32]] | None, layout: str
) -> ImageSet:
    """As pixels of 8 bits, like other images, where it is known what these become."""
    axes = (0, 2, 3, 1) if layout == "NHWC" else (0, 1, 2, 3)
    if normalization is None:
        ordered = np.ascontiguousarray(images.transpose(axes))
        return ImageSet.from_array(ordered, source=SYNTHETIC, layout=layout)
    mean, std = (values[:, None, None] for values in normalization)
    pixels = np.rint((images * std + mean) * 255).clip(0, 255).astype(np.uint8)
    return ImageSet.from_array(
        np.ascontiguousarray(pixels.transpose(axes)),
        mean=normalization[0],
        std=normalization[1],
        source=SYNTHETIC,
        layout=layout,
    )
