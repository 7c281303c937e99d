"""What is quantized and how: the data that planning, simulation and export share. No torch, no onnx.

Everything is keyed by ONNX tensor name. The plan names the quantization points; the simulation inserts exactly
these and the exporter writes exactly these. The annotations of fields say types and ranges; `spec.plain` writes and
reads them all.
"""

import dataclasses
import enum
import itertools
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from pdq_export.errors import OptionError
from pdq_export.spec.arrays import Listed, Stored

MIN_BITS, MAX_BITS = 2, 8
CARRIER_BITS = 8
_MOST_AXES = 8

Bits = Annotated[int, Interval(ge=MIN_BITS, le=MAX_BITS)]
ALL_BITS: tuple[Bits, ...] = tuple(range(MIN_BITS, MAX_BITS + 1))
Axis = Annotated[int, Interval(ge=0, lt=_MOST_AXES)]
Size = Annotated[int, Interval(ge=1, lt=1 << 31)]
Index = Annotated[int, Interval(ge=0, lt=1 << 31)]
# What is at most half of the smallest float32 above 0 would become 0.
Positive = Annotated[float, Interval(gt=2.0**-150, le=float(np.finfo(np.float32).max))]
Float32s = Annotated[NDArray[np.float32], Stored(np.float32)]
ListedFloat32s = Annotated[NDArray[np.float32], Listed()]  # numbers that people and programs look at
Int32s = Annotated[NDArray[np.int32], Stored(np.int32)]
Int16s = Annotated[NDArray[np.int16], Stored(np.int16)]


@dataclasses.dataclass(frozen=True)
class BitWidths:
    """Bits of weights and activations, written W/A as in the paper: ``4/4``, ``2/4``."""

    weight: Bits
    activation: Bits

    def __post_init__(self) -> None:
        _check_range(self.weight, self.activation, "bits")

    def __str__(self) -> str:
        return f"{self.weight}/{self.activation}"

    @classmethod
    def parse(cls, text: str, *, option: str = "--bits") -> "BitWidths":
        """Read ``W/A``, e.g. ``4/4``. Raises OptionError, which names ``option``, for anything else."""
        match = re.fullmatch(r"\s*(\d{1,2})\s*/\s*(\d{1,2})\s*", text, re.ASCII) if isinstance(text, str) else None
        if match is None:
            raise OptionError(f"{option} {text!r}: expected W/A, weight and activation bits, for example 4/4")
        weight, activation = int(match[1]), int(match[2])
        _check_range(weight, activation, option)
        return cls(weight, activation)


def _check_range(weight: int, activation: int, option: str) -> None:
    for what, bits in (("weight", weight), ("activation", activation)):
        if not MIN_BITS <= bits <= MAX_BITS:
            raise OptionError(
                f"{option} {weight}/{activation}: {what} bits are {bits}; expected {MIN_BITS} to {MAX_BITS} for each "
                "of W/A"
            )


