"""What to try next where a file loses: one list, what helps most for its cost first.

First what costs nothing, then what learns where nothing was learned, then bits that differ in the same bytes, then
layers by what their error does to the output and by how much the file grows, or a larger budget where bits were found
for one, then what takes more time to calibrate.
"""

import copy
import dataclasses
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence

from pdq_export.advice import (
    HowMade,
    Remedy,
    allot_bits,
    allot_more,
    calibrate_more,
    has_own_bits,
    learn_more,
    widen_activations,
)
from pdq_export.validate.layers import TensorError
from pdq_export.validate.weights import WeightLevels

_FULL = 8
_ENOUGH = 7  # bits of weights that are not worth more, as --reduce-range has them
_PART = 0.25  # of a tensor's own error, which is worth something to be done about
_FLOAT = 32
_ROUNDING_DB = 100  # what float rounding makes is no error
_LARGEST = 300  # exponent of a power, which floats still hold summed: of outputs that are hardly more than zero
_NOTICED = 0.02  # of the output's error: what takes away less is left out
_TROUBLE = 0.01  # what an option costs whatever it does, as a share of the file

Growth = Callable[[Mapping[str, int]], int | None]  # bytes by which the file grows where layers have these bits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """``next``: what to try next, in order. ``by_tensor``: those of layers."""

    next: tuple[Remedy, ...]
    by_tensor: Mapping[str, Remedy]


def find_remedies(
    tensors: Iterable[TensorError],
    weights: Mapping[str, WeightLevels],
    *,
    made: HowMade | None = None,
    growth: Growth | None = None,
    size: int | None = None,
) -> Found:
    """What would make the errors of these tensors smaller.

    ``weights``: by layer. ``made``: how the file was made, where that is known. ``growth``: of the file, where it can
    be computed; else the bits of weights are counted, and so they are for a layer that it does not know. ``size``: of
    the file in bytes.

    All but --bits auto can be given together, from the first on.

    Of a layer it is more bits for what makes the tensor's own error, weights or the tensor's quantizer; or float where
    these have 8 already. Each layer's goes further than those before, so that they can be given together.
    """
    made, tensors = made or HowMade(), list(tensors)
    noise = {one.match.name: _noise(one) for one in tensors}
    whole = sum(noise.values())
    shares = {name: value / whole if whole else 0.0 for name, value in noise.items()}
    widths = _Widths(weights, tensors, growth, made.weight_bits)
    wide = widen_activations(made)
    if wide is not None:
        share = sum(shares[one.match.name] * _of_quantizer(one) for one in tensors)
        wide = dataclasses.replace(wide, share=share) if tensors else wide
        if wide.share is None or wide.share >= _NOTICED:
            widths.widen_activations()
        else:
            wide = None

    def worth(one: TensorError) -> tuple[bool, float, float]:
        remedy = widths.copy().next(one, shares[one.match.name])
        cost = _TROUBLE + remedy.bytes / size if remedy is not None and size else 1.0
        gain = 0.0 if remedy is None else remedy.share or 0.0
        return not one.reaches_output, -gain / cost, one.own_db or 0.0

    found = {one.match.name: widths.next(one, shares[one.match.name]) for one in sorted(tensors, key=worth)}
    by_tensor = {name: remedy for name, remedy in found.items() if remedy is not None}
    layers = [remedy for remedy in by_tensor.values() if remedy.share is None or remedy.share >= _NOTICED]
    if made.instead is not None:
        layers = list(made.instead)
    elif has_own_bits(made) and size is not None:
        layers = list(allot_more(made, layers, size))
    free = [] if wide is None else [wide]
    same_bytes = (*free, *learn_more(made), *allot_bits(made, size))
    return Found(next=(*same_bytes, *layers, *calibrate_more(made)), by_tensor=by_tensor)


