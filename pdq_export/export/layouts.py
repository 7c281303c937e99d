"""What a layout is, and what it is given: how the same learned integers are written."""

import dataclasses
from collections.abc import Callable, Mapping

import onnx

from pdq_export.export.constants import LayerConstants
from pdq_export.graph.lookup import GraphIndex
from pdq_export.spec import Plan, QuantizedTensors

# How layouts write; files of older forms are written as they were only to see whether they are as pdq-export left them.
# Before 3 the DequantizeLinear of a bias has no zero_point, asymmetric weights of qcdq are UINT8 with theirs, and all
# weights of ort with as many channels share one.
FORM, OLDEST_FORM = 3, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantized:
    """What a layout writes, the same for every one.

    ``index``: of the prepared model; what ``constants`` holds by node name may lack its data there. ``activations``:
    the parameters of every point that is no weight. ``form``: see `FORM`.
    """

    index: GraphIndex
    plan: Plan
    activations: QuantizedTensors
    constants: Mapping[str, LayerConstants]
    form: int = FORM


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How learned integers are written. ``required_opset(plan)`` gives the opset it wants, ``write`` the graph.

    ``for_onnxruntime``: whether files are for onnxruntime, too, and say which is the oldest that computes them.
    ``domains``: of operators that are not ONNX's own, with their versions.
    """

    name: str
    required_opset: Callable[[Plan], int]
    write: Callable[[Quantized], onnx.GraphProto]
    for_onnxruntime: bool = True
    domains: Mapping[str, int] = dataclasses.field(default_factory=dict)