class Role(enum.Enum):
    """Why a tensor is quantized (docs/quantized.md)."""

    WEIGHT = "weight"  # constant weight: per output channel, W bits, rounding is learned
    ACTIVATION = "activation"  # per tensor, A bits, scale is learned
    CARRIER = "carrier"  # per tensor, 8 bits, only there so that the runtime stays integer; never learned


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A tensor that is quantized.

    ``axis`` is the output-channel axis of a weight and None for activations. ``symmetric`` ones are signed with
    zero_point 0. ``absorbed`` names the activation node (Relu, Clip) whose output this tensor is and
    which the integer range itself can express, or an Identity between two scales; None where there is none.
    """

    tensor: str
    role: Role
    bits: Bits
    axis: Axis | None = None
    symmetric: bool = False
    absorbed: str | None = None

    @property
    def qmin(self) -> int:
        """Smallest integer: 0; for symmetric -2^(bits-1), but -127 for 8-bit weights, where kernels want it."""
        if not self.symmetric:
            return 0
        narrow = self.bits == MAX_BITS and self.role is Role.WEIGHT
        return -self.qmax if narrow else -self.qmax - 1

    @property
    def qmax(self) -> int:
        """Largest integer: 2^bits - 1, or 2^(bits-1) - 1 for symmetric."""
        return (1 << (self.bits - 1 if self.symmetric else self.bits)) - 1

    def with_bits(self, bits: int, *, symmetric: bool | None = None) -> "Point":
        """The same with other bits.

        A weight of 8 bits is symmetric, which kernels want; a narrower one as ``symmetric`` says, by default as it
        was. Raises OptionError for other than 2 to 8 bits, and for a carrier with other than 8.
        """
        whole = hasattr(bits, "__index__") and not isinstance(bits, bool)  # NumPy's integers, too
        if not whole or not MIN_BITS <= bits <= MAX_BITS:
            raise OptionError(f"tensor {self.tensor!r}: bits are {bits!r}; expected {MIN_BITS} to {MAX_BITS}")
        bits = operator.index(bits)
        if self.role is Role.CARRIER and bits != CARRIER_BITS:
            raise OptionError(
                f"tensor {self.tensor!r}: bits are {bits}; expected {CARRIER_BITS}, as it is a carrier, there only so "
                "that the runtime stays integer; give other bits to weights and learned activations"
            )
        if self.role is Role.WEIGHT:
            symmetric = bits == CARRIER_BITS or (self.symmetric if symmetric is None else symmetric)
        else:
            symmetric = self.symmetric
        return dataclasses.replace(self, bits=bits, symmetric=symmetric)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A weighted node: Conv, ConvTranspose, Gemm or MatMul with a constant weight. Tensor names.

    ``owns_bias``: nothing else in the graph reads the bias. ``scope``: the path of the module that the node belongs to,
    where the file tells it apart from the node's name.
    """

    node: str
    op_type: str
    input: str
    weight: str
    bias: str | None
    output: str
    owns_bias: bool = False
    scope: str = ""

    @property
    def label(self) -> str:
        """How people know the layer: by its module, where that is told, else by its node."""
        return self.scope or self.node


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """A unit of reconstruction: the nodes between ``inputs`` and ``outputs``, in topological order.

    ``nodes`` are node names (every node of a prepared model has a unique one).
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]
    layers: tuple[Layer, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """The images lie along ``axis``, whose size is outer * batch * inner: merged axes before and behind the batch."""

    axis: Axis
    outer: Size = 1
    inner: Size = 1

    @property
    def is_alone(self) -> bool:
        """Whether the axis counts images and nothing else."""
        return self.outer == self.inner == 1

    def along(self, axis: int) -> "Place":
        """The same along another axis."""
        return dataclasses.replace(self, axis=axis)

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape can have images there."""
        return self.axis < len(shape) and shape[self.axis] % (self.outer * self.inner) == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ramp:
    """A point that is clip(x / (2 knee) + 1/2, 0, 1), HardSigmoid, of the carrier ``source``: 0 at -knee, 1 at knee.

    ``alone``: nobody else reads the source, so that beyond the knees its values do not matter.
    """

    source: str
    knee: Positive
    alone: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputPart:
    """What lies at ``start`` to ``stop`` along ``axis`` of an output: ``tensor``, before the Concat that joins it."""

    tensor: str
    axis: Axis
    start: Index
    stop: Index

    def at(self, axis: int) -> "OutputPart":
        """The same along another axis."""
        return dataclasses.replace(self, axis=axis)

    def name(self, output: str) -> str:
        """How reports call it: ``detections[:, 4:84]``."""
        return f"{output}[{':, ' * self.axis}{self.start}:{self.stop}]"

    def of(self, values: NDArray[Any]) -> NDArray[Any]:
        """The part of an output's values."""
        return values[(slice(None),) * self.axis + (slice(self.start, self.stop),)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Quantization points by tensor name (topological order), integer pass-through nodes, and blocks.

    ``passthrough`` maps the output tensor of a node that only moves integers about (MaxPool, Reshape, Slice, Pad with
    zero, ...) to the quantized tensor whose scale and zero_point it keeps (the point itself, not an intermediate).
    ``excluded``: layers that stay in float because that was asked for; they are in no block's ``layers``.
    ``excluded_nodes``: the names of other nodes that do.
    ``unquantized`` by node name: the points that a node reads as they are before quantization, since nothing but
    outputs of the network depends on it.
    ``ramps`` by output tensor: carriers that can share the integers of their source.
    ``tail``: nodes behind the quantized part that stay as they are, with the reason; points and blocks are those of
    the graph without them.
    ``integer_bias``: whether biases of layers with quantized inputs are rounded to INT32.
    ``parts``: of outputs that are several things in one tensor; each is compared by itself.
    """

    bits: BitWidths
    points: Mapping[str, Point]
    passthrough: Mapping[str, str]
    layers: tuple[Layer, ...]
    blocks: tuple[Block, ...]
    excluded: tuple[Layer, ...] = ()
    ramps: Mapping[str, Ramp] = dataclasses.field(default_factory=dict)
    tail: Mapping[str, str] = dataclasses.field(default_factory=dict)
    excluded_nodes: tuple[str, ...] = ()
    unquantized: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    integer_bias: bool = True
    parts: Mapping[str, tuple[OutputPart, ...]] = dataclasses.field(default_factory=dict)

    def source(self, tensor: str) -> str | None:
        """The point whose integers ``tensor`` carries: itself, or the one it is a pass-through of, or None."""
        return tensor if tensor in self.points else self.passthrough.get(tensor)

    @property
    def read_unquantized(self) -> frozenset[str]:
        """The points that have to be there in float as well."""
        return frozenset(itertools.chain.from_iterable(self.unquantized.values()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """The learned quantization of one point.

    x_hat = (q - zero_point) * scale, q = clip(round_half_even(x / scale) + zero_point, qmin, qmax).

    ``scale``: float32, shape [] or [C] along ``point.axis``. ``zero_point``: int32, the same shape. ``integers``: the
    weight's q, int16, the weight's own shape; None for activations.
    """

    point: Point
    scale: Float32s
    zero_point: Int32s
    integers: Int16s | None = None


QuantizedTensors = Mapping[str, QuantizedTensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """Expected mean and standard deviation of a layer's output, per channel, for distribution correction.

    With BatchNormalization folded into the layer these are beta and |gamma|, and ``gain`` = sigma / |gamma| turns a
    difference back into the units of the BatchNormalization's input (0 where gamma is 0). All float32, shape [C].
    """

    mean: Float32s
    std: Float32s
    gain: Float32s

    def transformed(
        self, factor: NDArray[np.float64], offset: NDArray[np.float64] | float = 0.0
    ) -> "ChannelStatistics":
        """Of y * factor + offset, each [C]; the gain still leads back to the BatchNormalization's input."""
        size = np.abs(factor)
        gain = np.divide(self.gain, size, out=np.zeros_like(size), where=size > 0)
        return ChannelStatistics(
            mean=(self.mean * factor + offset).astype(np.float32),
            std=(self.std * size).astype(np.float32),
            gain=gain.astype(np.float32),
        )
