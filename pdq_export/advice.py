"""What can help where a result is bad, given what was used: more bits cannot where all have 8 already."""

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from pdq_export.config.method import CalibrationOptions
from pdq_export.spec import CARRIER_BITS, BitWidths, Point, Role

_REDUCED_BITS = 7  # of weights that get them for the runtime's sake


def can_have_more_bits(points: Iterable[Point]) -> bool:
    """Whether more bits can be asked for: fewer than 8 for an activation, or fewer than 7 for a weight."""
    least = {Role.WEIGHT: _REDUCED_BITS}
    return any(point.bits < least.get(point.role, CARRIER_BITS) for point in points)


def bits_or_float(more_bits: bool) -> str:
    """What to do about layers that lose too much."""
    bits = "use more bits (--bits, or --layer-bits for some layers), or " if more_bits else ""
    return f"{bits}leave the part that loses most in float (--exclude, --exclude-op)"


def remedies(points: Iterable[Point], options: CalibrationOptions) -> str:
    """What to do about a network whose outputs are of no use."""
    method = "" if options.prediction_difference else ", or --method pd-quant"
    return f"{bits_or_float(can_have_more_bits(points))}, or take more images or steps (--samples, --iters){method}"


def asked_for_fewer_bits(settings: Mapping[str, Any]) -> bool:
    """Whether a run with these settings, as a report has them, asked for fewer than 8 bits anywhere."""
    texts = [settings.get("bits", "8/8"), *(rule.rpartition("=")[2] for rule in settings.get("layer_bits", ()))]
    widths = map(BitWidths.parse, texts)
    return any(min(bits.weight, bits.activation) < CARRIER_BITS for bits in widths)


def with_wide_activations(settings: Mapping[str, Any]) -> str:
    """The options of a run, as a report has its settings, with 8 bits for every activation."""
    options = [f"--bits {_wide(settings.get('bits', '8/8'))}"]
    if BitWidths.parse(first_last := settings.get("first_last", "8/8")).activation < CARRIER_BITS:
        options.append(f"--first-last {_wide(first_last)}")
    for rule in settings.get("layer_bits", ()):
        pattern, _, bits = rule.rpartition("=")
        if BitWidths.parse(bits).activation < CARRIER_BITS:
            options.append(f"--layer-bits {shlex.quote(f'{pattern}={_wide(bits)}')}")
    return " ".join(options)


def _wide(bits: str) -> BitWidths:
    return BitWidths(BitWidths.parse(bits).weight, CARRIER_BITS)
