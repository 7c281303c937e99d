"""What a layout is, and what it is given: how the same learned integers are written."""

import dataclasses
import enum
from collections.abc import Callable, Mapping

import onnx

from pdq_export.export.constants import LayerConstants
from pdq_export.graph.lookup import GraphIndex
from pdq_export.spec import Plan, QuantizedTensors

# How layouts write; files of older forms are written as they were only to see whether they are as pdq-export left them.
# Before 3 the DequantizeLinear of a bias has no zero_point, asymmetric weights of qcdq are UINT8 with theirs, and all
# weights of ort with as many channels share one. Before 4 weights of ort lie in UINT2, UINT4 or INT8, every activation
# below 8 bits has a Clip, two of which may follow one another, and in qcdq a Clip of floats stays before it.
FORM, OLDEST_FORM = 4, 2

MIN_OPSET = 13  # DequantizeLinear along an axis, Clip of integers, and what unpacks weights


class Packing(enum.Enum):
    """How ort stores weights of less than 8 bits: what the runtime has to know, and what loading costs it.

    BYTES: in bytes, unpacked by operators of opset 13 (`pdq_export.export.unpacking`). TYPES: 2 and 4 bits in UINT2 and
    UINT4 where the opset knows them, 25 and 21, with a Cast, which takes the least memory to load; the rest in bytes.
    """

    BYTES = "bytes"
    TYPES = "types"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantized:
    """What a layout writes, the same for every one.

    ``index``: of the prepared model; what ``constants`` holds by node name may lack its data there. ``activations``:
    the parameters of every point that is no weight. ``form``: see `FORM`. ``packing``: of weights, in ort.
    """

    index: GraphIndex
    plan: Plan
    activations: QuantizedTensors
    constants: Mapping[str, LayerConstants]
    form: int = FORM
    packing: Packing = Packing.BYTES


def _lowest_opset(plan: Plan) -> int:
    return MIN_OPSET


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How learned integers are written. ``required_opset(plan)`` gives the opset it wants, ``write`` the graph.

    ``shrinks``: whether weights of fewer bits take fewer bytes. ``packs``: whether they can be stored as `Packing`
    says; then TYPES may want a newer opset.
    ``for_onnxruntime``: whether files are for onnxruntime, too, and say which is the oldest that computes them.
    ``domains``: of operators that are not ONNX's own, with their versions.
    """

    name: str
    write: Callable[[Quantized], onnx.GraphProto]
    required_opset: Callable[[Plan], int] = _lowest_opset
    shrinks: bool = True
    packs: bool = False
    for_onnxruntime: bool = True
    domains: Mapping[str, int] = dataclasses.field(default_factory=dict)
