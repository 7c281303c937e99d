"""What loading a file takes at the peak, by how its weights are packed, and which packing a file gets.

onnxruntime computes what unpacks weights when it loads a file, and holds every tensor on the way, of all weights, until
the last one is done: their sum is what is there at the peak besides the file and its INT8 weights. Counted are tensors
as large as a weight, not what weights share.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from pdq_export.export.layouts import Packing
from pdq_export.export.packing import Packable, choose_widths, loading_bytes
from pdq_export.export.runtimes import OLDEST, TYPED_SINCE, Version, newest_opset, parse_version, shown
from pdq_export.export.storage import UINT2_OPSET, storage_bits
from pdq_export.graph.lookup import GraphIndex
from pdq_export.spec import Plan, Point, Role

# More than so many bytes at the peak, a file that every onnxruntime loads is not written without being asked for.
PORTABLE_LIMIT = 64_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loading:
    """How weights are packed, and what that takes while a file is loaded.

    ``max_opset``: the newest that may be written. ``unpacking``: bytes at the peak; ``portable``: as many with
    `Packing.BYTES`. ``runtime``: the oldest onnxruntime that knows the packing. ``asked``: whether the user named one.
    """

    packing: Packing = Packing.BYTES
    max_opset: int | None = None
    unpacking: int = 0
    portable: int = 0
    runtime: Version = OLDEST
    asked: bool = False

    def in_bytes(self) -> "Loading":
        """The same with weights in bytes."""
        return dataclasses.replace(self, packing=Packing.BYTES, unpacking=self.portable, runtime=OLDEST)

    def to_dict(self) -> dict[str, int]:
        """The bytes, in plain types."""
        return {"unpacking": self.unpacking, "portable": self.portable}

    @property
    def note(self) -> str:
        """What there is to tell of a packing that nobody asked for; "" for the one that every onnxruntime loads."""
        if self.asked or self.packing is Packing.BYTES:
            return ""
        return (
            f"weights are stored in types that onnxruntime {shown(self.runtime)} and newer load: in bytes, which "
            f"{shown(OLDEST)} loads, unpacking them would take {_megabytes(self.portable - self.unpacking)} more at "
            f"the peak of loading ({_megabytes(self.portable)} for {_megabytes(self.unpacking)}); --runtime "
            f"{shown(OLDEST)} writes them so"
        )


def choose_loading(index: GraphIndex, plan: Plan, *, runtime: str | None, max_opset: int | None) -> Loading:
    """How the weights of ``plan`` are packed in a file of at most ``max_opset``.

    ``runtime``: the version of onnxruntime that has to load it, which gets what takes the least memory there; without
    one every version has to, but for `PORTABLE_LIMIT`. ``index``: of the prepared model.
    """
    known = OLDEST if runtime is None else parse_version(runtime)
    if runtime is not None:
        max_opset = min(filter(None, (max_opset, newest_opset(known))), default=None)
    weights = [packable(index, point) for point in plan.points.values() if point.role is Role.WEIGHT]
    portable, typed = (unpacking_bytes(weights, packing, max_opset) for packing in (Packing.BYTES, Packing.TYPES))
    needed = max((TYPED_SINCE[bits] for bits in typed_bits(weights, max_opset)), default=OLDEST)
    leaner = typed < portable and known >= needed if runtime else portable - typed > PORTABLE_LIMIT
    return Loading(
        packing=Packing.TYPES if leaner else Packing.BYTES,
        max_opset=max_opset,
        unpacking=typed if leaner else portable,
        portable=portable,
        runtime=needed if leaner else OLDEST,
        asked=runtime is not None,
    )


def packable(index: GraphIndex, point: Point) -> Packable:
    """A weight that is planned; channels of asymmetric ones are taken to differ in their zero points."""
    shape, axis = tuple(index.initializers[point.tensor].dims), point.axis
    differs = not point.symmetric and axis is not None
    rows = shape[axis] if differs and axis is not None else 1
    return Packable(shape=shape, axis=axis, bits=point.bits, rows=rows, shifted=differs)


def typed_bits(weights: Iterable[Packable], max_opset: int | None) -> set[int]:
    """The widths of the weights that `Packing.TYPES` stores in types of as many bits."""
    opset = UINT2_OPSET if max_opset is None else max_opset
    return {weight.bits for weight in weights if weight.bits < 8 and storage_bits(weight.bits, opset) == weight.bits}


def unpacking_bytes(weights: Sequence[Packable], packing: Packing, max_opset: int | None) -> int:
    """Bytes of all tensors, as large as weights, that onnxruntime holds at once while it unpacks ``weights``."""
    typed = typed_bits(weights, max_opset) if packing is Packing.TYPES else set()
    cast = [weight for weight in weights if weight.bits in typed]
    rest = [weight for weight in weights if weight.bits not in typed]
    # Cast and Sub
    total = sum(math.prod(weight.shape) * (1 + weight.shifted) for weight in cast)
    stored = list(zip(rest, choose_widths(rest), strict=True))
    shifted = {bits for weight, bits in stored if weight.shifted}  # tables that are not of one zero point
    return total + sum(loading_bytes(dataclasses.replace(w, shifted=bits in shifted), bits) for w, bits in stored)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