class _Widths:
    """What layers have once the remedies so far are followed: bits of weights and of activations, or float."""

    def __init__(
        self, weights: Mapping[str, WeightLevels], tensors: Iterable[TensorError], growth: Growth | None, most: int
    ) -> None:
        self._elements = {name: one.elements for name, one in weights.items()}
        self._weights = {name: one.bits for name, one in weights.items()}
        self._activations: dict[str, int] = {}
        self._growth, self._most, self._all_wide = growth, most, False
        for one in tensors:  # what leads to an Add has 8 bits, and the Add those that were asked for
            if (quantizer := one.match.quantizer) is not None:
                for end in one.match.ends:
                    self._activations[end] = min(quantizer.bits, self._activations.get(end, _FULL))

    def copy(self) -> "_Widths":
        """One that can be changed by itself."""
        made = copy.copy(self)
        made._weights, made._activations = dict(self._weights), dict(self._activations)
        return made

    def widen_activations(self) -> None:
        """Have 8 bits in all activations."""
        self._activations = dict.fromkeys(self._activations, _FULL)
        self._all_wide = True

    def next(self, one: TensorError, share: float) -> Remedy | None:
        """What to do about a tensor that makes this share of the output's error."""
        match, quantizer = one.match, one.match.quantizer
        if one.own_db is None or one.own_db > _ROUNDING_DB or match.op_type == "input":
            return None
        of_quantizer, of_weights = _parts(one)
        layers = [name for name in match.layers if name in self._weights]
        narrow_weights = [name for name in layers if self._weights[name] < _ENOUGH]
        if self._all_wide and quantizer is not None and quantizer.bits < _FULL:
            if not narrow_weights:
                return None
            return self._widen(narrow_weights, weights=True, activations=False, share=share * of_weights)
        wide = narrow_weights if of_weights >= _PART else []
        ends = [name for name in match.ends if name in self._weights]
        narrow = quantizer is not None and quantizer.bits < _FULL and of_quantizer >= _PART
        if narrow and any(self._activations.get(name, 0) >= _FULL for name in ends):
            narrow = False  # of layers that lead to one Add the larger bits count, and a remedy before has them
            if not wide:
                return None
        if wide or (narrow and ends):
            # Of an Add one layer is enough: the one whose weights take the fewest bytes, whatever they become.
            named = wide or [min(ends, key=lambda name: self._elements[name])]
            activations = bool(narrow and set(named) & set(ends))
            removed = (of_weights if wide else 0.0) + (of_quantizer if activations else 0.0)
            return self._widen(named, weights=bool(wide), activations=activations, share=share * removed)
        return self._exclude(layers, match.node, share)

    def _widen(self, names: Sequence[str], *, weights: bool, activations: bool, share: float) -> Remedy:
        bits = self._most if weights else max(self._weights[name] for name in names)
        own = _FULL if activations else max(self._activations.get(name, _FULL) for name in names)
        added = sum(self._added(name, bits) for name in names)
        self._weights.update(dict.fromkeys(names, bits))
        self._activations.update(dict.fromkeys(names, own))
        return Remedy(line=f"--layer-bits {shlex.quote(f'{_pattern(names)}={bits}/{own}')}", bytes=added, share=share)

    def _added(self, name: str, bits: int) -> int:
        before = self._weights[name]
        known = None if self._growth is None or bits == before else self._growth({name: bits})
        return round(self._elements[name] * (bits - before) / 8) if known is None else known

    def _exclude(self, layers: Sequence[str], node: str, share: float) -> Remedy:
        added = sum(self._elements[name] * (_FLOAT - self._weights.pop(name)) for name in layers)
        line = f"--exclude {shlex.quote(_pattern(layers or [node]))}"
        return Remedy(line=line, bytes=round(added / 8), share=share)


def _noise(one: TensorError) -> float:
    """The power of the error that a tensor's own makes of the output, in relation to the signal."""
    return 10 ** min(-one.output_db / 10, _LARGEST) if one.reaches_output and one.output_db is not None else 0.0


def _of_quantizer(one: TensorError) -> float:
    """The share of a tensor's own error that 8 bits of its quantizer take away."""
    quantizer = one.match.quantizer
    if quantizer is None or quantizer.bits >= _FULL or one.own_db is None:
        return 0.0
    return _parts(one)[0] * (1 - 4.0 ** (quantizer.bits - _FULL))


def _parts(one: TensorError) -> tuple[float, float]:
    """The shares of a tensor's own error that its quantizer and its layer's weights make."""
    if one.quantizer_db is None or one.own_db is None:
        return 0.0, 1.0
    share = min(10 ** ((one.own_db - one.quantizer_db) / 10), 1.0)
    return share, 1 - share


def _pattern(names: Sequence[str]) -> str:
    inner = "|".join(re.escape(name) for name in names)
    return f"^({inner})$" if len(names) > 1 else f"^{inner}$"
