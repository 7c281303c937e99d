"""The layouts by target name: how the same learned integers are written."""

import dataclasses
from collections.abc import Callable, Mapping

import onnx

from pdq_export.errors import OptionError
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
    """``required_opset(plan)`` gives the opset it wants, ``write`` the graph.

    ``convertible``: whether what is written can be written in the other layouts that are, without calibrating again.
    ``tensorrt``: whether it wants `make_plan` to plan for TensorRT.
    """

    name: str
    required_opset: Callable[[Plan], int]
    write: Callable[[Quantized], onnx.GraphProto]
    convertible: bool = True
    tensorrt: bool = False


_LAYOUTS: dict[str, Layout] = {}


def register_layout(layout: Layout) -> None:
    """Add a layout. Raises ValueError where its name is taken."""
    if layout.name in _LAYOUTS:
        raise ValueError(f"layout {layout.name!r} is registered twice")
    _LAYOUTS[layout.name] = layout


def layout_names() -> tuple[str, ...]:
    """The known targets, sorted."""
    return tuple(sorted(_LAYOUTS))


def find_layout(target: str) -> Layout:
    """The layout of ``target``. Raises OptionError for an unknown one."""
    if target not in _LAYOUTS:
        raise OptionError(f"--target {target!r}: unknown; expected one of {', '.join(layout_names())}")
    return _LAYOUTS[target]
