"""onnxsim: folds constants and the exporters' shape arithmetic, keeps BatchNormalization."""

import builtins
import contextlib
import importlib
import logging
import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxsim
from numpy.typing import NDArray

from pdq_export.graph.interface import interface_difference, restore_interface
from pdq_export.graph.messages import essential_line

logger = logging.getLogger(__name__)

LARGEST_INPUT = 2**24  # elements; beyond it, running the model twice for a comparison takes too much memory
TOLERANCE = 1e-3  # relative and absolute; float32 sums in another order stay far below it


_thread = threading.local()


@contextlib.contextmanager
def _log_what_is_printed() -> Iterator[None]:
    """What onnxsim prints in this thread meanwhile goes to the log; what it prints for others, where it went."""
    _thread.logs = True
    try:
        yield
    finally:
        _thread.logs = False


def _intercept(name: str) -> None:
    """Let a module of onnxsim print by a function that logs for those within `_log_what_is_printed`.

    To redirect stdout would take what other threads print meanwhile. Another version of onnxsim may lack the module:
    then what it prints is seen.
    """
    try:
        module = vars(importlib.import_module(f"onnxsim.{name}"))
    except ImportError:
        logger.debug("onnxsim has no module %s: what it prints is not logged", name)
        return
    own = module.get("print")

    def log_or_print(*texts: object, **options: Any) -> None:
        if getattr(_thread, "logs", False):
            logger.debug("onnxsim: %s", " ".join(map(str, texts)))
        else:
            (own or builtins.print)(*texts, **options)

    module["print"] = log_or_print


for _name in ("model_checking", "onnx_simplifier"):
    _intercept(_name)


def run(model: onnx.ModelProto) -> onnx.ModelProto:
    """Simplify with onnxsim; where it fails or changes results or interface, warn and keep the model as it is.

    The outputs are compared on one random input where its shape is known but for the batch axis and not very large.
    """
    example = _random_inputs(model)
    try:
        with _log_what_is_printed():
            simplified, same = onnxsim.simplify(
                model,
                skip_fuse_bn=True,
                certify=False,
                check_n=0 if example is None else 1,
                input_data=example,
                check_rtol=TOLERANCE,
                check_atol=TOLERANCE,
            )
    except Exception as error:  # its C++ core throws many types
        logger.warning("onnxsim failed (%s); going on with the model as it is", essential_line(error))
        return model
    difference = interface_difference(model, simplified)
    if difference is None and not same:
        difference = "the outputs' values"
    if difference is not None:
        logger.warning("onnxsim changed %s; going on with the model as it is", difference)
        return model
    restore_interface(model, simplified)  # it refines shapes and logs what it did in the metadata
    logger.debug("onnxsim: %d nodes, %d before", len(simplified.graph.node), len(model.graph.node))
    assert isinstance(simplified, onnx.ModelProto)
    return simplified


def _random_inputs(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]] | None:
    """Standard normal inputs of batch 1; None where one is no float32 tensor of known, moderate shape."""
    generator = np.random.default_rng(0)
    inputs = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [dim.dim_value for dim in tensor.shape.dim]
        if shape and shape[0] == 0:
            shape[0] = 1
        if tensor.elem_type != onnx.TensorProto.FLOAT or not shape or 0 in shape or math.prod(shape) > LARGEST_INPUT:
            return None
        inputs[value.name] = generator.standard_normal(shape, dtype=np.float32)
    return inputs
