"""What a model takes and gives, and whether data fit that."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pdq_export.data import ImageSet, InputSet, InputSpec, KnownLabels
from pdq_export.errors import DataError, ModelError
from pdq_export.graph.lookup import GraphIndex, float_tensors_behind
from pdq_export.validate.compare import class_scores


def input_specs(index: GraphIndex) -> tuple[InputSpec, ...]:
    """The inputs of a model, whose axis 0 counts samples. Raises ModelError for one that calibration cannot feed."""
    specs = []
    for name in index.inputs:
        dtype, shape = index.dtype(name), index.shape(name)
        if dtype is None or dtype.kind != "f":
            raise ModelError(
                f"input {name!r}: is {dtype}; expected float32, which can be calibrated; {_cut(index, name)}"
            )
        if not shape:
            what = "its rank is unknown" if shape is None else "is a scalar"
            raise ModelError(
                f"input {name!r}: {what}; expected N x ..., for images N x C x H x W; declare this shape in the file's "
                "graph.input, a name or a number for each axis, or export it so"
            )
        specs.append(InputSpec(name=name, shape=tuple(d if isinstance(d, int) else None for d in shape)))
    batches = {spec.shape[0] for spec in specs}
    if len(batches) != 1:
        raise ModelError(
            f"model: axis 0 differs between its inputs: {', '.join(map(str, specs))}; expected the same batch size for "
            "all; export it so"
        )
    return tuple(specs)


_LEAVE_OUT = "leave the labels out with --no-labels, where no --max-drop needs them"


def check_labels(output: str, scores: NDArray[np.floating], images: ImageSet | InputSet | KnownLabels) -> None:
    """Raise DataError where the model's first output, ``scores`` for some images, has no class for a label."""
    by_class = class_scores(scores)
    if by_class is None or images.labels is None:
        raise DataError(
            f"{images.source}: has labels, but the model's first output {output!r} is {list(scores.shape)} for "
            f"{len(scores)} images; expected a score for each class, [N, classes]; {_LEAVE_OUT}, or "
            "export the model with its class scores as the first output"
        )
    folders = None if isinstance(images, InputSet) else images.classes
    if folders is not None and len(folders) != by_class.shape[1]:
        remedy = "add empty folders for those without images"
        if len(folders) > by_class.shape[1]:
            remedy = "take out those that are no class of the model"
        raise DataError(
            f"{images.source}: {len(folders)} folders of classes, but output {output!r} has {by_class.shape[1]} "
            f"classes; expected a folder for each, whose rank by name is the class; {remedy}, or add a labels.csv "
            f"with the columns file and label, or {_LEAVE_OUT}"
        )
    low, high, classes = int(images.labels.min()), int(images.labels.max()), by_class.shape[1]
    if low < 0 or high >= classes:
        raise DataError(
            f"{images.source}: labels span [{low}, {high}]; expected 0 to {classes - 1}, as output {output!r} has "
            f"{classes} classes; remap the labels, or {_LEAVE_OUT}"
        )


def declared_scores(shape: Sequence[object] | None) -> NDArray[np.floating] | None:
    """One image's output of a declared shape, all zeros; None where an axis behind the first is dynamic."""
    sizes = [size for size in (shape or ())[1:] if isinstance(size, int)]
    if not shape or len(sizes) != len(shape) - 1:
        return None
    return np.broadcast_to(np.float32(0), (1, *sizes))


def _cut(index: GraphIndex, name: str) -> str:
    """How a model can do without an input of integers or booleans."""
    constant = f"make it a constant where it is always the same (an initializer {name!r} in place of the input)"
    behind = float_tensors_behind(index, name)
    if not behind:
        return constant
    inputs = [other for other in index.inputs if (dtype := index.dtype(other)) is not None and dtype.kind == "f"]
    return (
        f"start the model behind it: onnx.utils.extract_model(old_path, new_path, {[*inputs, *behind]}, "
        f"{list(index.outputs)}), and give what the part before computes as data, under these names; or {constant}"
    )
