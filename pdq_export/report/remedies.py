"""What would make the error of a tensor smaller: options of quantize, and by how much the file grows."""

import dataclasses
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from pdq_export.validate.layers import TensorError
from pdq_export.validate.weights import WeightLevels

_FULL = 8
_ENOUGH = 7  # bits of weights that are not worth more, as --reduce-range has them
_PART = 0.25  # of a tensor's own error, which is worth something to be done about
_FLOAT = 32
_ROUNDING_DB = 100  # what float rounding makes is no error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remedy:
    """``line``: options of quantize; ``bytes``: by how much the file grows, as the bits of weights tell."""

    line: str
    bytes: int


def find_remedies(worst_first: Iterable[TensorError], weights: Mapping[str, WeightLevels]) -> dict[str, Remedy]:
    """By name of the FP32 tensor; each goes further than those before, so that they can be given together.

    ``weights``: by layer. It is more bits for what makes the tensor's own error, weights or the tensor's quantizer; or
    float where these have 8 already.
    """
    tensors = list(worst_first)
    state = _State(weights, tensors)
    found = ((one.match.name, state.next(one)) for one in tensors)
    return {name: remedy for name, remedy in found if remedy is not None}


class _State:
    """What layers have once the remedies so far are followed: bits of weights and of activations, or float."""

    def __init__(self, weights: Mapping[str, WeightLevels], tensors: Iterable[TensorError]) -> None:
        self._elements = {name: one.elements for name, one in weights.items()}
        self._weights = {name: one.bits for name, one in weights.items()}
        self._activations: dict[str, int] = {}
        for one in tensors:  # what leads to an Add has 8 bits, and the Add those that were asked for
            if (quantizer := one.match.quantizer) is not None:
                for end in one.match.ends:
                    self._activations[end] = min(quantizer.bits, self._activations.get(end, _FULL))

    def next(self, one: TensorError) -> Remedy | None:
        match, quantizer = one.match, one.match.quantizer
        if one.own_db is None or one.own_db > _ROUNDING_DB or match.op_type == "input":
            return None
        of_quantizer, of_weights = _parts(one)
        layers = [name for name in match.layers if name in self._weights]
        wide = [name for name in layers if self._weights[name] < _ENOUGH] if of_weights >= _PART else []
        ends = [name for name in match.ends if name in self._weights]
        narrow = quantizer is not None and quantizer.bits < _FULL and of_quantizer >= _PART
        if narrow and any(self._activations.get(name, 0) >= _FULL for name in ends):
            narrow = False  # of layers that lead to one Add the larger bits count, and a remedy before has them
            if not wide:
                return None
        if wide or (narrow and ends):
            # Of an Add one layer is enough: the one whose weights take the fewest bytes, whatever they become.
            named = wide or [min(ends, key=lambda name: self._elements[name])]
            return self._widen(named, weights=bool(wide), activations=bool(narrow and set(named) & set(ends)))
        return self._exclude(layers, match.node)

    def _widen(self, names: Sequence[str], *, weights: bool, activations: bool) -> Remedy:
        bits = _FULL if weights else max(self._weights[name] for name in names)
        own = _FULL if activations else max(self._activations.get(name, _FULL) for name in names)
        added = sum(self._elements[name] * (bits - self._weights[name]) for name in names)
        self._weights.update(dict.fromkeys(names, bits))
        self._activations.update(dict.fromkeys(names, own))
        return Remedy(line=f"--layer-bits {shlex.quote(f'{_pattern(names)}={bits}/{own}')}", bytes=round(added / 8))

    def _exclude(self, layers: Sequence[str], node: str) -> Remedy:
        added = sum(self._elements[name] * (_FLOAT - self._weights.pop(name)) for name in layers)
        return Remedy(line=f"--exclude {shlex.quote(_pattern(layers or [node]))}", bytes=round(added / 8))


def _parts(one: TensorError) -> tuple[float, float]:
    """The shares of a tensor's own error that its quantizer and its layer's weights make."""
    if one.quantizer_db is None or one.own_db is None:
        return 0.0, 1.0
    share = min(10 ** ((one.own_db - one.quantizer_db) / 10), 1.0)
    return share, 1 - share


def _pattern(names: Sequence[str]) -> str:
    inner = "|".join(re.escape(name) for name in names)
    return f"^({inner})$" if len(names) > 1 else f"^{inner}$"
